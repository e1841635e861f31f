//! What a broker says of itself, as plain data: rules are computed from it without asking anybody.

use std::collections::BTreeMap;
use std::time::Duration;

/// Why there is no answer to one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absent {
    /// The broker lets this principal not know or do it.
    Denied,
    /// There is no such thing.
    Unknown,
    /// The broker does not have this request: it is too old, or the embedded one.
    Unsupported,
    /// It was not asked or did not answer, in words.
    Unanswered(String),
}

/// Why nothing at all is known of a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreachable {
    /// No client can be made of the properties here.
    Client(String),
    /// The broker does not believe who we are.
    Authentication(String),
    /// No TLS connection.
    Tls(String),
    /// No connection, or no answer in time; the last words of the client.
    Away(String),
    /// One took the connection, and none answers where the cluster says that its brokers are; the client's last words.
    Elsewhere(String),
}

/// Everything that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The client's own settings.
    pub client: Client,
    /// The brokers that the cluster tells of.
    pub brokers: Vec<Broker>,
    /// Whether records may be sent in order and without duplicates (KIP-98).
    pub idempotence: Result<(), Absent>,
    /// By name, every topic that was asked for.
    pub topics: BTreeMap<String, Topic>,
    /// By group and topic, every subscription that was asked for.
    pub subscribed: BTreeMap<(String, String), Subscribed>,
}

/// What our client is told to do, as far as a broker's settings have to fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Bytes of the largest record that the producer sends (`message.max.bytes`).
    pub record_max: u64,
    /// Bytes of the largest answer that a consumer takes (`receive.message.max.bytes`).
    pub answer_max: u64,
    /// Where a group begins that has no offset.
    pub offset_reset: OffsetReset,
    /// After which silence a consumer is out of its group.
    pub session: Duration,
}

/// `auto.offset.reset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetReset {
    /// At the oldest record.
    Earliest,
    /// At records that are yet to come.
    Latest,
    /// Nowhere.
    Error,
}

/// One broker of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Its number.
    pub id: i32,
    /// `host:port`, as it is advertised to clients.
    pub address: String,
    /// Its settings.
    pub settings: Result<Settings, Absent>,
}

/// One topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its partitions.
    pub partitions: Result<Vec<Partition>, Absent>,
    /// Its settings, those that it has from the broker included.
    pub settings: Result<Settings, Absent>,
    /// If it does not exist: whether this principal could make it.
    pub creatable: Result<(), Absent>,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub id: i32,
    /// Whether a broker leads it; without one nothing is written or read.
    pub led: bool,
    /// Copies that there should be.
    pub replicas: usize,
    /// Copies that are up to date.
    pub in_sync: usize,
}

/// A topic as a group sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribed {
    /// How far the group has come, partition by partition.
    pub progress: Result<Vec<Progress>, Absent>,
    /// Whether the topic's records may be read.
    pub readable: Result<(), Absent>,
}

/// How far a group has come in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The partition.
    pub partition: i32,
    /// The offset that comes next, if one is committed.
    pub committed: Option<i64>,
    /// The oldest offset that is there.
    pub low: i64,
    /// The offset that the next record gets.
    pub high: i64,
}

/// Settings by name. A value that the broker does not tell is not here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings(pub BTreeMap<String, String>);

impl Settings {
    /// A setting as text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A setting as a whole number.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.text(name)?.parse().ok()
    }

    /// A setting that is `true` or `false`.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.text(name)?.parse().ok()
    }

    /// Whether a list such as `compact,delete` has this word.
    pub fn has(&self, name: &str, word: &str) -> bool {
        self.text(name)
            .is_some_and(|text| text.split(',').any(|one| one.trim() == word))
    }
}
