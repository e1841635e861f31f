//! Act 4: an order that its consumer can never accept goes to the dead letters, and the others go on.

use std::time::Duration;

use super::{all_delivered, must_be_accepted, orders, place};
use crate::cli::demo::order::Order;
use crate::cli::demo::report::Report;
use crate::cli::demo::wait::{Result, until};
use crate::cli::demo::world::World;

/// Orders before and after the poison.
const OTHERS: u32 = 20;

/// How soon the dead letter must be there; a consumer may need some seconds to see its topic.
const LIMIT: Duration = Duration::from_secs(20);

/// Places one order that billing refuses among others.
///
/// # Errors
/// The dead letter or one of the others does not arrive in time.
pub(super) async fn play(world: &mut World, report: &mut Report) -> Result<()> {
    let mut batch = orders(world, OTHERS);
    let poison = Order::poison(world.orders.number());
    let id = poison.id.clone();
    batch.insert(batch.len() / 2, poison);
    must_be_accepted(&place(world, batch).await?, report);
    all_delivered(world, "the orders around the poison").await?;

    let found = || world.ledger.dead().into_iter().find(|dead| dead.id == id);
    until("waiting for the dead letter", LIMIT, || {
        found()
            .is_none()
            .then(|| format!("{id} is not in {}", world.names.dead))
    })
    .await?;
    let reasons = found().map(|dead| dead.reasons).unwrap_or_default();
    if reasons.is_empty() {
        report
            .broken
            .push("the dead letter has no wayside-dead- header with its reason".to_owned());
    }
    let others = world
        .ledger
        .dead()
        .iter()
        .filter(|dead| dead.id != id)
        .count();
    if others > 0 {
        report.broken.push(format!(
            "{others} orders were dead-lettered although billing took them"
        ));
    }
    report.act(
        "one order had a total below zero, which billing answers with 422",
        format!(
            "it was set aside in {}, with its reason ({}); the {OTHERS} around it were charged",
            world.names.dead,
            reasons.join(", "),
        ),
    );
    Ok(())
}
