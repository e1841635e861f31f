//! One consumer per group for all its topics, on a thread of its own. A broadcast is a group that takes everything.
//!
//! The thread serves the group's events whatever the deliveries do, so a slow app never costs the assignment. Each
//! partition has a queue of its own, split off before the partition is assigned: later, its first records would lie in
//! the common queue. Nothing is ever paused; a partition whose intake is full is just not polled.
//!
//! An offset is stored when the contiguous prefix before it has ended, committed ten times a second by the native client,
//! and at once when a partition is taken away or the consumer stops.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::message::{BorrowedMessage, Message as _};
use tokio::sync::watch;
use tokio::time::Instant;

use super::all::{All, Positions};
use super::assignment::{Control, Group, Native, OnIntake, Partition, copy, finish};
use super::client::{self, Bootstrap, Reporter, SetupError};
use super::intake::Intake;
use super::properties::Redactor;
use crate::config::model::Kafka;

/// The longest sleep of the thread.
const TICK: Duration = Duration::from_millis(50);
/// How often offsets are stored.
const STORE_EVERY: Duration = Duration::from_millis(50);
/// Events of the group served in one turn.
const EVENTS: usize = 16;
/// What is kept of a stop's time for committing and leaving.
const LEAVE_RESERVE: Duration = Duration::from_secs(2);
/// How long the broker's identity is awaited before the group is joined anyway.
const IDENTITY_MAX: Duration = Duration::from_secs(10);
/// How the embedded broker's cluster id begins.
pub(super) const EMBEDDED_ID: &str = "mockCluster";

/// Who gets the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Each goes to one member of the group. Where it stands is committed.
    Group,
    /// Each goes to everybody who is there. Nothing is committed; see `all`.
    Broadcast,
}

/// A member of a group. Dropping it ends its thread in the background, without waiting for what is in flight.
#[derive(Debug)]
pub struct Consumer {
    control: Arc<Control>,
    ended: watch::Receiver<bool>,
    group: String,
}

/// Why a consumer did not stop cleanly. What is not committed is delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// Deliveries that did not end in time.
    #[error("{0} deliveries did not end in time")]
    InFlight(usize),
    /// The broker did not let go of us in time; the thread ends with the process.
    #[error("the group was not left in time")]
    Close,
}

/// What a consumer does at the moment, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Partitions assigned.
    pub intakes: usize,
    /// Records fetched and not handed out.
    pub waiting: usize,
    /// Their bytes.
    pub waiting_bytes: usize,
    /// Records handed out without a final verdict.
    pub in_flight: usize,
    /// For how long the oldest of them has held back its partition.
    pub oldest: Option<Duration>,
    /// Records fetched since the start.
    pub received: u64,
    /// Final verdicts since the start.
    pub done: u64,
    /// Verdicts that came after their partition had been taken away.
    pub stale: u64,
}

impl Consumer {
    /// Joins the group from a thread of its own, or takes all partitions; `on_intake` is called there for each partition
    /// that is assigned and must not block. It does not wait for the broker. A topic that does not exist yet is consumed once it does.
    ///
    /// # Errors
    /// A property is refused, there is no topic, or the system gives no thread.
    pub fn start(
        kafka: &Kafka,
        bootstrap: &Bootstrap,
        (group, sharing, from): (&str, Sharing, Positions),
        topics: Vec<String>,
        on_intake: impl Fn(Intake) + Send + 'static,
    ) -> Result<Self, SetupError> {
        if topics.is_empty() {
            return Err(SetupError::NoTopic(group.to_owned()));
        }
        let control = Arc::new(Control::default());
        let (end, ended) = watch::channel(false);
        let worker = Worker {
            control: Arc::clone(&control),
            on_intake: Arc::new(Mutex::new(Box::new(on_intake))),
            kafka: kafka.clone(),
            bootstrap: bootstrap.clone(),
            group: group.to_owned(),
            sharing,
            from,
            topics,
        };
        let native = worker.connect(bootstrap)?;
        std::thread::Builder::new()
            .name("wayside-consumer".into())
            .spawn(move || {
                worker.run(native);
                end.send_replace(true);
            })?;
        Ok(Self {
            control,
            ended,
            group: group.to_owned(),
        })
    }

    /// What it does at the moment. Cheap enough for every scrape.
    pub fn snapshot(&self) -> Snapshot {
        let counters = &self.control.counters;
        let mut out = Snapshot {
            received: counters.received.load(Ordering::Relaxed),
            done: counters.done.load(Ordering::Relaxed),
            stale: counters.stale.load(Ordering::Relaxed),
            ..Snapshot::default()
        };
        for partition in &*self.control.partitions() {
            let shared = &partition.feed.shared;
            let (records, bytes) = shared.waiting();
            out.intakes += 1;
            out.waiting += records;
            out.waiting_bytes += bytes;
            out.in_flight += shared.in_flight();
            out.oldest = out.oldest.max(shared.oldest());
        }
        out
    }

    /// Where a broadcast goes on that replaces this; there once this has stopped.
    pub fn positions(&self) -> Arc<OnceLock<Positions>> {
        Arc::clone(&self.control.positions)
    }

    /// Hands out no more, waits for what is in flight, commits and leaves the group, all within `within`.
    ///
    /// # Errors
    /// See [`StopError`]. The consumer is gone in any case.
    pub async fn stop(mut self, within: Duration) -> Result<(), StopError> {
        let deadline = Instant::now() + within;
        let reserve = LEAVE_RESERVE.min(within / 2);
        self.control.stop(deadline - reserve);
        let group = self.group.as_str();
        match tokio::time::timeout_at(deadline, self.ended.wait_for(|ended| *ended)).await {
            // An error means that the thread panicked; its panic was reported.
            Ok(Err(_)) | Err(_) => {
                tracing::warn!(group, "the group was not left in time");
                return Err(StopError::Close);
            }
            Ok(Ok(_)) => {}
        }
        match self.control.unfinished.get().copied() {
            Some(left) if left > 0 => {
                tracing::warn!(group, left, "deliveries did not end in time");
                Err(StopError::InFlight(left))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.control.stop(Instant::now());
    }
}

/// The thread.
struct Worker {
    control: Arc<Control>,
    on_intake: OnIntake,
    kafka: Kafka,
    bootstrap: Bootstrap,
    group: String,
    sharing: Sharing,
    from: Positions,
    topics: Vec<String>,
}

impl Worker {
    fn connect(&self, bootstrap: &Bootstrap) -> Result<Arc<Native>, SetupError> {
        let redactor = Redactor::of(&self.kafka.properties);
        let group = Group {
            control: Arc::clone(&self.control),
            on_intake: Arc::clone(&self.on_intake),
            reporter: Reporter::new(&self.group, redactor.clone()),
            native: OnceLock::new(),
        };
        let (kafka, name) = (&self.kafka, self.group.as_str());
        let config = match self.sharing {
            Sharing::Group => client::member_config(kafka, bootstrap, name)?,
            Sharing::Broadcast => {
                let mut config = client::consumer_config(kafka, bootstrap, name)?;
                config.set("enable.auto.commit", "false");
                config
            }
        };
        let mut native: Native = config
            .create_with_context(group)
            .map_err(|error| client::client_error(error, &redactor))?;
        let control = Arc::downgrade(&self.control);
        native.set_nonempty_callback(move || {
            if let Some(control) = control.upgrade() {
                control.events.store(true, Ordering::Release);
                control.waker.wake();
            }
        });
        let native = Arc::new(native);
        native
            .context()
            .native
            .get_or_init(|| Arc::downgrade(&native));
        Ok(native)
    }

    fn run(mut self, native: Arc<Native>) {
        self.control.waker.is_me();
        let native = self.fit(native);
        let shared = self.sharing == Sharing::Group;
        let mut all = All::new(&self.topics, std::mem::take(&mut self.from));
        if shared {
            self.subscribe(&native);
        }
        let mut stored = Instant::now();
        while !self.control.is_stopping() {
            if !shared {
                all.look(&native);
            }
            let busy = self.turn(&native);
            if shared && stored.elapsed() >= STORE_EVERY {
                stored = Instant::now();
                self.control
                    .partitions()
                    .iter_mut()
                    .for_each(|partition| partition.store(&native));
            }
            if !busy {
                std::thread::park_timeout(TICK);
                // Not only when woken, in case an event came behind another.
                self.control.events.store(true, Ordering::Release);
            }
        }
        self.leave(native, all);
    }

    fn subscribe(&self, native: &Native) {
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        if let Err(error) = native.subscribe(&topics) {
            tracing::error!(group = self.group, %error, "not subscribed");
        }
    }

    /// A broker that turns out to be another process' embedded one needs the settings of ours.
    fn fit(&self, native: Arc<Native>) -> Arc<Native> {
        if self.bootstrap.embedded {
            return native;
        }
        let deadline = Instant::now() + IDENTITY_MAX;
        while !self.control.is_stopping() && Instant::now() < deadline {
            // Serves the log while it waits.
            drop(native.poll(TICK));
            let Some(id) = native.client().fetch_cluster_id(TICK) else {
                continue;
            };
            if !id.starts_with(EMBEDDED_ID) {
                break;
            }
            tracing::debug!(group = self.group, "the broker is an embedded one");
            let bootstrap = Bootstrap {
                embedded: true,
                ..self.bootstrap.clone()
            };
            return self.connect(&bootstrap).unwrap_or(native);
        }
        native
    }

    /// Serves the group's events, then each partition once. True if there is more to do at once.
    fn turn(&self, native: &Arc<Native>) -> bool {
        // An empty answer may also mean that an event was served, so it is no reason to stop.
        let events = if self.control.events.swap(false, Ordering::AcqRel) {
            EVENTS
        } else {
            1
        };
        for _ in 0..events {
            match native.poll(Duration::ZERO) {
                None => {}
                Some(Ok(message)) => self.stray(native, &message),
                Some(Err(error)) => native
                    .context()
                    .reporter
                    .warn("consumer", &error.to_string()),
            }
        }
        let mut busy = false;
        for partition in &mut *self.control.partitions() {
            busy |= partition.fill(native.context());
        }
        busy
    }

    /// A record that came by the common queue. Splitting first makes that impossible as far as we know; to lose it would
    /// break a promise, so it goes to its intake all the same.
    fn stray(&self, native: &Native, message: &BorrowedMessage<'_>) {
        let mut partitions = self.control.partitions();
        let same = |part: &&mut Partition| {
            part.partition == message.partition() && *part.topic == *message.topic()
        };
        let Some(partition) = partitions.iter_mut().find(same) else {
            return;
        };
        native
            .context()
            .reporter
            .warn("consumer", "a record came by the common queue");
        let record = copy(message, &partition.topic);
        partition.stash.push_back(record);
        partition.ready.store(true, Ordering::Release);
    }

    /// Waits for what is in flight while it serves the group, commits, and leaves.
    fn leave(&self, native: Arc<Native>, all: All) {
        let until = self
            .control
            .settle_until
            .get()
            .copied()
            .unwrap_or_else(Instant::now);
        let in_flight = || {
            let partitions = self.control.partitions();
            partitions
                .iter()
                .for_each(|partition| partition.feed.revoke());
            partitions
                .iter()
                .map(|partition| partition.feed.shared.in_flight())
                .sum::<usize>()
        };
        let mut left = in_flight();
        while left > 0 && Instant::now() < until {
            drop(native.poll(Duration::from_millis(5)));
            left = in_flight();
        }
        self.control.unfinished.get_or_init(|| left);
        // The queues hold the client, which must be dropped here, last: that leaves the group, and it blocks.
        let gone = std::mem::take(&mut *self.control.partitions());
        self.control.positions.get_or_init(|| all.positions(&gone));
        let commits = self.sharing == Sharing::Group && !native.assignment_lost();
        finish(&native, &gone, commits);
        drop(gone);
        drop(native);
    }
}
