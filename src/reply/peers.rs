//! `/.wayside/services`: which peers are up, as a list or as a stream of server-sent events.

use bytes::Bytes;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::timeout;

use super::events::{self, COMMENT, HEARTBEAT};
use crate::body::Body;
use crate::service::Response;

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
    let (sender, response) = events::answer();
    crate::lifecycle::spawn(
        &tokio::runtime::Handle::current(),
        "peers",
        tell(changes, (states, gone), sender),
    );
    response
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
            events::write(&mut text, "peer", &gone);
        }
        for state in now.iter().filter(|state| !told.contains(state)) {
            events::write(&mut text, "peer", state);
        }
        told = now;
        if text.is_empty() {
            text.push_str(COMMENT);
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
