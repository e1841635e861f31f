//! Who is told of messages as they change. While nobody follows, recording an event looks at one number.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use uuid::Uuid;

/// Who may follow at a time; one more is refused.
pub const FOLLOWERS_MAX: usize = 16;
/// Changes that wait for a follower who reads slowly; then the oldest are lost to it, and it is told how many.
const CHANGES_MAX: usize = 1024;

/// The followers of a store.
#[derive(Debug, Default)]
pub(super) struct Followers {
    count: AtomicUsize,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
enum Told {
    /// Made with the first follower, for it takes memory.
    #[default]
    Nobody,
    Some(broadcast::Sender<Uuid>),
    /// The process stops.
    Over,
}

impl Followers {
    /// Tells of a changed message, if anybody wants to know.
    pub(super) fn tell(&self, id: Uuid) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Told::Some(sender) = &*told {
            // An error means that the last of them has just left.
            drop(sender.send(id));
        }
    }

    /// One more; `None` if there are as many as may be, or the store is closed.
    pub(super) fn join(self: &Arc<Self>) -> Option<Follow> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = match &*told {
            Told::Over => return None,
            Told::Some(sender) => sender.subscribe(),
            Told::Nobody => {
                let (sender, changes) = broadcast::channel(CHANGES_MAX);
                *told = Told::Some(sender);
                changes
            }
        };
        if self.count.fetch_add(1, Ordering::Relaxed) >= FOLLOWERS_MAX {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Follow {
            changes,
            followers: Arc::clone(self),
        })
    }

    /// Ends every follower's stream, and lets nobody else in.
    pub(super) fn close(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Told::Over;
    }
}

/// One follower; it leaves when this is dropped.
#[derive(Debug)]
pub struct Follow {
    changes: broadcast::Receiver<Uuid>,
    followers: Arc<Followers>,
}

/// What has changed since the last look.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    /// The messages, each once, in the order of their last change.
    pub ids: Vec<Uuid>,
    /// Changes before these that came too fast to be told.
    pub skipped: u64,
}

impl Follow {
    /// Waits for the next changes; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Changed> {
        let mut changed = Changed {
            ids: Vec::new(),
            skipped: 0,
        };
        match self.changes.recv().await {
            Ok(id) => changed.ids.push(id),
            Err(RecvError::Lagged(many)) => changed.skipped += many,
            Err(RecvError::Closed) => return None,
        }
        // What came with it is told with it: a message that changed three times since is looked at once.
        for _ in 0..CHANGES_MAX {
            match self.changes.try_recv() {
                Ok(id) => {
                    changed.ids.retain(|known| *known != id);
                    changed.ids.push(id);
                }
                Err(TryRecvError::Lagged(many)) => changed.skipped += many,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        Some(changed)
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.followers.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> Uuid {
        Uuid::from_u128(n as u128)
    }

    #[tokio::test]
    async fn changes_come_together_and_each_message_once() {
        let followers = Arc::new(Followers::default());
        followers.tell(id(0));
        let mut follow = followers.join().unwrap();
        for n in [1, 2, 1] {
            followers.tell(id(n));
        }
        let changed = follow.next().await.unwrap();
        assert_eq!((changed.ids, changed.skipped), (vec![id(2), id(1)], 0));
        followers.close();
        assert_eq!(follow.next().await, None);
        assert!(followers.join().is_none());
    }

    #[tokio::test]
    async fn a_follower_that_does_not_read_is_told_how_much_it_missed() {
        let followers = Arc::new(Followers::default());
        let mut follow = followers.join().unwrap();
        for n in 0..CHANGES_MAX + 10 {
            followers.tell(id(n));
        }
        let changed = follow.next().await.unwrap();
        assert_eq!(changed.skipped, 10);
        assert_eq!(changed.ids.len(), CHANGES_MAX);
        assert_eq!(changed.ids.last(), Some(&id(CHANGES_MAX + 9)));
    }

    #[test]
    fn only_so_many_follow_and_one_that_leaves_makes_room() {
        let followers = Arc::new(Followers::default());
        let mut all: Vec<Follow> = (0..FOLLOWERS_MAX)
            .filter_map(|_| followers.join())
            .collect();
        assert_eq!(all.len(), FOLLOWERS_MAX);
        assert!(followers.join().is_none());
        all.pop();
        assert!(followers.join().is_some());
    }
}
