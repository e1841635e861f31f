//! The task that takes spans from the queue to the collector, a batch at a time, and never holds anybody up.

use std::time::Duration;

use bytes::Bytes;
use metrics::Counter;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::collector::{Collector, Delivered};
use super::otlp;
use super::span::Queued;
use crate::config::model::Otlp;
use crate::lifecycle;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names;

/// Spans of one batch, at most.
const BATCH_SPANS: usize = 512;
/// How long the first span of a batch waits for others.
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// How long a collector may take for one batch, connecting included.
const ANSWER: Duration = Duration::from_secs(5);
/// How often a batch is sent, at most; then it is dropped, for newer ones wait.
const TRIES: u32 = 3;
/// The first and the longest wait after a try that failed, doubled from one to the other.
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Whose spans they are.
#[derive(Debug, Clone)]
pub struct Source {
    /// The service.
    pub service: String,
    /// This sidecar among its replicas.
    pub instance: String,
}

/// What the task holds.
pub(super) struct Export {
    source: Source,
    collector: Collector,
    exported: Counter,
    unreachable: Counter,
    refused: Counter,
    /// Tries that failed, since the last that did not.
    failed: u32,
    /// How long to wait before the next.
    rest: Duration,
}

/// What ends a wait.
enum Woken {
    Time,
    Flush(oneshot::Sender<()>),
    /// Nobody records any more.
    End,
}

impl Export {
    pub(super) fn new(config: &Otlp, source: Source, metrics: &Metrics) -> Self {
        let dropped = |reason| metrics.counter(&names::SPANS_DROPPED, &[("reason", reason)]);
        Self {
            source,
            collector: Collector::new(config),
            exported: metrics.counter(&names::SPANS_EXPORTED, &[]),
            unreachable: dropped("unreachable"),
            refused: dropped("refused"),
            failed: 0,
            rest: Duration::ZERO,
        }
    }

    pub(super) fn start(
        self,
        spans: mpsc::Receiver<Queued>,
        flushes: mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        lifecycle::spawn(&Handle::current(), "spans", self.run(spans, flushes));
    }

    async fn run(
        mut self,
        mut spans: mpsc::Receiver<Queued>,
        mut flushes: mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        loop {
            let mut batch = Vec::new();
            let woken = tokio::select! {
                taken = spans.recv_many(&mut batch, BATCH_SPANS) => match taken {
                    0 => return,
                    _ => gather(&mut spans, &mut flushes, &mut batch).await,
                },
                flush = flushes.recv() => match flush {
                    Some(done) => Woken::Flush(done),
                    None => Woken::End,
                },
            };
            match woken {
                Woken::Time => {
                    if let Some(done) = self.deliver(batch, &mut flushes).await {
                        self.empty(&mut spans).await;
                        drop(done);
                    }
                }
                Woken::Flush(done) => {
                    self.once(batch).await;
                    self.empty(&mut spans).await;
                    drop(done);
                }
                Woken::End => {
                    self.once(batch).await;
                    return;
                }
            }
        }
    }

    /// Sends a batch, again after a while if it has to be. A flush ends the waiting: the batch has its last try then, and
    /// the flush is given back, since more may wait.
    async fn deliver(
        &mut self,
        batch: Vec<Queued>,
        flushes: &mut mpsc::Receiver<oneshot::Sender<()>>,
    ) -> Option<oneshot::Sender<()>> {
        let count = batch.len() as u64;
        let batch = Bytes::from(otlp::encode(&self.source, batch));
        let mut flush = None;
        for tries in 1.. {
            let rest = std::mem::take(&mut self.rest);
            if !rest.is_zero() && flush.is_none() {
                tokio::select! {
                    () = sleep(rest) => {}
                    done = flushes.recv() => flush = done,
                }
            }
            if self.send(batch.clone(), count).await {
                break;
            }
            if tries >= TRIES || flush.is_some() {
                self.unreachable.increment(count);
                break;
            }
        }
        flush
    }

    /// Sends what waits, a batch after the other, each once: the process ends, and a collector that is away must not
    /// hold it.
    async fn empty(&mut self, spans: &mut mpsc::Receiver<Queued>) {
        loop {
            let mut batch = Vec::new();
            while batch.len() < BATCH_SPANS
                && let Ok(span) = spans.try_recv()
            {
                batch.push(span);
            }
            if batch.is_empty() || !self.once(batch).await {
                break;
            }
        }
        let mut left = 0;
        while spans.try_recv().is_ok() {
            left += 1;
        }
        self.unreachable.increment(left);
    }

    /// Sends a batch once; `false` if the collector did not take it.
    async fn once(&mut self, batch: Vec<Queued>) -> bool {
        let count = batch.len() as u64;
        if count == 0 {
            return true;
        }
        let batch = Bytes::from(otlp::encode(&self.source, batch));
        let over = self.send(batch, count).await;
        if !over {
            self.unreachable.increment(count);
        }
        over
    }

    /// Sends a batch and counts what came of it; `false` if it may be sent again, after a rest.
    async fn send(&mut self, batch: Bytes, count: u64) -> bool {
        let sent = timeout(ANSWER, self.collector.send(batch)).await;
        let sent = sent.unwrap_or_else(|_| {
            self.collector.forget();
            let why = "it took too long".to_owned();
            Delivered::Later { why, after: None }
        });
        match sent {
            Delivered::Taken { rejected } => {
                self.exported.increment(count.saturating_sub(rejected));
                self.refused.increment(rejected.min(count));
                if self.failed > 0 {
                    tracing::info!("the collector takes spans again");
                }
                self.failed = 0;
                true
            }
            Delivered::Refused { why } => {
                self.refused.increment(count);
                self.complain(&why);
                true
            }
            Delivered::Later { why, after } => {
                self.complain(&why);
                let doubled = BACKOFF.saturating_mul(1 << self.failed.clamp(1, 6) >> 1);
                let wait = doubled.min(BACKOFF_MAX).max(after.unwrap_or_default());
                // As many sidecars as there are must not come back at once; and a collector may not silence us for long.
                self.rest = wait.min(BACKOFF_MAX).mul_f64(0.5 + fastrand::f64() / 2.0);
                false
            }
        }
    }

    /// Tells of the first failure, and then no more until it is over.
    fn complain(&mut self, why: &str) {
        if self.failed == 0 {
            tracing::warn!(why, "the collector does not take spans; they are dropped");
        }
        self.failed = self.failed.saturating_add(1);
    }
}

/// Fills a batch until it is full, or old enough, or somebody wants it sent.
async fn gather(
    spans: &mut mpsc::Receiver<Queued>,
    flushes: &mut mpsc::Receiver<oneshot::Sender<()>>,
    batch: &mut Vec<Queued>,
) -> Woken {
    let filled = async {
        while batch.len() < BATCH_SPANS {
            let room = BATCH_SPANS - batch.len();
            if spans.recv_many(batch, room).await == 0 {
                return;
            }
        }
    };
    tokio::select! {
        _ = timeout(BATCH_WAIT, filled) => Woken::Time,
        flush = flushes.recv() => match flush {
            Some(done) => Woken::Flush(done),
            None => Woken::End,
        },
    }
}
