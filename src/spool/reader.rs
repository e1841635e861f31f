//! Reading messages back, on a thread that does not write.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::disk::{Disk, Readable};
use super::frame::{self, Content, Entry, HEADER_LEN, Header, Place, Step};
use super::recover::EIO;
use super::segment::{self, Index, Spot};

/// Bytes read at a time; a larger frame is read whole.
const CHUNK: usize = 256 << 10;
/// Messages in one batch.
const BATCH_MAX: usize = 512;

/// Reads the messages of one topic in order.
pub struct Reader {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    index: Arc<Index>,
    topic: u16,
    name: Arc<str>,
    /// Where the last batch ended, and the file.
    at: Option<Open>,
    /// How often in a row it could not read.
    failed: u32,
}

struct Open {
    file: Box<dyn Readable>,
    header: Header,
    segment: u64,
    /// The next message's number, and an offset at or before it.
    next: u64,
    offset: u64,
}

impl Reader {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        folder: PathBuf,
        index: Arc<Index>,
        (topic, name): (u16, Arc<str>),
    ) -> Self {
        Self {
            disk,
            folder,
            index,
            topic,
            name,
            at: None,
            failed: 0,
        }
    }

    /// Messages from a number on, each with its own: at most 512, and about `bytes_max` bytes, but one at least if there
    /// is one. Numbers that are left out are not in the log any more, or do not check. Empty when there is none yet.
    ///
    /// # Errors
    /// The disk refuses at the moment; nothing is said of any message.
    pub fn read(&mut self, from: u64, bytes_max: usize) -> io::Result<Vec<(u64, Entry)>> {
        let mut batch = Vec::new();
        let mut next = from;
        loop {
            let place = Place {
                topic: self.topic,
                seq: next,
            };
            let Some(spot) = self.index.find(place) else {
                return Ok(batch);
            };
            match self.read_spot(spot, &mut next, bytes_max, &mut batch) {
                Ok(()) => self.failed = 0,
                Err(error) if self.is_for_good(&error) => {
                    tracing::error!(%error, segment = spot.segment, "a segment of the spool cannot be read any more");
                }
                Err(error) => {
                    self.failed += 1;
                    return Err(error);
                }
            }
            if !batch.is_empty() {
                return Ok(batch);
            }
            // Nothing of it was readable: what it holds is passed over.
            let last = self.index.last(spot.segment, self.topic);
            self.at = None;
            next = next.max(last.map_or(next, |last| last + 1));
        }
    }

    /// Whether an error will not pass: a bad sector, a header that does not check, a file that is not there although it
    /// should be (once it may just have been deleted).
    fn is_for_good(&self, error: &io::Error) -> bool {
        error.raw_os_error() == Some(EIO)
            || error.kind() == io::ErrorKind::InvalidData
            || error.kind() == io::ErrorKind::NotFound && self.failed > 0
    }

    /// Gives its file back until it reads again: a file that is deleted meanwhile would keep its place on the disk.
    pub fn rest(&mut self) {
        self.at = None;
    }

    fn read_spot(
        &mut self,
        spot: Spot,
        next: &mut u64,
        bytes_max: usize,
        batch: &mut Vec<(u64, Entry)>,
    ) -> io::Result<()> {
        let mut open = match self.at.take() {
            Some(open) if open.segment == spot.segment && open.next == *next => open,
            _ => self.open(spot, *next)?,
        };
        let (mut bytes, mut size) = (Vec::new(), CHUNK);
        let mut taken = 0;
        while open.offset < spot.len {
            // Over the messages of other topics, as far as is known where this one goes on.
            let here = Place {
                topic: self.topic,
                seq: *next,
            };
            // What was written meanwhile is not among what may be read this time.
            let mark = self.index.mark(open.segment, here);
            let mark = mark.filter(|mark| (open.offset..spot.len).contains(mark));
            open.offset = mark.unwrap_or(open.offset);
            let length = size
                .min(usize::try_from(spot.len.saturating_sub(open.offset)).unwrap_or(usize::MAX));
            bytes.resize(length, 0);
            let read = open.file.read_at(&mut bytes, open.offset)?;
            bytes.truncate(read);
            let whole = open.offset + read as u64 >= spot.len || read < length;
            let mut at = 0;
            loop {
                match frame::step(&open.header, &bytes, at) {
                    Step::Frame(content, end) => {
                        if let Content::Message(stored) = content
                            && stored.place.topic == self.topic
                            && stored.place.seq >= *next
                        {
                            if batch.len() == BATCH_MAX || taken > bytes_max {
                                open.offset += at as u64;
                                open.next = *next;
                                self.at = Some(open);
                                return Ok(());
                            }
                            taken += end - at;
                            *next = stored.place.seq + 1;
                            batch.push((stored.place.seq, stored.to_entry(&self.name)));
                        }
                        at = end;
                    }
                    // Only at the end of what may be read is it clear that the rest of the frame is not there.
                    Step::Damage(_) | Step::End { .. } if !whole => break,
                    Step::Damage(range) => {
                        tracing::error!(
                            segment = open.segment,
                            bytes = range.len(),
                            "a part of the spool is damaged"
                        );
                        at = range.end;
                    }
                    Step::End { .. } => {
                        at = bytes.len();
                        break;
                    }
                }
            }
            size = if at == 0 { size * 2 } else { CHUNK };
            open.offset += at as u64;
            if whole {
                break;
            }
        }
        open.next = *next;
        self.at = Some(open);
        Ok(())
    }

    fn open(&self, spot: Spot, next: u64) -> io::Result<Open> {
        let path = segment::path(&self.folder, spot.segment);
        let file = self.disk.open(&path)?;
        let mut head = vec![0; HEADER_LEN];
        file.read_at(&mut head, 0)?;
        let header = Header::decode(&head)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "its header is damaged"))?;
        Ok(Open {
            file,
            header: header.0,
            segment: spot.segment,
            next,
            offset: spot.offset,
        })
    }
}
