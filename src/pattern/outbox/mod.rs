//! From the spool to the broker: what is written leaves at once, by the writer's hand, or waits on disk for its turn.
//!
//! In the usual case nothing is read back and no further thread has a part in it: the writing thread gives a message to
//! the broker's client, whose callback settles it. Where that is not possible (the broker is away and the client's queue
//! is full, a topic is refused, an earlier run left something) a topic falls behind, and a thread reads its messages
//! back and sends them when they may go. How much is out is bounded; how much waits is bounded by the spool.

mod lane;
mod lanes;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use metrics::{Counter, Gauge};
use tokio::time::Instant;

use self::lane::{Lane, Said, Settled};
use self::lanes::{Lanes, Task};
use crate::error::{Error, Kind};
use crate::kafka::producer::{self, Outgoing, Producer, PublishError, Reports};
use crate::kafka::record;
use crate::lifecycle::crash;
use crate::messages::{Event, Timelines, What};
use crate::spool::{Ack, Entry, Opened, Place, Reader, Sink, Spool, Written};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names;
use crate::telemetry::trace::Trace;

/// Bytes read back at a time.
const READ_BYTES: usize = 512 << 10;
/// How long a disk that cannot be read is left alone.
const UNREADABLE: Duration = Duration::from_secs(1);
/// The longest sleep of the thread.
const IDLE: Duration = Duration::from_secs(1);

/// The way from the spool to the broker.
pub struct Outbox {
    shared: Arc<Shared>,
    producer: Arc<Producer>,
    spool: Arc<Spool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the writing thread, the client's threads and the reading thread share.
pub struct Shared {
    lanes: Mutex<Lanes>,
    wake: Condvar,
    /// Bytes that may be out.
    room: usize,
    spool: OnceLock<Weak<Spool>>,
    producer: OnceLock<Weak<Producer>>,
    timelines: Arc<Timelines>,
    meters: Meters,
    stop: AtomicBool,
}

struct Meters {
    aside: Gauge,
    gone: Counter,
}

impl Shared {
    /// A way that leads nowhere yet, for the producer to answer to. `room` is how many bytes may be out.
    pub fn new(room: usize, timelines: Arc<Timelines>, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            lanes: Mutex::default(),
            wake: Condvar::new(),
            room,
            spool: OnceLock::new(),
            producer: OnceLock::new(),
            timelines,
            meters: Meters {
                aside: metrics.gauge(&names::SPOOL_ASIDE, &[]),
                gone: metrics.counter(&names::SPOOL_LOST, &[]),
            },
            stop: AtomicBool::new(false),
        })
    }
}

impl Outbox {
    /// Connects both ends. What an earlier run left is sent first.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        shared: Arc<Shared>,
        opened: Opened,
        producer: Arc<Producer>,
    ) -> std::io::Result<Self> {
        {
            let mut lanes = shared.lock();
            for topic in &opened.topics {
                let name = Arc::clone(&topic.name);
                lanes.add(Lane::new(topic.index, name, topic.next, &topic.done));
            }
        }
        shared.producer.set(Arc::downgrade(&producer)).ok();
        let sink: Arc<dyn Sink> = Arc::clone(&shared) as _;
        let spool = Arc::new(opened.start(sink)?);
        shared.spool.set(Arc::downgrade(&spool)).ok();
        let (at, log) = (Arc::clone(&shared), Arc::clone(&spool));
        let thread = std::thread::Builder::new()
            .name("wayside-outbox".into())
            .spawn(move || at.run(&log))?;
        Ok(Self {
            shared,
            producer,
            spool,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The client that it sends by.
    pub fn producer(&self) -> &Producer {
        &self.producer
    }

    /// Messages that are with the client.
    pub fn waiting(&self) -> usize {
        self.shared.lock().list.iter().map(Lane::out).sum()
    }

    /// The log.
    pub fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }

    /// Why a message of that size to this topic had better not be taken: the broker refuses the topic, and what is owed to
    /// it waits, or it found one of that size too large.
    ///
    /// # Errors
    /// That refusal.
    pub fn check(&self, topic: &str, bytes: usize) -> Result<(), Error> {
        let lanes = self.shared.lock();
        let lane = lanes.by_name.get(topic).and_then(|at| lanes.list.get(*at));
        match lane.and_then(|lane| lane.refusal(bytes, Instant::now())) {
            None => Ok(()),
            Some((Kind::RecordTooLarge, _)) => Err(PublishError::TooLarge.into()),
            Some((kind, wait)) => {
                let detail = "the broker refuses the topic; it is tried again";
                Err(Error::new(kind, detail).after(wait.max(Duration::from_secs(1))))
            }
        }
    }

    /// Waits until nothing is owed to the broker, at most until the deadline and only while it answers. True if nothing
    /// is left.
    pub async fn flush(&self, deadline: Instant) -> bool {
        loop {
            // A topic that is refused will not be empty in time.
            let (waiting, empty) = {
                let lanes = self.shared.lock();
                let mut left = lanes.list.iter().filter(|lane| !lane.is_empty()).peekable();
                let empty = left.peek().is_none();
                (left.any(|lane| !lane.is_refused()), empty)
            };
            if !waiting {
                return empty;
            }
            if self.producer.is_away() || Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the threads; what waits for the disk is written first. Blocks for as long as that takes.
    pub fn close(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.rouse();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the outbox's thread panicked");
        }
        self.spool.close();
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.close();
    }
}

/// What a topic's messages come from, and those that were read and could not leave yet.
struct Feed {
    topic: u16,
    reader: Reader,
    read: VecDeque<(u64, Entry)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rouse(&self) {
        // Under the lock, so that it cannot fall between the thread's look and its sleep.
        let lanes = self.lock();
        self.wake.notify_all();
        drop(lanes);
    }

    fn offer(&self, entry: &Entry, place: Place, tag: u64) {
        let offered = match self.producer.get().and_then(Weak::upgrade) {
            Some(producer) => producer.offer(outgoing(entry), tag),
            None => Err(PublishError::BrokerAway),
        };
        crash::point("spool-sent");
        match offered {
            Ok(()) => {}
            Err(
                error @ (PublishError::QueueFull | PublishError::BrokerAway | PublishError::Fatal),
            ) => {
                tracing::debug!(%error, "the client takes no record at the moment");
                let mut lanes = self.lock();
                let now = Instant::now();
                if let Some(at) = lanes.find(place.topic) {
                    lanes.change(at, |lane| lane.not_taken(place.seq, now));
                }
                self.wake.notify_all();
            }
            // Refused on the spot: as if the broker had.
            Err(error) => self.answer(tag, Err(error)),
        }
    }

    /// Reads back and sends what fell behind, until it is told to stop.
    fn run(&self, spool: &Spool) {
        let mut feeds: Vec<Feed> = Vec::new();
        let (mut turn, mut last) = (0, 0);
        loop {
            let mut lanes = self.lock();
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            for lane in lanes.list.iter().skip(feeds.len()) {
                feeds.push(Feed {
                    topic: lane.topic,
                    reader: spool.reader(lane.topic, Arc::clone(&lane.name)),
                    read: VecDeque::new(),
                });
            }
            let Some((index, task)) = lanes.task(turn, self.room) else {
                let due = lanes.list.iter().filter_map(Lane::due).min();
                let wait = due.map_or(IDLE, |due| due.saturating_duration_since(Instant::now()));
                let wait = wait.clamp(Duration::from_millis(1), IDLE);
                drop(self.wake.wait_timeout(lanes, wait));
                continue;
            };
            drop(lanes);
            turn = index + 1;
            if index != last {
                // What one topic cannot send yet is not held in memory while another has its turn.
                if let Some(feed) = feeds.get_mut(last) {
                    feed.read.clear();
                }
                last = index;
            }
            let Some(feed) = feeds.get_mut(index) else {
                continue;
            };
            match task {
                Task::Aside(seq) => self.try_aside(feed, index, seq),
                Task::Read(wanted) => self.catch_up(feed, index, wanted),
            }
        }
    }

    /// Sends a topic's next messages, as many as may go.
    fn catch_up(&self, feed: &mut Feed, index: usize, wanted: Range<u64>) {
        let topic = feed.topic;
        // What was read for another number is of no use: something failed in between.
        feed.read.retain(|(seq, _)| *seq >= wanted.start);
        if feed
            .read
            .front()
            .is_some_and(|(seq, _)| *seq != wanted.start)
        {
            feed.read.clear();
        }
        if feed.read.is_empty() && !wanted.is_empty() {
            match feed.reader.read(wanted.start, READ_BYTES) {
                Ok(read) => feed.read = read.into(),
                Err(error) => {
                    tracing::error!(%error, "the spool cannot be read; it is tried again");
                    let until = Instant::now() + UNREADABLE;
                    self.lock().change(index, |lane| lane.unreadable(until));
                    return;
                }
            }
        }
        let nothing = feed.read.is_empty();
        while let Some((seq, entry)) = feed.read.front() {
            let place = Place { topic, seq: *seq };
            let mut lanes = self.lock();
            let (room, tag) = (lanes.room(self.room, index), lanes.tag(place));
            let message = (entry.id, outgoing(entry).bytes());
            let read = lanes.change(index, |lane| {
                (lane.pass(place.seq), lane.read(place.seq, message, room))
            });
            let Some((gone, leaves)) = read else { return };
            if leaves.is_none() {
                // An answer, or the time that passes, makes it possible.
                drop(self.wake.wait_timeout(lanes, Duration::from_millis(20)));
                self.give_up(topic, &gone);
                return;
            }
            drop(lanes);
            self.give_up(topic, &gone);
            if leaves == Some(true) {
                self.offer(entry, place, tag);
            }
            feed.read.pop_front();
        }
        let mut lanes = self.lock();
        let gone = lanes.change(index, |lane| {
            // What was in the log when it was asked for, and was not read, is not there.
            let gone = if nothing {
                lane.pass(wanted.end)
            } else {
                Vec::new()
            };
            lane.caught_up();
            (gone, lane.is_live())
        });
        drop(lanes);
        let (gone, live) = gone.unwrap_or_default();
        if live {
            feed.reader.rest();
        }
        self.give_up(topic, &gone);
    }

    fn try_aside(&self, feed: &mut Feed, index: usize, seq: u64) {
        let found = feed.reader.read(seq, 0);
        feed.reader.rest();
        let found = found.map(|batch| batch.into_iter().find(|(at, _)| *at == seq));
        let entry = match found {
            Ok(Some((_, entry))) => entry,
            Ok(None) => {
                self.lock().change(index, |lane| lane.forget_aside(seq));
                self.give_up(feed.topic, &[seq]);
                return;
            }
            Err(error) => {
                tracing::error!(%error, "the spool cannot be read; it is tried again");
                let now = Instant::now();
                self.lock()
                    .change(index, |lane| lane.settle(seq, Said::Again, now));
                return;
            }
        };
        let place = Place {
            topic: feed.topic,
            seq,
        };
        let tag = self.lock().tag(place);
        tracing::error!(
            id = %entry.id, topic = &*entry.topic, trace = trace(&entry),
            "the broker refuses a message in the spool, as too large or invalid; it waits aside and is tried again each minute"
        );
        self.offer(&entry, place, tag);
    }

    /// Messages are not in the log any more, or cannot be read.
    fn give_up(&self, topic: u16, gone: &[u64]) {
        if gone.is_empty() {
            return;
        }
        tracing::error!(
            messages = gone.len(),
            "messages of the spool cannot be read and are given up"
        );
        self.meters.gone.increment(gone.len() as u64);
        let given_up = |seq: &u64| Ack {
            place: Place { topic, seq: *seq },
            partition: Ack::LOST,
            offset: -1,
        };
        self.acked(&gone.iter().map(given_up).collect::<Vec<_>>());
    }

    fn acked(&self, acks: &[Ack]) {
        if let Some(spool) = self.spool.get().and_then(Weak::upgrade) {
            spool.acked(acks);
        }
    }

    /// Tells everyone what an answer means.
    fn tell(&self, place: Place, settled: Settled, said: Said) {
        crash::point("spool-acked");
        if let (Said::Taken(partition, offset), Some(id)) = (said, settled.id) {
            self.timelines
                .record(id, Event::now(What::Replicated).place(partition, offset));
            if let Some(caller) = settled.caller {
                caller.replicated(partition, offset);
            }
        }
        if settled.over {
            let (partition, offset) = match said {
                Said::Taken(partition, offset) => (partition, offset),
                _ => (Ack::VOID, -1),
            };
            self.acked(&[Ack {
                place,
                partition,
                offset,
            }]);
        }
    }
}

impl Sink for Shared {
    fn written(&self, written: Written<'_>) {
        let Written {
            place,
            entry,
            caller,
        } = written;
        let mut lanes = self.lock();
        let index = match lanes.find(place.topic) {
            Some(index) => index,
            None => lanes.add(Lane::from(place.topic, Arc::clone(&entry.topic), place.seq)),
        };
        let room = lanes.room(self.room, index);
        let tag = lanes.tag(place);
        let bytes = outgoing(entry).bytes();
        let leaves = lanes.change(index, |lane| {
            lane.written(place.seq, (entry.id, bytes), caller, room)
        });
        if leaves == Some(true) {
            drop(lanes);
            self.offer(entry, place, tag);
        } else {
            self.wake.notify_all();
        }
    }
}

impl Reports for Shared {
    fn answer(&self, tag: u64, outcome: producer::Outcome) {
        let said = said(outcome);
        let mut lanes = self.lock();
        if tag >> 48 & 0x7fff != u64::from(lanes.generation & 0x7fff) {
            return;
        }
        let topic = (tag >> 32) as u16;
        let now = Instant::now();
        let Some(index) = lanes.find(topic) else {
            return;
        };
        let answered = lanes.change(index, |lane| {
            let seq = lane.seq(tag as u32);
            let settled = lane.settle(seq, said, now);
            if let Some(kind) = settled.parked {
                let (topic, reason) = (&*lane.name, kind.word());
                tracing::error!(
                    topic,
                    reason,
                    "the broker refuses the topic; what is owed to it waits in the spool"
                );
            }
            (seq, settled, lane.is_behind())
        });
        let Some((seq, settled, behind)) = answered else {
            return;
        };
        if behind || settled.aside {
            self.wake.notify_all();
        }
        if settled.is_about_aside() {
            let aside: usize = lanes.list.iter().map(Lane::aside_len).sum();
            self.meters.aside.set(aside as f64);
        }
        drop(lanes);
        self.tell(Place { topic, seq }, settled, said);
    }

    fn lost(&self) {
        let mut lanes = self.lock();
        lanes.generation = lanes.generation.wrapping_add(1);
        let now = Instant::now();
        lanes.list.iter_mut().for_each(|lane| lane.lost(now));
        lanes.used = 0;
        self.wake.notify_all();
    }
}

fn said(outcome: producer::Outcome) -> Said {
    match outcome {
        Ok(ack) => Said::Taken(ack.partition, ack.offset),
        Err(PublishError::TopicUnknown) => Said::Refused(Kind::TopicUnknown),
        Err(PublishError::Refused(_)) => Said::Refused(Kind::BrokerRefused),
        Err(PublishError::TooLarge) => Said::TooLarge,
        Err(PublishError::Invalid) => Said::Unfit,
        Err(
            PublishError::QueueFull
            | PublishError::BrokerAway
            | PublishError::TimedOut
            | PublishError::Fatal,
        ) => Said::Again,
    }
}

/// The trace id in a record's headers.
fn trace(entry: &Entry) -> Option<String> {
    let value = entry.headers.get(record::TRACEPARENT)?;
    let trace = Trace::parse(std::str::from_utf8(value).ok()?)?;
    Some(trace.id().to_owned())
}

fn outgoing(entry: &Entry) -> Outgoing<'_> {
    Outgoing {
        topic: &entry.topic,
        key: entry.key.as_deref(),
        value: &entry.value,
        headers: &entry.headers,
    }
}
