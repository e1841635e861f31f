//! An answer on its way back to the caller.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Version};
use http_body::Body as _;
use tokio::time::Instant;

use super::Forward;
use super::trip::Answer;
use crate::body::Body;
use crate::error::{Error, Kind};
use crate::pattern::hop;
use crate::pattern::relay::{Held, Limits, Relay};
use crate::reply::headers::{SERVER_TIMING, Text};
use crate::service::{Call, Leash, Permit, Request, Response};
use crate::telemetry::trace::Trace;
use crate::upstream::{Place, Upstream};

/// What a call holds while it is on its way, whichever try succeeds.
pub(super) struct Way {
    pub(super) upstream: Arc<Upstream>,
    pub(super) started: Instant,
    pub(super) deadline: Instant,
    pub(super) trace: Trace,
    pub(super) leash: Option<Arc<Leash>>,
    pub(super) permit: Option<Permit>,
    pub(super) place: Place,
}

impl Way {
    /// Takes a call apart: what it holds, and its request, with whether that is gRPC.
    pub(super) fn of(
        call: Box<Call>,
        upstream: &Arc<Upstream>,
        deadline: Instant,
        place: Place,
    ) -> (Self, (Request, bool)) {
        let call = *call;
        let way = Self {
            upstream: Arc::clone(upstream),
            started: call.started,
            deadline,
            trace: call.trace,
            leash: call.leash,
            permit: call.permit,
            place,
        };
        (way, (call.request, call.grpc))
    }
}

impl Forward {
    /// Sends the answer back, holding what the call holds until its last byte.
    pub(super) fn relay(&self, answer: Answer, way: Way) -> Result<Response, Error> {
        let (mut head, incoming) = answer.response.into_parts();
        if head.status.is_informational() {
            // Only a 101 gets this far, and nothing that could switch was passed on.
            return Err(Error::new(
                Kind::BadAnswer,
                "the service switches protocols unasked",
            ));
        }
        hop::clean_response(&mut head.headers, head.status)?;
        head.version = Version::HTTP_11;
        if let Some(value) = self.timing(&way, answer.came, answer.took) {
            head.headers.append(SERVER_TIMING, value);
        }
        let deadline = way.deadline;
        let shared = way.leash.is_none();
        if let Some(leash) = &way.leash {
            leash.until(deadline);
        }
        let mut held = Held {
            connection: Some(answer.connection),
            sent: answer.sent,
            upstream: way.upstream,
            trace: way.trace,
            open: answer.open,
            _permit: way.permit,
            _place: way.place,
        };
        if answer.first.is_none() && incoming.is_end_stream() {
            held.finish();
            return Ok(Response::from_parts(head, Body::empty()));
        }
        let limits = Limits {
            deadline,
            idle: self.timeouts.idle,
        };
        let body = Body::boxed(Relay::new(incoming, answer.first, limits, (held, shared)));
        Ok(Response::from_parts(head, body))
    }

    /// Where the time went, in milliseconds (W3C Server Timing): in this sidecar, retries and waits among it, and at the
    /// service.
    fn timing(&self, way: &Way, came: Instant, took: Duration) -> Option<HeaderValue> {
        let who = self.timing.as_ref()?;
        let all = came.saturating_duration_since(way.started);
        let ours = all.saturating_sub(took);
        let mut text = Text::default();
        text.push(who);
        text.push(";dur=");
        text.push_millis(ours);
        text.push(", ");
        text.push(&way.upstream.name);
        text.push(";dur=");
        text.push_millis(took);
        HeaderValue::from_bytes(text.bytes()).ok()
    }
}
