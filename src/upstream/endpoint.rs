//! One address of a service: its load, its connections, and whether it is left out and why.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::balance::Load;
use super::breaker::Breaker;
use super::pool::Pool;

/// One address of a service.
pub struct Endpoint {
    /// Where it is.
    pub address: SocketAddr,
    pub(super) load: Load,
    pub(super) breaker: Breaker,
    pub(super) pool: Pool,
    /// Seconds of Unix time since which it is as it is.
    since: AtomicU64,
    why: Mutex<String>,
}

impl Endpoint {
    pub(super) fn new(address: SocketAddr, shards: usize, idle_max: usize) -> Arc<Self> {
        Arc::new(Self {
            address,
            load: Load::default(),
            breaker: Breaker::new(),
            pool: Pool::new(shards, idle_max),
            since: AtomicU64::new(unix_seconds()),
            why: Mutex::default(),
        })
    }

    /// Took at least this long, for a call that could not wait any longer: dear, but not to blame.
    pub fn slow(&self, waited: std::time::Duration) {
        self.load.answered(waited, Instant::now());
    }

    /// Draws fewer calls for a while: it said that it has too many, which is no fault.
    pub fn avoid(&self) {
        self.load.failed();
    }

    /// Whether calls go there.
    pub fn is_up(&self) -> bool {
        !(self.breaker.is_out() || self.breaker.is_ill())
    }

    /// Seconds of Unix time since which it is up or down.
    pub fn since(&self) -> u64 {
        self.since.load(Relaxed)
    }

    /// Why it is down; of no meaning while it is up.
    pub fn why(&self) -> String {
        self.why
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn note(&self, why: String) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    pub(super) fn stamp(&self) {
        self.since.store(unix_seconds(), Relaxed);
    }
}

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Counts one call among those open at an address, until its last byte.
pub struct Open {
    endpoint: Arc<Endpoint>,
    /// When the call began.
    pub began: Instant,
}

impl Open {
    /// Begins a call.
    pub fn at(endpoint: &Arc<Endpoint>, began: Instant) -> Self {
        endpoint.load.begin();
        Self {
            endpoint: Arc::clone(endpoint),
            began,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.endpoint.load.end();
    }
}
