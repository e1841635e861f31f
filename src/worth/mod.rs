//! Whether lightweight events pay: what slimming keeps from the broker, what hydrating costs, and the ratio at which the
//! two are even, from costs that are measured on this sidecar.
//!
//! * [`model`]: the arithmetic
//! * [`calibrate`]: what a byte and a request cost on this machine
//! * `published`, `read`: what is counted of a route and of a subscription, and what to do about it
//!
//! A [`Ledger`] has a row for each route that publishes and for each subscription. Rows count by single atomic additions;
//! once a second they are looked at, with the past fading, so that a change shows within minutes.

pub mod calibrate;
pub mod model;
mod published;
mod read;
mod row;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};

use self::calibrate::Measured;
use self::model::Costs;
pub use self::published::Published;
pub use self::read::{Hydrated, Read};
use crate::telemetry::metrics::Metrics;

/// What things cost until they are measured.
const UNMEASURED: Measured = Measured {
    byte_ns: 1.0,
    http_byte_ns: 0.3,
    exchange_ns: 40_000.0,
};
/// The work of a fetch until there was one here, in nanoseconds.
const HYDRATE_NS: f64 = 20_000.0;
/// What keeping a body costs until one was kept here, in nanoseconds.
const KEEP_NS: f64 = 30_000.0;

/// All that is counted of events.
pub struct Ledger {
    metrics: Metrics,
    measured: OnceLock<Measured>,
    published: Mutex<Vec<Arc<Published>>>,
    read: Mutex<Vec<Arc<Read>>>,
}

impl Ledger {
    /// An empty one.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            metrics: metrics.clone(),
            measured: OnceLock::new(),
            published: Mutex::default(),
            read: Mutex::default(),
        }
    }

    /// Notes what things cost on this machine; the first word counts.
    pub fn measured(&self, measured: Measured) {
        self.measured.get_or_init(|| measured);
    }

    /// The row of a route, whose topic is also known as the claims of its records name it; a reload finds the old one.
    pub fn publishing(&self, route: &str, (topic, audience): (&str, [u8; 8])) -> Arc<Published> {
        let mut rows = lock(&self.published);
        let found = rows
            .iter()
            .find(|row| row.route == route && row.topic == topic);
        if let Some(found) = found {
            return Arc::clone(found);
        }
        let row = Arc::new(Published::new(route, (topic, audience)));
        rows.push(Arc::clone(&row));
        row
    }

    /// The row of a subscription; a reload finds the old one.
    pub fn reading(&self, topic: &str, group: &str) -> Arc<Read> {
        let mut rows = lock(&self.read);
        let found = rows
            .iter()
            .find(|row| row.topic == topic && row.group == group);
        if let Some(found) = found {
            return Arc::clone(found);
        }
        let row = Arc::new(Read::new((topic, group), &self.metrics));
        rows.push(Arc::clone(&row));
        row
    }

    /// The row of the subscription whose app got a reference.
    pub fn reader(&self, reader: [u8; 4]) -> Option<Arc<Read>> {
        let rows = lock(&self.read);
        rows.iter().find(|row| row.reader == reader).map(Arc::clone)
    }

    /// Counts a body that a peer had from us, by the first bytes of SHA-256 of its topic.
    pub fn served(&self, audience: [u8; 8]) {
        let rows = lock(&self.published);
        let of_topic = rows.iter().filter(|row| row.audience == audience);
        of_topic.for_each(|row| row.served());
    }

    /// Topics of which slim messages are published or read, whose replicas are worth knowing.
    pub fn topics(&self) -> Vec<String> {
        let mut topics: Vec<String> = lock(&self.published)
            .iter()
            .filter(|row| row.slims())
            .map(|row| row.topic.clone())
            .collect();
        let read = lock(&self.read);
        let read = read.iter().filter(|row| row.reads_slim());
        topics.extend(read.map(|row| row.topic.clone()));
        topics.sort_unstable();
        topics.dedup();
        topics
    }

    /// Notes how many replicas a topic has.
    pub fn replicas(&self, topic: &str, replicas: u32) {
        let published = lock(&self.published);
        let of_topic = published.iter().filter(|row| row.topic == topic);
        of_topic.for_each(|row| row.replicas(replicas));
        let read = lock(&self.read);
        let of_topic = read.iter().filter(|row| row.topic == topic);
        of_topic.for_each(|row| row.replicas(replicas));
    }

    /// Lets a second pass: what was counted fades a little, gauges are set, and a ratio that has crossed is told.
    pub fn tick(&self) {
        let costs = self.costs();
        for row in &*lock(&self.published) {
            row.tick();
        }
        let read: Vec<_> = lock(&self.read).clone();
        for row in &read {
            row.tick(&costs, groups(&read, &row.topic));
        }
    }

    /// What is told at the admin door.
    pub fn report(&self) -> Value {
        let costs = self.costs();
        let published: Vec<Value> = lock(&self.published)
            .iter()
            .map(|row| row.report(&costs))
            .collect();
        let read: Vec<_> = lock(&self.read).clone();
        let subscriptions: Vec<Value> = read
            .iter()
            .map(|row| row.report(&costs, groups(&read, &row.topic)))
            .collect();
        json!({
            "costs": {
                "byte_ns": costs.byte_ns,
                "http_byte_ns": costs.http_byte_ns,
                "exchange_us": costs.exchange_ns / 1e3,
                "keep_us": costs.keep_ns / 1e3,
                "hydrate_us": costs.hydrate_ns / 1e3,
                "measured": { "machine": self.measured.get().is_some(), "keep": costs.keep_measured, "hydrate": costs.hydrate_measured },
            },
            "routes": published,
            "subscriptions": subscriptions,
        })
    }

    /// What things cost here, measured as far as they were done.
    fn costs(&self) -> Costs {
        let Measured {
            byte_ns,
            http_byte_ns,
            exchange_ns,
        } = *self.measured.get().unwrap_or(&UNMEASURED);
        let kept = added(lock(&self.published).iter().map(|row| row.kept()));
        let hydrated = added(lock(&self.read).iter().map(|row| row.hydrated_here()));
        let each = |(count, nanoseconds): (f64, f64)| (count > 0.0).then(|| nanoseconds / count);
        let (keep, hydrate) = (each(kept), each(hydrated));
        Costs {
            byte_ns,
            http_byte_ns,
            exchange_ns,
            keep_ns: keep.unwrap_or(KEEP_NS),
            keep_measured: keep.is_some(),
            hydrate_ns: hydrate.unwrap_or(HYDRATE_NS),
            hydrate_measured: hydrate.is_some(),
        }
    }
}

/// Adds up pairs.
fn added(pairs: impl Iterator<Item = (f64, f64)>) -> (f64, f64) {
    pairs.fold((0.0, 0.0), |all, one| (all.0 + one.0, all.1 + one.1))
}

/// Groups of a topic, as far as this sidecar has them.
fn groups(read: &[Arc<Read>], topic: &str) -> usize {
    read.iter().filter(|row| row.topic == topic).count().max(1)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
