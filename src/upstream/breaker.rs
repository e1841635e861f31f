//! Outlier ejection: when an address is left out for a while because its calls fail.
//!
//! Two rules, as in Envoy's and linkerd's breakers together: so many failures in a row, or too small a share of successes
//! over ten seconds. After a time that doubles each time, one single call probes; its success brings the address back.
//! What fails on our own side (limits, a caller that breaks off or has no time) says nothing about an address and is never
//! counted. Nor does what became of a call that was under way when its address was put out: a hundred calls that break off
//! at one moment are one reason to leave it alone, and an answer from before is none to trust it again.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::model::Ejection;

/// The window of the success rate, in buckets of a second.
const WINDOW: usize = 10;
/// Calls in the window below which a rate says nothing.
const SAMPLES_MIN: u32 = 20;
/// The longest an address stays out.
const LONGEST: Duration = Duration::from_secs(60);
/// A probe that says nothing for this long is over; the next one may go.
const PROBE: Duration = Duration::from_secs(10);

/// The account of one address.
#[derive(Debug)]
pub(super) struct Breaker {
    born: Instant,
    in_a_row: AtomicU32,
    /// Successes in the high half, failures in the low one, of the second in `stamps`.
    buckets: [AtomicU64; WINDOW],
    stamps: [AtomicU64; WINDOW],
    /// Milliseconds after `born` until which the address is out; 0: it is in.
    out_until: AtomicU64,
    /// When it was put out last, in milliseconds after `born`.
    out_since: AtomicU64,
    /// How often in a row it was put out.
    times: AtomicU32,
    /// When the probe began, in milliseconds after `born`; 0: there is none.
    probe: AtomicU64,
    /// Said to be ill by a health check.
    ill: AtomicBool,
}

/// Whether calls go to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// They do.
    In,
    /// They do not.
    Out,
    /// One call should find out.
    Due,
}

/// What a failure means for the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// Nothing yet.
    Fine,
    /// So many in a row.
    InARow(u32),
    /// Such a share of successes, in percent.
    Rate(u32),
    /// The probe of an address that is out.
    Probe,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self {
            born: Instant::now(),
            in_a_row: AtomicU32::new(0),
            buckets: Default::default(),
            stamps: Default::default(),
            out_until: AtomicU64::new(0),
            out_since: AtomicU64::new(0),
            times: AtomicU32::new(0),
            probe: AtomicU64::new(0),
            ill: AtomicBool::new(false),
        }
    }

    /// Where the address stands.
    pub(super) fn standing(&self, now: Instant) -> Standing {
        if self.ill.load(Relaxed) {
            return Standing::Out;
        }
        let until = self.out_until.load(Relaxed);
        if until == 0 {
            return Standing::In;
        }
        let now = self.millis(now);
        let begun = self.probe.load(Relaxed);
        let probing = begun != 0 && now < begun + PROBE.as_millis() as u64;
        if now >= until && !probing {
            Standing::Due
        } else {
            Standing::Out
        }
    }

    /// Makes a call the probe of an address that is due for one. `false`: another call is it already.
    pub(super) fn claim(&self, now: Instant) -> bool {
        let begun = self.probe.load(Relaxed);
        self.standing(now) == Standing::Due
            && self
                .probe
                .compare_exchange(begun, self.millis(now), Relaxed, Relaxed)
                .is_ok()
    }

    /// Whether it is left out, or on probation.
    pub(super) fn is_out(&self) -> bool {
        self.out_until.load(Relaxed) != 0
    }

    pub(super) fn is_ill(&self) -> bool {
        self.ill.load(Relaxed)
    }

    /// What a health check found. `true`: it was otherwise before.
    pub(super) fn set_ill(&self, ill: bool) -> bool {
        self.ill.swap(ill, Relaxed) != ill
    }

    /// An answer, to a call that `began` then, that does not blame the service. `true`: the address was out and is back.
    pub(super) fn succeeded(&self, began: Instant, now: Instant) -> bool {
        self.count(now, 1 << 32);
        // Most calls find zero: a load is cheaper than a store that takes the line from other cores.
        if self.in_a_row.load(Relaxed) != 0 {
            self.in_a_row.store(0, Relaxed);
        }
        if self.out_until.load(Relaxed) == 0 || self.millis(began) < self.out_since.load(Relaxed) {
            return false;
        }
        self.probe.store(0, Relaxed);
        self.times.store(0, Relaxed);
        self.forget();
        self.out_until.swap(0, Relaxed) != 0
    }

    /// A failure of a call that `began` then. What it means is for the caller to act on: it knows how many others are out.
    pub(super) fn failed(&self, rule: &Ejection, began: Instant, now: Instant) -> Finding {
        self.count(now, 1);
        if self.is_out() {
            let probe = self.probe.load(Relaxed);
            return match probe != 0 && self.millis(began) >= probe {
                true => Finding::Probe,
                false => Finding::Fine,
            };
        }
        let in_a_row = self.in_a_row.fetch_add(1, Relaxed) + 1;
        if in_a_row >= rule.failures {
            return Finding::InARow(in_a_row);
        }
        let (good, bad) = self.sums(now);
        let all = good + bad;
        let percent = (u64::from(good) * 100).checked_div(u64::from(all));
        match percent.and_then(|percent| u32::try_from(percent).ok()) {
            Some(percent) if all >= SAMPLES_MIN && percent < rule.success_rate => {
                Finding::Rate(percent)
            }
            _ => Finding::Fine,
        }
    }

    /// Leaves the address out; a probe that failed leaves it out for longer. `luck` in 0..1 spreads many sidecars' probes.
    /// `None`: another call has just done so.
    pub(super) fn eject(
        &self,
        (rule, finding): (&Ejection, Finding),
        now: Instant,
        luck: f64,
    ) -> Option<Duration> {
        let first = match finding {
            Finding::Probe => self.probe.swap(0, Relaxed) != 0,
            _ => self
                .out_until
                .compare_exchange(0, u64::MAX, Relaxed, Relaxed)
                .is_ok(),
        };
        if !first {
            return None;
        }
        let times = self.times.fetch_add(1, Relaxed).min(16);
        let time = rule.time.saturating_mul(1 << times).min(LONGEST);
        let time = time.mul_f64(1.0 + luck.clamp(0.0, 1.0) / 2.0).min(LONGEST);
        self.probe.store(0, Relaxed);
        self.out_since.store(self.millis(now), Relaxed);
        self.in_a_row.store(0, Relaxed);
        let until = self.millis(now) + time.as_millis() as u64;
        self.out_until.store(until.max(1), Relaxed);
        Some(time)
    }

    fn count(&self, now: Instant, what: u64) {
        let second = self.second(now);
        let at = (second % WINDOW as u64) as usize;
        if self.stamps[at].swap(second, Relaxed) != second {
            self.buckets[at].store(what, Relaxed);
        } else {
            self.buckets[at].fetch_add(what, Relaxed);
        }
    }

    fn sums(&self, now: Instant) -> (u32, u32) {
        let second = self.second(now);
        let recent = |at: &usize| self.stamps[*at].load(Relaxed) + WINDOW as u64 > second;
        (0..WINDOW)
            .filter(recent)
            .map(|at| self.buckets[at].load(Relaxed))
            .fold((0, 0), |(good, bad), both| {
                (good + (both >> 32) as u32, bad + both as u32)
            })
    }

    fn forget(&self) {
        for bucket in &self.buckets {
            bucket.store(0, Relaxed);
        }
    }

    /// Counted from 1, so that a stamp of 0 means never.
    fn second(&self, now: Instant) -> u64 {
        now.duration_since(self.born).as_secs() + 1 + WINDOW as u64
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.born).as_millis()).unwrap_or(u64::MAX) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Ejection = Ejection {
        failures: 5,
        success_rate: 80,
        time: Duration::from_secs(1),
    };

    #[tokio::test(start_paused = true)]
    async fn five_failures_in_a_row_are_enough_and_a_success_between_starts_anew() {
        let breaker = Breaker::new();
        let now = Instant::now();
        for _ in 0..4 {
            assert_eq!(breaker.failed(&RULE, now, now), Finding::Fine);
        }
        breaker.succeeded(now, now);
        for _ in 0..4 {
            assert_eq!(breaker.failed(&RULE, now, now), Finding::Fine);
        }
        assert_eq!(breaker.failed(&RULE, now, now), Finding::InARow(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_share_of_successes_is_enough_once_there_are_samples() {
        let breaker = Breaker::new();
        let mut found = Vec::new();
        for _ in 0..12 {
            breaker.succeeded(Instant::now(), Instant::now());
            found.push(breaker.failed(&RULE, Instant::now(), Instant::now()));
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert_eq!(found[..9], [Finding::Fine; 9], "too few samples");
        assert_eq!(found[9], Finding::Rate(50));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(
            breaker.failed(&RULE, Instant::now(), Instant::now()),
            Finding::Fine,
            "what is over ten seconds old is forgotten"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_single_probe_decides_and_the_time_out_doubles() {
        let breaker = Breaker::new();
        let standing = || breaker.standing(Instant::now());
        assert_eq!(standing(), Standing::In);
        let row = (&RULE, Finding::InARow(5));
        assert_eq!(breaker.eject(row, Instant::now(), 0.0), Some(RULE.time));
        assert_eq!(breaker.eject(row, Instant::now(), 0.0), None, "it is out");
        assert_eq!(standing(), Standing::Out);
        assert!(!breaker.claim(Instant::now()), "it is too early");
        tokio::time::advance(RULE.time).await;
        assert_eq!(standing(), Standing::Due);
        assert!(breaker.claim(Instant::now()), "the probe");
        assert!(!breaker.claim(Instant::now()), "there is one at a time");
        let found = breaker.failed(&RULE, Instant::now(), Instant::now());
        assert_eq!(found, Finding::Probe);
        let longer = breaker.eject((&RULE, found), Instant::now(), 0.0);
        assert_eq!(longer, Some(RULE.time * 2));
        tokio::time::advance(RULE.time * 2).await;
        assert!(breaker.claim(Instant::now()));
        assert!(breaker.succeeded(Instant::now(), Instant::now()));
        assert_eq!(standing(), Standing::In);
    }

    #[tokio::test(start_paused = true)]
    async fn what_began_before_an_address_was_put_out_neither_prolongs_that_nor_ends_it() {
        let breaker = Breaker::new();
        let before = Instant::now();
        tokio::time::advance(Duration::from_millis(50)).await;
        let row = (&RULE, Finding::InARow(5));
        breaker.eject(row, Instant::now(), 0.0);
        for _ in 0..80 {
            let found = breaker.failed(&RULE, before, Instant::now());
            assert_eq!(found, Finding::Fine);
        }
        assert!(!breaker.succeeded(before, Instant::now()));
        tokio::time::advance(RULE.time).await;
        assert!(breaker.claim(Instant::now()), "the probe");
        assert_eq!(
            breaker.failed(&RULE, before, Instant::now()),
            Finding::Fine,
            "a straggler is not the probe"
        );
        assert!(!breaker.succeeded(before, Instant::now()));
        assert!(breaker.succeeded(Instant::now(), Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn no_luck_makes_the_time_longer_than_the_longest() {
        let breaker = Breaker::new();
        let mut longest = Duration::ZERO;
        let mut finding = Finding::InARow(5);
        for _ in 0..12 {
            let time = breaker.eject((&RULE, finding), Instant::now(), 1.0);
            longest = longest.max(time.expect("it is the first"));
            tokio::time::advance(LONGEST).await;
            assert!(breaker.claim(Instant::now()));
            finding = breaker.failed(&RULE, Instant::now(), Instant::now());
        }
        assert_eq!(longest, LONGEST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_says_nothing_is_followed_by_another() {
        let breaker = Breaker::new();
        breaker.eject((&RULE, Finding::InARow(5)), Instant::now(), 0.0);
        tokio::time::advance(RULE.time).await;
        assert!(breaker.claim(Instant::now()));
        tokio::time::advance(PROBE).await;
        assert!(breaker.claim(Instant::now()));
    }
}
