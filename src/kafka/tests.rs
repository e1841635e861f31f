//! The producer and the consumer against the embedded broker.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, Method};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::all::Positions;
use super::client::Bootstrap;
use super::consumer::{Consumer, Sharing, StopError};
use super::embedded::{Embedded, PARTITIONS};
use super::intake::Intake;
use super::producer::{Ack, Outgoing, Producer, PublishError};
use super::record;
use crate::config::model::{Cluster, Kafka, Secret};
use crate::headers::Headers;

/// Longer than anything here takes on a slow machine; nothing waits for it unless it fails.
const LONG: Duration = Duration::from_secs(20);

static NO_HEADERS: Headers = Headers::new();

fn kafka(properties: &[(&str, &str)]) -> Kafka {
    let secret = |(name, value): &(&str, &str)| ((*name).to_owned(), Secret::new(*value));
    let properties = properties.iter().map(secret).collect();
    Kafka {
        cluster: Cluster::Embedded,
        properties,
        queue_max: 32 << 20,
        replies: None,
    }
}

fn start(properties: &[(&str, &str)]) -> (Embedded, Producer) {
    let broker = Embedded::start().expect("a broker");
    let producer =
        Producer::new(&kafka(properties), &broker.bootstrap(), None).expect("a producer");
    (broker, producer)
}

fn outgoing<'a>(topic: &'a str, key: Option<&'a str>, value: &'a str) -> Outgoing<'a> {
    Outgoing {
        topic,
        key: key.map(str::as_bytes),
        value: value.as_bytes(),
        headers: &NO_HEADERS,
    }
}

async fn publish(producer: &Producer, record: Outgoing<'_>) -> Result<Ack, PublishError> {
    producer.publish(record, Instant::now() + LONG).await
}

/// Tries until `done` or until far too much time has passed.
async fn eventually<T>(mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let tries = async {
        loop {
            if let Some(done) = attempt().await {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, tries).await.expect("it happens in time")
}

struct Member {
    consumer: Consumer,
    intakes: mpsc::Receiver<Intake>,
}

impl Member {
    fn join(bootstrap: &Bootstrap, group: &str, topics: &[&str]) -> Self {
        let (sender, intakes) = mpsc::channel(64);
        let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        let on_intake = move |intake| sender.try_send(intake).expect("room for an intake");
        let consumer = Consumer::start(
            &kafka(&[]),
            bootstrap,
            (group, Sharing::Group, Positions::new()),
            topics,
            on_intake,
        )
        .expect("a consumer");
        Self { consumer, intakes }
    }

    async fn intake(&mut self) -> Intake {
        timeout(LONG, self.intakes.recv())
            .await
            .expect("an intake in time")
            .expect("a consumer")
    }
}

async fn take(intake: &mut Intake, count: usize) -> Vec<(i64, String)> {
    let mut out = Vec::new();
    for _ in 0..count {
        let record = timeout(LONG, intake.next())
            .await
            .expect("a record in time")
            .expect("a record");
        out.push((
            record.offset,
            String::from_utf8(record.value.to_vec()).expect("text"),
        ));
    }
    out
}

// === producer ===

#[tokio::test]
async fn a_record_is_acknowledged_where_javas_clients_would_put_it() {
    let (_broker, producer) = start(&[]);
    // Hashes from the tests of Apache Kafka's own `Utils.murmur2`.
    for (key, hash) in [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        (
            "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
            -58_897_971,
        ),
        ("abc", 479_470_107_i32),
    ] {
        let first = publish(&producer, outgoing("keys", Some(key), "1"))
            .await
            .expect("first");
        let second = publish(&producer, outgoing("keys", Some(key), "2"))
            .await
            .expect("second");
        assert_eq!(first.partition, (hash & 0x7fff_ffff) % PARTITIONS, "{key}");
        let next = Ack {
            offset: first.offset + 1,
            ..first
        };
        assert_eq!(second, next);
    }
    assert_eq!((producer.waiting(), producer.waiting_bytes()), (0, 0));
}

#[tokio::test]
async fn calls_end_at_once_while_the_broker_is_away_and_pass_when_it_is_back() {
    let (broker, producer) = start(&[]);
    publish(&producer, outgoing("away", None, "before"))
        .await
        .expect("the broker is there");
    broker.down().expect("down");
    eventually(async || producer.is_away().then_some(())).await;
    let asked = Instant::now();
    for _ in 0..100 {
        let refused = publish(&producer, outgoing("away", None, "during")).await;
        assert_eq!(refused, Err(PublishError::BrokerAway));
    }
    assert!(
        asked.elapsed() < Duration::from_secs(1),
        "{:?}",
        asked.elapsed()
    );
    broker.up().expect("up");
    eventually(async || {
        publish(&producer, outgoing("away", None, "after"))
            .await
            .ok()
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_was_never_there_is_known_to_be_away_soon() {
    let nowhere = Bootstrap::brokers(&["127.0.0.1:1".into()]);
    let producer = Producer::new(&kafka(&[]), &nowhere, None).expect("a producer needs no broker");
    let started = Instant::now();
    eventually(async || producer.is_away().then_some(())).await;
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(
        publish(&producer, outgoing("t", None, "")).await,
        Err(PublishError::BrokerAway)
    );
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_no_slot_behind() {
    let (_broker, producer) = start(&[("linger.ms", "300")]);
    publish(&producer, outgoing("gone", None, "a topic to publish to"))
        .await
        .expect("first");
    for round in 0..2 {
        for _ in 0..50 {
            let call = publish(&producer, outgoing("gone", Some("key"), "x"));
            assert!(
                timeout(Duration::ZERO, call).await.is_err(),
                "nothing is acknowledged that soon"
            );
        }
        assert_eq!(producer.waiting(), 50, "round {round}");
        assert!(producer.flush(Instant::now() + LONG).await);
        assert_eq!(
            (producer.waiting(), producer.waiting_bytes()),
            (0, 0),
            "round {round}"
        );
    }
    let ack = publish(&producer, outgoing("gone", Some("key"), "x"))
        .await
        .expect("a reused slot");
    assert!(ack.offset >= 100, "all that was sent arrived: {ack:?}");
}

#[tokio::test]
async fn a_full_queue_is_an_answer_and_not_a_wait() {
    let broker = Embedded::start().expect("a broker");
    let small = Kafka {
        queue_max: 64 << 10,
        ..kafka(&[("linger.ms", "2000")])
    };
    let producer = Arc::new(Producer::new(&small, &broker.bootstrap(), None).expect("a producer"));
    let value = "x".repeat(16 << 10);
    let mut waiting = Vec::new();
    let full = loop {
        let mut call =
            Box::pin(producer.publish(outgoing("full", None, &value), Instant::now() + LONG));
        match timeout(Duration::from_millis(1), &mut call).await {
            Err(_) => waiting.push(call),
            Ok(answer) => break answer,
        }
        assert!(waiting.len() < 10, "the queue takes 64 KiB");
    };
    assert_eq!(full, Err(PublishError::QueueFull));
    for call in waiting {
        call.await.expect("what was queued is acknowledged");
    }
}

#[tokio::test]
async fn what_the_broker_cannot_take_is_told_apart() {
    let properties = [
        ("allow.auto.create.topics", "false"),
        ("message.max.bytes", "2000000"),
    ];
    let (_broker, producer) = start(&properties);
    let asked = Instant::now();
    let unknown = publish(&producer, outgoing("nowhere", None, "x")).await;
    assert_eq!(unknown, Err(PublishError::TopicUnknown));
    assert!(
        asked.elapsed() < Duration::from_secs(8),
        "{:?}",
        asked.elapsed()
    );
    let large = "x".repeat(3 << 20);
    assert_eq!(
        publish(&producer, outgoing("t", None, &large)).await,
        Err(PublishError::TooLarge)
    );
}

// === consumer ===

#[tokio::test]
async fn a_message_comes_out_as_it_went_in() {
    let (broker, producer) = start(&[]);
    let message = record::Message {
        id: Uuid::now_v7(),
        source_service: "orders",
        instance: "orders-1",
        method: &Method::POST,
        target: "/invoices?x=%20",
        host: Some("billing"),
        headers: HeaderMap::from_iter([(http::header::ACCEPT, HeaderValue::from_static("a/b"))]),
        content_type: Some(&HeaderValue::from_static("application/json")),
        traceparent: None,
        tracestate: None,
        claim: None,
        reply: None,
        time: SystemTime::now(),
    };
    let mut headers = record::encode(&message);
    headers.push("x-other".to_owned(), b"\xff");
    let body = Outgoing {
        headers: &headers,
        ..outgoing("calls", Some("7"), "{}")
    };
    let ack = publish(&producer, body).await.expect("acknowledged");
    let empty = publish(&producer, outgoing("calls", Some("7"), ""))
        .await
        .expect("acknowledged");

    let mut member = Member::join(&broker.bootstrap(), "billing", &["calls"]);
    let mut intake = member.intake().await;
    while intake.partition != ack.partition {
        intake = member.intake().await;
    }
    let got = timeout(LONG, intake.next())
        .await
        .expect("in time")
        .expect("a record");
    assert_eq!((got.partition, got.offset), (ack.partition, ack.offset));
    assert_eq!(
        (got.key.as_deref(), &*got.value),
        (Some(&b"7"[..]), &b"{}"[..])
    );
    assert_eq!(got.headers, headers);
    let position = record::Position {
        topic: &got.topic,
        partition: got.partition,
        offset: got.offset,
    };
    let read = record::decode(got.headers.iter(), position);
    assert_eq!(
        (read.id, read.target, read.ignored),
        (message.id, Some(message.target.to_owned()), 0)
    );
    assert_eq!(read.headers, message.headers);
    assert_eq!(take(&mut intake, 1).await, [(empty.offset, String::new())]);
}

#[tokio::test]
async fn only_the_contiguous_prefix_is_committed_and_the_rest_comes_again() {
    let (broker, producer) = start(&[]);
    broker.create("one", 1).expect("a topic");
    for value in ["a", "b", "c", "d"] {
        publish(&producer, outgoing("one", None, value))
            .await
            .expect("acknowledged");
    }
    let texts = |records: Vec<(i64, String)>| {
        records
            .into_iter()
            .map(|(_, text)| text)
            .collect::<String>()
    };

    let mut first = Member::join(&broker.bootstrap(), "group", &["one"]);
    let mut intake = first.intake().await;
    let records = take(&mut intake, 4).await;
    for index in [0, 2, 3] {
        intake.assigned().done(records[index].0);
    }
    let at_work = first.consumer.snapshot();
    assert_eq!(
        (at_work.intakes, at_work.in_flight, at_work.done),
        (1, 1, 3)
    );
    assert!(at_work.oldest.is_some());
    assert_eq!(texts(records), "abcd", "in order");
    let stopped = first.consumer.stop(Duration::from_millis(600)).await;
    assert_eq!(stopped, Err(StopError::InFlight(1)));
    drop(intake);

    let mut second = Member::join(&broker.bootstrap(), "group", &["one"]);
    let mut intake = second.intake().await;
    let records = take(&mut intake, 3).await;
    records
        .iter()
        .for_each(|(offset, _)| intake.assigned().done(*offset));
    assert_eq!(texts(records), "bcd", "from the first without a verdict");
    assert_eq!(second.consumer.stop(LONG).await, Ok(()));
    assert!(
        timeout(LONG, intake.next())
            .await
            .expect("ends at once")
            .is_none()
    );

    publish(&producer, outgoing("one", None, "e"))
        .await
        .expect("acknowledged");
    let mut third = Member::join(&broker.bootstrap(), "group", &["one"]);
    assert_eq!(
        texts(take(&mut third.intake().await, 1).await),
        "e",
        "a clean stop repeats nothing"
    );
}

#[tokio::test]
async fn a_topic_that_appears_later_is_consumed_and_stalls_no_other() {
    let (broker, producer) = start(&[]);
    broker.create("there", 1).expect("a topic");
    let mut member = Member::join(&broker.bootstrap(), "group", &["there", "later"]);
    publish(&producer, outgoing("there", None, "x"))
        .await
        .expect("acknowledged");
    let mut intake = member.intake().await;
    assert_eq!(take(&mut intake, 1).await, [(0, "x".to_owned())]);
    assert_eq!(&*intake.topic, "there");
    broker.create("later", 1).expect("a topic");
    let appeared = Instant::now();
    publish(&producer, outgoing("later", None, "y"))
        .await
        .expect("acknowledged");
    let mut later = member.intake().await;
    assert_eq!(take(&mut later, 1).await, [(0, "y".to_owned())]);
    assert!(
        // The embedded broker takes 2.5 s for each change of a group, and now and then there are several.
        appeared.elapsed() < Duration::from_secs(12),
        "{:?}",
        appeared.elapsed()
    );
    let revoked = intake.assigned();
    let taken = timeout(Duration::ZERO, revoked.revoked()).await;
    assert!(taken.is_err(), "a cooperative group keeps what it has");
}

#[tokio::test]
async fn a_second_member_takes_over_behind_what_was_in_flight() {
    let (broker, producer) = start(&[]);
    broker.create("two", 2).expect("a topic");
    // Another process' embedded broker is only an address, and is recognised.
    let address = Bootstrap {
        embedded: false,
        ..broker.bootstrap()
    };
    let mut first = Member::join(&address, "group", &["two"]);
    let mut intakes = [first.intake().await, first.intake().await];
    // Murmur2 puts these on partitions 0 and 1.
    for (key, value) in [("21", "0a"), ("abc", "1a"), ("21", "0b"), ("abc", "1b")] {
        publish(&producer, outgoing("two", Some(key), value))
            .await
            .expect("acknowledged");
    }
    intakes.sort_by_key(|intake| intake.partition);
    for intake in &mut intakes {
        assert_eq!(take(intake, 1).await[0].0, 0);
    }
    let mut second = Member::join(&address, "group", &["two"]);
    let [zero, one] = [0, 1].map(|at| intakes[at].assigned());
    let revoked = timeout(LONG, async {
        tokio::select! { () = zero.revoked() => 0, () = one.revoked() => 1 }
    });
    let revoked = revoked
        .await
        .expect("one partition goes to the second member");
    // The verdict comes while the partition is being given up, and still counts.
    intakes[revoked].assigned().done(0);
    assert!(intakes[revoked].next().await.is_none());
    let mut intake = second.intake().await;
    assert_eq!(intake.partition as usize, revoked);
    assert!(intake.epoch > intakes[revoked].epoch);
    let mut came = take(&mut intake, 1).await;
    if came[0].0 == 0 {
        // Not with a real broker: the embedded one takes no commit once the second member asks for its share again.
        came = take(&mut intake, 1).await;
    }
    assert_eq!(came, [(1, format!("{revoked}b"))]);
}

#[tokio::test]
async fn a_full_lane_is_not_filled_further_and_loses_nothing() {
    let (broker, producer) = start(&[]);
    broker.create("many", 1).expect("a topic");
    let total = 500_usize;
    let calls = (0..total).map(|_| async {
        publish(&producer, outgoing("many", None, "x"))
            .await
            .expect("acknowledged");
    });
    for call in calls {
        call.await;
    }
    let mut member = Member::join(&broker.bootstrap(), "group", &["many"]);
    let mut intake = member.intake().await;
    let full = async || {
        let waiting = member.consumer.snapshot().waiting;
        (waiting == super::intake::INTAKE_RECORDS_MAX).then_some(())
    };
    eventually(full).await;
    let records = take(&mut intake, total).await;
    assert!(
        records
            .iter()
            .map(|(offset, _)| *offset)
            .eq(0..total as i64),
        "each once, in order"
    );
    assert_eq!(member.consumer.snapshot().waiting_bytes, 0);
}

#[tokio::test]
async fn a_consumer_stops_in_time_while_the_broker_is_away() {
    let (broker, producer) = start(&[]);
    broker.create("one", 1).expect("a topic");
    publish(&producer, outgoing("one", None, "a"))
        .await
        .expect("acknowledged");
    let mut member = Member::join(&broker.bootstrap(), "group", &["one"]);
    let mut intake = member.intake().await;
    let records = take(&mut intake, 1).await;
    broker.down().expect("down");
    intake.assigned().done(records[0].0);
    let asked = Instant::now();
    // Clean or not is the broker's to decide; the time is ours.
    let stopped = member.consumer.stop(Duration::from_secs(2)).await;
    assert_ne!(
        stopped,
        Err(StopError::InFlight(1)),
        "the verdict was in time"
    );
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "{:?}",
        asked.elapsed()
    );
    broker.up().expect("up");
}
