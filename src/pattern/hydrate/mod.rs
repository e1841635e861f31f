//! Gets the whole body of a slim message back, for the app that asks for it or before a delivery.
//!
//! * `fetch`: from where, and that nobody is asked twice or too often
//! * `ask`: one request to one address
//! * `source`: who answers, and who is left in peace
//! * `checked`: a large body, on its way through

mod ask;
mod checked;
mod fetch;
mod source;

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use metrics::Counter;
use tokio::time::Instant;

pub use self::fetch::Services;
use self::fetch::{Fetch, Limits};
use super::slim;
use crate::body::Body;
use crate::claims::cache::Had;
use crate::claims::{Origin, Reference, Stores};
use crate::config::model::{self, Pointer};
use crate::error::{Error, Kind};
use crate::kafka::record::digest_text;
use crate::lifecycle::cpu;
use crate::reply::headers::REPR_DIGEST;
use crate::service::Response;
use crate::telemetry::metrics::{Metrics, Outcomes};
use crate::telemetry::names;
use crate::telemetry::trace::Trace;
use crate::worth::{Hydrated, Ledger};

/// Fetches claims.
pub struct Hydrate {
    fetch: Fetch,
    worth: Arc<Ledger>,
    lazy: Meters,
    eager: Meters,
}

/// What came of hydrating in one mode.
struct Meters {
    refused: Outcomes,
    whole: Counter,
    fields: Counter,
    unchanged: Counter,
    cached: Counter,
    bytes: Counter,
}

impl Meters {
    fn new(metrics: &Metrics, mode: &'static str) -> Self {
        let labels = [("mode", mode)];
        let counter = |outcome| {
            let labels = [("mode", mode), ("outcome", outcome)];
            metrics.counter(&names::HYDRATIONS, &labels)
        };
        Self {
            refused: Outcomes::new(metrics, &names::HYDRATIONS, &labels),
            whole: counter("whole"),
            fields: counter("fields"),
            unchanged: counter("unchanged"),
            cached: metrics.counter(&names::HYDRATIONS_CACHED, &labels),
            bytes: metrics.counter(&names::HYDRATED_BYTES, &labels),
        }
    }

    /// Counts a body that was had.
    fn had(&self, had: &Had) {
        match had.cached {
            true => self.cached.increment(1),
            false => self.bytes.increment(had.body.len() as u64),
        }
    }
}

/// What an app's request for a claim says.
pub struct Asked<'a> {
    /// What stands behind `/.wayside/claims/`.
    pub reference: &'a str,
    /// The query.
    pub query: Option<&'a str>,
    /// `GET` or `HEAD`.
    pub method: &'a Method,
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The trace it belongs to.
    pub trace: &'a Trace,
}

impl Hydrate {
    /// Builds the fetching for `service`, whose own claims are in `claims`.
    pub fn new(
        service: &str,
        claims: Arc<Stores>,
        services: Services,
        limits: &model::Limits,
        (worth, metrics): (&Arc<Ledger>, &Metrics),
    ) -> Self {
        let limits = Limits {
            claim: limits.claim,
            cache: limits.claim_cache,
            fetches: limits.claim_fetches,
        };
        Self {
            fetch: Fetch::new(service, (claims, services), limits, metrics),
            worth: Arc::clone(worth),
            lazy: Meters::new(metrics, "lazy"),
            eager: Meters::new(metrics, "eager"),
        }
    }

    /// The origin that a claim's id is of, if `claims` has its template.
    pub fn origin(&self, id: &str) -> Option<&Origin> {
        self.fetch.origin(id)
    }

    /// Answers the app's `GET /.wayside/claims/{reference}`.
    ///
    /// # Errors
    /// [`Kind::Unknown`] 404, [`Kind::Expired`] 410, [`Kind::ClaimChanged`] 409, [`Kind::ClaimDamaged`] 502, or that the
    /// origin is not reached.
    pub async fn answer(&self, asked: Asked<'_>) -> Result<Response, Error> {
        let answered = self.lazily(asked).await;
        if let Err(error) = &answered {
            self.lazy.refused.refused(error.kind());
        }
        answered
    }

    /// Fetches the whole body for a delivery.
    ///
    /// # Errors
    /// As [`Hydrate::answer`].
    pub async fn whole(&self, reference: &Reference, trace: &Trace) -> Result<Bytes, Error> {
        let had = self.before(reference, trace).await?;
        self.eager.whole.increment(1);
        Ok(had)
    }

    /// Fetches the whole body for a delivery, and puts these of its cut fields back.
    ///
    /// # Errors
    /// As [`Hydrate::answer`]; [`Kind::NotJson`] for a body that has no fields.
    pub async fn put_back(
        &self,
        (reference, cut): (&Reference, &[String]),
        wanted: &[Pointer],
        trace: &Trace,
    ) -> Result<Bytes, Error> {
        let whole = self.before(reference, trace).await?;
        let body = slim::put_back(&whole, cut, wanted)?;
        self.eager.fields.increment(1);
        Ok(body)
    }

    async fn before(&self, reference: &Reference, trace: &Trace) -> Result<Bytes, Error> {
        match self.had((reference, true), trace).await {
            Ok(had) => {
                self.eager.had(&had);
                Ok(had.body)
            }
            Err(error) => {
                self.eager.refused.refused(error.kind());
                Err(error)
            }
        }
    }

    /// Fetches, and notes in the balance of its subscription what that cost.
    async fn had(
        &self,
        (reference, eager): (&Reference, bool),
        trace: &Trace,
    ) -> Result<Had, Error> {
        let begun = Instant::now();
        let (had, cpu) = cpu::clocked(self.fetch.had(reference, trace)).await;
        if let Some(row) = self.worth.reader(reference.reader) {
            match &had {
                Ok(had) => row.hydrated(Hydrated {
                    eager,
                    cached: had.cached,
                    bytes: had.body.len(),
                    waited: begun.elapsed(),
                    cpu,
                }),
                Err(_) => row.refused(),
            }
        }
        had
    }

    /// Counts a body that is passed through.
    fn passed(&self, reference: &Reference) {
        self.lazy.whole.increment(1);
        self.lazy.bytes.increment(reference.size);
        if let Some(row) = self.worth.reader(reference.reader) {
            row.streamed(reference.size);
        }
    }

    async fn lazily(&self, asked: Asked<'_>) -> Result<Response, Error> {
        let reference = Reference::decode(asked.reference)?;
        let fields = slim::fields_of(asked.query.unwrap_or(""))?;
        let tag = format!("\"{}\"", digest_text(&reference.digest));
        let unchanged = |of: &dyn Fn(&str) -> bool| {
            let mut lines = asked.headers.get_all(IF_NONE_MATCH).iter();
            fields.is_none() && lines.any(|line| line.to_str().is_ok_and(of))
        };
        // It asks whether there is any such claim (RFC 9110 section 13.1.2), which only a look tells.
        let any = |line: &str| line.trim() == "*";
        let not_modified = || {
            self.lazy.unchanged.increment(1);
            document(StatusCode::NOT_MODIFIED, Body::empty(), &reference)
        };
        if unchanged(&|line| line.contains(&tag)) {
            if reference.expires <= SystemTime::now() {
                return Err(Error::new(Kind::Expired, "the claim is no longer kept"));
            }
            // The digest names the bytes, so nothing needs to be fetched to know that they are the same.
            return Ok(not_modified());
        }
        if fields.is_none() && self.fetch.is_large(&reference) {
            let body = self.fetch.stream(&reference, asked.trace).await?;
            if unchanged(&any) {
                return Ok(not_modified());
            }
            if asked.method == Method::GET {
                self.passed(&reference);
            }
            return Ok(document(StatusCode::OK, body, &reference));
        }
        let had = self.had((&reference, false), asked.trace).await?;
        self.lazy.had(&had);
        if let Some(fields) = fields {
            let part = slim::project(&had.body, &fields)?;
            if let Some(row) = self.worth.reader(reference.reader) {
                let each = part.len() / fields.len().max(1);
                let fields = fields.iter();
                fields.for_each(|field| row.asked_for(&field.to_string(), each));
            }
            self.lazy.fields.increment(1);
            return Ok(part_of_document(part.into()));
        }
        if unchanged(&any) {
            return Ok(not_modified());
        }
        self.lazy.whole.increment(1);
        Ok(document(StatusCode::OK, Body::full(had.body), &reference))
    }
}

/// The whole body with its media type, its digest (RFC 9530) and a strong tag made of it, or the word that it is the same.
fn document(status: StatusCode, body: Body, reference: &Reference) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let digest = digest_text(&reference.digest);
    let media_type = match &*reference.media_type {
        "" => "application/json",
        other => other,
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, media_type),
        (ETAG, &*format!("\"{digest}\"")),
        (REPR_DIGEST, &digest),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    response
}

/// A document with some fields: neither digest nor tag are of it.
fn part_of_document(body: Bytes) -> Response {
    let mut response = Response::new(Body::full(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
