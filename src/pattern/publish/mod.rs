//! The asynchronous pattern's sending side: a call becomes a record, and the 202 waits for the broker.
//!
//! With a `slim` rule the same code makes an event: the whole body is kept as a claim before the record is sent, so that
//! no record names a body that is not there.
//!
//! * `identity`: a call's idempotency key
//! * `large`: a body that goes into its claim as it comes
//! * `answering`: the 202, or the receiver's own answer to a caller that waits

mod answering;
mod identity;
mod large;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::request;
use http_body::Body as _;
use metrics::{Counter, Histogram};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use self::answering::Published;
use self::identity::Key;
use self::large::Content;
pub use self::large::over;
use super::answers::Answers;
use super::outbox::Outbox;
use super::prefer;
use super::promise::{self, Drafted, Way};
use super::refusals::Refusals;
use super::slim::{Plan, Slimmed};
use super::validate::{self, Check};
use crate::body::Body;
use crate::claims::id::{Audience, audience};
use crate::claims::{Claim, Stores, Whole};
use crate::config::model::{ClaimIndex, HeaderRule, Publish as Rule, Survives, Track};
use crate::error::{Error, Kind, Retry};
use crate::kafka::producer::Producer;
use crate::kafka::record::{self, ClaimRef, Message};
use crate::lifecycle::cpu;
use crate::messages::keys::{Keys, Promised};
use crate::messages::queued::{Queued, Queueing};
use crate::messages::{Origin, Timelines, id};
use crate::service::{Call, Permit, Response};
use crate::telemetry::metrics::{Metrics, Outcomes};
use crate::telemetry::spans::Open;
use crate::telemetry::trace::Trace;
use crate::telemetry::{names, tracestate};
use crate::worth::{Ledger, Published as Row};

/// How long a caller may take to send the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a body that is held in memory, whatever `max_body` lets a larger one stream into its claim.
const IN_MEMORY_MAX: usize = 256 << 20;

/// Of 256 bodies so many are measured while they are slimmed and kept: measuring costs a microsecond or two.
const MEASURED: u8 = 16;

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
    pub keys: Arc<Keys>,
    /// The way through the spool, and what the spool's folder outlives.
    pub outbox: Option<(Outbox, Survives)>,
    /// Whether events pay.
    pub worth: Arc<Ledger>,
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
    claim: Option<Keeping>,
    track: Track,
    reply_from: Option<String>,
    sender: Arc<Sender>,
    refusals: Refusals,
    /// Present where calls are queued that could not be forwarded.
    queued: Option<Arc<Queued>>,
    meters: Meters,
    /// For the balance of slimming.
    row: Arc<Row>,
    /// For the timelines of its messages.
    origin: Origin,
}

/// How the route's bodies are kept.
struct Keeping {
    store: ClaimIndex,
    /// The topic, as its claims name it.
    audience: Audience,
    /// The word for the kind of store, and what that outlives.
    told: (&'static str, Option<Survives>),
    /// Bytes above which a body that is not JSON is kept as a whole.
    whole_over: Option<usize>,
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

/// The record of one call, before its headers are written.
struct Draft {
    key: Option<Bytes>,
    value: Bytes,
    claim: Option<(Claim, Left)>,
    saved: usize,
}

/// What of a body is left in its record.
struct Left {
    /// The fields that are not.
    cut: Vec<String>,
    /// Whether nothing is.
    none: bool,
}

/// What a call comes to before anything is sent.
enum Prepared {
    /// A message that was promised to an earlier call with its idempotency key.
    Known(Published),
    /// A record that is ready to go.
    Ready(Ready),
}

/// A record that is ready to go, and what its caller is told afterwards.
struct Ready {
    drafted: Box<Drafted>,
    trace: Trace,
    span: Option<Open>,
    claim: Option<Claim>,
    /// Bytes that slimming saved.
    saved: usize,
    queueing: Option<Queueing>,
    /// How long the caller would wait for the result.
    wait: Option<Duration>,
    permit: Option<Permit>,
}

/// What a message has from its first moment.
struct Birth<'a> {
    id: Uuid,
    traceparent: Option<&'a str>,
    tracestate: Option<String>,
    time: SystemTime,
}

impl Publish {
    /// Builds the publishing of the route of that name.
    ///
    /// # Errors
    /// As [`Check::of`].
    pub fn new(
        (route, rule): (&str, &Rule),
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
        let audience = audience(&rule.topic);
        Ok(Self {
            route: Arc::from(route),
            way: Way::of(rule),
            headers: rule.headers.clone(),
            max_body: rule.max_body,
            plan: Plan::of(rule),
            check: Check::of(rule)?.map(Box::new),
            claim: rule.slim.as_ref().map(|slim| {
                let store = sender.claims.store(slim.claim);
                Keeping {
                    store: slim.claim,
                    audience,
                    told: store.map_or(("disk", None), |store| (store.kind(), store.survives())),
                    whole_over: slim.whole_over,
                }
            }),
            track: rule.track,
            reply_from: rule.reply_from.clone(),
            origin: sender.timelines.origin(Some(route), &rule.topic),
            sender: Arc::clone(sender),
            refusals: Refusals::default(),
            row: sender.worth.publishing(route, (&rule.topic, audience)),
            queued: None,
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

    /// Notes the key of each message there, until the receiver's verdict.
    pub fn noting(self, queued: &Arc<Queued>) -> Self {
        Self {
            queued: Some(Arc::clone(queued)),
            ..self
        }
    }

    /// Whether an earlier message of the same key has no verdict yet. The call's body is read if the key is in it, and
    /// put back whole.
    ///
    /// # Errors
    /// The body is over the route's limit, or does not come in time.
    pub async fn is_behind(&self, queued: &Queued, call: &mut Call) -> Result<bool, Error> {
        let request = &mut call.request;
        let mut body = Bytes::new();
        // There is no key in what is not JSON.
        let large = self.takes_large(request.headers()).is_some();
        if self.plan.reads_body() && !large {
            let unread = std::mem::take(request.body_mut());
            body = self.read(unread, call.started).await?;
            *request.body_mut() = Body::full(body.clone());
        }
        // A call without a key has no order.
        let read = self
            .plan
            .read(&body, request.headers(), request.uri().path());
        let key = read.ok().and_then(|(_, key)| key);
        Ok(key.is_some_and(|key| queued.holds(&self.way.topic, &key)))
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

    async fn publish(&self, call: Box<Call>) -> Result<Published, Error> {
        // Two futures, one after the other: nothing of the first is held while the broker is waited for.
        match self.prepare(call).await? {
            Prepared::Known(published) => Ok(published),
            Prepared::Ready(ready) => self.keep(ready).await,
        }
    }

    /// Makes a record of a call, unless its idempotency key stands for one.
    async fn prepare(&self, call: Box<Call>) -> Result<Prepared, Error> {
        let Call {
            started,
            request,
            trace,
            traced,
            spans,
            permit,
            ..
        } = *call;
        let time = SystemTime::now();
        let (head, body) = request.into_parts();
        if let Some(check) = &self.check {
            check.head(&head.headers, !body.is_end_stream())?;
        }
        let content = self.content(&head.headers, body, started).await?;
        let answers = self.sender.answers.as_ref();
        let wait = answers.and_then(|_| prefer::wait(&head.headers));
        let key = self.idempotency(&head, &content)?;
        let (id, proof, using) = match key {
            None => (id::new(time), None, None),
            Some(Key::New(id, proof, using)) => (id, Some(proof), Some(using)),
            Some(Key::Used(id, promised)) => {
                let accepted = self.accepted(id, promised, None);
                return Ok(Prepared::Known(Published::new(accepted, wait, permit)));
            }
        };
        let draft = match content {
            Content::Read(body) => self.draft(&head, body).await?,
            Content::Large(large) => Box::pin(self.draft_of(&head, *large)).await?,
        };
        let queueing = self.begin_queueing(id, draft.key.as_ref())?;
        let span = spans.map(|spans| spans.sending(&trace, &self.way.topic, id));
        let own = span.as_ref().and_then(Open::trace);
        let trace = own.cloned().unwrap_or(trace);
        let birth = Birth {
            id,
            traceparent: Some(trace.text()),
            tracestate: traced.then(|| tracestate::of(&head.headers)).flatten(),
            time,
        };
        let mut message = self.message(&head, birth, &draft);
        message.reply =
            answers.and_then(|own| own.ask(self.track, wait, self.reply_from.as_deref()));
        let headers = record::encode(&message);
        let drafted = Box::new(Drafted {
            id,
            time,
            sent: Instant::now(),
            proof,
            using,
            route: Arc::clone(&self.route),
            origin: self.origin,
            key: draft.key,
            headers,
            value: draft.value,
        });
        Ok(Prepared::Ready(Ready {
            drafted,
            trace,
            span,
            claim: draft.claim.map(|(claim, _)| claim),
            saved: draft.saved,
            queueing,
            wait,
            permit,
        }))
    }

    fn begin_queueing(&self, id: Uuid, key: Option<&Bytes>) -> Result<Option<Queueing>, Error> {
        let Some((queued, key)) = self.queued.as_ref().zip(key) else {
            return Ok(None);
        };
        let queueing = queued.begin(&self.way.topic, key, id);
        let full = || {
            let detail = "as many calls are queued without a verdict as may be (`messages.max`)";
            Error::new(Kind::Overloaded, detail).after(Duration::from_secs(1))
        };
        queueing.ok_or_else(full).map(Some)
    }

    /// Waits until the message is promised, and tells what became of it.
    async fn keep(&self, ready: Ready) -> Result<Published, Error> {
        let Ready {
            drafted, queueing, ..
        } = ready;
        let (id, sent, bytes) = (drafted.id, drafted.sent, drafted.value.len());
        let promised = promise::keep(&self.sender, &self.way, drafted)
            .await
            .inspect_err(|error| self.refusals.note(error, bytes));
        if let Err(error) = &promised
            && error.may_retry() != Retry::NoAnswer
        {
            queueing.into_iter().for_each(Queueing::refused);
        } else {
            drop(queueing);
        }
        self.tell((id, &ready.trace), ready.span, &promised);
        let promised = promised?;
        self.meters.seconds.record(sent.elapsed());
        self.meters.bytes.increment(bytes as u64);
        self.meters.slimmed.increment(ready.saved as u64);
        let whole = ready.claim.as_ref().map(|claim| claim.size as usize);
        self.row.published(bytes, whole);
        let accepted = self.accepted(id, promised, ready.claim.as_ref());
        Ok(Published::new(accepted, ready.wait, ready.permit))
    }

    /// Tells the counters, the log and the trace what became of a message. One that nobody promised may be in its topic all
    /// the same, and has its id there.
    fn tell(
        &self,
        (id, trace): (Uuid, &Trace),
        span: Option<Open>,
        promised: &Result<Promised, Error>,
    ) {
        let (topic, trace) = (&*self.way.topic, trace.id());
        let ended = match promised {
            Ok(Promised::Replicated(partition, offset)) => {
                self.meters.replicated.increment(1);
                tracing::debug!(%id, topic, partition, offset, trace, "message published");
                Ok(Some((*partition, *offset)))
            }
            Ok(Promised::Spooled) => {
                self.meters.spooled.increment(1);
                tracing::debug!(%id, topic, trace, "message spooled");
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(%id, topic, %error, trace, "message not published");
                Err(error.kind().word())
            }
        };
        if let Some(span) = span {
            span.sent(ended);
        }
    }

    async fn read(&self, body: Body, started: Instant) -> Result<Bytes, Error> {
        let max = self.max_body.min(IN_MEMORY_MAX);
        match timeout_at(started + BODY_TIMEOUT, body.read(max)).await {
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
        // With `whole_over` a body that is not JSON; it is small, or it would be kept by now.
        let foreign = self.takes_large(&head.headers).is_some();
        let keyed = || match foreign {
            false => self.plan.read(&body, &head.headers, head.uri.path()),
            true => {
                let slimmed = Slimmed::default();
                let key = self.plan.key(&slimmed, &head.headers, head.uri.path())?;
                Ok((slimmed, key))
            }
        };
        let measured = self.claim.is_some() && fastrand::u8(..) < MEASURED;
        let before = measured.then(cpu::of_thread);
        // No schema judges it, as none judges a large one.
        let (slimmed, key) = match self.check.as_ref().filter(|_| !foreign) {
            None => keyed()?,
            Some(check) => validate::judge(check.body(&body).await?, keyed())?,
        };
        let slimming = before.map(|before| cpu::of_thread().saturating_sub(before));
        let (Some(cut), Some(keeping)) = (slimmed.cut, &self.claim) else {
            return Ok(Draft {
                key,
                value: body,
                claim: None,
                saved: 0,
            });
        };
        // Otherwise the bodies of refused calls would fill the store.
        self.may_send(cut.body.len())?;
        let saved = body.len().saturating_sub(cut.body.len());
        let whole = Whole {
            body,
            digest: cut.digest,
        };
        let record = (keeping.audience, &cut.body[..]);
        let claim = self.kept(keeping, &whole, (record, slimming)).await?;
        let left = Left {
            none: false,
            cut: cut.fields,
        };
        Ok(Draft {
            key,
            value: cut.body,
            claim: Some((claim, left)),
            saved,
        })
    }

    /// Keeps a body, and notes what that cost if its slimming was measured.
    async fn kept(
        &self,
        keeping: &Keeping,
        whole: &Whole,
        (record, slimming): ((Audience, &[u8]), Option<Duration>),
    ) -> Result<Claim, Error> {
        let claims = &self.sender.claims;
        let claim = claims.keep(keeping.store, whole, record);
        let Some(slimming) = slimming else {
            return claim.await;
        };
        let (claim, used) = cpu::clocked(claim).await;
        let used = slimming + used + claims.writing_costs(keeping.store);
        self.row.kept_at(used);
        claim
    }

    fn message<'a>(
        &'a self,
        head: &'a request::Parts,
        birth: Birth<'a>,
        draft: &Draft,
    ) -> Message<'a> {
        let host = head.headers.get(HOST);
        Message {
            id: birth.id,
            source_service: &self.sender.service,
            instance: &self.sender.instance,
            method: &head.method,
            target: head
                .uri
                .path_and_query()
                .map_or("/", |target| target.as_str()),
            host: host.and_then(|host| host.to_str().ok()),
            headers: record::travelling(&head.headers, &self.headers),
            content_type: head.headers.get(CONTENT_TYPE),
            traceparent: birth.traceparent,
            tracestate: birth.tracestate,
            claim: draft.claim.as_ref().map(|(claim, left)| ClaimRef {
                id: claim.id.clone(),
                fields: left.cut.clone(),
                all: left.none,
                digest: claim.digest,
                size: claim.size,
                expires: claim.expires,
            }),
            reply: None,
            time: birth.time,
        }
    }
}
