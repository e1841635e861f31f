//! What work costs here, in CPU of the thread that does it.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
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

/// Bytes that are carried to see what one costs, and at a time.
const CARRIED: usize = 8 << 20;
const AT_ONCE: usize = 64 << 10;

/// What a byte costs a hop: written, sent over loopback, read and checked on both sides, as a broker and its clients do
/// with it. Nanoseconds of CPU; takes some milliseconds, and blocks.
///
/// # Errors
/// There is no loopback.
pub fn of_byte() -> io::Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut to = TcpStream::connect(listener.local_addr()?)?;
    let (mut from, _) = listener.accept()?;
    to.set_write_timeout(Some(Duration::from_secs(1)))?;
    from.set_read_timeout(Some(Duration::from_secs(1)))?;
    let sent: Vec<u8> = (0..AT_ONCE).map(|at| (at * 31 % 251) as u8).collect();
    let mut got = vec![0; AT_ONCE];
    let before = of_thread();
    let mut checks = 0;
    for _ in 0..CARRIED / AT_ONCE {
        checks ^= crc32c::crc32c(&sent);
        to.write_all(&sent)?;
        from.read_exact(&mut got)?;
        checks ^= crc32c::crc32c(&got);
    }
    let used = of_thread().saturating_sub(before);
    match checks {
        0 => Ok(used.as_nanos() as f64 / CARRIED as f64),
        _ => Err(io::Error::other("loopback changed a byte")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_costs_something() {
        let cost = of_byte().unwrap();
        assert!((0.01..1_000.0).contains(&cost), "{cost} ns");
    }

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
