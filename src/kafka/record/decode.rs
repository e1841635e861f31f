//! From a record's headers to the call to make of it, whoever wrote them.

use std::time::SystemTime;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Uri};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    CALL_PREFIX, CE_DATAREF, CE_ID, CE_SOURCE, CE_TIME, CLAIM, CLAIM_DIGEST, CLAIM_EXPIRES,
    CLAIM_FIELDS, CLAIM_SIZE, CONTENT_TYPE, ClaimRef, HOST, METHOD, ORIGIN, REPLY_BY, REPLY_FROM,
    REPLY_PARTITION, RESTORED_BYTES_MAX, RESTORED_MAX, Reply, TARGET, TRACEPARENT, TRACESTATE,
    TRACK, bound_to_connection, parse_digest, speaks_for_caller,
};
use crate::config::model::Track;
use crate::telemetry::tracestate;

/// Longer reference texts are not ours.
const CLAIM_ID_MAX: usize = 1024;
const CLAIM_FIELDS_MAX: usize = 8 * 1024;

/// As many partitions as no topic has.
const PARTITION_MAX: i32 = 1_000_000;
/// As long as the name of a group may be.
const GROUP_MAX: usize = 249;

/// Where a record lies.
#[derive(Debug, Clone, Copy)]
pub struct Position<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// What a record says about the call to make of it. Only the id is always there: records that others made may have
/// no header at all.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// `ce_id` if it is a UUID, else one derived from `ce_source` and `ce_id`, else from the record's position: the
    /// same record always has the same id.
    pub id: Uuid,
    /// The call's method.
    pub method: Option<Method>,
    /// The call's path and query: begins with `/`.
    pub target: Option<String>,
    /// The host that the call was for.
    pub host: Option<String>,
    /// The service and the instance that made the record.
    pub origin: Option<(String, String)>,
    /// The headers of the call, at most [`RESTORED_MAX`] and [`RESTORED_BYTES_MAX`].
    pub headers: HeaderMap,
    /// The body's media type.
    pub content_type: Option<HeaderValue>,
    /// The trace, if it is well-formed.
    pub traceparent: Option<String>,
    /// What vendors say of the trace, if that is well-formed and the trace is there.
    pub tracestate: Option<String>,
    /// Where the whole body is.
    pub claim: Claim,
    /// What its origin wants to be told.
    pub reply: Option<Reply>,
    /// When the call was accepted.
    pub time: Option<SystemTime>,
    /// Headers that were malformed, forbidden or over a limit, and dropped for it.
    pub ignored: usize,
}

/// Whether a record's value is the whole body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The value is the whole body.
    Absent,
    /// The value is slim; the whole is kept here.
    Kept(ClaimRef),
    /// The value is slim, and what names the whole is malformed: it must not be passed on as a whole body.
    Damaged,
}

/// Reads a record's headers. Nothing in them makes it fail: what is malformed is dropped and counted.
///
/// A structured CloudEvent (`application/cloudevents+json`) is a body like any other. Headers that would speak for
/// the connection, for the caller's rights or for us are never restored, whoever wrote the record.
pub fn decode<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    position: Position<'_>,
) -> Decoded {
    let mut reader = Reader::default();
    for (name, value) in headers {
        let taken = match name.strip_prefix(CALL_PREFIX) {
            Some(call_name) => reader.call_header(call_name, value),
            None => reader.own_header(name, value),
        };
        reader.out.ignored += usize::from(!taken);
    }
    reader.finish(position)
}

#[derive(Default)]
struct Reader<'a> {
    out: Partial,
    id: Option<&'a str>,
    source: Option<&'a str>,
    claim: Claimed,
    dataref: bool,
    /// Any header of a claim was there, well-formed or not.
    claimed: bool,
    track: Option<Track>,
    reply_partition: Option<i32>,
    reply_by: Option<SystemTime>,
    reply_from: Option<String>,
    restored_bytes: usize,
}

/// What the headers of a claim say, as far as they are well-formed.
#[derive(Default)]
struct Claimed {
    id: Option<String>,
    fields: Option<Vec<String>>,
    digest: Option<[u8; 32]>,
    size: Option<u64>,
    expires: Option<SystemTime>,
}

#[derive(Default)]
struct Partial {
    method: Option<Method>,
    target: Option<String>,
    host: Option<String>,
    origin: Option<(String, String)>,
    headers: HeaderMap,
    content_type: Option<HeaderValue>,
    traceparent: Option<String>,
    tracestate: Option<String>,
    time: Option<SystemTime>,
    ignored: usize,
}

impl<'a> Reader<'a> {
    /// False if the header is dropped.
    fn call_header(&mut self, name: &str, value: &[u8]) -> bool {
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
            return false;
        };
        let Ok(value) = HeaderValue::from_bytes(value) else {
            return false;
        };
        let bytes = self.restored_bytes + name.as_str().len() + value.len();
        let fits = self.out.headers.len() < RESTORED_MAX && bytes <= RESTORED_BYTES_MAX;
        if !fits || bound_to_connection(&name) || speaks_for_caller(&name) {
            return false;
        }
        self.restored_bytes = bytes;
        self.out.headers.append(name, value);
        true
    }

    /// False if the header is one of ours and malformed. What others put into their records is not for us to count.
    fn own_header(&mut self, name: &str, value: &'a [u8]) -> bool {
        let text = std::str::from_utf8(value).ok();
        let out = &mut self.out;
        match name {
            CE_ID => set(&mut self.id, text.filter(|id| !id.is_empty())),
            CE_SOURCE => set(&mut self.source, text),
            CE_TIME => set(&mut out.time, text.and_then(time)),
            METHOD => set(&mut out.method, Method::from_bytes(value).ok()),
            TARGET => set(&mut out.target, text.and_then(target)),
            HOST => set(&mut out.host, text.and_then(host)),
            ORIGIN => set(&mut out.origin, text.and_then(origin)),
            CE_DATAREF => {
                self.dataref = true;
                true
            }
            TRACEPARENT => set(&mut out.traceparent, text.and_then(traceparent)),
            TRACESTATE => set(&mut out.tracestate, text.and_then(state)),
            _ if name.eq_ignore_ascii_case(CONTENT_TYPE) => {
                set(&mut out.content_type, HeaderValue::from_bytes(value).ok())
            }
            TRACK => set(&mut self.track, text.and_then(track)),
            REPLY_PARTITION => set(&mut self.reply_partition, text.and_then(partition)),
            REPLY_BY => set(&mut self.reply_by, text.and_then(time)),
            REPLY_FROM => set(&mut self.reply_from, text.and_then(group)),
            _ if name.starts_with(CLAIM) => self.claim_header(name, text),
            _ => true,
        }
    }

    fn claim_header(&mut self, name: &str, text: Option<&str>) -> bool {
        let known = match name {
            CLAIM => set(&mut self.claim.id, text.and_then(claim_id)),
            CLAIM_FIELDS => set(&mut self.claim.fields, text.and_then(pointers)),
            CLAIM_DIGEST => set(&mut self.claim.digest, text.and_then(parse_digest)),
            CLAIM_SIZE => set(
                &mut self.claim.size,
                text.and_then(|text| text.parse().ok()),
            ),
            CLAIM_EXPIRES => set(&mut self.claim.expires, text.and_then(time)),
            _ => return true,
        };
        self.claimed = true;
        known
    }

    fn finish(self, position: Position<'_>) -> Decoded {
        let id = match self.id {
            Some(id) => Uuid::try_parse(id)
                .unwrap_or_else(|_| derived(&["event", self.source.unwrap_or_default(), id])),
            None => {
                let Position {
                    topic,
                    partition,
                    offset,
                } = position;
                derived(&["record", topic, &partition.to_string(), &offset.to_string()])
            }
        };
        let claim = claim(self.claim, self.dataref, self.claimed);
        let (partition, by, from) = (self.reply_partition, self.reply_by, self.reply_from);
        let reply = self.track.map(|track| Reply {
            track,
            partition,
            by,
            from,
        });
        let Partial {
            method,
            target,
            host,
            origin,
            headers,
            content_type,
            ..
        } = self.out;
        let Partial {
            traceparent,
            tracestate,
            time,
            ignored,
            ..
        } = self.out;
        Decoded {
            id,
            method,
            target,
            host,
            origin,
            headers,
            content_type,
            tracestate: tracestate.filter(|_| traceparent.is_some()),
            traceparent,
            claim,
            reply,
            time,
            ignored,
        }
    }
}

fn claim(read: Claimed, all: bool, claimed: bool) -> Claim {
    match read {
        Claimed {
            id: Some(id),
            fields: Some(fields),
            digest: Some(digest),
            size: Some(size),
            expires: Some(expires),
        } => Claim::Kept(ClaimRef {
            id,
            fields,
            all,
            digest,
            size,
            expires,
        }),
        _ if claimed => Claim::Damaged,
        _ => Claim::Absent,
    }
}

/// The first well-formed value counts.
fn set<T>(place: &mut Option<T>, value: Option<T>) -> bool {
    let taken = value.is_some() && place.is_none();
    if taken {
        *place = value;
    }
    taken
}

fn time(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}

fn track(text: &str) -> Option<Track> {
    match text {
        "verdict" => Some(Track::Verdict),
        "all" => Some(Track::All),
        _ => None,
    }
}

fn partition(text: &str) -> Option<i32> {
    let partition = text.parse().ok()?;
    (0..PARTITION_MAX).contains(&partition).then_some(partition)
}

fn group(text: &str) -> Option<String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    (!text.is_empty() && text.len() <= GROUP_MAX && plain).then(|| text.to_owned())
}

fn target(text: &str) -> Option<String> {
    let path = PathAndQuery::try_from(text).ok()?;
    // The parser also takes `*` and drops a fragment; neither is a path and query.
    (text.starts_with('/') && path.as_str() == text).then(|| text.to_owned())
}

fn host(text: &str) -> Option<String> {
    let uri = Uri::builder()
        .scheme("http")
        .authority(text)
        .path_and_query("/")
        .build()
        .ok()?;
    let authority = uri.authority()?.as_str();
    (!authority.contains('@')).then(|| text.to_owned())
}

fn origin(text: &str) -> Option<(String, String)> {
    let (service, instance) = text.split_once('/')?;
    let plain = |part: &str| {
        !part.is_empty() && part.len() <= 253 && part.bytes().all(|byte| byte.is_ascii_graphic())
    };
    (plain(service) && plain(instance)).then(|| (service.to_owned(), instance.to_owned()))
}

/// W3C Trace Context: `version-trace-parent-flags` in lower-case hex, neither id all zeros.
fn traceparent(text: &str) -> Option<String> {
    let mut parts = text.split('-');
    let mut part = |length: usize| {
        let part = parts.next()?;
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (part.len() == length && part.bytes().all(hex)).then_some(part)
    };
    let (version, trace, parent) = (part(2)?, part(32)?, part(16)?);
    part(2)?;
    let zeros = |id: &str| id.bytes().all(|byte| byte == b'0');
    let valid = version != "ff" && !zeros(trace) && !zeros(parent) && parts.next().is_none();
    valid.then(|| text.to_owned())
}

fn state(text: &str) -> Option<String> {
    tracestate::is_valid(text).then(|| text.to_owned())
}

fn claim_id(text: &str) -> Option<String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    (!text.is_empty() && text.len() <= CLAIM_ID_MAX && plain).then(|| text.to_owned())
}

fn pointers(text: &str) -> Option<Vec<String>> {
    if text.len() > CLAIM_FIELDS_MAX {
        return None;
    }
    let pointers: Vec<String> = serde_json::from_str(text).ok()?;
    // The empty pointer is the whole document (RFC 6901 section 5): a body of which too much was cut to name it all.
    let sound = |pointer: &String| pointer.is_empty() || pointer.starts_with('/');
    pointers.iter().all(sound).then_some(pointers)
}

/// A UUIDv8 from SHA-256 of the parts, each with its length so that no two lists are alike.
fn derived(parts: &[&str]) -> Uuid {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    Uuid::new_v8(bytes)
}
