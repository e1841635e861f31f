//! A caller and its message: how far the message has come, and who is to be told.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use super::log::{Lsn, Refused};
use crate::error::Kind;
use crate::lifecycle::Wake;

/// How far a message has come.
#[derive(Debug)]
enum Stage {
    /// On its way to the log.
    Waiting,
    /// In the log, not durable.
    Written(Lsn),
    /// Durable.
    Kept,
    /// The broker has it: partition and offset.
    Replicated(i32, i64),
    /// It is in no log.
    Refused(Refused),
    /// It is in the log, and is sent as long as the log is there; it may not be durable.
    Doubtful(Refused),
    /// The broker will not have it, and it was not promised: it is owed to nobody.
    Returned(Kind),
}

struct State {
    stage: Stage,
    wake: Option<Wake>,
}

struct Shared(Mutex<State>);

/// What a caller was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// The message survives this process and, as far as its folder does, this machine.
    Spooled,
    /// The broker has it, at this partition and offset.
    Replicated(i32, i64),
}

/// Why a caller was promised nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unkept {
    /// The spool could not take the message.
    Refused(Refused),
    /// The spool has the message and cannot promise it: it may be sent all the same.
    Doubtful(Refused),
    /// The broker will not have it.
    Returned(Kind),
}

/// What the writer and the sender hold of a message whose caller waits.
pub struct Caller(Arc<Shared>);

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.lock().stage.fmt(f)
    }
}

impl Clone for Caller {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// What the caller holds. Dropping it is no matter to the message.
pub struct Receipt(Arc<Shared>);

/// The two ends of one message.
pub fn pair() -> (Caller, Receipt) {
    let state = State {
        stage: Stage::Waiting,
        wake: None,
    };
    let shared = Arc::new(Shared(Mutex::new(state)));
    (Caller(Arc::clone(&shared)), Receipt(shared))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings it to a later stage, unless `from` says that it cannot come from where it is.
    fn advance(&self, to: Stage, from: fn(&Stage) -> bool) -> bool {
        let mut state = self.lock();
        if !from(&state.stage) {
            return false;
        }
        state.stage = to;
        let wake = state.wake.take();
        drop(state);
        if let Some(wake) = wake {
            wake.wake();
        }
        true
    }
}

impl Caller {
    /// It is in the log under this number. Nobody waits for that alone, so nobody is woken.
    pub(super) fn written(&self, lsn: Lsn) {
        let mut state = self.0.lock();
        if matches!(state.stage, Stage::Waiting) {
            state.stage = Stage::Written(lsn);
        }
    }

    /// Where it is in the log, if that is all that is known.
    pub(super) fn lsn(&self) -> Option<Lsn> {
        match self.0.lock().stage {
            Stage::Written(lsn) => Some(lsn),
            _ => None,
        }
    }

    /// It is durable.
    pub(super) fn kept(&self) {
        self.0.advance(Stage::Kept, Stage::is_open);
    }

    /// It is not in the log, or never will be for sure.
    pub(super) fn refused(&self, why: Refused) {
        let nowhere = |stage: &Stage| matches!(stage, Stage::Waiting);
        if !self.0.advance(Stage::Refused(why), nowhere) {
            self.0.advance(Stage::Doubtful(why), Stage::is_open);
        }
    }

    /// Its caller has gone, or was told before: nothing can be taken back any more.
    #[cfg(test)]
    pub(crate) fn promised(&self) {
        self.kept();
    }

    /// The broker has it.
    pub fn replicated(&self, partition: i32, offset: i64) {
        self.0
            .advance(Stage::Replicated(partition, offset), |stage| {
                stage.is_open() || matches!(stage, Stage::Kept | Stage::Doubtful(_))
            });
    }

    /// The broker will not have it. True if nothing was promised yet: the message is then owed to nobody.
    pub fn returned(&self, why: Kind) -> bool {
        self.0.advance(Stage::Returned(why), Stage::is_open)
    }
}

impl Stage {
    /// Whether the caller was told nothing.
    fn is_open(&self) -> bool {
        matches!(self, Stage::Waiting | Stage::Written(_))
    }
}

impl Receipt {
    /// Waits until the message is durable or the broker has it, whichever is first.
    ///
    /// # Errors
    /// Neither will be.
    pub async fn kept(&self) -> Result<Promise, Unkept> {
        poll_fn(|context| {
            let mut state = self.0.lock();
            let told = match &state.stage {
                Stage::Waiting | Stage::Written(_) => None,
                Stage::Kept => Some(Ok(Promise::Spooled)),
                Stage::Replicated(partition, offset) => {
                    Some(Ok(Promise::Replicated(*partition, *offset)))
                }
                Stage::Refused(why) => Some(Err(Unkept::Refused(*why))),
                Stage::Doubtful(why) => Some(Err(Unkept::Doubtful(*why))),
                Stage::Returned(why) => Some(Err(Unkept::Returned(*why))),
            };
            match told {
                Some(told) => Poll::Ready(told),
                None => {
                    match &mut state.wake {
                        Some(wake) => wake.renew(context),
                        None => state.wake = Some(Wake::of(context)),
                    }
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The writer's side of it, to ask for durability later.
    pub(super) fn caller(&self) -> Caller {
        Caller(Arc::clone(&self.0))
    }
}
