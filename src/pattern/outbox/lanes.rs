//! All topics on their way, and how they share what may be out.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use tokio::time::Instant;

use super::lane::Lane;
use crate::spool::Place;

/// The topics.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    pub(super) list: Vec<Lane>,
    /// Where a topic's lane is, by its index in the spool.
    at: Vec<Option<usize>>,
    pub(super) by_name: HashMap<Arc<str>, usize>,
    /// Bytes that are out, over all of them.
    pub(super) used: usize,
    /// Rises when the client is made anew, so that answers of the old one are known.
    pub(super) generation: u16,
}

/// What the reading thread does next for a topic.
pub(super) enum Task {
    /// Tries a message again that was put aside.
    Aside(u64),
    /// Reads and sends these.
    Read(Range<u64>),
}

impl Lanes {
    pub(super) fn add(&mut self, lane: Lane) -> usize {
        let (at, topic) = (self.list.len(), usize::from(lane.topic));
        self.by_name.insert(Arc::clone(&lane.name), at);
        self.at.resize(self.at.len().max(topic + 1), None);
        if let Some(place) = self.at.get_mut(topic) {
            *place = Some(at);
        }
        self.list.push(lane);
        at
    }

    pub(super) fn find(&self, topic: u16) -> Option<usize> {
        self.at.get(usize::from(topic)).copied().flatten()
    }

    /// Bytes of room that a lane may still take: never more than what is left over, so that no topic takes all of it.
    pub(super) fn room(&self, most: usize, lane: usize) -> usize {
        let own = self.list.get(lane).map_or(0, Lane::bytes);
        most.saturating_sub(self.used).saturating_sub(own)
    }

    /// What is to be done, topic by topic, beginning with the one whose turn it is.
    pub(super) fn task(&mut self, turn: usize, most: usize) -> Option<(usize, Task)> {
        let (now, count) = (Instant::now(), self.list.len());
        (0..count)
            .map(|step| (turn + step) % count)
            .find_map(|index| {
                let room = self.room(most, index);
                let lane = self.list.get_mut(index)?;
                if let Some(seq) = lane.aside(now) {
                    return Some((index, Task::Aside(seq)));
                }
                let wanted = lane.wants(now)?;
                (room > 0 || lane.bytes() == 0).then_some((index, Task::Read(wanted)))
            })
    }

    /// Does something to a lane, and keeps the sum.
    pub(super) fn change<R>(
        &mut self,
        lane: usize,
        change: impl FnOnce(&mut Lane) -> R,
    ) -> Option<R> {
        let lane = self.list.get_mut(lane)?;
        let before = lane.bytes();
        let result = change(lane);
        self.used = self.used + lane.bytes() - before;
        Some(result)
    }

    pub(super) fn tag(&self, place: Place) -> u64 {
        let generation = u64::from(self.generation & 0x7fff);
        generation << 48 | u64::from(place.topic) << 32 | (place.seq & 0xffff_ffff)
    }
}
