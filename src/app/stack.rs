//! The steps around every call of a door, a comment at each why it stands there.
//!
//! Retries, timeouts and balancing are not layers: they need the route, the body and the error together and are plain
//! loops in `pattern`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::uri::PathAndQuery;
use metrics::Counter;
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;
use tower::{Service, service_fn};

use crate::error::{Error, Kind};
use crate::lifecycle;
use crate::listen::head;
use crate::reply::headers::{self, Carried};
use crate::reply::rescue;
use crate::service::{Call, Gate, Handler, Meters, Outcome, Response};
use crate::telemetry::spans::{Open, Served, Spans};
use crate::telemetry::trace::Trace;

/// Bytes of one call's future, all layers and the pattern together.
const FUTURE_MAX: usize = 1800;

/// What the layers of one door share.
pub(super) struct Keeper {
    /// The name in Proxy-Status: `wayside-SERVICE`.
    pub(super) who: String,
    /// The door's name, for the log.
    pub(super) door: &'static str,
    /// Calls in flight.
    pub(super) gate: Arc<Gate>,
    /// Counts calls that no route took.
    pub(super) unrouted: Arc<Meters>,
    /// Counts panics.
    pub(super) panics: Counter,
    /// Records spans; `None` without `telemetry`.
    pub(super) spans: Option<Arc<Spans>>,
}

/// An answer, and what of it was our own doing.
struct Answered {
    response: Response,
    refused: Option<Error>,
    meters: Arc<Meters>,
}

/// Puts the layers around `dispatch`, which routes a call and runs its pattern.
pub(super) fn stack<D, F>(keeper: Keeper, dispatch: D) -> Handler
where
    D: Fn(Box<Call>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Outcome> + Send + 'static,
{
    let keeper = Arc::new(keeper);
    boxed(service_fn(move |call| {
        pass(Arc::clone(&keeper), dispatch.clone(), call)
    }))
}

/// The layers, innermost first. Plain steps that share what they need: a service for each would be cloned for each call.
async fn pass<D, F>(
    keeper: Arc<Keeper>,
    dispatch: D,
    mut call: Box<Call>,
) -> Result<Response, Infallible>
where
    D: Fn(Box<Call>) -> F,
    F: Future<Output = Outcome>,
{
    // First of all, so that whatever is done and told for the call is of its span.
    let span = match &keeper.spans {
        Some(spans) => call.record(spans),
        None => None,
    };
    let seen = Seen::of(&call);
    // Innermost, `admit`: a refusal for overload must be cheap, yet counted and answered like the others.
    // Around it, `catch`: a defect costs one call, not the connection's others.
    let outcome = match lifecycle::catch(admit(&keeper, call, dispatch)).await {
        Ok(outcome) => outcome,
        Err(panic) => panicked(&keeper, panic),
    };
    // Every error from below becomes a response here, and nowhere else.
    let answered = answer(&keeper, &seen, outcome);
    // Outermost, so that it counts every answer, also those made below it.
    if let Some(span) = span {
        served(span, &keeper, &seen, &answered);
    }
    Ok(observe(&keeper, &seen, answered))
}

/// Boxes the stack. Its future is made, moved and freed once a call: a large one costs more than everything the layers
/// do, and an innocent line (a future passed by value to an async function) doubles it.
fn boxed<S>(stack: S) -> Handler
where
    S: Service<Box<Call>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    const { assert!(size_of::<S::Future>() <= FUTURE_MAX) };
    BoxCloneSyncService::new(stack)
}

/// A path as the log may show it: a claim's reference is all that one needs to read the body, however it is spelled.
fn shown(path: &str) -> &str {
    let canonical = head::target(path);
    let claim = canonical.is_ok_and(|target| target.path().starts_with("/.wayside/claims/"));
    match claim {
        true => "/.wayside/claims/…",
        false => path,
    }
}

/// What is told of a call when it is over.
struct Seen {
    started: Instant,
    trace: Trace,
    grpc: bool,
    method: Method,
    target: Option<PathAndQuery>,
}

impl Seen {
    fn of(call: &Call) -> Self {
        Self {
            started: call.started,
            trace: call.trace.clone(),
            grpc: call.grpc,
            method: call.request.method().clone(),
            target: call.request.uri().path_and_query().cloned(),
        }
    }

    fn path(&self) -> &str {
        self.target.as_ref().map_or("", PathAndQuery::path)
    }
}

/// Ends a call's span: with its answer's head, like its time in the metrics.
fn served(span: Open, keeper: &Keeper, seen: &Seen, answered: &Answered) {
    span.served(&Served {
        door: keeper.door,
        route: &answered.meters.route,
        pattern: answered.meters.pattern,
        method: &seen.method,
        path: shown(seen.path()),
        status: answered.response.status(),
        refused: answered.refused.as_ref().map(|error| error.kind().word()),
    });
}

fn observe(keeper: &Keeper, seen: &Seen, answered: Answered) -> Response {
    let Answered {
        mut response,
        refused,
        meters,
    } = answered;
    let carried = response.extensions().get::<Carried>();
    let pattern = carried.map_or(meters.pattern, |carried| carried.0);
    headers::set_pattern(response.headers_mut(), pattern);
    let took = seen.started.elapsed();
    meters.seconds.record(took);
    match &refused {
        Some(error) => meters.outcomes.refused(error.kind()),
        None => meters.outcomes.status(response.status()),
    }
    if refused.is_some() || response.status().is_server_error() {
        let reason = refused
            .as_ref()
            .map_or("answer", |error| error.kind().word());
        let error = refused.map(tracing::field::display);
        tracing::warn!(
            door = keeper.door,
            route = meters.route,
            pattern,
            method = %seen.method,
            path = shown(seen.path()),
            status = response.status().as_u16(),
            reason,
            error,
            ms = took.as_millis() as u64,
            trace = seen.trace.id(),
            "call failed"
        );
    } else {
        tracing::debug!(
            door = keeper.door,
            route = meters.route,
            pattern,
            method = %seen.method,
            path = shown(seen.path()),
            status = response.status().as_u16(),
            ms = took.as_millis() as u64,
            trace = seen.trace.id(),
            "call"
        );
    }
    response
}

fn answer(keeper: &Keeper, seen: &Seen, outcome: Outcome) -> Answered {
    let Outcome { result, meters } = outcome;
    match result {
        Ok(response) => Answered {
            response,
            refused: None,
            meters,
        },
        Err(error) => {
            let response = match seen.grpc {
                true => rescue::respond_grpc(&error, &keeper.who),
                false => rescue::respond(&error, &keeper.who, seen.trace.id()),
            };
            Answered {
                response,
                refused: Some(error),
                meters,
            }
        }
    }
}

fn panicked(keeper: &Keeper, panic: String) -> Outcome {
    keeper.panics.increment(1);
    let error = Error::new(Kind::Internal, "a fault of this sidecar").because(panic);
    Outcome {
        result: Err(error),
        meters: Arc::clone(&keeper.unrouted),
    }
}

async fn admit<F>(
    keeper: &Keeper,
    mut call: Box<Call>,
    dispatch: impl FnOnce(Box<Call>) -> F,
) -> Outcome
where
    F: Future<Output = Outcome>,
{
    call.permit = keeper.gate.enter();
    if call.permit.is_some() {
        return dispatch(call).await;
    }
    let detail = format!(
        "{} calls are in flight, as many as this door takes",
        keeper.gate.max()
    );
    let error = Error::new(Kind::Overloaded, detail).after(Duration::from_secs(1));
    Outcome {
        result: Err(error),
        meters: Arc::clone(&keeper.unrouted),
    }
}
