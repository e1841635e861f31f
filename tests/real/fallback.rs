//! A receiver that is down while it is written to by forward routes with a fallback: nothing is lost, no key's order is
//! broken, and direct calls come back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::broker;
use crate::sidecar::Sidecar;
use crate::support::app::{Answer, App};
use crate::support::client::post;
use crate::support::eventually::eventually;
use crate::support::kafka::Kafka;
use crate::support::process::announce;

const LONG: Duration = Duration::from_secs(120);
const KEYS: usize = 50;

/// How long the receiver is down, in seconds: `.ci/long` asks for a minute.
fn down() -> Duration {
    let seconds = std::env::var("WAYSIDE_DOWN").unwrap_or_else(|_| "5".to_owned());
    Duration::from_secs(seconds.parse().expect("WAYSIDE_DOWN is a number"))
}

/// What the writers were told.
#[derive(Default)]
struct Told {
    /// The numbers of each key that were answered with 200 or 202.
    taken: BTreeMap<usize, BTreeSet<u64>>,
    direct: usize,
    queued: usize,
    failed: usize,
    /// Keys whose last call was direct.
    well: BTreeSet<usize>,
}

/// Writes to one key, a number after the other, until told to stop; each number until somebody takes it.
async fn write(door: SocketAddr, key: usize, told: Arc<Mutex<Told>>, stop: Arc<AtomicBool>) {
    let mut pace = interval(Duration::from_millis(100));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let body = json!({ "key": format!("key-{key}"), "n": n }).to_string();
        let reply = post("billing", "/charges").json(body).send(door).await;
        let mut told = told.lock().expect("unpoisoned");
        match reply.status.as_u16() {
            200 => {
                told.direct += 1;
                told.well.insert(key);
            }
            202 => {
                told.queued += 1;
                told.well.remove(&key);
            }
            502 => {
                // It was sent as the receiver went, and is written again.
                told.failed += 1;
                continue;
            }
            status => panic!("{status}: {:?}", reply.body),
        }
        told.taken.entry(key).or_default().insert(n);
        n += 1;
    }
}

/// A sidecar that forwards and queues, and one that takes both, beside the app.
async fn pair(kafka: &Kafka, app: &App) -> (Sidecar, Sidecar) {
    let kafka = format!(
        "kafka:
  brokers: [\"{}\"]
  replies: charges.replies
  properties: {{ session.timeout.ms: \"2000\", heartbeat.interval.ms: \"500\" }}",
        kafka.address()
    );
    let inbound = App::nowhere();
    let billing = format!(
        "
service: billing
app: {}
inbound: {{ listen: \"{inbound}\" }}
subscriptions:
  - {{ topic: charges, group: charges }}
{kafka}
",
        app.address
    );
    let orders = format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: charge
      match: {{ host: billing }}
      forward: {{ to: billing, otherwise: {{ publish: {{ topic: charges, key: /key }} }} }}
services:
  billing: {{ addresses: [\"{inbound}\"] }}
{kafka}
"
    );
    (Sidecar::run(&orders).await, Sidecar::run(&billing).await)
}

/// How many calls were taken and never came, and how many keys came out of order.
fn compared(told: &Told, app: &App) -> (usize, usize) {
    let mut came: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for call in app.seen() {
        let body = call.json();
        let key = body["key"]
            .as_str()
            .and_then(|key| key.strip_prefix("key-"));
        let key = key.and_then(|key| key.parse().ok()).expect("a key");
        let n = body["n"].as_u64().expect("a number");
        let of_its_key = came.entry(key).or_default();
        // What was under way when the receiver was killed comes twice.
        if !of_its_key.contains(&n) {
            of_its_key.push(n);
        }
    }
    let lost = told.taken.iter().map(|(key, taken)| {
        let came: BTreeSet<u64> = came.get(key).into_iter().flatten().copied().collect();
        taken.difference(&came).count()
    });
    let disordered = came.values().filter(|order| !order.is_sorted());
    (lost.sum(), disordered.count())
}

#[tokio::test]
async fn a_receiver_that_is_down_gets_everything_later_in_each_keys_order() {
    let Some(kafka) = broker().await else { return };
    kafka.make_topic("charges", 4).await;
    kafka.make_topic("charges.replies", 1).await;
    let app = App::by(|_| Answer::ok().after(Duration::from_millis(2))).await;
    let (orders, mut billing) = pair(kafka, &app).await;
    eventually("the replies are read", LONG, async || {
        (orders.metric("wayside_replies_reading").await > 0.0).then_some(())
    })
    .await;
    let (told, stop) = (Arc::<Mutex<Told>>::default(), Arc::<AtomicBool>::default());
    let mut writers = JoinSet::new();
    for key in 0..KEYS {
        writers.spawn(write(
            orders.door(),
            key,
            Arc::clone(&told),
            Arc::clone(&stop),
        ));
    }
    let all_direct = async || {
        let told = told.lock().expect("unpoisoned");
        (told.well.len() == KEYS).then_some(())
    };
    eventually("all keys are written directly", LONG, all_direct).await;

    billing.kill();
    let since = Instant::now();
    eventually("it is down for a while", LONG, async || {
        (since.elapsed() >= down()).then_some(())
    })
    .await;
    let queued = told.lock().expect("unpoisoned").queued;
    assert!(queued >= KEYS, "{queued} calls were queued");
    billing.start_again().await;
    eventually("all keys are written directly again", LONG, all_direct).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = writers.join_next().await {
        ended.expect("a writer does not fail");
    }

    let told = told.lock().expect("unpoisoned");
    let (lost, disordered) = compared(&told, &app);
    announce(&format!(
        "real: fallback: down for {:?}, {KEYS} keys: {} direct, {} queued, {} sent as it went; {lost} lost, {disordered} keys out of order",
        down(),
        told.direct,
        told.queued,
        told.failed
    ));
    assert_eq!((lost, disordered), (0, 0));
}
