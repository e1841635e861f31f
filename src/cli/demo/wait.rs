//! Waiting with an end, and the one error of the demo: a text for a person.

use std::future::Future;
use std::time::Duration;

use tokio::time;

/// Why the demo cannot go on, in words for the person who started it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Trouble(String);

impl Trouble {
    /// A trouble in these words.
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// What a step of the demo ends in.
pub(super) type Result<T> = std::result::Result<T, Trouble>;

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Runs `future` for at most `limit`; `step` names it where that is not enough.
///
/// # Errors
/// The future's own, or that the step took too long.
pub(super) async fn within<T>(
    step: &str,
    limit: Duration,
    future: impl Future<Output = Result<T>>,
) -> Result<T> {
    let late = || Trouble(format!("{step}: no end after {limit:?}"));
    time::timeout(limit, future).await.map_err(|_| late())?
}

/// Waits until `left` says that nothing is missing any more; what it says goes into the error.
///
/// # Errors
/// The limit is over and something is still missing.
pub(super) async fn until(
    step: &str,
    limit: Duration,
    left: impl Fn() -> Option<String>,
) -> Result<()> {
    let end = time::Instant::now() + limit;
    while let Some(missing) = left() {
        if time::Instant::now() >= end {
            return Err(Trouble(format!("{step}: after {limit:?} {missing}")));
        }
        time::sleep(LOOK).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_never_ends_says_what_is_missing() {
        let wait = until("orders", Duration::from_secs(5), || {
            Some("2 are missing".to_owned())
        });
        let error = wait.await.expect_err("nothing changes");
        assert_eq!(error.to_string(), "orders: after 5s 2 are missing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_hangs_is_named() {
        let hang = within::<()>(
            "starting billing",
            Duration::from_secs(5),
            std::future::pending(),
        );
        let error = hang.await.expect_err("it never ends");
        assert_eq!(error.to_string(), "starting billing: no end after 5s");
    }
}
