//! From the spool to the broker: what is written leaves at once, by the writer's hand, or waits on disk for its turn.
//!
//! In the usual case nothing is read back and no further thread has a part in it: the writing thread gives a message to
//! the broker's client, whose callback settles it. Where that is not possible (the broker is away and the client's queue
//! is full, a topic is refused, an earlier run left something) a topic falls behind, and a thread reads its messages
//! back and sends them when they may go. How much is out is bounded; how much waits is bounded by the spool.

mod lane;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use metrics::{Counter, Gauge};
use tokio::time::Instant;

use self::lane::{Lane, Said, Settled};
use crate::error::{Error, Kind};
use crate::kafka::producer::{self, Outgoing, Producer, PublishError, Reports};
use crate::kafka::record;
use crate::lifecycle::crash;
use crate::messages::{Event, Timelines, What};
use crate::spool::{Ack, Entry, Opened, Place, Reader, Sink, Spool, TopicLeft, Written};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names;
use crate::telemetry::trace::Trace;

/// Bytes read back at a time.
const READ_BYTES: usize = 512 << 10;
/// The longest sleep of the thread.
const IDLE: Duration = Duration::from_secs(1);

/// The way from the spool to the broker.
pub struct Outbox {
    shared: Arc<Shared>,
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

struct Lanes {
    list: Vec<Lane>,
    /// Rises when the client is made anew, so that answers of the old one are known.
    generation: u16,
}

impl Shared {
    /// A way that leads nowhere yet, for the producer to answer to. `room` is how many bytes may be out.
    pub fn new(room: usize, timelines: Arc<Timelines>, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            lanes: Mutex::new(Lanes {
                list: Vec::new(),
                generation: 0,
            }),
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
        producer: &Arc<Producer>,
    ) -> std::io::Result<Self> {
        shared.lock().list = opened.topics.iter().map(left).collect();
        shared.producer.set(Arc::downgrade(producer)).ok();
        let sink: Arc<dyn Sink> = Arc::clone(&shared) as _;
        let spool = Arc::new(opened.start(sink)?);
        shared.spool.set(Arc::downgrade(&spool)).ok();
        let (at, log) = (Arc::clone(&shared), Arc::clone(&spool));
        let thread = std::thread::Builder::new()
            .name("wayside-outbox".into())
            .spawn(move || at.run(&log))?;
        Ok(Self {
            shared,
            spool,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The log.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Why a message to this topic had better not be taken: the broker refuses the topic, and what is owed to it waits.
    ///
    /// # Errors
    /// That refusal.
    pub fn check(&self, topic: &str) -> Result<(), Error> {
        let lanes = self.shared.lock();
        let lane = lanes.list.iter().find(|lane| &*lane.name == topic);
        match lane.and_then(|lane| lane.refusal(Instant::now())) {
            None => Ok(()),
            Some((kind, wait)) => {
                let detail = "the broker refuses the topic; it is tried again";
                Err(Error::new(kind, detail).after(wait.max(Duration::from_secs(1))))
            }
        }
    }

    /// Waits until nothing is owed to the broker, at most until the deadline and only while it answers. True if nothing
    /// is left.
    pub async fn flush(&self, producer: &Producer, deadline: Instant) -> bool {
        loop {
            if self.shared.lock().list.iter().all(Lane::is_empty) {
                return true;
            }
            if producer.is_away() || Instant::now() >= deadline {
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

fn left(topic: &TopicLeft) -> Lane {
    let name = Arc::clone(&topic.name);
    Lane::left(name, topic.next, &topic.done, Instant::now())
}

impl Lanes {
    /// Bytes of room that a lane may still take: never more than what is left over, so that no topic takes all of it.
    fn room(&self, most: usize, lane: usize) -> usize {
        let used: usize = self.list.iter().map(Lane::bytes).sum();
        let own = self.list.get(lane).map_or(0, Lane::bytes);
        most.saturating_sub(used).saturating_sub(own)
    }

    fn tag(&self, place: Place) -> u64 {
        let generation = u64::from(self.generation & 0x7fff);
        generation << 48 | u64::from(place.topic) << 32 | (place.seq & 0xffff_ffff)
    }
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
                if let Some(lane) = lanes.list.get_mut(usize::from(place.topic)) {
                    lane.not_taken(place.seq, Instant::now());
                }
                self.wake.notify_all();
            }
            // Refused on the spot: as if the broker had.
            Err(error) => self.answer(tag, Err(error)),
        }
    }

    /// Reads back and sends what fell behind, until it is told to stop.
    fn run(&self, spool: &Spool) {
        let mut readers: Vec<Reader> = Vec::new();
        let mut turn = 0;
        loop {
            let mut lanes = self.lock();
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let now = Instant::now();
            for index in readers.len()..lanes.list.len() {
                let name = Arc::clone(&lanes.list[index].name);
                readers.push(spool.reader(index as u16, name));
            }
            let count = lanes.list.len();
            let order = (0..count).map(|step| (turn + step) % count);
            let wanted = order.into_iter().find_map(|index| {
                let room = lanes.room(self.room, index);
                let lane = lanes.list.get_mut(index)?;
                if let Some(seq) = lane.aside(now) {
                    return Some((index, seq..seq + 1, true));
                }
                let wants = lane.wants(now)?;
                (room > 0 || lane.bytes() == 0).then_some((index, wants, false))
            });
            let Some((index, wanted, aside)) = wanted else {
                let due = lanes.list.iter().filter_map(Lane::due).min();
                let wait = due.map_or(IDLE, |due| due.saturating_duration_since(now).min(IDLE));
                let wait = wait.max(Duration::from_millis(1));
                drop(self.wake.wait_timeout(lanes, wait));
                continue;
            };
            drop(lanes);
            turn = index + 1;
            let Some(reader) = readers.get_mut(index) else {
                continue;
            };
            if aside {
                self.try_aside(reader, index, wanted.start);
            } else {
                self.catch_up(reader, index, wanted);
            }
        }
    }

    /// Sends a topic's next messages, as many as may go.
    fn catch_up(&self, reader: &mut Reader, index: usize, wanted: std::ops::Range<u64>) {
        let batch = match wanted.is_empty() {
            true => Vec::new(),
            false => reader.read(wanted.start, READ_BYTES),
        };
        let topic = index as u16;
        let last = batch.is_empty();
        for (seq, entry) in batch {
            let place = Place { topic, seq };
            let mut lanes = self.lock();
            let room = lanes.room(self.room, index);
            let tag = lanes.tag(place);
            let Some(lane) = lanes.list.get_mut(index) else {
                return;
            };
            let gone = lane.pass(seq);
            let leaves = lane.read(seq, (entry.id, outgoing(&entry).bytes()), room);
            drop(lanes);
            self.give_up(topic, &gone);
            match leaves {
                Some(true) => self.offer(&entry, place, tag),
                Some(false) => {}
                None => {
                    // It waits for answers, or for the time to pass; an answer rouses this thread.
                    let lanes = self.lock();
                    drop(self.wake.wait_timeout(lanes, Duration::from_millis(20)));
                    return;
                }
            }
        }
        let mut lanes = self.lock();
        let Some(lane) = lanes.list.get_mut(index) else {
            return;
        };
        // What was in the log when it was asked for, and was not read, is not there.
        let gone = if last {
            lane.pass(wanted.end)
        } else {
            Vec::new()
        };
        lane.caught_up();
        drop(lanes);
        self.give_up(topic, &gone);
    }

    fn try_aside(&self, reader: &mut Reader, index: usize, seq: u64) {
        let found = reader.read(seq, 0).into_iter().find(|(at, _)| *at == seq);
        let Some((_, entry)) = found else { return };
        let place = Place {
            topic: index as u16,
            seq,
        };
        let tag = self.lock().tag(place);
        tracing::error!(
            id = %entry.id, topic = &*entry.topic, trace = trace(&entry),
            "a message in the spool is too large for its topic; it waits aside and is tried again each minute"
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
        self.acked(topic, gone.iter().map(|seq| (*seq, -1, -1)));
    }

    fn acked(&self, topic: u16, acks: impl Iterator<Item = (u64, i32, i64)>) {
        if let Some(spool) = self.spool.get().and_then(Weak::upgrade) {
            let ack = |(seq, partition, offset)| Ack {
                place: Place { topic, seq },
                partition,
                offset,
            };
            spool.acked(&acks.map(ack).collect::<Vec<_>>());
        }
    }

    /// Tells everyone what an answer means.
    fn tell(&self, place: Place, name: &str, settled: Settled, said: Said) {
        crash::point("spool-acked");
        if let (Said::Taken(partition, offset), Some(id)) = (said, settled.id) {
            self.timelines
                .record(id, Event::now(What::Replicated).place(partition, offset));
            if let Some(caller) = settled.caller {
                caller.replicated(partition, offset);
            }
        }
        if let Some(kind) = settled.parked {
            tracing::error!(
                topic = name,
                reason = kind.word(),
                "the broker refuses the topic; what is owed to it waits in the spool"
            );
        }
        if settled.over {
            let (partition, offset) = match said {
                Said::Taken(partition, offset) => (partition, offset),
                _ => (-1, -1),
            };
            self.acked(place.topic, std::iter::once((place.seq, partition, offset)));
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
        let index = usize::from(place.topic);
        let mut lanes = self.lock();
        while lanes.list.len() <= index {
            // Topics are numbered in the order in which they first come.
            lanes.list.push(Lane::new(Arc::clone(&entry.topic), 0, 0));
        }
        let room = lanes.room(self.room, index);
        let tag = lanes.tag(place);
        let bytes = outgoing(entry).bytes();
        let Some(lane) = lanes.list.get_mut(index) else {
            return;
        };
        if lane.written(place.seq, (entry.id, bytes), caller, room) {
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
        let Some(lane) = lanes.list.get_mut(usize::from(topic)) else {
            return;
        };
        let seq = lane.seq(tag as u32);
        let settled = lane.settle(seq, said, Instant::now());
        let name = Arc::clone(&lane.name);
        let behind = !lane.is_live();
        let aside: usize = lanes.list.iter().map(Lane::aside_len).sum();
        if behind {
            self.wake.notify_all();
        }
        drop(lanes);
        if settled.aside || settled.id.is_none() {
            self.meters.aside.set(aside as f64);
        }
        self.tell(Place { topic, seq }, &name, settled, said);
    }

    fn lost(&self) {
        let mut lanes = self.lock();
        lanes.generation = lanes.generation.wrapping_add(1);
        let now = Instant::now();
        lanes.list.iter_mut().for_each(|lane| lane.lost(now));
        self.wake.notify_all();
    }
}

fn said(outcome: producer::Outcome) -> Said {
    match outcome {
        Ok(ack) => Said::Taken(ack.partition, ack.offset),
        Err(PublishError::TopicUnknown) => Said::Refused(Kind::TopicUnknown),
        Err(PublishError::Refused(_)) => Said::Refused(Kind::BrokerRefused),
        Err(PublishError::TooLarge) => Said::TooLarge,
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
    let mut headers = entry.headers.iter();
    let (_, value) = headers.find(|(name, _)| name == record::TRACEPARENT)?;
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
