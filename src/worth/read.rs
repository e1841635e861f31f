//! What is counted of a subscription's slim messages.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics::Gauge;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::model::{self, Costs, Shape};
use super::row::{ENOUGH, FADE, REPLICAS, Row, nanoseconds, percent, rounded};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names;

/// Fields that are told apart; the rest are one.
const FIELDS_MAX: usize = 64;

// What a subscription counts.
const DELIVERED: usize = 0;
const OF_WHOLE: usize = 1;
const OF_SLIM: usize = 2;
const LAZY: usize = 3;
const EAGER: usize = 4;
const CACHED: usize = 5;
const FETCHED_BYTES: usize = 6;
const WAITED_NS: usize = 7;
const CPU_NS: usize = 8;
const REFUSED: usize = 9;
const STREAMED: usize = 10;

/// A subscription's messages.
#[derive(Debug)]
pub struct Read {
    pub(super) topic: String,
    pub(super) group: String,
    pub(super) reader: [u8; 4],
    row: Row<11>,
    fields: Mutex<BTreeMap<String, Field>>,
    replicas: AtomicU32,
    pays: AtomicBool,
    ratio: Gauge,
    even: Gauge,
}

/// One field that was asked for.
#[derive(Debug, Clone, Copy, Default)]
struct Field {
    asked: f64,
    bytes: f64,
    total: u64,
}

/// One hydration, for the balance.
#[derive(Debug, Clone, Copy)]
pub struct Hydrated {
    /// Whether it was before the delivery.
    pub eager: bool,
    /// Whether nobody had to be asked.
    pub cached: bool,
    /// Bytes of the whole body.
    pub bytes: usize,
    /// How long it took.
    pub waited: Duration,
    /// And what of that was work of this sidecar.
    pub cpu: Duration,
}

/// What stands for a subscription in a claim's reference.
fn reader_of(topic: &str, group: &str) -> [u8; 4] {
    let mut hash = Sha256::new();
    hash.update(topic);
    hash.update([0]);
    hash.update(group);
    let mut reader = [0; 4];
    reader.copy_from_slice(&hash.finalize()[..4]);
    reader
}

impl Read {
    pub(super) fn new((topic, group): (&str, &str), metrics: &Metrics) -> Self {
        let labels = [("topic", topic), ("group", group)];
        let unknown = |gauge: Gauge| {
            // Nothing is known before something is delivered, and zero would be a ratio.
            gauge.set(f64::NAN);
            gauge
        };
        Self {
            topic: topic.to_owned(),
            group: group.to_owned(),
            reader: reader_of(topic, group),
            row: Row::new(),
            fields: Mutex::default(),
            replicas: AtomicU32::new(REPLICAS),
            pays: AtomicBool::new(true),
            ratio: unknown(metrics.gauge(&names::HYDRATION_RATIO, &labels)),
            even: unknown(metrics.gauge(&names::HYDRATION_BREAK_EVEN, &labels)),
        }
    }

    /// What stands for it in a claim's reference.
    pub fn reader(&self) -> [u8; 4] {
        self.reader
    }

    /// Counts a slim message that is delivered for the first time.
    pub fn delivered(&self, whole: u64, slim: usize) {
        self.row.add(DELIVERED, 1);
        self.row.add(OF_WHOLE, whole);
        self.row.add(OF_SLIM, slim as u64);
    }

    /// Counts a hydration.
    pub fn hydrated(&self, one: Hydrated) {
        self.row.add(if one.eager { EAGER } else { LAZY }, 1);
        match one.cached {
            true => self.row.add(CACHED, 1),
            false => self.row.add(FETCHED_BYTES, one.bytes as u64),
        }
        self.row.add(WAITED_NS, nanoseconds(one.waited));
        self.row.add(CPU_NS, nanoseconds(one.cpu));
    }

    /// Counts a body that is passed through to the app that asked for it, of so many bytes.
    pub fn streamed(&self, bytes: u64) {
        self.row.add(STREAMED, 1);
        self.row.add(FETCHED_BYTES, bytes);
    }

    /// Counts a hydration that came to nothing.
    pub fn refused(&self) {
        self.row.add(REFUSED, 1);
    }

    /// Counts a field that was asked for alone, and what was given of it.
    pub fn asked_for(&self, field: &str, bytes: usize) {
        let mut fields = self.fields.lock().unwrap_or_else(PoisonError::into_inner);
        let field = match fields.contains_key(field) || fields.len() < FIELDS_MAX {
            true => field,
            false => "(others)",
        };
        let known = fields.entry(field.to_owned()).or_default();
        known.asked += 1.0;
        known.bytes += bytes as f64;
        known.total += 1;
    }

    pub(super) fn reads_slim(&self) -> bool {
        self.row.total(DELIVERED) > 0
    }

    pub(super) fn replicas(&self, replicas: u32) {
        self.replicas.store(replicas, Ordering::Relaxed);
    }

    /// Hydrations that were had in memory, and what they cost this side.
    pub(super) fn hydrated_here(&self) -> (f64, f64) {
        let count = self.row.total(LAZY) + self.row.total(EAGER);
        (count as f64, self.row.total(CPU_NS) as f64)
    }

    fn shape(&self, recent: &[f64; 11], groups: usize) -> Shape {
        let hydrations = recent[LAZY] + recent[EAGER];
        let share = |some: f64| some / hydrations.max(1.0);
        Shape {
            cut: (recent[OF_WHOLE] - recent[OF_SLIM]) / recent[DELIVERED].max(1.0),
            replicas: f64::from(self.replicas.load(Ordering::Relaxed)),
            groups: groups as f64,
            lazy: share(recent[LAZY]),
            cached: share(recent[CACHED]),
        }
    }

    pub(super) fn tick(&self, costs: &Costs, groups: usize) {
        let recent = self.row.recent(true);
        for field in self
            .fields
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values_mut()
        {
            field.asked *= FADE;
            field.bytes *= FADE;
        }
        if recent[DELIVERED] < 1.0 {
            self.ratio.set(f64::NAN);
            self.even.set(f64::NAN);
            return;
        }
        let ratio = ratio(&recent);
        let even = model::break_even(costs, &self.shape(&recent, groups));
        self.ratio.set(ratio);
        self.even.set(even);
        if recent[DELIVERED] < ENOUGH {
            return;
        }
        let before = self.pays.load(Ordering::Relaxed);
        let now = model::pays(before, ratio, even);
        if now == before {
            return;
        }
        self.pays.store(now, Ordering::Relaxed);
        let (topic, group) = (&*self.topic, &*self.group);
        let (ratio, even) = (percent(ratio), percent(even));
        let advice = self.advice(costs, &recent, groups);
        match now {
            true => tracing::info!(
                topic,
                group,
                ratio,
                break_even = even,
                advice,
                "slimming pays again"
            ),
            false => tracing::warn!(
                topic,
                group,
                ratio,
                break_even = even,
                advice,
                "slimming costs more than it saves"
            ),
        }
    }

    pub(super) fn report(&self, costs: &Costs, groups: usize) -> Value {
        let total = |what| self.row.total(what);
        let recent = self.row.recent(false);
        let lazy = total(LAZY) + total(STREAMED);
        let hydrations = lazy + total(EAGER);
        let even = model::break_even(costs, &self.shape(&recent, groups));
        let delivered = recent[DELIVERED];
        let fields: Vec<Value> = self
            .told_fields()
            .into_iter()
            .map(|(name, field)| {
                let ratio = field.asked / delivered.max(1.0);
                let bytes = field.bytes / field.asked.max(1.0);
                json!({ "field": name, "asked": field.total, "ratio": rounded(ratio), "bytes": bytes.round() })
            })
            .collect();
        json!({
            "topic": self.topic,
            "group": self.group,
            "events": total(DELIVERED),
            "hydrations": hydrations,
            "lazy": lazy,
            "eager": total(EAGER),
            "failed": total(REFUSED),
            "cached": total(CACHED),
            "bytes_kept_from_broker": total(OF_WHOLE).saturating_sub(total(OF_SLIM)),
            "bytes_hydrated": total(FETCHED_BYTES),
            "ms_hydrating": total(WAITED_NS) / 1_000_000,
            "cpu_us_hydrating": total(CPU_NS) / 1_000,
            "fields": fields,
            "ratio": (delivered > 0.0).then(|| rounded(ratio(&recent))),
            "break_even": (delivered > 0.0).then(|| rounded(even)),
            "advice": self.advice(costs, &recent, groups),
        })
    }

    fn told_fields(&self) -> Vec<(String, Field)> {
        let fields = self.fields.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told: Vec<_> = fields
            .iter()
            .map(|(name, field)| (name.clone(), *field))
            .collect();
        told.sort_by(|(_, one), (_, other)| other.asked.total_cmp(&one.asked));
        told
    }

    /// What to do, in words.
    fn advice(&self, costs: &Costs, recent: &[f64; 11], groups: usize) -> String {
        let delivered = recent[DELIVERED];
        if delivered < ENOUGH {
            return "too few slim messages yet".into();
        }
        let shape = self.shape(recent, groups);
        let (ratio, even) = (ratio(recent), model::break_even(costs, &shape));
        // Most of what is asked for are fields: then the remedy is a field.
        let inline = self.told_fields().into_iter().find_map(|(name, field)| {
            let asked = field.asked / delivered;
            let bytes = field.bytes / field.asked.max(1.0);
            let worth = model::field_belongs_in_record(costs, &shape, asked, bytes);
            worth.then(|| {
                let share = percent(asked);
                format!("keep `{name}` in the record (`slim.keep`): {share} of deliveries ask for it, and it has {bytes:.0} bytes")
            })
        });
        let (told, border) = (percent(ratio), percent(even));
        match (inline, model::pays(true, ratio, even)) {
            (Some(inline), _) => inline,
            (None, true) if even >= 1.0 => "slimming pays at any ratio of hydrations".into(),
            (None, true) => format!("slimming pays: {told} of deliveries are hydrated, under the {border} at which it would not"),
            (None, false) if even <= 0.0 => "switch the route to whole messages (remove `slim`), or cut more: so little is cut that keeping it costs more than sending it".into(),
            (None, false) if recent[EAGER] > recent[LAZY] => format!("hydrate by need (`hydrate: lazy`) or switch the route to whole messages (remove `slim`): {told} of deliveries are hydrated, over {border}"),
            (None, false) => format!("switch the route to whole messages (remove `slim`): {told} of deliveries are hydrated, over the {border} up to which slimming pays"),
        }
    }
}

fn ratio(recent: &[f64; 11]) -> f64 {
    (recent[LAZY] + recent[STREAMED] + recent[EAGER]) / recent[DELIVERED].max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: Costs = Costs {
        byte_ns: 1.0,
        http_byte_ns: 0.0,
        exchange_ns: 20_000.0,
        keep_ns: 22_000.0,
        keep_measured: true,
        hydrate_ns: 10_000.0,
        hydrate_measured: true,
    };

    fn row(deliveries: u64, cut: u64) -> Read {
        let row = Read::new(("orders", "billing"), &Metrics::new());
        (0..deliveries).for_each(|_| row.delivered(100 + cut, 100));
        row
    }

    fn hydrate(row: &Read, count: usize, eager: bool) {
        let one = Hydrated {
            eager,
            cached: false,
            bytes: 1,
            waited: Duration::from_micros(100),
            cpu: Duration::from_micros(25),
        };
        (0..count).for_each(|_| row.hydrated(one));
    }

    fn told(row: &Read) -> (f64, f64, String) {
        let told = row.report(&COSTS, 1);
        let number = |name: &str| told[name].as_f64().unwrap_or(f64::NAN);
        (
            number("ratio"),
            number("break_even"),
            told["advice"].as_str().unwrap_or_default().to_owned(),
        )
    }

    #[test]
    fn what_to_do_follows_from_the_ratio_and_the_border() {
        // 10 KB: (4 x 10 us - 22 us) / 50 us = 0.36 by need, / 40 us = 0.45 before.
        for (hydrations, eager, expected) in [
            (
                0,
                false,
                "slimming pays: 0.0 % of deliveries are hydrated, under the 45.0 %",
            ),
            (150, false, "slimming pays: 15.0 % of deliveries"),
            (
                500,
                false,
                "switch the route to whole messages (remove `slim`): 50.0 %",
            ),
            (
                1000,
                true,
                "hydrate by need (`hydrate: lazy`) or switch the route",
            ),
        ] {
            let row = row(1000, 10_000);
            hydrate(&row, hydrations, eager);
            let (ratio, even, advice) = told(&row);
            let border = if eager || hydrations == 0 { 0.45 } else { 0.36 };
            assert_eq!((ratio, even), (hydrations as f64 / 1000.0, border));
            assert!(advice.starts_with(expected), "{advice}");
        }
        let small = row(1000, 1_000);
        assert!(
            told(&small).2.contains("so little is cut"),
            "{:?}",
            told(&small)
        );
        let large = row(1000, 100_000);
        hydrate(&large, 1000, true);
        assert_eq!(told(&large).2, "slimming pays at any ratio of hydrations");
        assert_eq!(told(&row(99, 10_000)).2, "too few slim messages yet");
    }

    #[test]
    fn a_field_is_told_that_costs_less_in_the_record_than_asked_for() {
        let row = row(1000, 10_000);
        hydrate(&row, 100, false);
        (0..100).for_each(|_| row.asked_for("/note", 40));
        let advice = told(&row).2;
        assert!(advice.starts_with("keep `/note` in the record (`slim.keep`): 10.0 % of deliveries ask for it, and it has 40 bytes"), "{advice}");
        (0..10_000).for_each(|n| row.asked_for(&format!("/x/{n}"), 40));
        assert!(row.told_fields().len() <= FIELDS_MAX + 1);
    }

    #[test]
    fn it_is_noted_once_when_the_ratio_crosses_and_once_when_it_comes_back() {
        let row = row(1000, 10_000);
        let pays = |row: &Read| row.pays.load(Ordering::Relaxed);
        row.tick(&COSTS, 1);
        assert!(pays(&row));
        hydrate(&row, 500, false);
        row.streamed(1 << 30);
        row.tick(&COSTS, 1);
        assert!(!pays(&row), "half are hydrated, and 36 % is the border");
        (0..1000).for_each(|_| row.delivered(10_100, 100));
        row.tick(&COSTS, 1);
        assert!(pays(&row), "a quarter is");
        assert_eq!(row.report(&COSTS, 1)["lazy"], 501);
    }

    #[test]
    fn the_past_fades() {
        let row = row(1000, 10_000);
        hydrate(&row, 1000, false);
        (0..3000).for_each(|_| row.tick(&COSTS, 1));
        (0..1000).for_each(|_| row.delivered(10_100, 100));
        let (ratio, _, _) = told(&row);
        assert!(ratio < 0.01, "{ratio}");
        assert_eq!(
            row.report(&COSTS, 1)["hydrations"],
            1000,
            "what was counted is all there"
        );
    }
}
