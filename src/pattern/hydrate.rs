//! Gets the whole body of a slim message back, from the sidecar that kept it.
//!
//! A record says only which service kept a claim. It is asked for at the addresses which the configuration gives that
//! service and at no other, so no message can make this sidecar call somewhere.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, HOST, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use metrics::Counter;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout_at};

use super::slim;
use crate::body::Body;
use crate::claims::{Reference, Stores};
use crate::error::{self, Error, Kind};
use crate::kafka::record::digest_text;
use crate::reply::headers::REPR_DIGEST;
use crate::service::{Request, Response};
use crate::telemetry::metrics::{Metrics, Outcomes};
use crate::telemetry::names;
use crate::telemetry::trace::{TRACEPARENT, Trace};
use crate::upstream::{Endpoint, Upstream, Version, Wait};

/// How long one claim may take, all addresses together; each has a share of it to begin its answer.
const FETCH: Duration = Duration::from_secs(5);
/// How long a connection for it may take.
const CONNECT: Duration = Duration::from_secs(1);

/// Finds a service as it is configured now; a reload changes that.
pub type Services = Arc<dyn Fn(&str) -> Option<Arc<Upstream>> + Send + Sync>;

/// Fetches claims.
pub struct Hydrate {
    service: String,
    claims: Arc<Stores>,
    services: Services,
    max: usize,
    lazy: Outcomes,
    eager: Outcomes,
    whole: Counter,
    fields: Counter,
    unchanged: Counter,
    eager_whole: Counter,
}

impl Hydrate {
    /// Builds the fetching for `service`, whose own claims are in `claims`; a claim over `max` bytes is refused.
    pub fn new(
        service: &str,
        claims: Arc<Stores>,
        services: Services,
        max: usize,
        metrics: &Metrics,
    ) -> Self {
        let counter = |mode, outcome| {
            metrics.counter(&names::HYDRATIONS, &[("mode", mode), ("outcome", outcome)])
        };
        Self {
            service: service.to_owned(),
            claims,
            services,
            max,
            lazy: Outcomes::new(metrics, &names::HYDRATIONS, &[("mode", "lazy")]),
            eager: Outcomes::new(metrics, &names::HYDRATIONS, &[("mode", "eager")]),
            whole: counter("lazy", "whole"),
            fields: counter("lazy", "fields"),
            unchanged: counter("lazy", "unchanged"),
            eager_whole: counter("eager", "whole"),
        }
    }

    /// Answers the app's `GET /.wayside/claims/{reference}`.
    ///
    /// # Errors
    /// [`Kind::Unknown`] 404, [`Kind::Expired`] 410, [`Kind::ClaimDamaged`] 502, or that the origin is not reached.
    pub async fn answer(
        &self,
        reference: &str,
        query: Option<&str>,
        (headers, trace): (&HeaderMap, &Trace),
    ) -> Result<Response, Error> {
        let answered = self.lazily(reference, query, (headers, trace)).await;
        if let Err(error) = &answered {
            self.lazy.refused(error.kind());
        }
        answered
    }

    /// Fetches the whole body for a delivery.
    ///
    /// # Errors
    /// As [`Hydrate::answer`].
    pub async fn whole(&self, reference: &Reference, trace: &Trace) -> Result<Bytes, Error> {
        let fetched = self.fetch(reference, trace).await;
        match &fetched {
            Ok(_) => self.eager_whole.increment(1),
            Err(error) => self.eager.refused(error.kind()),
        }
        fetched
    }

    async fn lazily(
        &self,
        reference: &str,
        query: Option<&str>,
        (headers, trace): (&HeaderMap, &Trace),
    ) -> Result<Response, Error> {
        let reference = Reference::decode(reference)?;
        let fields = slim::fields_of(query.unwrap_or(""))?;
        let digest = digest_text(&reference.digest);
        let tag = format!("\"{digest}\"");
        let asked = |of: &dyn Fn(&str) -> bool| {
            let mut lines = headers.get_all(IF_NONE_MATCH).iter();
            lines.any(|line| line.to_str().is_ok_and(of))
        };
        let unchanged = || {
            self.unchanged.increment(1);
            let same = Some((&*tag, &*digest));
            Ok(document(StatusCode::NOT_MODIFIED, Bytes::new(), same))
        };
        if fields.is_none() && asked(&|line| line.contains(&tag)) {
            if reference.expires <= SystemTime::now() {
                return Err(Error::new(Kind::Expired, "the claim is no longer kept"));
            }
            // The digest names the bytes, so nothing needs to be fetched to know that they are the same.
            return unchanged();
        }
        let whole = self.fetch(&reference, trace).await?;
        match fields {
            // It asks whether there is any such claim (RFC 9110 section 13.1.2), which only now is known.
            None if asked(&|line| line.trim() == "*") => unchanged(),
            None => {
                self.whole.increment(1);
                Ok(document(StatusCode::OK, whole, Some((&tag, &digest))))
            }
            Some(fields) => {
                let part = slim::project(&whole, &fields)?;
                self.fields.increment(1);
                Ok(document(StatusCode::OK, part.into(), None))
            }
        }
    }

    async fn fetch(&self, reference: &Reference, trace: &Trace) -> Result<Bytes, Error> {
        if reference.size > self.max as u64 {
            let detail = format!(
                "the claim has {} bytes, over `limits.claim` of {}",
                reference.size, self.max
            );
            return Err(Error::new(Kind::ClaimDamaged, detail));
        }
        let mut last = None;
        if reference.origin == self.service {
            match self.claims.fetch(&reference.claim).await {
                Ok(body) => return verified(body, reference),
                Err(error) => last = Some(error),
            }
        }
        let deadline = Instant::now() + FETCH;
        let Some(upstream) = (self.services)(&reference.origin) else {
            // Our own claim, and no replicas of ours are named: what our own store said is the answer.
            return Err(last.unwrap_or_else(|| {
                let detail = format!(
                    "the claim is kept by `{}`, which `services` does not name",
                    reference.origin
                );
                Error::new(Kind::Unresolved, detail)
            }));
        };
        let endpoints = in_order(&upstream, &reference.instance);
        for (asked, endpoint) in endpoints.iter().enumerate() {
            let limits = Limits::shared(deadline, endpoints.len() - asked);
            let to = (&*upstream, endpoint);
            match self.ask(to, (reference, trace), limits).await {
                Ok(body) => return verified(body, reference),
                // Another replica's claim, or a replica that is away: the next one may have it.
                Err(error) => last = Some(worse(last, error)),
            }
        }
        let no_address = || {
            let detail = format!("{} has no address at the moment", reference.origin);
            Error::new(Kind::Unreachable, detail).retry(error::Retry::NeverSent)
        };
        let error = last.unwrap_or_else(no_address);
        if error.kind() != Kind::Expired && reference.expires < SystemTime::now() {
            // Otherwise a message would wait for ever for an origin that never comes back.
            return Err(Error::new(
                Kind::Expired,
                "the claim is past its time and was not to be had",
            )
            .because(error));
        }
        Err(error)
    }

    async fn ask(
        &self,
        (upstream, endpoint): (&Upstream, &Arc<Endpoint>),
        (reference, trace): (&Reference, &Trace),
        limits: Limits,
    ) -> Result<Bytes, Error> {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = format!("/.wayside/claims/{}", reference.claim)
            .parse()
            .map_err(|_| Error::new(Kind::Unknown, "the claim's id is malformed"))?;
        if let Ok(host) = HeaderValue::from_str(&reference.origin) {
            request.headers_mut().insert(HOST, host);
        }
        // So that the log of the sidecar that keeps the claim names the same trace.
        let headers = request.headers_mut();
        headers.insert(TRACEPARENT, trace.header());
        let mut connection = upstream
            .connection(endpoint, (Version::One, false), limits.connect()?)
            .await?;
        let answer = timeout_at(limits.head, connection.send(&mut request))
            .await
            .map_err(|_| slow())?;
        let answer = match answer {
            Ok(answer) => answer,
            Err(failed) => {
                if !failed.unsent {
                    return Err(failed.error);
                }
                connection = upstream
                    .fresh_connection(endpoint, Version::One, limits.connect()?)
                    .await?;
                let again = timeout_at(limits.head, connection.send(&mut request))
                    .await
                    .map_err(|_| slow())?;
                again.map_err(|failed| failed.error)?
            }
        };
        let status = answer.status();
        let body = Body::incoming(answer.into_body()).read(self.max);
        let body = timeout_at(limits.whole, body).await.map_err(|_| slow())?;
        connection.release();
        match status {
            StatusCode::OK => {
                body.map_err(|error| Error::new(Kind::Reset, "the claim broke off").because(error))
            }
            StatusCode::NOT_FOUND => Err(Error::new(
                Kind::Unknown,
                "no replica of its service keeps the claim",
            )),
            StatusCode::GONE => Err(Error::new(Kind::Expired, "the claim is no longer kept")),
            StatusCode::BAD_GATEWAY if names_damage(&body) => Err(Error::new(
                Kind::ClaimDamaged,
                "the service that keeps the claim finds it damaged",
            )),
            status => {
                let detail = format!(
                    "{} answered {} for the claim",
                    reference.origin,
                    status.as_u16()
                );
                Err(Error::new(Kind::BadAnswer, detail))
            }
        }
    }
}

/// Until when one address may keep us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    /// Its answer must have begun.
    head: Instant,
    /// Its answer must be complete. Whoever answers with a claim is the one that has it, so it gets the others' time.
    whole: Instant,
}

impl Limits {
    /// The next address's fair share of the time up to `whole`, with `left` addresses still to ask: one that is silent
    /// must not keep the others from being asked.
    fn shared(whole: Instant, left: usize) -> Self {
        let now = Instant::now();
        let addresses = u32::try_from(left.max(1)).unwrap_or(u32::MAX);
        let share = whole.saturating_duration_since(now) / addresses;
        let head = now + share;
        Self { head, whole }
    }

    /// Until when a connection must be there.
    ///
    /// # Errors
    /// [`Kind::Deadline`] if the time is up already: an address that was not tried is not one that is away.
    fn connect(self) -> Result<Wait, Error> {
        let now = Instant::now();
        if now >= self.head {
            return Err(slow());
        }
        Ok(Wait::new(now, CONNECT, self.head))
    }
}

fn slow() -> Error {
    Error::new(Kind::Deadline, "the claim did not come in time").retry(error::Retry::NoAnswer)
}

/// Whether an answer is the origin's own word that its copy is damaged.
fn names_damage(body: &Result<Bytes, Error>) -> bool {
    #[derive(serde::Deserialize)]
    struct Problem<'a> {
        #[serde(borrow)]
        r#type: &'a str,
    }
    let problem = body
        .as_ref()
        .ok()
        .and_then(|body| serde_json::from_slice::<Problem<'_>>(body).ok());
    problem.is_some_and(|problem| problem.r#type.ends_with(Kind::ClaimDamaged.word()))
}

/// The replica that made the record first, if its address is among the service's; then the others.
fn in_order(upstream: &Upstream, instance: &str) -> Vec<Arc<Endpoint>> {
    let mut endpoints: Vec<Arc<Endpoint>> = upstream.endpoints().iter().cloned().collect();
    endpoints.sort_by_key(|endpoint| endpoint.address.to_string() != instance);
    endpoints
}

/// Of two failures the one that says more: `expired` is final, `unknown` only says "not here".
fn worse(last: Option<Error>, next: Error) -> Error {
    match last {
        Some(last) if last.kind() == Kind::Expired || next.kind() == Kind::Unknown => last,
        _ => next,
    }
}

fn verified(body: Bytes, reference: &Reference) -> Result<Bytes, Error> {
    if Sha256::digest(&body).as_slice() == reference.digest {
        return Ok(body);
    }
    Err(Error::new(
        Kind::ClaimDamaged,
        "the claim does not have the digest that the record names",
    ))
}

/// A JSON document; the whole one carries its digest (RFC 9530) and a strong tag made of it.
pub fn document(status: StatusCode, body: Bytes, whole: Option<(&str, &str)>) -> Response {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some((tag, digest)) = whole {
        for (name, value) in [(ETAG, tag), (REPR_DIGEST, digest)] {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_address_has_its_share_of_what_the_earlier_ones_left() {
        let deadline = Instant::now() + Duration::from_secs(6);
        let head = |left| Limits::shared(deadline, left).head - Instant::now();
        assert_eq!(head(3), Duration::from_secs(2));
        // The first refused after a second.
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(head(2), Duration::from_millis(2_500));
        assert_eq!(head(1), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_nobody_had_time_to_try_is_not_called_unreachable() {
        let deadline = Instant::now() + Duration::from_secs(5);
        let limits = Limits::shared(deadline, 1);
        assert_eq!(limits.connect().unwrap().until, Instant::now() + CONNECT);
        tokio::time::advance(Duration::from_secs(5)).await;
        let limits = Limits::shared(deadline, 1);
        assert_eq!(limits.connect().unwrap_err().kind(), Kind::Deadline);
    }
}
