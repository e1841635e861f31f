//! `/messages`: what happened to whom, as a list, as one timeline, or as a stream of both while they change.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;
use uuid::Uuid;

use super::json;
use crate::error::{Error, Kind};
use crate::lifecycle;
use crate::messages::{
    Changed, FOLLOWERS_MAX, Follow, Lookup, Status, Timeline, Timelines, Wanted,
};
use crate::reply::events::{self, COMMENT, HEARTBEAT};
use crate::service::Response;

/// Messages of one list, if nobody says how many.
const SHOWN: usize = 100;
/// Messages of one list, at most.
const SHOWN_MAX: usize = 1_000;

/// What a query asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    wanted: Wanted,
    limit: usize,
}

/// Changes that came too fast for who follows.
#[derive(Serialize)]
struct Skipped {
    changes: u64,
}

/// Answers `/messages?route=&status=&limit=`.
pub(super) fn list(
    timelines: &Arc<Timelines>,
    (method, headers): (&Method, &HeaderMap),
    query: Option<&str>,
) -> Result<Response, Error> {
    let Asked { wanted, limit } = asked(query.unwrap_or(""))?;
    if !follows(method, headers) {
        let found = timelines.recent(&wanted, limit);
        let found: Vec<_> = found.iter().map(Timeline::to_json).collect();
        return Ok(json(StatusCode::OK, &found));
    }
    // Followed first, so that nothing is missed between the list and the first change.
    let follow = follow(timelines)?;
    let mut told = String::new();
    for timeline in timelines.recent(&wanted, limit).iter().rev() {
        events::write(&mut told, "message", timeline);
    }
    Ok(stream(timelines, follow, (Subject::All(wanted), told)))
}

/// Answers `/messages/{id}`.
pub(super) fn one(
    timelines: &Arc<Timelines>,
    (method, headers): (&Method, &HeaderMap),
    id: &str,
) -> Result<Response, Error> {
    let id =
        Uuid::parse_str(id).map_err(|_| Error::new(Kind::Unknown, "a message's id is a UUID"))?;
    let follow = match follows(method, headers) {
        true => Some(follow(timelines)?),
        false => None,
    };
    let timeline = known(timelines, id)?;
    let Some(follow) = follow else {
        return Ok(json(StatusCode::OK, &timeline));
    };
    let mut told = String::new();
    events::write(&mut told, "message", &timeline);
    let subject = match timeline.status.is_final() {
        true => Subject::Ended,
        false => Subject::One(id),
    };
    Ok(stream(timelines, follow, (subject, told)))
}

fn known(timelines: &Timelines, id: Uuid) -> Result<Timeline, Error> {
    match timelines.get(id) {
        Lookup::Known(timeline) => Ok(timeline),
        Lookup::Gone => Err(Error::new(
            Kind::Expired,
            "the message's timeline is no longer kept",
        )),
        Lookup::Unknown => Err(Error::new(
            Kind::Unknown,
            "this sidecar knows no such message",
        )),
    }
}

fn follows(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::GET && events::are_wanted(headers)
}

fn follow(timelines: &Timelines) -> Result<Follow, Error> {
    timelines.follow().ok_or_else(|| {
        let detail = format!("{FOLLOWERS_MAX} follow messages already, or this sidecar stops");
        Error::new(Kind::Overloaded, detail).after(HEARTBEAT)
    })
}

/// Whom a stream tells of.
enum Subject {
    All(Wanted),
    One(Uuid),
    /// A message that had its final verdict before it was asked for: there is nothing to wait for.
    Ended,
}

fn stream(
    timelines: &Arc<Timelines>,
    follow: Follow,
    (subject, told): (Subject, String),
) -> Response {
    let (sender, response) = events::answer();
    let telling = tell(Arc::clone(timelines), follow, (subject, told), sender);
    lifecycle::spawn(&Handle::current(), "messages", telling);
    response
}

/// Tells of changes until the reader is gone, the one message has its final verdict, or the sidecar stops.
async fn tell(
    timelines: Arc<Timelines>,
    mut follow: Follow,
    (subject, mut text): (Subject, String),
    sender: Sender<Bytes>,
) {
    loop {
        if text.is_empty() {
            text.push_str(COMMENT);
        }
        let text_now = Bytes::from(std::mem::take(&mut text));
        if sender.send(text_now).await.is_err() || matches!(subject, Subject::Ended) {
            return;
        }
        let ended = loop {
            let changed = tokio::select! {
                () = sender.closed() => return,
                changed = timeout(HEARTBEAT, follow.next()) => changed,
            };
            match changed {
                Err(_) => break false,
                Ok(None) => return,
                Ok(Some(changed)) => {
                    let ended = changes(&timelines, &subject, &changed, &mut text);
                    if ended || !text.is_empty() {
                        break ended;
                    }
                }
            }
        };
        if ended {
            // The last piece; whoever reads it is told all there is to say.
            drop(sender.send(Bytes::from(text)).await);
            return;
        }
    }
}

/// Writes what has changed; `true` if it was the last.
fn changes(timelines: &Timelines, subject: &Subject, changed: &Changed, text: &mut String) -> bool {
    let tell = |id: Uuid| match timelines.get(id) {
        Lookup::Known(timeline) => Some(timeline),
        _ => None,
    };
    match subject {
        Subject::Ended => true,
        Subject::One(id) => {
            if changed.skipped == 0 && !changed.ids.contains(id) {
                return false;
            }
            // Overwritten meanwhile: nothing more will be known of it.
            let Some(timeline) = tell(*id) else {
                return true;
            };
            events::write(text, "message", &timeline);
            timeline.status.is_final()
        }
        Subject::All(wanted) => {
            if changed.skipped > 0 {
                let changes = changed.skipped;
                events::write(text, "skipped", &Skipped { changes });
            }
            let timelines = changed.ids.iter().filter_map(|id| tell(*id));
            for timeline in timelines.filter(|timeline| wanted.takes(timeline)) {
                events::write(text, "message", &timeline);
            }
            false
        }
    }
}

/// Reads `route=&status=&limit=`; each at most once, and nothing else.
fn asked(query: &str) -> Result<Asked, Error> {
    let wrong = |detail: String| Err(Error::new(Kind::BadRequest, detail));
    let mut asked = Asked {
        wanted: Wanted::default(),
        limit: SHOWN,
    };
    let mut seen: Vec<&str> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if seen.contains(&name) {
            return wrong(format!("`{name}` is there twice"));
        }
        seen.push(name);
        match name {
            // A route's name is of letters, digits and `-`: nothing in it is ever escaped.
            "route" => asked.wanted.route = Some(value.to_owned()),
            "status" => match Status::parse(value) {
                Some(status) => asked.wanted.status = Some(status),
                None => {
                    let words = Status::ALL.map(Status::word).join(", ");
                    return wrong(format!("`status` is one of {words}"));
                }
            },
            "limit" => match value.parse() {
                Ok(limit @ 1..=SHOWN_MAX) => asked.limit = limit,
                _ => return wrong(format!("`limit` is a number from 1 to {SHOWN_MAX}")),
            },
            _ => return wrong("the query may have `route`, `status` and `limit`".to_owned()),
        }
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_what_is_wanted_and_nothing_else() {
        let all = asked("").unwrap();
        assert_eq!((all.wanted, all.limit), (Wanted::default(), SHOWN));
        let some = asked("route=create&status=dead&limit=5").unwrap();
        assert_eq!(some.wanted.route.as_deref(), Some("create"));
        assert_eq!((some.wanted.status, some.limit), (Some(Status::Dead), 5));
        for wrong in [
            "limit=0",
            "limit=1001",
            "limit=many",
            "status=lost",
            "status",
            "topic=invoices",
            "limit=1&limit=2",
        ] {
            assert_eq!(
                asked(wrong).unwrap_err().kind(),
                Kind::BadRequest,
                "{wrong}"
            );
        }
    }
}
