//! Access, groups and names.

use super::*;

#[test]
fn what_is_denied_is_told_by_the_acl_that_gives_it() {
    let acl = |spoil: fn(&mut Facts), place, words: &str| {
        let found = found(GOOD, spoil);
        expect(&found, &[("acl", Error, place)]);
        assert!(found[0].to_string().contains(words), "{}", found[0]);
    };
    acl(
        |facts| {
            let topic = facts.topics.get_mut("invoices").expect("used");
            (topic.partitions, topic.settings) = (Err(Absent::Denied), Err(Absent::Denied));
        },
        "w.yaml:8:25: outbound.routes[0].publish.topic: ",
        "allow Write on topic `invoices`",
    );
    acl(
        |facts| {
            let seen = facts.subscribed.values_mut().next().expect("one");
            seen.readable = Err(Absent::Denied);
        },
        "w.yaml:16:12: subscriptions[0].topic: ",
        "allow Read on topic `payments`",
    );
    acl(
        |facts| {
            let seen = facts.subscribed.values_mut().next().expect("one");
            seen.progress = Err(Absent::Denied);
        },
        "w.yaml:16:5: subscriptions[0].group: ",
        "allow Read on group `orders`",
    );
    acl(
        |facts| facts.idempotence = Err(Absent::Denied),
        "w.yaml:18:8: kafka: ",
        "allow Write on topic `invoices`, `payments.dead`, `reports`",
    );
}

#[test]
fn what_could_not_be_checked_is_said() {
    let quiet = found(GOOD, |facts| {
        for topic in facts.topics.values_mut() {
            topic.settings = Err(Absent::Unsupported);
        }
    });
    expect(
        &quiet,
        &[("unchecked", Warning, "w.yaml:18:19: kafka.brokers: ")],
    );
    let denied = found(GOOD, |facts| {
        facts.topics.get_mut("payments").expect("used").settings = Err(Absent::Denied);
    });
    expect(
        &denied,
        &[(
            "unchecked",
            Warning,
            "w.yaml:16:12: subscriptions[0].topic: ",
        )],
    );
    assert!(
        denied[0]
            .to_string()
            .contains("DescribeConfigs on topic `payments`")
    );
    let late = found(GOOD, |facts| {
        let seen = facts.subscribed.values_mut().next().expect("one");
        seen.progress = Err(Absent::Unanswered("no answer in time".to_owned()));
    });
    expect(
        &late,
        &[(
            "unchecked",
            Warning,
            "w.yaml:16:5: subscriptions[0].group: ",
        )],
    );
}

#[test]
fn a_broker_that_is_too_old_or_elsewhere_is_told() {
    let old = found(GOOD, |facts| facts.idempotence = Err(Absent::Unsupported));
    expect(
        &old,
        &[("idempotence", Error, "w.yaml:18:19: kafka.brokers: ")],
    );
    let elsewhere = found(GOOD, |facts| {
        facts.brokers[1].settings = Err(Absent::Unanswered("no answer in time".to_owned()));
    });
    expect(
        &elsewhere,
        &[("advertised", Error, "w.yaml:18:19: kafka.brokers: ")],
    );
    assert!(
        elsewhere[0].to_string().contains("kafka-2:9092"),
        "{}",
        elsewhere[0]
    );
}

#[test]
fn a_group_without_offsets_is_told_where_it_begins() {
    let group = "w.yaml:16:5: subscriptions[0].group: ";
    let progress = |facts: &mut Facts, change: fn(&mut Progress)| {
        let seen = facts.subscribed.values_mut().next().expect("one");
        seen.progress
            .as_mut()
            .expect("known")
            .iter_mut()
            .for_each(change);
    };
    let fresh = |reset: OffsetReset, records: bool| {
        found(GOOD, move |facts| {
            facts.client.offset_reset = reset;
            match records {
                true => progress(facts, |one| one.committed = None),
                false => progress(facts, |one| (one.committed, one.high) = (None, one.low)),
            }
        })
    };
    expect(&fresh(OffsetReset::Earliest, false), &[]);
    let many = fresh(OffsetReset::Earliest, true);
    expect(&many, &[("offset-reset", Warning, group)]);
    assert!(
        many[0].to_string().contains("about 48 records"),
        "{}",
        many[0]
    );
    expect(
        &fresh(OffsetReset::Latest, false),
        &[("offset-reset", Warning, group)],
    );
    expect(
        &fresh(OffsetReset::Error, false),
        &[("offset-reset", Error, group)],
    );
    let deleted = found(GOOD, |facts| progress(facts, |one| one.low = 8));
    expect(&deleted, &[("offset-lost", Warning, group)]);
    let anew = found(GOOD, |facts| progress(facts, |one| one.high = 6));
    expect(&anew, &[("offset-lost", Warning, group)]);
}

#[test]
fn a_session_that_the_brokers_do_not_take_is_an_error() {
    let place = "w.yaml:18:8: kafka.properties[\"session.timeout.ms\"]: ";
    for session in [5, 3600] {
        let wrong = found(GOOD, |facts| {
            facts.client.session = Duration::from_secs(session)
        });
        expect(&wrong, &[("session-timeout", Error, place)]);
    }
}

#[test]
fn one_address_is_told_where_a_choice_is_asked_for() {
    let told = |service: &str, addresses: &[[u8; 4]]| {
        let loaded = load(&format!("service: a\nservices: {{ b: {service} }}\n"));
        let all = Ok(addresses.iter().copied().map(Into::into).collect());
        let resolved = BTreeMap::from([
            ("b".to_owned(), all.clone()),
            ("b.shop.svc".to_owned(), all),
            ("gone".to_owned(), Err("no such name".to_owned())),
        ]);
        services::apply(&loaded, &resolved)
    };
    let one = [[10, 0, 0, 1]];
    let place = "w.yaml:2:30: services.b.addresses[0]: ";
    expect(&told("{ addresses: [b:80] }", &one), &[]);
    let asked = "{ addresses: [b:80], balance: round-robin }";
    expect(&told(asked, &one), &[("one-address", Warning, place)]);
    expect(&told(asked, &[[10, 0, 0, 1], [10, 0, 0, 2]]), &[]);
    expect(&told(asked, &[[127, 0, 0, 1]]), &[]);
    let cluster = told("{ addresses: [b.shop.svc:80] }", &one);
    expect(&cluster, &[("one-address", Warning, place)]);
    assert!(
        cluster[0].to_string().contains("headless"),
        "{}",
        cluster[0]
    );
    let gone = told("{ addresses: [gone:80] }", &one);
    expect(&gone, &[("name-resolves", Warning, place)]);
}

#[test]
fn a_broker_out_of_reach_is_one_error() {
    let loaded = load(GOOD);
    let words = || "Connection refused".to_owned();
    for (why, path) in [
        (
            Unreachable::Elsewhere(words()),
            "w.yaml:18:19: kafka.brokers: ",
        ),
        (Unreachable::Away(words()), "w.yaml:18:19: kafka.brokers: "),
        (
            Unreachable::Authentication(words()),
            "w.yaml:18:8: kafka.properties: ",
        ),
        (Unreachable::Tls(words()), "w.yaml:18:8: kafka.properties: "),
        (
            Unreachable::Client(words()),
            "w.yaml:18:8: kafka.properties: ",
        ),
    ] {
        let elsewhere = matches!(why, Unreachable::Elsewhere(_));
        let expected = if elsewhere { "advertised" } else { "broker" };
        let (rule, found) = unreachable(&why, "kafka:9092");
        let found = found.at(rule, &loaded.places);
        expect(std::slice::from_ref(&found), &[(expected, Error, path)]);
        assert!(found.to_string().contains("Connection refused"), "{found}");
    }
}
