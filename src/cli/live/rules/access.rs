//! Whether the broker can be reached, lets us do what is needed, and tells us what we ask.

use std::collections::BTreeSet;

use super::{World, subscriptions, uses};
use crate::cli::live::finding::Found;
use crate::kafka::inspect::facts::{Absent, Unreachable};

/// Nothing is known of the broker; with the rule's name.
pub(in crate::cli::live) fn unreachable(why: &Unreachable, brokers: &str) -> (&'static str, Found) {
    let (path, reason, words, remedy) = match why {
        Unreachable::Client(words) => (
            "kafka.properties",
            "no client can be made of these properties on this machine",
            words,
            "correct the property, or check where the files that it names are",
        ),
        Unreachable::Authentication(words) => (
            "kafka.properties",
            "the broker does not accept who we are",
            words,
            "compare `security.protocol`, `sasl.mechanism`, `sasl.username` and `sasl.password` with the listener and the users of the broker",
        ),
        Unreachable::Tls(words) => (
            "kafka.properties",
            "no TLS connection to the broker",
            words,
            "compare `security.protocol` with the listener, and `ssl.ca.location` with the broker's certificate",
        ),
        Unreachable::Elsewhere(words) => (
            "kafka.brokers",
            "a broker answers, but none where the cluster says that its brokers are",
            words,
            "let `advertised.listeners` of the brokers name addresses that are reached from here; nothing else of them was checked",
        ),
        Unreachable::Away(words) => (
            "kafka.brokers",
            "no broker answers",
            words,
            "check address, port and network policy, and that `security.protocol` is the listener's; nothing else of the broker was checked",
        ),
    };
    let reason = match words.is_empty() {
        true => reason.to_owned(),
        false => format!("{reason}: {words}"),
    };
    let rule = match why {
        Unreachable::Elsewhere(_) => "advertised",
        _ => "broker",
    };
    let found = Found::error(path, reason).of("broker", brokers);
    (rule, found.remedy(remedy))
}

/// Access that is missing, each with the rule of an ACL that gives it.
pub(super) fn denied(world: &World<'_>, found: &mut Vec<Found>) {
    for one in uses(world.config) {
        let Some(topic) = world.topic(one.topic) else {
            continue;
        };
        if topic.partitions == Err(Absent::Denied) {
            let operation = one.role.operation();
            let reason = format!("the broker does not let us see topic `{}`", one.topic);
            let remedy = format!("allow {operation} on topic `{}`", one.topic);
            found.push(
                Found::error(one.path, reason)
                    .of("topic", one.topic)
                    .remedy(remedy),
            );
        }
    }
    for (path, subscription) in subscriptions(world.config) {
        let (group, topic) = (&subscription.group, &subscription.topic);
        let Some(seen) = world.facts.subscribed.get(&(group.clone(), topic.clone())) else {
            continue;
        };
        if seen.readable == Err(Absent::Denied) {
            let reason = format!("the broker does not let us read topic `{topic}`");
            let found_here = Found::error(format!("{path}.topic"), reason).of("topic", topic);
            found.push(found_here.remedy(format!("allow Read on topic `{topic}`")));
        }
        if seen.progress == Err(Absent::Denied) {
            let reason = format!("the broker does not let us be in group `{group}`");
            let found_here = Found::error(format!("{path}.group"), reason).of("group", group);
            found.push(found_here.remedy(format!("allow Read on group `{group}`")));
        }
    }
    if world.facts.idempotence == Err(Absent::Denied) {
        let written = uses(world.config)
            .into_iter()
            .filter(|one| one.role.is_written());
        let topics: BTreeSet<_> = written.map(|one| format!("`{}`", one.topic)).collect();
        let topics = topics.into_iter().collect::<Vec<_>>().join(", ");
        let reason =
            "the broker does not let us send with idempotence, so nothing can be published";
        let remedy = format!(
            "allow Write on topic {topics}; before Kafka 2.8 also IdempotentWrite on the cluster"
        );
        found.push(Found::error("kafka", reason).remedy(remedy));
    }
}

/// Brokers that the cluster tells of and that do not answer there.
pub(super) fn advertised(world: &World<'_>, found: &mut Vec<Found>) {
    for broker in &world.facts.brokers {
        if let Err(Absent::Unanswered(words)) = &broker.settings {
            let address = &broker.address;
            let reason = format!(
                "the cluster says that broker {} is at {address}, but it could not be asked there: {words}",
                broker.id
            );
            let remedy = "let `advertised.listeners` of that broker name an address that is reached from here";
            let seen = Found::error("kafka.brokers", reason).of("broker", broker.id);
            found.push(seen.set("advertised.listeners", address).remedy(remedy));
        }
    }
}

/// A broker that is too old, or does not say.
pub(super) fn idempotence(world: &World<'_>, found: &mut Vec<Found>) {
    match &world.facts.idempotence {
        Err(Absent::Unsupported) => {
            let reason = "the broker is too old to take records with idempotence, so nothing can be published";
            let remedy = "use Kafka 0.11 or later, with a message format of 0.11 or later";
            found.push(Found::error("kafka.brokers", reason).remedy(remedy));
        }
        Err(Absent::Unanswered(words)) => {
            let reason = format!(
                "whether records can be sent with idempotence could not be checked: {words}"
            );
            let remedy =
                "look at the broker's log for InitProducerId, or give it more time by `--timeout`";
            found.push(Found::warning("kafka.brokers", reason).remedy(remedy));
        }
        Ok(()) | Err(Absent::Denied | Absent::Unknown) => {}
    }
}

/// What could not be checked, so that silence is not taken for good news.
pub(super) fn unchecked(world: &World<'_>, found: &mut Vec<Found>) {
    let mut told = BTreeSet::new();
    let mut unsupported = false;
    for one in uses(world.config) {
        let Some(topic) = world.topic(one.topic) else {
            continue;
        };
        let (what, absent) = match (&topic.partitions, &topic.settings) {
            (Err(absent @ (Absent::Unanswered(_) | Absent::Unsupported)), _) => ("topic", absent),
            (Ok(_), Err(absent)) => ("the settings of topic", absent),
            _ => continue,
        };
        if *absent == Absent::Unsupported {
            unsupported = true;
            continue;
        }
        if !told.insert(one.topic) {
            continue;
        }
        let (words, remedy) = match absent {
            Absent::Denied => (
                String::new(),
                format!("allow DescribeConfigs on topic `{}`", one.topic),
            ),
            Absent::Unanswered(words) => (
                format!(": {words}"),
                "ask again, or give the broker more time by `--timeout`".to_owned(),
            ),
            Absent::Unknown | Absent::Unsupported => continue,
        };
        let reason = format!("{what} `{}` could not be checked{words}", one.topic);
        found.push(
            Found::warning(one.path, reason)
                .of("topic", one.topic)
                .remedy(remedy),
        );
    }
    if unsupported {
        let reason = "sizes, replication and retention could not be checked: the broker does not tell its settings, as an embedded one or one before Kafka 0.11 does not";
        let remedy = "check against the broker that will be used";
        found.push(Found::warning("kafka.brokers", reason).remedy(remedy));
    }
    for (path, subscription) in subscriptions(world.config) {
        let of = (subscription.group.clone(), subscription.topic.clone());
        let Some(seen) = world.facts.subscribed.get(&of) else {
            continue;
        };
        let parts = [
            ("group", &subscription.group, seen.progress.as_ref().err()),
            ("topic", &subscription.topic, seen.readable.as_ref().err()),
        ];
        for (kind, name, absent) in parts {
            let words = match absent {
                Some(Absent::Unanswered(words)) => words.as_str(),
                Some(Absent::Unsupported) => "the broker does not have this request",
                _ => continue,
            };
            let reason =
                format!("whether {kind} `{name}` may be read could not be checked: {words}");
            let seen = Found::warning(format!("{path}.{kind}"), reason).of(kind, name);
            found.push(seen.remedy("ask again, or give the broker more time by `--timeout`"));
        }
    }
}
