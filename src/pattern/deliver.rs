//! One attempt to deliver a message: the record becomes the call it was, the claim an address or a body, and the app's
//! answer a verdict.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, MAX_FORWARDS};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Uri};
use uuid::Uuid;

use super::forward::Forward;
use super::hydrate::Hydrate;
use super::verdict::{self, Table, Verdict};
use crate::body::Body;
use crate::claims::Reference;
use crate::config::model::Hydrate as Mode;
use crate::error::{Error, Kind};
use crate::kafka::record::{Claim, ClaimRef, Decoded, digest_text};
use crate::messages::{Answer, BODY_MAX};
use crate::reply::headers::{ATTEMPT, CLAIM, MESSAGE_ID, REPR_DIGEST};
use crate::service::{Call, Leash, Request, is_grpc};
use crate::telemetry::spans::Open;
use crate::telemetry::trace::{TRACEPARENT, Trace};
use crate::telemetry::tracestate::TRACESTATE;

/// Bytes of the app's answer that are read, so that its connection can be used again; a longer answer costs the
/// connection. It is also what an origin gets of an answer.
const ANSWER_MAX: usize = BODY_MAX;

/// How a subscription delivers.
pub struct Deliver {
    /// The way to the app.
    pub forward: Forward,
    /// How claims are fetched.
    pub hydrate: Arc<Hydrate>,
    /// What is done about them.
    pub mode: Mode,
    /// What its answers mean.
    pub verdicts: Table,
    /// The path that gets every message; `None` restores the call as it was made.
    pub path: Option<PathAndQuery>,
    /// The app's own address, for calls that had no Host.
    pub host: HeaderValue,
    /// Where the app reaches our outbound door: `http://127.0.0.1:4140`.
    pub claims_at: String,
}

/// A message on its way to the app.
pub struct Delivery {
    /// Its id.
    pub id: Uuid,
    /// What its record says.
    pub record: Decoded,
    /// The record's path and query in canonical form, or why that has none.
    pub target: Result<Option<PathAndQuery>, String>,
    /// The record's value.
    pub body: Bytes,
    /// Why it was given up before, if its topic is one of dead letters.
    pub dead: HeaderMap,
    /// The trace it belongs to.
    pub trace: Trace,
}

/// Which attempt to deliver a message it is.
pub struct Attempt<'a> {
    /// Counted from 1.
    pub number: u32,
    /// Its span, if the message's trace is recorded.
    pub span: Option<&'a Open>,
}

/// What came of one attempt.
pub struct Attempted {
    /// What it means.
    pub verdict: Verdict,
    /// The app's status, if it answered.
    pub status: Option<u16>,
    /// Its answer, if the message's origin wants to know it.
    pub answer: Option<Answer>,
    /// Why there is no answer, for the log.
    pub error: Option<Error>,
}

impl Deliver {
    /// Makes an attempt.
    pub async fn attempt(&self, delivery: &Delivery, attempt: &Attempt<'_>) -> Attempted {
        let own = attempt.span.and_then(Open::trace);
        let trace = own.unwrap_or(&delivery.trace);
        let request = match self.request(delivery, attempt.number, trace).await {
            Ok(request) => request,
            Err(error) => {
                return Attempted {
                    verdict: verdict::of_record(&error),
                    status: None,
                    answer: None,
                    error: Some(error),
                };
            }
        };
        let call = Box::new(Call {
            started: tokio::time::Instant::now(),
            trace: trace.clone(),
            traced: true,
            grpc: is_grpc(request.headers()),
            request,
            permit: None,
            peer: None,
            // Its answer is read here, so nobody else has to end it.
            leash: Some(Leash::new()),
            spans: attempt.span.and_then(Open::spans).cloned(),
            trying: None,
            message: Some(delivery.id),
        });
        match self.send(call, delivery.record.reply.is_some()).await {
            Ok(attempted) => attempted,
            Err(error) => Attempted {
                verdict: verdict::of_error(&error),
                status: None,
                answer: None,
                error: Some(error),
            },
        }
    }

    async fn send(&self, call: Box<Call>, asked: bool) -> Result<Attempted, Error> {
        let response = self.forward.call(call).await?;
        let (head, body) = response.into_parts();
        // A broken answer is no answer: the app may not have finished.
        let body = match body.read(ANSWER_MAX).await {
            Ok(body) => Some(body),
            Err(error) if error.kind() == Kind::BodyTooLarge => None,
            Err(error) => return Err(error),
        };
        Ok(Attempted {
            verdict: self.verdicts.of_answer(head.status, &head.headers),
            status: Some(head.status.as_u16()),
            answer: asked
                .then(|| Answer::new(head.status, &head.headers, body))
                .flatten(),
            error: None,
        })
    }

    /// The call as it was made, or as the subscription's path says.
    async fn request(
        &self,
        delivery: &Delivery,
        attempt: u32,
        trace: &Trace,
    ) -> Result<Request, Error> {
        let record = &delivery.record;
        let target = match (&self.path, &delivery.target) {
            (Some(path), _) => path.clone(),
            (None, Ok(Some(target))) => target.clone(),
            (None, Err(reason)) => {
                return Err(Error::new(
                    Kind::BadRequest,
                    format!("its target is refused: {reason}"),
                ));
            }
            (None, Ok(None)) => {
                let detail = "it names no path, and `deliver.path` gives none";
                return Err(Error::new(Kind::BadRequest, detail));
            }
        };
        let method = self.method(record)?;
        let mut headers = record.headers.clone();
        // It counts hops of the call as it was made; here it could only keep the delivery from the app.
        headers.remove(MAX_FORWARDS);
        let body = self.body(delivery, trace, &mut headers).await?;
        if let Some(content_type) = &record.content_type {
            headers.insert(CONTENT_TYPE, content_type.clone());
        }
        let host = record
            .host
            .as_ref()
            .and_then(|host| HeaderValue::from_str(host).ok());
        headers.insert(HOST, host.unwrap_or_else(|| self.host.clone()));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.insert(TRACEPARENT, trace.header());
        let state = record.tracestate.as_deref().map(HeaderValue::from_str);
        if let Some(Ok(state)) = state {
            headers.insert(TRACESTATE, state);
        }
        let mut request = Request::new(Body::full(body));
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from(target);
        *request.headers_mut() = headers;
        request.headers_mut().extend(delivery.dead.clone());
        // Ours go in last, so that no record can forge them.
        self.sign(delivery, attempt, request.headers_mut())?;
        Ok(request)
    }

    /// The call's own method. A record without one, or without one that suits a path for every message, is delivered the
    /// way events are.
    fn method(&self, record: &Decoded) -> Result<Method, Error> {
        match (&self.path, record.method.clone()) {
            (Some(_), method) => Ok(method.filter(takes_body).unwrap_or(Method::POST)),
            (None, Some(method @ (Method::CONNECT | Method::TRACE))) => {
                let detail = format!("its method is {method}, which no app gets");
                Err(Error::new(Kind::BadRequest, detail))
            }
            (None, method) => Ok(method.unwrap_or(Method::POST)),
        }
    }

    /// The slim body, or the whole one for an eager subscription.
    async fn body(
        &self,
        delivery: &Delivery,
        trace: &Trace,
        headers: &mut HeaderMap,
    ) -> Result<Bytes, Error> {
        let claim = match &delivery.record.claim {
            Claim::Absent => return Ok(delivery.body.clone()),
            Claim::Damaged => {
                return Err(Error::new(
                    Kind::ClaimDamaged,
                    "what names its claim is malformed",
                ));
            }
            Claim::Kept(claim) => claim,
        };
        if self.mode != Mode::Eager {
            return Ok(delivery.body.clone());
        }
        let reference = self.reference(delivery, claim)?;
        // Boxed: rare, and larger than all the rest, which every delivery pays for.
        let whole = Box::pin(self.hydrate.whole(&reference, trace)).await?;
        tracing::debug!(id = %delivery.id, origin = reference.origin, bytes = whole.len(), trace = trace.id(), "message hydrated");
        if let Ok(digest) = HeaderValue::from_str(&digest_text(&claim.digest)) {
            headers.insert(REPR_DIGEST, digest);
        }
        Ok(whole)
    }

    fn sign(
        &self,
        delivery: &Delivery,
        attempt: u32,
        headers: &mut HeaderMap,
    ) -> Result<(), Error> {
        let mut put = |name, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        };
        put(MESSAGE_ID, delivery.id.to_string());
        put(ATTEMPT, attempt.to_string());
        if let (Mode::Lazy, Claim::Kept(claim)) = (self.mode, &delivery.record.claim) {
            // Without the address the slim body would pass for a whole one.
            let reference = self.reference(delivery, claim)?.encode();
            let reference = reference.ok_or_else(|| {
                Error::new(Kind::ClaimDamaged, "what names its claim is malformed")
            })?;
            put(
                CLAIM,
                format!("{}/.wayside/claims/{reference}", self.claims_at),
            );
        }
        Ok(())
    }

    fn reference(&self, delivery: &Delivery, claim: &ClaimRef) -> Result<Reference, Error> {
        let (origin, instance) = delivery.record.origin.clone().ok_or_else(|| {
            Error::new(
                Kind::ClaimDamaged,
                "it does not say which service keeps its claim",
            )
        })?;
        Ok(Reference {
            origin,
            instance,
            claim: claim.id.clone(),
            digest: claim.digest,
            size: claim.size,
            expires: claim.expires,
        })
    }
}

fn takes_body(method: &Method) -> bool {
    matches!(
        *method,
        Method::POST | Method::PUT | Method::PATCH | Method::DELETE
    )
}
