//! From forward to publish: a call that could not be sent is queued, and so are the later ones of its key until the
//! receiver's verdict on the last of them.
//!
//! Only what was never sent is queued: whatever the service may have seen is the caller's to decide about. Reads are not,
//! nor what could not understand a 202: gRPC, tunnels and upgrades.

use std::sync::Arc;

use http::header::UPGRADE;
use http::{HeaderMap, Method, Uri};
use metrics::Counter;

use super::forward::{Failed, Forward};
use super::publish::Publish;
use crate::error::{Error, Kind};
use crate::messages::queued::Queued;
use crate::reply::queued::{self, Why};
use crate::service::{Call, Request, Response};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names;

/// What a call is queued for. A certificate that is not right is none of it: somebody has to know.
const REASONS: [Kind; 3] = [Kind::Unreachable, Kind::Unresolved, Kind::Overloaded];

/// What one route does with its calls.
pub struct Fallback {
    forward: Forward,
    publish: Publish,
    queued: Arc<Queued>,
    /// This sidecar's name in Proxy-Status.
    who: String,
    behind: Counter,
    unsent: [Counter; REASONS.len()],
}

impl Fallback {
    /// Puts both patterns of a route together.
    pub fn new(
        (route, service): (&str, &str),
        forward: Forward,
        publish: Publish,
        queued: &Arc<Queued>,
        metrics: &Metrics,
    ) -> Self {
        let count = |why: Why| {
            let labels = [("route", route), ("reason", why.word())];
            metrics.counter(&names::FALLBACKS, &labels)
        };
        Self {
            forward,
            publish: publish.noting(queued),
            queued: Arc::clone(queued),
            who: format!("wayside-{service}"),
            behind: count(Why::Behind),
            unsent: REASONS.map(|kind| count(Why::Unsent(kind))),
        }
    }

    /// Forwards a call, or queues it.
    ///
    /// # Errors
    /// As [`Forward::call`] of a call that is not queued or could not be, and [`Publish::call`] of one that queues behind
    /// another or whose idempotency key was used.
    pub async fn call(&self, mut call: Box<Call>) -> Result<Response, Error> {
        if !may_queue(&call) {
            return Ok(self.forward.call(call).await?);
        }
        if self.publish.is_repeated(call.request.headers()) {
            // It is a message already, perhaps one that has ended: forwarded, it would run twice.
            return self.queue(call, Why::Repeated).await;
        }
        if self.queued.lanes() > 0 && self.publish.is_behind(&self.queued, &mut call).await? {
            self.behind.increment(1);
            return self.queue(call, Why::Behind).await;
        }
        let head = Head::of(&call.request);
        let Failed { error, unsent } = match self.forward.call(call).await {
            Ok(response) => return Ok(response),
            Err(failed) => failed,
        };
        let reason = REASONS.iter().position(|kind| *kind == error.kind());
        let (Some(mut call), Some(counter)) = (unsent, reason.and_then(|at| self.unsent.get(at)))
        else {
            return Err(error);
        };
        counter.increment(1);
        head.put_back(&mut call.request);
        let queued = self.queue(call, Why::Unsent(error.kind())).await;
        queued.map_err(|second| match second.kind() {
            Kind::KeyReused | Kind::KeyInProgress => second,
            // What the call lacks to be queued is no fault of a call that was to be forwarded.
            _ => error.adding(&format!("and it was not queued: {}", second.detail())),
        })
    }

    async fn queue(&self, call: Box<Call>, why: Why) -> Result<Response, Error> {
        let trace = call.trace.clone();
        let mut response = self.publish.call(call).await?;
        tracing::debug!(why = why.word(), trace = trace.id(), "call queued");
        queued::mark(&mut response, why, &self.who);
        Ok(response)
    }
}

fn may_queue(call: &Call) -> bool {
    let request = &call.request;
    let changes = !request.method().is_safe() && request.method() != Method::CONNECT;
    changes && !call.grpc && !request.headers().contains_key(UPGRADE)
}

/// A call's head as it came, which forwarding makes ready for the next hop.
struct Head {
    uri: Uri,
    headers: HeaderMap,
}

impl Head {
    fn of(request: &Request) -> Self {
        Self {
            uri: request.uri().clone(),
            headers: request.headers().clone(),
        }
    }

    fn put_back(self, request: &mut Request) {
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
    }
}
