//! Names of the headers that Wayside adds.

use http::{HeaderMap, HeaderName, HeaderValue};

/// On every response: which pattern carried the call.
pub const PATTERN: HeaderName = HeaderName::from_static("wayside-pattern");
/// On a delivery: the message's id.
pub const MESSAGE_ID: HeaderName = HeaderName::from_static("wayside-message-id");
/// On a delivery: the attempt's number, from 1.
pub const ATTEMPT: HeaderName = HeaderName::from_static("wayside-attempt");
/// On a delivery of a slim message: where the whole body is.
pub const CLAIM: HeaderName = HeaderName::from_static("wayside-claim");
/// On an app's answer to a delivery: its verdict in a word, above its status.
pub const VERDICT: HeaderName = HeaderName::from_static("wayside-verdict");
/// On a forwarded call: whole milliseconds until its caller gives up.
pub const TIMEOUT: HeaderName = HeaderName::from_static("wayside-timeout");
/// W3C Server Timing.
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// RFC 9209.
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// RFC 9530 section 3.
pub const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
/// Everything below this path is ours, whatever the Host.
pub const RESERVED: &str = "/.wayside/";

/// Says which pattern carried a call.
pub fn set_pattern(headers: &mut HeaderMap, pattern: &'static str) {
    if pattern != "-" {
        headers.insert(PATTERN, HeaderValue::from_static(pattern));
    }
}
