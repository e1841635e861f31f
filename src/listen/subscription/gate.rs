//! Whether a subscription's messages go to the app at all: not while that is down, turns everybody away, or somebody has
//! paused it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::config::model::Backoff;

/// So many different keys that are refused one after another mean that it is not about the messages.
const REFUSALS: usize = 5;

/// Why no message goes to the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shut {
    /// It is not reached.
    Down,
    /// It answers 401 or 403 to messages of many keys.
    Unauthorized,
    /// Somebody asked for that.
    Paused,
}

impl Shut {
    /// The word in logs and answers.
    pub fn word(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Unauthorized => "unauthorized",
            Self::Paused => "paused",
        }
    }
}

/// See the file.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Notify,
    /// While the app is down, one message at a time finds out whether it still is.
    probe: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    paused: bool,
    shut: Option<(Shut, SystemTime)>,
    /// The keys that were refused, one after another.
    refused: Vec<Option<Bytes>>,
}

/// What an attempt tells of the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// It was not reached.
    NotReached,
    /// It answered 401 or 403, and that meant the end of the message.
    Refused,
    /// It was reached, and did not answer as it should.
    Reached,
    /// It answered.
    Answered,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            changed: Notify::new(),
            probe: Semaphore::new(1),
        }
    }

    /// Waits until a message may go. With a permit it is the one that finds out whether the app is back, and nobody else
    /// goes until that is dropped.
    pub(super) async fn pass(&self) -> Option<SemaphorePermit<'_>> {
        loop {
            // From here on no change is missed.
            let changed = self.changed.notified();
            match self.shut() {
                None => return None,
                Some(Shut::Paused) => changed.await,
                Some(_) => tokio::select! {
                    () = changed => {}
                    permit = self.probe.acquire() => {
                        if let Some(Shut::Down | Shut::Unauthorized) = self.shut() {
                            return permit.ok();
                        }
                    }
                },
            }
        }
    }

    /// Resolves when it is shut.
    pub(super) async fn shuts(&self) {
        loop {
            // From here on no change is missed.
            let changed = self.changed.notified();
            if self.shut().is_some() {
                return;
            }
            changed.await;
        }
    }

    /// Notes what an attempt told; what it changed, if it changed anything.
    pub(super) fn told(&self, sign: Sign, key: Option<&Bytes>) -> Option<Change> {
        let mut state = self.lock();
        let before = state.shut.map(|(why, _)| why);
        let after = match sign {
            Sign::NotReached => before.or(Some(Shut::Down)),
            Sign::Refused => {
                if !state.refused.iter().any(|known| known.as_ref() == key) {
                    state
                        .refused
                        .push(key.map(|key| Bytes::copy_from_slice(key)));
                }
                match state.refused.len() >= REFUSALS {
                    true => Some(Shut::Unauthorized),
                    false => before.filter(|why| *why == Shut::Unauthorized),
                }
            }
            Sign::Reached => before.filter(|why| *why == Shut::Unauthorized),
            Sign::Answered => {
                state.refused.clear();
                None
            }
        };
        if before == after {
            return None;
        }
        state.shut = after.map(|why| (why, SystemTime::now()));
        drop(state);
        self.changed.notify_waiters();
        Some(match (before, after) {
            (_, Some(why)) => Change::Shut(why),
            (Some(why), None) => Change::Opened(why),
            (None, None) => return None,
        })
    }

    /// Pauses or resumes; false if it was so before.
    pub(super) fn pause(&self, paused: bool) -> bool {
        let mut state = self.lock();
        let changed = std::mem::replace(&mut state.paused, paused) != paused;
        drop(state);
        self.changed.notify_waiters();
        changed
    }

    /// Why nothing goes.
    pub(super) fn shut(&self) -> Option<Shut> {
        let state = self.lock();
        match state.paused {
            true => Some(Shut::Paused),
            false => state.shut.map(|(why, _)| why),
        }
    }

    /// Since when the app is down or turns everybody away.
    pub(super) fn since(&self) -> Option<SystemTime> {
        self.lock().shut.map(|(_, since)| since)
    }

    /// How long a probe waits for the next.
    pub(super) fn rhythm(why: Option<Shut>) -> Backoff {
        let (first, longest) = match why {
            Some(Shut::Unauthorized) => (Duration::from_secs(1), Duration::from_secs(30)),
            _ => (Duration::from_millis(100), Duration::from_secs(5)),
        };
        Backoff { first, longest }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a sign changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Shut(Shut),
    /// It was shut for this reason.
    Opened(Shut),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_app_is_down_one_message_at_a_time_finds_out() {
        let gate = Gate::new();
        assert!(gate.pass().await.is_none());
        assert_eq!(
            gate.told(Sign::NotReached, None),
            Some(Change::Shut(Shut::Down))
        );
        assert_eq!(gate.told(Sign::NotReached, None), None);
        let probe = gate.pass().await.expect("the first one probes");
        let second = tokio::time::timeout(Duration::from_secs(9), gate.pass());
        assert!(second.await.is_err(), "the second one waits");
        let waits = async { gate.pass().await.is_none() };
        let answer = async { gate.told(Sign::Reached, None) };
        let (passed, change) = tokio::join!(waits, answer);
        assert_eq!((passed, change), (true, Some(Change::Opened(Shut::Down))));
        drop(probe);
    }

    #[test]
    fn refusals_of_many_keys_in_a_row_shut_it_and_those_of_one_key_do_not() {
        let gate = Gate::new();
        let one = key("one");
        assert!((0..20).all(|_| gate.told(Sign::Refused, Some(&one)).is_none()));
        let keys = ["two", "three", "four", "five"].map(key);
        let all = |gate: &Gate| {
            keys.iter()
                .filter_map(|key| gate.told(Sign::Refused, Some(key)))
                .last()
        };
        assert_eq!(all(&gate), Some(Change::Shut(Shut::Unauthorized)));
        assert_eq!(gate.told(Sign::Reached, None), None);
        assert_eq!(
            gate.told(Sign::Answered, None),
            Some(Change::Opened(Shut::Unauthorized))
        );
        assert_eq!(
            all(&gate),
            None,
            "an answer in between begins the count anew"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_holds_whatever_the_app_does() {
        let gate = Gate::new();
        assert!(gate.pause(true) && !gate.pause(true));
        gate.told(Sign::Answered, None);
        assert_eq!(gate.shut(), Some(Shut::Paused));
        assert!(
            tokio::time::timeout(Duration::from_secs(9), gate.pass())
                .await
                .is_err()
        );
        let (passed, resumed) = tokio::join!(gate.pass(), async { gate.pause(false) });
        assert!(passed.is_none() && resumed);
    }
}
