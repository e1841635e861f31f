//! The log: lines of text or JSON on stderr, written by a thread of their own from a bounded queue.
//!
//! The queue loses lines rather than slow a call down; how many is a metric.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, fmt};

/// Lines that may wait to be written; beyond it the newest are dropped and counted.
const QUEUE_LINES: usize = 8_192;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Keeps the writer alive; dropping it writes what still waits.
pub struct Log {
    dropped: ErrorCounter,
    _writer: WorkerGuard,
}

impl Log {
    /// Installs the process's log. A second call in one process is ignored: the first log stays.
    pub fn install(format: Format, level: LevelFilter) -> Self {
        let (writer, guard) = NonBlockingBuilder::default()
            .buffered_lines_limit(QUEUE_LINES)
            .lossy(true)
            .thread_name("wayside-log")
            .finish(std::io::stderr());
        let dropped = writer.error_counter();
        let layer = match format {
            Format::Text => fmt::layer()
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(writer)
                .boxed(),
            Format::Json => fmt::layer()
                .json()
                .flatten_event(true)
                .with_writer(writer)
                .boxed(),
        };
        let subscriber = Registry::default().with(layer.with_filter(level));
        if tracing::subscriber::set_global_default(subscriber).is_err() {
            tracing::debug!("a log is installed already");
        }
        std::panic::set_hook(Box::new(|panic| {
            if crate::lifecycle::is_tolerated() {
                return;
            }
            // Through the bounded queue like everything else: somebody who can cause panics could flood stderr.
            let place = panic.location().map(ToString::to_string);
            let what = panic.payload_as_str().unwrap_or("no message");
            tracing::error!(
                place,
                what,
                "panic: this is a defect, caught where it can be"
            );
        }));
        Self {
            dropped,
            _writer: guard,
        }
    }

    /// Lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.dropped_lines() as u64
    }

    /// A handle that outlives nothing and only counts.
    pub fn counter(&self) -> ErrorCounter {
        self.dropped.clone()
    }
}
