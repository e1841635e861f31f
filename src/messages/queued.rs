//! Keys whose calls were queued instead of forwarded: their later calls queue too, until the receiver's verdict on the
//! last of them, so that none overtakes another.
//!
//! In memory, and bounded. What is not known any more after a restart is forwarded at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use uuid::Uuid;

/// A lane: the messages of one key in one topic.
type Lane = (Arc<str>, Bytes);

/// See the file.
#[derive(Debug)]
pub struct Queued {
    table: Mutex<Table>,
    /// For a look without the lock, which every call takes.
    lanes: AtomicUsize,
    max: usize,
}

#[derive(Debug, Default)]
struct Table {
    lanes: HashMap<Lane, Vec<Open>>,
    messages: HashMap<Uuid, Lane>,
    /// Counts what happens, to tell what was before what.
    now: u64,
}

/// A message without a verdict that no later one stands for.
#[derive(Debug)]
struct Open {
    id: Uuid,
    begun: u64,
    /// Since when it is promised. A message that begins later lies behind it.
    promised: Option<u64>,
}

impl Open {
    /// Whether it lies before one that was begun then, so that the verdict on that one says all of this.
    fn lies_before(&self, begun: u64) -> bool {
        self.promised.is_some_and(|promised| promised < begun)
    }
}

/// A message that is being queued. Dropped without a word, it may be in the topic or not, and counts as if it were.
#[derive(Debug)]
pub struct Queueing {
    queued: Arc<Queued>,
    id: Uuid,
}

impl Queued {
    /// Keeps up to `max` messages.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::default(),
            lanes: AtomicUsize::new(0),
            max,
        })
    }

    /// Keys that have a queued message.
    pub fn lanes(&self) -> usize {
        self.lanes.load(Ordering::Acquire)
    }

    /// Whether the next message of a key must queue too.
    pub fn holds(&self, topic: &Arc<str>, key: &Bytes) -> bool {
        let lane = (Arc::clone(topic), key.clone());
        self.lock().lanes.contains_key(&lane)
    }

    /// Notes that a message is about to be queued; `None` if there are too many already.
    pub fn begin(self: &Arc<Self>, topic: &Arc<str>, key: &Bytes, id: Uuid) -> Option<Queueing> {
        let mut table = self.lock();
        if table.messages.len() >= self.max {
            return None;
        }
        // A key is a part of its body's memory, which need not stay for it.
        let lane = (Arc::clone(topic), Bytes::copy_from_slice(key));
        table.now += 1;
        let open = Open {
            id,
            begun: table.now,
            promised: None,
        };
        table.messages.insert(id, lane.clone());
        table.lanes.entry(lane).or_default().push(open);
        self.count(&table);
        drop(table);
        Some(Queueing {
            queued: Arc::clone(self),
            id,
        })
    }

    /// Notes the receiver's final verdict on a message.
    pub fn ended(&self, id: Uuid) {
        if self.lanes() > 0 {
            self.close(id, true);
        }
    }

    /// Forgets a message and, with a verdict, those that lie before it.
    fn close(&self, id: Uuid, verdict: bool) {
        let mut table = self.lock();
        let begun = table.open(id).map(|one| one.begun).filter(|_| verdict);
        table.forget(id, |one| {
            one.id == id || begun.is_some_and(|begun| one.lies_before(begun))
        });
        self.count(&table);
    }

    /// Notes that a message is where it should be. It then stands for those that lie before it.
    fn promised(&self, id: Uuid) {
        let mut table = self.lock();
        table.now += 1;
        let now = table.now;
        // If there is none, its verdict was faster.
        if let Some(one) = table.open(id) {
            one.promised = Some(now);
            let begun = one.begun;
            table.forget(id, |one| one.lies_before(begun));
        }
    }

    fn count(&self, table: &Table) {
        self.lanes.store(table.lanes.len(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn open(&mut self, id: Uuid) -> Option<&mut Open> {
        let lane = self.messages.get(&id)?;
        self.lanes
            .get_mut(lane)?
            .iter_mut()
            .find(|one| one.id == id)
    }

    /// Forgets some messages of the lane of one.
    fn forget(&mut self, id: Uuid, some: impl Fn(&Open) -> bool) {
        let Some(lane) = self.messages.get(&id).cloned() else {
            return;
        };
        let Some(open) = self.lanes.get_mut(&lane) else {
            return;
        };
        for gone in open.extract_if(.., |one| some(one)) {
            self.messages.remove(&gone.id);
        }
        if open.is_empty() {
            self.lanes.remove(&lane);
        }
    }
}

impl Queueing {
    /// The message was not taken, for certain.
    pub fn refused(self) {
        self.queued.close(self.id, false);
    }
}

impl Drop for Queueing {
    fn drop(&mut self) {
        self.queued.promised(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Bytes = Bytes::from_static(b"key");

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn topic() -> Arc<str> {
        "charges".into()
    }

    fn queue(queued: &Arc<Queued>, number: u128) -> Queueing {
        queued
            .begin(&topic(), &KEY, id(number))
            .expect("there is room")
    }

    #[test]
    fn a_key_is_held_until_the_verdict_on_its_last_message() {
        let queued = Queued::new(10);
        assert!(!queued.holds(&topic(), &KEY));
        for number in 1..=3 {
            drop(queue(&queued, number));
        }
        queued.ended(id(1));
        assert!(queued.holds(&topic(), &KEY));
        queued.ended(id(3));
        assert!(
            !queued.holds(&topic(), &KEY),
            "what lies before the last has ended too"
        );
        assert_eq!((queued.lanes(), queued.lock().messages.len()), (0, 0));
    }

    #[test]
    fn of_messages_that_were_queued_at_the_same_time_each_has_its_own_verdict() {
        let queued = Queued::new(10);
        let (one, two) = (queue(&queued, 1), queue(&queued, 2));
        drop((two, one));
        queued.ended(id(2));
        assert!(
            queued.holds(&topic(), &KEY),
            "the first may lie behind the second"
        );
        queued.ended(id(1));
        assert!(!queued.holds(&topic(), &KEY));
    }

    #[test]
    fn a_verdict_may_be_faster_than_the_promise_and_a_refusal_holds_nothing() {
        let queued = Queued::new(10);
        let one = queue(&queued, 1);
        queued.ended(id(1));
        assert!(!queued.holds(&topic(), &KEY));
        drop(one);
        assert!(!queued.holds(&topic(), &KEY));
        let refused = queue(&queued, 2);
        assert!(queued.holds(&topic(), &KEY));
        refused.refused();
        assert!(!queued.holds(&topic(), &KEY));
    }

    #[test]
    fn a_refusal_leaves_what_was_queued_before() {
        let queued = Queued::new(10);
        drop(queue(&queued, 1));
        queue(&queued, 2).refused();
        assert!(queued.holds(&topic(), &KEY));
        queued.ended(id(1));
        assert!(!queued.holds(&topic(), &KEY));
    }

    #[test]
    fn no_more_than_the_limit_is_kept_and_a_full_one_still_empties() {
        let queued = Queued::new(2);
        let keys: Vec<Bytes> = (0..3).map(|key: u8| vec![key].into()).collect();
        let begun: Vec<_> = (0_u8..)
            .zip(&keys)
            .map(|(number, key)| queued.begin(&topic(), key, id(number.into())))
            .collect();
        let taken: Vec<_> = begun.iter().map(Option::is_some).collect();
        assert_eq!((taken, queued.lanes()), (vec![true, true, false], 2));
        drop(begun);
        (0..2).for_each(|number| queued.ended(id(number)));
        assert_eq!((queued.lanes(), queued.lock().messages.len()), (0, 0));
    }
}
