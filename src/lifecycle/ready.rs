//! Whether the sidecar may get traffic, and why not.

use std::sync::atomic::{AtomicU8, Ordering};

/// Readiness. A broker's outage is no reason: synchronous routes do not need it.
#[derive(Debug, Default)]
pub struct Ready(AtomicU8);

/// Why the sidecar is not ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Doors are bound, parts are being built.
    Starting,
    /// `wayside drain` or SIGTERM.
    Draining,
}

impl Ready {
    /// Everything is built.
    pub fn started(&self) {
        // A drain that began while we started stays one.
        let _was = self
            .0
            .compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire);
    }

    /// No new work, for good.
    pub fn draining(&self) {
        self.0.store(2, Ordering::Release);
    }

    /// `Ok` when ready.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), Reason> {
        match self.0.load(Ordering::Acquire) {
            0 => Err(Reason::Starting),
            1 => Ok(()),
            _ => Err(Reason::Draining),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_is_not_undone_by_a_late_start() {
        let ready = Ready::default();
        assert_eq!(ready.check(), Err(Reason::Starting));
        ready.draining();
        ready.started();
        assert_eq!(ready.check(), Err(Reason::Draining));
    }
}
