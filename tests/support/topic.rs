//! Reads a topic with a client of its own, not with the sidecar's.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

/// One record as it lies in the topic.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// The key.
    pub(crate) key: Option<Vec<u8>>,
    /// The value; `None` is a tombstone.
    pub(crate) value: Option<Vec<u8>>,
    /// Every header, in order.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    /// The partition.
    pub(crate) partition: i32,
}

impl Record {
    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        Some(String::from_utf8_lossy(value).into_owned())
    }
}

/// Reads a topic from its beginning until it has `count` records, for ten seconds at most.
pub(crate) async fn read(bootstrap: &str, topic: &str, count: usize) -> Vec<Record> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    let reading = tokio::task::spawn_blocking(move || read_blocking(&bootstrap, &topic, count));
    reading.await.expect("the reader does not panic")
}

fn read_blocking(bootstrap: &str, topic: &str, count: usize) -> Vec<Record> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "unused")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "10")
        .create()
        .expect("a consumer");
    let mut records = Vec::new();
    let started = std::time::SystemTime::now();
    let late = || {
        started
            .elapsed()
            .is_ok_and(|elapsed| elapsed > Duration::from_secs(10))
    };
    let mut assigned = false;
    while records.len() < count && !late() {
        if !assigned {
            assigned = assign(&consumer, topic);
            continue;
        }
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            let headers = message.headers().map_or_else(Vec::new, |headers| {
                let one = |header: rdkafka::message::Header<'_, &[u8]>| {
                    (
                        header.key.to_owned(),
                        header.value.unwrap_or_default().to_vec(),
                    )
                };
                headers.iter().map(one).collect()
            });
            records.push(Record {
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().map(<[u8]>::to_vec),
                headers,
                partition: message.partition(),
            });
        }
    }
    records
}

fn assign(consumer: &BaseConsumer, topic: &str) -> bool {
    let Ok(metadata) = consumer.fetch_metadata(Some(topic), Duration::from_secs(2)) else {
        return false;
    };
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return false;
    };
    let mut list = TopicPartitionList::new();
    for partition in found.partitions() {
        let added = list.add_partition_offset(topic, partition.id(), Offset::Beginning);
        added.expect("an offset that exists");
    }
    list.count() > 0 && consumer.assign(&list).is_ok()
}
