//! A timeline as it lies in memory, 128 bytes, and as it is shown.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::event::{Event, Status, What};
use super::millis;
use super::names::{Names, Origin};

/// Events of one message; of more, the first [`FIRST`] and the last ones are kept.
const EVENTS_MAX: usize = 9;
/// How many of the first are never given up: they tell how the message came to be.
const FIRST: usize = 3;

/// One message. All its parts are inline, so a ring of slots is one piece of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    id: Uuid,
    /// Milliseconds since 1970 that the events count from.
    start: u64,
    offset: i64,
    partition: i32,
    status: Status,
    len: u8,
    skipped: u16,
    origin: Origin,
    events: [Packed; EVENTS_MAX],
}

/// One event in 9 bytes without padding, hence the byte arrays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packed {
    /// Milliseconds after the slot's start, at most 49 days.
    after: [u8; 4],
    /// Zero for none.
    status: [u8; 2],
    /// Zero for none.
    attempt: [u8; 2],
    what: Word,
}

/// The kind, whether the slot's place belongs to it, and whether it is aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word(u8);

const PLACED: u8 = 0x80;
const ASIDE: u8 = 0x40;
const KIND: u8 = !(PLACED | ASIDE);

impl Slot {
    pub(super) fn new(id: Uuid, event: Event) -> Self {
        let nothing = Packed {
            after: [0; 4],
            status: [0; 2],
            attempt: [0; 2],
            what: Word(0),
        };
        let mut slot = Self {
            id,
            start: millis(event.at),
            offset: 0,
            partition: -1,
            // Of an event aside it is known that there is a record, and no more.
            status: match event.aside {
                true => Status::Replicated,
                false => event.what.status(),
            },
            len: 0,
            skipped: 0,
            origin: Origin::default(),
            events: [nothing; EVENTS_MAX],
        };
        slot.push(event);
        slot
    }

    pub(super) fn push(&mut self, event: Event) {
        let len = usize::from(self.len);
        if event.what == What::Accepted && len > 0 {
            self.begin(event);
            return;
        }
        let packed = self.pack(event);
        if !event.aside {
            self.status = self.status.then(event.what.status());
        }
        self.from(event.origin);
        if len < EVENTS_MAX {
            self.events[len] = packed;
            self.len += 1;
        } else {
            self.events.copy_within(FIRST + 1.., FIRST);
            self.events[EVENTS_MAX - 1] = packed;
            self.skipped = self.skipped.saturating_add(1);
        }
    }

    /// How it began, told after what came of it: the broker's answer is often faster than the caller's own task.
    fn begin(&mut self, event: Event) {
        let earlier = self.start.saturating_sub(millis(event.at));
        self.start -= earlier;
        let last = usize::from(self.len).min(EVENTS_MAX - 1);
        if last < usize::from(self.len) {
            self.skipped = self.skipped.saturating_add(1);
        }
        for at in (0..last).rev() {
            let mut moved = self.events[at];
            let after = u64::from(u32::from_le_bytes(moved.after)) + earlier;
            moved.after = u32::try_from(after).unwrap_or(u32::MAX).to_le_bytes();
            self.events[at + 1] = moved;
        }
        self.events[0] = self.pack(event);
        self.len = (last + 1) as u8;
        self.from(event.origin);
    }

    fn from(&mut self, origin: Origin) {
        self.origin = Origin {
            route: self.origin.route.or(origin.route),
            topic: self.origin.topic.or(origin.topic),
        };
    }

    pub(super) fn id(&self) -> Uuid {
        self.id
    }

    /// How far the message came.
    pub(super) fn status(&self) -> Status {
        self.status
    }

    /// By which route and topic it goes.
    pub(super) fn origin(&self) -> Origin {
        self.origin
    }

    /// When it began, in milliseconds since 1970.
    pub(super) fn first(&self) -> u64 {
        self.start
    }

    /// When its last event was, in milliseconds since 1970.
    pub(super) fn last(&self) -> u64 {
        let last = usize::from(self.len)
            .checked_sub(1)
            .and_then(|last| self.events.get(last));
        self.start + last.map_or(0, |event| u64::from(u32::from_le_bytes(event.after)))
    }

    pub(super) fn timeline(&self, names: &Names) -> Timeline {
        let events = self.events.iter().take(usize::from(self.len));
        let events: Vec<Event> = events.filter_map(|event| self.unpack(event)).collect();
        let last = events
            .iter()
            .rev()
            .find(|event| !event.aside && event.what.status() == self.status);
        let result = last
            .filter(|_| self.status.is_final())
            .and_then(|event| event.status);
        Timeline {
            id: self.id,
            status: self.status,
            route: names.text(self.origin.route),
            topic: names.text(self.origin.topic),
            events,
            skipped: self.skipped,
            result,
        }
    }

    fn pack(&mut self, event: Event) -> Packed {
        let after = millis(event.at).saturating_sub(self.start);
        let attempt = event.attempt.unwrap_or(0);
        let mut word = event.what as u8 | if event.aside { ASIDE } else { 0 };
        if let Some((partition, offset)) = event.place.filter(|_| self.partition < 0) {
            (self.partition, self.offset) = (partition, offset);
            word |= PLACED;
        }
        Packed {
            after: u32::try_from(after).unwrap_or(u32::MAX).to_le_bytes(),
            status: event.status.unwrap_or(0).to_le_bytes(),
            attempt: u16::try_from(attempt).unwrap_or(u16::MAX).to_le_bytes(),
            what: Word(word),
        }
    }

    fn unpack(&self, packed: &Packed) -> Option<Event> {
        let after = u64::from(u32::from_le_bytes(packed.after));
        let Word(word) = packed.what;
        Some(Event {
            at: UNIX_EPOCH + Duration::from_millis(self.start + after),
            what: *What::ALL.get(usize::from(word & KIND))?,
            origin: Origin::default(),
            place: (word & PLACED != 0).then_some((self.partition, self.offset)),
            status: Some(u16::from_le_bytes(packed.status)).filter(|status| *status != 0),
            attempt: Some(u16::from_le_bytes(packed.attempt))
                .filter(|n| *n != 0)
                .map(u32::from),
            aside: word & ASIDE != 0,
        })
    }
}

/// What happened to one message, as it was when it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    /// The message.
    pub id: Uuid,
    /// How far it came.
    pub status: Status,
    /// The route that published it, if that was here.
    pub route: Option<Arc<str>>,
    /// The topic that it was published to or came from.
    pub topic: Option<Arc<str>>,
    /// In the order in which they were recorded.
    pub events: Vec<Event>,
    /// How many events after the third are not among them, because there were too many.
    pub skipped: u16,
    /// What the app answered to the delivery that ended it.
    pub result: Option<u16>,
}

impl Timeline {
    /// The document at a message's `Location`.
    pub fn to_json(&self) -> serde_json::Value {
        // Numbers and known words only: there is nothing that could fail to be written.
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl Serialize for Timeline {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Document {
            id: self.id.as_hyphenated().to_string(),
            status: self.status.word(),
            route: self.route.as_deref(),
            topic: self.topic.as_deref(),
            events: self.events.iter().map(Line::from).collect(),
            skipped: Some(self.skipped).filter(|skipped| *skipped > 0),
            result: self.result.map(|status| Answer { status }),
        }
        .serialize(serializer)
    }
}

#[derive(Serialize)]
struct Document<'a> {
    id: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<&'a str>,
    events: Vec<Line>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Answer>,
}

#[derive(Serialize)]
struct Answer {
    status: u16,
}

#[derive(Serialize)]
struct Line {
    at: String,
    what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    aside: bool,
}

impl From<&Event> for Line {
    fn from(event: &Event) -> Self {
        Self {
            at: rfc3339(event.at),
            what: event.what.word(),
            partition: event.place.map(|(partition, _)| partition),
            offset: event.place.map(|(_, offset)| offset),
            status: event.status,
            attempt: event.attempt,
            aside: event.aside,
        }
    }
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_128_bytes() {
        assert_eq!(size_of::<Slot>(), 128);
        assert!(What::ALL.len() <= usize::from(KIND));
    }
}
