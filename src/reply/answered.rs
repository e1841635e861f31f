//! The receiver's real answer to a published call, for a caller that waited for it.

use std::time::Duration;

use http::header::LOCATION;
use http::{HeaderMap, HeaderValue, StatusCode};
use uuid::Uuid;

use super::accepted::location;
use super::headers::{MESSAGE_ID, PREFERENCE_APPLIED, VERDICT};
use crate::body::Body;
use crate::service::Response;

/// What the app answered.
#[derive(Debug)]
pub struct Answered {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, those of the connection left out.
    pub headers: HeaderMap,
    /// Its whole body.
    pub body: bytes::Bytes,
    /// What it meant: `done`, `dead-letter` or `drop`.
    pub verdict: &'static str,
}

/// Answers with it. `Location` is the app's own if it gave one, else the timeline's address.
pub fn respond(answered: Answered, id: Uuid) -> Response {
    let mut response = Response::new(Body::full(answered.body));
    *response.status_mut() = answered.status;
    let headers = response.headers_mut();
    *headers = answered.headers;
    headers.insert(VERDICT, HeaderValue::from_static(answered.verdict));
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(MESSAGE_ID, id);
    }
    if let Some(location) = location(id) {
        headers.entry(LOCATION).or_insert(location);
    }
    response
}

/// Says how long was waited, or would have been (RFC 7240 section 3).
pub fn applied(response: &mut Response, wait: Duration) {
    if let Ok(value) = HeaderValue::from_str(&format!("wait={}", wait.as_secs())) {
        response.headers_mut().insert(PREFERENCE_APPLIED, value);
    }
}
