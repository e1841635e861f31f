//! The rules of a proxy's hop: what is removed, what is added, and where a message ends.
//!
//! The rules are numbered: 1 hop-by-hop headers, 2 what Connection names, 3 two framings, 4 framing after the strip,
//! 5 interim answers, 6 Expect, 7 early answers, 8 answers without a body, 9 trailers, 10 upgrades and CONNECT, 11 Host,
//! authority and path, 12 repeating, 13 reusing connections, 14 Via, loops and Max-Forwards, 15 statuses, 16 backpressure
//! and limits. `rules.rs` goes on where this file is full.
//!
//! Sources: RFC 9110 sections 6.4, 7.6, 7.8, 9.2.2, 10.1.1 and 15; RFC 9112 sections 3, 6, 7 and 9; RFC 9113 section 8.

use std::time::Duration;

use crate::forward::{in_front_of, yaml};
use crate::support::app::{Answer, App};
use crate::support::client::{get, post};
use crate::support::raw::{RawApp, Wire, exchange, field, fields, status};
use crate::support::sidecar::Sidecar;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Sends bytes as one call and closes; gives back what the app saw of it and what the caller did.
async fn through(request: &str, answer: &'static str) -> (String, String) {
    let (heads, mut seen) = tokio::sync::mpsc::channel(10);
    let app = RawApp::start(move |mut wire, _| {
        let heads = heads.clone();
        async move {
            while let Some(head) = wire.try_head().await {
                heads.send(head).await.expect("the test waits");
                wire.send(answer).await;
            }
        }
    })
    .await;
    let sidecar = in_front_of(app.address, ", retry: { attempts: 1 }").await;
    let request = request.replacen("\r\n", "\r\nconnection: close\r\n", 1);
    let back = exchange(sidecar.outbound(), request).await;
    (seen.try_recv().unwrap_or_default(), back)
}

#[tokio::test]
async fn rule_2_what_any_connection_line_names_ends_here_in_both_directions() {
    let (seen, back) = through(
        "GET / HTTP/1.1\r\nhost: billing\r\nconnection: X-One, close\r\nConnection: x-two,Authorization, Host\r\n\
         x-one: 1\r\nx-two: 2\r\nx-three: 3\r\nauthorization: Bearer t\r\n\r\n",
        "HTTP/1.1 200 OK\r\nconnection: x-a\r\nconnection: keep-alive, X-B\r\nx-a: 1\r\nx-b: 2\r\nx-c: 3\r\n\
         content-length: 2\r\n\r\nok",
    )
    .await;
    for gone in ["x-one", "x-two", "connection"] {
        assert_eq!(field(&seen, gone), None, "{gone} is passed on:\n{seen}");
    }
    assert_eq!(
        (field(&seen, "x-three"), field(&seen, "host")),
        (Some("3"), Some("billing"))
    );
    assert_eq!(
        field(&seen, "authorization"),
        Some("Bearer t"),
        "nobody's identity can be named away"
    );
    assert_eq!(
        (
            field(&back, "x-a"),
            field(&back, "x-b"),
            field(&back, "x-c")
        ),
        (None, None, Some("3"))
    );
}

#[tokio::test]
async fn rule_1_hop_by_hop_headers_end_here_without_being_named() {
    let (seen, back) = through(
        "GET / HTTP/1.1\r\nhost: billing\r\nkeep-alive: timeout=9\r\nproxy-connection: keep-alive\r\n\
         te: trailers, deflate\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\
         proxy-authorization: Basic eA==\r\n\r\n",
        "HTTP/1.1 200 OK\r\nkeep-alive: timeout=9\r\nproxy-authenticate: Basic\r\nupgrade: h2c\r\n\
         content-length: 2\r\n\r\nok",
    )
    .await;
    for gone in [
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "http2-settings",
        "proxy-authorization",
    ] {
        assert_eq!(field(&seen, gone), None, "{gone} is passed on:\n{seen}");
    }
    assert_eq!(
        (field(&seen, "te"), field(&seen, "connection")),
        (Some("trailers"), Some("te"))
    );
    for gone in ["keep-alive", "proxy-authenticate", "upgrade"] {
        assert_eq!(field(&back, gone), None, "{gone} is passed back:\n{back}");
    }
}

#[tokio::test]
async fn rule_2_a_connection_header_without_end_is_refused() {
    let names = (0..40)
        .map(|at| format!("x-{at}"))
        .collect::<Vec<_>>()
        .join(", ");
    let request = format!("GET / HTTP/1.1\r\nhost: billing\r\nconnection: {names}\r\n\r\n");
    let (seen, back) = through(&request, OK).await;
    assert_eq!((seen.as_str(), status(&back)), ("", 400));
}

#[tokio::test]
async fn rule_3_an_answer_with_two_framings_is_passed_on_with_the_one_that_was_read() {
    let (_, back) = through(
        "GET / HTTP/1.1\r\nhost: billing\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    )
    .await;
    assert_eq!(
        (status(&back), field(&back, "content-length")),
        (200, None),
        "{back}"
    );
    assert!(back.ends_with("5\r\nhello\r\n0\r\n\r\n"), "{back}");
}

#[tokio::test]
async fn rule_3_a_request_with_two_framings_smuggles_nothing() {
    let app = App::agreeable().await;
    let sidecar = in_front_of(app.address, "").await;
    let back = exchange(
        sidecar.outbound(),
        "POST / HTTP/1.1\r\nhost: billing\r\ncontent-length: 44\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n\
         GET /smuggled HTTP/1.1\r\nhost: billing\r\n\r\n",
    )
    .await;
    assert_eq!(back.matches("HTTP/1.1").count(), 1, "{back}");
    assert!(
        app.seen().iter().all(|seen| seen.target == "/"),
        "{:?}",
        app.seen()
    );
}

#[tokio::test]
async fn a_transfer_coding_that_is_not_plainly_chunked_is_refused() {
    for coding in [
        "gzip, chunked\r\n",
        "identity\r\n",
        "xchunked\r\n",
        "chunked\r\ntransfer-encoding: chunked\r\n",
        "chunked\r\ntransfer-encoding: identity\r\n",
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nhost: billing\r\ntransfer-encoding: {coding}\r\n0\r\n\r\n");
        let (seen, back) = through(&request, OK).await;
        assert_eq!((seen.as_str(), status(&back)), ("", 400), "{coding}");
    }
}

#[tokio::test]
async fn rule_3_lengths_that_contradict_one_another_are_refused() {
    for lengths in [
        "content-length: 1\r\ncontent-length: 2\r\n",
        "content-length: +1\r\n",
        "content-length: 1, 1\r\n",
    ] {
        let request = format!("POST / HTTP/1.1\r\nhost: billing\r\n{lengths}\r\nab");
        let (seen, back) = through(&request, OK).await;
        assert_eq!((seen.as_str(), status(&back)), ("", 400), "{lengths}");
    }
}

#[tokio::test]
async fn rule_4_a_get_with_a_chunked_body_arrives_with_it() {
    let app = App::agreeable().await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    for method in ["GET", "DELETE", "OPTIONS"] {
        let head = "host: billing\r\ntransfer-encoding: chunked\r\n\r\n";
        caller
            .send(format!(
                "{method} / HTTP/1.1\r\n{head}3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
            ))
            .await;
        assert_eq!(status(&caller.message().await.0), 200);
        caller
            .send(format!(
                "{method} / HTTP/1.1\r\nhost: billing\r\ncontent-length: 4\r\n\r\nfour"
            ))
            .await;
        assert_eq!(status(&caller.message().await.0), 200);
    }
    let bodies: Vec<_> = app.seen().iter().map(|seen| seen.body.clone()).collect();
    assert_eq!(bodies, ["onetwo", "four"].repeat(3));
}

#[tokio::test]
async fn rule_4_a_request_without_a_body_gains_none() {
    for method in ["GET", "HEAD", "DELETE", "OPTIONS"] {
        let (seen, _) = through(&format!("{method} / HTTP/1.1\r\nhost: billing\r\n\r\n"), OK).await;
        assert!(seen.starts_with(method), "{seen}");
        assert_eq!(
            (
                field(&seen, "transfer-encoding"),
                field(&seen, "content-length")
            ),
            (None, None),
            "{seen}"
        );
    }
}

#[tokio::test]
async fn rule_6_a_body_that_will_be_refused_is_not_asked_for() {
    let yaml = yaml(&["127.0.0.1:1".to_owned()], "", "kafka: { brokers: [\"127.0.0.1:1\"] }").replace(
        "  routes:",
        "  routes:\n    - name: small\n      match: { host: events }\n      publish: { topic: t, max_body: 1KiB }",
    );
    let sidecar = Sidecar::start(&yaml).await;
    for (host, code) in [("nobody", 404), ("events", 413)] {
        let mut caller = Wire::connect(sidecar.outbound()).await;
        let head = format!("host: {host}\r\nexpect: 100-continue\r\ncontent-length: 5000\r\n\r\n");
        caller.send(format!("POST / HTTP/1.1\r\n{head}")).await;
        assert_eq!(status(&caller.head().await), code, "and no 100 before it");
    }
}

#[tokio::test]
async fn rule_6_a_body_that_is_wanted_is_asked_for_and_the_expectation_ends_here() {
    let app = App::agreeable().await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller
        .send(
            "POST / HTTP/1.1\r\nhost: billing\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n",
        )
        .await;
    assert_eq!(status(&caller.head().await), 100);
    caller.send("four").await;
    assert_eq!(status(&caller.head().await), 200);
    let seen = &app.seen()[0];
    assert_eq!(
        (seen.header("expect"), &seen.body[..]),
        (None, &b"four"[..])
    );
}

#[tokio::test]
async fn rule_9_announced_trailers_are_passed_on() {
    let (seen, back) = through(
        "GET / HTTP/1.1\r\nhost: billing\r\nte: trailers\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
    )
    .await;
    assert_eq!(field(&seen, "te"), Some("trailers"));
    assert!(back.contains("\r\n0\r\nx-sum: 7\r\n\r\n"), "{back}");
    assert_eq!(
        field(&back, "x-sum"),
        None,
        "a trailer never becomes a header"
    );
}

#[tokio::test]
async fn rule_9_trailers_that_nobody_asked_for_or_announced_are_dropped_and_the_body_is_whole() {
    for (te, trailer) in [("", "trailer: x-sum\r\n"), ("te: trailers\r\n", "")] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\n{trailer}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n"
        );
        let app = RawApp::saying(answer).await;
        let sidecar = in_front_of(app.address, "").await;
        let request = format!("GET / HTTP/1.1\r\nhost: billing\r\nconnection: close\r\n{te}\r\n");
        let back = exchange(sidecar.outbound(), request).await;
        assert!(back.ends_with("2\r\nok\r\n0\r\n\r\n"), "{back}");
    }
}

#[tokio::test]
async fn rule_14_a_forwarded_call_says_by_whom() {
    let (seen, _) = through(
        "GET / HTTP/1.1\r\nhost: billing\r\nvia: 1.0 other\r\n\r\n",
        OK,
    )
    .await;
    let vias: Vec<_> = fields(&seen, "via").collect();
    assert_eq!(vias.len(), 2, "{seen}");
    assert!(
        vias[0] == "1.0 other" && vias[1].starts_with("1.1 orders-outbound-"),
        "{vias:?}"
    );
}

#[tokio::test]
async fn rule_14_a_call_that_comes_back_to_its_sidecar_is_a_508() {
    let door = App::nowhere();
    let yaml = yaml(&[door.to_string()], "", "")
        .replace("listen: 127.0.0.1:0", &format!("listen: {door}"));
    let sidecar = Sidecar::start(&yaml).await;
    let reply = get("billing", "/").send(sidecar.outbound()).await;
    assert_eq!(
        (reply.status.as_u16(), reply.json()["type"].as_str()),
        (508, Some("urn:wayside:problem:loop-detected"))
    );
    assert!(
        reply
            .header("proxy-status")
            .is_some_and(|status| status.contains("proxy_loop_detected"))
    );
}

#[tokio::test]
async fn rule_14_max_forwards_is_counted_down_and_ends_here_at_zero() {
    let request = |method: &str, left: u32| {
        format!("{method} * HTTP/1.1\r\nhost: billing\r\nmax-forwards: {left}\r\n\r\n")
    };
    let (seen, back) = through(&request("OPTIONS", 1), OK).await;
    assert!(seen.starts_with("OPTIONS * HTTP/1.1"), "{seen}");
    assert_eq!(
        (field(&seen, "max-forwards"), status(&back)),
        (Some("0"), 200)
    );
    let (seen, back) = through(&request("OPTIONS", 0), OK).await;
    assert_eq!(
        (seen.as_str(), status(&back), field(&back, "content-length")),
        ("", 200, Some("0"))
    );
    let (seen, back) = through(
        "TRACE / HTTP/1.1\r\nhost: billing\r\nmax-forwards: 1\r\n\r\n",
        OK,
    )
    .await;
    assert_eq!((seen.as_str(), status(&back)), ("", 501));
    let (seen, _) = through(
        "GET / HTTP/1.1\r\nhost: billing\r\nmax-forwards: 0\r\n\r\n",
        OK,
    )
    .await;
    assert_eq!(
        field(&seen, "max-forwards"),
        Some("0"),
        "it means nothing to a GET"
    );
}

#[tokio::test]
async fn repeated_fields_stay_apart_and_in_order() {
    let (seen, back) = through(
        "GET / HTTP/1.1\r\nhost: billing\r\ncookie: a=1\r\ncookie: b=2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nset-cookie: a=1, x\r\nset-cookie: b=2\r\nserver: app\r\ndate: then\r\ncontent-length: 2\r\n\r\nok",
    )
    .await;
    assert_eq!(fields(&seen, "cookie").collect::<Vec<_>>(), ["a=1", "b=2"]);
    assert_eq!(
        fields(&back, "set-cookie").collect::<Vec<_>>(),
        ["a=1, x", "b=2"]
    );
    assert_eq!(
        (field(&back, "server"), field(&back, "date")),
        (Some("app"), Some("then"))
    );
}

#[tokio::test]
async fn rule_13_each_side_closes_its_own_connection_only() {
    let answers = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
    let app = RawApp::start(move |mut wire, _| async move {
        wire.head().await;
        wire.send(answers).await;
    })
    .await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    for _ in 0..3 {
        caller.send("GET / HTTP/1.1\r\nhost: billing\r\n\r\n").await;
        let (head, body) = caller.message().await;
        assert_eq!(
            (status(&head), &body[..], field(&head, "connection")),
            (200, &b"ok"[..], None)
        );
    }
    assert_eq!(app.connections(), 3);
    let app = App::agreeable().await;
    let sidecar = in_front_of(app.address, "").await;
    for _ in 0..3 {
        let mut caller = Wire::connect(sidecar.outbound()).await;
        caller
            .send("GET / HTTP/1.1\r\nhost: billing\r\nconnection: close\r\n\r\n")
            .await;
        assert_eq!(status(&caller.head().await), 200);
        assert!(caller.ends_within(Duration::from_secs(5)).await);
    }
    assert_eq!(app.connections(), 1);
}

#[tokio::test]
async fn headers_of_ours_can_not_be_forged() {
    let app = App::by(|_| Answer::ok().header("wayside-pattern", "forged")).await;
    let sidecar = in_front_of(app.address, "").await;
    let call = post("billing", "/")
        .header("wayside-message-id", "forged")
        .header("wayside_attempt", "1")
        .body("x");
    let reply = call.send(sidecar.outbound()).await;
    assert_eq!(
        reply
            .headers
            .get_all("wayside-pattern")
            .iter()
            .collect::<Vec<_>>(),
        ["forward"]
    );
    let seen = &app.seen()[0];
    assert_eq!(
        (
            seen.header("wayside-message-id"),
            seen.header("wayside_attempt")
        ),
        (None, None)
    );
}

#[tokio::test]
async fn rule_11_the_path_that_was_matched_is_the_path_that_is_sent() {
    for (path, sent) in [
        ("/a%2fb?x=%2f%41", "/a%2Fb?x=%2f%41"),
        ("/%61%7E", "/a~"),
        ("//a//b/", "//a//b/"),
    ] {
        let (seen, _) = through(&format!("GET {path} HTTP/1.1\r\nhost: billing\r\n\r\n"), OK).await;
        assert_eq!(seen.split(' ').nth(1), Some(sent));
    }
    for path in ["/a/../b", "/a/%2e%2E/b", "/a%00b", "/a\\b", "/a%", "/./a"] {
        let (seen, back) =
            through(&format!("GET {path} HTTP/1.1\r\nhost: billing\r\n\r\n"), OK).await;
        assert_eq!((seen.as_str(), status(&back)), ("", 400), "{path}");
    }
}

#[tokio::test]
async fn an_answer_has_one_length_that_is_a_number_or_none() {
    let call = "GET / HTTP/1.1\r\nhost: billing\r\n\r\n";
    let head = "HEAD / HTTP/1.1\r\nhost: billing\r\n\r\n";
    let answer = |length: &str| format!("HTTP/1.1 200 OK\r\n{length}\r\n\r\nok");
    for (request, length, expected) in [
        (call, "content-length: 2, 2", (200, Some("2"))),
        (head, "content-length: 2, 2", (200, Some("2"))),
        (head, "content-length: 5\r\ncontent-length: 6", (502, None)),
        (head, "content-length: +5", (502, None)),
    ] {
        let (_, back) = through(request, answer(length).leak()).await;
        let length = field(&back, "content-length").filter(|_| status(&back) == 200);
        assert_eq!((status(&back), length), expected, "{back}");
    }
    let none = "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n";
    let (_, back) = through(head, none).await;
    assert_eq!((status(&back), field(&back, "content-length")), (204, None));
}

#[tokio::test]
async fn a_body_that_breaks_its_framing_is_a_bad_request_and_no_caller_that_is_gone() {
    let request = "POST / HTTP/1.1\r\nhost: billing\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n";
    let app = RawApp::start(|mut wire, _| async move {
        drop(wire.rest().await);
    })
    .await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller.send(request).await;
    let (head, body) = caller.message().await;
    let body = String::from_utf8_lossy(&body);
    assert_eq!(status(&head), 400, "{body}");
    assert!(body.contains("problem:bad-request"), "{body}");
}

#[tokio::test]
async fn a_target_that_is_no_path_is_refused() {
    for request in [
        "GET billing:80 HTTP/1.1\r\nhost: billing\r\n\r\n",
        "GET http://billing/ HTTP/1.1\r\n\r\n",
        "CONNECT billing HTTP/1.1\r\nhost: billing\r\n\r\n",
        "GET /a/..%2fb HTTP/1.1\r\nhost: billing\r\n\r\n",
    ] {
        let (seen, back) = through(request, OK).await;
        assert_eq!((seen.as_str(), status(&back)), ("", 400), "{request}");
    }
}
