//! From where a body comes: the cache, a store of our own, an origin's own API, or the sidecars of the service that kept it.
//!
//! A record says only which service kept a claim. That is asked at the addresses which the configuration gives that
//! service and at no other, so no message can make this sidecar call somewhere. What comes is only passed on with the
//! digest that the record names.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use metrics::Histogram;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};

use super::ask::{self, Place, Share};
use super::checked::Checked;
use crate::body::Body;
use crate::claims::cache::{Cache, Had};
use crate::claims::id::{self, Form};
use crate::claims::{Origin, Reference, Stores};
use crate::error::{Error, Kind, Retry};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names;
use crate::telemetry::trace::Trace;
use crate::upstream::{Endpoint, Upstream};

/// How long one claim may take, with the wait for its turn and all addresses; each has a share of it to begin its answer.
const FETCH: Duration = Duration::from_secs(5);
/// Soon after a message was made its claim may not be seen everywhere yet: for this long it is looked for again,
const YOUNG: Duration = Duration::from_secs(5);
/// so often, and after these waits.
const AGAIN: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
];

/// How long nobody asks a service that did not answer.
const AWAY: Duration = Duration::from_secs(1);

/// Finds a service as it is configured now; a reload changes that.
pub type Services = Arc<dyn Fn(&str) -> Option<Arc<Upstream>> + Send + Sync>;

/// What fetching may cost.
pub(super) struct Limits {
    /// Bytes of one claim.
    pub(super) claim: usize,
    /// Bytes of claims that are held.
    pub(super) cache: usize,
    /// Claims fetched from one service at the same time.
    pub(super) fetches: usize,
}

/// One service that is asked, or all of our own stores.
struct Source {
    turns: Semaphore,
    /// Since it did not answer: until when nobody asks again. Whoever asks first after that finds out for all.
    away: Mutex<Option<Instant>>,
}

/// Fetches bodies.
pub(super) struct Fetch {
    service: String,
    claims: Arc<Stores>,
    services: Services,
    cache: Cache,
    max: usize,
    fetches: usize,
    /// Of each service that was asked: as many as the config has names for.
    sources: Mutex<HashMap<String, Arc<Source>>>,
    seconds: Histogram,
}

impl Fetch {
    pub(super) fn new(
        service: &str,
        (claims, services): (Arc<Stores>, Services),
        limits: Limits,
        metrics: &Metrics,
    ) -> Self {
        Self {
            service: service.to_owned(),
            claims,
            services,
            cache: Cache::new(limits.cache),
            max: limits.claim,
            fetches: limits.fetches,
            sources: Mutex::default(),
            seconds: metrics.histogram(&names::HYDRATE_SECONDS, &[]),
        }
    }

    /// The origin that a claim's id is of.
    pub(super) fn origin(&self, id: &str) -> Option<&Origin> {
        self.claims.origin(id)
    }

    /// The body of a reference, from wherever it is.
    pub(super) async fn had(&self, reference: &Reference, trace: &Trace) -> Result<Had, Error> {
        if reference.expires <= SystemTime::now() {
            return Err(Error::new(Kind::Expired, "the claim is no longer kept"));
        }
        if reference.size > self.max as u64 {
            let detail = format!(
                "the claim has {} bytes, over `limits.claim` of {}",
                reference.size, self.max
            );
            return Err(Error::new(Kind::ClaimDamaged, detail));
        }
        self.cache
            .get(reference, self.whole(reference, trace))
            .await
    }

    /// Fetches the body; once more where it may only have come too early.
    async fn whole(&self, reference: &Reference, trace: &Trace) -> Result<Bytes, Error> {
        let begun = Instant::now();
        let deadline = begun + FETCH;
        let mut waits = AGAIN.into_iter();
        let body = loop {
            let error = match self.once(reference, trace, deadline).await {
                Ok(body) => break body,
                Err(error) => error,
            };
            let age = SystemTime::now().duration_since(reference.made);
            let young = age.unwrap_or_default() < YOUNG;
            match waits
                .next()
                .filter(|_| young && error.kind() == Kind::Unknown)
            {
                Some(wait) => sleep(wait).await,
                None => return Err(error),
            }
        };
        self.seconds.record(begun.elapsed());
        match Sha256::digest(&body).as_slice() == reference.digest {
            true => Ok(body),
            false if !reference.path.is_empty() => Err(Error::new(
                Kind::ClaimChanged,
                "its service answers with other bytes than it sent then",
            )),
            false => Err(Error::new(
                Kind::ClaimDamaged,
                "the claim does not have the digest that the record names",
            )),
        }
    }

    async fn once(
        &self,
        reference: &Reference,
        trace: &Trace,
        deadline: Instant,
    ) -> Result<Bytes, Error> {
        let unknown = || Error::new(Kind::Unknown, "no claim has this reference");
        let form = id::look(&reference.claim).ok_or_else(unknown)?.form;
        if form == Form::Nowhere {
            let origin = self.claims.origin(&reference.claim);
            let origin = origin.filter(|origin| origin.admits(&reference.path));
            let origin = origin.ok_or_else(unknown)?;
            let place = Place::Api(&reference.path);
            return self
                .of_service(origin.service(), "", (place, trace), deadline)
                .await;
        }
        let ours = reference.origin == self.service;
        if ours || form == Form::Shared {
            let source = self.source("");
            let _turn = self.turn(&source, deadline).await?;
            let kept = timeout_at(deadline, self.claims.fetch(&reference.claim));
            match kept.await.unwrap_or_else(|_| Err(ask::slow())) {
                // A replica of ours may have it, or a sidecar with another config.
                Err(error) if error.kind() == Kind::Elsewhere => {}
                kept => return kept,
            }
        }
        let place = Place::Claim(&reference.claim);
        let (service, instance) = (&reference.origin, &reference.instance);
        self.of_service(service, instance, (place, trace), deadline)
            .await
    }

    /// The body of a reference, checked while it is passed on; for one that is over what is held in memory.
    ///
    /// # Errors
    /// As far as they show before its first byte.
    pub(super) async fn stream(&self, reference: &Reference, trace: &Trace) -> Result<Body, Error> {
        if reference.expires <= SystemTime::now() {
            return Err(Error::new(Kind::Expired, "the claim is no longer kept"));
        }
        let named = (reference.size, reference.digest);
        let unknown = || Error::new(Kind::Unknown, "no claim has this reference");
        let form = id::look(&reference.claim).ok_or_else(unknown)?.form;
        if form != Form::Nowhere && (reference.origin == self.service || form == Form::Shared) {
            match self.claims.body(&reference.claim).await {
                Err(error) if error.kind() == Kind::Elsewhere => {}
                kept => return Ok(Body::boxed(Checked::new((kept?, None), named))),
            }
        }
        if form == Form::Nowhere {
            let detail = "a body at its service's own API is only had up to `limits.claim`";
            return Err(Error::new(Kind::ClaimDamaged, detail));
        }
        let Some(upstream) = (self.services)(&reference.origin) else {
            return Err(self.unnamed(&reference.origin));
        };
        let deadline = Instant::now() + FETCH;
        let mut last = None;
        let endpoints = in_order(&upstream, &reference.instance);
        for (asked, endpoint) in endpoints.iter().enumerate() {
            let share = Share::of(deadline, endpoints.len() - asked);
            let to = (&*upstream, endpoint, &*reference.origin);
            let place = Place::Claim(&reference.claim);
            match ask::open(to, (place, trace), share).await {
                Ok((body, connection)) => {
                    let from = (body, Some(connection));
                    return Ok(Body::boxed(Checked::new(from, named)));
                }
                Err(error) => last = Some(worse(last, error)),
            }
        }
        Err(nobody(&reference.origin, last))
    }

    /// Whether a reference's body is too large to be held in memory.
    pub(super) fn is_large(&self, reference: &Reference) -> bool {
        reference.size > self.max as u64
    }

    fn unnamed(&self, service: &str) -> Error {
        let detail = match service == self.service {
            true => "another instance of this service keeps the claim; to ask those, name the service itself in `services`".to_owned(),
            false => format!("the claim is kept by `{service}`, which `services` does not name"),
        };
        Error::new(Kind::Unresolved, detail)
    }

    /// Asks the addresses of a service: the instance that the record names first, if it is among them.
    async fn of_service(
        &self,
        service: &str,
        instance: &str,
        (place, trace): (Place<'_>, &Trace),
        deadline: Instant,
    ) -> Result<Bytes, Error> {
        let Some(upstream) = (self.services)(service) else {
            return Err(self.unnamed(service));
        };
        let source = self.source(service);
        let _turn = self.turn(&source, deadline).await?;
        source.may_ask(service, deadline)?;
        let asked = self.each(&upstream, (service, instance), (place, trace), deadline);
        let (asked, answered) = asked.await;
        source.asked(asked.as_ref().err().filter(|_| !answered));
        asked
    }

    /// Asks one address after the other; also says whether any of them answered.
    async fn each(
        &self,
        upstream: &Upstream,
        (service, instance): (&str, &str),
        (place, trace): (Place<'_>, &Trace),
        deadline: Instant,
    ) -> (Result<Bytes, Error>, bool) {
        let (mut last, mut answered) = (None, false);
        let endpoints = in_order(upstream, instance);
        for (asked, endpoint) in endpoints.iter().enumerate() {
            let share = Share::of(deadline, endpoints.len() - asked);
            let to = (upstream, endpoint, service);
            match ask::ask(to, (place, trace), (share, self.max)).await {
                Ok(body) => return (Ok(body), true),
                // Another replica's claim, or a replica that is away: the next one may have it.
                Err(error) => {
                    answered |= is_answer(&error);
                    last = Some(worse(last, error));
                }
            }
        }
        (Err(nobody(service, last)), answered)
    }

    fn source(&self, service: &str) -> Arc<Source> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get(service) {
            return Arc::clone(source);
        }
        let source = Arc::new(Source {
            turns: Semaphore::new(self.fetches),
            away: Mutex::new(None),
        });
        sources.insert(service.to_owned(), Arc::clone(&source));
        source
    }

    /// Waits until one more may be fetched from there.
    async fn turn<'s>(
        &self,
        source: &'s Source,
        deadline: Instant,
    ) -> Result<SemaphorePermit<'s>, Error> {
        // The semaphore is never closed.
        match timeout_at(deadline, source.turns.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => {
                let detail = format!(
                    "{} claims are fetched from one place already (`limits.claim_fetches`)",
                    self.fetches
                );
                Err(Error::new(Kind::Overloaded, detail).after(AWAY))
            }
        }
    }
}

impl Source {
    /// Refuses at once while it is known not to answer: each who waits for it keeps others from being served.
    fn may_ask(&self, service: &str, deadline: Instant) -> Result<(), Error> {
        let now = Instant::now();
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        match *away {
            Some(until) if now < until => {
                let detail = format!("{service} did not answer for its claims a moment ago");
                Err(Error::new(Kind::Unreachable, detail).after(until - now))
            }
            Some(_) => {
                *away = Some(deadline);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Notes whether it did not answer. One that says itself when to come back did.
    fn asked(&self, unanswered: Option<&Error>) {
        let silent = |error: &Error| matches!(error.kind(), Kind::Deadline | Kind::Unreachable);
        let until = unanswered
            .is_some_and(silent)
            .then(|| Instant::now() + AWAY);
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

/// The replica that made the record first, if its address is among the service's; then the others.
fn in_order(upstream: &Upstream, instance: &str) -> Vec<Arc<Endpoint>> {
    let mut endpoints: Vec<Arc<Endpoint>> = upstream.endpoints().iter().cloned().collect();
    if !instance.is_empty() {
        endpoints.sort_by_key(|endpoint| endpoint.address.to_string() != instance);
    }
    endpoints
}

/// Whether a failure was said by the address itself: then it is not away, whatever it says of one body.
fn is_answer(error: &Error) -> bool {
    let said = matches!(
        error.kind(),
        Kind::Elsewhere | Kind::Unknown | Kind::Expired | Kind::ClaimDamaged | Kind::BadAnswer
    );
    said || error.retry_after().is_some()
}

/// What it means that no address of a service had a body.
fn nobody(service: &str, last: Option<Error>) -> Error {
    match last {
        Some(error) if error.kind() == Kind::Elsewhere => {
            let detail = format!(
                "the instance of {service} that keeps the claim is not among its addresses at the moment"
            );
            Error::new(Kind::Unknown, detail).because(error)
        }
        Some(error) => error,
        None => {
            let detail = format!("{service} has no address at the moment");
            Error::new(Kind::Unreachable, detail).retry(Retry::NeverSent)
        }
    }
}

/// Of two failures the one that says more: `expired` is final, `elsewhere` and `unknown` only say "not here".
fn worse(last: Option<Error>, next: Error) -> Error {
    let says = |kind| match kind {
        Kind::Elsewhere => 0,
        Kind::Unknown => 1,
        Kind::Expired => 3,
        _ => 2,
    };
    match last {
        Some(last) if says(last.kind()) >= says(next.kind()) => last,
        _ => next,
    }
}
