//! The properties of every client, ours and those of the config, and where a client's log goes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use tokio::time::Instant;

use super::properties::Redactor;
use crate::config::model::Kafka;

/// Where the broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bootstrap {
    /// `host:port`, several separated by commas.
    pub address: String,
    /// The broker is the embedded one of this process, which needs other settings than a real one. One of another
    /// process is recognised by its cluster id.
    pub embedded: bool,
}

impl Bootstrap {
    /// A broker outside this process.
    pub fn brokers(addresses: &[String]) -> Self {
        Self {
            address: addresses.join(","),
            embedded: false,
        }
    }
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A property that the broker's client does not know or whose value it refuses.
    #[error("kafka.properties.{name}: {reason}")]
    Property {
        /// The property.
        name: String,
        /// The client's words; never the value itself.
        reason: String,
    },
    /// The properties are well-formed one by one and contradict one another, or the system refuses.
    #[error("the kafka client cannot be made: {0}")]
    Client(String),
    /// The system gives no thread.
    #[error("no thread for the kafka client")]
    Thread(#[from] std::io::Error),
    /// A consumer without topics.
    #[error("group {0} subscribes to no topic")]
    NoTopic(String),
}

/// Largest record that the native client can be told to take; the least is a body of the default 1 MiB with its
/// headers. In between it is `kafka.queue_max`, unless `message.max.bytes` says otherwise: how large a record may be is
/// the broker's to say, and a dead letter must not fail at a limit of ours that its origin never had.
const RECORD_BYTES_RANGE: (usize, usize) = (2 * 1024 * 1024, 1_000_000_000);

/// Records that may wait in the producer.
pub(super) const QUEUE_RECORDS_MAX: usize = 50_000;

/// What a static member of a group is called.
const INSTANCE: &str = "group.instance.id";

/// Properties on which a promise rests, each with the place that decides it instead.
const RESERVED: &[(&str, &str)] = &[
    ("bootstrap.servers", "kafka.brokers decides it"),
    ("metadata.broker.list", "kafka.brokers decides it"),
    ("group.id", "the subscription decides it"),
    ("queue.buffering.max.kbytes", "kafka.queue_max decides it"),
    ("queue.buffering.max.messages", "it is fixed"),
    (
        "enable.auto.commit",
        "offsets are committed when a message has ended",
    ),
    (
        "auto.commit.enable",
        "offsets are committed when a message has ended",
    ),
    (
        "enable.auto.offset.store",
        "offsets are committed when a message has ended",
    ),
    (
        "delivery.report.only.error",
        "each call waits for its acknowledgement",
    ),
    ("log.queue", "it is fixed"),
];

const COMMON: &[(&str, &str)] = &[
    ("client.id", "wayside"),
    ("socket.keepalive.enable", "true"),
    // A silent network is noticed after this, not after a minute.
    ("socket.timeout.ms", "10000"),
    ("socket.connection.setup.timeout.ms", "10000"),
    ("reconnect.backoff.ms", "100"),
    // The default of 10 s would leave calls refused for that long after the broker is back.
    ("reconnect.backoff.max.ms", "1000"),
    ("broker.address.family", "any"),
    ("log.connection.close", "false"),
    ("statistics.interval.ms", "0"),
];

const PRODUCER: &[(&str, &str)] = &[
    ("acks", "all"),
    ("enable.idempotence", "true"),
    ("compression.type", "lz4"),
    // Keys land where Java's clients put them; the default hashes with CRC32.
    ("partitioner", "murmur2_random"),
    ("linger.ms", "1"),
    ("batch.num.messages", "10000"),
    ("message.timeout.ms", "30000"),
    ("request.timeout.ms", "10000"),
    ("topic.metadata.refresh.interval.ms", "5000"),
    // How long a record waits for its topic to appear before the topic counts as unknown.
    ("topic.metadata.propagation.max.ms", "3000"),
];

const CONSUMER: &[(&str, &str)] = &[
    ("group.protocol", "classic"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("enable.auto.commit", "true"),
    ("enable.auto.offset.store", "false"),
    // What was done since the last commit is delivered again after a crash.
    ("auto.commit.interval.ms", "100"),
    ("auto.offset.reset", "earliest"),
    ("max.poll.interval.ms", "300000"),
    ("session.timeout.ms", "45000"),
    // Partition queues are split, so these hold for each partition.
    ("queued.max.messages.kbytes", "2048"),
    ("queued.min.messages", "1000"),
    // The default of 1 s would mean one fetch a second once a queue is full.
    ("fetch.queue.backoff.ms", "20"),
    ("fetch.message.max.bytes", "1048576"),
    // For the lag of each partition.
    ("statistics.interval.ms", "5000"),
    ("enable.partition.eof", "false"),
    ("allow.auto.create.topics", "false"),
    // A new topic must be seen within 5 s, joining included.
    ("topic.metadata.refresh.interval.ms", "3000"),
];

/// What the embedded broker needs on top. It answers an empty fetch only after the whole wait. A group's first member
/// waits 3 s, in which its session must not end, and each later change waits until 1 s before the session's end.
const CONSUMER_EMBEDDED: &[(&str, &str)] = &[
    ("fetch.wait.max.ms", "10"),
    ("session.timeout.ms", "3500"),
    ("heartbeat.interval.ms", "500"),
    ("topic.metadata.refresh.interval.ms", "500"),
];

pub(super) fn producer_config(
    kafka: &Kafka,
    bootstrap: &Bootstrap,
) -> Result<ClientConfig, SetupError> {
    let mut config = base(bootstrap, &[COMMON, PRODUCER]);
    config.set(
        "queue.buffering.max.kbytes",
        (kafka.queue_max / 1024).max(1).to_string(),
    );
    config.set(
        "queue.buffering.max.messages",
        QUEUE_RECORDS_MAX.to_string(),
    );
    let (least, most) = RECORD_BYTES_RANGE;
    config.set(
        "message.max.bytes",
        kafka.queue_max.clamp(least, most).to_string(),
    );
    apply(&mut config, kafka)?;
    Ok(config)
}

pub(super) fn consumer_config(
    kafka: &Kafka,
    bootstrap: &Bootstrap,
    group: &str,
) -> Result<ClientConfig, SetupError> {
    let embedded: &[&[(&str, &str)]] = &[COMMON, CONSUMER, CONSUMER_EMBEDDED];
    let mut config = base(
        bootstrap,
        if bootstrap.embedded {
            embedded
        } else {
            &embedded[..2]
        },
    );
    config.set("group.id", group);
    apply(&mut config, kafka)?;
    Ok(config)
}

/// The same for a member of the group, which may have a name that outlives it (KIP-345).
pub(super) fn member_config(
    kafka: &Kafka,
    bootstrap: &Bootstrap,
    group: &str,
) -> Result<ClientConfig, SetupError> {
    let mut config = consumer_config(kafka, bootstrap, group)?;
    let mut properties = kafka.properties.iter();
    if let Some((name, value)) = properties.find(|(name, _)| name == INSTANCE) {
        config.set(name, value.reveal());
    }
    Ok(config)
}

/// The message of a client that could not be made, without any value.
pub(super) fn client_error(error: KafkaError, redactor: &Redactor) -> SetupError {
    match error {
        KafkaError::ClientConfig(_, reason, name, value) => property(&name, &reason, &value),
        KafkaError::ClientCreation(reason) => SetupError::Client(redactor.clean(&reason).into()),
        other => SetupError::Client(redactor.clean(&other.to_string()).into()),
    }
}

fn base(bootstrap: &Bootstrap, tables: &[&[(&str, &str)]]) -> ClientConfig {
    let mut config = ClientConfig::new();
    // Ours to filter: see `Reporter`.
    config.set_log_level(RDKafkaLogLevel::Info);
    config.set("bootstrap.servers", &bootstrap.address);
    for (name, value) in tables.iter().copied().flatten() {
        config.set(*name, *value);
    }
    config
}

fn apply(config: &mut ClientConfig, kafka: &Kafka) -> Result<(), SetupError> {
    for (name, value) in &kafka.properties {
        if let Some(refused) = refusal(name, value.reveal()) {
            return Err(refused);
        }
        // Of the clients only members of a group have this name.
        if name != INSTANCE {
            config.set(name, value.reveal());
        }
    }
    if config.get("debug").is_some() {
        config.set_log_level(RDKafkaLogLevel::Debug);
    }
    Ok(())
}

/// Tries one property by itself, so that the error names it.
pub(super) fn refusal(name: &str, value: &str) -> Option<SetupError> {
    if let Some((_, reason)) = RESERVED.iter().find(|(reserved, _)| *reserved == name) {
        return Some(property(name, reason, ""));
    }
    if value.contains('\0') || name.contains('\0') {
        return Some(property(name, "it contains a null character", ""));
    }
    let mut alone = ClientConfig::new();
    alone.set(name, value);
    match alone.create_native_config() {
        Ok(_) => None,
        Err(error) => Some(client_error(error, &Redactor::default())),
    }
}

fn property(name: &str, reason: &str, value: &str) -> SetupError {
    // The client quotes the value, which may be a secret.
    let reason = if value.is_empty() {
        reason.to_owned()
    } else {
        reason.replace(value, "[redacted]")
    };
    let reason = reason.trim_end_matches('.').to_owned();
    SetupError::Property {
        name: name.to_owned(),
        reason,
    }
}

/// Writes a client's log lines and errors to ours. A broker that is away makes several lines a second: one in
/// [`REPORT_EVERY`] is written and the others counted.
#[derive(Debug)]
pub(super) struct Reporter {
    /// `producer`, or the consumer's group.
    client: String,
    redactor: Redactor,
    last: Mutex<Option<Instant>>,
    suppressed: AtomicU64,
}

const REPORT_EVERY: Duration = Duration::from_secs(10);

impl Reporter {
    pub(super) fn new(client: &str, redactor: Redactor) -> Self {
        Self {
            client: client.to_owned(),
            redactor,
            last: Mutex::new(None),
            suppressed: AtomicU64::new(0),
        }
    }

    pub(super) fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        let client = self.client.as_str();
        let text = &*self.redactor.clean(text);
        match level {
            // Properties of the other kind of client, which the config may well hold.
            _ if facility == "CONFWARN" => tracing::debug!(client, facility, text, "kafka client"),
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(client, facility, text, "kafka client");
            }
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => self.warn(facility, text),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(client, facility, text, "kafka client");
            }
        }
    }

    pub(super) fn warn(&self, what: &str, text: &str) {
        let client = self.client.as_str();
        let text = &*self.redactor.clean(text);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < REPORT_EVERY) {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(client, what, text, "kafka client");
            return;
        }
        *last = Some(Instant::now());
        drop(last);
        let suppressed = self.suppressed.swap(0, Ordering::Relaxed);
        tracing::warn!(client, what, text, suppressed, "kafka client");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{Cluster, Secret};

    fn kafka(properties: &[(&str, &str)]) -> Kafka {
        let properties = properties
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Secret::new(*value)))
            .collect();
        Kafka {
            cluster: Cluster::Embedded,
            properties,
            queue_max: 32 << 20,
            replies: None,
        }
    }

    #[test]
    fn a_refused_property_is_named_and_its_value_is_not() {
        assert!(refusal("linger.ms", "0").is_none());
        let words = |name, value| refusal(name, value).expect("refused").to_string();
        assert_eq!(
            words("linger.sm", "5"),
            "kafka.properties.linger.sm: No such configuration property: \"linger.sm\""
        );
        let text = words("security.protocol", "hunter2");
        assert!(
            text.starts_with("kafka.properties.security.protocol: "),
            "{text}"
        );
        assert!(!text.contains("hunter2"), "{text}");
        assert_eq!(
            words("group.id", "x"),
            "kafka.properties.group.id: the subscription decides it"
        );
    }

    #[test]
    fn the_config_overrides_our_defaults() {
        let kafka = kafka(&[("linger.ms", "0"), ("session.timeout.ms", "9000")]);
        let broker = Bootstrap::brokers(&["a:1".into(), "b:2".into()]);
        let producer = producer_config(&kafka, &broker).expect("valid");
        assert_eq!(producer.get("linger.ms"), Some("0"));
        assert_eq!(producer.get("bootstrap.servers"), Some("a:1,b:2"));
        let embedded = Bootstrap {
            embedded: true,
            ..broker
        };
        let consumer = consumer_config(&kafka, &embedded, "orders").expect("valid");
        assert_eq!(consumer.get("session.timeout.ms"), Some("9000"));
        assert_eq!(consumer.get("fetch.wait.max.ms"), Some("10"));
        consumer
            .create_native_config()
            .expect("every default is a property that the client knows");
    }
}
