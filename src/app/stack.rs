//! The stack that every call of a door passes, outermost first.
//!
//! Retries, timeouts and balancing are not layers: they need the route, the body and the error together and are plain
//! loops in `pattern`.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use metrics::Counter;
use tower::layer::Layer;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceBuilder, service_fn};

use crate::error::{Error, Kind};
use crate::lifecycle;
use crate::listen::head;
use crate::reply::{headers, rescue};
use crate::service::{Call, Gate, Handler, Meters, Outcome, Response};

/// Bytes of one call's future, all layers and the pattern together.
const FUTURE_MAX: usize = 3200;

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
    F: Future<Output = Result<Outcome, Infallible>> + Send + 'static,
{
    let keeper = Arc::new(keeper);
    let (observing, rescuing, catching, admitting) = (
        Arc::clone(&keeper),
        Arc::clone(&keeper),
        Arc::clone(&keeper),
        keeper,
    );
    let stack = ServiceBuilder::new()
        // Outermost, so that it counts every answer, also those made below it.
        .layer(Around(move |inner, call| {
            observe(Arc::clone(&observing), inner, call)
        }))
        // Every error below becomes a response here, and nowhere else.
        .layer(Around(move |inner, call| {
            answer(Arc::clone(&rescuing), inner, call)
        }))
        // A defect costs one call, not the connection's others.
        .layer(Around(move |inner, call| {
            catch(Arc::clone(&catching), inner, call)
        }))
        // Innermost: a refusal for overload must be cheap, yet counted and answered like the others.
        .layer(Around(move |inner, call| {
            admit(Arc::clone(&admitting), inner, call)
        }))
        .service(service_fn(dispatch));
    boxed(stack)
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

async fn observe<S>(
    keeper: Arc<Keeper>,
    mut inner: S,
    call: Box<Call>,
) -> Result<Response, Infallible>
where
    S: Service<Box<Call>, Response = Answered, Error = Infallible>,
{
    let (started, trace) = (call.started, call.trace.clone());
    let (method, uri) = (call.request.method().clone(), call.request.uri().clone());
    let Answered {
        mut response,
        refused,
        meters,
    } = inner.call(call).await?;
    headers::set_pattern(response.headers_mut(), meters.pattern);
    let took = started.elapsed();
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
            pattern = meters.pattern,
            %method,
            path = shown(uri.path()),
            status = response.status().as_u16(),
            reason,
            error,
            ms = took.as_millis() as u64,
            trace = trace.id(),
            "call failed"
        );
    } else {
        tracing::debug!(
            door = keeper.door,
            route = meters.route,
            pattern = meters.pattern,
            %method,
            path = shown(uri.path()),
            status = response.status().as_u16(),
            ms = took.as_millis() as u64,
            trace = trace.id(),
            "call"
        );
    }
    Ok(response)
}

async fn answer<S>(
    keeper: Arc<Keeper>,
    mut inner: S,
    call: Box<Call>,
) -> Result<Answered, Infallible>
where
    S: Service<Box<Call>, Response = Outcome, Error = Infallible>,
{
    let trace = call.trace.clone();
    let grpc = call.grpc;
    let Outcome { result, meters } = inner.call(call).await?;
    Ok(match result {
        Ok(response) => Answered {
            response,
            refused: None,
            meters,
        },
        Err(error) => {
            let response = match grpc {
                true => rescue::respond_grpc(&error, &keeper.who),
                false => rescue::respond(&error, &keeper.who, trace.id()),
            };
            Answered {
                response,
                refused: Some(error),
                meters,
            }
        }
    })
}

async fn catch<S>(keeper: Arc<Keeper>, mut inner: S, call: Box<Call>) -> Result<Outcome, Infallible>
where
    S: Service<Box<Call>, Response = Outcome, Error = Infallible>,
{
    match lifecycle::catch(inner.call(call)).await {
        Ok(outcome) => outcome,
        Err(panic) => {
            keeper.panics.increment(1);
            let error = Error::new(Kind::Internal, "a fault of this sidecar").because(panic);
            Ok(Outcome {
                result: Err(error),
                meters: Arc::clone(&keeper.unrouted),
            })
        }
    }
}

async fn admit<S>(
    keeper: Arc<Keeper>,
    mut inner: S,
    mut call: Box<Call>,
) -> Result<Outcome, Infallible>
where
    S: Service<Box<Call>, Response = Outcome, Error = Infallible>,
{
    call.permit = keeper.gate.enter();
    if call.permit.is_some() {
        return inner.call(call).await;
    }
    let detail = format!(
        "{} calls are in flight, as many as this door takes",
        keeper.gate.max()
    );
    let error = Error::new(Kind::Overloaded, detail).after(Duration::from_secs(1));
    Ok(Outcome {
        result: Err(error),
        meters: Arc::clone(&keeper.unrouted),
    })
}

/// A layer made of an async function that gets the inner service and the call.
#[derive(Clone)]
struct Around<F>(F);

#[derive(Clone)]
struct Wrapped<S, F> {
    inner: S,
    run: F,
}

impl<S, F: Clone> Layer<S> for Around<F> {
    type Service = Wrapped<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        Wrapped {
            inner,
            run: self.0.clone(),
        }
    }
}

impl<S, F, R, Fut> Service<Box<Call>> for Wrapped<S, F>
where
    S: Clone,
    F: Fn(S, Box<Call>) -> Fut,
    Fut: Future<Output = Result<R, Infallible>>,
{
    type Response = R;
    type Error = Infallible;
    type Future = Fut;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Always ready: limits are kept by `admit`, which answers instead of making the caller wait.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Box<Call>) -> Fut {
        (self.run)(self.inner.clone(), call)
    }
}
