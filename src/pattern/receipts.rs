//! The receiver's side of replies: what happens to a message is noted in our own timelines and, if its record asks for
//! it, told to the sidecar that published it.
//!
//! Receipts for one partition of a reply topic are gathered for 10 ms or 64 KiB, and sent at once if somebody waits. A
//! delivery never waits for any of it: what does not fit into the queue is dropped and counted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::Counter;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use uuid::Uuid;

use super::answers::{Answers, RECEIPTS};
use crate::config::model::Track;
use crate::headers::Headers;
use crate::kafka::producer::{Outgoing, Producer, PublishError};
use crate::kafka::record::{self, Decoded};
use crate::lifecycle;
use crate::messages::receipt::Receipt;
use crate::messages::{Answer, Event, Outcome, Timelines};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names;

/// Receipts that wait to be gathered.
const QUEUE_MAX: usize = 4096;
/// Bytes of receipts that are not with the broker yet.
const BYTES_MAX: usize = 8 << 20;
/// How long receipts are gathered.
const GATHER: Duration = Duration::from_millis(10);
/// Bytes of one record from which it is not added to.
const RECORD_BYTES: usize = 64 << 10;
/// Records on their way to the broker.
const RECORDS_MAX: usize = 64;
/// How long the broker may take for one.
const ACK: Duration = Duration::from_secs(30);
/// How long a record is offered to a broker that is away, and how often.
const OFFER: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(250);
/// How often the log says that receipts are lost.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Letters of a service's name.
const SERVICE_MAX: usize = 63;

/// The topic of a service's replies, as this sidecar's configuration says.
pub type TopicOf = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Notes and tells what happens to messages.
pub struct Receipts {
    timelines: Arc<Timelines>,
    /// Ours, for messages that come back to the sidecar that published them.
    answers: Option<Arc<Answers>>,
    topic_of: TopicOf,
    orders: mpsc::Sender<Order>,
    bytes: Arc<AtomicUsize>,
    full: Counter,
}

enum Order {
    Add(Note),
    /// Send all, and answer when it is over.
    Flush(oneshot::Sender<()>),
}

struct Note {
    topic: String,
    to: To,
    json: Vec<u8>,
    at_once: bool,
}

/// Which partition of a reply topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum To {
    /// The one that the record names; the broker's client checks that the topic has it.
    Partition(i32),
    /// The one that the origin will read: as its name hashes.
    Origin(String),
}

impl Receipts {
    /// Starts the task that sends.
    pub fn new(
        service: &str,
        (timelines, answers): (&Arc<Timelines>, Option<&Arc<Answers>>),
        producer: &Arc<Producer>,
        topic_of: TopicOf,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let (orders, queue) = mpsc::channel(QUEUE_MAX);
        let bytes = Arc::new(AtomicUsize::new(0));
        let lost = |reason| metrics.counter(&names::RECEIPTS_DROPPED, &[("reason", reason)]);
        let run = answers.map_or_else(|| Uuid::now_v7().to_string(), |own| own.run().to_owned());
        let sending = Arc::new(Sending {
            producer: Arc::clone(producer),
            run,
            source: format!("wayside://{service}"),
            next: AtomicU64::new(0),
            bytes: Arc::clone(&bytes),
            written: metrics.counter(&names::RECEIPTS_WRITTEN, &[]),
            lost: lost("broker"),
            said: Mutex::default(),
        });
        lifecycle::spawn(&Handle::current(), "receipts", gather(queue, sending));
        Arc::new(Self {
            timelines: Arc::clone(timelines),
            answers: answers.cloned(),
            topic_of,
            orders,
            bytes,
            full: lost("queue-full"),
        })
    }

    /// Notes what happened to a message at the delivery of this group, and tells its origin what its record asks for.
    /// `answer` is the app's, of the delivery that ended the message.
    pub fn note(&self, record: &Decoded, group: &str, event: Event, answer: Option<Answer>) {
        let Some((reply, (service, instance))) = record.reply.as_ref().zip(record.origin.as_ref())
        else {
            return self.timelines.record(record.id, event);
        };
        let origin = format!("{service}/{instance}");
        let home = self.answers.as_ref().filter(|own| own.origin() == origin);
        let mut event = event.aside(reply.from.as_deref().is_some_and(|from| from != group));
        let told = event;
        event.aside |= home.is_some_and(|own| !own.results().counts(record.id, group));
        self.timelines.record(record.id, event);
        let ends = event.what.status().is_final();
        let answer = answer.filter(|_| ends && !event.aside);
        if let Some(own) = home.filter(|_| ends && !event.aside) {
            own.ended(Outcome {
                id: record.id,
                what: event.what,
                at: event.at,
                group: group.to_owned(),
                status: event.status,
                answer: answer.clone(),
            });
        }
        if !ends && reply.track != Track::All {
            return;
        }
        let Some(topic) = self.topic(service) else {
            tracing::debug!(id = %record.id, service, trace = record.traceparent, "no topic for its replies");
            return;
        };
        let receipt = Receipt {
            id: record.id,
            origin: origin.clone(),
            group: group.to_owned(),
            event: told,
            answer,
        };
        self.add(Note {
            topic,
            to: reply.partition.map_or(To::Origin(origin), To::Partition),
            json: receipt.to_json(),
            at_once: ends && reply.by.is_some_and(|by| by > SystemTime::now()),
        });
    }

    /// Sends what waits, and returns when the broker has it or `deadline` has passed: true if nothing is left.
    pub async fn flush(&self, deadline: Instant) -> bool {
        let (done, flushed) = oneshot::channel();
        let flush =
            async { self.orders.send(Order::Flush(done)).await.is_ok() && flushed.await.is_ok() };
        timeout_at(deadline, flush).await.unwrap_or(false)
    }

    /// A record names a service and never a topic. What is no service's name makes none.
    fn topic(&self, service: &str) -> Option<String> {
        let word = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let named = service.len() <= SERVICE_MAX && service.bytes().all(word);
        named.then(|| (self.topic_of)(service)).flatten()
    }

    fn add(&self, note: Note) {
        let bytes = note.json.len();
        let waiting = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting + bytes > BYTES_MAX || self.orders.try_send(Order::Add(note)).is_err() {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.full.increment(1);
        }
    }
}

/// Receipts on their way into one record.
struct Batch {
    value: Vec<u8>,
    receipts: u64,
    bytes: usize,
}

type Batches = HashMap<(String, To), Batch>;

/// Gathers until the last [`Receipts`] is gone.
async fn gather(mut queue: mpsc::Receiver<Order>, sending: Arc<Sending>) {
    let mut batches = Batches::new();
    let mut due: Option<Instant> = None;
    let mut records = JoinSet::new();
    let mut asked: Vec<oneshot::Sender<()>> = Vec::new();
    loop {
        let room = records.len() < RECORDS_MAX;
        tokio::select! {
            biased;
            order = queue.recv(), if room => match order {
                Some(Order::Add(note)) => {
                    let at_once = note.at_once;
                    let place = add(&mut batches, note);
                    let full = batches.get(&place).is_some_and(|batch| batch.value.len() >= RECORD_BYTES);
                    if at_once || full {
                        let batch = batches.remove(&place);
                        batch.into_iter().for_each(|batch| sending.spawn(&mut records, place.clone(), batch));
                    } else {
                        due.get_or_insert_with(|| Instant::now() + GATHER);
                    }
                }
                Some(Order::Flush(done)) => {
                    batches.drain().for_each(|(place, batch)| sending.spawn(&mut records, place, batch));
                    asked.push(done);
                }
                None => break,
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && room => {
                due = None;
                batches.drain().for_each(|(place, batch)| sending.spawn(&mut records, place, batch));
            }
            Some(_) = records.join_next(), if !records.is_empty() => {}
        }
        if records.is_empty() && batches.is_empty() {
            // Who asked may have given up.
            asked.drain(..).for_each(|done| {
                done.send(()).ok();
            });
        }
    }
}

fn add(batches: &mut Batches, note: Note) -> (String, To) {
    let place = (note.topic, note.to);
    let batch = batches.entry(place.clone()).or_insert_with(|| Batch {
        value: Vec::with_capacity(note.json.len() + 2),
        receipts: 0,
        bytes: 0,
    });
    batch
        .value
        .push(if batch.receipts == 0 { b'[' } else { b',' });
    batch.value.extend_from_slice(&note.json);
    batch.receipts += 1;
    batch.bytes += note.json.len();
    place
}

/// What sending a record needs.
struct Sending {
    producer: Arc<Producer>,
    run: String,
    source: String,
    next: AtomicU64,
    bytes: Arc<AtomicUsize>,
    written: Counter,
    lost: Counter,
    /// When the log last told that receipts were lost.
    said: Mutex<Option<Instant>>,
}

impl Sending {
    fn spawn(self: &Arc<Self>, records: &mut JoinSet<()>, place: (String, To), batch: Batch) {
        let sending = Arc::clone(self);
        records.spawn(async move { sending.send(place, batch).await });
    }

    async fn send(&self, (topic, to): (String, To), mut batch: Batch) {
        batch.value.push(b']');
        let headers = self.headers();
        let (key, partition) = match &to {
            To::Partition(partition) => (None, Some(*partition)),
            To::Origin(origin) => (Some(origin.as_bytes()), None),
        };
        let record = Outgoing {
            topic: &topic,
            key,
            value: &batch.value,
            headers: &headers,
        };
        let until = Instant::now() + OFFER;
        loop {
            let sent = self
                .producer
                .publish_to(record, partition, Instant::now() + ACK);
            match sent.await {
                Ok(_) => self.written.increment(batch.receipts),
                // Nothing was sent, so nothing can be there twice.
                Err(PublishError::BrokerAway | PublishError::QueueFull)
                    if Instant::now() < until =>
                {
                    sleep(AGAIN).await;
                    continue;
                }
                Err(error) => {
                    self.lost.increment(batch.receipts);
                    self.say(&topic, &error);
                }
            }
            break;
        }
        self.bytes.fetch_sub(batch.bytes, Ordering::Relaxed);
    }

    fn headers(&self) -> Headers {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}:{number}", self.run);
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let headers = [
            (record::CE_SPECVERSION, "1.0"),
            (record::CE_ID, &id),
            (record::CE_SOURCE, &self.source),
            (record::CE_TYPE, RECEIPTS),
            (record::CE_TIME, &time),
            (record::CONTENT_TYPE, "application/json"),
        ];
        headers.into_iter().collect()
    }

    fn say(&self, topic: &str, error: &PublishError) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            *said = Some(Instant::now());
            tracing::warn!(topic, %error, "receipts are lost: their origin does not learn how messages ended");
        }
    }
}
