//! Reads this sidecar's own partition of its reply topic, on a thread of its own: assigned by hand, without a group to
//! join and without a commit, so that no rebalance is ever waited for.
//!
//! It begins as far back as results are kept, so what receivers told survives a restart without any write of ours. The
//! embedded broker finds no offset by its time; there it begins with the oldest record.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::Gauge;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{Offset, TopicPartitionList};

use super::assignment::copy;
use super::client::{self, Bootstrap, Reporter, SetupError};
use super::consumer::EMBEDDED_ID;
use super::murmur;
use super::properties::Redactor;
use super::record::{CE_ID, CE_TYPE};
use crate::config::model::Kafka;

/// The native client wants the name of a group, which is never joined.
const GROUP: &str = "wayside-replies";
/// Whether asking for a topic makes it, if the broker allows it too.
const MAKES_TOPICS: &str = "allow.auto.create.topics";
/// The longest sleep of the thread.
const TICK: Duration = Duration::from_millis(100);
/// How long one question to the broker may take.
const ASK: Duration = Duration::from_secs(5);
/// Ticks without an answer after which the broker counts as away.
const SILENT_MAX: u32 = 20;
/// In place of a partition.
const UNKNOWN: i32 = -1;
const FAILING: i32 = -2;
/// Ticks between two attempts to begin.
const PAUSE: u32 = 10;

/// The reader. Dropping it ends its thread in the background.
#[derive(Debug)]
pub struct Replies {
    control: Arc<Control>,
}

/// What to read.
#[derive(Debug, Clone)]
pub struct Source {
    /// The topic.
    pub topic: String,
    /// Whose partition: [`murmur::partition`] of this, which is `service/instance`.
    pub origin: String,
    /// How far back to begin.
    pub keep: Duration,
}

/// A record of the reply topic, whoever wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming<'a> {
    /// Its CloudEvents type.
    pub kind: Option<&'a str>,
    /// Its CloudEvents id.
    pub id: Option<&'a str>,
    /// Its value.
    pub value: &'a [u8],
}

#[derive(Debug)]
struct Control {
    stop: AtomicBool,
    /// [`UNKNOWN`] until it is known, [`FAILING`] while it is not to be had.
    partition: AtomicI32,
}

impl Replies {
    /// Starts the thread; `on_record` is called there. It does not wait for the broker. A topic that does not exist is
    /// created if the broker allows it; until it does, the reader tries again and `reading` is 0.
    ///
    /// # Errors
    /// A property is refused, or the system gives no thread.
    pub fn start(
        kafka: &Kafka,
        bootstrap: &Bootstrap,
        source: Source,
        reading: Gauge,
        on_record: impl Fn(Incoming<'_>) + Send + 'static,
    ) -> Result<Self, SetupError> {
        let control = Arc::new(Control {
            stop: AtomicBool::new(false),
            partition: AtomicI32::new(UNKNOWN),
        });
        let reader = Reader {
            control: Arc::clone(&control),
            kafka: kafka.clone(),
            bootstrap: bootstrap.clone(),
            source,
            reading,
        };
        reader.reading.set(0.0);
        let native = reader.connect(bootstrap.embedded)?;
        std::thread::Builder::new()
            .name("wayside-replies".into())
            .spawn(move || reader.run(native, on_record))?;
        Ok(Self { control })
    }

    /// The partition that is read; `None` as long as the reader could not begin.
    pub fn partition(&self) -> Option<i32> {
        let partition = self.control.partition.load(Ordering::Relaxed);
        (partition >= 0).then_some(partition)
    }

    /// Whether the reader tried to begin and could not.
    pub fn is_failing(&self) -> bool {
        self.control.partition.load(Ordering::Relaxed) == FAILING
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.control.stop.store(true, Ordering::Relaxed);
    }
}

type Native = BaseConsumer<Quiet>;

/// The thread.
struct Reader {
    control: Arc<Control>,
    kafka: Kafka,
    bootstrap: Bootstrap,
    source: Source,
    reading: Gauge,
}

impl Reader {
    fn connect(&self, embedded: bool) -> Result<Native, SetupError> {
        let bootstrap = Bootstrap {
            embedded,
            ..self.bootstrap.clone()
        };
        let mut config = client::consumer_config(&self.kafka, &bootstrap, GROUP)?;
        config
            .set("enable.auto.commit", "false")
            // Of a place that the topic has forgotten, what is left of it.
            .set("auto.offset.reset", "earliest");
        let mut properties = self.kafka.properties.iter();
        if !properties.any(|(name, _)| name == MAKES_TOPICS) {
            config.set(MAKES_TOPICS, "true");
        }
        let redactor = Redactor::of(&self.kafka.properties);
        let reporter = Reporter::new("replies", redactor.clone());
        config
            .create_with_context(Quiet { reporter })
            .map_err(|error| client::client_error(error, &redactor))
    }

    fn run(self, native: Native, on_record: impl Fn(Incoming<'_>)) {
        let Some(native) = self.begin(native) else {
            return;
        };
        let topic = Arc::from(self.source.topic.as_str());
        while !self.is_stopping() {
            match native.poll(TICK) {
                None => {}
                Some(Ok(record)) => hand_over(&record, &topic, &on_record),
                Some(Err(error)) => native
                    .context()
                    .reporter
                    .warn("replies", &error.to_string()),
            }
        }
        self.reading.set(0.0);
    }

    /// Tries until it has its partition, or `None` when it has to stop.
    fn begin(&self, mut native: Native) -> Option<Native> {
        let topic = self.source.topic.as_str();
        let (mut embedded, mut silent) = (self.bootstrap.embedded, 0);
        while !self.is_stopping() {
            // Serves the log.
            drop(native.poll(Duration::ZERO));
            if !embedded {
                let Some(id) = native.client().fetch_cluster_id(TICK) else {
                    silent += 1;
                    if silent == SILENT_MAX {
                        self.fails("the broker does not answer");
                    }
                    continue;
                };
                if id.starts_with(EMBEDDED_ID) {
                    embedded = true;
                    native = self.connect(true).unwrap_or(native);
                }
            }
            match self.assign(&native, embedded) {
                Ok(partition) => {
                    self.control.partition.store(partition, Ordering::Relaxed);
                    self.reading.set(1.0);
                    tracing::info!(topic, partition, "replies are read");
                    return Some(native);
                }
                Err(error) => {
                    let error = error.to_string();
                    self.fails(&error);
                    native.context().reporter.warn("replies", &error);
                }
            }
            for _ in 0..PAUSE {
                if !self.is_stopping() {
                    std::thread::park_timeout(TICK);
                }
            }
        }
        None
    }

    /// Lets callers go on without results, and says so once.
    fn fails(&self, error: &str) {
        let before = self.control.partition.swap(FAILING, Ordering::Relaxed);
        if before != FAILING {
            let topic = self.source.topic.as_str();
            tracing::error!(
                topic,
                error,
                "replies are not read yet: callers get a 202 and no result"
            );
        }
    }

    fn assign(&self, native: &Native, embedded: bool) -> Result<i32, KafkaError> {
        use rdkafka::error::RDKafkaErrorCode::{UnknownPartition, UnknownTopic};
        let topic = self.source.topic.as_str();
        let metadata = native.fetch_metadata(Some(topic), ASK)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let found = found.ok_or(KafkaError::MetadataFetch(UnknownTopic))?;
        if let Some(error) = found.error() {
            return Err(KafkaError::MetadataFetch(error.into()));
        }
        let count = i32::try_from(found.partitions().len()).unwrap_or(i32::MAX);
        let partition = murmur::partition(self.source.origin.as_bytes(), count)
            .ok_or(KafkaError::MetadataFetch(UnknownPartition))?;
        let mut list = TopicPartitionList::new();
        let from = self.from(native, partition, embedded)?;
        list.add_partition_offset(topic, partition, Offset::Offset(from))?;
        native.assign(&list)?;
        Ok(partition)
    }

    /// The offset to begin with.
    fn from(&self, native: &Native, partition: i32, embedded: bool) -> Result<i64, KafkaError> {
        let topic = self.source.topic.as_str();
        // The end is asked for first: what comes after the second question must not be skipped.
        let (low, high) = native.fetch_watermarks(topic, partition, ASK)?;
        if embedded {
            return Ok(low);
        }
        let since = SystemTime::now().checked_sub(self.source.keep);
        let since = since.and_then(|since| since.duration_since(UNIX_EPOCH).ok());
        let since = i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(0);
        let mut times = TopicPartitionList::new();
        times.add_partition_offset(topic, partition, Offset::Offset(since))?;
        let found = native.offsets_for_times(times, ASK)?;
        Ok(match found.find_partition(topic, partition) {
            Some(found) => match found.offset() {
                Offset::Offset(offset) => offset,
                _ => high,
            },
            None => high,
        })
    }

    fn is_stopping(&self) -> bool {
        self.control.stop.load(Ordering::Relaxed)
    }
}

fn hand_over(record: &BorrowedMessage<'_>, topic: &Arc<str>, on_record: &impl Fn(Incoming<'_>)) {
    let record = copy(record, topic);
    let header = |wanted: &str| {
        let value = record.headers.get(wanted)?;
        std::str::from_utf8(value).ok()
    };
    on_record(Incoming {
        kind: header(CE_TYPE),
        id: header(CE_ID),
        value: &record.value,
    });
}

/// The native client's callbacks.
struct Quiet {
    reporter: Reporter,
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.reporter.log(level, facility, text);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}

    fn error(&self, error: KafkaError, text: &str) {
        self.reporter.warn(&error.to_string(), text);
    }
}

impl ConsumerContext for Quiet {}
