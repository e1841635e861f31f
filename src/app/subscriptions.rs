//! The subscriptions that run, for those who ask about them.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::admin;
use crate::listen::subscription::{Shut, Subscription};

/// Those that run now, and for a moment those that a reload replaced.
#[derive(Default)]
pub(super) struct Subscriptions(Mutex<Vec<Weak<Subscription>>>);

impl Subscriptions {
    /// Adds one. If the one that it replaces was paused, it is too.
    pub(super) fn add(&self, new: &Arc<Subscription>) {
        let state = new.state();
        let same = |known: &Arc<Subscription>| {
            let known = known.state();
            (known.topic, known.group) == (state.topic.clone(), state.group.clone())
        };
        let replaced = self.all().into_iter().find(same);
        if replaced.is_some_and(|known| known.state().shut == Some(Shut::Paused)) {
            new.pause(true);
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.strong_count() > 0);
        all.push(Arc::downgrade(new));
    }

    /// Sets the gauges of all.
    pub(super) fn refresh(&self) {
        self.all().iter().for_each(|one| one.refresh());
    }

    fn all(&self) -> Vec<Arc<Subscription>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).collect()
    }
}

impl admin::Subscriptions for Subscriptions {
    fn states(&self, topic: Option<&str>) -> Vec<serde_json::Value> {
        let states = self.all().into_iter().map(|one| one.state());
        states
            .filter(|state| topic.is_none_or(|topic| state.topic == topic))
            .filter_map(|state| serde_json::to_value(state).ok())
            .collect()
    }

    fn pause(&self, topic: &str, paused: bool) -> usize {
        let all = self.all();
        let named: Vec<_> = all.iter().filter(|one| one.topic() == topic).collect();
        for one in &named {
            one.pause(paused);
        }
        named.len()
    }
}
