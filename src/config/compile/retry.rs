//! `retry`: how often, after which wait and upon which statuses a try is repeated.

use std::time::Duration;

use crate::config::diagnostic::{Invalid, quoted};
use crate::config::model::{Backoff, Retry};
use crate::config::read::{At, all};
use crate::config::units::{self, parse_backoff};
use crate::config::words::{FORWARD_RETRY, SUBSCRIPTION_RETRY};

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(60 * 60);

/// What a route does unless it says otherwise.
pub(super) fn forward_default() -> Retry {
    Retry {
        attempts: 3,
        backoff: Backoff {
            first: Duration::from_millis(25),
            longest: Duration::from_millis(250),
        },
        statuses: vec![502, 503, 504],
    }
}

/// What a subscription does unless it says otherwise.
pub(super) fn subscription_default() -> Retry {
    Retry {
        attempts: 5,
        backoff: Backoff {
            first: Duration::from_millis(200),
            longest: Duration::from_secs(30),
        },
        statuses: Vec::new(),
    }
}

/// Reads `retry` of a forward route.
pub(super) fn forward(at: &At<'_>) -> Option<Retry> {
    let default = forward_default();
    let map = at.map(&FORWARD_RETRY)?;
    let attempts = map.or("attempts", default.attempts, |at| attempts(at, 10));
    let backoff = map.or("backoff", default.backoff, backoff);
    let statuses = map.or("on", default.statuses, statuses);
    Some(Retry {
        attempts: attempts?,
        backoff: backoff?,
        statuses: statuses?,
    })
}

/// Reads `retry` of a subscription.
pub(super) fn subscription(at: &At<'_>) -> Option<Retry> {
    let default = subscription_default();
    let map = at.map(&SUBSCRIPTION_RETRY)?;
    let attempts = map.or("attempts", default.attempts, |at| attempts(at, 1000));
    let backoff = map.or("backoff", default.backoff, backoff);
    Some(Retry {
        attempts: attempts?,
        backoff: backoff?,
        statuses: default.statuses,
    })
}

fn attempts(at: &At<'_>, most: u64) -> Option<u32> {
    if at.raw_text() == Some("0") {
        at.error("the first try counts too, so 1 is the least; 1 means that nothing is repeated");
        return None;
    }
    u32::try_from(at.count(1..=most)?).ok()
}

fn backoff(at: &At<'_>) -> Option<Backoff> {
    let backoff = at.parse("a range such as 25ms..250ms", parse_backoff)?;
    if backoff.first < SHORTEST || backoff.longest > LONGEST {
        let (low, high) = (units::duration(SHORTEST), units::duration(LONGEST));
        at.error(format!("both ends must be {low} to {high}"));
        return None;
    }
    Some(backoff)
}

fn statuses(at: &At<'_>) -> Option<Vec<u16>> {
    let list = at.list(100, "[502, 503, 504]")?;
    let mut seen = Vec::new();
    all(list.iter().map(|at| {
        let status = at.parse("a status such as 503", status)?;
        if seen.contains(&status) {
            at.error(format!("{status} is here twice"));
            return None;
        }
        seen.push(status);
        Some(status)
    }))
}

fn status(text: &str) -> Result<u16, Invalid> {
    match text.parse::<u16>() {
        Ok(status) if (500..=599).contains(&status) && text.len() == 3 => Ok(status),
        _ => Err(Invalid::new(format!(
            "{} is not a status from 500 to 599; only answers that blame the service are tried again",
            quoted(text)
        ))),
    }
}
