//! The asynchronous pattern's sending side: a call becomes a record, and the 202 waits for the broker.
//!
//! With a `slim` rule the same code makes an event: the whole body is kept as a claim before the record is sent, so that
//! no record names a body that is not there.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::request;
use metrics::{Counter, Histogram};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::refusals::Refusals;
use super::slim::Plan;
use crate::body::Body;
use crate::claims::{Claim, Stores};
use crate::config::model::{ClaimIndex, HeaderRule, Publish as Rule, Survives};
use crate::error::{Error, Kind};
use crate::kafka::producer::{Ack, Outgoing, Producer, PublishError};
use crate::kafka::record::{self, ClaimRef, Message};
use crate::messages::{Event, Timelines, What};
use crate::reply::accepted::{self, Accepted, ClaimKept};
use crate::service::{Call, Response};
use crate::telemetry::metrics::{Metrics, Outcomes};
use crate::telemetry::names;

/// How long a caller may take to send the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

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
}

/// What one route does with its calls.
pub struct Publish {
    topic: String,
    headers: HeaderRule,
    max_body: usize,
    timeout: Duration,
    plan: Plan,
    claim: Option<(ClaimIndex, Survives)>,
    sender: Arc<Sender>,
    refusals: Refusals,
    meters: Meters,
}

struct Meters {
    replicated: Counter,
    refused: Outcomes,
    seconds: Histogram,
    bytes: Counter,
    slimmed: Counter,
}

/// The record of one call, before its headers are written.
struct Draft {
    key: Option<Bytes>,
    value: Bytes,
    claim: Option<(Claim, Vec<String>)>,
    saved: usize,
}

/// What a message has from its first moment.
struct Birth<'a> {
    id: Uuid,
    traceparent: Option<&'a str>,
    time: SystemTime,
}

impl Publish {
    /// Builds a route's publishing; `survives` tells what its claim store outlives.
    pub fn new(
        rule: &Rule,
        survives: Option<Survives>,
        sender: &Arc<Sender>,
        metrics: &Metrics,
    ) -> Self {
        let labels = [("topic", rule.topic.as_str())];
        Self {
            topic: rule.topic.clone(),
            headers: rule.headers.clone(),
            max_body: rule.max_body,
            timeout: rule.timeout,
            plan: Plan::of(rule),
            claim: rule
                .slim
                .as_ref()
                .map(|slim| (slim.claim, survives.unwrap_or(Survives::Pod))),
            sender: Arc::clone(sender),
            refusals: Refusals::default(),
            meters: Meters {
                replicated: metrics.counter(
                    &names::PUBLISHED,
                    &[("topic", rule.topic.as_str()), ("outcome", "replicated")],
                ),
                refused: Outcomes::new(metrics, &names::PUBLISHED, &labels),
                seconds: metrics.histogram(&names::PUBLISH_SECONDS, &labels),
                bytes: metrics.counter(&names::PUBLISHED_BYTES, &labels),
                slimmed: metrics.counter(&names::SLIMMED_BYTES, &labels),
            },
        }
    }

    /// Publishes a call. The answer is a 202 only after the broker's acknowledgement.
    ///
    /// # Errors
    /// The caller's faults before anything is kept or sent; the claim store's before anything is sent; the broker's.
    pub async fn call(&self, call: Box<Call>) -> Result<Response, Error> {
        let published = self.publish(call).await;
        match &published {
            Ok(_) => self.meters.replicated.increment(1),
            Err(error) => self.meters.refused.refused(error.kind()),
        }
        published
    }

    async fn publish(&self, call: Box<Call>) -> Result<Response, Error> {
        let Call {
            request,
            trace,
            permit: _until_the_end,
            ..
        } = *call;
        let accepted_at = SystemTime::now();
        let (head, body) = request.into_parts();
        let body = self.read(body).await?;
        let draft = self.draft(&head, body).await?;
        let id = Uuid::now_v7();
        let birth = Birth {
            id,
            traceparent: Some(trace.text()),
            time: accepted_at,
        };
        let message = self.message(&head, birth, &draft);
        let headers = record::encode(&message);
        let outgoing = Outgoing {
            topic: &self.topic,
            key: draft.key.as_deref(),
            value: &draft.value,
            headers: &headers,
        };
        let sent = Instant::now();
        let ack = self
            .sender
            .producer
            .publish(outgoing, sent + self.timeout)
            .await
            .map_err(Error::from)
            .inspect_err(|error| self.refusals.note(error, draft.value.len()))?;
        self.meters.seconds.record(sent.elapsed());
        self.meters.bytes.increment(draft.value.len() as u64);
        self.meters.slimmed.increment(draft.saved as u64);
        self.sender
            .timelines
            .record(id, Event::at(accepted_at, What::Accepted));
        self.sender.timelines.record(
            id,
            Event::now(What::Replicated).place(ack.partition, ack.offset),
        );
        tracing::debug!(%id, topic = self.topic, partition = ack.partition, offset = ack.offset, trace = trace.id(), "published");
        Ok(accepted::respond(&self.accepted(id, ack, &draft)))
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
        let slimmed = self.plan.apply(&body)?;
        let key = self.plan.key(&slimmed, &head.headers, head.uri.path())?;
        let (Some(cut), Some((store, _))) = (slimmed.cut, self.claim) else {
            return Ok(Draft {
                key,
                value: body,
                claim: None,
                saved: 0,
            });
        };
        // Otherwise the bodies of refused calls would fill the store.
        if self.sender.producer.is_away() {
            return Err(PublishError::BrokerAway.into());
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
            time: birth.time,
        }
    }

    fn accepted(&self, id: Uuid, ack: Ack, draft: &Draft) -> Accepted {
        let survives = self.claim.map_or(Survives::Pod, |(_, survives)| survives);
        Accepted {
            id: id.to_string(),
            status: "replicated",
            topic: self.topic.clone(),
            partition: ack.partition,
            offset: ack.offset,
            claim: draft.claim.as_ref().map(|(claim, _)| ClaimKept {
                survives,
                size: claim.size,
                expires: humantime::format_rfc3339_seconds(claim.expires).to_string(),
            }),
        }
    }
}
