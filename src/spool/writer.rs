//! The thread that writes: what waits is taken together, written together and, if anybody asks for that, synced once.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::frame::{Ack, Entry};
use super::log::{Log, Refused};
use super::receipt::Caller;
use super::{Gauges, Sink, Written};
use crate::lifecycle::crash;

/// How long acknowledgements wait for a message to be written with.
const ACKS_WAIT: Duration = Duration::from_millis(100);
/// How long messages are let to gather, and how many are enough not to wait. A broker takes ten times as long.
const GATHER: Duration = Duration::from_micros(150);
const GROUP_FEW: usize = 16;
/// How often old segments are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(10);

/// A message to write.
pub(super) struct Ask {
    pub(super) entry: Entry,
    pub(super) caller: Caller,
    /// Whether the caller waits for it to be durable.
    pub(super) durable: bool,
}

/// What waits for the writer.
#[derive(Default)]
pub(super) struct Desk {
    inbox: Mutex<Inbox>,
    wake: Condvar,
}

#[derive(Default)]
struct Inbox {
    asks: Vec<Ask>,
    /// Bytes of them.
    bytes: usize,
    syncs: Vec<Caller>,
    acks: Vec<Ack>,
    stop: bool,
}

impl Desk {
    /// Hands in a message, unless more than `most` bytes wait.
    pub(super) fn ask(&self, ask: Ask, most: usize) -> bool {
        let bytes = ask.entry.frame_len();
        let mut inbox = self.lock();
        if inbox.stop || inbox.bytes + bytes > most {
            return false;
        }
        inbox.bytes += bytes;
        inbox.asks.push(ask);
        let first = inbox.asks.len() == 1;
        drop(inbox);
        if first {
            self.wake.notify_one();
        }
        true
    }

    /// Asks for a written message to be made durable.
    pub(super) fn sync(&self, caller: Caller) {
        let mut inbox = self.lock();
        if inbox.stop {
            drop(inbox);
            caller.refused(Refused::Disk);
            return;
        }
        inbox.syncs.push(caller);
        drop(inbox);
        self.wake.notify_one();
    }

    /// Hands in acknowledgements. Nobody is woken: the writer looks for them as long as something is owed.
    pub(super) fn acks(&self, acks: &[Ack]) {
        self.lock().acks.extend_from_slice(acks);
    }

    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do. Acknowledgements alone are let to gather for a while, and so are messages where they
    /// come one after another: a group costs as much as several messages.
    fn take(&self, rhythm: Rhythm) -> Inbox {
        let mut inbox = self.lock();
        let mut due = false;
        loop {
            let pressing = inbox.stop || !inbox.asks.is_empty() || !inbox.syncs.is_empty();
            if pressing || due {
                break;
            }
            let wait = match rhythm.owed {
                true => ACKS_WAIT,
                false => TIDY_EVERY,
            };
            let waited = self.wake.wait_timeout(inbox, wait);
            let (held, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            (inbox, due) = (held, timeout.timed_out());
        }
        if rhythm.busy && !inbox.stop && inbox.asks.len() < GROUP_FEW {
            drop(inbox);
            std::thread::sleep(GATHER);
            inbox = self.lock();
        }
        let stop = inbox.stop;
        let taken = std::mem::take(&mut *inbox);
        inbox.stop = stop;
        Inbox { stop, ..taken }
    }
}

/// What the last group tells of the next.
#[derive(Debug, Clone, Copy, Default)]
struct Rhythm {
    /// Something is owed, so acknowledgements will come.
    owed: bool,
    /// Several messages came together, and no sync made the others wait.
    busy: bool,
}

/// Works until the desk is told to stop; what waits then is still written.
pub(super) fn run(mut log: Log, desk: &Desk, sink: &dyn Sink, gauges: &Gauges) {
    let _closed = Closed(desk);
    let mut rhythm = Rhythm {
        owed: log.owed() > 0,
        busy: false,
    };
    loop {
        let inbox = desk.take(rhythm);
        log.acked(&inbox.acks);
        let mut waiting = inbox.syncs;
        let several = inbox.asks.len() > 1;
        write(&mut log, inbox.asks, sink, &mut waiting);
        rhythm.busy = several && waiting.is_empty();
        if !waiting.is_empty() {
            crash::point("spool-written");
            settle(&mut log, waiting);
        }
        crash::point("spool-tidy");
        log.tidy();
        rhythm.owed = log.owed() > 0;
        gauges.set(log.used(), log.owed());
        if inbox.stop {
            log.sync().ok();
            break;
        }
    }
}

/// Turns away whoever comes after the writer has ended, well or by a defect.
struct Closed<'a>(&'a Desk);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let mut inbox = self.0.lock();
        let late = std::mem::take(&mut *inbox);
        inbox.stop = true;
        drop(inbox);
        if std::thread::panicking() {
            tracing::error!("the spool's thread has a defect; nothing is taken until a restart");
        }
        let asks = late.asks.into_iter().map(|ask| ask.caller);
        asks.chain(late.syncs)
            .for_each(|caller| caller.refused(Refused::Disk));
    }
}

/// Writes a group and passes it on; those that must be durable join `waiting`.
fn write(log: &mut Log, asks: Vec<Ask>, sink: &dyn Sink, waiting: &mut Vec<Caller>) {
    let mut places = Vec::new();
    let mut rest = asks.as_slice();
    while !rest.is_empty() {
        let before = log.written();
        let taken = log.append(rest.iter().map(|ask| &ask.entry), &mut places);
        if let Err(why) = taken {
            // One that is too large takes no other with it.
            let large = rest.first().is_some_and(|ask| !log.takes(&ask.entry));
            let refused = if large { 1 } else { rest.len() };
            let (refused, left) = rest.split_at(refused);
            refused.iter().for_each(|ask| ask.caller.refused(why));
            rest = left;
            continue;
        }
        let (done, left) = rest.split_at(places.len());
        for ((ask, place), lsn) in done.iter().zip(&places).zip(before + 1..) {
            ask.caller.written(lsn);
            if ask.durable {
                waiting.push(ask.caller.clone());
            }
            sink.written(Written {
                place: *place,
                entry: &ask.entry,
                caller: &ask.caller,
            });
        }
        rest = left;
    }
}

/// Makes what was written durable, and tells those who wait for it.
fn settle(log: &mut Log, waiting: Vec<Caller>) {
    // An earlier sync may have settled all of them.
    let lsns: Vec<_> = waiting.iter().map(Caller::lsn).collect();
    if lsns.iter().flatten().any(|lsn| log.durable(*lsn).is_none()) {
        log.sync().ok();
        crash::point("spool-synced");
    }
    for (caller, lsn) in waiting.into_iter().zip(lsns) {
        match lsn.map(|lsn| log.durable(lsn)) {
            Some(Some(true)) => caller.kept(),
            Some(_) => caller.refused(Refused::Disk),
            // It was answered meanwhile.
            None => {}
        }
    }
}
