//! What a message looks like as a record: the CloudEvents 1.0 Kafka binding in binary mode, readable by any client.
//!
//! The record's value is the call's body (or the slim one) byte for byte and never null; its headers are [`HEADERS`]
//! and nothing else. `dataref` is only among them where the whole body was left out: that extension promises the whole
//! body, and most claims are of some fields.

use std::borrow::Cow;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

pub use self::decode::{Claim, Decoded, Position, decode};

use crate::config::model::{HeaderRule, Track};
use crate::headers::Headers;

mod decode;

/// Always `1.0`.
pub const CE_SPECVERSION: &str = "ce_specversion";
/// The message's id: a UUID, one for life.
pub const CE_ID: &str = "ce_id";
/// `wayside://` and the service that made the call.
pub const CE_SOURCE: &str = "ce_source";
/// Always `wayside.call`.
pub const CE_TYPE: &str = "ce_type";
/// When the call was accepted, RFC 3339.
pub const CE_TIME: &str = "ce_time";
/// The body's media type.
pub const CONTENT_TYPE: &str = "content-type";
/// The trace, W3C Trace Context.
pub const TRACEPARENT: &str = "traceparent";
/// What vendors say of the trace, W3C Trace Context.
pub const TRACESTATE: &str = "tracestate";
/// The call's method.
pub const METHOD: &str = "wayside-method";
/// The call's path and query.
pub const TARGET: &str = "wayside-target";
/// The host that the call was for.
pub const HOST: &str = "wayside-host";
/// `service/instance` of the sidecar that made the record.
pub const ORIGIN: &str = "wayside-origin";
/// The reference under which the origin keeps the whole body; present when the value is a slim one.
pub const CLAIM: &str = "wayside-claim";
/// The fields that were cut: a JSON array of JSON pointers (RFC 6901).
pub const CLAIM_FIELDS: &str = "wayside-claim-fields";
/// The digest of the whole body, in the form of RFC 9530: `sha-256=:…:`.
pub const CLAIM_DIGEST: &str = "wayside-claim-digest";
/// The bytes of the whole body, in decimal.
pub const CLAIM_SIZE: &str = "wayside-claim-size";
/// Where the whole body is, if all of it was left out: `/.wayside/claims/` and the reference, at the origin's sidecar
/// (CloudEvents `dataref`, which promises the whole body and nothing less).
pub const CE_DATAREF: &str = "ce_dataref";
/// Until when the claim is kept, RFC 3339.
pub const CLAIM_EXPIRES: &str = "wayside-claim-expires";
/// How much of the message's way its receivers report back: `verdict` or `all`. Absent: nothing.
pub const TRACK: &str = "wayside-track";
/// The partition of the reply topic that the origin reads, in decimal.
pub const REPLY_PARTITION: &str = "wayside-reply-partition";
/// Until when somebody waits for the result, RFC 3339.
pub const REPLY_BY: &str = "wayside-reply-by";
/// The consumer group whose verdict is the result.
pub const REPLY_FROM: &str = "wayside-reply-from";
/// The prefix of each header of the call that travels.
pub const CALL_PREFIX: &str = "http-";

/// Every header of a record, in the order in which they are written, and whether each record has it.
pub const HEADERS: &[(&str, &str)] = &[
    (CE_SPECVERSION, "always"),
    (CE_ID, "always"),
    (CE_SOURCE, "always"),
    (CE_TYPE, "always"),
    (CE_TIME, "always"),
    (METHOD, "always"),
    (TARGET, "always"),
    (ORIGIN, "always"),
    (HOST, "if the call had one"),
    (CONTENT_TYPE, "if the call had one"),
    (TRACEPARENT, "if the call is traced"),
    (TRACESTATE, "if the call came with one"),
    (CLAIM, "if the body is slim"),
    (CLAIM_FIELDS, "if the body is slim"),
    (CLAIM_DIGEST, "if the body is slim"),
    (CLAIM_SIZE, "if the body is slim"),
    (CLAIM_EXPIRES, "if the body is slim"),
    (CE_DATAREF, "if all of the body is left out"),
    (TRACK, "if replies are asked for"),
    (REPLY_PARTITION, "if replies are asked for and it is known"),
    (REPLY_BY, "if the caller waits"),
    (REPLY_FROM, "if the route names a group"),
    ("http-*", "each header of the call that travels"),
];

/// The most headers of the call that are restored from one record; the rest is dropped and counted.
pub const RESTORED_MAX: usize = 64;
/// The most bytes of them, names included; the rest is dropped and counted.
pub const RESTORED_BYTES_MAX: usize = 32 * 1024;

const SOURCE_PREFIX: &str = "wayside://";
const TYPE: &str = "wayside.call";
/// Room for the headers of most records, and for their values.
const USUAL: usize = 14;
const VALUES_BYTES: usize = 512;

/// A call that becomes a record. The body is the record's value and no part of it.
#[derive(Debug, Clone)]
pub struct Message<'a> {
    /// One id for life.
    pub id: Uuid,
    /// The service that made the call.
    pub source_service: &'a str,
    /// The sidecar instance that made the record; without `/`.
    pub instance: &'a str,
    /// The call's method.
    pub method: &'a Method,
    /// The call's path and query.
    pub target: &'a str,
    /// The host that the call was for.
    pub host: Option<&'a str>,
    /// Those that travel; see [`travelling`].
    pub headers: HeaderMap,
    /// The body's media type.
    pub content_type: Option<&'a HeaderValue>,
    /// The trace, W3C Trace Context.
    pub traceparent: Option<&'a str>,
    /// What vendors say of it, well-formed; see [`tracestate`](crate::telemetry::tracestate).
    pub tracestate: Option<String>,
    /// Present when the record's value is a slim body.
    pub claim: Option<ClaimRef>,
    /// Present when its receivers are to report back.
    pub reply: Option<Reply>,
    /// When the call was accepted.
    pub time: SystemTime,
}

/// What a message asks its receivers to report back. It names no topic: that is the receiver's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// How much; never [`Track::None`].
    pub track: Track,
    /// The partition that the origin reads; `None` if it did not know it yet.
    pub partition: Option<i32>,
    /// Until when somebody waits for the result.
    pub by: Option<SystemTime>,
    /// The group whose verdict is the result; `None` for whichever is first.
    pub from: Option<String>,
}

/// Where the whole body of a slim message is, and what proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRef {
    /// The reference, opaque to everyone but the sidecar that made it.
    pub id: String,
    /// The fields that were cut, as JSON pointers (RFC 6901), with `*` for every element of an array.
    pub fields: Vec<String>,
    /// Whether nothing of the body is left in the record.
    pub all: bool,
    /// SHA-256 of the whole body.
    pub digest: [u8; 32],
    /// Bytes of the whole body.
    pub size: u64,
    /// Until when it is kept.
    pub expires: SystemTime,
}

/// Writes the headers of a message's record.
pub fn encode(message: &Message<'_>) -> Headers {
    let mut to = Headers::with_capacity(USUAL + message.headers.len(), VALUES_BYTES);
    to.push(CE_SPECVERSION, b"1.0");
    to.put(
        CE_ID,
        &[message
            .id
            .hyphenated()
            .encode_lower(&mut Uuid::encode_buffer())
            .as_bytes()],
    );
    to.put(
        CE_SOURCE,
        &[SOURCE_PREFIX.as_bytes(), message.source_service.as_bytes()],
    );
    to.push(CE_TYPE, TYPE.as_bytes());
    to.text(CE_TIME, &humantime::format_rfc3339_millis(message.time));
    to.push(METHOD, message.method.as_str().as_bytes());
    to.push(TARGET, message.target.as_bytes());
    to.put(
        ORIGIN,
        &[
            message.source_service.as_bytes(),
            b"/",
            message.instance.as_bytes(),
        ],
    );
    if let Some(host) = &message.host {
        to.push(HOST, host.as_bytes());
    }
    if let Some(content_type) = &message.content_type {
        to.push(CONTENT_TYPE, content_type.as_bytes());
    }
    if let Some(traceparent) = &message.traceparent {
        to.push(TRACEPARENT, traceparent.as_bytes());
    }
    if let Some(tracestate) = &message.tracestate {
        to.push(TRACESTATE, tracestate.as_bytes());
    }
    if let Some(claim) = &message.claim {
        to.push(CLAIM, claim.id.as_bytes());
        to.push(CLAIM_FIELDS, pointers_text(&claim.fields).as_bytes());
        to.push(CLAIM_DIGEST, digest_text(&claim.digest).as_bytes());
        to.text(CLAIM_SIZE, &claim.size);
        if claim.all {
            to.put(CE_DATAREF, &[b"/.wayside/claims/", claim.id.as_bytes()]);
        }
        to.text(
            CLAIM_EXPIRES,
            &humantime::format_rfc3339_millis(claim.expires),
        );
    }
    if let Some(reply) = &message.reply {
        put_reply(&mut to, reply);
    }
    for (name, value) in &message.headers {
        to.push(call_header_name(name), value.as_bytes());
    }
    to
}

/// A SHA-256 digest in the form of RFC 9530: `sha-256=:…:`.
pub fn digest_text(digest: &[u8; 32]) -> String {
    format!("sha-256=:{}:", BASE64.encode(digest))
}

/// Reads what [`digest_text`] writes.
pub fn parse_digest(text: &str) -> Option<[u8; 32]> {
    let inner = text.strip_prefix("sha-256=:")?.strip_suffix(':')?;
    BASE64.decode(inner).ok()?.try_into().ok()
}

/// The name of a record's header without an allocation where it is one of ours.
pub fn header_name(name: &str) -> Cow<'static, str> {
    let known = HEADERS
        .iter()
        .map(|(known, _)| *known)
        .chain(COMMON.iter().map(|(_, name)| *name));
    match known.into_iter().find(|known| *known == name) {
        Some(known) => Cow::Borrowed(known),
        None => Cow::Owned(name.to_owned()),
    }
}

/// Whether a header of a call travels in its record.
///
/// Never do those of the connection, those with a place of their own in the record (`host`, `content-type`,
/// `traceparent`) and `wayside-*`. `authorization`, `cookie`, `proxy-*`, `forwarded` and `x-forwarded-*` do only if
/// the rule keeps them. What the rule drops does not.
pub fn travels(name: &HeaderName, rule: &HeaderRule) -> bool {
    !bound_to_connection(name)
        && !rule.drop.contains(name)
        && (!speaks_for_caller(name) || rule.keep.contains(name))
}

/// The headers of a call that travel. Those that `Connection` names (RFC 9110 section 7.6.1) do not.
pub fn travelling(headers: &HeaderMap, rule: &HeaderRule) -> HeaderMap {
    let named: Vec<&str> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    let named = |name: &HeaderName| {
        named
            .iter()
            .any(|word| word.eq_ignore_ascii_case(name.as_str()))
    };
    let mut out = HeaderMap::new();
    for (name, value) in headers {
        if travels(name, rule) && !named(name) {
            // Of many calls no header travels: then there is nothing to make.
            if out.is_empty() {
                out.reserve(headers.len());
            }
            out.append(name, value.clone());
        }
    }
    out
}

fn bound_to_connection(name: &HeaderName) -> bool {
    begins(name, "wayside-")
        || matches!(
            name.as_str(),
            "connection"
                | "content-length"
                | "content-type"
                | "expect"
                | "host"
                | "keep-alive"
                | "proxy-connection"
                | "te"
                | "traceparent"
                | "tracestate"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
        )
}

fn speaks_for_caller(name: &HeaderName) -> bool {
    matches!(name.as_str(), "authorization" | "cookie" | "forwarded")
        || begins(name, "proxy-")
        || begins(name, "x-forwarded-")
}

/// With `_` for `-` too: to CGI and its heirs `x_forwarded_for` and `x-forwarded-for` are one name.
fn begins(name: &HeaderName, prefix: &str) -> bool {
    let mut bytes = name.as_str().bytes();
    let same = |wanted| {
        bytes
            .next()
            .map(|byte| if byte == b'_' { b'-' } else { byte })
            == Some(wanted)
    };
    prefix.bytes().all(same)
}

/// Headers that many calls carry, so that their prefixed names need no allocation.
const COMMON: &[(&str, &str)] = &[
    ("accept", "http-accept"),
    ("accept-encoding", "http-accept-encoding"),
    ("accept-language", "http-accept-language"),
    ("idempotency-key", "http-idempotency-key"),
    ("origin", "http-origin"),
    ("referer", "http-referer"),
    ("user-agent", "http-user-agent"),
    ("x-request-id", "http-x-request-id"),
];

fn call_header_name(name: &HeaderName) -> Cow<'static, str> {
    match COMMON.iter().find(|(common, _)| *common == name.as_str()) {
        Some((_, prefixed)) => Cow::Borrowed(prefixed),
        None => Cow::Owned(format!("{CALL_PREFIX}{name}")),
    }
}

fn pointers_text(pointers: &[String]) -> String {
    serde_json::Value::from(pointers).to_string()
}

fn put_reply(to: &mut Headers, reply: &Reply) {
    let track = match reply.track {
        Track::None => return,
        Track::Verdict => &b"verdict"[..],
        Track::All => b"all",
    };
    to.push(TRACK, track);
    if let Some(partition) = &reply.partition {
        to.text(REPLY_PARTITION, partition);
    }
    if let Some(by) = reply.by {
        to.text(REPLY_BY, &humantime::format_rfc3339_millis(by));
    }
    if let Some(from) = &reply.from {
        to.push(REPLY_FROM, from.as_bytes());
    }
}

#[cfg(test)]
mod tests;
