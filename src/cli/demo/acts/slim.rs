//! Act 2: an order travels as a small record; the consumer that needs the rest asks for it, the other does not.

use super::{accepted, all_delivered, must_be_accepted, orders, place};
use crate::cli::demo::report::Report;
use crate::cli::demo::wait::Result;
use crate::cli::demo::world::World;

/// Orders in all.
const ORDERS: u32 = 200;

/// Places orders and compares what arrives with what was sent.
///
/// # Errors
/// An order does not arrive in time. Answers and bytes that are not right are broken promises in the report.
pub(super) async fn play(world: &mut World, report: &mut Report) -> Result<()> {
    let placed = place(world, orders(world, ORDERS)).await?;
    must_be_accepted(&placed, report);
    report.publishes.extend(
        placed
            .iter()
            .filter(|it| accepted(it))
            .map(|placed| placed.took),
    );
    all_delivered(world, "200 orders").await?;

    let ids: Vec<&str> = placed.iter().map(|placed| placed.id.as_str()).collect();
    let entries = world.ledger.entries_of(&ids);
    report
        .deliveries
        .extend(entries.iter().filter_map(|entry| entry.travelled()));
    let exact = entries
        .iter()
        .filter(|entry| entry.hydrated > 0 && entry.damaged == 0)
        .count();
    let large = entries
        .iter()
        .filter(|entry| entry.slim >= entry.whole)
        .count();
    if exact < ids.len() {
        let damaged = ids.len() - exact;
        report.broken.push(format!(
            "{damaged} hydrated orders were not byte for byte what was sent"
        ));
    }
    if large > 0 {
        report
            .broken
            .push(format!("{large} orders were not slimmed"));
    }
    report.act(
        "orders tells of 200 orders; only id, customer and total travel through the broker",
        format!(
            "billing asked for the rest and had {exact} of {ORDERS} byte for byte as sent; audit needed nothing more"
        ),
    );
    Ok(())
}
