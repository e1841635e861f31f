//! From a record to the app: verdicts, retries, dead letters, committed offsets, and a consumer killed midway.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;

use crate::broker;
use crate::line::{Line, id, ids};
use crate::support::app::{Answer, App, Seen};
use crate::support::eventually::eventually;
use crate::support::process::announce;

/// Calls the app's rule knows by number, and how often each came.
fn count(counts: &Mutex<BTreeMap<u64, u32>>, call: &Seen) -> (u64, u32) {
    let n = call.json()["n"].as_u64().expect("the body has a number");
    let mut counts = counts.lock().expect("no holder panics");
    let times = counts.entry(n).or_default();
    *times += 1;
    (n, *times)
}

#[tokio::test]
async fn three_500s_and_a_200_are_one_delivery_done_and_no_gap_in_the_offsets() {
    let Some(kafka) = broker().await else { return };
    let counts = Mutex::default();
    let app = App::by(move |call| match count(&counts, call) {
        (5, 1..=3) => Answer::status(500),
        _ => Answer::ok(),
    })
    .await;
    let more = "retry: { backoff: 20ms..100ms }";
    let line = Line::steady(kafka, "fails-thrice", &app, more).await;
    let mut sent = Vec::new();
    for n in 0..20 {
        sent.push(line.publish(&format!("key-{}", n % 3), n).await);
    }
    kafka
        .wait_for_no_lag("fails-thrice", "fails-thrice", 20)
        .await;

    let seen = app.seen();
    assert_eq!(ids(&app), sent.iter().cloned().collect());
    assert_eq!(seen.len(), 23, "twenty calls and three more tries");
    let tries: Vec<_> = seen.iter().filter(|call| id(call) == sent[5]).collect();
    let attempts: Vec<_> = tries
        .iter()
        .filter_map(|call| call.header("wayside-attempt"))
        .collect();
    assert_eq!(attempts, ["1", "2", "3", "4"]);
    let of_its_key: Vec<_> = seen
        .iter()
        .filter(|call| call.json()["key"] == "key-2")
        .collect();
    let order: Vec<_> = of_its_key
        .iter()
        .filter_map(|call| call.json()["n"].as_u64())
        .collect();
    assert_eq!(
        order,
        [2, 5, 5, 5, 5, 8, 11, 14, 17],
        "its lane waits for it"
    );
}

/// How often the consumer is killed: `.ci/long` asks for hundreds.
fn kills() -> usize {
    let kills = std::env::var("WAYSIDE_KILLS").unwrap_or_else(|_| "1".to_owned());
    kills.parse().expect("WAYSIDE_KILLS is a number")
}

#[tokio::test]
async fn a_consumer_killed_midway_loses_nothing() {
    let Some(kafka) = broker().await else { return };
    let app = App::by(|_| Answer::ok().after(Duration::from_millis(20))).await;
    let mut line = Line::lay(kafka, "killed-midway", &app, "concurrency: 4").await;
    let mut twice = 0;
    for _ in 0..kills() {
        app.forget();
        twice += kill_midway(&mut line, &app).await;
    }
    kafka
        .wait_for_no_lag("killed-midway", "killed-midway", 200 * kills())
        .await;
    announce(&format!(
        "real: {} kills of a consumer, {} messages: 0 lost, {twice} delivered twice",
        kills(),
        200 * kills()
    ));
}

/// What may come again after a kill: what is under way, and what was done since the last commit, at four in 20 ms and a
/// commit in each 150 ms. Twice that for a machine that is busy.
const TWICE_MAX: usize = 2 * (4 + 4 * 150 / 20);

/// How many messages were delivered again.
async fn kill_midway(line: &mut Line, app: &App) -> usize {
    let mut sent = BTreeSet::new();
    for n in 0..50 {
        sent.insert(line.publish(&format!("key-{}", n % 17), n).await);
    }
    eventually(
        "the app has seen fifty",
        Duration::from_secs(30),
        async || sent.is_subset(&ids(app)).then_some(()),
    )
    .await;
    for n in 50..200 {
        sent.insert(line.publish(&format!("key-{}", n % 17), n).await);
        if n == 120 {
            line.billing.kill();
        }
    }
    let missing = sent.difference(&ids(app)).count();
    assert!(
        (1..=150).contains(&missing),
        "not midway: {missing} of 200 were still to come"
    );
    line.billing.start_again().await;
    eventually("all 200 were seen", Duration::from_secs(60), async || {
        sent.is_subset(&ids(app)).then_some(())
    })
    .await;
    // A message may come twice, but never behind a later one of its key for the first time.
    let mut firsts: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for call in app.seen().iter().filter(|call| sent.contains(&id(call))) {
        let body = call.json();
        let of_its_key = firsts.entry(body["key"].to_string()).or_default();
        let n = body["n"].as_u64().expect("the body has a number");
        if !of_its_key.contains(&n) {
            of_its_key.push(n);
        }
    }
    assert!(
        firsts.values().all(|order| order.is_sorted()),
        "out of order: {firsts:?}"
    );
    let twice = app.count() - sent.len();
    assert!(twice <= TWICE_MAX, "{twice} were delivered again");
    twice
}

/// How often a consumer is restarted in order.
fn restarts() -> usize {
    let restarts = std::env::var("WAYSIDE_RESTARTS").unwrap_or_else(|_| "2".to_owned());
    restarts.parse().expect("WAYSIDE_RESTARTS is a number")
}

#[tokio::test]
async fn a_clean_restart_delivers_nothing_twice() {
    let Some(kafka) = broker().await else { return };
    let app = App::by(|_| Answer::ok().after(Duration::from_millis(10))).await;
    let mut line = Line::lay(kafka, "clean-restart", &app, "concurrency: 4").await;
    for turn in 0..restarts() {
        for n in turn * 40..turn * 40 + 40 {
            line.publish(&format!("key-{}", n % 7), n).await;
        }
        eventually(
            "the app has seen ten",
            Duration::from_secs(30),
            async || (app.count() >= turn * 40 + 10).then_some(()),
        )
        .await;
        assert_eq!(
            line.billing.terminate().await.code(),
            Some(0),
            "a drain ends with 0"
        );
        line.billing.start_again().await;
    }
    let all = 40 * restarts();
    kafka
        .wait_for_no_lag("clean-restart", "clean-restart", all)
        .await;
    let mut seen: Vec<_> = app
        .seen()
        .iter()
        .filter_map(|call| call.json()["n"].as_u64())
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..all as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_poison_message_lands_in_the_dead_letters_with_the_reason() {
    let Some(kafka) = broker().await else { return };
    kafka.make_topic("poison.dead", 4).await;
    let app = App::by(|call| match call.json()["n"].as_u64() {
        Some(1) => Answer::status(400).body("no such currency"),
        _ => Answer::ok(),
    })
    .await;
    let line = Line::steady(kafka, "poison", &app, "dead_letter: poison.dead").await;
    let mut sent = Vec::new();
    for n in 0..4 {
        sent.push(line.publish("one-key", n).await);
    }
    kafka.wait_for_no_lag("poison", "poison", 4).await;
    let order: Vec<_> = app
        .seen()
        .iter()
        .filter_map(|call| call.json()["n"].as_u64())
        .collect();
    assert_eq!(
        order,
        [0, 1, 2, 3],
        "a 400 is not tried again, and its lane goes on"
    );

    let dead = kafka.read_at_least("poison.dead", 1).await;
    let [letter] = &dead[..] else {
        panic!("one message is poison: {dead:?}")
    };
    let original = kafka.read_at_least("poison", 4).await;
    let original = original
        .iter()
        .find(|record| record.header("ce_id") == sent[1])
        .expect("the message is in its topic");
    assert_eq!(
        (&letter.value, &letter.key),
        (&original.value, &original.key)
    );
    assert_eq!(
        serde_json::from_str::<Value>(letter.text()).expect("JSON")["n"],
        1
    );
    let (headers, before) = (letter.headers(), original.headers());
    for (name, value) in &before {
        assert_eq!(headers.get(name), Some(value), "{name} is kept");
    }
    let reason: Vec<_> = headers
        .iter()
        .filter(|(name, _)| !before.contains_key(*name))
        .collect();
    let reason = format!("{reason:?}");
    for word in ["400", "poison"] {
        assert!(
            reason.contains(word),
            "{word} is not in the reason: {reason}"
        );
    }
}
