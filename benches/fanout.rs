//! The load and the receivers of `benches/events`: `fanout WAYSIDE BROKER BROKER_PID LOGS CELLS`, with BROKER as
//! `127.0.0.1:PORT`, LOGS the broker's folder and CELLS as `512,2048:1,2,5:0,10,100` (bytes, groups, percents).
//!
//! It starts a sidecar that publishes and five that deliver, each for a group of its own, and is the app of each. For every
//! size and number of groups it publishes the same orders whole, and slim with a part of the deliveries fetching the rest.
//! CPU is what the scheduler says of every thread; time is from the call to the app's answer, the fetch included.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a program that is measured with, and ends if it can not start"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep};

const GROUPS: usize = 5;
const CALLERS: usize = 8;
const FANS: [usize; 3] = [1, 2, 5];

/// What the apps have seen of the cell that runs.
#[derive(Default)]
struct Seen {
    deliveries: usize,
    nanoseconds: Vec<u64>,
}

struct World {
    epoch: Instant,
    seen: RefCell<Seen>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [wayside, broker, broker_pid, logs, cells] = &arguments[..] else {
        eprintln!("usage: fanout WAYSIDE BROKER BROKER_PID LOGS CELLS; see benches/events");
        std::process::exit(2);
    };
    let numbers = |text: &str| {
        text.split(',')
            .map(|n| n.parse().unwrap())
            .collect::<Vec<usize>>()
    };
    let cells: Vec<Vec<usize>> = cells.split(':').map(numbers).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let bench = bench(
        (wayside, broker),
        broker_pid.parse().unwrap(),
        Path::new(logs),
        &cells,
    );
    LocalSet::new().block_on(&runtime, bench);
}

async fn bench(
    (wayside, broker): (&str, &str),
    broker_pid: u32,
    logs: &Path,
    cells: &[Vec<usize>],
) {
    let world = Rc::new(World {
        epoch: Instant::now(),
        seen: RefCell::default(),
    });
    let folder = tempfile::tempdir().unwrap();
    let publisher = Sidecar::start(
        wayside,
        folder.path(),
        "orders",
        &publishing(broker, folder.path()),
    )
    .await;
    let mut sidecars = Vec::new();
    for group in 0..GROUPS {
        let app = serve(Rc::clone(&world)).await;
        let yaml = delivering(broker, group, app, publisher.inbound());
        sidecars
            .push(Sidecar::start(wayside, folder.path(), &format!("group{group}"), &yaml).await);
    }
    let mut pids: Vec<u32> = sidecars.iter().map(|sidecar| sidecar.child.id()).collect();
    pids.push(publisher.child.id());
    let measured = Measured {
        world,
        door: publisher.outbound(),
        pids,
        broker_pid,
        logs: logs.to_owned(),
    };
    // Every group joins, the broker's code is compiled, connections are open.
    for fan in FANS {
        for _ in 0..3 {
            measured.cell(("whole", fan, 0), 2048, 2000).await;
            measured.cell(("slim", fan, 50), 2048, 2000).await;
        }
    }
    tables(&measured, cells, (&publisher, &sidecars[0])).await;
}

/// Measures every cell and prints what it cost, and where slim and whole messages cost the same.
async fn tables(
    measured: &Measured,
    cells: &[Vec<usize>],
    (publisher, reader): (&Sidecar, &Sidecar),
) {
    println!(
        "CPU in us a message, all sidecars together and with the broker; bytes in the broker a message and group fan-out; ms from the call to the app's answer"
    );
    println!(
        "{:>8} {:>6} {:>9} | {:>8} {:>8} {:>8} {:>8} {:>8}",
        "bytes", "groups", "form", "sidecars", "+broker", "stored", "p50 ms", "p99 ms"
    );
    let mut borders = Vec::new();
    for size in &cells[0] {
        let count = (48 << 20) / size.max(&1);
        let count = count.clamp(240, 4000);
        for fan in &cells[1] {
            let whole = measured.cell(("whole", *fan, 0), *size, count).await;
            whole.print(*size, *fan, "whole");
            let before = Costs::of(publisher, reader).await;
            let mut slim = Vec::new();
            for percent in &cells[2] {
                let cell = measured.cell(("slim", *fan, *percent), *size, count).await;
                cell.print(*size, *fan, &format!("slim {percent} %"));
                slim.push((*percent as f64 / 100.0, cell));
            }
            let after = Costs::of(publisher, reader).await;
            borders.push((*size, *fan, whole, slim, (after, after.since(&before))));
        }
    }
    println!();
    println!(
        "the share of deliveries that may have the rest back before whole messages cost less CPU"
    );
    println!(
        "{:>8} {:>6} | {:>10} {:>10} | {:>10}  (b ns, K us, C us as the sidecars measured them)",
        "bytes", "groups", "sidecars", "+broker", "predicted"
    );
    for (size, fan, whole, slim, (costs, (keep, fetch))) in borders {
        let of = |cost: fn(&Cell) -> f64| {
            crossing(cost(&whole), slim.iter().map(|(h, cell)| (*h, cost(cell))))
        };
        // As `src/worth/model.rs` has it, with one replica and the app asking by need.
        let (cut, fan_out) = (size as f64 - 90.0, fan as f64);
        let carried = 2.0 * costs.http_byte_ns * cut / 1e3;
        let hydrate = 2.0 * fetch + 1.5 * costs.exchange_us + carried;
        let whole_costs = costs.byte_ns * cut * (1.0 + fan_out) / 1e3;
        let predicted = (whole_costs - keep) / (fan_out * hydrate);
        println!(
            "{size:>8} {fan:>6} | {:>10} {:>10} | {:>10}  ({:.2}, {keep:.1}, {hydrate:.1})",
            share(of(|cell| cell.sidecars)),
            share(of(|cell| cell.sidecars + cell.broker)),
            share(Some(predicted)),
            costs.byte_ns,
        );
    }
}

/// Where a line through the measured points meets the cost of whole messages.
fn crossing(whole: f64, points: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    // Least squares.
    let points: Vec<_> = points.collect();
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let covariance: f64 = points
        .iter()
        .map(|point| (point.0 - x) * (point.1 - y))
        .sum();
    let variance: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let slope = covariance / variance;
    (slope > 0.0).then(|| x + (whole - y) / slope)
}

fn share(h: Option<f64>) -> String {
    match h {
        None => "-".into(),
        Some(h) if h <= 0.0 => "never".into(),
        Some(h) if h >= 1.0 => "always".into(),
        Some(h) => format!("{:.0} %", h * 100.0),
    }
}

struct Cell {
    sidecars: f64,
    broker: f64,
    stored: f64,
    p50: f64,
    p99: f64,
}

impl Cell {
    fn print(&self, size: usize, fan: usize, form: &str) {
        let Self {
            sidecars,
            broker,
            stored,
            p50,
            p99,
        } = self;
        println!(
            "{size:>8} {fan:>6} {form:>9} | {sidecars:>8.1} {:>8.1} {stored:>8.0} {p50:>8.2} {p99:>8.2}",
            sidecars + broker
        );
    }
}

struct Measured {
    world: Rc<World>,
    door: u16,
    pids: Vec<u32>,
    broker_pid: u32,
    logs: PathBuf,
}

impl Measured {
    async fn cell(
        &self,
        (form, fan, percent): (&str, usize, usize),
        size: usize,
        count: usize,
    ) -> Cell {
        *self.world.seen.borrow_mut() = Seen::default();
        let topic = format!("{form}{fan}");
        let (stored, broker) = (log_bytes(&self.logs, &topic), cpu(self.broker_pid));
        let sidecars: u64 = self.pids.iter().map(|pid| cpu(*pid)).sum();
        let mut callers = Vec::new();
        for caller in 0..CALLERS {
            let (door, epoch, host) = (self.door, self.world.epoch, topic.clone());
            callers.push(spawn_local(async move {
                let mut connection = connect(door).await;
                for n in (caller..count).step_by(CALLERS) {
                    let body = order(n, percent, size, epoch.elapsed());
                    let request = Request::post("/orders")
                        .header("host", &host)
                        .header("content-type", "application/json");
                    let request = request.body(Full::from(body)).unwrap();
                    connection.ready().await.unwrap();
                    let answer = connection.send_request(request).await.unwrap();
                    assert_eq!(answer.status(), 202);
                    answer.into_body().collect().await.unwrap();
                }
            }));
        }
        for caller in callers {
            caller.await.unwrap();
        }
        let started = Instant::now();
        while self.world.seen.borrow().deliveries < count * fan {
            let seen = self.world.seen.borrow().deliveries;
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "{topic}: {seen} of {}",
                count * fan
            );
            sleep(Duration::from_millis(2)).await;
        }
        let spent: u64 = self.pids.iter().map(|pid| cpu(*pid)).sum();
        let each = |nanoseconds: u64| nanoseconds as f64 / 1e3 / count as f64;
        let mut took = std::mem::take(&mut self.world.seen.borrow_mut().nanoseconds);
        took.sort_unstable();
        let at = |share: f64| took[(took.len() as f64 * share) as usize] as f64 / 1e6;
        Cell {
            sidecars: each(spent - sidecars),
            broker: each(cpu(self.broker_pid) - broker),
            stored: (log_bytes(&self.logs, &topic) - stored) as f64 / count as f64,
            p50: at(0.5),
            p99: at(0.99),
        }
    }
}

/// What each app does: it takes the order, and of some of them fetches the rest.
async fn serve(world: Rc<World>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let world = Rc::clone(&world);
            // One connection for its fetches, as an app's pool would have.
            let fetching = Rc::new(tokio::sync::Mutex::new(None));
            let service = service_fn(move |request| {
                let (world, fetching) = (Rc::clone(&world), Rc::clone(&fetching));
                async move { Ok::<_, Infallible>(take(&world, &fetching, request).await) }
            });
            let connection = server::Builder::new().serve_connection(TokioIo::new(stream), service);
            spawn_local(async move { drop(connection.await) });
        }
    });
    port
}

type Sending = client::SendRequest<Full<Bytes>>;

async fn take(
    world: &World,
    fetching: &tokio::sync::Mutex<Option<Sending>>,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let claim = request.headers().get("wayside-claim").cloned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    // The first fields, in the order in which they were written.
    let head = String::from_utf8_lossy(&body[..body.len().min(90)]).into_owned();
    let field = |name: &str| -> u64 {
        let (_, rest) = head.split_once(&format!("\"{name}\":")).unwrap();
        let end = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap();
        rest[..end].parse().unwrap()
    };
    let (id, at, percent) = (field("id"), field("at"), field("share"));
    if let (Some(claim), true) = (claim, id * 7919 % 100 < percent) {
        let uri: http::Uri = claim.to_str().unwrap().parse().unwrap();
        let mut fetching = fetching.lock().await;
        if fetching.as_ref().is_none_or(Sending::is_closed) {
            *fetching = Some(connect(uri.port_u16().unwrap()).await);
        }
        let connection = fetching.as_mut().unwrap();
        let ask = Request::builder()
            .method(Method::GET)
            .uri(uri.path())
            .header("host", "127.0.0.1");
        connection.ready().await.unwrap();
        let answer = connection
            .send_request(ask.body(Full::default()).unwrap())
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.unwrap();
    }
    let took = world.epoch.elapsed().as_nanos() as u64 - at;
    let mut seen = world.seen.borrow_mut();
    seen.deliveries += 1;
    seen.nanoseconds.push(took);
    Response::new(Full::default())
}

async fn connect(port: u16) -> Sending {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sending, connection) = client::handshake(TokioIo::new(stream)).await.unwrap();
    spawn_local(async move { drop(connection.await) });
    sending
}

/// An order of so many bytes, of which a third is hard to compress.
fn order(n: usize, percent: usize, size: usize, at: Duration) -> String {
    let mut rng = fastrand::Rng::with_seed(n as u64);
    let mut text = format!(
        "{{\"id\":{n},\"at\":{},\"share\":{percent},\"lines\":[",
        at.as_nanos()
    );
    while text.len() + 70 < size {
        text.push_str(&format!(
            "{{\"sku\":\"S-{:08x}\",\"count\":{},\"text\":\"a line of it\"}},",
            rng.u32(..),
            rng.u8(1..9)
        ));
    }
    text.push('"');
    while text.len() + 3 < size {
        text.push('x');
    }
    text.push_str("\"]}");
    text
}

struct Sidecar {
    child: Child,
    doors: serde_json::Value,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Sidecar {
    async fn start(wayside: &str, folder: &Path, name: &str, yaml: &str) -> Self {
        let (file, out) = (
            folder.join(format!("{name}.yaml")),
            folder.join(format!("{name}.out")),
        );
        fs::write(&file, yaml).unwrap();
        let child = Command::new("taskset")
            .args([
                "-c",
                "0",
                wayside,
                "run",
                "--workers",
                "1",
                "--log-level",
                "error",
            ])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&out).unwrap())
            .spawn()
            .unwrap();
        let mut started = Self {
            child,
            doors: serde_json::Value::Null,
        };
        for _ in 0..600 {
            sleep(Duration::from_millis(50)).await;
            let said = fs::read_to_string(&out).unwrap_or_default();
            if let Some(Ok(doors)) = said.lines().next().map(serde_json::from_str) {
                started.doors = doors;
                return started;
            }
        }
        panic!("{name} is not ready");
    }

    fn door(&self, name: &str) -> u16 {
        let address = self.doors[name].as_str().unwrap();
        address.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    fn outbound(&self) -> u16 {
        self.door("outbound")
    }

    fn inbound(&self) -> u16 {
        self.door("inbound")
    }

    async fn events(&self) -> serde_json::Value {
        let mut connection = connect(self.door("admin")).await;
        let ask = Request::get("/events")
            .header("host", "localhost")
            .body(Full::default())
            .unwrap();
        let answer = connection.send_request(ask).await.unwrap();
        serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }
}

/// What the sidecars say that things cost: what they measured at the start, and what they did since.
#[derive(Clone, Copy)]
struct Costs {
    byte_ns: f64,
    http_byte_ns: f64,
    exchange_us: f64,
    keeps: (f64, f64),
    hydrations: (f64, f64),
}

impl Costs {
    async fn of(publisher: &Sidecar, reader: &Sidecar) -> Self {
        let (published, read) = (publisher.events().await, reader.events().await);
        let number = |name: &str| read["costs"][name].as_f64().unwrap();
        let sum = |rows: &serde_json::Value, name: &str| -> f64 {
            let rows = rows.as_array().unwrap().iter();
            rows.map(|row| row[name].as_f64().unwrap()).sum()
        };
        let (routes, subscriptions) = (&published["routes"], &read["subscriptions"]);
        Self {
            byte_ns: number("byte_ns"),
            http_byte_ns: number("http_byte_ns"),
            exchange_us: number("exchange_us"),
            keeps: (sum(routes, "keeps_measured"), sum(routes, "cpu_us_keeping")),
            hydrations: (
                sum(subscriptions, "hydrations"),
                sum(subscriptions, "cpu_us_hydrating"),
            ),
        }
    }

    /// Keeping one body, and the fetch of one, in us since `before`.
    fn since(&self, before: &Self) -> (f64, f64) {
        let each = |now: (f64, f64), then: (f64, f64)| (now.1 - then.1) / (now.0 - then.0).max(1.0);
        (
            each(self.keeps, before.keeps),
            each(self.hydrations, before.hydrations),
        )
    }
}

fn publishing(broker: &str, folder: &Path) -> String {
    let mut routes = BTreeMap::new();
    for fan in FANS {
        routes.insert(format!("whole{fan}"), String::new());
        routes.insert(
            format!("slim{fan}"),
            "slim: { keep: [/id, /at, /share] }".to_owned(),
        );
    }
    let routes: String = routes
        .iter()
        .map(|(name, slim)| format!("    - {{ name: {name}, match: {{ host: {name} }}, publish: {{ topic: {name}, {slim} }} }}\n"))
        .collect();
    format!(
        "service: orders\noutbound:\n  listen: 127.0.0.1:0\n  routes:\n{routes}inbound: {{ listen: 127.0.0.1:0 }}\n\
         claims: {{ bodies: {{ disk: {}, survives: volume, max: 64GiB }} }}\nkafka: {{ brokers: [\"{broker}\"] }}\nadmin: {{ listen: 127.0.0.1:0 }}\n",
        folder.join("claims").display()
    )
}

fn delivering(broker: &str, group: usize, app: u16, orders: u16) -> String {
    let topics = FANS.into_iter().filter(|fan| group < *fan);
    let topics = topics.flat_map(|fan| [format!("whole{fan}"), format!("slim{fan}")]);
    let list: String = topics
        .map(|topic| format!("  - {{ topic: {topic}, group: g{group} }}\n"))
        .collect();
    format!(
        "service: billing\napp: 127.0.0.1:{app}\noutbound: {{ listen: 127.0.0.1:0 }}\nsubscriptions:\n{list}\
         services: {{ orders: {{ addresses: [\"127.0.0.1:{orders}\"] }} }}\nkafka: {{ brokers: [\"{broker}\"] }}\nadmin: {{ listen: 127.0.0.1:0 }}\n"
    )
}

/// CPU of all threads that a process has, in nanoseconds.
fn cpu(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let used = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    used.sum()
}

fn log_bytes(logs: &Path, topic: &str) -> u64 {
    let folders = fs::read_dir(logs).unwrap().map(|entry| entry.unwrap());
    let folders = folders.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.rsplit_once('-').is_some_and(|(name, _)| name == topic)
    });
    let files = folders.flat_map(|folder| fs::read_dir(folder.path()).unwrap());
    let files = files.map(|file| file.unwrap());
    let logs = files.filter(|file| file.path().extension().is_some_and(|end| end == "log"));
    logs.map(|file| file.metadata().unwrap().len()).sum()
}
