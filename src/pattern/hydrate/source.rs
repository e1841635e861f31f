//! One service that is asked for its claims, or all of our own stores: how many ask at a time, and whether it answers at all.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::claims::answers::{AWAY, Answers, Asking, MISSES};
use crate::error::{Error, Kind};

pub(super) struct Source {
    fetches: usize,
    turns: Semaphore,
    answers: Arc<Answers>,
}

impl Source {
    /// Of which so many claims are fetched at the same time.
    pub(super) fn new(fetches: usize) -> Self {
        Self {
            fetches,
            turns: Semaphore::new(fetches),
            answers: Answers::new(MISSES),
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

    /// Refuses at once while it is known not to answer.
    ///
    /// # Errors
    /// [`Kind::Unreachable`].
    pub(super) fn may_ask(&self, service: &str) -> Result<Asking, Error> {
        self.answers.may_ask().map_err(|after| {
            let detail = format!("{service} did not answer for its claims a moment ago");
            Error::new(Kind::Unreachable, detail).after(after)
        })
    }
}
