//! One topic on its way from the spool to the broker: what is out, what comes next, and whether it may go. Pure.
//!
//! Messages leave in the order of their numbers. If one of them fails, nothing more leaves until all that is out has
//! been answered; then what failed leaves again, before anything later. So a message is never overtaken by a later one
//! of its key, unless the broker itself refuses just one of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::error::Kind;
use crate::spool::Caller;

/// Messages of one topic that may be out.
const OUT_MAX: usize = 20_000;
/// Callers of messages that are not out yet; of more, the first are released by the disk and not by the broker.
const CALLERS_MAX: usize = 1024;
/// The shortest and the longest wait of a topic that the broker refuses.
const PARKED: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long a message waits that the broker alone refuses, and how long what it taught of sizes is believed.
const ASIDE: Duration = Duration::from_secs(60);
/// The wait after the client had no room, or was being made anew.
const AGAIN: Duration = Duration::from_millis(50);

/// A message that left and is not over.
#[derive(Debug)]
struct Flight {
    id: Uuid,
    bytes: usize,
    caller: Option<Caller>,
    /// With the client, unanswered; else to be sent again.
    out: bool,
}

/// What the broker said of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// It has it: partition and offset.
    Taken(i32, i64),
    /// Nobody knows; it must be sent again.
    Again,
    /// It refuses the topic as it is.
    Refused(Kind),
    /// It refuses the message, or the batch that it was in, as too large.
    TooLarge,
    /// It refuses this message, whatever it was sent with.
    Unfit,
}

/// What follows from an answer.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// The message, if it is one of this lane's that was out.
    pub(super) id: Option<Uuid>,
    /// Who is to be told that the broker has it.
    pub(super) caller: Option<Caller>,
    /// Whether it is owed no longer.
    pub(super) over: bool,
    /// It is put aside.
    pub(super) aside: bool,
    /// It had been put aside before.
    was_aside: bool,
    /// An alarm: the topic is refused.
    pub(super) parked: Option<Kind>,
}

impl Settled {
    /// Whether it concerns a message that was put aside, now or before.
    pub(super) fn is_about_aside(&self) -> bool {
        self.aside || self.over && self.was_aside
    }
}

/// A message that waits for the broker to change its mind.
#[derive(Debug)]
struct Aside {
    id: Uuid,
    due: Instant,
    out: bool,
}

/// One topic.
#[derive(Debug)]
pub(super) struct Lane {
    /// Its index in the spool.
    pub(super) topic: u16,
    pub(super) name: Arc<str>,
    /// Messages that left and are not over.
    flights: BTreeMap<u64, Flight>,
    /// The number of the next message to leave.
    next: u64,
    /// One past the last that ever left; `next` is before it while what failed is sent again.
    reached: u64,
    /// One past the last message in the log.
    end: u64,
    /// From `reached` on: over since an earlier run, or never in the log. In order.
    done: Vec<Range<u64>>,
    out: usize,
    bytes: usize,
    /// Whether the next message comes from the writer's hand, not from the disk.
    live: bool,
    /// Something failed: nothing leaves until all that is out is answered.
    draining: bool,
    /// Nothing leaves before that.
    until: Option<Instant>,
    /// Why the topic is refused, and how often in a row it was.
    refused: Option<(Kind, u32)>,
    /// Bytes that may be out, after a batch was too large.
    batch_max: Option<usize>,
    /// Bytes that were too large alone, and until when that is believed.
    too_large: Option<(usize, Instant)>,
    aside: BTreeMap<u64, Aside>,
    /// Callers of messages that have not left.
    callers: BTreeMap<u64, Caller>,
}

impl Lane {
    /// A lane of whose log `end` is the end, and of whose messages those in `done` are over.
    pub(super) fn new(topic: u16, name: Arc<str>, end: u64, done: &[Range<u64>]) -> Self {
        let first = done.first().filter(|range| range.start == 0);
        let base = first.map_or(0, |range| range.end).min(end);
        let done = done.iter().filter(|range| range.end > base).cloned();
        Self {
            topic,
            name,
            flights: BTreeMap::new(),
            next: base,
            reached: base,
            end,
            done: done.collect(),
            out: 0,
            bytes: 0,
            live: base == end,
            draining: false,
            until: None,
            refused: None,
            batch_max: None,
            too_large: None,
            aside: BTreeMap::new(),
            callers: BTreeMap::new(),
        }
    }

    /// A lane that begins with a number.
    pub(super) fn from(topic: u16, name: Arc<str>, first: u64) -> Self {
        Self::new(topic, name, first, std::slice::from_ref(&(0..first)))
    }

    /// Whether the next message comes from the writer's hand.
    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    /// Whether a reading thread has something to look at.
    pub(super) fn is_behind(&self) -> bool {
        !self.live || self.draining
    }

    /// Messages that are out.
    pub(super) fn out(&self) -> usize {
        self.out
    }

    /// Bytes that are out.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether everything in the log is over or put aside.
    pub(super) fn is_empty(&self) -> bool {
        self.flights.is_empty() && self.next == self.end
    }

    /// Whether the broker refuses the topic.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// The numbers to read, if there are some and they may leave; none at all if only the end is to be seen.
    pub(super) fn wants(&mut self, now: Instant) -> Option<Range<u64>> {
        if self.until.is_some_and(|until| now < until) {
            return None;
        }
        self.until = None;
        if self.draining {
            if self.out > 0 {
                return None;
            }
            self.draining = false;
            self.live = false;
            self.next = self.flights.keys().next().copied().unwrap_or(self.reached);
        }
        (!self.live).then_some(self.next..self.end)
    }

    /// When it is worth asking again, if time alone decides.
    pub(super) fn due(&self) -> Option<Instant> {
        let aside = self.aside.values().filter(|aside| !aside.out);
        let aside = aside.map(|aside| aside.due).min();
        self.until.into_iter().chain(aside).min()
    }

    /// It cannot be read at the moment.
    pub(super) fn unreadable(&mut self, until: Instant) {
        self.until = Some(until);
    }

    /// Why a new message of that size is better refused at once, and for how long.
    pub(super) fn refusal(&self, bytes: usize, now: Instant) -> Option<(Kind, Duration)> {
        let large = self
            .too_large
            .filter(|(size, until)| bytes >= *size && now < *until);
        if let Some((_, until)) = large {
            return Some((Kind::RecordTooLarge, until - now));
        }
        let (kind, _) = self.refused?;
        let wait = self
            .until
            .and_then(|until| until.checked_duration_since(now));
        // With something owed to it, the topic is tried with that. With nothing, a new message is the trial.
        match self.is_empty() {
            true => wait.map(|wait| (kind, wait)),
            false => Some((kind, wait.unwrap_or_default())),
        }
    }

    /// The log has a message. True if it leaves at once, by the writer's hand.
    pub(super) fn written(
        &mut self,
        seq: u64,
        (id, bytes): (Uuid, usize),
        caller: &Caller,
        room: usize,
    ) -> bool {
        if seq > self.end {
            // Numbers of a write that failed: they are nowhere.
            self.done.push(self.end..seq);
            self.skip_done();
        }
        self.end = seq + 1;
        let free = self.live && !self.draining && self.until.is_none();
        if free && self.next == seq && self.fits(bytes, room) {
            self.leave(id, bytes, Some(caller.clone()));
            return true;
        }
        self.live = false;
        if self.callers.len() >= CALLERS_MAX {
            self.callers.pop_first();
        }
        self.callers.insert(seq, caller.clone());
        false
    }

    /// A message was read back. `None` if it must wait; otherwise whether it leaves now (it may be over already).
    pub(super) fn read(
        &mut self,
        seq: u64,
        (id, bytes): (Uuid, usize),
        room: usize,
    ) -> Option<bool> {
        if seq < self.next {
            return Some(false);
        }
        if self.draining || self.until.is_some() {
            return None;
        }
        if self.is_over(seq) {
            self.step(seq);
            return Some(false);
        }
        if !self.fits(bytes, room) {
            return None;
        }
        let caller = self.callers.remove(&seq);
        self.leave(id, bytes, caller);
        Some(true)
    }

    /// Counts the numbers up to `seq` that were not read, and so are not in the log, as over. Tells which of them were
    /// owed: they cannot be read any more.
    pub(super) fn pass(&mut self, seq: u64) -> Vec<u64> {
        let mut gone = Vec::new();
        while self.next < seq.min(self.end) && !self.draining {
            let number = self.next;
            if !self.is_over(number) {
                let caller = self
                    .flights
                    .remove(&number)
                    .and_then(|flight| flight.caller);
                let caller = caller.or_else(|| self.callers.remove(&number));
                // It is not kept after all; a caller that still waits must not be told that it is.
                if let Some(caller) = caller {
                    caller.returned(Kind::Spool);
                }
                gone.push(number);
            }
            self.step(number);
        }
        gone
    }

    /// Whether a number from `next` on is owed no longer.
    fn is_over(&self, seq: u64) -> bool {
        match seq < self.reached {
            true => !self.flights.contains_key(&seq),
            false => self.done.first().is_some_and(|range| range.contains(&seq)),
        }
    }

    /// The next number is the one after this.
    fn step(&mut self, seq: u64) {
        self.next = seq + 1;
        self.reached = self.reached.max(self.next);
        self.skip_done();
    }

    /// Goes past numbers that are over, without looking at each.
    fn skip_done(&mut self) {
        while let Some(range) = self.done.first().cloned() {
            if range.end > self.reached {
                if self.next < self.reached || !range.contains(&self.next) {
                    return;
                }
                (self.next, self.reached) = (range.end, range.end);
            }
            self.done.remove(0);
        }
    }

    /// Everything that was read has left: the writer's hand takes over if the log has nothing more.
    pub(super) fn caught_up(&mut self) {
        self.live = self.next == self.end && !self.draining;
    }

    fn fits(&self, bytes: usize, room: usize) -> bool {
        // One always may leave, or a large one never would.
        if self.out == 0 {
            return true;
        }
        // A refused topic is tried with one message. What failed is among the flights already.
        let full = self.next == self.reached && self.flights.len() >= OUT_MAX;
        if self.refused.is_some() || full {
            return false;
        }
        let most = self.batch_max.unwrap_or(usize::MAX);
        bytes <= room && self.bytes + bytes <= most
    }

    fn leave(&mut self, id: Uuid, bytes: usize, caller: Option<Caller>) {
        let seq = self.next;
        let before = self.flights.remove(&seq).and_then(|flight| flight.caller);
        let flight = Flight {
            id,
            bytes,
            caller: before.or(caller),
            out: true,
        };
        self.flights.insert(seq, flight);
        self.out += 1;
        self.bytes += bytes;
        self.step(seq);
    }

    /// The number that a tag's lower half means: the nearest to those that are out.
    pub(super) fn seq(&self, low: u32) -> u64 {
        let behind = (self.reached as u32).wrapping_sub(low);
        // What is out is far less than half of what 32 bits can tell apart.
        match behind < 1 << 31 {
            true => self.reached.saturating_sub(u64::from(behind)),
            false => self.reached + u64::from(behind.wrapping_neg()),
        }
    }

    /// The broker's answer to a message.
    pub(super) fn settle(&mut self, seq: u64, said: Said, now: Instant) -> Settled {
        if !self.flights.get(&seq).is_some_and(|flight| flight.out) {
            return self.settle_aside(seq, said, now);
        }
        let Some(mut flight) = self.flights.remove(&seq) else {
            return Settled::default();
        };
        self.out -= 1;
        self.bytes -= flight.bytes;
        let mut settled = Settled {
            id: Some(flight.id),
            ..Settled::default()
        };
        // Of several it is not known which was too large.
        let alone = match said {
            Said::TooLarge => self.out == 0 && !self.draining,
            other => other == Said::Unfit,
        };
        let refused = match said {
            Said::Refused(kind) => Some(kind),
            Said::TooLarge if alone => Some(Kind::RecordTooLarge),
            Said::Unfit => Some(Kind::BrokerRefused),
            Said::Taken(..) | Said::Again | Said::TooLarge => None,
        };
        let returned = refused.is_some_and(|kind| {
            let caller = flight.caller.take_if(|caller| caller.returned(kind));
            caller.is_some()
        });
        settled.over = returned || matches!(said, Said::Taken(..));
        settled.aside = alone && !returned;
        if alone && said == Said::TooLarge {
            // It was this one, so the others may go together again.
            self.batch_max = None;
            self.too_large = Some((flight.bytes, now + ASIDE));
        }
        if settled.aside {
            let (id, due, out) = (flight.id, now, false);
            self.aside.insert(seq, Aside { id, due, out });
        }
        if settled.over {
            settled.caller = flight.caller.take();
        } else if !settled.aside {
            flight.out = false;
            self.flights.insert(seq, flight);
        }
        if !alone {
            self.follow(said, now, &mut settled);
        }
        settled
    }

    /// What an answer means for those that come after it.
    fn follow(&mut self, said: Said, now: Instant, settled: &mut Settled) {
        match said {
            Said::Taken(..) => {
                // What was too large together is found anew, in case the topic takes more now.
                self.batch_max = self.batch_max.map(|most| most + most / 16 + 1);
                if self.refused.take().is_some() {
                    self.until = None;
                }
            }
            Said::Again | Said::Unfit => self.draining = true,
            Said::Refused(kind) => {
                // All that was out at the time fails for one reason, which counts once.
                if !self.draining || self.refused.is_none() {
                    let times = self.refused.map_or(0, |(_, times)| times) + 1;
                    let wait = PARKED.0.saturating_mul(1 << times.min(10)).min(PARKED.1);
                    self.until = Some(now + wait);
                    if self.refused.is_none() {
                        settled.parked = Some(kind);
                    }
                    self.refused = Some((kind, times));
                }
                self.draining = true;
            }
            Said::TooLarge => {
                // Half of what was out: in the end one at a time, and that one is told from the others.
                if !self.draining {
                    self.batch_max = Some(self.bytes / 2);
                }
                self.draining = true;
            }
        }
    }

    fn settle_aside(&mut self, seq: u64, said: Said, now: Instant) -> Settled {
        let taken = matches!(said, Said::Taken(..));
        let id = match self.aside.get_mut(&seq) {
            Some(aside) if !taken => {
                (aside.out, aside.due) = (false, now + ASIDE);
                None
            }
            Some(aside) => Some(aside.id),
            None => None,
        };
        if id.is_some() {
            self.aside.remove(&seq);
            self.too_large = None;
        }
        Settled {
            over: id.is_some(),
            was_aside: true,
            id,
            ..Settled::default()
        }
    }

    /// A message that was put aside and is to be tried again now; one at a time.
    pub(super) fn aside(&mut self, now: Instant) -> Option<u64> {
        if self.aside.is_empty() || self.aside.values().any(|aside| aside.out) {
            return None;
        }
        let (seq, aside) = self.aside.iter_mut().find(|(_, aside)| aside.due <= now)?;
        aside.out = true;
        Some(*seq)
    }

    /// A message that was put aside cannot be read any more.
    pub(super) fn forget_aside(&mut self, seq: u64) {
        self.aside.remove(&seq);
    }

    /// How many are put aside.
    pub(super) fn aside_len(&self) -> usize {
        self.aside.len()
    }

    /// A message that left did not, in the end, reach the client. It leaves again after a moment.
    pub(super) fn not_taken(&mut self, seq: u64, now: Instant) {
        self.settle(seq, Said::Again, now);
        self.until = Some(self.until.unwrap_or(now).max(now + AGAIN));
    }

    /// The client is gone: all that is out leaves again.
    pub(super) fn lost(&mut self, now: Instant) {
        self.flights
            .values_mut()
            .for_each(|flight| flight.out = false);
        self.aside.values_mut().for_each(|aside| aside.out = false);
        (self.out, self.bytes) = (0, 0);
        self.draining |= !self.flights.is_empty();
        self.until = Some(self.until.unwrap_or(now).max(now + AGAIN));
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
