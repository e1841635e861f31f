//! `/.wayside/messages?wait`: the results as a stream of server-sent events, one for each message that came to its end.
//!
//! Source: HTML Living Standard section 9.2 (`text/event-stream`). A reader that is too slow costs no memory: what is
//! forgotten before it was sent is told as a number.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::timeout;

use super::events;
use crate::service::{Permit, Response};

/// How often a comment is sent while nothing happens, so that both sides notice when the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Some events in a row.
#[derive(Debug, Default)]
pub struct Page {
    /// How many before them are gone.
    pub missed: u64,
    /// Each with its number.
    pub events: Vec<(u64, Value)>,
}

/// Where a stream begins, and what it is called.
#[derive(Debug)]
pub struct Begin {
    /// The number of the last event that its reader has.
    pub after: u64,
    /// What stands before the number in an event's id: numbers of another process mean nothing.
    pub run: String,
    /// Its place among the streams.
    pub place: Permit,
}

/// Answers with what `page` gives for the last number told, whenever `changes` says so, until `ended`.
pub fn stream<T, F>(
    changes: watch::Receiver<T>,
    ended: fn(&T) -> bool,
    begin: Begin,
    page: F,
) -> Response
where
    T: Send + Sync + 'static,
    F: Fn(u64) -> Page + Send + 'static,
{
    let (sender, response) = events::answer();
    crate::lifecycle::spawn(
        &tokio::runtime::Handle::current(),
        "results",
        tell((changes, ended), begin, page, sender),
    );
    response
}

async fn tell<T, F>(
    (mut changes, ended): (watch::Receiver<T>, fn(&T) -> bool),
    begin: Begin,
    page: F,
    sender: mpsc::Sender<Bytes>,
) where
    F: Fn(u64) -> Page,
{
    let mut after = begin.after;
    loop {
        let over = ended(&changes.borrow_and_update());
        let page = page(after);
        let mut text = String::new();
        if page.missed > 0 {
            after += page.missed;
            let missed = page.missed;
            text.push_str(&format!("event: missed\ndata: {{\"missed\":{missed}}}\n\n"));
        }
        for (number, event) in &page.events {
            after = *number;
            let run = begin.run.as_str();
            text.push_str(&format!(
                "id: {run}:{number}\nevent: result\ndata: {event}\n\n"
            ));
        }
        let more = !text.is_empty();
        if !more {
            text.push_str(":\n\n");
        }
        if sender.send(Bytes::from(text)).await.is_err() {
            return;
        }
        if more {
            continue;
        }
        // The sidecar stops: what is still to come is told by the next one.
        if over {
            return;
        }
        tokio::select! {
            () = sender.closed() => return,
            changed = timeout(HEARTBEAT, changes.changed()) => {
                if matches!(changed, Ok(Err(_))) {
                    return;
                }
            }
        }
    }
}

/// The number after which a reader goes on that has seen the event `last`; `None` if that is of another process.
pub fn resume(last: &str, run: &str) -> Option<u64> {
    last.strip_prefix(run)?.strip_prefix(':')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use serde_json::json;

    use super::*;
    use crate::service::Gate;

    #[tokio::test]
    async fn a_slow_reader_is_told_how_many_it_missed_and_goes_on() {
        let gate = Gate::new(1);
        let begin = Begin {
            after: 2,
            run: "run".into(),
            place: gate.enter().unwrap(),
        };
        let (tip, changes) = watch::channel(false);
        // Of the results 3 to 5 the first two are forgotten.
        let page = |after| match after {
            2 => Page {
                missed: 2,
                events: vec![(5, json!({ "id": "five" }))],
            },
            _ => Page::default(),
        };
        let mut body = stream(changes, |over| *over, begin, page).into_body();
        let mut text = async || {
            let frame = body.frame().await.unwrap().unwrap();
            String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
        };
        assert_eq!(
            text().await,
            "event: missed\ndata: {\"missed\":2}\n\nid: run:5\nevent: result\ndata: {\"id\":\"five\"}\n\n"
        );
        assert_eq!(text().await, ":\n\n");
        tip.send_replace(true);
        assert_eq!(text().await, ":\n\n");
        assert!(body.frame().await.is_none(), "it ends with its sidecar");
        tokio::task::yield_now().await;
        assert!(gate.enter().is_some(), "its place is free");
        assert_eq!(resume("run:7", "run"), Some(7));
        assert_eq!(
            (resume("other:7", "run"), resume("run:x", "run")),
            (None, None)
        );
    }
}
