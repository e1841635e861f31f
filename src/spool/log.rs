//! The log itself, without threads: append, sync, acknowledge, delete. Everything that can go wrong with a disk is met
//! here, so everything here can be tested against one that lies, fails or loses its power.
//!
//! After an error of a write or a sync nothing is written to that segment again, since what the kernel still holds of
//! it is unknown. What was synced before stays readable; what was not is refused. The next append begins a new segment.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::disk::{Disk, Writable};
use super::frame::{self, Ack, Entry, HEADER_LEN, Header, Place, millis};
use super::segment::{Index, Segment};
use super::topics::{TOPICS_MAX, Topics};

/// Bytes of a segment; less where the spool is small.
const SEGMENT_MAX: u64 = 16 << 20;
pub(super) const SEGMENT_MIN: u64 = 256 << 10;
/// Segments that a spool of its full size has at least, so that deleting one makes a difference.
const SEGMENTS_MIN: u64 = 16;
/// Room in each segment for acknowledgements alone: without them nothing could be deleted, and a full disk would stay full.
const ACKS_ROOM: u64 = 24 << 10;
/// The least room for ranges, which say the same in fewer bytes.
const RANGES_ROOM: u64 = 8 << 10;
/// Bytes that are collected for one write.
const WRITE_MAX: usize = 1 << 20;
/// The share of the spool that messages may take up which are owed to nobody: the timelines after a restart.
const SPENT_SHARE: u64 = 4;
/// How long a disk is left alone after a failure, at first and after many in a row.
const REST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Failed syncs whose messages are remembered; of more the oldest are taken together.
const FAILED_MAX: usize = 256;

/// Why messages were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// As much is owed to the broker as the spool may hold, or the disk is full.
    Full,
    /// The disk failed.
    Disk,
}

/// A number for each message that was written, in order, over all topics. It begins with 1 at each open.
pub(super) type Lsn = u64;

/// How large a spool is, and how long what is done stays in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max: u64,
    pub(super) keep: Duration,
}

impl Limits {
    fn segment(&self) -> u64 {
        (self.max / SEGMENTS_MIN).clamp(SEGMENT_MIN, SEGMENT_MAX)
    }
}

/// The largest frame that a spool of that size takes: a quarter of it.
pub(super) fn frame_max(max: u64) -> u64 {
    max / 4
}

/// The log.
pub(super) struct Log {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) folder: PathBuf,
    pub(super) limits: Limits,
    topics: Topics,
    pub(super) index: Arc<Index>,
    pub(super) active: Option<Active>,
    /// The number that the next segment gets.
    pub(super) next: u64,
    /// Bytes of all segments.
    pub(super) used: u64,
    owed: u64,
    written: Lsn,
    /// Up to here all is durable, but for what is in `failed`.
    settled: Lsn,
    failed: VecDeque<(Lsn, Lsn)>,
    /// Segments that are not written to any more and still have all their room, and the bytes that they need.
    pub(super) wide: Vec<(u64, u64)>,
    /// After a failure: until when the disk is left alone, in milliseconds since 1970, and how many there were in a row.
    rest: (u64, u32),
    pub(super) acks: Acks,
    /// Room in each segment for ranges: twice what they need at its start.
    ranges_room: u64,
    buffer: Vec<u8>,
}

/// Acknowledgements on their way to the disk.
#[derive(Debug, Default)]
pub(super) struct Acks {
    waiting: Vec<Ack>,
    /// Whether some that no longer wait are nowhere in the log, not even as ranges.
    skipped: bool,
    /// Whether some of those in the log are not durable.
    loose: bool,
}

/// The segment that is written to.
pub(super) struct Active {
    pub(super) number: u64,
    header: Header,
    file: Box<dyn Writable>,
    pub(super) len: u64,
    pub(super) size: u64,
    /// Whether its directory entry is durable.
    entered: bool,
}

/// What an earlier run left.
pub(super) struct Found {
    pub(super) topics: Topics,
    pub(super) index: Arc<Index>,
    pub(super) next: u64,
}

impl Log {
    /// Goes on with what was found. Nothing is written before the first append.
    pub(super) fn new(disk: Arc<dyn Disk>, folder: PathBuf, limits: Limits, found: Found) -> Self {
        let (used, owed) = {
            let segments = found.index.lock();
            let sum = |of: fn(&Segment) -> u64| segments.values().map(of).sum();
            (sum(|segment| segment.size), sum(|segment| segment.owed))
        };
        Self {
            disk,
            folder,
            limits,
            topics: found.topics,
            index: found.index,
            active: None,
            next: found.next,
            used,
            owed,
            written: 0,
            settled: 0,
            failed: VecDeque::new(),
            wide: Vec::new(),
            rest: (0, 0),
            ranges_room: RANGES_ROOM,
            // What was read may not have reached the disk itself yet.
            acks: Acks {
                loose: true,
                ..Acks::default()
            },
            buffer: Vec::new(),
        }
    }

    /// Bytes on disk.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Messages that are owed to the broker.
    pub(super) fn owed(&self) -> u64 {
        self.owed
    }

    /// Whether a message is one that it takes when it has room.
    pub(super) fn takes(&self, entry: &Entry) -> bool {
        entry.frame_len() as u64 <= frame_max(self.limits.max)
    }

    /// Bytes that one message may have with its headers, a frame's own bytes included.
    pub(super) fn record_max(&self) -> usize {
        // A frame has two names and a few numbers more than a record.
        let most = frame_max(self.limits.max).saturating_sub(1024);
        usize::try_from(most).unwrap_or(usize::MAX)
    }

    /// The number of the last message that was written.
    pub(super) fn written(&self) -> Lsn {
        self.written
    }

    /// Whether a written message is durable, `None` if nobody has tried yet.
    pub(super) fn durable(&self, lsn: Lsn) -> Option<bool> {
        if lsn > self.settled {
            return None;
        }
        let failed = |(from, to): &(Lsn, Lsn)| (*from..=*to).contains(&lsn);
        Some(!self.failed.iter().any(failed))
    }

    /// Writes the first messages of the group, as many as go into one write, and notes where each is. They are not
    /// durable yet. The group must not be empty.
    ///
    /// # Errors
    /// None of the group was taken. Its numbers are not given again.
    pub(super) fn append<'a>(
        &mut self,
        group: impl Iterator<Item = &'a Entry> + Clone,
        places: &mut Vec<Place>,
    ) -> Result<(), Refused> {
        places.clear();
        let first = group.clone().next().map_or(0, Entry::frame_len) as u64;
        if first > frame_max(self.limits.max) {
            return Err(Refused::Full);
        }
        self.make_room(first)?;
        let acks_room = self.acks_room();
        let Some(active) = self.active.as_mut() else {
            return Err(Refused::Disk);
        };
        self.buffer.clear();
        let mut notes = Vec::new();
        for entry in group {
            let need = (entry.frame_len() + self.buffer.len()) as u64 + TOPIC_FRAME_MAX;
            let fits = active.len + need + acks_room <= active.size;
            if !places.is_empty() && (!fits || self.buffer.len() >= WRITE_MAX) {
                break;
            }
            let known = self.topics.list.len();
            let Some(place) = self.topics.give(&entry.topic) else {
                break;
            };
            if usize::from(place.topic) == known
                && let Some(state) = self.topics.state(place.topic)
            {
                active.header.topic(&mut self.buffer, &state);
            }
            notes.push(active.len + self.buffer.len() as u64);
            active.header.message(&mut self.buffer, place, entry);
            places.push(place);
        }
        if places.is_empty() {
            tracing::error!(max = TOPICS_MAX, "the spool has had too many topics");
            return Err(Refused::Full);
        }
        self.write_messages(places, &notes)
    }

    fn write_messages(&mut self, places: &[Place], offsets: &[u64]) -> Result<(), Refused> {
        if self.put_buffer().is_err() {
            // What of them lies in the file is owed to nobody.
            for place in places {
                self.forget(*place);
            }
            return Err(Refused::Disk);
        }
        let now = millis(self.disk.now());
        let mut segments = self.index.lock();
        if let Some((active, segment)) = self
            .active
            .as_ref()
            .and_then(|active| Some((active, segments.get_mut(&active.number)?)))
        {
            for (place, offset) in places.iter().zip(offsets) {
                segment.note(*place, *offset);
            }
            segment.owed += places.len() as u64;
            segment.len = active.len;
            segment.newest = now;
        }
        self.owed += places.len() as u64;
        self.written += places.len() as u64;
        Ok(())
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// What was written since the last sync is not durable, and never will be.
    pub(super) fn sync(&mut self) -> Result<(), Refused> {
        let Some(active) = self.active.as_mut() else {
            self.settle(false);
            return Ok(());
        };
        let synced = active.file.sync().and_then(|()| {
            if !active.entered {
                self.disk.sync_folder(&self.folder)?;
                active.entered = true;
            }
            Ok(())
        });
        match synced {
            Ok(()) => {
                self.settle(false);
                self.acks.loose = false;
                self.rest.1 = 0;
                Ok(())
            }
            Err(error) => {
                self.abandon(&error);
                Err(Refused::Disk)
            }
        }
    }

    /// Notes that messages are owed no longer. It is written with the next append or [`Log::write_acks`].
    pub(super) fn acked(&mut self, acks: &[Ack]) {
        for ack in acks {
            self.forget(ack.place);
        }
        for lost in acks.iter().filter(|ack| ack.partition == Ack::LOST) {
            self.keep_for_inspection(lost.place);
        }
        self.acks.waiting.extend_from_slice(acks);
    }

    /// Writes the acknowledgements that wait, if there is room, and deletes what has served its time.
    pub(super) fn tidy(&mut self) {
        self.write_acks();
        self.delete_spent(self.limits.max / SPENT_SHARE, true);
    }

    fn write_acks(&mut self) {
        if self.acks.waiting.is_empty() {
            return;
        }
        if self.active.is_none() {
            // A new segment begins with all that is acknowledged; without one it is written when there is one.
            self.begin(None, 0).ok();
        }
        let waiting = std::mem::take(&mut self.acks.waiting);
        let Some(active) = self.active.as_ref() else {
            self.acks.skipped = true;
            return;
        };
        let at = millis(self.disk.now());
        let room = (active.size - active.len).saturating_sub(self.ranges_room) as usize;
        self.buffer.clear();
        let mut all = true;
        for chunk in waiting.chunks(1000) {
            all &= self.buffer.len() + frame::acks_len(chunk.len()) <= room;
            if all {
                active.header.acks(&mut self.buffer, at, chunk);
            }
        }
        // Those for which there is no room are in the topics' ranges.
        self.acks.skipped |= !all;
        if self.put_buffer().is_ok() {
            self.acks.loose = true;
        } else {
            self.acks.skipped = true;
        }
    }

    /// Its segment is not to be deleted for good: somebody may want to look at what cannot be read.
    fn keep_for_inspection(&mut self, place: Place) {
        let mut segments = self.index.lock();
        let holder = segments.values_mut().find(|segment| segment.holds(place));
        if let Some(segment) = holder {
            segment.damaged = true;
        }
    }

    /// A message is owed no longer.
    fn forget(&mut self, place: Place) {
        let Some(topic) = self.topics.list.get_mut(usize::from(place.topic)) else {
            return;
        };
        if place.seq >= topic.next || topic.acked.contains(place.seq) {
            return;
        }
        topic.acked.insert(place.seq);
        let mut segments = self.index.lock();
        let at = match segments.get(&topic.hint) {
            Some(segment) if segment.holds(place) => Some(topic.hint),
            _ => {
                let mut found = segments.iter().rev();
                found.find_map(|(number, segment)| segment.holds(place).then_some(*number))
            }
        };
        if let Some(segment) = at.and_then(|at| segments.get_mut(&at)) {
            segment.owed = segment.owed.saturating_sub(1);
            self.owed = self.owed.saturating_sub(1);
        }
        topic.hint = at.unwrap_or(topic.hint);
    }

    /// Writes the buffer to the open segment.
    fn put_buffer(&mut self) -> Result<(), Refused> {
        let Some(active) = self.active.as_mut() else {
            return Err(Refused::Disk);
        };
        if self.buffer.is_empty() {
            return Ok(());
        }
        if let Err(error) = active.file.write_at(&self.buffer, active.len) {
            self.abandon(&error);
            return Err(Refused::Disk);
        }
        active.len += self.buffer.len() as u64;
        Ok(())
    }

    /// Sees to it that the open segment has room for a frame.
    fn make_room(&mut self, frame: u64) -> Result<(), Refused> {
        let need = frame + TOPIC_FRAME_MAX + self.acks_room();
        if let Some(active) = &self.active
            && active.len + need <= active.size
        {
            return Ok(());
        }
        if self.active.is_some() {
            self.write_acks();
            // A failed sync has abandoned it; a new one is begun either way.
            self.sync().ok();
        }
        // Twice as long as it must be, so that most of it is messages however many topics there are.
        self.ranges_room = RANGES_ROOM.max(2 * self.start_len());
        let need = need.max(frame + TOPIC_FRAME_MAX + self.acks_room());
        let size = self.limits.segment().max(2 * (self.start_len() + need));
        if self.used + size > self.limits.max {
            self.delete_spent(0, false);
        }
        if self.used + size > self.limits.max {
            return Err(Refused::Full);
        }
        self.begin(Some(size), need)
    }

    /// Room in each segment that no message takes.
    fn acks_room(&self) -> u64 {
        ACKS_ROOM + self.ranges_room
    }

    /// Bytes of a segment's start.
    fn start_len(&self) -> u64 {
        let states = self.topics.states().map(|state| state.frame_len() as u64);
        HEADER_LEN as u64 + states.sum::<u64>()
    }

    /// Begins a segment of that size, or one with room for acknowledgements alone, which may be whatever the limit says:
    /// without them nothing could ever be deleted. The one before stays open until that has worked.
    pub(super) fn begin(&mut self, size: Option<u64>, need: u64) -> Result<(), Refused> {
        let now = millis(self.disk.now());
        // A clock that was put back must not make it a long rest.
        if now < self.rest.0 && self.rest.0 - now <= REST.1.as_millis() as u64 {
            return Err(Refused::Disk);
        }
        self.ranges_room = RANGES_ROOM.max(2 * self.start_len());
        let least = self.start_len() + need.max(self.acks_room());
        let created = self.create(size.unwrap_or(least), least, size.is_some());
        let (number, mut file, size) = created.map_err(|error| {
            tracing::error!(%error, bytes = least, "the spool cannot begin a segment");
            match error.kind() {
                io::ErrorKind::StorageFull => Refused::Full,
                _ => Refused::Disk,
            }
        })?;
        let header = Header {
            number,
            created: now,
            salt: self.disk.salt(),
        };
        let mut start = header.encode().to_vec();
        for state in self.topics.states() {
            header.topic(&mut start, &state);
        }
        self.used += size;
        let written = file.write_at(&start, 0);
        let len = start.len() as u64;
        let mut segment = Segment::new(size, header.created);
        segment.len = if written.is_ok() { len } else { 0 };
        self.index.lock().insert(number, segment);
        self.seal();
        self.active = Some(Active {
            number,
            header,
            file,
            len,
            size,
            entered: false,
        });
        if let Err(error) = written {
            self.abandon(&error);
            return Err(Refused::Disk);
        }
        (self.acks.skipped, self.acks.loose) = (false, true);
        Ok(())
    }

    /// Gives up the open segment: nothing more is written to it, and what was not durable is not.
    fn abandon(&mut self, error: &io::Error) {
        tracing::error!(%error, "the spool's disk failed; its segment is not written to any more");
        self.settle(true);
        self.acks.skipped = true;
        self.seal();
        let (_, failures) = self.rest;
        let rest = REST.0.saturating_mul(1 << failures.min(10)).min(REST.1);
        self.rest = (
            millis(self.disk.now()) + rest.as_millis() as u64,
            failures.saturating_add(1),
        );
    }

    fn settle(&mut self, failed: bool) {
        if failed && self.written > self.settled {
            self.failed.push_back((self.settled + 1, self.written));
            if self.failed.len() > FAILED_MAX
                && let Some((from, _)) = self.failed.pop_front()
                && let Some(second) = self.failed.front_mut()
            {
                second.0 = from;
            }
        }
        self.settled = self.written;
    }

    /// Makes the acknowledgements durable; false if there is nowhere to write them.
    pub(super) fn fasten_acks(&mut self) -> bool {
        self.write_acks();
        if self.acks.skipped || self.active.is_none() {
            self.write_ranges();
        }
        !self.acks.skipped && self.active.is_some() && (!self.acks.loose || self.sync().is_ok())
    }

    /// Writes all that is acknowledged as ranges: a few bytes, however many messages they are.
    fn write_ranges(&mut self) {
        let fits = |active: &Active| active.len + self.start_len() <= active.size;
        if !self.active.as_ref().is_some_and(fits) {
            if self.active.is_some() && self.sync().is_err() {
                return;
            }
            self.begin(None, 0).ok();
            return;
        }
        let Some(active) = self.active.as_ref() else {
            return;
        };
        self.buffer.clear();
        for state in self.topics.states() {
            active.header.topic(&mut self.buffer, &state);
        }
        if self.put_buffer().is_ok() {
            (self.acks.skipped, self.acks.loose) = (false, true);
        }
    }
}

/// Bytes of a topic's first frame, at most.
const TOPIC_FRAME_MAX: u64 = (frame::FRAME_LEN + 11 + 255) as u64;
const _: () = assert!(HEADER_LEN as u64 + TOPIC_FRAME_MAX + ACKS_ROOM < SEGMENT_MIN);
