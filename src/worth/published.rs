//! What is counted of a route that publishes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::model::{self, Costs, Shape};
use super::row::{ENOUGH, REPLICAS, Row, nanoseconds, percent, rounded};

/// Bytes of an average body above which a route that does not slim is told what slimming would be worth.
const WORTH_SLIMMING: f64 = 4096.0;

// What a route counts.
const EVENTS: usize = 0;
const BYTES: usize = 1;
const SLIMMED: usize = 2;
const WHOLE: usize = 3;
const LEFT: usize = 4;
const KEPT: usize = 5;
const KEEP_NS: usize = 6;
const SERVED: usize = 7;

/// A route that publishes.
#[derive(Debug)]
pub struct Published {
    pub(super) route: String,
    pub(super) topic: String,
    pub(super) audience: [u8; 8],
    row: Row<8>,
    replicas: AtomicU32,
}

impl Published {
    pub(super) fn new(route: &str, (topic, audience): (&str, [u8; 8])) -> Self {
        Self {
            route: route.to_owned(),
            topic: topic.to_owned(),
            audience,
            row: Row::new(),
            replicas: AtomicU32::new(REPLICAS),
        }
    }

    /// Counts a message; of a slim one also the bytes of its whole body.
    pub fn published(&self, bytes: usize, whole: Option<usize>) {
        self.row.add(EVENTS, 1);
        self.row.add(BYTES, bytes as u64);
        if let Some(whole) = whole {
            self.row.add(SLIMMED, 1);
            self.row.add(WHOLE, whole as u64);
            self.row.add(LEFT, bytes as u64);
        }
    }

    /// Notes what keeping one body cost, of as many as are measured.
    pub fn kept_at(&self, cpu: Duration) {
        self.row.add(KEPT, 1);
        self.row.add(KEEP_NS, nanoseconds(cpu));
    }

    pub(super) fn served(&self) {
        self.row.add(SERVED, 1);
    }

    pub(super) fn slims(&self) -> bool {
        self.row.total(SLIMMED) > 0
    }

    pub(super) fn replicas(&self, replicas: u32) {
        self.replicas.store(replicas, Ordering::Relaxed);
    }

    /// Bodies whose keeping was measured, and what it cost.
    pub(super) fn kept(&self) -> (f64, f64) {
        (self.row.total(KEPT) as f64, self.row.total(KEEP_NS) as f64)
    }

    pub(super) fn tick(&self) {
        self.row.recent(true);
    }

    pub(super) fn report(&self, costs: &Costs) -> Value {
        let total = |what| self.row.total(what);
        let recent = self.row.recent(false);
        let saved = total(WHOLE).saturating_sub(total(LEFT));
        let slimmed = recent[SLIMMED];
        let cut = match slimmed > 0.0 {
            true => (recent[WHOLE] - recent[LEFT]) / slimmed,
            false => recent[BYTES] / recent[EVENTS].max(1.0),
        };
        let shape = Shape {
            cut,
            replicas: f64::from(self.replicas.load(Ordering::Relaxed)),
            groups: 1.0,
            lazy: 1.0,
            cached: 0.0,
        };
        let even = model::break_even(costs, &shape);
        let ratio = (slimmed > 0.0).then(|| recent[SERVED] / slimmed);
        json!({
            "route": self.route,
            "topic": self.topic,
            "events": total(EVENTS),
            "slimmed": total(SLIMMED),
            "bytes_whole": total(BYTES) + saved,
            "bytes_published": total(BYTES),
            "bytes_kept_from_broker": saved,
            "claims_served": total(SERVED),
            "keeps_measured": total(KEPT),
            "cpu_us_keeping": total(KEEP_NS) / 1_000,
            "served_ratio": ratio.map(rounded),
            "break_even": rounded(even),
            "advice": self.advice(even, slimmed, &recent),
        })
    }

    fn advice(&self, even: f64, slimmed: f64, recent: &[f64; 8]) -> String {
        let average = recent[BYTES] / recent[EVENTS].max(1.0);
        let percent = percent(even);
        if recent[EVENTS] < ENOUGH {
            return "too few messages yet".into();
        }
        match slimmed > 0.0 {
            true if even <= 0.0 => {
                "slimming does not pay at any ratio: too little is cut; remove `slim`, or cut more"
                    .into()
            }
            true if even >= 1.0 => "slimming pays at any ratio of hydrations".into(),
            true => format!(
                "slimming pays while under {percent} of one group's deliveries are hydrated; that group's sidecar tells how many are"
            ),
            false if average >= WORTH_SLIMMING && even >= 1.0 => format!(
                "bodies have {average:.0} bytes: slimming would pay at any ratio of hydrations (`slim: {{ keep: […] }}` with what every receiver needs)"
            ),
            false if average >= WORTH_SLIMMING => format!(
                "bodies have {average:.0} bytes: slimming would pay if under {percent} of deliveries need the rest (`slim: {{ keep: […] }}`)"
            ),
            false => "bodies are small: nothing to slim".into(),
        }
    }
}
