//! What outlives what: sidecars stop and start, brokers and groups come and go, and no message is lost or late.

use std::collections::HashSet;
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::types::RDKafkaRespErr;
use tokio::time::Instant;
use wayside::kafka::embedded::Embedded;

use super::subscription::{LONG, bodies, calls, ended, subscribed, subscribed_at, yaml};
use crate::support::app::{Answer, App};
use crate::support::broker::{self, Written, plain};
use crate::support::client::post;
use crate::support::eventually::eventually;
use crate::support::sidecar::Sidecar;
use crate::support::topic;

#[tokio::test]
async fn a_stop_in_the_middle_of_retries_is_quick_and_the_next_sidecar_delivers_the_rest() {
    let (topic, group) = (broker::topic("stopped", 2), broker::unique("group"));
    let rule = format!(
        "topic: {topic}, group: {group}, ordering: partition, deliver: {{ path: /s }}, retry: {{ attempts: 5, backoff: 30s..60s }}"
    );
    let failing = App::by(|seen| match &seen.body[..] {
        b"fails" => Answer::status(503).header("retry-after", "60"),
        _ => Answer::ok(),
    })
    .await;
    let sidecar = subscribed(failing.address, std::slice::from_ref(&rule)).await;
    let other = |text| Written {
        partition: 1,
        ..plain(text)
    };
    broker::write(
        &topic,
        &[
            plain("first"),
            plain("fails"),
            plain("behind"),
            other("one"),
            other("two"),
        ],
    );
    calls(&failing, 4).await;
    ended(&sidecar, &topic, "done", 3).await;
    let stopping = Instant::now();
    assert!(sidecar.stop().await);
    assert!(
        stopping.elapsed() < Duration::from_secs(4),
        "{:?}",
        stopping.elapsed()
    );

    let app = App::agreeable().await;
    let next = subscribed(app.address, &[rule]).await;
    let seen = calls(&app, 2).await;
    assert_eq!(
        bodies(&seen),
        ["fails", "behind"],
        "what was done does not come again"
    );
    broker::write(&topic, &[plain("later")]);
    assert_eq!(bodies(&calls(&app, 3).await), ["fails", "behind", "later"]);
    assert!(next.stop().await);
}

#[tokio::test]
async fn a_stop_lets_what_is_with_the_app_finish_and_starts_nothing_more() {
    let (topic, group) = (broker::topic("finishing", 4), broker::unique("group"));
    let rule = format!("topic: {topic}, group: {group}, deliver: {{ path: /f }}, concurrency: 1");
    let app = App::by(|_| Answer::ok().after(Duration::from_millis(1500))).await;
    let sidecar = subscribed(app.address, std::slice::from_ref(&rule)).await;
    let written: Vec<_> = (0..4)
        .map(|partition| Written {
            partition,
            ..plain("slow")
        })
        .collect();
    broker::write(&topic, &written);
    calls(&app, 1).await;
    // The other three wait for the one place.
    assert!(sidecar.stop().await);
    assert_eq!(app.count(), 1, "a stop starts no delivery");
    let rest = App::agreeable().await;
    let next = subscribed(rest.address, &[rule]).await;
    calls(&rest, 3).await;
    broker::write(&topic, &written);
    calls(&rest, 7).await;
    assert_eq!(rest.count(), 7, "what finished does not come again");
    assert!(next.stop().await);
}

#[tokio::test]
async fn two_sidecars_of_a_group_share_a_topic_and_one_takes_over_what_the_other_leaves() {
    let (topic, group) = (broker::topic("shared", 4), broker::unique("group"));
    let rule = format!("topic: {topic}, group: {group}, deliver: {{ path: /s }}");
    let (app, other_app) = (App::agreeable().await, App::agreeable().await);
    let rules = [rule];
    let (sidecar, other) = tokio::join!(
        subscribed(app.address, &rules),
        subscribed(other_app.address, &rules)
    );
    let round: Vec<_> = (0..4)
        .map(|partition| Written {
            partition,
            ..plain("x")
        })
        .collect();
    eventually("both have lanes", LONG, async || {
        let lanes = |sidecar: &Sidecar| {
            sidecar.metric(
                "wayside_partitions",
                &[&format!("subscription=\"{topic}\"")],
            )
        };
        (lanes(&sidecar) == 2.0 && lanes(&other) == 2.0).then_some(())
    })
    .await;
    broker::write(&topic, &round);
    eventually("each gets its share", LONG, async || {
        (app.count() == 2 && other_app.count() == 2).then_some(())
    })
    .await;
    assert!(other.stop().await);
    broker::write(&topic, &round);
    calls(&app, 6).await;
    broker::write(&topic, &round);
    calls(&app, 10).await;
    assert_eq!(
        (app.count(), other_app.count()),
        (10, 2),
        "each message is delivered once"
    );
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn a_dead_letter_that_the_broker_does_not_take_holds_its_lane_and_neither_is_lost() {
    let cluster = MockCluster::new(1).expect("a broker of its own");
    let bootstrap = cluster.bootstrap_servers();
    cluster
        .create_topic("doomed", 1, 1)
        .expect("the name is new");
    let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    cluster
        .topic_error("grave", unknown)
        .expect("the mock takes it");
    let app = App::by(|seen| {
        if seen.target == "/doomed" {
            Answer::status(400)
        } else {
            Answer::ok()
        }
    })
    .await;
    let rule = ["topic: doomed, group: g, ordering: partition, dead_letter: grave".to_owned()];
    let sidecar = subscribed_at(&bootstrap, app.address, &rule).await;
    let publish = |path: &'static str| publish_once(&bootstrap, "doomed", path);
    publish("/doomed").await;
    publish("/next").await;
    calls(&app, 1).await;
    let stopping = Instant::now();
    sidecar.stop().await;
    assert!(
        stopping.elapsed() < Duration::from_secs(9),
        "{:?}",
        stopping.elapsed()
    );
    assert_eq!(app.count(), 1, "the lane waited");

    cluster
        .topic_error("grave", RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR)
        .expect("the mock takes it");
    let sidecar = subscribed_at(&bootstrap, app.address, &rule).await;
    let seen = calls(&app, 3).await;
    let targets: Vec<_> = seen.iter().map(|seen| seen.target.as_str()).collect();
    assert_eq!(targets, ["/doomed", "/doomed", "/next"]);
    assert_eq!(topic::read(&bootstrap, "grave", 1).await.len(), 1);
    assert!(sidecar.stop().await);
}

/// Publishes one call by a sidecar that exists for just that.
async fn publish_once(bootstrap: &str, topic: &str, path: &str) {
    let sidecar = Sidecar::start(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes: [ {{ name: all, publish: {{ topic: {topic} }} }} ]
kafka: {{ brokers: [\"{bootstrap}\"] }}
"
    ))
    .await;
    let published = async || {
        (post("billing", path)
            .body("x")
            .send(sidecar.outbound())
            .await
            .status
            == 202)
            .then_some(())
    };
    eventually("it is published", LONG, published).await;
}

#[tokio::test]
async fn a_stop_is_in_time_though_the_app_never_answers_and_the_message_comes_again() {
    let (topic, group) = (broker::topic("hung", 1), broker::unique("group"));
    let rule = [format!(
        "topic: {topic}, group: {group}, deliver: {{ path: /h, timeout: 1h }}"
    )];
    let hung = App::by(|_| Answer::hang()).await;
    let sidecar = subscribed(hung.address, &rule).await;
    broker::write(&topic, &[plain("1"), plain("2")]);
    calls(&hung, 1).await;
    let stopping = Instant::now();
    assert!(!sidecar.stop().await, "it says that something was left");
    assert!(
        stopping.elapsed() < Duration::from_secs(9),
        "{:?}",
        stopping.elapsed()
    );
    let app = App::agreeable().await;
    let next = subscribed(app.address, &rule).await;
    assert_eq!(bodies(&calls(&app, 2).await), ["1", "2"]);
    assert!(next.stop().await);
}

#[tokio::test]
async fn a_broker_that_is_away_at_the_start_or_goes_later_costs_no_message() {
    let broker = Embedded::start().expect("a broker of its own");
    broker.create("t", 2).expect("the name is new");
    let bootstrap = broker.bootstrap().address;
    broker.down().expect("it goes down");
    let app = App::agreeable().await;
    let sidecar = subscribed_at(&bootstrap, app.address, &["topic: t, group: g".to_owned()]).await;
    broker.up().expect("it comes back");
    publish_once(&bootstrap, "t", "/1").await;
    calls(&app, 1).await;
    broker.down().expect("it goes down");
    let refused = async || {
        tokio::net::TcpStream::connect(&bootstrap)
            .await
            .is_err()
            .then_some(())
    };
    eventually("the broker is gone", LONG, refused).await;
    broker.up().expect("it comes back");
    publish_once(&bootstrap, "t", "/2").await;
    publish_once(&bootstrap, "t", "/3").await;
    let all = async || {
        ["/1", "/2", "/3"]
            .iter()
            .all(|path| app.seen().iter().any(|seen| seen.target == *path))
            .then_some(())
    };
    eventually("each arrives", LONG, all).await;
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn nothing_is_lost_or_out_of_order_though_the_app_fails_and_sidecars_come_and_go() {
    const EACH: usize = 60;
    let (topic, group) = (broker::topic("stress", 4), broker::unique("group"));
    let app = App::by(|seen| match fastrand::u8(..10) {
        0 => Answer::status(503),
        1 => Answer::cut(),
        _ if seen.body.is_empty() => Answer::status(400),
        _ => Answer::ok().after(Duration::from_millis(5)),
    })
    .await;
    let rule = [format!(
        "topic: {topic}, group: {group}, ordering: partition, deliver: {{ path: /s }}, retry: {{ backoff: 1ms..5ms }}"
    )];
    let texts: Vec<(i32, String)> = (0..EACH)
        .flat_map(|n| (0..4).map(move |p| (p, format!("{p}/{n}"))))
        .collect();
    let written: Vec<_> = texts
        .iter()
        .map(|(partition, text)| Written {
            partition: *partition,
            ..plain(text)
        })
        .collect();
    broker::write(&topic, &written);
    let first = subscribed(app.address, &rule).await;
    calls(&app, 50).await;
    let second = subscribed(app.address, &rule).await;
    calls(&app, 100).await;
    assert!(first.stop().await);
    let all = async || {
        let seen: HashSet<String> = bodies(&app.seen()).into_iter().collect();
        (seen.len() == texts.len()).then_some(())
    };
    eventually("each message arrives", LONG, all).await;
    for partition in 0..4 {
        let prefix = format!("{partition}/");
        let mut firsts = Vec::new();
        for body in bodies(&app.seen())
            .into_iter()
            .filter(|body| body.starts_with(&prefix))
        {
            if !firsts.contains(&body) {
                firsts.push(body);
            }
        }
        let expected: Vec<_> = (0..EACH).map(|n| format!("{partition}/{n}")).collect();
        assert_eq!(
            firsts, expected,
            "a message is first seen before one that came before it"
        );
    }
    assert!(second.stop().await);
}

#[tokio::test]
async fn a_reload_changes_where_a_subscription_delivers_and_loses_nothing() {
    let (first, second) = (broker::topic("reloaded", 2), broker::topic("untouched", 1));
    let rule = |path: &str, topic: &str| {
        format!("topic: {topic}, group: {topic}, deliver: {{ path: {path} }}")
    };
    let app = App::agreeable().await;
    let (old, other) = (rule("/old", &first), rule("/other", &second));
    let sidecar = subscribed(app.address, &[old, other.clone()]).await;
    broker::write(&first, &[plain("one")]);
    broker::write(&second, &[plain("x")]);
    calls(&app, 2).await;
    ended(&sidecar, &first, "done", 1).await;

    // The untouched rule stands on another line now, which is no change.
    let new = yaml(
        &broker::address(),
        app.address,
        &[other, rule("/new", &first)],
    );
    sidecar
        .reload(&new)
        .await
        .expect("subscriptions can be reloaded");
    broker::write(
        &first,
        &[
            plain("two"),
            Written {
                partition: 1,
                ..plain("three")
            },
        ],
    );
    broker::write(&second, &[plain("y")]);
    let seen = calls(&app, 5).await;
    let to = |path: &str| {
        let mut bodies: Vec<String> = bodies(
            &seen
                .iter()
                .filter(|seen| seen.target == path)
                .cloned()
                .collect::<Vec<_>>(),
        );
        bodies.sort_unstable();
        bodies
    };
    assert_eq!(
        (to("/old"), to("/new"), to("/other")),
        (
            vec!["one".to_owned()],
            vec!["three".to_owned(), "two".to_owned()],
            vec!["x".to_owned(), "y".to_owned()],
        )
    );
    assert!(sidecar.stop().await);
}
