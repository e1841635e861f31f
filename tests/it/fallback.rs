//! Calls that cannot be forwarded are queued, and what of their key comes later queues behind them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::json;

use crate::answers::SOON;
use crate::support::app::{Answer, App, Seen};
use crate::support::broker;
use crate::support::client::{Outgoing, Reply, get, post};
use crate::support::eventually::eventually;
use crate::support::sidecar::Sidecar;

/// The sidecar that forwards and queues, and the one that delivers what was queued, both to one address.
struct World {
    orders: Sidecar,
    billing: Sidecar,
}

impl World {
    async fn new(app: SocketAddr, service: &str, otherwise: &str) -> Self {
        let (calls, replies) = (broker::topic("queued", 1), broker::topic("replies", 3));
        let kafka = format!(
            "kafka: {{ brokers: [\"{}\"], replies: {replies} }}",
            broker::address()
        );
        let orders = Sidecar::start(&format!(
            "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: charge
      match: {{ host: billing }}
      forward:
        to: billing
        rewrite: {{ headers: {{ set: {{ x-route: charge }} }} }}
        otherwise: {{ publish: {{ topic: {calls}{otherwise} }} }}
services:
  billing: {{ addresses: [\"{app}\"]{service} }}
{kafka}
"
        ))
        .await;
        eventually("the replies are read", SOON, async || {
            (orders.metric("wayside_replies_reading", &[]) > 0.0).then_some(())
        })
        .await;
        let billing = Sidecar::start(&format!(
            "
service: billing
app: {app}
outbound: {{ listen: 127.0.0.1:0 }}
subscriptions:
  - {{ topic: {calls}, group: {}, retry: {{ backoff: 1ms..10ms }} }}
{kafka}
",
            broker::unique("group")
        ))
        .await;
        Self { orders, billing }
    }

    async fn send(&self, call: Outgoing) -> Reply {
        call.send(self.orders.outbound()).await
    }

    async fn charge(&self, key: &str, n: u64) -> Reply {
        self.send(post("billing", "/charges").json(json!({ "key": key, "n": n }).to_string()))
            .await
    }

    fn keys(&self) -> f64 {
        self.orders.metric("wayside_fallback_keys", &[])
    }

    async fn stop(self) {
        assert!(self.orders.stop().await && self.billing.stop().await);
    }
}

/// A reply's status, why it was queued if it was, and the pattern that carried it.
fn told(reply: &Reply) -> (u16, Option<&str>, Option<&str>) {
    let why = reply.header("proxy-status");
    let why = why.and_then(|text| text.split("details=").nth(1));
    if reply.status == 202 {
        assert_eq!(reply.header("preference-applied"), Some("respond-async"));
        assert!(reply.header("location").is_some());
    }
    (reply.status.as_u16(), why, reply.header("wayside-pattern"))
}

const UNREACHABLE: (u16, Option<&str>, Option<&str>) =
    (202, Some("\"destination-unreachable\""), Some("publish"));
const BEHIND: (u16, Option<&str>, Option<&str>) =
    (202, Some("\"queued-behind-earlier\""), Some("publish"));
const DIRECT: (u16, Option<&str>, Option<&str>) = (200, None, Some("forward"));

fn was_queued(call: &Seen) -> bool {
    call.header("wayside-message-id").is_some()
}

#[tokio::test]
async fn a_key_is_queued_while_the_service_is_down_and_until_the_verdict_on_its_last_message() {
    let address = App::nowhere();
    let world = World::new(address, "", ", key: /key").await;
    assert_eq!(told(&world.charge("a", 1).await), UNREACHABLE);
    assert_eq!(told(&world.charge("a", 2).await), BEHIND);
    let read = world.send(get("billing", "/charges")).await;
    assert_eq!(read.status, 503, "a read is not queued");
    let well = Arc::new(AtomicBool::new(false));
    let app = {
        let well = Arc::clone(&well);
        App::at(address, move |call| match was_queued(call) {
            true if !well.load(Ordering::Relaxed) => Answer::status(503),
            _ => Answer::ok(),
        })
        .await
    };
    eventually("the first is tried again", SOON, async || {
        (app.count() >= 2).then_some(())
    })
    .await;
    assert_eq!(told(&world.charge("a", 3).await), BEHIND);
    assert_eq!(
        told(&world.charge("b", 1).await),
        DIRECT,
        "another key waits for nothing"
    );
    assert_eq!(world.keys(), 1.0);
    well.store(true, Ordering::Relaxed);
    eventually("the last of its key has its verdict", SOON, async || {
        (world.keys() == 0.0).then_some(())
    })
    .await;
    assert_eq!(told(&world.charge("a", 4).await), DIRECT);
    let mut order: Vec<_> = app
        .seen()
        .iter()
        .map(Seen::json)
        .filter(|body| body["key"] == "a")
        .filter_map(|body| body["n"].as_u64())
        .collect();
    order.dedup();
    assert_eq!(order, [1, 2, 3, 4]);
    let count = |reason| {
        let label = format!("reason=\"{reason}\"");
        world.orders.metric("wayside_fallbacks_total", &[&label])
    };
    assert_eq!(
        (
            count("destination-unreachable"),
            count("queued-behind-earlier")
        ),
        (1.0, 2.0)
    );
    world.stop().await;
}

#[tokio::test]
async fn what_was_queued_arrives_as_it_would_have_been_forwarded() {
    let address = App::nowhere();
    let world = World::new(address, "", ", key: { path: 2 }, max_body: 1MiB").await;
    // Larger than what is kept of a call that may be tried again.
    let body = vec![b'x'; 300_000];
    let put = Outgoing::new(Method::PUT, "billing", "/charges/c-1?dry=no")
        .header("x-tag", "one")
        .header("connection", "x-hop")
        .header("x-hop", "mine")
        .body(body.clone());
    let reply = world.send(put).await;
    assert_eq!(told(&reply), UNREACHABLE);
    let app = App::at(address, |_| Answer::ok()).await;
    let call = eventually("it arrives", SOON, async || app.seen().first().cloned()).await;
    assert_eq!(
        (
            call.method.as_str(),
            call.target.as_str(),
            call.body == body
        ),
        ("PUT", "/charges/c-1?dry=no", true)
    );
    assert_eq!(
        ["x-tag", "x-route", "host", "x-hop"].map(|name| call.header(name)),
        [Some("one"), Some("charge"), Some("billing"), None]
    );
    world.stop().await;
}

#[tokio::test]
async fn a_caller_may_wait_for_the_verdict_on_what_was_queued() {
    let address = App::nowhere();
    let world = World::new(address, "", ", key: /key").await;
    let call = post("billing", "/charges")
        .header("prefer", "wait=20")
        .json(r#"{"key":"a"}"#);
    let answer = world.send(call);
    let app = async {
        eventually("it is queued", SOON, async || {
            (world.keys() > 0.0).then_some(())
        })
        .await;
        App::at(address, |_| Answer::status(201).body("charged")).await
    };
    let (reply, _app) = tokio::join!(answer, app);
    assert_eq!(
        (reply.status.as_u16(), &reply.body[..]),
        (201, &b"charged"[..])
    );
    assert_eq!(reply.header("preference-applied"), Some("wait=20"));
    world.stop().await;
}

#[tokio::test]
async fn a_call_that_was_sent_is_not_queued_whatever_became_of_it() {
    let app = App::by(|call| match call.target.as_str() {
        "/cut" => Answer::cut(),
        _ => Answer::status(503),
    })
    .await;
    let world = World::new(app.address, "", ", key: /key").await;
    for (target, status) in [("/cut", 502), ("/ill", 503)] {
        let reply = world
            .send(post("billing", target).json(r#"{"key":"a"}"#))
            .await;
        assert_eq!(reply.status, status);
        assert_eq!(reply.header("wayside-pattern"), Some("forward"));
    }
    assert_eq!(world.keys(), 0.0);
    world.stop().await;
}

#[tokio::test]
async fn a_call_that_can_be_neither_sent_nor_queued_is_told_both_and_holds_no_key() {
    let address = App::nowhere();
    let world = World::new(address, "", ", key: /key, max_body: 100B").await;
    for (body, why) in [
        ("no JSON".to_owned(), "not JSON"),
        ("{}".to_owned(), "/key"),
        (
            format!("{{\"key\":\"a\",\"x\":\"{}\"}}", "x".repeat(100)),
            "limit",
        ),
    ] {
        let reply = world.send(post("billing", "/charges").body(body)).await;
        let problem = reply.json();
        assert_eq!(
            (reply.status.as_u16(), &problem["type"]),
            (503, &"urn:wayside:problem:destination-unreachable".into())
        );
        let detail = problem["detail"].as_str().expect("it says why");
        assert!(
            detail.contains("not queued") && detail.contains(why),
            "{detail}"
        );
    }
    assert_eq!(world.keys(), 0.0);
    let idempotent = |n: u64| {
        let body = json!({ "key": "a", "n": n }).to_string();
        world.send(
            post("billing", "/charges")
                .header("idempotency-key", "k-1")
                .json(body),
        )
    };
    let (first, again) = (idempotent(1).await, idempotent(1).await);
    assert_eq!((first.status.as_u16(), again.status.as_u16()), (202, 202));
    assert_eq!(first.json()["id"], again.json()["id"]);
    assert_eq!(
        idempotent(2).await.status,
        422,
        "another call with that key"
    );
    assert_eq!(world.keys(), 1.0);
    world.stop().await;
}

#[tokio::test]
async fn what_a_service_has_no_room_for_is_queued() {
    let app = App::by(|call| match was_queued(call) {
        true => Answer::ok(),
        false => Answer::ok().after(Duration::from_secs(2)),
    })
    .await;
    let limit = ", limit: { in_flight: 1, queue: 0 }";
    let world = World::new(app.address, limit, ", key: /key").await;
    let first = world.charge("a", 1);
    let second = async {
        eventually("the first is there", SOON, async || {
            (app.count() > 0).then_some(())
        })
        .await;
        world.charge("b", 1).await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(told(&first), DIRECT);
    assert_eq!(
        told(&second),
        (202, Some("\"overloaded\""), Some("publish"))
    );
    world.stop().await;
}

#[tokio::test]
async fn a_call_that_could_not_read_a_202_is_refused_as_without_a_fallback() {
    let world = World::new(App::nowhere(), "", "").await;
    let grpc = post("billing", "/charges")
        .header("content-type", "application/grpc")
        .body("");
    assert_eq!(world.send(grpc).await.header("grpc-status"), Some("14"));
    let upgrade = post("billing", "/charges")
        .header("connection", "upgrade")
        .header("upgrade", "websocket");
    assert_eq!(world.send(upgrade).await.status, 503);
    let plain = world.send(post("billing", "/charges").body("any")).await;
    assert_eq!(
        told(&plain),
        UNREACHABLE,
        "without a key there is no order to keep"
    );
    assert_eq!(world.keys(), 0.0);
    world.stop().await;
}
