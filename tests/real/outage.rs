//! The broker goes and comes back under a sidecar that stays.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::own_broker;
use crate::sidecar::Sidecar;
use crate::support::app::{Answer, App};
use crate::support::client::{Outgoing, Reply, get, post};
use crate::support::eventually::eventually;
use crate::support::kafka::Kafka;

fn invoice(n: usize) -> Outgoing {
    post("billing", "/invoices").json(format!("{{\"id\":{n}}}"))
}

/// A sidecar beside `orders` that forwards reads to billing and publishes its invoices.
async fn orders(kafka: &Kafka, billing: &Sidecar) -> Sidecar {
    Sidecar::run(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: read-invoices
      match: {{ host: billing, methods: [GET] }}
      forward: {{ to: billing }}
    - name: create-invoice
      match: {{ host: billing, methods: [POST] }}
      publish: {{ topic: outage, timeout: 2s }}
services:
  billing: {{ addresses: [\"{}\"] }}
kafka: {{ brokers: [\"{}\"] }}
",
        billing.inbound.expect("the file has an inbound door"),
        kafka.address()
    ))
    .await
}

fn id(reply: &Reply) -> String {
    assert_eq!(reply.status, 202, "{:?}", reply.body);
    reply.json()["id"]
        .as_str()
        .expect("the 202 names the message")
        .to_owned()
}

async fn refuses_and_forwards(orders: &Sidecar) {
    let reply = invoice(2).send(orders.door()).await;
    assert_eq!(reply.status, 503, "{:?}", reply.body);
    assert_eq!(
        reply.header("content-type"),
        Some("application/problem+json")
    );
    let wait = reply
        .header("retry-after")
        .expect("a caller is told when to come back");
    assert!(
        wait.parse::<u64>().is_ok_and(|seconds| seconds > 0),
        "{wait}"
    );
    assert!(
        reply.header("proxy-status").is_some(),
        "{:?}",
        reply.headers
    );
    let forwarded = get("billing", "/invoices/1").send(orders.door()).await;
    assert_eq!(
        (forwarded.status.as_u16(), &forwarded.body[..]),
        (200, &b"here"[..])
    );
    assert_eq!(
        orders.ready().await,
        200,
        "an outage of the broker does not take the pod out"
    );
}

#[tokio::test]
async fn without_its_broker_a_sidecar_refuses_publishes_and_goes_on_forwarding() {
    let Some(mut kafka) = own_broker().await else {
        return;
    };
    kafka.make_topic("outage", 1).await;
    let app = App::by(|_| Answer::ok().body("here")).await;
    let billing = Sidecar::run(&format!(
        "service: billing\napp: {}\ninbound: {{ listen: 127.0.0.1:0 }}\n",
        app.address
    ))
    .await;
    let mut orders = orders(&kafka, &billing).await;
    let first = eventually("publishing works", Duration::from_secs(60), async || {
        let reply = invoice(1).send(orders.door()).await;
        (reply.status == 202).then_some(reply)
    })
    .await;
    let mut taken = BTreeSet::from([id(&first)]);

    kafka.kill();
    for _ in 0..3 {
        refuses_and_forwards(&orders).await;
    }
    kafka.restart().await;
    let reply = eventually(
        "publishing works again",
        Duration::from_secs(60),
        async || {
            let reply = invoice(3).send(orders.door()).await;
            (reply.status == 202).then_some(reply)
        },
    )
    .await;
    taken.insert(id(&reply));
    assert!(orders.is_running(), "the same process all along");
    let records = kafka.read_at_least("outage", taken.len()).await;
    let kept = records
        .iter()
        .map(|record| record.header("ce_id").to_owned())
        .collect();
    assert!(
        taken.is_subset(&kept),
        "a 202 is never lost: {taken:?} in {kept:?}"
    );
}
