//! One producer per process: from a call's bytes to the broker's acknowledgement.
//!
//! A caller sends from its own thread and waits in a slot that the native client's delivery callback answers. There
//! is no queue or thread of ours in between: both were measured and cost more. What waits is bounded by count and by
//! bytes in the native client, and a full queue is an answer, not a wait.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header as NativeHeader, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use tokio::time::Instant;

use super::client::{self, Bootstrap, QUEUE_RECORDS_MAX, Reporter, SetupError};
use super::link::{Link, Task};
use super::properties::Redactor;
use super::slots::{Slots, Ticket};
use crate::config::model::Kafka;
use crate::error::{Error, Kind, Retry};
use crate::headers::Headers;

/// How long a probe waits for the broker's answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// The wait between two probes of a broker that is away.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// When a refused caller may come back.
const COME_BACK: Duration = Duration::from_secs(2);
/// Framing of a batch and a record, and of each header, at most.
const RECORD_OVERHEAD: usize = 96;
const HEADER_OVERHEAD: usize = 10;

/// A record on its way out. The value is never null: an empty one is an empty one.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The key; the records of one key stay in order.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: &'a [u8],
    /// The headers, in order.
    pub headers: &'a Headers,
}

/// Where the broker put a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// Why a record has no acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// As many records or bytes wait as may. Nothing was sent.
    #[error("the queue to the broker is full")]
    QueueFull,
    /// The broker does not answer. Nothing was sent.
    #[error("the broker is away")]
    BrokerAway,
    /// No acknowledgement in time: whether the record was written is unknown.
    #[error("the broker did not acknowledge in time")]
    TimedOut,
    /// The broker does not know the topic and did not make it. Nothing was written.
    #[error("the broker does not know the topic")]
    TopicUnknown,
    /// The record is over our limit or the broker's. Nothing was written.
    #[error("the record is too large")]
    TooLarge,
    /// The broker refuses: authorization, a policy or a setting. Nothing was written.
    #[error("the broker refuses the record: {0}")]
    Refused(Box<str>),
    /// The broker refuses this record, whatever it comes with. It was not written.
    #[error("the broker finds the record invalid")]
    Invalid,
    /// The native client failed for good and is being made anew: whether the record was written is unknown.
    #[error("the broker's client failed")]
    Fatal,
}

impl From<PublishError> for Error {
    fn from(error: PublishError) -> Self {
        let (kind, detail, retry) = match &error {
            PublishError::QueueFull => (
                Kind::Overloaded,
                "the queue to the broker is full",
                Retry::NeverSent,
            ),
            PublishError::BrokerAway => (Kind::BrokerAway, "the broker is away", Retry::NeverSent),
            PublishError::TimedOut | PublishError::Fatal => (
                Kind::BrokerAway,
                "the broker did not acknowledge in time; the record may have been written",
                Retry::NoAnswer,
            ),
            PublishError::TopicUnknown => (
                Kind::TopicUnknown,
                "the broker does not know the topic",
                Retry::NeverSent,
            ),
            PublishError::TooLarge => {
                return Self::new(
                    Kind::RecordTooLarge,
                    "the record is over the broker's limit",
                );
            }
            PublishError::Invalid | PublishError::Refused(_) => (
                Kind::BrokerRefused,
                "the broker refuses the record",
                Retry::NeverSent,
            ),
        };
        Self::new(kind, detail)
            .retry(retry)
            .after(COME_BACK)
            .because(error)
    }
}

/// Where the delivery reports of [`Producer::offer`] go. It is called on the native client's threads and must not block.
pub trait Reports: Send + Sync + 'static {
    /// The broker's answer to one record.
    fn answer(&self, tag: u64, outcome: Outcome);

    /// The native client is gone: what it had not answered is unknown, and never will be answered.
    fn lost(&self);
}

/// The producer. Dropping it ends its threads in the background and gives up what still waits; see
/// [`Producer::flush`].
#[derive(Debug)]
pub struct Producer {
    shared: Arc<Shared>,
}

type Native = ThreadedProducer<Callbacks>;
/// The broker's answer to one record.
pub type Outcome = Result<Ack, PublishError>;

/// Marks the word that travels with an offered record; the word of one that a caller waits for never has it: its
/// generation would have to come to 2³¹.
const OFFERED: usize = 1 << (usize::BITS - 1);

struct Shared {
    /// Absent while it is made anew.
    native: ArcSwapOption<Native>,
    slots: Arc<Slots<Outcome>>,
    reports: Option<Arc<dyn Reports>>,
    link: Arc<Link>,
    config: ClientConfig,
    redactor: Redactor,
    record_max: usize,
    /// A topic that was published to, which probes ask about.
    topic: OnceLock<String>,
}

impl Producer {
    /// Makes the native client and the thread that watches the broker. It does not wait for the broker.
    ///
    /// With `reports` the client repeats a record for as long as it takes, since whoever offers it keeps it for as long;
    /// a record that was given up after a while could be overtaken by a later one of its key.
    ///
    /// # Errors
    /// A property is refused, or the system gives no thread.
    pub fn new(
        kafka: &Kafka,
        bootstrap: &Bootstrap,
        reports: Option<Arc<dyn Reports>>,
    ) -> Result<Self, SetupError> {
        let mut config = client::producer_config(kafka, bootstrap)?;
        if reports.is_some() {
            config.set("message.timeout.ms", "0");
        }
        let record_max = config
            .get("message.max.bytes")
            .and_then(|text| text.parse().ok());
        let shared = Arc::new(Shared {
            native: ArcSwapOption::empty(),
            slots: Arc::new(Slots::new(QUEUE_RECORDS_MAX)),
            reports,
            link: Arc::new(Link::new()),
            config,
            redactor: Redactor::of(&kafka.properties),
            record_max: record_max.unwrap_or(kafka.queue_max),
            topic: OnceLock::new(),
        });
        shared.native.store(Some(Arc::new(shared.connect()?)));
        let keeper = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("wayside-producer".into())
            .spawn(move || keep(&keeper))?;
        Ok(Self { shared })
    }

    /// Sends a record and waits for the acknowledgement of all its replicas, at most until `deadline`. If the future
    /// is dropped, the record goes on its way.
    ///
    /// # Errors
    /// See [`PublishError`]: each says whether the record may have been written.
    pub async fn publish(&self, record: Outgoing<'_>, deadline: Instant) -> Outcome {
        self.publish_to(record, None, deadline).await
    }

    /// The same to a partition that the caller chooses.
    ///
    /// # Errors
    /// See [`PublishError`]; a partition that the topic does not have is a [`PublishError::TopicUnknown`].
    pub async fn publish_to(
        &self,
        record: Outgoing<'_>,
        partition: Option<i32>,
        deadline: Instant,
    ) -> Outcome {
        let ticket = self.shared.send(record, partition)?;
        let answer = self.shared.slots.wait(ticket);
        if let Ok(outcome) = tokio::time::timeout_at(deadline, answer).await {
            return outcome;
        }
        self.shared.link.doubt();
        Err(PublishError::TimedOut)
    }

    /// Sends a record on its way. What becomes of it comes to the [`Reports`] that this producer was made with, with the
    /// tag, of which the upper bit is lost. It may be called while the broker is away.
    ///
    /// # Errors
    /// Nothing was sent: the native client's queue is full, it is being made anew ([`PublishError::BrokerAway`]), or the
    /// record can never be sent.
    pub fn offer(&self, record: Outgoing<'_>, tag: u64) -> Result<(), PublishError> {
        self.shared.offer(record, tag)
    }

    /// Somebody waited in vain: the broker is asked whether it is there.
    pub fn doubt(&self) {
        self.shared.link.doubt();
    }

    /// Whether calls are refused because the broker does not answer.
    pub fn is_away(&self) -> bool {
        self.shared.link.is_away()
    }

    /// Bytes that one record may have, headers included, as far as our client limits it.
    pub fn record_max(&self) -> usize {
        self.shared.record_max
    }

    /// Records that wait for their acknowledgement; at most 50,000.
    pub fn waiting(&self) -> usize {
        self.shared.slots.taken()
    }

    /// Their bytes; at most about `kafka.queue_max`.
    pub fn waiting_bytes(&self) -> usize {
        self.shared.slots.bytes()
    }

    /// Sends at once whatever waits, and returns when all of it was answered or `deadline` has passed: true if nothing
    /// is left. It blocks a thread of the runtime's blocking pool, not one of its workers.
    pub async fn flush(&self, deadline: Instant) -> bool {
        let Some(native) = self.shared.native.load_full() else {
            return false;
        };
        let within = deadline.saturating_duration_since(Instant::now());
        let flushed = tokio::task::spawn_blocking(move || native.flush(within).is_ok()).await;
        flushed.unwrap_or(false)
    }
}

impl Producer {
    /// How many replicas a topic has; `None` while the broker does not say. Blocks for up to three seconds.
    pub fn replicas(&self, topic: &str) -> Option<u32> {
        let native = self.shared.native.load_full()?;
        let told = native
            .client()
            .fetch_metadata(Some(topic), PROBE_TIMEOUT)
            .ok()?;
        let topic = told.topics().iter().find(|told| told.name() == topic)?;
        let replicas = topic
            .partitions()
            .iter()
            .map(|partition| partition.replicas().len());
        u32::try_from(replicas.max()?)
            .ok()
            .filter(|replicas| *replicas > 0)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // The native client blocks while it ends, so the keeper holds the last reference to it.
        self.shared.link.stop();
    }
}

impl Shared {
    fn send(&self, record: Outgoing<'_>, partition: Option<i32>) -> Result<Ticket, PublishError> {
        let bytes = record.bytes();
        if bytes > self.record_max {
            return Err(PublishError::TooLarge);
        }
        if self.link.is_away() {
            return Err(PublishError::BrokerAway);
        }
        let ticket = self.slots.reserve(bytes).ok_or(PublishError::QueueFull)?;
        self.enqueue(record, partition, ticket).inspect_err(|_| {
            self.slots.release(ticket);
        })?;
        Ok(ticket)
    }

    fn offer(&self, record: Outgoing<'_>, tag: u64) -> Result<(), PublishError> {
        if record.bytes() > self.record_max {
            return Err(PublishError::TooLarge);
        }
        self.enqueue(record, None, tag as usize | OFFERED)
    }

    /// Gives a record to the native client, with the word that comes back with its answer.
    fn enqueue(
        &self,
        record: Outgoing<'_>,
        partition: Option<i32>,
        word: usize,
    ) -> Result<(), PublishError> {
        if self.link.is_fatal() {
            return Err(PublishError::BrokerAway);
        }
        let native = self.native.load();
        let Some(native) = native.as_ref() else {
            return Err(PublishError::BrokerAway);
        };
        if self.topic.get().is_none() {
            self.topic.get_or_init(|| record.topic.to_owned());
        }
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in record.headers.iter() {
            headers = headers.insert(NativeHeader {
                key,
                value: Some(value),
            });
        }
        let mut native_record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(record.topic, word)
            .payload(record.value)
            .headers(headers);
        (native_record.key, native_record.partition) = (record.key, partition);
        native
            .send(native_record)
            .map_err(|(error, _)| reason(&error))
    }

    fn connect(&self) -> Result<Native, SetupError> {
        let callbacks = Callbacks {
            slots: Arc::clone(&self.slots),
            reports: self.reports.clone(),
            link: Arc::clone(&self.link),
            reporter: Reporter::new("producer", self.redactor.clone()),
        };
        self.config
            .create_with_context(callbacks)
            .map_err(|error| client::client_error(error, &self.redactor))
    }

    fn probe(&self, first: bool) -> bool {
        let Some(native) = self.native.load_full() else {
            return false;
        };
        let client = native.client();
        match self.topic.get() {
            Some(topic) => client.fetch_metadata(Some(topic), PROBE_TIMEOUT).is_ok(),
            // The cluster's id comes with the connection but is remembered for ever, so it proves nothing later.
            None if first => client.fetch_cluster_id(PROBE_TIMEOUT).is_some(),
            None => client.fetch_metadata(None, PROBE_TIMEOUT).is_ok(),
        }
    }

    fn rebuild(&self) {
        tracing::error!("the kafka client failed for good and is made anew");
        if let Some(old) = self.native.swap(None) {
            self.retire(old);
        }
        self.slots.answer_all(|| Err(PublishError::Fatal));
        if let Some(reports) = &self.reports {
            reports.lost();
        }
        match self.connect() {
            Ok(native) => {
                self.native.store(Some(Arc::new(native)));
                self.link.rebuilt();
                self.link.away();
            }
            Err(error) => {
                tracing::error!(%error, "no kafka client");
                self.link.sleep(PROBE_TIMEOUT);
            }
        }
    }

    /// Drops the native client here, on the keeper's thread, once no caller is in the middle of sending.
    fn retire(&self, mut native: Arc<Native>) {
        while let Err(shared) = Arc::try_unwrap(native).map(drop) {
            native = shared;
            self.link.sleep(Duration::from_millis(5));
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl Outgoing<'_> {
    /// What the record needs on the wire, at most, uncompressed.
    pub fn bytes(&self) -> usize {
        RECORD_OVERHEAD
            + self.key.map_or(0, <[u8]>::len)
            + self.value.len()
            + self.headers.bytes()
            + self.headers.len() * HEADER_OVERHEAD
    }
}

/// Watches the broker while it is in doubt or away. Runs on a thread of its own, since asking blocks.
fn keep(shared: &Shared) {
    let mut first = true;
    loop {
        match shared.link.task(PROBE_EVERY) {
            Task::Stop => break,
            Task::Rebuild => shared.rebuild(),
            Task::Probe => {
                if shared.probe(first) {
                    shared.link.up();
                    // Callers with deadlines too short to meet must not make a probe each.
                    shared.link.sleep(PROBE_EVERY);
                } else {
                    shared.link.away();
                }
                first = false;
            }
        }
    }
    if let Some(native) = shared.native.swap(None) {
        drop(native);
    }
    shared.slots.answer_all(|| Err(PublishError::TimedOut));
}

/// The native client's callbacks.
struct Callbacks {
    slots: Arc<Slots<Outcome>>,
    reports: Option<Arc<dyn Reports>>,
    link: Arc<Link>,
    reporter: Reporter,
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.reporter.log(level, facility, text);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}

    fn error(&self, error: KafkaError, text: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fatal) => self.link.fatal(),
            // Credentials that expired come back as they went: to a call it is as if the broker were away.
            Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::Authentication) => {
                self.link.doubt();
            }
            _ => {}
        }
        self.reporter.warn(&error.to_string(), text);
    }
}

impl ProducerContext for Callbacks {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, word: usize) {
        let outcome = match result {
            Ok(record) => {
                self.link.up();
                Ok(Ack {
                    partition: record.partition(),
                    offset: record.offset(),
                })
            }
            Err((error, _)) => {
                let reason = reason(error);
                match reason {
                    PublishError::TimedOut => self.link.doubt(),
                    PublishError::Fatal => self.link.fatal(),
                    _ => {}
                }
                Err(reason)
            }
        };
        match &self.reports {
            Some(reports) if word & OFFERED != 0 => {
                reports.answer((word & !OFFERED) as u64, outcome);
            }
            _ => {
                self.slots.answer(word, outcome);
            }
        }
    }
}

fn reason(error: &KafkaError) -> PublishError {
    use RDKafkaErrorCode as Code;
    let Some(code) = error.rdkafka_error_code() else {
        return PublishError::Refused(error.to_string().into());
    };
    match code {
        Code::QueueFull => PublishError::QueueFull,
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            PublishError::TopicUnknown
        }
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
            PublishError::TooLarge
        }
        Code::InvalidRecord | Code::InvalidTimestamp => PublishError::Invalid,
        // Another one in its batch was: this one may be sent again.
        Code::InvalidDifferentRecord
        | Code::PurgeQueue
        | Code::NotEnoughReplicas
        | Code::ISRInsufficient
        | Code::LeaderNotAvailable
        | Code::BrokerNotAvailable => PublishError::BrokerAway,
        Code::MessageTimedOut
        | Code::PurgeInflight
        | Code::RequestTimedOut
        | Code::OperationTimedOut
        | Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::NetworkException
        | Code::NotLeaderForPartition
        | Code::KafkaStorageError
        | Code::NotEnoughReplicasAfterAppend => PublishError::TimedOut,
        Code::Fatal | Code::Fenced | Code::ProducerFenced => PublishError::Fatal,
        other => PublishError::Refused(other.to_string().into()),
    }
}
