//! The door for records: of each key one message at a time goes to the app, in order, until it has a final verdict.
//!
//! Nothing here commits: an intake is told which offsets are done, and the consumer's thread commits their contiguous
//! prefix.
//!
//! * `lanes`: which messages of a partition may be delivered now; pure
//! * `part`: one assigned partition, as its deliveries share it
//! * `message`: one message on its way to its final verdict
//! * `gate`: whether anything goes to the app at all
//! * `seen`: the messages that ended lately
//! * `state`: what a subscription tells of itself

mod gate;
mod lanes;
mod message;
mod part;
mod seen;
mod state;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::sleep;

pub use self::gate::Shut;
pub use self::state::State;

use self::gate::Gate;
use self::message::Ending;
use self::part::Part;
use self::seen::Seen;
use crate::config::model::{Full, Subscription as Rule};
use crate::kafka::intake::{Intake, Received};
use crate::kafka::producer::Producer;
use crate::lifecycle;
use crate::messages::{Origin, Timelines};
use crate::pattern::deliver::Deliver;
use crate::pattern::receipts::Receipts;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names;
use crate::telemetry::spans::Spans;

/// The shortest and longest wait for a broker that takes no dead letter.
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
    /// Deliveries at the same time, over all partitions.
    places: Arc<Semaphore>,
    gate: Gate,
    seen: Option<Seen>,
    /// The partitions that are assigned.
    parts: Mutex<Vec<Arc<Part>>>,
    meters: Meters,
}

struct Meters {
    seconds: Histogram,
    partitions: Gauge,
    unfinished: Gauge,
    done: Counter,
    retry: Counter,
    dead: Counter,
    dropped: Counter,
    not_delivered: Counter,
    not_hydrated: Counter,
    inlined: Counter,
    referenced: Counter,
    duplicate: Counter,
    skipped: Counter,
    window_full: Counter,
    shut: Gauge,
    lag: Gauge,
    oldest: Gauge,
    busy: Gauge,
    parked: Gauge,
    quarantined: Gauge,
    panics: Counter,
    unread: Counter,
}

/// Counts one thing while it lasts.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// A message that may begin.
struct Waiting {
    received: Arc<Received>,
    unfinished: Counted,
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

/// What a partition has room for.
struct Room {
    /// It takes no more for now: as much is under way as may be at the same time, or the window is full.
    full: bool,
    /// It is the window, and what it waits for is a message that waits itself.
    held: bool,
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
            places: Arc::new(Semaphore::new(rule.concurrency)),
            gate: Gate::new(),
            seen: rule.dedupe.map(Seen::new),
            parts: Mutex::default(),
            meters: Meters {
                seconds: metrics.histogram(&names::DELIVERY_SECONDS, &labels),
                partitions: metrics.gauge(&names::PARTITIONS, &labels),
                unfinished: metrics.gauge(&names::UNFINISHED, &labels),
                done: verdict("done"),
                retry: verdict("retry"),
                dead: verdict("dead-letter"),
                dropped: verdict("drop"),
                not_delivered: verdict("not-delivered"),
                not_hydrated: verdict("not-hydrated"),
                inlined: metrics.counter(&names::DEAD_CLAIMS, &[("outcome", "inlined")]),
                referenced: metrics.counter(&names::DEAD_CLAIMS, &[("outcome", "referenced")]),
                duplicate: verdict("duplicate"),
                skipped: verdict("skipped"),
                window_full: metrics.counter(&names::WINDOW_FULL, &labels),
                shut: metrics.gauge(&names::SUBSCRIPTION_SHUT, &labels),
                lag: metrics.gauge(&names::LAG, &labels),
                oldest: metrics.gauge(&names::OLDEST, &labels),
                busy: metrics.gauge(&names::LANES_BUSY, &labels),
                parked: metrics.gauge(&names::LANES_PARKED, &labels),
                quarantined: metrics.gauge(&names::LANES_QUARANTINED, &labels),
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

    /// Delivers a partition's messages until it is taken away.
    pub async fn run(self: Arc<Self>, mut intake: Intake) {
        let _open = Counted::new(&self.meters.partitions);
        let part = self.open(&intake);
        // Those that may begin wait here for a place, not each in a task of its own.
        let (mut ready, mut running) = (VecDeque::new(), JoinSet::new());
        let (mut taking, mut over, mut held) = (true, false, false);
        while taking || !ready.is_empty() || !running.is_empty() {
            let room = self.room(&part);
            if room.held && !held && self.rule.window.full == Full::Wait {
                self.meters.window_full.increment(1);
            }
            held = room.held;
            tokio::select! {
                biased;
                Some(ended) = running.join_next() => {
                    ready.extend(part.ended(ended).map(|next| self.waiting(next)));
                }
                Ok(place) = Arc::clone(&self.places).acquire_owned(), if !ready.is_empty() => {
                    if let Some(next) = ready.pop_front() {
                        self.start(&part, next, place, &mut running);
                    }
                }
                received = intake.next(), if taking && !room.full => match received {
                    None => taking = false,
                    Some(received) => {
                        let begins = part.lanes().take(Arc::new(received));
                        ready.extend(begins.map(|begins| self.waiting(begins)));
                    }
                },
                () = part.assigned.revoked(), if taking && room.full => taking = false,
                () = part.parks(), if taking && room.full => {}
                () = part.assigned.over(), if !taking && !over => {
                    over = true;
                    part.end();
                }
            }
            if !taking {
                part.stop();
                ready.retain(|waiting: &Waiting| part.may_begin(waiting.received.offset));
            }
        }
        self.parts().retain(|known| !Arc::ptr_eq(known, &part));
    }

    fn waiting(&self, received: Arc<Received>) -> Waiting {
        Waiting {
            received,
            unfinished: Counted::new(&self.meters.unfinished),
        }
    }

    fn start(
        self: &Arc<Self>,
        part: &Arc<Part>,
        waiting: Waiting,
        place: OwnedSemaphorePermit,
        running: &mut JoinSet<(i64, Ending)>,
    ) {
        let (own, part) = (Arc::clone(self), Arc::clone(part));
        running.spawn(async move {
            let Waiting {
                received,
                unfinished: _until_the_end,
            } = waiting;
            let offset = received.offset;
            let mut place = Some(place);
            loop {
                // A defect must not end the partition: nobody would deliver it until a rebalance. Boxed, since a task's
                // future is moved nine times before it runs.
                let message = own.message(&part, &received, place.take());
                match Box::pin(lifecycle::catch(message)).await {
                    Ok(ending) => return (offset, ending),
                    Err(panic) => {
                        own.meters.panics.increment(1);
                        let topic = own.rule.topic.as_str();
                        tracing::error!(
                            topic,
                            offset,
                            panic,
                            "a delivery panicked: this is a defect; it begins anew"
                        );
                        sleep(PROBE.longest).await;
                    }
                }
            }
        });
    }

    fn open(&self, intake: &Intake) -> Arc<Part> {
        let part = Arc::new(Part::new(intake, self.rule.ordering));
        self.parts().push(Arc::clone(&part));
        part
    }

    /// Whether a partition takes more.
    fn room(&self, part: &Part) -> Room {
        let window = &self.rule.window;
        let open = part.assigned.open();
        let (busy, bytes, waits) = {
            let lanes = part.lanes();
            let oldest = open.oldest.and_then(|oldest| lanes.head(oldest));
            let waits = oldest.is_some_and(|head| head.parked.is_some());
            (lanes.busy(), lanes.bytes(), waits)
        };
        let share = window.bytes / self.parts().len().max(1);
        // One message may be larger than that.
        let full = open.records >= window.messages || (bytes >= share && open.unended > 0);
        if let (true, Full::DeadLetter, Some(oldest)) = (full, window.full, open.oldest) {
            part.give_up(oldest);
        }
        Room {
            full: full || busy >= self.rule.concurrency,
            held: full && waits,
        }
    }

    fn parts(&self) -> MutexGuard<'_, Vec<Arc<Part>>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
