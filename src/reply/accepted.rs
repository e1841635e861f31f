//! The 202 of a published message.

use std::sync::Arc;

use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use crate::body::Body;
use crate::config::model::Survives;
use crate::service::Response;

/// What a 202 promises, in the body's own words.
#[derive(Debug)]
pub struct Accepted {
    /// The message's id for life.
    pub id: Uuid,
    /// `replicated`: the broker acknowledged it with acks=all. `spooled`: it is synced to the spool's disk.
    pub status: &'static str,
    /// Where it went: a topic's name, which has no letter that JSON would escape.
    pub topic: Arc<str>,
    /// The partition and the offset, once the broker has it.
    pub place: Option<(i32, i64)>,
    /// What the spool outlives that it is in.
    pub spool: Option<SpoolKept>,
    /// What its claim outlives, if it has one.
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
    /// The kind of store: `disk`, `object` or `origin`.
    pub kept: &'static str,
    /// What the store outlives; absent where nothing is kept, so that its service answers for the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub survives: Option<Survives>,
    /// Bytes of the whole body.
    pub size: u64,
    /// Until when it is served, RFC 3339.
    pub expires: String,
}

/// Answers 202 with the timeline's address.
pub fn respond(accepted: &Accepted) -> Response {
    let mut response = Response::new(Body::full(accepted.body()));
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.extend(location(accepted.id).map(|location| (LOCATION, location)));
    response
}

/// The address of a message's timeline.
pub fn location(id: Uuid) -> Option<HeaderValue> {
    const FOLDER: &[u8] = b"/.wayside/messages/";
    let mut path = [0; FOLDER.len() + Hyphenated::LENGTH];
    let (folder, name) = path.split_at_mut(FOLDER.len());
    folder.copy_from_slice(FOLDER);
    id.as_hyphenated().encode_lower(name);
    HeaderValue::from_bytes(&path).ok()
}

impl Accepted {
    /// Put together by hand: each call has one, and all but the rare parts are numbers and known words.
    fn body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(256);
        let mut put = |parts: &[&str]| {
            let parts = parts.iter().map(|part| part.as_bytes());
            parts.for_each(|part| body.extend_from_slice(part));
        };
        let mut id = [0; Hyphenated::LENGTH];
        let id = self.id.as_hyphenated().encode_lower(&mut id);
        put(&["{\"id\":\"", id, "\",\"status\":\"", self.status]);
        put(&["\",\"topic\":\"", &self.topic, "\""]);
        if let Some((partition, offset)) = self.place {
            put(&[",\"partition\":", itoa::Buffer::new().format(partition)]);
            put(&[",\"offset\":", itoa::Buffer::new().format(offset)]);
        }
        let spool = self
            .spool
            .as_ref()
            .map(|spool| ("spool", serde_json::to_string(spool)));
        let claim = self
            .claim
            .as_ref()
            .map(|claim| ("claim", serde_json::to_string(claim)));
        for (name, part) in spool.into_iter().chain(claim) {
            put(&[",\"", name, "\":", &part.unwrap_or_default()]);
        }
        put(&["}"]);
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_202_is_json_with_all_of_its_parts() {
        let mut accepted = Accepted {
            id: Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001),
            status: "replicated",
            topic: Arc::from("a.topic-1_"),
            place: Some((3, i64::MAX)),
            spool: None,
            claim: None,
        };
        let text = |accepted: &Accepted| String::from_utf8(accepted.body()).expect("UTF-8");
        assert_eq!(
            text(&accepted),
            concat!(
                r#"{"id":"01900000-0000-7000-8000-000000000001","status":"replicated","#,
                r#""topic":"a.topic-1_","partition":3,"offset":9223372036854775807}"#
            )
        );
        (accepted.status, accepted.place) = ("spooled", None);
        accepted.spool = Some(SpoolKept {
            survives: Survives::Volume,
        });
        accepted.claim = Some(ClaimKept {
            kept: "disk",
            survives: Some(Survives::Pod),
            size: 94,
            expires: "2026-11-23T23:02:25Z".into(),
        });
        let said: serde_json::Value = serde_json::from_str(&text(&accepted)).expect("JSON");
        assert_eq!(said["spool"]["survives"], "volume");
        assert_eq!(
            (&said["claim"]["size"], &said["partition"]),
            (&94.into(), &().into())
        );
        let location = location(accepted.id).expect("it is ASCII");
        assert_eq!(
            location,
            "/.wayside/messages/01900000-0000-7000-8000-000000000001"
        );
    }
}
