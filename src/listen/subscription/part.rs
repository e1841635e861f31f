//! One assigned partition, as its deliveries share it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::task::JoinError;
use tokio::time::{Duration, sleep};

use super::lanes::Lanes;
use super::message::Ending;
use crate::config::model::Ordering;
use crate::kafka::intake::{Assigned, Intake, Received};

/// How long a claim is still waited for when its partition is taken away.
const GRACE: Duration = Duration::from_secs(1);

/// See the file.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) partition: i32,
    pub(super) assigned: Assigned,
    lanes: Mutex<Lanes>,
    parked: Notify,
    /// The message that the window has no room to wait for.
    give_up: watch::Sender<Option<i64>>,
    /// The first message that does not begin any more; [`i64::MAX`] for as long as the partition is ours.
    border: watch::Sender<i64>,
}

impl Part {
    pub(super) fn new(intake: &Intake, ordering: Ordering) -> Self {
        Self {
            partition: intake.partition,
            assigned: intake.assigned(),
            lanes: Mutex::new(Lanes::new(ordering)),
            parked: Notify::new(),
            give_up: watch::Sender::new(None),
            border: watch::Sender::new(i64::MAX),
        }
    }

    /// Its lanes. Held for a few steps at most.
    pub(super) fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a message waits for its next attempt, and why; or that it is tried again.
    pub(super) fn park(&self, offset: i64, attempts: u32, why: Option<String>) {
        let parks = why.is_some();
        self.lanes().park(offset, attempts, why);
        if parks {
            self.parked.notify_one();
        }
    }

    /// Resolves when a message has begun to wait since this was asked last.
    pub(super) async fn parks(&self) {
        self.parked.notified().await;
    }

    /// Notes how a message ended, and gives the next of its lane.
    pub(super) fn ended(&self, ended: Result<(i64, Ending), JoinError>) -> Option<Arc<Received>> {
        // A task catches its own panics, and none is cancelled.
        let (offset, ending) = ended.ok()?;
        if ending == Ending::Interrupted {
            return None;
        }
        self.assigned.done(offset);
        self.lanes().ended(offset)
    }

    /// Lets nothing begin any more that lies behind every message that was tried. What lies before one may: only then
    /// can that one be committed, and is not delivered again.
    pub(super) fn stop(&self) {
        self.ends_before(self.lanes().reached());
    }

    /// Lets nothing begin any more: the assignment is over.
    pub(super) fn end(&self) {
        self.ends_before(i64::MIN);
    }

    /// Notes that a message does not end here. Nothing after it can be committed, so nothing after it begins.
    pub(super) fn interrupted(&self, offset: i64) {
        self.ends_before(offset);
    }

    /// Whether a message may begin.
    pub(super) fn may_begin(&self, offset: i64) -> bool {
        offset < *self.border.borrow()
    }

    /// Resolves when the partition was taken away and whoever holds a claim has had its time.
    pub(super) async fn lets_go(&self) {
        self.assigned.revoked().await;
        sleep(GRACE).await;
    }

    /// Resolves when a message may not begin any more.
    pub(super) async fn stops(&self, offset: i64) {
        let mut border = self.border.subscribe();
        // It cannot fail while this partition is there.
        drop(border.wait_for(|border| *border <= offset).await);
    }

    fn ends_before(&self, offset: i64) {
        self.border.send_if_modified(|border| {
            let sooner = offset < *border;
            *border = offset.min(*border);
            sooner
        });
    }

    /// Tells a message that waits for its next attempt that there is no room to.
    pub(super) fn give_up(&self, offset: i64) {
        self.give_up.send_if_modified(|known| {
            let new = *known != Some(offset);
            *known = Some(offset);
            new
        });
    }

    /// Resolves when a message is told so.
    pub(super) async fn given_up(&self, offset: i64) {
        let mut told = self.give_up.subscribe();
        // An error means that this partition is gone, and then its messages are told by that.
        drop(told.wait_for(|told| *told == Some(offset)).await);
    }
}
