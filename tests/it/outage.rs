//! What callers get while the broker is away, slow or unwilling.

use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::types::RDKafkaRespErr;
use tokio::time::Instant;
use wayside::kafka::embedded::Embedded;

use super::publish::{publishing_to, refused};
use crate::support::app::App;
use crate::support::client::{get, post};
use crate::support::eventually::eventually;
use crate::support::sidecar::Sidecar;

/// A sidecar with a route of each kind; its claim store takes 1 MiB.
async fn of_each_kind(bootstrap: &str, app: &App, claims: &std::path::Path) -> Sidecar {
    Sidecar::start(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - {{ name: read, match: {{ host: rates }}, forward: {{ to: rates }} }}
    - name: slim
      match: {{ host: archive }}
      publish: {{ topic: archive, slim: {{ keep: [/id] }} }}
    - {{ name: write, match: {{ host: billing }}, publish: {{ topic: invoices, timeout: 2s }} }}
services: {{ rates: {{ addresses: [{}] }} }}
claims: {{ bodies: {{ disk: {}, max: 1MiB, survives: pod }} }}
kafka: {{ brokers: [\"{bootstrap}\"] }}
",
        app.address,
        claims.display(),
    ))
    .await
}

#[tokio::test]
async fn while_the_broker_is_away_calls_are_refused_fast_and_pass_again_when_it_is_back() {
    let broker = Embedded::start().expect("a broker of its own");
    let app = App::agreeable().await;
    let claims = tempfile::tempdir().expect("a folder");
    let sidecar = of_each_kind(&broker.bootstrap().address, &app, claims.path()).await;
    let publish = async || {
        post("billing", "/invoices")
            .json("{}")
            .send(sidecar.outbound())
            .await
    };
    assert_eq!(publish().await.status, 202);

    broker.down().expect("it goes down");
    let first = publish().await;
    refused(&first, 503, "broker-away");
    eventually(
        "calls are refused at once",
        Duration::from_secs(5),
        async || {
            let asked = Instant::now();
            let reply = publish().await;
            refused(&reply, 503, "broker-away");
            assert!(
                reply
                    .header("retry-after")
                    .is_some_and(|text| text.parse::<u64>().is_ok_and(|wait| wait > 0))
            );
            (asked.elapsed() < Duration::from_millis(100)).then_some(())
        },
    )
    .await;
    // Bodies of calls that are refused must not fill the store: these alone would, twice over.
    let whole = format!(r#"{{"id":1,"rest":"{}"}}"#, "x".repeat(200_000));
    for _ in 0..10 {
        let reply = post("archive", "/")
            .json(whole.clone())
            .send(sidecar.outbound())
            .await;
        refused(&reply, 503, "broker-away");
    }
    assert_eq!(
        get("rates", "/").send(sidecar.outbound()).await.status,
        200,
        "forwarding goes on"
    );
    let ready = get("localhost", "/ready")
        .send(sidecar.addresses().admin)
        .await;
    assert_eq!(ready.status, 200, "the pod stays ready");

    broker.up().expect("it comes back");
    let back = async || (publish().await.status == 202).then_some(());
    eventually(
        "calls pass without a restart",
        Duration::from_secs(10),
        back,
    )
    .await;
    let reply = post("archive", "/")
        .json(whole)
        .send(sidecar.outbound())
        .await;
    assert_eq!(reply.status, 202, "{:?}", reply.body);
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn a_topic_that_the_broker_does_not_make_is_a_503_that_says_so() {
    let cluster = MockCluster::new(1).expect("a broker of its own");
    cluster
        .topic_error(
            "unmade",
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        )
        .expect("the mock takes it");
    let sidecar = publishing_to(&cluster.bootstrap_servers(), "unmade", "").await;
    let reply = post("billing", "/")
        .body("x")
        .send(sidecar.outbound())
        .await;
    refused(&reply, 503, "topic-unknown");
    assert!(reply.header("retry-after").is_some());
}

#[tokio::test]
async fn a_broker_that_answers_too_late_is_a_503_within_the_routes_timeout() {
    let cluster = MockCluster::new(1).expect("a broker of its own");
    let sidecar = publishing_to(&cluster.bootstrap_servers(), "slow", ", timeout: 500ms").await;
    let warm = async || {
        (post("billing", "/")
            .body("x")
            .send(sidecar.outbound())
            .await
            .status
            == 202)
            .then_some(())
    };
    eventually("the broker knows the topic", Duration::from_secs(10), warm).await;
    cluster
        .broker_round_trip_time(1, Duration::from_secs(3))
        .expect("the mock takes it");
    let asked = Instant::now();
    let reply = post("billing", "/")
        .body("x")
        .send(sidecar.outbound())
        .await;
    refused(&reply, 503, "broker-away");
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );
    assert!(
        reply.json()["detail"]
            .to_string()
            .contains("may have been written")
    );
}
