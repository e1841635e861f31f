//! What can happen to a message, and the words for it.

use std::time::SystemTime;

use super::names::Origin;

/// One thing that happened to a message. Cheap to make; parts that do not apply are absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// When; kept to the millisecond.
    pub at: SystemTime,
    /// What.
    pub what: What,
    /// Where the record lies: its partition and offset. A timeline keeps one such place, the first.
    pub place: Option<(i32, i64)>,
    /// What the app answered.
    pub status: Option<u16>,
    /// Which attempt it was, from 1; above 65,535 it is told as 65,535.
    pub attempt: Option<u32>,
    /// It is told, but does not change how far the message came: it is of a group whose verdict does not count.
    pub aside: bool,
    /// By which route and topic the message goes. A timeline keeps the first of each.
    pub origin: Origin,
}

impl Event {
    /// An event that happens now.
    pub fn now(what: What) -> Self {
        Self::at(SystemTime::now(), what)
    }

    /// An event at a time.
    pub fn at(at: SystemTime, what: What) -> Self {
        Self {
            at,
            what,
            place: None,
            status: None,
            attempt: None,
            aside: false,
            origin: Origin::default(),
        }
    }

    /// Adds by which route and topic the message goes.
    pub fn origin(self, origin: Origin) -> Self {
        Self { origin, ..self }
    }

    /// Adds where the record lies.
    pub fn place(self, partition: i32, offset: i64) -> Self {
        Self {
            place: Some((partition, offset)),
            ..self
        }
    }

    /// Adds what the app answered.
    pub fn status(self, status: u16) -> Self {
        Self {
            status: Some(status),
            ..self
        }
    }

    /// Adds which attempt it was.
    pub fn attempt(self, attempt: u32) -> Self {
        Self {
            attempt: Some(attempt),
            ..self
        }
    }

    /// Says whether it is aside.
    pub fn aside(self, aside: bool) -> Self {
        Self { aside, ..self }
    }
}

macro_rules! events {
    ($($(#[$doc:meta])* $what:ident = $word:literal, $status:ident;)*) => {
        /// The kinds of events.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum What { $($(#[$doc])* $what),* }

        impl What {
            /// Every kind, in declaration order.
            pub const ALL: &'static [What] = &[$(What::$what),*];

            /// The stable word.
            pub fn word(self) -> &'static str {
                match self { $(What::$what => $word),* }
            }

            /// How far it brings a message.
            pub fn status(self) -> Status {
                match self { $(What::$what => Status::$status),* }
            }
        }
    };
}

events! {
    /// The call was taken and checked; it has not been promised yet.
    Accepted = "accepted", Accepted;
    /// The record is in the durable local log.
    Spooled = "spooled", Spooled;
    /// The broker acknowledged the record.
    Replicated = "replicated", Replicated;
    /// The broker did not acknowledge it in time; it may have the record all the same.
    Unacknowledged = "unacknowledged", Accepted;
    /// The app was called; the event carries its answer, if it gave one.
    Delivered = "delivered", Delivered;
    /// It could not be sent to the app; this costs no attempt.
    NotSent = "not-sent", Accepted;
    /// The app's verdict is that it is done.
    Done = "done", Done;
    /// It is in the dead letters.
    Dead = "dead", Dead;
    /// It was dropped, as the app or the config wants.
    Dropped = "dropped", Dropped;
}

/// How far a message came. It only ever goes on; of the last three the latest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The call was taken.
    Accepted,
    /// It survives this process.
    Spooled,
    /// It survives a broker.
    Replicated,
    /// The app has seen it, and was not done with it.
    Delivered,
    /// The app is done with it.
    Done,
    /// It is in the dead letters.
    Dead,
    /// It was dropped.
    Dropped,
}

impl Status {
    /// Every status, in the order in which a message passes them.
    pub const ALL: [Self; 7] = [
        Self::Accepted,
        Self::Spooled,
        Self::Replicated,
        Self::Delivered,
        Self::Done,
        Self::Dead,
        Self::Dropped,
    ];

    /// The status of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.word() == word)
    }

    /// The stable word.
    pub fn word(self) -> &'static str {
        match self {
            Status::Accepted => "accepted",
            Status::Spooled => "spooled",
            Status::Replicated => "replicated",
            Status::Delivered => "delivered",
            Status::Done => "done",
            Status::Dead => "dead",
            Status::Dropped => "dropped",
        }
    }

    /// Whether a verdict was reached.
    pub fn is_final(self) -> bool {
        self.rank() == 4
    }

    /// The status after a further event. Events may come late: a local subscription can be faster than the broker's
    /// acknowledgement.
    pub(super) fn then(self, next: Status) -> Status {
        if next.rank() >= self.rank() {
            next
        } else {
            self
        }
    }

    fn rank(self) -> u8 {
        match self {
            Status::Accepted => 0,
            Status::Spooled => 1,
            Status::Replicated => 2,
            Status::Delivered => 3,
            Status::Done | Status::Dead | Status::Dropped => 4,
        }
    }
}
