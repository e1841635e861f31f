//! The only way to wait on wall time: for a condition, with a limit.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Asks `probe` again and again until it gives a value, and panics with `what` after `within`.
pub(crate) async fn eventually<T>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
