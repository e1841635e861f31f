//! The order that the demo's services pass around: about 4 KiB, of which billing's ledger line needs 60 bytes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Lines of an order; with 42 an order has about 4 KiB.
const LINES: u32 = 42;

/// Customers; each is a key, so their orders spread over the topic's partitions.
const CUSTOMERS: u32 = 20;

/// An order as orders sends it.
#[derive(Debug, Clone)]
pub(super) struct Order {
    /// `order-17`.
    pub(super) id: String,
    /// The JSON document.
    pub(super) body: Bytes,
}

/// The part of an order that stays in the record, as both consumers read it.
#[derive(Debug, Deserialize)]
pub(super) struct Slim {
    /// `order-17`.
    pub(super) id: String,
    /// Cents; below zero for the one that billing refuses.
    pub(super) total: i64,
}

#[derive(Serialize)]
struct Document<'a> {
    id: &'a str,
    customer: String,
    total: i64,
    lines: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    item: u32,
    name: String,
    quantity: u32,
    cents: i64,
    note: &'static str,
}

impl Order {
    /// An order like any other.
    pub(super) fn new(number: u32) -> Self {
        Self::with_total(number, |lines| {
            lines
                .iter()
                .map(|line| line.cents * i64::from(line.quantity))
                .sum()
        })
    }

    /// An order with a total below zero, which billing can never accept.
    pub(super) fn poison(number: u32) -> Self {
        Self::with_total(number, |_| -1)
    }

    fn with_total(number: u32, total: impl Fn(&[Line]) -> i64) -> Self {
        let id = format!("order-{number}");
        let lines: Vec<Line> = (1..=LINES).map(|line| Line::new(number, line)).collect();
        let document = Document {
            id: &id,
            customer: format!("customer-{}", number % CUSTOMERS),
            total: total(&lines),
            lines,
        };
        let body = serde_json::to_vec(&document).expect("numbers and strings are always JSON");
        Self {
            id,
            body: Bytes::from(body),
        }
    }
}

impl Line {
    fn new(order: u32, line: u32) -> Self {
        let item = (order * 31 + line * 7) % 1000;
        Self {
            item,
            name: format!("item number {item}"),
            quantity: line % 3 + 1,
            cents: i64::from(item) * 10 + 99,
            note: "leave it at the signal box",
        }
    }
}

/// SHA-256 of a body.
pub(super) fn digest(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_about_four_kibibytes_and_its_own_digest() {
        let (one, two) = (Order::new(1), Order::new(2));
        assert!((3500..4700).contains(&one.body.len()), "{}", one.body.len());
        assert_ne!(digest(&one.body), digest(&two.body));
    }

    #[test]
    fn only_the_poison_has_a_total_below_zero() {
        let total = |order: Order| {
            serde_json::from_slice::<Slim>(&order.body)
                .expect("an order is JSON")
                .total
        };
        assert!(total(Order::new(3)) > 0);
        assert_eq!(total(Order::poison(3)), -1);
    }
}
