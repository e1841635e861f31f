//! The records of one partition, in order, from the consumer's thread to the task that delivers them.
//!
//! An intake is one assignment of one partition: it ends with it, and answers that come later change nothing. What waits
//! in an intake is bounded by [`INTAKE_RECORDS_MAX`] and [`INTAKE_BYTES_MAX`]; a full intake is not polled, so the native client
//! stops fetching for it.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::tracker::Tracker;
use crate::headers::Headers;

/// Records that wait in an intake.
pub const INTAKE_RECORDS_MAX: usize = 64;
/// Their bytes; a single record may be larger.
pub const INTAKE_BYTES_MAX: usize = 1024 * 1024;

/// A record as it lies in the topic.
#[derive(Debug, Clone)]
pub struct Received {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// The key.
    pub key: Option<Bytes>,
    /// The value; empty if it is null.
    pub value: Bytes,
    /// The headers, in order, each with a name in UTF-8.
    pub headers: Headers,
    /// How many headers are not among them, since their names are not UTF-8 or stand behind many that are not.
    pub unread: usize,
    /// When it was made or written, in milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
}

impl Received {
    /// The bytes of its key, value and headers.
    pub fn bytes(&self) -> usize {
        self.key.as_ref().map_or(0, Bytes::len) + self.value.len() + self.headers.bytes()
    }
}

/// One assignment of one partition. Its owner takes records from it, in order, and says through [`Assigned`] when each has
/// its final verdict, in any order; dropping it says that no more will be delivered.
#[derive(Debug)]
pub struct Intake {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// Counts the consumer's assignments: a partition that comes back is another intake with a higher one.
    pub epoch: u64,
    assigned: Assigned,
    inbox: mpsc::Receiver<Received>,
}

/// What all deliveries of one assignment hold of it.
#[derive(Debug, Clone)]
pub struct Assigned {
    shared: Arc<Shared>,
    revoked: watch::Receiver<bool>,
}

impl Intake {
    /// The next record; `None` once the partition was taken away or the consumer stops. Safe to drop and call again.
    pub async fn next(&mut self) -> Option<Received> {
        let revoked = &mut self.assigned.revoked;
        let record = tokio::select! {
            // In this order: what was fetched for a partition that is another's now is the other's to deliver.
            biased;
            _ = revoked.wait_for(|revoked| *revoked) => None,
            record = self.inbox.recv() => record,
        };
        record.filter(|record| self.assigned.shared.hand_out(record))
    }

    /// What its deliveries need of it.
    pub fn assigned(&self) -> Assigned {
        self.assigned.clone()
    }
}

impl Assigned {
    /// Notes that a record has its final verdict, so that its offset may be committed once all before it have theirs.
    /// Without effect after the intake has ended.
    pub fn done(&self, offset: i64) {
        self.shared.done(offset);
    }

    /// Resolves when the partition is taken away or the consumer stops: a delivery may still finish within the time
    /// that is left, but a wait for the next attempt should end at once.
    pub async fn revoked(&self) {
        let mut revoked = self.revoked.clone();
        // An error means that the consumer is gone, which is the same to the owner.
        drop(revoked.wait_for(|revoked| *revoked).await);
    }

    /// Resolves when the assignment has ended: from then on [`Assigned::done`] has no effect.
    pub async fn over(&self) {
        let mut revoked = self.revoked.clone();
        // The sender goes with the assignment, and no value of it is awaited.
        drop(revoked.wait_for(|_| false).await);
    }

    /// What is between the offset that may be committed and the last record handed out.
    pub fn open(&self) -> Open {
        let progress = self.shared.lock();
        Open {
            next: progress.tracker.next(),
            oldest: progress.tracker.oldest(),
            since: progress.oldest_since,
            records: progress.tracker.open(),
            unended: progress.tracker.unended(),
            end: Some(self.shared.end.load(Ordering::Relaxed)).filter(|end| *end >= 0),
        }
    }
}

/// What of a partition is not committed.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    /// The offset that may be committed, if any record has ended.
    pub next: Option<i64>,
    /// The oldest offset without a final verdict.
    pub oldest: Option<i64>,
    /// Since when it is the oldest.
    pub since: Option<Instant>,
    /// Records from there to the last one handed out, those with a final verdict included.
    pub records: usize,
    /// Those of them without one.
    pub unended: usize,
    /// Where the partition ended when the broker said so last.
    pub end: Option<i64>,
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.assigned.shared.leave();
    }
}

/// What a consumer has counted since it started, and what it holds now.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Records fetched.
    pub(super) received: AtomicU64,
    /// Records with a final verdict.
    pub(super) done: AtomicU64,
    /// Verdicts that came after their intake had ended.
    pub(super) stale: AtomicU64,
}

/// Wakes the consumer's thread.
#[derive(Debug, Default)]
pub(super) struct Waker {
    thread: OnceLock<Thread>,
}

impl Waker {
    /// Called once, by the thread itself.
    pub(super) fn is_me(&self) {
        self.thread.get_or_init(std::thread::current);
    }

    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// What both ends of an intake share.
#[derive(Debug)]
pub(super) struct Shared {
    progress: Mutex<Progress>,
    settled: Condvar,
    /// Records and bytes that wait in the channel.
    records: AtomicUsize,
    bytes: AtomicUsize,
    /// Where the partition ends, as far as the broker said; negative before it did.
    end: AtomicI64,
    /// The consumer's thread found the intake full and wants to be woken.
    full: AtomicBool,
    waker: Arc<Waker>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Progress {
    tracker: Tracker,
    /// Answers count no more.
    ended: bool,
    /// The owner takes no more records and awaits no verdict.
    left: bool,
    /// Since when the oldest record without a verdict is the oldest.
    oldest_since: Option<Instant>,
}

impl Shared {
    /// False if the intake has ended.
    fn hand_out(&self, record: &Received) -> bool {
        let mut progress = self.lock();
        let goes = !progress.ended;
        if goes {
            progress.tracker.started(record.offset);
            progress.oldest_since.get_or_insert_with(Instant::now);
        }
        drop(progress);
        // After that: a record that is neither waiting nor started would be passed over by `passed`.
        self.records.fetch_sub(1, Ordering::Release);
        self.bytes.fetch_sub(record.bytes(), Ordering::Relaxed);
        // Not for each record: two threads that wake each other in turn cost more than all the rest of a delivery.
        if self.full.load(Ordering::Acquire)
            && self.is_low()
            && self.full.swap(false, Ordering::AcqRel)
        {
            self.waker.wake();
        }
        goes
    }

    /// Notes that every record before this offset was put into this intake: what else lies there is none, but the mark
    /// of a transaction.
    pub(super) fn passed(&self, offset: i64) {
        let mut progress = self.lock();
        let waiting = self.records.load(Ordering::Acquire) > 0;
        if !progress.ended && !waiting && progress.tracker.unended() == 0 {
            progress.tracker.passed(offset);
        }
    }

    /// Whether half of it is free again.
    fn is_low(&self) -> bool {
        let (records, bytes) = self.waiting();
        records == 0 || (records <= INTAKE_RECORDS_MAX / 2 && bytes <= INTAKE_BYTES_MAX / 2)
    }

    fn done(&self, offset: i64) {
        let mut progress = self.lock();
        if progress.ended {
            self.counters.stale.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let before = (progress.tracker.unended(), progress.tracker.oldest());
        progress.tracker.ended(offset);
        let after = (progress.tracker.unended(), progress.tracker.oldest());
        if before.0 == after.0 {
            return;
        }
        self.counters.done.fetch_add(1, Ordering::Relaxed);
        if before.1 != after.1 {
            progress.oldest_since = after.1.map(|_| Instant::now());
        }
        if after.0 == 0 {
            self.settled.notify_all();
        }
    }

    fn leave(&self) {
        self.lock().left = true;
        self.settled.notify_all();
    }

    /// The offset that may be committed.
    pub(super) fn next(&self) -> Option<i64> {
        self.lock().tracker.next()
    }

    /// Records handed out without a verdict, if its owner may still give one.
    pub(super) fn in_flight(&self) -> usize {
        let progress = self.lock();
        if progress.left {
            0
        } else {
            progress.tracker.unended()
        }
    }

    /// Waits until nothing is in flight, at most until `deadline`; false if something still is.
    pub(super) fn settle(&self, deadline: Instant) -> bool {
        let mut progress = self.lock();
        while !progress.left && progress.tracker.unended() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.settled.wait_timeout(progress, left);
            progress = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Ends the intake: verdicts from now on are stale. Returns the offset to commit.
    pub(super) fn end(&self) -> Option<i64> {
        let mut progress = self.lock();
        progress.ended = true;
        progress.tracker.next()
    }

    /// Notes where the partition ends.
    pub(super) fn ends_at(&self, end: i64) {
        self.end.store(end, Ordering::Relaxed);
    }

    pub(super) fn waiting(&self) -> (usize, usize) {
        (
            self.records.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }

    pub(super) fn oldest(&self) -> Option<Duration> {
        let progress = self.lock();
        progress.oldest_since.map(|since| since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The consumer's end of an intake.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) shared: Arc<Shared>,
    outbox: mpsc::Sender<Received>,
    revoke: watch::Sender<bool>,
}

impl Feed {
    /// Whether one more record fits. If not, the thread is woken when one does.
    pub(super) fn has_room(&self) -> bool {
        if self.fits() {
            return true;
        }
        self.shared.full.store(true, Ordering::Release);
        // A record may have been taken just before the flag was up.
        self.fits()
    }

    /// False if the owner is gone.
    pub(super) fn push(&self, record: Received) -> bool {
        self.shared.records.fetch_add(1, Ordering::Relaxed);
        self.shared
            .bytes
            .fetch_add(record.bytes(), Ordering::Relaxed);
        self.shared
            .counters
            .received
            .fetch_add(1, Ordering::Relaxed);
        self.outbox.try_send(record).is_ok()
    }

    /// Tells the owner that no more is handed out.
    pub(super) fn revoke(&self) {
        self.revoke.send_replace(true);
    }

    fn fits(&self) -> bool {
        let (records, bytes) = self.shared.waiting();
        records == 0 || (self.outbox.capacity() > 0 && bytes < INTAKE_BYTES_MAX)
    }
}

/// Makes both ends of an intake.
pub(super) fn intake(
    topic: &Arc<str>,
    partition: i32,
    epoch: u64,
    (waker, counters): (&Arc<Waker>, &Arc<Counters>),
) -> (Intake, Feed) {
    let shared = Arc::new(Shared {
        progress: Mutex::default(),
        settled: Condvar::new(),
        records: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        end: AtomicI64::new(-1),
        full: AtomicBool::new(false),
        waker: Arc::clone(waker),
        counters: Arc::clone(counters),
    });
    let (outbox, inbox) = mpsc::channel(INTAKE_RECORDS_MAX);
    let (revoke, revoked) = watch::channel(false);
    let feed = Feed {
        shared: Arc::clone(&shared),
        outbox,
        revoke,
    };
    (
        Intake {
            topic: Arc::clone(topic),
            partition,
            epoch,
            assigned: Assigned { shared, revoked },
            inbox,
        },
        feed,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64, bytes: usize) -> Received {
        Received {
            topic: "invoices".into(),
            partition: 0,
            offset,
            key: None,
            value: Bytes::from(vec![0; bytes]),
            headers: Headers::new(),
            unread: 0,
            timestamp_ms: None,
        }
    }

    fn pair() -> (Intake, Feed) {
        intake(&"invoices".into(), 0, 1, (&Arc::default(), &Arc::default()))
    }

    #[tokio::test]
    async fn a_lane_takes_one_large_record_and_no_second() {
        let (mut intake, feed) = pair();
        assert!(feed.has_room());
        assert!(feed.push(record(0, INTAKE_BYTES_MAX)));
        assert!(!feed.has_room());
        assert_eq!(intake.next().await.map(|record| record.offset), Some(0));
        assert!(feed.has_room());
    }

    #[tokio::test]
    async fn a_revoked_lane_hands_out_nothing_and_late_answers_are_stale() {
        let (mut intake, feed) = pair();
        (0..2).for_each(|offset| assert!(feed.push(record(offset, 1))));
        let first = intake.next().await.expect("the first record");
        assert_eq!(feed.shared.in_flight(), 1);
        assert!(!feed.shared.settle(Instant::now()));
        feed.revoke();
        let assigned = intake.assigned();
        assigned.revoked().await;
        assert!(intake.next().await.is_none());
        assert!(!feed.shared.settle(Instant::now()), "a delivery goes on");
        drop(intake);
        assert!(feed.shared.settle(Instant::now()), "the owner has left");
        assert_eq!(feed.shared.end(), None);
        assigned.done(first.offset);
        assert_eq!(feed.shared.next(), None);
    }

    #[tokio::test]
    async fn what_is_in_flight_may_end_while_the_lane_is_revoked() {
        let (mut intake, feed) = pair();
        assert!(feed.push(record(7, 1)));
        let record = intake.next().await.expect("the record");
        feed.revoke();
        intake.assigned().done(record.offset);
        assert!(feed.shared.settle(Instant::now()));
        assert_eq!(feed.shared.end(), Some(8));
        assert_eq!(feed.shared.oldest(), None);
    }
}
