//! What the app's answer to a delivery means, and what is told of a message that is given up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::subscription::{FAST, LONG, bodies, calls, ended, subscribed};
use crate::support::app::{Answer, App, Seen};
use crate::support::broker::{self, Written, plain};
use crate::support::eventually::eventually;
use crate::support::topic::{self, Record};

/// Answers what the body says: a status and, after a space, the word for the verdict header.
fn obedient(seen: &Seen) -> Answer {
    let text = String::from_utf8_lossy(&seen.body).into_owned();
    let (status, word) = text.split_once(' ').unwrap_or((&text, ""));
    let answer = Answer::status(status.parse().expect("a status"));
    if word.is_empty() {
        return answer;
    }
    answer.header("wayside-verdict", word)
}

/// Each dead letter's value, and its attempts, last status and reason.
async fn graves(topic: &str, count: usize) -> BTreeMap<String, (String, String, String)> {
    let records = topic::read(&broker::address(), topic, count).await;
    let told = |record: &Record| {
        let told = |name| record.header(name).unwrap_or_default();
        (
            told("wayside-dead-attempts"),
            told("wayside-dead-status"),
            told("wayside-dead-reason"),
        )
    };
    let value = |record: &Record| String::from_utf8(record.value.clone().unwrap_or_default());
    records
        .iter()
        .map(|record| (value(record).expect("text"), told(record)))
        .collect()
}

#[tokio::test]
async fn each_status_and_each_word_of_the_app_means_what_the_table_says() {
    let list = |text: &'static str| text.split(", ").collect::<Vec<_>>();
    let done = list("200, 201, 204, 299, 500 done, 302 done");
    let retried = list("404, 408, 409, 425, 429, 500, 502, 503, 504, 599, 200 retry, 400 retry");
    let dead =
        list("301, 302, 304, 400, 401, 403, 410, 413, 422, 501, 200 dead-letter, 500 dead-letter");
    let dropped = list("200 drop, 500 drop, 400 drop");
    let all = [&done[..], &retried, &dead, &dropped].concat();
    let (topic, grave) = (
        broker::topic("verdicts", all.len() as i32),
        broker::topic("verdicts-dead", 1),
    );
    let group = broker::unique("group");
    let app = App::by(obedient).await;
    let rule = format!(
        "topic: {topic}, group: {group}, deliver: {{ path: /v }}, dead_letter: {grave}, {FAST}"
    );
    let sidecar = subscribed(app.address, &[rule]).await;
    let written: Vec<_> = all
        .iter()
        .zip(0..)
        .map(|(value, partition)| Written {
            partition,
            ..plain(value)
        })
        .collect();
    broker::write(&topic, &written);
    ended(&sidecar, &topic, "done", done.len()).await;
    ended(&sidecar, &topic, "drop", dropped.len()).await;
    ended(&sidecar, &topic, "dead-letter", retried.len() + dead.len()).await;
    ended(&sidecar, &topic, "retry", retried.len() * 3).await;

    let graves = graves(&grave, retried.len() + dead.len()).await;
    let seen = bodies(&app.seen());
    for value in all {
        let made = seen.iter().filter(|body| *body == value).count();
        let expected = if retried.contains(&value) { 3 } else { 1 };
        assert_eq!(made, expected, "attempts of {value}");
        let lives = done.contains(&value) || dropped.contains(&value);
        assert_eq!(
            !graves.contains_key(value),
            lives,
            "{value} is a dead letter"
        );
        if let Some((attempts, status, reason)) = graves.get(value) {
            let answered = value.split(' ').next().unwrap_or_default();
            assert!(reason.contains(answered), "{value}: {reason}");
            assert_eq!(
                (attempts, &**status),
                (&made.to_string(), answered),
                "{value}"
            );
        }
    }
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn a_message_is_retried_in_its_place_and_no_sooner_than_the_app_wants() {
    let (topic, group) = (broker::topic("retried", 2), broker::unique("group"));
    let failures = AtomicUsize::new(0);
    let app = App::by(move |seen| match &seen.body[..] {
        b"slow" if seen.header("wayside-attempt") == Some("1") => {
            Answer::status(503).header("retry-after", "1")
        }
        b"a" if failures.fetch_add(1, Ordering::SeqCst) < 6 => Answer::status(500),
        _ => Answer::ok(),
    })
    .await;
    // More failures than attempts: without `dead_letter` a message is retried until it is done.
    let rule = format!(
        "topic: {topic}, group: {group}, ordering: partition, deliver: {{ path: /r }}, {FAST}"
    );
    let sidecar = subscribed(app.address, &[rule]).await;
    let slow = Written {
        partition: 1,
        ..plain("slow")
    };
    broker::write(&topic, &[plain("a"), plain("b"), plain("c"), slow]);
    eventually("the first try", LONG, async || {
        bodies(&app.seen()).contains(&"slow".into()).then_some(())
    })
    .await;
    let first = Instant::now();
    let again = async || {
        (bodies(&app.seen())
            .iter()
            .filter(|body| *body == "slow")
            .count()
            == 2)
            .then_some(())
    };
    eventually("the second try", LONG, again).await;
    assert!(
        first.elapsed() > Duration::from_millis(900),
        "retry-after was not waited out: {:?}",
        first.elapsed()
    );
    ended(&sidecar, &topic, "done", 4).await;
    let order: Vec<_> = bodies(&app.seen())
        .into_iter()
        .filter(|body| body != "slow")
        .collect();
    assert_eq!(order, ["a", "a", "a", "a", "a", "a", "a", "b", "c"]);
    let numbers = app
        .seen()
        .iter()
        .filter(|seen| seen.body == "a")
        .map(|seen| seen.header("wayside-attempt").map(str::to_owned))
        .collect::<Vec<_>>();
    assert_eq!(numbers.last(), Some(&Some("7".into())));
    assert!(sidecar.stop().await);
}

fn has_one(record: &Record, name: &str, value: &str) {
    let found: Vec<_> = record
        .headers
        .iter()
        .filter(|(header, _)| header == name)
        .collect();
    assert_eq!(found.len(), 1, "{name}");
    assert_eq!(String::from_utf8_lossy(&found[0].1), value, "{name}");
}

fn tells_its_death(record: &Record, origin: &str, group: &str) {
    has_one(
        record,
        "wayside-dead-reason",
        "attempts used up; the app answered 500",
    );
    has_one(record, "wayside-dead-status", "500");
    has_one(record, "wayside-dead-attempts", "3");
    has_one(record, "wayside-dead-origin", origin);
    has_one(record, "wayside-dead-group", group);
    for name in ["wayside-dead-first", "wayside-dead-last"] {
        let time = record.header(name).expect("a time");
        assert!(humantime::parse_rfc3339(&time).is_ok(), "{name}: {time}");
    }
}

#[tokio::test]
async fn a_dead_letter_is_the_record_it_was_with_its_story_in_headers_and_its_lane_goes_on() {
    let (topic, grave, group) = (
        broker::topic("doomed", 1),
        broker::topic("doomed-dead", 1),
        broker::unique("group"),
    );
    let app = App::by(|seen| match &seen.body[..] {
        b"doomed" if seen.target == "/in" => Answer::status(500),
        _ => Answer::ok(),
    })
    .await;
    let sidecar = subscribed(
        app.address,
        &[
            format!("topic: {topic}, group: {group}, deliver: {{ path: /in }}, dead_letter: {grave}, {FAST}"),
            format!("topic: {grave}, group: {group}, deliver: {{ path: /dead }}"),
        ],
    )
    .await;
    let headers = [
        ("ce_id", "0190a000-0000-7000-8000-000000000001"),
        ("x-foreign", "kept"),
        ("http-x-call", "c"),
        ("wayside-dead-reason", "an earlier death"),
    ];
    broker::write(
        &topic,
        &[
            Written {
                key: Some("k"),
                headers: &headers,
                ..plain("doomed")
            },
            plain("next"),
        ],
    );
    let record = topic::read(&broker::address(), &grave, 1).await.remove(0);
    assert_eq!(
        (record.key.as_deref(), record.value.as_deref()),
        (Some(&b"k"[..]), Some(&b"doomed"[..]))
    );
    headers[..3]
        .iter()
        .for_each(|(name, value)| has_one(&record, name, value));
    tells_its_death(&record, &format!("{topic}/0/0"), &group);
    let seen = calls(&app, 5).await;
    let targets: Vec<_> = seen
        .iter()
        .map(|seen| (seen.target.as_str(), &seen.body[..]))
        .collect();
    assert!(
        targets.contains(&("/in", b"next")),
        "the lane goes on: {targets:?}"
    );
    let dead = seen
        .iter()
        .find(|seen| seen.target == "/dead")
        .expect("an app can subscribe to the dead letters");
    assert_eq!(
        dead.header("wayside-dead-origin"),
        Some(&*format!("{topic}/0/0"))
    );
    assert_eq!(dead.header("wayside-message-id"), Some(headers[0].1));
    assert_eq!(dead.header("wayside-attempt"), Some("1"));
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn an_answer_that_comes_late_or_breaks_off_is_a_retry() {
    let (topic, grave, group) = (
        broker::topic("late", 3),
        broker::topic("late-dead", 1),
        broker::unique("group"),
    );
    let app = App::by(
        |seen| match (&seen.body[..], seen.header("wayside-attempt")) {
            (b"hangs", _) => Answer::hang(),
            (b"torn", Some("1")) => Answer::ok().body("a whole answer").torn(),
            (b"cut", Some("1")) => Answer::cut(),
            _ => Answer::ok(),
        },
    )
    .await;
    let rule = "deliver: { path: /l, timeout: 300ms }, retry: { attempts: 2, backoff: 1ms..2ms }";
    let sidecar = subscribed(
        app.address,
        &[format!(
            "topic: {topic}, group: {group}, dead_letter: {grave}, {rule}"
        )],
    )
    .await;
    let at = |partition, text| Written {
        partition,
        ..plain(text)
    };
    broker::write(&topic, &[at(0, "hangs"), at(1, "torn"), at(2, "cut")]);
    ended(&sidecar, &topic, "done", 2).await;
    ended(&sidecar, &topic, "dead-letter", 1).await;
    let record = topic::read(&broker::address(), &grave, 1).await.remove(0);
    assert_eq!(record.value.as_deref(), Some(&b"hangs"[..]));
    assert_eq!(
        record.header("wayside-dead-status"),
        None,
        "there was no answer"
    );
    let reason = record.header("wayside-dead-reason").expect("a reason");
    assert!(reason.contains("deadline-exceeded"), "{reason}");
    assert_eq!(app.count(), 6);
    assert!(sidecar.stop().await);
}
