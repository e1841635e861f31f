//! The synchronous pattern: what is carried, byte for byte, and on which connections.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use tokio::time::timeout;

use crate::support::app::{Answer, App};
use crate::support::client::{Outgoing, get, post};
use crate::support::raw::{RawApp, Wire, exchange, field, status};
use crate::support::sidecar::Sidecar;

/// The YAML of a sidecar that forwards to one service; `route` goes on after `to`, `rest` at the end.
pub(crate) fn yaml(addresses: &[String], route: &str, rest: &str) -> String {
    format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: all
      match: {{ host: billing }}
      forward: {{ to: billing{route} }}
services:
  billing: {{ addresses: [{}] }}
{rest}
",
        addresses.join(", ")
    )
}

/// A forwarding sidecar in front of one service with these addresses.
pub(crate) async fn forwarding(addresses: &[String], route: &str) -> Sidecar {
    Sidecar::start(&yaml(addresses, route, "")).await
}

/// The same in front of one address.
pub(crate) async fn in_front_of(address: std::net::SocketAddr, route: &str) -> Sidecar {
    forwarding(&[address.to_string()], route).await
}

#[tokio::test]
async fn a_call_arrives_as_it_was_made_and_its_answer_comes_back() {
    let app = App::script([Answer::status(201).header("x-answer", "yes").body("done")]).await;
    let sidecar = in_front_of(app.address, "").await;
    let call = post("billing", "/invoices?dry=1")
        .header("x-call", "a")
        .json("{\"a\":1}");
    let reply = call.send(sidecar.outbound()).await;
    assert_eq!(
        (reply.status.as_u16(), reply.header("x-answer")),
        (201, Some("yes"))
    );
    assert_eq!(
        (&reply.body[..], reply.header("wayside-pattern")),
        (&b"done"[..], Some("forward"))
    );
    let seen = &app.seen()[0];
    assert_eq!(
        (seen.method.as_str(), seen.target.as_str()),
        ("POST", "/invoices?dry=1")
    );
    assert_eq!(
        (seen.header("x-call"), seen.header("host")),
        (Some("a"), Some("billing"))
    );
    assert_eq!(seen.body, "{\"a\":1}");
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn no_route_is_a_404_that_names_the_nearest() {
    let sidecar = forwarding(&["127.0.0.1:1".to_owned()], "").await;
    let reply = get("rates", "/").send(sidecar.outbound()).await;
    assert_eq!(reply.status, 404);
    let detail = reply.json()["detail"].to_string();
    assert!(
        detail.contains("`all`") && detail.contains("billing"),
        "{detail}"
    );
}

#[tokio::test]
async fn large_bodies_arrive_byte_for_byte_in_both_directions() {
    let app = App::by(|seen| Answer::ok().body(seen.body.clone())).await;
    let sidecar = in_front_of(app.address, "").await;
    let body: Bytes = std::iter::repeat_with(|| fastrand::u8(..))
        .take(8 << 20)
        .collect::<Vec<u8>>()
        .into();
    for method in [Method::POST, Method::PUT] {
        let reply = Outgoing::new(method, "billing", "/")
            .body(body.clone())
            .send(sidecar.outbound())
            .await;
        assert!(
            reply.status == 200 && reply.body == body,
            "{} of {} bytes",
            reply.body.len(),
            body.len()
        );
    }
    assert!(app.seen().iter().all(|seen| seen.body == body));
}

#[tokio::test]
async fn a_chunk_is_passed_on_before_the_answer_ends() {
    // The app sends its second event only after the caller has confirmed the first.
    let app = RawApp::start(|mut wire, _| async move {
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await;
        wire.send("9\r\ndata: 1\n\n\r\n").await;
        wire.rest().await;
    })
    .await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller
        .send("GET /events HTTP/1.1\r\nhost: billing\r\n\r\n")
        .await;
    let head = caller.head().await;
    assert_eq!(
        (status(&head), field(&head, "content-type")),
        (200, Some("text/event-stream"))
    );
    let first = timeout(Duration::from_secs(5), caller.try_until(b"data: 1\n\n")).await;
    assert!(
        first
            .expect("the chunk comes while the answer is open")
            .is_some()
    );
}

#[tokio::test]
async fn a_chunk_of_the_request_is_passed_on_before_the_request_ends() {
    let app = RawApp::start(|mut wire, _| async move {
        wire.head().await;
        wire.try_until(b"one").await.expect("the first chunk");
        wire.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
            .await;
        wire.try_until(b"0\r\n\r\n").await.expect("the end");
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
        wire.rest().await;
    })
    .await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller
        .send("POST / HTTP/1.1\r\nhost: billing\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        .await;
    assert!(
        caller.is_silent_for(Duration::from_millis(100)).await,
        "an interim answer is not passed on"
    );
    caller.send("3\r\ntwo\r\n0\r\n\r\n").await;
    assert_eq!(status(&caller.head().await), 200);
}

#[tokio::test]
async fn connections_to_the_app_are_used_again() {
    let app = App::agreeable().await;
    let sidecar = in_front_of(app.address, "").await;
    for _ in 0..50 {
        assert_eq!(
            get("billing", "/").send(sidecar.outbound()).await.status,
            200
        );
    }
    assert_eq!(app.count(), 50);
    assert!(
        app.connections() <= 2,
        "{} connections for 50 calls",
        app.connections()
    );
}

#[tokio::test]
async fn a_pool_full_of_old_connections_does_not_keep_new_ones_out() {
    let app = App::by(|seen| match seen.method {
        Method::GET => Answer::ok().after(Duration::from_millis(800)),
        _ => Answer::ok(),
    })
    .await;
    let rest = "limits: { in_flight: 100 }";
    let sidecar = Sidecar::start(&yaml(&[app.address.to_string()], "", rest)).await;
    let all_at_once = async |count: usize| {
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..count {
            let outbound = sidecar.outbound();
            calls.spawn(async move { get("billing", "/").send(outbound).await.status });
        }
        assert!(calls.join_all().await.iter().all(|status| *status == 200));
    };
    all_at_once(100).await;
    assert_eq!(app.connections(), 100);
    let mut silent = Wire::connect(sidecar.outbound()).await;
    assert!(silent.is_silent_for(Duration::from_millis(600)).await);
    let before = app.connections();
    for _ in 0..10 {
        // Too old for calls that must not run twice, all of them; what the first one made serves the others.
        let reply = post("billing", "/")
            .body("x")
            .send(sidecar.outbound())
            .await;
        assert_eq!(reply.status, 200);
    }
    assert_eq!(app.connections(), before + 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let app = App::by(|seen| Answer::ok().body(seen.target.clone())).await;
    let sidecar = in_front_of(app.address, "").await;
    let one = |at: usize| format!("GET /{at} HTTP/1.1\r\nhost: billing\r\n\r\n");
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller.send((0..20).map(one).collect::<String>()).await;
    for at in 0..20 {
        let (head, body) = caller.message().await;
        assert_eq!((status(&head), body), (200, format!("/{at}").into_bytes()));
    }
}

#[tokio::test]
async fn an_http_1_0_caller_gets_an_answer_that_it_understands() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let app = RawApp::saying(chunked).await;
    let sidecar = in_front_of(app.address, "").await;
    let answer = exchange(
        sidecar.outbound(),
        "GET / HTTP/1.0\r\nhost: billing\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    assert!(
        answer.ends_with("\r\n\r\nhello") && !answer.contains("chunked"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_head_request_keeps_the_length_and_has_no_body() {
    let app = RawApp::saying("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n").await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    for _ in 0..2 {
        caller
            .send("HEAD / HTTP/1.1\r\nhost: billing\r\n\r\n")
            .await;
        let head = caller.head().await;
        assert_eq!(
            (status(&head), field(&head, "content-length")),
            (200, Some("1234"))
        );
    }
    assert_eq!(app.connections(), 1);
}

#[tokio::test]
async fn statuses_without_a_body_leave_the_connection_in_order() {
    for code in [204, 304] {
        let app = RawApp::saying(format!("HTTP/1.1 {code} X\r\netag: \"a\"\r\n\r\n")).await;
        let sidecar = in_front_of(app.address, "").await;
        let mut caller = Wire::connect(sidecar.outbound()).await;
        for _ in 0..2 {
            caller.send("GET / HTTP/1.1\r\nhost: billing\r\n\r\n").await;
            let head = caller.head().await;
            assert_eq!((status(&head), field(&head, "etag")), (code, Some("\"a\"")));
            assert_eq!(field(&head, "transfer-encoding"), None);
        }
        assert_eq!(app.connections(), 1);
    }
}

#[tokio::test]
async fn a_name_is_looked_up() {
    let app = App::agreeable().await;
    let sidecar = forwarding(&[format!("localhost:{}", app.address.port())], "").await;
    for _ in 0..5 {
        assert_eq!(
            post("billing", "/")
                .body("x")
                .send(sidecar.outbound())
                .await
                .status,
            200
        );
    }
    app.verify(5);
}

#[tokio::test]
async fn a_name_that_does_not_resolve_stops_neither_the_start_nor_the_caller() {
    let sidecar = forwarding(&["nowhere.invalid:80".to_owned()], ", timeout: 20s").await;
    let started = tokio::time::Instant::now();
    let reply = get("billing", "/").send(sidecar.outbound()).await;
    assert_eq!(
        (reply.status.as_u16(), reply.json()["type"].as_str()),
        (503, Some("urn:wayside:problem:destination-unresolved"))
    );
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(
        reply.header("proxy-status"),
        Some("wayside-orders; error=dns_error; details=\"destination-unresolved\"")
    );
    assert!(reply.header("retry-after").is_some());
}

#[tokio::test]
async fn a_name_that_does_not_resolve_does_not_spoil_the_addresses_beside_it() {
    let app = App::agreeable().await;
    let sidecar = forwarding(
        &["nowhere.invalid:80".to_owned(), app.address.to_string()],
        "",
    )
    .await;
    assert_eq!(
        get("billing", "/").send(sidecar.outbound()).await.status,
        200
    );
    assert_eq!(
        sidecar.metric("wayside_addresses", &["service=\"billing\""]),
        1.0
    );
}
