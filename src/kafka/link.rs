//! Whether the broker answers, so that calls need not wait a whole deadline to learn that it does not.
//!
//! Three things raise a doubt: the native client lost every broker, a record timed out, a caller's deadline passed.
//! A doubt wakes the keeper's thread, which asks the broker for metadata: an answer ends the doubt, none makes the
//! broker away. An acknowledgement ends both.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const UP: u8 = 0;
const DOUBT: u8 = 1;
const AWAY: u8 = 2;

/// Shared by the callers, the native client's callbacks and the keeper.
#[derive(Debug)]
pub(super) struct Link {
    state: AtomicU8,
    fatal: AtomicBool,
    /// Set when the keeper must end; also guards its sleep.
    stop: Mutex<bool>,
    wake: Condvar,
}

/// What the keeper has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Ask the broker whether it is there.
    Probe,
    /// Make the native client anew.
    Rebuild,
    /// End.
    Stop,
}

impl Link {
    /// In doubt, so that the first thing the keeper does is to ask.
    pub(super) fn new() -> Self {
        Self {
            state: AtomicU8::new(DOUBT),
            fatal: AtomicBool::new(false),
            stop: Mutex::new(false),
            wake: Condvar::new(),
        }
    }

    pub(super) fn is_away(&self) -> bool {
        self.state.load(Ordering::Relaxed) == AWAY
    }

    pub(super) fn is_fatal(&self) -> bool {
        self.fatal.load(Ordering::Relaxed)
    }

    /// Something failed that may mean that the broker is away.
    pub(super) fn doubt(&self) {
        let exchange = self
            .state
            .compare_exchange(UP, DOUBT, Ordering::Relaxed, Ordering::Relaxed);
        if exchange.is_ok() {
            self.rouse();
        }
    }

    /// The broker answered.
    pub(super) fn up(&self) {
        // Read first: this runs for every acknowledgement, and a store would bounce the cache line.
        if self.state.load(Ordering::Relaxed) != UP
            && self.state.swap(UP, Ordering::Relaxed) == AWAY
        {
            tracing::info!("the broker is back");
        }
    }

    /// The broker did not answer when asked.
    pub(super) fn away(&self) {
        if self.state.swap(AWAY, Ordering::Relaxed) != AWAY {
            tracing::warn!("the broker is away");
        }
    }

    /// The native client can do nothing more.
    pub(super) fn fatal(&self) {
        self.fatal.store(true, Ordering::Relaxed);
        self.rouse();
    }

    /// The native client is a new one.
    pub(super) fn rebuilt(&self) {
        self.fatal.store(false, Ordering::Relaxed);
    }

    /// Ends the keeper.
    pub(super) fn stop(&self) {
        *self.lock() = true;
        self.wake.notify_all();
    }

    /// Waits for something to do; between two probes of a broker that is away, for `pause`.
    pub(super) fn task(&self, pause: Duration) -> Task {
        let mut stop = self.lock();
        if self.is_away() && !*stop && !self.is_fatal() {
            let waited = self.wake.wait_timeout(stop, pause);
            stop = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        loop {
            if *stop {
                return Task::Stop;
            }
            if self.is_fatal() {
                return Task::Rebuild;
            }
            if self.state.load(Ordering::Relaxed) != UP {
                return Task::Probe;
            }
            stop = self.wake.wait(stop).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sleeps, or less if the keeper must end.
    pub(super) fn sleep(&self, pause: Duration) {
        let stop = self.lock();
        if !*stop {
            drop(self.wake.wait_timeout(stop, pause));
        }
    }

    fn rouse(&self) {
        // Under the lock, so that it cannot fall between the keeper's look and its sleep.
        let stop = self.lock();
        self.wake.notify_all();
        drop(stop);
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_asks_for_a_probe_and_an_answer_ends_it() {
        let link = Link::new();
        assert_eq!(link.task(Duration::ZERO), Task::Probe);
        link.away();
        link.doubt();
        assert!(link.is_away(), "a doubt never makes it better");
        assert_eq!(link.task(Duration::ZERO), Task::Probe);
        link.up();
        assert!(!link.is_away());
        link.fatal();
        assert_eq!(link.task(Duration::ZERO), Task::Rebuild);
        link.stop();
        assert_eq!(link.task(Duration::ZERO), Task::Stop);
    }
}
