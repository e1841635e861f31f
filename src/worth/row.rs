//! Counters, and the same with the past faded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What is left of what was counted after a second: half of it is gone in four minutes.
pub(super) const FADE: f64 = 0.997;
/// Deliveries that must be in the balance before anything is said of it.
pub(super) const ENOUGH: f64 = 100.0;
/// Replicas of a topic until the broker said so.
pub(super) const REPLICAS: u32 = 3;

/// Counters of one kind of row, and the same with the past faded.
#[derive(Debug)]
pub(super) struct Row<const N: usize> {
    all: [AtomicU64; N],
    recent: Mutex<Recent<N>>,
}

#[derive(Debug)]
struct Recent<const N: usize> {
    seen: [u64; N],
    faded: [f64; N],
}

impl<const N: usize> Row<N> {
    pub(super) fn new() -> Self {
        Self {
            all: std::array::from_fn(|_| AtomicU64::new(0)),
            recent: Mutex::new(Recent {
                seen: [0; N],
                faded: [0.0; N],
            }),
        }
    }

    pub(super) fn add(&self, what: usize, count: u64) {
        self.all[what].fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn total(&self, what: usize) -> u64 {
        self.all[what].load(Ordering::Relaxed)
    }

    /// What was counted lately; with `fade` a second has passed.
    pub(super) fn recent(&self, fade: bool) -> [f64; N] {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let Recent { seen, faded } = &mut *recent;
        for (at, counter) in self.all.iter().enumerate() {
            let now = counter.load(Ordering::Relaxed);
            if fade {
                faded[at] *= FADE;
            }
            faded[at] += (now - seen[at]) as f64;
            seen[at] = now;
        }
        *faded
    }
}

pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn rounded(ratio: f64) -> f64 {
    (ratio * 1e4).round() / 1e4
}

pub(super) fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}
