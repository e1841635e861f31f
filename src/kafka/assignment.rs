//! What a group's member has at the moment: the partitions assigned to it, and what happens as they come and go.
//!
//! All of it runs on the consumer's thread, inside its polls of the common queue.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::BytesMut;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as NativeHeaders, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Deserialize;
use tokio::time::Instant;

use super::all::Positions;
use super::client::Reporter;
use super::intake::{Counters, Feed, Intake, Received, Waker, intake};
use super::record::header_name;
use crate::headers::Headers;
use crate::lifecycle;

/// How long a revoked partition waits for what is in flight.
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// Records moved from one partition before the next has its turn.
const TURN: usize = 64;
/// Headers that there is room for at once; few records have more.
const COUNT_USUAL: usize = 32;
/// Headers of one record that may have an unreadable name before the rest of its headers is left out unread: finding
/// out costs an unwinding each.
const UNREADABLE_MAX: usize = 16;

/// What the consumer's owner and its thread share.
#[derive(Default)]
pub(super) struct Control {
    pub(super) partitions: Mutex<Vec<Partition>>,
    pub(super) counters: Arc<Counters>,
    pub(super) waker: Arc<Waker>,
    /// The common queue has something.
    pub(super) events: AtomicBool,
    stopping: AtomicBool,
    /// Until when what is in flight may finish; set once.
    pub(super) settle_until: OnceLock<Instant>,
    pub(super) unfinished: OnceLock<usize>,
    /// Where a broadcast would go on, once it has stopped.
    pub(super) positions: Arc<OnceLock<Positions>>,
}

impl Control {
    pub(super) fn stop(&self, settle_until: Instant) {
        self.settle_until.get_or_init(|| settle_until);
        self.stopping.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn partitions(&self) -> MutexGuard<'_, Vec<Partition>> {
        self.partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

pub(super) type Native = BaseConsumer<Group>;
pub(super) type OnIntake = Arc<Mutex<Box<dyn Fn(Intake) + Send>>>;

/// One assigned partition, on the thread's side.
pub(super) struct Partition {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) feed: Feed,
    /// Absent if the native client did not split it off; its records then come by the common queue.
    queue: Option<PartitionQueue<Group>>,
    /// The queue has something, or its intake has room again.
    pub(super) ready: Arc<AtomicBool>,
    /// Records that came by the common queue while the intake was full. Bounded by what that queue held at the split.
    pub(super) stash: VecDeque<Received>,
    stored: Option<i64>,
    abandoned: bool,
}

impl Partition {
    /// Moves records into the intake until it is full, the queue is empty or the turn is over. True if any moved.
    pub(super) fn fill(&mut self, group: &Group) -> bool {
        if self.abandoned || !self.ready.swap(false, Ordering::AcqRel) {
            return false;
        }
        for moved in 0..TURN {
            if !self.feed.has_room() {
                // The intake's owner wakes the thread; the next turn looks again.
                self.ready.store(true, Ordering::Release);
                return moved > 0;
            }
            let record = match self.take() {
                Some(Ok(record)) => record,
                Some(Err(error)) => {
                    group.reporter.warn(&self.topic, &error.to_string());
                    continue;
                }
                None => return moved > 0,
            };
            if !self.feed.push(record) {
                let (topic, partition) = (&*self.topic, self.partition);
                tracing::error!(
                    topic,
                    partition,
                    "an intake's owner went away; its partition stands still"
                );
                self.abandoned = true;
                return false;
            }
        }
        self.ready.store(true, Ordering::Release);
        true
    }

    fn take(&mut self) -> Option<KafkaResult<Received>> {
        if let Some(record) = self.stash.pop_front() {
            return Some(Ok(record));
        }
        let message = self.queue.as_ref()?.poll(Duration::ZERO)?;
        Some(message.map(|message| copy(&message, &self.topic)))
    }

    pub(super) fn store(&mut self, native: &Native) {
        let next = self.feed.shared.next();
        let Some(offset) = next.filter(|_| next != self.stored) else {
            return;
        };
        // This call takes the last offset that has ended and adds one itself.
        match native.store_offset(&self.topic, self.partition, offset - 1) {
            Ok(()) => self.stored = next,
            // Not assigned at this very moment: the revocation commits, or the next turn does.
            Err(KafkaError::StoreOffset(RDKafkaErrorCode::State)) => {}
            Err(error) => {
                let (topic, partition) = (&*self.topic, self.partition);
                tracing::warn!(topic, partition, %error, "offset not stored");
            }
        }
    }
}

/// What is read of the native client's statistics.
#[derive(Debug, Deserialize)]
struct Statistics {
    topics: HashMap<String, TopicStatistics>,
}

#[derive(Debug, Deserialize)]
struct TopicStatistics {
    partitions: HashMap<String, PartitionStatistics>,
}

#[derive(Debug, Deserialize)]
struct PartitionStatistics {
    /// The last stable offset: behind it are only transactions that go on.
    ls_offset: i64,
    /// The next to be fetched.
    next_offset: i64,
    /// Records that were fetched and not taken.
    fetchq_cnt: i64,
}

/// The native client's callbacks: assignments, errors and its log.
pub(super) struct Group {
    pub(super) control: Arc<Control>,
    pub(super) on_intake: OnIntake,
    pub(super) reporter: Reporter,
    /// Needed to split queues; weak, since the client holds this.
    pub(super) native: OnceLock<Weak<Native>>,
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.reporter.log(level, facility, text);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        // Its form is librdkafka's (STATISTICS.md); one that cannot be read tells nothing.
        if let Ok(statistics) = serde_json::from_slice::<Statistics>(statistics) {
            self.note_ends(&statistics);
        }
    }

    fn error(&self, error: KafkaError, text: &str) {
        self.reporter.warn(&error.to_string(), text);
    }
}

impl ConsumerContext for Group {
    fn pre_rebalance(&self, native: &Native, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => self.assign(list),
            Rebalance::Revoke(list) => self.revoke(native, list),
            Rebalance::Error(error) => {
                self.reporter.warn("rebalance", &error.to_string());
                let gone = std::mem::take(&mut *self.control.partitions());
                gone.iter().for_each(|partition| partition.feed.revoke());
            }
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        match result {
            Ok(()) | Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
            Err(error) => self.reporter.warn("commit", &error.to_string()),
        }
    }
}

impl Group {
    fn note_ends(&self, statistics: &Statistics) {
        for part in &*self.control.partitions() {
            let topic = statistics.topics.get(&*part.topic);
            let partitions = topic.map(|topic| &topic.partitions);
            let ends = partitions.and_then(|all| all.get(&part.partition.to_string()));
            if let Some(ends) = ends.filter(|ends| ends.ls_offset >= 0) {
                part.feed.shared.ends_at(ends.ls_offset);
                if ends.fetchq_cnt == 0 && part.stash.is_empty() {
                    part.feed.shared.passed(ends.next_offset);
                }
            }
        }
    }

    /// Opens an intake for each partition of a list, and splits its queue off, which must be before it is assigned.
    pub(super) fn assign(&self, list: &TopicPartitionList) {
        static EPOCH: AtomicU64 = AtomicU64::new(1);
        let epoch = EPOCH.fetch_add(1, Ordering::Relaxed);
        let control = &self.control;
        for element in list.elements() {
            let (topic, number) = (Arc::<str>::from(element.topic()), element.partition());
            let native = self.native.get().and_then(Weak::upgrade);
            let mut queue = native.and_then(|native| native.split_partition_queue(&topic, number));
            let ready = Arc::new(AtomicBool::new(true));
            if let Some(queue) = &mut queue {
                let (ready, waker) = (Arc::clone(&ready), Arc::clone(&control.waker));
                queue.set_nonempty_callback(move || {
                    ready.store(true, Ordering::Release);
                    waker.wake();
                });
            }
            let (intake, feed) = intake(&topic, number, epoch, (&control.waker, &control.counters));
            tracing::debug!(
                topic = &*topic,
                partition = number,
                epoch,
                "partition assigned"
            );
            if control.is_stopping() {
                feed.revoke();
            }
            control.partitions().push(Partition {
                topic,
                partition: number,
                feed,
                queue,
                ready,
                stash: VecDeque::new(),
                stored: None,
                abandoned: false,
            });
            (self
                .on_intake
                .lock()
                .unwrap_or_else(PoisonError::into_inner))(intake);
        }
    }

    fn revoke(&self, native: &Native, list: &TopicPartitionList) {
        let named = list.to_topic_map();
        let taken =
            |part: &mut Partition| named.contains_key(&(part.topic.to_string(), part.partition));
        let gone: Vec<Partition> = self.control.partitions().extract_if(.., taken).collect();
        gone.iter().for_each(|partition| partition.feed.revoke());
        // A lost assignment is another member's already: waiting or committing would only make it worse.
        let lost = native.assignment_lost();
        if !lost {
            let deadline = Instant::now() + SETTLE_MAX;
            let deadline = self
                .control
                .settle_until
                .get()
                .map_or(deadline, |until| deadline.min(*until));
            let open = gone
                .iter()
                .filter(|part| !part.feed.shared.settle(deadline))
                .count();
            if open > 0 {
                tracing::warn!(
                    partitions = open,
                    "deliveries go on for partitions that were taken away"
                );
            }
        }
        finish(native, &gone, !lost);
    }
}

/// Ends intakes and, if so asked, commits what has ended in them.
pub(super) fn finish(native: &Native, gone: &[Partition], commits: bool) {
    let mut offsets = TopicPartitionList::new();
    for Partition {
        topic,
        partition,
        feed,
        ..
    } in gone
    {
        let Some(next) = feed.shared.end().filter(|_| commits) else {
            continue;
        };
        // Stored as well, so that the native client's own commit at the end is not an older one. Unlike this call, which
        // adds one, the list takes the offset as it is.
        drop(native.store_offset(topic, *partition, next - 1));
        drop(offsets.add_partition_offset(topic, *partition, Offset::Offset(next)));
    }
    if offsets.count() == 0 {
        return;
    }
    if let Err(error) = native.commit(&offsets, CommitMode::Sync) {
        tracing::warn!(%error, "offsets not committed; some messages will be delivered again");
    }
}

/// Copies a record out of the native client's memory into one buffer: what is held would hold a whole fetch.
pub(super) fn copy(message: &BorrowedMessage<'_>, topic: &Arc<str>) -> Received {
    let (key, value) = (message.key(), message.payload().unwrap_or_default());
    let mut buffer = BytesMut::with_capacity(key.map_or(0, <[u8]>::len) + value.len());
    let mut take = |bytes: &[u8]| {
        buffer.extend_from_slice(bytes);
        buffer.split().freeze()
    };
    let key = key.map(&mut take);
    let value = take(value);
    let (headers, unread) = message.headers().map(copy_headers).unwrap_or_default();
    Received {
        topic: Arc::clone(topic),
        partition: message.partition(),
        offset: message.offset(),
        key,
        value,
        headers,
        unread,
        timestamp_ms: message.timestamp().to_millis(),
    }
}

/// Copies headers, and counts those that were left out.
fn copy_headers<H: NativeHeaders>(native: &H) -> (Headers, usize) {
    let count = native.count();
    let mut headers = Headers::with_capacity(count.min(COUNT_USUAL), 0);
    let mut unread = 0;
    for index in 0..count {
        if unread == UNREADABLE_MAX {
            return (headers, unread + count - index);
        }
        // The wrapper panics on a name that is not UTF-8, gives no other way to ask, and anyone may write one.
        match lifecycle::tolerate(|| native.try_get(index)) {
            Some(Some(header)) => {
                headers.push(header_name(header.key), header.value.unwrap_or_default());
            }
            Some(None) => {}
            None => unread += 1,
        }
    }
    (headers, unread)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Headers as the native client has them: a name may be any bytes, and asking for one that is no text panics.
    struct Native {
        names: Vec<&'static [u8]>,
        panics: Cell<usize>,
    }

    impl NativeHeaders for Native {
        fn count(&self) -> usize {
            self.names.len()
        }

        fn try_get(&self, index: usize) -> Option<rdkafka::message::Header<'_, &[u8]>> {
            let key = std::str::from_utf8(self.names.get(index)?);
            self.panics
                .set(self.panics.get() + usize::from(key.is_err()));
            assert!(lifecycle::is_tolerated(), "the log would call it a defect");
            let (key, value) = (key.unwrap(), Some(&b"value"[..]));
            Some(rdkafka::message::Header { key, value })
        }
    }

    fn copied(names: Vec<&'static [u8]>) -> (Vec<String>, usize, usize) {
        let panics = Cell::default();
        let native = Native { names, panics };
        let (headers, unread) = copy_headers(&native);
        let names = headers.iter().map(|(name, _)| name.to_owned());
        (names.collect(), unread, native.panics.get())
    }

    #[test]
    fn a_header_whose_name_is_no_text_is_left_out_and_the_others_stay() {
        let (names, unread, _) = copied(vec![b"a", b"\xff", b"ce_id"]);
        assert_eq!(names, ["a", "ce_id"]);
        assert_eq!(unread, 1);
    }

    #[test]
    fn a_record_full_of_such_names_is_not_searched_to_its_end() {
        let mut names: Vec<&[u8]> = vec![b"\xff"; 80_000];
        names[0] = b"first";
        names.push(b"last");
        let (names, unread, panics) = copied(names);
        assert_eq!(names, ["first"]);
        assert_eq!((unread, panics), (80_000, UNREADABLE_MAX));
    }
}
