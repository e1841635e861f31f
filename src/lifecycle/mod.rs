//! From start to stop: the worker threads, readiness, signals, and the drain that everything in flight holds.

pub mod cpu;
pub mod crash;
mod drain;
mod files;
pub mod folder;
mod memory;
mod ready;
mod signals;
mod wake;
mod workers;

pub use drain::{Drain, Guard};
pub use files::raise_open_files;
pub use memory::memory_limit;
pub use ready::{Ready, Reason};
pub use signals::{Signal, Signals};
pub use wake::Wake;
pub use workers::{Workers, shard};

use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Starts a named task that reports its own panic instead of dying in silence.
pub fn spawn<F>(runtime: &Handle, name: &'static str, future: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    runtime.spawn(async move {
        if let Err(panic) = catch(future).await {
            tracing::error!(task = name, panic, "a task panicked: this is a defect");
        }
    })
}

/// Runs a future to its end; a panic comes back as its message.
///
/// # Errors
/// The panic's message.
pub fn catch<F: Future>(future: F) -> impl Future<Output = Result<F::Output, String>> {
    Catch { future }
}

pin_project_lite::pin_project! {
    // Not an async function: that would hold the future twice, once as its argument and once while it waits.
    struct Catch<F> {
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Catch<F> {
    type Output = Result<F::Output, String>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // After a panic the future is never polled again, so nothing half-changed is looked at.
        match catch_unwind(AssertUnwindSafe(|| self.project().future.poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(message(&*panic))),
        }
    }
}

thread_local! {
    /// Whether a panic on this thread is no defect of ours just now.
    static TOLERATED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a library's code that panics on what others wrote: `None` if it did. The log says nothing of such a panic, since
/// whoever causes one could cause any number.
///
/// Unwinding costs microseconds, so a caller bounds how often it happens.
pub fn tolerate<T>(work: impl FnOnce() -> T) -> Option<T> {
    TOLERATED.set(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    TOLERATED.set(false);
    done.ok()
}

/// Whether the panic at hand is one that [`tolerate`] waits for.
pub fn is_tolerated() -> bool {
    TOLERATED.get()
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "no message".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_comes_back_as_its_message() {
        let caught = catch(async { panic!("boom {}", 7) }).await;
        assert_eq!(caught, Err("boom 7".to_owned()));
    }

    #[test]
    fn a_panic_is_tolerated_only_where_one_is_waited_for() {
        let inside = std::sync::atomic::AtomicBool::new(false);
        let done: Option<()> = tolerate(|| {
            inside.store(is_tolerated(), std::sync::atomic::Ordering::Relaxed);
            panic!("not our fault");
        });
        assert_eq!((done, inside.into_inner()), (None, true));
        assert!(!is_tolerated(), "also after a panic");
        assert_eq!(tolerate(|| 7), Some(7));
        assert!(!is_tolerated());
    }
}
