//! The 202 of a published message.

use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderValue, StatusCode};
use serde::Serialize;

use crate::body::Body;
use crate::config::model::Survives;
use crate::service::Response;

/// What a 202 promises, in the body's own words.
#[derive(Debug, Serialize)]
pub struct Accepted {
    /// The message's id for life.
    pub id: String,
    /// `replicated`: the broker acknowledged it with acks=all. `spooled`: it is synced to the spool's disk.
    pub status: &'static str,
    /// Where it went.
    pub topic: String,
    /// The partition, once the broker has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<i32>,
    /// The offset, once the broker has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<i64>,
    /// What the spool outlives that it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spool: Option<SpoolKept>,
    /// What its claim outlives, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimKept>,
}

/// How durable a spooled message is.
#[derive(Debug, Serialize)]
pub struct SpoolKept {
    /// What the spool's folder outlives.
    pub survives: Survives,
}

/// How durable a claim is.
#[derive(Debug, Serialize)]
pub struct ClaimKept {
    /// What the store outlives.
    pub survives: Survives,
    /// Bytes of the whole body.
    pub size: u64,
    /// Until when it is served, RFC 3339.
    pub expires: String,
}

/// Answers 202 with the timeline's address.
pub fn respond(accepted: &Accepted) -> Response {
    let body = serde_json::to_vec(accepted).unwrap_or_default();
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(location) = HeaderValue::from_str(&format!("/.wayside/messages/{}", accepted.id)) {
        headers.insert(LOCATION, location);
    }
    response
}
