//! When a try is repeated. Arithmetic only: the loop that waits is in `forward.rs`.

use std::time::Duration;

use crate::config::model::{Backoff, Retry};
use crate::error;

/// What a try ended in, other than an answer that is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No answer began.
    Error(error::Retry),
    /// An answer came, with this status.
    Status(u16),
    /// An answer came that says gRPC's UNAVAILABLE.
    Unavailable,
}

/// Where the call stands.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// Tries that were sent so far. What never left costs nobody anything and does not count.
    pub sent: u32,
    /// What the last of them ended in.
    pub last_sent: Option<Failure>,
    /// Running the call twice does no harm.
    pub idempotent: bool,
    /// An address is left that was not tried.
    pub untried_left: bool,
    /// Time left until the call's deadline.
    pub left: Duration,
    /// How long the service wants to be left alone (`Retry-After`).
    pub rest: Option<Duration>,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Pass the failure on.
    GiveUp,
    /// Try an address that was not tried yet.
    Now,
    /// Wait, then start over with all addresses.
    After(Duration),
}

/// Decides. `luck` is uniform in 0..1.
pub fn decide(rule: &Retry, failure: Failure, standing: Standing, luck: f64) -> Next {
    if failure == Failure::Error(error::Retry::NeverSent) {
        return match standing.last_sent {
            // Any address will do that was not asked, whatever the method and however many refused.
            _ if standing.untried_left => Next::Now,
            // Every address refused: waiting would only make the caller wait.
            None => Next::GiveUp,
            // Others refuse, but one took the call: what that ended in decides.
            Some(earlier) => decide(rule, earlier, standing, luck),
        };
    }
    let allowed = match failure {
        Failure::Error(error::Retry::NoAnswer) | Failure::Unavailable => standing.idempotent,
        Failure::Error(_) => false,
        Failure::Status(status) => standing.idempotent && rule.statuses.contains(&status),
    };
    if !allowed || standing.sent >= rule.attempts {
        return Next::GiveUp;
    }
    if standing.untried_left {
        return Next::Now;
    }
    let wait = wait(rule.backoff, standing.sent, luck).max(standing.rest.unwrap_or_default());
    if wait < standing.left {
        Next::After(wait)
    } else {
        Next::GiveUp
    }
}

/// The wait after `made` tries: uniform between `first` and a ceiling that doubles from twice `first` to `longest`.
/// Never shorter than `first`, which is what the configuration calls it, and never the same for two callers.
pub fn wait(backoff: Backoff, made: u32, luck: f64) -> Duration {
    let ceiling = backoff
        .first
        .saturating_mul(1 << made.clamp(1, 20))
        .min(backoff.longest);
    backoff.first
        + ceiling
            .saturating_sub(backoff.first)
            .mul_f64(luck.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Backoff = Backoff {
        first: Duration::from_millis(25),
        longest: Duration::from_millis(250),
    };

    fn rule() -> Retry {
        Retry {
            attempts: 3,
            backoff: RULE,
            statuses: vec![502, 503, 504],
        }
    }

    fn standing() -> Standing {
        Standing {
            sent: 1,
            last_sent: None,
            idempotent: true,
            untried_left: true,
            left: Duration::from_secs(1),
            rest: None,
        }
    }

    #[test]
    fn only_what_never_left_is_repeated_for_calls_that_must_not_run_twice() {
        let post = Standing {
            idempotent: false,
            ..standing()
        };
        let check = |failure| decide(&rule(), failure, post, 1.0);
        assert_eq!(check(Failure::Error(error::Retry::NeverSent)), Next::Now);
        assert_eq!(check(Failure::Error(error::Retry::NoAnswer)), Next::GiveUp);
        assert_eq!(check(Failure::Status(503)), Next::GiveUp);
    }

    #[test]
    fn idempotent_calls_are_repeated_on_resets_and_the_listed_statuses() {
        let check = |failure| decide(&rule(), failure, standing(), 1.0);
        assert_eq!(check(Failure::Error(error::Retry::NoAnswer)), Next::Now);
        assert_eq!(check(Failure::Status(503)), Next::Now);
        assert_eq!(check(Failure::Status(500)), Next::GiveUp);
        assert_eq!(check(Failure::Error(error::Retry::Never)), Next::GiveUp);
    }

    #[test]
    fn the_first_try_counts_as_an_attempt() {
        let check = |sent| {
            let standing = Standing { sent, ..standing() };
            decide(&rule(), Failure::Status(503), standing, 1.0)
        };
        assert_eq!(check(2), Next::Now);
        assert_eq!(check(3), Next::GiveUp);
    }

    #[test]
    fn backoff_comes_only_before_an_address_is_repeated() {
        let alone = Standing {
            untried_left: false,
            ..standing()
        };
        let reset = Failure::Error(error::Retry::NoAnswer);
        assert_eq!(
            decide(&rule(), reset, alone, 1.0),
            Next::After(Duration::from_millis(50))
        );
        let refused = Failure::Error(error::Retry::NeverSent);
        assert_eq!(
            decide(&rule(), refused, alone, 1.0),
            Next::GiveUp,
            "all refuse: at once"
        );
        let taken = Standing {
            last_sent: Some(reset),
            ..alone
        };
        assert_eq!(
            decide(&rule(), refused, taken, 1.0),
            Next::After(Duration::from_millis(50)),
            "one took the call and broke off: not all refuse"
        );
        let late = Standing {
            left: Duration::from_millis(25),
            ..alone
        };
        assert_eq!(
            decide(&rule(), reset, late, 1.0),
            Next::GiveUp,
            "no time is left"
        );
    }

    #[test]
    fn what_never_left_goes_to_every_other_address_and_uses_no_attempt_up() {
        let refused = Failure::Error(error::Retry::NeverSent);
        let once = Retry {
            attempts: 1,
            ..rule()
        };
        assert_eq!(decide(&once, refused, standing(), 1.0), Next::Now);
    }

    #[test]
    fn a_service_that_wants_rest_gets_it_if_there_is_time() {
        let check = |rest| {
            let standing = Standing {
                untried_left: false,
                rest: Some(Duration::from_millis(rest)),
                ..standing()
            };
            decide(&rule(), Failure::Status(503), standing, 0.0)
        };
        assert_eq!(check(0), Next::After(RULE.first));
        assert_eq!(check(400), Next::After(Duration::from_millis(400)));
        assert_eq!(check(1_000), Next::GiveUp);
    }

    #[test]
    fn waits_lie_between_the_first_and_a_ceiling_that_doubles_up_to_the_cap() {
        let waits: Vec<u128> = (1..=6)
            .map(|made| wait(RULE, made, 1.0).as_millis())
            .collect();
        assert_eq!(waits, [50, 100, 200, 250, 250, 250]);
        assert_eq!(wait(RULE, 3, 0.0), RULE.first);
        assert_eq!(wait(RULE, u32::MAX, 1.0), RULE.longest);
    }
}
