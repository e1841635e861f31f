//! What a hop knows of gRPC: which calls it is, and how an answer says that it failed.
//!
//! Source: gRPC over HTTP/2 (PROTOCOL-HTTP2.md), "Responses" and "HTTP status mapping".

use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// The one code that says "try elsewhere".
const UNAVAILABLE: &[u8] = b"14";

/// Whether a call or an answer is gRPC.
pub fn is(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// Whether headers, or the trailers of an answer without messages, say that the service is not available.
pub fn unavailable(headers: &HeaderMap) -> bool {
    headers
        .get("grpc-status")
        .is_some_and(|status| status.as_bytes() == UNAVAILABLE)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn grpc_is_told_by_its_content_type_and_grpc_web_is_not_it() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=x", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
            assert_eq!(is(&headers), expected, "{value}");
        }
    }
}
