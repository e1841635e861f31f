//! What is in a segment, byte for byte. Pure: it knows no file.
//!
//! A segment begins with its header, twice, so that one bad sector does not take the whole with it. Frames follow, one
//! after another, and after the last one zeros (the room that is reserved). Numbers are big-endian.
//!
//! | frame | bytes |
//! |---|---|
//! | mark | 4, drawn for each segment: a body cannot imitate it |
//! | length | 4, of the content |
//! | check | 4, CRC-32C of the segment's salt, the length, the kind and the content |
//! | kind | 1 |
//! | content | see [`Content`] |
//!
//! A frame that does not check is damage if a good one follows, and the torn end of the last write if none does.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use uuid::Uuid;

use crate::headers::Headers;

/// Bytes before a segment's first frame.
pub(super) const HEADER_LEN: usize = 1024;
/// Bytes before a frame's content.
pub(super) const FRAME_LEN: usize = 13;
/// Where the header's second copy is: in another sector than the first.
const SECOND_COPY: usize = 512;
const COPY_LEN: usize = 44;

const MAGIC: [u8; 8] = *b"waysideS";
const VERSION: u32 = 1;

const MESSAGE: u8 = 1;
const TOPIC: u8 = 2;
const ACKS: u8 = 3;

const WITH_PROOF: u8 = 1;
const WITH_KEY: u8 = 2;

/// One acknowledgement in an acks frame.
const ACK_LEN: usize = 22;

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Rises with each segment.
    pub(super) number: u64,
    /// When it was begun, in milliseconds since 1970.
    pub(super) created: u64,
    /// Drawn for it; its upper half is the mark of its frames.
    pub(super) salt: u64,
}

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// Both copies are damaged, or it was never written.
    Damaged,
    /// Another version wrote it.
    Version(u32),
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut copy = [0; COPY_LEN];
        copy[..8].copy_from_slice(&MAGIC);
        copy[8..12].copy_from_slice(&VERSION.to_be_bytes());
        copy[12..20].copy_from_slice(&self.number.to_be_bytes());
        copy[20..28].copy_from_slice(&self.created.to_be_bytes());
        copy[28..36].copy_from_slice(&self.salt.to_be_bytes());
        let check = crc32c::crc32c(&copy[..40]);
        copy[40..].copy_from_slice(&check.to_be_bytes());
        let mut header = [0; HEADER_LEN];
        header[..COPY_LEN].copy_from_slice(&copy);
        header[SECOND_COPY..SECOND_COPY + COPY_LEN].copy_from_slice(&copy);
        header
    }

    /// Reads the header of a segment's first bytes, and whether one of its copies is damaged.
    pub(super) fn decode(segment: &[u8]) -> Result<(Self, bool), BadHeader> {
        let copies = [0, SECOND_COPY].map(|at| segment.get(at..at + COPY_LEN).and_then(Self::copy));
        match copies {
            [Some(found), second] => found.map(|header| (header, second != Some(found))),
            [None, Some(found)] => found.map(|header| (header, true)),
            [None, None] => Err(BadHeader::Damaged),
        }
    }

    /// One copy, if its check is right.
    fn copy(bytes: &[u8]) -> Option<Result<Self, BadHeader>> {
        let check = u32::from_be_bytes(bytes.get(40..44)?.try_into().ok()?);
        if bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..40]) != check {
            return None;
        }
        let mut rest = Reader(&bytes[8..40]);
        let version = rest.u32()?;
        if version != VERSION {
            return Some(Err(BadHeader::Version(version)));
        }
        Some(Ok(Self {
            number: rest.u64()?,
            created: rest.u64()?,
            salt: rest.u64()?,
        }))
    }

    fn mark(&self) -> [u8; 4] {
        // Never zeros: they are what a reserved and unwritten end consists of.
        (((self.salt >> 32) as u32) | 0x0100_0001).to_be_bytes()
    }

    fn check(&self, length: [u8; 4], kind: u8, content: &[u8]) -> u32 {
        let seed = crc32c::crc32c(&self.salt.to_be_bytes());
        let seed = crc32c::crc32c_append(seed, &length);
        crc32c::crc32c_append(crc32c::crc32c_append(seed, &[kind]), content)
    }

    /// Appends a frame whose content `write` appends.
    fn frame(&self, out: &mut Vec<u8>, kind: u8, write: impl FnOnce(&mut Vec<u8>)) {
        let start = out.len();
        out.extend_from_slice(&[0; FRAME_LEN]);
        write(out);
        let length = ((out.len() - start - FRAME_LEN) as u32).to_be_bytes();
        let check = self.check(length, kind, &out[start + FRAME_LEN..]);
        let head = &mut out[start..start + FRAME_LEN];
        head[..4].copy_from_slice(&self.mark());
        head[4..8].copy_from_slice(&length);
        head[8..12].copy_from_slice(&check.to_be_bytes());
        head[12] = kind;
    }

    /// Appends a message.
    pub(super) fn message(&self, out: &mut Vec<u8>, place: Place, entry: &Entry) {
        self.frame(out, MESSAGE, |out| entry.write(place, out));
    }

    /// Appends what is known of a topic.
    pub(super) fn topic(&self, out: &mut Vec<u8>, topic: &TopicState<'_>) {
        self.frame(out, TOPIC, |out| {
            out.extend_from_slice(&topic.index.to_be_bytes());
            out.extend_from_slice(&topic.next.to_be_bytes());
            let name = topic.name.as_bytes();
            // A topic's name has at most 249 bytes.
            out.push(name.len() as u8);
            out.extend_from_slice(name);
            for range in &topic.acked {
                out.extend_from_slice(&range.start.to_be_bytes());
                out.extend_from_slice(&range.end.to_be_bytes());
            }
        });
    }

    /// Appends acknowledgements.
    pub(super) fn acks(&self, out: &mut Vec<u8>, at: u64, acks: &[Ack]) {
        self.frame(out, ACKS, |out| {
            out.extend_from_slice(&at.to_be_bytes());
            for ack in acks {
                out.extend_from_slice(&ack.place.topic.to_be_bytes());
                out.extend_from_slice(&ack.place.seq.to_be_bytes());
                out.extend_from_slice(&ack.partition.to_be_bytes());
                out.extend_from_slice(&ack.offset.to_be_bytes());
            }
        });
    }

    /// Reads the frame at the beginning of `bytes`; `None` if it does not check.
    fn read<'a>(&self, bytes: &'a [u8]) -> Option<(usize, Content<'a>)> {
        if bytes.get(..4)? != self.mark() {
            return None;
        }
        let length: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
        let check = u32::from_be_bytes(bytes.get(8..12)?.try_into().ok()?);
        let kind = *bytes.get(12)?;
        let end = FRAME_LEN + u32::from_be_bytes(length) as usize;
        let content = bytes.get(FRAME_LEN..end)?;
        if self.check(length, kind, content) != check {
            return None;
        }
        Some((end, Content::read(kind, content)))
    }
}

/// Bytes that an acks frame of so many needs.
pub(super) fn acks_len(count: usize) -> usize {
    FRAME_LEN + 8 + count * ACK_LEN
}

/// Names a message within its spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The topic's index in this spool.
    pub topic: u16,
    /// The message's number in it, dense from 0.
    pub seq: u64,
}

/// A message on its way through the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id for life.
    pub id: Uuid,
    /// The topic that it goes to; at most 249 bytes.
    pub topic: Arc<str>,
    /// The route that made it; at most 255 bytes are kept.
    pub route: Arc<str>,
    /// When the call was accepted; kept to the millisecond.
    pub accepted: SystemTime,
    /// SHA-256 of the caller's body, for a message whose id comes from its idempotency key.
    pub proof: Option<[u8; 32]>,
    /// The record's key.
    pub key: Option<Bytes>,
    /// The record's headers.
    pub headers: Headers,
    /// The record's value.
    pub value: Bytes,
}

impl Entry {
    /// Bytes of its frame.
    pub(super) fn frame_len(&self) -> usize {
        FRAME_LEN
            + 39
            + short(&self.route).len()
            + short(&self.topic).len()
            + self.proof.map_or(0, |proof| proof.len())
            + self.key.as_ref().map_or(0, |key| 4 + key.len())
            + self.headers.bytes()
            + self.headers.len() * 6
            + self.value.len()
    }

    fn write(&self, place: Place, out: &mut Vec<u8>) {
        out.extend_from_slice(&place.topic.to_be_bytes());
        out.extend_from_slice(&place.seq.to_be_bytes());
        out.extend_from_slice(&millis(self.accepted).to_be_bytes());
        out.extend_from_slice(self.id.as_bytes());
        // The topic's name too: a message must not depend on another frame for where it goes.
        for name in [short(&self.topic), short(&self.route)] {
            out.push(name.len() as u8);
            out.extend_from_slice(name.as_bytes());
        }
        let proof = if self.proof.is_some() { WITH_PROOF } else { 0 };
        let key = if self.key.is_some() { WITH_KEY } else { 0 };
        out.push(proof | key);
        out.extend_from_slice(self.proof.as_ref().map_or(&[], |proof| &proof[..]));
        if let Some(key) = &self.key {
            out.extend_from_slice(&(key.len() as u32).to_be_bytes());
            out.extend_from_slice(key);
        }
        out.extend_from_slice(&(self.headers.len() as u16).to_be_bytes());
        for (name, value) in self.headers.iter() {
            out.extend_from_slice(&(name.len() as u16).to_be_bytes());
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(&(value.len() as u32).to_be_bytes());
            out.extend_from_slice(value);
        }
        out.extend_from_slice(&self.value);
    }
}

/// As much of a route's name as one byte can count.
fn short(route: &str) -> &str {
    let mut end = route.len().min(usize::from(u8::MAX));
    while !route.is_char_boundary(end) {
        end -= 1;
    }
    &route[..end]
}

/// A message as it lies in a segment, not copied.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) place: Place,
    /// Milliseconds since 1970.
    pub(super) accepted: u64,
    pub(super) id: Uuid,
    pub(super) topic: &'a str,
    pub(super) route: &'a str,
    pub(super) proof: Option<[u8; 32]>,
    key: Option<&'a [u8]>,
    headers: &'a [u8],
    value: &'a [u8],
}

impl<'a> Stored<'a> {
    fn read(content: &'a [u8]) -> Option<Self> {
        let mut rest = Reader(content);
        let place = Place {
            topic: rest.u16()?,
            seq: rest.u64()?,
        };
        let accepted = rest.u64()?;
        let id = Uuid::from_bytes(rest.array()?);
        let topic = rest.name()?;
        let route = rest.name()?;
        let [flags] = rest.array()?;
        let proof = match flags & WITH_PROOF {
            0 => None,
            _ => Some(rest.array()?),
        };
        let key = match flags & WITH_KEY {
            0 => None,
            _ => {
                let length = rest.u32()? as usize;
                Some(rest.take(length)?)
            }
        };
        let from = rest;
        rest.headers(|_, _| ())?;
        Some(Self {
            place,
            accepted,
            id,
            topic,
            route,
            proof,
            key,
            headers: from.0,
            value: rest.0,
        })
    }

    /// A copy of its own, for the named topic.
    pub(super) fn to_entry(self, topic: &Arc<str>) -> Entry {
        let mut headers = Headers::new();
        // They were read once already, when the frame was.
        Reader(self.headers).headers(|name, value| {
            headers.push(String::from_utf8_lossy(name).into_owned(), value);
        });
        Entry {
            id: self.id,
            topic: Arc::clone(topic),
            route: Arc::from(self.route),
            accepted: UNIX_EPOCH + Duration::from_millis(self.accepted),
            proof: self.proof,
            key: self.key.map(Bytes::copy_from_slice),
            headers,
            value: Bytes::copy_from_slice(self.value),
        }
    }
}

/// What is known of a topic at a segment's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopicState<'a> {
    pub(super) index: u16,
    /// The number that its next message gets.
    pub(super) next: u64,
    pub(super) name: Cow<'a, str>,
    /// Messages that are no longer owed to the broker, in order.
    pub(super) acked: Vec<Range<u64>>,
}

impl<'a> TopicState<'a> {
    /// Bytes of its frame.
    pub(super) fn frame_len(&self) -> usize {
        FRAME_LEN + 11 + self.name.len() + 16 * self.acked.len()
    }

    fn read(content: &'a [u8]) -> Option<Self> {
        let mut rest = Reader(content);
        let (index, next) = (rest.u16()?, rest.u64()?);
        let name = rest.name()?;
        let mut acked = Vec::new();
        while !rest.0.is_empty() {
            acked.push(rest.u64()?..rest.u64()?);
        }
        Some(Self {
            index,
            next,
            name: Cow::Borrowed(name),
            acked,
        })
    }
}

/// The broker has a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Which.
    pub place: Place,
    /// The partition, or [`Ack::VOID`] or [`Ack::LOST`].
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

impl Ack {
    /// In the place of a partition: the message was taken back before anybody was promised it.
    pub const VOID: i32 = -1;
    /// In the place of a partition: the message cannot be read any more.
    pub const LOST: i32 = -2;
}

/// A frame's content.
#[derive(Debug)]
pub(super) enum Content<'a> {
    Message(Stored<'a>),
    Topic(TopicState<'a>),
    /// When, in milliseconds since 1970, and which.
    Acks(u64, Vec<Ack>),
    /// It checks, and yet it is none of the above.
    Strange,
}

impl<'a> Content<'a> {
    fn read(kind: u8, content: &'a [u8]) -> Self {
        let read = match kind {
            MESSAGE => Stored::read(content).map(Self::Message),
            TOPIC => TopicState::read(content).map(Self::Topic),
            ACKS => read_acks(content).map(|(at, acks)| Self::Acks(at, acks)),
            _ => None,
        };
        read.unwrap_or(Self::Strange)
    }
}

fn read_acks(content: &[u8]) -> Option<(u64, Vec<Ack>)> {
    let mut rest = Reader(content);
    let at = rest.u64()?;
    let mut acks = Vec::with_capacity(rest.0.len() / ACK_LEN);
    while !rest.0.is_empty() {
        acks.push(Ack {
            place: Place {
                topic: rest.u16()?,
                seq: rest.u64()?,
            },
            partition: i32::from_be_bytes(rest.array()?),
            offset: i64::from_be_bytes(rest.array()?),
        });
    }
    Some((at, acks))
}

/// One step of a walk over a segment's frames.
#[derive(Debug)]
pub(super) enum Step<'a> {
    /// A good frame, and where it ends.
    Frame(Content<'a>, usize),
    /// Bytes that do not check, with a good frame behind them.
    Damage(Range<usize>),
    /// No further frame; whether what follows is anything but zeros.
    End { at: usize, torn: bool },
}

/// Reads what is at `at`. The walk goes on where the frame or the damage ends.
pub(super) fn step<'a>(header: &Header, segment: &'a [u8], at: usize) -> Step<'a> {
    let rest = segment.get(at..).unwrap_or_default();
    if let Some((length, content)) = header.read(rest) {
        return Step::Frame(content, at + length);
    }
    let written = &rest[..written_len(rest)];
    let mark = header.mark();
    let mut from = 1;
    while let Some(found) = written.get(from..).and_then(|rest| find(rest, mark)) {
        from += found;
        if header.read(&rest[from..]).is_some() {
            return Step::Damage(at..at + from);
        }
        from += 1;
    }
    Step::End {
        at,
        torn: !written.is_empty(),
    }
}

/// Bytes up to the last one that is not zero.
pub(super) fn written_len(bytes: &[u8]) -> usize {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut end = bytes.len();
    // In large steps first: most of a reserved end is zeros.
    while let Some(before) = end.checked_sub(ZEROS.len()) {
        if bytes[before..end] != ZEROS {
            break;
        }
        end = before;
    }
    bytes[..end]
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1)
}

fn find(bytes: &[u8], mark: [u8; 4]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from
            + bytes
                .get(from..)?
                .iter()
                .position(|byte| *byte == mark[0])?;
        if bytes.get(at..at + 4)? == mark {
            return Some(at);
        }
        from = at + 1;
    }
}

pub(super) fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64
}

/// Takes bytes from the front; `None` when there are too few.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn name(&mut self) -> Option<&'a str> {
        let [length] = self.array()?;
        std::str::from_utf8(self.take(length.into())?).ok()
    }

    fn headers(&mut self, mut each: impl FnMut(&'a [u8], &'a [u8])) -> Option<()> {
        for _ in 0..self.u16()? {
            let length = self.u16()?.into();
            let name = self.take(length)?;
            let length = self.u32()? as usize;
            each(name, self.take(length)?);
        }
        Some(())
    }
}
