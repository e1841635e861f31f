//! Asks a broker what a configuration leans on, with the properties of the clients that a sidecar would make.
//!
//! Nothing is changed there: no topic is made, no group is joined, no offset committed, no record written. What it
//! finds is plain data ([`facts`]); what follows from it is decided elsewhere.

mod ears;
pub mod facts;
mod groups;
mod topics;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResourceResult, ResourceSpecifier};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{Producer as _, ThreadedProducer};
use tokio::runtime::Runtime;
use tokio::time::Instant;

use self::ears::Ears;
use self::facts::{Absent, Broker, Client, Facts, OffsetReset, Unreachable};
use super::client::{Bootstrap, SetupError, client_error, consumer_config, producer_config};
use super::properties::Redactor;
use crate::config::model::Kafka;

/// How often it is looked whether there is an answer.
const TICK: Duration = Duration::from_millis(50);
/// How long one request waits for its answer before it is made again.
const SLICE: Duration = Duration::from_secs(1);
/// How long the producer's id is awaited; a broker that answers gives it at once.
const IDENTIFIED: Duration = Duration::from_secs(2);
/// What an answer may come too late by, which librdkafka itself bounds.
const GRACE: Duration = Duration::from_millis(500);
/// How long the clients may take to end.
const ENDING: Duration = Duration::from_secs(2);

/// What is to be asked.
#[derive(Debug, Clone, Default)]
pub struct Questions {
    /// Topics that are written or read.
    pub topics: BTreeSet<String>,
    /// Of these, those that are written.
    pub written: BTreeSet<String>,
    /// Group and topic of each subscription.
    pub subscribed: BTreeSet<(String, String)>,
}

/// Asks, from a thread of its own, since the native clients block; returns after `within` and half a second at the
/// latest, whatever they do. `say` is told what is being asked.
///
/// # Errors
/// Nothing is known of the broker. What is not answered in time is a part of the facts.
pub fn inspect(
    kafka: &Kafka,
    bootstrap: &Bootstrap,
    questions: Questions,
    within: Duration,
    say: impl Fn(&str) + Send + 'static,
) -> Result<Facts, Unreachable> {
    let (answer, answered) = sync_channel(1);
    let (kafka, bootstrap) = (kafka.clone(), bootstrap.clone());
    let deadline = Instant::now() + within;
    let asking = move || match Inspection::start(&kafka, &bootstrap, deadline) {
        Ok(inspection) => {
            let facts = inspection.ask(&questions, &say);
            // Sent before the clients end, which may take them a while.
            drop(answer.send(facts));
        }
        Err(why) => drop(answer.send(Err(why))),
    };
    std::thread::Builder::new()
        .name("wayside-inspect".into())
        .spawn(asking)
        .map_err(|error| Unreachable::Client(SetupError::from(error).to_string()))?;
    let facts = match answered.recv_timeout(within + GRACE) {
        Ok(facts) => facts,
        Err(RecvTimeoutError::Timeout) => {
            return Err(Unreachable::Away("its client does not return".to_owned()));
        }
        Err(RecvTimeoutError::Disconnected) => {
            return Err(Unreachable::Client("its thread ended".to_owned()));
        }
    };
    // The process should not end beneath them, nor wait for them for long.
    drop(answered.recv_timeout(ENDING));
    facts
}

/// The clients of one inspection.
struct Inspection {
    /// Made as a sidecar makes it, to see whether it can be.
    producer: ThreadedProducer<Ears>,
    admin: AdminClient<Ears>,
    ears: Ears,
    kafka: Kafka,
    bootstrap: Bootstrap,
    client: Client,
    runtime: Runtime,
    deadline: Instant,
}

impl Inspection {
    fn start(kafka: &Kafka, bootstrap: &Bootstrap, deadline: Instant) -> Result<Self, Unreachable> {
        let redactor = Redactor::of(&kafka.properties);
        let ears = Ears::new(redactor.clone());
        let refused = |error: SetupError| Unreachable::Client(error.to_string());
        let made = |error: KafkaError| refused(client_error(error, &redactor));
        let mut config = producer_config(kafka, bootstrap).map_err(refused)?;
        let consumer = consumer_config(kafka, bootstrap, "wayside").map_err(refused)?;
        let client = settings_of(&config, &consumer);
        // To ask for a topic must not make it.
        config.set("allow.auto.create.topics", "false");
        let mut admin = config.clone();
        admin.set("enable.idempotence", "false");
        let debug = config
            .get("debug")
            .map_or("eos".to_owned(), |set| format!("{set},eos"));
        config.set("debug", debug);
        config.set_log_level(RDKafkaLogLevel::Debug);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| refused(error.into()))?;
        Ok(Self {
            producer: config.create_with_context(ears.clone()).map_err(made)?,
            admin: admin.create_with_context(ears.clone()).map_err(made)?,
            ears,
            kafka: kafka.clone(),
            bootstrap: bootstrap.clone(),
            client,
            runtime,
            deadline,
        })
    }

    fn ask(&self, questions: &Questions, say: &dyn Fn(&str)) -> Result<Facts, Unreachable> {
        self.reach(say)?;
        let (topics, brokers) = self.topics(&questions.topics, say);
        if brokers.is_empty() {
            // The client leaves the address that it was given as soon as it is told of others.
            return Err(Unreachable::Elsewhere(self.ears.last()));
        }
        say("asking the brokers for their settings");
        let brokers = self.brokers(brokers);
        say("asking whether records may be sent");
        let idempotence = match questions.written.is_empty() {
            true => Ok(()),
            false => self.idempotence(),
        };
        let subscribed = self.subscribed(&questions.subscribed, &topics, say);
        Ok(Facts {
            client: self.client.clone(),
            brokers,
            idempotence,
            topics,
            subscribed,
        })
    }

    /// Waits until a broker answers.
    fn reach(&self, say: &dyn Fn(&str)) -> Result<(), Unreachable> {
        while self.left() > Duration::ZERO {
            say(&format!("connecting to {}", self.bootstrap.address));
            // It comes with the first connection.
            if self.producer.client().fetch_cluster_id(TICK).is_some() {
                return Ok(());
            }
            if let Some(why) = self.ears.hopeless() {
                return Err(why);
            }
        }
        Err(self.ears.verdict())
    }

    /// Asks each broker for its settings, which shows too whether it answers at the address that it advertises.
    fn brokers(&self, found: BTreeMap<i32, String>) -> Vec<Broker> {
        let until = self.share();
        let options = options(until);
        let ids: Vec<_> = found
            .keys()
            .map(|id| [ResourceSpecifier::Broker(*id)])
            .collect();
        // Each is on its way before the next one is made.
        let asked = ids
            .iter()
            .map(|id| self.admin.describe_configs(id, &options));
        let asked: Vec<_> = asked.collect();
        let one = |((id, address), answer)| {
            let answer: Result<Vec<ConfigResourceResult>, Absent> = self.wait(answer, until);
            let settings = answer.and_then(|mut resources| {
                let found = resources.pop().and_then(Result::ok);
                topics::settings(found.as_ref())
            });
            Broker {
                id,
                address,
                settings,
            }
        };
        found.into_iter().zip(asked).map(one).collect()
    }

    fn idempotence(&self) -> Result<(), Absent> {
        let until = self.deadline.min(Instant::now() + IDENTIFIED);
        loop {
            if self.ears.is_identified() {
                return Ok(());
            }
            if let Some((code, reason)) = self.producer.client().fatal_error() {
                return Err(match absent(code) {
                    Absent::Unanswered(_) => Absent::Unanswered(reason),
                    known => known,
                });
            }
            if Instant::now() >= until {
                return Err(Absent::Unanswered("no producer id came in time".to_owned()));
            }
            std::thread::sleep(TICK);
        }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Until when one of several questions may be asked: half of the time that is left is for the others.
    fn share(&self) -> Instant {
        Instant::now() + self.left() / 2
    }

    fn wait<T>(
        &self,
        answer: impl Future<Output = Result<T, KafkaError>>,
        until: Instant,
    ) -> Result<T, Absent> {
        let timed = async { tokio::time::timeout_at(until, answer).await };
        match self.runtime.block_on(timed) {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(why(&error)),
            Err(_) => Err(out_of_time()),
        }
    }
}

fn options(until: Instant) -> AdminOptions {
    let within = until.saturating_duration_since(Instant::now());
    AdminOptions::new().request_timeout(Some(within.max(TICK)))
}

fn out_of_time() -> Absent {
    Absent::Unanswered("no answer in time".to_owned())
}

fn why(error: &KafkaError) -> Absent {
    match error {
        // Not among those of which the client gives the code.
        KafkaError::AdminOp(code) => absent(*code),
        other => match other.rdkafka_error_code() {
            Some(code) => absent(code),
            None => Absent::Unanswered(other.to_string()),
        },
    }
}

fn absent(code: Code) -> Absent {
    match code {
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => Absent::Denied,
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            Absent::Unknown
        }
        Code::UnsupportedFeature | Code::UnsupportedVersion => Absent::Unsupported,
        Code::OperationTimedOut | Code::RequestTimedOut => out_of_time(),
        other => Absent::Unanswered(other.to_string()),
    }
}

/// What the clients are told to do; both configurations hold their defaults, but for librdkafka's own.
fn settings_of(producer: &ClientConfig, consumer: &ClientConfig) -> Client {
    const ANSWER_MAX: u64 = 100_000_000;
    let number = |config: &ClientConfig, name| config.get(name).and_then(|text| text.parse().ok());
    let reset = consumer.get("auto.offset.reset").unwrap_or_default();
    Client {
        record_max: number(producer, "message.max.bytes").unwrap_or(u64::MAX),
        answer_max: number(consumer, "receive.message.max.bytes").unwrap_or(ANSWER_MAX),
        offset_reset: match reset {
            "latest" | "largest" | "end" => OffsetReset::Latest,
            "error" => OffsetReset::Error,
            _ => OffsetReset::Earliest,
        },
        session: Duration::from_millis(number(consumer, "session.timeout.ms").unwrap_or(45_000)),
    }
}
