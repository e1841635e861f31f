//! Sets of numbers that are nearly all neighbours.

use std::collections::BTreeMap;
use std::ops::Range;

/// Numbers as the ranges that they form; no two of them touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(super) fn insert(&mut self, number: u64) {
        self.add(number..number.saturating_add(1));
    }

    pub(super) fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // At most two can touch a range of one; a wide one may swallow many.
        while let Some((from, to)) = self.touching(start, end) {
            self.0.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.0.insert(start, end);
    }

    fn touching(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        let (from, to) = self.0.range(..=end).next_back()?;
        (*to >= start).then_some((*from, *to))
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        let before = self.0.range(..=number).next_back();
        before.is_some_and(|(_, end)| number < *end)
    }

    /// The first number from `from` on that is not in the set.
    pub(super) fn first_missing(&self, from: u64) -> u64 {
        match self.0.range(..=from).next_back() {
            Some((_, end)) if from < *end => *end,
            _ => from,
        }
    }

    /// The ranges in order, `max` at most.
    pub(super) fn first(&self, max: usize) -> Vec<Range<u64>> {
        self.0
            .iter()
            .take(max)
            .map(|(from, to)| *from..*to)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_ranges_is_like_a_set_of_numbers() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let (mut ranges, mut naive) = (Ranges::default(), vec![false; 64]);
            for _ in 0..40 {
                let start = random.u64(0..64);
                let end = (start + random.u64(0..6)).min(64);
                ranges.add(start..end);
                naive[start as usize..end as usize].fill(true);
                for (number, held) in (0..).zip(&naive) {
                    assert_eq!(ranges.contains(number), *held);
                    let missing = (number..64).find(|at| !naive[*at as usize]).unwrap_or(64);
                    assert_eq!(ranges.first_missing(number), missing);
                }
                let listed = ranges.first(usize::MAX);
                assert!(listed.windows(2).all(|two| two[0].end < two[1].start));
            }
        }
    }
}
