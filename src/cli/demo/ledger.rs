//! What really happened to each order, written down by the services themselves: the evidence behind the report.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::order::{Order, digest};

/// Orders that are remembered; later ones, possible only with `--stay`, are served but not written down.
const ORDERS_MAX: usize = 20_000;

/// Dead letters that are remembered.
const DEAD_MAX: usize = 100;

/// Shared by the services of the demo, and only for the report: no service reads it to do its work.
#[derive(Default)]
pub(super) struct Ledger {
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    orders: HashMap<String, Entry>,
    dead: Vec<Dead>,
}

/// The life of one order.
#[derive(Debug, Clone, Default)]
pub(super) struct Entry {
    digest: [u8; 32],
    /// Bytes of the whole body.
    pub(super) whole: usize,
    /// Bytes of the record's value, as the consumer that does not hydrate received it.
    pub(super) slim: usize,
    acked: Option<Instant>,
    charged: Option<Instant>,
    refused: bool,
    /// Deliveries to billing, all attempts counted.
    pub(super) to_billing: u32,
    /// Deliveries to audit, all attempts counted.
    pub(super) to_audit: u32,
    /// Deliveries that came again although the first was answered with success.
    pub(super) duplicates: u32,
    /// Whole bodies fetched by billing.
    pub(super) hydrated: u32,
    /// Whole bodies that were not byte for byte what orders sent.
    pub(super) damaged: u32,
}

/// A message found in the dead letters.
#[derive(Debug, Clone)]
pub(super) struct Dead {
    /// The order's id.
    pub(super) id: String,
    /// The reason headers, `name: value`.
    pub(super) reasons: Vec<String>,
}

impl Entry {
    /// Whether its caller has a 202.
    pub(super) fn promised(&self) -> bool {
        self.acked.is_some()
    }

    /// Whether both consumers have had it.
    pub(super) fn arrived(&self) -> bool {
        (self.charged.is_some() || self.refused) && self.to_audit > 0
    }

    /// From the 202 to billing's app.
    pub(super) fn travelled(&self) -> Option<Duration> {
        // A fast consumer may have the message before the caller has read its 202.
        Some(self.charged?.saturating_duration_since(self.acked?))
    }
}

impl Ledger {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        // Each change is one field, so a panic elsewhere leaves nothing half-written.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, id: &str, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.pages().orders.get_mut(id) {
            change(entry);
        }
    }

    /// orders is about to send this.
    pub(super) fn sending(&self, order: &Order) {
        let mut pages = self.pages();
        if pages.orders.len() < ORDERS_MAX {
            let entry = Entry {
                digest: digest(&order.body),
                whole: order.body.len(),
                ..Entry::default()
            };
            pages.orders.insert(order.id.clone(), entry);
        }
    }

    /// orders has a 202 for it.
    pub(super) fn acked(&self, id: &str) {
        self.entry(id, |entry| entry.acked = Some(Instant::now()));
    }

    /// billing has charged it, after comparing `whole`, if it fetched that, with what orders sent.
    pub(super) fn charged(&self, id: &str, whole: &[u8]) {
        let found = digest(whole);
        self.entry(id, |entry| {
            entry.to_billing += 1;
            entry.hydrated += 1;
            entry.damaged += u32::from(entry.digest != found);
            entry.duplicates += u32::from(entry.charged.is_some());
            entry.charged.get_or_insert_with(Instant::now);
        });
    }

    /// billing could not do its work and wants the order again.
    pub(super) fn postponed(&self, id: &str) {
        self.entry(id, |entry| entry.to_billing += 1);
    }

    /// billing will never take it.
    pub(super) fn refused(&self, id: &str) {
        self.entry(id, |entry| {
            entry.to_billing += 1;
            entry.duplicates += u32::from(entry.refused);
            entry.refused = true;
        });
    }

    /// audit has written it down from the record's own `slim` bytes.
    pub(super) fn audited(&self, id: &str, slim: usize) {
        self.entry(id, |entry| {
            entry.duplicates += u32::from(entry.to_audit > 0);
            entry.to_audit += 1;
            entry.slim = slim;
        });
    }

    /// audit has found it in the dead letters.
    pub(super) fn buried(&self, dead: Dead) {
        let mut pages = self.pages();
        if pages.dead.len() < DEAD_MAX {
            pages.dead.push(dead);
        }
    }

    /// Every order that was sent.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.pages().orders.values().cloned().collect()
    }

    /// Those of these orders that were sent.
    pub(super) fn entries_of(&self, ids: &[&str]) -> Vec<Entry> {
        let pages = self.pages();
        ids.iter()
            .filter_map(|id| pages.orders.get(*id).cloned())
            .collect()
    }

    /// Orders with a 202 that are still missing at a consumer.
    pub(super) fn missing(&self) -> usize {
        let pages = self.pages();
        pages
            .orders
            .values()
            .filter(|entry| entry.promised() && !entry.arrived())
            .count()
    }

    /// The dead letters.
    pub(super) fn dead(&self) -> Vec<Dead> {
        self.pages().dead.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_missing_from_its_202_until_both_consumers_have_it() {
        let (ledger, order) = (Ledger::default(), Order::new(1));
        ledger.sending(&order);
        assert_eq!(ledger.missing(), 0);
        ledger.acked(&order.id);
        ledger.charged(&order.id, &order.body);
        assert_eq!(ledger.missing(), 1);
        ledger.audited(&order.id, 60);
        assert_eq!(ledger.missing(), 0);
    }

    #[test]
    fn a_second_delivery_is_a_duplicate_and_a_changed_byte_is_damage() {
        let (ledger, order) = (Ledger::default(), Order::new(1));
        ledger.sending(&order);
        ledger.postponed(&order.id);
        ledger.charged(&order.id, &order.body);
        ledger.charged(&order.id, b"another");
        let entry = &ledger.entries()[0];
        assert_eq!(
            (entry.to_billing, entry.duplicates, entry.damaged),
            (3, 1, 1)
        );
    }
}
