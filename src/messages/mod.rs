//! The timeline of each message: what happened to it and when, for whoever asks at its `Location`.
//!
//! In memory and bounded: a message has one slot of fixed size, slots lie in rings, and the oldest is overwritten.
//! Recording takes one short lock on one of several shards and writes a few bytes; JSON is made only when someone asks.
//! Nothing here outlives the process; what receivers told of a message is read again from the reply topic.

mod answer;
mod event;
mod follow;
pub mod id;
pub mod keys;
mod names;
pub mod queued;
pub mod receipt;
mod results;
mod slot;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hashbrown::HashTable;
use uuid::Uuid;

pub use answer::{Answer, BODY_MAX};
pub use event::{Event, Status, What};
pub use follow::{Changed, FOLLOWERS_MAX, Follow};
pub use names::Origin;
pub use results::{Outcome, Page, Results, Tip};
pub use slot::Timeline;

use follow::Followers;
use id::Ids;
use names::Names;
use slot::Slot;

use crate::config::model::Messages;

/// Shards of a store for many messages, so that worker threads seldom meet at one lock.
const SHARDS: usize = 16;
/// With fewer messages than this for each shard there is one shard: the oldest of all then goes first, to the letter.
const SHARD_MIN: usize = 64;

/// The timelines that are kept.
#[derive(Debug)]
pub struct Timelines {
    shards: Box<[Mutex<Shard>]>,
    keep: Duration,
    names: Names,
    followers: Arc<Followers>,
}

/// Which messages somebody looks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Published by this route.
    pub route: Option<String>,
    /// Come as far as this, and no further yet.
    pub status: Option<Status>,
}

impl Wanted {
    /// Whether a message is one of these.
    pub fn takes(&self, timeline: &Timeline) -> bool {
        let route = self.route.as_deref();
        route.is_none_or(|route| timeline.route.as_deref() == Some(route))
            && self.status.is_none_or(|status| timeline.status == status)
    }
}

/// What is known of an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// Its timeline.
    Known(Timeline),
    /// It is from before what is kept: it was overwritten, is too old, or from before this process.
    Gone,
    /// No message has it.
    Unknown,
}

impl Timelines {
    /// Keeps up to `max` timelines for `keep` after their last event. Memory is taken as they come: up to about
    /// 170 bytes each.
    pub fn new(config: Messages) -> Self {
        Self::started_at(config, SystemTime::now())
    }

    fn started_at(config: Messages, now: SystemTime) -> Self {
        let shards = if config.max < SHARDS * SHARD_MIN {
            1
        } else {
            SHARDS
        };
        let shard = || {
            Mutex::new(Shard {
                ring: Vec::new(),
                index: HashTable::new(),
                ids: Ids::default(),
                next: 0,
                max: config.max / shards,
                // What was made in this very millisecond is ours: no earlier process ended that fast.
                lost: millis(now).saturating_sub(1),
            })
        };
        Self {
            shards: (0..shards).map(|_| shard()).collect(),
            keep: config.keep,
            names: Names::default(),
            followers: Arc::default(),
        }
    }

    /// What a route or a subscription puts into the events of its messages, made once when it is built.
    pub fn origin(&self, route: Option<&str>, topic: &str) -> Origin {
        Origin {
            route: route.map(|route| self.names.add(route)).unwrap_or_default(),
            topic: self.names.add(topic),
        }
    }

    /// Adds an event to a message's timeline; the first event begins it. Of very many events the first and the last
    /// are kept.
    pub fn record(&self, id: Uuid, event: Event) {
        self.record_all(id, [event]);
    }

    /// Adds events that happened one after another.
    pub fn record_all(&self, id: Uuid, events: impl IntoIterator<Item = Event>) {
        let mut shard = self.shard(id);
        for event in events {
            shard.record(id, event);
        }
        drop(shard);
        self.followers.tell(id);
    }

    /// Follows the changes of every message from now on; `None` if [`FOLLOWERS_MAX`] do, or the process stops.
    pub fn follow(&self) -> Option<Follow> {
        self.followers.join()
    }

    /// Ends the streams of all who follow.
    pub fn close(&self) {
        self.followers.close();
    }

    /// Adds what a receipt tells; false if it may not. One for a message that is not known here, from before a restart,
    /// begins its timeline if the message is not older than what is kept.
    pub fn record_receipt(&self, id: Uuid, event: Event) -> bool {
        self.record_receipt_at(id, event, SystemTime::now())
    }

    fn record_receipt_at(&self, id: Uuid, event: Event, now: SystemTime) -> bool {
        let now = millis(now);
        let kept = now.saturating_sub(self.keep.as_millis() as u64)..=now;
        let mut shard = self.shard(id);
        // An id of another version does not say when it was made, so the event's own time must do.
        let begun = made(id).unwrap_or_else(|| millis(event.at));
        let may = shard.find(id).is_some() || kept.contains(&begun);
        if may {
            shard.record(id, event);
        }
        drop(shard);
        if may {
            self.followers.tell(id);
        }
        may
    }

    /// What is known of a message.
    pub fn get(&self, id: Uuid) -> Lookup {
        self.get_at(id, SystemTime::now())
    }

    fn get_at(&self, id: Uuid, now: SystemTime) -> Lookup {
        let oldest = self.oldest(now);
        let shard = self.shard(id);
        match shard.find(id).and_then(|place| shard.ring.get(place)) {
            Some(slot) if slot.last() >= oldest => Lookup::Known(slot.timeline(&self.names)),
            Some(_) => Lookup::Gone,
            // An id says when it was made (RFC 9562 section 5.7), unless it is a digest of an idempotency key.
            None if made(id).is_some_and(|made| made < oldest || made <= shard.lost) => {
                Lookup::Gone
            }
            None => Lookup::Unknown,
        }
    }

    /// Of the timelines that are wanted those that were begun last, the newest first, at most `limit`.
    pub fn recent(&self, wanted: &Wanted, limit: usize) -> Vec<Timeline> {
        self.recent_at(wanted, limit, SystemTime::now())
    }

    fn recent_at(&self, wanted: &Wanted, limit: usize, now: SystemTime) -> Vec<Timeline> {
        let oldest = self.oldest(now);
        let route = match wanted.route.as_deref().map(|route| self.names.find(route)) {
            // No route ever had that name.
            Some(None) => return Vec::new(),
            Some(Some(name)) => Some(name),
            None => None,
        };
        let takes = |slot: &&Slot| {
            slot.last() >= oldest
                && route.is_none_or(|route| slot.origin().route == route)
                && wanted.status.is_none_or(|status| slot.status() == status)
        };
        let mut slots: Vec<Slot> = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            slots.extend(shard.newest_first().filter(takes).take(limit).cloned());
        }
        slots.sort_by_key(|slot| std::cmp::Reverse(slot.first()));
        slots.truncate(limit);
        let slots = slots.iter();
        slots.map(|slot| slot.timeline(&self.names)).collect()
    }

    fn oldest(&self, now: SystemTime) -> u64 {
        millis(now).saturating_sub(self.keep.as_millis() as u64)
    }

    /// How many timelines are held.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).ring.len()).sum()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, id: Uuid) -> MutexGuard<'_, Shard> {
        // The last bytes of every version in use are random.
        let [.., last] = id.into_bytes();
        lock(&self.shards[usize::from(last) % self.shards.len()])
    }
}

#[derive(Debug)]
struct Shard {
    ring: Vec<Slot>,
    /// Places in the ring by the id that is there. The ids are not in here, so that it fits the processor's cache.
    index: HashTable<u32>,
    ids: Ids,
    /// Where the next message goes once the ring is full.
    next: usize,
    max: usize,
    /// When the newest of the overwritten timelines began, at first the process: milliseconds since 1970.
    lost: u64,
}

impl Shard {
    fn record(&mut self, id: Uuid, event: Event) {
        if self.max == 0 {
            return;
        }
        if let Some(slot) = self.find(id).and_then(|place| self.ring.get_mut(place)) {
            slot.push(event);
            return;
        }
        let slot = Slot::new(id, event);
        let full = self.ring.len() == self.max;
        let place = if full { self.next } else { self.ring.len() };
        if full {
            self.forget(place);
            self.ring[place] = slot;
            self.next = (place + 1) % self.max;
        } else {
            self.ring.push(slot);
        }
        let hash_at = |place: &u32| self.ids.hash(self.ring[*place as usize].id());
        self.index
            .insert_unique(self.ids.hash(id), place as u32, hash_at);
    }

    /// Where an id is in the ring.
    fn find(&self, id: Uuid) -> Option<usize> {
        let here = |place: &u32| self.ring[*place as usize].id() == id;
        let found = self.index.find(self.ids.hash(id), here);
        found.map(|place| *place as usize)
    }

    /// Takes what is at a place of the ring out of the index: it is overwritten next.
    fn forget(&mut self, place: usize) {
        let old = &self.ring[place];
        self.lost = self.lost.max(old.first());
        let hash = self.ids.hash(old.id());
        let here = |at: &u32| *at as usize == place;
        if let Ok(entry) = self.index.find_entry(hash, here) {
            entry.remove();
        }
    }

    fn newest_first(&self) -> impl Iterator<Item = &Slot> {
        let (newer, older) = self.ring.split_at(self.next.min(self.ring.len()));
        newer.iter().rev().chain(older.iter().rev())
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // A shard is whole after each statement that changes it, so a panic elsewhere does not spoil it.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When an id was made, in milliseconds since 1970, if it says so.
fn made(id: Uuid) -> Option<u64> {
    let (seconds, nanos) = id
        .get_timestamp()
        .filter(|_| id.get_version_num() == 7)?
        .to_unix();
    Some(seconds * 1000 + u64::from(nanos) / 1_000_000)
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64
}

#[cfg(test)]
mod tests;
