//! Bodies in a bucket of a real S3 server: MinIO, started by each test in a folder of its own.
//!
//! Not part of `cargo test`, since MinIO takes minutes to build: `cargo test --test s3`, with the program in `WAYSIDE_MINIO`
//! or on the path. `.ci/long` builds it.

#![allow(
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails by panicking and tells what it saw"
)]

#[path = "../support/mod.rs"]
#[cfg(test)]
#[allow(
    dead_code,
    reason = "each test binary uses its part of what they share"
)]
mod support;

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::task::JoinSet;
use wayside::claims::{Objects, Whole};
use wayside::config;
use wayside::config::model::ClaimPlace;

use support::app::{App, Seen};
use support::broker;
use support::client::{Reply, get, post};
use support::eventually::eventually;
use support::kafka::free_port;
use support::process::Process;
use support::sidecar::Sidecar;

const LONG: Duration = Duration::from_secs(30);
const SECRET: &str = "wayside-secret";

/// A running MinIO with one bucket, `claims`.
struct Minio {
    process: Process,
    port: u16,
    folder: TempDir,
}

impl Minio {
    async fn start() -> Self {
        let folder = TempDir::with_prefix("wayside-minio-").expect("a folder");
        // MinIO takes a folder of its data for a bucket.
        fs::create_dir_all(folder.path().join("data/claims")).expect("a folder");
        let port = free_port();
        let process = serve(&folder, port).await;
        Self {
            process,
            port,
            folder,
        }
    }

    fn kill(&mut self) {
        self.process.kill();
    }

    async fn start_again(&mut self) {
        self.process = serve(&self.folder, self.port).await;
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill")
            .args([name, &self.process.pid().to_string()])
            .status();
        assert!(done.expect("there is kill").success());
    }

    /// What a config says to reach it.
    fn store(&self, secret: &str) -> String {
        format!(
            "object: s3://claims/kept, ttl: 1h, s3: {{ endpoint: \"http://127.0.0.1:{}\", region: us-east-1, access_key: wayside, secret_key: {secret} }}",
            self.port
        )
    }

    /// Parts of objects that are not complete, as MinIO has them on disk.
    fn parts(&self) -> usize {
        let mut found = 0;
        let mut left = vec![self.folder.path().join("data/.minio.sys/multipart")];
        while let Some(path) = left.pop() {
            for entry in fs::read_dir(&path).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if path.is_dir() {
                    left.push(path);
                } else if name.starts_with("part.") && !name.ends_with(".meta") {
                    found += 1;
                }
            }
        }
        found
    }

    /// Names of the objects, as MinIO has them on disk.
    fn objects(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut left = vec![self.folder.path().join("data/claims/kept")];
        while let Some(path) = left.pop() {
            for entry in fs::read_dir(&path).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                if path.join("xl.meta").exists() {
                    found.push(path.display().to_string());
                } else if path.is_dir() {
                    left.push(path);
                }
            }
        }
        found
    }
}

async fn serve(folder: &TempDir, port: u16) -> Process {
    let program = std::env::var("WAYSIDE_MINIO").unwrap_or_else(|_| "minio".to_owned());
    let mut command = Command::new(program);
    command
        .env("MINIO_ROOT_USER", "wayside")
        .env("MINIO_ROOT_PASSWORD", SECRET)
        .args([
            "server",
            "--quiet",
            "--address",
            &format!("127.0.0.1:{port}"),
        ])
        .args(["--console-address", &format!("127.0.0.1:{}", free_port())])
        .arg(folder.path().join("data"));
    let process = Process::start("minio", &mut command, folder.path());
    let address = ([127, 0, 0, 1], port).into();
    eventually("MinIO is ready", LONG, async || {
        let asked = get("minio", "/minio/health/ready").try_send(address).await;
        asked.is_ok_and(|reply| reply.status == 200).then_some(())
    })
    .await;
    process
}

async fn orders(topic: &str, store: &str) -> Sidecar {
    Sidecar::start(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - {{ name: all, match: {{ host: billing }}, publish: {{ topic: {topic}, key: /id, slim: {{ keep: [/id] }} }} }}
claims: {{ bodies: {{ {store} }} }}
kafka: {{ brokers: [\"{}\"] }}
",
        broker::address()
    ))
    .await
}

async fn billing(topic: &str, store: &str, app: &App, hydrate: &str) -> Sidecar {
    Sidecar::start(&format!(
        "
service: billing
app: {}
outbound: {{ listen: 127.0.0.1:0, routes: [] }}
subscriptions:
  - {{ topic: {topic}, group: {}, hydrate: {hydrate} }}
claims: {{ any: {{ {store} }} }}
kafka: {{ brokers: [\"{}\"] }}
drain: 8s
",
        app.address,
        broker::unique("g"),
        broker::address()
    ))
    .await
}

fn order(n: usize) -> String {
    format!(
        "{{ \"id\": {n},\t\"lines\": [ \"{}\" ] }}",
        format!("line {n} 🚃 ").repeat(1500)
    )
}

async fn send(orders: &Sidecar, n: usize) -> Reply {
    post("billing", "/")
        .json(order(n))
        .send(orders.outbound())
        .await
}

async fn seen(app: &App, count: usize) -> Vec<Seen> {
    let enough = async || (app.count() >= count).then(|| app.seen());
    eventually("the calls at the app", LONG, enough).await
}

#[tokio::test]
async fn bodies_in_a_bucket_come_back_bit_for_bit_without_the_sidecar_that_kept_them() {
    let minio = Minio::start().await;
    let (topic, store) = (broker::topic("s3", 1), minio.store(SECRET));
    let sidecar = orders(&topic, &store).await;
    for n in 0..100 {
        let reply = send(&sidecar, n).await;
        assert_eq!(reply.status, 202, "{:?}", reply.body);
        let claim = &reply.json()["claim"];
        assert_eq!(
            (&claim["kept"], &claim["survives"]),
            (&"object".into(), &"volume".into())
        );
    }
    // The same body once more is the same object.
    assert_eq!(send(&sidecar, 0).await.status, 202);
    assert_eq!(minio.objects().len(), 100 + 1, "and the key");
    assert!(sidecar.stop().await);
    let (eager, lazy) = (App::agreeable().await, App::agreeable().await);
    let before = billing(&topic, &store, &eager, "eager").await;
    let by_need = billing(&topic, &store, &lazy, "lazy").await;
    let mut bodies: Vec<_> = seen(&eager, 101)
        .await
        .into_iter()
        .map(|seen| seen.body)
        .collect();
    bodies.sort();
    bodies.dedup();
    let mut expected: Vec<_> = (0..100).map(order).collect();
    expected.sort();
    assert_eq!(bodies, expected);
    for seen in &seen(&lazy, 101).await[..20] {
        let claim: http::Uri = seen
            .header("wayside-claim")
            .expect("an address")
            .parse()
            .expect("one");
        let path = claim.path();
        let reply = get("127.0.0.1", path).send(by_need.outbound()).await;
        let n = seen.json()["id"].as_u64().expect("a number") as usize;
        assert_eq!(
            (reply.status.as_u16(), &reply.body[..]),
            (200, order(n).as_bytes())
        );
    }
    assert!(before.stop().await && by_need.stop().await);
}

#[tokio::test]
async fn a_bucket_that_is_away_or_hangs_costs_a_503_and_readers_wait_for_it() {
    let mut minio = Minio::start().await;
    let (topic, store) = (broker::topic("s3-away", 1), minio.store(SECRET));
    let sidecar = orders(&topic, &store).await;
    assert_eq!(send(&sidecar, 1).await.status, 202);
    minio.kill();
    let refused = send(&sidecar, 2).await;
    assert_eq!(refused.status, 503, "{:?}", refused.body);
    assert_eq!(
        refused.json()["type"],
        "urn:wayside:problem:claim-store-unavailable"
    );
    let app = App::agreeable().await;
    let receiver = billing(&topic, &store, &app, "eager").await;
    let labels = [
        &*format!("subscription=\"{topic}\""),
        "verdict=\"not-hydrated\"",
    ];
    let waits =
        async || (receiver.metric("wayside_deliveries_total", &labels) >= 2.0).then_some(());
    eventually("it waits", LONG, waits).await;
    assert_eq!(app.count(), 0);
    minio.start_again().await;
    assert_eq!(seen(&app, 1).await[0].body, order(1));
    assert_eq!(app.seen()[0].header("wayside-attempt"), Some("1"));

    minio.signal("-STOP");
    let begun = tokio::time::Instant::now();
    let hung = send(&sidecar, 3).await;
    assert_eq!(hung.status, 503, "{:?}", hung.body);
    assert!(
        begun.elapsed() < Duration::from_secs(12),
        "{:?}",
        begun.elapsed()
    );
    minio.signal("-CONT");
    let again = async || (send(&sidecar, 3).await.status == 202).then_some(());
    eventually("it goes on", LONG, again).await;
    assert!(receiver.stop().await && sidecar.stop().await);
}

#[tokio::test]
async fn a_key_that_the_server_does_not_take_is_told_at_the_first_call() {
    let minio = Minio::start().await;
    let topic = broker::topic("s3-denied", 1);
    let sidecar = orders(&topic, &minio.store("not-the-secret")).await;
    let reply = send(&sidecar, 1).await;
    assert_eq!(reply.status, 503, "{:?}", reply.body);
    assert_eq!(
        reply.json()["type"],
        "urn:wayside:problem:claim-store-unavailable"
    );
    assert!(!reply.body.windows(14).any(|part| part == b"not-the-secret"));
    assert!(minio.objects().is_empty());
    assert!(sidecar.stop().await);
}

/// The bucket as some other sidecar has it open.
fn opened(store: &str) -> Arc<Objects> {
    let yaml = format!("service: other\nclaims: {{ any: {{ {store} }} }}\n");
    let file = tempfile::NamedTempFile::with_suffix(".yaml").expect("a file");
    fs::write(&file, yaml).expect("written");
    let loaded = config::load(file.path(), &|_| None).unwrap_or_else(|report| panic!("{report}"));
    let config = &loaded.config.claims[0];
    let ClaimPlace::Object(place) = &config.place else {
        panic!("it is an object store")
    };
    Arc::new(Objects::open(config, place).expect("it opens"))
}

fn whole(body: Vec<u8>) -> Whole {
    let digest = Sha256::digest(&body).into();
    let body = body.into();
    Whole { body, digest }
}

#[tokio::test]
async fn what_has_expired_is_deleted_from_the_bucket_by_whoever_looks() {
    let minio = Minio::start().await;
    let (topic, store) = (broker::topic("s3-sweep", 1), minio.store(SECRET));
    let sidecar = orders(&topic, &store).await;
    for n in 0..5 {
        assert_eq!(send(&sidecar, n).await.status, 202);
    }
    assert!(sidecar.stop().await);
    let objects = opened(&store);
    // More than a list has on a page.
    for first in (0..2_500_u32).step_by(50) {
        let mut keeping = JoinSet::new();
        for n in first..first + 50 {
            let objects = Arc::clone(&objects);
            keeping.spawn(async move {
                let body = whole(n.to_be_bytes().to_vec());
                objects.keep(&body, *b"for whom").await.expect("it is kept");
            });
        }
        keeping.join_all().await;
    }
    let now = SystemTime::now();
    let deleted = async |hours: u64| objects.sweep(now + Duration::from_secs(hours * 3600)).await;
    assert_eq!(deleted(0).await.expect("MinIO answers"), 0);
    assert_eq!(deleted(4).await.expect("MinIO answers"), 2_505);
    assert_eq!(minio.objects().len(), 1, "the key stays");
}

#[tokio::test]
async fn a_large_body_goes_in_parts_and_one_that_breaks_off_leaves_none() {
    let minio = Minio::start().await;
    let objects = opened(&minio.store(SECRET));
    let body: Vec<u8> = (0..20 << 20).map(|n: u32| (n >> 3) as u8).collect();
    let kept = objects.keep(&whole(body.clone()), *b"for whom").await;
    let kept = kept.expect("it is kept");
    assert_eq!(kept.size, 20 << 20);
    assert_eq!(objects.fetch(&kept.id).await.expect("it is there"), body);
    let mut upload = objects.begin(1 << 30).await.expect("it begins");
    for part in body.chunks(100_000) {
        upload.write(part).await.expect("it is taken");
    }
    let claim = upload.finish(whole(body.clone()).digest, *b"for whom");
    let claim = claim.await.expect("it is kept");
    assert_eq!(objects.fetch(&claim.id).await.expect("it is there"), body);

    assert_eq!(minio.parts(), 0);
    let mut upload = objects.begin(1 << 30).await.expect("it begins");
    upload.write(&body).await.expect("it is taken");
    assert_eq!(minio.parts(), 2);
    drop(upload);
    let gone = async || (minio.parts() == 0).then_some(());
    eventually("the parts go", LONG, gone).await;
}
