//! The log's space on disk: making segments, giving back what they do not need, and deleting those that are done.

use std::io;

use super::disk::Writable;
use super::frame::millis;
use super::log::{Log, SEGMENT_MIN};
use super::segment;

impl Log {
    /// Makes a segment's file; on a disk that is nearly full a smaller one, once there is nothing to delete.
    pub(super) fn create(
        &mut self,
        number: u64,
        most: u64,
        least: u64,
    ) -> io::Result<(Box<dyn Writable>, u64)> {
        let path = segment::path(&self.folder, number);
        self.shrink();
        let mut size = most;
        loop {
            match self.disk.create(&path, size) {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    let open = self.active.is_some();
                    if open && self.delete_spent(0, false) || self.sacrifice() {
                        continue;
                    }
                    let smaller = (size / 2).max(SEGMENT_MIN).max(least);
                    if smaller == size {
                        return Err(error);
                    }
                    size = smaller;
                }
                made => return made.map(|file| (file, size)),
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
            match self.disk.remove(&segment::path(&self.folder, number)) {
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
