//! Where a message goes whose attempts are used up: the same record in another topic, with the reason in its headers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;

use crate::headers::Headers;
use crate::kafka::intake::Received;
use crate::kafka::producer::{Ack, Outgoing, Producer, PublishError};
use crate::kafka::record::{self, CALL_PREFIX, CE_ID, METHOD, TARGET, TRACEPARENT};

/// What the names of all headers begin with that tell of a death.
pub const PREFIX: &str = "wayside-dead-";
/// Why it is here, in words.
pub const REASON: &str = "wayside-dead-reason";
/// The app's last status.
pub const STATUS: &str = "wayside-dead-status";
/// How often delivery was tried.
pub const ATTEMPTS: &str = "wayside-dead-attempts";
/// When it was tried first, RFC 3339.
pub const FIRST: &str = "wayside-dead-first";
/// When it was tried last, RFC 3339.
pub const LAST: &str = "wayside-dead-last";
/// `topic/partition/offset` where it came from.
pub const ORIGIN: &str = "wayside-dead-origin";
/// The consumer group that gave it up.
pub const GROUP: &str = "wayside-dead-group";

/// On a message that was put back into its topic: the group that it is for, since the others had it.
pub const REDRIVEN_FOR: &str = "wayside-redriven-for";
/// On a note among the dead letters: how many of them were put back. Its value says which, as `partition/offset`, one a
/// line.
pub const REDRIVEN: &str = "wayside-redriven";

/// What was left out because the whole is too large for the broker: `headers`, or `value of N bytes`.
pub const CUT: &str = "wayside-dead-cut";

/// What a message is known by, kept when all else is cut.
const IDENTITY: [&str; 4] = [CE_ID, TRACEPARENT, METHOD, TARGET];
/// Bytes of one such value, or of a key; a longer one is cut too.
const IDENTITY_MAX: usize = 1024;
/// Bytes of the reason; a longer one is cut.
const REASON_MAX: usize = 512;
/// All of them.
const TOLD: [&str; 8] = [REASON, STATUS, ATTEMPTS, FIRST, LAST, ORIGIN, GROUP, CUT];
/// How long the broker may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why and when a message was given up.
#[derive(Debug)]
pub struct Obituary<'a> {
    /// In words.
    pub reason: &'a str,
    /// The app's last status.
    pub status: Option<u16>,
    /// How often delivery was tried.
    pub attempts: u32,
    /// When it was tried first.
    pub first: SystemTime,
    /// The consumer group.
    pub group: &'a str,
}

/// What of a message has to stay behind, since with the reason it is too large for the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    Nothing,
    CallHeaders,
    /// All but the message's identity: the whole lies where [`ORIGIN`] says for as long as its topic keeps it.
    Value,
}

/// What a letter has of a slim message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Its whole body.
    Complete,
    /// What the record had, or less.
    AsReceived,
}

/// Writes a message to the dead letters and waits for the broker's acknowledgement. A slim message goes with its whole
/// body if that was had: it must be complete when its claim is gone, and be put back so. What is too large with its reason
/// goes without the call's headers, or in the end without its value, and says so in [`CUT`]: a lane must not wait for
/// ever for what can never fit.
///
/// # Errors
/// The broker's; the message is then not in the dead letters as far as anyone knows.
pub async fn send(
    producer: &Producer,
    topic: &str,
    (received, whole): (&Received, Option<&Bytes>),
    obituary: &Obituary<'_>,
) -> Result<Written, PublishError> {
    if let Some(whole) = whole {
        let complete = Received {
            value: whole.clone(),
            headers: received
                .headers
                .entries()
                .filter(|(name, _)| !is_of_claim(name))
                .map(|(name, value)| (name.clone(), value))
                .collect(),
            topic: Arc::clone(&received.topic),
            key: received.key.clone(),
            ..*received
        };
        match write(producer, topic, &complete, (obituary, Cut::Nothing)).await {
            Err(PublishError::TooLarge) => {}
            settled => return settled.map(|_| Written::Complete),
        }
    }
    for cut in [Cut::Nothing, Cut::CallHeaders] {
        match write(producer, topic, received, (obituary, cut)).await {
            Err(PublishError::TooLarge) => {}
            settled => return settled.map(|_| Written::AsReceived),
        }
    }
    let least = write(producer, topic, received, (obituary, Cut::Value)).await;
    least.map(|_| Written::AsReceived)
}

/// Whether a header tells that a record is slim.
fn is_of_claim(name: &str) -> bool {
    name.starts_with(record::CLAIM) || name == record::CE_DATAREF
}

async fn write(
    producer: &Producer,
    topic: &str,
    received: &Received,
    (obituary, cut): (&Obituary<'_>, Cut),
) -> Result<Ack, PublishError> {
    let headers = headers(received, obituary, cut);
    let key = received.key.as_deref();
    let (key, value) = match cut {
        Cut::Value => (key.filter(|key| key.len() <= IDENTITY_MAX), &[][..]),
        Cut::Nothing | Cut::CallHeaders => (key, &received.value[..]),
    };
    let outgoing = Outgoing {
        topic,
        key,
        value,
        headers: &headers,
    };
    producer.publish(outgoing, Instant::now() + TIMEOUT).await
}

fn headers(received: &Received, obituary: &Obituary<'_>, cut: Cut) -> Headers {
    let kept = received
        .headers
        .entries()
        // A message that died twice tells of its last death only.
        .filter(|(name, _)| !name.starts_with(PREFIX))
        .filter(|(name, value)| match cut {
            Cut::Nothing => true,
            Cut::CallHeaders => !name.starts_with(CALL_PREFIX),
            Cut::Value => IDENTITY.contains(&&***name) && value.len() <= IDENTITY_MAX,
        });
    let mut headers: Headers = kept.map(|(name, value)| (name.clone(), value)).collect();
    let mut put = |name: &'static str, value: String| headers.push(name, value.as_bytes());
    put(REASON, shortened(obituary.reason));
    if let Some(status) = obituary.status {
        put(STATUS, status.to_string());
    }
    put(ATTEMPTS, obituary.attempts.to_string());
    let time = |at| humantime::format_rfc3339_millis(at).to_string();
    put(FIRST, time(obituary.first));
    put(LAST, time(SystemTime::now()));
    let (topic, partition, offset) = (&received.topic, received.partition, received.offset);
    put(ORIGIN, format!("{topic}/{partition}/{offset}"));
    put(GROUP, obituary.group.to_owned());
    match cut {
        Cut::Nothing => {}
        Cut::CallHeaders => put(CUT, "headers".to_owned()),
        Cut::Value => put(CUT, format!("value of {} bytes", received.value.len())),
    }
    headers
}

/// What a record says of its own death, for an app that reads the dead letters. Of names that are not among ours, and
/// of a second value, it says nothing.
pub fn told(received: &Received) -> HeaderMap {
    let mut told = HeaderMap::new();
    for (name, value) in received.headers.iter() {
        let ours = TOLD.iter().find(|ours| **ours == name);
        if let (Some(name), Ok(value)) = (ours, HeaderValue::from_bytes(value)) {
            told.entry(*name).or_insert(value);
        }
    }
    told
}

fn shortened(reason: &str) -> String {
    let mut end = reason.len().min(REASON_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        assert_eq!(shortened("short"), "short");
        let long = "ä".repeat(REASON_MAX);
        assert_eq!(shortened(&long).len(), REASON_MAX);
        assert!(shortened(&format!("x{long}")).len() < REASON_MAX);
    }
}
