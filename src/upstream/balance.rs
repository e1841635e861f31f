//! Which address gets a call.
//!
//! Peak-EWMA of two choices is the default: of two random addresses the one whose recent latency times its open calls is
//! lower. A latency above the average replaces it at once and then decays, so that a slow address is left quickly and
//! returns slowly (Finagle's and linkerd's balancer do the same).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::Endpoint;
use super::breaker::Standing;
use crate::config::model::Balance;

/// What an address is taken to cost while its first call is open. Before that it costs nothing, so that it is tried at
/// once, by one call: a service that answers in less than this would otherwise never find its other addresses.
const UNKNOWN: Duration = Duration::from_secs(1);
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
            average: AtomicU64::new(0.0_f64.to_bits()),
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

    /// An answer's head came `now`, after `latency`.
    pub(super) fn answered(&self, latency: Duration, now: Instant) {
        self.observe(latency, now);
    }

    /// A try failed.
    pub(super) fn failed(&self) {
        self.observe(PENALTY, Instant::now());
    }

    fn observe(&self, latency: Duration, now: Instant) {
        let latency = latency.as_secs_f64();
        let (decayed, weight) = (self.decayed(now), self.weight(now));
        let average = if latency > decayed {
            latency
        } else {
            decayed + latency * (1.0 - weight)
        };
        // Two threads may overwrite one another's sample: it is a load estimate, not an account.
        self.average.store(average.to_bits(), Relaxed);
        self.stamp.store(self.micros(now), Relaxed);
    }

    fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    fn cost(&self, now: Instant) -> f64 {
        let (open, decayed) = (self.open(), self.decayed(now));
        if decayed == 0.0 && open > 0 {
            return UNKNOWN.as_secs_f64() * open as f64;
        }
        decayed * (open + 1) as f64
    }

    /// The average, which fades while nothing is observed, so that a punished address is tried again in the end.
    fn decayed(&self, now: Instant) -> f64 {
        f64::from_bits(self.average.load(Relaxed)) * self.weight(now)
    }

    fn weight(&self, now: Instant) -> f64 {
        let silent = self.micros(now).saturating_sub(self.stamp.load(Relaxed));
        (-(silent as f64) / DECAY.as_micros() as f64).exp()
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.born).as_micros()).unwrap_or(u64::MAX)
    }
}

/// Points of each address on the ring: enough that shares differ by some percent only.
const POINTS: u32 = 100;

/// The addresses of a service at one time.
#[derive(Default)]
pub struct Endpoints {
    all: Vec<Arc<Endpoint>>,
    /// Points and whose they are, ascending; only for `ring-hash`.
    ring: Vec<(u64, usize)>,
    turn: AtomicUsize,
}

impl std::ops::Deref for Endpoints {
    type Target = [Arc<Endpoint>];

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl Endpoints {
    pub(super) fn new(all: Vec<Arc<Endpoint>>, balance: &Balance) -> Self {
        let mut ring = Vec::new();
        if matches!(balance, Balance::RingHash(_)) {
            let points = |(at, endpoint): (usize, &Arc<Endpoint>)| {
                let address = endpoint.address.to_string();
                (0..POINTS).map(move |point| (hash(format!("{address}#{point}").as_bytes()), at))
            };
            ring = all.iter().enumerate().flat_map(points).collect();
            ring.sort_unstable();
        }
        Self {
            all,
            ring,
            turn: AtomicUsize::new(0),
        }
    }

    /// Chooses an address that is not in `tried`. Addresses that are out are passed over as long as there is another.
    pub(super) fn choose(
        &self,
        balance: &Balance,
        tried: &[SocketAddr],
        hashed: Option<u64>,
    ) -> Option<&Arc<Endpoint>> {
        if let [only] = &self.all[..] {
            // Out or not, there is no other; and the clock need not be asked.
            return Some(only).filter(|only| tried.is_empty() || !tried.contains(&only.address));
        }
        let now = Instant::now();
        // A claim is lost only to another call that has just become the probe: then this one looks again.
        for _ in 0..3 {
            let chosen = self.candidate(balance, tried, hashed, now)?;
            match chosen.breaker.standing(now) {
                Standing::Due if !chosen.breaker.claim(now) => {}
                _ => return Some(chosen),
            }
        }
        self.all.iter().find(|one| !tried.contains(&one.address))
    }

    fn candidate(
        &self,
        balance: &Balance,
        tried: &[SocketAddr],
        hashed: Option<u64>,
        now: Instant,
    ) -> Option<&Arc<Endpoint>> {
        let usable = |one: &&Arc<Endpoint>| {
            (tried.is_empty() || !tried.contains(&one.address))
                && one.breaker.standing(now) != Standing::Out
        };
        let found = match (balance, hashed) {
            (Balance::RoundRobin, _) => self.next_in_turn(usable),
            (Balance::RingHash(_), Some(hashed)) => self.on_ring(hashed, usable),
            (Balance::LeastRequest, _) => self.of_two(usable, now, |load, _| load.open() as f64),
            _ => self.of_two(usable, now, Load::cost),
        };
        // All that are left are out: to try one is better than to refuse, and better one that no health check finds ill.
        let untried = |one: &&Arc<Endpoint>| !tried.contains(&one.address);
        found
            .or_else(|| self.of_two(|one| untried(one) && !one.breaker.is_ill(), now, Load::cost))
            .or_else(|| self.of_two(untried, now, Load::cost))
    }

    fn next_in_turn(&self, usable: impl Fn(&&Arc<Endpoint>) -> bool) -> Option<&Arc<Endpoint>> {
        let turn = self.turn.fetch_add(1, Relaxed) % self.all.len().max(1);
        let (before, after) = self.all.split_at(turn);
        after.iter().chain(before).find(usable)
    }

    fn on_ring(
        &self,
        hashed: u64,
        usable: impl Fn(&&Arc<Endpoint>) -> bool,
    ) -> Option<&Arc<Endpoint>> {
        let from = self.ring.partition_point(|(point, _)| *point < hashed);
        let (before, after) = self.ring.split_at(from);
        let mut clockwise = after.iter().chain(before).map(|(_, at)| &self.all[*at]);
        clockwise.find(usable)
    }

    /// Of two random usable addresses the cheaper one; one that is due for a probe before all others.
    fn of_two(
        &self,
        usable: impl Fn(&&Arc<Endpoint>) -> bool,
        now: Instant,
        cost: impl Fn(&Load, Instant) -> f64,
    ) -> Option<&Arc<Endpoint>> {
        let count = self.all.len();
        if count == 1 {
            return self.all.first().filter(&usable);
        }
        if count == 0 {
            return None;
        }
        let first = fastrand::usize(..count);
        // A second index that differs from the first.
        let second = (first + 1 + fastrand::usize(..count - 1)) % count;
        let pair = (&self.all[first], &self.all[second]);
        let (one, other) = match (usable(&pair.0), usable(&pair.1)) {
            (true, true) => pair,
            _ => self.two_of_those(&usable)?,
        };
        let due = |one: &Arc<Endpoint>| one.breaker.standing(now) == Standing::Due;
        if due(other) || !due(one) && cost(&other.load, now) < cost(&one.load, now) {
            Some(other)
        } else {
            Some(one)
        }
    }

    /// Two random ones of those that are left, twice the same if there is but one.
    fn two_of_those(
        &self,
        usable: impl Fn(&&Arc<Endpoint>) -> bool,
    ) -> Option<(&Arc<Endpoint>, &Arc<Endpoint>)> {
        let left: Vec<&Arc<Endpoint>> = self.all.iter().filter(|one| usable(one)).collect();
        match left.len() {
            0 => None,
            1 => Some((left[0], left[0])),
            count => {
                let first = fastrand::usize(..count);
                let second = (first + 1 + fastrand::usize(..count - 1)) % count;
                Some((left[first], left[second]))
            }
        }
    }
}

/// FNV-1a with a last mix (splitmix64): the same in every sidecar and every version, unlike the standard library's.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{Ejection, HashOf};
    use crate::upstream::breaker::Finding;

    const RULE: Ejection = Ejection {
        failures: 5,
        success_rate: 80,
        time: Duration::from_secs(1),
    };

    fn endpoints(count: u16, balance: &Balance) -> Endpoints {
        let endpoint = |port| Endpoint::new(SocketAddr::from(([127, 0, 0, 1], port)), 1, 1);
        Endpoints::new((1..=count).map(endpoint).collect(), balance)
    }

    fn chosen(endpoints: &Endpoints, tried: &[SocketAddr]) -> u16 {
        let chosen = endpoints.choose(&Balance::PeakEwma, tried, None);
        chosen.map_or(0, |chosen| chosen.address.port())
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_address_is_avoided_and_comes_back() {
        let endpoints = endpoints(2, &Balance::PeakEwma);
        endpoints[0].load.failed();
        assert!((0..50).all(|_| chosen(&endpoints, &[]) == 2));
        endpoints[1]
            .load
            .answered(Duration::from_millis(40), Instant::now());
        tokio::time::advance(Duration::from_secs(120)).await;
        endpoints[1]
            .load
            .answered(Duration::from_millis(40), Instant::now());
        assert!((0..50).any(|_| chosen(&endpoints, &[]) == 1));
    }

    #[tokio::test]
    async fn an_address_that_was_never_called_is_tried_by_one_call() {
        let endpoints = endpoints(2, &Balance::PeakEwma);
        endpoints[0]
            .load
            .answered(Duration::from_micros(300), Instant::now());
        assert!((0..20).all(|_| chosen(&endpoints, &[]) == 2));
        endpoints[1].load.begin();
        assert!((0..20).all(|_| chosen(&endpoints, &[]) == 1));
    }

    #[tokio::test]
    async fn tried_addresses_are_not_chosen_again() {
        let endpoints = endpoints(3, &Balance::PeakEwma);
        let tried = [endpoints[0].address, endpoints[2].address];
        assert!((0..20).all(|_| chosen(&endpoints, &tried) == 2));
        let all: Vec<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        assert_eq!(chosen(&endpoints, &all), 0);
    }

    #[tokio::test]
    async fn open_calls_spread_the_load() {
        for balance in [Balance::PeakEwma, Balance::LeastRequest] {
            let endpoints = endpoints(2, &balance);
            endpoints[0].load.begin();
            let port = || {
                let chosen = endpoints.choose(&balance, &[], None);
                chosen.map(|chosen| chosen.address.port())
            };
            assert!((0..20).all(|_| port() == Some(2)));
        }
    }

    #[tokio::test]
    async fn round_robin_takes_turns_and_passes_over_what_is_out() {
        let endpoints = endpoints(3, &Balance::RoundRobin);
        let ports = |calls: usize| -> Vec<u16> {
            (0..calls)
                .filter_map(|_| endpoints.choose(&Balance::RoundRobin, &[], None))
                .map(|chosen| chosen.address.port())
                .collect()
        };
        assert_eq!(ports(6), [1, 2, 3, 1, 2, 3]);
        endpoints[1]
            .breaker
            .eject((&RULE, Finding::InARow(5)), Instant::now(), 0.0);
        assert!(!ports(6).contains(&2));
    }

    #[tokio::test]
    async fn a_ring_keeps_keys_where_they_are_when_an_address_goes() {
        let balance = Balance::RingHash(HashOf::Path);
        let (four, three) = (endpoints(4, &balance), endpoints(3, &balance));
        let place = |endpoints: &Endpoints, key: u32| {
            let hashed = Some(hash(&key.to_be_bytes()));
            let chosen = endpoints.choose(&balance, &[], hashed);
            chosen.map_or(0, |chosen| chosen.address.port())
        };
        let mut shares = [0; 5];
        for key in 0..10_000 {
            let (before, after) = (place(&four, key), place(&three, key));
            shares[before as usize] += 1;
            assert!(before == after || before == 4, "{key} moved needlessly");
        }
        assert!(
            shares[1..]
                .iter()
                .all(|share| (1_500..3_500).contains(share)),
            "{shares:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_out_gets_one_probe_when_its_time_is_over_and_all_when_nothing_else_is_left() {
        let endpoints = endpoints(2, &Balance::PeakEwma);
        endpoints[0]
            .breaker
            .eject((&RULE, Finding::InARow(5)), Instant::now(), 0.0);
        assert!((0..50).all(|_| chosen(&endpoints, &[]) == 2));
        tokio::time::advance(RULE.time).await;
        let probes = (0..50).filter(|_| chosen(&endpoints, &[]) == 1).count();
        assert_eq!(probes, 1);
        endpoints[1]
            .breaker
            .eject((&RULE, Finding::InARow(5)), Instant::now(), 0.0);
        assert_ne!(chosen(&endpoints, &[]), 0);
    }
}
