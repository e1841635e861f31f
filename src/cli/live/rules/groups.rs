//! Where a group begins, what it missed, and whether the broker takes its members.

use super::{World, subscriptions};
use crate::cli::live::finding::Found;
use crate::config::model::Subscription;
use crate::kafka::inspect::facts::{OffsetReset, Progress};

const RESET: &str = "auto.offset.reset";

fn progress<'a>(world: &World<'a>, subscription: &Subscription) -> &'a [Progress] {
    let of = (subscription.group.clone(), subscription.topic.clone());
    match world.facts.subscribed.get(&of).map(|seen| &seen.progress) {
        Some(Ok(progress)) => progress,
        _ => &[],
    }
}

/// Groups without offsets begin where `auto.offset.reset` says.
pub(super) fn reset(world: &World<'_>, found: &mut Vec<Found>) {
    for (path, subscription) in subscriptions(world.config) {
        let (group, topic) = (&subscription.group, &subscription.topic);
        let all = progress(world, subscription);
        let fresh = all.iter().filter(|one| one.committed.is_none());
        let (count, waiting) = fresh.fold((0, 0), |(count, waiting), one| {
            (count + 1, waiting + (one.high - one.low).max(0))
        });
        if count == 0 {
            continue;
        }
        let none = format!(
            "group `{group}` has no offset in {count} of {} partitions of `{topic}`",
            all.len()
        );
        let path = format!("{path}.group");
        let seen = match world.facts.client.offset_reset {
            OffsetReset::Earliest if waiting == 0 => continue,
            OffsetReset::Earliest => {
                let reason = format!(
                    "{none}: about {waiting} records that are there already will be delivered first"
                );
                let remedy = format!(
                    "if they should not be, set the group's offsets before it starts: kafka-consumer-groups --group {group} --topic {topic} --reset-offsets --to-latest --execute"
                );
                Found::warning(path, reason)
                    .set(RESET, "earliest")
                    .remedy(remedy)
            }
            OffsetReset::Latest => {
                let reason = format!(
                    "{none}: what is published before its first commit, or to a new partition before it is seen, is never delivered"
                );
                let remedy = format!(
                    "leave `{RESET}` at `earliest`, which Wayside sets; to skip the past, set the group's offsets once: kafka-consumer-groups --group {group} --topic {topic} --reset-offsets --to-latest --execute"
                );
                Found::warning(path, reason)
                    .set(RESET, "latest")
                    .remedy(remedy)
            }
            OffsetReset::Error => {
                let reason = format!("{none}, so nothing is ever delivered from them");
                let remedy = format!(
                    "leave `{RESET}` at `earliest`, or set the group's offsets: kafka-consumer-groups --group {group} --topic {topic} --reset-offsets --to-earliest --execute"
                );
                Found::error(path, reason)
                    .set(RESET, "error")
                    .remedy(remedy)
            }
        };
        found.push(seen.of("group", group));
    }
}

/// Offsets that point at what is not there.
pub(super) fn lost(world: &World<'_>, found: &mut Vec<Found>) {
    for (path, subscription) in subscriptions(world.config) {
        let (group, topic) = (&subscription.group, &subscription.topic);
        for one in progress(world, subscription) {
            let Some(committed) = one.committed else {
                continue;
            };
            let partition = one.partition;
            let seen = if committed < one.low {
                let reason = format!(
                    "{} records of `{topic}` were deleted before group `{group}` read them: it stands at offset {committed} of partition {partition}, which begins at {}",
                    one.low - committed,
                    one.low
                );
                let remedy = format!(
                    "raise retention.ms of `{topic}`, or let the group catch up: more replicas, or a faster app"
                );
                Found::warning(format!("{path}.group"), reason).remedy(remedy)
            } else if committed > one.high {
                let reason = format!(
                    "group `{group}` stands at offset {committed} of partition {partition} of `{topic}`, which ends at {}: the topic was made anew",
                    one.high
                );
                let remedy = format!(
                    "kafka-consumer-groups --group {group} --topic {topic} --reset-offsets --to-earliest --execute"
                );
                Found::warning(format!("{path}.group"), reason).remedy(remedy)
            } else {
                continue;
            };
            found.push(seen.of("group", group).set("committed offset", committed));
            // The others are mostly of the same kind.
            break;
        }
    }
}

/// A session that the broker finds too short or too long: nobody could join.
pub(super) fn session(world: &World<'_>, found: &mut Vec<Found>) {
    if world.config.subscriptions.is_empty() {
        return;
    }
    let ours = world.facts.client.session.as_millis();
    let of = |setting: &str| {
        world
            .broker(setting)
            .and_then(|text| text.parse::<u128>().ok())
    };
    let (low, high) = (
        "group.min.session.timeout.ms",
        "group.max.session.timeout.ms",
    );
    let wrong = match (of(low), of(high)) {
        (Some(least), _) if ours < least => Some((low, least)),
        (_, Some(most)) if ours > most => Some((high, most)),
        _ => None,
    };
    if let Some((setting, value)) = wrong {
        let reason = format!(
            "the brokers take no member of a group whose session is {ours} ms, so nothing is delivered"
        );
        let path = "kafka.properties[\"session.timeout.ms\"]";
        let remedy =
            format!("set `session.timeout.ms` to {value}, or change {setting} of the brokers");
        found.push(
            Found::error(path, reason)
                .of("broker", "cluster")
                .set(setting, value)
                .remedy(remedy),
        );
    }
}
