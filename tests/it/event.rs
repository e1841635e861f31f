//! Lightweight events: what a slim record holds, and how the rest comes back.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use wayside::claims::Reference;

use super::stores::reading;
use crate::support::app::{Answer, App, Seen};
use crate::support::broker;
use crate::support::client::{Reply, get, post};
use crate::support::eventually::eventually;
use crate::support::sidecar::Sidecar;
use crate::support::topic::{self, Record};

const LONG: Duration = Duration::from_secs(14);
/// Odd spacing and escapes: whoever writes the JSON anew would change it.
const WHOLE: &str = "{ \"id\":\"o-1\",\t\"customer\": {\"id\": 7, \"n\\u0061me\":\"M\\u00fcller\"},\n \"total\":12.50, \
                     \"lines\":[ {\"sku\":\"a\",\"n\":1.0e0}, {\"sku\":\"b\"} ] , \"note\":\"long\" }";

/// A service that publishes its orders slim.
struct Origin {
    sidecar: Sidecar,
    topic: String,
    _folder: Option<TempDir>,
}

impl Origin {
    async fn start(slim: &str, ttl: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let topic = broker::topic("orders", 1);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let origin = Self::at(&topic, slim, (folder.path(), ttl), any).await;
        Self {
            _folder: Some(folder),
            ..origin
        }
    }

    async fn at(
        topic: &str,
        slim: &str,
        (folder, ttl): (&Path, &str),
        inbound: SocketAddr,
    ) -> Self {
        let sidecar = Sidecar::start(&format!(
            "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: all
      match: {{ host: billing }}
      publish: {{ topic: {topic}, key: /customer/id, slim: {{ {slim} }} }}
inbound: {{ listen: {inbound} }}
claims: {{ bodies: {{ disk: {}, ttl: {ttl}, survives: pod }} }}
kafka: {{ brokers: [\"{}\"] }}
",
            folder.display(),
            broker::address()
        ))
        .await;
        Self {
            sidecar,
            topic: topic.to_owned(),
            _folder: None,
        }
    }

    async fn publish(&self, body: &str) -> Reply {
        let reply = post("billing", "/orders")
            .json(body.to_owned())
            .send(self.sidecar.outbound())
            .await;
        assert_eq!(reply.status, 202, "{:?}", reply.body);
        reply
    }

    async fn record(&self) -> Record {
        topic::read(&broker::address(), &self.topic, 1)
            .await
            .remove(0)
    }
}

/// A sidecar beside `app` with these subscriptions, whose claims are at `orders`.
pub(super) async fn receiving(app: SocketAddr, orders: &str, subscriptions: &[String]) -> Sidecar {
    reading(app, ("", orders), subscriptions).await
}

pub(super) fn orders_at(address: SocketAddr) -> String {
    format!("orders: {{ addresses: [\"{address}\"] }}")
}

async fn calls(app: &App, count: usize) -> Vec<Seen> {
    let what = format!("{count} calls at the app");
    eventually(&what, LONG, async || {
        (app.count() >= count).then(|| app.seen())
    })
    .await
}

pub(super) fn digest(body: &str) -> String {
    format!(
        "sha-256=:{}:",
        base64::engine::general_purpose::STANDARD.encode(Sha256::digest(body))
    )
}

/// The address of a claim as the app got it, as a path at the sidecar's outbound door.
pub(super) fn path_of(claim: &str, sidecar: &Sidecar) -> String {
    let base = format!("http://{}", sidecar.outbound());
    claim
        .strip_prefix(&base)
        .unwrap_or_else(|| unreachable!("{claim} is not at {base}"))
        .to_owned()
}

#[tokio::test]
async fn a_slim_record_holds_what_is_kept_and_names_the_rest() {
    let origin = Origin::start("keep: [/id, /customer/id, /absent]", "1h").await;
    let reply = origin.publish(WHOLE).await;
    assert_eq!(reply.header("wayside-pattern"), Some("event"));
    let claim = &reply.json()["claim"];
    assert_eq!(
        (&claim["survives"], &claim["size"]),
        (&"pod".into(), &WHOLE.len().into())
    );
    assert!(
        claim["expires"]
            .as_str()
            .is_some_and(|text| humantime::parse_rfc3339(text).is_ok()),
        "{claim}"
    );

    let record = origin.record().await;
    let slim: Value =
        serde_json::from_slice(record.value.as_deref().unwrap_or_default()).expect("JSON");
    assert_eq!(slim, json!({ "id": "o-1", "customer": { "id": 7 } }));
    assert_eq!(record.key.as_deref(), Some(&b"7"[..]));
    assert_eq!(record.header("wayside-claim-digest"), Some(digest(WHOLE)));
    assert_eq!(
        record.header("wayside-claim-size"),
        Some(WHOLE.len().to_string())
    );
    assert_eq!(
        record.header("wayside-origin"),
        Some(format!("orders/{}", origin.sidecar.inbound()))
    );
    let expires = record.header("wayside-claim-expires").expect("an expiry");
    let left = humantime::parse_rfc3339(&expires)
        .expect("a time")
        .duration_since(std::time::SystemTime::now());
    assert!(
        left.is_ok_and(|left| left > Duration::from_secs(3500) && left < Duration::from_secs(3700)),
        "{expires}"
    );
    let fields = record.header("wayside-claim-fields").expect("what was cut");
    let mut fields: Vec<String> = serde_json::from_str(&fields).expect("a list of pointers");
    fields.sort();
    assert_eq!(fields, ["/customer/name", "/lines", "/note", "/total"]);
    assert_eq!(record.header("dataref"), None, "that would promise more");
    assert_eq!(record.header("ce_dataref"), None);
}

#[tokio::test]
async fn a_slim_record_lacks_what_is_dropped_and_a_body_without_it_goes_whole() {
    let origin = Origin::start("drop: [/lines, /customer/name]", "1h").await;
    origin.publish(WHOLE).await;
    let small = r#"{"customer":{"id":8}}"#;
    let reply = origin.publish(small).await;
    assert_eq!(
        reply.json().get("claim"),
        None,
        "nothing was cut, so nothing is kept"
    );
    let records = topic::read(&broker::address(), &origin.topic, 2).await;
    let slim: Value =
        serde_json::from_slice(records[0].value.as_deref().unwrap_or_default()).expect("JSON");
    assert_eq!(
        slim,
        json!({ "id": "o-1", "customer": { "id": 7 }, "total": 12.50, "note": "long" })
    );
    assert_eq!(records[1].value.as_deref(), Some(small.as_bytes()));
    assert!(
        records[1]
            .headers
            .iter()
            .all(|(name, _)| !name.starts_with("wayside-claim"))
    );
}

#[tokio::test]
async fn the_origin_serves_the_whole_body_to_who_has_the_records_reference() {
    let origin = Origin::start("keep: [/id]", "1h").await;
    origin.publish(WHOLE).await;
    let reference = origin
        .record()
        .await
        .header("wayside-claim")
        .expect("a claim");
    let ask = async |path: &str| get("orders", path).send(origin.sidecar.inbound()).await;
    let reply = ask(&format!("/.wayside/claims/{reference}")).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body[..]),
        (200, WHOLE.as_bytes())
    );
    let mut forged = reference.clone().into_bytes();
    forged[20] = if forged[20] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).expect("ascii");
    for path in [
        &*forged,
        "",
        "AQID",
        "..%2Fkey",
        "../key",
        &"A".repeat(5000),
    ] {
        let reply = ask(&format!("/.wayside/claims/{path}")).await;
        assert!(
            matches!(reply.status.as_u16(), 400 | 404),
            "{path}: {}",
            reply.status
        );
        assert_eq!(
            reply.header("content-type"),
            Some("application/problem+json")
        );
    }
    let posted = post("orders", &format!("/.wayside/claims/{reference}"))
        .send(origin.sidecar.inbound())
        .await;
    assert_eq!(posted.status, 405);
    let outbound = get("orders", &format!("/.wayside/claims/{reference}"))
        .send(origin.sidecar.outbound())
        .await;
    assert_eq!(outbound.status, 404, "the app's reference is another one");
}

#[tokio::test]
async fn each_subscription_hydrates_as_it_says() {
    let origin = Origin::start("keep: [/id]", "1h").await;
    let app = App::agreeable().await;
    let modes = ["lazy", "eager", "never"];
    let rule = |mode: &str| {
        let group = broker::unique(mode);
        format!(
            "topic: {}, group: {group}, hydrate: {mode}, deliver: {{ path: /{mode} }}",
            origin.topic
        )
    };
    let receiver = receiving(
        app.address,
        &orders_at(origin.sidecar.inbound()),
        &modes.map(rule),
    )
    .await;
    origin.publish(WHOLE).await;
    let seen = calls(&app, 3).await;
    let at = |mode: &str| {
        seen.iter()
            .find(|seen| seen.target == format!("/{mode}"))
            .expect("a call of each")
    };
    let slim = json!({ "id": "o-1" });

    assert_eq!(at("eager").body, WHOLE, "byte for byte");
    assert_eq!(at("eager").header("repr-digest"), Some(&*digest(WHOLE)));
    assert_eq!(at("eager").header("wayside-claim"), None);
    assert_eq!(
        (at("never").json(), at("never").header("wayside-claim")),
        (slim.clone(), None)
    );
    assert_eq!(at("lazy").json(), slim);
    assert_eq!(
        at("lazy").header("repr-digest"),
        None,
        "that digest is not of this body"
    );

    let path = path_of(
        at("lazy").header("wayside-claim").expect("an address"),
        &receiver,
    );
    fetch_by_need(&receiver, &path).await;
    let hydrations = |labels: &[&str]| receiver.metric("wayside_hydrations_total", labels) as u64;
    assert_eq!(hydrations(&["mode=\"eager\"", "outcome=\"whole\""]), 1);
    assert_eq!(hydrations(&["mode=\"lazy\"", "outcome=\"whole\""]), 2);
    assert_eq!(hydrations(&["mode=\"lazy\"", "outcome=\"fields\""]), 1);
    assert!(receiver.stop().await && origin.sidecar.stop().await);
}

/// What an app can do with the address in `Wayside-Claim`.
async fn fetch_by_need(receiver: &Sidecar, path: &str) {
    let fetch = async |query: &str| {
        get("127.0.0.1", &format!("{path}{query}"))
            .send(receiver.outbound())
            .await
    };
    let whole = fetch("").await;
    assert_eq!(
        (whole.status.as_u16(), &whole.body[..]),
        (200, WHOLE.as_bytes())
    );
    assert_eq!(whole.header("repr-digest"), Some(&*digest(WHOLE)));
    let tag = whole.header("etag").expect("a tag").to_owned();
    for (line, status) in [
        (&*tag, 304),
        ("*", 304),
        (&*format!("\"other\", {tag}"), 304),
        ("\"other\"", 200),
    ] {
        let reply = get("127.0.0.1", path)
            .header("if-none-match", line)
            .send(receiver.outbound())
            .await;
        assert_eq!(reply.status, status, "{line}");
        assert_eq!(reply.header("etag"), Some(&*tag));
        assert_eq!(reply.body.is_empty(), status == 304);
    }
    let part = fetch("?fields=/lines,/customer/name,/absent").await;
    assert_eq!(
        (part.status.as_u16(), part.header("repr-digest")),
        (200, None)
    );
    assert_eq!(
        part.json(),
        json!({ "customer": { "name": "Müller" }, "lines": [{ "sku": "a", "n": 1.0 }, { "sku": "b" }] })
    );
    assert_eq!(fetch("?fields=lines").await.status, 400, "not a pointer");
    let (_, reference) = path.rsplit_once('/').expect("a path");
    let mut forged = Reference::decode(reference).expect("ours");
    forged.claim = forged.claim.chars().rev().collect();
    let forged = forged.encode().expect("its form is sound");
    for garbage in ["garbage", "AQID", &"A".repeat(3000), &forged] {
        let reply = get("127.0.0.1", &format!("/.wayside/claims/{garbage}"))
            .header("if-none-match", "*")
            .send(receiver.outbound())
            .await;
        assert_eq!(reply.status, 404, "{garbage}");
    }
}

#[tokio::test]
async fn an_expired_claim_is_a_410_for_the_app_and_a_dead_letter_for_an_eager_subscription() {
    let origin = Origin::start("keep: [/id]", "1s").await;
    origin.publish(WHOLE).await;
    let grave = broker::topic("expired-dead", 1);
    let app = App::agreeable().await;
    // Joining the group takes longer than the claim lives.
    let topic = &origin.topic;
    let rules = [
        format!(
            "topic: {topic}, group: {}, hydrate: lazy, deliver: {{ path: /lazy }}",
            broker::unique("g")
        ),
        format!(
            "topic: {topic}, group: {}, hydrate: eager, dead_letter: {grave}",
            broker::unique("g")
        ),
    ];
    let receiver = receiving(app.address, &orders_at(origin.sidecar.inbound()), &rules).await;
    let seen = calls(&app, 1).await.remove(0);
    let path = path_of(seen.header("wayside-claim").expect("an address"), &receiver);
    let gone = async || {
        let reply = get("127.0.0.1", &path).send(receiver.outbound()).await;
        (reply.status == 410).then_some(reply)
    };
    let reply = eventually("the claim is gone", LONG, gone).await;
    assert_eq!(reply.json()["type"], "urn:wayside:problem:expired");
    // Who still has the body learns of it too.
    for line in ["*", &*format!("\"{}\"", digest(WHOLE))] {
        let asked = get("127.0.0.1", &path).header("if-none-match", line);
        let reply = asked.send(receiver.outbound()).await;
        assert_eq!(reply.status, 410, "{line}");
    }
    let record = topic::read(&broker::address(), &grave, 1).await.remove(0);
    assert!(
        record
            .header("wayside-dead-reason")
            .is_some_and(|reason| reason.contains("claim"))
    );
    assert_eq!(record.header("wayside-dead-attempts").as_deref(), Some("1"));
    assert!(receiver.stop().await);
}

#[tokio::test]
async fn a_claim_that_was_changed_on_disk_is_never_delivered() {
    let folder = tempfile::tempdir().expect("a folder");
    let topic = broker::topic("changed", 1);
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let origin = Origin::at(&topic, "keep: [/id]", (folder.path(), "1h"), any).await;
    origin.publish(WHOLE).await;
    change(folder.path(), b"long", b"LONG");
    let grave = broker::topic("changed-dead", 1);
    let app = App::agreeable().await;
    let rules = [
        format!(
            "topic: {topic}, group: {}, hydrate: lazy, deliver: {{ path: /lazy }}",
            broker::unique("g")
        ),
        format!(
            "topic: {topic}, group: {}, hydrate: eager, dead_letter: {grave}, retry: {{ attempts: 2, backoff: 1ms..2ms }}",
            broker::unique("g")
        ),
    ];
    let receiver = receiving(app.address, &orders_at(origin.sidecar.inbound()), &rules).await;
    let seen = calls(&app, 1).await.remove(0);
    let path = path_of(seen.header("wayside-claim").expect("an address"), &receiver);
    let reply = get("127.0.0.1", &path).send(receiver.outbound()).await;
    assert!(reply.status.is_server_error(), "{}", reply.status);
    assert_eq!(
        reply.header("content-type"),
        Some("application/problem+json")
    );
    assert!(!String::from_utf8_lossy(&reply.body).contains("LONG"));
    let record = topic::read(&broker::address(), &grave, 1).await.remove(0);
    assert!(
        record
            .header("wayside-dead-reason")
            .is_some_and(|reason| reason.contains("claim"))
    );
    assert_eq!(app.count(), 1, "only the slim one reached the app");
    assert!(receiver.stop().await);
}

/// Changes every occurrence in every file of a folder.
fn change(folder: &Path, from: &[u8], to: &[u8]) {
    let mut changed = 0;
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("an entry").path();
        let Ok(mut bytes) = std::fs::read(&path) else {
            continue;
        };
        while let Some(at) = bytes.windows(from.len()).position(|window| window == from) {
            bytes[at..at + to.len()].copy_from_slice(to);
            changed += 1;
        }
        std::fs::write(&path, bytes).expect("the file can be written");
    }
    assert!(changed > 0, "the body lies in the folder as it is");
}

#[tokio::test]
async fn an_eager_message_waits_for_its_origin_at_no_attempt() {
    let folder = tempfile::tempdir().expect("a folder");
    let (topic, inbound) = (broker::topic("away", 1), App::nowhere());
    let origin = Origin::at(&topic, "keep: [/id]", (folder.path(), "1h"), inbound).await;
    origin.publish(WHOLE).await;
    assert!(origin.sidecar.stop().await);
    let grave = broker::topic("away-dead", 1);
    let app = App::agreeable().await;
    let group = broker::unique("g");
    let rule = format!(
        "topic: {topic}, group: {group}, hydrate: eager, dead_letter: {grave}, retry: {{ attempts: 1, backoff: 1ms..2ms }}"
    );
    let receiver = receiving(app.address, &orders_at(inbound), &[rule]).await;
    let labels = [
        &*format!("subscription=\"{topic}\""),
        "verdict=\"not-hydrated\"",
    ];
    let missed =
        async || (receiver.metric("wayside_deliveries_total", &labels) >= 2.0).then_some(());
    eventually("it is tried", LONG, missed).await;
    assert_eq!(
        app.count(),
        0,
        "a slim body is never delivered in the whole one's place"
    );
    let origin = Origin::at(&topic, "keep: [/id]", (folder.path(), "1h"), inbound).await;
    let seen = calls(&app, 1).await.remove(0);
    assert_eq!(
        (&seen.body[..], seen.header("wayside-attempt")),
        (WHOLE.as_bytes(), Some("1"))
    );
    assert!(receiver.stop().await && origin.sidecar.stop().await);
}

#[tokio::test]
async fn a_replica_that_does_not_keep_the_claim_sends_us_to_the_next() {
    let origin = Origin::start("keep: [/id]", "1h").await;
    origin.publish(WHOLE).await;
    let other = App::by(|_| Answer::status(404)).await;
    let app = App::agreeable().await;
    let services = format!(
        "orders: {{ addresses: [\"{}\", \"{}\", \"{}\"] }}",
        App::nowhere(),
        other.address,
        origin.sidecar.inbound()
    );
    let rule = format!(
        "topic: {}, group: {}, hydrate: eager",
        origin.topic,
        broker::unique("g")
    );
    let receiver = receiving(app.address, &services, &[rule]).await;
    assert_eq!(calls(&app, 1).await[0].body, WHOLE);
    assert_eq!(
        other.count(),
        0,
        "the one that made the record is asked first"
    );
    assert!(receiver.stop().await);
}

#[tokio::test]
async fn a_replica_that_hangs_leaves_time_to_ask_the_one_that_keeps_the_claim() {
    let folder = tempfile::tempdir().expect("a folder");
    let topic = broker::topic("hangs", 1);
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let first = Origin::at(&topic, "keep: [/id]", (folder.path(), "1h"), any).await;
    first.publish(WHOLE).await;
    assert!(first.sidecar.stop().await);
    // At another address, which is asked after the one that hangs.
    let last = SocketAddr::from(([127, 0, 0, 2], 0));
    let origin = Origin::at(&topic, "keep: [/id]", (folder.path(), "1h"), last).await;
    let hanging = App::by(|_| Answer::hang()).await;
    let (app, keeps) = (App::agreeable().await, origin.sidecar.inbound());
    let services = format!(
        "orders: {{ addresses: [\"{}\", \"{keeps}\"] }}",
        hanging.address
    );
    let rule = format!(
        "topic: {topic}, group: {}, hydrate: eager",
        broker::unique("g")
    );
    let receiver = receiving(app.address, &services, &[rule]).await;
    let seen = calls(&app, 1).await.remove(0);
    assert_eq!((&seen.body[..], hanging.count()), (WHOLE.as_bytes(), 1));
    let missed = [
        &*format!("subscription=\"{topic}\""),
        "verdict=\"not-delivered\"",
    ];
    assert_eq!(receiver.metric("wayside_deliveries_total", &missed), 0.0);
    assert!(receiver.stop().await);
}

#[tokio::test]
async fn a_body_that_is_not_json_or_too_large_keeps_no_claim() {
    let origin = Origin::start("keep: [/id]", "1h").await;
    for body in ["", "{", "[1,", "plain"] {
        let reply = post("billing", "/")
            .json(body)
            .send(origin.sidecar.outbound())
            .await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json()["type"]),
            (400, &"urn:wayside:problem:not-json".into())
        );
    }
    let large = format!(r#"{{"customer":{{"id":1}},"x":"{}"}}"#, "x".repeat(2 << 20));
    let reply = post("billing", "/")
        .json(large)
        .send(origin.sidecar.outbound())
        .await;
    assert_eq!(reply.status, 413);
    origin.publish(WHOLE).await;
    assert_eq!(
        topic::read(&broker::address(), &origin.topic, 1).await[0]
            .key
            .as_deref(),
        Some(&b"7"[..])
    );
}
