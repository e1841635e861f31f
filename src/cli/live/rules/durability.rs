//! Whether an acknowledged record survives a broker, which is what a 202 promises; records are sent with acks=all.

use super::topics::partitions_of;
use super::{Role, World, uses};
use crate::cli::live::finding::Found;

const MIN_INSYNC: &str = "min.insync.replicas";
const UNCLEAN: &str = "unclean.leader.election.enable";

/// What of a topic is not acknowledged.
fn then(role: Role) -> &'static str {
    match role {
        Role::DeadLetters => "no dead letter is acknowledged, and its partition stands still",
        Role::Published | Role::Subscribed => "no record is acknowledged, and its calls are a 503",
    }
}

/// Copies that must have a record before it is acknowledged, against those that there are.
pub(super) fn in_sync(world: &World<'_>, found: &mut Vec<Found>) {
    for one in uses(world.config) {
        let topic = one.topic;
        let partitions = partitions_of(world, topic).iter().filter(|one| one.led);
        let fewest = partitions.map(|one| (one.replicas, one.in_sync));
        let fewest = fewest.reduce(|one, other| (one.0.min(other.0), one.1.min(other.1)));
        let least = world.settings(topic).and_then(|set| set.number(MIN_INSYNC));
        let Some(((replicas, in_sync), least)) = fewest.zip(least) else {
            continue;
        };
        let least = usize::try_from(least).unwrap_or(0);
        if !one.role.is_written() {
            continue;
        }
        let alter = |value: usize| {
            format!("kafka-configs --alter --topic {topic} --add-config {MIN_INSYNC}={value}")
        };
        let seen = if least > replicas {
            let reason = format!(
                "`{topic}` has {replicas} replicas and wants {least} in sync: {}",
                then(one.role)
            );
            let remedy = format!(
                "raise the replication factor to {least} or more, or {}",
                alter(replicas)
            );
            Found::error(one.path, reason).remedy(remedy)
        } else if least > in_sync {
            let reason = format!(
                "`{topic}` wants {least} replicas in sync and has {in_sync} at the moment: {}",
                then(one.role)
            );
            Found::error(one.path, reason).remedy("bring back the brokers that hold its replicas")
        } else if replicas > 1 && least == 1 {
            let reason = format!(
                "one replica of `{topic}` is enough to acknowledge, so a 202 may rest on one disk although there are {replicas}"
            );
            Found::warning(one.path, reason).remedy(alter(replicas.saturating_sub(1).max(2)))
        } else if replicas > 1 && least == replicas {
            let reason = format!(
                "all {replicas} replicas of `{topic}` must be in sync: while one broker is away, {}",
                then(one.role)
            );
            let remedy = match replicas {
                2 => "raise the replication factor to 3".to_owned(),
                _ => alter(replicas - 1),
            };
            Found::warning(one.path, reason).remedy(remedy)
        } else {
            continue;
        };
        found.push(seen.of("topic", topic).set(MIN_INSYNC, least));
    }
}

/// Topics with one copy in a cluster that could hold more.
pub(super) fn replication(world: &World<'_>, found: &mut Vec<Found>) {
    let brokers = world.facts.brokers.len();
    for one in uses(world.config) {
        let replicas = partitions_of(world, one.topic)
            .iter()
            .map(|one| one.replicas);
        if brokers > 1 && one.role.is_written() && replicas.min() == Some(1) {
            let topic = one.topic;
            let reason = format!(
                "`{topic}` has one replica in a cluster of {brokers} brokers: with that broker's disk go records whose calls had a 202"
            );
            let remedy = "reassign it with a replication factor of 3 (kafka-reassign-partitions)";
            let seen = Found::warning(one.path, reason).of("topic", topic);
            found.push(seen.set("replication.factor", 1).remedy(remedy));
        }
    }
}

/// Topics that prefer a leader without the last records to none.
pub(super) fn elections(world: &World<'_>, found: &mut Vec<Found>) {
    for one in uses(world.config) {
        let unclean = world.settings(one.topic).and_then(|set| set.flag(UNCLEAN));
        if unclean == Some(true) && one.role.is_written() {
            let topic = one.topic;
            let reason = format!(
                "a replica of `{topic}` that lags may become its leader: acknowledged records are then lost"
            );
            let remedy =
                format!("kafka-configs --alter --topic {topic} --add-config {UNCLEAN}=false");
            let seen = Found::warning(one.path, reason).of("topic", topic);
            found.push(seen.set(UNCLEAN, true).remedy(remedy));
        }
    }
}
