//! A call and its outcome: what every stage takes and gives back.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicU64, AtomicUsize};

use metrics::{Gauge, Histogram};
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;

use crate::body::Body;
use crate::error::Error;
use crate::telemetry::metrics::{Metrics, Outcomes};
use crate::telemetry::names;
use crate::telemetry::trace::Trace;

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
    /// The request itself.
    pub request: Request,
    /// Its place among the calls in flight, given back when the answer's last byte is out.
    pub permit: Option<Permit>,
}

impl Call {
    /// Takes a request that was read just now.
    pub fn new(mut request: Request) -> Self {
        let trace = Trace::of(request.headers_mut());
        Self {
            started: Instant::now(),
            trace,
            request,
            permit: None,
        }
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
    gauge: Gauge,
}

impl Gate {
    /// Makes a gate for `max` calls at a time.
    pub fn new(max: usize, gauge: Gauge) -> Arc<Self> {
        Arc::new(Self {
            max,
            now: AtomicUsize::new(0),
            entered: AtomicU64::new(0),
            gauge,
        })
    }

    /// Enters, unless as many are inside as may be.
    pub fn enter(self: &Arc<Self>) -> Option<Permit> {
        if self.now.fetch_add(1, AcqRel) >= self.max {
            self.now.fetch_sub(1, AcqRel);
            return None;
        }
        self.entered.fetch_add(1, Relaxed);
        self.gauge.increment(1.0);
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
        self.gate.gauge.decrement(1.0);
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
