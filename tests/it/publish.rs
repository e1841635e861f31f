//! The asynchronous pattern's sending side: what a 202 means, and what lies in the topic after it.

use std::collections::HashSet;
use std::time::Duration;

use crate::support::app::{Answer, App};
use crate::support::broker;
use crate::support::client::{Outgoing, Reply, get, post};
use crate::support::eventually::eventually;
use crate::support::sidecar::Sidecar;
use crate::support::topic::{self, Record};

/// A sidecar that publishes everything for `billing` to this topic by this rule.
pub(super) async fn publishing(topic: &str, rule: &str) -> Sidecar {
    publishing_to(&broker::address(), topic, rule).await
}

pub(super) async fn publishing_to(bootstrap: &str, topic: &str, rule: &str) -> Sidecar {
    Sidecar::start(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: all
      match: {{ host: billing }}
      publish: {{ topic: {topic}{rule} }}
kafka: {{ brokers: [\"{bootstrap}\"] }}
"
    ))
    .await
}

/// The records of a topic of the shared broker.
pub(super) async fn records(topic: &str, count: usize) -> Vec<Record> {
    let records = topic::read(&broker::address(), topic, count).await;
    assert_eq!(records.len(), count, "records in {topic}");
    records
}

pub(super) fn key(record: &Record) -> Option<&str> {
    record
        .key
        .as_deref()
        .map(|key| std::str::from_utf8(key).expect("the key is text"))
}

pub(super) fn refused(reply: &Reply, status: u16, word: &str) {
    assert_eq!(reply.status.as_u16(), status, "{:?}", reply.body);
    assert_eq!(
        reply.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(reply.json()["type"], format!("urn:wayside:problem:{word}"));
    assert!(
        reply
            .header("proxy-status")
            .is_some_and(|line| line.contains(word))
    );
}

/// Writes a last record and reads the topic: whatever else is in it came before.
pub(super) async fn only_the_last(sidecar: &Sidecar, topic: &str, last: Outgoing) -> Record {
    assert_eq!(last.send(sidecar.outbound()).await.status, 202);
    records(topic, 1).await.remove(0)
}

#[tokio::test]
async fn a_202_comes_with_an_id_and_a_timeline_that_says_where_the_record_lies() {
    let topic = broker::topic("invoices", 2);
    let sidecar = publishing(&topic, "").await;
    let reply = post("billing", "/invoices?dry=1")
        .json("{\"a\":1}")
        .send(sidecar.outbound())
        .await;
    assert_eq!(
        (reply.status.as_u16(), reply.header("wayside-pattern")),
        (202, Some("publish"))
    );
    let said = reply.json();
    let id = said["id"].as_str().expect("an id");
    assert_eq!(
        uuid::Uuid::parse_str(id).expect("a UUID").get_version_num(),
        7
    );
    assert_eq!(
        (&said["status"], &said["topic"]),
        (&"replicated".into(), &topic.as_str().into())
    );
    let location = reply.header("location").expect("a timeline's address");
    assert_eq!(location, format!("/.wayside/messages/{id}"));

    let timeline = get("whatever", location).send(sidecar.outbound()).await;
    assert_eq!(
        (timeline.status.as_u16(), timeline.header("content-type")),
        (200, Some("application/json"))
    );
    let timeline = timeline.json();
    assert_eq!(
        (&timeline["id"], &timeline["status"]),
        (&said["id"], &said["status"])
    );
    let events = timeline["events"].as_array().expect("a list of events");
    let what: Vec<_> = events
        .iter()
        .map(|event| event["what"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(what, ["accepted", "replicated"]);
    let place = (&events[1]["partition"], &events[1]["offset"]);
    assert_eq!(place, (&said["partition"], &said["offset"]));

    let record = records(&topic, 1).await.remove(0);
    assert_eq!(
        (Some(i64::from(record.partition)), said["offset"].as_i64()),
        (said["partition"].as_i64(), Some(0))
    );
    let counted = sidecar.metric(
        "wayside_published_total",
        &[&format!("topic=\"{topic}\""), "outcome=\"replicated\""],
    );
    assert_eq!(counted as u64, 1);
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn an_id_that_no_message_has_is_a_404_and_one_from_long_ago_a_410() {
    let sidecar = publishing(&broker::unique("none"), "").await;
    let now = uuid::Uuid::now_v7().to_string();
    let cases = [
        (now.as_str(), 404),
        ("0b6cf9ae-4f0c-4b6d-9d2b-5a1c1f6d8e55", 404),
        ("not-a-uuid", 404),
        ("", 404),
        ("018c0000-0000-7000-8000-000000000001", 410),
    ];
    for (id, status) in cases {
        let reply = get("billing", &format!("/.wayside/messages/{id}"))
            .send(sidecar.outbound())
            .await;
        assert_eq!(reply.status, status, "{id}");
        assert_eq!(
            reply.header("content-type"),
            Some("application/problem+json")
        );
    }
    let reply = post("billing", &format!("/.wayside/messages/{now}"))
        .send(sidecar.outbound())
        .await;
    assert_eq!(reply.status, 405, "below /.wayside/ nothing is published");
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413_and_nothing_of_it_is_sent() {
    let topic = broker::topic("limited", 1);
    let sidecar = publishing(&topic, ", max_body: 1KiB").await;
    refused(
        &post("billing", "/")
            .body(vec![b'x'; 1025])
            .send(sidecar.outbound())
            .await,
        413,
        "body-too-large",
    );
    let record = only_the_last(
        &sidecar,
        &topic,
        post("billing", "/").body(vec![b'y'; 1024]),
    )
    .await;
    assert_eq!(record.value, Some(vec![b'y'; 1024]));
}

#[tokio::test]
async fn any_client_can_read_the_record() {
    let topic = broker::topic("readable", 1);
    let sidecar = publishing(&topic, "").await;
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let body: Vec<u8> = (0..=255).collect();
    let reply = post("billing", "/invoices/7?dry=1&x=%41")
        .header("content-type", "application/octet-stream")
        .header("traceparent", PARENT)
        .header("tracestate", "rojo=00f067aa0ba902b7")
        .header("tracestate", "congo=t61rcWkgMzE")
        .header("x-call", "a")
        .header("x-call", "b")
        .body(body.clone())
        .send(sidecar.outbound())
        .await;
    assert_eq!(reply.status, 202);
    let record = records(&topic, 1).await.remove(0);
    assert_eq!(record.value, Some(body));
    assert_eq!(record.key, None);
    let is =
        |name: &str, value: &str| assert_eq!(record.header(name).as_deref(), Some(value), "{name}");
    is("ce_specversion", "1.0");
    is("ce_id", reply.json()["id"].as_str().expect("an id"));
    is("ce_source", "wayside://orders");
    is("ce_type", "wayside.call");
    is("content-type", "application/octet-stream");
    is("wayside-method", "POST");
    is("wayside-target", "/invoices/7?dry=1&x=%41");
    is("wayside-host", "billing");
    let time = record.header("ce_time").expect("a time");
    assert!(humantime::parse_rfc3339(&time).is_ok(), "{time}");
    let parent = record.header("traceparent").expect("a trace");
    assert_eq!(parent, PARENT, "the trace goes on, its flag too");
    is("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE");
    let calls: Vec<_> = record
        .headers
        .iter()
        .filter(|(name, _)| name == "http-x-call")
        .collect();
    assert_eq!(calls.len(), 2, "each line of a header travels");
    let names: HashSet<_> = record
        .headers
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert!(
        ["http-host", "http-content-length", "http-tracestate"]
            .iter()
            .all(|name| !names.contains(name)),
        "{names:?}"
    );
}

#[tokio::test]
async fn what_vendors_say_of_a_trace_does_not_outlive_it() {
    let topic = broker::topic("traced", 1);
    let sidecar = publishing(&topic, "").await;
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let long = format!("a={},b={}", "x".repeat(255), "x".repeat(256));
    for (parent, state) in [
        ("00-no-trace-01", "congo=t61rcWkgMzE"),
        (PARENT, "no member"),
        (PARENT, "a=b,a=c"),
        (PARENT, &long),
    ] {
        let call = post("billing", "/")
            .header("traceparent", parent)
            .header("tracestate", state)
            .body("x");
        assert_eq!(call.send(sidecar.outbound()).await.status, 202);
    }
    // No trace came, so whatever this is, it is not about the one that begins here.
    let call = post("billing", "/")
        .header("tracestate", "congo=stray")
        .body("x");
    assert_eq!(call.send(sidecar.outbound()).await.status, 202);
    for record in records(&topic, 5).await {
        assert!(record.header("traceparent").is_some());
        assert_eq!(record.header("tracestate"), None);
        assert_eq!(record.header("http-tracestate"), None);
    }
}

#[tokio::test]
async fn a_call_without_a_trace_begins_one() {
    let topic = broker::topic("traced", 1);
    let sidecar = publishing(&topic, "").await;
    let record = only_the_last(&sidecar, &topic, post("billing", "/").body("x")).await;
    let parent = record.header("traceparent").expect("a trace");
    let parts: Vec<usize> = parent.split('-').map(str::len).collect();
    assert_eq!(parts, [2, 32, 16, 2], "{parent}");
}

#[tokio::test]
async fn credentials_and_what_belongs_to_the_connection_do_not_travel() {
    let topic = broker::topic("credentials", 1);
    let sidecar = publishing(&topic, "").await;
    let call = post("billing", "/")
        .header("authorization", "Bearer secret")
        .header("cookie", "session=secret")
        .header("proxy-authorization", "Basic secret")
        .header("forwarded", "for=secret")
        .header("x-forwarded-for", "secret")
        .header("x-forwarded-client-cert", "secret")
        .header("wayside-message-id", "secret")
        .header("wayside-anything", "secret")
        .header("connection", "x-hop")
        .header("x-hop", "secret")
        .header("keep-alive", "timeout=secret")
        .header("te", "trailers")
        .header("x-stays", "yes")
        .body("x");
    let record = only_the_last(&sidecar, &topic, call).await;
    for (name, value) in &record.headers {
        assert!(
            !String::from_utf8_lossy(value).contains("secret"),
            "{name} travels"
        );
    }
    assert_eq!(record.header("http-te"), None);
    assert_eq!(record.header("http-connection"), None);
    assert_eq!(record.header("http-x-stays").as_deref(), Some("yes"));
}

#[tokio::test]
async fn a_route_may_keep_and_drop_headers_but_never_ours() {
    let topic = broker::topic("kept", 1);
    let sidecar = publishing(
        &topic,
        ", headers: { keep: [authorization], drop: [x-noise, user-agent] }",
    )
    .await;
    let call = post("billing", "/")
        .header("authorization", "Bearer t")
        .header("cookie", "c")
        .header("x-noise", "1")
        .header("user-agent", "app/1")
        .header("wayside-attempt", "9")
        .body("x");
    let record = only_the_last(&sidecar, &topic, call).await;
    let call_headers: Vec<_> = record
        .headers
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| name.starts_with("http-"))
        .collect();
    assert_eq!(call_headers, ["http-authorization"]);
    assert_eq!(record.header("wayside-attempt"), None);
}

#[tokio::test]
async fn an_empty_body_is_an_empty_value_and_no_tombstone() {
    let topic = broker::topic("empty", 1);
    let sidecar = publishing(&topic, "").await;
    let record = only_the_last(&sidecar, &topic, get("billing", "/ping")).await;
    assert_eq!(record.value, Some(Vec::new()));
    assert_eq!(record.header("wayside-method").as_deref(), Some("GET"));
}

#[tokio::test]
async fn a_large_body_that_the_route_allows_reaches_the_broker() {
    let topic = broker::topic("large", 1);
    let sidecar = publishing(&topic, ", max_body: 4MiB").await;
    let body = vec![b'z'; 3 << 20];
    let reply = post("billing", "/")
        .body(body.clone())
        .send(sidecar.outbound())
        .await;
    assert_eq!(reply.status, 202, "{:?}", reply.body);
    assert_eq!(records(&topic, 1).await[0].value, Some(body));
}

#[tokio::test]
async fn a_caller_that_breaks_off_publishes_nothing() {
    use tokio::io::AsyncWriteExt;
    let topic = broker::topic("torn", 1);
    let sidecar = publishing(&topic, "").await;
    let mut socket = tokio::net::TcpStream::connect(sidecar.outbound())
        .await
        .expect("the door is open");
    let half = b"POST / HTTP/1.1\r\nHost: billing\r\nContent-Length: 100\r\n\r\nhalf";
    socket.write_all(half).await.expect("the door reads");
    drop(socket);
    let mut socket = tokio::net::TcpStream::connect(sidecar.outbound())
        .await
        .expect("the door is open");
    let half =
        b"POST / HTTP/1.1\r\nHost: billing\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    socket.write_all(half).await.expect("the door reads");
    drop(socket);
    let refused = async || {
        let labels = [&*format!("topic=\"{topic}\""), "outcome=\"caller-gone\""];
        (sidecar.metric("wayside_published_total", &labels) as u64 == 2).then_some(())
    };
    eventually("both are refused", Duration::from_secs(5), refused).await;
    let record = only_the_last(&sidecar, &topic, post("billing", "/").body("whole")).await;
    assert_eq!(record.value.as_deref(), Some(&b"whole"[..]));
}

#[tokio::test]
async fn each_answer_says_which_pattern_carried_its_call() {
    let app = App::by(|_| Answer::status(418)).await;
    let topic = broker::topic("mixed", 1);
    let sidecar = Sidecar::start(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - {{ name: write, match: {{ host: billing, methods: [POST] }}, publish: {{ topic: {topic} }} }}
    - {{ name: read, match: {{ host: billing }}, forward: {{ to: billing }} }}
services: {{ billing: {{ addresses: [{}] }} }}
kafka: {{ brokers: [\"{}\"] }}
",
        app.address,
        broker::address()
    ))
    .await;
    let told = async |call: Outgoing| {
        let reply = call.send(sidecar.outbound()).await;
        (
            reply.status.as_u16(),
            reply.header("wayside-pattern").map(str::to_owned),
        )
    };
    assert_eq!(
        told(post("billing", "/")).await,
        (202, Some("publish".into()))
    );
    assert_eq!(
        told(get("billing", "/")).await,
        (418, Some("forward".into()))
    );
    assert_eq!(app.count(), 1);
}
