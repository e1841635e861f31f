//! Act 1: a read is retried past a dying replica, and the caller never learns of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time;

use super::joined;
use crate::cli::demo::report::Report;
use crate::cli::demo::scrape;
use crate::cli::demo::wait::{Result, Trouble, within};
use crate::cli::demo::world::World;

/// Reads in all.
const READS: u32 = 200;

/// Callers side by side.
const READERS: u32 = 4;

/// After so many reads a replica dies.
const DIES_AFTER: u32 = 50;

/// Between two reads of one caller, so that the death falls among them and not behind them.
const PAUSE: Duration = Duration::from_millis(2);

/// For all reads.
const LIMIT: Duration = Duration::from_secs(20);

/// Reads while a replica dies.
///
/// # Errors
/// The callers hang. Reads that failed are broken promises in the report.
pub(super) async fn play(world: &mut World, report: &mut Report) -> Result<()> {
    let before = retries(&world.metrics().await?);
    let (done, die) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
    let mut readers = JoinSet::new();
    for reader in 0..READERS {
        let (orders, done, die) = (
            Arc::clone(&world.orders),
            Arc::clone(&done),
            Arc::clone(&die),
        );
        readers.spawn(async move {
            let mut client = orders.client();
            let mut outcomes = Vec::new();
            for number in 0..READS / READERS {
                outcomes.push(orders.read(&mut client, reader * 1000 + number).await);
                if done.fetch_add(1, Ordering::Relaxed) + 1 == DIES_AFTER {
                    die.notify_one();
                }
                time::sleep(PAUSE).await;
            }
            Ok::<_, Trouble>(outcomes)
        });
    }
    let outcomes = within("reading from catalog", LIMIT, async {
        die.notified().await;
        drop(world.catalog.pop());
        joined(readers).await
    })
    .await?;

    let (right, wrong): (Vec<_>, Vec<_>) = outcomes.into_iter().flatten().partition(Result::is_ok);
    let answered = right.len();
    report.reads.extend(right.into_iter().flatten());
    if let Some(Err(first)) = wrong.first() {
        let (count, first) = (wrong.len(), first.to_string());
        report.broken.push(format!(
            "{count} of {READS} reads failed, the first: {first}"
        ));
    }
    report.retries = repeated(before, retries(&world.metrics().await?));
    let retried = report
        .retries
        .map_or("an unknown number of".to_owned(), |it| it.to_string());
    report.act(
        "orders reads its catalog; after 50 of 200 reads one of three replicas was killed, app and sidecar",
        format!("{answered} of {READS} reads were answered; orders' sidecar repeated {retried} tries elsewhere"),
    );
    Ok(())
}

fn retries(metrics: &str) -> Option<f64> {
    scrape::sum(metrics, "wayside_retries_total", &[])
}

/// A counter that was not there before began at zero.
fn repeated(before: Option<f64>, after: Option<f64>) -> Option<f64> {
    after.map(|after| after - before.unwrap_or(0.0))
}
