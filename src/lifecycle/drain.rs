//! Drain as a value: to be in flight is to hold a [`Guard`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// The owner's end: starts the drain and waits for it.
pub struct Drain {
    begun: watch::Sender<Option<Instant>>,
    held: Arc<Held>,
}

struct Held {
    /// The same as `begun` says, for a look that costs next to nothing.
    flag: AtomicBool,
    count: AtomicUsize,
    changed: watch::Sender<()>,
}

/// The holder's end. While one lives, the drain is not over.
pub struct Guard {
    begun: watch::Receiver<Option<Instant>>,
    held: Arc<Held>,
}

impl Drain {
    /// Makes a drain that nobody holds yet.
    pub fn new() -> Self {
        let held = Arc::new(Held {
            flag: AtomicBool::new(false),
            count: AtomicUsize::new(0),
            changed: watch::Sender::new(()),
        });
        Self {
            begun: watch::Sender::new(None),
            held,
        }
    }

    /// Hands out a guard.
    pub fn guard(&self) -> Guard {
        self.held.count.fetch_add(1, Ordering::AcqRel);
        Guard {
            begun: self.begun.subscribe(),
            held: Arc::clone(&self.held),
        }
    }

    /// How many guards live.
    pub fn held(&self) -> usize {
        self.held.count.load(Ordering::Acquire)
    }

    /// Tells every holder to finish by `deadline`.
    pub fn begin(&self, deadline: Instant) {
        self.held.flag.store(true, Ordering::Release);
        self.begun.send_replace(Some(deadline));
    }

    /// Waits until no guard lives or `deadline` passes; says whether all ended in time.
    pub async fn finished(&self, deadline: Instant) -> bool {
        let mut changed = self.held.changed.subscribe();
        let all_gone = async { while self.held() > 0 && changed.changed().await.is_ok() {} };
        timeout_at(deadline, all_gone).await.is_ok()
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Guard {
    /// Ends when the drain begins, with the time by which it will be over.
    pub async fn draining(&mut self) -> Instant {
        let begun = self.begun.wait_for(Option::is_some).await;
        // An error means that the owner is gone, which is the end of the process: the same thing.
        begun
            .ok()
            .and_then(|begun| *begun)
            .unwrap_or_else(Instant::now)
    }

    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.held.flag.load(Ordering::Acquire)
    }
}

impl Clone for Guard {
    fn clone(&self) -> Self {
        self.held.count.fetch_add(1, Ordering::AcqRel);
        Self {
            begun: self.begun.clone(),
            held: Arc::clone(&self.held),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.held.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.held.changed.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_with_its_last_guard() {
        let drain = Drain::new();
        let mut guard = drain.guard();
        drain.begin(Instant::now());
        guard.draining().await;
        assert!(
            !drain
                .finished(Instant::now() + Duration::from_secs(1))
                .await
        );
        drop(guard);
        assert!(
            drain
                .finished(Instant::now() + Duration::from_secs(1))
                .await
        );
    }
}
