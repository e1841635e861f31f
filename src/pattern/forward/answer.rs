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
use crate::service::{Call, Response};
use crate::upstream::{Place, Upstream};

/// What a call holds while it is on its way, whichever try succeeds.
pub(super) struct Way<'a> {
    pub(super) upstream: &'a Arc<Upstream>,
    /// Its request is what is sent.
    pub(super) call: Box<Call>,
    pub(super) deadline: Instant,
    pub(super) place: Place,
}

impl Forward {
    /// Sends the answer back, holding what the call holds until its last byte.
    pub(super) fn relay(&self, answer: Answer, way: Way<'_>) -> Result<Response, Error> {
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
        let call = way.call;
        let shared = call.leash.is_none();
        if let Some(leash) = &call.leash {
            leash.until(deadline);
        }
        let mut held = Held {
            connection: Some(answer.connection),
            sent: answer.sent,
            upstream: Arc::clone(way.upstream),
            trace: call.trace,
            open: answer.open,
            _permit: call.permit,
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
    fn timing(&self, way: &Way<'_>, came: Instant, took: Duration) -> Option<HeaderValue> {
        let who = self.timing.as_ref()?;
        let all = came.saturating_duration_since(way.call.started);
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
