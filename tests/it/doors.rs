//! The doors themselves: what they take, what they refuse before any route is asked, and their limits.

use std::time::Duration;

use http::Method;
use metrics::Gauge;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tower::service_fn;
use wayside::body::Body;
use wayside::lifecycle::Drain;
use wayside::listen::http::{Door, HEAD_TIMEOUT, WRITE_TIMEOUT};
use wayside::service::{Call, Handler, Response};

use crate::forward::{forwarding, in_front_of, yaml};
use crate::support::app::{Answer, App};
use crate::support::client::{Outgoing, get, post};
use crate::support::eventually::eventually;
use crate::support::raw::{Wire, exchange, field, status};
use crate::support::sidecar::Sidecar;

const SOON: Duration = Duration::from_secs(5);

/// Sends one request's head to a fresh sidecar and says with which status it is answered; the app gives 200.
async fn status_of(head: &str) -> u16 {
    let app = App::agreeable().await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller.send(head).await;
    status(&caller.head().await)
}

#[tokio::test]
async fn the_outbound_door_serves_as_an_http_proxy() {
    let app = App::agreeable().await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    for host in ["billing", "other", "BILLING:80"] {
        caller
            .send(format!(
                "GET http://Billing:80/a?b=c HTTP/1.1\r\nhost: {host}\r\n\r\n"
            ))
            .await;
        assert_eq!(status(&caller.head().await), 200);
    }
    for seen in app.seen() {
        assert_eq!(
            (seen.target.as_str(), seen.header("host")),
            ("/a?b=c", Some("Billing:80"))
        );
    }
    app.verify(3);
    assert_eq!(
        status_of("GET http://billing HTTP/1.1\r\nhost: billing\r\n\r\n").await,
        200,
        "no path is `/`"
    );
    assert_eq!(
        status_of("GET http://user:pw@billing/ HTTP/1.1\r\nhost: billing\r\n\r\n").await,
        200
    );
    assert_eq!(
        status_of("GET https://billing/ HTTP/1.1\r\nhost: billing\r\n\r\n").await,
        400
    );
}

#[tokio::test]
async fn a_request_must_have_one_host() {
    assert_eq!(status_of("GET / HTTP/1.1\r\n\r\n").await, 400);
    assert_eq!(
        status_of("GET / HTTP/1.1\r\nhost: billing\r\nhost: billing\r\n\r\n").await,
        400
    );
    assert_eq!(
        status_of("GET / HTTP/1.1\r\nhost: billing\r\nhost: other\r\n\r\n").await,
        400
    );
    for host in [
        "",
        "a b",
        "a/b",
        "user@billing",
        "billing:x",
        "a,b",
        "billing:80:80",
        "[::1",
    ] {
        assert_eq!(
            status_of(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await,
            400,
            "{host:?}"
        );
    }
    assert_eq!(
        status_of("GET / HTTP/1.1\r\nhost: Billing:4140\r\n\r\n").await,
        200
    );
    assert_eq!(
        status_of("GET / HTTP/1.0\r\n\r\n").await,
        404,
        "no Host is no error in HTTP/1.0, but no route's either"
    );
}

#[tokio::test]
async fn a_target_over_the_limit_is_a_414() {
    let app = App::agreeable().await;
    let sidecar = in_front_of(app.address, "").await;
    let reply = get("billing", &format!("/{}", "x".repeat(8192)))
        .send(sidecar.outbound())
        .await;
    assert_eq!(reply.status, 414);
    assert_eq!(app.count(), 0);
}

#[tokio::test]
async fn a_tunnel_is_refused() {
    let app = App::agreeable().await;
    let sidecar = in_front_of(app.address, "").await;
    let request = "CONNECT billing:443 HTTP/1.1\r\nhost: billing:443\r\n\r\nGET / HTTP/1.1\r\nhost: billing\r\n\r\n";
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller.send(request).await;
    let head = caller.head().await;
    assert_eq!(status(&head), 501);
    assert!(
        field(&head, "proxy-status").is_some_and(|status| status.contains("http_request_denied")),
        "{head}"
    );
}

#[tokio::test]
async fn the_reserved_path_is_ours_for_every_host() {
    let app = App::agreeable().await;
    let yaml = yaml(
        &[app.address.to_string()],
        "",
        &format!("app: {}\ninbound: {{ listen: 127.0.0.1:0 }}", app.address),
    );
    let sidecar = Sidecar::start(&yaml).await;
    for door in [sidecar.outbound(), sidecar.inbound()] {
        for (host, path) in [
            ("billing", "/.wayside/x"),
            ("any", "/.wayside/claims/x"),
            ("billing", "/%2ewayside/messages/x"),
        ] {
            let reply = get(host, path).send(door).await;
            assert_eq!(reply.status, 404, "{path} at {door}");
            assert_eq!(
                reply.header("content-type"),
                Some("application/problem+json")
            );
        }
        let refused = post("billing", "/.wayside/claims/x").send(door).await;
        assert_eq!(
            (refused.status.as_u16(), refused.header("allow")),
            (405, Some("GET, HEAD"))
        );
    }
    app.verify(0);
}

#[tokio::test]
async fn the_inbound_door_gives_calls_to_the_app_once() {
    let app = App::script([Answer::status(503), Answer::cut(), Answer::ok()]).await;
    let yaml = format!(
        "service: orders\napp: {}\ninbound: {{ listen: 127.0.0.1:0 }}",
        app.address
    );
    let sidecar = Sidecar::start(&yaml).await;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(
            post("any", "/")
                .body("x")
                .send(sidecar.inbound())
                .await
                .status
                .as_u16(),
        );
    }
    assert_eq!(
        statuses,
        [503, 502, 200],
        "whoever called repeats; one hop that does is enough"
    );
    app.verify(3);
}

#[tokio::test]
async fn the_admin_door_answers_to_this_machine_only() {
    let sidecar = forwarding(&["127.0.0.1:1".to_owned()], "").await;
    let admin = sidecar.addresses().admin;
    for path in ["/config", "/ready", "/metrics", "/messages", "/drain"] {
        assert_eq!(
            get(&admin.to_string(), path).send(admin).await.status,
            200,
            "{path}"
        );
        assert_eq!(
            get("localhost", path).send(admin).await.status,
            200,
            "{path}"
        );
        assert_eq!(
            get("evil.example", path).send(admin).await.status,
            400,
            "{path}"
        );
        let page = get("127.0.0.1", path).header("origin", "http://evil.example");
        assert_eq!(page.send(admin).await.status, 400, "{path}");
    }
    assert_eq!(post("evil.example", "/drain").send(admin).await.status, 400);
    assert_eq!(
        get("127.0.0.1", "/ready").send(admin).await.status,
        200,
        "a refused drain drains nothing"
    );
    assert_eq!(
        status(&exchange(admin, "GET /config HTTP/1.0\r\n\r\n").await),
        400
    );
    let head = Outgoing::new(Method::HEAD, "127.0.0.1", "/ready")
        .send(admin)
        .await;
    assert_eq!(head.status, 200);
}

#[tokio::test]
async fn no_secret_is_shown_by_any_door() {
    let secrets = [
        "canary-password",
        "canary-key",
        "canary-jaas",
        "canary-set",
        "canary-match",
    ];
    let kafka = format!(
        "kafka:\n  brokers: [\"127.0.0.1:1\"]\n  properties: {{ sasl.password: {}, ssl.key.password: {}, sasl.username: {} }}\nprobe: {{ listen: 127.0.0.1:0 }}",
        secrets[0], secrets[1], secrets[2]
    );
    let set = format!(
        ", rewrite: {{ headers: {{ set: {{ x-by: {} }} }} }}",
        secrets[3]
    );
    let matched = format!("host: billing, headers: {{ x-api-key: {} }}", secrets[4]);
    let yaml = yaml(&["127.0.0.1:1".to_owned()], &set, &kafka).replace("host: billing", &matched);
    let sidecar = Sidecar::start(&yaml).await;
    let (admin, probe) = (
        sidecar.addresses().admin,
        sidecar.addresses().probe.expect("a probe door"),
    );
    let mut shown = String::new();
    for path in ["/config", "/metrics", "/messages", "/drain"] {
        shown.push_str(&String::from_utf8_lossy(
            &get("127.0.0.1", path).send(admin).await.body,
        ));
        shown.push_str(&String::from_utf8_lossy(
            &get("127.0.0.1", path).send(probe).await.body,
        ));
    }
    assert!(
        shown.contains("sasl.password") && shown.contains("x-by") && shown.contains("[redacted]"),
        "{shown}"
    );
    assert!(
        secrets.iter().all(|secret| !shown.contains(secret)),
        "{shown}"
    );
}

#[tokio::test]
async fn the_probe_door_only_reads() {
    let sidecar = Sidecar::start(&yaml(
        &["127.0.0.1:1".to_owned()],
        "",
        "probe: { listen: 127.0.0.1:0 }",
    ))
    .await;
    let probe = sidecar.addresses().probe.expect("a probe door");
    for path in ["/live", "/ready", "/metrics"] {
        assert_eq!(
            get("10.0.0.7:4192", path).send(probe).await.status,
            200,
            "{path}"
        );
        assert_eq!(
            post("10.0.0.7:4192", path).send(probe).await.status,
            405,
            "{path}"
        );
    }
    for path in ["/config", "/drain", "/messages", "/"] {
        assert_eq!(
            get("10.0.0.7:4192", path).send(probe).await.status,
            404,
            "{path}"
        );
        assert_eq!(
            post("10.0.0.7:4192", path).send(probe).await.status,
            405,
            "{path}"
        );
    }
    assert_eq!(
        get("x", "/ready").send(probe).await.status,
        200,
        "nothing was drained"
    );
}

#[tokio::test]
async fn more_calls_than_the_limit_are_refused_at_once_and_told_so() {
    let app = App::by(|seen| {
        if seen.target == "/slow" {
            Answer::hang()
        } else {
            Answer::ok()
        }
    })
    .await;
    let sidecar = Sidecar::start(&yaml(
        &[app.address.to_string()],
        "",
        "limits: { in_flight: 2 }",
    ))
    .await;
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut caller = Wire::connect(sidecar.outbound()).await;
        caller
            .send("GET /slow HTTP/1.1\r\nhost: billing\r\n\r\n")
            .await;
        slow.push(caller);
    }
    eventually("both places are taken", SOON, async || {
        (app.count() == 2).then_some(())
    })
    .await;
    let reply = get("billing", "/").send(sidecar.outbound()).await;
    assert_eq!(
        (reply.status.as_u16(), reply.json()["type"].as_str()),
        (503, Some("urn:wayside:problem:overloaded"))
    );
    assert_eq!(
        reply.header("proxy-status"),
        Some("wayside-orders; error=connection_limit_reached; details=\"overloaded\"")
    );
    assert_eq!(reply.header("retry-after"), Some("1"));
    drop(slow);
    eventually("the places are free", SOON, async || {
        (get("billing", "/").send(sidecar.outbound()).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn more_connections_than_the_limit_wait_for_their_turn() {
    let app = App::agreeable().await;
    let sidecar = Sidecar::start(&yaml(
        &[app.address.to_string()],
        "",
        "limits: { connections: 2 }",
    ))
    .await;
    let (first, second) = (
        Wire::connect(sidecar.outbound()).await,
        Wire::connect(sidecar.outbound()).await,
    );
    eventually("both are accepted", SOON, async || {
        (sidecar.metric("wayside_connections", &["door=\"outbound\""]) == 2.0).then_some(())
    })
    .await;
    let mut third = Wire::connect(sidecar.outbound()).await;
    third.send("GET / HTTP/1.1\r\nhost: billing\r\n\r\n").await;
    assert!(
        third.is_silent_for(Duration::from_millis(200)).await,
        "a third one is served"
    );
    drop(first);
    assert_eq!(status(&third.head().await), 200);
    drop(second);
}

#[tokio::test]
async fn a_head_over_the_limit_is_a_431() {
    let long = format!(
        "GET / HTTP/1.1\r\nhost: billing\r\nx: {}\r\n\r\n",
        "y".repeat(100 << 10)
    );
    assert_eq!(status_of(&long).await, 431);
    let many: String = (0..200).map(|at| format!("x-{at}: 1\r\n")).collect();
    assert_eq!(
        status_of(&format!("GET / HTTP/1.1\r\nhost: billing\r\n{many}\r\n")).await,
        431
    );
    let fits = format!(
        "GET / HTTP/1.1\r\nhost: billing\r\nx: {}\r\n\r\n",
        "y".repeat(50 << 10)
    );
    assert_eq!(status_of(&fits).await, 200);
    assert_eq!(
        status_of(&format!(
            "GET /{} HTTP/1.1\r\nhost: billing\r\n\r\n",
            "y".repeat(9000)
        ))
        .await,
        414
    );
}

#[tokio::test]
async fn what_is_not_http_is_closed_and_harms_nobody() {
    let app = App::agreeable().await;
    let sidecar = in_front_of(app.address, "").await;
    let hello = [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        &[7; 600],
    ]
    .concat();
    for garbage in [
        &hello[..],
        b"\0\0\0\0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: billing\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: billing\r\nx: \0\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost : billing\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: billing\r\n folded: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: billing\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff1\r\n",
    ] {
        let mut caller = Wire::connect(sidecar.outbound()).await;
        caller.send(garbage).await;
        caller.finish().await;
        let answer = String::from_utf8_lossy(&caller.rest().await).into_owned();
        assert!(answer.is_empty() || (400..=505).contains(&status(&answer)), "{garbage:?}: {answer}");
    }
    app.verify(0);
    assert_eq!(
        get("billing", "/").send(sidecar.outbound()).await.status,
        200
    );
    assert_eq!(sidecar.metric("wayside_panics_total", &[]), 0.0);
}

#[tokio::test]
async fn a_port_in_use_is_told_with_its_doors_name() {
    let taken = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("loopback has a free port");
    let address = taken.local_addr().expect("the socket is bound");
    let outbound =
        yaml(&["127.0.0.1:1".to_owned()], "", "").replace("127.0.0.1:0", &address.to_string());
    let admin = yaml(
        &["127.0.0.1:1".to_owned()],
        "",
        &format!("\nadmin: {{ listen: {address} }}"),
    );
    for (door, yaml) in [("outbound", outbound), ("admin", admin)] {
        let error = Sidecar::try_start(&yaml)
            .await
            .err()
            .expect("the port is taken");
        assert!(
            error.contains(door) && error.contains(&address.to_string()),
            "{error}"
        );
    }
}

/// Serves one connection by a door of its own, on this very runtime, and says how long that took.
async fn served(handler: Handler, mut caller: impl AsyncFnMut(&mut Wire)) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("loopback has a free port");
    let address = listener.local_addr().expect("the socket is bound");
    let mut wire = Wire::connect(address).await;
    caller(&mut wire).await;
    let (stream, _) = listener.accept().await.expect("a connection waits");
    let door = Door {
        tls: None,
        name: "outbound",
        handler,
        connections_max: 1,
        head_max: 64 << 10,
        head_timeout: HEAD_TIMEOUT,
        open: Gauge::noop(),
    };
    let started = Instant::now();
    let drain = Drain::new();
    door.serve(stream, drain.guard()).await;
    started.elapsed()
}

fn answering(bytes: usize) -> Handler {
    Handler::new(service_fn(move |_: Box<Call>| async move {
        Ok(Response::new(Body::full(vec![b'x'; bytes])))
    }))
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_sends_no_whole_head_is_closed() {
    for sent in [
        "",
        "GET / HTTP/1.1\r\nhost: bil",
        "GET / HTTP/1.1\r\nhost: billing\r\n\r\n",
    ] {
        let took = served(answering(2), async |wire| wire.send(sent).await).await;
        assert!(
            took >= HEAD_TIMEOUT && took < HEAD_TIMEOUT + Duration::from_secs(1),
            "{took:?} after {sent:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_read_its_answer_is_closed() {
    let request = "GET / HTTP/1.1\r\nhost: billing\r\n\r\n";
    let took = served(answering(64 << 20), async |wire| wire.send(request).await).await;
    assert!(
        took >= WRITE_TIMEOUT && took < WRITE_TIMEOUT + Duration::from_secs(1),
        "{took:?}"
    );
}
