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
use tokio::time::{Instant, sleep, timeout_at};

use super::ask::{self, Found, How, Limit, Place, Share};
use super::checked::Checked;
use super::source::Source;
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
/// Bytes of a body that have a second more.
const SLOWEST: u64 = 4 << 20;
/// Soon after a message was made its claim may not be seen everywhere yet: for this long it is looked for again,
const YOUNG: Duration = Duration::from_secs(5);
/// so often, and after these waits.
const AGAIN: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
];

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
        kept_still(reference)?;
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

    /// Fetches the body into memory.
    async fn whole(&self, reference: &Reference, trace: &Trace) -> Result<Bytes, Error> {
        let begun = Instant::now();
        let (body, _) = self.found(reference, trace, How::Whole(self.max)).await?;
        let body = body.read(self.max).await?;
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

    /// The body of a reference, checked while it is passed on; for one that is over what is held in memory.
    ///
    /// # Errors
    /// As far as they show before its first byte.
    pub(super) async fn stream(&self, reference: &Reference, trace: &Trace) -> Result<Body, Error> {
        kept_still(reference)?;
        let found = self.found(reference, trace, How::Passing).await?;
        let named = (reference.size, reference.digest);
        Ok(Body::boxed(Checked::new(found, named)))
    }

    /// Finds the body; looks once more where it may only have come too early.
    async fn found(&self, reference: &Reference, trace: &Trace, how: How) -> Result<Found, Error> {
        let begun = Instant::now() + FETCH;
        let limit = Limit {
            begun,
            whole: begun + Duration::from_secs(reference.size / SLOWEST),
        };
        let mut waits = AGAIN.into_iter();
        loop {
            let error = match self.once(reference, trace, (how, limit)).await {
                Ok(found) => return Ok(found),
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
        }
    }

    async fn once(
        &self,
        reference: &Reference,
        trace: &Trace,
        (how, limit): (How, Limit),
    ) -> Result<Found, Error> {
        let unknown = || Error::new(Kind::Unknown, "no claim has this reference");
        let form = id::look(&reference.claim).ok_or_else(unknown)?.form;
        if form == Form::Nowhere {
            if how == How::Passing {
                let detail = "a body at its service's own API is only had up to `limits.claim`";
                return Err(Error::new(Kind::ClaimDamaged, detail));
            }
            let origin = self.claims.origin(&reference.claim);
            let origin = origin.filter(|origin| origin.admits(&reference.path));
            let origin = origin.ok_or_else(unknown)?;
            let place = Place::Api(&reference.path);
            return self
                .of_service((origin.service(), ""), (place, trace), (how, limit))
                .await;
        }
        if form == Form::Shared || reference.origin == self.service {
            match self.of_ours(&reference.claim, (how, limit)).await {
                // A replica of ours may have it, or a sidecar with another config.
                Err(error) if error.kind() == Kind::Elsewhere => {}
                kept => return Ok((kept?, None)),
            }
        }
        let place = Place::Claim(&reference.claim);
        let service = (&*reference.origin, &*reference.instance);
        let found = self.of_service(service, (place, trace), (how, limit)).await;
        found.map_err(|error| match (form, error.kind()) {
            (Form::Shared, Kind::Unresolved | Kind::Unknown) => keyless(error),
            _ => error,
        })
    }

    /// Looks into our own stores.
    async fn of_ours(&self, claim: &str, (how, limit): (How, Limit)) -> Result<Body, Error> {
        let source = self.source("");
        let _turn = source.turn(limit.begun).await?;
        let found = async {
            match how {
                How::Whole(_) => self.claims.fetch(claim).await.map(Body::full),
                How::Passing => self.claims.body(claim).await,
            }
        };
        let found = timeout_at(limit.whole, found).await;
        found.unwrap_or_else(|_| Err(ask::slow()))
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
        (service, instance): (&str, &str),
        (place, trace): (Place<'_>, &Trace),
        (how, limit): (How, Limit),
    ) -> Result<Found, Error> {
        let Some(upstream) = (self.services)(service) else {
            return Err(self.unnamed(service));
        };
        let source = self.source(service);
        // A body that is passed on costs no memory, and its reader may take any time: only its beginning takes a turn.
        let _turn = source.turn(limit.begun).await?;
        let asking = source.may_ask(service)?;
        let (mut last, mut answered) = (None, false);
        let endpoints = in_order(&upstream, instance);
        for (asked, endpoint) in endpoints.iter().enumerate() {
            let share = Share::of(limit, endpoints.len() - asked);
            let to = (&*upstream, endpoint, service);
            match ask::ask(to, (place, trace), (share, how)).await {
                Ok(found) => {
                    asking.told(true);
                    return Ok(found);
                }
                // Another replica's claim, or a replica that is away: the next one may have it.
                Err(error) => {
                    answered |= is_answer(&error);
                    last = Some(worse(last, error));
                }
            }
        }
        asking.told(answered);
        Err(nobody(service, last))
    }

    fn source(&self, service: &str) -> Arc<Source> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get(service) {
            return Arc::clone(source);
        }
        let source = Arc::new(Source::new(self.fetches));
        sources.insert(service.to_owned(), Arc::clone(&source));
        source
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

/// What it means that neither we nor the service that kept a body in a shared place know it.
fn keyless(error: Error) -> Error {
    let detail = format!(
        "no shared place in `claims` has the key that signed this claim: another place, or one that lost its `key`; and {}",
        error.detail()
    );
    Error::new(error.kind(), detail).because(error)
}

/// Whether a failure was said by the address itself: then it is not away, whatever it says of one body.
fn is_answer(error: &Error) -> bool {
    let silent = matches!(error.kind(), Kind::Deadline | Kind::Unreachable);
    !silent || error.retry_after().is_some()
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

fn kept_still(reference: &Reference) -> Result<(), Error> {
    match reference.expires <= SystemTime::now() {
        true => Err(Error::new(Kind::Expired, "the claim is no longer kept")),
        false => Ok(()),
    }
}
