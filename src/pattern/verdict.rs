//! What the app's answer to a delivery means. One table, pure.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};

use crate::config::model::{Judged, Means};
use crate::error::{self, Error, Kind};
use crate::reply::headers;

/// The longest `Retry-After` that is waited out; a longer one is cut to it, so that one answer can not park a lane for
/// days.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// What happens to a message after one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The app has it.
    Done,
    /// Another attempt, not before the given time if there is one.
    Retry(Option<Duration>),
    /// No attempt will help: to the dead letters, with this reason.
    DeadLetter(String),
    /// The app wants it gone.
    Drop,
    /// The app was not reached: no attempt is used up; wait and probe.
    NotDelivered,
    /// The app was not asked, since the body was not to be had: no attempt is used up; its lane waits, at least as long as
    /// the given time.
    NotHydrated(Option<Duration>),
}

impl Verdict {
    /// The word in metrics and logs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Retry(_) => "retry",
            Self::DeadLetter(_) => "dead-letter",
            Self::Drop => "drop",
            Self::NotDelivered => "not-delivered",
            Self::NotHydrated(_) => "not-hydrated",
        }
    }
}

/// What the app's answers mean to one subscription.
#[derive(Debug, Clone)]
pub struct Table(Vec<Judged>);

impl Table {
    /// The default, below what a subscription says of its own; of that the last that fits counts.
    pub fn new(own: &[Judged]) -> Self {
        Self(own.to_vec())
    }

    fn means(&self, status: u16) -> Means {
        let fits = |judged: &&Judged| (judged.statuses.0..=judged.statuses.1).contains(&status);
        match self.0.iter().rev().find(fits) {
            Some(judged) => judged.means,
            None => default(status),
        }
    }

    /// Judges the app's own answer.
    pub fn of_answer(&self, status: StatusCode, headers: &HeaderMap) -> Verdict {
        of_answer(self.means(status.as_u16()), status, headers)
    }
}

fn default(status: u16) -> Means {
    match status {
        200..=299 => Means::Done,
        404 | 408 | 409 | 425 | 429 | 500 | 502..=599 => Means::Retry,
        _ => Means::DeadLetter,
    }
}

fn of_answer(means: Means, status: StatusCode, headers: &HeaderMap) -> Verdict {
    let reason = || format!("the app answered {}", status.as_u16());
    let wait = || retry_after(headers);
    // The app's word in a header is above its status, since not every framework lets it shape the status.
    match headers
        .get(headers::VERDICT)
        .and_then(|value| value.to_str().ok())
    {
        Some("done") => return Verdict::Done,
        Some("retry") => return Verdict::Retry(wait()),
        Some("dead-letter") => {
            return Verdict::DeadLetter(format!("{} and said dead-letter", reason()));
        }
        Some("drop") => return Verdict::Drop,
        Some(_) | None => {}
    }
    match means {
        Means::Done => Verdict::Done,
        Means::Retry => Verdict::Retry(wait()),
        Means::DeadLetter => Verdict::DeadLetter(reason()),
        Means::Drop => Verdict::Drop,
    }
}

/// Judges an attempt that has no answer.
pub fn of_error(error: &Error) -> Verdict {
    match (error.kind(), error.may_retry()) {
        (_, error::Retry::NeverSent) | (Kind::Unresolved | Kind::Unreachable, _) => {
            Verdict::NotDelivered
        }
        // It would be the same call each time.
        (Kind::BadRequest | Kind::NotImplemented | Kind::TargetTooLong, _) => {
            Verdict::DeadLetter(format!("the record makes no call: {}", error.detail()))
        }
        (Kind::Loop, _) => {
            Verdict::DeadLetter(format!("{}: {}", Kind::Loop.word(), error.detail()))
        }
        _ => Verdict::Retry(error.retry_after()),
    }
}

/// Judges a record that did not become a call because of what is in it.
pub fn of_record(error: &Error) -> Verdict {
    match error.kind() {
        Kind::BadRequest => {
            Verdict::DeadLetter(format!("the record makes no call: {}", error.detail()))
        }
        _ => of_claim(error),
    }
}

/// Judges a message whose body was not to be had.
pub fn of_claim(error: &Error) -> Verdict {
    match error.kind() {
        // The whole body is gone for good: no attempt brings it back.
        Kind::Expired
        | Kind::ClaimDamaged
        | Kind::ClaimChanged
        | Kind::BadRequest
        | Kind::NotJson => without_body(error),
        // Its origin or its store is away or slow, and the app was not asked, so the message waits, until its claim expires
        // at the longest.
        Kind::Unreachable
        | Kind::Deadline
        | Kind::Overloaded
        | Kind::ClaimStore
        | Kind::TlsFailed => Verdict::NotHydrated(error.retry_after()),
        // Not here, or of a service that nobody configured, or it broke off: another replica, time or a reload may help.
        // Whoever writes such a record, or sends such a body, must not hold up a lane for as long as he likes.
        _ => Verdict::Retry(error.retry_after()),
    }
}

/// Gives up a message whose body was not to be had.
pub fn without_body(error: &Error) -> Verdict {
    Verdict::DeadLetter(format!("the claim can not be hydrated: {}", error.detail()))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = http_date(text)?;
            at.duration_since(std::time::SystemTime::now())
                .unwrap_or_default()
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// Reads the preferred form of an HTTP date (RFC 9110 section 5.6.7), `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<std::time::SystemTime> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_, rest) = text.split_once(", ")?;
    let rest = rest.strip_suffix(" GMT")?;
    let mut parts = rest.split(' ');
    let (day, month, year, time) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")).ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(status: u16, lines: &[(&'static str, &'static str)]) -> Verdict {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        let status = StatusCode::from_u16(status).expect("a status");
        Table::new(&[]).of_answer(status, &headers)
    }

    #[test]
    fn a_subscription_may_judge_otherwise_and_one_status_stands_above_its_class() {
        let own = [((400, 499), Means::Retry), ((409, 409), Means::Done)];
        let own = own.map(|(statuses, means)| Judged { statuses, means });
        let table = Table::new(&own);
        let check = |status, headers: &HeaderMap| {
            table.of_answer(StatusCode::from_u16(status).expect("a status"), headers)
        };
        let none = HeaderMap::new();
        assert_eq!(check(422, &none), Verdict::Retry(None));
        assert_eq!(check(409, &none), Verdict::Done);
        assert_eq!(check(200, &none), Verdict::Done);
        assert!(matches!(check(301, &none), Verdict::DeadLetter(_)));
        let mut said = HeaderMap::new();
        said.insert("wayside-verdict", HeaderValue::from_static("drop"));
        assert_eq!(
            check(409, &said),
            Verdict::Drop,
            "the app's word stands above all"
        );
    }

    #[test]
    fn the_status_decides() {
        for status in [200, 202, 204] {
            assert_eq!(check(status, &[]), Verdict::Done, "{status}");
        }
        for status in [404, 408, 409, 425, 429, 500, 502, 503, 504, 599] {
            assert_eq!(check(status, &[]), Verdict::Retry(None), "{status}");
        }
        for status in [301, 400, 401, 403, 410, 413, 422, 501] {
            assert!(
                matches!(check(status, &[]), Verdict::DeadLetter(_)),
                "{status}"
            );
        }
    }

    #[test]
    fn a_header_overrides_the_status() {
        assert_eq!(check(500, &[("wayside-verdict", "done")]), Verdict::Done);
        assert_eq!(check(200, &[("wayside-verdict", "drop")]), Verdict::Drop);
        assert!(matches!(
            check(200, &[("wayside-verdict", "dead-letter")]),
            Verdict::DeadLetter(_)
        ));
        assert_eq!(
            check(200, &[("wayside-verdict", "perhaps")]),
            Verdict::Done,
            "an unknown word has no say"
        );
    }

    #[test]
    fn retry_after_is_honoured_within_reason() {
        assert_eq!(
            check(503, &[("retry-after", "7")]),
            Verdict::Retry(Some(Duration::from_secs(7)))
        );
        assert_eq!(
            check(503, &[("retry-after", "999999")]),
            Verdict::Retry(Some(RETRY_AFTER_MAX))
        );
        assert_eq!(check(503, &[("retry-after", "soon")]), Verdict::Retry(None));
        let past = check(503, &[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")]);
        assert_eq!(past, Verdict::Retry(Some(Duration::ZERO)));
    }

    #[test]
    fn an_app_that_is_down_costs_no_attempt() {
        let down = Error::new(Kind::Unreachable, "down").retry(error::Retry::NeverSent);
        assert_eq!(of_error(&down), Verdict::NotDelivered);
        assert_eq!(
            of_error(&Error::new(Kind::Deadline, "slow")),
            Verdict::Retry(None)
        );
        assert!(matches!(
            of_error(&Error::new(Kind::Loop, "again")),
            Verdict::DeadLetter(_)
        ));
    }

    #[test]
    fn a_claim_that_is_gone_is_final_and_one_that_is_not_to_be_had_now_is_not() {
        let check = |kind| of_claim(&Error::new(kind, "why"));
        for kind in [
            Kind::Expired,
            Kind::ClaimDamaged,
            Kind::ClaimChanged,
            Kind::BadRequest,
        ] {
            assert!(matches!(check(kind), Verdict::DeadLetter(_)), "{kind:?}");
        }
        for kind in [Kind::Unreachable, Kind::Deadline, Kind::ClaimStore] {
            assert_eq!(check(kind), Verdict::NotHydrated(None), "{kind:?}");
        }
        for kind in [
            Kind::Unknown,
            Kind::Unresolved,
            Kind::BadAnswer,
            Kind::Reset,
        ] {
            assert_eq!(check(kind), Verdict::Retry(None), "{kind:?}");
        }
    }
}
