//! What the broker refused a moment ago, so that the next body of the same fate is not kept as a claim first: a store
//! can not give single bodies back, and retries of a call that never fits would fill it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Kind};

/// How long a refusal is believed.
const BELIEVED: Duration = Duration::from_secs(2);

/// The last refusal of one route's records.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Option<Refusal>>);

#[derive(Debug, Clone, Copy)]
struct Refusal {
    kind: Kind,
    /// Bytes of the value from which on it holds.
    from: usize,
    until: Instant,
}

impl Refusals {
    /// Notes how the broker answered a value of that size.
    pub(super) fn note(&self, error: &Error, size: usize) {
        let from = match error.kind() {
            Kind::RecordTooLarge => size,
            Kind::TopicUnknown | Kind::BrokerRefused | Kind::Overloaded => 0,
            _ => return,
        };
        let until = Instant::now() + BELIEVED;
        let kind = error.kind();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Refusal { kind, from, until });
    }

    /// Refuses a value that would be refused.
    ///
    /// # Errors
    /// As the broker did.
    pub(super) fn check(&self, size: usize) -> Result<(), Error> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match last.filter(|last| Instant::now() < last.until && size >= last.from) {
            None => Ok(()),
            Some(last) => {
                let error = Error::new(last.kind, "the broker refused the same a moment ago");
                Err(match last.kind {
                    Kind::RecordTooLarge => error,
                    _ => error.after(BELIEVED),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_holds_for_its_like_and_for_a_while() {
        let refusals = Refusals::default();
        refusals.note(&Error::new(Kind::RecordTooLarge, "too large"), 100);
        assert!(refusals.check(99).is_ok());
        let error = refusals
            .check(100)
            .expect_err("as large as what was refused");
        assert_eq!(error.kind(), Kind::RecordTooLarge);
        tokio::time::advance(BELIEVED).await;
        assert!(refusals.check(100).is_ok());
        refusals.note(&Error::new(Kind::TopicUnknown, "unknown"), 100);
        assert!(refusals.check(1).is_err());
        refusals.note(&Error::new(Kind::BrokerAway, "no such refusal"), 1);
        assert_eq!(
            refusals.check(1).map_err(|e| e.kind()),
            Err(Kind::TopicUnknown)
        );
    }
}
