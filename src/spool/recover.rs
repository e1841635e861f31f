//! What an earlier run left in the folder: read whole, checked, and told.
//!
//! A record that does not check is copied aside and passed over; what is behind it is still delivered. The end of a
//! write that never finished is left out: nobody was promised it. Nothing that lies in the folder ends the process but
//! a segment of another version, which only that version can read.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::disk::{Disk, read_whole};
use super::frame::{self, Ack, BadHeader, Content, HEADER_LEN, Header, Place, Step, TopicState};
use super::log::Found;
use super::ranges::Ranges;
use super::segment::{self, Index, Segment};
use super::topics::Topics;

/// What a bad sector is read as.
pub(super) const EIO: i32 = 5;
/// Names of what was put aside end so.
pub(super) const ASIDE: &str = "damaged";

/// Why a spool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file system refuses.
    #[error("spool.path {}: {source}", path.display())]
    Io {
        /// The folder or the file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process or spool has the folder open.
    #[error("spool.path {}: another process has it open; each sidecar needs a folder of its own", .0.display())]
    InUse(PathBuf),
    /// A segment of another version.
    #[error(
        "spool.path {}: version {version} of the format, which this version of wayside does not read; start the version that wrote it until it is empty",
        path.display()
    )]
    Version {
        /// The segment.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

impl OpenError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// A message of an earlier run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its id.
    pub id: Uuid,
    /// The topic.
    pub topic: Arc<str>,
    /// The route that made it.
    pub route: Arc<str>,
    /// When the call was accepted.
    pub accepted: SystemTime,
    /// SHA-256 of the caller's body, for a message whose id comes from its idempotency key.
    pub proof: Option<[u8; 32]>,
    /// How far it came.
    pub standing: Standing,
}

/// How far a message of an earlier run came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The broker is to get it.
    Owed,
    /// The broker took it: when and where.
    Replicated(SystemTime, i32, i64),
    /// It is owed no longer; that is all that is known.
    Over,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Recovery {
    /// The last messages, the oldest first; at most as many as were asked for.
    pub known: Vec<Known>,
    /// Messages that are still owed to the broker.
    pub owed: u64,
    /// Bytes that did not check and were put aside.
    pub damaged: u64,
    /// Messages that were there once and are not any more. Some of them may never have been promised.
    pub lost: u64,
    /// Bytes at the ends of segments that were never written to their end.
    pub torn: u64,
}

/// A walk over all segments.
struct Walk<'a> {
    disk: &'a dyn Disk,
    folder: &'a Path,
    known_max: usize,
    topics: BTreeMap<u16, Seen>,
    known: VecDeque<(Place, Stub)>,
    /// How many were dropped from the front of `known`.
    dropped: usize,
    at: HashMap<Place, usize>,
    routes: HashSet<Arc<str>>,
    recovery: Recovery,
}

#[derive(Default)]
struct Seen {
    name: Option<Arc<str>>,
    next: u64,
    acked: Ranges,
    present: Ranges,
}

/// A known message whose topic may not be known yet.
struct Stub {
    id: Uuid,
    route: Arc<str>,
    accepted: u64,
    proof: Option<[u8; 32]>,
    standing: Option<Noted>,
}

/// What an acknowledgement said of a message.
#[derive(Clone, Copy)]
enum Noted {
    Replicated(u64, i32, i64),
    /// It was taken back: its caller was refused.
    Void,
}

/// Reads the folder. Of all messages, owed or not, the last `known_max` are listed.
pub(super) fn recover(
    disk: &dyn Disk,
    folder: &Path,
    known_max: usize,
) -> Result<(Found, Recovery), OpenError> {
    let names = disk.list(folder).map_err(OpenError::io(folder))?;
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| segment::number(name))
        .collect();
    numbers.sort_unstable();
    let mut walk = Walk {
        disk,
        folder,
        known_max,
        topics: BTreeMap::new(),
        known: VecDeque::new(),
        dropped: 0,
        at: HashMap::new(),
        routes: HashSet::new(),
        recovery: Recovery::default(),
    };
    let mut segments = BTreeMap::new();
    for number in &numbers {
        if let Some(segment) = walk.segment(*number)? {
            segments.insert(*number, segment);
        }
    }
    // What a killed process wrote lies in the system's memory, and is promised again from now on.
    for number in segments.keys() {
        let path = segment::path(folder, *number);
        disk.sync_file(&path).map_err(OpenError::io(&path))?;
    }
    disk.sync_folder(folder).map_err(OpenError::io(folder))?;
    // Also not that of a segment which was put aside.
    let aside = names
        .iter()
        .filter_map(|name| u64::from_str_radix(name.get(..16)?, 16).ok());
    let last = aside.chain(numbers).max();
    let next = last.map_or(1, |last| last.saturating_add(1));
    Ok(walk.end(segments, next))
}

impl Walk<'_> {
    fn segment(&mut self, number: u64) -> Result<Option<Segment>, OpenError> {
        let path = segment::path(self.folder, number);
        let bytes = match read_whole(self.disk, &path) {
            Ok(bytes) => bytes,
            // A bad sector stays bad. Anything else passes, or is for somebody to put right.
            Err(error) if error.raw_os_error() == Some(EIO) => {
                tracing::error!(path = %path.display(), %error, "a segment of the spool cannot be read and is put aside");
                self.recovery.damaged += 1;
                self.put_aside(&path);
                return Ok(None);
            }
            Err(error) => return Err(OpenError::io(&path)(error)),
        };
        let (header, half) = match Header::decode(&bytes) {
            Ok(found) => found,
            Err(BadHeader::Version(version)) => return Err(OpenError::Version { path, version }),
            Err(BadHeader::Damaged) => {
                // All zeros: it was made and never begun.
                if frame::written_len(&bytes) == 0 {
                    self.disk.remove(&path).map_err(OpenError::io(&path))?;
                } else {
                    tracing::error!(path = %path.display(), "a segment of the spool has no readable header and is put aside");
                    self.recovery.damaged += bytes.len() as u64;
                    self.put_aside(&path);
                }
                return Ok(None);
            }
        };
        if half {
            tracing::warn!(path = %path.display(), "one of the two headers of a segment of the spool is damaged");
            self.recovery.damaged += 1;
        }
        let mut segment = Segment::new(bytes.len() as u64, header.created);
        segment.len = self.frames(&path, &header, &bytes, &mut segment) as u64;
        // It is not written to again, so the room that was reserved in it is free.
        let used = segment.len.max(frame::written_len(&bytes) as u64);
        if used < segment.size && self.disk.shrink(&path, used).is_ok() {
            segment.size = used;
        }
        Ok(Some(segment))
    }

    /// Walks over the frames; answers where the last one ends.
    fn frames(
        &mut self,
        path: &Path,
        header: &Header,
        bytes: &[u8],
        segment: &mut Segment,
    ) -> usize {
        let mut at = HEADER_LEN;
        loop {
            match frame::step(header, bytes, at) {
                Step::Frame(content, end) => {
                    self.content(content, at as u64, segment);
                    at = end;
                }
                Step::Damage(range) => {
                    tracing::error!(
                        path = %path.display(), from = range.start, to = range.end,
                        "a part of the spool is damaged; it is put aside, what follows is good"
                    );
                    self.recovery.damaged += range.len() as u64;
                    self.copy_aside(path, range.start, &bytes[range.clone()]);
                    at = range.end;
                }
                Step::End { at, torn } => {
                    if torn {
                        let torn = frame::written_len(bytes).saturating_sub(at);
                        tracing::warn!(
                            path = %path.display(), from = at, bytes = torn,
                            "the last write to a segment of the spool was not finished; it is left out"
                        );
                        self.recovery.torn += torn as u64;
                    }
                    return at;
                }
            }
        }
    }

    fn content(&mut self, content: Content<'_>, offset: u64, segment: &mut Segment) {
        match content {
            Content::Message(stored) => {
                let place = stored.place;
                let topic = self.topics.entry(place.topic).or_default();
                topic.next = topic.next.max(place.seq.saturating_add(1));
                topic.present.insert(place.seq);
                topic.name.get_or_insert_with(|| Arc::from(stored.topic));
                segment.note(place, offset);
                segment.newest = segment.newest.max(stored.accepted);
                let stub = Stub {
                    id: stored.id,
                    route: self.route(stored.route),
                    accepted: stored.accepted,
                    proof: stored.proof,
                    standing: None,
                };
                self.know(place, stub);
            }
            Content::Topic(state) => self.topic(state),
            Content::Acks(at, acks) => {
                segment.newest = segment.newest.max(at);
                acks.iter().for_each(|ack| self.ack(at, *ack));
            }
            Content::Strange => self.recovery.damaged += 1,
        }
    }

    fn topic(&mut self, state: TopicState<'_>) {
        let topic = self.topics.entry(state.index).or_default();
        topic.name.get_or_insert_with(|| Arc::from(&*state.name));
        topic.next = topic.next.max(state.next);
        state
            .acked
            .into_iter()
            .for_each(|range| topic.acked.add(range));
    }

    fn ack(&mut self, at: u64, ack: Ack) {
        let topic = self.topics.entry(ack.place.topic).or_default();
        topic.acked.insert(ack.place.seq);
        topic.next = topic.next.max(ack.place.seq.saturating_add(1));
        let known = self
            .at
            .get(&ack.place)
            .and_then(|at| at.checked_sub(self.dropped));
        if let Some((_, stub)) = known.and_then(|at| self.known.get_mut(at)) {
            stub.standing = Some(match ack.partition {
                0.. => Noted::Replicated(at, ack.partition, ack.offset),
                _ => Noted::Void,
            });
        }
    }

    /// One text for all messages of a route.
    fn route(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.routes.get(name) {
            return Arc::clone(known);
        }
        let route: Arc<str> = Arc::from(name);
        self.routes.insert(Arc::clone(&route));
        route
    }

    fn know(&mut self, place: Place, stub: Stub) {
        if self.known_max == 0 {
            return;
        }
        if self.known.len() == self.known_max
            && let Some((oldest, _)) = self.known.pop_front()
        {
            self.at.remove(&oldest);
            self.dropped += 1;
        }
        self.at.insert(place, self.dropped + self.known.len());
        self.known.push_back((place, stub));
    }

    fn end(mut self, mut segments: BTreeMap<u64, Segment>, next: u64) -> (Found, Recovery) {
        let mut topics = Topics::default();
        for index in 0..self.topics.keys().next_back().map_or(0, |last| last + 1) {
            let seen = self.topics.remove(&index).unwrap_or_default();
            // One without a name has no message either.
            let name = seen.name.unwrap_or_else(|| Arc::from(format!("?{index}")));
            let Some(added) = topics.add(name) else { break };
            let Some(topic) = topics.list.get_mut(usize::from(added)) else {
                break;
            };
            (topic.next, topic.acked) = (seen.next, seen.acked);
            let mut at = topic.acked.first_missing(0);
            while at < topic.next {
                if !seen.present.contains(at) {
                    self.recovery.lost += 1;
                    topic.acked.insert(at);
                }
                at = topic.acked.first_missing(at + 1);
            }
        }
        for segment in segments.values_mut() {
            let held: Vec<_> = segment.held().collect();
            let owed = held.into_iter().map(|(topic, first, last)| {
                let topic = topics.list.get(usize::from(topic));
                let owed = |seq: &u64| topic.is_some_and(|topic| !topic.acked.contains(*seq));
                (first..=last).filter(owed).count() as u64
            });
            segment.owed = owed.sum();
            self.recovery.owed += segment.owed;
        }
        if self.recovery.lost > 0 {
            tracing::error!(
                messages = self.recovery.lost,
                "messages of the spool are lost to damage"
            );
        }
        self.recovery.known = self.known(&topics);
        let index = Arc::new(Index::default());
        *index.lock() = segments;
        let found = Found {
            topics,
            index,
            next,
        };
        (found, self.recovery)
    }

    fn known(&mut self, topics: &Topics) -> Vec<Known> {
        let time = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        let known = self.known.drain(..).filter_map(|(place, stub)| {
            let topic = topics.list.get(usize::from(place.topic))?;
            let standing = match stub.standing {
                Some(Noted::Void) => return None,
                Some(Noted::Replicated(at, partition, offset)) => {
                    Standing::Replicated(time(at), partition, offset)
                }
                None if topic.acked.contains(place.seq) => Standing::Over,
                None => Standing::Owed,
            };
            Some(Known {
                id: stub.id,
                topic: Arc::clone(&topic.name),
                route: stub.route,
                accepted: time(stub.accepted),
                proof: stub.proof,
                standing,
            })
        });
        known.collect()
    }

    /// Keeps a damaged part for whoever wants to look at it. Failing to is no reason not to go on.
    fn copy_aside(&self, path: &Path, from: usize, bytes: &[u8]) {
        let aside = path.with_extension(format!("{from}.{ASIDE}"));
        let copied = self.disk.create(&aside, bytes.len() as u64);
        let copied = copied.and_then(|mut file| file.write_at(bytes, 0));
        match copied {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                tracing::warn!(path = %aside.display(), %error, "the damaged part is not copied");
            }
            _ => {}
        }
    }

    fn put_aside(&self, path: &Path) {
        if let Err(error) = self.disk.rename(path, &path.with_extension(ASIDE)) {
            tracing::warn!(path = %path.display(), %error, "the segment is not renamed");
        }
    }
}
