//! One of three replicas is dead, slow, or answers 503: what the callers notice of it. `WAYSIDE_CALLS` says how many
//! calls there are to each, and that the machine does nothing else.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::forward::forwarding;
use crate::support::app::{Answer, App};
use crate::support::client::{Outgoing, get, post};
use crate::support::raw::RawApp;
use crate::support::sidecar::Sidecar;

fn calls() -> usize {
    let wanted = std::env::var("WAYSIDE_CALLS").ok();
    wanted.and_then(|count| count.parse().ok()).unwrap_or(2_000)
}

/// A third replica that misbehaves.
enum Third {
    Dead(SocketAddr),
    Cutting(RawApp),
    Slow(App),
    Busy(App),
}

impl Third {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Dead(address) => *address,
            Self::Cutting(app) => app.address,
            Self::Slow(app) | Self::Busy(app) => app.address,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Dead(_) => "dead",
            Self::Cutting(_) => "cutting",
            Self::Slow(_) => "slow",
            Self::Busy(_) => "busy",
        }
    }
}

async fn thirds() -> [Third; 4] {
    let cutting = RawApp::start(|mut wire, _| async move {
        wire.try_head().await;
    });
    [
        Third::Dead(App::nowhere()),
        Third::Cutting(cutting.await),
        Third::Slow(App::by(|_| Answer::hang()).await),
        Third::Busy(App::by(|_| Answer::status(503)).await),
    ]
}

/// Two good replicas, and a sidecar in front of all three.
async fn beside(third: &Third) -> ([App; 2], Sidecar) {
    let good = [App::agreeable().await, App::agreeable().await];
    let addresses: Vec<String> = good
        .iter()
        .map(|app| app.address.to_string())
        .chain([third.address().to_string()])
        .collect();
    let sidecar = forwarding(&addresses, ", timeouts: { try: 250ms }").await;
    (good, sidecar)
}

/// Makes all calls, 16 at a time, and counts the answers that were not 200.
async fn failures(sidecar: &Sidecar, call: fn(usize) -> Outgoing) -> usize {
    let mut callers = JoinSet::new();
    for caller in 0..16 {
        let outbound = sidecar.outbound();
        callers.spawn(async move {
            let mut failed = 0;
            for at in 0..calls() / 16 {
                let reply = call(caller * 1_000_000 + at).try_send(outbound).await;
                failed += usize::from(!reply.is_ok_and(|reply| reply.status == 200));
            }
            failed
        });
    }
    callers.join_all().await.iter().sum()
}

#[tokio::test]
async fn a_bad_replica_of_three_costs_idempotent_callers_less_than_one_in_a_thousand() {
    for third in thirds().await {
        let (_good, sidecar) = beside(&third).await;
        let failed = failures(&sidecar, |at| get("billing", &format!("/{at}"))).await;
        let name = third.name();
        assert!(
            failed * 1_000 <= calls(),
            "{name}: {failed} of {} failed",
            calls()
        );
        let tries: f64 = ["no-answer", "status"]
            .map(|reason| format!("reason=\"{reason}\""))
            .map(|label| sidecar.metric("wayside_retries_total", &[&label]))
            .iter()
            .sum();
        // A fifth of the calls, and the floor of ten a second over its window.
        let budget = calls() as f64 * 0.2 + 200.0;
        assert!(
            tries <= budget,
            "{name}: {tries} tries repeated, the budget is {budget}"
        );
        assert!(
            tries <= 50.0,
            "{name}: it is left out soon, yet {tries} calls met it"
        );
    }
}

#[tokio::test]
async fn no_post_runs_twice_whatever_one_replica_does() {
    for third in thirds().await {
        let (good, sidecar) = beside(&third).await;
        failures(&sidecar, |at| post("billing", &format!("/{at}")).body("x")).await;
        let mut runs: HashMap<String, usize> = HashMap::new();
        let seen = good.iter().flat_map(App::seen);
        let third_seen = match &third {
            Third::Slow(app) | Third::Busy(app) => app.seen(),
            Third::Dead(_) | Third::Cutting(_) => Vec::new(),
        };
        for call in seen.chain(third_seen) {
            *runs.entry(call.target).or_default() += 1;
        }
        let twice = runs.values().filter(|count| **count > 1).count();
        assert_eq!(twice, 0, "{}: of {} POSTs", third.name(), runs.len());
        assert!(runs.len() > calls() / 2);
    }
}

#[tokio::test]
async fn when_all_replicas_refuse_the_caller_hears_at_once() {
    let addresses: Vec<String> = (0..3).map(|_| App::nowhere().to_string()).collect();
    let sidecar = forwarding(&addresses, "").await;
    let mut took = Vec::new();
    for _ in 0..100 {
        let started = Instant::now();
        let reply = get("billing", "/").send(sidecar.outbound()).await;
        assert_eq!(reply.status, 503);
        took.push(started.elapsed());
    }
    took.sort_unstable();
    // Among fifteen other tests only that no timeout or long backoff was waited for; by itself, what it takes.
    let limit = match std::env::var_os("WAYSIDE_CALLS") {
        Some(_) => Duration::from_millis(10),
        None => Duration::from_millis(250),
    };
    println!("all refused: median {:?}", took[50]);
    assert!(took[50] < limit, "{:?}", took[50]);
}
