//! The synchronous pattern: one call, tried on one address after the other under one deadline.

mod answer;
mod source;
mod switch;
mod trip;

pub use switch::{Crossing, Far, FarHeld, Stream};

use std::pin::pin;
use std::sync::Arc;

use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, StatusCode};
use tokio::time::{Instant, sleep_until};

use super::deadline::{self, within};
use super::hop::{self, Via};
use super::replay::ReplayBudget;
use super::retry::Next;
use crate::body::Body;
use crate::config::model::{Retry, Timeouts};
use crate::error::{Error, Kind};
use crate::service::{Call, Request, Response};
use crate::upstream::Upstream;
use answer::Way;
use trip::Trip;

/// What one route does with its calls.
pub struct Forward {
    /// Where to.
    pub to: Split,
    /// Every phase.
    pub timeouts: Timeouts,
    /// When a try is repeated.
    pub retry: Retry,
    /// The route says that running a call twice does no harm.
    pub idempotent: bool,
    /// Where bodies are kept for a repeated try.
    pub replay: Arc<ReplayBudget>,
    /// This door's name.
    pub via: Via,
    /// This sidecar's name in `Server-Timing`, where the caller is told how long what took.
    pub timing: Option<String>,
}

/// A call that has no answer.
pub struct Failed {
    /// Why.
    pub error: Error,
    /// The call, if none of it was sent. Its body is whole; its head is ready to be sent.
    pub unsent: Option<Box<Call>>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self {
            error,
            unsent: None,
        }
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

/// One service, or several that share the calls by weight.
pub struct Split {
    /// Each with the sum of the weights up to it.
    shares: Vec<(u64, Arc<Upstream>)>,
}

impl Split {
    /// Shares calls by weight; there must be one, and no weight is 0.
    pub fn new(shares: impl IntoIterator<Item = (Arc<Upstream>, u32)>) -> Self {
        let mut sum = 0;
        let shares = shares.into_iter().map(|(upstream, weight)| {
            sum += u64::from(weight);
            (sum, upstream)
        });
        Self {
            shares: shares.collect(),
        }
    }

    /// All calls to one.
    pub fn one(upstream: Arc<Upstream>) -> Self {
        Self::new([(upstream, 1)])
    }

    fn choose(&self) -> Result<&Arc<Upstream>, Error> {
        let chosen = match self.shares.as_slice() {
            [(_, only)] => Some(only),
            shares => {
                let all = shares.last().map_or(1, |(sum, _)| *sum);
                let at = fastrand::u64(..all);
                shares.iter().find(|(sum, _)| at < *sum).map(|(_, one)| one)
            }
        };
        chosen.ok_or_else(|| Error::new(Kind::Internal, "a route leads to no service"))
    }
}

impl Forward {
    /// Carries a call to the service and its answer back.
    ///
    /// # Errors
    /// Where no answer began: the error of the last try that was sent, or else of the last one; [`Kind::Deadline`].
    pub async fn call(&self, mut call: Box<Call>) -> Result<Response, Failed> {
        if let Some(answered) = ends_here(&mut call.request) {
            return answered.map_err(Failed::from);
        }
        let upstream = self.to.choose()?;
        let deadline = deadline::of(
            call.request.headers_mut(),
            call.started,
            self.timeouts.whole,
        );
        if let Some(crossing) = call.request.extensions_mut().remove::<Crossing>()
            && let Some(wanted) = switch::wanted(&call.request)
        {
            // Boxed: rare, and larger than the rest.
            let switching = self.switch(upstream, call, (crossing, wanted), deadline);
            return Box::pin(switching).await.map_err(Failed::from);
        }
        if call.request.method() == Method::CONNECT {
            let detail = "a tunnel is made for a CONNECT of HTTP/1.1 only";
            return Err(Error::new(Kind::NotImplemented, detail).into());
        }
        let place = match upstream.enter(deadline).await {
            Ok(place) => place,
            Err(error) => {
                let unsent = Some(call);
                return Err(Failed { error, unsent });
            }
        };
        let way = Way {
            upstream,
            call,
            deadline,
            place,
        };
        let mut trip = Trip::new(self, way)?;
        let mut timer = pin!(sleep_until(deadline));
        upstream.deposit();
        loop {
            let wait = {
                let tried = trip.attempt(timer.as_mut()).await;
                trip.over(&tried);
                let Some(failure) = trip.failure(&tried) else {
                    return Ok(self.relay(tried?, trip.way)?);
                };
                let next = trip.next(failure, &tried);
                if next == Next::GiveUp {
                    return match trip.last(failure, tried) {
                        Ok(answer) => Ok(self.relay(answer, trip.way)?),
                        Err(error) => Err(trip.failed(error)),
                    };
                }
                // Not held over the wait: the future would have the room for an answer twice.
                trip.keep(failure, tried);
                next
            };
            if let Next::After(wait) = wait {
                // The timer is the call's own, so that a backoff needs no second one.
                let over = Instant::now() + wait;
                within(timer.as_mut(), over, std::future::pending::<()>()).await;
                trip.start_over();
            }
        }
    }
}

/// Answers an OPTIONS whose Max-Forwards ends here (RFC 9110 section 7.6.2), and any TRACE. `None`: it goes on.
pub fn ends_here(request: &mut Request) -> Option<Result<Response, Error>> {
    if request.method() == Method::TRACE {
        // An echo would hand the caller's own credentials around.
        let error = Error::new(
            Kind::NotImplemented,
            "TRACE is neither answered nor passed on",
        );
        return Some(Err(error));
    }
    hop::last_hop(request).then(|| Ok(last_hop()))
}

fn last_hop() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::OK;
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    response
}
