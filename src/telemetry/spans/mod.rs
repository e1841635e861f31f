//! Spans: what was done when for which trace, for a collector of OpenTelemetry.
//!
//! A part that may record holds an `Option` of [`Spans`]; without `telemetry` that is all there is of it. What is
//! recorded goes into a bounded queue and from there to the collector by a task of its own; a full queue loses spans
//! rather than time, and counts them.

mod collector;
mod conventions;
mod export;
mod otlp;
mod span;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use metrics::Counter;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

pub use conventions::{Processed, Served};
pub use export::Source;
pub use span::{Kind, Value};

use export::Export;
use span::{Link, Queued, Span};

use super::metrics::Metrics;
use super::names;
use super::trace::Trace;
use crate::config::model::{Share, Telemetry};

/// Spans that wait for the collector, at most some 4 MiB; beyond it the newest are dropped and counted.
const QUEUE_SPANS: usize = 4_096;

/// What records spans, one a process.
#[derive(Debug)]
pub struct Spans {
    /// Traces begun here are recorded if half of the last 8 bytes of their id is below it.
    bound: u64,
    queue: mpsc::Sender<Queued>,
    flush: mpsc::Sender<oneshot::Sender<()>>,
    dropped: Counter,
}

impl Spans {
    /// Starts recording, and on the current runtime the task that exports.
    pub fn start(config: &Telemetry, source: Source, metrics: &Metrics) -> Arc<Self> {
        let (queue, spans) = mpsc::channel(QUEUE_SPANS);
        let (flush, flushes) = mpsc::channel(1);
        Export::new(&config.otlp, source, metrics).start(spans, flushes);
        Arc::new(Self {
            bound: bound(config.sample),
            queue,
            flush,
            dropped: metrics.counter(&names::SPANS_DROPPED, &[("reason", "queue-full")]),
        })
    }

    /// Begins the span of what came with `trace`: the child of a span elsewhere if the trace was given, the first of its
    /// trace if it was made here. `None` if the trace is not recorded: a given one says whether it is, of the others
    /// `sample` are, chosen by their id.
    pub fn enter(self: &Arc<Self>, (trace, given): (&Trace, bool), kind: Kind) -> Option<Open> {
        if !self.records((trace, given)) {
            return None;
        }
        let mut open = self.within(trace, kind);
        if let Some(span) = &mut open.span {
            span.remote = given;
            if !given {
                span.parent = None;
            }
        }
        Some(open)
    }

    /// Begins a span within one of ours: its parent is what `trace` names.
    pub fn within(self: &Arc<Self>, trace: &Trace, kind: Kind) -> Open {
        let context = trace.recorded(fastrand::u64(1..).to_be_bytes());
        let span = Span::new(context, trace.span_id(), kind, Arc::clone(self));
        Open {
            span: Some(Box::new(span)),
        }
    }

    /// Whether a trace is recorded.
    fn records(&self, (trace, given): (&Trace, bool)) -> bool {
        match given {
            true => trace.is_sampled(),
            // By the part of the id that is random in every system (Level 2, section 3.2.2.3), so that all of them choose
            // the same.
            false => {
                let [.., a, b, c, d, e, f, g, h] = trace.trace_id();
                u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1 < self.bound
            }
        }
    }

    /// Sends what waits and returns when that is over, well or badly, or `deadline` has passed.
    pub async fn flush(&self, deadline: Instant) {
        let (done, over) = oneshot::channel();
        let flushed = async {
            if self.flush.send(done).await.is_ok() {
                // An error means that the task has ended: there is nobody to wait for.
                drop(over.await);
            }
        };
        drop(timeout_at(deadline, flushed).await);
    }
}

/// Below which number half of the last 8 bytes of an id lies for a share of all ids.
fn bound(share: Share) -> u64 {
    (share.percent() / 100.0 * (1_u64 << 63) as f64) as u64
}

/// A span that is not over. Dropped before it was ended, it says that the work was broken off: its caller left, or it
/// was taken away.
#[derive(Debug)]
pub struct Open {
    /// One pointer, for a call's future holds it; `None` once it is over.
    span: Option<Box<Span>>,
}

impl Open {
    /// Its own context, for whatever comes next: headers, and spans within it.
    pub fn trace(&self) -> Option<&Trace> {
        self.span.as_ref().map(|span| &span.context)
    }

    /// Where it is recorded.
    pub fn spans(&self) -> Option<&Arc<Spans>> {
        self.span.as_ref()?.recorder.as_ref()
    }

    /// Names it.
    fn name(&mut self, name: impl Into<Cow<'static, str>>) {
        if let Some(span) = &mut self.span {
            span.name = name.into();
        }
    }

    /// Adds what is known of it.
    fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.span {
            span.attributes.push((key, value.into()));
        }
    }

    /// Adds what is known of it, if it is.
    fn set_if(&mut self, key: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    /// Keeps what vendors say of its trace.
    fn state(&mut self, state: Option<String>) {
        if let Some(span) = &mut self.span {
            span.state = state;
        }
    }

    /// Makes it the cause's consequence without being its child.
    fn link(&mut self, trace: &Trace, state: Option<&str>) {
        if let Some(span) = &mut self.span {
            span.link = Some(Link {
                context: trace.clone(),
                state: state.map(str::to_owned),
            });
        }
    }

    /// Says that it failed, by a word.
    fn fail(&mut self, word: impl Into<Cow<'static, str>>) {
        let word = word.into();
        if let Some(span) = &mut self.span {
            span.attributes
                .push((conventions::ERROR_TYPE, Value::Text(word.clone())));
            span.failed = Some(word);
        }
    }

    /// Ends it now.
    fn end(mut self) {
        self.keep();
    }

    fn keep(&mut self) {
        if let Some(mut span) = self.span.take() {
            span.end = SystemTime::now();
            // What waits in a queue must not hold the queue.
            if let Some(spans) = span.recorder.take()
                && spans.queue.try_send(span).is_err()
            {
                spans.dropped.increment(1);
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.span.is_some() {
            self.fail("abandoned");
            self.keep();
        }
    }
}

#[cfg(test)]
mod tests;
