//! The synchronous pattern when something goes wrong: what is tried again, what never is, and how soon the caller knows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use tokio::time::Instant;

use crate::forward::{forwarding, in_front_of, yaml};
use crate::support::app::{Answer, App};
use crate::support::client::{Outgoing, Reply, get, post};
use crate::support::eventually::eventually;
use crate::support::raw::{RawApp, Wire, exchange, status};
use crate::support::sidecar::Sidecar;

const IN_FLIGHT: &str = "wayside_calls_in_flight";

fn put(body: impl Into<Bytes>) -> Outgoing {
    Outgoing::new(Method::PUT, "billing", "/").body(body)
}

fn reason(reply: &Reply) -> (u16, String) {
    let kind = reply.json()["type"].as_str().unwrap_or_default().to_owned();
    (
        reply.status.as_u16(),
        kind.trim_start_matches("urn:wayside:problem:").to_owned(),
    )
}

fn is(status: u16, kind: &str) -> (u16, String) {
    (status, kind.to_owned())
}

/// Makes calls of a kind through fresh sidecars in front of two good apps and a bad address between them, until
/// `was_met`: a balancer that has found the good ones may never ask the bad one. Every call must end well, and none may
/// run twice on a good app.
async fn with_one_bad(
    bad: SocketAddr,
    route: &str,
    call: impl Fn() -> Outgoing,
    was_met: impl Fn(&Sidecar) -> bool,
) {
    let apps = [App::agreeable().await, App::agreeable().await];
    let addresses = [
        apps[0].address.to_string(),
        bad.to_string(),
        apps[1].address.to_string(),
    ];
    for round in 1..=50 {
        let sidecar = forwarding(&addresses, route).await;
        assert_eq!(statuses(&sidecar, 10, &call).await, [200; 10]);
        assert_eq!(apps[0].count() + apps[1].count(), round * 10);
        if was_met(&sidecar) {
            assert!(
                apps.iter()
                    .flat_map(App::seen)
                    .all(|seen| seen.method == Method::GET || seen.body == "x")
            );
            return;
        }
    }
    panic!("the bad address was never asked");
}

/// Sends `count` calls of a kind and says how each ended.
async fn statuses(sidecar: &Sidecar, count: usize, call: &impl Fn() -> Outgoing) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(call().send(sidecar.outbound()).await.status.as_u16());
    }
    statuses
}

#[tokio::test]
async fn an_address_that_refuses_costs_no_call_of_any_method() {
    let refused = |sidecar: &Sidecar| sidecar.metric("wayside_connect_failures_total", &[]) > 0.0;
    with_one_bad(
        App::nowhere(),
        "",
        || post("billing", "/").body("x"),
        refused,
    )
    .await;
    with_one_bad(App::nowhere(), "", || get("billing", "/"), refused).await;
    with_one_bad(App::nowhere(), "", || put("x"), refused).await;
}

#[tokio::test]
async fn an_address_that_hangs_before_its_head_costs_an_idempotent_call_one_try() {
    let hanging = App::by(|_| Answer::hang()).await;
    let route = ", timeout: 10s, timeouts: { try: 200ms }";
    with_one_bad(
        hanging.address,
        route,
        || get("billing", "/"),
        |_| hanging.count() > 0,
    )
    .await;
    assert!(
        hanging.count() <= 3,
        "avoided after its failures: {}",
        hanging.count()
    );
}

#[tokio::test]
async fn an_address_that_cuts_before_its_head_costs_an_idempotent_call_nothing() {
    let cutting = App::by(|_| Answer::cut()).await;
    with_one_bad(cutting.address, "", || put("x"), |_| cutting.count() > 0).await;
}

#[tokio::test]
async fn a_post_that_was_cut_off_is_not_run_again() {
    let apps = [
        App::by(|_| Answer::cut()).await,
        App::by(|_| Answer::cut()).await,
    ];
    let sidecar = forwarding(
        &[apps[0].address.to_string(), apps[1].address.to_string()],
        "",
    )
    .await;
    let reply = post("billing", "/")
        .body("x")
        .send(sidecar.outbound())
        .await;
    assert_eq!(reason(&reply), is(502, "connection-reset"));
    assert_eq!(apps[0].count() + apps[1].count(), 1);
    let reply = get("billing", "/").send(sidecar.outbound()).await;
    assert_eq!(reason(&reply), is(502, "connection-reset"));
    assert_eq!(
        apps[0].count() + apps[1].count(),
        4,
        "one and three attempts"
    );
}

#[tokio::test]
async fn an_answer_that_is_cut_in_its_body_never_looks_whole() {
    let body = "0123456789".repeat(1000);
    let torn = App::by(move |_| Answer::ok().body(body.clone()).torn()).await;
    let sidecar = in_front_of(torn.address, "").await;
    let reply = get("billing", "/").try_send(sidecar.outbound()).await;
    reply.expect_err("half a body is no answer");
    assert_eq!(torn.count(), 1, "a started answer is not asked for again");
    assert_eq!(sidecar.metric(IN_FLIGHT, &[]), 0.0);
}

#[tokio::test]
async fn a_chunked_answer_that_is_cut_never_looks_whole() {
    let app = RawApp::start(|mut wire, _| async move {
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            .await;
    })
    .await;
    let sidecar = in_front_of(app.address, "").await;
    let answer = exchange(
        sidecar.outbound(),
        "GET / HTTP/1.1\r\nhost: billing\r\n\r\n",
    )
    .await;
    assert!(
        answer.contains("chunked") && !answer.ends_with("0\r\n\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn an_http_1_0_caller_sees_a_reset_where_the_answer_was_cut() {
    // Without chunks and without a length, the connection's orderly end would be the body's end.
    let app = RawApp::start(|mut wire, _| async move {
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            .await;
    })
    .await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller.send("GET / HTTP/1.0\r\nhost: billing\r\n\r\n").await;
    assert!(!caller.ends_in_order().await, "half an answer looks whole");
}

#[tokio::test]
async fn a_503_is_tried_again_for_a_get_and_never_for_a_post() {
    let first = AtomicUsize::new(0);
    let app = App::by(move |_| match first.fetch_add(1, SeqCst) {
        0 => Answer::status(503).body("busy"),
        _ => Answer::ok(),
    })
    .await;
    let sidecar = in_front_of(app.address, "").await;
    assert_eq!(
        get("billing", "/").send(sidecar.outbound()).await.status,
        200
    );
    app.verify(2);
    let busy = App::by(|_| Answer::status(503).header("x-app", "own").body("busy")).await;
    let sidecar = in_front_of(busy.address, "").await;
    let reply = post("billing", "/")
        .body("x")
        .send(sidecar.outbound())
        .await;
    assert_eq!(
        (
            reply.status.as_u16(),
            reply.header("x-app"),
            &reply.body[..]
        ),
        (503, Some("own"), &b"busy"[..])
    );
    busy.verify(1);
    let reply = get("billing", "/").send(sidecar.outbound()).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body[..]),
        (503, &b"busy"[..]),
        "the last try's own answer"
    );
    busy.verify(4);
}

#[tokio::test]
async fn a_route_that_calls_its_posts_idempotent_has_them_tried_again() {
    let app = App::script([Answer::cut(), Answer::ok()]).await;
    let sidecar = in_front_of(app.address, ", idempotent: true").await;
    assert_eq!(
        post("billing", "/")
            .body("x")
            .send(sidecar.outbound())
            .await
            .status,
        200
    );
    app.verify(2);
    assert!(app.seen().iter().all(|seen| seen.body == "x"));
}

#[tokio::test]
async fn the_deadline_is_a_504_when_it_says() {
    let app = App::by(|_| Answer::hang()).await;
    let sidecar = in_front_of(app.address, ", timeout: 500ms").await;
    for call in [
        get("billing", "/"),
        post("billing", "/").body("x"),
        put("y"),
    ] {
        let started = Instant::now();
        let reply = call.send(sidecar.outbound()).await;
        let took = started.elapsed();
        assert_eq!(reason(&reply), is(504, "deadline-exceeded"));
        assert!(
            took >= Duration::from_millis(490) && took < Duration::from_millis(700),
            "{took:?}"
        );
    }
    app.verify(3);
    assert_eq!(sidecar.metric(IN_FLIGHT, &[]), 0.0);
}

#[tokio::test]
async fn the_deadline_bounds_all_tries_together() {
    let app = App::by(|_| Answer::hang()).await;
    let sidecar = in_front_of(
        app.address,
        ", timeout: 600ms, timeouts: { try: 250ms }, retry: { attempts: 10 }",
    )
    .await;
    let started = Instant::now();
    let reply = get("billing", "/").send(sidecar.outbound()).await;
    assert_eq!(reason(&reply), is(504, "deadline-exceeded"));
    assert!(
        started.elapsed() < Duration::from_millis(800),
        "{:?}",
        started.elapsed()
    );
    assert!(app.count() == 3 || app.count() == 2, "{}", app.count());
}

#[tokio::test]
async fn an_answer_that_goes_on_past_the_deadline_is_cut() {
    let app = RawApp::start(|mut wire, _| async move {
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        while wire.try_send("1\r\nx\r\n").await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let sidecar = in_front_of(app.address, ", timeout: 400ms").await;
    let started = Instant::now();
    let answer = exchange(
        sidecar.outbound(),
        "GET / HTTP/1.1\r\nhost: billing\r\n\r\n",
    )
    .await;
    assert!(
        started.elapsed() < Duration::from_millis(900),
        "{:?}",
        started.elapsed()
    );
    assert!(
        status(&answer) == 200 && !answer.ends_with("0\r\n\r\n"),
        "{answer}"
    );
    eventually(
        "the place is free again",
        Duration::from_secs(5),
        async || (sidecar.metric(IN_FLIGHT, &[]) == 0.0).then_some(()),
    )
    .await;
}

#[tokio::test]
async fn a_connection_that_is_not_taken_ends_at_its_own_limit() {
    // A listener whose queue is full answers no SYN.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("the socket is bound");
    let mut waiting = Vec::new();
    while waiting.len() < 5_000 {
        match std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
            Ok(stream) => waiting.push(stream),
            Err(_) => break,
        }
    }
    let sidecar = in_front_of(address, ", timeout: 10s, timeouts: { connect: 200ms }").await;
    let started = Instant::now();
    let reply = post("billing", "/")
        .body("x")
        .send(sidecar.outbound())
        .await;
    assert_eq!(reason(&reply), is(503, "destination-unreachable"));
    assert!(
        started.elapsed() < Duration::from_millis(1500),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn when_all_addresses_refuse_the_caller_knows_at_once() {
    let addresses: Vec<String> = (0..3).map(|_| App::nowhere().to_string()).collect();
    let sidecar = forwarding(&addresses, ", timeout: 10s").await;
    let started = Instant::now();
    let reply = post("billing", "/")
        .body("x")
        .send(sidecar.outbound())
        .await;
    assert_eq!(reason(&reply), is(503, "destination-unreachable"));
    assert!(
        started.elapsed() < Duration::from_millis(500),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(sidecar.metric("wayside_connect_failures_total", &[]), 3.0);
}

#[tokio::test]
async fn a_caller_that_stops_in_its_body_gets_a_408() {
    let app = App::agreeable().await;
    let sidecar = in_front_of(app.address, ", timeouts: { idle: 300ms }").await;
    let answer = exchange(
        sidecar.outbound(),
        "POST / HTTP/1.1\r\nhost: billing\r\ncontent-length: 10\r\n\r\nhalf",
    )
    .await;
    assert!(
        status(&answer) == 408 && answer.contains("caller-timeout"),
        "{answer}"
    );
    app.verify(0);
}

#[tokio::test]
async fn half_a_request_never_reaches_the_app_as_a_whole_one() {
    let app = App::agreeable().await;
    let sidecar = in_front_of(app.address, "").await;
    for head in [
        "content-length: 10\r\n\r\nhalf",
        "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        for method in ["POST", "PUT"] {
            let mut caller = Wire::connect(sidecar.outbound()).await;
            caller
                .send(format!("{method} / HTTP/1.1\r\nhost: billing\r\n{head}"))
                .await;
            caller.finish().await;
            caller.rest().await;
        }
    }
    assert_eq!(
        sidecar.metric("wayside_retries_total", &[]),
        0.0,
        "a second try would end in the same way"
    );
    app.verify(0);
    assert_eq!(sidecar.metric(IN_FLIGHT, &[]), 0.0);
}

#[tokio::test]
async fn a_caller_that_goes_away_frees_its_place_and_the_apps_connection() {
    let open = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&open);
    let app = RawApp::start(move |mut wire, _| {
        let open = Arc::clone(&counting);
        async move {
            wire.head().await;
            open.fetch_add(1, SeqCst);
            wire.rest().await;
            open.fetch_sub(1, SeqCst);
        }
    })
    .await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller.send("GET / HTTP/1.1\r\nhost: billing\r\n\r\n").await;
    eventually("the app has the call", Duration::from_secs(5), async || {
        (open.load(SeqCst) == 1).then_some(())
    })
    .await;
    assert_eq!(sidecar.metric(IN_FLIGHT, &["door=\"outbound\""]), 1.0);
    drop(caller);
    eventually(
        "the app sees that it is over",
        Duration::from_secs(5),
        async || (open.load(SeqCst) == 0 && sidecar.metric(IN_FLIGHT, &[]) == 0.0).then_some(()),
    )
    .await;
}

#[tokio::test]
async fn a_put_is_repeated_with_the_same_bytes() {
    let body: Bytes = std::iter::repeat_with(|| fastrand::u8(..))
        .take(60_000)
        .collect::<Vec<u8>>()
        .into();
    let app = App::script([Answer::cut(), Answer::status(503), Answer::ok()]).await;
    let sidecar = in_front_of(app.address, "").await;
    assert_eq!(put(body.clone()).send(sidecar.outbound()).await.status, 200);
    app.verify(3);
    assert!(app.seen().iter().all(|seen| seen.body == body));
    assert_eq!(sidecar.metric("wayside_retries_total", &[]), 2.0);
}

#[tokio::test]
async fn a_body_over_the_replay_limit_goes_through_once_and_is_not_repeated() {
    let app = App::script([Answer::ok(), Answer::cut()]).await;
    let sidecar = Sidecar::start(&yaml(
        &[app.address.to_string()],
        "",
        "limits: { replay: 1KiB }",
    ))
    .await;
    assert_eq!(
        put(vec![b'x'; 5_000]).send(sidecar.outbound()).await.status,
        200
    );
    assert_eq!(
        reason(&put(vec![b'x'; 5_000]).send(sidecar.outbound()).await),
        is(502, "connection-reset")
    );
    app.verify(2);
}

#[tokio::test]
async fn a_connection_that_the_app_closed_while_idle_costs_no_call() {
    // Each connection serves one call and is then closed without a word.
    let app = RawApp::start(|mut wire, _| async move {
        let (head, body) = wire.message().await;
        assert!(!head.starts_with("POST") || body == b"x");
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
    })
    .await;
    let sidecar = in_front_of(app.address, "").await;
    assert_eq!(
        statuses(&sidecar, 50, &|| post("billing", "/").body("x")).await,
        [200; 50]
    );
    assert_eq!(
        statuses(&sidecar, 50, &|| get("billing", "/")).await,
        [200; 50]
    );
    assert_eq!(app.connections(), 100, "nothing ran twice");
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_a_502() {
    for garbage in [
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    ] {
        let app = RawApp::saying(garbage).await;
        let sidecar = in_front_of(app.address, "").await;
        assert_eq!(
            reason(&get("billing", "/").send(sidecar.outbound()).await),
            is(502, "bad-answer")
        );
    }
    let flood = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(200 << 10));
    let app = RawApp::saying(flood).await;
    let sidecar = in_front_of(app.address, "").await;
    assert_eq!(
        reason(&get("billing", "/").send(sidecar.outbound()).await),
        is(502, "bad-answer")
    );
}

#[tokio::test]
async fn an_upgrade_that_nobody_asked_for_is_a_502() {
    let app = RawApp::saying(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    )
    .await;
    let sidecar = in_front_of(app.address, "").await;
    assert_eq!(
        reason(&get("billing", "/").send(sidecar.outbound()).await),
        is(502, "bad-answer")
    );
}

#[tokio::test]
async fn an_early_answer_is_read_while_the_caller_still_uploads() {
    let app = RawApp::start(|mut wire, _| async move {
        wire.head().await;
        wire.send("HTTP/1.1 413 Too Large\r\ncontent-length: 4\r\nconnection: close\r\n\r\nmuch")
            .await;
        wire.finish().await;
        wire.rest().await;
    })
    .await;
    let sidecar = in_front_of(app.address, "").await;
    for host in ["billing", "nobody"] {
        let mut caller = Wire::connect(sidecar.outbound()).await;
        caller
            .send(format!(
                "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 20971520\r\n\r\n"
            ))
            .await;
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            caller.send(&chunk).await;
        }
        let head = caller.head().await;
        assert_eq!(status(&head), if host == "billing" { 413 } else { 404 });
    }
}

#[tokio::test]
async fn a_connection_whose_upload_still_runs_is_not_given_to_another_call() {
    // Answers each call after its head, and goes on reading.
    let app = RawApp::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let sidecar = in_front_of(app.address, ", timeout: 2s").await;
    let mut slow = Wire::connect(sidecar.outbound()).await;
    slow.send("POST / HTTP/1.1\r\nhost: billing\r\ncontent-length: 10\r\n\r\nhalf")
        .await;
    assert_eq!(status(&slow.head().await), 200);
    let started = Instant::now();
    assert_eq!(
        get("billing", "/").send(sidecar.outbound()).await.status,
        200
    );
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "it waited for the other's upload"
    );
}

#[tokio::test]
async fn retries_are_bounded_by_the_budget() {
    let app = App::by(|_| Answer::status(503)).await;
    let sidecar = in_front_of(app.address, ", retry: { attempts: 3, backoff: 1ms..1ms }").await;
    assert!(
        statuses(&sidecar, 400, &|| get("billing", "/"))
            .await
            .iter()
            .all(|status| *status == 503)
    );
    let retries = app.count() - 400;
    assert!(retries <= 400 / 5 + 110, "{retries} retries for 400 calls");
}
