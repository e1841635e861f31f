//! Topics: whether they are there, how they are set, and whether they could be made.

use std::collections::{BTreeMap, BTreeSet};

use rdkafka::admin::{
    ConfigResource, NewTopic, OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::producer::Producer as _;
use tokio::time::Instant;

use super::facts::{Absent, Partition, Settings, Topic};
use super::{Inspection, SLICE, TICK, absent, options, out_of_time, why};

/// What the broker itself decides about a topic that is made without being told.
const AS_THE_BROKER_LIKES: i32 = -1;

impl Inspection {
    /// Asks for every topic, and for the brokers' advertised addresses by the way.
    pub(super) fn topics(
        &self,
        names: &BTreeSet<String>,
        say: &dyn Fn(&str),
    ) -> (BTreeMap<String, Topic>, BTreeMap<i32, String>) {
        let mut brokers = BTreeMap::new();
        let mut found: BTreeMap<String, _> = BTreeMap::new();
        for name in names {
            say(&format!("asking for topic {name}"));
            found.insert(name.clone(), self.partitions(name, &mut brokers));
        }
        if names.is_empty() {
            // Of a cluster that nothing is asked of, at least its brokers are known.
            let all = self.metadata(None);
            brokers.extend(all.iter().flat_map(advertised));
        }
        let names = |wanted: fn(&Result<Vec<Partition>, Absent>) -> bool| -> Vec<&str> {
            let those = found.iter().filter(|(_, partitions)| wanted(partitions));
            those.map(|(name, _)| name.as_str()).collect()
        };
        let mut settings = self.settings(&names(Result::is_ok), brokers.keys().next().copied());
        let mut creatable = self.creatable(&names(|found| *found == Err(Absent::Unknown)));
        let topics = found.into_iter().map(|(name, partitions)| {
            let absent = partitions.as_ref().err().cloned();
            let missing = || absent.clone().unwrap_or_else(out_of_time);
            let topic = Topic {
                settings: settings.remove(&name).unwrap_or_else(|| Err(missing())),
                creatable: creatable.remove(&name).unwrap_or_else(|| Err(missing())),
                partitions,
            };
            (name, topic)
        });
        (topics.collect(), brokers)
    }

    fn partitions(
        &self,
        name: &str,
        brokers: &mut BTreeMap<i32, String>,
    ) -> Result<Vec<Partition>, Absent> {
        let metadata = self.metadata(Some(name))?;
        brokers.extend(advertised(&metadata));
        let topic = metadata.topics().iter().find(|topic| topic.name() == name);
        partitions(topic.ok_or(Absent::Unknown)?)
    }

    /// Asks for one topic, or for all. It is asked again when there is no answer, which may be for one address alone.
    fn metadata(&self, topic: Option<&str>) -> Result<Metadata, Absent> {
        let until = self.share();
        loop {
            let within = SLICE.min(until.saturating_duration_since(Instant::now()));
            if within.is_zero() {
                return Err(out_of_time());
            }
            let asked = self.producer.client().fetch_metadata(topic, within);
            match asked.map_err(|error| why(&error)) {
                Err(Absent::Unanswered(_)) => std::thread::sleep(TICK.min(within)),
                answer => return answer,
            }
        }
    }

    /// Any broker can tell; one is named so that nobody waits for a controller to be found.
    fn settings(
        &self,
        names: &[&str],
        broker: Option<i32>,
    ) -> BTreeMap<String, Result<Settings, Absent>> {
        if names.is_empty() {
            return BTreeMap::new();
        }
        let asked: Vec<_> = names
            .iter()
            .map(|name| ResourceSpecifier::Topic(name))
            .collect();
        let until = self.share();
        let options = options(until).broker_id(broker);
        let answer = self.admin.describe_configs(&asked, &options);
        let all = match self.wait(answer, until) {
            Ok(resources) => resources,
            Err(absent) => {
                let same = |name: &&str| ((*name).to_owned(), Err(absent.clone()));
                return names.iter().map(same).collect();
            }
        };
        let one = |resource: &ConfigResource| match &resource.specifier {
            OwnedResourceSpecifier::Topic(name) => Some((name.clone(), settings(Some(resource)))),
            _ => None,
        };
        all.iter()
            .filter_map(|resource| resource.as_ref().ok())
            .filter_map(one)
            .collect()
    }

    /// Asks the broker to look at the making of these topics and then not to do it.
    fn creatable(&self, names: &[&str]) -> BTreeMap<String, Result<(), Absent>> {
        if names.is_empty() {
            return BTreeMap::new();
        }
        let likes = TopicReplication::Fixed;
        let asked: Vec<_> = names
            .iter()
            .map(|name| NewTopic::new(name, AS_THE_BROKER_LIKES, likes(AS_THE_BROKER_LIKES)))
            .collect();
        let until = self.share();
        let options = options(until).validate_only(true);
        let answer = self.admin.create_topics(&asked, &options);
        match self.wait(answer, until) {
            Ok(results) => results
                .into_iter()
                .map(|result| match result {
                    Ok(name) => (name, Ok(())),
                    // Somebody made it meanwhile.
                    Err((name, Code::TopicAlreadyExists)) => (name, Ok(())),
                    Err((name, code)) => (name, Err(absent(code))),
                })
                .collect(),
            Err(absent) => {
                let same = |name: &&str| ((*name).to_owned(), Err(absent.clone()));
                names.iter().map(same).collect()
            }
        }
    }
}

/// The settings of a resource. The client hides why a broker does not tell those of one resource among several: it
/// gives none, and that happens only to who may not ask, since what does not exist is not asked for.
pub(super) fn settings(resource: Option<&ConfigResource>) -> Result<Settings, Absent> {
    let entries = resource.map(|resource| &resource.entries[..]);
    let entries = entries.filter(|entries| !entries.is_empty());
    let told = entries.ok_or(Absent::Denied)?.iter().filter_map(|entry| {
        let value = entry.value.as_ref().filter(|_| !entry.is_sensitive)?;
        Some((entry.name.clone(), value.clone()))
    });
    Ok(Settings(told.collect()))
}

fn partitions(topic: &MetadataTopic) -> Result<Vec<Partition>, Absent> {
    if let Some(error) = topic.error() {
        return Err(absent(error.into()));
    }
    let one = |partition: &rdkafka::metadata::MetadataPartition| Partition {
        id: partition.id(),
        led: partition.leader() >= 0,
        replicas: partition.replicas().len(),
        in_sync: partition.isr().len(),
    };
    Ok(topic.partitions().iter().map(one).collect())
}

fn advertised(metadata: &Metadata) -> impl Iterator<Item = (i32, String)> {
    let brokers = metadata.brokers().iter();
    brokers.map(|broker| (broker.id(), format!("{}:{}", broker.host(), broker.port())))
}
