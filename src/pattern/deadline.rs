//! One timer a call, re-armed to whatever comes first.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use tokio::time::{Instant, Sleep};

/// Runs `future` until `at`; `None` when the time came first. The timer is touched only if the future has to wait.
pub async fn within<F: Future>(
    mut timer: Pin<&mut Sleep>,
    at: Instant,
    future: F,
) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx).map(|()| None)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_timer_serves_several_waits() {
        let start = Instant::now();
        let mut timer = pin!(tokio::time::sleep(Duration::from_secs(60)));
        let soon = start + Duration::from_secs(1);
        assert_eq!(
            within(timer.as_mut(), soon, std::future::pending::<()>()).await,
            None
        );
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        assert_eq!(
            within(timer.as_mut(), soon + Duration::from_secs(5), async { 7 }).await,
            Some(7)
        );
        let later = start + Duration::from_secs(3);
        assert_eq!(
            within(timer.as_mut(), later, std::future::pending::<()>()).await,
            None
        );
        assert_eq!(start.elapsed(), Duration::from_secs(3));
    }
}
