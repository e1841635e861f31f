//! Whether a place or a service that has bodies answers at all, and who is left in peace for a while since it does not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long nobody asks one that did not answer.
pub const AWAY: Duration = Duration::from_secs(1);
/// How long one who finds out for all has for that: what it asks for may take much longer.
const PROBE: Duration = Duration::from_secs(5);
/// So often in a row it must not have answered for that: one body that it hangs over is not all of them.
pub const MISSES: u32 = 3;

/// What is known of one that is asked.
#[derive(Debug)]
pub struct Answers {
    /// So often in a row it may not answer before it is left in peace.
    misses: u32,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// How often in a row it did not answer.
    missed: u32,
    /// Since that was too often: until when nobody asks.
    until: Option<Instant>,
    /// Since when somebody finds out for all.
    probed: Option<Instant>,
}

/// One who asks. Dropped, it asks no more, whether it heard anything or not.
#[derive(Debug)]
pub struct Asking {
    answers: Arc<Answers>,
    probes: bool,
}

impl Answers {
    /// Of one that is left in peace after so many questions in a row without an answer.
    pub fn new(misses: u32) -> Arc<Self> {
        let known = Mutex::default();
        Arc::new(Self { misses, known })
    }

    /// Refuses at once while it is known not to answer: each who waits for it keeps others from being served. Now and then
    /// one may find out for all.
    ///
    /// # Errors
    /// How long it is left in peace.
    pub fn may_ask(self: &Arc<Self>) -> Result<Asking, Duration> {
        let mut known = self.known();
        let probes = match known.until {
            None => false,
            Some(until) => {
                let now = Instant::now();
                let left = until.saturating_duration_since(now);
                let probed = known.probed.is_some_and(|since| now < since + PROBE);
                if probed || !left.is_zero() {
                    return Err(if left.is_zero() { AWAY } else { left });
                }
                known.probed = Some(now);
                true
            }
        };
        Ok(Asking {
            answers: Arc::clone(self),
            probes,
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asking {
    /// Whether it finds out for all whether one that was away is back.
    pub fn probes(&self) -> bool {
        self.probes
    }

    /// Notes whether it answered, whatever it said.
    pub fn told(&self, answered: bool) {
        let mut known = self.answers.known();
        if answered {
            (known.missed, known.until) = (0, None);
            return;
        }
        known.missed = known.missed.saturating_add(1);
        // Those who asked before it was known are late, and say nothing new.
        if self.probes || (known.until.is_none() && known.missed >= self.answers.misses) {
            known.until = Some(Instant::now() + AWAY);
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if self.probes {
            self.answers.known().probed = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn miss(answers: &Arc<Answers>, times: u32) {
        for _ in 0..times {
            answers.may_ask().expect("it is asked").told(false);
        }
    }

    fn is_refused(answers: &Arc<Answers>) -> bool {
        answers.may_ask().is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_three_times_in_a_row_is_asked_by_one_a_second_later() {
        let answers = Answers::new(MISSES);
        miss(&answers, MISSES);
        assert!(is_refused(&answers));
        advance(AWAY).await;
        let probe = answers.may_ask().expect("one finds out");
        assert!(is_refused(&answers));
        probe.told(false);
        drop(probe);
        assert!(is_refused(&answers));
        advance(AWAY).await;
        answers.may_ask().expect("again").told(true);
        assert!(!is_refused(&answers) && !is_refused(&answers));
    }

    #[tokio::test(start_paused = true)]
    async fn one_claim_that_it_hangs_over_is_not_all_of_them() {
        let answers = Answers::new(MISSES);
        for _ in 0..10 {
            miss(&answers, MISSES - 1);
            answers.may_ask().expect("another").told(true);
        }
        assert!(!is_refused(&answers));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_whose_caller_leaves_makes_way_for_the_next() {
        let answers = Answers::new(MISSES);
        miss(&answers, MISSES);
        advance(AWAY).await;
        drop(answers.may_ask().expect("one finds out"));
        drop(answers.may_ask().expect("the next one does"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_takes_long_makes_way_for_the_next_too() {
        let answers = Answers::new(MISSES);
        miss(&answers, MISSES);
        advance(AWAY).await;
        let _long = answers.may_ask().expect("one finds out");
        assert!(is_refused(&answers));
        advance(PROBE).await;
        answers.may_ask().expect("another one does").told(true);
        assert!(!is_refused(&answers));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asked_before_it_was_known_does_not_keep_it_away() {
        let answers = Answers::new(MISSES);
        let late = answers.may_ask().expect("it is asked");
        miss(&answers, MISSES);
        advance(AWAY).await;
        late.told(false);
        assert!(!is_refused(&answers));
    }
}
