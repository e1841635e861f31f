//! Which offset of a partition may be committed: the end of the prefix whose records have all ended.
//!
//! Offsets need not be dense: compaction and transactions leave gaps, and a gap is as good as ended.

use std::collections::VecDeque;

/// The records of one partition that were handed out and may not have ended yet.
///
/// It grows with what is in flight only, so its limit is that of its intake.
#[derive(Debug, Default)]
pub struct Tracker {
    /// Ascending offsets, and whether each has ended. The first one never has.
    open: VecDeque<(i64, bool)>,
    unended: usize,
    last: Option<i64>,
    next: Option<i64>,
}

impl Tracker {
    /// Notes that a record was handed out. Offsets must ascend; a record at or before an earlier one means that the
    /// broker's log was cut back, and everything noted before is forgotten.
    pub fn started(&mut self, offset: i64) {
        if self.last.is_some_and(|last| offset <= last) {
            *self = Self::default();
        }
        self.open.push_back((offset, false));
        self.unended += 1;
        self.last = Some(offset);
        if self.open.len() == 1 && self.next.is_some() {
            // All before it has ended, the gap in front of it included.
            self.next = Some(offset);
        }
    }

    /// Notes that there is no further record before this offset, while all that were handed out have ended. The marks of
    /// transactions take offsets and are no records.
    pub fn passed(&mut self, offset: i64) {
        let behind = self.last.is_some_and(|last| last + 1 < offset);
        if behind && self.unended == 0 {
            self.last = Some(offset - 1);
            self.next = Some(offset);
        }
    }

    /// Notes that a record's verdict is final, and returns the offset to commit if that moved it. Unknown offsets and
    /// second answers change nothing.
    pub fn ended(&mut self, offset: i64) -> Option<i64> {
        let at = self
            .open
            .binary_search_by_key(&offset, |(offset, _)| *offset)
            .ok()?;
        let ended = &mut self.open.get_mut(at)?.1;
        if *ended {
            return None;
        }
        *ended = true;
        self.unended -= 1;
        if at > 0 {
            return None;
        }
        while self.open.front().is_some_and(|(_, ended)| *ended) {
            self.open.pop_front();
        }
        self.next = match self.open.front() {
            Some((offset, _)) => Some(*offset),
            None => self.last.map(|last| last + 1),
        };
        self.next
    }

    /// The offset that may be committed, which is that of the next record to read after a restart; `None` before the
    /// first record has ended.
    pub fn next(&self) -> Option<i64> {
        self.next
    }

    /// How many records were handed out and have not ended.
    pub fn unended(&self) -> usize {
        self.unended
    }

    /// How many were handed out from the oldest that has not ended to the last one.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// The oldest offset that has not ended.
    pub fn oldest(&self) -> Option<i64> {
        self.open.front().map(|(offset, _)| *offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same by brute force: everything below the answer that was handed out has ended.
    #[derive(Default)]
    struct Naive {
        started: Vec<i64>,
        ended: Vec<i64>,
        /// Where a mark lay behind them all.
        passed: Option<i64>,
    }

    impl Naive {
        fn next(&self) -> Option<i64> {
            let first = self.started.first()?;
            let stuck = self
                .started
                .iter()
                .find(|offset| !self.ended.contains(offset));
            match stuck {
                Some(offset) if offset == first => None,
                Some(offset) => Some(*offset),
                None => self.passed.max(self.started.last().map(|last| last + 1)),
            }
        }
    }

    #[test]
    fn random_answers_commit_what_brute_force_commits() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut tracker, mut naive) = (Tracker::default(), Naive::default());
            let mut offset = random.i64(0..1_000_000);
            let mut open = Vec::new();
            for step in 0..300 {
                if open.is_empty() || (random.bool() && open.len() < 40) {
                    // One step in four leaves a gap, as compaction does.
                    offset += if random.u8(0..4) == 0 {
                        random.i64(2..70)
                    } else {
                        1
                    };
                    tracker.started(offset);
                    naive.started.push(offset);
                    open.push(offset);
                } else {
                    let ended = open.swap_remove(random.usize(0..open.len()));
                    tracker.ended(ended);
                    naive.ended.push(ended);
                    assert_eq!(
                        tracker.ended(ended),
                        None,
                        "a second answer changes nothing"
                    );
                }
                if open.is_empty() && random.u8(0..4) == 0 {
                    // A mark of a transaction behind the last record.
                    offset += random.i64(1..3);
                    tracker.passed(offset + 1);
                    naive.passed = Some(offset + 1);
                }
                assert_eq!(tracker.next(), naive.next(), "seed {seed}, step {step}");
                assert_eq!(tracker.unended(), open.len());
                assert_eq!(tracker.oldest(), open.iter().min().copied());
            }
        }
    }

    /// A partition that is taken away and comes back at random, with answers that come after that.
    #[test]
    fn no_commit_passes_a_record_that_has_not_ended_whoever_had_it() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            // Compaction and transactions leave gaps.
            let mut at = random.i64(0..1000);
            let mut gap = || {
                if random.u8(0..4) == 0 {
                    random.i64(2..9)
                } else {
                    1
                }
            };
            let log: Vec<i64> = (0..200)
                .map(|_| {
                    at += gap();
                    at
                })
                .collect();
            let mut ended = Vec::new();
            let (mut tracker, mut committed, mut read) = (Tracker::default(), None::<i64>, 0);
            let mut open = Vec::new();
            while ended.len() < log.len() {
                match random.u8(0..20) {
                    0 => {
                        // What is under way may end until the assignment does, and not after.
                        committed = committed.max(tracker.next());
                        tracker = Tracker::default();
                        open.clear();
                        let from = committed.unwrap_or_default();
                        read = log.partition_point(|offset| *offset < from);
                        ended.retain(|offset| *offset < from);
                    }
                    1..=10 if read < log.len() && open.len() < 30 => {
                        tracker.started(log[read]);
                        open.push(log[read]);
                        read += 1;
                    }
                    _ if !open.is_empty() => {
                        let offset = open.swap_remove(random.usize(0..open.len()));
                        tracker.ended(offset);
                        ended.push(offset);
                    }
                    _ => {}
                }
                let reached = committed.max(tracker.next()).unwrap_or_default();
                let passed = log.iter().filter(|offset| **offset < reached);
                assert!(
                    passed.clone().all(|offset| ended.contains(offset)),
                    "seed {seed}: {reached} is beyond what has not ended"
                );
                assert!(committed <= Some(reached), "seed {seed}: never back");
            }
            assert_eq!(tracker.next(), log.last().map(|last| last + 1));
        }
    }

    #[test]
    fn a_record_that_has_not_ended_holds_back_all_after_it() {
        let mut tracker = Tracker::default();
        (10..14).for_each(|offset| tracker.started(offset));
        assert_eq!(
            [tracker.ended(13), tracker.ended(11), tracker.ended(12)],
            [None; 3]
        );
        assert_eq!(tracker.ended(10), Some(14));
    }

    #[test]
    fn what_is_no_record_is_passed_only_when_nothing_is_open() {
        let mut tracker = Tracker::default();
        tracker.passed(7);
        assert_eq!(tracker.next(), None, "nothing was read here");
        tracker.started(7);
        tracker.passed(9);
        assert_eq!(tracker.next(), None);
        assert_eq!(tracker.ended(7), Some(8));
        tracker.passed(9);
        assert_eq!(tracker.next(), Some(9));
        tracker.passed(8);
        assert_eq!(tracker.next(), Some(9), "never back");
        tracker.started(9);
        assert_eq!(tracker.ended(9), Some(10));
    }

    #[test]
    fn offsets_that_fall_back_start_afresh() {
        let mut tracker = Tracker::default();
        tracker.started(500);
        tracker.started(3);
        assert_eq!(tracker.ended(500), None);
        assert_eq!(tracker.ended(3), Some(4));
    }
}
