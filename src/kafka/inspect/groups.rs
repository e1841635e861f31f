//! Groups: how far each has come, and whether it may read. No group is joined, so that none is rebalanced.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::Instant;

use super::ears::Ears;
use super::facts::{Absent, Partition, Progress, Subscribed, Topic};
use super::{Inspection, SLICE, TICK, out_of_time, why};
use crate::kafka::client::consumer_config;

/// How long one fetch of a topic may take to show whether it is allowed.
const FETCH: Duration = Duration::from_secs(2);

type Native = BaseConsumer<Ears>;

impl Inspection {
    /// Asks for each group's offsets of each topic that exists, a client a group.
    pub(super) fn subscribed(
        &self,
        asked: &BTreeSet<(String, String)>,
        topics: &BTreeMap<String, Topic>,
        say: &dyn Fn(&str),
    ) -> BTreeMap<(String, String), Subscribed> {
        let mut found = BTreeMap::new();
        let mut client: Option<(&str, Native)> = None;
        for (group, topic) in asked {
            let Some(Ok(partitions)) = topics.get(topic).map(|topic| &topic.partitions) else {
                continue;
            };
            say(&format!("asking for group {group} and topic {topic}"));
            if client.as_ref().is_none_or(|(of, _)| of != group) {
                client = self.consumer(group).map(|native| (group.as_str(), native));
            }
            let subscribed = match &client {
                Some((_, native)) => self.look(native, topic, partitions),
                None => nothing(&Absent::Unanswered("no client can be made".to_owned())),
            };
            found.insert((group.clone(), topic.clone()), subscribed);
        }
        found
    }

    fn consumer(&self, group: &str) -> Option<Native> {
        let mut config = consumer_config(&self.kafka, &self.bootstrap, group).ok()?;
        config.set("enable.auto.commit", "false");
        config.set("enable.partition.eof", "true");
        // The end of a partition is told after this.
        config.set("fetch.wait.max.ms", "10");
        config.create_with_context(self.ears.clone()).ok()
    }

    fn look(&self, native: &Native, topic: &str, partitions: &[Partition]) -> Subscribed {
        if self.left().is_zero() {
            return nothing(&out_of_time());
        }
        Subscribed {
            progress: self.progress(native, topic, partitions),
            readable: self.readable(native, topic, partitions),
        }
    }

    fn progress(
        &self,
        native: &Native,
        topic: &str,
        partitions: &[Partition],
    ) -> Result<Vec<Progress>, Absent> {
        if partitions.iter().any(|partition| !partition.led) {
            let reason = "a partition has no leader";
            return Err(Absent::Unanswered(reason.to_owned()));
        }
        let at = |offset: Offset| {
            let mut list = TopicPartitionList::with_capacity(partitions.len());
            for partition in partitions {
                list.add_partition_offset(topic, partition.id, offset)?;
            }
            Ok::<_, KafkaError>(list)
        };
        let of = |list: TopicPartitionList| -> Result<BTreeMap<i32, Offset>, KafkaError> {
            let one = |one: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
                one.error().map(|()| (one.partition(), one.offset()))
            };
            list.elements().iter().map(one).collect()
        };
        let until = self.share();
        let committed = loop {
            let asked = at(Offset::Invalid).and_then(|list| native.committed_offsets(list, SLICE));
            match asked.and_then(of) {
                Ok(found) => break found,
                // Who may not be in the group is told by an event of the consumer alone. All else may pass: a
                // coordinator that is not found yet, or that reads its log.
                Err(error) => match (native.poll(TICK), why(&error)) {
                    (Some(Err(said)), _) if why(&said) == Absent::Denied => {
                        return Err(Absent::Denied);
                    }
                    (_, Absent::Unanswered(_)) if Instant::now() < until => {}
                    (_, absent) => return Err(absent),
                },
            }
        };
        let ends = |offset: Offset| {
            let asked = at(offset).and_then(|list| native.offsets_for_times(list, self.left() / 2));
            asked.and_then(of).map_err(|error| why(&error))
        };
        let (low, high) = (ends(Offset::Beginning)?, ends(Offset::End)?);
        let number = |list: &BTreeMap<i32, Offset>, partition: i32| match list.get(&partition) {
            Some(Offset::Offset(offset)) => Some(*offset),
            _ => None,
        };
        let one = |partition: &Partition| Progress {
            partition: partition.id,
            committed: number(&committed, partition.id),
            low: number(&low, partition.id).unwrap_or(0),
            high: number(&high, partition.id).unwrap_or(0),
        };
        Ok(partitions.iter().map(one).collect())
    }

    /// Fetches from the end of one partition: what may not be read says so, and what may says that there is nothing.
    fn readable(
        &self,
        native: &Native,
        topic: &str,
        partitions: &[Partition],
    ) -> Result<(), Absent> {
        let Some(partition) = partitions.iter().find(|partition| partition.led) else {
            return Err(Absent::Unanswered("no partition has a leader".to_owned()));
        };
        let until = self.deadline.min(Instant::now() + FETCH);
        let mut list = TopicPartitionList::new();
        let assigned = list
            .add_partition_offset(topic, partition.id, Offset::End)
            .and_then(|()| native.assign(&list));
        assigned.map_err(|error| why(&error))?;
        let mut answer = Err(out_of_time());
        while Instant::now() < until {
            match native.poll(TICK) {
                None => {}
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => {
                    answer = Ok(());
                    break;
                }
                Some(Err(error)) => match why(&error) {
                    // It tries again by itself.
                    Absent::Unanswered(_) => answer = Err(why(&error)),
                    known => {
                        answer = Err(known);
                        break;
                    }
                },
            }
        }
        native.unassign().map_err(|error| why(&error))?;
        answer
    }
}

fn nothing(absent: &Absent) -> Subscribed {
    Subscribed {
        progress: Err(absent.clone()),
        readable: Err(absent.clone()),
    }
}
