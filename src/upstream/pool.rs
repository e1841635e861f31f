//! Idle connections of one address, a shard for each worker thread, newest first.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use metrics::Counter;
use tokio::time::Instant;

use super::Endpoint;
use crate::body::Body;
use crate::error::{Error, Kind, Retry, Side};
use crate::lifecycle::shard;
use crate::service::Request;

/// Idle connections that one shard keeps to one address; more are closed.
const IDLE_MAX: usize = 256;

/// What the pools of one service share.
pub(super) struct Settings {
    /// How long a connection may lie idle.
    pub(super) idle: Duration,
    pub(super) shards: usize,
    pub(super) connects: Counter,
    pub(super) failures: Counter,
}

/// The idle connections.
pub(super) struct Pool {
    shards: Box<[Mutex<Vec<Idle>>]>,
}

/// One idle connection.
pub(super) struct Idle {
    sender: SendRequest<Body>,
    since: Instant,
}

/// A connection that one call has for itself. Dropped, it is closed; [`Connection::release`] gives it back.
pub struct Connection {
    sender: SendRequest<Body>,
    endpoint: Arc<Endpoint>,
    /// Whether an earlier call used it.
    pub reused: bool,
}

/// A call that got no answer's head.
pub struct SendError {
    /// What happened; [`Error::may_retry`] is exact.
    pub error: Error,
    /// The request, untouched, if not one byte of it left.
    pub unsent: Option<Box<Request>>,
}

impl Pool {
    pub(super) fn new(shards: usize) -> Self {
        Self {
            shards: (0..shards.max(1)).map(|_| Mutex::default()).collect(),
        }
    }

    /// Takes the newest connection that is alive and was not idle for too long; older ones are closed on the way.
    pub(super) fn take(&self, settings: &Settings) -> Option<Idle> {
        let now = Instant::now();
        let mut idle = self.shard().lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(newest) = idle.pop() {
            if now.duration_since(newest.since) > settings.idle {
                // All below are older still.
                idle.clear();
                return None;
            }
            if !newest.sender.is_closed() {
                return Some(newest);
            }
        }
        None
    }

    /// Closes what was idle for too long, in every shard.
    pub(super) fn sweep(&self, longest: Duration) {
        let now = Instant::now();
        for shard in &self.shards {
            let mut idle = shard.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|one| now.duration_since(one.since) <= longest && !one.sender.is_closed());
        }
    }

    fn give_back(&self, sender: SendRequest<Body>) {
        let mut idle = self.shard().lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(Idle {
                sender,
                since: Instant::now(),
            });
        }
    }

    fn shard(&self) -> &Mutex<Vec<Idle>> {
        &self.shards[shard() % self.shards.len()]
    }
}

impl Idle {
    pub(super) fn into_connection(self, endpoint: &Arc<Endpoint>) -> Connection {
        Connection {
            sender: self.sender,
            endpoint: Arc::clone(endpoint),
            reused: true,
        }
    }
}

impl Connection {
    pub(super) fn fresh(sender: SendRequest<Body>, endpoint: &Arc<Endpoint>) -> Self {
        Self {
            sender,
            endpoint: Arc::clone(endpoint),
            reused: false,
        }
    }

    /// Sends a request in origin form and waits for the answer's head.
    ///
    /// # Errors
    /// With the request itself if it never left.
    pub async fn send(&mut self, request: Request) -> Result<http::Response<Incoming>, SendError> {
        // A connection that was given back a moment ago may still be finishing its last answer.
        if std::future::poll_fn(|cx| self.sender.poll_ready(cx))
            .await
            .is_err()
        {
            return Err(never_sent(
                request,
                "the connection was closed while idle".into(),
            ));
        }
        let asked = Instant::now();
        match self.sender.try_send_request(request).await {
            Ok(response) => {
                // A fast refusal must not attract more calls.
                match response.status().as_u16() {
                    429 | 502 | 503 | 504 => self.endpoint.load.failed(),
                    _ => self.endpoint.load.answered(asked.elapsed()),
                }
                Ok(response)
            }
            Err(mut error) => match error.take_message() {
                Some(request) => Err(never_sent(request, error.into_error().into())),
                None => {
                    let error = sent(error.into_error());
                    // A caller that breaks off says nothing about the address.
                    if error.kind().side() == Side::Peer {
                        self.endpoint.load.failed();
                    }
                    Err(SendError {
                        error,
                        unsent: None,
                    })
                }
            },
        }
    }

    /// Gives the connection back once its answer was read to the end.
    pub fn release(self) {
        if !self.sender.is_closed() {
            self.endpoint.pool.give_back(self.sender);
        }
    }
}

fn never_sent(request: Request, cause: crate::error::BoxError) -> SendError {
    let error = Error::new(
        Kind::Reset,
        "the connection was closed before the call left",
    )
    .retry(Retry::NeverSent)
    .because(cause);
    SendError {
        error,
        unsent: Some(Box::new(request)),
    }
}

/// Sorts what hyper says of a call that left, or began to.
fn sent(error: hyper::Error) -> Error {
    if error.is_user() {
        // Our own body type refused to go on: its reason counts, not hyper's wrapping.
        let mut cause: Option<&(dyn std::error::Error + 'static)> =
            std::error::Error::source(&error);
        while let Some(inner) = cause {
            if let Some(ours) = inner.downcast_ref::<Error>() {
                return Error::new(ours.kind(), ours.detail().to_owned());
            }
            cause = inner.source();
        }
    }
    if error.is_parse() {
        return Error::new(Kind::BadAnswer, "the service's answer is not valid HTTP")
            .because(error);
    }
    Error::new(
        Kind::Reset,
        "the service closed the connection before it answered",
    )
    .retry(Retry::NoAnswer)
    .because(error)
}

/// Counts one call among those open at an address, until its last byte.
pub struct Open(Arc<Endpoint>);

impl Open {
    /// Begins a call.
    pub fn at(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.load.begin();
        Self(Arc::clone(endpoint))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.load.end();
    }
}
