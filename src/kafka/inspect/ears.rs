//! What the native clients say while a broker is inspected: why they do not reach it, and whether they may send.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use tokio::time::Instant;

use super::facts::Unreachable;
use crate::kafka::properties::Redactor;

/// How long a client goes on after every address of every broker refused it: a name may have others.
const PATIENCE: Duration = Duration::from_millis(1500);

/// One for all clients of an inspection.
#[derive(Debug, Clone)]
pub(super) struct Ears {
    heard: Arc<Heard>,
}

#[derive(Debug)]
struct Heard {
    redactor: Redactor,
    /// The producer has its id, so it may send with idempotence.
    identified: AtomicBool,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    /// The last words of a client that did not reach a broker.
    last: Option<String>,
    authentication: Option<String>,
    tls: Option<String>,
    /// Since when no broker takes a connection.
    down: Option<Instant>,
}

impl Ears {
    /// Hears nothing yet.
    pub(super) fn new(redactor: Redactor) -> Self {
        let heard = Heard {
            redactor,
            identified: AtomicBool::new(false),
            said: Mutex::default(),
        };
        Self {
            heard: Arc::new(heard),
        }
    }

    /// Whether the broker gave the producer an id (KIP-98).
    pub(super) fn is_identified(&self) -> bool {
        self.heard.identified.load(Ordering::Relaxed)
    }

    /// Why it makes no sense to wait any longer.
    pub(super) fn hopeless(&self) -> Option<Unreachable> {
        let said = self.said();
        let gone = said.down.is_some_and(|since| since.elapsed() > PATIENCE);
        match (&said.authentication, &said.tls) {
            (Some(words), _) => Some(Unreachable::Authentication(words.clone())),
            (None, Some(words)) if gone => Some(Unreachable::Tls(words.clone())),
            _ if gone => Some(Unreachable::Away(said.last.clone().unwrap_or_default())),
            _ => None,
        }
    }

    /// Why nothing was reached once the time is up.
    pub(super) fn verdict(&self) -> Unreachable {
        if let Some(found) = self.hopeless() {
            return found;
        }
        let said = self.said();
        match &said.tls {
            Some(words) => Unreachable::Tls(words.clone()),
            None => Unreachable::Away(said.last.clone().unwrap_or_default()),
        }
    }

    /// The last words of a client that lost its broker.
    pub(super) fn last(&self) -> String {
        self.said().last.clone().unwrap_or_default()
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.heard
            .said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Ears {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, text: &str) {
        // Only with `debug=eos` does the client tell of this; there is no call that does.
        if facility == "GETPID" && text.contains("Acquired PID") {
            self.heard.identified.store(true, Ordering::Relaxed);
        }
    }

    fn stats_raw(&self, _statistics: &[u8]) {}

    fn error(&self, error: KafkaError, text: &str) {
        let words = self.heard.redactor.clean(text).into_owned();
        let mut said = self.said();
        match error.rdkafka_error_code() {
            Some(Code::Authentication | Code::SaslAuthenticationFailed) => {
                said.authentication.get_or_insert(words);
            }
            Some(Code::SSL) => {
                said.tls.get_or_insert(words);
            }
            Some(Code::AllBrokersDown) => {
                said.down.get_or_insert_with(Instant::now);
            }
            _ => said.last = Some(words),
        }
    }
}

impl ProducerContext for Ears {
    type DeliveryOpaque = ();

    fn delivery(&self, _result: &DeliveryResult<'_>, _opaque: ()) {}
}

impl ConsumerContext for Ears {}
