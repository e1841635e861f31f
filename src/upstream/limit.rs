//! How much a service may get from this sidecar: calls at a time with a bounded queue, and calls a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::config::model;
use crate::error::{Error, Kind, Retry};
use crate::lifecycle;

/// Calls at a time.
pub(super) struct Limit {
    rule: model::Limit,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// A place among the calls that a service has now; `None` inside where it has no limit.
#[derive(Default)]
pub struct Place {
    _held: Option<OwnedSemaphorePermit>,
}

impl Limit {
    pub(super) fn new(rule: model::Limit) -> Self {
        Self {
            places: Arc::new(Semaphore::new(rule.in_flight)),
            waiting: AtomicUsize::new(0),
            rule,
        }
    }

    /// Starts, or takes over from the limit that the service had until now: calls under way go on to count, in the same
    /// places.
    pub(super) fn after(rule: model::Limit, before: Option<&Self>) -> Self {
        let Some(before) = before else {
            return Self::new(rule);
        };
        let (more, fewer) = (
            rule.in_flight.saturating_sub(before.rule.in_flight),
            before.rule.in_flight.saturating_sub(rule.in_flight),
        );
        let places = Arc::clone(&before.places);
        places.add_permits(more);
        let taken = fewer - places.forget_permits(fewer);
        if let Ok(taken @ 1..) = u32::try_from(taken) {
            // Those that calls have now go as these end, before anybody who waits later gets one.
            let places = Arc::clone(&places);
            lifecycle::spawn(&Handle::current(), "limit", async move {
                if let Ok(held) = places.acquire_many_owned(taken).await {
                    held.forget();
                }
            });
        }
        Self {
            places,
            waiting: AtomicUsize::new(0),
            rule,
        }
    }

    /// Takes a place, in the queue if there must be one.
    pub(super) async fn enter(&self, service: &str, deadline: Instant) -> Result<Place, Error> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(Place { _held: Some(place) });
        }
        let full = |why: &str| {
            let calls = self.rule.in_flight;
            let detail = format!("{service} has {calls} calls in flight, its limit, and {why}");
            Error::new(Kind::Overloaded, detail)
                .retry(Retry::Never)
                .after(Duration::from_secs(1))
        };
        let _waiting = Waiting::join(&self.waiting, self.rule.queue)
            .ok_or_else(|| full("as many wait as may"))?;
        let by = deadline.min(Instant::now() + self.rule.wait);
        match timeout_at(by, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(Place { _held: Some(place) }),
            _ => Err(full("none ended in time")),
        }
    }
}

/// One of those who wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn join(count: &'a AtomicUsize, most: usize) -> Option<Self> {
        if count.fetch_add(1, Relaxed) >= most {
            count.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Self(count))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Calls a second with a burst, by the generic cell rate algorithm: one number, no timer, no lock.
pub struct Rate {
    rule: model::Rate,
    born: Instant,
    /// Nanoseconds between two calls.
    every: u64,
    /// Nanoseconds by which calls may be early: the burst.
    early: u64,
    /// When the next call is due, in nanoseconds after `born`.
    due: AtomicU64,
}

impl Rate {
    /// Starts with the whole burst to spend.
    pub fn new(rule: model::Rate) -> Self {
        let every = (rule.per.as_nanos() as u64 / u64::from(rule.calls)).max(1);
        Self {
            rule,
            born: Instant::now(),
            every,
            early: every.saturating_mul(u64::from(rule.burst.max(1)) - 1),
            due: AtomicU64::new(0),
        }
    }

    /// Starts, or goes on with what is left of the burst where the rule is the one of `before`: a reload is no reason for
    /// another burst.
    pub fn after(rule: model::Rate, before: Option<&Arc<Self>>) -> Arc<Self> {
        match before {
            Some(before) if before.rule == rule => Arc::clone(before),
            _ => Arc::new(Self::new(rule)),
        }
    }

    /// Lets one call pass.
    ///
    /// # Errors
    /// [`Kind::RateLimited`] with the time after which one would pass.
    pub fn pass(&self, whose: &str) -> Result<(), Error> {
        let now = self.born.elapsed().as_nanos() as u64;
        let passed = self.due.fetch_update(Relaxed, Relaxed, |due| {
            (due <= now.saturating_add(self.early)).then(|| due.max(now).saturating_add(self.every))
        });
        let Err(due) = passed else { return Ok(()) };
        let wait = Duration::from_nanos(due.saturating_sub(now.saturating_add(self.early)));
        let detail = format!("{whose} has had as many calls as its rate allows");
        Err(Error::new(Kind::RateLimited, detail).after(wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rate_lets_its_burst_pass_and_then_one_at_a_time() {
        let rate = Rate::new(model::Rate {
            calls: 10,
            per: Duration::from_secs(1),
            burst: 3,
        });
        let passed = || (0..10).filter(|_| rate.pass("billing").is_ok()).count();
        assert_eq!(passed(), 3);
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(passed(), 1);
        let error = rate.pass("billing").expect_err("none is left");
        assert_eq!(error.kind(), Kind::RateLimited);
        assert_eq!(error.retry_after(), Some(Duration::from_millis(100)));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(
            passed(),
            3,
            "a long silence saves up no more than the burst"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_burst_is_one() {
        let rate = Rate::new(model::Rate {
            calls: 1,
            per: Duration::from_secs(3600),
            burst: u32::MAX,
        });
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!((0..1000).all(|_| rate.pass("billing").is_ok()));
    }

    #[tokio::test]
    async fn a_changed_limit_goes_on_to_count_the_calls_under_way() {
        let rule = |in_flight| model::Limit {
            in_flight,
            queue: 0,
            wait: Duration::from_secs(1),
        };
        let far = Instant::now() + Duration::from_secs(60);
        let enters = async |limit: &Limit| limit.enter("billing", far).await.ok();
        let three = Limit::new(rule(3));
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(enters(&three).await.expect("a place is free"));
        }
        let four = Limit::after(rule(4), Some(&three));
        held.push(enters(&four).await.expect("there is one more"));
        assert!(enters(&four).await.is_none());
        let two = Limit::after(rule(2), Some(&four));
        for left in [3, 2] {
            held.pop();
            tokio::task::yield_now().await;
            assert!(enters(&two).await.is_none(), "{left} are under way");
        }
        held.pop();
        tokio::task::yield_now().await;
        held.push(enters(&two).await.expect("one of two is free"));
        assert!(enters(&two).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_bounded_in_length_and_in_time() {
        let limit = Limit::new(model::Limit {
            in_flight: 1,
            queue: 1,
            wait: Duration::from_secs(2),
        });
        let far = Instant::now() + Duration::from_secs(60);
        let first = limit.enter("billing", far).await.expect("a place is free");
        let started = Instant::now();
        let (second, third) = tokio::join!(limit.enter("billing", far), async {
            let error = limit.enter("billing", far).await.err();
            (error.map(|error| error.kind()), started.elapsed())
        });
        assert_eq!(third, (Some(Kind::Overloaded), Duration::ZERO));
        assert_eq!(
            second.err().map(|error| error.kind()),
            Some(Kind::Overloaded)
        );
        assert_eq!(started.elapsed(), Duration::from_secs(2));
        let (second, ()) = tokio::join!(limit.enter("billing", far), async { drop(first) });
        assert!(second.is_ok());
    }
}
