//! The topics of a spool: their numbers, and what of each is owed no longer.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::frame::{Place, TopicState};
use super::ranges::Ranges;

/// Ranges of acknowledged messages that a segment's start repeats for a topic; what is beyond may be sent twice.
const RANGES_MAX: usize = 1000;
/// Topics of one spool, for its life.
pub(super) const TOPICS_MAX: usize = 10_000;

/// The topics by index and by name.
#[derive(Debug, Default)]
pub(super) struct Topics {
    pub(super) list: Vec<Topic>,
    pub(super) by_name: HashMap<Arc<str>, u16>,
}

/// One topic.
#[derive(Debug, Clone)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    /// The number of its next message.
    pub(super) next: u64,
    /// Owed no longer.
    pub(super) acked: Ranges,
    /// The segment where the last acknowledged message was.
    pub(super) hint: u64,
}

impl Topics {
    /// Gives a topic's next number, to a new topic its first; `None` if there are too many topics.
    pub(super) fn give(&mut self, name: &Arc<str>) -> Option<Place> {
        let topic = match self.by_name.get(name) {
            Some(index) => *index,
            None => self.add(Arc::clone(name))?,
        };
        let held = self.list.get_mut(usize::from(topic))?;
        let seq = held.next;
        held.next += 1;
        Some(Place { topic, seq })
    }

    pub(super) fn add(&mut self, name: Arc<str>) -> Option<u16> {
        let index = u16::try_from(self.list.len()).ok()?;
        if usize::from(index) >= TOPICS_MAX {
            return None;
        }
        self.by_name.insert(Arc::clone(&name), index);
        self.list.push(Topic {
            name,
            next: 0,
            acked: Ranges::default(),
            hint: 0,
        });
        Some(index)
    }

    /// What a segment's start says, topic by topic.
    pub(super) fn states(&self) -> impl Iterator<Item = TopicState<'_>> {
        (0..self.list.len()).filter_map(|index| self.state(index as u16))
    }

    /// What a segment's start says of a topic.
    pub(super) fn state(&self, index: u16) -> Option<TopicState<'_>> {
        let topic = self.list.get(usize::from(index))?;
        Some(TopicState {
            index,
            next: topic.next,
            name: Cow::Borrowed(&topic.name),
            acked: topic.acked.first(RANGES_MAX),
        })
    }
}
