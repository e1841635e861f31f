//! One dead letter, as it is read and shown.

use std::fmt;
use std::time::SystemTime;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::kafka::intake::Received;
use crate::kafka::record::{self, Position};
use crate::pattern::dead_letter;

/// Where a letter lies in its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) partition: i32,
    pub(super) offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.partition, self.offset)
    }
}

/// What a letter says of itself.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    pub(super) place: Place,
    pub(super) id: Uuid,
    pub(super) key: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) status: Option<String>,
    pub(super) attempts: Option<String>,
    pub(super) first: Option<SystemTime>,
    pub(super) last: Option<SystemTime>,
    /// `topic/partition/offset`.
    pub(super) origin: Option<String>,
    pub(super) group: Option<String>,
    /// What of it was too large to be kept.
    pub(super) cut: Option<String>,
}

impl Letter {
    pub(super) fn of(received: &Received) -> Self {
        let text = |name| {
            let value = received.headers.get(name)?;
            Some(String::from_utf8_lossy(value).into_owned())
        };
        let time = |name| text(name).and_then(|text| humantime::parse_rfc3339(&text).ok());
        let position = Position {
            topic: &received.topic,
            partition: received.partition,
            offset: received.offset,
        };
        Self {
            place: Place {
                partition: received.partition,
                offset: received.offset,
            },
            id: record::decode(received.headers.iter(), position).id,
            key: key(received),
            reason: text(dead_letter::REASON),
            status: text(dead_letter::STATUS),
            attempts: text(dead_letter::ATTEMPTS),
            first: time(dead_letter::FIRST),
            last: time(dead_letter::LAST),
            origin: text(dead_letter::ORIGIN),
            group: text(dead_letter::GROUP),
            cut: text(dead_letter::CUT),
        }
    }

    /// The topic that it comes from, as it says.
    pub(super) fn origin_topic(&self) -> Option<&str> {
        let mut parts = self.origin.as_deref()?.rsplitn(3, '/');
        parts.nth(2)
    }

    pub(super) fn line(&self) -> String {
        let at = self.last.map_or_else(|| "-".into(), told);
        let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        format!(
            "{at}  {}  {}  key {}  attempts {}  {}",
            self.place,
            self.id,
            or(&self.key),
            or(&self.attempts),
            or(&self.reason)
        )
    }

    /// One line of JSON; with the record whole: its headers, and its value as text or in base64.
    pub(super) fn json(&self, whole: Option<&Received>) -> String {
        let mut out = json!({
            "partition": self.place.partition,
            "offset": self.place.offset,
            "id": self.id.to_string(),
            "key": self.key,
            "reason": self.reason,
            "status": self.status,
            "attempts": self.attempts,
            "first": self.first.map(told),
            "last": self.last.map(told),
            "origin": self.origin,
            "group": self.group,
            "cut": self.cut,
        });
        if let (Some(received), Some(out)) = (whole, out.as_object_mut()) {
            let headers = received.headers.iter().map(|(name, value)| {
                let value = String::from_utf8_lossy(value).into_owned();
                (name.to_owned(), Value::from(value))
            });
            out.insert("headers".into(), headers.collect::<Map<_, _>>().into());
            match std::str::from_utf8(&received.value) {
                Ok(text) => out.insert("value".into(), text.into()),
                Err(_) => out.insert("value_base64".into(), base64(&received.value).into()),
            };
        }
        out.to_string()
    }
}

/// A letter whole, for people.
pub(super) struct Shown<'a>(pub(super) &'a Letter, pub(super) &'a Received);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(letter, received) = self;
        writeln!(f, "{}", letter.line())?;
        for (name, value) in received.headers.iter() {
            writeln!(f, "  {name}: {}", String::from_utf8_lossy(value))?;
        }
        match std::str::from_utf8(&received.value) {
            Ok(text) => writeln!(f, "\n{text}"),
            Err(_) => writeln!(
                f,
                "\n{} bytes that are no text; --json has them in base64",
                received.value.len()
            ),
        }
    }
}

/// The places that a note of what was put back names.
pub(super) fn put_back(received: &Received) -> Vec<Place> {
    if received.headers.get(dead_letter::REDRIVEN).is_none() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&received.value);
    let place = |line: &str| {
        let (partition, offset) = line.split_once('/')?;
        Some(Place {
            partition: partition.parse().ok()?,
            offset: offset.parse().ok()?,
        })
    };
    text.lines().filter_map(place).collect()
}

fn key(received: &Received) -> Option<String> {
    let key = received.key.as_ref()?;
    Some(String::from_utf8_lossy(key).into_owned())
}

fn told(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
