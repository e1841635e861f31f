//! What is built once a process and shared by every generation of the configuration.

use std::sync::Arc;

use super::subscriptions::Subscriptions;
use crate::claims::Stores;
use crate::config::model::{Cluster, Config, Kafka};
use crate::error::Error;
use crate::kafka::client::Bootstrap;
use crate::kafka::embedded::Embedded;
use crate::kafka::producer::{Producer, Reports};
use crate::lifecycle;
use crate::messages::keys::{Keys, Promised};
use crate::messages::{Event, Timelines, What};
use crate::pattern::ReplayBudget;
use crate::pattern::answers::Answers;
use crate::pattern::hop::Via;
use crate::pattern::outbox::{self, Outbox};
use crate::pattern::publish::Sender;
use crate::service::Meters;
use crate::spool::{OpenError, Recovery, Spool, Standing};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names;
use crate::telemetry::spans::{Source, Spans};
use crate::tls::{Identity, LoadError};
use crate::upstream;
use crate::worth::Ledger;

/// The share of the memory limit that what waits for the broker may take, and what it always may.
const MEMORY_SHARE: u64 = 8;
const QUEUE_LEAST: usize = 1 << 20;

/// The shared parts.
pub(crate) struct Parts {
    /// Everything counted.
    pub(crate) metrics: Metrics,
    /// What services share.
    pub(crate) upstream: upstream::Shared,
    /// Bodies kept for repeated tries.
    pub(crate) replay: Arc<ReplayBudget>,
    /// The outbound door's name in Via.
    pub(crate) outbound_via: Via,
    /// Counts calls that no route takes.
    pub(crate) unrouted: Arc<Meters>,
    /// Whole bodies; empty without `claims`.
    pub(crate) claims: Arc<Stores>,
    /// Certificates, in the order of `tls`.
    pub(crate) identities: Vec<Arc<Identity>>,
    /// What happened to each message.
    pub(crate) timelines: Arc<Timelines>,
    /// Whether events pay.
    pub(crate) worth: Arc<Ledger>,
    /// The subscriptions that run.
    pub(crate) subscriptions: Arc<Subscriptions>,
    /// Records spans; `None` without `telemetry`.
    pub(crate) spans: Option<Arc<Spans>>,
    /// The broker and what sends to it.
    pub(crate) broker: Option<Broker>,
}

/// The way to the broker.
pub(crate) struct Broker {
    /// Its settings.
    pub(crate) kafka: Kafka,
    /// Where it is.
    pub(crate) bootstrap: Bootstrap,
    /// What publishing routes share.
    pub(crate) sender: Arc<Sender>,
    /// Kept alive; the records in it end with the process.
    pub(crate) _embedded: Option<Embedded>,
}

impl Parts {
    /// Builds them. A broker that is away is no error.
    pub(crate) fn build(
        config: &Config,
        instance: String,
        upstream: upstream::Shared,
    ) -> Result<Self, BuildError> {
        let metrics = upstream.metrics.clone();
        let timelines = Arc::new(Timelines::new(config.messages));
        let claims = Arc::new(Stores::open(&config.claims, &config.service)?);
        let identities = config
            .tls
            .iter()
            .map(|files| Identity::load(files).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let spans = config.telemetry.as_ref().map(|telemetry| {
            let source = Source {
                service: config.service.clone(),
                instance: instance.clone(),
            };
            Spans::start(telemetry, source, &metrics)
        });
        let worth = Arc::new(Ledger::new(&metrics));
        let broker = match &config.kafka {
            None => None,
            Some(kafka) => {
                let shared = (&claims, &timelines, &worth, &metrics);
                Some(broker((kafka, config), instance, shared)?)
            }
        };
        Ok(Self {
            outbound_via: Via::new(&config.service, "outbound"),
            unrouted: Meters::new(&metrics, "outbound", "(none)", "-"),
            replay: ReplayBudget::new(config.limits.replay, config.limits.replay_total),
            metrics,
            upstream,
            claims,
            identities,
            timelines,
            worth,
            subscriptions: Arc::default(),
            spans,
            broker,
        })
    }
}

/// Why a sidecar does not start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A door, a folder or a thread.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The broker's client refuses its settings.
    #[error("{0}")]
    Kafka(#[from] crate::kafka::client::SetupError),
    /// A certificate, its key or its CA.
    #[error("tls: {0}")]
    Tls(#[from] LoadError),
    /// The spool's folder.
    #[error("{0}")]
    Spool(#[from] OpenError),
    /// A part that the configuration needs could not be built.
    #[error("{0}")]
    Part(#[from] Error),
}

fn broker(
    (kafka, config): (&Kafka, &Config),
    instance: String,
    (claims, timelines, worth, metrics): (&Arc<Stores>, &Arc<Timelines>, &Arc<Ledger>, &Metrics),
) -> Result<Broker, BuildError> {
    let (bootstrap, embedded) = match &kafka.cluster {
        Cluster::Brokers(addresses) => (Bootstrap::brokers(addresses), None),
        Cluster::Embedded => {
            let embedded = Embedded::start()?;
            tracing::warn!(
                limits = crate::kafka::embedded::LIMITS,
                "the broker is the embedded one"
            );
            (embedded.bootstrap(), Some(embedded))
        }
    };
    let kafka = &within_memory(kafka.clone(), lifecycle::memory_limit());
    let keys = Arc::new(Keys::new(config.messages));
    // Opened before the broker's client is made: what it refuses must leave nothing behind.
    let opened = config.spool.as_ref().map(|rule| {
        let opened = Spool::open(rule, config.messages.max, config.messages.keep)?;
        Ok::<_, OpenError>((opened, rule.survives))
    });
    let opened = opened.transpose()?;
    let room = kafka.queue_max / 4 * 3;
    let way = outbox::Shared::new(room, Arc::clone(timelines), metrics);
    let producer = Arc::new(Producer::new(kafka, &bootstrap, None)?);
    let outbox = match opened {
        None => None,
        Some((opened, survives)) => {
            remember(&opened.recovery, timelines, &keys, metrics);
            // A client of its own: what the spool keeps is repeated for ever, a dead letter or a receipt is not, and
            // neither is to wait in the other's queue.
            let reports = Arc::clone(&way) as Arc<dyn Reports>;
            let own = Arc::new(Producer::new(kafka, &bootstrap, Some(reports))?);
            Some((Outbox::start(way, opened, own)?, survives))
        }
    };
    let answers = kafka.replies.as_ref().map(|topics| {
        let origin = format!("{}/{instance}", config.service);
        let broker = (kafka, topics, &bootstrap);
        Answers::new(config, origin, broker, timelines, metrics)
    });
    let sender = Arc::new(Sender {
        service: config.service.clone(),
        instance,
        producer,
        claims: Arc::clone(claims),
        worth: Arc::clone(worth),
        timelines: Arc::clone(timelines),
        keys,
        outbox,
        answers,
    });
    Ok(Broker {
        kafka: kafka.clone(),
        bootstrap,
        sender,
        _embedded: embedded,
    })
}

/// What waits for the broker takes no more than an eighth of the memory that the process may use: an outage must not end
/// it.
fn within_memory(mut kafka: Kafka, memory: Option<u64>) -> Kafka {
    let most = memory.and_then(|memory| usize::try_from(memory / MEMORY_SHARE).ok());
    if let Some(most) = most.filter(|most| *most < kafka.queue_max) {
        let (configured, used) = (kafka.queue_max, most.max(QUEUE_LEAST));
        tracing::warn!(
            configured,
            used,
            "kafka.queue_max is cut to an eighth of the container's memory"
        );
        kafka.queue_max = used;
    }
    kafka
}

/// Puts back what an earlier run's spool tells: timelines and idempotency keys.
fn remember(recovery: &Recovery, timelines: &Timelines, keys: &Keys, metrics: &Metrics) {
    if recovery.owed > 0 {
        tracing::info!(
            messages = recovery.owed,
            "the spool has messages of an earlier run; they are sent first"
        );
    }
    metrics
        .gauge(&names::SPOOL_DAMAGED, &[])
        .set(recovery.damaged as f64);
    metrics
        .counter(&names::SPOOL_LOST, &[])
        .increment(recovery.lost);
    for known in &recovery.known {
        let origin = timelines.origin(Some(&known.route), &known.topic);
        let accepted = Event::at(known.accepted, What::Accepted);
        timelines.record(known.id, accepted.origin(origin));
        let promised = match known.standing {
            Standing::Owed => {
                timelines.record(known.id, Event::at(known.accepted, What::Spooled));
                Some(Promised::Spooled)
            }
            Standing::Replicated(at, partition, offset) => {
                let replicated = Event::at(at, What::Replicated);
                timelines.record(known.id, replicated.place(partition, offset));
                Some(Promised::Replicated(partition, offset))
            }
            // Perhaps its caller was refused: its key must not stand for a message that nobody sends.
            Standing::Over => None,
        };
        if let (Some(proof), Some(promised)) = (known.proof, promised) {
            keys.restore(known.id, proof, promised, known.accepted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_to_the_broker_follows_the_memory_of_the_container() {
        let queue = |memory| {
            let kafka = Kafka {
                cluster: Cluster::Embedded,
                properties: Vec::new(),
                queue_max: 32 << 20,
                replies: None,
            };
            within_memory(kafka, memory).queue_max
        };
        assert_eq!(queue(None), 32 << 20);
        assert_eq!(queue(Some(1 << 30)), 32 << 20);
        assert_eq!(queue(Some(128 << 20)), 16 << 20);
        assert_eq!(queue(Some(1 << 20)), QUEUE_LEAST);
    }
}
