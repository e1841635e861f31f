//! The rules of a proxy's hop, continued: those that are about an answer's beginning and end, other protocols, time and
//! amounts. `hop.rs` has the list.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::time::{Instant, timeout};

use crate::forward::{forwarding, in_front_of, yaml};
use crate::support::app::{Answer, App};
use crate::support::client::{Outgoing, get, post};
use crate::support::eventually::eventually;
use crate::support::http2::{Http2, whole};
use crate::support::raw::{RawApp, Wire, field, status};
use crate::support::sidecar::Sidecar;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn rule_5_interim_answers_end_here_and_the_final_one_is_passed_on() {
    let app = RawApp::saying(format!(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n{OK}"
    ))
    .await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    for _ in 0..2 {
        caller.send("GET / HTTP/1.1\r\nhost: billing\r\n\r\n").await;
        let (head, body) = caller.message().await;
        assert_eq!((status(&head), &body[..]), (200, &b"ok"[..]));
        assert_eq!(field(&head, "link"), None);
    }
    assert_eq!(app.connections(), 1);
}

#[tokio::test]
async fn rule_7_a_413_is_read_while_50_mb_are_on_their_way() {
    // The service answers at once, reads nothing and closes: what is on its way then meets a reset.
    let app = RawApp::start(|mut wire, _| async move {
        wire.head().await;
        wire.send("HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 5\r\n\r\nlarge")
            .await;
    })
    .await;
    let sidecar = in_front_of(app.address, "").await;
    for _ in 0..10 {
        let body = Bytes::from(vec![b'x'; 50 << 20]);
        let reply = post("billing", "/").body(body).try_send(sidecar.outbound());
        let reply = reply.await.expect("the answer is not lost");
        assert_eq!(
            (reply.status.as_u16(), &reply.body[..]),
            (413, &b"large"[..])
        );
    }
}

#[tokio::test]
async fn rule_8_answers_that_have_no_body_keep_what_they_say_of_it() {
    for (method, answer, length) in [
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n",
            Some("99"),
        ),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", None),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n",
            None,
        ),
    ] {
        let app = RawApp::saying(answer).await;
        let sidecar = in_front_of(app.address, "").await;
        let mut caller = Wire::connect(sidecar.outbound()).await;
        for _ in 0..2 {
            caller
                .send(format!("{method} / HTTP/1.1\r\nhost: billing\r\n\r\n"))
                .await;
            let head = caller.head().await;
            assert_eq!(field(&head, "content-length"), length, "{head}");
            assert_eq!(field(&head, "transfer-encoding"), None, "{head}");
        }
    }
}

/// An app that switches to a protocol of its own: it sends back what it gets, in capitals.
async fn shouting() -> RawApp {
    RawApp::start(|mut wire, _| async move {
        let head = wire.head().await;
        if field(&head, "upgrade") != Some("shout") {
            return wire.send(OK).await;
        }
        assert_eq!(field(&head, "connection"), Some("upgrade"));
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: shout\r\n\r\nhello\n")
            .await;
        while let Some(line) = wire.try_until(b"\n").await {
            wire.send(line.to_uppercase()).await;
        }
    })
    .await
}

#[tokio::test]
async fn rule_10_an_upgrade_joins_both_sides_until_one_is_done() {
    let app = shouting().await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    // What is sent before the 101 is for the new protocol as well.
    caller
        .send("GET / HTTP/1.1\r\nhost: billing\r\nconnection: Upgrade\r\nupgrade: shout\r\n\r\nearly\n")
        .await;
    let head = caller.head().await;
    assert_eq!(
        (status(&head), field(&head, "upgrade")),
        (101, Some("shout"))
    );
    assert_eq!(caller.try_until(b"\n").await.as_deref(), Some("hello\n"));
    assert_eq!(caller.try_until(b"\n").await.as_deref(), Some("EARLY\n"));
    caller.send("more\n").await;
    assert_eq!(caller.try_until(b"\n").await.as_deref(), Some("MORE\n"));
    caller.finish().await;
    assert!(caller.ends_within(Duration::from_secs(5)).await);
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn rule_10_a_switch_that_ends_in_an_error_joins_nothing() {
    let (ended, mut end) = tokio::sync::mpsc::channel(1);
    let app = RawApp::start(move |mut wire, _| {
        let ended = ended.clone();
        async move {
            wire.head().await;
            wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: shout\r\ntransfer-encoding: gzip\r\n\r\n")
                .await;
            ended.send(wire.rest().await).await.expect("the test waits");
        }
    })
    .await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller
        .send("GET / HTTP/1.1\r\nhost: billing\r\nconnection: upgrade\r\nupgrade: shout\r\n\r\n")
        .await;
    assert_eq!(status(&caller.message().await.0), 502);
    let rest = end.recv().await.expect("the service is let go");
    assert!(rest.is_empty(), "and heard nothing more: {rest:?}");
    caller
        .send("GET / HTTP/1.1\r\nhost: nobody\r\nconnection: close\r\n\r\n")
        .await;
    assert_eq!(status(&caller.message().await.0), 404);
    assert!(caller.ends_within(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn rule_10_an_upgrade_that_the_service_declines_is_an_ordinary_answer() {
    let app = RawApp::saying(OK).await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    for token in ["other", "h2c", "a, b"] {
        caller
            .send(format!(
                "GET / HTTP/1.1\r\nhost: billing\r\nconnection: upgrade\r\nupgrade: {token}\r\n\r\n"
            ))
            .await;
        assert_eq!(status(&caller.message().await.0), 200, "{token}");
    }
}

#[tokio::test]
async fn rule_10_connect_is_off_until_a_route_names_it() {
    let app = RawApp::start(|mut wire, _| async move {
        while let Some(line) = wire.try_until(b"\n").await {
            wire.send(line.to_uppercase()).await;
        }
    })
    .await;
    let addresses = [app.address.to_string()];
    let sidecar = Sidecar::start(&yaml(&addresses, "", "")).await;
    let connect = "CONNECT billing:443 HTTP/1.1\r\nhost: billing:443\r\n\r\n";
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller.send(connect).await;
    assert_eq!(status(&caller.head().await), 501);
    let named =
        yaml(&addresses, "", "").replace("host: billing", "host: billing, methods: [CONNECT]");
    let sidecar = Sidecar::start(&named).await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller.send(connect).await;
    let head = caller.head().await;
    assert_eq!(
        (status(&head), field(&head, "content-length")),
        (200, None),
        "{head}"
    );
    caller.send("through\n").await;
    assert_eq!(caller.try_until(b"\n").await.as_deref(), Some("THROUGH\n"));
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller.send(connect.replace("1.1", "1.0")).await;
    assert_eq!(status(&caller.head().await), 501, "no tunnel can be made");
}

#[tokio::test]
async fn rule_10_a_socket_lives_through_a_drain_and_ends_in_order_before_its_end() {
    let app = shouting().await;
    let sidecar = Sidecar::start(&yaml(&[app.address.to_string()], "", "drain: 3s")).await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller
        .send("GET / HTTP/1.1\r\nhost: billing\r\nconnection: upgrade\r\nupgrade: shout\r\n\r\n")
        .await;
    assert_eq!(status(&caller.head().await), 101);
    assert_eq!(caller.try_until(b"\n").await.as_deref(), Some("hello\n"));
    let stopping = tokio::runtime::Handle::current().spawn(sidecar.stop());
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(1_500) {
        caller.send("still\n").await;
        assert_eq!(caller.try_until(b"\n").await.as_deref(), Some("STILL\n"));
    }
    assert!(caller.ends_in_order().await);
    assert!(stopping.await.expect("it stops"), "in time");
}

#[tokio::test]
async fn rule_11_an_http2_call_reaches_an_http1_service_as_one_of_its_own() {
    let app = App::agreeable().await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Http2::connect(sidecar.outbound()).await;
    let request = Request::put("http://billing/a?b=c")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("cookie", "c=3")
        .body(Full::new(Bytes::from_static(b"whole")));
    let reply = caller.send(request.expect("a request")).await;
    assert_eq!(reply.status, 200);
    let seen = &app.seen()[0];
    assert_eq!(
        (seen.target.as_str(), &seen.body[..]),
        ("/a?b=c", &b"whole"[..])
    );
    assert_eq!(
        (seen.header("host"), seen.header("cookie")),
        (Some("billing"), Some("a=1; b=2; c=3"))
    );
    assert_eq!(seen.headers.get_all("cookie").iter().count(), 1);
}

#[tokio::test]
async fn rule_12_a_post_on_a_connection_that_closes_at_that_moment_runs_at_most_once_and_a_get_succeeds()
 {
    // Each connection serves one call, then closes when the next one has arrived: the race, lost every time.
    let (runs, mut ran) = tokio::sync::mpsc::channel(100);
    let app = RawApp::start(move |mut wire, _| {
        let runs = runs.clone();
        async move {
            let Some(head) = wire.try_head().await else {
                return;
            };
            runs.send(head).await.expect("the test listens");
            wire.send(OK).await;
            // The next call's bytes are taken and not answered.
            wire.try_head().await;
        }
    })
    .await;
    let sidecar = in_front_of(app.address, "").await;
    for _ in 0..5 {
        assert_eq!(
            get("billing", "/").send(sidecar.outbound()).await.status,
            200
        );
    }
    let reply = post("billing", "/")
        .body("x")
        .send(sidecar.outbound())
        .await;
    // Used a moment ago, so it was taken; heard or not, nobody can say: it is not sent twice.
    assert!(
        [200, 502].contains(&reply.status.as_u16()),
        "{}",
        reply.status
    );
    let mut posts = 0;
    while let Ok(head) = ran.try_recv() {
        posts += usize::from(head.starts_with("POST"));
    }
    assert!(posts <= 1, "the POST ran {posts} times");
    let lost = sidecar.metric("wayside_retries_total", &["reason=\"lost-race\""]);
    assert!(lost > 0.0, "the free tries are counted");
}

#[tokio::test]
async fn rule_12_a_post_does_not_take_a_connection_that_lay_idle() {
    let app = App::agreeable().await;
    let sidecar = in_front_of(app.address, "").await;
    assert_eq!(
        get("billing", "/").send(sidecar.outbound()).await.status,
        200
    );
    let mut silent = Wire::connect(sidecar.outbound()).await;
    assert!(silent.is_silent_for(Duration::from_millis(600)).await);
    assert_eq!(
        post("billing", "/")
            .body("x")
            .send(sidecar.outbound())
            .await
            .status,
        200
    );
    assert_eq!(app.connections(), 2, "the POST made one of its own");
    assert_eq!(
        get("billing", "/").send(sidecar.outbound()).await.status,
        200
    );
    assert_eq!(app.connections(), 2);
}

#[tokio::test]
async fn rule_13_a_connection_is_let_go_before_the_other_side_closes_it() {
    let app = RawApp::saying(
        "HTTP/1.1 200 OK\r\nkeep-alive: timeout=1, max=9\r\ncontent-length: 2\r\n\r\nok",
    )
    .await;
    let sidecar = in_front_of(app.address, "").await;
    for _ in 0..3 {
        assert_eq!(
            get("billing", "/").send(sidecar.outbound()).await.status,
            200
        );
    }
    assert_eq!(
        app.connections(),
        3,
        "a second, less a second's head start, is none at all"
    );
}

#[tokio::test]
async fn rule_15_every_failure_has_the_status_that_says_whose_it_was() {
    let refusing = App::nowhere();
    let broken = RawApp::start(|mut wire, _| async move {
        wire.head().await;
    })
    .await;
    let strange = RawApp::saying("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nxx").await;
    let hanging = App::by(|_| Answer::hang()).await;
    for (address, expected, word) in [
        (refusing, 503, "destination-unreachable"),
        (broken.address, 502, "connection-reset"),
        (strange.address, 502, "bad-answer"),
        (hanging.address, 504, "deadline-exceeded"),
    ] {
        let sidecar = in_front_of(address, ", timeout: 500ms").await;
        let reply = get("billing", "/").send(sidecar.outbound()).await;
        let problem = format!("urn:wayside:problem:{word}");
        assert_eq!(
            (reply.status.as_u16(), reply.json()["type"].as_str()),
            (expected, Some(problem.as_str()))
        );
        let status = reply.header("proxy-status").unwrap_or_default();
        assert!(status.contains(word), "{status}");
        assert_eq!(
            sidecar.metric("wayside_calls_total", &[&format!("outcome=\"{word}\"")]),
            1.0
        );
    }
}

#[tokio::test]
async fn rule_16_a_caller_that_does_not_read_holds_the_service_back_and_ends_with_its_own_time() {
    let app = RawApp::start(|mut wire, _| async move {
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 268435456\r\n\r\n")
            .await;
        let block = vec![b'x'; 1 << 20];
        let mut sent = 0;
        // Ends when nothing is taken any more for a while, or the connection breaks.
        while let Ok(true) = timeout(Duration::from_millis(500), wire.try_send(&block)).await {
            sent += 1;
        }
        assert!(
            sent < 64,
            "{sent} MiB were taken for a caller that reads nothing"
        );
    })
    .await;
    let sidecar = in_front_of(app.address, ", timeout: 2s").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller.send("GET / HTTP/1.1\r\nhost: billing\r\n\r\n").await;
    assert_eq!(status(&caller.head().await), 200);
    let started = Instant::now();
    eventually(
        "the place of the call is free again",
        Duration::from_secs(10),
        async || {
            (sidecar.metric("wayside_calls_in_flight", &["door=\"outbound\""]) == 0.0).then_some(())
        },
    )
    .await;
    assert!(
        started.elapsed() < Duration::from_secs(6),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn rule_16_an_http2_stream_that_is_not_read_lets_go_of_its_place_in_time() {
    let app = App::by(|_| Answer::ok().body("x".repeat(4 << 20))).await;
    let sidecar = in_front_of(app.address, ", timeout: 1s").await;
    let mut caller = Http2::connect(sidecar.outbound()).await;
    let request = || {
        Request::get("http://billing/")
            .body(Full::default())
            .expect("a request")
    };
    let unread = caller.begin(request()).await.expect("a head");
    let in_flight = || sidecar.metric("wayside_calls_in_flight", &["door=\"outbound\""]);
    assert_eq!(in_flight(), 1.0);
    eventually("its place is free", Duration::from_secs(10), async || {
        (in_flight() == 0.0).then_some(())
    })
    .await;
    assert_eq!(sidecar.metric("wayside_answers_cut_total", &[]), 1.0);
    assert!(
        whole(unread.into_body()).await.is_err(),
        "it never looks whole"
    );
    assert_eq!(
        caller.send(request()).await.body.len(),
        4 << 20,
        "others go on"
    );
}

#[tokio::test]
async fn rule_16_an_http2_caller_has_its_calls_side_by_side_and_within_the_limits() {
    let app = App::by(|_| Answer::ok().body("x".repeat(100_000))).await;
    let sidecar = in_front_of(app.address, "").await;
    let caller = Http2::connect(sidecar.outbound()).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let mut caller = caller.clone();
        calls.spawn(async move {
            let request = Request::get("http://billing/").body(Full::default());
            caller.send(request.expect("a request")).await
        });
    }
    for reply in calls.join_all().await {
        let said = String::from_utf8_lossy(&reply.body);
        assert_eq!(
            (reply.status.as_u16(), said.len()),
            (200, 100_000),
            "{said:.300}"
        );
    }
    let mut caller = Http2::connect(sidecar.outbound()).await;
    let large = Request::get("http://billing/").header("x", "y".repeat(70_000));
    let reply = caller
        .begin(large.body(Full::default()).expect("a request"))
        .await;
    assert!(reply.is_err() || reply.is_ok_and(|reply| reply.status() == 431));
    let reply = Outgoing::new(http::Method::GET, "billing", "/")
        .send(sidecar.outbound())
        .await;
    assert_eq!(reply.status, 200, "the others are not harmed");
}

#[tokio::test]
async fn all_addresses_of_a_name_are_tried_whatever_attempts_says() {
    let app = App::agreeable().await;
    let mut addresses: Vec<String> = (0..6).map(|_| App::nowhere().to_string()).collect();
    addresses.push(app.address.to_string());
    let sidecar = forwarding(&addresses, ", retry: { attempts: 1 }").await;
    for _ in 0..30 {
        assert_eq!(
            post("billing", "/")
                .body("x")
                .send(sidecar.outbound())
                .await
                .status,
            200
        );
    }
    app.verify(30);
}

#[tokio::test]
async fn a_refusing_address_does_not_hide_what_another_one_answered() {
    let busy = App::by(|_| Answer::status(503).body("busy")).await;
    let addresses = [busy.address.to_string(), App::nowhere().to_string()];
    let sidecar = forwarding(&addresses, ", retry: { attempts: 2, backoff: 1ms..2ms }").await;
    for _ in 0..10 {
        let reply = get("billing", "/").send(sidecar.outbound()).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.body[..]),
            (503, &b"busy"[..])
        );
    }
}
