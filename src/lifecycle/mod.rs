//! From start to stop: the worker threads, readiness, signals, and the drain that everything in flight holds.

mod drain;
mod ready;
mod signals;
mod workers;

pub use drain::{Drain, Guard};
pub use ready::{Ready, Reason};
pub use signals::{Signal, Signals};
pub use workers::{Workers, shard};

use std::future::Future;

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
pub async fn catch<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        // After a panic the future is never polled again, so nothing half-changed is looked at.
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| future.as_mut().poll(cx)));
        match polled {
            Ok(poll) => poll.map(Ok),
            Err(panic) => std::task::Poll::Ready(Err(message(&*panic))),
        }
    })
    .await
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
}
