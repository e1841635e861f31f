//! From a call at one door to a record in a topic, and to the same call at another app.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;

use crate::broker;
use crate::sidecar::Sidecar;
use crate::support::app::{App, Seen};
use crate::support::client::{get, post};
use crate::support::eventually::eventually;
use crate::support::kafka::Kafka;

/// A sidecar beside `orders` that publishes every POST for billing to `topic`.
async fn orders(kafka: &Kafka, topic: &str) -> Sidecar {
    Sidecar::run(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: create-invoice
      match: {{ host: billing, methods: [POST] }}
      publish: {{ topic: {topic}, key: /customer/id }}
kafka: {{ brokers: [\"{}\"] }}
",
        kafka.address()
    ))
    .await
}

#[tokio::test]
async fn a_post_at_orders_arrives_at_billings_app_as_the_same_call() {
    let Some(kafka) = broker().await else { return };
    kafka.make_topic("same-call", 4).await;
    let app = App::agreeable().await;
    let orders = orders(kafka, "same-call").await;
    let _billing = Sidecar::run(&format!(
        "
service: billing
app: {}
outbound: {{ listen: 127.0.0.1:0 }}
subscriptions:
  - {{ topic: same-call, group: same-call }}
kafka: {{ brokers: [\"{}\"] }}
",
        app.address,
        kafka.address()
    ))
    .await;
    // Odd spacing, an escape, and letters of two and four bytes: what a parser would tidy must stay.
    let body =
        "{ \"customer\" : {\"id\":\"c-7\"},\n\t\"note\":\"\\u00e9 straße 🚃\", \"n\": 1.0e2 }";
    let target = "/invoices/eu%20west/a%2Fb?draft=1&x=%C3%A9&empty=";
    let reply = post("billing", target)
        .header("content-type", "application/json; charset=utf-8")
        .header("accept-language", "de")
        .header("x-tag", "one")
        .header("x-tag", "two")
        .header("authorization", "Bearer secret")
        .header("cookie", "session=secret")
        .header("x-forwarded-for", "10.0.0.9")
        .body(body)
        .send(orders.door())
        .await;
    assert_eq!(reply.status, 202, "{:?}", reply.body);
    assert_eq!(reply.header("wayside-pattern"), Some("publish"));
    let id = reply.json()["id"]
        .as_str()
        .expect("the 202 names the message")
        .to_owned();
    let location = format!("/.wayside/messages/{id}");
    assert_eq!(reply.header("location"), Some(location.as_str()));

    let call = eventually(
        "billing's app is called",
        Duration::from_secs(20),
        async || app.seen().into_iter().next(),
    )
    .await;
    is_the_call(&call, target, body);
    assert_eq!(call.header("wayside-message-id"), Some(id.as_str()));
    let timeline = get("billing", &location).send(orders.door()).await;
    assert_eq!(timeline.status, 200);
    assert_eq!(
        timeline.json()["status"],
        "replicated",
        "{}",
        timeline.json()
    );
    assert_eq!(app.count(), 1, "one message is one call");
}

fn is_the_call(call: &Seen, target: &str, body: &str) {
    assert_eq!(
        (call.method.as_str(), call.target.as_str()),
        ("POST", target)
    );
    assert_eq!(String::from_utf8_lossy(&call.body), body);
    assert_eq!(
        call.header("content-type"),
        Some("application/json; charset=utf-8")
    );
    assert_eq!(call.header("accept-language"), Some("de"));
    let tags: Vec<_> = call.headers.get_all("x-tag").iter().collect();
    assert_eq!(tags, ["one", "two"]);
    for name in ["authorization", "cookie", "x-forwarded-for"] {
        assert_eq!(call.header(name), None, "{name} stays at home");
    }
    assert_eq!(call.header("wayside-attempt"), Some("1"));
    assert!(
        call.header("traceparent")
            .is_some_and(|value| value.starts_with("00-")),
        "{call:?}"
    );
}

#[tokio::test]
async fn kcat_reads_the_value_the_key_and_the_cloudevents_headers() {
    let Some(kafka) = broker().await else { return };
    kafka.make_topic("plain-to-read", 4).await;
    let orders = orders(kafka, "plain-to-read").await;
    let body = "{ \"customer\":{\"id\":\"c-9\"}, \"total\": 12.50 }";
    let call = post("billing", "/invoices?draft=1").json(body);
    let call = call
        .header("authorization", "Bearer secret")
        .header("cookie", "session=secret");
    let reply = call.send(orders.door()).await;
    assert_eq!(reply.status, 202, "{:?}", reply.body);

    let records = kafka.read_at_least("plain-to-read", 1).await;
    let [record] = &records[..] else {
        panic!("one call is one record: {records:?}")
    };
    assert_eq!(record.value.as_deref(), Some(body));
    assert_eq!(record.key.as_deref(), Some("c-9"));
    assert_eq!(record.header("ce_specversion"), "1.0");
    assert_eq!(reply.json()["id"], json!(record.header("ce_id")));
    assert!(
        !record.header("ce_source").is_empty(),
        "CloudEvents wants a source"
    );
    assert!(
        !record.header("ce_type").is_empty(),
        "CloudEvents wants a type"
    );
    assert_eq!(record.header("content-type"), "application/json");
    let secrets = record.headers();
    assert!(
        !format!("{secrets:?}").contains("secret"),
        "credentials in {secrets:?}"
    );
}

#[tokio::test]
async fn a_key_lands_in_the_partition_that_javas_own_producer_chooses() {
    let Some(kafka) = broker().await else { return };
    kafka.make_topic("same-partition", 7).await;
    let orders = orders(kafka, "same-partition").await;
    // A number's key is its JSON text; a string's is its unescaped UTF-8.
    let mut keys: Vec<(serde_json::Value, String)> = (0..20)
        .map(|n| (json!(format!("customer-{n}")), format!("customer-{n}")))
        .collect();
    keys.push((json!("straße 🚃"), "straße 🚃".to_owned()));
    keys.push((json!("quote \" and \\"), "quote \" and \\".to_owned()));
    keys.push((json!(42), "42".to_owned()));
    keys.push((json!(true), "true".to_owned()));
    for (value, _) in &keys {
        let body = json!({ "customer": { "id": value } }).to_string();
        let reply = post("billing", "/invoices")
            .json(body)
            .send(orders.door())
            .await;
        assert_eq!(reply.status, 202, "{:?}", reply.body);
    }
    let lines: String = keys
        .iter()
        .map(|(_, key)| format!("{key}|java\n"))
        .collect();
    kafka.produce_by_java("same-partition", &lines).await;

    let records = kafka.read_at_least("same-partition", 2 * keys.len()).await;
    let mut ours = BTreeMap::new();
    let mut javas = BTreeMap::new();
    for record in records {
        let side = if record.text() == "java" {
            &mut javas
        } else {
            &mut ours
        };
        side.insert(record.key.clone().unwrap_or_default(), record.partition);
    }
    assert_eq!(ours, javas);
    assert_eq!(ours.len(), keys.len());
    let used: BTreeSet<_> = ours.values().collect();
    assert!(used.len() > 3, "24 keys on {used:?} prove little");
}
