//! Orders of 20 KiB that are slim on the way: every byte back where it is asked for, and no record without its body.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::broker;
use crate::sidecar::Sidecar;
use crate::support::app::{Answer, App, Seen};
use crate::support::client::{get, post};
use crate::support::eventually::eventually;
use crate::support::kafka::Kafka;
use crate::support::process::announce;

/// Callers at the same time.
const CALLERS: usize = 16;
/// Of so many orders one is fetched by need.
const ONE_OF: usize = 20;
const FETCHED: usize = 3;

fn number(name: &str, default: usize) -> usize {
    let set = std::env::var(name).ok();
    set.map_or(default, |set| set.parse().expect("a number"))
}

/// An order of some 20 KiB: names and figures as shops have them, half of it hard to compress.
fn order(n: usize) -> String {
    let mut rng = fastrand::Rng::with_seed(n as u64);
    let mut lines = String::with_capacity(20 << 10);
    for line in 0..160 {
        let (sku, tag) = (rng.u64(..), rng.u128(..));
        lines.push_str(&format!(
            "{{ \"sku\": \"S-{sku:016x}\", \"line\":{line}, \"price\":{}.{:02}, \"tag\":\"{tag:032x}\", \"text\":\"straße 🚃\" }},",
            rng.u16(..999),
            rng.u8(..100)
        ));
    }
    lines.pop();
    format!(
        "{{ \"id\": {n},\t\"customer\" : {{\"id\":\"c-{}\"}}, \"lines\": [{lines}] }}",
        n % 1000
    )
}

/// The number of a body that is an order byte for byte.
fn is_order(body: &[u8]) -> Option<usize> {
    let (_, rest) = std::str::from_utf8(body).ok()?.split_once("\"id\": ")?;
    let n = rest.split_once(',')?.0.parse().ok()?;
    (order(n).as_bytes() == body).then_some(n)
}

async fn publisher(kafka: &Kafka, more: &str, slim: &str) -> Sidecar {
    Sidecar::run(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: slim
      match: {{ host: slim }}
      publish: {{ topic: slim-orders, key: /customer/id, {slim} }}
    - name: whole
      match: {{ host: whole }}
      publish: {{ topic: whole-orders, key: /customer/id }}
inbound: {{ listen: 127.0.0.1:0 }}
kafka: {{ brokers: [\"{}\"] }}
{more}
",
        kafka.address()
    ))
    .await
}

/// Publishes these orders by many callers at once.
async fn publish(orders: &Sidecar, host: &'static str, count: usize) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    let door = orders.door();
    for _ in 0..CALLERS {
        let next = Arc::clone(&next);
        callers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return;
                }
                let reply = post(host, "/orders").json(order(n)).send(door).await;
                assert_eq!(reply.status, 202, "{:?}", reply.body);
            }
        });
    }
    callers.join_all().await;
}

/// What an app has seen of so many orders.
struct Checked {
    whole: AtomicUsize,
    wrong: AtomicUsize,
    times: Vec<AtomicUsize>,
}

/// An app that looks at every order, and says no more of it.
async fn checking(count: usize, read: fn(&Seen) -> Option<usize>) -> (App, Arc<Checked>) {
    let checked = Arc::new(Checked {
        whole: AtomicUsize::new(0),
        wrong: AtomicUsize::new(0),
        times: (0..count).map(|_| AtomicUsize::new(0)).collect(),
    });
    let own = Arc::clone(&checked);
    let app = App::by(move |seen| {
        match read(seen).filter(|n| *n < own.times.len()) {
            Some(n) => {
                own.times[n].fetch_add(1, Ordering::Relaxed);
                own.whole.fetch_add(1, Ordering::Relaxed);
            }
            None => drop(own.wrong.fetch_add(1, Ordering::Relaxed)),
        }
        Answer::ok()
    })
    .await;
    (app, checked)
}

fn slim_id(seen: &Seen) -> Option<usize> {
    let id = seen.json()["id"].as_u64()?;
    (seen.body.len() < 1024).then_some(id as usize)
}

/// Fetches the orders of which the lazy app asked for the rest, while they come.
async fn fetch(app: &App, count: usize) -> usize {
    let (mut fetched, mut seen_in_all) = (0, 0);
    while seen_in_all < count {
        let seen = app.take();
        if seen.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for seen in seen {
            seen_in_all += 1;
            let n = slim_id(&seen).expect("a slim order");
            if n % ONE_OF >= FETCHED {
                continue;
            }
            let claim = seen.header("wayside-claim").expect("an address");
            let uri: http::Uri = claim.parse().expect("an address");
            let door = uri.authority().expect("the address is whole").as_str();
            let path = uri.path_and_query().expect("a path").as_str();
            let reply = get(door, path).send(door.parse().expect("loopback")).await;
            assert_eq!(reply.status, 200, "{:?}", reply.body);
            assert_eq!(is_order(&reply.body), Some(n), "bit for bit");
            fetched += 1;
        }
    }
    fetched
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_are_slim_on_the_way_and_whole_for_whoever_wants_them() {
    let Some(kafka) = broker().await else { return };
    let count = number("WAYSIDE_ORDERS", 2_000);
    for topic in ["slim-orders", "whole-orders"] {
        kafka.make_topic(topic, 4).await;
    }
    let slim = "slim: { keep: [/id, /customer] }";
    let claims = "claims: { bodies: { disk: \"{claims}\", survives: volume, max: 8GiB } }";
    let orders = publisher(kafka, claims, slim).await;
    let (lazy_app, lazy) = checking(count, slim_id).await;
    let (eager_app, eager) = checking(count, |seen| is_order(&seen.body)).await;
    // Both groups at one sidecar, whose cache holds all: each body is fetched once.
    let cache = (count * (24 << 10)).max(64 << 20);
    let subscriptions = format!(
        "
service: billing
app: {}
outbound: {{ listen: 127.0.0.1:0 }}
subscriptions:
  - {{ topic: slim-orders, group: by-need, hydrate: lazy }}
services: {{ orders: {{ addresses: [\"{}\"] }} }}
limits: {{ claim_cache: {cache}B }}
kafka: {{ brokers: [\"{}\"] }}
",
        lazy_app.address,
        orders.inbound.expect("a door"),
        kafka.address()
    );
    let by_need = Sidecar::run(&subscriptions).await;
    let before = subscriptions
        .replace("by-need, hydrate: lazy", "before, hydrate: eager")
        .replace(
            &lazy_app.address.to_string(),
            &eager_app.address.to_string(),
        );
    let before = Sidecar::run(&before).await;

    let publishing = publish(&orders, "slim", count);
    let whole = eventually(
        "all are whole at the second group",
        Duration::from_secs(1800),
        async || {
            eager_app.forget();
            (eager.whole.load(Ordering::Relaxed) >= count).then_some(())
        },
    );
    let ((), fetched, ()) = tokio::join!(publishing, fetch(&lazy_app, count), whole);
    assert_eq!(fetched, (0..count).filter(|n| n % ONE_OF < FETCHED).count());
    for (name, checked) in [("lazy", &lazy), ("eager", &eager)] {
        assert_eq!(checked.wrong.load(Ordering::Relaxed), 0, "{name}");
        let missing = checked
            .times
            .iter()
            .filter(|times| times.load(Ordering::Relaxed) == 0);
        assert_eq!(missing.count(), 0, "{name}");
    }
    let asked = by_need.metric("wayside_hydrate_seconds_count").await;
    assert!(
        asked <= fetched as f64,
        "{asked} of {fetched} were asked for"
    );
    let asked = before.metric("wayside_hydrate_seconds_count").await;
    assert!(asked <= count as f64, "{asked} of {count} were asked for");

    cost_less(kafka, &orders, (count, fetched)).await;
}

/// Compares with the same orders whole, as far as it takes to know what one costs the broker.
async fn cost_less(kafka: &Kafka, orders: &Sidecar, (count, fetched): (usize, usize)) {
    let sample = count.min(2_000);
    publish(orders, "whole", sample).await;
    let slim_bytes = kafka.log_bytes("slim-orders") as f64 / count as f64;
    let whole_bytes = kafka.log_bytes("whole-orders") as f64 / sample as f64;
    let fell = 1.0 - slim_bytes / whole_bytes;
    announce(&format!(
        "real: {count} orders of {} bytes: {slim_bytes:.0} bytes in the broker each, beside {whole_bytes:.0} (compressed) whole: {:.1} % less; {fetched} fetched by need, all by the second group, each bit for bit",
        order(0).len(),
        fell * 100.0
    ));
    assert!(fell >= 0.9, "{slim_bytes} beside {whole_bytes}");
}

/// What becomes of the records of a topic, each of which names a body.
async fn bodies_are_there(kafka: &Kafka, orders: &Sidecar, topic: &str) -> usize {
    let records = kafka.read(topic).await;
    for record in &records {
        let claim = record.header("wayside-claim");
        let path = format!("/.wayside/claims/{claim}");
        let reply = get("orders", &path)
            .send(orders.inbound.expect("a door"))
            .await;
        assert_eq!(reply.status, 200, "{:?} of {}", reply.body, record.text());
        assert!(is_order(&reply.body).is_some(), "bit for bit");
        let digest = base64(&Sha256::digest(&reply.body));
        assert_eq!(
            record.header("wayside-claim-digest"),
            format!("sha-256=:{digest}:")
        );
    }
    records.len()
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine as _;
    ::base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_record_names_a_body_that_a_killed_sidecar_had_not_kept() {
    let Some(kafka) = broker().await else { return };
    let kills = number("WAYSIDE_KILLS", 4);
    let shared = tempfile::tempdir().expect("a folder");
    for topic in ["killed-disk", "killed-object"] {
        kafka.make_topic(topic, 1).await;
    }
    let mut orders = Sidecar::run(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - {{ name: a, match: {{ host: disk }}, publish: {{ topic: killed-disk, slim: {{ keep: [/id], claim: own }} }} }}
    - {{ name: b, match: {{ host: object }}, publish: {{ topic: killed-object, slim: {{ keep: [/id], claim: shared }} }} }}
inbound: {{ listen: 127.0.0.1:0 }}
kafka: {{ brokers: [\"{}\"] }}
spool: {{ path: \"{{spool}}\", survives: volume }}
claims:
  own: {{ disk: \"{{claims}}\", survives: volume, max: 8GiB }}
  shared: {{ object: \"{}\" }}
",
        kafka.address(),
        shared.path().display()
    ))
    .await;
    let mut promised: HashMap<&str, usize> = HashMap::new();
    let mut rng = fastrand::Rng::with_seed(7);
    for round in 0..kills {
        // Every second time soon after the start, before anything was promised.
        let taken = under_fire(&mut orders, round % 2 == 0, rng.u64(0..150)).await;
        for host in taken {
            *promised.entry(host).or_default() += 1;
        }
        orders.start_again().await;
        // In between, since each look costs as much as a hundred kills.
        if round % 50 == 49 {
            bodies_are_there(kafka, &orders, "killed-disk").await;
        }
    }
    let owed = async || (orders.metric("wayside_spool_messages").await == 0.0).then_some(());
    eventually(
        "the broker has all that was promised",
        Duration::from_secs(60),
        owed,
    )
    .await;
    let (disk, object) = (
        bodies_are_there(kafka, &orders, "killed-disk").await,
        bodies_are_there(kafka, &orders, "killed-object").await,
    );
    for (host, found) in [("disk", disk), ("object", object)] {
        let promised = promised.get(host).copied().unwrap_or_default();
        assert!(
            found >= promised && promised > 0,
            "{host}: {found} of {promised}"
        );
    }
    announce(&format!(
        "real: {kills} kills of a publishing sidecar: {} records, and each body is there",
        disk + object
    ));
}

/// Calls from many sides until the sidecar is killed so many milliseconds later, or so long after the first 202; the hosts
/// of those that had one.
async fn under_fire(orders: &mut Sidecar, warm: bool, milliseconds: u64) -> Vec<&'static str> {
    let door = orders.door();
    let first = Arc::new(Notify::new());
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let host = if caller % 2 == 0 { "disk" } else { "object" };
        let first = Arc::clone(&first);
        callers.spawn(async move {
            let mut taken = Vec::new();
            for n in caller * 1000.. {
                match post(host, "/orders").json(order(n)).try_send(door).await {
                    Ok(reply) if reply.status == 202 => {
                        first.notify_one();
                        taken.push(host);
                    }
                    Ok(reply) => panic!("{} {:?}", reply.status, reply.body),
                    Err(_) => break,
                }
            }
            taken
        });
    }
    if warm {
        first.notified().await;
    }
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    orders.kill();
    callers.join_all().await.concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_a_quarter_of_a_gigabyte_costs_neither_sidecar_its_memory() {
    const LEN: usize = 256 << 20;
    const MORE: u64 = 64 << 20;
    let Some(kafka) = broker().await else { return };
    kafka.make_topic("films", 1).await;
    let orders = Sidecar::run(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - {{ name: all, publish: {{ topic: films, max_body: 1GiB, slim: {{ keep: [/id], whole_over: 64KiB }} }} }}
inbound: {{ listen: 127.0.0.1:0 }}
claims: {{ bodies: {{ disk: \"{{claims}}\", survives: volume }} }}
kafka: {{ brokers: [\"{}\"] }}
",
        kafka.address()
    ))
    .await;
    let app = App::agreeable().await;
    let billing = Sidecar::run(&format!(
        "
service: billing
app: {}
outbound: {{ listen: 127.0.0.1:0 }}
subscriptions: [ {{ topic: films, group: films }} ]
services: {{ orders: {{ addresses: [\"{}\"] }} }}
kafka: {{ brokers: [\"{}\"] }}
",
        app.address,
        orders.inbound.expect("a door"),
        kafka.address()
    ))
    .await;
    let film: bytes::Bytes = vec![7; LEN].into();
    let call = post("billing", "/films").header("content-type", "video/mp4");
    let (reply, up) = watched(&orders, call.body(film.clone()).send(orders.door())).await;
    assert_eq!(reply.status, 202, "{:?}", reply.body);
    let first = async || app.seen().into_iter().next();
    let seen = eventually("the app is called", Duration::from_secs(20), first).await;
    let claim: http::Uri = seen
        .header("wayside-claim")
        .expect("an address")
        .parse()
        .expect("one");
    let fetching = get("127.0.0.1", claim.path()).send(billing.door());
    let ((reply, down), kept) = watched(&orders, watched(&billing, fetching)).await;
    assert!(reply.body == film, "bit for bit");
    let mib = |bytes: u64| bytes >> 20;
    announce(&format!(
        "real: a body of {} MiB: {} MiB more in the sidecar that took it, {} in the one that kept it, {} in the one that fetched it",
        LEN >> 20,
        mib(up),
        mib(kept),
        mib(down)
    ));
    assert!(up < MORE && kept < MORE && down < MORE);
}

/// Does something, and tells how much more memory a sidecar had meanwhile than before.
async fn watched<T>(sidecar: &Sidecar, work: impl Future<Output = T>) -> (T, u64) {
    let (before, mut most) = (sidecar.resident(), 0);
    let watching = async {
        loop {
            most = most.max(sidecar.resident());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let done = tokio::select! {
        done = work => done,
        () = watching => unreachable!("it never ends"),
    };
    (done, most.saturating_sub(before))
}
