//! All partitions of some topics, taken by hand: for those who want every message and share none.
//!
//! It begins at the end of what is there at first, and at the beginning of a topic or partition that appears later:
//! all of that was written since.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::metadata::MetadataTopic;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::time::Instant;

use super::assignment::Native;

/// How often new topics and partitions are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// And until everything was there once.
const LOOK_SOON: Duration = Duration::from_millis(250);
/// How long the broker may take for the answer. Meanwhile nothing else is served, but without a broker there is nothing.
const LOOK_MAX: Duration = Duration::from_millis(500);

/// See the file.
#[derive(Debug)]
pub(super) struct All {
    /// How many partitions of each topic are taken; `None` before the broker told of it.
    taken: HashMap<String, Option<i32>>,
    looked: Option<Instant>,
}

impl All {
    pub(super) fn new(topics: &[String]) -> Self {
        Self {
            taken: topics.iter().map(|topic| (topic.clone(), None)).collect(),
            looked: None,
        }
    }

    /// Takes what has appeared, if it is time to look.
    pub(super) fn look(&mut self, native: &Native) {
        let every = match self.taken.values().all(Option::is_some) {
            true => LOOK_EVERY,
            false => LOOK_SOON,
        };
        if self.looked.is_some_and(|looked| looked.elapsed() < every) {
            return;
        }
        for (topic, taken) in &mut self.taken {
            if let Err(error) = look_at(native, topic, taken) {
                native.context().reporter.warn(topic, &error.to_string());
            }
        }
        self.looked = Some(Instant::now());
    }
}

fn look_at(native: &Native, topic: &str, taken: &mut Option<i32>) -> Result<(), KafkaError> {
    let metadata = native.fetch_metadata(Some(topic), LOOK_MAX)?;
    let told = metadata.topics().iter().find(|told| told.name() == topic);
    let Some(partitions) = told.and_then(partitions) else {
        return Ok(());
    };
    let from = match taken {
        None => Offset::End,
        Some(_) => Offset::Beginning,
    };
    let mut new = TopicPartitionList::new();
    for partition in taken.unwrap_or_default()..partitions {
        new.add_partition_offset(topic, partition, from)?;
    }
    if new.count() > 0 {
        // First of all their queues: see `Group::assign`.
        native.context().assign(&new);
        native.incremental_assign(&new)?;
    }
    *taken = Some(partitions);
    Ok(())
}

/// How many partitions a topic has: none if it is not there. `None` while the broker does not know.
fn partitions(told: &MetadataTopic) -> Option<i32> {
    use RDKafkaRespErr::{
        RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC, RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
    };
    match told.error() {
        None => i32::try_from(told.partitions().len()).ok(),
        Some(RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC) => Some(0),
        Some(_) => None,
    }
}
