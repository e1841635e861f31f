//! Receipts: who may be told, who is believed, and the stream of results that they make.

use serde_json::{Value, json};

use super::answers::{SOON, World, ended, id, what};
use crate::support::app::{Answer, App};
use crate::support::broker::{self, Written};
use crate::support::client::{get, post};
use crate::support::eventually::eventually;
use crate::support::sidecar::Sidecar;
use crate::support::topic;

const KIND: [(&str, &str); 1] = [("ce_type", "wayside.receipts")];
/// An id from long ago.
const OLD: &str = "018c0000-0000-7000-8000-000000000001";

/// Receipts that nobody may believe; each is left out for a reason of its own.
fn write_hostile(world: &World, partition: i32, (sent, origin): (&str, &str)) {
    let write = |value: Option<&str>, headers: &[(&str, &str)]| {
        let record = Written {
            partition,
            value: value.map(str::as_bytes),
            headers,
            ..Written::default()
        };
        broker::write(&world.replies, &[record]);
    };
    let many = |receipts: Value| receipts.to_string();
    let dead = receipt(sent, origin, "dead");
    write(Some("no JSON"), &KIND);
    write(Some(&many(json!([dead]))), &[]);
    let unknown = receipt(sent, origin, "replicated");
    write(Some(&many(json!([unknown, 7, { "id": "x" }]))), &KIND);
    let elsewhere = receipt(sent, "orders/another", "dead");
    write(
        Some(&many(json!([elsewhere, receipt(OLD, origin, "dead")]))),
        &KIND,
    );
    write(None, &KIND);
    write(Some(&many(json!([receipt(sent, origin, "done")]))), &KIND);
}

fn receipt(id: &str, origin: &str, what: &str) -> Value {
    json!({ "id": id, "origin": origin, "group": "g", "at": "2999-01-01T00:00:00Z", "what": what, "status": 200 })
}

#[tokio::test]
async fn receipts_that_anyone_may_have_written_are_read_with_care() {
    let world = World::new();
    let orders = world.orders(", track: verdict").await;
    let sent = id(&post("billing", "/").send(orders.outbound()).await);
    let record = topic::read(&broker::address(), &world.calls, 1)
        .await
        .remove(0);
    let origin = record.header("wayside-origin").expect("an origin");
    let partition = record
        .header("wayside-reply-partition")
        .expect("it is known");
    let partition = partition.parse().expect("a number");
    write_hostile(&world, partition, (&sent, &origin));
    let document = ended(&orders, &sent).await;
    assert_eq!(
        (&document["status"], what(&document).len()),
        (&json!("done"), 3),
        "{document}"
    );
    let at = document["events"][2]["at"].as_str().expect("a time");
    assert!(
        !at.starts_with("2999"),
        "no clock is believed that is ahead: {at}"
    );
    let gone = get("billing", &format!("/.wayside/messages/{OLD}"))
        .send(orders.outbound())
        .await;
    assert_eq!(gone.status, 410);
    let read = |outcome: &str| {
        orders.metric(
            "wayside_receipts_read_total",
            &[&format!("outcome=\"{outcome}\"")],
        )
    };
    assert_eq!(
        (
            read("taken"),
            read("not-ours"),
            read("too-old"),
            read("malformed")
        ),
        (1.0, 1.0, 1.0, 6.0)
    );
    assert!(orders.stop().await);
}

#[tokio::test]
async fn replies_go_where_the_receiver_says_and_never_where_a_record_does() {
    let world = World::new();
    let app = App::agreeable().await;
    let special = broker::topic("special", 1);
    let billing = Sidecar::start(&format!(
        "
service: billing
app: {}
outbound: {{ listen: 127.0.0.1:0 }}
subscriptions:
  - {{ topic: {}, group: {} }}
services:
  orders: {{ addresses: [\"127.0.0.1:1\"], replies: {special} }}
kafka: {{ brokers: [\"{}\"], replies: \"{{service}}.{}\" }}
",
        app.address,
        world.calls,
        broker::unique("billing"),
        broker::address(),
        world.replies,
    ))
    .await;
    let record = |origin: &'static str, partition: &'static str| {
        vec![
            ("wayside-origin", origin),
            ("wayside-target", "/"),
            ("wayside-track", "verdict"),
            ("wayside-reply-partition", partition),
            ("wayside-reply-topic", "evil"),
        ]
    };
    let records = [
        record("orders/a", "77"),
        record("../evil/a", "0"),
        record("evil.topic/a", "0"),
        record("orders/a", "0"),
        record("others/a", "0"),
    ];
    for headers in &records {
        let written = Written {
            value: Some(b"{}"),
            headers,
            ..Written::default()
        };
        broker::write(&world.calls, &[written]);
    }
    let told = topic::read(&broker::address(), &special, 1).await;
    assert_eq!(
        told.len(),
        1,
        "and the one with a partition that is not there is given up"
    );
    let others = format!("others.{}", world.replies);
    assert_eq!(topic::read(&broker::address(), &others, 1).await.len(), 1);
    assert!(billing.stop().await);
    assert_eq!(app.count(), 5);
}

#[tokio::test]
async fn the_results_come_as_a_stream_that_can_be_taken_up_again() {
    let world = World::new();
    let app = App::by(|seen| Answer::ok().body(seen.body.clone())).await;
    let orders = world.orders(", track: verdict").await;
    let billing = world.billing(&app, &broker::unique("billing"), "").await;
    let mut stream = Stream::open(&orders, None).await;
    let mut ids = Vec::new();
    for body in ["a", "b", "c"] {
        ids.push(id(&post("billing", "/")
            .body(body)
            .send(orders.outbound())
            .await));
    }
    let events = stream.events(3).await;
    let told: Vec<_> = events
        .iter()
        .map(|event| event.data["id"].clone())
        .collect();
    assert_eq!(told, ids);
    assert_eq!(events[1].data["result"]["body"], "b");
    assert_eq!(
        (&events[1].data["status"], events[1].name.as_str()),
        (&json!("done"), "result")
    );
    drop(stream);
    let mut rest = Stream::open(&orders, Some(&events[0].id)).await;
    let again: Vec<_> = rest
        .events(2)
        .await
        .into_iter()
        .map(|event| event.data["id"].clone())
        .collect();
    assert_eq!(again, ids[1..]);
    let mut foreign = Stream::open(&orders, Some("another-process:9")).await;
    assert_eq!(foreign.events(3).await[0].data["id"], ids[0].as_str());
    let ahead = events[2]
        .id
        .rsplit_once(':')
        .expect("a number")
        .0
        .to_owned();
    let mut ahead = Stream::open(&orders, Some(&format!("{ahead}:18446744073709551615"))).await;
    let last = id(&post("billing", "/").body("d").send(orders.outbound()).await);
    assert_eq!(ahead.events(1).await[0].data["id"], last);
    assert!(billing.stop().await);
    assert!(orders.stop().await, "a stream ends with its sidecar");
}

#[tokio::test]
async fn more_streams_than_may_be_are_refused_and_one_that_ends_makes_room() {
    let world = World::new();
    let orders = world.orders("").await;
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(Stream::open(&orders, None).await);
    }
    let one_more = get("x", "/.wayside/messages?wait")
        .send(orders.outbound())
        .await;
    assert_eq!(
        (one_more.status.as_u16(), one_more.header("retry-after")),
        (503, Some("5"))
    );
    drop(streams.pop());
    eventually("there is room again", SOON, async || {
        (orders.metric("wayside_result_streams", &[]) < 64.0).then_some(())
    })
    .await;
    streams.push(Stream::open(&orders, None).await);
    assert!(orders.stop().await, "all of them end with their sidecar");
}

#[tokio::test]
async fn whoever_waits_when_the_sidecar_stops_gets_the_202() {
    let world = World::new();
    let orders = world.orders("").await;
    let door = orders.outbound();
    let call = post("billing", "/").header("prefer", "wait=60").send(door);
    let stopping = async {
        topic::read(&broker::address(), &world.calls, 1).await;
        assert!(orders.stop().await);
    };
    let (reply, ()) = tokio::join!(call, stopping);
    assert_eq!(reply.status, 202, "{:?}", reply.body);
}

#[tokio::test]
async fn a_caller_that_leaves_frees_its_place() {
    let world = World::new();
    let orders = world.orders("").await;
    let inside = || orders.metric("wayside_calls_in_flight", &["door=\"outbound\""]);
    let call = post("billing", "/")
        .header("prefer", "wait=60")
        .send(orders.outbound());
    let leaving = eventually("it waits", SOON, async || {
        let published = orders.metric("wayside_published_total", &["outcome=\"replicated\""]);
        (published > 0.0 && inside() > 0.0).then_some(())
    });
    tokio::select! {
        _ = call => panic!("nobody answers"),
        () = leaving => {}
    }
    eventually("its place is free", SOON, async || {
        (inside() == 0.0).then_some(())
    })
    .await;
    assert!(orders.stop().await);
}

/// A stream of server-sent events.
struct Stream {
    socket: tokio::io::BufReader<tokio::net::TcpStream>,
}

struct Told {
    id: String,
    name: String,
    data: Value,
}

impl Stream {
    async fn open(sidecar: &Sidecar, last: Option<&str>) -> Self {
        use tokio::io::AsyncWriteExt as _;
        let mut socket = tokio::net::TcpStream::connect(sidecar.outbound())
            .await
            .expect("the door is open");
        let last = last.map_or_else(String::new, |last| format!("Last-Event-ID: {last}\r\n"));
        let head = format!("GET /.wayside/messages?wait HTTP/1.1\r\nHost: x\r\n{last}\r\n");
        socket.write_all(head.as_bytes()).await.expect("it is read");
        let mut stream = Self {
            socket: tokio::io::BufReader::new(socket),
        };
        let mut head = String::new();
        loop {
            let line = stream.line().await;
            if line.trim().is_empty() {
                break;
            }
            head.push_str(&line);
        }
        assert!(
            head.contains("text/event-stream") && head.contains(" 200 "),
            "{head}"
        );
        stream
    }

    async fn line(&mut self) -> String {
        use tokio::io::AsyncBufReadExt as _;
        let mut line = String::new();
        let read = tokio::time::timeout(SOON, self.socket.read_line(&mut line));
        let read = read
            .await
            .expect("an event in time")
            .expect("the stream is whole");
        assert!(read > 0, "the stream has ended");
        line
    }

    /// The next events; comments and the chunks' sizes are passed over.
    async fn events(&mut self, count: usize) -> Vec<Told> {
        let mut told = Vec::new();
        let (mut id, mut name) = (String::new(), String::new());
        while told.len() < count {
            let line = self.line().await;
            match line.trim_end().split_once(": ") {
                Some(("id", value)) => id = value.to_owned(),
                Some(("event", value)) => name = value.to_owned(),
                Some(("data", value)) => told.push(Told {
                    id: std::mem::take(&mut id),
                    name: std::mem::take(&mut name),
                    data: serde_json::from_str(value).expect("JSON"),
                }),
                _ => {}
            }
        }
        told
    }
}
