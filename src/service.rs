//! A call and its outcome: what every stage takes and gives back.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use metrics::Histogram;
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;
use uuid::Uuid;

use crate::body::Body;
use crate::error::{Error, Kind};
use crate::telemetry::metrics::{Metrics, Outcomes};
use crate::telemetry::spans::{Open, Spans};
use crate::telemetry::trace::{TRACEPARENT, Trace};
use crate::telemetry::{names, tracestate};
use crate::tls::Peer;

/// A request whose body streams.
pub type Request = http::Request<Body>;
/// A response whose body streams.
pub type Response = http::Response<Body>;
/// What a door hands its calls to. Always ready: limits are kept inside.
pub type Handler = BoxCloneSyncService<Box<Call>, Response, Infallible>;

/// One call on its way through the stages. It travels in a box: every stage moves it once or twice.
#[derive(Debug)]
pub struct Call {
    /// When its head was read; its deadline counts from here.
    pub started: Instant,
    /// Its trace context.
    pub trace: Trace,
    /// The context came with it; else it was made here, and no `tracestate` is about it.
    pub traced: bool,
    /// The request itself.
    pub request: Request,
    /// Its place among the calls in flight, given back when the answer's last byte is out.
    pub permit: Option<Permit>,
    /// Whether it is gRPC, which is answered and timed in its own words.
    pub grpc: bool,
    /// Who calls, if the connection is one of TLS.
    pub peer: Option<Arc<Peer>>,
    /// Ends the caller's connection where nothing else can.
    pub leash: Option<Arc<Leash>>,
    /// Where spans within it are recorded; `None` unless its trace is.
    pub spans: Option<Arc<Spans>>,
    /// The span of the try that is under way.
    pub trying: Option<Open>,
    /// The message that it delivers, for the log.
    pub message: Option<Uuid>,
}

/// Whether a content type is that of gRPC over HTTP/2 (PROTOCOL-HTTP2.md, "Requests"); gRPC-Web is another protocol.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// Until when the caller of one connection has to take its answer. The answer's own timer stands still while the caller
/// does not read, since nobody asks it for the next frame; the connection's timer runs on.
#[derive(Debug)]
pub struct Leash {
    born: Instant,
    /// Milliseconds after `born`; 0 for no end.
    until: AtomicU64,
}

impl Leash {
    /// Starts without an end.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            born: Instant::now(),
            until: AtomicU64::new(0),
        })
    }

    /// Forgets the end of the answer before: another call begins.
    pub fn loosen(&self) {
        self.until.store(0, Relaxed);
    }

    /// Sets the end of the answer that is sent now.
    pub fn until(&self, deadline: Instant) {
        let millis = deadline.saturating_duration_since(self.born).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        self.until.store(millis.max(1), Relaxed);
    }

    /// The end, if there is one.
    pub fn end(&self) -> Option<Instant> {
        let millis = self.until.load(Relaxed);
        (millis > 0).then(|| self.born + Duration::from_millis(millis))
    }
}

impl Call {
    /// Takes a request that was read just now.
    pub fn new(mut request: Request) -> Self {
        let (trace, traced) = Trace::of(request.headers_mut());
        // gRPC is always a POST: others need no look.
        let grpc = request.method() == http::Method::POST && is_grpc(request.headers());
        Self {
            started: Instant::now(),
            trace,
            traced,
            request,
            permit: None,
            grpc,
            peer: None,
            leash: None,
            spans: None,
            trying: None,
            message: None,
        }
    }

    /// Begins the span of a try at one address of a service, after so many that were sent, if its trace is recorded.
    pub fn try_begins(&mut self, to: (&str, SocketAddr), sent: u32) {
        if let Some(spans) = &self.spans {
            let what = (self.request.method(), self.request.uri().path());
            self.trying = Some(spans.trying(&self.trace, to, what, sent));
        }
    }

    /// The try's request is about to leave: it names the try's span.
    pub fn try_leaves(&mut self) {
        if let Some(trace) = self.trying.as_ref().and_then(Open::trace) {
            let headers = self.request.headers_mut();
            headers.insert(TRACEPARENT, trace.header());
        }
    }

    /// Ends the span of a try.
    pub fn try_ends(&mut self, ended: Result<StatusCode, &Error>) {
        if let Some(span) = self.trying.take() {
            span.tried(ended.map_err(|error| error.kind().word()));
        }
    }

    /// Begins its span, if its trace is recorded: its context is then that of the span, also for whoever gets the request.
    pub fn record(&mut self, spans: &Arc<Spans>) -> Option<Open> {
        let peer = self.peer.as_deref().map(Peer::name);
        let headers = self.request.headers();
        let given = (&self.trace, self.traced);
        let open = spans.serving(given, peer, || tracestate::of(headers))?;
        if let Some(trace) = open.trace() {
            self.trace = trace.clone();
            self.request
                .headers_mut()
                .insert(TRACEPARENT, trace.header());
        }
        self.spans = Some(Arc::clone(spans));
        Some(open)
    }
}

/// How a call ended, and under which name it is counted.
#[derive(Debug)]
pub struct Outcome {
    /// The answer, or why there is none.
    pub result: Result<Response, Error>,
    /// The meters of the route that took it.
    pub meters: Arc<Meters>,
}

/// Counts a call whose caller left before there was an answer: dropped before [`Attended::over`], it says so.
pub struct Attended {
    meters: Arc<Meters>,
    trace: Trace,
    over: bool,
}

impl Attended {
    /// Begins.
    pub fn new(meters: &Arc<Meters>, trace: &Trace) -> Self {
        Self {
            meters: Arc::clone(meters),
            trace: trace.clone(),
            over: false,
        }
    }

    /// The call has an outcome, which is counted elsewhere.
    pub fn over(mut self) {
        self.over = true;
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        if !self.over {
            self.meters.outcomes.refused(Kind::CallerLeft);
            let (route, trace) = (&self.meters.route, self.trace.id());
            tracing::debug!(route, trace, "the caller left before there was an answer");
        }
    }
}

/// One place among the calls in flight.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
}

/// Counts calls in flight and refuses those above the limit.
#[derive(Debug)]
pub struct Gate {
    max: usize,
    now: AtomicUsize,
    entered: AtomicU64,
}

impl Gate {
    /// Makes a gate for `max` calls at a time.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            now: AtomicUsize::new(0),
            entered: AtomicU64::new(0),
        })
    }

    /// Enters, unless as many are inside as may be.
    pub fn enter(self: &Arc<Self>) -> Option<Permit> {
        if self.now.fetch_add(1, AcqRel) >= self.max {
            self.now.fetch_sub(1, AcqRel);
            return None;
        }
        self.entered.fetch_add(1, Relaxed);
        Some(Permit {
            gate: Arc::clone(self),
        })
    }

    /// How many are inside.
    pub fn inside(&self) -> usize {
        self.now.load(Acquire)
    }

    /// How many have entered since the start: two equal looks, and nobody came in between.
    pub fn entered(&self) -> u64 {
        self.entered.load(Relaxed)
    }

    /// How many may be inside.
    pub fn max(&self) -> usize {
        self.max
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.now.fetch_sub(1, AcqRel);
    }
}

/// A route's counters, resolved when the route is built.
pub struct Meters {
    /// The route's name, or a word in brackets where no route is meant.
    pub route: String,
    /// `forward`, `publish`, `event`, or `-`.
    pub pattern: &'static str,
    /// How calls ended.
    pub outcomes: Outcomes,
    /// How long their heads took.
    pub seconds: Histogram,
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Meters({}, {})", self.route, self.pattern)
    }
}

impl Meters {
    /// Resolves the counters of one route at one door.
    pub fn new(metrics: &Metrics, door: &str, route: &str, pattern: &'static str) -> Arc<Self> {
        let labels = [("door", door), ("route", route)];
        let with_pattern = [("door", door), ("route", route), ("pattern", pattern)];
        Arc::new(Self {
            route: route.to_owned(),
            pattern,
            outcomes: Outcomes::new(metrics, &names::CALLS, &with_pattern),
            seconds: metrics.histogram(&names::CALL_SECONDS, &labels),
        })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn grpc_is_told_by_its_content_type_and_grpc_web_is_not_it() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=x", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
            assert_eq!(is_grpc(&headers), expected, "{value}");
        }
    }
}
