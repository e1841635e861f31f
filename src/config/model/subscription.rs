//! The topics that are delivered to the app.

use std::time::Duration;

use serde::Serialize;

use super::{Pointer, Retry, duration, maybe_duration};

/// A topic delivered to the app.
#[derive(Debug, Clone, Serialize)]
pub struct Subscription {
    /// The topic.
    pub topic: String,
    /// The consumer group; default: the service's name.
    pub group: String,
    /// Whether every copy of the service gets every message, instead of the group's members sharing them.
    pub broadcast: bool,
    /// 1-based line of the subscription in its file.
    pub line: usize,
    /// The path that gets every message; `None` restores the call as it was made.
    pub path: Option<String>,
    /// How long the app may take for one delivery; default 30 s.
    #[serde(serialize_with = "duration")]
    pub timeout: Duration,
    /// Deliveries at the same time, at most; default 64.
    pub concurrency: usize,
    /// What is done about claims.
    pub hydrate: Hydrate,
    /// What becomes of a message whose body can not be fetched.
    pub unhydrated: Unhydrated,
    /// Attempts and waits; attempts are of no effect without `dead_letter`.
    pub retry: Retry,
    /// Where a message goes whose attempts are used up.
    pub dead_letter: Option<String>,
    /// What is delivered in order; default `key`.
    pub ordering: Ordering,
    /// How far deliveries may run ahead of the oldest message that is not done.
    pub window: Window,
    /// Whether what follows a dead letter in its lane goes the same way, unattempted.
    pub quarantine: bool,
    /// For how long a message that ended is not delivered again; `None`: not kept.
    #[serde(serialize_with = "maybe_duration")]
    pub dedupe: Option<Duration>,
    /// What the app's answers mean where that is not the default.
    pub verdicts: Vec<Judged>,
}

/// Which messages of a subscription are delivered one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ordering {
    /// Those of one key; what has no key stands alone.
    #[default]
    Key,
    /// Those of one partition.
    Partition,
    /// None.
    None,
}

/// How far the deliveries of one partition may run ahead of its oldest message that is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Window {
    /// Messages, done or not; default 10,000.
    pub messages: usize,
    /// Bytes of those that are not done, over all partitions; default 32 MiB.
    pub bytes: usize,
    /// What happens at the limit.
    pub full: Full,
}

/// What happens to the oldest message when the window behind it is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Full {
    /// Its partition waits for it; the default.
    #[default]
    Wait,
    /// It goes to the dead letters once it was tried.
    DeadLetter,
}

/// What answers of some statuses mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// The first status, and the last.
    pub statuses: (u16, u16),
    /// What they mean.
    pub means: Means,
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Means {
    /// The app has it.
    Done,
    /// Another attempt.
    Retry,
    /// No attempt will help.
    DeadLetter,
    /// The app wants it gone.
    Drop,
}

/// What a subscription does about claims.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hydrate {
    /// The app gets the slim body and no address.
    Never,
    /// The app gets the slim body and an address for the rest; the default.
    #[default]
    Lazy,
    /// The app gets the whole body.
    Eager,
    /// The app gets the slim body with these fields put back, and an address for the rest.
    Fields(Vec<Pointer>),
}

impl Hydrate {
    /// Whether a body is fetched before it is delivered.
    pub fn is_before(&self) -> bool {
        matches!(self, Self::Eager | Self::Fields(_))
    }
}

/// What becomes of a message whose body can not be fetched before it is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unhydrated {
    /// It waits with its lane as long as the body may come back, without using up attempts; the default.
    #[default]
    Retry,
    /// It is delivered slim, with the address of the rest.
    DeliverSlim,
    /// It goes to the dead letters.
    DeadLetter,
}
