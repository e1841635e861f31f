//! The largest record, from the call's body to the topic, the dead letters and the consumer.

use super::{World, publishes, subscriptions};
use crate::cli::live::finding::Found;
use crate::config::units::size;

const LIMIT: &str = "max.message.bytes";
/// What an answer needs beside its records.
const FRAMING: u64 = 512;

fn limit(world: &World<'_>, topic: &str) -> Option<u64> {
    u64::try_from(world.settings(topic)?.number(LIMIT)?).ok()
}

/// Bodies that the door takes and the client or the topic does not. The broker measures what is left after compression,
/// which nobody can promise; of a slim route only the kept fields are sent.
pub(super) fn records(world: &World<'_>, found: &mut Vec<Found>) {
    let client = world.facts.client.record_max;
    for (path, publish) in publishes(world.config) {
        if publish.slim.is_some() {
            continue;
        }
        let (body, topic) = (publish.max_body as u64, &publish.topic);
        let path = format!("{path}.max_body");
        if body > client {
            let reason = format!(
                "bodies up to {} are taken, but the client sends no record over {}: the rest is a 413",
                size(body),
                size(client)
            );
            let seen = Found::error(&path, reason).of("client", "kafka");
            let remedy = format!(
                "set `max_body` to {} less the headers, or raise `kafka.properties[\"message.max.bytes\"]`",
                size(client)
            );
            found.push(seen.set("message.max.bytes", client).remedy(remedy));
        }
        if let Some(most) = limit(world, topic).filter(|most| body > *most) {
            let reason = format!(
                "bodies up to {} are taken, but `{topic}` takes no batch over {}: the broker refuses the rest, which is a 413",
                size(body),
                size(most)
            );
            let remedy = format!(
                "lower `max_body`, or raise it: kafka-configs --alter --topic {topic} --add-config {LIMIT}={}",
                body + body / 16
            );
            let seen = Found::error(path, reason).of("topic", topic);
            found.push(seen.set(LIMIT, most).remedy(remedy));
        }
    }
}

/// Messages that fit their topic and not the dead letters.
pub(super) fn dead_letters(world: &World<'_>, found: &mut Vec<Found>) {
    for (path, subscription) in subscriptions(world.config) {
        let Some(dead) = &subscription.dead_letter else {
            continue;
        };
        let topic = &subscription.topic;
        let Some((here, there)) = limit(world, topic).zip(limit(world, dead)) else {
            continue;
        };
        let then = "what is larger loses its headers or its value there";
        let path = format!("{path}.dead_letter");
        if there < here {
            let reason = format!(
                "`{topic}` takes records up to {}, its dead letters only up to {}: {then}",
                size(here),
                size(there)
            );
            let remedy = format!(
                "kafka-configs --alter --topic {dead} --add-config {LIMIT}={}",
                here + 4096
            );
            let seen = Found::warning(&path, reason).of("topic", dead);
            found.push(seen.set(LIMIT, there).remedy(remedy));
        }
        let client = world.facts.client.record_max;
        if client < here {
            let reason = format!(
                "`{topic}` takes records up to {}, but the client sends no dead letter over {}: {then}",
                size(here),
                size(client)
            );
            let seen = Found::warning(path, reason).of("topic", topic);
            let remedy = "raise `kafka.queue_max` or `kafka.properties[\"message.max.bytes\"]`";
            found.push(seen.set(LIMIT, here).remedy(remedy));
        }
    }
}

/// Records that the consumer cannot take: it would ask for them again and again.
pub(super) fn answers(world: &World<'_>, found: &mut Vec<Found>) {
    let most = world.facts.client.answer_max;
    for (path, subscription) in subscriptions(world.config) {
        let topic = &subscription.topic;
        if let Some(here) = limit(world, topic).filter(|here| here + FRAMING > most) {
            let reason = format!(
                "`{topic}` takes records up to {}, but the consumer takes no answer over {}: its partition would stand still",
                size(here),
                size(most)
            );
            let remedy = format!(
                "set `kafka.properties[\"receive.message.max.bytes\"]` to {} or more",
                here + FRAMING
            );
            let seen = Found::error(format!("{path}.topic"), reason).of("topic", topic);
            found.push(seen.set(LIMIT, here).remedy(remedy));
        }
    }
}
