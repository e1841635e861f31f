//! The only place where an [`Error`] becomes a response.
//!
//! Sources: RFC 9457 (problem details), RFC 9209 (Proxy-Status), RFC 9110 section 10.2.3 (Retry-After).

use http::HeaderValue;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE, RETRY_AFTER};
use serde::Serialize;

use super::headers::PROXY_STATUS;
use crate::body::Body;
use crate::error::{Error, Kind, Violation};
use crate::service::Response;

#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    trace: &'a str,
    #[serde(skip_serializing_if = "<[Violation]>::is_empty")]
    violations: &'a [Violation],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more_violations: bool,
}

/// Turns a refusal into its answer. `who` is this sidecar's name for Proxy-Status.
pub fn respond(error: &Error, who: &str, trace: &str) -> Response {
    let kind = error.kind();
    let problem = Problem {
        r#type: format!("urn:wayside:problem:{}", kind.word()),
        title: title(kind),
        status: kind.status().as_u16(),
        detail: error.detail(),
        trace,
        violations: &error.violations().list,
        more_violations: error.violations().more,
    };
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = kind.status();
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    headers.extend(status_line(kind, who).map(|value| (PROXY_STATUS, value)));
    if kind == Kind::MethodNotAllowed {
        // A MUST of RFC 9110 section 15.5.6. Whatever we serve ourselves is read, but for `POST /drain`.
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    if let Some(types) = error.takes() {
        headers.extend(
            HeaderValue::from_str(types)
                .ok()
                .map(|types| (ACCEPT, types)),
        );
    }
    if let Some(wait) = error.retry_after() {
        // Whole seconds, never zero: a caller that comes back at once would only add load.
        headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
    }
    response
}

/// Turns a refusal into the answer that a gRPC caller understands: 200 with its status in the head ("Trailers-Only").
pub fn respond_grpc(error: &Error, who: &str) -> Response {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(grpc_status(error.kind())));
    let message = percent_encoded(&format!("{}: {}", error.kind().word(), error.detail()));
    if let Ok(message) = HeaderValue::from_str(&message) {
        headers.insert("grpc-message", message);
    }
    headers.extend(status_line(error.kind(), who).map(|value| (PROXY_STATUS, value)));
    response
}

/// What stands in `grpc-message` (PROTOCOL-HTTP2.md, "Responses").
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// What RFC 9209 says of a refusal.
pub(super) fn status_line(kind: Kind, who: &str) -> Option<HeaderValue> {
    let (error, word) = (proxy_status(kind), kind.word());
    HeaderValue::from_str(&format!("{who}; error={error}; details=\"{word}\"")).ok()
}

/// The codes of gRPC: whoever sees 14 (UNAVAILABLE) may try again.
fn grpc_status(kind: Kind) -> u16 {
    match kind {
        Kind::Deadline | Kind::CallerTimeout => 4,
        Kind::NotAllowed => 7,
        Kind::RateLimited | Kind::BodyTooLarge | Kind::RecordTooLarge => 8,
        Kind::NoRoute | Kind::NotFound | Kind::MethodNotAllowed | Kind::NotImplemented => 12,
        Kind::Internal | Kind::BadAnswer | Kind::ClaimChanged | Kind::ClaimDamaged | Kind::Loop => {
            13
        }
        Kind::BadRequest
        | Kind::NotJson
        | Kind::KeyMissing
        | Kind::KeyReused
        | Kind::MediaType
        | Kind::SchemaViolated
        | Kind::TargetTooLong => 3,
        Kind::KeyInProgress => 10,
        Kind::CallerGone | Kind::CallerLeft => 1,
        Kind::Unknown | Kind::Expired | Kind::Elsewhere => 5,
        Kind::Overloaded
        | Kind::Unresolved
        | Kind::Unreachable
        | Kind::TlsFailed
        | Kind::Reset
        | Kind::BrokerAway
        | Kind::TopicUnknown
        | Kind::BrokerRefused
        | Kind::Spool
        | Kind::ClaimStore => 14,
    }
}

fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::BadRequest => "The request breaks a rule of HTTP",
        Kind::NoRoute => "No route takes this call",
        Kind::NotFound => "There is nothing under this path",
        Kind::MethodNotAllowed => "This method is not served",
        Kind::NotImplemented => "This method is switched off",
        Kind::TargetTooLong => "The request target is too long",
        Kind::Loop => "The call goes in a circle",
        Kind::BodyTooLarge => "The body is too large",
        Kind::CallerTimeout => "The request came too slowly",
        Kind::CallerGone => "The request broke off",
        Kind::CallerLeft => "The caller left",
        Kind::NotJson => "The body is not JSON",
        Kind::KeyMissing => "The call lacks its key",
        Kind::MediaType => "The body is of a type that is not taken",
        Kind::SchemaViolated => "The body breaks the schema",
        Kind::Overloaded => "Too much at once",
        Kind::RateLimited => "Too many calls in a time",
        Kind::NotAllowed => "The caller may not do this",
        Kind::TlsFailed => "The service could not be trusted",
        Kind::Unresolved => "The service has no address",
        Kind::Unreachable => "The service takes no connection",
        Kind::Reset => "The service broke the connection",
        Kind::BadAnswer => "The service's answer is not HTTP",
        Kind::Deadline => "The time for the call is up",
        Kind::BrokerAway => "The broker does not answer",
        Kind::TopicUnknown => "The broker does not have the topic",
        Kind::BrokerRefused => "The broker refuses the record",
        Kind::RecordTooLarge => "The record is too large for the broker",
        Kind::Unknown => "Not known here",
        Kind::Expired => "No longer kept",
        Kind::Elsewhere => "Another instance keeps the body",
        Kind::ClaimChanged => "The body is another one by now",
        Kind::ClaimDamaged => "The kept body is damaged",
        Kind::ClaimStore => "The body can not be kept",
        Kind::Spool => "The message can not be kept",
        Kind::KeyReused => "The idempotency key was used before",
        Kind::KeyInProgress => "The call is still under way",
        Kind::Internal => "A fault of the sidecar",
    }
}

/// The error types of RFC 9209 section 2.3.
fn proxy_status(kind: Kind) -> &'static str {
    match kind {
        Kind::BadRequest
        | Kind::CallerGone
        | Kind::CallerLeft
        | Kind::NotJson
        | Kind::SchemaViolated
        | Kind::KeyMissing => "http_request_error",
        Kind::NoRoute | Kind::NotFound | Kind::Unknown | Kind::Expired => "destination_not_found",
        Kind::MethodNotAllowed
        | Kind::NotImplemented
        | Kind::TargetTooLong
        | Kind::BodyTooLarge
        | Kind::MediaType
        | Kind::NotAllowed
        | Kind::RateLimited
        | Kind::KeyReused
        | Kind::KeyInProgress
        | Kind::RecordTooLarge => "http_request_denied",
        Kind::TlsFailed => "tls_certificate_error",
        Kind::Loop => "proxy_loop_detected",
        Kind::CallerTimeout => "http_request_error",
        Kind::Overloaded => "connection_limit_reached",
        Kind::Unresolved => "dns_error",
        Kind::Unreachable => "connection_refused",
        Kind::Reset => "connection_terminated",
        Kind::BadAnswer => "http_protocol_error",
        Kind::Deadline => "http_response_timeout",
        Kind::BrokerAway | Kind::TopicUnknown | Kind::BrokerRefused => "destination_unavailable",
        Kind::Elsewhere => "destination_not_found",
        Kind::ClaimChanged | Kind::ClaimDamaged => "http_response_incomplete",
        Kind::ClaimStore | Kind::Spool | Kind::Internal => "proxy_internal_error",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn every_kind_has_a_status_a_type_and_a_proxy_status() {
        for &kind in Kind::ALL {
            let error = Error::new(kind, "why")
                .after(Duration::from_millis(1))
                .because("secret cause");
            let response = respond(&error, "wayside-orders", "0af7");
            assert_eq!(response.status(), kind.status());
            assert!(response.status().is_client_error() || response.status().is_server_error());
            assert_eq!(response.headers()[RETRY_AFTER], "1");
            let status = response.headers()[PROXY_STATUS]
                .to_str()
                .expect("ascii")
                .to_owned();
            assert!(status.starts_with("wayside-orders; error="), "{status}");
            let body = response.into_body().read(4096).await.expect("in memory");
            let body = std::str::from_utf8(&body).expect("json is utf-8");
            assert!(
                body.contains(&format!("urn:wayside:problem:{}", kind.word())),
                "{body}"
            );
            assert!(
                !body.contains("secret"),
                "the client reads the cause: {body}"
            );
        }
    }
}
