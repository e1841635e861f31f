//! The durable local log before the broker: one path, append → send in log order → broker.
//!
//! A message is written to a segment, passed on to be sent, and kept until the broker has it. A 202 may wait for either:
//! for the disk (`kept` after a sync, one for all that wait) or for the broker. What is owed to the broker is read back
//! from the segments and sent again in order after any fault; a message goes with its own id each time.
//!
//! * `frame`: what is in a segment, byte for byte; pure
//! * `segment`: what is remembered of each segment, and where to read
//! * `topics`: their numbers, and what of each is owed no longer
//! * `log`: append, sync, acknowledge, delete; no threads
//! * `space`: what the log takes up on disk
//! * `recover`: what an earlier run left
//! * `writer`: the one thread that writes
//! * `reader`: reading back
//! * `receipt`: a caller and its message
//! * `disk`: what is needed of the machine, so that tests can make it fail

mod disk;
mod frame;
mod log;
mod ranges;
mod reader;
mod receipt;
mod recover;
mod segment;
mod space;
mod topics;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

pub use frame::{Ack, Entry, Place};
pub use log::Refused;
pub use reader::Reader;
pub use receipt::{Caller, Promise, Receipt, Unkept, pair};
pub use recover::{Known, OpenError, Recovery, Standing};

use disk::{Disk, RealDisk};
use log::{Limits, Log};
use segment::Index;
use writer::{Ask, Desk};

use crate::config::model::Spool as Rule;
use crate::lifecycle::folder;

/// Bytes of messages that may wait for the writer; their callers hold them in memory in any case.
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Where written messages go on to, in log order. It is called on the writing thread and must not block.
pub trait Sink: Send + Sync + 'static {
    /// A message was written. It need not be durable yet.
    fn written(&self, written: Written<'_>);
}

/// A message that was written.
pub struct Written<'a> {
    /// Its place in the log.
    pub place: Place,
    /// The message.
    pub entry: &'a Entry,
    /// Who waits for it.
    pub caller: &'a Caller,
}

/// A topic as an earlier run left it.
#[derive(Debug, Clone)]
pub struct TopicLeft {
    /// Its index.
    pub index: u16,
    /// Its name.
    pub name: Arc<str>,
    /// The number of its next message.
    pub next: u64,
    /// The numbers that are not owed, in order.
    pub done: Vec<std::ops::Range<u64>>,
}

/// A spool that is read but not begun: it writes only once it knows where messages go on to.
pub struct Opened {
    /// What was found.
    pub recovery: Recovery,
    /// Its topics.
    pub topics: Vec<TopicLeft>,
    log: Log,
    shared: Shared,
    lock: File,
}

#[derive(Clone)]
struct Shared {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    index: Arc<Index>,
}

/// An open spool. Dropping it writes what waits, syncs, and gives the folder free.
pub struct Spool {
    desk: Arc<Desk>,
    gauges: Arc<Gauges>,
    shared: Shared,
    record_max: usize,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Held as long as the spool is open: another process must not write here.
    _lock: File,
}

/// What the writer tells about itself.
#[derive(Debug, Default)]
struct Gauges {
    used: AtomicU64,
    owed: AtomicU64,
}

impl Gauges {
    fn set(&self, used: u64, owed: u64) {
        self.used.store(used, Ordering::Relaxed);
        self.owed.store(owed, Ordering::Relaxed);
    }
}

impl Spool {
    /// Opens the folder, makes it if it is missing, and reads what an earlier run left. Of all messages the last
    /// `known_max` are listed, and those that are done are kept for `keep` where there is room.
    ///
    /// # Errors
    /// See [`OpenError`]. Damage is no error: it is told in [`Opened::recovery`].
    pub fn open(rule: &Rule, known_max: usize, keep: Duration) -> Result<Opened, OpenError> {
        Self::open_on(Arc::new(RealDisk), rule, known_max, keep)
    }

    fn open_on(
        disk: Arc<dyn Disk>,
        rule: &Rule,
        known_max: usize,
        keep: Duration,
    ) -> Result<Opened, OpenError> {
        let folder = rule.path.clone();
        disk.make_folder(&folder).map_err(OpenError::io(&folder))?;
        let lock = lock(&folder)?;
        let (found, recovery) = recover::recover(&*disk, &folder, known_max)?;
        let index = Arc::clone(&found.index);
        let topics = (0..)
            .zip(&found.topics.list)
            .map(|(index, topic)| TopicLeft {
                index,
                name: Arc::clone(&topic.name),
                next: topic.next,
                done: topic.acked.first(usize::MAX),
            });
        let topics = topics.collect();
        let limits = Limits {
            max: rule.max,
            keep,
        };
        let shared = Shared {
            disk,
            folder,
            index,
        };
        Ok(Opened {
            recovery,
            topics,
            log: Log::new(
                Arc::clone(&shared.disk),
                shared.folder.clone(),
                limits,
                found,
            ),
            shared,
            lock,
        })
    }

    /// Hands in a message, to be written and sent. `durable` says whether the caller is going to wait for the disk; it
    /// can be asked for later too.
    ///
    /// # Errors
    /// Too much waits for the disk.
    pub fn append(&self, entry: Entry, durable: bool) -> Result<Receipt, Refused> {
        let (caller, receipt) = receipt::pair();
        let ask = Ask {
            entry,
            caller,
            durable,
        };
        match self.desk.ask(ask, QUEUE_BYTES_MAX) {
            true => Ok(receipt),
            false => Err(Refused::Full),
        }
    }

    /// Asks for a message to be made durable, for [`Receipt::kept`].
    pub fn sync(&self, receipt: &Receipt) {
        self.desk.sync(receipt.caller());
    }

    /// Notes that the broker has messages, or that they are given up.
    pub fn acked(&self, acks: &[Ack]) {
        self.desk.acks(acks);
    }

    /// Something that reads the messages of a topic back.
    pub fn reader(&self, topic: u16, name: Arc<str>) -> Reader {
        let shared = self.shared.clone();
        Reader::new(shared.disk, shared.folder, shared.index, (topic, name))
    }

    /// Bytes on disk, as of the last write.
    pub fn used(&self) -> u64 {
        self.gauges.used.load(Ordering::Relaxed)
    }

    /// Messages that are owed to the broker, as of the last write.
    pub fn owed(&self) -> u64 {
        self.gauges.owed.load(Ordering::Relaxed)
    }

    /// Bytes that one message may have, headers and all.
    pub fn record_max(&self) -> usize {
        self.record_max
    }

    /// Writes what waits, syncs, and ends the writing thread. Blocks for as long as that takes.
    pub fn close(&self) {
        self.desk.stop();
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the spool's thread panicked");
        }
    }
}

impl Opened {
    /// Starts the writing thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(self, sink: Arc<dyn Sink>) -> std::io::Result<Spool> {
        let (desk, gauges) = (Arc::new(Desk::default()), Arc::new(Gauges::default()));
        gauges.set(self.log.used(), self.log.owed());
        let record_max = self.log.record_max();
        let (log, at, told) = (self.log, Arc::clone(&desk), Arc::clone(&gauges));
        let writer = std::thread::Builder::new()
            .name("wayside-spool".into())
            .spawn(move || writer::run(log, &at, &*sink, &told))?;
        Ok(Spool {
            desk,
            gauges,
            shared: self.shared,
            record_max,
            writer: Mutex::new(Some(writer)),
            _lock: self.lock,
        })
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "spool at {}", self.shared.folder.display())
    }
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let held = folder::lock(path).map_err(OpenError::io(&path.join("lock")))?;
    held.ok_or_else(|| OpenError::InUse(path.to_owned()))
}

#[cfg(test)]
mod tests;
