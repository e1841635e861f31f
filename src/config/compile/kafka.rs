//! `kafka`: the broker, and the properties that are the user's to set.

use std::collections::HashMap;

use crate::config::Clients;
use crate::config::address::parse_address;
use crate::config::diagnostic::{Invalid, quoted};
use crate::config::model::{Cluster, Kafka, Secret};
use crate::config::names::parse_replies;
use crate::config::read::{At, Map, all};
use crate::config::words::{KAFKA, nearest};

/// Brokers to begin with, at most.
const BROKERS_MAX: usize = 64;
/// Properties, at most.
const PROPERTIES_MAX: usize = 200;
const QUEUE_DEFAULT: u64 = 32 << 20;

/// Properties that would break a promise if a file could set them, and what to do instead.
const OURS: [(&str, &str); 19] = [
    ("bootstrap.servers", "use `kafka.brokers`"),
    ("metadata.broker.list", "use `kafka.brokers`"),
    ("group.id", "use `group` of the subscription"),
    ("group.protocol", "Wayside needs the classic protocol"),
    (
        "partition.assignment.strategy",
        "Wayside needs cooperative-sticky",
    ),
    (
        "enable.auto.commit",
        "only messages that are done are committed",
    ),
    (
        "enable.auto.offset.store",
        "only messages that are done are committed",
    ),
    ("enable.partition.eof", "Wayside sets it itself"),
    (
        "partitioner",
        "keys must land where Java's clients put them",
    ),
    ("transactional.id", "Wayside does not use transactions"),
    (
        "delivery.report.only.error",
        "a 202 waits for the broker's acknowledgement",
    ),
    ("delivery.timeout.ms", "use `timeout` of the route"),
    ("message.timeout.ms", "use `timeout` of the route"),
    ("queue.buffering.max.kbytes", "use `kafka.queue_max`"),
    ("queue.buffering.max.messages", "use `kafka.queue_max`"),
    ("test.mock.num.brokers", "use `kafka: embedded`"),
    ("test.mock.broker.rtt", "use `kafka: embedded`"),
    ("plugin.library.paths", "Wayside loads no code"),
    ("builtin.features", "it cannot be set"),
];

/// Reads `embedded` or the mapping.
pub(super) fn kafka(at: &At<'_>) -> Option<Kafka> {
    if !at.is_map() {
        let cluster = at.parse("`embedded` or a mapping with `brokers`", embedded)?;
        return Some(Kafka {
            cluster,
            properties: Vec::new(),
            queue_max: QUEUE_DEFAULT as usize,
            replies: None,
        });
    }
    if let Some(embedded) = at.peek("embedded") {
        embedded.error("the embedded broker is `kafka: embedded`; it has no other settings");
        return None;
    }
    let map = at.map(&KAFKA)?;
    let brokers = map.need("brokers", brokers);
    let properties = map.or("properties", Vec::new(), properties);
    let queue_max = map.or("queue_max", QUEUE_DEFAULT as usize, |at| {
        at.bytes(1 << 16..=1 << 31)
    });
    let replies = map.maybe("replies", |at| {
        at.parse("a topic such as {service}.replies", parse_replies)
    });
    Some(Kafka {
        cluster: Cluster::Brokers(brokers?),
        properties: properties?,
        queue_max: queue_max?,
        replies: replies?,
    })
}

fn embedded(text: &str) -> Result<Cluster, Invalid> {
    if text == "embedded" {
        return Ok(Cluster::Embedded);
    }
    let reason = "expected `embedded` or a mapping with `brokers`, found other text";
    Err(Invalid::new(reason).hint(nearest(text, ["embedded"])))
}

fn brokers(at: &At<'_>) -> Option<Vec<String>> {
    if at.raw_text() == Some("embedded") {
        at.error("the embedded broker is `kafka: embedded`; it has no other settings");
        return None;
    }
    let list = at.list(BROKERS_MAX, "[kafka:9092]")?;
    if list.is_empty() {
        at.error("name at least one broker");
        return None;
    }
    let mut seen = HashMap::new();
    let lists = all(list.iter().map(|at| {
        let brokers = at.parse("a broker such as kafka:9092", several)?;
        let twice = brokers.iter().find_map(|broker| {
            seen.insert(broker.clone(), at.place().line)
                .map(|line| (broker, line))
        });
        if let Some((broker, line)) = twice {
            at.error(format!(
                "`{broker}` is here twice; the first is in line {line}"
            ));
            return None;
        }
        Some(brokers)
    }))?;
    Some(lists.concat())
}

/// One broker or, as a variable often holds them, several with commas between.
fn several(text: &str) -> Result<Vec<String>, Invalid> {
    if text.contains('@') {
        // Before it is cut at its commas, which may be part of a password.
        let reason = format!(
            "{} has a user: a broker is HOST:PORT alone; `sasl.username` and `sasl.password` go into `kafka.properties`",
            quoted(text)
        );
        return Err(Invalid::new(reason));
    }
    text.split(',')
        .map(|one| parse_address(one.trim()).map(|broker| broker.to_string()))
        .collect()
}

fn properties(at: &At<'_>) -> Option<Vec<(String, Secret)>> {
    all(at.named(PROPERTIES_MAX)?.iter().map(|(name, at)| {
        let value = at.secret()?;
        let refused = property(name, &value).err();
        if let Some(refused) = refused.or_else(|| at.judge().alone(name, &value)) {
            at.invalid_key(refused);
            return None;
        }
        Some(((*name).to_owned(), Secret::new(value)))
    }))
}

/// Refuses properties that contradict one another, or that the client does not take though each is well-formed.
pub(super) fn together(file: &Map<'_>, kafka: Option<&Kafka>) {
    let Some(Kafka { properties, .. }) = kafka.filter(|kafka| !kafka.properties.is_empty()) else {
        return;
    };
    let Some(at) = file.find("kafka").and_then(|at| at.peek("properties")) else {
        return;
    };
    let clients = match file.find("subscriptions") {
        Some(_) => Clients::Both,
        None => Clients::Producer,
    };
    let Some((blamed, what)) = at.judge().together(properties, clients) else {
        return;
    };
    match blamed.and_then(|name| at.peek(&name)) {
        Some(at) => at.invalid_key(what),
        None => at.invalid(what),
    }
}

/// Whether a file may set this; no message repeats a value.
fn property(name: &str, value: &str) -> Result<(), Invalid> {
    let word = |letter: char| matches!(letter, 'a'..='z' | '0'..='9' | '.' | '_' | '-');
    if name.len() > 100 || !name.chars().all(word) {
        let reason = format!("{} is not the name of a librdkafka property", quoted(name));
        return Err(Invalid::new(reason));
    }
    if let Some((_, instead)) = OURS.iter().find(|(ours, _)| *ours == name) {
        return Err(Invalid::new(format!(
            "this property cannot be set: {instead}"
        )));
    }
    let acks = matches!(name, "acks" | "request.required.acks");
    if acks && !matches!(value, "all" | "-1") {
        return Err(Invalid::new(
            "only `all` is possible: a 202 promises that the record is not lost",
        ));
    }
    if name == "enable.idempotence" && value != "true" {
        return Err(Invalid::new(
            "only `true` is possible: without it records may change their order",
        ));
    }
    if value.contains('\0') {
        return Err(Invalid::new("the value has a NUL character"));
    }
    Ok(())
}
