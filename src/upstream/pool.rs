//! Connections of one address that may serve another call, a shard for each worker thread.
//!
//! HTTP/1.1 connections lie idle, newest first, and belong to one call at a time. HTTP/2 connections are shared by many.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::traffic::Traffic;
use crate::body::Body;
use crate::lifecycle::shard;

/// Calls that share one HTTP/2 connection, even if the peer would take more; more open a further one.
const STREAMS_MAX: usize = 100;

/// The connections.
pub(super) struct Pool {
    shards: Box<[Shard]>,
    /// Idle connections that one shard keeps; beyond it the oldest is closed, since calls that must not run twice take new
    /// ones only.
    idle_max: usize,
}

pub(super) struct Shard {
    /// The newest last.
    idle: Mutex<VecDeque<Idle>>,
    shared: Mutex<Vec<Shared>>,
    /// One at a time makes an HTTP/2 connection; the others wait and share it.
    pub(super) making: Semaphore,
}

/// One idle HTTP/1.1 connection.
pub(super) struct Idle {
    pub(super) sender: http1::SendRequest<Body>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) since: Instant,
    /// When the other side may close it.
    pub(super) until: Instant,
}

/// How many calls at a time the other side of an HTTP/2 connection takes. Until it says so, it is taken for as many as we
/// would send; they wait in the connection.
#[derive(Default)]
pub(super) struct Room(OnceLock<AtomicUsize>);

impl Room {
    /// Notes what the other side says.
    pub(super) fn is(&self, streams: usize) {
        self.0
            .get_or_init(AtomicUsize::default)
            .store(streams, Relaxed);
    }

    fn calls(&self) -> usize {
        let said = self.0.get().map(|room| room.load(Relaxed));
        said.map_or(STREAMS_MAX, |said| said.clamp(1, STREAMS_MAX))
    }
}

/// One HTTP/2 connection.
struct Shared {
    sender: http2::SendRequest<Body>,
    traffic: Arc<Traffic>,
    room: Arc<Room>,
    state: Arc<State>,
    used: Instant,
}

/// What all calls of one HTTP/2 connection know of it.
#[derive(Default)]
struct State {
    calls: AtomicUsize,
    /// The other side has said goodbye, or has not taken a call: no more are sent there, whatever hyper says of it.
    leaving: AtomicBool,
}

/// A call's place on a shared connection, given back when dropped.
pub(super) struct Place {
    pub(super) sender: http2::SendRequest<Body>,
    pub(super) traffic: Arc<Traffic>,
    state: Arc<State>,
}

impl Place {
    /// Lets no further call join this connection. Those that are on it go on.
    pub(super) fn leave(&self) {
        self.state.leaving.store(true, Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.state.calls.fetch_sub(1, Relaxed);
    }
}

impl Pool {
    /// Makes an empty pool. As many connections may lie idle in a shard as there may be calls: fewer would be closed and
    /// made anew whenever the calls come and end in waves.
    pub(super) fn new(shards: usize, idle_max: usize) -> Self {
        let shard = || Shard {
            idle: Mutex::default(),
            shared: Mutex::default(),
            making: Semaphore::new(1),
        };
        Self {
            shards: (0..shards.max(1)).map(|_| shard()).collect(),
            idle_max,
        }
    }

    /// The shard of this thread.
    pub(super) fn here(&self) -> &Shard {
        &self.shards[shard() % self.shards.len()]
    }

    /// Takes a connection back.
    pub(super) fn give_back(&self, connection: Idle) {
        let mut idle = lock(&self.here().idle);
        if idle.len() >= self.idle_max {
            idle.pop_front();
        }
        idle.push_back(connection);
    }

    /// Closes what was idle for too long, in every shard.
    pub(super) fn sweep(&self, longest: Duration) {
        let now = Instant::now();
        for shard in &self.shards {
            lock(&shard.idle).retain(|one| now < one.until && !one.sender.is_closed());
            lock(&shard.shared).retain(|one| {
                let resting = one.state.calls.load(Relaxed) == 0;
                !(one.sender.is_closed() || resting && now.duration_since(one.used) > longest)
            });
        }
    }
}

impl Shard {
    /// Takes the newest idle connection that is alive and was idle for at most `longest`.
    pub(super) fn take(&self, longest: Duration, now: Instant) -> Option<Idle> {
        let mut idle = lock(&self.idle);
        while let Some(newest) = idle.pop_back() {
            if newest.sender.is_closed() || now >= newest.until {
                continue;
            }
            if now.duration_since(newest.since) > longest {
                // Good for others still. All before it are older; the oldest makes room for the one that is made instead,
                // or calls that must not run twice would add theirs to the pool for ever.
                idle.push_back(newest);
                idle.pop_front();
                return None;
            }
            return Some(newest);
        }
        None
    }

    /// A place on a connection that has one.
    pub(super) fn join(&self) -> Option<Place> {
        let mut shared = lock(&self.shared);
        shared.retain(|one| !(one.sender.is_closed() || one.state.leaving.load(Relaxed)));
        let free = shared
            .iter_mut()
            .find(|one| one.state.calls.load(Relaxed) < one.room.calls())?;
        free.used = Instant::now();
        free.state.calls.fetch_add(1, Relaxed);
        Some(Place {
            sender: free.sender.clone(),
            traffic: Arc::clone(&free.traffic),
            state: Arc::clone(&free.state),
        })
    }

    /// Shares a new connection and takes the first place on it.
    pub(super) fn share(
        &self,
        sender: http2::SendRequest<Body>,
        room: Arc<Room>,
        traffic: Arc<Traffic>,
    ) -> Place {
        let state = Arc::new(State::default());
        state.calls.store(1, Relaxed);
        let place = Place {
            sender: sender.clone(),
            traffic: Arc::clone(&traffic),
            state: Arc::clone(&state),
        };
        lock(&self.shared).push(Shared {
            sender,
            traffic,
            room,
            state,
            used: Instant::now(),
        });
        place
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
