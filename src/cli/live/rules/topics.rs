//! Whether topics are there, led, and of as many partitions as is leaned upon.

use super::{Role, Use, World, publishes, subscriptions, uses};
use crate::cli::live::finding::Found;
use crate::config::model::Ordering;
use crate::kafka::inspect::facts::{Absent, Partition};

const AUTO_CREATE: &str = "auto.create.topics.enable";

/// Topics that do not exist, and whether the broker would make them.
pub(super) fn exist(world: &World<'_>, found: &mut Vec<Found>) {
    let created = world.broker(AUTO_CREATE);
    for one in uses(world.config) {
        let Some(topic) = world.topic(one.topic) else {
            continue;
        };
        if topic.partitions == Err(Absent::Unknown) {
            let missing = missing(world, &one, created, &topic.creatable);
            let missing = missing.of("topic", one.topic);
            found.push(match created {
                Some(value) => missing.set(AUTO_CREATE, value),
                None => missing,
            });
        }
    }
}

fn missing(
    world: &World<'_>,
    one: &Use<'_>,
    created: Option<&str>,
    creatable: &Result<(), Absent>,
) -> Found {
    let topic = one.topic;
    let then = match one.role {
        Role::Published => "its calls are answered 503 topic-unknown",
        Role::Subscribed => "nothing is delivered until somebody makes it",
        Role::DeadLetters => "a message that should go there holds up its partition for ever",
    };
    let make = format!(
        "make it: kafka-topics --create --topic {topic}, with --partitions and --replication-factor"
    );
    if created == Some("false") {
        let reason = format!("there is no topic `{topic}` and the broker makes none: {then}");
        return Found::error(&one.path, reason).remedy(make);
    }
    if created.is_none() {
        let reason = format!(
            "there is no topic `{topic}`, and whether the broker would make it is not known: if not, {then}"
        );
        let remedy =
            format!("{make}; or allow DescribeConfigs on the cluster, so that this can be checked");
        return Found::warning(&one.path, reason).remedy(remedy);
    }
    if one.role == Role::Subscribed {
        let reason = format!("there is no topic `{topic}`: {then}");
        return Found::warning(&one.path, reason).remedy(make);
    }
    match creatable {
        Ok(()) => {
            let with = |setting| world.broker(setting).unwrap_or("as many");
            let reason = format!(
                "there is no topic `{topic}`; the broker makes it for the first record, with num.partitions={} and default.replication.factor={}",
                with("num.partitions"),
                with("default.replication.factor")
            );
            let remedy = format!("{make}, if it should have others");
            Found::warning(&one.path, reason).remedy(remedy)
        }
        Err(Absent::Denied) => {
            let reason = format!("there is no topic `{topic}`, and we may not make it: {then}");
            let remedy = format!("{make}; or allow Create on topic `{topic}`");
            Found::error(&one.path, reason).remedy(remedy)
        }
        Err(Absent::Unanswered(words)) => {
            let reason =
                format!("there is no topic `{topic}`, and the broker would not make it: {words}");
            Found::error(&one.path, reason).remedy(make)
        }
        Err(Absent::Unknown | Absent::Unsupported) => {
            let reason = format!("there is no topic `{topic}`; the broker may make it");
            Found::warning(&one.path, reason).remedy(make)
        }
    }
}

/// Partitions that nobody leads.
pub(super) fn led(world: &World<'_>, found: &mut Vec<Found>) {
    for one in uses(world.config) {
        let partitions = partitions_of(world, one.topic);
        let lost: Vec<_> = partitions
            .iter()
            .filter(|partition| !partition.led)
            .collect();
        if let Some(first) = lost.first() {
            let reason = format!(
                "{} of {} partitions of `{}` have no leader, the first is {}: nothing is written to or read from them",
                lost.len(),
                partitions.len(),
                one.topic,
                first.id
            );
            let remedy = "bring back the brokers that hold them";
            found.push(
                Found::error(one.path, reason)
                    .of("topic", one.topic)
                    .remedy(remedy),
            );
        }
    }
}

/// Partitions bound what runs side by side: each is one lane.
pub(super) fn partitions(world: &World<'_>, found: &mut Vec<Found>) {
    let more = |topic: &str, count: usize| {
        format!(
            "kafka-topics --alter --topic {topic} --partitions {count}; keys then land elsewhere than before, so do it while the topic is drained"
        )
    };
    for (path, publish) in publishes(world.config) {
        let topic = &publish.topic;
        if publish.key.is_some() && partitions_of(world, topic).len() == 1 {
            let reason = format!(
                "`{topic}` has one partition, so the key spreads nothing: all messages are one sequence for one consumer"
            );
            let seen = Found::warning(format!("{path}.key"), reason).of("topic", topic);
            found.push(seen.set("partitions", 1).remedy(more(topic, 12)));
        }
    }
    for (path, subscription) in subscriptions(world.config) {
        let (topic, wanted) = (&subscription.topic, subscription.concurrency);
        let count = partitions_of(world, topic).len();
        let concurrency = format!("{path}.concurrency");
        let asked =
            world.places.is_written(&concurrency) && subscription.ordering == Ordering::Partition;
        let (path, reason) = if count > 0 && asked && wanted > count {
            let reason = format!(
                "{wanted} deliveries at a time are asked for, but `{topic}` has {count} partitions, and each is delivered one by one (`ordering: partition`)"
            );
            (concurrency, reason)
        } else if count == 1 && wanted > 1 && !subscription.broadcast {
            let reason = format!("`{topic}` has one partition, so a second replica gets nothing");
            (format!("{path}.topic"), reason)
        } else {
            continue;
        };
        let most = if asked { wanted } else { 12 };
        let seen = Found::warning(path, reason).of("topic", topic);
        let remedy = match asked {
            true => format!("lower `concurrency` to {count}, or {}", more(topic, most)),
            false => more(topic, most),
        };
        found.push(seen.set("partitions", count).remedy(remedy));
    }
}

/// The partitions of a topic; none if they are not known.
pub(super) fn partitions_of<'a>(world: &World<'a>, topic: &str) -> &'a [Partition] {
    match world.topic(topic).map(|topic| &topic.partitions) {
        Some(Ok(partitions)) => partitions,
        _ => &[],
    }
}
