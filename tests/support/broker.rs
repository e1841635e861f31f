//! One embedded broker for all tests of a binary; each test has topics and groups of its own.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use wayside::kafka::embedded::Embedded;

/// The broker, started by the first test that asks.
pub(crate) fn broker() -> &'static Embedded {
    static BROKER: OnceLock<Embedded> = OnceLock::new();
    BROKER.get_or_init(|| Embedded::start().expect("the embedded broker starts"))
}

/// Where it listens.
pub(crate) fn address() -> String {
    broker().bootstrap().address
}

/// A name that no other test has.
pub(crate) fn unique(word: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{word}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Makes a topic of that many partitions and returns its name.
pub(crate) fn topic(word: &str, partitions: i32) -> String {
    let topic = unique(word);
    broker()
        .create(&topic, partitions)
        .expect("the name is new");
    topic
}

/// A record that a client of its own writes, not the sidecar.
#[derive(Debug, Clone, Default)]
pub(crate) struct Written<'a> {
    /// The partition.
    pub(crate) partition: i32,
    /// The key.
    pub(crate) key: Option<&'a str>,
    /// The value; `None` is a tombstone.
    pub(crate) value: Option<&'a [u8]>,
    /// Every header, in order.
    pub(crate) headers: &'a [(&'a str, &'a str)],
}

/// A record of this value without headers, in partition 0.
pub(crate) fn plain(value: &str) -> Written<'_> {
    Written {
        value: Some(value.as_bytes()),
        ..Written::default()
    }
}

/// Writes records in this order and waits until the broker has them all.
pub(crate) fn write(topic: &str, records: &[Written<'_>]) {
    type Client = ThreadedProducer<DefaultProducerContext>;
    static CLIENT: OnceLock<Client> = OnceLock::new();
    let client = CLIENT.get_or_init(|| {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", address())
            .set("message.max.bytes", "10000000");
        config.create().expect("a producer")
    });
    for record in records {
        let mut headers = OwnedHeaders::new();
        for (key, value) in record.headers {
            headers = headers.insert(Header {
                key,
                value: Some(*value),
            });
        }
        let mut out = BaseRecord::<str, [u8]>::to(topic)
            .partition(record.partition)
            .headers(headers);
        (out.key, out.payload) = (record.key, record.value);
        client
            .send(out)
            .map_err(|(error, _)| error)
            .expect("the queue has room");
    }
    client
        .flush(Duration::from_secs(10))
        .expect("the broker acknowledges");
}
