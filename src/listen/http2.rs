//! HTTP/2 at a door (RFC 9113): many calls on one connection, each a task on this worker.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::http::{Calls, Door};
use super::patient::Patient;
use crate::lifecycle::{self, Guard};

/// Calls at a time on one connection.
const STREAMS_MAX: u32 = 250;
/// Flow control, in bytes. Set by us: h2's budget for small frames follows the window, and with the smallest one healthy
/// connections are closed.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// How long a connection may be silent before it is asked whether it lives, and how long it may take to say so.
const PING_AFTER: Duration = Duration::from_secs(20);
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// Streams that the caller may open and reset before we come to them (CVE-2023-44487, rapid reset).
const RESET_MAX: usize = 20;

/// Serves a connection to its end. It is closed when no call was open for the door's head timeout.
pub(super) async fn serve(door: &Door, io: Patient, calls: Calls, mut guard: Guard) {
    let seen = Arc::clone(&calls.seen);
    let open = Arc::new(AtomicUsize::new(0));
    let tasks = Tasks {
        open: Arc::clone(&open),
    };
    let mut connection = pin!(
        Builder::new(tasks)
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(door.head_max).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(RESET_MAX)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PONG_WITHIN)
            .serve_connection(TokioIo::new(io), calls)
    );
    let mut draining = pin!(guard.draining());
    let mut idle = pin!(sleep(door.head_timeout));
    let (mut goodbye, mut count) = (false, 0);
    let ended = poll_fn(|cx| {
        if !goodbye && draining.as_mut().poll(cx).is_ready() {
            goodbye = true;
            connection.as_mut().graceful_shutdown();
        }
        let ended = connection.as_mut().poll(cx);
        if ended.is_ready() || goodbye {
            return ended;
        }
        while idle.as_mut().poll(cx).is_ready() {
            if open.load(Relaxed) == 0 && seen.count() == count {
                goodbye = true;
                connection.as_mut().graceful_shutdown();
                return connection.as_mut().poll(cx);
            }
            count = seen.count();
            idle.as_mut().reset(Instant::now() + door.head_timeout);
        }
        Poll::Pending
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(door = door.name, %error, "connection ended early");
    }
}

/// Runs calls on this worker and counts them.
#[derive(Clone)]
struct Tasks {
    open: Arc<AtomicUsize>,
}

impl<F> Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.open.fetch_add(1, Relaxed);
        let one = One(Arc::clone(&self.open));
        lifecycle::spawn(&Handle::current(), "stream", async move {
            // Moved in, so that it is counted until the task is gone, however it goes.
            let _one = one;
            let future: Pin<Box<F>> = Box::pin(future);
            future.await;
        });
    }
}

struct One(Arc<AtomicUsize>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
