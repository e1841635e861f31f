//! What work costs here, in CPU of the thread that does it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use rustix::time::{ClockId, clock_gettime};

/// CPU that this thread has used.
pub fn of_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(seconds, nanoseconds)
}

pin_project! {
    /// A future and the CPU that its polls have used, on whichever threads.
    pub struct Clocked<F> {
        #[pin]
        inner: F,
        used: Duration,
    }
}

/// Measures a future. It costs two calls into the kernel a poll.
pub fn clocked<F: Future>(inner: F) -> Clocked<F> {
    let used = Duration::ZERO;
    Clocked { inner, used }
}

impl<F: Future> Future for Clocked<F> {
    type Output = (F::Output, Duration);

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let before = of_thread();
        let polled = this.inner.poll(context);
        *this.used += of_thread().saturating_sub(before);
        polled.map(|output| (output, *this.used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_work_of_a_future_is_measured_and_its_waits_are_not() {
        let work = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let before = of_thread();
            while of_thread() - before < Duration::from_millis(5) {
                std::hint::spin_loop();
            }
            7
        };
        let (output, used) = clocked(work).await;
        assert_eq!(output, 7);
        assert!(used >= Duration::from_millis(5), "{used:?}");
        assert!(used < Duration::from_millis(40), "{used:?}");
    }
}
