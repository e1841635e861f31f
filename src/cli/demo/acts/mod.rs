//! The four acts: each makes one trouble happen, counts what the services saw, and says whether a promise broke.

mod outage;
mod poison;
mod read;
mod slim;

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::task::JoinSet;

use super::order::Order;
use super::plain_http::word;
use super::progress::Progress;
use super::report::Report;
use super::services::Placed;
use super::wait::{Result, Trouble, until};
use super::world::World;

/// Orders that are placed side by side.
const PUBLISHERS: u32 = 8;

/// How long every acknowledged order may need to reach both consumers.
const DELIVERY_LIMIT: Duration = Duration::from_secs(20);

/// Plays all acts; stops at the first that cannot go on.
///
/// # Errors
/// The step that failed or hung. Promises that broke without stopping anything are in the report.
pub(super) async fn play(
    world: &mut World,
    progress: &Progress,
    report: &mut Report,
) -> Result<()> {
    progress.say("act 1: a read, while one of catalog's three replicas dies");
    read::play(world, report).await?;
    progress.say("waiting until billing and audit have joined their consumer groups");
    all_delivered(world, "the first order").await?;
    progress
        .say("act 2: orders become small records; one consumer asks for the rest, one does not");
    slim::play(world, report).await?;
    progress.say("act 3: the broker goes away and comes back");
    outage::play(world, progress, report).await?;
    progress.say("act 4: an order that billing can never accept");
    poison::play(world, report).await
}

/// Places orders side by side and returns what became of each.
async fn place(world: &World, orders: Vec<Order>) -> Result<Vec<Placed>> {
    let mut queues: Vec<Vec<Order>> = (0..PUBLISHERS).map(|_| Vec::new()).collect();
    for (number, order) in orders.into_iter().enumerate() {
        queues[number % PUBLISHERS as usize].push(order);
    }
    let mut workers = JoinSet::new();
    for queue in queues {
        let service = Arc::clone(&world.orders);
        workers.spawn(async move {
            let mut client = service.client();
            let mut placed = Vec::with_capacity(queue.len());
            for order in queue {
                placed.push(service.place(&mut client, order).await?);
            }
            Ok::<_, Trouble>(placed)
        });
    }
    Ok(joined(workers).await?.into_iter().flatten().collect())
}

/// What every worker returns, or the first trouble.
async fn joined<T: 'static>(mut workers: JoinSet<Result<T>>) -> Result<Vec<T>> {
    let mut all = Vec::with_capacity(workers.len());
    while let Some(worker) = workers.join_next().await {
        all.push(worker.map_err(|error| Trouble::new(format!("a caller ended: {error}")))??);
    }
    Ok(all)
}

/// Orders with the next `count` numbers.
fn orders(world: &World, count: u32) -> Vec<Order> {
    (0..count)
        .map(|_| Order::new(world.orders.number()))
        .collect()
}

/// Whether this is the 202 that the README promises.
fn accepted(placed: &Placed) -> bool {
    let timeline = word(placed.answer.headers(), "location");
    placed.answer.status() == StatusCode::ACCEPTED && timeline.starts_with("/.wayside/messages/")
}

/// Notes in the report each kind of answer that should have been a 202.
fn must_be_accepted(placed: &[Placed], report: &mut Report) {
    let refused: Vec<&Placed> = placed.iter().filter(|placed| !accepted(placed)).collect();
    if let Some(first) = refused.first() {
        let (status, body) = (
            first.answer.status(),
            String::from_utf8_lossy(first.answer.body()),
        );
        let (count, all) = (refused.len(), placed.len());
        report.broken.push(format!(
            "{count} of {all} orders got no 202, the first {status}: {body}"
        ));
    }
}

/// Waits until every order with a 202 has reached billing and audit.
async fn all_delivered(world: &World, which: &str) -> Result<()> {
    until(
        &format!("delivering {which}"),
        DELIVERY_LIMIT,
        || match world.ledger.missing() {
            0 => None,
            missing => Some(format!(
                "{missing} acknowledged orders have not reached both consumers"
            )),
        },
    )
    .await
}
