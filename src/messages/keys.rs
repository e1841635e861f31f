//! The idempotency keys that were used: the same key with the same call is the same message.
//!
//! Bounded by number and by age, like the timelines; what is forgotten is a new message. They are this process's own,
//! and with a spool also those of its earlier runs. Another replica does not know them: its message has the same id, and
//! whoever reads the topic can tell.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::config::model::Messages;

/// SHA-256 of a body.
pub type Proof = [u8; 32];

/// What was promised for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promised {
    /// The spool has it.
    Spooled,
    /// The broker has it, at this partition and offset.
    Replicated(i32, i64),
}

/// What a key was used for before.
#[derive(Debug)]
pub enum Begun {
    /// Nothing: the call goes on, and the key is free again unless it is kept.
    New(Using),
    /// The same body, which was accepted.
    Same(Promised),
    /// The same body, whose call has no answer yet.
    InProgress,
    /// Another body.
    Other,
}

/// The keys.
#[derive(Debug)]
pub struct Keys {
    table: Mutex<Table>,
    max: usize,
    keep: Duration,
}

#[derive(Debug, Default)]
struct Table {
    used: HashMap<Uuid, Used>,
    /// In the order in which they were used.
    order: VecDeque<(Uuid, SystemTime)>,
}

#[derive(Debug)]
struct Used {
    proof: Proof,
    state: State,
    at: SystemTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    InProgress,
    /// The call has failed, and its message may be there all the same: it may be repeated, and nothing else.
    Doubt,
    Promised(Promised),
}

/// A key whose call is under way.
#[derive(Debug)]
pub struct Using {
    keys: Arc<Keys>,
    id: Uuid,
    /// Tells its use from a later one of the same key.
    at: SystemTime,
    /// The message of an earlier call may be there.
    before: bool,
    doubt: bool,
    kept: bool,
}

impl Keys {
    /// Keys of as many messages, for as long, as timelines are kept.
    pub fn new(rule: Messages) -> Self {
        Self {
            table: Mutex::default(),
            max: rule.max,
            keep: rule.keep,
        }
    }

    /// The id of a key's message: a UUIDv8 (RFC 9562 section 5.8) from SHA-256 of the service, the route and the key.
    pub fn id(service: &str, route: &str, key: &[u8]) -> Uuid {
        let mut hash = Sha256::new();
        // Zero bytes cannot be in a name, so no two triples give the same text.
        hash.update(service.as_bytes());
        hash.update([0]);
        hash.update(route.as_bytes());
        hash.update([0]);
        hash.update(key);
        let digest: [u8; 32] = hash.finalize().into();
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        Uuid::new_v8(first)
    }

    /// Begins a call with a key.
    pub fn begin(self: &Arc<Self>, id: Uuid, proof: Proof) -> Begun {
        self.begin_at(id, proof, SystemTime::now())
    }

    fn begin_at(self: &Arc<Self>, id: Uuid, proof: Proof, now: SystemTime) -> Begun {
        let mut table = self.lock();
        table.forget(self.max.saturating_sub(1), now.checked_sub(self.keep));
        match table.used.get(&id) {
            Some(used) if used.proof != proof => Begun::Other,
            Some(Used {
                state: State::Promised(promised),
                ..
            }) => Begun::Same(*promised),
            Some(Used {
                state: State::InProgress,
                ..
            }) => Begun::InProgress,
            used => {
                let before = used.is_some();
                table.put(id, proof, State::InProgress, now);
                Begun::New(Using {
                    keys: Arc::clone(self),
                    id,
                    at: now,
                    before,
                    doubt: false,
                    kept: false,
                })
            }
        }
    }

    /// Whether a key was used, and is remembered.
    pub fn knows(&self, id: Uuid) -> bool {
        let mut table = self.lock();
        table.forget(self.max, SystemTime::now().checked_sub(self.keep));
        table.used.contains_key(&id)
    }

    /// Puts back what an earlier run accepted.
    pub fn restore(&self, id: Uuid, proof: Proof, promised: Promised, at: SystemTime) {
        let mut table = self.lock();
        if table.used.len() < self.max {
            table.put(id, proof, State::Promised(promised), at);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn put(&mut self, id: Uuid, proof: Proof, state: State, at: SystemTime) {
        let used = Used { proof, state, at };
        self.used.insert(id, used);
        self.order.push_back((id, at));
    }

    /// The use of a key that began at that time.
    fn own(&mut self, id: Uuid, at: SystemTime) -> Option<&mut Used> {
        self.used.get_mut(&id).filter(|used| used.at == at)
    }

    /// Keeps the newest `max`, and of them those that are not older than `oldest`.
    fn forget(&mut self, max: usize, oldest: Option<SystemTime>) {
        // Keys that were given back stand in the order still; they must not push out others.
        if self.order.len() > 2 * max + 64 {
            let used = &self.used;
            self.order
                .retain(|(id, at)| used.get(id).is_some_and(|used| used.at == *at));
        }
        while let Some((id, at)) = self.order.front() {
            let old = oldest.is_some_and(|oldest| *at < oldest);
            if !old && self.used.len() <= max {
                return;
            }
            // A key that was given back and used again stands here twice.
            if self.used.get(id).is_some_and(|used| used.at == *at) {
                self.used.remove(id);
            }
            self.order.pop_front();
        }
    }
}

impl Using {
    /// The call was accepted: from now on the key stands for its message.
    pub fn keep(mut self, promised: Promised) {
        self.kept = true;
        let mut table = self.keys.lock();
        if let Some(used) = table.own(self.id, self.at) {
            used.state = State::Promised(promised);
        }
    }

    /// Says whether the message may be there although nobody promises it.
    pub fn doubt(&mut self, doubt: bool) {
        self.doubt = doubt;
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let mut table = self.keys.lock();
        let Some(used) = table.own(self.id, self.at) else {
            return;
        };
        match (used.state, self.doubt || self.before) {
            (State::InProgress, true) => used.state = State::Doubt,
            (State::InProgress, false) => {
                table.used.remove(&self.id);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROOF: Proof = [7; 32];

    fn keys(max: usize) -> Arc<Keys> {
        Arc::new(Keys::new(Messages {
            max,
            keep: Duration::from_secs(60),
        }))
    }

    fn id(number: u8) -> Uuid {
        Keys::id("orders", "create", &[number])
    }

    #[test]
    fn a_key_is_one_message_of_one_route_of_one_service() {
        assert_eq!(id(1), id(1));
        assert_eq!(id(1).get_version_num(), 8);
        let others = [
            id(2),
            Keys::id("orders", "creat", b"e\x01"),
            Keys::id("order", "screate", &[1]),
        ];
        assert!(others.iter().all(|other| *other != id(1)));
    }

    #[test]
    fn the_same_key_and_body_are_the_same_message_and_another_body_is_refused() {
        let keys = keys(10);
        let Begun::New(first) = keys.begin(id(1), PROOF) else {
            panic!("a new key");
        };
        assert!(matches!(keys.begin(id(1), PROOF), Begun::InProgress));
        assert!(matches!(keys.begin(id(1), [8; 32]), Begun::Other));
        first.keep(Promised::Replicated(3, 42));
        let Begun::Same(promised) = keys.begin(id(1), PROOF) else {
            panic!("the same");
        };
        assert_eq!(promised, Promised::Replicated(3, 42));
        assert!(matches!(keys.begin(id(1), [8; 32]), Begun::Other));
    }

    #[test]
    fn a_call_that_failed_gives_its_key_back() {
        let keys = keys(10);
        drop(keys.begin(id(1), PROOF));
        assert!(matches!(keys.begin(id(1), [8; 32]), Begun::New(_)));
    }

    #[test]
    fn a_call_whose_message_may_be_there_can_be_repeated_and_not_changed() {
        let keys = keys(10);
        let Begun::New(mut first) = keys.begin(id(1), PROOF) else {
            panic!("a new key");
        };
        first.doubt(true);
        drop(first);
        assert!(matches!(keys.begin(id(1), [8; 32]), Begun::Other));
        // The repeated call fails for sure; what the first left is in doubt still.
        let Begun::New(again) = keys.begin(id(1), PROOF) else {
            panic!("it can be repeated");
        };
        drop(again);
        assert!(matches!(keys.begin(id(1), [8; 32]), Begun::Other));
    }

    #[test]
    fn keys_that_were_given_back_push_out_no_other() {
        let keys = keys(3);
        let Begun::New(kept) = keys.begin(id(0), PROOF) else {
            panic!("a new key");
        };
        kept.keep(Promised::Spooled);
        for number in 1..=200 {
            drop(keys.begin(id(number), PROOF));
        }
        assert!(matches!(keys.begin(id(0), PROOF), Begun::Same(_)));
        assert!(keys.lock().order.len() < 200);
    }

    #[test]
    fn keys_are_forgotten_by_number_and_by_age() {
        let keys = keys(3);
        let now = SystemTime::now();
        let used = |number: u8, now| match keys.begin_at(id(number), PROOF, now) {
            Begun::New(using) => using.keep(Promised::Spooled),
            other => panic!("{other:?}"),
        };
        (1..=5).for_each(|number| used(number, now));
        assert!(keys.lock().used.len() <= 3);
        assert!(matches!(keys.begin_at(id(5), PROOF, now), Begun::Same(_)));
        used(1, now);
        let later = now + Duration::from_secs(61);
        used(5, later);
        assert_eq!(keys.lock().used.len(), 1);
    }

    #[test]
    fn an_earlier_run_s_key_is_known() {
        let keys = keys(3);
        keys.restore(id(1), PROOF, Promised::Spooled, SystemTime::now());
        assert!(matches!(
            keys.begin(id(1), PROOF),
            Begun::Same(Promised::Spooled)
        ));
    }
}
