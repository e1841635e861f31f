//! A world in which nothing is wrong, and what each rule says once one thing in it is.

use std::collections::BTreeMap;
use std::time::Duration;

mod broker;
mod topics;

use super::*;
use crate::cli::live::finding::Severity;
use crate::config::{self, Loaded};
use crate::kafka::inspect::facts::{
    Absent, Broker, Client, OffsetReset, Partition, Progress, Subscribed, Unreachable,
};

const GOOD: &str = "\
service: orders
app: 127.0.0.1:8080
inbound: { listen: 127.0.0.1:0 }
outbound:
  routes:
    - name: create-invoice
      match: { host: billing }
      publish: { topic: invoices, key: /id }
    - name: create-report
      match: { host: reports }
      publish:
        topic: reports
        key: /id
        slim: { keep: [/id], claim: bodies }
subscriptions:
  - topic: payments
    dead_letter: payments.dead
kafka: { brokers: [kafka:9092] }
claims: { bodies: { disk: /tmp/claims, ttl: 8d } }
";

fn load(yaml: &str) -> Loaded {
    config::compile("w.yaml", yaml, &|_| None).unwrap_or_else(|report| panic!("{report}"))
}

/// Facts that fit.
fn facts(loaded: &Loaded) -> Facts {
    let settings = |list: &[(&str, &str)]| {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Ok(Settings(list.iter().map(owned).collect()))
    };
    let broker = |id| Broker {
        id,
        address: format!("kafka-{id}:9092"),
        settings: settings(&[
            ("auto.create.topics.enable", "false"),
            ("num.partitions", "3"),
            ("default.replication.factor", "2"),
            ("group.min.session.timeout.ms", "6000"),
            ("group.max.session.timeout.ms", "1800000"),
        ]),
    };
    let partition = |id| Partition {
        id,
        led: true,
        replicas: 3,
        in_sync: 3,
    };
    let topic = || Topic {
        partitions: Ok((0..12).map(partition).collect()),
        settings: settings(&[
            ("max.message.bytes", "1048588"),
            ("min.insync.replicas", "2"),
            ("cleanup.policy", "delete"),
            ("retention.ms", "604800000"),
            ("unclean.leader.election.enable", "false"),
        ]),
        creatable: Ok(()),
    };
    let progress = |partition| Progress {
        partition,
        committed: Some(7),
        low: 5,
        high: 9,
    };
    let subscribed = || Subscribed {
        progress: Ok((0..12).map(progress).collect()),
        readable: Ok(()),
    };
    let of = loaded.config.subscriptions.iter();
    Facts {
        client: Client {
            record_max: 32 << 20,
            answer_max: 100_000_000,
            offset_reset: OffsetReset::Earliest,
            session: Duration::from_secs(45),
        },
        brokers: (1..=3).map(broker).collect(),
        idempotence: Ok(()),
        topics: uses(&loaded.config)
            .iter()
            .map(|one| (one.topic.to_owned(), topic()))
            .collect(),
        subscribed: of
            .map(|one| ((one.group.clone(), one.topic.clone()), subscribed()))
            .collect(),
    }
}

/// What is found once `spoil` was at a world in which all is well.
fn found(yaml: &str, spoil: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let loaded = load(yaml);
    let mut facts = facts(&loaded);
    spoil(&mut facts);
    apply(&loaded, &facts)
}

fn set(facts: &mut Facts, topic: &str, setting: &str, value: &str) {
    let topic = facts.topics.get_mut(topic).expect("the topic is used");
    let settings = topic.settings.as_mut().expect("they are known");
    settings.0.insert(setting.to_owned(), value.to_owned());
}

fn partitions(facts: &mut Facts, topic: &str, change: impl Fn(&mut Partition)) {
    let topic = facts.topics.get_mut(topic).expect("the topic is used");
    topic
        .partitions
        .as_mut()
        .expect("they are known")
        .iter_mut()
        .for_each(change);
}

/// Fails unless exactly these were found: rule, severity, and the beginning of place and path.
#[track_caller]
fn expect(found: &[Finding], expected: &[(&str, Severity, &str)]) {
    let told: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), expected.len(), "{told:#?}");
    for ((finding, told), (rule, severity, place)) in found.iter().zip(&told).zip(expected) {
        assert_eq!(
            (finding.rule, finding.severity),
            (*rule, *severity),
            "{told}"
        );
        let (_, rest) = told.split_once(": ").expect("severity and the rest");
        assert!(rest.starts_with(place), "{told}");
        assert!(!told.contains("; [") && !told.contains("  "), "{told}");
    }
}

use Severity::{Error, Warning};

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    expect(&found(GOOD, |_| {}), &[]);
}

#[test]
fn a_finding_tells_place_path_setting_value_and_remedy() {
    let found = found(GOOD, |facts| {
        set(facts, "invoices", "min.insync.replicas", "4")
    });
    let told: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "error: w.yaml:8:25: outbound.routes[0].publish.topic: `invoices` has 3 replicas and wants 4 in sync: no record is acknowledged, and its calls are a 503 (topic invoices: min.insync.replicas=4); raise the replication factor to 4 or more, or kafka-configs --alter --topic invoices --add-config min.insync.replicas=3 [min-insync]"
        ]
    );
    let json = serde_json::to_value(&found[0]).expect("plain data");
    assert_eq!(json["rule"], "min-insync");
    assert_eq!((&json["line"], &json["column"]), (&8.into(), &25.into()));
    assert_eq!(json["of"], "topic invoices");
    assert_eq!(
        (&json["setting"], &json["value"]),
        (&"min.insync.replicas".into(), &"4".into())
    );
    assert!(
        json["remedy"]
            .as_str()
            .is_some_and(|text| text.contains("kafka-configs"))
    );
}

#[test]
fn every_rule_is_documented_and_has_a_fixture_that_fails() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let told = std::fs::read_to_string(root.join("docs/live.md")).expect("docs/live.md");
    let fixtures = std::fs::read_dir(root.join("tests/fixtures/live")).expect("the fixtures");
    let finds: String = fixtures
        .map(|entry| std::fs::read_to_string(entry.expect("an entry").path()).expect("UTF-8"))
        .filter_map(|text| {
            text.lines()
                .find(|line| line.starts_with("# finds:"))
                .map(str::to_owned)
        })
        .collect();
    // What needs more than a file and its topics: users, old brokers, wrong addresses, brokers that go.
    let tests = ["tests/real/live.rs", "tests/it/live.rs"]
        .map(|path| std::fs::read_to_string(root.join(path)).expect("the tests"));
    let others = ["broker", "name-resolves", "one-address"];
    for rule in RULES.iter().map(|(rule, _)| *rule).chain(others) {
        assert!(
            told.contains(&format!("| `{rule}` |")),
            "docs/live.md does not tell of {rule}"
        );
        let shown = finds.contains(&format!(" {rule} "))
            || tests.iter().any(|test| {
                test.contains(&format!("[{rule}]")) || test.contains(&format!(" {rule} "))
            });
        assert!(shown, "no failing fixture shows {rule}");
    }
}
