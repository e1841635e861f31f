//! The time a head may take, kept by one timer a connection. hyper asks for a timer with each head, and to start and stop
//! a real one costs a call more than its route: here the connection's one timer runs on, and looks when it fires whether
//! a later head has put the end off.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Sleep, Timer};
use tokio::time::Instant;

/// What hyper's timers and the real one share. Times are in milliseconds after `born`.
#[derive(Debug)]
struct Shared {
    born: Instant,
    /// When the newest head is late.
    until: AtomicU64,
    /// When the real timer last fired.
    fired: AtomicU64,
}

impl Shared {
    /// Rounded up, as the runtime's timers are, so that one which fires at this moment has reached it.
    fn millis(&self, at: Instant) -> u64 {
        let after = at.saturating_duration_since(self.born);
        u64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

/// What is given to hyper in place of a timer.
#[derive(Debug)]
pub(super) struct HeadTimers(Arc<Shared>);

#[allow(
    clippy::disallowed_types,
    reason = "hyper names times so; they come from tokio's"
)]
impl Timer for HeadTimers {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into_std()
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        let until = self.0.millis(deadline.into());
        self.0.until.store(until, Relaxed);
        Box::pin(Waiting {
            until,
            shared: Arc::clone(&self.0),
        })
    }
}

/// Over when the real timer says so, which wakes the connection's task.
struct Waiting {
    until: u64,
    shared: Arc<Shared>,
}

impl Future for Waiting {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<()> {
        match self.shared.fired.load(Relaxed) >= self.until {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Sleep for Waiting {}

/// The real timer.
pub(super) struct HeadTimer {
    timer: Pin<Box<tokio::time::Sleep>>,
    shared: Arc<Shared>,
    timeout: Duration,
    started: bool,
}

impl HeadTimer {
    /// Starts it, for heads that may take `timeout`.
    pub(super) fn new(timeout: Duration) -> (Self, HeadTimers) {
        let born = Instant::now();
        let shared = Arc::new(Shared {
            born,
            until: AtomicU64::new(0),
            fired: AtomicU64::new(0),
        });
        let timer = Self {
            timer: Box::pin(tokio::time::sleep_until(born + timeout)),
            shared: Arc::clone(&shared),
            timeout,
            started: false,
        };
        (timer, HeadTimers(shared))
    }

    /// To be called before hyper is polled, in the one task that polls both: it is woken when the time is up.
    pub(super) fn look(&mut self, cx: &mut Context<'_>) {
        // Registered once; after that, no more than a look at a flag.
        if std::mem::replace(&mut self.started, true) && !self.timer.is_elapsed() {
            return;
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let fired = self.shared.millis(now);
            self.shared.fired.store(fired, Relaxed);
            let until = self.shared.until.load(Relaxed);
            let next = match until > fired {
                true => self.shared.born + Duration::from_millis(until),
                // No head is waited for, and one that begins now has all its time.
                false => now + self.timeout,
            };
            self.timer.as_mut().reset(next);
        }
    }
}
