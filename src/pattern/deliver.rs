//! One attempt to deliver a message: the record becomes the call it was, the claim an address or a body, and the app's
//! answer a verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

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
use crate::claims::id::{self, Audience, Form};
use crate::config::model::{Hydrate as Mode, Unhydrated};
use crate::error::{Error, Kind};
use crate::kafka::record::{Claim, ClaimRef, Decoded, digest_text};
use crate::messages::{Answer, BODY_MAX};
use crate::reply::headers::{ATTEMPT, CLAIM, HYDRATION, MESSAGE_ID, REPR_DIGEST};
use crate::service::{Call, Leash, Request, is_grpc};
use crate::telemetry::spans::Open;
use crate::telemetry::trace::{TRACEPARENT, Trace};
use crate::telemetry::tracestate::TRACESTATE;
use crate::worth::Read;

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
    /// What becomes of a message whose body can not be fetched.
    pub unhydrated: Unhydrated,
    /// The balance of its slim messages.
    pub row: Arc<Read>,
    /// Whose claims the topic's records may carry: its own, and those of topics whose dead letters it takes.
    pub audiences: Vec<Audience>,
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
    /// The topic that its record is in.
    pub topic: Arc<str>,
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
    /// Becomes true when the app is about to be asked: up to then the attempt may be broken off.
    pub asked: &'a AtomicBool,
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
        let unmade = |verdict, error| Attempted {
            verdict,
            status: None,
            answer: None,
            error: Some(error),
        };
        let body = match self.body(delivery, trace).await {
            Ok(body) => body,
            Err(error) => return unmade(self.unhydrated(&error), error),
        };
        let request = match self.request(delivery, body, (attempt.number, trace)) {
            Ok(request) => request,
            Err(error) => return unmade(verdict::of_record(&error), error),
        };
        attempt.asked.store(true, Ordering::Relaxed);
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
        let attempted = match self.send(call, delivery.record.reply.is_some()).await {
            Ok(attempted) => attempted,
            Err(error) => unmade(verdict::of_error(&error), error),
        };
        if let (1, Claim::Kept(claim)) = (attempt.number, &delivery.record.claim)
            && attempted.verdict != Verdict::NotDelivered
        {
            self.row.delivered(claim.size, delivery.body.len());
        }
        attempted
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
    fn request(
        &self,
        delivery: &Delivery,
        content: Content,
        (attempt, trace): (u32, &Trace),
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
        if let Some(content_type) = &record.content_type {
            headers.insert(CONTENT_TYPE, content_type.clone());
        }
        let host = record
            .host
            .as_ref()
            .and_then(|host| HeaderValue::from_str(host).ok());
        headers.insert(HOST, host.unwrap_or_else(|| self.host.clone()));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(content.body.len()));
        headers.insert(TRACEPARENT, trace.header());
        let state = record.tracestate.as_deref().map(HeaderValue::from_str);
        if let Some(Ok(state)) = state {
            headers.insert(TRACESTATE, state);
        }
        let mut request = Request::new(Body::full(content.body));
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from(target);
        *request.headers_mut() = headers;
        request.headers_mut().extend(delivery.dead.clone());
        // Ours go in last, so that no record can forge them.
        self.sign(delivery, attempt, (content.form, request.headers_mut()))?;
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

    /// The record's body, or what the subscription makes of it.
    async fn body(&self, delivery: &Delivery, trace: &Trace) -> Result<Content, Error> {
        let plain = |form| Content {
            body: delivery.body.clone(),
            form,
        };
        let claim = match (&delivery.record.claim, &self.mode) {
            (Claim::Absent, _) => return Ok(plain(ContentForm::Whole)),
            (Claim::Damaged, _) => {
                return Err(Error::new(
                    Kind::ClaimDamaged,
                    "what names its claim is malformed",
                ));
            }
            (Claim::Kept(_), Mode::Never) => return Ok(plain(ContentForm::Alone)),
            (Claim::Kept(_), Mode::Lazy) => return Ok(plain(ContentForm::Slim)),
            (Claim::Kept(claim), Mode::Eager | Mode::Fields(_)) => claim,
        };
        // Boxed: rare, and larger than all the rest, which every delivery pays for.
        let hydrated = Box::pin(self.hydrated(delivery, claim, trace)).await;
        match hydrated {
            Err(error) if self.unhydrated == Unhydrated::DeliverSlim => {
                tracing::warn!(id = %delivery.id, topic = &*delivery.topic, %error, trace = trace.id(), "message delivered slim");
                Ok(plain(ContentForm::Unhydrated(error.kind())))
            }
            hydrated => hydrated,
        }
    }

    async fn hydrated(
        &self,
        delivery: &Delivery,
        claim: &ClaimRef,
        trace: &Trace,
    ) -> Result<Content, Error> {
        let reference = self.reference(delivery, claim)?;
        let (body, form) = match &self.mode {
            Mode::Fields(wanted) => {
                let from = (&reference, &claim.fields[..]);
                let body = self.hydrate.put_back(from, wanted, trace).await?;
                (body, ContentForm::Partly)
            }
            _ => {
                let body = self.hydrate.whole(&reference, trace).await?;
                (body, ContentForm::Hydrated)
            }
        };
        tracing::debug!(id = %delivery.id, origin = reference.origin, bytes = body.len(), trace = trace.id(), "message hydrated");
        Ok(Content { body, form })
    }

    /// The whole body of a slim message, for its dead letter; `None` if it has none, or no subscription of its topic may
    /// have it.
    ///
    /// # Errors
    /// As [`Hydrate::whole`].
    pub async fn whole(&self, delivery: &Delivery) -> Result<Option<Bytes>, Error> {
        let Claim::Kept(claim) = &delivery.record.claim else {
            return Ok(None);
        };
        let reference = self.reference(delivery, claim)?;
        let whole = self.hydrate.whole(&reference, &delivery.trace).await?;
        Ok(Some(whole))
    }

    /// What an attempt comes to whose body could not be fetched.
    fn unhydrated(&self, error: &Error) -> Verdict {
        match self.unhydrated {
            Unhydrated::DeadLetter => verdict::without_body(error),
            Unhydrated::Retry | Unhydrated::DeliverSlim => verdict::of_claim(error),
        }
    }

    fn sign(
        &self,
        delivery: &Delivery,
        attempt: u32,
        (form, headers): (ContentForm, &mut HeaderMap),
    ) -> Result<(), Error> {
        let mut put = |name, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        };
        put(MESSAGE_ID, delivery.id.to_string());
        put(ATTEMPT, attempt.to_string());
        let Claim::Kept(claim) = &delivery.record.claim else {
            return Ok(());
        };
        match form {
            ContentForm::Hydrated => put(REPR_DIGEST, digest_text(&claim.digest)),
            ContentForm::Unhydrated(why) => put(HYDRATION, why.word().to_owned()),
            ContentForm::Slim | ContentForm::Partly | ContentForm::Whole | ContentForm::Alone => {}
        }
        if form.has_rest() {
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

    /// Where a message's whole body is.
    ///
    /// # Errors
    /// [`Kind::ClaimDamaged`] for a record that names none, or one of another topic's; [`Kind::Unresolved`] if its address
    /// is to be made by a template that the config does not have.
    fn reference(&self, delivery: &Delivery, claim: &ClaimRef) -> Result<Reference, Error> {
        let wrong = |detail| Error::new(Kind::ClaimDamaged, detail);
        let origin = delivery.record.origin.clone();
        let (origin, instance) =
            origin.ok_or_else(|| wrong("it does not say which service keeps its claim"))?;
        let said = id::look(&claim.id).ok_or_else(|| wrong("what names its claim is malformed"))?;
        // Whoever may write to one topic and read another could otherwise have the other's bodies delivered.
        if !self.audiences.contains(&said.audience) {
            return Err(wrong("its claim was made for another topic"));
        }
        let path = match said.form {
            Form::Folder | Form::Shared => String::new(),
            Form::Nowhere => {
                let origin = self.hydrate.origin(&claim.id).ok_or_else(|| {
                    let detail = "its body is at its service's own API, at an address that no `origin` of `claims` here makes: name the same one as the service does";
                    Error::new(Kind::Unresolved, detail)
                })?;
                origin.path(&delivery.body)?
            }
        };
        let media_type = delivery.record.content_type.as_ref();
        let media_type = media_type.and_then(|media_type| media_type.to_str().ok());
        Ok(Reference {
            origin,
            instance,
            claim: claim.id.clone(),
            path,
            media_type: media_type.unwrap_or_default().to_owned(),
            digest: claim.digest,
            size: claim.size,
            expires: claim.expires,
            made: delivery.record.time.unwrap_or(SystemTime::UNIX_EPOCH),
            reader: self.row.reader(),
        })
    }
}

/// What is delivered of a message.
struct Content {
    body: Bytes,
    form: ContentForm,
}

/// How what is delivered differs from what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContentForm {
    /// It never was slim.
    Whole,
    /// It is whole again.
    Hydrated,
    /// Some fields are back; the address of the rest goes with it.
    Partly,
    /// It is slim, with the address of the rest.
    Slim,
    /// It is slim, since the rest was not to be had; its address goes with it all the same.
    Unhydrated(Kind),
    /// It is slim, and that is all the app wants.
    Alone,
}

impl ContentForm {
    fn has_rest(self) -> bool {
        matches!(self, Self::Slim | Self::Partly | Self::Unhydrated(_))
    }
}

fn takes_body(method: &Method) -> bool {
    matches!(
        *method,
        Method::POST | Method::PUT | Method::PATCH | Method::DELETE
    )
}
