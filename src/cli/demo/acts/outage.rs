//! Act 3: the broker is gone for a moment. Orders are refused honestly meanwhile, and no acknowledged one is lost.

use std::time::Duration;

use http::StatusCode;
use tokio::time::{self, Instant};

use super::{accepted, all_delivered, must_be_accepted, orders, place};
use crate::cli::demo::order::Order;
use crate::cli::demo::plain_http::word;
use crate::cli::demo::progress::Progress;
use crate::cli::demo::report::{Report, time as shown};
use crate::cli::demo::services::Placed;
use crate::cli::demo::wait::{Result, within};
use crate::cli::demo::world::{ATTEMPT_PAUSE, World};

const TITLE: &str = "the broker went away and came back";

/// Orders just before the broker goes, and just after it is back.
const AROUND: u32 = 20;

/// Orders while it is gone.
const REFUSED: u32 = 3;

/// Reads while it is gone.
const READS: u32 = 20;

/// How soon a refusal must come; the route's own limit is 1 s.
const REFUSAL_LIMIT: Duration = Duration::from_secs(3);

/// How soon orders must be taken again.
const BACK_LIMIT: Duration = Duration::from_secs(15);

/// Switches the broker off and on.
///
/// # Errors
/// A step hangs. Answers that are not right are broken promises in the report.
pub(super) async fn play(
    world: &mut World,
    progress: &Progress,
    report: &mut Report,
) -> Result<()> {
    let Some(mut broker) = world.broker.take() else {
        report.act(
            TITLE,
            "left out: this broker is not the demo's to switch off".to_owned(),
        );
        return Ok(());
    };
    let before = place(world, orders(world, AROUND)).await?;
    must_be_accepted(&before, report);
    broker.down().await?;
    progress.say("       the broker is gone");
    let slowest = refusals(world, report).await?;
    let read = reads(world, report).await;
    broker.up().await?;
    progress.say("       the broker is back");
    world.broker = Some(broker);

    let wait = within("publishing again", BACK_LIMIT, accepted_again(world)).await?;
    let after = place(world, orders(world, AROUND)).await?;
    must_be_accepted(&after, report);
    all_delivered(world, "the orders around the broker's absence").await?;
    report.act(
        TITLE,
        format!(
            "meanwhile orders were refused within {} and {read} of {READS} reads went on; {} after its return orders \
             were taken again, and every acknowledged one arrived",
            shown(slowest),
            shown(wait),
        ),
    );
    Ok(())
}

/// Orders without a broker: refused, with a reason and a time to come back. Returns how long the slowest took.
async fn refusals(world: &World, report: &mut Report) -> Result<Duration> {
    let (mut client, mut slowest) = (world.orders.client(), Duration::ZERO);
    for order in orders(world, REFUSED) {
        let placed = world.orders.place(&mut client, order).await?;
        slowest = slowest.max(placed.took);
        if let Some(fault) = fault_of_refusal(&placed) {
            report
                .broken
                .push(format!("an order without a broker: {fault}"));
        }
    }
    Ok(slowest)
}

fn fault_of_refusal(placed: &Placed) -> Option<String> {
    let (status, headers) = (placed.answer.status(), placed.answer.headers());
    let format = word(headers, "content-type");
    if status != StatusCode::SERVICE_UNAVAILABLE {
        return Some(format!("answered with {status} and not with 503"));
    }
    if !headers.contains_key("retry-after") {
        return Some("the 503 has no Retry-After".to_owned());
    }
    if !format.starts_with("application/problem+json") {
        return Some(format!(
            "the 503 is {format:?} and not application/problem+json"
        ));
    }
    (placed.took > REFUSAL_LIMIT).then(|| format!("the 503 took {}", shown(placed.took)))
}

/// Reads without a broker, which they do not need. Returns how many were answered.
async fn reads(world: &World, report: &mut Report) -> u32 {
    let (mut client, mut answered) = (world.orders.client(), 0);
    for item in 0..READS {
        match world.orders.read(&mut client, item).await {
            Ok(took) => {
                answered += 1;
                report.reads.extend([took]);
            }
            Err(trouble) => report
                .broken
                .push(format!("a read without a broker: {trouble}")),
        }
    }
    answered
}

/// Places new orders until one is taken. Returns how long that took.
async fn accepted_again(world: &World) -> Result<Duration> {
    let (mut client, start) = (world.orders.client(), Instant::now());
    loop {
        let order = Order::new(world.orders.number());
        if accepted(&world.orders.place(&mut client, order).await?) {
            return Ok(start.elapsed());
        }
        time::sleep(ATTEMPT_PAUSE).await;
    }
}
