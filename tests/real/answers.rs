//! Request and reply through two sidecars: the receiver's real answer for a caller that waits, and what becomes of it
//! when one of both dies midway.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::broker;
use crate::sidecar::Sidecar;
use crate::support::app::{Answer, App};
use crate::support::client::{Reply, get, post};
use crate::support::eventually::eventually;
use crate::support::kafka::Kafka;

const SOON: Duration = Duration::from_secs(40);

/// Two sidecars, the topic of calls between them, named `name`, and the topics of replies.
struct Line {
    orders: Sidecar,
    billing: Sidecar,
}

impl Line {
    async fn lay(kafka: &Kafka, name: &str, app: &App) -> Self {
        kafka.make_topic(name, 4).await;
        kafka.make_topic(&format!("orders.{name}"), 5).await;
        let brokers = kafka.address();
        let orders = format!(
            "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: create-invoice
      match: {{ host: billing }}
      publish: {{ topic: {name}, key: /key }}
kafka: {{ brokers: [\"{brokers}\"], replies: \"{{service}}.{name}\" }}
"
        );
        // A short session: a member that was killed must not hold its partitions for long.
        let billing = format!(
            "
service: billing
app: {}
outbound: {{ listen: 127.0.0.1:0 }}
subscriptions:
  - {{ topic: {name}, group: {name} }}
kafka:
  brokers: [\"{brokers}\"]
  replies: \"{{service}}.{name}\"
  properties: {{ session.timeout.ms: \"2000\", heartbeat.interval.ms: \"500\" }}
",
            app.address
        );
        let line = Self {
            orders: Sidecar::run(&orders).await,
            billing: Sidecar::run(&billing).await,
        };
        // The first group takes some seconds to form; whoever waits after that waits for the app.
        let warm = line.ask("warm", "wait=0").await;
        line.result(&id(&warm)).await;
        line
    }

    async fn ask(&self, key: &str, prefer: &str) -> Reply {
        post("billing", "/invoices")
            .header("prefer", prefer)
            .json(json!({ "key": key }).to_string())
            .send(self.orders.door())
            .await
    }

    /// The document at a message's address, once it has a result and is done: the two are told by one record each.
    async fn result(&self, id: &str) -> Value {
        eventually("the result is at its address", SOON, async || {
            let path = format!("/.wayside/messages/{id}");
            let reply = get("billing", &path).send(self.orders.door()).await;
            let document = (reply.status == 200).then(|| reply.json());
            let is_done = |document: &Value| document["status"] == "done";
            document.filter(|document| !document["result"].is_null() && is_done(document))
        })
        .await
    }
}

fn id(reply: &Reply) -> String {
    assert_eq!(reply.status, 202, "{:?}", reply.body);
    let id = reply.json()["id"].as_str().map(str::to_owned);
    id.expect("the 202 names the message")
}

#[tokio::test]
async fn a_caller_that_waits_has_the_other_apps_answer_within_its_two_seconds() {
    let Some(kafka) = broker().await else { return };
    let app = App::by(|call| {
        let body = json!({ "invoice": call.json()["key"] }).to_string();
        Answer::status(201)
            .header("content-type", "application/json")
            .body(body)
    })
    .await;
    let line = Line::lay(kafka, "asked", &app).await;
    for n in 0..20 {
        let key = format!("k-{n}");
        let reply = line.ask(&key, "wait=2").await;
        assert_eq!(reply.status, 201, "{:?}", reply.body);
        assert_eq!(reply.json()["invoice"], key.as_str());
        assert_eq!(reply.header("preference-applied"), Some("wait=2"));
    }
    // Receipts lie in one partition of five, the one that Java's producer would choose for the origin's name.
    let receipts = kafka.read_at_least("orders.asked", 21).await;
    let partitions: std::collections::BTreeSet<_> =
        receipts.iter().map(|record| record.partition).collect();
    assert_eq!(partitions.len(), 1, "{receipts:?}");
    let first: Value = serde_json::from_str(receipts[0].text()).expect("JSON that kcat reads");
    let origin = first[0]["origin"].as_str().expect("an origin");
    kafka.make_topic("orders.asked.java", 5).await;
    kafka
        .produce_by_java("orders.asked.java", &format!("{origin}|x\n"))
        .await;
    let javas = kafka.read_at_least("orders.asked.java", 1).await;
    assert!(partitions.contains(&javas[0].partition), "{javas:?}");
}

#[tokio::test]
async fn a_replier_killed_midway_is_a_202_and_then_a_result() {
    let Some(kafka) = broker().await else { return };
    let hangs = Arc::new(AtomicBool::new(false));
    let hanging = Arc::clone(&hangs);
    let app = App::by(move |_| match hanging.load(Ordering::Relaxed) {
        true => Answer::hang(),
        false => Answer::ok().body("answered"),
    })
    .await;
    let mut line = Line::lay(kafka, "replier-killed", &app).await;
    hangs.store(true, Ordering::Relaxed);
    let before = app.count();
    let asking = line.ask("a", "wait=2");
    let killing = eventually("the app has the call", SOON, async || {
        (app.count() > before).then_some(())
    });
    let (reply, ()) = tokio::join!(asking, killing);
    let id = id(&reply);
    assert_eq!(reply.header("preference-applied"), Some("wait=2"));
    line.billing.kill();
    hangs.store(false, Ordering::Relaxed);
    line.billing.start_again().await;
    let document = line.result(&id).await;
    assert_eq!(
        (&document["status"], &document["result"]["body"]),
        (&json!("done"), &json!("answered"))
    );
}

#[tokio::test]
async fn an_origin_killed_before_the_answer_has_it_at_its_address_all_the_same() {
    let Some(kafka) = broker().await else { return };
    let app = App::by(|call| match call.json()["key"].as_str() {
        Some("slow") => Answer::ok().body("slow").after(Duration::from_secs(2)),
        _ => Answer::ok().body("quick"),
    })
    .await;
    let mut line = Line::lay(kafka, "origin-killed", &app).await;
    let before = line.ask("quick", "wait=2").await;
    let before = before
        .header("wayside-message-id")
        .expect("its id")
        .to_owned();
    let while_away = id(&line.ask("slow", "wait=0").await);
    line.orders.kill();
    eventually("the answer is in the topic", SOON, async || {
        let receipts = kafka.read("orders.origin-killed").await;
        let told = receipts
            .iter()
            .any(|record| record.text().contains(&while_away));
        told.then_some(())
    })
    .await;
    line.orders.start_again().await;
    for (id, body) in [(before, "quick"), (while_away, "slow")] {
        let document = line.result(&id).await;
        assert_eq!(
            (&document["status"], &document["result"]["body"]),
            (&json!("done"), &json!(body))
        );
    }
    let reply = line.ask("again", "wait=2").await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body[..]),
        (200, &b"quick"[..])
    );
}

#[tokio::test]
async fn a_topic_of_replies_that_nobody_made_is_made_and_found() {
    let Some(kafka) = broker().await else { return };
    let app = App::by(|_| Answer::ok().body("found")).await;
    kafka.make_topic("made-by-asking", 1).await;
    let yaml = |service: &str, more: &str| {
        format!(
            "
service: {service}
outbound:
  listen: 127.0.0.1:0
{more}
kafka: {{ brokers: [\"{}\"], replies: \"{{service}}.nobody-made\" }}
",
            kafka.address()
        )
    };
    let routes = "  routes: [{ name: all, publish: { topic: made-by-asking } }]";
    let orders = Sidecar::run(&yaml("orders", routes)).await;
    let billing = format!(
        "app: {}\nsubscriptions: [{{ topic: made-by-asking, group: made-by-asking }}]",
        app.address
    );
    let _billing = Sidecar::run(&yaml("billing", &billing)).await;
    // As long as there is no topic to read, a call does not wait for what cannot come.
    let found = async || {
        let call = post("billing", "/").header("prefer", "wait=5");
        let reply = call.send(orders.door()).await;
        (reply.status == 200 && reply.body == "found").then_some(())
    };
    eventually("the topic is there", Duration::from_secs(60), found).await;
}
