//! A topic as a whole: read from its beginning to its end as of now, and written to in transactions. For commands that
//! people give, not for traffic: everything here blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header as NativeHeader, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::time::Instant;

use super::assignment::copy;
use super::client::{self, Bootstrap, Reporter, SetupError};
use super::intake::Received;
use super::producer::Outgoing;
use super::properties::Redactor;
use crate::config::model::Kafka;

/// How long the broker may take for one answer, and may be silent while a topic is read.
const ANSWER: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(100);
/// Nothing is committed under it.
const GROUP: &str = "wayside-dead-letters";

/// Why a topic is not read or written to the end.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// The client's settings are refused.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The broker's answer, or that there was none.
    #[error("{0}")]
    Broker(String),
    /// The broker does not know the topic.
    #[error("the broker does not know the topic `{0}`")]
    Unknown(String),
}

/// Reads a topic's records to where each partition ends when it is reached, in the order of each partition, until
/// `on_record` says `false`. Records of transactions that were not committed are left out.
///
/// # Errors
/// The broker's.
pub fn read(
    kafka: &Kafka,
    bootstrap: &Bootstrap,
    topic: &str,
    mut on_record: impl FnMut(Received) -> bool,
) -> Result<(), TopicError> {
    let consumer = consumer(kafka, bootstrap)?;
    let mut left = assign(&consumer, topic)?;
    let name = Arc::<str>::from(topic);
    let mut heard = Instant::now();
    while left > 0 {
        match consumer.poll(TICK) {
            Some(Ok(record)) => {
                heard = Instant::now();
                if !on_record(copy(&record, &name)) {
                    return Ok(());
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => {
                heard = Instant::now();
                left -= 1;
            }
            // The client goes on by itself.
            Some(Err(error)) if heard.elapsed() < ANSWER => {
                consumer.context().0.warn("consumer", &error.to_string());
            }
            None if heard.elapsed() < ANSWER => {}
            Some(Err(error)) => return Err(TopicError::Broker(error.to_string())),
            None => return Err(TopicError::Broker("the broker fell silent".to_owned())),
        }
    }
    Ok(())
}

fn consumer(kafka: &Kafka, bootstrap: &Bootstrap) -> Result<BaseConsumer<Quiet>, TopicError> {
    let mut config = client::consumer_config(kafka, bootstrap, GROUP)?;
    config
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest")
        .set("statistics.interval.ms", "0");
    let redactor = Redactor::of(&kafka.properties);
    let quiet = Quiet(Reporter::new("dead letters", redactor.clone()));
    let made = config.create_with_context(quiet);
    Ok(made.map_err(|error| client::client_error(error, &redactor))?)
}

/// Assigns every partition from its beginning, and says how many there are.
fn assign(consumer: &BaseConsumer<Quiet>, topic: &str) -> Result<usize, TopicError> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER);
    let metadata = metadata.map_err(|error| TopicError::Broker(error.to_string()))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let found = found.filter(|found| found.error().is_none() && !found.partitions().is_empty());
    let found = found.ok_or_else(|| TopicError::Unknown(topic.to_owned()))?;
    let mut list = TopicPartitionList::new();
    for partition in found.partitions() {
        let added = list.add_partition_offset(topic, partition.id(), Offset::Beginning);
        added.map_err(|error| TopicError::Broker(error.to_string()))?;
    }
    let assigned = consumer.assign(&list);
    assigned.map_err(|error| TopicError::Broker(error.to_string()))?;
    Ok(list.count())
}

/// A producer that writes records all or none.
pub struct Transactions {
    native: ThreadedProducer<Written>,
}

impl Transactions {
    /// Begins to write under an id: whoever did before can not any more, and what that had open is undone.
    ///
    /// # Errors
    /// The client's settings are refused, or the broker's answer.
    pub fn begin(kafka: &Kafka, bootstrap: &Bootstrap, id: &str) -> Result<Self, TopicError> {
        let mut config = client::producer_config(kafka, bootstrap)?;
        config.set("transactional.id", id);
        let redactor = Redactor::of(&kafka.properties);
        let written = Written {
            reporter: Reporter::new("dead letters", redactor.clone()),
            failed: AtomicUsize::new(0),
        };
        let native: ThreadedProducer<Written> = config
            .create_with_context(written)
            .map_err(|error| client::client_error(error, &redactor))?;
        let begun = native.init_transactions(ANSWER);
        begun.map_err(|error| TopicError::Broker(error.to_string()))?;
        Ok(Self { native })
    }

    /// Writes records, each to its topic: all or none of them.
    ///
    /// # Errors
    /// The broker's. Nothing was written, unless it is the answer to the commit itself that is missing.
    pub fn write(&self, records: &[Outgoing<'_>]) -> Result<(), TopicError> {
        let told = |error: KafkaError| TopicError::Broker(error.to_string());
        self.native.context().failed.store(0, Ordering::Relaxed);
        self.native.begin_transaction().map_err(told)?;
        let sent = records.iter().try_for_each(|record| self.send(record));
        let flushed = sent.and_then(|()| self.native.flush(ANSWER));
        let failed = self.native.context().failed.load(Ordering::Relaxed);
        let settled = match (flushed, failed) {
            (Ok(()), 0) => return self.native.commit_transaction(ANSWER).map_err(told),
            (Ok(()), failed) => TopicError::Broker(format!("{failed} records were not taken")),
            (Err(error), _) => told(error),
        };
        self.native.abort_transaction(ANSWER).map_err(told)?;
        Err(settled)
    }

    fn send(&self, record: &Outgoing<'_>) -> Result<(), KafkaError> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in record.headers.iter() {
            let value = Some(value);
            headers = headers.insert(NativeHeader { key, value });
        }
        let mut native = BaseRecord::<[u8], [u8]>::to(record.topic)
            .payload(record.value)
            .headers(headers);
        native.key = record.key;
        let until = Instant::now() + ANSWER;
        loop {
            match self.native.send(native) {
                Ok(()) => return Ok(()),
                Err((error, back)) => {
                    let full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
                    if !full || Instant::now() > until {
                        return Err(error);
                    }
                    native = back;
                    std::thread::sleep(TICK);
                }
            }
        }
    }
}

/// The reader's callbacks.
struct Quiet(Reporter);

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.0.log(level, facility, text);
    }

    fn error(&self, error: KafkaError, text: &str) {
        self.0.warn(&error.to_string(), text);
    }
}

impl ConsumerContext for Quiet {}

/// The writer's.
struct Written {
    reporter: Reporter,
    failed: AtomicUsize,
}

impl ClientContext for Written {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.reporter.log(level, facility, text);
    }

    fn error(&self, error: KafkaError, text: &str) {
        self.reporter.warn(&error.to_string(), text);
    }
}

impl ProducerContext for Written {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, record)) = result {
            self.failed.fetch_add(1, Ordering::Relaxed);
            self.reporter.warn(record.topic(), &error.to_string());
        }
    }
}
