//! Metric handles. They are resolved when a part is built, never per call: a label lookup costs more than a route.
//!
//! Each sidecar owns its recorder, so that several can live in one process (tests do that).

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use http::StatusCode;
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::names::{self, Name};
use crate::error::Kind;

/// Upper bounds of every histogram's buckets, in seconds: from a local hop to the longest sensible deadline.
const BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0,
];

/// The recorder of one sidecar.
#[derive(Clone)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    looks: Arc<Mutex<Vec<Look>>>,
}

/// Brings one gauge up to date.
type Look = Box<dyn Fn() + Send + Sync>;

impl Metrics {
    /// Makes an empty recorder and describes every metric.
    pub fn new() -> Self {
        let builder = PrometheusBuilder::new();
        let builder = builder
            .set_buckets(&BUCKETS)
            .unwrap_or_else(|_| PrometheusBuilder::new());
        let recorder = builder.build_recorder();
        for name in names::ALL {
            let key = || name.name.into();
            match () {
                () if name.name.ends_with("_total") => {
                    recorder.describe_counter(key(), None, name.help.into())
                }
                () if name.name.ends_with("_seconds") => {
                    recorder.describe_histogram(key(), None, name.help.into())
                }
                () => recorder.describe_gauge(key(), None, name.help.into()),
            }
        }
        let handle = recorder.handle();
        let metrics = Self {
            recorder: Arc::new(recorder),
            handle,
            looks: Arc::default(),
        };
        metrics
            .gauge(&names::BUILD, &[("version", env!("CARGO_PKG_VERSION"))])
            .set(1.0);
        metrics
    }

    /// Resolves a counter.
    pub fn counter(&self, name: &Name, labels: &[(&'static str, &str)]) -> Counter {
        self.recorder
            .register_counter(&key(name, labels), &METADATA)
    }

    /// Resolves a gauge.
    pub fn gauge(&self, name: &Name, labels: &[(&'static str, &str)]) -> Gauge {
        self.recorder.register_gauge(&key(name, labels), &METADATA)
    }

    /// Resolves a histogram.
    pub fn histogram(&self, name: &Name, labels: &[(&'static str, &str)]) -> Histogram {
        self.recorder
            .register_histogram(&key(name, labels), &METADATA)
    }

    /// Has a gauge read whenever somebody asks: kept with each call, it would cost every one of them.
    pub fn watch(
        &self,
        name: &Name,
        labels: &[(&'static str, &str)],
        value: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        let gauge = self.gauge(name, labels);
        let look = Box::new(move || gauge.set(value()));
        self.lock().push(look);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Look>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes everything in Prometheus' text format.
    pub fn render(&self) -> String {
        self.lock().iter().for_each(|look| look());
        self.handle.render()
    }

    /// Moves histogram samples into their buckets. Must run every few seconds: the exporter keeps each sample until
    /// then, and memory would grow while nobody scrapes.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

static METADATA: Metadata<'static> = Metadata::new("wayside", Level::INFO, None);

fn key(name: &Name, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<Label> = labels
        .iter()
        .map(|(key, value)| Label::new(*key, value.to_string()))
        .collect();
    Key::from_parts(name.name, labels)
}

/// How calls ended, counted by one label. A series appears when its first call ends, so that a thousand routes do not
/// show thirty zeros each.
pub struct Outcomes {
    metrics: Metrics,
    name: &'static Name,
    labels: Vec<(&'static str, String)>,
    classes: [OnceLock<Counter>; 5],
    kinds: Vec<OnceLock<Counter>>,
}

impl Outcomes {
    /// Prepares the counters of `name` with `labels` and a last label `outcome`.
    pub fn new(metrics: &Metrics, name: &'static Name, labels: &[(&'static str, &str)]) -> Self {
        Self {
            metrics: metrics.clone(),
            name,
            labels: labels
                .iter()
                .map(|(key, value)| (*key, value.to_string()))
                .collect(),
            classes: Default::default(),
            kinds: Kind::ALL.iter().map(|_| OnceLock::new()).collect(),
        }
    }

    /// Counts an answer of the other side.
    pub fn status(&self, status: StatusCode) {
        const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.classes[class]
            .get_or_init(|| self.resolve(CLASSES[class]))
            .increment(1);
    }

    /// Counts a refusal of our own.
    pub fn refused(&self, kind: Kind) {
        self.kinds[kind as usize]
            .get_or_init(|| self.resolve(kind.word()))
            .increment(1);
    }

    fn resolve(&self, outcome: &str) -> Counter {
        let mut labels: Vec<(&'static str, &str)> = self
            .labels
            .iter()
            .map(|(key, value)| (*key, value.as_str()))
            .collect();
        labels.push(("outcome", outcome));
        self.metrics.counter(self.name, &labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_appears_with_its_first_call() {
        let metrics = Metrics::new();
        let outcomes = Outcomes::new(&metrics, &names::CALLS, &[("route", "read")]);
        assert!(!metrics.render().contains("wayside_calls_total{"));
        outcomes.status(StatusCode::CREATED);
        outcomes.refused(Kind::Deadline);
        let text = metrics.render();
        assert!(
            text.contains("wayside_calls_total{route=\"read\",outcome=\"2xx\"} 1"),
            "{text}"
        );
        assert!(text.contains("outcome=\"deadline-exceeded\"} 1"), "{text}");
    }

    #[test]
    fn histograms_have_buckets() {
        let metrics = Metrics::new();
        metrics
            .histogram(&names::CALL_SECONDS, &[("route", "read")])
            .record(0.003);
        metrics.upkeep();
        assert!(
            metrics
                .render()
                .contains("wayside_call_seconds_bucket{route=\"read\",le=\"0.005\"} 1")
        );
    }
}
