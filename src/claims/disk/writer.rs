//! The thread that appends to a store's segments, in groups, and deletes those that have expired.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::segment::{self, Appended, HEADER_LEN, Machine, RECORD_LEN, Sealed};
use super::{Shared, unavailable};
use crate::claims::Claim;
use crate::claims::id::{Audience, Place};
use crate::config::model::WhenFull;
use crate::error::Error;
use crate::lifecycle::cpu;

/// Bytes after which a new segment is begun, or less in a small store that may evict.
const SEGMENT_MAX: u64 = 64 << 20;
/// Bodies in one group, so that the first of them does not wait for an endless one.
const GROUP_MAX: usize = 256;
/// Bytes of bodies after which a group takes no further one.
const GROUP_BYTES_MAX: u64 = 8 << 20;
/// Bytes collected for one write.
const WRITE_LEN: usize = 256 << 10;
/// Longest wait between two looks for expired segments.
const SWEEP_MAX: Duration = Duration::from_secs(60);
/// Shortest one, so that a file that cannot be deleted does not keep the thread busy.
const SWEEP_MIN: Duration = Duration::from_secs(1);

/// What the thread is asked.
pub(super) enum Asked {
    /// To keep a body.
    Keep(Ask),
    /// To make room, if the store may evict.
    Room,
}

/// A body to keep.
pub(super) struct Ask {
    pub(super) body: Bytes,
    pub(super) digest: [u8; 32],
    pub(super) audience: Audience,
    pub(super) reply: oneshot::Sender<Result<Claim, Error>>,
}

impl Ask {
    fn len(&self) -> u64 {
        (RECORD_LEN + self.body.len()) as u64
    }
}

/// The thread's state.
pub(super) struct Writer {
    shared: Arc<Shared>,
    machine: Box<dyn Machine>,
    sealed: Vec<Sealed>,
    open: Option<Open>,
    /// Bytes after which a new segment is begun.
    segment_max: u64,
    buffer: Vec<u8>,
}

/// The segment that is written to.
struct Open {
    number: u64,
    file: Box<dyn Appended>,
    len: u64,
    /// When the next one is begun.
    full: SystemTime,
    ends: u64,
    /// Whether its directory entry is durable and a claim in it was promised.
    promised: bool,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, machine: Box<dyn Machine>, sealed: Vec<Sealed>) -> Self {
        // Small beside the store, so that one that is evicted takes little with it.
        let segment_max = match shared.full {
            WhenFull::Refuse => SEGMENT_MAX,
            WhenFull::Evict => SEGMENT_MAX.min(shared.max / 16),
        };
        Self {
            shared,
            machine,
            sealed,
            open: None,
            segment_max,
            buffer: Vec::new(),
        }
    }

    /// Works until the store is dropped.
    pub(super) fn run(mut self, asked: &Receiver<Asked>) {
        loop {
            self.sweep();
            // What came in parts is counted beside this thread.
            let now = self.machine.now();
            if let Err(error) = self.make_room(now) {
                let store = &self.shared.name;
                tracing::error!(store, %error, "the claim store is full, and evicts nothing");
            }
            match asked.recv_timeout(self.idle()) {
                Ok(Asked::Keep(first)) => {
                    let group = collect(first, asked);
                    let count = group.len() as u64;
                    self.commit(group);
                    self.shared.kept.fetch_add(count, Ordering::Relaxed);
                    let used = cpu::of_thread().as_nanos();
                    let used = u64::try_from(used).unwrap_or(u64::MAX);
                    self.shared.used_ns.store(used, Ordering::Relaxed);
                }
                Ok(Asked::Room) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Keeps a group, in as many parts as there are segments to begin, and tells its callers.
    pub(super) fn commit(&mut self, mut group: Vec<Ask>) {
        while !group.is_empty() {
            let now = self.machine.now();
            let part: Vec<Ask> = group.drain(..self.fitting(&group, now)).collect();
            let before = self
                .open
                .as_ref()
                .map_or(HEADER_LEN as u64, |open| open.len);
            if let Err(error) = self.make_room(now) {
                self.refuse(part, before, &error);
                continue;
            }
            // Rounded up, so that a claim never lives shorter than it should.
            let expires = seconds(now + self.shared.ttl + Duration::from_nanos(999_999_999));
            match self.write(&part, now) {
                Ok(places) => self.promise(part, &places, expires),
                Err(error) => self.refuse(part, before, &error),
            }
        }
    }

    /// How many of the group go into the open segment; seals it if that is none, and then answers for a new one.
    fn fitting(&mut self, group: &[Ask], now: SystemTime) -> usize {
        let most = self.segment_max;
        let count = |len: u64| {
            let mut len = len;
            let fits = |ask: &&Ask| {
                len += ask.len();
                len <= most
            };
            group.iter().take_while(fits).count()
        };
        if let Some(open) = self.open.as_ref().filter(|open| now < open.full) {
            match count(open.len) {
                0 => {}
                some => return some,
            }
        }
        self.seal();
        // A body larger than a segment has one to itself.
        count(HEADER_LEN as u64).max(1)
    }

    /// Writes and syncs; the places come back in order.
    fn write(&mut self, part: &[Ask], now: SystemTime) -> io::Result<Vec<(u64, u32)>> {
        if self.open.is_none() {
            self.begin(now)?;
        }
        let Some(open) = self.open.as_mut() else {
            return Err(io::Error::other("no segment is open"));
        };
        let mut places = Vec::with_capacity(part.len());
        self.buffer.clear();
        for ask in part {
            // A segment takes records only up to 64 MiB, so their offsets fit.
            places.push((open.number, open.len as u32));
            let head = segment::record(ask.body.len() as u32, &ask.digest);
            self.buffer.extend_from_slice(&head);
            open.len += ask.len();
            if ask.body.len() >= WRITE_LEN {
                open.file.append(&self.buffer)?;
                self.buffer.clear();
                open.file.append(&ask.body)?;
                continue;
            }
            self.buffer.extend_from_slice(&ask.body);
            if self.buffer.len() >= WRITE_LEN {
                open.file.append(&self.buffer)?;
                self.buffer.clear();
            }
        }
        open.file.append(&self.buffer)?;
        open.file.sync()?;
        if !open.promised {
            self.machine.sync_folder(&self.shared.folder)?;
            open.promised = true;
        }
        Ok(places)
    }

    fn begin(&mut self, now: SystemTime) -> io::Result<()> {
        let number = self.shared.number(now)?;
        let full = now + (self.shared.ttl / 8).max(Duration::from_secs(1));
        let ends = seconds(full + self.shared.ttl) + 2;
        let path = segment::path(&self.shared.folder, number);
        let file = self.machine.create(&path)?;
        let len = HEADER_LEN as u64;
        self.shared.used.fetch_add(len, Ordering::AcqRel);
        let open = self.open.insert(Open {
            number,
            file,
            len,
            full,
            ends,
            promised: false,
        });
        open.file.append(&segment::header(number, ends))
    }

    fn promise(&self, part: Vec<Ask>, places: &[(u64, u32)], expires: u64) {
        for (ask, (segment, offset)) in part.into_iter().zip(places) {
            let length = ask.body.len() as u32;
            let place = Place {
                audience: ask.audience,
                segment: *segment,
                offset: *offset,
                length,
                expires,
            };
            let claim = Claim {
                id: self.shared.signer.sign(&place),
                digest: ask.digest,
                size: u64::from(length),
                expires: UNIX_EPOCH + Duration::from_secs(expires),
            };
            // A caller that went away meanwhile leaves a claim that nobody asks for, until it expires.
            ask.reply.send(Ok(claim)).ok();
        }
    }

    /// Poisons the segment, which had so many bytes before, and tells the callers.
    fn refuse(&mut self, part: Vec<Ask>, before: u64, error: &io::Error) {
        let store = &self.shared.name;
        tracing::error!(store, %error, bodies = part.len(), "claims not kept, segment abandoned");
        let asked: u64 = part.iter().map(Ask::len).sum();
        match self.open.take() {
            Some(open) if open.promised => {
                // What of the group reached the file is unknown: all that was tried counts until the file is deleted.
                let written = open.len;
                self.shared.frees(asked - (written - before));
                self.sealed.push(open.into());
                tracing::debug!(
                    store,
                    written,
                    "the abandoned segment is kept until it expires"
                );
            }
            Some(open) => {
                // Nothing was ever promised from it: a full disk must not fill up with empty files as well.
                self.shared.frees(asked);
                self.sealed.push(Sealed {
                    number: open.number,
                    len: HEADER_LEN as u64,
                    ends: 0,
                });
            }
            None => {
                self.shared.frees(asked);
            }
        }
        for ask in part {
            let detail = format!("the claim store {store} cannot write");
            ask.reply
                .send(Err(unavailable(detail).because(error.to_string())))
                .ok();
        }
    }

    /// Deletes the oldest segments of a store that is over its limit and may evict.
    fn make_room(&mut self, now: SystemTime) -> io::Result<()> {
        if self.shared.full == WhenFull::Refuse {
            return Ok(());
        }
        while self.shared.used.load(Ordering::Acquire) > self.shared.max {
            if self.sealed.is_empty() {
                self.seal();
            }
            let oldest = self.sealed.iter().enumerate();
            let oldest = oldest.min_by_key(|(_, sealed)| sealed.number);
            let Some((index, sealed)) = oldest.map(|(index, sealed)| (index, *sealed)) else {
                // What waits is more than all: its turn comes when the others before it are written.
                return Ok(());
            };
            self.evict(index, sealed, now)?;
        }
        Ok(())
    }

    fn evict(&mut self, index: usize, sealed: Sealed, now: SystemTime) -> io::Result<()> {
        let shared = &self.shared;
        let below = sealed.number.saturating_add(1);
        if shared.gone_below.load(Ordering::Acquire) < below {
            segment::write_evicted(&shared.folder, below)?;
            shared.gone_below.store(below, Ordering::Release);
        }
        match self
            .machine
            .remove(&segment::path(&shared.folder, sealed.number))
        {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.sealed.swap_remove(index);
        shared.frees(sealed.len);
        if seconds(now) < sealed.ends {
            shared.evicted.fetch_add(sealed.len, Ordering::AcqRel);
            let left = Duration::from_secs(sealed.ends - seconds(now));
            tracing::error!(
                store = shared.name, segment = sealed.number, bytes = sealed.len,
                before = %humantime::format_duration(left),
                "claims evicted before their time: the store is full (`max`), and messages that need them get a 410"
            );
        }
        Ok(())
    }

    fn seal(&mut self) {
        self.sealed.extend(self.open.take().map(Sealed::from));
    }

    /// Deletes the segments whose last claim has expired.
    pub(super) fn sweep(&mut self) {
        let now = self.machine.now();
        if self.open.as_ref().is_some_and(|open| now >= open.full) {
            self.seal();
        }
        let (shared, machine) = (&self.shared, &self.machine);
        let mut beside = shared.beside.lock().unwrap_or_else(PoisonError::into_inner);
        self.sealed.append(&mut beside);
        drop(beside);
        self.sealed.retain(|sealed| {
            if seconds(now) < sealed.ends {
                return true;
            }
            match machine.remove(&segment::path(&shared.folder, sealed.number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(store = shared.name, %error, "expired claims not deleted");
                    true
                }
                _ => {
                    shared.frees(sealed.len);
                    false
                }
            }
        });
    }

    /// How long until a segment is due.
    pub(super) fn idle(&self) -> Duration {
        let sealed = self
            .sealed
            .iter()
            .map(|sealed| UNIX_EPOCH + Duration::from_secs(sealed.ends));
        let due = sealed.chain(self.open.as_ref().map(|open| open.full)).min();
        // What comes in parts may fill the store at any time.
        if self.shared.full == WhenFull::Evict {
            return SWEEP_MIN;
        }
        let wait = due.map(|due| due.duration_since(self.machine.now()).unwrap_or_default());
        wait.unwrap_or(SWEEP_MAX).clamp(SWEEP_MIN, SWEEP_MAX)
    }
}

impl From<Open> for Sealed {
    fn from(open: Open) -> Self {
        Self {
            number: open.number,
            len: open.len,
            ends: open.ends,
        }
    }
}

/// Takes what waits, up to the limits of a group.
fn collect(first: Ask, asked: &Receiver<Asked>) -> Vec<Ask> {
    let mut bytes = first.len();
    let mut group = vec![first];
    while group.len() < GROUP_MAX && bytes < GROUP_BYTES_MAX {
        match asked.try_recv() {
            Ok(Asked::Keep(ask)) => {
                bytes += ask.len();
                group.push(ask);
            }
            Ok(Asked::Room) => {}
            Err(_) => break,
        }
    }
    group
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
