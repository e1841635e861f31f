//! What the person in front of the terminal reads meanwhile.

use std::io::Write;

use tokio::time::Instant;

/// Writes to stderr, each line with the seconds since the start.
pub(super) struct Progress {
    start: Instant,
}

impl Progress {
    /// Starts counting.
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Writes one line.
    pub(super) fn say(&self, text: &str) {
        // Where nobody reads it, the demo still runs.
        writeln!(std::io::stderr(), "[{:5.1} s] {text}", self.seconds()).ok();
    }

    /// Seconds since the start.
    pub(super) fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}
