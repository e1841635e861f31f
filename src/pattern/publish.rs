//! The asynchronous pattern's sending side: a call becomes a record, and the 202 waits for the broker.
//!
//! With a `slim` rule the same code makes an event: the whole body is kept as a claim before the record is sent, so that
//! no record names a body that is not there.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderName};
use http::request;
use http_body::Body as _;
use metrics::{Counter, Histogram};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::answers::Answers;
use super::outbox::Outbox;
use super::prefer;
use super::promise::{self, Drafted, Way};
use super::refusals::Refusals;
use super::slim::Plan;
use super::validate::{self, Check};
use crate::body::Body;
use crate::claims::{Claim, Stores};
use crate::config::model::{ClaimIndex, HeaderRule, Publish as Rule, Survives, Track};
use crate::error::{Error, Kind};
use crate::kafka::producer::{Producer, PublishError};
use crate::kafka::record::{self, ClaimRef, Message};
use crate::messages::keys::{Begun, Keys, Promised, Proof, Using};
use crate::messages::{Outcome, Timelines, What};
use crate::reply::accepted::{self, Accepted, ClaimKept, SpoolKept};
use crate::reply::answered::{self, Answered};
use crate::service::{Call, Permit, Response};
use crate::telemetry::metrics::{Metrics, Outcomes};
use crate::telemetry::names;

/// How long a caller may take to send the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Names a call so that it is accepted once.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_KEY_MAX: usize = 255;

/// What all publishing routes of a sidecar share.
pub struct Sender {
    /// This service's name.
    pub service: String,
    /// This sidecar's name among its replicas: an address where claims can be fetched, or just a name.
    pub instance: String,
    /// The one producer.
    pub producer: Arc<Producer>,
    /// Where whole bodies are kept.
    pub claims: Arc<Stores>,
    /// Where each message's timeline is.
    pub timelines: Arc<Timelines>,
    /// The idempotency keys that were used.
    pub keys: Keys,
    /// The way through the spool, and what the spool's folder outlives.
    pub outbox: Option<(Outbox, Survives)>,
    /// What receivers told; `None` if replies have no topic to come by.
    pub answers: Option<Arc<Answers>>,
}

/// What one route does with its calls.
pub struct Publish {
    route: Arc<str>,
    way: Way,
    headers: HeaderRule,
    max_body: usize,
    plan: Plan,
    check: Option<Box<Check>>,
    claim: Option<(ClaimIndex, Survives)>,
    track: Track,
    reply_from: Option<String>,
    sender: Arc<Sender>,
    refusals: Refusals,
    meters: Meters,
}

struct Meters {
    replicated: Counter,
    spooled: Counter,
    refused: Outcomes,
    seconds: Histogram,
    bytes: Counter,
    slimmed: Counter,
    answered: Counter,
    without_answer: Counter,
    too_late: Counter,
}

/// A message that is promised.
struct Published {
    id: Uuid,
    accepted: Accepted,
    /// How long its caller would wait for the result.
    wait: Option<Duration>,
    /// The caller's place among the calls in flight, until it has its answer.
    permit: Option<Permit>,
}

/// The record of one call, before its headers are written.
struct Draft {
    key: Option<Bytes>,
    value: Bytes,
    claim: Option<(Claim, Vec<String>)>,
    saved: usize,
}

/// What a call's idempotency key comes to.
enum Key<'a> {
    /// It is the first with that key.
    New(Uuid, Proof, Using<'a>),
    /// Its message is there already.
    Used(Uuid, Promised),
}

/// What a message has from its first moment.
struct Birth<'a> {
    id: Uuid,
    traceparent: Option<&'a str>,
    time: SystemTime,
}

impl Publish {
    /// Builds the publishing of the route of that name; `survives` tells what its claim store outlives.
    ///
    /// # Errors
    /// As [`Check::of`].
    pub fn new(
        (route, rule): (&str, &Rule),
        survives: Option<Survives>,
        sender: &Arc<Sender>,
        metrics: &Metrics,
    ) -> Result<Self, Error> {
        let labels = [("topic", rule.topic.as_str())];
        let accepted = |outcome| {
            let labels = [("topic", rule.topic.as_str()), ("outcome", outcome)];
            metrics.counter(&names::PUBLISHED, &labels)
        };
        let waits = |outcome| {
            let labels = [("topic", rule.topic.as_str()), ("outcome", outcome)];
            metrics.counter(&names::WAITS, &labels)
        };
        Ok(Self {
            route: Arc::from(route),
            way: Way::of(rule),
            headers: rule.headers.clone(),
            max_body: rule.max_body,
            plan: Plan::of(rule),
            check: Check::of(rule)?.map(Box::new),
            claim: rule
                .slim
                .as_ref()
                .map(|slim| (slim.claim, survives.unwrap_or(Survives::Pod))),
            track: rule.track,
            reply_from: rule.reply_from.clone(),
            sender: Arc::clone(sender),
            refusals: Refusals::default(),
            meters: Meters {
                replicated: accepted("replicated"),
                spooled: accepted("spooled"),
                refused: Outcomes::new(metrics, &names::PUBLISHED, &labels),
                seconds: metrics.histogram(&names::PUBLISH_SECONDS, &labels),
                bytes: metrics.counter(&names::PUBLISHED_BYTES, &labels),
                slimmed: metrics.counter(&names::SLIMMED_BYTES, &labels),
                answered: waits("answered"),
                without_answer: waits("without-answer"),
                too_late: waits("too-late"),
            },
        })
    }

    /// Publishes a call. The answer is a 202 only after the broker's acknowledgement or the spool's sync, or the receiver's
    /// own to a caller that waits for it.
    ///
    /// # Errors
    /// The caller's faults before anything is kept or sent; the claim store's before anything is sent; the spool's and
    /// the broker's.
    pub async fn call(&self, call: Box<Call>) -> Result<Response, Error> {
        let published = self.publish(call).await;
        if let Err(error) = &published {
            self.meters.refused.refused(error.kind());
        }
        Ok(self.answer(published?).await)
    }

    /// The receiver's real answer if the caller waits for it and it comes in time, else the 202.
    async fn answer(&self, published: Published) -> Response {
        let Published {
            id,
            mut accepted,
            wait,
            permit: _until_the_end,
        } = published;
        let (Some(wait), Some(answers)) = (wait, &self.sender.answers) else {
            return accepted::respond(&accepted);
        };
        let outcome = answers.wait(id, wait).await;
        if let Some(outcome) = &outcome {
            accepted.status = outcome.what.status().word();
        }
        let answer = outcome.as_deref().and_then(real);
        let meter = match (&outcome, &answer) {
            (_, Some(_)) => &self.meters.answered,
            (Some(_), None) => &self.meters.without_answer,
            (None, None) => &self.meters.too_late,
        };
        meter.increment(1);
        let mut response = match answer {
            Some(answer) => answered::respond(answer, &accepted.id),
            None => accepted::respond(&accepted),
        };
        answered::applied(&mut response, wait);
        response
    }

    async fn publish(&self, call: Box<Call>) -> Result<Published, Error> {
        let Call {
            request,
            trace,
            permit,
            ..
        } = *call;
        let time = SystemTime::now();
        let (head, body) = request.into_parts();
        if let Some(check) = &self.check {
            check.head(&head.headers, !body.is_end_stream())?;
        }
        let body = self.read(body).await?;
        let answers = self.sender.answers.as_ref();
        let wait = answers.and_then(|_| prefer::wait(&head.headers));
        let (id, proof, using) = match self.idempotency(&head, &body)? {
            None => (Uuid::now_v7(), None, None),
            Some(Key::New(id, proof, using)) => (id, Some(proof), Some(using)),
            Some(Key::Used(id, promised)) => {
                return Ok(Published {
                    id,
                    accepted: self.accepted(id, promised, None),
                    wait,
                    permit,
                });
            }
        };
        let draft = self.draft(&head, body).await?;
        let birth = Birth {
            id,
            traceparent: Some(trace.text()),
            time,
        };
        let mut message = self.message(&head, birth, &draft);
        message.reply =
            answers.and_then(|own| own.ask(self.track, wait, self.reply_from.as_deref()));
        let drafted = Drafted {
            id,
            time,
            proof,
            route: Arc::clone(&self.route),
            key: draft.key.clone(),
            headers: record::encode(&message),
            value: draft.value.clone(),
        };
        let sent = Instant::now();
        let promised = promise::keep(&self.sender, &self.way, drafted)
            .await
            .inspect_err(|error| self.refusals.note(error, draft.value.len()))?;
        self.meters.seconds.record(sent.elapsed());
        self.meters.bytes.increment(draft.value.len() as u64);
        self.meters.slimmed.increment(draft.saved as u64);
        if let Some(using) = using {
            using.keep(promised);
        }
        match promised {
            Promised::Replicated(partition, offset) => {
                self.meters.replicated.increment(1);
                tracing::debug!(%id, topic = &*self.way.topic, partition, offset, trace = trace.id(), "published");
            }
            Promised::Spooled => {
                self.meters.spooled.increment(1);
                tracing::debug!(%id, topic = &*self.way.topic, trace = trace.id(), "spooled");
            }
        }
        Ok(Published {
            id,
            accepted: self.accepted(id, promised, draft.claim.as_ref().map(|(claim, _)| claim)),
            wait,
            permit,
        })
    }

    /// Looks up the call's idempotency key, if it has one. It is taken with its quotes where it has them
    /// (draft-ietf-httpapi-idempotency-key-header).
    fn idempotency(&self, head: &request::Parts, body: &Bytes) -> Result<Option<Key<'_>>, Error> {
        let mut keys = head.headers.get_all(IDEMPOTENCY_KEY).iter();
        let Some(key) = keys.next() else {
            return Ok(None);
        };
        let key = key.as_bytes();
        if keys.next().is_some() || key.is_empty() || key.len() > IDEMPOTENCY_KEY_MAX {
            let detail =
                format!("a call has one idempotency-key of 1 to {IDEMPOTENCY_KEY_MAX} bytes");
            return Err(Error::new(Kind::BadRequest, detail));
        }
        let id = Keys::id(&self.sender.service, &self.route, key);
        let proof = Sha256::digest(body).into();
        match self.sender.keys.begin(id, proof) {
            Begun::New(using) => Ok(Some(Key::New(id, proof, using))),
            Begun::Same(promised) => Ok(Some(Key::Used(id, promised))),
            Begun::InProgress => {
                let detail = "the first call with this idempotency-key has no answer yet";
                Err(Error::new(Kind::KeyInProgress, detail).after(Duration::from_secs(1)))
            }
            Begun::Other => Err(Error::new(
                Kind::KeyReused,
                "this idempotency-key was used with another body",
            )),
        }
    }

    async fn read(&self, body: Body) -> Result<Bytes, Error> {
        match timeout(BODY_TIMEOUT, body.read(self.max_body)).await {
            Ok(read) => read,
            Err(_) => {
                let wait = humantime::format_duration(BODY_TIMEOUT);
                Err(Error::new(
                    Kind::CallerTimeout,
                    format!("the body was not complete after {wait}"),
                ))
            }
        }
    }

    /// Finds the key, slims the body, keeps the whole.
    async fn draft(&self, head: &request::Parts, body: Bytes) -> Result<Draft, Error> {
        let keyed = || self.plan.read(&body, &head.headers, head.uri.path());
        let (slimmed, key) = match &self.check {
            None => keyed()?,
            Some(check) => validate::judge(check.body(&body).await?, keyed())?,
        };
        let (Some(cut), Some((store, _))) = (slimmed.cut, self.claim) else {
            return Ok(Draft {
                key,
                value: body,
                claim: None,
                saved: 0,
            });
        };
        // Otherwise the bodies of refused calls would fill the store.
        match &self.sender.outbox {
            Some((outbox, _)) => outbox.check(&self.way.topic)?,
            None if self.sender.producer.is_away() => return Err(PublishError::BrokerAway.into()),
            None => {}
        }
        if cut.body.len() > self.sender.producer.record_max() {
            return Err(PublishError::TooLarge.into());
        }
        self.refusals.check(cut.body.len())?;
        let saved = body.len().saturating_sub(cut.body.len());
        let claim = self.sender.claims.keep(store, body, cut.digest).await?;
        Ok(Draft {
            key,
            value: cut.body,
            claim: Some((claim, cut.fields)),
            saved,
        })
    }

    fn message(&self, head: &request::Parts, birth: Birth<'_>, draft: &Draft) -> Message {
        let text = |name| {
            head.headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        Message {
            id: birth.id,
            source_service: self.sender.service.clone(),
            instance: self.sender.instance.clone(),
            method: head.method.clone(),
            target: head
                .uri
                .path_and_query()
                .map_or("/", |target| target.as_str())
                .to_owned(),
            host: text(HOST),
            headers: record::travelling(&head.headers, &self.headers),
            content_type: head.headers.get(CONTENT_TYPE).cloned(),
            traceparent: birth.traceparent.map(str::to_owned),
            claim: draft.claim.as_ref().map(|(claim, cut)| ClaimRef {
                id: claim.id.clone(),
                fields: cut.clone(),
                digest: claim.digest,
                size: claim.size,
                expires: claim.expires,
            }),
            reply: None,
            time: birth.time,
        }
    }

    fn accepted(&self, id: Uuid, promised: Promised, claim: Option<&Claim>) -> Accepted {
        let survives = self.claim.map_or(Survives::Pod, |(_, survives)| survives);
        let place = match promised {
            Promised::Replicated(partition, offset) => Some((partition, offset)),
            Promised::Spooled => None,
        };
        let spool = self.sender.outbox.as_ref().filter(|_| place.is_none());
        Accepted {
            id: id.to_string(),
            status: match promised {
                Promised::Replicated(..) => "replicated",
                Promised::Spooled => "spooled",
            },
            topic: self.way.topic.to_string(),
            partition: place.map(|(partition, _)| partition),
            offset: place.map(|(_, offset)| offset),
            spool: spool.map(|(_, survives)| SpoolKept {
                survives: *survives,
            }),
            claim: claim.map(|claim| ClaimKept {
                survives,
                size: claim.size,
                expires: humantime::format_rfc3339_seconds(claim.expires).to_string(),
            }),
        }
    }
}

/// The app's answer as a caller gets it; `None` if there is none, or only a part of one.
fn real(outcome: &Outcome) -> Option<Answered> {
    let answer = outcome.answer.as_ref()?;
    Some(Answered {
        status: answer.status,
        headers: answer.headers.clone(),
        body: answer.body.clone()?,
        verdict: match outcome.what {
            What::Dead => "dead-letter",
            What::Dropped => "drop",
            _ => "done",
        },
    })
}
