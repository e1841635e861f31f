//! One service that is asked for its claims, or all of our own stores: how many ask at a time, and whether it answers at all.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Kind};

/// How long nobody asks a service that did not answer.
const AWAY: Duration = Duration::from_secs(1);
/// So often in a row it must not have answered for that: one claim that it hangs over is not all of them.
const MISSES: u32 = 3;

pub(super) struct Source {
    fetches: usize,
    turns: Semaphore,
    answers: Mutex<Answers>,
}

/// Whether it answers.
#[derive(Default)]
struct Answers {
    /// How often in a row it did not.
    missed: u32,
    /// Since that was too often: until when nobody asks.
    until: Option<Instant>,
    /// Whether somebody finds out for all.
    probed: bool,
}

/// One who asks. Dropped, it asks no more, whether it heard anything or not.
pub(super) struct Asking<'s> {
    source: &'s Source,
    probes: bool,
}

impl Source {
    /// Of which so many claims are fetched at the same time.
    pub(super) fn new(fetches: usize) -> Self {
        Self {
            fetches,
            turns: Semaphore::new(fetches),
            answers: Mutex::default(),
        }
    }

    /// Waits until one more may be fetched from there.
    ///
    /// # Errors
    /// [`Kind::Overloaded`] when it is too late.
    pub(super) async fn turn(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, Error> {
        // The semaphore is never closed.
        match timeout_at(deadline, self.turns.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => {
                let detail = format!(
                    "{} claims are fetched from one place already (`limits.claim_fetches`)",
                    self.fetches
                );
                Err(Error::new(Kind::Overloaded, detail).after(AWAY))
            }
        }
    }

    /// Refuses at once while it is known not to answer: each who waits for it keeps others from being served. Now and then
    /// one may find out for all.
    ///
    /// # Errors
    /// [`Kind::Unreachable`].
    pub(super) fn may_ask(&self, service: &str) -> Result<Asking<'_>, Error> {
        let mut answers = self.answers();
        let Some(until) = answers.until else {
            return Ok(Asking {
                source: self,
                probes: false,
            });
        };
        let left = until.saturating_duration_since(Instant::now());
        if answers.probed || !left.is_zero() {
            let detail = format!("{service} did not answer for its claims a moment ago");
            let after = if left.is_zero() { AWAY } else { left };
            return Err(Error::new(Kind::Unreachable, detail).after(after));
        }
        answers.probed = true;
        Ok(Asking {
            source: self,
            probes: true,
        })
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asking<'_> {
    /// Notes whether it answered, whatever it said.
    pub(super) fn told(&self, answered: bool) {
        let mut answers = self.source.answers();
        if answered {
            (answers.missed, answers.until) = (0, None);
            return;
        }
        answers.missed = answers.missed.saturating_add(1);
        // Those who asked before it was known are late, and say nothing new.
        if self.probes || (answers.until.is_none() && answers.missed >= MISSES) {
            answers.until = Some(Instant::now() + AWAY);
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if self.probes {
            self.source.answers().probed = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn miss(source: &Source, times: u32) {
        for _ in 0..times {
            source.may_ask("orders").expect("it is asked").told(false);
        }
    }

    fn is_refused(source: &Source) -> bool {
        source.may_ask("orders").is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_three_times_in_a_row_is_asked_by_one_a_second_later() {
        let source = Source::new(1);
        miss(&source, MISSES);
        assert!(is_refused(&source));
        advance(AWAY).await;
        let probe = source.may_ask("orders").expect("one finds out");
        assert!(is_refused(&source));
        probe.told(false);
        drop(probe);
        assert!(is_refused(&source));
        advance(AWAY).await;
        source.may_ask("orders").expect("again").told(true);
        assert!(!is_refused(&source) && !is_refused(&source));
    }

    #[tokio::test(start_paused = true)]
    async fn one_claim_that_it_hangs_over_is_not_all_of_them() {
        let source = Source::new(1);
        for _ in 0..10 {
            miss(&source, MISSES - 1);
            source.may_ask("orders").expect("another").told(true);
        }
        assert!(!is_refused(&source));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_whose_caller_leaves_makes_way_for_the_next() {
        let source = Source::new(1);
        miss(&source, MISSES);
        advance(AWAY).await;
        drop(source.may_ask("orders").expect("one finds out"));
        drop(source.may_ask("orders").expect("the next one does"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asked_before_it_was_known_does_not_keep_it_away() {
        let source = Source::new(9);
        let late = source.may_ask("orders").expect("it is asked");
        miss(&source, MISSES);
        advance(AWAY).await;
        late.told(false);
        assert!(!is_refused(&source));
    }
}
