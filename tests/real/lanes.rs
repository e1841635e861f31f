//! Many keys on their way to an app that is not always well, and members of a group that come and go meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::broker;
use crate::line::{self, Line};
use crate::sidecar::Sidecar;
use crate::support::app::{Answer, App, Seen};
use crate::support::eventually::eventually;
use crate::support::process::announce;

const LONG: Duration = Duration::from_secs(120);
/// Callers at the same time, each with keys of its own.
const CALLERS: usize = 10;
const KEYS: usize = 200;
/// The key that always fails where a test wants one.
const BAD: &str = "key-0";

/// A number that `.ci/long` asks for, or else this one.
fn asked(name: &str, usual: usize) -> usize {
    let asked = std::env::var(name).ok();
    asked.map_or(usual, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number"))
    })
}

/// What happened to the messages of a test.
#[derive(Default)]
struct Ledger {
    /// When each message was sent, by number.
    sent: BTreeMap<u64, Instant>,
    /// When the app had it, each time.
    done: BTreeMap<u64, Vec<Instant>>,
    /// The last number of each key that came.
    last: BTreeMap<String, u64>,
    /// Numbers that came for the first time after a later one of their key.
    disorder: Vec<u64>,
    came: BTreeSet<u64>,
}

impl Ledger {
    /// Notes a delivery; its key and number.
    fn comes(&mut self, call: &Seen) -> (String, u64) {
        let body = call.json();
        let key = body["key"].as_str().expect("it has a key").to_owned();
        let n = body["n"].as_u64().expect("it has a number");
        let last = self.last.entry(key.clone()).or_default();
        if self.came.insert(n) && n < *last {
            self.disorder.push(n);
        }
        *last = n.max(*last);
        (key, n)
    }

    /// From the 202 to the app's 200, of those messages that the app had at all; sorted.
    fn times(&self, of: impl Fn(u64) -> bool) -> Vec<Duration> {
        let had = self.done.iter().filter(|(n, _)| of(**n));
        let mut times: Vec<_> = had
            .filter_map(|(n, at)| Some(at.first()?.duration_since(*self.sent.get(n)?)))
            .collect();
        times.sort_unstable();
        times
    }
}

fn percentile(sorted: &[Duration], of_hundred: usize) -> Duration {
    let at = (sorted.len() * of_hundred / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

/// Sends the messages of these numbers, each key's in order, from some callers at once; each sends fifty a second at
/// most.
async fn send(line: &Arc<Line>, ledger: &Arc<Mutex<Ledger>>, numbers: Range<usize>) {
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (line, ledger) = (Arc::clone(line), Arc::clone(ledger));
        let numbers = (numbers.start + caller..numbers.end).step_by(CALLERS);
        callers.spawn(async move {
            let mut pace = interval(Duration::from_millis(20));
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for n in numbers {
                pace.tick().await;
                let at = Instant::now();
                ledger.lock().expect("unpoisoned").sent.insert(n as u64, at);
                line.publish(&format!("key-{}", n % KEYS), n).await;
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.expect("a caller does not fail");
    }
}

/// An app that fails one call of twenty, hangs in one of a hundred and, if so asked, always fails for one key.
async fn moody(ledger: &Arc<Mutex<Ledger>>, bad: bool) -> App {
    let ledger = Arc::clone(ledger);
    App::by(move |call| {
        let mut ledger = ledger.lock().expect("unpoisoned");
        let (key, n) = ledger.comes(call);
        match fastrand::u8(0..100) {
            _ if bad && key == BAD => Answer::status(500),
            0..5 => Answer::status(500),
            5 => Answer::hang(),
            _ => {
                ledger.done.entry(n).or_default().push(Instant::now());
                Answer::ok()
            }
        }
    })
    .await
}

/// The times of the messages whose key is well.
async fn run(name: &str, bad: bool) -> Option<Vec<Duration>> {
    let kafka = broker().await?;
    let count = asked("WAYSIDE_MESSAGES", 4000);
    let dead = format!("{name}.dead");
    kafka.make_topic(&dead, 1).await;
    let ledger = Arc::<Mutex<Ledger>>::default();
    let app = moody(&ledger, bad).await;
    let more = format!(
        "deliver: {{ timeout: 500ms }}\n    retry: {{ attempts: 5, backoff: 10ms..100ms }}\n    dead_letter: {dead}"
    );
    let line = Arc::new(Line::lay(kafka, name, &app, &more).await);
    send(&line, &ledger, 0..count).await;
    kafka.wait_for_no_lag(name, name, count).await;
    let mut ended: BTreeSet<u64> = ledger
        .lock()
        .expect("unpoisoned")
        .done
        .keys()
        .copied()
        .collect();
    let letters = match bad {
        true => kafka.read_at_least(&dead, count / KEYS).await,
        false => Vec::new(),
    };
    for letter in &letters {
        let body: serde_json::Value = serde_json::from_str(letter.text()).expect("JSON");
        assert_eq!(body["key"], BAD, "only the bad key's messages are dead");
        ended.insert(body["n"].as_u64().expect("a number"));
    }
    assert_eq!(
        ended.len(),
        count,
        "every message ended done or in the dead letters"
    );
    let ledger = ledger.lock().expect("unpoisoned");
    assert_eq!(ledger.disorder, [0; 0], "numbers that came too late");
    let well = |n: u64| !n.is_multiple_of(KEYS as u64);
    let times = ledger.times(well);
    announce(&format!(
        "real: lanes: {count} messages over {} keys{}: {} dead letters, p50 {:?}, p90 {:?}, p99 {:?}",
        KEYS,
        if bad {
            ", one of which always fails"
        } else {
            ""
        },
        letters.len(),
        percentile(&times, 50),
        percentile(&times, 90),
        percentile(&times, 99),
    ));
    Some(times)
}

#[tokio::test]
async fn a_key_that_always_fails_holds_up_no_other() {
    let Some(without) = run("all-well", false).await else {
        return;
    };
    let Some(with) = run("one-bad", true).await else {
        return;
    };
    let (without, with) = (percentile(&without, 99), percentile(&with, 99));
    assert!(with <= without * 2, "p99 {with:?} beside {without:?}");
}

#[tokio::test]
async fn members_that_come_and_go_lose_nothing_and_do_nothing_twice_but_what_was_under_way() {
    let Some(kafka) = broker().await else { return };
    let rebalances = asked("WAYSIDE_REBALANCES", 10);
    let ledger = Arc::<Mutex<Ledger>>::default();
    let app = {
        let ledger = Arc::clone(&ledger);
        App::by(move |call| {
            let mut ledger = ledger.lock().expect("unpoisoned");
            let (_, n) = ledger.comes(call);
            ledger.done.entry(n).or_default().push(Instant::now());
            Answer::ok().after(Duration::from_millis(5))
        })
        .await
    };
    let more = "concurrency: 16";
    let line = Arc::new(Line::lay(kafka, "coming", &app, more).await);
    let other = line::billing(kafka, "coming", app.address, more);
    let stop = Arc::new(Mutex::new(false));
    let sending = {
        let (line, ledger, stop) = (Arc::clone(&line), Arc::clone(&ledger), Arc::clone(&stop));
        Handle::current().spawn(async move {
            let mut sent = 0;
            while !*stop.lock().expect("unpoisoned") {
                send(&line, &ledger, sent..sent + 100).await;
                sent += 100;
            }
            sent
        })
    };
    // Each member that comes takes partitions away, and each that goes gives them back.
    for _ in 0..rebalances.div_ceil(2) {
        let mut second = Sidecar::run(&other).await;
        has_partitions(&second).await;
        assert_eq!(second.terminate().await.code(), Some(0));
        all_partitions(&line.billing).await;
    }
    *stop.lock().expect("unpoisoned") = true;
    let sent = sending.await.expect("sending does not fail");
    kafka.wait_for_no_lag("coming", "coming", sent).await;
    let ledger = ledger.lock().expect("unpoisoned");
    let twice: usize = ledger.done.values().map(|times| times.len() - 1).sum();
    announce(&format!(
        "real: rebalances: {rebalances} of them, {sent} messages: {} lost, {twice} done twice",
        sent - ledger.done.len()
    ));
    assert_eq!(ledger.done.len(), sent, "nothing is lost");
    assert_eq!(ledger.disorder, [0; 0], "numbers that came too late");
    assert!(twice <= 16 * rebalances, "{twice}");
}

async fn partitions(sidecar: &Sidecar) -> f64 {
    sidecar.metric("wayside_partitions").await
}

async fn has_partitions(sidecar: &Sidecar) {
    eventually("it has partitions", LONG, async || {
        (partitions(sidecar).await >= 1.0).then_some(())
    })
    .await;
}

async fn all_partitions(sidecar: &Sidecar) {
    eventually("it has them all again", LONG, async || {
        (partitions(sidecar).await == 4.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_app_that_is_down_for_longer_than_a_poll_may_take_costs_neither_partition_nor_message() {
    let Some(kafka) = broker().await else { return };
    kafka.make_topic("asleep.dead", 1).await;
    let ledger = Arc::<Mutex<Ledger>>::default();
    let address = App::nowhere();
    let app = App::at(address, |_| Answer::ok()).await;
    let more = "dead_letter: asleep.dead\n    retry: { attempts: 2 }";
    let line = Arc::new(Line::lay(kafka, "asleep", &app, more).await);
    all_partitions(&line.billing).await;
    drop(app);
    send(&line, &ledger, 0..400).await;
    eventually(
        "the app is away for longer than a poll may take",
        LONG,
        async || {
            assert_eq!(partitions(&line.billing).await, 4.0, "they stay assigned");
            let oldest = line.billing.metric("wayside_oldest_message_seconds").await;
            (oldest > 9.0).then_some(())
        },
    )
    .await;
    let app = {
        let ledger = Arc::clone(&ledger);
        App::at(address, move |call| {
            let mut ledger = ledger.lock().expect("unpoisoned");
            let (_, n) = ledger.comes(call);
            ledger.done.entry(n).or_default().push(Instant::now());
            Answer::ok()
        })
        .await
    };
    kafka.wait_for_no_lag("asleep", "asleep", 400).await;
    assert_eq!(app.count(), 400, "each once");
    assert_eq!(ledger.lock().expect("unpoisoned").disorder, [0; 0]);
    assert!(kafka.read("asleep.dead").await.is_empty());
}

#[tokio::test]
async fn a_static_member_that_is_restarted_or_reloaded_gets_its_own_partitions_and_moves_no_others()
{
    let Some(kafka) = broker().await else { return };
    let app = App::by(|_| Answer::ok().after(Duration::from_millis(5))).await;
    kafka.make_topic("static", 4).await;
    let member = |name: &str| {
        let file = line::billing(
            kafka,
            "static",
            app.address,
            "deliver: { path: /events }\n    concurrency: 4",
        );
        let long = format!("session.timeout.ms: \"20000\", group.instance.id: {name}");
        file.replace("session.timeout.ms: \"2000\"", &long)
            .replace("6000", "30000")
    };
    let mut one = Sidecar::run(&member("one")).await;
    let two = Sidecar::run(&member("two")).await;
    eventually("each has its half", LONG, async || {
        ((partitions(&one).await, partitions(&two).await) == (2.0, 2.0)).then_some(())
    })
    .await;
    let two_keeps = async |what: &str, one: &Sidecar| {
        eventually(what, LONG, async || {
            assert_eq!(partitions(&two).await, 2.0, "{what}");
            (partitions(one).await == 2.0).then_some(())
        })
        .await;
    };
    assert_eq!(one.terminate().await.code(), Some(0));
    one.start_again().await;
    two_keeps("the restarted one has its own again", &one).await;
    let file = one.folder().join("wayside.yaml");
    let text = std::fs::read_to_string(&file).expect("its file");
    let changed = text.replace("concurrency: 4", "concurrency: 5");
    std::fs::write(&file, changed).expect("its folder can be written");
    eventually("it has read its file again", LONG, async || {
        assert_eq!(partitions(&two).await, 2.0, "nobody is moved");
        one.log().contains("reloaded").then_some(())
    })
    .await;
    two_keeps("the reloaded one has its own again", &one).await;
    let log = one.log().to_lowercase();
    assert!(!log.contains("fenced"), "{log}");
    kafka
        .produce_by_java("static", "a|{}\nb|{}\nc|{}\nd|{}\ne|{}\nf|{}\n")
        .await;
    kafka.wait_for_no_lag("static", "static", 6).await;
}

#[tokio::test]
async fn a_backlog_takes_no_more_memory_than_its_budget() {
    /// Records of 4 KiB: 80 MiB.
    const RECORDS: usize = 20_000;
    /// In MiB: `window.bytes`, and of each of the four partitions what is fetched (2) and what is handed over (1).
    const BUDGET: u64 = 4 + 4 * 3;
    let Some(kafka) = broker().await else { return };
    let well = Arc::new(AtomicBool::new(false));
    let app = {
        let well = Arc::clone(&well);
        App::by(move |_| match well.load(Ordering::Relaxed) {
            true => Answer::ok(),
            false => Answer::status(503),
        })
        .await
    };
    let more = "deliver: { path: /events }\n    window: { bytes: 4MiB }\n    retry: { backoff: 100ms..500ms }";
    kafka.make_topic("backlog", 4).await;
    let sidecar = Sidecar::run(&line::billing(kafka, "backlog", app.address, more)).await;
    all_partitions(&sidecar).await;
    let before = sidecar.resident();
    let value = "x".repeat(4096);
    let lines: String = (0..RECORDS).map(|n| format!("{n}|{value}\n")).collect();
    kafka.produce_by_java("backlog", &lines).await;
    eventually("every lane that has room waits", LONG, async || {
        (sidecar.metric("wayside_lanes_parked").await >= 64.0).then_some(())
    })
    .await;
    let mut most = 0;
    let since = Instant::now();
    eventually("it stays so for some seconds", LONG, async || {
        most = most.max(sidecar.resident());
        (since.elapsed() > Duration::from_secs(5)).then_some(())
    })
    .await;
    well.store(true, Ordering::Relaxed);
    kafka.wait_for_no_lag("backlog", "backlog", RECORDS).await;
    most = most.max(sidecar.resident());
    let grown = most.saturating_sub(before) >> 20;
    announce(&format!(
        "real: a backlog of 80 MiB: {} MiB before, {grown} MiB more at most, of a budget of {BUDGET}",
        before >> 20
    ));
    // The allocators round up, and keep what they had.
    assert!(grown <= 3 * BUDGET, "{grown} MiB");
}
