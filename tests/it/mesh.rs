//! What a mesh adds to a plain forward: one deadline across hops, addresses left out and found again, limits, and what
//! the app may know of its peers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::forward::{forwarding, in_front_of, yaml};
use crate::support::app::{Answer, App};
use crate::support::client::{get, post};
use crate::support::eventually::eventually;
use crate::support::raw::{RawApp, Wire, status};
use crate::support::sidecar::Sidecar;

/// A sidecar that forwards to one service with these addresses and these further keys.
pub(crate) async fn service(addresses: &[SocketAddr], keys: &str) -> Sidecar {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let yaml = yaml(&addresses, "", "");
    Sidecar::start(&yaml.replace("] }\n", &format!("], {keys} }}\n"))).await
}

/// A sidecar that only takes calls to `app`.
async fn inbound(app: SocketAddr) -> Sidecar {
    Sidecar::start(&format!(
        "service: billing\napp: {app}\ninbound: {{ listen: 127.0.0.1:0 }}"
    ))
    .await
}

#[tokio::test]
async fn one_deadline_goes_along_and_shrinks_from_hop_to_hop() {
    let app = App::agreeable().await;
    let last = inbound(app.address).await;
    let middle = in_front_of(last.inbound(), ", timeout: 10s").await;
    let first = in_front_of(middle.outbound(), ", timeout: 10s").await;
    let told = |at: usize| -> u64 {
        let seen = &app.seen()[at];
        let value = seen.header("wayside-timeout").expect("the app is told");
        value.parse().expect("whole milliseconds")
    };
    get("billing", "/").send(first.outbound()).await;
    assert!((9_000..10_000).contains(&told(0)), "{}", told(0));
    let call = get("billing", "/").header("wayside-timeout", "2000");
    call.send(first.outbound()).await;
    assert!((1_000..2_000).contains(&told(1)), "{}", told(1));
    let call = get("billing", "/").header("wayside-timeout", "60000");
    call.send(first.outbound()).await;
    assert!(told(2) < 10_000, "a caller can not lengthen it");
}

#[tokio::test]
async fn a_callers_deadline_ends_the_call_at_every_hop() {
    let app = App::by(|_| Answer::hang()).await;
    let last = inbound(app.address).await;
    let first = in_front_of(last.inbound(), ", timeout: 10s, retry: { attempts: 1 }").await;
    let started = Instant::now();
    let call = get("billing", "/").header("wayside-timeout", "300");
    let reply = call.send(first.outbound()).await;
    assert_eq!(reply.status, 504);
    assert!(started.elapsed() < Duration::from_secs(2));
    eventually(
        "the last hop ends its call too",
        Duration::from_secs(5),
        async || {
            (last.metric("wayside_calls_in_flight", &["door=\"inbound\""]) == 0.0).then_some(())
        },
    )
    .await;
}

#[tokio::test]
async fn an_address_that_fails_is_left_out_and_comes_back_by_a_single_probe() {
    let ill = Arc::new(AtomicBool::new(true));
    let probes = Arc::new(AtomicUsize::new(0));
    let (state, count) = (Arc::clone(&ill), Arc::clone(&probes));
    let sick = App::by(move |_| {
        count.fetch_add(1, SeqCst);
        Answer::status(if state.load(SeqCst) { 500 } else { 200 })
    })
    .await;
    let well = App::agreeable().await;
    let sidecar = service(
        &[sick.address, well.address],
        "balance: round-robin, ejection: { failures: 3, time: 1s }",
    )
    .await;
    let call = || get("billing", "/").send(sidecar.outbound());
    let mut failed = 0;
    for _ in 0..50 {
        failed += usize::from(call().await.status == 500);
    }
    assert_eq!(failed, 3, "after three it is left out");
    assert_eq!(sidecar.metric("wayside_addresses_out", &[]), 1.0);
    assert_eq!(sidecar.metric("wayside_ejections_total", &[]), 1.0);
    ill.store(false, SeqCst);
    let before = probes.load(SeqCst);
    eventually("the address is back", Duration::from_secs(10), async || {
        call().await;
        (sidecar.metric("wayside_addresses_out", &[]) == 0.0).then_some(())
    })
    .await;
    assert_eq!(probes.load(SeqCst), before + 1, "one probe decided");
}

#[tokio::test]
async fn at_most_half_of_the_addresses_are_left_out() {
    let apps = [
        App::by(|_| Answer::status(500)).await,
        App::by(|_| Answer::status(500)).await,
        App::by(|_| Answer::status(500)).await,
    ];
    let addresses: Vec<SocketAddr> = apps.iter().map(|app| app.address).collect();
    let sidecar = service(
        &addresses,
        "balance: round-robin, ejection: { failures: 1, time: 60s }",
    )
    .await;
    for _ in 0..30 {
        assert_eq!(
            get("billing", "/").send(sidecar.outbound()).await.status,
            500
        );
    }
    assert_eq!(sidecar.metric("wayside_addresses_out", &[]), 1.0);
}

#[tokio::test]
async fn a_limit_on_our_side_is_no_fault_of_an_address() {
    let app = App::by(|_| Answer::ok().after(Duration::from_millis(300))).await;
    let sidecar = service(
        &[app.address, App::nowhere()],
        "limit: { in_flight: 1, queue: 0, wait: 10ms }",
    )
    .await;
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        let outbound = sidecar.outbound();
        calls.spawn(async move { get("billing", "/").send(outbound).await });
    }
    let replies = calls.join_all().await;
    let refused = replies.iter().filter(|reply| reply.status == 503).count();
    assert!(refused >= 15, "{refused} of 20 were over the limit");
    let other = replies
        .iter()
        .find(|reply| reply.status == 503)
        .expect("some");
    assert_eq!(other.json()["type"], "urn:wayside:problem:overloaded");
    assert!(other.header("retry-after").is_some());
    assert_eq!(sidecar.metric("wayside_ejections_total", &[]), 0.0);
}

#[tokio::test]
async fn a_caller_in_a_hurry_puts_no_address_out_for_the_others() {
    let slow = App::by(|_| Answer::ok().after(Duration::from_millis(100))).await;
    let other = App::by(|_| Answer::ok().after(Duration::from_millis(100))).await;
    let sidecar = service(
        &[slow.address, other.address],
        "ejection: { failures: 2, time: 60s }",
    )
    .await;
    for _ in 0..12 {
        let call = post("billing", "/")
            .header("wayside-timeout", "20")
            .body("x");
        assert_eq!(call.send(sidecar.outbound()).await.status, 504);
    }
    assert_eq!(sidecar.metric("wayside_addresses_out", &[]), 0.0);
    assert_eq!(
        get("billing", "/").send(sidecar.outbound()).await.status,
        200
    );
}

#[tokio::test]
async fn a_call_whose_time_is_over_is_not_sent_and_of_two_times_the_shorter_holds() {
    let app = App::by(|_| Answer::ok().after(Duration::from_millis(50))).await;
    let sidecar = in_front_of(app.address, "").await;
    let call = post("billing", "/")
        .header("wayside-timeout", "0")
        .body("x");
    assert_eq!(call.send(sidecar.outbound()).await.status, 504);
    assert_eq!(app.count(), 0);
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller
        .send("GET / HTTP/1.1\r\nhost: billing\r\nwayside-timeout: 9000\r\nwayside-timeout: 10\r\n\r\n")
        .await;
    assert_eq!(status(&caller.message().await.0), 504);
}

#[tokio::test]
async fn calls_that_break_off_together_leave_an_address_out_once() {
    let (open, gate) = tokio::sync::watch::channel(false);
    let app = RawApp::start(move |mut wire, _| {
        let mut gate = gate.clone();
        async move {
            wire.head().await;
            gate.wait_for(|open| *open).await.expect("the test lives");
        }
    })
    .await;
    let other = App::agreeable().await;
    let sidecar = service(
        &[app.address, other.address],
        "balance: round-robin, ejection: { failures: 2, time: 60s }",
    )
    .await;
    let mut calls = JoinSet::new();
    for _ in 0..40 {
        calls.spawn(post("billing", "/").body("x").send(sidecar.outbound()));
    }
    eventually("half wait there", Duration::from_secs(5), async || {
        (app.connections() == 20 && other.count() == 20).then_some(())
    })
    .await;
    open.send_replace(true);
    calls.join_all().await;
    assert_eq!(sidecar.metric("wayside_ejections_total", &[]), 1.0);
}

#[tokio::test]
async fn calls_over_the_limit_wait_for_a_place_in_a_bounded_queue() {
    let app = App::by(|_| Answer::ok().after(Duration::from_millis(50))).await;
    let sidecar = service(
        &[app.address],
        "limit: { in_flight: 2, queue: 8, wait: 5s }",
    )
    .await;
    let mut calls = JoinSet::new();
    for _ in 0..10 {
        let outbound = sidecar.outbound();
        calls.spawn(async move { post("billing", "/").body("x").send(outbound).await.status });
    }
    assert!(calls.join_all().await.iter().all(|status| *status == 200));
}

#[tokio::test]
async fn a_rate_refuses_what_is_over_it_and_says_when_to_come_back() {
    let app = App::agreeable().await;
    let by_service = service(&[app.address], "rate: { calls: 1/m, burst: 5 }").await;
    let by_route = forwarding(
        &[app.address.to_string()],
        ", rate: { calls: 1/m, burst: 5 }",
    )
    .await;
    for sidecar in [by_service, by_route] {
        let mut statuses = Vec::new();
        for _ in 0..10 {
            let reply = get("billing", "/").send(sidecar.outbound()).await;
            if reply.status == 429 {
                assert_eq!(reply.json()["type"], "urn:wayside:problem:rate-limited");
                assert!(reply.header("retry-after").is_some_and(|wait| wait != "0"));
            }
            statuses.push(reply.status.as_u16());
        }
        assert_eq!(statuses, [[200; 5], [429; 5]].concat());
    }
}

#[tokio::test]
async fn a_health_check_takes_an_address_out_before_a_call_meets_it() {
    let up = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&up);
    let app = App::by(move |seen| match seen.target.as_str() {
        "/live" if state.load(SeqCst) => Answer::ok(),
        "/live" => Answer::status(503),
        _ => Answer::ok().body("one"),
    })
    .await;
    let other = App::by(|_| Answer::ok().body("other")).await;
    let sidecar = service(
        &[app.address, other.address],
        "health: { path: /live, every: 100ms, timeout: 100ms, unhealthy: 2, healthy: 2 }",
    )
    .await;
    let out = async |count: f64| {
        eventually("the check is heeded", Duration::from_secs(10), async || {
            (sidecar.metric("wayside_addresses_out", &[]) == count).then_some(())
        })
        .await;
    };
    out(1.0).await;
    for _ in 0..20 {
        let reply = get("billing", "/").send(sidecar.outbound()).await;
        assert_eq!(&reply.body[..], b"other");
    }
    up.store(true, SeqCst);
    out(0.0).await;
}

#[tokio::test]
async fn calls_of_one_key_go_to_one_address() {
    let apps = [
        App::agreeable().await,
        App::agreeable().await,
        App::agreeable().await,
    ];
    let addresses: Vec<SocketAddr> = apps.iter().map(|app| app.address).collect();
    let sidecar = service(&addresses, "balance: { ring-hash: { header: x-user } }").await;
    for user in 0..30 {
        let before: Vec<usize> = apps.iter().map(App::count).collect();
        for _ in 0..4 {
            let call = get("billing", "/").header("x-user", &user.to_string());
            assert_eq!(call.send(sidecar.outbound()).await.status, 200);
        }
        let grown = apps
            .iter()
            .zip(&before)
            .filter(|(app, before)| app.count() > **before);
        assert_eq!(grown.count(), 1, "user {user}");
    }
    assert!(
        apps.iter().all(|app| app.count() > 0),
        "and keys are spread"
    );
    // An upgrade, which these services decline, goes the same way.
    let before: Vec<usize> = apps.iter().map(App::count).collect();
    let mut caller = Wire::connect(sidecar.outbound()).await;
    for _ in 0..6 {
        caller
            .send("GET / HTTP/1.1\r\nhost: billing\r\nx-user: 7\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n")
            .await;
        assert_eq!(status(&caller.message().await.0), 200);
    }
    let mut grown: Vec<usize> = apps
        .iter()
        .zip(&before)
        .map(|(app, before)| app.count() - before)
        .collect();
    grown.sort_unstable();
    assert_eq!(grown, [0, 0, 6]);
}

#[tokio::test]
async fn the_app_may_know_which_peers_are_up_and_follow_it() {
    let app = App::by(|_| Answer::status(500)).await;
    let other = App::agreeable().await;
    let sidecar = service(
        &[app.address, other.address],
        "balance: round-robin, ejection: { failures: 2, time: 60s }",
    )
    .await;
    let list = async || {
        get("any", "/.wayside/services")
            .send(sidecar.outbound())
            .await
            .json()
    };
    let before = list().await;
    let services = before["services"].as_array().expect("a list");
    assert_eq!(services.len(), 2);
    assert!(
        services
            .iter()
            .all(|one| one["up"] == true && one["service"] == "billing")
    );
    let mut stream = Wire::connect(sidecar.outbound()).await;
    stream
        .send("GET /.wayside/services HTTP/1.1\r\nhost: any\r\naccept: text/event-stream\r\n\r\n")
        .await;
    assert_eq!(status(&stream.head().await), 200);
    for _ in 0..2 {
        let event = stream
            .try_until(b"\n\n")
            .await
            .expect("one for each address");
        assert!(
            event.contains("event: peer") && event.contains("\"up\":true"),
            "{event}"
        );
    }
    for _ in 0..6 {
        get("billing", "/").send(sidecar.outbound()).await;
    }
    let event = stream.try_until(b"\n\n").await.expect("the change is told");
    let address = app.address.to_string();
    assert!(
        event.contains(&address) && event.contains("\"up\":false"),
        "{event}"
    );
    assert!(event.contains("2 failures in a row"), "and why: {event}");
    let after = list().await;
    let down = after["services"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|one| one["up"] == false);
    assert_eq!(down.expect("one is down")["address"], address.as_str());
    let renamed = yaml(&[other.address.to_string()], "", "").replace("billing", "invoices");
    sidecar.reload(&renamed).await.expect("it can be reloaded");
    let mut events = String::new();
    while !(events.contains("no address of the service any more") && events.contains("invoices")) {
        events += &stream.try_until(b"\n\n").await.expect("the change is told");
    }
    assert!(sidecar.stop().await, "a listener holds up no drain");
}

#[tokio::test]
async fn where_the_time_went_is_told_to_the_caller() {
    let app = App::by(|_| Answer::ok().after(Duration::from_millis(60))).await;
    let sidecar = in_front_of(app.address, "").await;
    let reply = get("billing", "/").send(sidecar.outbound()).await;
    let timing = reply.header("server-timing").expect("it is there");
    let (ours, theirs) = timing.split_once(", ").expect("both sides");
    let number = |text: &str| -> f64 {
        let number = text.rsplit_once("dur=").expect("a duration").1;
        number.parse().expect("a number")
    };
    assert!(
        ours.starts_with("wayside-orders;dur=") && theirs.starts_with("billing;dur="),
        "{timing}"
    );
    assert!(number(theirs) >= 60.0 && number(ours) < 60.0, "{timing}");
}

#[tokio::test]
async fn a_service_that_wants_rest_is_left_alone_for_that_long_if_there_is_time() {
    let app = App::script([
        Answer::status(503).header("retry-after", "1"),
        Answer::ok(),
        Answer::status(503).header("retry-after", "9"),
    ])
    .await;
    let sidecar = in_front_of(app.address, ", timeout: 3s, retry: { backoff: 1ms..2ms }").await;
    let started = Instant::now();
    assert_eq!(
        get("billing", "/").send(sidecar.outbound()).await.status,
        200
    );
    assert!(started.elapsed() >= Duration::from_secs(1));
    let started = Instant::now();
    assert_eq!(
        get("billing", "/").send(sidecar.outbound()).await.status,
        503
    );
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "there is no time for nine seconds"
    );
    app.verify(3);
}
