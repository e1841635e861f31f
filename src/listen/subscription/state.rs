//! What a subscription tells of itself, to people and to metrics. It answers at once, whatever the app does.

use std::time::SystemTime;

use serde::Serialize;
use tokio::time::Instant;

use super::Subscription;
use super::gate::Shut;
use super::lanes::Blocked;
use super::part::Part;

/// Letters of a key that are shown.
const KEY_SHOWN: usize = 128;

/// One subscription at this moment.
#[derive(Debug, Clone, Serialize)]
pub struct State {
    /// The topic.
    pub topic: String,
    /// The group.
    pub group: String,
    /// Why nothing is delivered, if so.
    pub shut: Option<Shut>,
    /// Since when, RFC 3339; only for what the app did.
    pub since: Option<String>,
    /// Messages that are in the topic and have no final verdict, as far as is known.
    pub lag: i64,
    /// For how many seconds the oldest message under way has been that.
    pub oldest: f64,
    /// The partitions that are assigned here.
    pub partitions: Vec<Partition>,
}

/// One assigned partition at this moment.
#[derive(Debug, Clone, Serialize)]
pub struct Partition {
    /// Its number.
    pub partition: i32,
    /// From where on nothing is committed; `None` before anything was taken here.
    pub next: Option<i64>,
    /// Where the partition ended when the broker said so last, some seconds ago.
    pub end: Option<i64>,
    /// What lies between both.
    pub lag: Option<i64>,
    /// Messages that are taken and have no final verdict.
    pub unfinished: usize,
    /// Messages from the oldest of them to the last one taken; at most `window.messages`.
    pub window: usize,
    /// Lanes whose message is being delivered, or is about to be.
    pub busy: usize,
    /// Lanes whose message waits for its next attempt.
    pub parked: usize,
    /// Lanes whose messages go to the dead letters.
    pub quarantined: usize,
    /// The oldest message without a final verdict.
    pub oldest: Option<Head>,
    /// Of the lanes that stand still the one that holds up most.
    pub hottest: Option<Head>,
}

/// A message under way.
#[derive(Debug, Clone, Serialize)]
pub struct Head {
    /// Its offset.
    pub offset: i64,
    /// Its key, of which the first 128 letters are shown.
    pub key: Option<String>,
    /// For how many seconds it has been under way.
    pub seconds: f64,
    /// Attempts that were made.
    pub attempts: u32,
    /// Why it waits.
    pub why: Option<String>,
    /// Messages of its lane that wait behind it.
    pub followers: usize,
}

impl Subscription {
    /// How it is.
    pub fn state(&self) -> State {
        let mut partitions: Vec<Partition> = self.parts().iter().map(|part| part.state()).collect();
        partitions.sort_by_key(|part| part.partition);
        let shut = self.gate.shut();
        let since = self.gate.since().filter(|_| shut != Some(Shut::Paused));
        let oldest = partitions.iter().filter_map(|part| part.oldest.as_ref());
        State {
            topic: self.rule.topic.clone(),
            group: self.rule.group.clone(),
            shut,
            since: since.map(told),
            lag: partitions.iter().filter_map(|part| part.lag).sum(),
            oldest: oldest.map(|head| head.seconds).fold(0.0, f64::max),
            partitions,
        }
    }

    /// Stops deliveries, or lets them go on; false if it was so before. What is under way may finish.
    pub fn pause(&self, paused: bool) -> bool {
        let changed = self.gate.pause(paused);
        if changed {
            let topic = self.rule.topic.as_str();
            let word = if paused { "paused" } else { "resumed" };
            tracing::warn!(topic, group = self.rule.group, "subscription {word}");
        }
        changed
    }

    /// Sets the gauges of what it is at the moment.
    pub fn refresh(&self) {
        let state = self.state();
        let sum = |of: fn(&Partition) -> usize| state.partitions.iter().map(of).sum::<usize>();
        self.meters.lag.set(state.lag as f64);
        self.meters.oldest.set(state.oldest);
        self.meters.busy.set(sum(|part| part.busy) as f64);
        self.meters.parked.set(sum(|part| part.parked) as f64);
        self.meters
            .quarantined
            .set(sum(|part| part.quarantined) as f64);
        self.meters
            .shut
            .set(f64::from(u8::from(state.shut.is_some())));
    }
}

impl Part {
    fn state(&self) -> Partition {
        let open = self.assigned.open();
        let lanes = self.lanes();
        let oldest = open.oldest.and_then(|offset| {
            let head = lanes.head(offset)?.clone();
            let followers = lanes.followers(&head);
            Some(shown(Blocked {
                offset,
                head,
                followers,
            }))
        });
        let next = open.oldest.or(open.next);
        Partition {
            partition: self.partition,
            next,
            end: open.end,
            lag: open.end.zip(next).map(|(end, next)| (end - next).max(0)),
            unfinished: open.unended,
            window: open.records,
            busy: lanes.busy(),
            parked: lanes.parked(),
            quarantined: lanes.quarantined(),
            oldest,
            hottest: lanes.hottest().map(shown),
        }
    }
}

fn shown(blocked: Blocked) -> Head {
    let Blocked {
        offset,
        head,
        followers,
    } = blocked;
    let key = head.key.map(|key| {
        let text = String::from_utf8_lossy(&key);
        text.chars().take(KEY_SHOWN).collect()
    });
    Head {
        offset,
        key,
        seconds: Instant::now().duration_since(head.since).as_secs_f64(),
        attempts: head.attempts,
        why: head.parked,
        followers,
    }
}

fn told(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}
