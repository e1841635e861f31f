//! One message on its way to its final verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{OwnedSemaphorePermit, SemaphorePermit};
use tokio::time::{Instant, sleep};

use super::gate::{Change, Gate, Shut, Sign};
use super::part::Part;
use super::{PROBE, Subscription};
use crate::config::model::Backoff;
use crate::error::{Error, Kind};
use crate::kafka::intake::Received;
use crate::kafka::record::{self, Position};
use crate::lifecycle;
use crate::listen::head;
use crate::messages::{Answer, Event, What};
use crate::pattern::dead_letter::{self, Obituary, Written};
use crate::pattern::deliver::{Attempt, Attempted, Delivery};
use crate::pattern::retry;
use crate::pattern::verdict::Verdict;
use crate::telemetry::spans::{Open as Span, Processed, Spans};
use crate::telemetry::trace::Trace;

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// With a final verdict: its offset may be committed.
    Final,
    /// The partition was taken away or the process stops: somebody will get it again.
    Interrupted,
}

/// The partition was taken away.
struct Revoked;

/// What a message came to.
enum End {
    /// The app had it, or wanted it gone.
    Done,
    /// It is among the dead letters, and may be put back.
    Dead,
}

/// What is known of a message while it is tried.
struct Course<'a> {
    received: &'a Arc<Received>,
    delivery: &'a Delivery,
    first: SystemTime,
    /// Attempts.
    made: u32,
    /// Attempts that did not reach the app, one after another: they do not count.
    missed: u32,
    /// The first attempt's place among the deliveries.
    place: Option<OwnedSemaphorePermit>,
}

impl Course<'_> {
    fn trace(&self) -> &str {
        self.delivery.trace.id()
    }
}

impl Subscription {
    /// Carries one message to its final verdict. It may come with a place among the deliveries.
    pub(super) async fn message(
        &self,
        part: &Part,
        received: &Arc<Received>,
        place: Option<OwnedSemaphorePermit>,
    ) -> Ending {
        let delivery = read(received);
        if received.unread > 0 {
            self.meters.unread.increment(received.unread as u64);
            tracing::warn!(
                id = %delivery.id, topic = self.rule.topic, headers = received.unread, trace = delivery.trace.id(),
                "headers of a record were left out: their names are not UTF-8"
            );
        }
        if !self.is_for_us(part, received) {
            self.meters.skipped.increment(1);
            return Ending::Final;
        }
        if self.seen.as_ref().is_some_and(|seen| seen.has(delivery.id)) {
            self.meters.duplicate.increment(1);
            tracing::debug!(id = %delivery.id, topic = self.rule.topic, trace = delivery.trace.id(), "message was done before");
            return Ending::Final;
        }
        let mut course = Course {
            received,
            delivery: &delivery,
            first: SystemTime::now(),
            made: 0,
            missed: 0,
            place,
        };
        match self.carry(part, &mut course).await {
            Ok(End::Done) => {
                self.seen.iter().for_each(|seen| seen.add(delivery.id));
                Ending::Final
            }
            Ok(End::Dead) => Ending::Final,
            Err(Revoked) => {
                part.interrupted(received.offset);
                Ending::Interrupted
            }
        }
    }

    /// Whether this group is to have a record at all: not a note of the dead letters' own, nor a message that was put back
    /// for another group. One that was put back for this one ends the quarantine of its lane.
    fn is_for_us(&self, part: &Part, received: &Received) -> bool {
        if received.headers.get(dead_letter::REDRIVEN).is_some() {
            return false;
        }
        let Some(group) = received.headers.get(dead_letter::REDRIVEN_FOR) else {
            return true;
        };
        let ours = group == self.rule.group.as_bytes();
        if ours {
            part.lanes().release(received.key.as_ref());
        }
        ours
    }

    async fn carry(&self, part: &Part, course: &mut Course<'_>) -> Result<End, Revoked> {
        if part.lanes().is_quarantined(course.received.key.as_ref()) {
            drop(course.place.take());
            return self.bury(part, course, Grave::quarantined()).await;
        }
        // Held while this message finds out whether the app is back.
        let mut probe = None;
        loop {
            let mut attempted = self.attempt(part, course, &mut probe).await?;
            self.note(course.delivery, &mut attempted, course.made + 1);
            let shut = self.feel(course, &attempted);
            let (why, wait) = match &attempted.verdict {
                Verdict::Done | Verdict::Drop => return Ok(End::Done),
                Verdict::NotDelivered => (None, None),
                Verdict::NotHydrated(at_least) => {
                    course.missed += 1;
                    let wait = retry::wait(self.rule.retry.backoff, course.missed, fastrand::f64());
                    (None, Some(wait.max(at_least.unwrap_or_default())))
                }
                // It is not about this message: as if the app had not been reached.
                Verdict::DeadLetter(_) if shut == Some(Shut::Unauthorized) => (None, None),
                Verdict::Retry(at_least) => {
                    (course.made, course.missed) = (course.made + 1, 0);
                    let used_up = course.made >= self.rule.retry.attempts;
                    let wait = retry::wait(self.rule.retry.backoff, course.made, fastrand::f64());
                    let wait = wait.max(at_least.unwrap_or_default());
                    (used_up.then(|| used_up_by(&attempted)), Some(wait))
                }
                Verdict::DeadLetter(why) => {
                    course.made += 1;
                    // Without a place for dead letters: kept and tried for ever, with an alarm each time.
                    (Some(why.clone()), Some(self.rule.retry.backoff.longest))
                }
            };
            if let (Some(why), true) = (why, self.rule.dead_letter.is_some()) {
                return self.bury(part, course, Grave::of(why, attempted)).await;
            }
            match wait {
                Some(wait) => {
                    drop(probe.take());
                    if self.park(part, course, &attempted, wait).await? {
                        self.meters.window_full.increment(1);
                        let why =
                            "the window is full, and this message is the oldest in it".to_owned();
                        return self.bury(part, course, Grave::of(why, attempted)).await;
                    }
                }
                None => {
                    course.missed += 1;
                    if probe.is_some() {
                        wait_unless_revoked(part, probing(shut, course.missed)).await?;
                    }
                }
            }
        }
    }

    /// Waits for the next attempt; true if its partition has no room to wait for that.
    async fn park(
        &self,
        part: &Part,
        course: &Course<'_>,
        attempted: &Attempted,
        wait: Duration,
    ) -> Result<bool, Revoked> {
        let offset = course.received.offset;
        part.park(offset, course.made, Some(said(attempted)));
        let given_up = tokio::select! {
            biased;
            () = part.assigned.revoked() => return Err(Revoked),
            () = sleep(wait) => false,
            () = part.given_up(offset) => true,
        };
        part.park(offset, course.made, None);
        Ok(given_up)
    }

    /// Tells the gate what an attempt says of the app, and returns why nothing goes to it, if so.
    fn feel(&self, course: &Course<'_>, attempted: &Attempted) -> Option<Shut> {
        if matches!(attempted.verdict, Verdict::NotHydrated(_)) {
            // The app was not asked.
            return self.gate.shut();
        }
        let sign = match (&attempted.verdict, attempted.status) {
            (Verdict::NotDelivered, _) => Sign::NotReached,
            (Verdict::DeadLetter(_), Some(401 | 403)) => Sign::Refused,
            (_, Some(_)) => Sign::Answered,
            (_, None) => Sign::Reached,
        };
        let topic = self.rule.topic.as_str();
        match self.gate.told(sign, course.received.key.as_ref()) {
            Some(Change::Shut(why)) => {
                self.meters.shut.set(1.0);
                tracing::error!(
                    topic,
                    why = why.word(),
                    status = attempted.status,
                    "nothing is delivered until the app is well again"
                );
            }
            Some(Change::Opened(why)) => {
                self.meters.shut.set(0.0);
                tracing::info!(topic, why = why.word(), "deliveries go on");
            }
            None => {}
        }
        self.gate.shut()
    }

    /// One attempt, when its turn has come. Once the app is asked it may finish. For a partition that is being taken away nothing
    /// waits until the app is well.
    async fn attempt<'s>(
        &'s self,
        part: &Part,
        course: &mut Course<'_>,
        probe: &mut Option<SemaphorePermit<'s>>,
    ) -> Result<Attempted, Revoked> {
        let offset = course.received.offset;
        let goes = part.may_begin(offset) && self.gate.shut().is_none();
        let _place = match course.place.take().filter(|_| goes) {
            Some(place) => place,
            None => self.place(part, offset, probe).await?,
        };
        part.lanes().tries(offset);
        let (received, delivery, number) = (course.received, course.delivery, course.made + 1);
        let begun = Instant::now();
        let span = match &self.spans {
            Some(spans) => self.span(spans, (received, delivery), number),
            None => None,
        };
        let asked = AtomicBool::new(false);
        let attempt = Attempt {
            number,
            span: span.as_ref(),
            asked: &asked,
        };
        // A defect costs an attempt. It must not end the lane: nobody would deliver its partition until a rebalance.
        let attempting = lifecycle::catch(self.deliver.attempt(delivery, &attempt));
        let broken_off = async {
            part.lets_go().await;
            if asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let attempted = tokio::select! {
            biased;
            attempted = attempting => attempted,
            () = broken_off => return Err(Revoked),
        };
        let attempted = match attempted {
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
        Ok(attempted)
    }

    /// Waits for a place, and until the app is well.
    async fn place<'s>(
        &'s self,
        part: &Part,
        offset: i64,
        probe: &mut Option<SemaphorePermit<'s>>,
    ) -> Result<OwnedSemaphorePermit, Revoked> {
        let turn = async {
            if probe.is_none() {
                *probe = self.gate.pass().await;
            }
            Arc::clone(&self.places).acquire_owned().await
        };
        let barred = async {
            part.assigned.revoked().await;
            self.gate.shuts().await;
        };
        tokio::select! {
            biased;
            () = part.stops(offset) => Err(Revoked),
            () = barred => Err(Revoked),
            // The semaphore is never closed, so there is always a place in the end.
            place = turn => place.map_err(|_| Revoked),
        }
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
    async fn bury(&self, part: &Part, course: &Course<'_>, grave: Grave) -> Result<End, Revoked> {
        let Some(topic) = self.rule.dead_letter.as_deref() else {
            return Ok(End::Dead);
        };
        let (received, delivery) = (course.received, course.delivery);
        let obituary = Obituary {
            reason: &grave.why,
            status: grave.status,
            attempts: course.made,
            first: course.first,
            group: &self.rule.group,
        };
        self.write(part, course, topic, &obituary).await?;
        if self.rule.quarantine {
            part.lanes().quarantine(received.key.as_ref());
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
            id = %delivery.id, topic = self.rule.topic, dead_letter = topic, reason = grave.why, attempts = course.made, trace = course.trace(),
            "message moved to the dead letters"
        );
        Ok(End::Dead)
    }

    /// Writes a letter, with the whole body of a slim message, so that it is complete when the claim is gone. If that is
    /// not to be had now, or is too large, the letter has the reference.
    async fn write(
        &self,
        part: &Part,
        course: &Course<'_>,
        topic: &str,
        obituary: &Obituary<'_>,
    ) -> Result<(), Revoked> {
        let (received, delivery) = (course.received, course.delivery);
        let had = tokio::select! {
            biased;
            had = self.deliver.whole(delivery) => had,
            () = part.lets_go() => return Err(Revoked),
        };
        let whole = had.as_ref().ok().and_then(Option::as_ref);
        let mut refused = 0;
        let letter = loop {
            match dead_letter::send(&self.producer, topic, (received, whole), obituary).await {
                Ok(letter) => break letter,
                Err(error) => {
                    refused += 1;
                    tracing::error!(
                        id = %delivery.id, topic = self.rule.topic, dead_letter = topic, %error, trace = course.trace(),
                        "a dead letter is not written yet; its lane waits"
                    );
                    part.park(
                        received.offset,
                        course.made,
                        Some(format!("its dead letter is not written: {error}")),
                    );
                    let wait = retry::wait(PROBE, refused, fastrand::f64()).max(PROBE.first);
                    wait_unless_revoked(part, wait).await?;
                }
            }
        };
        match (letter, had) {
            // It is not slim.
            (_, Ok(None)) => {}
            (Written::Complete, _) => self.meters.inlined.increment(1),
            (Written::AsReceived, had) => {
                self.meters.referenced.increment(1);
                let error = had.err().map(tracing::field::display);
                tracing::warn!(
                    id = %delivery.id, topic = self.rule.topic, error, trace = delivery.trace.id(),
                    "a dead letter is slim: it is complete only as long as its claim is kept"
                );
            }
        }
        Ok(())
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
            Verdict::NotDelivered | Verdict::NotHydrated(_) => What::NotSent,
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
            Verdict::NotHydrated(_) => self.meters.not_hydrated.increment(1),
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
struct Grave {
    why: String,
    status: Option<u16>,
    answer: Option<Answer>,
}

impl Grave {
    fn of(why: String, attempted: Attempted) -> Self {
        Self {
            why,
            status: attempted.status,
            answer: attempted.answer,
        }
    }

    fn quarantined() -> Self {
        Self {
            why: "not tried: an earlier message of its lane is in the dead letters (quarantine)"
                .to_owned(),
            status: None,
            answer: None,
        }
    }
}

fn used_up_by(attempted: &Attempted) -> String {
    format!("attempts used up; {}", said(attempted))
}

/// What the app said to an attempt.
fn said(attempted: &Attempted) -> String {
    match (attempted.status, &attempted.error) {
        (Some(status), _) => format!("the app answered {status}"),
        (None, Some(error)) => format!("{}: {}", error.kind().word(), error.detail()),
        (None, None) => "no answer".to_owned(),
    }
}

/// The wait of the message that finds out whether the app is back.
fn probing(shut: Option<Shut>, missed: u32) -> Duration {
    let rhythm: Backoff = Gate::rhythm(shut);
    retry::wait(rhythm, missed, fastrand::f64()).max(rhythm.first)
}

async fn wait_unless_revoked(part: &Part, wait: Duration) -> Result<(), Revoked> {
    tokio::select! {
        biased;
        () = part.assigned.revoked() => Err(Revoked),
        () = sleep(wait) => Ok(()),
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
        topic: Arc::clone(&received.topic),
        target: target.map_err(|error| error.detail().to_owned()),
        record,
        body: received.value.clone(),
        dead,
        trace,
    }
}
