//! Ten times more calls than a service can take: how many it still answers, what the sidecar's memory does, and how soon
//! everything is as before. Run by `cargo bench --bench overload`; exits with 1 if an aim is missed.
//!
//! The app takes ten calls at a time, ten milliseconds each, and queues whatever else comes; the sidecar, a process of its
//! own, has a limit for it. Callers come at fixed times whether the earlier ones were answered or not.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a program that prints what it measured, and ends if it can not measure"
)]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

const AT_A_TIME: usize = 10;
const EACH: Duration = Duration::from_millis(10);
/// What the app can answer in a second, if nothing stands in its way.
const PEAK: f64 = 1_000.0;
const PHASE: Duration = Duration::from_secs(5);

/// What a phase came to.
#[derive(Default)]
struct Phase {
    good: usize,
    refused: usize,
    failed: usize,
    took: Vec<Duration>,
}

impl Phase {
    fn percentile(&mut self, share: f64) -> Duration {
        self.took.sort_unstable();
        let at = (self.took.len() as f64 * share) as usize;
        self.took
            .get(at.min(self.took.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }
}

fn main() -> ExitCode {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(measure())
}

async fn measure() -> ExitCode {
    let app = app().await;
    let (mut sidecar, door) = sidecar(app);
    let memory = || rss(&sidecar);
    load(door, PEAK / 2.0, Duration::from_secs(1)).await;
    let before = memory();
    let mut calm = load(door, PEAK / 2.0, PHASE).await;
    let peak = load(door, PEAK, PHASE).await;
    let watched = Handle::current().spawn(load(door, PEAK * 10.0, PHASE));
    let mut most = before;
    while !watched.is_finished() {
        sleep(Duration::from_millis(100)).await;
        most = most.max(memory());
    }
    let mut over = watched.await.unwrap();
    let ended = Instant::now();
    let usual = calm.percentile(0.99) * 2;
    let recovered = loop {
        let mut after = load(door, PEAK / 2.0, Duration::from_secs(1)).await;
        if after.refused + after.failed == 0 && after.percentile(0.99) <= usual {
            break ended.elapsed();
        }
        if ended.elapsed() > Duration::from_secs(30) {
            break ended.elapsed();
        }
    };
    let after = memory();
    sidecar.kill().unwrap();
    sidecar.wait().unwrap();

    let rate = |phase: &Phase| phase.good as f64 / PHASE.as_secs_f64();
    let share = rate(&over) / rate(&peak);
    println!(
        "half the peak  {:7.0} answers/s, p99 {:?}",
        rate(&calm),
        calm.percentile(0.99)
    );
    println!("the peak       {:7.0} answers/s", rate(&peak));
    println!(
        "ten times it   {:7.0} answers/s ({:.0} % of the peak), p99 of those {:?}; {} refused, {} failed",
        rate(&over),
        share * 100.0,
        over.percentile(0.99),
        over.refused,
        over.failed
    );
    println!("as before after {recovered:.1?}");
    println!("memory         {before} KiB before, {most} at most, {after} after");
    let missed = share < 0.9
        || recovered > Duration::from_secs(10)
        || most > before + (64 << 10)
        || over.failed > 0;
    if missed {
        println!("an aim was missed: 90 % of the peak, 10 s, 64 MiB, every call answered");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// An app that takes [`AT_A_TIME`] calls at a time.
async fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    Handle::current().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let places = Arc::clone(&places);
            let service = service_fn(move |_| {
                let places = Arc::clone(&places);
                async move {
                    let _place = places.acquire().await;
                    sleep(EACH).await;
                    Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(
                        b"ok",
                    ))))
                }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            Handle::current().spawn(connection);
        }
    });
    address
}

/// The sidecar, and where it takes calls.
fn sidecar(app: SocketAddr) -> (Child, SocketAddr) {
    let folder = std::env::temp_dir().join(format!("wayside-overload-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("wayside.yaml");
    let yaml = format!(
        "service: bench
outbound: {{ listen: 127.0.0.1:0, routes: [{{ name: all, forward: {{ to: app, timeout: 2s }} }}] }}
services: {{ app: {{ addresses: ['{app}'], limit: {{ in_flight: {AT_A_TIME}, queue: 20, wait: 200ms }} }} }}
admin: {{ listen: 127.0.0.1:0 }}
"
    );
    std::fs::write(&file, yaml).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_wayside"))
        .args(["run", "--workers", "1", "--log-level", "error"])
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
    (child, ready["outbound"].as_str().unwrap().parse().unwrap())
}

fn rss(child: &Child) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Sends `rate` calls a second for a while, at their times, on as many connections as it takes.
async fn load(door: SocketAddr, rate: f64, time: Duration) -> Phase {
    let idle: Arc<Mutex<Vec<SendRequest<Empty<Bytes>>>>> = Arc::default();
    let mut calls = JoinSet::new();
    // Ten at a tick at the highest rate: the clock of the load must not be its limit.
    let mut tick = interval(Duration::from_millis(1));
    let (started, mut sent) = (Instant::now(), 0_f64);
    while started.elapsed() < time {
        tick.tick().await;
        while sent < started.elapsed().as_secs_f64() * rate {
            sent += 1.0;
            calls.spawn(call(door, Arc::clone(&idle)));
        }
    }
    let mut phase = Phase::default();
    for (status, took) in calls.join_all().await {
        match status {
            Some(200) => {
                phase.good += 1;
                phase.took.push(took);
            }
            Some(_) => phase.refused += 1,
            None => phase.failed += 1,
        }
    }
    phase
}

async fn call(
    door: SocketAddr,
    idle: Arc<Mutex<Vec<SendRequest<Empty<Bytes>>>>>,
) -> (Option<u16>, Duration) {
    let started = Instant::now();
    let asking = async {
        let pooled = idle.lock().await.pop();
        let mut sender = match pooled.filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => {
                let socket = TcpStream::connect(door).await.ok()?;
                let (sender, connection) = handshake(TokioIo::new(socket)).await.ok()?;
                Handle::current().spawn(connection);
                sender
            }
        };
        sender.ready().await.ok()?;
        let request = Request::get("/")
            .header("host", "app")
            .body(Empty::new())
            .ok()?;
        let answer = sender.send_request(request).await.ok()?;
        let status = answer.status().as_u16();
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            frame.ok()?;
        }
        idle.lock().await.push(sender);
        Some(status)
    };
    let status = timeout(Duration::from_secs(10), asking)
        .await
        .ok()
        .flatten();
    (status, started.elapsed())
}
