//! The origin's side of replies: what a message asks its receivers to report, what they reported, and who waits for it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::{Counter, Gauge};
use tokio::time::timeout;
use uuid::Uuid;

use crate::config::model::{Config, Kafka, Replies as Topics, Track};
use crate::error::{Error, Kind};
use crate::kafka::client::Bootstrap;
use crate::kafka::record::Reply;
use crate::kafka::replies::{Incoming, Replies, Source};
use crate::messages::queued::Queued;
use crate::messages::receipt::{self, Receipt};
use crate::messages::{Outcome, Results, Timelines};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names;

/// The CloudEvents type of a record of receipts.
pub const RECEIPTS: &str = "wayside.receipts";

/// Everything that replies to this sidecar's messages need.
pub struct Answers {
    /// `service/instance`, as our records say.
    origin: String,
    /// Begins the id of each record of receipts that this process writes. What those tell of our own messages was noted
    /// as it happened.
    run: String,
    results: Arc<Results>,
    /// What was queued instead of forwarded, which waits for its verdict.
    queued: Arc<Queued>,
    timelines: Arc<Timelines>,
    source: Source,
    broker: (Kafka, Bootstrap),
    reader: OnceLock<Replies>,
    starting: Mutex<()>,
    meters: Meters,
}

struct Meters {
    taken: Counter,
    late: Counter,
    others: Counter,
    malformed: Counter,
    reading: Gauge,
}

impl Answers {
    /// Prepares them; nothing is read before [`Answers::open`].
    pub fn new(
        config: &Config,
        origin: String,
        (kafka, topics, bootstrap): (&Kafka, &Topics, &Bootstrap),
        timelines: &Arc<Timelines>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let read = |outcome| metrics.counter(&names::RECEIPTS_READ, &[("outcome", outcome)]);
        let keep = config.messages.keep;
        let results = Results::new(config.limits.results, keep);
        let kept = Arc::clone(&results);
        metrics.watch(&names::RESULT_BYTES, &[], move || kept.bytes() as f64);
        let queued = Queued::new(config.messages.max);
        let held = Arc::clone(&queued);
        metrics.watch(&names::FALLBACK_KEYS, &[], move || held.lanes() as f64);
        Arc::new(Self {
            run: Uuid::now_v7().to_string(),
            results,
            queued,
            timelines: Arc::clone(timelines),
            source: Source {
                topic: topics.topic(&config.service),
                origin: origin.clone(),
                keep,
            },
            origin,
            broker: (kafka.clone(), bootstrap.clone()),
            reader: OnceLock::new(),
            starting: Mutex::default(),
            meters: Meters {
                taken: read("taken"),
                late: read("too-old"),
                others: read("not-ours"),
                malformed: read("malformed"),
                reading: metrics.gauge(&names::REPLIES_READING, &[]),
            },
        })
    }

    /// Starts reading, once. Without a route that publishes nobody reads.
    ///
    /// # Errors
    /// The broker's client refuses its settings, or the system gives no thread.
    pub fn open(self: &Arc<Self>) -> Result<(), Error> {
        let _one_at_a_time = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.reader.get().is_some() {
            return Ok(());
        }
        let answers = Arc::downgrade(self);
        let (kafka, bootstrap) = &self.broker;
        let reading = self.meters.reading.clone();
        let reader = Replies::start(
            kafka,
            bootstrap,
            self.source.clone(),
            reading,
            move |record| {
                if let Some(answers) = answers.upgrade() {
                    answers.read(record);
                }
            },
        );
        let reader = reader.map_err(|cause| {
            Error::new(Kind::Internal, "the replies can not be read").because(cause)
        })?;
        self.reader.get_or_init(|| reader);
        Ok(())
    }

    /// What a message asks for whose route and caller want this much; `None` for nothing.
    pub fn ask(&self, track: Track, wait: Option<Duration>, from: Option<&str>) -> Option<Reply> {
        let track = match wait {
            Some(_) => track.max(Track::Verdict),
            None => track,
        };
        if track == Track::None {
            return None;
        }
        let wait = wait.filter(|wait| !wait.is_zero());
        Some(Reply {
            track,
            partition: self.partition(),
            by: wait.map(|wait| SystemTime::now() + wait),
            from: from.map(str::to_owned),
        })
    }

    /// Waits for a message's result. `None` when the time is up, the sidecar stops, or replies are not read anyway.
    pub async fn wait(&self, id: Uuid, wait: Duration) -> Option<Arc<Outcome>> {
        let failing = self.reader.get().is_none_or(Replies::is_failing);
        if wait.is_zero() || failing {
            return self.results.get(id);
        }
        timeout(wait, self.results.wait(id)).await.ok().flatten()
    }

    /// The results.
    pub fn results(&self) -> &Arc<Results> {
        &self.results
    }

    /// What was queued instead of forwarded.
    pub fn queued(&self) -> &Arc<Queued> {
        &self.queued
    }

    /// Notes how a message ended.
    pub fn ended(&self, outcome: Outcome) {
        self.queued.ended(outcome.id);
        self.results.put(outcome);
    }

    /// `service/instance` of this sidecar.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Begins the id of each record of receipts that this process writes.
    pub fn run(&self) -> &str {
        &self.run
    }

    fn partition(&self) -> Option<i32> {
        self.reader.get().and_then(Replies::partition)
    }

    /// Reads a record of the reply topic, whoever wrote it.
    fn read(&self, record: Incoming<'_>) {
        let own = record
            .id
            .and_then(|id| id.strip_prefix(self.run.as_str()))
            .is_some_and(|rest| rest.starts_with(':'));
        if own {
            return;
        }
        let list = match record.kind {
            Some(RECEIPTS) => receipt::list(record.value),
            _ => None,
        };
        let Some(list) = list else {
            self.meters.malformed.increment(1);
            tracing::debug!(
                bytes = record.value.len(),
                "a record of the reply topic is no list of receipts"
            );
            return;
        };
        let now = SystemTime::now();
        for json in list {
            match Receipt::read(json, now) {
                None => self.meters.malformed.increment(1),
                Some(receipt) if receipt.origin != self.origin => self.meters.others.increment(1),
                Some(receipt) => self.take(receipt),
            }
        }
    }

    fn take(&self, receipt: Receipt) {
        let Receipt {
            id,
            group,
            mut event,
            answer,
            ..
        } = receipt;
        event.aside |= !self.results.counts(id, &group);
        let ends = event.what.status().is_final() && !event.aside;
        if ends {
            // Also if it came too late for its timeline.
            self.queued.ended(id);
        }
        if !self.timelines.record_receipt(id, event) {
            self.meters.late.increment(1);
            return;
        }
        self.meters.taken.increment(1);
        if ends {
            self.results.put(Outcome {
                id,
                what: event.what,
                at: event.at,
                group,
                status: event.status,
                answer,
            });
        }
    }
}
