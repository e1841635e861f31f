//! What may be set of the broker's client, what is wrong with it, and that no value of it is ever printed.

use std::borrow::Cow;

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaType;

use super::client::{
    Bootstrap, SetupError, client_error, consumer_config, producer_config, refusal,
};
use crate::config::model::{Cluster, Kafka, Secret};
use crate::config::{self, Clients, Invalid, nearest};

/// What stands for a value.
const REDACTED: &str = "[redacted]";
/// Values shorter than this are hidden only where they stand as a word of their own.
const WORD_MAX: usize = 8;
/// Values of properties that hold no secret are left alone if they are shorter: they are words of the log itself.
const PLAIN_MIN: usize = 4;

/// Judges the properties of a file by asking the client itself, without a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judge {
    /// As far as it can be told on any machine: the files that they name are another's.
    Anywhere,
    /// As the client of this process would.
    Here,
}

impl config::Judge for Judge {
    fn alone(&self, name: &str, value: &str) -> Option<Invalid> {
        let reason = match refusal(name, value)? {
            SetupError::Property { reason, .. } => reason,
            other => other.to_string(),
        };
        let hint = match KNOWN.contains(&name) {
            true => None,
            false => nearest(name, KNOWN.iter().copied()),
        };
        Some(Invalid { reason, hint })
    }

    fn together(
        &self,
        properties: &[(String, Secret)],
        clients: Clients,
    ) -> Option<(Option<String>, Invalid)> {
        let kept: Vec<_> = properties
            .iter()
            .filter(|(name, _)| *self == Self::Here || !names_a_file(name))
            .cloned()
            .collect();
        let said = make(&kept, clients).err()?;
        let reason = match client_error(said.clone(), &Redactor::of(&kept)) {
            SetupError::Property { reason, .. } | SetupError::Client(reason) => reason,
            other => other.to_string(),
        };
        let invalid = Invalid { reason, hint: None };
        Some((blamed(&kept, &said.to_string(), clients), invalid))
    }
}

/// Whether its value is the path of a file.
fn names_a_file(name: &str) -> bool {
    name.ends_with(".location") || name.ends_with(".file") || name.ends_with(".keytab")
}

/// Makes the clients as a sidecar does, but for the brokers, so that nothing is connected.
fn make(properties: &[(String, Secret)], clients: Clients) -> Result<(), KafkaError> {
    let kafka = Kafka {
        cluster: Cluster::Embedded,
        properties: properties.to_vec(),
        queue_max: 32 << 20,
        replies: None,
    };
    let nowhere = Bootstrap::brokers(&[]);
    let failed = |error: SetupError| KafkaError::ClientCreation(error.to_string());
    let producer = producer_config(&kafka, &nowhere).map_err(failed)?;
    let consumer = consumer_config(&kafka, &nowhere, "wayside").map_err(failed)?;
    let both = [
        (producer, RDKafkaType::RD_KAFKA_PRODUCER),
        (consumer, RDKafkaType::RD_KAFKA_CONSUMER),
    ];
    let needed = match clients {
        Clients::Producer => 1,
        Clients::Both => 2,
    };
    for (mut config, kind) in both.into_iter().take(needed) {
        config.remove("bootstrap.servers");
        let native = config.create_native_config()?;
        Client::new(&config, native, kind, Silent)?;
    }
    Ok(())
}

/// Which property the client complains of: the one that it names, else the one whose value it repeats, else the first
/// one without which it has nothing to complain of.
fn blamed(properties: &[(String, Secret)], said: &str, clients: Clients) -> Option<String> {
    let longest = |found: &dyn Fn(&(String, Secret)) -> Option<usize>| {
        let found = properties
            .iter()
            .filter_map(|one| Some((found(one)?, &one.0)));
        found
            .max_by_key(|(length, _)| *length)
            .map(|(_, name)| name.clone())
    };
    let named = longest(&|(name, _)| said.contains(name.as_str()).then_some(name.len()));
    let repeated = || {
        longest(&|(_, value)| {
            let value = value.reveal();
            (value.len() >= PLAIN_MIN && said.contains(value)).then_some(value.len())
        })
    };
    let needless = || {
        let without = |index: usize| {
            let mut rest = properties.to_vec();
            rest.remove(index);
            make(&rest, clients).is_ok()
        };
        let index = (0..properties.len()).find(|index| without(*index))?;
        Some(properties[index].0.clone())
    };
    named.or_else(repeated).or_else(needless)
}

/// Hears nothing of a client that is made only to see whether it can be.
struct Silent;

impl ClientContext for Silent {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _text: &str) {}

    fn error(&self, _error: KafkaError, _reason: &str) {}
}

/// Takes values of properties out of what the client says.
#[derive(Debug, Clone, Default)]
pub(super) struct Redactor {
    /// The longest first, so that none is hidden in part.
    values: Vec<Secret>,
}

impl Redactor {
    /// Hides these properties' values. What is no secret and as common as `true` or `5000` stays: it would take the
    /// numbers out of every line. So do the four words of `security.protocol`, which begin the brokers' names there.
    pub(super) fn of(properties: &[(String, Secret)]) -> Self {
        let mut values: Vec<Secret> = Vec::new();
        for (name, value) in properties {
            let value = value.reveal();
            let secret = is_secret(name);
            let common = value.len() < PLAIN_MIN
                || value.bytes().all(|byte| byte.is_ascii_digit())
                || matches!(value, "true" | "false");
            if value.is_empty() || name == "security.protocol" || !secret && common {
                continue;
            }
            values.push(Secret::new(value));
            // It is a list of `name=value`, whose parts are repeated one by one.
            let parts = value.split_ascii_whitespace().filter(|_| secret);
            let parts = parts.filter_map(|part| Some(part.split_once('=')?.1));
            values.extend(
                parts
                    .filter(|part| part.len() >= PLAIN_MIN)
                    .map(Secret::new),
            );
        }
        values.sort_by_key(|value| std::cmp::Reverse(value.reveal().len()));
        Self { values }
    }

    /// The text without them, nor with the end of one at its own end: the client repeats what it could not read of a
    /// value, from where it stopped.
    pub(super) fn clean<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for value in &self.values {
            let value = value.reveal();
            if let Some(cleaned) = without(&text, value) {
                text = Cow::Owned(cleaned);
            }
            let tail = text.char_indices().map(|(at, _)| at).find(|at| {
                let (before, rest) = text.split_at(*at);
                let begins = before.ends_with([' ', '"', '\'', ':']) && !rest.starts_with(' ');
                begins && rest.len() >= PLAIN_MIN && value.ends_with(rest)
            });
            if let Some(at) = tail {
                text = Cow::Owned(format!("{}{REDACTED}", &text[..at]));
            }
        }
        text
    }
}

fn is_secret(name: &str) -> bool {
    let words = [
        "password", "secret", "username", "key", "pem", "token", "jaas", "config", "claim",
    ];
    words.iter().any(|word| name.contains(word))
}

/// The text with `value` replaced, where it is not a part of another word; `None` if there is nothing to replace.
fn without(text: &str, value: &str) -> Option<String> {
    let joins = |letter: Option<char>| letter.is_some_and(char::is_alphanumeric);
    let (mut cleaned, mut from, mut found) = (String::new(), 0, false);
    for (at, _) in text.match_indices(value) {
        let end = at + value.len();
        let inside = joins(text[..at].chars().next_back()) || joins(text[end..].chars().next());
        if value.len() < WORD_MAX && inside {
            continue;
        }
        cleaned.push_str(&text[from..at]);
        cleaned.push_str(REDACTED);
        (from, found) = (end, true);
    }
    cleaned.push_str(&text[from..]);
    found.then_some(cleaned)
}

/// What librdkafka lets one set, for telling what a misspelt name was meant to be: its CONFIGURATION.md, without what is
/// no text.
const KNOWN: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "api.version.fallback.ms",
    "api.version.request",
    "api.version.request.timeout.ms",
    "auto.commit.enable",
    "auto.commit.interval.ms",
    "auto.offset.reset",
    "batch.num.messages",
    "batch.size",
    "bootstrap.servers",
    "broker.address.family",
    "broker.address.ttl",
    "broker.version.fallback",
    "check.crcs",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "compression.codec",
    "compression.level",
    "compression.type",
    "connections.max.idle.ms",
    "consume.callback.max.messages",
    "coordinator.query.interval.ms",
    "debug",
    "delivery.report.only.error",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.metrics.push",
    "enable.partition.eof",
    "enable.random.seed",
    "enable.sasl.oauthbearer.unsecure.jwt",
    "enable.ssl.certificate.verification",
    "enabled_events",
    "fetch.error.backoff.ms",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.min.bytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "group.protocol.type",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "https.ca.location",
    "https.ca.pem",
    "internal.termination.signal",
    "isolation.level",
    "linger.ms",
    "log.connection.close",
    "log.queue",
    "log.thread.name",
    "log_level",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "message.copy.max.bytes",
    "message.max.bytes",
    "message.send.max.retries",
    "message.timeout.ms",
    "metadata.broker.list",
    "metadata.max.age.ms",
    "metadata.recovery.rebootstrap.trigger.ms",
    "metadata.recovery.strategy",
    "msg_order_cmp",
    "offset.store.method",
    "offset.store.path",
    "offset.store.sync.interval.ms",
    "partition.assignment.strategy",
    "partitioner",
    "plugin.library.paths",
    "produce.offset.report",
    "queue.buffering.backpressure.threshold",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "queuing.strategy",
    "receive.message.max.bytes",
    "reconnect.backoff.jitter.ms",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "request.required.acks",
    "request.timeout.ms",
    "retries",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "sasl.kerberos.keytab",
    "sasl.kerberos.kinit.cmd",
    "sasl.kerberos.min.time.before.relogin",
    "sasl.kerberos.principal",
    "sasl.kerberos.service.name",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.assertion.algorithm",
    "sasl.oauthbearer.assertion.claim.aud",
    "sasl.oauthbearer.assertion.claim.exp.seconds",
    "sasl.oauthbearer.assertion.claim.iss",
    "sasl.oauthbearer.assertion.claim.jti.include",
    "sasl.oauthbearer.assertion.claim.nbf.seconds",
    "sasl.oauthbearer.assertion.claim.sub",
    "sasl.oauthbearer.assertion.file",
    "sasl.oauthbearer.assertion.jwt.template.file",
    "sasl.oauthbearer.assertion.private.key.file",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
    "sasl.oauthbearer.client.credentials.client.id",
    "sasl.oauthbearer.client.credentials.client.secret",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.extensions",
    "sasl.oauthbearer.grant.type",
    "sasl.oauthbearer.metadata.authentication.type",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "session.timeout.ms",
    "socket.blocking.max.ms",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.max.fails",
    "socket.nagle.disable",
    "socket.receive.buffer.bytes",
    "socket.send.buffer.bytes",
    "socket.timeout.ms",
    "ssl.ca.certificate.stores",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.cipher.suites",
    "ssl.crl.location",
    "ssl.curves.list",
    "ssl.endpoint.identification.algorithm",
    "ssl.engine.id",
    "ssl.engine.location",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.location",
    "ssl.keystore.password",
    "ssl.providers",
    "ssl.sigalgs.list",
    "ssl_ca",
    "ssl_certificate",
    "ssl_key",
    "statistics.interval.ms",
    "sticky.partitioning.linger.ms",
    "topic.blacklist",
    "topic.metadata.propagation.max.ms",
    "topic.metadata.refresh.fast.cnt",
    "topic.metadata.refresh.fast.interval.ms",
    "topic.metadata.refresh.interval.ms",
    "topic.metadata.refresh.sparse",
    "transaction.timeout.ms",
    "transactional.id",
];

#[cfg(test)]
mod tests {
    use super::*;
    use config::Judge as _;

    fn properties(list: &[(&str, &str)]) -> Vec<(String, Secret)> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), Secret::new(*value));
        list.iter().map(owned).collect()
    }

    #[test]
    fn the_client_knows_every_name_that_is_offered() {
        for name in KNOWN {
            let said = refusal(name, "no such value").map(|error| error.to_string());
            let unknown = said.is_some_and(|said| said.contains("No such configuration"));
            assert!(!unknown, "{name}");
        }
    }

    #[test]
    fn a_misspelt_name_is_answered_with_the_nearest() {
        for (wrong, right) in [
            ("sasl.pasword", "sasl.password"),
            ("linger.sm", "linger.ms"),
            ("compresion.type", "compression.type"),
            ("ssl.ca.locations", "ssl.ca.location"),
        ] {
            let invalid = Judge::Anywhere.alone(wrong, "hunter2").expect("unknown");
            assert_eq!(invalid.hint.as_deref(), Some(right));
            assert!(!invalid.reason.contains("hunter2"), "{}", invalid.reason);
        }
        assert_eq!(Judge::Anywhere.alone("linger.ms", "5"), None);
        let value = Judge::Anywhere
            .alone("linger.ms", "soon")
            .expect("no number");
        assert_eq!(value.hint, None);
    }

    #[test]
    fn what_the_client_refuses_as_a_whole_is_blamed_on_a_property() {
        let judged = |judge: Judge, list: &[(&str, &str)]| {
            let found = judge.together(&properties(list), Clients::Both);
            found.map(|(name, invalid)| (name.unwrap_or_default(), invalid.reason))
        };
        assert_eq!(judged(Judge::Here, &[("linger.ms", "5")]), None);
        let sasl = [
            ("security.protocol", "sasl_plaintext"),
            ("sasl.mechanism", "HUNTER2"),
        ];
        let (name, reason) = judged(Judge::Anywhere, &sasl).expect("no such mechanism");
        assert_eq!(name, "sasl.mechanism");
        assert!(
            reason.contains("[redacted]") && !reason.contains("HUNTER2"),
            "{reason}"
        );
        let file = [
            ("security.protocol", "ssl"),
            ("ssl.ca.location", "/nonexistent/ca.pem"),
        ];
        assert_eq!(judged(Judge::Anywhere, &file), None);
        let (name, reason) = judged(Judge::Here, &file).expect("no such file");
        assert_eq!(name, "ssl.ca.location");
        assert!(!reason.contains("/nonexistent"), "{reason}");
    }

    #[test]
    fn no_value_is_left_in_what_the_client_says() {
        let redactor = Redactor::of(&properties(&[
            ("sasl.password", "pa55"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.oauthbearer.config", "principal=admin bad hunter2"),
            ("linger.ms", "5000"),
            ("security.protocol", "sasl_ssl"),
        ]));
        for (said, cleaned) in [
            (
                "Unsupported SASL mechanism: SCRAM-SHA-512",
                "Unsupported SASL mechanism: [redacted]",
            ),
            (
                "Unrecognized sasl.oauthbearer.config beginning at: bad hunter2",
                "Unrecognized sasl.oauthbearer.config beginning at: [redacted]",
            ),
            ("no principal admin here", "no principal [redacted] here"),
            (
                "wrong: \"pa55\", and xpa55x",
                "wrong: \"[redacted]\", and xpa55x",
            ),
            (
                "sasl_ssl://b:1 after 5000 ms",
                "sasl_ssl://b:1 after 5000 ms",
            ),
        ] {
            assert_eq!(redactor.clean(said), cleaned);
        }
    }
}
