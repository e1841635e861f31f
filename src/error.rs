//! What went wrong, whose side it was on, whether it may be tried again, and what the client may read.
//!
//! Stages have small error enums of their own and turn them into an [`Error`] at their border. Only
//! `reply/rescue.rs` turns an [`Error`] into a response.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use http::StatusCode;
use serde::Serialize;

/// Any cause.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Why a call has no answer of its own. One box, so that results stay small.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    retry: Retry,
    detail: Cow<'static, str>,
    retry_after: Option<Duration>,
    violations: Violations,
    taking: Option<String>,
    source: Option<BoxError>,
}

/// One rule that a call breaks. It repeats nothing of the call but names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Where in the body, as a JSON pointer (RFC 6901), cut at 500 characters; absent for what is not in the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// The keyword of the schema, or `key`, or `uniqueNames`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keyword: Option<String>,
    /// Completes "POINTER …".
    pub reason: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pointer.as_deref() {
            None => f.write_str(&self.reason),
            Some("") => write!(f, "the body {}", self.reason),
            Some(pointer) => write!(f, "{pointer} {}", self.reason),
        }
    }
}

/// The rules that a call breaks, as many as are told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Violations {
    /// In no particular order.
    pub list: Vec<Violation>,
    /// Whether there are more than these.
    pub more: bool,
}

/// Whose side a failure was on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The caller's.
    Caller,
    /// The called service's.
    Peer,
    /// The broker's.
    Broker,
    /// Our own.
    Us,
}

/// Whether the same call may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Not by us.
    Never,
    /// Not one byte of the request left: safe for every method.
    NeverSent,
    /// Sent, and no answer began: safe for idempotent calls only.
    NoAnswer,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $word:literal, $status:ident, $side:ident;)*) => {
        /// The reason. Each is one metric label, one status, one problem type and one word in the log.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[$doc])* $kind),* }

        impl Kind {
            /// Every kind, for tables and tests.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),*];

            /// The stable word.
            pub fn word(self) -> &'static str {
                match self { $(Kind::$kind => $word),* }
            }

            /// The status of our own answer.
            pub fn status(self) -> StatusCode {
                match self { $(Kind::$kind => StatusCode::$status),* }
            }

            /// Whose side it is on.
            pub fn side(self) -> Side {
                match self { $(Kind::$kind => Side::$side),* }
            }
        }
    };
}

kinds! {
    /// The request breaks a rule of HTTP.
    BadRequest = "bad-request", BAD_REQUEST, Caller;
    /// No route takes the call.
    NoRoute = "no-route", NOT_FOUND, Caller;
    /// A path under `/.wayside/` that is not served.
    NotFound = "not-found", NOT_FOUND, Caller;
    /// A method that the path does not have.
    MethodNotAllowed = "method-not-allowed", METHOD_NOT_ALLOWED, Caller;
    /// A method that is switched off for every path.
    NotImplemented = "method-not-implemented", NOT_IMPLEMENTED, Caller;
    /// The request target is over the limit.
    TargetTooLong = "target-too-long", URI_TOO_LONG, Caller;
    /// The call has been through this sidecar already.
    Loop = "loop-detected", LOOP_DETECTED, Caller;
    /// The body is over the route's limit.
    BodyTooLarge = "body-too-large", PAYLOAD_TOO_LARGE, Caller;
    /// The caller sends its body too slowly.
    CallerTimeout = "caller-timeout", REQUEST_TIMEOUT, Caller;
    /// The caller's body broke off.
    CallerGone = "caller-gone", BAD_REQUEST, Caller;
    /// The caller closed its connection before there was an answer; it never reads this.
    CallerLeft = "caller-left", BAD_REQUEST, Caller;
    /// The body is not JSON although the route needs it to be.
    NotJson = "not-json", BAD_REQUEST, Caller;
    /// The body is of a media type that the route does not take.
    MediaType = "unsupported-media-type", UNSUPPORTED_MEDIA_TYPE, Caller;
    /// The body breaks the route's schema.
    SchemaViolated = "schema-violated", BAD_REQUEST, Caller;
    /// The call lacks the key that its route asks for.
    KeyMissing = "key-missing", BAD_REQUEST, Caller;
    /// As many calls in flight as the door may have, or a queue is full.
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, Us;
    /// A route or a service has had as many calls as its rate allows.
    RateLimited = "rate-limited", TOO_MANY_REQUESTS, Us;
    /// The caller may not make this call.
    NotAllowed = "not-allowed", FORBIDDEN, Caller;
    /// The service has no address at the moment.
    Unresolved = "destination-unresolved", SERVICE_UNAVAILABLE, Peer;
    /// No address took the connection.
    Unreachable = "destination-unreachable", SERVICE_UNAVAILABLE, Peer;
    /// The service is not who it should be, or does not take us for who we are.
    TlsFailed = "tls-failed", SERVICE_UNAVAILABLE, Peer;
    /// The connection broke before an answer began.
    Reset = "connection-reset", BAD_GATEWAY, Peer;
    /// The answer is not HTTP.
    BadAnswer = "bad-answer", BAD_GATEWAY, Peer;
    /// The call's time is up.
    Deadline = "deadline-exceeded", GATEWAY_TIMEOUT, Peer;
    /// The broker does not answer.
    BrokerAway = "broker-away", SERVICE_UNAVAILABLE, Broker;
    /// The broker does not know the topic and did not make it.
    TopicUnknown = "topic-unknown", SERVICE_UNAVAILABLE, Broker;
    /// The broker refuses: authorization, or a setting.
    BrokerRefused = "broker-refused", SERVICE_UNAVAILABLE, Broker;
    /// The record is over the broker's limit.
    RecordTooLarge = "record-too-large", PAYLOAD_TOO_LARGE, Caller;
    /// No such claim or message here.
    Unknown = "unknown", NOT_FOUND, Caller;
    /// The claim or message is no longer kept.
    Expired = "expired", GONE, Caller;
    /// Another instance keeps the claim, or none does any more.
    Elsewhere = "claim-elsewhere", MISDIRECTED_REQUEST, Peer;
    /// Its service has another body by now than the one that was sent.
    ClaimChanged = "claim-changed", CONFLICT, Peer;
    /// The claim's bytes do not have the digest that the record names.
    ClaimDamaged = "claim-damaged", BAD_GATEWAY, Peer;
    /// The claim store is full or its disk refuses.
    ClaimStore = "claim-store-unavailable", SERVICE_UNAVAILABLE, Us;
    /// The spool is full or its disk refuses.
    Spool = "spool-unavailable", SERVICE_UNAVAILABLE, Us;
    /// An idempotency key that was used for another call.
    KeyReused = "idempotency-key-reused", UNPROCESSABLE_ENTITY, Caller;
    /// The first call with an idempotency key has no answer yet.
    KeyInProgress = "idempotency-key-in-progress", CONFLICT, Caller;
    /// A fault of ours.
    Internal = "internal", INTERNAL_SERVER_ERROR, Us;
}

impl Error {
    /// An error whose `detail` the client may read. It is never tried again unless [`Error::retry`] says so.
    pub fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            retry: Retry::Never,
            detail: detail.into(),
            retry_after: None,
            violations: Violations::default(),
            taking: None,
            source: None,
        }))
    }

    /// Says whether the call may be sent again.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// Says when the caller may come back.
    pub fn after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    /// Adds the rules that the call breaks.
    pub fn violating(mut self, violations: Violations) -> Self {
        self.0.violations = violations;
        self
    }

    /// Says which media types are taken instead, as `Accept` lists them (RFC 9110 section 12.5.1).
    pub fn taking(mut self, types: String) -> Self {
        self.0.taking = Some(types);
        self
    }

    /// Adds to the text that the client reads.
    pub fn adding(mut self, more: &str) -> Self {
        let Inner { detail, .. } = &mut *self.0;
        *detail = format!("{detail}; {more}").into();
        self
    }

    /// Adds the cause, which only our own log shows.
    pub fn because(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The reason.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Whether the same call may be sent again.
    pub fn may_retry(&self) -> Retry {
        self.0.retry
    }

    /// The text that the client reads.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The rules that the call breaks.
    pub fn violations(&self) -> &Violations {
        &self.0.violations
    }

    /// The media types that are taken instead.
    pub fn takes(&self) -> Option<&str> {
        self.0.taking.as_deref()
    }

    /// When the caller may come back.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.kind.word(), self.0.detail)?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_word_of_its_own() {
        let mut words: Vec<_> = Kind::ALL.iter().map(|kind| kind.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Kind::ALL.len());
    }

    #[test]
    fn the_client_reads_the_detail_and_only_the_log_the_cause() {
        let error =
            Error::new(Kind::Reset, "billing closed the connection").because("os error 104");
        assert_eq!(error.detail(), "billing closed the connection");
        assert_eq!(
            error.to_string(),
            "connection-reset: billing closed the connection: os error 104"
        );
    }
}
