//! One topic on its way from the spool to the broker: what is out, what comes next, and whether it may go. Pure.
//!
//! Messages leave in the order of their numbers. If one of them fails, nothing more leaves until all that is out has
//! been answered; then what failed leaves again, before anything later. So a message is never overtaken by a later one
//! of its key, unless the broker itself refuses just one of them.

use std::collections::{BTreeMap, VecDeque};
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
/// How long a message waits that alone is too large for its topic.
const ASIDE: Duration = Duration::from_secs(60);
/// The wait after the client had no room, or was being made anew.
const AGAIN: Duration = Duration::from_millis(50);

/// A message that left, or must leave again.
#[derive(Debug)]
struct Flight {
    id: Uuid,
    bytes: usize,
    caller: Option<Caller>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// With the client; unanswered.
    Out,
    /// To be sent again.
    Failed,
    /// Owed no longer, or put aside.
    Over,
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
    /// It alone is too large, and is put aside.
    pub(super) aside: bool,
    /// It had been put aside before.
    was_aside: bool,
    /// An alarm: the topic is refused.
    pub(super) parked: Option<Kind>,
}

/// One topic.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) name: Arc<str>,
    /// The first number that is not over.
    base: u64,
    /// The messages from `base` on that have left once.
    flights: VecDeque<Flight>,
    /// The number of the next message to leave: within `flights` when something failed, at their end otherwise.
    next: u64,
    /// One past the last message in the log.
    end: u64,
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
    /// Messages that wait for a larger limit at the broker, and when they are tried again.
    aside: BTreeMap<u64, (Instant, Uuid)>,
    /// Callers of messages that have not left.
    callers: BTreeMap<u64, Caller>,
}

impl Settled {
    /// Whether it concerns a message that was put aside, now or before.
    pub(super) fn is_about_aside(&self) -> bool {
        self.aside || self.over && self.was_aside
    }
}

impl Lane {
    /// A lane whose messages up to `base` are over, and of whose log `end` is the end.
    pub(super) fn new(name: Arc<str>, base: u64, end: u64) -> Self {
        Self {
            name,
            base,
            flights: VecDeque::new(),
            next: base,
            end,
            out: 0,
            bytes: 0,
            live: base == end,
            draining: false,
            until: None,
            refused: None,
            batch_max: None,
            aside: BTreeMap::new(),
            callers: BTreeMap::new(),
        }
    }

    /// A lane as an earlier run left it: of its messages up to `end`, those in `done` are over.
    pub(super) fn left(name: Arc<str>, end: u64, done: &[Range<u64>], now: Instant) -> Self {
        let first = done.first().filter(|range| range.start == 0);
        let mut base = first.map_or(0, |range| range.end).min(end);
        let beyond = || done.iter().filter(|range| range.start > base);
        let widest = beyond().max_by_key(|range| range.end - range.start);
        let mut aside = BTreeMap::new();
        // So many that came after it are over: what is before was put aside, and is again.
        if let Some(wide) = widest.filter(|range| range.end - range.start > OUT_MAX as u64) {
            let over = |seq: &u64| done.iter().any(|range| range.contains(seq));
            let owed = (base..wide.start).filter(|seq| !over(seq));
            aside = owed.map(|seq| (seq, (now, Uuid::nil()))).collect();
            base = wide.end;
        }
        let mut lane = Self::new(name, base, end);
        lane.aside = aside;
        for range in done {
            lane.skip(range.clone());
        }
        lane
    }

    fn skip(&mut self, done: Range<u64>) {
        for seq in done.start.max(self.base)..done.end.min(self.end) {
            while self.base + self.flights.len() as u64 <= seq {
                self.flights.push_back(Flight {
                    id: Uuid::nil(),
                    bytes: 0,
                    caller: None,
                    state: State::Failed,
                });
            }
            if let Some(flight) = self.flights.get_mut((seq - self.base) as usize) {
                flight.state = State::Over;
            }
        }
        self.draining = !self.flights.is_empty();
    }

    /// Whether the next message comes from the writer's hand.
    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    /// Bytes that are out.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether everything in the log is over or put aside.
    pub(super) fn is_empty(&self) -> bool {
        self.base == self.end
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
            self.next = self.base;
            self.live = false;
        }
        (!self.live).then_some(self.next..self.end)
    }

    /// When it is worth asking again, if time alone decides.
    pub(super) fn due(&self) -> Option<Instant> {
        self.until
    }

    /// Why new messages are better refused at once, and for how long.
    pub(super) fn refusal(&self, now: Instant) -> Option<(Kind, Duration)> {
        let (kind, _) = self.refused?;
        let wait = self.until?.checked_duration_since(now)?;
        Some((kind, wait))
    }

    /// The log has a message. True if it leaves at once, by the writer's hand.
    pub(super) fn written(
        &mut self,
        seq: u64,
        (id, bytes): (Uuid, usize),
        caller: &Caller,
        room: usize,
    ) -> bool {
        let follows = seq == self.end;
        self.end = seq + 1;
        if self.live && follows && !self.draining && self.until.is_none() && self.fits(bytes, room)
        {
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
        let known = usize::try_from(seq - self.base)
            .ok()
            .and_then(|at| self.flights.get(at));
        if known.is_some_and(|flight| flight.state == State::Over) {
            self.next += 1;
            return Some(false);
        }
        if !self.fits(bytes, room) {
            return None;
        }
        let caller = self.callers.remove(&seq);
        self.leave(id, bytes, caller);
        Some(true)
    }

    /// Counts the numbers up to `seq` that were not read, and so are not in the log, as over; tells which those are.
    pub(super) fn pass(&mut self, seq: u64) -> Vec<u64> {
        let mut gone = Vec::new();
        while self.next < seq.min(self.end) && !self.draining {
            gone.extend(self.pass_one());
        }
        gone
    }

    fn pass_one(&mut self) -> Option<u64> {
        let seq = self.next;
        self.next += 1;
        let at = usize::try_from(seq - self.base).ok()?;
        match self.flights.get_mut(at) {
            Some(flight) if flight.state == State::Over => return None,
            Some(flight) => flight.state = State::Over,
            None => self.flights.push_back(Flight {
                id: Uuid::nil(),
                bytes: 0,
                caller: None,
                state: State::Over,
            }),
        }
        self.callers.remove(&seq);
        self.advance();
        Some(seq)
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
        // A refused topic is tried with one message.
        if self.refused.is_some() || self.out >= OUT_MAX {
            return false;
        }
        let most = self.batch_max.unwrap_or(usize::MAX);
        bytes <= room && self.bytes + bytes <= most
    }

    fn leave(&mut self, id: Uuid, bytes: usize, caller: Option<Caller>) {
        let flight = Flight {
            id,
            bytes,
            caller,
            state: State::Out,
        };
        let at = (self.next - self.base) as usize;
        match self.flights.get_mut(at) {
            Some(again) => {
                let caller = again.caller.take();
                *again = Flight {
                    caller: caller.or(flight.caller),
                    ..flight
                };
            }
            None => self.flights.push_back(flight),
        }
        self.next += 1;
        self.out += 1;
        self.bytes += bytes;
    }

    /// The number that a tag's lower half means.
    pub(super) fn seq(&self, low: u32) -> u64 {
        let ahead = low.wrapping_sub(self.base as u32);
        // What is out is far less than half of what 32 bits can tell apart; a message put aside may lie behind.
        if ahead < 1 << 31 {
            self.base + u64::from(ahead)
        } else {
            self.base
                .saturating_sub(u64::from(low.wrapping_neg().wrapping_add(self.base as u32)))
        }
    }

    /// The broker's answer to a message.
    pub(super) fn settle(&mut self, seq: u64, said: Said, now: Instant) -> Settled {
        let at = seq
            .checked_sub(self.base)
            .and_then(|at| usize::try_from(at).ok());
        let Some(flight) = at
            .and_then(|at| self.flights.get_mut(at))
            .filter(|flight| flight.state == State::Out)
        else {
            return self.settle_aside(seq, said);
        };
        self.out -= 1;
        self.bytes -= flight.bytes;
        let mut settled = Settled {
            id: Some(flight.id),
            ..Settled::default()
        };
        let returned = match said {
            Said::Taken(..) | Said::Again => false,
            Said::Refused(kind) => flight
                .caller
                .take_if(|caller| caller.returned(kind))
                .is_some(),
            // Of several it is not known which was too large.
            Said::TooLarge if self.out > 0 || self.draining => false,
            Said::TooLarge => {
                let kind = Kind::RecordTooLarge;
                flight
                    .caller
                    .take_if(|caller| caller.returned(kind))
                    .is_some()
            }
        };
        flight.state = match said {
            _ if returned => State::Over,
            Said::Taken(..) => State::Over,
            Said::TooLarge if self.out == 0 && !self.draining => {
                settled.aside = true;
                State::Over
            }
            _ => State::Failed,
        };
        let flight_is_over = flight.state == State::Over;
        settled.over = flight_is_over && !settled.aside;
        if flight_is_over {
            settled.caller = flight.caller.take();
        }
        if settled.aside {
            let id = settled.id.unwrap_or_default();
            // At once: whoever tries it again tells of it.
            self.aside.insert(seq, (now, id));
        }
        if said == Said::TooLarge && flight_is_over {
            // It was this one, so the others may go together again.
            self.batch_max = None;
        }
        self.follow(said, now, &mut settled);
        self.advance();
        settled
    }

    /// What an answer means for those that come after it.
    fn follow(&mut self, said: Said, now: Instant, settled: &mut Settled) {
        match said {
            Said::Taken(..) => {
                if self.refused.take().is_some() {
                    self.until = None;
                }
            }
            Said::Again => self.draining = true,
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
            Said::TooLarge if settled.over || settled.aside => {}
            Said::TooLarge => {
                // Half of what was out: in the end one at a time, and that one is told from the others.
                if !self.draining {
                    self.batch_max = Some(self.bytes / 2);
                }
                self.draining = true;
            }
        }
    }

    fn settle_aside(&mut self, seq: u64, said: Said) -> Settled {
        let taken = matches!(said, Said::Taken(..));
        let aside = taken.then(|| self.aside.remove(&seq)).flatten();
        Settled {
            over: aside.is_some(),
            was_aside: true,
            id: aside.map(|(_, id)| id),
            ..Settled::default()
        }
    }

    /// A message that was put aside and is to be tried again now.
    pub(super) fn aside(&mut self, now: Instant) -> Option<u64> {
        let (seq, (due, _)) = self.aside.iter_mut().find(|(_, (due, _))| *due <= now)?;
        *due = now + ASIDE;
        Some(*seq)
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
        for flight in &mut self.flights {
            if flight.state == State::Out {
                flight.state = State::Failed;
            }
        }
        (self.out, self.bytes) = (0, 0);
        self.draining = !self.flights.is_empty();
        self.live &= !self.draining;
        self.until = Some(now + AGAIN);
    }

    fn advance(&mut self) {
        while self
            .flights
            .front()
            .is_some_and(|first| first.state == State::Over)
        {
            self.flights.pop_front();
            self.base += 1;
        }
        self.next = self.next.max(self.base);
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
