//! All partitions of some topics, taken by hand: for those who want every message and share none.
//!
//! It begins where another stopped that it replaces, or at the end of what is there at first, and at the beginning of a
//! topic or partition that appears later: all of that was written since.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::metadata::MetadataTopic;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::time::Instant;

use super::assignment::{Native, Partition};

/// How often new topics and partitions are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// And until everything was there once.
const LOOK_SOON: Duration = Duration::from_millis(250);
/// How long the broker may take for the answer. Meanwhile nothing else is served, but without a broker there is nothing.
const LOOK_MAX: Duration = Duration::from_millis(500);

/// Where partitions begin or go on, by topic and number.
pub type Positions = HashMap<(String, i32), Offset>;

/// See the file.
#[derive(Debug)]
pub(super) struct All {
    /// How many partitions of each topic are taken; `None` before the broker told of it.
    taken: HashMap<String, Option<i32>>,
    /// Where those that are taken began, and where others are to.
    from: Positions,
    looked: Option<Instant>,
}

impl All {
    pub(super) fn new(topics: &[String], from: Positions) -> Self {
        Self {
            taken: topics.iter().map(|topic| (topic.clone(), None)).collect(),
            from,
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
            if let Err(error) = look_at(native, topic, taken, &mut self.from) {
                native.context().reporter.warn(topic, &error.to_string());
                // Without a broker each of them would take its time.
                break;
            }
        }
        self.looked = Some(Instant::now());
    }

    /// Where one goes on that replaces this.
    pub(super) fn positions(mut self, partitions: &[Partition]) -> Positions {
        for partition in partitions {
            if let Some(next) = partition.feed.shared.next() {
                let place = (partition.topic.to_string(), partition.partition);
                self.from.insert(place, Offset::Offset(next));
            }
        }
        self.from
    }
}

fn look_at(
    native: &Native,
    topic: &str,
    taken: &mut Option<i32>,
    from: &mut Positions,
) -> Result<(), KafkaError> {
    let metadata = native.fetch_metadata(Some(topic), LOOK_MAX)?;
    let told = metadata.topics().iter().find(|told| told.name() == topic);
    let Some(partitions) = told.and_then(partitions) else {
        return Ok(());
    };
    let mut new = TopicPartitionList::new();
    for partition in taken.unwrap_or_default()..partitions {
        let place = (topic.to_owned(), partition);
        let start = match (from.get(&place), &taken) {
            (Some(known), _) => *known,
            // Asked now, so that it is known where this would go on even if nothing comes.
            (None, None) => Offset::Offset(native.fetch_watermarks(topic, partition, LOOK_MAX)?.1),
            (None, Some(_)) => Offset::Beginning,
        };
        from.insert(place, start);
        new.add_partition_offset(topic, partition, start)?;
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
