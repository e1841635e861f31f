//! The spool against the real broker, a real disk and `kill -9`: what was answered with 202 is in the topic, in order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::sidecar::{Sidecar, With};
use crate::support::client::post;
use crate::support::eventually::eventually;
use crate::support::kafka::{Kafka, Record};
use crate::support::process::announce;
use crate::{broker, own_broker};

/// Callers at the same time, each with a key of its own.
const CALLERS: usize = 8;

/// What callers were told.
#[derive(Default)]
struct Told {
    /// The ids of messages that were answered with 202.
    accepted: Mutex<BTreeSet<String>>,
    spooled: AtomicU64,
    refused: AtomicU64,
    unanswered: AtomicU64,
    slowest: Mutex<Duration>,
}

/// Callers that go on until they are stopped, whatever happens to the sidecar.
struct Load {
    told: Arc<Told>,
    stop: Arc<AtomicBool>,
    door: Arc<Mutex<SocketAddr>>,
    callers: JoinSet<()>,
}

impl Load {
    /// Each caller sends `{ "key", "n" }` with a rising n, one at a time; `hosts` share them.
    fn start(door: SocketAddr, hosts: &[&'static str], pause: Duration) -> Self {
        let mut load = Self {
            told: Arc::default(),
            stop: Arc::default(),
            door: Arc::new(Mutex::new(door)),
            callers: JoinSet::new(),
        };
        for caller in 0..CALLERS {
            let (told, stop) = (Arc::clone(&load.told), Arc::clone(&load.stop));
            let (door, host) = (Arc::clone(&load.door), hosts[caller % hosts.len()]);
            load.callers.spawn(async move {
                for n in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let to = *door.lock().expect("no holder panics");
                    let pause = match told.call(to, host, caller, n).await {
                        true => pause,
                        // Whoever is refused or finds no sidecar comes back after a moment.
                        false => pause.max(Duration::from_millis(20)),
                    };
                    sleep(pause).await;
                }
            });
        }
        load
    }

    fn to(&self, door: SocketAddr) {
        *self.door.lock().expect("no holder panics") = door;
    }

    fn accepted(&self) -> usize {
        self.told.accepted.lock().expect("no holder panics").len()
    }

    /// Waits until so many more are accepted.
    async fn more(&self, count: usize) {
        let wanted = self.accepted() + count;
        let what = format!("{count} more calls are accepted");
        let enough = async || (self.accepted() >= wanted).then_some(());
        eventually(&what, Duration::from_secs(90), enough).await;
    }

    async fn end(mut self) -> Arc<Told> {
        self.stop.store(true, Ordering::Relaxed);
        while self.callers.join_next().await.is_some() {}
        self.told
    }
}

impl Told {
    async fn call(&self, door: SocketAddr, host: &str, caller: usize, n: u64) -> bool {
        let body = json!({ "key": format!("key-{caller}"), "n": n }).to_string();
        let asked = Instant::now();
        let Ok(reply) = post(host, "/").json(body).try_send(door).await else {
            self.unanswered.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        if reply.status != 202 {
            assert_eq!(reply.status, 503, "{:?}", reply.body);
            assert!(reply.header("retry-after").is_some(), "{:?}", reply.headers);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let said = reply.json();
        if said["status"] == "spooled" {
            self.spooled.fetch_add(1, Ordering::Relaxed);
        }
        let mut slowest = self.slowest.lock().expect("no holder panics");
        *slowest = (*slowest).max(asked.elapsed());
        let id = said["id"]
            .as_str()
            .expect("the 202 names the message")
            .to_owned();
        self.accepted.lock().expect("no holder panics").insert(id);
        true
    }
}

/// What lies in the topics, judged.
struct Verdict {
    lost: usize,
    duplicates: usize,
    records: usize,
}

/// Waits until everything accepted is in the topics, then checks the order of each key and that one message has one id.
async fn judge(kafka: &Kafka, topics: &[&str], told: &Told) -> Verdict {
    let accepted = told.accepted.lock().expect("no holder panics").clone();
    let read = async || {
        let mut records = Vec::new();
        for topic in topics {
            records.extend(kafka.read(topic).await);
        }
        records
    };
    let missing = |records: &[Record]| {
        let there: BTreeSet<_> = records
            .iter()
            .map(|record| record.header("ce_id"))
            .collect();
        accepted
            .iter()
            .filter(|id| !there.contains(id.as_str()))
            .count()
    };
    let limit = Instant::now() + Duration::from_secs(60);
    let records = loop {
        let records = read().await;
        if missing(&records) == 0 || Instant::now() > limit {
            break records;
        }
    };
    let (mut last, mut ids, mut duplicates) = (BTreeMap::new(), HashMap::new(), 0);
    for record in &records {
        let value: serde_json::Value = serde_json::from_str(record.text()).expect("JSON");
        if value["pad"].is_string() {
            continue;
        }
        let (key, n) = (
            value["key"].to_string(),
            value["n"].as_u64().expect("a number"),
        );
        let id = record.header("ce_id").to_owned();
        if let Some(before) = ids.insert((key.clone(), n), id.clone()) {
            assert_eq!(before, id, "{key} {n} has two ids");
            duplicates += 1;
            continue;
        }
        let before = last.insert(key.clone(), n);
        assert!(
            before.is_none_or(|before| before < n),
            "{key}: {n} after {before:?}"
        );
    }
    Verdict {
        lost: missing(&records),
        duplicates,
        records: records.len(),
    }
}

fn yaml(kafka: &Kafka, name: &str, spool: &str) -> String {
    let accept = match spool {
        "" => "",
        _ => ", accept: spooled",
    };
    format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - {{ name: r, match: {{ host: replicated }}, publish: {{ topic: {name}-r, key: /key }} }}
    - {{ name: s, match: {{ host: spooled }}, publish: {{ topic: {name}-s, key: /key{accept} }} }}
kafka: {{ brokers: [\"{}\"] }}
{spool}
",
        kafka.address()
    )
}

async fn topics(kafka: &Kafka, name: &str) -> [String; 2] {
    let topics = [format!("{name}-r"), format!("{name}-s")];
    for topic in &topics {
        kafka.make_topic(topic, 3).await;
    }
    topics
}

const HOSTS: [&str; 2] = ["replicated", "spooled"];
const SPOOL: &str = "spool: { path: \"{spool}\", max: 64MiB, survives: volume }";

/// How often; the long run asks for more.
fn times(variable: &str, short: usize) -> usize {
    let wanted = std::env::var(variable).ok();
    wanted
        .and_then(|wanted| wanted.parse().ok())
        .unwrap_or(short)
}

#[tokio::test]
async fn a_broker_that_is_killed_under_load_costs_no_202_and_no_order() {
    let Some(mut kafka) = own_broker().await else {
        return;
    };
    let topics = topics(&kafka, "outage").await;
    let topics = [topics[0].as_str(), topics[1].as_str()];
    let with = Sidecar::run(&yaml(&kafka, "outage", SPOOL)).await;
    let load = Load::start(with.door(), &HOSTS, Duration::from_millis(5));
    let kills = times("WAYSIDE_BROKER_KILLS", 3);
    for _ in 0..kills {
        load.more(200).await;
        kafka.kill();
        // They go on while it is away.
        load.more(200).await;
        kafka.restart().await;
        load.more(200).await;
    }
    let told = load.end().await;
    let verdict = judge(&kafka, &topics, &told).await;
    let (spooled, refused) = (
        told.spooled.load(Ordering::Relaxed),
        told.refused.load(Ordering::Relaxed),
    );
    announce(&format!(
        "broker killed {kills} times with a spool: {} accepted ({spooled} of them spooled), {refused} refused, {} lost, {} duplicates, slowest 202 {:?}",
        told.accepted.lock().expect("no holder panics").len(),
        verdict.lost,
        verdict.duplicates,
        told.slowest.lock().expect("no holder panics"),
    ));
    assert_eq!((verdict.lost, refused), (0, 0));
    assert!(spooled > 0);
}

#[tokio::test]
async fn without_a_spool_a_broker_that_is_killed_under_load_is_an_honest_503_and_no_202_is_lost() {
    let Some(mut kafka) = own_broker().await else {
        return;
    };
    let topics = topics(&kafka, "bare").await;
    let without = Sidecar::run(&yaml(&kafka, "bare", "")).await;
    let load = Load::start(without.door(), &HOSTS, Duration::from_millis(5));
    for _ in 0..times("WAYSIDE_BROKER_KILLS", 2) {
        load.more(200).await;
        kafka.kill();
        let refused = load.told.refused.load(Ordering::Relaxed);
        eventually("calls are refused", Duration::from_secs(30), async || {
            (load.told.refused.load(Ordering::Relaxed) > refused + 20).then_some(())
        })
        .await;
        kafka.restart().await;
        load.more(200).await;
    }
    let told = load.end().await;
    let verdict = judge(&kafka, &[&topics[0], &topics[1]], &told).await;
    assert_eq!(verdict.lost, 0);
}

#[tokio::test]
async fn a_sidecar_that_is_killed_at_any_moment_loses_nothing_that_it_promised() {
    let Some(kafka) = broker().await else { return };
    let topics = topics(kafka, "killed").await;
    let mut sidecar = Sidecar::run(&yaml(kafka, "killed", SPOOL)).await;
    let load = Load::start(sidecar.door(), &HOSTS, Duration::ZERO);
    let kills = times("WAYSIDE_SPOOL_KILLS", 100);
    for n in 0..kills {
        load.more(20).await;
        // Every fourth right after a 202, the others at any moment.
        if n % 4 != 0 {
            sleep(Duration::from_millis(fastrand::u64(0..30))).await;
        }
        sidecar.kill();
        sidecar.start_again().await;
        load.to(sidecar.door());
    }
    load.more(20).await;
    let told = load.end().await;
    let verdict = judge(kafka, &[&topics[0], &topics[1]], &told).await;
    announce(&format!(
        "sidecar killed {kills} times: {} accepted, {} without an answer, {} lost, {} duplicates in {} records",
        told.accepted.lock().expect("no holder panics").len(),
        told.unanswered.load(Ordering::Relaxed),
        verdict.lost,
        verdict.duplicates,
        verdict.records,
    ));
    assert_eq!(verdict.lost, 0);
    assert_eq!(
        told.refused.load(Ordering::Relaxed),
        0,
        "nothing is wrong with the broker"
    );
    // What was with the broker and not noted as acknowledged: acknowledgements gather for 100 ms at most.
    assert!(
        verdict.duplicates <= kills * 400,
        "{} duplicates",
        verdict.duplicates
    );
}

#[tokio::test]
async fn a_crash_at_each_chosen_point_loses_nothing_that_was_promised() {
    let Some(kafka) = broker().await else { return };
    let topics = topics(kafka, "points").await;
    let mut sidecar = Sidecar::run(&yaml(kafka, "points", SPOOL)).await;
    let load = Load::start(sidecar.door(), &HOSTS, Duration::ZERO);
    // After the write before the sync, after the sync before the 202, after the sending before the acknowledgement, after
    // the acknowledgement before it is noted, and between two groups.
    for point in [
        "spool-written",
        "spool-synced",
        "spool-sent",
        "spool-acked",
        "spool-tidy",
    ] {
        for pass in [1, 2, 17] {
            sidecar.kill();
            let env = vec![("WAYSIDE_CRASH_AT", format!("{point}:{pass}"))];
            sidecar.with(With {
                env,
                ..With::default()
            });
            if let Some(door) = sidecar.start_doomed().await {
                load.to(door);
            }
            let left = sidecar.ended().await;
            assert_eq!(left.code(), None, "{point}: it ended by a signal");
            sidecar.with(With::default());
            sidecar.start_again().await;
            load.to(sidecar.door());
            load.more(5).await;
        }
    }
    let told = load.end().await;
    let verdict = judge(kafka, &[&topics[0], &topics[1]], &told).await;
    assert_eq!(verdict.lost, 0);
}

/// Starts a sidecar whose spool is a disk of so many MiB.
async fn on_a_small_disk(yaml: &str, size: usize) -> Sidecar {
    let mount = format!(
        "mkdir -p '{{spool}}' && mount -t tmpfs -o size={size}m tmpfs '{{spool}}' && exec \"$@\""
    );
    let by = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        &mount,
        "sh",
    ];
    let with = With {
        by: by.map(str::to_owned).to_vec(),
        ..With::default()
    };
    Sidecar::run_with(yaml, with).await
}

/// The spool's folder as the sidecar sees it.
fn inside(sidecar: &Sidecar) -> PathBuf {
    let spool = sidecar.folder().join("spool");
    let inside = Path::new("/proc")
        .join(sidecar.pid().to_string())
        .join("root");
    inside.join(spool.strip_prefix("/").expect("it is absolute"))
}

#[tokio::test]
async fn a_full_disk_is_a_clear_503_and_passes_without_a_restart() {
    let Some(mut kafka) = own_broker().await else {
        return;
    };
    let topics = topics(&kafka, "full").await;
    let mut sidecar = on_a_small_disk(&yaml(&kafka, "full", SPOOL), 12).await;
    let load = Load::start(sidecar.door(), &HOSTS, Duration::from_millis(2));
    load.more(100).await;
    // Somebody else takes the rest of the disk, while the broker is away.
    std::fs::write(inside(&sidecar).join("filler"), vec![1; 7 << 20])
        .expect("there is room for that");
    kafka.kill();
    let padded = "x".repeat(100_000);
    let full = eventually("the disk is full", Duration::from_secs(60), async || {
        let reply =
            post("spooled", "/").json(json!({ "key": "pad", "n": 0, "pad": padded }).to_string());
        let reply = reply.send(sidecar.door()).await;
        (reply.status == 503).then_some(reply)
    })
    .await;
    assert_eq!(full.json()["type"], "urn:wayside:problem:spool-unavailable");
    assert!(full.header("retry-after").is_some());
    assert_eq!(sidecar.ready().await, 200, "other routes go on");

    // The space comes back.
    std::fs::remove_file(inside(&sidecar).join("filler")).expect("it is there");
    let asked = Instant::now();
    load.more(20).await;
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    kafka.restart().await;
    load.more(200).await;
    assert!(sidecar.is_running(), "the same process all along");
    let told = load.end().await;
    let verdict = judge(&kafka, &[&topics[0], &topics[1]], &told).await;
    assert_eq!(verdict.lost, 0);
}

/// A library that makes each third `fdatasync` fail with EIO while a file is there.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
int fdatasync(int fd) {
    static int (*real)(int);
    static int calls;
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    if (access(getenv("BAD_DISK"), F_OK) == 0 && ++calls % 3 == 0) { errno = EIO; return -1; }
    return real(fd);
}
"#;

#[tokio::test]
async fn a_disk_that_fails_to_sync_is_a_clear_503_and_passes_without_a_restart() {
    let Some(mut kafka) = own_broker().await else {
        return;
    };
    let topics = topics(&kafka, "eio").await;
    let folder = tempfile::tempdir().expect("a folder");
    let (source, library) = (folder.path().join("shim.c"), folder.path().join("shim.so"));
    let bad = folder.path().join("bad");
    std::fs::write(&source, SHIM).expect("the folder can be written");
    let mut compile = Command::new("cc");
    compile
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .arg("-ldl");
    assert!(
        compile.status().is_ok_and(|left| left.success()),
        "a C compiler is needed to build Wayside too"
    );
    let env = vec![
        ("LD_PRELOAD", library.display().to_string()),
        ("BAD_DISK", bad.display().to_string()),
    ];
    let with = With {
        env,
        ..With::default()
    };
    let mut sidecar = Sidecar::run_with(&yaml(&kafka, "eio", SPOOL), with).await;
    let load = Load::start(sidecar.door(), &HOSTS, Duration::ZERO);
    load.more(100).await;
    kafka.kill();
    std::fs::write(&bad, "").expect("the folder can be written");
    let refused = load.told.refused.load(Ordering::Relaxed);
    eventually("syncs fail", Duration::from_secs(60), async || {
        (load.told.refused.load(Ordering::Relaxed)
            >= refused + times("WAYSIDE_BAD_SYNCS", 100) as u64)
            .then_some(())
    })
    .await;
    std::fs::remove_file(&bad).expect("it is there");
    let asked = Instant::now();
    load.more(50).await;
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    // A sidecar that is killed now has only its disk to tell what it promised.
    sidecar.kill();
    sidecar.with(With::default());
    sidecar.start_again().await;
    load.to(sidecar.door());
    kafka.restart().await;
    load.more(50).await;
    assert!(sidecar.log().contains("spool"), "it tells what it found");
    let told = load.end().await;
    let verdict = judge(&kafka, &[&topics[0], &topics[1]], &told).await;
    assert_eq!(verdict.lost, 0);
}
