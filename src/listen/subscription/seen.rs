//! The messages that ended lately, so that one that comes again is not delivered again.
//!
//! Best effort: it is this process' memory, so another sidecar of the group, or this one after a restart, knows nothing
//! of it.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

/// Messages that are remembered, at most; of more, the one that ended first is forgotten. About 100 bytes each.
const SEEN_MAX: usize = 200_000;

/// See the file.
#[derive(Debug)]
pub(super) struct Seen {
    keep: Duration,
    ended: Mutex<Ended>,
}

#[derive(Debug, Default)]
struct Ended {
    ids: HashSet<Uuid>,
    order: VecDeque<(Instant, Uuid)>,
}

impl Seen {
    pub(super) fn new(keep: Duration) -> Self {
        Self {
            keep,
            ended: Mutex::default(),
        }
    }

    /// Remembers a message that ended.
    pub(super) fn add(&self, id: Uuid) {
        let now = Instant::now();
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.forget(now, self.keep);
        if ended.ids.insert(id) {
            ended.order.push_back((now, id));
        }
    }

    /// Whether a message ended within the time that is kept.
    pub(super) fn has(&self, id: Uuid) -> bool {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.forget(Instant::now(), self.keep);
        ended.ids.contains(&id)
    }
}

impl Ended {
    fn forget(&mut self, now: Instant, keep: Duration) {
        while let Some((at, id)) = self.order.front().copied() {
            if self.order.len() < SEEN_MAX && now.duration_since(at) < keep {
                return;
            }
            self.order.pop_front();
            self.ids.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_message_is_remembered_for_its_time_and_so_many_at_most() {
        let seen = Seen::new(Duration::from_secs(60));
        let id = |number: usize| Uuid::from_u128(number as u128);
        seen.add(id(0));
        assert!(seen.has(id(0)) && !seen.has(id(1)));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(seen.has(id(0)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!seen.has(id(0)));
        (0..SEEN_MAX + 5).for_each(|number| seen.add(id(number)));
        assert!(!seen.has(id(4)) && seen.has(id(SEEN_MAX)));
    }
}
