//! What comes back from a published call: the receiver's real answer for a caller that waits, the result at the
//! message's address, and the stream of results.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::app::{Answer, App};
use crate::support::broker;
use crate::support::client::{Reply, get, post};
use crate::support::eventually::eventually;
use crate::support::sidecar::Sidecar;
use crate::support::topic;

/// The topics of one test.
pub(super) struct World {
    pub(super) calls: String,
    pub(super) replies: String,
}

pub(super) const SOON: Duration = Duration::from_secs(20);

impl World {
    pub(super) fn new() -> Self {
        let calls = broker::topic("asked", 1);
        let replies = broker::topic("replies", 3);
        Self { calls, replies }
    }

    /// A sidecar that publishes everything for `billing`, by a rule, and reads replies.
    pub(super) async fn orders(&self, rule: &str) -> Sidecar {
        self.orders_named("orders", rule).await
    }

    async fn orders_named(&self, service: &str, rule: &str) -> Sidecar {
        let Self { calls, replies } = self;
        let sidecar = Sidecar::start(&format!(
            "
service: {service}
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: all
      match: {{ host: billing }}
      publish: {{ topic: {calls}{rule} }}
kafka: {{ brokers: [\"{}\"], replies: {replies} }}
",
            broker::address()
        ))
        .await;
        eventually("the replies are read", SOON, async || {
            (sidecar.metric("wayside_replies_reading", &[]) > 0.0).then_some(())
        })
        .await;
        sidecar
    }

    /// A sidecar that delivers the calls to an app, in a group of this name, and replies.
    pub(super) async fn billing(&self, app: &App, group: &str, rule: &str) -> Sidecar {
        let Self { calls, replies } = self;
        Sidecar::start(&format!(
            "
service: billing
app: {}
outbound: {{ listen: 127.0.0.1:0 }}
subscriptions:
  - {{ topic: {calls}, group: {group}{rule} }}
kafka: {{ brokers: [\"{}\"], replies: {replies} }}
",
            app.address,
            broker::address()
        ))
        .await
    }
}

/// The document at a message's address, once `ready` says so.
async fn timeline(
    sidecar: &Sidecar,
    id: &str,
    what: &str,
    ready: impl Fn(&Value) -> bool,
) -> Value {
    eventually(what, SOON, async || {
        let path = format!("/.wayside/messages/{id}");
        let reply = get("billing", &path).send(sidecar.outbound()).await;
        (reply.status == 200)
            .then(|| reply.json())
            .filter(|document| ready(document))
    })
    .await
}

pub(super) async fn ended(sidecar: &Sidecar, id: &str) -> Value {
    timeline(sidecar, id, "the message ends", |document| {
        !document["result"].is_null()
    })
    .await
}

pub(super) fn id(reply: &Reply) -> String {
    assert_eq!(reply.status, 202, "{:?}", reply.body);
    let id = reply.json()["id"].as_str().map(str::to_owned);
    id.expect("a 202 has an id")
}

pub(super) fn what(timeline: &Value) -> Vec<&str> {
    let events = timeline["events"].as_array().expect("a list");
    events
        .iter()
        .filter_map(|event| event["what"].as_str())
        .collect()
}

#[tokio::test]
async fn a_caller_that_waits_gets_the_receivers_real_answer() {
    let world = World::new();
    let app = App::by(|seen| {
        let body = [b"{\"heard\":", &seen.body[..], b"}"].concat();
        Answer::status(201)
            .header("content-type", "application/json")
            .header("location", "/invoices/7")
            .header("x-by", "billing")
            .header("set-cookie", "session=1")
            .body(body)
    })
    .await;
    let orders = world.orders("").await;
    let billing = world.billing(&app, &broker::unique("billing"), "").await;
    let reply = post("billing", "/invoices")
        .header("prefer", "respond-async, wait=30")
        .json("[1]")
        .send(orders.outbound())
        .await;
    assert_eq!(reply.status, 201, "{:?}", reply.body);
    assert_eq!(reply.body, "{\"heard\":[1]}");
    for (name, value) in [
        ("content-type", "application/json"),
        ("location", "/invoices/7"),
        ("x-by", "billing"),
        ("preference-applied", "wait=30"),
        ("wayside-verdict", "done"),
        ("wayside-pattern", "publish"),
    ] {
        assert_eq!(reply.header(name), Some(value), "{name}");
    }
    assert_eq!(
        reply.header("set-cookie"),
        None,
        "no credential lies in a topic"
    );
    let id = reply.header("wayside-message-id").expect("its id");
    let document = ended(&orders, id).await;
    assert_eq!(document["status"], "done");
    assert_eq!(what(&document), ["accepted", "replicated", "done"]);
    let result = &document["result"];
    assert_eq!(
        (&result["status"], &result["content_type"], &result["body"]),
        (
            &json!(201),
            &json!("application/json"),
            &json!("{\"heard\":[1]}")
        )
    );
    let record = topic::read(&broker::address(), &world.calls, 1)
        .await
        .remove(0);
    assert_eq!(record.header("wayside-track").as_deref(), Some("verdict"));
    assert!(record.header("wayside-reply-by").is_some());
    assert_eq!(
        orders.metric("wayside_waits_total", &["outcome=\"answered\""]),
        1.0
    );
    assert!(orders.stop().await && billing.stop().await);
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_a_202_and_then_a_result() {
    let world = World::new();
    let app = App::by(|_| Answer::ok().body("late")).await;
    let orders = world.orders("").await;
    let reply = post("billing", "/")
        .header("prefer", "wait=1")
        .send(orders.outbound())
        .await;
    let id = id(&reply);
    assert_eq!(reply.header("preference-applied"), Some("wait=1"));
    assert_eq!(reply.json()["status"], "replicated");
    let at_once = post("billing", "/").header("prefer", "wait=0");
    assert_eq!(at_once.send(orders.outbound()).await.status, 202);
    let billing = world.billing(&app, &broker::unique("billing"), "").await;
    assert_eq!(ended(&orders, &id).await["result"]["body"], "late");
    assert_eq!(
        orders.metric("wayside_waits_total", &["outcome=\"too-late\""]),
        2.0
    );
    assert!(orders.stop().await && billing.stop().await);
}

#[tokio::test]
async fn a_record_that_nobody_asks_about_says_and_costs_nothing() {
    let world = World::new();
    let app = App::agreeable().await;
    let orders = world.orders("").await;
    let billing = world.billing(&app, &broker::unique("billing"), "").await;
    for prefer in ["respond-async", "wait=soon"] {
        let call = post("billing", "/").header("prefer", prefer);
        let reply = call.send(orders.outbound()).await;
        assert_eq!(
            (reply.status.as_u16(), reply.header("preference-applied")),
            (202, None)
        );
    }
    for record in topic::read(&broker::address(), &world.calls, 2).await {
        let asks = |name: &String| name.starts_with("wayside-track") || name.contains("reply");
        assert!(
            !record.headers.iter().any(|(name, _)| asks(name)),
            "{record:?}"
        );
    }
    eventually("both are done", SOON, async || {
        let done = billing.metric("wayside_deliveries_total", &["verdict=\"done\""]);
        (done >= 2.0).then_some(())
    })
    .await;
    assert!(billing.stop().await, "which flushes receipts");
    // One that asks comes after them and is the first in the topic of replies.
    let again = world.billing(&app, &broker::unique("billing"), "").await;
    let reply = post("billing", "/").header("prefer", "wait=30");
    assert_eq!(reply.send(orders.outbound()).await.status, 200);
    let receipts = topic::read(&broker::address(), &world.replies, 1).await;
    let value: Value =
        serde_json::from_slice(receipts[0].value.as_deref().expect("a value")).expect("JSON");
    assert_eq!(value.as_array().map(Vec::len), Some(1));
    assert!(orders.stop().await && again.stop().await);
}

#[tokio::test]
async fn without_a_topic_for_replies_nobody_waits() {
    let calls = broker::topic("unasked", 1);
    let sidecar = super::publish::publishing(&calls, "").await;
    let call = post("billing", "/").header("prefer", "wait=60");
    let reply = call.send(sidecar.outbound()).await;
    assert_eq!(
        (reply.status.as_u16(), reply.header("preference-applied")),
        (202, None)
    );
    let stream = get("billing", "/.wayside/messages?wait")
        .send(sidecar.outbound())
        .await;
    assert_eq!(stream.status, 404);
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn a_tracked_route_shows_the_far_half_of_each_message() {
    let world = World::new();
    let app = App::script([Answer::status(503), Answer::ok()]).await;
    let orders = world.orders(", track: all").await;
    let billing = world
        .billing(
            &app,
            &broker::unique("billing"),
            ", retry: { backoff: 1ms..1ms }",
        )
        .await;
    let id = id(&post("billing", "/").send(orders.outbound()).await);
    let document = ended(&orders, &id).await;
    assert_eq!(
        what(&document),
        ["accepted", "replicated", "delivered", "delivered", "done"]
    );
    let events = document["events"].as_array().expect("a list");
    assert_eq!(
        (&events[2]["status"], &events[2]["attempt"]),
        (&json!(503), &json!(1))
    );
    assert_eq!(
        (&events[3]["status"], &events[3]["attempt"]),
        (&json!(200), &json!(2))
    );
    app.verify(2);
    assert!(orders.stop().await && billing.stop().await);
}

#[tokio::test]
async fn a_body_that_is_no_text_comes_as_it_was_and_one_that_is_too_large_not_at_all() {
    let world = World::new();
    let binary = vec![0xff, 0, 0xfe];
    let app = App::script([
        Answer::ok().body(binary.clone()),
        Answer::ok().body(vec![b'x'; 65 << 10]),
    ])
    .await;
    let orders = world.orders("").await;
    let billing = world.billing(&app, &broker::unique("billing"), "").await;
    let call = || post("billing", "/").header("prefer", "wait=30");
    let reply = call().send(orders.outbound()).await;
    assert_eq!((reply.status.as_u16(), &reply.body[..]), (200, &binary[..]));
    let first = reply.header("wayside-message-id").expect("its id");
    assert_eq!(ended(&orders, first).await["result"]["body_base64"], "/wD+");
    let reply = call().send(orders.outbound()).await;
    let id = id(&reply);
    assert_eq!(
        reply.json()["status"],
        "done",
        "a part would pass for the whole"
    );
    let result = &ended(&orders, &id).await["result"];
    assert_eq!(
        (&result["status"], &result["cut"]),
        (&json!(200), &json!("body"))
    );
    assert!(orders.stop().await && billing.stop().await);
}

#[tokio::test]
async fn a_dead_letter_is_the_answer_of_the_app_that_refused() {
    let world = World::new();
    let app = App::by(|seen| match &seen.body[..] {
        b"refuse" => Answer::status(422).body("no such customer"),
        b"drop" => Answer::status(500).header("wayside-verdict", "drop"),
        _ => Answer::hang(),
    })
    .await;
    let orders = world.orders("").await;
    let dead = broker::topic("dead", 1);
    let rule =
        format!(", dead_letter: {dead}, deliver: {{ timeout: 100ms }}, retry: {{ attempts: 1 }}");
    let billing = world.billing(&app, &broker::unique("billing"), &rule).await;
    let call = |body: &'static str| post("billing", "/").header("prefer", "wait=30").body(body);
    let refused = call("refuse").send(orders.outbound()).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body[..]),
        (422, &b"no such customer"[..])
    );
    assert_eq!(refused.header("wayside-verdict"), Some("dead-letter"));
    let location = refused.header("location").expect("its address").to_owned();
    let document = get("billing", &location)
        .send(orders.outbound())
        .await
        .json();
    assert_eq!(
        (&document["status"], &document["result"]["status"]),
        (&json!("dead"), &json!(422))
    );
    let dropped = call("drop").send(orders.outbound()).await;
    assert_eq!(
        (dropped.status.as_u16(), dropped.header("wayside-verdict")),
        (500, Some("drop"))
    );
    let silent = call("hang").send(orders.outbound()).await;
    let id = id(&silent);
    assert_eq!(
        silent.json()["status"],
        "dead",
        "there was no answer to give"
    );
    assert_eq!(ended(&orders, &id).await["status"], "dead");
    assert!(orders.stop().await && billing.stop().await);
}

#[tokio::test]
async fn of_several_groups_the_named_one_counts_and_the_others_are_told_aside() {
    let world = World::new();
    let (one, other) = (broker::unique("one"), broker::unique("other"));
    let refusing = App::by(|_| Answer::status(200).body("other")).await;
    let slow = App::by(|_| {
        Answer::status(201)
            .body("one")
            .after(Duration::from_millis(300))
    })
    .await;
    let rule = format!(", track: verdict, reply: {{ from: {one} }}");
    let orders = world.orders(&rule).await;
    let others = world.billing(&refusing, &other, "").await;
    let ones = world.billing(&slow, &one, "").await;
    let call = post("billing", "/").header("prefer", "wait=30");
    let reply = call.send(orders.outbound()).await;
    assert_eq!((reply.status.as_u16(), &reply.body[..]), (201, &b"one"[..]));
    let id = reply.header("wayside-message-id").expect("its id");
    let both = timeline(&orders, id, "both groups report", |document| {
        what(document)
            .iter()
            .filter(|what| **what == "done")
            .count()
            == 2
    })
    .await;
    let aside: Vec<&Value> = both["events"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|event| event["aside"] == true)
        .collect();
    assert_eq!(aside.len(), 1, "{both}");
    assert_eq!(
        (&both["result"]["group"], &both["result"]["status"]),
        (&json!(one), &json!(201))
    );
    assert!(orders.stop().await && others.stop().await && ones.stop().await);
}

#[tokio::test]
async fn a_sidecar_that_answers_itself_tells_each_event_once() {
    let world = World::new();
    let app = App::by(|_| Answer::ok().body("self")).await;
    let World { calls, replies } = &world;
    let yaml = format!(
        "
service: orders
app: {}
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: all
      match: {{ host: billing }}
      publish: {{ topic: {calls}, track: all }}
subscriptions:
  - {{ topic: {calls}, group: {} }}
kafka: {{ brokers: [\"{}\"], replies: {replies} }}
",
        app.address,
        broker::unique("self"),
        broker::address()
    );
    let sidecar = Sidecar::start(&yaml).await;
    let call = || post("billing", "/").header("prefer", "wait=30");
    let reply = call().send(sidecar.outbound()).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body[..]),
        (200, &b"self"[..])
    );
    let first = reply
        .header("wayside-message-id")
        .expect("its id")
        .to_owned();
    let again = call().send(sidecar.outbound()).await;
    assert_eq!(again.status, 200);
    let expected = ["accepted", "replicated", "delivered", "done"];
    assert_eq!(what(&ended(&sidecar, &first).await).len(), expected.len());
    assert!(sidecar.stop().await);
    // The next process of that name learns the far half from the topic, since nothing else kept it.
    let next = Sidecar::start(&yaml).await;
    let document = ended(&next, &first).await;
    assert_eq!(what(&document), ["delivered", "done"]);
    assert_eq!(
        (&document["status"], &document["result"]["body"]),
        (&json!("done"), &json!("self"))
    );
    assert!(next.stop().await);
}
