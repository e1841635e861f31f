//! Of each key one message at a time, in order, and no key waits for another.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::Value;

use crate::subscription::{FAST, LONG, bodies, calls, ended, subscribed, yaml};
use crate::support::app::{Answer, App, Seen};
use crate::support::broker::{self, Written};
use crate::support::client::{get, post};
use crate::support::eventually::eventually;
use crate::support::sidecar::Sidecar;
use crate::support::topic;

/// A record of that key in partition 0.
fn keyed<'a>(key: &'a str, value: &'a str) -> Written<'a> {
    Written {
        key: Some(key),
        value: Some(value.as_bytes()),
        ..Written::default()
    }
}

/// What the admin door tells of the one subscription of a topic.
async fn state(sidecar: &Sidecar, topic: &str) -> Value {
    let path = format!("/subscriptions/{topic}");
    let states = get("localhost", &path)
        .send(sidecar.addresses().admin)
        .await
        .json();
    states[0].clone()
}

/// Asks until the subscription is as wanted.
async fn state_is(
    sidecar: &Sidecar,
    topic: &str,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Value {
    eventually(what, LONG, async || {
        let state = state(sidecar, topic).await;
        wanted(&state).then_some(state)
    })
    .await
}

async fn order(sidecar: &Sidecar, topic: &str, word: &str) -> u16 {
    let path = format!("/subscriptions/{topic}/{word}");
    let reply = post("localhost", &path)
        .send(sidecar.addresses().admin)
        .await;
    reply.status.as_u16()
}

/// Reads the values of a topic.
async fn values(topic: &str, count: usize) -> Vec<String> {
    let records = topic::read(&broker::address(), topic, count).await;
    let text = |record: topic::Record| {
        String::from_utf8_lossy(&record.value.unwrap_or_default()).into_owned()
    };
    records.into_iter().map(text).collect()
}

#[tokio::test]
async fn a_key_that_fails_waits_alone_and_the_admin_door_says_which_and_why() {
    let (topic, group) = (broker::topic("keys", 1), broker::unique("group"));
    let app = App::by(|seen| match seen.body.starts_with(b"bad") {
        true => Answer::status(503).header("retry-after", "60"),
        false => Answer::ok(),
    })
    .await;
    let rule = format!("topic: {topic}, group: {group}, deliver: {{ path: /k }}");
    let sidecar = subscribed(app.address, &[rule]).await;
    let mut texts = vec![
        ("bad".to_owned(), "bad 0".to_owned()),
        ("bad".to_owned(), "bad 1".to_owned()),
    ];
    for number in 0..50 {
        texts.extend((0..4).map(|key| (format!("k{key}"), format!("k{key} {number}"))));
    }
    let records: Vec<_> = texts.iter().map(|(key, value)| keyed(key, value)).collect();
    broker::write(&topic, &records);
    ended(&sidecar, &topic, "done", 200).await;
    let mut seen: HashMap<String, Vec<String>> = HashMap::new();
    for body in bodies(&app.seen()) {
        let key = body.split(' ').next().unwrap_or_default().to_owned();
        seen.entry(key).or_default().push(body);
    }
    for key in 0..4 {
        let wanted: Vec<_> = (0..50).map(|number| format!("k{key} {number}")).collect();
        assert_eq!(seen[&format!("k{key}")], wanted);
    }
    assert_eq!(
        seen["bad"],
        ["bad 0"],
        "the second of its key waits behind the first"
    );
    let told = state_is(&sidecar, &topic, "its lag", |state| state["lag"] == 202).await;
    let part = &told["partitions"][0];
    assert_eq!(
        (&part["next"], &part["unfinished"], &part["window"]),
        (&0.into(), &2.into(), &202.into()),
        "{told}"
    );
    assert_eq!(
        (&part["busy"], &part["parked"]),
        (&0.into(), &1.into()),
        "{told}"
    );
    let hottest = &part["hottest"];
    assert_eq!(
        (&hottest["key"], &hottest["followers"]),
        (&"bad".into(), &1.into()),
        "{told}"
    );
    assert_eq!(
        (&hottest["why"], &hottest["attempts"]),
        (&"the app answered 503".into(), &1.into())
    );
    assert_eq!(part["oldest"]["offset"], 0);
    eventually("metrics of it", LONG, async || {
        let metric = |name| sidecar.metric(name, &[&format!("subscription=\"{topic}\"")]);
        let all = (
            metric("wayside_lag_messages"),
            metric("wayside_lanes_parked"),
        );
        (all == (202.0, 1.0) && metric("wayside_oldest_message_seconds") > 0.0).then_some(())
    })
    .await;
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn keys_that_wait_leave_their_places_to_others_though_they_had_them_all() {
    let (topic, group) = (broker::topic("waiting", 1), broker::unique("group"));
    let app = App::by(|seen| match seen.body.starts_with(b"bad") {
        true => Answer::status(503).header("retry-after", "60"),
        false => Answer::ok(),
    })
    .await;
    let keys: Vec<String> = (0..40).map(|n| format!("k{n}")).collect();
    let value = |n: usize| if n < 20 { "bad" } else { "good" };
    let records: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(n, key)| keyed(key, value(n)))
        .collect();
    broker::write(&topic, &records);
    let rule = format!("topic: {topic}, group: {group}, concurrency: 2, deliver: {{ path: /x }}");
    let sidecar = subscribed(app.address, &[rule]).await;
    let seen = calls(&app, 40).await;
    let good = seen.iter().filter(|seen| seen.body == "good");
    assert_eq!(good.count(), 20);
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn keys_run_beside_each_other_as_far_as_concurrency_goes() {
    let (topic, group) = (broker::topic("beside", 1), broker::unique("group"));
    let app = App::by(|_| Answer::ok().after(Duration::from_millis(50))).await;
    let rule = format!("topic: {topic}, group: {group}, concurrency: 8, deliver: {{ path: /k }}");
    let sidecar = subscribed(app.address, &[rule]).await;
    let keys: Vec<_> = (0..24).map(|key| format!("k{key}")).collect();
    let records: Vec<_> = keys.iter().map(|key| keyed(key, key)).collect();
    broker::write(&topic, &records);
    ended(&sidecar, &topic, "done", 24).await;
    assert_eq!(
        app.connections(),
        8,
        "each delivery at the same time has a connection of its own"
    );
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn a_full_window_waits_for_its_oldest_message_or_gives_it_up_as_the_rule_says() {
    let ((waits, gives_up), grave) = (
        (broker::topic("waits", 1), broker::topic("gives-up", 1)),
        broker::topic("full-dead", 1),
    );
    let app = App::by(|seen| match seen.body.starts_with(b"bad") {
        true => Answer::status(500),
        false => Answer::ok(),
    })
    .await;
    let group = broker::unique("group");
    let slow = "retry: { attempts: 1000, backoff: 1h..1h }";
    let rules = [
        format!(
            "topic: {waits}, group: {group}, window: {{ messages: 10 }}, deliver: {{ path: /w }}, {slow}, dead_letter: {grave}"
        ),
        format!(
            "topic: {gives_up}, group: {group}, window: {{ messages: 10, full: dead-letter }}, deliver: {{ path: /g }}, {slow}, dead_letter: {grave}"
        ),
    ];
    let sidecar = subscribed(app.address, &rules).await;
    let texts: Vec<_> = (0..30).map(|number| format!("good {number}")).collect();
    let mut records = vec![keyed("bad", "bad")];
    records.extend(texts.iter().map(|text| keyed(text, text)));
    broker::write(&waits, &records);
    broker::write(&gives_up, &records);
    ended(&sidecar, &gives_up, "done", 30).await;
    ended(&sidecar, &waits, "done", 9).await;
    assert_eq!(values(&grave, 1).await, ["bad"]);
    let letter = &topic::read(&broker::address(), &grave, 1).await[0];
    let reason = letter.header("wayside-dead-reason").expect("it has one");
    assert!(reason.contains("window"), "{reason}");
    let full = |topic: &str| {
        sidecar.metric(
            "wayside_window_full_total",
            &[&format!("subscription=\"{topic}\"")],
        )
    };
    assert_eq!((full(&waits), full(&gives_up)), (1.0, 1.0));
    let told = state(&sidecar, &waits).await;
    assert_eq!(told["partitions"][0]["window"], 10, "{told}");
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn what_follows_a_dead_letter_in_quarantine_goes_after_it_in_order_and_unattempted() {
    let (topic, grave) = (broker::topic("ill", 1), broker::topic("ill-dead", 1));
    let app = App::by(|seen| match &seen.body[..] {
        b"a 1" => Answer::status(422),
        _ => Answer::ok(),
    })
    .await;
    let group = broker::unique("group");
    let rule = format!(
        "topic: {topic}, group: {group}, deliver: {{ path: /q }}, dead_letter: {grave}, quarantine: true, {FAST}"
    );
    let sidecar = subscribed(app.address, &[rule]).await;
    let all = ["a 0", "a 1", "a 2", "b 0", "a 3", "b 1"];
    let records: Vec<_> = all.iter().map(|text| keyed(&text[..1], text)).collect();
    broker::write(&topic, &records);
    ended(&sidecar, &topic, "done", 3).await;
    ended(&sidecar, &topic, "dead-letter", 3).await;
    assert_eq!(values(&grave, 3).await, ["a 1", "a 2", "a 3"]);
    let tried: HashSet<_> = bodies(&app.seen()).into_iter().collect();
    assert_eq!(
        tried,
        HashSet::from(["a 0", "a 1", "b 0", "b 1"].map(String::from))
    );
    let letters = topic::read(&broker::address(), &grave, 3).await;
    let attempts: Vec<_> = letters
        .iter()
        .map(|letter| letter.header("wayside-dead-attempts"))
        .collect();
    assert_eq!(
        attempts,
        ["1", "0", "0"].map(|number| Some(number.to_owned()))
    );
    assert_eq!(
        state(&sidecar, &topic).await["partitions"][0]["quarantined"],
        1
    );
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn a_message_that_ended_is_not_delivered_again_for_as_long_as_the_rule_says() {
    let (topic, group) = (broker::topic("twice", 1), broker::unique("group"));
    let app = App::agreeable().await;
    let rule = format!("topic: {topic}, group: {group}, deliver: {{ path: /d }}, dedupe: 10m");
    let sidecar = subscribed(app.address, &[rule]).await;
    let with = |headers| Written {
        headers,
        ..keyed("k", "x")
    };
    let one: &[(&str, &str)] = &[("ce_id", "0190c7e0-0000-7000-8000-000000000001")];
    let other: &[(&str, &str)] = &[("ce_id", "0190c7e0-0000-7000-8000-000000000002")];
    broker::write(&topic, &[with(one), with(one), with(other), with(one)]);
    ended(&sidecar, &topic, "duplicate", 2).await;
    ended(&sidecar, &topic, "done", 2).await;
    assert_eq!(app.count(), 2);
    let told = state(&sidecar, &topic).await;
    assert_eq!(
        told["partitions"][0]["next"], 4,
        "what is not delivered again is done: {told}"
    );
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn a_subscription_says_what_its_apps_answers_mean() {
    let (topic, grave) = (broker::topic("means", 1), broker::topic("means-dead", 1));
    let app = App::by(|seen| {
        let status = String::from_utf8_lossy(&seen.body)
            .parse()
            .expect("a status");
        match seen.header("wayside-attempt") {
            Some("1") => Answer::status(status),
            _ => Answer::ok(),
        }
    })
    .await;
    let group = broker::unique("group");
    let verdicts = "verdicts: { 409: done, 4xx: retry, 410: drop, 503: dead-letter }";
    let rule = format!(
        "topic: {topic}, group: {group}, deliver: {{ path: /m }}, dead_letter: {grave}, {verdicts}, {FAST}"
    );
    let sidecar = subscribed(app.address, &[rule]).await;
    let texts = ["409", "422", "410", "503"];
    let records: Vec<_> = texts.iter().map(|text| keyed(text, text)).collect();
    broker::write(&topic, &records);
    for (verdict, count) in [("done", 2), ("retry", 1), ("drop", 1), ("dead-letter", 1)] {
        ended(&sidecar, &topic, verdict, count).await;
    }
    assert_eq!(values(&grave, 1).await, ["503"]);
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn while_the_app_is_down_one_message_at_a_time_finds_out_and_none_is_used_up() {
    let ((topic, grave), group) = (
        (broker::topic("down", 1), broker::topic("down-dead", 1)),
        broker::unique("group"),
    );
    let address = App::nowhere();
    let rule = format!(
        "topic: {topic}, group: {group}, deliver: {{ path: /x }}, dead_letter: {grave}, retry: {{ attempts: 1 }}"
    );
    let sidecar = subscribed(address, &[rule]).await;
    let keys: Vec<_> = (0..40).map(|key| format!("k{key}")).collect();
    let records: Vec<_> = keys.iter().map(|key| keyed(key, key)).collect();
    broker::write(&topic, &records);
    let told = state_is(&sidecar, &topic, "it is known", |state| {
        state["shut"] == "down"
    })
    .await;
    assert!(told["since"].is_string(), "{told}");
    let missed = || {
        sidecar.metric(
            "wayside_deliveries_total",
            &[
                &format!("subscription=\"{topic}\""),
                "verdict=\"not-delivered\"",
            ],
        )
    };
    // All that may go at the same time find out together; after that it is one alone, ever more slowly.
    let first = missed();
    assert!(first <= 45.0, "{first}");
    eventually("a probe", LONG, async || (missed() > first).then_some(())).await;
    let app = App::at(address, |_| Answer::ok()).await;
    ended(&sidecar, &topic, "done", 40).await;
    assert!(
        missed() < 60.0,
        "{} attempts did not reach the app",
        missed()
    );
    let told: Vec<_> = app
        .seen()
        .iter()
        .map(|seen: &Seen| seen.header("wayside-attempt").map(str::to_owned))
        .collect();
    assert!(told.iter().all(|attempt| attempt.as_deref() == Some("1")));
    assert_eq!(state(&sidecar, &topic).await["shut"], Value::Null);
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn an_app_that_turns_every_key_away_shuts_the_subscription_instead_of_filling_the_dead_letters()
 {
    let ((topic, grave), group) = (
        (broker::topic("denied", 1), broker::topic("denied-dead", 1)),
        broker::unique("group"),
    );
    let app = App::by(|seen| match seen.header("wayside-attempt") {
        // After some probes the app has its key again.
        _ if seen.body == "k10" => Answer::ok(),
        _ => Answer::status(401),
    })
    .await;
    let rule = format!(
        "topic: {topic}, group: {group}, concurrency: 1, deliver: {{ path: /x }}, dead_letter: {grave}"
    );
    let sidecar = subscribed(app.address, &[rule]).await;
    let keys: Vec<_> = (0..10).map(|key| format!("k{key}")).collect();
    let records: Vec<_> = keys.iter().map(|key| keyed(key, key)).collect();
    broker::write(&topic, &records);
    state_is(&sidecar, &topic, "it is shut", |state| {
        state["shut"] == "unauthorized"
    })
    .await;
    eventually("a probe", LONG, async || (app.count() >= 7).then_some(())).await;
    let dead = sidecar.metric(
        "wayside_deliveries_total",
        &[
            &format!("subscription=\"{topic}\""),
            "verdict=\"dead-letter\"",
        ],
    );
    assert_eq!(
        dead, 4.0,
        "four keys may have been about themselves; the fifth shows that they were not"
    );
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn a_subscription_is_paused_and_resumed_at_the_admin_door_and_stays_so_over_a_reload() {
    let (topic, group) = (broker::topic("paused", 1), broker::unique("group"));
    let app = App::agreeable().await;
    let rule = format!("topic: {topic}, group: {group}, deliver: {{ path: /p }}");
    let sidecar = subscribed(app.address, &[rule]).await;
    broker::write(&topic, &[keyed("a", "one")]);
    calls(&app, 1).await;
    assert_eq!(order(&sidecar, &topic, "pause").await, 200);
    assert_eq!(state(&sidecar, &topic).await["shut"], "paused");
    broker::write(&topic, &[keyed("a", "two"), keyed("b", "three")]);
    state_is(&sidecar, &topic, "both are taken", |state| {
        state["partitions"][0]["unfinished"] == 2
    })
    .await;
    assert_eq!(app.count(), 1, "nothing is delivered while it is paused");
    assert_eq!(order(&sidecar, &topic, "resume").await, 200);
    ended(&sidecar, &topic, "done", 3).await;
    assert_eq!(order(&sidecar, "nobody", "pause").await, 404);
    assert_eq!(order(&sidecar, &topic, "stop").await, 405);
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn every_copy_gets_what_is_broadcast_from_the_time_it_came_on_and_all_of_a_topic_that_is_newer()
 {
    let (old, new) = (broker::topic("news", 2), broker::unique("later-news"));
    let rules = [
        format!("topic: {old}, broadcast: true, deliver: {{ path: /n }}"),
        format!("topic: {new}, broadcast: true, deliver: {{ path: /l }}"),
    ];
    broker::write(&old, &[keyed("a", "before"), keyed("b", "before")]);
    let (one, two) = (App::agreeable().await, App::agreeable().await);
    let first = subscribed(one.address, &rules).await;
    let second = subscribed(two.address, &rules).await;
    let there = |sidecar: &Sidecar, topic: &str| {
        sidecar.metric(
            "wayside_partitions",
            &[&format!("subscription=\"{topic}\"")],
        ) as i32
    };
    eventually("both have all", LONG, async || {
        ((there(&first, &old), there(&second, &old)) == (2, 2)).then_some(())
    })
    .await;
    // Where a partition ends is asked when it is assigned; only what comes behind that is new.
    let mut marks = 0;
    eventually("both are there", LONG, async || {
        marks += 1;
        let marks = [format!("a {marks}"), format!("b {marks}")];
        let second = Written {
            partition: 1,
            ..keyed("b", &marks[1])
        };
        broker::write(&old, &[keyed("a", &marks[0]), second]);
        let has_both = |app: &App| {
            let bodies = bodies(&app.seen());
            ["a ", "b "].map(|key| bodies.iter().any(|body| body.starts_with(key))) == [true; 2]
        };
        (has_both(&one) && has_both(&two)).then_some(())
    })
    .await;
    broker::write(&old, &[keyed("a", "now")]);
    broker::broker().create(&new, 1).expect("the name is new");
    broker::write(&new, &[keyed("a", "first of its topic")]);
    for app in [&one, &two] {
        eventually("what came now", LONG, async || {
            let bodies = bodies(&app.seen());
            let has = |text: &str| bodies.iter().any(|body| body == text);
            (has("now") && has("first of its topic")).then_some(())
        })
        .await;
        let bodies = bodies(&app.seen());
        assert!(!bodies.contains(&"before".to_owned()), "{bodies:?}");
    }
    assert!(first.stop().await && second.stop().await);
}

#[tokio::test]
async fn a_reload_of_a_broadcast_goes_on_where_it_was() {
    let topic = broker::topic("goes-on", 1);
    let app = App::agreeable().await;
    let rule = |concurrency| {
        format!(
            "topic: {topic}, broadcast: true, concurrency: {concurrency}, deliver: {{ path: /n }}"
        )
    };
    let sidecar = subscribed(app.address, &[rule(4)]).await;
    eventually("it is there", LONG, async || {
        broker::write(&topic, &[keyed("k", "mark")]);
        (app.count() > 0).then_some(())
    })
    .await;
    let mut texts = Vec::new();
    for concurrency in 5..8 {
        texts.push(format!("before {concurrency}"));
        broker::write(&topic, &[keyed("k", &texts[texts.len() - 1])]);
        let changed = yaml(&broker::address(), app.address, &[rule(concurrency)]);
        let written = async {
            for n in 0..20 {
                texts.push(format!("during {concurrency} {n}"));
                broker::write(&topic, &[keyed("k", &texts[texts.len() - 1])]);
                tokio::task::yield_now().await;
            }
        };
        let (reloaded, ()) = tokio::join!(sidecar.reload(&changed), written);
        reloaded.expect("it is reloaded");
    }
    eventually("all of them", LONG, async || {
        let seen: HashSet<_> = bodies(&app.seen()).into_iter().collect();
        texts.iter().all(|text| seen.contains(text)).then_some(())
    })
    .await;
    assert!(sidecar.stop().await);
}
