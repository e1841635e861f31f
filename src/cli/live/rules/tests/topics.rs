//! Topics: there, large, durable and long-lived enough.

use super::*;

#[test]
fn a_missing_topic_is_an_error_unless_the_broker_makes_it() {
    let missing = |topic: &'static str, created: &'static str, creatable: Result<(), Absent>| {
        found(GOOD, move |facts| {
            let topic = facts.topics.get_mut(topic).expect("the topic is used");
            topic.partitions = Err(Absent::Unknown);
            topic.settings = Err(Absent::Unknown);
            topic.creatable = creatable;
            for broker in &mut facts.brokers {
                let settings = broker.settings.as_mut().expect("they are known");
                settings
                    .0
                    .insert("auto.create.topics.enable".to_owned(), created.to_owned());
            }
            if created == "unknown" {
                facts
                    .brokers
                    .iter_mut()
                    .for_each(|broker| broker.settings = Err(Absent::Denied));
            }
        })
    };
    let route = "w.yaml:8:25: outbound.routes[0].publish.topic: ";
    let refused = || Err(Absent::Unanswered("policy".to_owned()));
    for (created, creatable, severity, words) in [
        ("false", Ok(()), Error, "503 topic-unknown"),
        ("true", Ok(()), Warning, "num.partitions=3"),
        (
            "true",
            Err(Absent::Denied),
            Error,
            "allow Create on topic `invoices`",
        ),
        ("true", refused(), Error, "policy"),
        ("true", Err(Absent::Unsupported), Warning, "may make it"),
        ("unknown", Ok(()), Warning, "DescribeConfigs on the cluster"),
    ] {
        let found = missing("invoices", created, creatable);
        expect(&found, &[("topic-exists", severity, route)]);
        assert!(found[0].to_string().contains(words), "{}", found[0]);
    }
    let subscribed = [(
        "topic-exists",
        Warning,
        "w.yaml:16:12: subscriptions[0].topic: ",
    )];
    expect(&missing("payments", "true", Ok(())), &subscribed);
    let dead = [(
        "topic-exists",
        Error,
        "w.yaml:17:18: subscriptions[0].dead_letter: ",
    )];
    let found = missing("payments.dead", "false", Ok(()));
    expect(&found, &dead);
    assert!(found[0].to_string().contains("for ever"), "{}", found[0]);
}

#[test]
fn partitions_bound_what_runs_side_by_side() {
    let one = |facts: &mut Facts, topic: &str| {
        let topic = facts.topics.get_mut(topic).expect("used");
        topic.partitions.as_mut().expect("known").truncate(1);
    };
    let keyed = found(GOOD, |facts| one(facts, "invoices"));
    expect(
        &keyed,
        &[(
            "partitions",
            Warning,
            "w.yaml:8:40: outbound.routes[0].publish.key: ",
        )],
    );
    let read = found(GOOD, |facts| one(facts, "payments"));
    expect(
        &read,
        &[(
            "partitions",
            Warning,
            "w.yaml:16:12: subscriptions[0].topic: ",
        )],
    );
    let asked = GOOD.replace(
        "  - topic: payments\n",
        "  - topic: payments\n    ordering: partition\n    concurrency: 20\n",
    );
    let few = found(&asked, |_| {});
    expect(
        &few,
        &[(
            "partitions",
            Warning,
            "w.yaml:18:18: subscriptions[0].concurrency: ",
        )],
    );
    let enough = GOOD.replace(
        "  - topic: payments\n",
        "  - topic: payments\n    ordering: partition\n    concurrency: 12\n",
    );
    expect(&found(&enough, |_| {}), &[]);
    let lost = found(GOOD, |facts| {
        partitions(facts, "payments", |one| one.led = one.id != 3)
    });
    expect(
        &lost,
        &[("leader", Error, "w.yaml:16:12: subscriptions[0].topic: ")],
    );
}

#[test]
fn the_largest_record_fits_everywhere() {
    let body = GOOD.replace("topic: invoices,", "topic: invoices, max_body: 2MiB,");
    let over = found(&body, |_| {});
    expect(
        &over,
        &[(
            "record-size",
            Error,
            "w.yaml:8:45: outbound.routes[0].publish.max_body: ",
        )],
    );
    let fits = found(&body, |facts| {
        set(facts, "invoices", "max.message.bytes", "2097152")
    });
    expect(&fits, &[]);
    let default = found(GOOD, |facts| {
        set(facts, "invoices", "max.message.bytes", "1000000")
    });
    expect(
        &default,
        &[(
            "record-size",
            Error,
            "w.yaml:8:16: outbound.routes[0].publish.max_body: ",
        )],
    );
    let client = found(GOOD, |facts| facts.client.record_max = 1 << 19);
    expect(
        &client,
        &[
            (
                "record-size",
                Error,
                "w.yaml:8:16: outbound.routes[0].publish.max_body: ",
            ),
            (
                "dead-letter-size",
                Warning,
                "w.yaml:17:18: subscriptions[0].dead_letter: ",
            ),
        ],
    );
    let slim = found(GOOD, |facts| {
        set(facts, "reports", "max.message.bytes", "1000")
    });
    expect(&slim, &[]);
    let dead = found(GOOD, |facts| {
        set(facts, "payments.dead", "max.message.bytes", "1000")
    });
    expect(
        &dead,
        &[(
            "dead-letter-size",
            Warning,
            "w.yaml:17:18: subscriptions[0].dead_letter: ",
        )],
    );
    let answer = found(GOOD, |facts| facts.client.answer_max = 1_048_588);
    expect(
        &answer,
        &[(
            "answer-size",
            Error,
            "w.yaml:16:12: subscriptions[0].topic: ",
        )],
    );
}

#[test]
fn an_acknowledged_record_survives_a_broker() {
    let route = "w.yaml:8:25: outbound.routes[0].publish.topic: ";
    let min = |value: &'static str| {
        found(GOOD, move |facts| {
            set(facts, "invoices", "min.insync.replicas", value)
        })
    };
    expect(&min("1"), &[("min-insync", Warning, route)]);
    expect(&min("3"), &[("min-insync", Warning, route)]);
    expect(&min("4"), &[("min-insync", Error, route)]);
    let behind = found(GOOD, |facts| {
        partitions(facts, "invoices", |one| one.in_sync = 1)
    });
    expect(&behind, &[("min-insync", Error, route)]);
    let single = |facts: &mut Facts| {
        set(facts, "invoices", "min.insync.replicas", "1");
        partitions(facts, "invoices", |one| {
            (one.replicas, one.in_sync) = (1, 1)
        });
    };
    expect(&found(GOOD, single), &[("replication", Warning, route)]);
    let alone = found(GOOD, |facts| {
        single(facts);
        facts.brokers.truncate(1);
    });
    expect(&alone, &[]);
    let unclean = found(GOOD, |facts| {
        set(facts, "invoices", "unclean.leader.election.enable", "true");
    });
    expect(&unclean, &[("unclean-election", Warning, route)]);
}

#[test]
fn a_compacted_topic_takes_neither_slim_nor_keyless_records() {
    let compact = |yaml: &str, topic: &'static str| {
        found(yaml, move |facts| {
            set(facts, topic, "cleanup.policy", "compact")
        })
    };
    expect(&compact(GOOD, "invoices"), &[]);
    let slim = [(
        "compaction",
        Error,
        "w.yaml:14:15: outbound.routes[1].publish.slim: ",
    )];
    expect(&compact(GOOD, "reports"), &slim);
    let keyless = GOOD.replace("topic: invoices, key: /id", "topic: invoices");
    let expected = [(
        "compaction",
        Error,
        "w.yaml:8:25: outbound.routes[0].publish.topic: ",
    )];
    expect(&compact(&keyless, "invoices"), &expected);
    let unordered = GOOD.replace("key: /id }", "key: /id, key_missing: unordered }");
    let expected = [(
        "compaction",
        Error,
        "w.yaml:8:58: outbound.routes[0].publish.key_missing: ",
    )];
    expect(&compact(&unordered, "invoices"), &expected);
    let read = [(
        "compaction",
        Warning,
        "w.yaml:16:12: subscriptions[0].topic: ",
    )];
    expect(&compact(GOOD, "payments"), &read);
    let dead = [(
        "compaction",
        Error,
        "w.yaml:17:18: subscriptions[0].dead_letter: ",
    )];
    expect(&compact(GOOD, "payments.dead"), &dead);
    let both = found(GOOD, |facts| {
        set(facts, "reports", "cleanup.policy", "compact,delete")
    });
    expect(&both, &slim);
}

#[test]
fn a_claim_outlives_the_records_that_ask_for_it() {
    let ttl = "w.yaml:19:45: claims.bodies.ttl: ";
    let kept = |value: &'static str| {
        found(GOOD, move |facts| {
            set(facts, "reports", "retention.ms", value)
        })
    };
    expect(&kept("691200000"), &[]);
    expect(&kept("691200001"), &[("claim-ttl", Error, ttl)]);
    expect(&kept("-1"), &[("claim-ttl", Error, ttl)]);
    // The same file reads it: then retries and dead letters count too, 7 d + 7 d + 5 × (30 s + 30 s).
    let read = GOOD.replace("topic: payments\n", "topic: reports\n");
    let short = found(&read, |_| {});
    expect(&short, &[("claim-ttl", Error, ttl)]);
    assert!(
        short[0].to_string().contains("set `ttl` to 20165m or more"),
        "{}",
        short[0]
    );
    let long = read.replace("ttl: 8d", "ttl: 15d");
    expect(&found(&long, |_| {}), &[]);
}

#[test]
fn dead_letters_are_kept_as_long_as_what_they_are_about() {
    let dead = [(
        "dead-letter-retention",
        Warning,
        "w.yaml:17:18: subscriptions[0].dead_letter: ",
    )];
    let short = found(GOOD, |facts| {
        set(facts, "payments.dead", "retention.ms", "60000")
    });
    expect(&short, &dead);
    let ever = found(GOOD, |facts| set(facts, "payments", "retention.ms", "-1"));
    expect(&ever, &dead);
    let longer = found(GOOD, |facts| {
        set(facts, "payments.dead", "retention.ms", "-1")
    });
    expect(&longer, &[]);
}
