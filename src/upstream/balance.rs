//! Peak-EWMA of two choices: of two random addresses the one whose recent latency times its open calls is lower.
//!
//! A latency above the average replaces it at once and then decays, so that a slow address is left quickly and returns
//! slowly (Finagle's and linkerd's balancer do the same).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::Endpoint;

/// What an address is taken to cost before its first answer.
const START: Duration = Duration::from_millis(30);
/// After this time an old latency counts for a third.
const DECAY: Duration = Duration::from_secs(10);
/// What a refused or broken connection counts as: a fast failure must not attract calls.
const PENALTY: Duration = Duration::from_secs(1);

/// The load of one address.
pub(super) struct Load {
    open: AtomicUsize,
    /// Seconds, as the bits of an `f64`.
    average: AtomicU64,
    /// Microseconds after `born`.
    stamp: AtomicU64,
    born: Instant,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            open: AtomicUsize::new(0),
            average: AtomicU64::new(START.as_secs_f64().to_bits()),
            stamp: AtomicU64::new(0),
            born: Instant::now(),
        }
    }
}

impl Load {
    /// A call begins.
    pub(super) fn begin(&self) {
        self.open.fetch_add(1, Relaxed);
    }

    /// A call's last byte is through, or the call is given up.
    pub(super) fn end(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    /// An answer's head came after `latency`.
    pub(super) fn answered(&self, latency: Duration) {
        self.observe(latency, Instant::now());
    }

    /// A try failed.
    pub(super) fn failed(&self) {
        self.observe(PENALTY, Instant::now());
    }

    fn observe(&self, latency: Duration, now: Instant) {
        let latency = latency.as_secs_f64();
        let decayed = self.decayed(now);
        let weight = self.weight(now);
        let average = if latency > decayed {
            latency
        } else {
            decayed * weight + latency * (1.0 - weight)
        };
        // Two threads may overwrite one another's sample: it is a load estimate, not an account.
        self.average.store(average.to_bits(), Relaxed);
        self.stamp.store(self.micros(now), Relaxed);
    }

    fn cost(&self, now: Instant) -> f64 {
        self.decayed(now) * (self.open.load(Relaxed) + 1) as f64
    }

    /// The average, drawn towards the starting value while nothing is observed, so that a punished address is tried
    /// again in the end.
    fn decayed(&self, now: Instant) -> f64 {
        let average = f64::from_bits(self.average.load(Relaxed));
        let weight = self.weight(now);
        if average > START.as_secs_f64() {
            average * weight + START.as_secs_f64() * (1.0 - weight)
        } else {
            average
        }
    }

    fn weight(&self, now: Instant) -> f64 {
        let silent = self.micros(now).saturating_sub(self.stamp.load(Relaxed));
        (-(silent as f64) / DECAY.as_micros() as f64).exp()
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.born).as_micros()).unwrap_or(u64::MAX)
    }
}

/// Chooses among the addresses that were not tried.
pub(super) fn choose<'a>(
    endpoints: &'a [Arc<Endpoint>],
    tried: &[SocketAddr],
) -> Option<&'a Arc<Endpoint>> {
    if endpoints.len() == 1 {
        return endpoints
            .first()
            .filter(|only| tried.is_empty() || !tried.contains(&only.address));
    }
    let open = |endpoint: &&Arc<Endpoint>| !tried.contains(&endpoint.address);
    let count = if tried.is_empty() {
        endpoints.len()
    } else {
        endpoints.iter().filter(open).count()
    };
    if count == 0 {
        return None;
    }
    let nth = |at: usize| {
        if tried.is_empty() {
            endpoints.get(at)
        } else {
            endpoints.iter().filter(open).nth(at)
        }
    };
    let first = fastrand::usize(..count);
    if count == 1 {
        return nth(first);
    }
    // A second index that differs from the first.
    let second = (first + 1 + fastrand::usize(..count - 1)) % count;
    let now = Instant::now();
    match (nth(first), nth(second)) {
        (Some(one), Some(other)) if other.load.cost(now) < one.load.cost(now) => Some(other),
        (one, _) => one,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: u16) -> Vec<Arc<Endpoint>> {
        (1..=count)
            .map(|port| Endpoint::new(SocketAddr::from(([127, 0, 0, 1], port)), 1))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_address_is_avoided_and_comes_back() {
        let endpoints = endpoints(2);
        endpoints[0].load.failed();
        assert!(
            (0..50)
                .all(|_| choose(&endpoints, &[]).is_some_and(|chosen| chosen.address.port() == 2))
        );
        endpoints[1].load.answered(Duration::from_millis(40));
        tokio::time::advance(Duration::from_secs(120)).await;
        endpoints[1].load.answered(Duration::from_millis(40));
        assert!(
            (0..50)
                .any(|_| choose(&endpoints, &[]).is_some_and(|chosen| chosen.address.port() == 1))
        );
    }

    #[tokio::test]
    async fn tried_addresses_are_not_chosen_again() {
        let endpoints = endpoints(3);
        let tried = [endpoints[0].address, endpoints[2].address];
        assert!(
            (0..20).all(
                |_| choose(&endpoints, &tried).is_some_and(|chosen| chosen.address.port() == 2)
            )
        );
        let all: Vec<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        assert!(choose(&endpoints, &all).is_none());
    }

    #[tokio::test]
    async fn open_calls_spread_the_load() {
        let endpoints = endpoints(2);
        endpoints[0].load.begin();
        assert!(
            (0..20)
                .all(|_| choose(&endpoints, &[]).is_some_and(|chosen| chosen.address.port() == 2))
        );
    }
}
