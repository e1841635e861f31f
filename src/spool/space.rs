//! The log's space on disk: making segments, giving back what they do not need, and deleting those that are done.

use std::io;

use super::disk::Writable;
use super::frame::millis;
use super::log::{Log, SEGMENT_MIN};
use super::recover::ASIDE;
use super::segment;

impl Log {
    /// Makes the next segment's file; on a disk that is nearly full a smaller one, once there is nothing to delete. With
    /// `free` it may delete what is done, for which acknowledgements may need a segment of their own.
    pub(super) fn create(
        &mut self,
        most: u64,
        least: u64,
        free: bool,
    ) -> io::Result<(u64, Box<dyn Writable>, u64)> {
        self.shrink();
        let mut size = most;
        loop {
            let path = segment::path(&self.folder, self.next);
            match self.disk.create(&path, size) {
                Ok(file) => {
                    // A number whose file is there, good or not, is never given again.
                    self.next += 1;
                    return Ok((self.next - 1, file, size));
                }
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    if free && self.delete_spent(0, false) || self.sacrifice() {
                        continue;
                    }
                    let smaller = (size / 2).max(SEGMENT_MIN).max(least).min(size);
                    if smaller == size {
                        return Err(error);
                    }
                    size = smaller;
                }
                // Something of another kind has the name.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.next = self.next.checked_add(1).ok_or(error)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Nothing more is written to the open segment: the room that is reserved in it is free.
    pub(super) fn seal(&mut self) {
        let Some(active) = self.active.take() else {
            return;
        };
        self.wide.push((active.number, active.len));
        self.shrink();
    }

    fn shrink(&mut self) {
        let wide = std::mem::take(&mut self.wide);
        for (number, len) in wide {
            let path = segment::path(&self.folder, number);
            match self.disk.shrink(&path, len) {
                Ok(()) => {
                    if let Some(segment) = self.index.lock().get_mut(&number) {
                        self.used -= segment.size - len;
                        segment.size = len;
                    }
                }
                // It is gone already.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) => self.wide.push((number, len)),
            }
        }
    }

    /// Deletes segments that are owed to nobody, the oldest first: those that are too old, if `old`, and those that
    /// are more than `most` bytes together. True if one was deleted.
    pub(super) fn delete_spent(&mut self, most: u64, old: bool) -> bool {
        let spent = self.spent(most, old);
        // An acknowledgement that is not durable would be gone with the power, and its message owed again but not there.
        if spent.is_empty() || !self.fasten_acks() {
            return false;
        }
        self.delete(&spent)
    }

    /// Deletes the oldest segment that is owed to nobody although nowhere says so: the disk has no room for it. If the
    /// process ends right now, the next one misses messages that the broker has, and says so.
    fn sacrifice(&mut self) -> bool {
        if self.active.is_some() {
            return false;
        }
        let oldest = self.spent(0, false);
        self.delete(oldest.get(..1).unwrap_or_default())
    }

    fn delete(&mut self, segments: &[u64]) -> bool {
        let mut deleted = false;
        for number in segments.iter().copied() {
            let path = segment::path(&self.folder, number);
            let damaged = self
                .index
                .lock()
                .get(&number)
                .is_some_and(|one| one.damaged);
            let removed = match damaged {
                true => self.disk.rename(&path, &path.with_extension(ASIDE)),
                false => self.disk.remove(&path),
            };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, "a segment of the spool is not deleted");
                }
                _ => {
                    if let Some(segment) = self.index.lock().remove(&number) {
                        self.used -= segment.size;
                        deleted = true;
                    }
                }
            }
        }
        deleted
    }

    fn spent(&self, most: u64, old: bool) -> Vec<u64> {
        let oldest = millis(self.disk.now()).saturating_sub(self.limits.keep.as_millis() as u64);
        let active = self.active.as_ref().map(|active| active.number);
        let segments = self.index.lock();
        let spent = || {
            let sealed = segments
                .iter()
                .filter(|(number, _)| Some(**number) != active);
            sealed.filter(|(_, segment)| segment.owed == 0)
        };
        let mut held: u64 = spent().map(|(_, segment)| segment.size).sum();
        let due = spent().filter(|(_, segment)| {
            let due = held > most || old && segment.newest < oldest;
            if due {
                held -= segment.size;
            }
            due
        });
        due.map(|(number, _)| *number).collect()
    }
}
