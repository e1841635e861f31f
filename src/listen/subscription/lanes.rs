//! Which messages of a partition may be delivered now: of each key one, in order, and the others beside it. Pure.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::config::model::Ordering;
use crate::kafka::intake::Received;

/// Keys whose followers go to the dead letters, at most; of more, the one that was added first is forgotten.
const QUARANTINED_MAX: usize = 10_000;

/// The lanes of one assigned partition.
#[derive(Debug)]
pub(super) struct Lanes {
    ordering: Ordering,
    /// Those that have a message under way, and what waits behind it.
    lanes: HashMap<Bytes, VecDeque<Arc<Received>>>,
    /// The messages under way, by offset.
    heads: BTreeMap<i64, Head>,
    parked: usize,
    bytes: usize,
    /// What follows the last message that was tried.
    reached: i64,
    quarantined: Quarantine,
}

/// A message under way.
#[derive(Debug, Clone)]
pub(super) struct Head {
    /// Its key.
    pub(super) key: Option<Bytes>,
    /// Since when it is under way.
    pub(super) since: Instant,
    /// Attempts that were made.
    pub(super) attempts: u32,
    /// Why it waits for the next one; `None` while it does not.
    pub(super) parked: Option<String>,
    bytes: usize,
}

/// A lane that stands still, for whoever looks for the one that holds up most.
#[derive(Debug, Clone)]
pub(super) struct Blocked {
    pub(super) offset: i64,
    pub(super) head: Head,
    /// Messages that wait behind it.
    pub(super) followers: usize,
}

impl Lanes {
    pub(super) fn new(ordering: Ordering) -> Self {
        Self {
            ordering,
            lanes: HashMap::new(),
            heads: BTreeMap::new(),
            parked: 0,
            bytes: 0,
            reached: 0,
            quarantined: Quarantine::default(),
        }
    }

    /// Takes the partition's next message, and gives it back if it may begin at once.
    pub(super) fn take(&mut self, received: Arc<Received>) -> Option<Arc<Received>> {
        self.bytes += received.bytes();
        if let Some(name) = self.name(received.key.as_ref()) {
            if let Some(followers) = self.lanes.get_mut(&name) {
                followers.push_back(received);
                return None;
            }
            self.lanes.insert(name, VecDeque::new());
        }
        Some(self.begin(received))
    }

    /// Notes that a message has ended, and gives the next of its lane, which begins.
    pub(super) fn ended(&mut self, offset: i64) -> Option<Arc<Received>> {
        let head = self.heads.remove(&offset)?;
        self.bytes -= head.bytes;
        self.parked -= usize::from(head.parked.is_some());
        let name = self.name(head.key.as_ref())?;
        match self.lanes.get_mut(&name)?.pop_front() {
            Some(next) => Some(self.begin(next)),
            None => {
                self.lanes.remove(&name);
                None
            }
        }
    }

    fn begin(&mut self, received: Arc<Received>) -> Arc<Received> {
        let head = Head {
            key: received.key.clone(),
            since: Instant::now(),
            attempts: 0,
            parked: None,
            bytes: received.bytes(),
        };
        self.heads.insert(received.offset, head);
        received
    }

    /// Notes that a message is tried.
    pub(super) fn tries(&mut self, offset: i64) {
        self.reached = self.reached.max(offset + 1);
    }

    /// The offset behind all messages that were tried.
    pub(super) fn reached(&self) -> i64 {
        self.reached
    }

    /// Notes that a message waits, after so many attempts, and why; or that it is tried again.
    pub(super) fn park(&mut self, offset: i64, attempts: u32, why: Option<String>) {
        let Some(head) = self.heads.get_mut(&offset) else {
            return;
        };
        self.parked -= usize::from(head.parked.is_some());
        self.parked += usize::from(why.is_some());
        (head.attempts, head.parked) = (attempts, why);
    }

    /// What of its lane follows goes to the dead letters.
    pub(super) fn quarantine(&mut self, key: Option<&Bytes>) {
        if let Some(name) = self.name(key) {
            self.quarantined.add(name);
        }
    }

    /// What follows in its lane is delivered again.
    pub(super) fn release(&mut self, key: Option<&Bytes>) {
        if let Some(name) = self.name(key) {
            self.quarantined.remove(&name);
        }
    }

    /// Whether a message of the same lane went to the dead letters.
    pub(super) fn is_quarantined(&self, key: Option<&Bytes>) -> bool {
        self.name(key)
            .is_some_and(|name| self.quarantined.keys.contains(&name))
    }

    /// Lanes with a message under way that does not wait.
    pub(super) fn busy(&self) -> usize {
        self.heads.len() - self.parked
    }

    /// Lanes whose message waits for its next attempt.
    pub(super) fn parked(&self) -> usize {
        self.parked
    }

    /// Bytes of the messages that have not ended.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keys whose followers go to the dead letters.
    pub(super) fn quarantined(&self) -> usize {
        self.quarantined.keys.len()
    }

    /// A message under way.
    pub(super) fn head(&self, offset: i64) -> Option<&Head> {
        self.heads.get(&offset)
    }

    /// Messages that wait behind one under way.
    pub(super) fn followers(&self, head: &Head) -> usize {
        let lane = self.name(head.key.as_ref());
        let followers = lane.and_then(|name| self.lanes.get(&name));
        followers.map_or(0, VecDeque::len)
    }

    /// Of the lanes that stand still the one with the most followers; of equals the one that began first.
    pub(super) fn hottest(&self) -> Option<Blocked> {
        let parked = self.heads.iter().filter(|(_, head)| head.parked.is_some());
        let blocked = parked.map(|(offset, head)| (self.followers(head), *offset, head));
        let (followers, offset, head) = blocked
            .max_by_key(|(followers, offset, _)| (*followers, std::cmp::Reverse(*offset)))?;
        Some(Blocked {
            offset,
            head: head.clone(),
            followers,
        })
    }

    /// The lane that a key belongs to; `None` for a message that stands alone.
    fn name(&self, key: Option<&Bytes>) -> Option<Bytes> {
        match self.ordering {
            Ordering::Key => key.cloned(),
            Ordering::Partition => Some(Bytes::new()),
            Ordering::None => None,
        }
    }
}

#[derive(Debug, Default)]
struct Quarantine {
    keys: HashSet<Bytes>,
    order: VecDeque<Bytes>,
}

impl Quarantine {
    fn remove(&mut self, key: &Bytes) {
        if self.keys.remove(key) {
            self.order.retain(|known| known != key);
        }
    }

    fn add(&mut self, key: Bytes) {
        // A key is a part of its record's memory, which need not stay for it.
        let key = Bytes::copy_from_slice(&key);
        if !self.keys.insert(key.clone()) {
            return;
        }
        self.order.push_back(key);
        if self.keys.len() > QUARANTINED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::Headers;

    fn record(offset: i64, key: Option<&'static str>) -> Arc<Received> {
        Arc::new(Received {
            topic: "invoices".into(),
            partition: 0,
            offset,
            key: key.map(|key| Bytes::from_static(key.as_bytes())),
            value: Bytes::from_static(b"ten bytes."),
            headers: Headers::new(),
            unread: 0,
            timestamp_ms: None,
        })
    }

    fn begins(lanes: &mut Lanes, offset: i64, key: Option<&'static str>) -> bool {
        lanes.take(record(offset, key)).is_some()
    }

    fn next(lanes: &mut Lanes, offset: i64) -> Option<i64> {
        lanes.ended(offset).map(|received| received.offset)
    }

    #[test]
    fn of_each_key_one_is_under_way_and_the_next_begins_when_it_ends() {
        let mut lanes = Lanes::new(Ordering::Key);
        assert!(begins(&mut lanes, 0, Some("a")));
        assert!(!begins(&mut lanes, 1, Some("a")));
        assert!(begins(&mut lanes, 2, Some("b")));
        assert!(!begins(&mut lanes, 3, Some("a")));
        assert_eq!((lanes.busy(), lanes.bytes()), (2, 4 * 11));
        assert_eq!(next(&mut lanes, 0), Some(1));
        assert_eq!(next(&mut lanes, 0), None, "it ended before");
        assert_eq!(next(&mut lanes, 2), None);
        assert_eq!(next(&mut lanes, 1), Some(3));
        assert_eq!(next(&mut lanes, 3), None);
        assert_eq!((lanes.busy(), lanes.bytes(), lanes.lanes.len()), (0, 0, 0));
    }

    #[test]
    fn what_has_no_key_stands_alone_and_a_partition_in_order_is_one_lane() {
        let mut lanes = Lanes::new(Ordering::Key);
        assert!((0..3).all(|offset| begins(&mut lanes, offset, None)));
        let mut lanes = Lanes::new(Ordering::None);
        assert!((0..3).all(|offset| begins(&mut lanes, offset, Some("a"))));
        let mut lanes = Lanes::new(Ordering::Partition);
        assert!(begins(&mut lanes, 0, Some("a")));
        assert!(!begins(&mut lanes, 1, Some("b")));
        assert!(!begins(&mut lanes, 2, None));
        assert_eq!(next(&mut lanes, 0), Some(1));
        assert_eq!(next(&mut lanes, 1), Some(2));
    }

    #[test]
    fn the_lane_that_holds_up_most_is_told() {
        let mut lanes = Lanes::new(Ordering::Key);
        for (offset, key) in [(0, "a"), (1, "b"), (2, "b"), (3, "b"), (4, "c")] {
            begins(&mut lanes, offset, Some(key));
        }
        assert!(lanes.hottest().is_none(), "nobody waits");
        lanes.park(0, 2, Some("the app answered 500".into()));
        lanes.park(1, 1, Some("the app answered 503".into()));
        let hottest = lanes.hottest().expect("one is the hottest");
        assert_eq!((hottest.offset, hottest.followers), (1, 2));
        assert_eq!((lanes.busy(), lanes.parked()), (1, 2));
        lanes.park(1, 1, None);
        assert_eq!(lanes.hottest().expect("the other").head.attempts, 2);
        assert_eq!(next(&mut lanes, 1), Some(2));
        assert_eq!((lanes.busy(), lanes.parked()), (2, 1));
    }

    #[test]
    fn a_quarantine_holds_for_one_lane_and_is_bounded() {
        let mut lanes = Lanes::new(Ordering::Key);
        let key = |number: usize| Bytes::from(number.to_string());
        lanes.quarantine(Some(&key(0)));
        assert!(lanes.is_quarantined(Some(&key(0))));
        assert!(!lanes.is_quarantined(Some(&key(1))) && !lanes.is_quarantined(None));
        (1..=QUARANTINED_MAX).for_each(|number| lanes.quarantine(Some(&key(number))));
        assert!(
            !lanes.is_quarantined(Some(&key(0))),
            "the oldest is forgotten"
        );
        assert_eq!(lanes.quarantined(), QUARANTINED_MAX);
    }
}
