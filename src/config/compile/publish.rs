//! `publish`: the topic, the key, what travels and how long the broker may take.

use std::collections::HashMap;
use std::time::Duration;

use http::HeaderName;

use super::{Around, slim, validation};
use crate::config::diagnostic::Invalid;
use crate::config::model::{Accept, HeaderRule, KeyMissing, KeyRule, PathPattern, Publish, Track};
use crate::config::names::{parse_group, parse_header, parse_kept_header, parse_topic};
use crate::config::patterns::parse_pointer;
use crate::config::read::{At, Map, all};
use crate::config::units;
use crate::config::words::{HEADERS, KEY, PUBLISH, REPLY};

/// Header rules of one route, at most.
const HEADERS_MAX: usize = 100;
/// Segments of a path that a key may be taken from.
const SEGMENT_MAX: u64 = 64;
const BODY_DEFAULT: usize = 1 << 20;
const ACK_WAIT_DEFAULT: Duration = Duration::from_secs(1);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// Reads what a route publishes; `path` is the route's own, to see whether a key can be taken from it.
pub(super) fn publish(at: &At<'_>, path: &PathPattern, around: &Around) -> Option<Publish> {
    let map = at.map(&PUBLISH)?;
    let topic = map.need("topic", |at| at.parse("a topic", parse_topic));
    let key = map.maybe("key", |at| key(at, path));
    let key_missing = map.or("key_missing", KeyMissing::Refuse, |at| {
        at.word(&[
            ("refuse", Some(KeyMissing::Refuse)),
            ("unordered", Some(KeyMissing::Unordered)),
        ])
    });
    let accept = map.or("accept", Accept::Replicated, |at| {
        at.word(&[
            ("replicated", Some(Accept::Replicated)),
            ("spooled", Some(Accept::Spooled)),
        ])
    });
    let ack_wait = map.or("ack_wait", ACK_WAIT_DEFAULT, |at| {
        at.duration(Duration::from_millis(1)..=Duration::from_secs(60))
    });
    let schema = map.maybe("schema", validation::schema);
    let content_type = validation::content_type(&map);
    let slim = map.maybe("slim", |at| slim::slim(at, around));
    let headers = map.or("headers", HeaderRule::default(), headers);
    // What streams into its claim takes no memory.
    let streams = matches!(&slim, Some(Some(slim)) if slim.whole_over.is_some());
    let most = if streams { 1 << 40 } else { 256 << 20 };
    let max_body = map.or("max_body", BODY_DEFAULT, |at| at.bytes(1..=most));
    let timeout = map.or("timeout", TIMEOUT_DEFAULT, |at| {
        at.duration(Duration::from_millis(1)..=Duration::from_secs(300))
    });
    let track = map.or("track", Track::None, |at| {
        at.word(&[
            ("none", Some(Track::None)),
            ("verdict", Some(Track::Verdict)),
            ("all", Some(Track::All)),
        ])
    });
    let reply_from = map.maybe("reply", |at| {
        at.map(&REPLY)?
            .need("from", |at| at.parse("a group", parse_group))
    });
    replies_come(&map, track, around)?;
    if let (Some(at), None) = (map.find("key_missing"), map.find("key")) {
        at.error("this has no effect without `key`");
        return None;
    }
    spool_is_there(&map, accept?, around)?;
    let publish = Publish {
        topic: topic?,
        key: key?,
        key_missing: key_missing?,
        schema: schema?,
        content_type: content_type?,
        slim: slim?,
        headers: headers?,
        max_body: max_body?,
        timeout: timeout?,
        accept: accept?,
        ack_wait: ack_wait?,
        track: track?,
        reply_from: reply_from?,
    };
    body_fits(&map, &publish, around).then_some(publish)
}

/// Reads where a route's calls go that could not be sent: their verdicts must come back.
pub(super) fn otherwise(at: &At<'_>, path: &PathPattern, around: &Around) -> Option<Publish> {
    let mut publish = publish(at, path, around)?;
    let map = at.map(&PUBLISH)?;
    if around.replies == Some(false) {
        at.error(
            "a key is queued until the verdict on its last message, and that comes by a topic: add `kafka.replies`, such as `{service}.replies`",
        );
        return None;
    }
    if let (Track::None, Some(at)) = (publish.track, map.find("track")) {
        at.error("a key is queued until the verdict on its last message: use `verdict` or `all`");
        return None;
    }
    if publish.key.is_none() {
        at.warning("without `key` a later call may overtake one that was queued");
    }
    publish.track = publish.track.max(Track::Verdict);
    Some(publish)
}

/// Refuses what only a spool can do where there is none.
fn spool_is_there(map: &Map<'_>, accept: Accept, around: &Around) -> Option<()> {
    if around.spool_max.is_some() {
        return Some(());
    }
    if let (Accept::Spooled, Some(at)) = (accept, map.find("accept")) {
        at.error("there is no spool to keep the message in: add a `spool` section");
        return None;
    }
    if let Some(at) = map.find("ack_wait") {
        at.error("this has no effect without a `spool` section; `timeout` is how long the broker may take");
        return None;
    }
    Some(())
}

fn key(at: &At<'_>, path: &PathPattern) -> Option<KeyRule> {
    if !at.is_map() {
        let what = "a JSON pointer such as /customer/id, `{ header: NAME }` or `{ path: 1 }`";
        return at.parse(what, parse_pointer).map(KeyRule::Body);
    }
    let map = at.map(&KEY)?;
    let header = map.maybe("header", |at| {
        at.parse("the name of a header", parse_header)
    });
    let segment = map.maybe("path", |at| at.count(1..=SEGMENT_MAX));
    match (header?, segment?) {
        (Some(header), None) => Some(KeyRule::Header(header)),
        (None, Some(segment)) => {
            if let PathPattern::Exact(path) = path
                && segment > path.split('/').skip(1).count()
            {
                let at = map.find("path")?;
                at.error(format!(
                    "the route's path, `{path}`, has no segment {segment}"
                ));
                return None;
            }
            Some(KeyRule::Path(segment))
        }
        (Some(_), Some(_)) => {
            at.error("a key comes from one place: either `header` or `path`");
            None
        }
        (None, None) => {
            at.error("say where the key comes from: `header: NAME` or `path: 1`");
            None
        }
    }
}

fn headers(at: &At<'_>) -> Option<HeaderRule> {
    let map = at.map(&HEADERS)?;
    let mut seen = HashMap::new();
    let keep = map.or("keep", Vec::new(), |at| {
        header_list(at, parse_kept_header, &mut seen)
    });
    let drop = map.or("drop", Vec::new(), |at| {
        header_list(at, parse_header, &mut seen)
    });
    Some(HeaderRule {
        keep: keep?,
        drop: drop?,
    })
}

fn header_list(
    at: &At<'_>,
    parse: fn(&str) -> Result<HeaderName, Invalid>,
    seen: &mut HashMap<HeaderName, String>,
) -> Option<Vec<HeaderName>> {
    let list = at.list(HEADERS_MAX, "[authorization]")?;
    all(list.iter().map(|at| {
        let name = at.parse("the name of a header", parse)?;
        if let Some(first) = seen.get(&name) {
            at.error(format!("`{name}` stands in `{first}` already"));
            return None;
        }
        seen.insert(name.clone(), at.path().to_owned());
        Some(name)
    }))
}

/// Refuses to ask for replies that have no topic to come by.
fn replies_come(map: &Map<'_>, track: Option<Track>, around: &Around) -> Option<()> {
    let asked = map.find("track").filter(|_| track > Some(Track::None));
    match (around.replies, asked.or_else(|| map.find("reply"))) {
        (Some(false), Some(at)) => {
            at.error("replies come by a topic: add `kafka.replies`, such as `{service}.replies`");
            None
        }
        _ => Some(()),
    }
}

/// Bytes of a body that a spool of that size takes with its headers.
fn in_spool(max: u64) -> u64 {
    (max / 4).saturating_sub(64 << 10)
}

/// Refuses a body limit that promises more than what comes after it can hold.
fn body_fits(map: &Map<'_>, publish: &Publish, around: &Around) -> bool {
    let body = publish.max_body as u64;
    let (limit, name) = match &publish.slim {
        Some(slim) => match around.claims_max.get(slim.claim.0) {
            Some(max) if *max < u64::MAX => (*max, "`max` of the store that keeps it"),
            Some(_) => return true,
            None => return true,
        },
        None => match (around.queue_max, around.spool_max) {
            (Some(queue), Some(spool)) if in_spool(spool) < queue as u64 => (
                in_spool(spool),
                "what a spool takes, a quarter of its `max` less 64KiB for headers",
            ),
            (Some(max), _) => (max as u64, "`kafka.queue_max`"),
            (None, _) => return true,
        },
    };
    if body <= limit {
        return true;
    }
    let at = map.find("max_body").unwrap_or_else(|| map.at().clone());
    let (body, limit) = (units::size(body), units::size(limit));
    at.error(format!(
        "a body of {body} (`max_body`) is over {name}, which is {limit}"
    ));
    false
}
