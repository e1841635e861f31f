//! What is remembered of each segment: what it holds, what of that is still owed, and where in it to begin to read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::frame::Place;

const SUFFIX: &str = ".spool";
/// Bytes between two remembered places of one topic.
const MARK_EVERY: u64 = 64 << 10;

/// The file of a segment.
pub(super) fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:016x}{SUFFIX}"))
}

/// The number in a segment's file name.
pub(super) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let plain = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain {
        u64::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

/// One segment.
#[derive(Debug, Clone, Default)]
pub(super) struct Segment {
    /// Bytes on disk.
    pub(super) size: u64,
    /// Bytes that may be read.
    pub(super) len: u64,
    /// When something was last written to it, in milliseconds since 1970.
    pub(super) newest: u64,
    /// Its messages that are still owed to the broker.
    pub(super) owed: u64,
    /// Whether messages of it were given up since their bytes do not check.
    pub(super) damaged: bool,
    held: BTreeMap<u16, Held>,
}

/// The messages of one topic in a segment: all from the first to the last, but for damage.
#[derive(Debug, Clone)]
struct Held {
    last: u64,
    /// Numbers, and the offsets where their frames begin; the first message is always among them.
    marks: Vec<(u64, u64)>,
}

impl Segment {
    pub(super) fn new(size: u64, newest: u64) -> Self {
        Self {
            size,
            newest,
            ..Self::default()
        }
    }

    /// Notes a message that is written at an offset.
    pub(super) fn note(&mut self, place: Place, offset: u64) {
        let held = self.held.entry(place.topic).or_insert_with(|| Held {
            last: place.seq,
            marks: Vec::new(),
        });
        held.last = place.seq;
        let near = |(_, mark): &(u64, u64)| offset < mark + MARK_EVERY;
        if !held.marks.last().is_some_and(near) {
            held.marks.push((place.seq, offset));
        }
    }

    /// The topics of its messages, each with the first and the last.
    pub(super) fn held(&self) -> impl Iterator<Item = (u16, u64, u64)> {
        self.held.iter().filter_map(|(topic, held)| {
            let (first, _) = held.marks.first()?;
            Some((*topic, *first, held.last))
        })
    }

    /// Whether a message is among those that it holds.
    pub(super) fn holds(&self, place: Place) -> bool {
        self.held.get(&place.topic).is_some_and(|held| {
            let first = held
                .marks
                .first()
                .is_some_and(|(first, _)| *first <= place.seq);
            first && place.seq <= held.last
        })
    }

    /// An offset from which on the messages of a topic from a number on are found.
    fn offset(&self, place: Place) -> Option<u64> {
        let held = self.held.get(&place.topic)?;
        if held.last < place.seq {
            return None;
        }
        let at = held.marks.partition_point(|(seq, _)| *seq <= place.seq);
        held.marks
            .get(at.saturating_sub(1))
            .map(|(_, offset)| *offset)
    }
}

/// All segments by number, for the writer and for whoever reads.
#[derive(Debug, Default)]
pub(super) struct Index(Mutex<BTreeMap<u64, Segment>>);

/// Where to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) segment: u64,
    pub(super) offset: u64,
    /// Bytes of the segment that may be read.
    pub(super) len: u64,
}

impl Index {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Segment>> {
        // Each change is one statement that cannot panic halfway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last message of a topic in a segment.
    pub(super) fn last(&self, segment: u64, topic: u16) -> Option<u64> {
        let segments = self.lock();
        segments
            .get(&segment)?
            .held
            .get(&topic)
            .map(|held| held.last)
    }

    /// Where in a segment a message is, if that is remembered: it is for each that has none of its topic close before it.
    pub(super) fn mark(&self, segment: u64, place: Place) -> Option<u64> {
        let segments = self.lock();
        let marks = &segments.get(&segment)?.held.get(&place.topic)?.marks;
        let at = marks
            .binary_search_by_key(&place.seq, |(seq, _)| *seq)
            .ok()?;
        marks.get(at).map(|(_, offset)| *offset)
    }

    /// Where the first message of a topic from a number on is; `None` if there is none.
    pub(super) fn find(&self, place: Place) -> Option<Spot> {
        let segments = self.lock();
        segments.iter().find_map(|(number, segment)| {
            Some(Spot {
                segment: *number,
                offset: segment.offset(place)?,
                len: segment.len,
            })
        })
    }
}
