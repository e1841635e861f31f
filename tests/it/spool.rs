//! The durable log before the broker: what a 202 means while the broker is away, slow, unwilling, and after a restart.

use std::path::Path;
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::types::RDKafkaRespErr;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;
use wayside::kafka::embedded::Embedded;

use super::publish::refused;
use crate::support::client::{Reply, get, post};
use crate::support::eventually::eventually;
use crate::support::sidecar::Sidecar;
use crate::support::topic;

const SOON: Duration = Duration::from_secs(10);

/// A sidecar that publishes calls for `billing` to `invoices` by this rule, and those for `other` to `other`.
async fn spooling(bootstrap: &str, spool: &Path, rule: &str) -> Sidecar {
    spooling_up_to(bootstrap, spool, rule, "64MiB").await
}

async fn spooling_up_to(bootstrap: &str, spool: &Path, rule: &str, max: &str) -> Sidecar {
    Sidecar::start(&yaml(bootstrap, spool, rule, max)).await
}

fn yaml(bootstrap: &str, spool: &Path, rule: &str, max: &str) -> String {
    format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: all
      match: {{ host: billing }}
      publish: {{ topic: invoices, key: {{ header: x-key }}, key_missing: unordered{rule} }}
    - {{ name: other, match: {{ host: other }}, publish: {{ topic: other, max_body: 64KiB }} }}
kafka: {{ brokers: [\"{bootstrap}\"] }}
spool: {{ path: {}, max: {max}, survives: volume }}
",
        spool.display()
    )
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

async fn send(sidecar: &Sidecar, body: impl Into<bytes::Bytes>) -> Reply {
    post("billing", "/")
        .header("x-key", "k")
        .body(body)
        .send(sidecar.outbound())
        .await
}

/// Waits until calls no longer wait for the broker that went away; tells how many calls that took.
async fn known_to_be_away(sidecar: &Sidecar) -> usize {
    let mut sent = 0;
    eventually("the broker is known to be away", SOON, async || {
        let asked = Instant::now();
        assert_eq!(send(sidecar, "warm").await.status, 202);
        sent += 1;
        (asked.elapsed() < Duration::from_millis(300)).then_some(())
    })
    .await;
    sent
}

async fn timeline(sidecar: &Sidecar, location: &str) -> Value {
    get("any", location).send(sidecar.outbound()).await.json()
}

/// Waits until the message is at the broker, and answers with what happened to it.
async fn replicated(sidecar: &Sidecar, location: &str) -> Vec<String> {
    eventually("the message is replicated", SOON, async || {
        let timeline = timeline(sidecar, location).await;
        let events = timeline["events"].as_array()?;
        let what = events.iter().filter_map(|event| event["what"].as_str());
        let what: Vec<_> = what.map(str::to_owned).collect();
        what.iter().any(|what| what == "replicated").then_some(what)
    })
    .await
}

fn location(reply: &Reply) -> String {
    reply
        .header("location")
        .expect("a 202 says where its timeline is")
        .to_owned()
}

async fn values(bootstrap: &str, topic: &str, count: usize) -> Vec<String> {
    let records = topic::read(bootstrap, topic, count).await;
    let text = |value: Option<Vec<u8>>| String::from_utf8(value.unwrap_or_default()).expect("text");
    records
        .into_iter()
        .map(|record| text(record.value))
        .collect()
}

#[tokio::test]
async fn a_202_never_stops_while_the_broker_is_away_and_everything_arrives_in_order() {
    let broker = Embedded::start().expect("a broker of its own");
    let bootstrap = broker.bootstrap().address;
    let spool = folder();
    let sidecar = spooling(&bootstrap, spool.path(), ", ack_wait: 3s").await;
    let first = send(&sidecar, "0").await;
    assert_eq!(
        (first.status.as_u16(), &first.json()["status"]),
        (202, &"replicated".into())
    );
    assert!(first.json()["offset"].is_u64() && first.json()["spool"].is_null());

    broker.down().expect("it goes down");
    let mut last = String::new();
    for n in 1..=50 {
        let reply = send(&sidecar, n.to_string()).await;
        let said = reply.json();
        assert_eq!(
            (reply.status.as_u16(), &said["status"]),
            (202, &"spooled".into()),
            "{said}"
        );
        assert_eq!(said["spool"]["survives"], "volume");
        assert!(said["partition"].is_null() && said["offset"].is_null());
        last = location(&reply);
    }
    assert_eq!(timeline(&sidecar, &last).await["status"], "spooled");

    broker.up().expect("it comes back");
    assert_eq!(
        replicated(&sidecar, &last).await,
        ["accepted", "spooled", "replicated"]
    );
    let wanted: Vec<_> = (0..=50).map(|n| n.to_string()).collect();
    assert_eq!(values(&bootstrap, "invoices", 51).await, wanted);
    let back = async || (send(&sidecar, "x").await.json()["status"] == "replicated").then_some(());
    eventually("calls wait for the broker again", SOON, back).await;
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn what_was_spooled_is_sent_by_the_next_run_and_its_timeline_is_still_there() {
    let broker = Embedded::start().expect("a broker of its own");
    let bootstrap = broker.bootstrap().address;
    let spool = folder();
    let sidecar = spooling(&bootstrap, spool.path(), "").await;
    let at_broker = send(&sidecar, "first").await;
    broker.down().expect("it goes down");
    let warm = known_to_be_away(&sidecar).await;
    let kept: Vec<_> = [send(&sidecar, "a").await, send(&sidecar, "b").await]
        .iter()
        .map(location)
        .collect();
    assert!(
        sidecar.stop().await,
        "what stays in the spool is not left behind"
    );

    let sidecar = spooling(&bootstrap, spool.path(), "").await;
    let before = timeline(&sidecar, &location(&at_broker)).await;
    assert_eq!(before["status"], "replicated");
    assert_eq!(before["events"][1]["offset"], at_broker.json()["offset"]);
    for kept in &kept {
        assert_eq!(timeline(&sidecar, kept).await["status"], "spooled");
    }
    let third = send(&sidecar, "c").await;
    assert_eq!(third.json()["status"], "spooled");
    broker.up().expect("it comes back");
    replicated(&sidecar, &location(&third)).await;
    let mut values = values(&bootstrap, "invoices", warm + 4).await;
    values.retain(|value| value != "warm");
    assert_eq!(values, ["first", "a", "b", "c"]);
    assert!(sidecar.stop().await);

    let sidecar = spooling(&bootstrap, spool.path(), "").await;
    assert_eq!(timeline(&sidecar, &kept[0]).await["status"], "replicated");
    assert_eq!(send(&sidecar, "d").await.json()["status"], "replicated");
    assert!(sidecar.stop().await);
    assert!(
        topic::read(&bootstrap, "invoices", 20).await.len() < 20,
        "nothing was sent twice"
    );
}

#[tokio::test]
async fn a_spooled_route_does_not_wait_for_a_slow_broker_and_a_replicated_one_only_so_long() {
    let cluster = MockCluster::new(1).expect("a broker of its own");
    let spool = folder();
    let bootstrap = cluster.bootstrap_servers();
    let slow = async |rule: &str, spool: &Path| {
        let sidecar = spooling(&bootstrap, spool, rule).await;
        let warm = async || (send(&sidecar, "warm").await.status == 202).then_some(());
        eventually("it takes calls", SOON, warm).await;
        sidecar
    };
    let spooled = slow(", accept: spooled", &spool.path().join("1")).await;
    let replicated = slow(", ack_wait: 400ms", &spool.path().join("2")).await;
    cluster
        .broker_round_trip_time(1, Duration::from_secs(4))
        .expect("the mock takes it");
    let asked = Instant::now();
    let reply = send(&spooled, "x").await;
    assert_eq!(reply.json()["status"], "spooled");
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );
    let asked = Instant::now();
    let reply = send(&replicated, "y").await;
    assert_eq!(reply.json()["status"], "spooled");
    let waited = asked.elapsed();
    assert!(
        waited >= Duration::from_millis(400) && waited < Duration::from_secs(3),
        "{waited:?}"
    );
}

#[tokio::test]
async fn a_full_spool_is_a_503_and_takes_calls_again_when_the_broker_does() {
    let broker = Embedded::start().expect("a broker of its own");
    let bootstrap = broker.bootstrap().address;
    let spool = folder();
    let sidecar = spooling_up_to(&bootstrap, spool.path(), ", max_body: 512KiB", "4MiB").await;
    assert_eq!(send(&sidecar, "warm").await.status, 202);
    broker.down().expect("it goes down");
    let warm = 1 + known_to_be_away(&sidecar).await;
    let body = "x".repeat(100_000);
    let mut taken = 0;
    let full = loop {
        let reply = send(&sidecar, body.clone()).await;
        if reply.status != 202 {
            break reply;
        }
        taken += 1;
        assert!(taken < 100, "4 MiB hold no more");
    };
    refused(&full, 503, "spool-unavailable");
    assert!(full.header("retry-after").is_some());
    assert!(taken > 20, "{taken}");
    broker.up().expect("it comes back");
    let again = async || (send(&sidecar, body.clone()).await.status == 202).then_some(());
    eventually("it takes calls again", SOON, again).await;
    let values = values(&bootstrap, "invoices", warm + taken + 1).await;
    assert_eq!(
        values.iter().filter(|value| value.len() == 100_000).count(),
        taken + 1
    );
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn a_topic_that_the_broker_refuses_is_a_503_and_stalls_no_other_and_what_it_is_owed_waits() {
    let cluster = MockCluster::new(1).expect("a broker of its own");
    let bootstrap = cluster.bootstrap_servers();
    let spool = folder();
    let sidecar = spooling(&bootstrap, spool.path(), ", accept: spooled").await;
    let first = send(&sidecar, "1").await;
    replicated(&sidecar, &location(&first)).await;
    cluster.broker_down(1).expect("it goes down");
    let owed = send(&sidecar, "2").await;
    assert_eq!(owed.json()["status"], "spooled");
    let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.request_errors(rdkafka::types::RDKafkaApiKey::Produce, &[denied]);
    cluster.broker_up(1).expect("it comes back");
    let refusal = eventually("the topic is refused", SOON, async || {
        Some(send(&sidecar, "no").await).filter(|reply| reply.status != 202)
    })
    .await;
    refused(&refusal, 503, "broker-refused");
    let other = post("other", "/")
        .body("other")
        .send(sidecar.outbound())
        .await;
    assert_eq!(other.status, 202, "{:?}", other.body);
    replicated(&sidecar, &location(&owed)).await;
    let values = values(&bootstrap, "invoices", 2).await;
    assert_eq!(values[..2], ["1", "2"]);
}

#[tokio::test]
async fn a_missing_topic_is_a_503_and_nothing_of_the_call_is_left_in_the_spool() {
    let cluster = MockCluster::new(1).expect("a broker of its own");
    let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    cluster
        .topic_error("invoices", unknown)
        .expect("the mock takes it");
    let spool = folder();
    let sidecar = spooling(
        &cluster.bootstrap_servers(),
        spool.path(),
        ", ack_wait: 20s",
    )
    .await;
    let asked = Instant::now();
    let reply = send(&sidecar, "x").await;
    refused(&reply, 503, "topic-unknown");
    assert!(asked.elapsed() < Duration::from_secs(10));
    assert!(reply.header("retry-after").is_some());
    let none = async || (sidecar.metric("wayside_spool_messages", &[]) == 0.0).then_some(());
    eventually("nothing is owed", SOON, none).await;
    let other = post("other", "/").body("x").send(sidecar.outbound()).await;
    assert_eq!(other.status, 202, "{:?}", other.body);
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn two_sidecars_do_not_share_a_spool() {
    let broker = Embedded::start().expect("a broker of its own");
    let spool = folder();
    let first = spooling(&broker.bootstrap().address, spool.path(), "").await;
    let second = Sidecar::try_start(&yaml(
        &broker.bootstrap().address,
        spool.path(),
        "",
        "64MiB",
    ))
    .await;
    let error = second.err().expect("it is in use");
    assert!(
        error.contains("spool.path") && error.contains("another process"),
        "{error}"
    );
    assert!(first.stop().await);
}

async fn keyed(sidecar: &Sidecar, key: &str, body: &str) -> Reply {
    let body = body.to_owned();
    post("billing", "/")
        .header("idempotency-key", key)
        .body(body)
        .send(sidecar.outbound())
        .await
}

#[tokio::test]
async fn the_same_idempotency_key_is_the_same_message_also_after_a_restart() {
    let broker = Embedded::start().expect("a broker of its own");
    let bootstrap = broker.bootstrap().address;
    let spool = folder();
    let sidecar = spooling(&bootstrap, spool.path(), "").await;
    let first = keyed(&sidecar, "\"order-1\"", "a").await;
    assert_eq!(first.status, 202);
    let id = first.json()["id"].as_str().expect("an id").to_owned();
    assert_eq!(&id[14..15], "8", "a UUIDv8: {id}");
    let again = keyed(&sidecar, "\"order-1\"", "a").await;
    assert_eq!((again.status.as_u16(), again.json()), (202, first.json()));
    assert_eq!(again.header("location"), first.header("location"));
    refused(
        &keyed(&sidecar, "\"order-1\"", "b").await,
        422,
        "idempotency-key-reused",
    );
    assert_ne!(
        keyed(&sidecar, "\"order-2\"", "a").await.json()["id"],
        first.json()["id"]
    );
    let long = "k".repeat(256);
    for bad in ["", &long] {
        refused(&keyed(&sidecar, bad, "a").await, 400, "bad-request");
    }
    assert!(sidecar.stop().await);

    let sidecar = spooling(&bootstrap, spool.path(), "").await;
    let later = keyed(&sidecar, "\"order-1\"", "a").await;
    assert_eq!((later.status.as_u16(), later.json()), (202, first.json()));
    refused(
        &keyed(&sidecar, "\"order-1\"", "b").await,
        422,
        "idempotency-key-reused",
    );
    let records = topic::read(&bootstrap, "invoices", 3).await;
    assert_eq!(records.len(), 2, "two keys, two messages");
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn a_key_stands_for_its_call_also_after_the_caller_has_left() {
    let cluster = MockCluster::new(1).expect("a broker of its own");
    let spool = folder();
    let bootstrap = cluster.bootstrap_servers();
    let sidecar = spooling(&bootstrap, spool.path(), ", ack_wait: 20s").await;
    assert_eq!(keyed(&sidecar, "warm", "x").await.status, 202);
    cluster
        .broker_round_trip_time(1, Duration::from_secs(2))
        .expect("the mock takes it");
    let left = tokio::time::timeout(Duration::from_millis(300), keyed(&sidecar, "one", "a")).await;
    assert!(left.is_err(), "the caller leaves before it has an answer");
    refused(
        &keyed(&sidecar, "one", "b").await,
        422,
        "idempotency-key-reused",
    );
    let again = async || {
        let reply = keyed(&sidecar, "one", "a").await;
        assert_ne!(reply.status, 422);
        (reply.status == 202).then_some(reply)
    };
    let again = eventually("the same call has its 202", SOON, again).await;
    replicated(&sidecar, &location(&again)).await;
    let other = post("billing", "/another")
        .header("idempotency-key", "one")
        .body("a");
    refused(
        &other.send(sidecar.outbound()).await,
        422,
        "idempotency-key-reused",
    );
    cluster
        .broker_round_trip_time(1, Duration::ZERO)
        .expect("the mock takes it");
    let mut values = values(&bootstrap, "invoices", 3).await;
    values.sort_unstable();
    assert_eq!(values, ["a", "x"], "one message a key");
}

#[tokio::test]
async fn a_second_call_with_a_key_whose_first_has_no_answer_is_a_409_and_a_failed_one_can_be_repeated()
 {
    let cluster = MockCluster::new(1).expect("a broker of its own");
    let bootstrap = cluster.bootstrap_servers();
    let sidecar = super::publish::publishing_to(&bootstrap, "slow", ", timeout: 3s").await;
    let warm = async || (keyed(&sidecar, "warm", "x").await.status == 202).then_some(());
    eventually("it takes calls", SOON, warm).await;
    cluster
        .broker_round_trip_time(1, Duration::from_secs(1))
        .expect("the mock takes it");
    let both = tokio::join!(keyed(&sidecar, "one", "x"), keyed(&sidecar, "one", "x"));
    let (first, second) = match both.0.status.as_u16() {
        202 => both,
        _ => (both.1, both.0),
    };
    refused(&second, 409, "idempotency-key-in-progress");
    assert_eq!(first.status, 202);
    cluster
        .broker_round_trip_time(1, Duration::from_secs(8))
        .expect("the mock takes it");
    refused(&keyed(&sidecar, "two", "x").await, 503, "broker-away");
    cluster
        .broker_round_trip_time(1, Duration::ZERO)
        .expect("the mock takes it");
    // Its record may have been written, so the key stands for it.
    let other = keyed(&sidecar, "two", "another body").await;
    refused(&other, 422, "idempotency-key-reused");
    let again = async || (keyed(&sidecar, "two", "x").await.status == 202).then_some(());
    eventually("the call can be repeated", Duration::from_secs(20), again).await;
}
