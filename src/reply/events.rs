//! A body of server-sent events: one piece of text at a time, made only when the reader has taken the one before.
//!
//! Source: HTML Living Standard section 9.2 (`text/event-stream`).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::body::Body;
use crate::error::Error;
use crate::service::Response;

/// How often a comment is sent while nothing changes, so that both sides notice when the other is gone.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// A comment.
pub const COMMENT: &str = ":\n\n";

/// Whether a caller asks for a stream.
pub fn are_wanted(headers: &HeaderMap) -> bool {
    headers
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"))
}

/// An answer whose body is what is sent, until the sender is dropped. The sender learns that its reader is gone.
pub fn answer() -> (mpsc::Sender<Bytes>, Response) {
    let (sender, body) = mpsc::channel(1);
    let mut response = Response::new(Body::boxed(Events { body }));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    (sender, response)
}

/// Adds one event.
pub fn write(text: &mut String, name: &str, data: &impl Serialize) {
    let data = serde_json::to_string(data).unwrap_or_default();
    text.push_str(&format!("event: {name}\ndata: {data}\n\n"));
}

struct Events {
    body: mpsc::Receiver<Bytes>,
}

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = self.body.poll_recv(cx);
        polled.map(|text| text.map(|text| Ok(Frame::data(text))))
    }
}
