//! The worker threads: one single-threaded runtime each, so that a call, its connection and its pool stay on one core.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Shorter than most limits of time, and rare enough to cost nothing.
const BEAT: Duration = Duration::from_millis(500);

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(0) };
}

/// The number of the worker that runs this code, from 1; 0 on every other thread. Pools keep a shard for each, so that
/// their locks are never contended on the hot path.
pub fn shard() -> usize {
    SHARD.get()
}

/// All worker threads.
pub struct Workers {
    threads: Vec<Worker>,
    next: AtomicUsize,
}

struct Worker {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads, at least one.
    ///
    /// # Errors
    /// The system refuses a thread or an event queue.
    pub fn start(count: usize) -> io::Result<Self> {
        let threads = (1..=count.max(1))
            .map(Worker::start)
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            threads,
            next: AtomicUsize::new(0),
        })
    }

    /// As many threads as the process may use CPUs; the standard library reads the cgroup's quota and the affinity mask.
    pub fn count_for_this_machine() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// The worker whose turn it is.
    pub fn next(&self) -> &Handle {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        &self.threads[at].handle
    }

    /// Shards that a pool needs: one a worker, and one for all other threads.
    pub fn shards(&self) -> usize {
        self.threads.len() + 1
    }
}

impl Worker {
    fn start(shard: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name(format!("wayside-worker-{shard}"))
            .spawn(move || {
                SHARD.set(shard);
                runtime.spawn(beat());
                runtime.spawn(super::wake::inbox());
                // Either way of ending means stop: a message, or the owner's drop.
                let _ended = runtime.block_on(stopped);
                runtime.shutdown_background();
            })?;
        Ok(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

/// Keeps a timer that is earlier than those of calls. Whenever another one becomes the earliest, tokio wakes its own thread
/// by a system call, and on a quiet worker that would be each call's.
async fn beat() {
    let mut beat = tokio::time::interval(BEAT);
    loop {
        beat.tick().await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a worker thread panicked: this is a defect");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_take_turns_and_know_their_shard() {
        let workers = Workers::start(2).expect("two threads start");
        let (send, receive) = std::sync::mpsc::channel();
        for _ in 0..4 {
            let send = send.clone();
            workers
                .next()
                .spawn(async move { send.send(shard()).expect("the test listens") });
        }
        let mut shards: Vec<usize> = receive.iter().take(4).collect();
        shards.sort_unstable();
        assert_eq!(shards, [1, 1, 2, 2]);
        assert_eq!(shard(), 0);
    }
}
