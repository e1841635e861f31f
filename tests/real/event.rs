//! A slimmed call: what the topic holds, and how each consumer gets the rest.

use std::time::Duration;

use serde_json::{Value, json};

use crate::broker;
use crate::sidecar::Sidecar;
use crate::support::app::{App, Seen};
use crate::support::client::{get, post};
use crate::support::eventually::eventually;
use crate::support::kafka::Kafka;

/// A consumer of `slimmed` in a group of its own name, which finds claims at `orders`.
async fn consumer(kafka: &Kafka, orders: &Sidecar, app: &App, hydrate: &str) -> Sidecar {
    let claims = orders.inbound.expect("the file has an inbound door");
    Sidecar::run(&format!(
        "
service: billing
app: {}
outbound: {{ listen: 127.0.0.1:0 }}
subscriptions:
  - {{ topic: slimmed, group: {hydrate}, hydrate: {hydrate} }}
services:
  orders: {{ addresses: [\"{claims}\"] }}
kafka: {{ brokers: [\"{}\"] }}
",
        app.address,
        kafka.address()
    ))
    .await
}

async fn first_call(app: &App) -> Seen {
    eventually("the app is called", Duration::from_secs(20), async || {
        app.seen().into_iter().next()
    })
    .await
}

#[tokio::test]
async fn a_slim_event_is_whole_again_for_whoever_asks() {
    let Some(kafka) = broker().await else { return };
    kafka.make_topic("slimmed", 4).await;
    let orders = Sidecar::run(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: create-invoice
      match: {{ host: billing, methods: [POST] }}
      publish:
        topic: slimmed
        key: /customer/id
        slim: {{ keep: [/id, /customer], claim: bodies }}
inbound: {{ listen: 127.0.0.1:0 }}
kafka: {{ brokers: [\"{}\"] }}
claims: {{ bodies: {{ disk: \"{{claims}}\", survives: pod }} }}
",
        kafka.address()
    ))
    .await;
    let (lazy_app, eager_app, never_app) = (
        App::agreeable().await,
        App::agreeable().await,
        App::agreeable().await,
    );
    let _lazy = consumer(kafka, &orders, &lazy_app, "lazy").await;
    let _eager = consumer(kafka, &orders, &eager_app, "eager").await;
    let _never = consumer(kafka, &orders, &never_app, "never").await;

    let lines = (0..400).map(|n| format!("{{ \"sku\": \"S-{n}\", \"note\":\"straße 🚃\" }}"));
    let lines = lines.collect::<Vec<_>>().join(", ");
    let whole =
        format!("{{ \"id\": 7,\n  \"customer\" : {{\"id\":\"c-7\"}}, \"lines\": [{lines}] }}");
    let reply = post("billing", "/invoices")
        .json(whole.clone())
        .send(orders.door())
        .await;
    assert_eq!(reply.status, 202, "{:?}", reply.body);
    assert_eq!(reply.header("wayside-pattern"), Some("event"));

    let records = kafka.read_at_least("slimmed", 1).await;
    let [record] = &records[..] else {
        panic!("one call is one record: {records:?}")
    };
    let slim = json!({ "id": 7, "customer": { "id": "c-7" } });
    assert_eq!(
        serde_json::from_str::<Value>(record.text()).expect("JSON"),
        slim
    );

    let call = first_call(&never_app).await;
    assert_eq!(
        (call.json(), call.header("wayside-claim")),
        (slim.clone(), None)
    );

    let call = first_call(&lazy_app).await;
    assert_eq!(call.json(), slim);
    let claim = call
        .header("wayside-claim")
        .expect("a lazy app gets the claim's address");
    let uri: http::Uri = claim.parse().expect("an address");
    let door = uri.authority().expect("the address is whole").as_str();
    let fetched = get(door, uri.path_and_query().expect("a path").as_str());
    let fetched = fetched
        .send(door.parse().expect("a loopback address"))
        .await;
    assert_eq!(fetched.status, 200, "{:?}", fetched.body);
    assert_eq!(fetched.body, whole, "byte for byte");

    let call = first_call(&eager_app).await;
    assert_eq!(call.body, whole, "byte for byte");
    assert_eq!(call.header("content-type"), Some("application/json"));
}
