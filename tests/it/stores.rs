//! Where bodies are kept makes no difference to an app: only the YAML says so.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http::Method;
use serde_json::Value;
use tempfile::TempDir;

use super::event::{digest, orders_at, path_of};
pub(super) use super::subscription::calls as seen;
use crate::support::app::{Answer, App, Seen};
use crate::support::broker;
use crate::support::client::{Outgoing, Reply, get, post};
use crate::support::sidecar::Sidecar;
use crate::support::topic::{self, Record};

pub(super) const LONG: Duration = Duration::from_secs(14);

/// A service `orders` with an API of its own, whose sidecar publishes what it sends to `billing`.
pub(super) struct Orders {
    pub(super) api: App,
    pub(super) sidecar: Sidecar,
    pub(super) topic: String,
    pub(super) folder: TempDir,
}

/// An order whose bytes no JSON writer would give again.
pub(super) fn order(n: usize) -> String {
    format!(
        "{{ \"id\":\"o-{n}\",\t\"customer\": {{\"id\": {n}}}, \"total\":1{n}.50, \"lines\":[ {{\"sku\":\"\\u0061\",\"n\":1.0e0}} ], \"note\":\"{}\" }}",
        "long ".repeat(100)
    )
}

fn api(seen: &Seen) -> Answer {
    match seen.target.strip_prefix("/orders/o-").map(str::parse) {
        Some(Ok(n)) => Answer::ok().body(order(n)),
        _ => Answer::status(404),
    }
}

/// The store of one kind, in a folder.
pub(super) fn store(kind: &str, folder: &Path, ttl: &str) -> String {
    let folder = folder.display();
    match kind {
        "disk" => format!("disk: {folder}/bodies, survives: volume, ttl: {ttl}"),
        "object" => format!("object: {folder}/shared, ttl: {ttl}"),
        _ => format!("origin: \"http://orders/orders/{{/id}}\", ttl: {ttl}"),
    }
}

impl Orders {
    /// `kind` is where the bodies are; `inline` slims nothing.
    pub(super) async fn start(kind: &str, ttl: &str) -> Self {
        let slim = "slim: { keep: [/id, /customer], claim: bodies }";
        Self::with(kind, if kind == "inline" { "" } else { slim }, ttl).await
    }

    pub(super) async fn with(kind: &str, slim: &str, ttl: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let topic = broker::topic(kind, 1);
        let api = App::by(api).await;
        let claims = match kind {
            "inline" => String::new(),
            kind => format!(
                "claims: {{ bodies: {{ {} }} }}",
                store(kind, folder.path(), ttl)
            ),
        };
        let sidecar = Sidecar::start(&format!(
            "
service: orders
app: {}
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: all
      match: {{ host: billing }}
      publish: {{ topic: {topic}, key_missing: unordered, key: /customer/id, {slim} }}
inbound: {{ listen: 127.0.0.1:0 }}
{claims}
kafka: {{ brokers: [\"{}\"] }}
",
            api.address,
            broker::address()
        ))
        .await;
        Self {
            api,
            sidecar,
            topic,
            folder,
        }
    }

    pub(super) async fn publish(&self, body: &str) -> Reply {
        let call = post("billing", "/orders").json(body.to_owned());
        let reply = call.send(self.sidecar.outbound()).await;
        assert_eq!(reply.status, 202, "{:?}", reply.body);
        reply
    }

    pub(super) async fn records(&self, count: usize) -> Vec<Record> {
        topic::read(&broker::address(), &self.topic, count).await
    }

    pub(super) fn at(&self) -> SocketAddr {
        self.sidecar.inbound()
    }
}

/// A sidecar beside `app` with these subscriptions, that reads bodies by `claims` and from `services`.
pub(super) async fn reading(
    app: SocketAddr,
    (claims, services): (&str, &str),
    subscriptions: &[String],
) -> Sidecar {
    let list = subscriptions.iter().map(|one| format!("  - {{ {one} }}\n"));
    let list: String = list.collect();
    Sidecar::start(&format!(
        "
service: billing
app: {app}
outbound: {{ listen: 127.0.0.1:0, routes: [] }}
subscriptions:
{list}
services: {{ {services} }}
{claims}
kafka: {{ brokers: [\"{}\"] }}
drain: 8s
",
        broker::address()
    ))
    .await
}

/// What a receiver's `claims` are for a kind of store: a folder of one sidecar is not for others to name.
pub(super) fn readers_claims(kind: &str, orders: &Orders) -> String {
    match kind {
        "object" | "origin" => {
            let store = store(kind, orders.folder.path(), "1h");
            format!("claims: {{ any: {{ {store} }} }}")
        }
        _ => String::new(),
    }
}

/// All that the app does to have an order: it takes the body, and what the address gives if there is one.
async fn order_of(seen: &Seen, sidecar: &Sidecar) -> Vec<u8> {
    match seen.header("wayside-claim") {
        None => seen.body.to_vec(),
        Some(claim) => {
            let path = path_of(claim, sidecar);
            let reply = get("127.0.0.1", &path).send(sidecar.outbound()).await;
            assert_eq!(reply.status, 200, "{:?}", reply.body);
            assert_eq!(reply.header("content-type"), Some("application/json"));
            reply.body.to_vec()
        }
    }
}

#[tokio::test]
async fn one_app_reads_orders_however_they_come() {
    for kind in ["inline", "disk", "object", "origin"] {
        let orders = Orders::start(kind, "1h").await;
        let app = App::agreeable().await;
        let modes = ["lazy", "eager", "[/lines]"];
        let rules = modes.map(|mode| {
            let (topic, group) = (&orders.topic, broker::unique("g"));
            format!("topic: {topic}, group: {group}, hydrate: {mode}")
        });
        let reads = (&*readers_claims(kind, &orders), &*orders_at(orders.at()));
        let receiver = reading(app.address, reads, &rules).await;
        for n in 0..3 {
            let reply = orders.publish(&order(n)).await;
            let told = &reply.json()["claim"];
            let survives = match kind {
                "inline" => {
                    assert_eq!(told, &Value::Null);
                    continue;
                }
                "origin" => Value::Null,
                _ => "volume".into(),
            };
            assert_eq!(
                (&told["kept"], &told["survives"]),
                (&kind.into(), &survives)
            );
        }
        let mut whole = Vec::new();
        for seen in seen(&app, 9).await {
            whole.push(String::from_utf8(order_of(&seen, &receiver).await).expect("JSON"));
        }
        whole.sort();
        let mut expected: Vec<String> = (0..9).map(|n| order(n / 3)).collect();
        expected.sort();
        assert_eq!(whole, expected, "{kind}");
        // Three orders, and each was fetched once for all three subscriptions.
        let fetched = receiver.metric("wayside_hydrate_seconds_count", &[]) as usize;
        assert_eq!(fetched, if kind == "inline" { 0 } else { 3 }, "{kind}");
        let asked = orders.api.count();
        assert_eq!(asked, if kind == "origin" { 3 } else { 0 }, "{kind}");
        assert!(receiver.stop().await && orders.sidecar.stop().await);
    }
}

#[tokio::test]
async fn fields_are_put_back_before_a_delivery_and_the_rest_has_an_address() {
    let orders = Orders::start("disk", "1h").await;
    orders.publish(&order(1)).await;
    let app = App::agreeable().await;
    let (topic, group) = (&orders.topic, broker::unique("g"));
    let rule = format!("topic: {topic}, group: {group}, hydrate: [/lines/0/sku]");
    let receiver = reading(app.address, ("", &orders_at(orders.at())), &[rule]).await;
    let seen = seen(&app, 1).await.remove(0);
    let expected = r#"{"id":"o-1","customer": {"id": 1},"lines":[ {"sku":"\u0061","n":1.0e0} ]}"#
        .replace("\"customer\": ", "\"customer\":");
    assert_eq!(String::from_utf8_lossy(&seen.body), expected);
    assert_eq!(
        seen.header("repr-digest"),
        None,
        "that digest is not of this body"
    );
    assert_eq!(order_of(&seen, &receiver).await, order(1).as_bytes());
    assert!(receiver.stop().await && orders.sidecar.stop().await);
}

#[tokio::test]
async fn a_shared_store_serves_when_the_service_that_published_is_gone() {
    let orders = Orders::start("object", "1h").await;
    orders.publish(&order(1)).await;
    let Orders {
        sidecar,
        topic,
        folder,
        ..
    } = orders;
    assert!(sidecar.stop().await);
    let app = App::agreeable().await;
    let rule = format!(
        "topic: {topic}, group: {}, hydrate: eager",
        broker::unique("g")
    );
    let claims = format!(
        "claims: {{ any: {{ {} }} }}",
        store("object", folder.path(), "1h")
    );
    let receiver = reading(app.address, (&claims, ""), &[rule]).await;
    assert_eq!(seen(&app, 1).await[0].body, order(1));
    assert!(receiver.stop().await);
}

#[tokio::test]
async fn who_does_not_name_the_shared_store_gets_bodies_from_the_sidecar_that_published() {
    let orders = Orders::start("object", "1h").await;
    orders.publish(&order(1)).await;
    let app = App::agreeable().await;
    let rule = format!(
        "topic: {}, group: {}, hydrate: eager",
        orders.topic,
        broker::unique("g")
    );
    let receiver = reading(app.address, ("", &orders_at(orders.at())), &[rule]).await;
    assert_eq!(seen(&app, 1).await[0].body, order(1));
    assert!(receiver.stop().await && orders.sidecar.stop().await);
}

#[tokio::test]
async fn a_body_that_is_not_json_is_kept_as_a_whole_if_it_is_large() {
    for kind in ["disk", "object"] {
        let slim = "slim: { keep: [/id], whole_over: 1KiB, claim: bodies }";
        let orders = Orders::with(kind, slim, "1h").await;
        let image: Vec<u8> = (0..4000_u32).map(|n| (n * 7 % 251) as u8).collect();
        let send = async |body: Vec<u8>| {
            let call = post("billing", "/images").header("content-type", "image/png");
            let reply = call.body(body).send(orders.sidecar.outbound()).await;
            assert_eq!(reply.status, 202, "{:?}", reply.body);
            reply.json()
        };
        let told = send(image.clone()).await;
        assert_eq!(told["claim"]["size"], 4000);
        assert_eq!(send(image[..100].to_vec()).await["claim"], Value::Null);
        let records = orders.records(2).await;
        let (large, small) = (&records[0], &records[1]);
        assert_eq!(
            large.value.as_deref(),
            Some(&b""[..]),
            "empty, but not null"
        );
        assert_eq!(small.value.as_deref(), Some(&image[..100]));
        let claim = large.header("wayside-claim").expect("a claim");
        let dataref = format!("/.wayside/claims/{claim}");
        assert_eq!(large.header("ce_dataref"), Some(dataref.clone()));
        // CloudEvents: what it leads to is the data, byte for byte.
        let kept = get("orders", &dataref).send(orders.at()).await;
        assert_eq!(kept.body, image);

        let app = App::agreeable().await;
        let rules = ["lazy", "eager", "[/lines]"].map(|mode| {
            let (topic, group) = (&orders.topic, broker::unique("g"));
            format!(
                "topic: {topic}, group: {group}, hydrate: {mode}, deliver: {{ path: /{} }}",
                mode.len()
            )
        });
        let reads = (&*readers_claims(kind, &orders), &*orders_at(orders.at()));
        let receiver = reading(app.address, reads, &rules).await;
        let mut whole = Vec::new();
        for seen in seen(&app, 6).await {
            assert_eq!(seen.header("content-type"), Some("image/png"));
            match seen.header("wayside-claim") {
                None => whole.push(seen.body.to_vec()),
                Some(claim) => {
                    let path = path_of(claim, &receiver);
                    let reply = get("127.0.0.1", &path).send(receiver.outbound()).await;
                    assert_eq!(reply.header("content-type"), Some("image/png"));
                    let fields = get("127.0.0.1", &format!("{path}?fields=/id"));
                    assert_eq!(fields.send(receiver.outbound()).await.status, 400);
                    whole.push(reply.body.to_vec());
                }
            }
        }
        whole.sort_by_key(Vec::len);
        assert!(
            whole[..3].iter().all(|body| *body == image[..100]),
            "{kind}"
        );
        assert!(whole[3..].iter().all(|body| *body == image), "{kind}");
        assert!(receiver.stop().await && orders.sidecar.stop().await);
    }
}

#[tokio::test]
async fn what_has_no_field_for_its_address_is_refused_before_anything_is_sent() {
    let orders = Orders::start("origin", "1h").await;
    for body in [
        r#"{"customer":{"id":1},"x":1}"#,
        r#"{"id":{},"x":1}"#,
        r#"{"id":"..","x":1}"#,
    ] {
        let call = post("billing", "/orders").json(body.to_owned());
        let reply = call.send(orders.sidecar.outbound()).await;
        assert_eq!(reply.status, 400, "{body}");
        assert_eq!(reply.json()["type"], "urn:wayside:problem:bad-request");
    }
    orders.publish(&order(1)).await;
    let record = orders.records(1).await.remove(0);
    let digest = digest(&order(1));
    assert_eq!(record.header("wayside-claim-digest"), Some(digest));
    assert!(orders.sidecar.stop().await);
}

#[tokio::test]
async fn the_head_of_a_claim_says_what_getting_it_would() {
    let orders = Orders::start("disk", "1h").await;
    orders.publish(&order(1)).await;
    let app = App::agreeable().await;
    let rule = format!("topic: {}, group: {}", orders.topic, broker::unique("g"));
    let receiver = reading(app.address, ("", &orders_at(orders.at())), &[rule]).await;
    let seen = seen(&app, 1).await.remove(0);
    let path = path_of(seen.header("wayside-claim").expect("an address"), &receiver);
    let head = Outgoing::new(Method::HEAD, "127.0.0.1", &path);
    let head = head.send(receiver.outbound()).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    let length = order(1).len().to_string();
    assert_eq!(head.header("content-length"), Some(&*length));
    assert_eq!(head.header("repr-digest"), Some(&*digest(&order(1))));
    assert!(receiver.stop().await && orders.sidecar.stop().await);
}
