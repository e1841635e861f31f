//! The door for records: each lane gives one message at a time to the app, in order, until it has a final verdict.
//!
//! Nothing here commits: a lane is told which offsets are done, and the consumer's thread commits their contiguous
//! prefix.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use metrics::{Counter, Gauge, Histogram};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use super::head;
use crate::config::model::Subscription as Rule;
use crate::error::{Error, Kind};
use crate::kafka::lanes::{Lane, Received};
use crate::kafka::producer::Producer;
use crate::kafka::record::{self, Position};
use crate::lifecycle;
use crate::messages::{Answer, Event, Origin, Timelines, What};
use crate::pattern::dead_letter::{self, Obituary};
use crate::pattern::deliver::{Attempt, Attempted, Deliver, Delivery};
use crate::pattern::receipts::Receipts;
use crate::pattern::retry;
use crate::pattern::verdict::Verdict;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names;
use crate::telemetry::spans::{Open as Span, Processed, Spans};
use crate::telemetry::trace::Trace;

/// The shortest and longest wait for an app that is not reached.
const PROBE: crate::config::model::Backoff = crate::config::model::Backoff {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(5),
};

/// One topic on its way to the app.
pub struct Subscription {
    rule: Rule,
    deliver: Deliver,
    producer: Arc<Producer>,
    receipts: Arc<Receipts>,
    spans: Option<Arc<Spans>>,
    /// For the timelines of its messages.
    origin: Origin,
    /// Deliveries at the same time, over all lanes.
    places: Semaphore,
    meters: Meters,
}

struct Meters {
    seconds: Histogram,
    lanes: Gauge,
    unfinished: Gauge,
    done: Counter,
    retry: Counter,
    dead: Counter,
    dropped: Counter,
    not_delivered: Counter,
    panics: Counter,
    unread: Counter,
}

/// Counts one thing while it lasts.
struct Counted<'a>(&'a Gauge);

impl<'a> Counted<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// How a message ended.
enum Ending {
    /// With a final verdict: its offset may be committed.
    Final,
    /// The lane was taken away or the process stops: somebody will get it again.
    Interrupted,
}

/// Where a subscription leaves what it sees.
pub struct Records<'a> {
    /// What happened to each message, here and for its origin.
    pub receipts: Arc<Receipts>,
    /// Where the first of them lies.
    pub timelines: &'a Timelines,
    /// Records spans; `None` without `telemetry`.
    pub spans: Option<Arc<Spans>>,
    /// Counts.
    pub metrics: &'a Metrics,
}

impl Subscription {
    /// Builds a subscription's door.
    pub fn new(
        rule: &Rule,
        deliver: Deliver,
        producer: Arc<Producer>,
        records: Records<'_>,
    ) -> Arc<Self> {
        let Records {
            receipts,
            timelines,
            spans,
            metrics,
        } = records;
        let name = rule.topic.as_str();
        let labels = [("subscription", name)];
        let verdict = |word| {
            metrics.counter(
                &names::DELIVERIES,
                &[("subscription", name), ("verdict", word)],
            )
        };
        Arc::new(Self {
            places: Semaphore::new(rule.concurrency),
            meters: Meters {
                seconds: metrics.histogram(&names::DELIVERY_SECONDS, &labels),
                lanes: metrics.gauge(&names::LANES, &labels),
                unfinished: metrics.gauge(&names::UNFINISHED, &labels),
                done: verdict("done"),
                retry: verdict("retry"),
                dead: verdict("dead-letter"),
                dropped: verdict("drop"),
                not_delivered: verdict("not-delivered"),
                panics: metrics.counter(&names::PANICS, &[]),
                unread: metrics.counter(&names::HEADERS_UNREAD, &labels),
            },
            rule: rule.clone(),
            deliver,
            producer,
            receipts,
            origin: timelines.origin(None, name),
            spans,
        })
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.rule.topic
    }

    /// Delivers a lane's messages until the lane ends.
    pub async fn run(self: Arc<Self>, mut lane: Lane) {
        let _open = Counted::new(&self.meters.lanes);
        while let Some(received) = lane.next().await {
            match self.message(&lane, &received).await {
                Ending::Final => lane.done(received.offset),
                Ending::Interrupted => return,
            }
        }
    }

    /// Carries one message to its final verdict.
    async fn message(&self, lane: &Lane, received: &Received) -> Ending {
        let _unfinished = Counted::new(&self.meters.unfinished);
        let delivery = read(received);
        if received.unread > 0 {
            self.meters.unread.increment(received.unread as u64);
            tracing::warn!(
                id = %delivery.id, topic = self.rule.topic, headers = received.unread, trace = delivery.trace.id(),
                "headers of a record were left out: their names are not UTF-8"
            );
        }
        let first = SystemTime::now();
        let (mut made, mut missed) = (0_u32, 0_u32);
        loop {
            let Some(mut attempted) = self.attempt(lane, (received, &delivery), made + 1).await
            else {
                return Ending::Interrupted;
            };
            self.note(&delivery, &mut attempted, made + 1);
            let (why, wait) = match &attempted.verdict {
                Verdict::Done | Verdict::Drop => return Ending::Final,
                Verdict::NotDelivered => {
                    missed += 1;
                    (
                        None,
                        retry::wait(PROBE, missed, fastrand::f64()).max(PROBE.first),
                    )
                }
                Verdict::Retry(at_least) => {
                    (made, missed) = (made + 1, 0);
                    let used_up = (made >= self.rule.retry.attempts).then(|| reason(&attempted));
                    let wait = retry::wait(self.rule.retry.backoff, made, fastrand::f64());
                    (used_up, wait.max(at_least.unwrap_or_default()))
                }
                Verdict::DeadLetter(why) => {
                    made += 1;
                    // Without a place for dead letters: kept and tried for ever, with an alarm each time.
                    (Some(why.clone()), self.rule.retry.backoff.longest)
                }
            };
            if let (Some(why), Some(topic)) = (why, &self.rule.dead_letter) {
                let grave = Grave {
                    topic,
                    why,
                    status: attempted.status,
                    answer: attempted.answer,
                    made,
                    first,
                };
                return self.bury(lane, received, &delivery, grave).await;
            }
            if interrupted(lane, wait).await {
                return Ending::Interrupted;
            }
        }
    }

    /// One attempt; `None` if the lane ended before its turn came. Once begun it may finish.
    async fn attempt(
        &self,
        lane: &Lane,
        (received, delivery): (&Received, &Delivery),
        number: u32,
    ) -> Option<Attempted> {
        let _place = tokio::select! {
            biased;
            () = lane.revoked() => return None,
            // The semaphore is never closed, so there is always a place in the end.
            place = self.places.acquire() => place,
        };
        let begun = Instant::now();
        let span = match &self.spans {
            Some(spans) => self.span(spans, (received, delivery), number),
            None => None,
        };
        let attempt = Attempt {
            number,
            span: span.as_ref(),
        };
        // A defect costs an attempt. It must not end the lane: nobody would deliver its partition until a rebalance.
        let attempted = match lifecycle::catch(self.deliver.attempt(delivery, &attempt)).await {
            Ok(attempted) => attempted,
            Err(panic) => {
                self.meters.panics.increment(1);
                let error = Error::new(Kind::Internal, "a fault of this sidecar").because(panic);
                Attempted {
                    verdict: Verdict::Retry(None),
                    status: None,
                    answer: None,
                    error: Some(error),
                }
            }
        };
        self.meters.seconds.record(begun.elapsed());
        if let Some(span) = span {
            span.processed(&Processed {
                status: attempted.status,
                verdict: attempted.verdict.word(),
                error: attempted.error.as_ref().map(|error| error.kind().word()),
                well: matches!(attempted.verdict, Verdict::Done | Verdict::Drop),
            });
        }
        Some(attempted)
    }

    fn span(
        &self,
        spans: &Arc<Spans>,
        (received, delivery): (&Received, &Delivery),
        number: u32,
    ) -> Option<Span> {
        let place = (&*received.topic, received.partition, received.offset);
        let record = &delivery.record;
        let given = (&delivery.trace, record.traceparent.is_some());
        spans.processing(
            (given, record.tracestate.as_deref()),
            place,
            (&self.rule.group, delivery.id, number),
        )
    }

    /// Writes a message to the dead letters, however long the broker takes: until then it is not final.
    async fn bury(
        &self,
        lane: &Lane,
        received: &Received,
        delivery: &Delivery,
        grave: Grave<'_>,
    ) -> Ending {
        let topic = grave.topic;
        let obituary = Obituary {
            reason: &grave.why,
            status: grave.status,
            attempts: grave.made,
            first: grave.first,
            group: &self.rule.group,
        };
        for refused in 1.. {
            match dead_letter::send(&self.producer, topic, received, &obituary).await {
                Ok(_) => break,
                Err(error) => {
                    tracing::error!(
                        id = %delivery.id, topic = self.rule.topic, dead_letter = topic, %error, trace = delivery.trace.id(),
                        "a dead letter is not written yet; its lane waits"
                    );
                    if interrupted(
                        lane,
                        retry::wait(PROBE, refused, fastrand::f64()).max(PROBE.first),
                    )
                    .await
                    {
                        return Ending::Interrupted;
                    }
                }
            }
        }
        self.meters.dead.increment(1);
        let dead = Event {
            status: grave.status,
            ..Event::now(What::Dead)
        };
        let dead = dead.place(received.partition, received.offset);
        let (record, group) = (&delivery.record, self.rule.group.as_str());
        self.receipts.note(record, group, dead, grave.answer);
        tracing::warn!(
            id = %delivery.id, topic = self.rule.topic, dead_letter = topic, reason = grave.why, attempts = grave.made, trace = delivery.trace.id(),
            "message moved to the dead letters"
        );
        Ending::Final
    }

    /// Counts, logs, keeps and tells what an attempt came to.
    fn note(&self, delivery: &Delivery, attempted: &mut Attempted, attempt: u32) {
        let status = attempted.status;
        let note = |what, answer| {
            let event = Event {
                status,
                ..Event::now(what)
            };
            // The attempt that ends a message is told before; its end says no number.
            let event = match what {
                What::Delivered | What::NotSent => event.attempt(attempt),
                _ => event,
            };
            let (record, group) = (&delivery.record, self.rule.group.as_str());
            let event = event.origin(self.origin);
            self.receipts.note(record, group, event, answer);
        };
        let what = match &attempted.verdict {
            Verdict::NotDelivered => What::NotSent,
            _ => What::Delivered,
        };
        note(what, None);
        match &attempted.verdict {
            Verdict::Done => {
                self.meters.done.increment(1);
                note(What::Done, attempted.answer.take());
                tracing::debug!(id = %delivery.id, topic = self.rule.topic, attempt, trace = delivery.trace.id(), "message done");
                return;
            }
            Verdict::Drop => {
                self.meters.dropped.increment(1);
                note(What::Dropped, attempted.answer.take());
            }
            Verdict::Retry(_) => self.meters.retry.increment(1),
            Verdict::NotDelivered => self.meters.not_delivered.increment(1),
            // Counted when it is written.
            Verdict::DeadLetter(_) => {}
        }
        tracing::warn!(
            id = %delivery.id,
            topic = self.rule.topic,
            attempt,
            verdict = attempted.verdict.word(),
            status = attempted.status,
            error = attempted.error.as_ref().map(tracing::field::display),
            trace = delivery.trace.id(),
            "message not done"
        );
    }
}

/// What is told of a message that is given up.
struct Grave<'a> {
    topic: &'a str,
    why: String,
    status: Option<u16>,
    answer: Option<Answer>,
    made: u32,
    first: SystemTime,
}

fn reason(attempted: &Attempted) -> String {
    match (attempted.status, &attempted.error) {
        (Some(status), _) => format!("attempts used up; the app answered {status}"),
        (None, Some(error)) => format!(
            "attempts used up; {}: {}",
            error.kind().word(),
            error.detail()
        ),
        (None, None) => "attempts used up".to_owned(),
    }
}

/// Makes a delivery of a record.
fn read(received: &Received) -> Delivery {
    let position = Position {
        topic: &received.topic,
        partition: received.partition,
        offset: received.offset,
    };
    let record = record::decode(received.headers.iter(), position);
    let trace = record
        .traceparent
        .as_deref()
        .and_then(Trace::parse)
        .unwrap_or_default();
    if record.ignored > 0 {
        tracing::debug!(
            id = %record.id, topic = &*received.topic, headers = record.ignored, trace = trace.id(),
            "headers of a record were ignored"
        );
    }
    let dead = dead_letter::told(received);
    let target = record.target.as_deref().map(head::target).transpose();
    Delivery {
        id: record.id,
        target: target.map_err(|error| error.detail().to_owned()),
        record,
        body: received.value.clone(),
        dead,
        trace,
    }
}

/// Waits; `true` when the lane ended meanwhile.
async fn interrupted(lane: &Lane, wait: Duration) -> bool {
    tokio::select! {
        biased;
        () = lane.revoked() => true,
        () = sleep(wait) => false,
    }
}
