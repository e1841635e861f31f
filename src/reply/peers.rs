//! `/.wayside/services`: which peers are up, as a list or as a stream of server-sent events.
//!
//! Source: HTML Living Standard section 9.2 (`text/event-stream`).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http_body::Frame;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::body::Body;
use crate::error::Error;
use crate::service::Response;

/// How often a comment is sent while nothing changes, so that both sides notice when the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Answers with every state.
pub fn list<T: Serialize>(states: &[T]) -> Response {
    #[derive(Serialize)]
    struct Peers<'a, T> {
        services: &'a [T],
    }
    let body = serde_json::to_vec(&Peers { services: states }).unwrap_or_default();
    let mut response = Response::new(Body::full(body));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// What is left to say of a state that was told and is not among those of now any more; `None` for one that is.
pub type Gone<T> = fn(&T, &[T]) -> Option<T>;

/// Answers with an event for every state, and with one more whenever one has changed, until `changes` is `true`.
pub fn stream<T, F>(changes: watch::Receiver<bool>, states: F, gone: Gone<T>) -> Response
where
    T: Serialize + PartialEq + Send + 'static,
    F: Fn() -> Vec<T> + Send + 'static,
{
    let (sender, response) = events();
    crate::lifecycle::spawn(
        &tokio::runtime::Handle::current(),
        "peers",
        tell(changes, (states, gone), sender),
    );
    response
}

/// A response that is a stream of events, and the end that writes them.
pub(super) fn events() -> (tokio::sync::mpsc::Sender<Bytes>, Response) {
    let (sender, body) = tokio::sync::mpsc::channel(1);
    let mut response = Response::new(Body::boxed(Events { body }));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    (sender, response)
}

/// Tells of changes until the listener is gone.
async fn tell<T, F>(
    mut changes: watch::Receiver<bool>,
    (states, gone): (F, Gone<T>),
    sender: tokio::sync::mpsc::Sender<Bytes>,
) where
    T: Serialize + PartialEq + Send + 'static,
    F: Fn() -> Vec<T> + Send + 'static,
{
    let mut told: Vec<T> = Vec::new();
    loop {
        // The sidecar stops: the listener's app finds its peers anew with the next one.
        if *changes.borrow_and_update() {
            return;
        }
        let now = states();
        let mut text = String::new();
        for gone in told.iter().filter_map(|state| gone(state, &now)) {
            event(&mut text, "peer", &gone);
        }
        for state in now.iter().filter(|state| !told.contains(state)) {
            event(&mut text, "peer", state);
        }
        told = now;
        if text.is_empty() {
            text.push_str(":\n\n");
        }
        if sender.send(Bytes::from(text)).await.is_err() {
            return;
        }
        tokio::select! {
            () = sender.closed() => return,
            changed = timeout(HEARTBEAT, changes.changed()) => {
                // An error means that nothing will change any more: the sidecar ends.
                if matches!(changed, Ok(Err(_))) {
                    return;
                }
            }
        }
    }
}

fn event(text: &mut String, name: &str, data: &impl Serialize) {
    let data = serde_json::to_string(data).unwrap_or_default();
    text.push_str(&format!("event: {name}\ndata: {data}\n\n"));
}

struct Events {
    body: tokio::sync::mpsc::Receiver<Bytes>,
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
