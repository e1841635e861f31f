//! How long records are kept, against how long something else has to outlive them.

use std::time::Duration;

use super::{Role, World, publishes, subscriptions, uses};
use crate::cli::live::finding::Found;
use crate::config::model::{KeyMissing, Subscription};
use crate::config::units;

const POLICY: &str = "cleanup.policy";
const RETENTION: &str = "retention.ms";
const FOR_EVER: Duration = Duration::MAX;

/// How long a topic keeps a record; `None` if it is not known, or is not a matter of time.
fn kept(world: &World<'_>, topic: &str) -> Option<Duration> {
    let settings = world.settings(topic)?;
    if settings.text(POLICY).is_some() && !settings.has(POLICY, "delete") {
        return None;
    }
    // -1 is no limit.
    let millis = u64::try_from(settings.number(RETENTION)?);
    Some(millis.map_or(FOR_EVER, Duration::from_millis))
}

/// Topics that keep the last record of a key only.
pub(super) fn compaction(world: &World<'_>, found: &mut Vec<Found>) {
    let compacted = |topic: &str| {
        let settings = world.settings(topic)?;
        settings
            .has(POLICY, "compact")
            .then(|| settings.text(POLICY))?
    };
    let delete =
        |topic: &str| format!("kafka-configs --alter --topic {topic} --add-config {POLICY}=delete");
    for (path, publish) in publishes(world.config) {
        let topic = publish.topic.as_str();
        let Some(policy) = compacted(topic) else {
            continue;
        };
        let mut add = |seen: Found| found.push(seen.of("topic", topic).set(POLICY, policy));
        if publish.slim.is_some() {
            let reason = format!(
                "`{topic}` keeps the last record of a key for ever, but the claim in it expires: a late reader gets a body without what was cut"
            );
            let remedy = format!("remove `slim`, or {}", delete(topic));
            add(Found::error(format!("{path}.slim"), reason).remedy(remedy));
        }
        if publish.key.is_none() {
            let reason = format!(
                "`{topic}` is compacted and takes no record without a key: every call is a 503"
            );
            let remedy = format!("give the route a `key`, or {}", delete(topic));
            add(Found::error(format!("{path}.topic"), reason).remedy(remedy));
        } else if publish.key_missing == KeyMissing::Unordered {
            let reason = format!(
                "`{topic}` is compacted and takes no record without a key: a call whose key is missing is a 503"
            );
            let remedy = format!("use `key_missing: refuse`, or {}", delete(topic));
            add(Found::error(format!("{path}.key_missing"), reason).remedy(remedy));
        }
    }
    for one in uses(world.config) {
        let (topic, Some(policy)) = (one.topic, compacted(one.topic)) else {
            continue;
        };
        let seen = match one.role {
            Role::Published => continue,
            Role::Subscribed => {
                let reason = format!(
                    "`{topic}` is compacted: a message is never delivered if another of its key came before it was read"
                );
                Found::warning(one.path, reason)
            }
            Role::DeadLetters => {
                let reason = format!(
                    "`{topic}` is compacted: it keeps one dead letter a key, and takes none without a key, which holds up its partition for ever"
                );
                Found::error(one.path, reason)
            }
        };
        found.push(
            seen.of("topic", topic)
                .set(POLICY, policy)
                .remedy(delete(topic)),
        );
    }
}

/// A claim must be there as long as a record may ask for it: as long as its topic keeps it, then through every attempt,
/// and then as long as the dead letters keep it.
pub(super) fn claims(world: &World<'_>, found: &mut Vec<Found>) {
    for (_, publish) in publishes(world.config) {
        let Some(slim) = &publish.slim else {
            continue;
        };
        let (topic, store) = (&publish.topic, &world.config.claims[slim.claim.0]);
        let Some(retention) = kept(world, topic) else {
            continue;
        };
        let ttl = units::duration(store.ttl);
        let path = format!("claims.{}.ttl", store.name);
        let value = world.settings(topic).and_then(|set| set.text(RETENTION));
        let value = value.unwrap_or_default();
        let again = after(world, topic);
        let needed = retention.saturating_add(again);
        let seen = if needed == FOR_EVER {
            let reason = format!(
                "records of `{topic}` are kept for ever and their claims for {ttl}: a late reader gets a body without what was cut"
            );
            let remedy = format!(
                "kafka-configs --alter --topic {topic} --add-config {RETENTION}={}",
                store.ttl.as_millis()
            );
            Found::error(path, reason).remedy(remedy)
        } else if store.ttl < needed {
            let more = match again.is_zero() {
                true => String::new(),
                false => format!(" and may be asked for {} longer", units::duration(again)),
            };
            let reason = format!(
                "records of `{topic}` are kept for {}{more}, but their claims for {ttl}: a late reader gets a body without what was cut",
                units::duration(retention)
            );
            let remedy = format!(
                "set `ttl` to {} or more, or lower {RETENTION} of the topic",
                units::duration(needed)
            );
            Found::error(path, reason).remedy(remedy)
        } else {
            continue;
        };
        found.push(seen.of("topic", topic).set(RETENTION, value));
    }
}

/// How long after its topic let go of it a record may still be asked for, as far as this file tells.
fn after(world: &World<'_>, topic: &str) -> Duration {
    let here = subscriptions(world.config).filter(|(_, one)| one.topic == topic);
    let long = |(_, one): (String, &Subscription)| {
        let dead = one.dead_letter.as_ref();
        let dead = dead.and_then(|dead| kept(world, dead)).unwrap_or_default();
        horizon(one).saturating_add(dead)
    };
    here.map(long).max().unwrap_or_default()
}

/// How long one message may be tried; without dead letters there is no end, but then its partition waits with it.
fn horizon(subscription: &Subscription) -> Duration {
    let retry = &subscription.retry;
    let once = subscription.timeout.saturating_add(retry.backoff.longest);
    once.saturating_mul(retry.attempts)
}

/// Dead letters that go before what they are about.
pub(super) fn dead_letters(world: &World<'_>, found: &mut Vec<Found>) {
    for (path, subscription) in subscriptions(world.config) {
        let Some(dead) = &subscription.dead_letter else {
            continue;
        };
        let topic = &subscription.topic;
        let Some((here, there)) = kept(world, topic).zip(kept(world, dead)) else {
            continue;
        };
        if there < here {
            let told = |time: Duration| match time {
                FOR_EVER => "for ever".to_owned(),
                time => units::duration(time),
            };
            let reason = format!(
                "dead letters are deleted after {}, before somebody may have looked at them; `{topic}` itself keeps its records {}",
                told(there),
                told(here)
            );
            let value = world.settings(topic).and_then(|set| set.text(RETENTION));
            let remedy = format!(
                "kafka-configs --alter --topic {dead} --add-config {RETENTION}={}",
                value.unwrap_or("-1")
            );
            let seen = Found::warning(format!("{path}.dead_letter"), reason).of("topic", dead);
            found.push(seen.set(RETENTION, there.as_millis()).remedy(remedy));
        }
    }
}
