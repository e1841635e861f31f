//! The promises against the real thing: Apache Kafka, two `wayside run` processes, two small apps, kcat, kill -9.
//!
//! Without Java, Maven or kcat the tests say so in one line and pass; with `CI` set that is a failure.
//! `tests/README.md` tells how to run one.

#![allow(
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails by panicking and tells what it saw"
)]

#[path = "../support/mod.rs"]
#[cfg(test)]
#[allow(
    dead_code,
    reason = "each test binary uses its part of what they share"
)]
mod support;

#[cfg(test)]
mod line;
#[cfg(test)]
mod sidecar;

mod answers;
mod dead_letters;
mod delivery;
mod event;
mod fallback;
mod lanes;
mod live;
mod outage;
mod publish;
mod slim;
mod spool;
mod world;

use std::sync::Once;

use tokio::sync::{OnceCell, Semaphore};

use support::kafka::{self, Kafka};
use support::process::announce;

/// The broker that the tests share, each with topics and groups of its own names; `None` where it cannot run.
async fn broker() -> Option<&'static Kafka> {
    // No drop runs for a static: the shell beside the broker ends it when this process leaves.
    static SHARED: OnceCell<Kafka> = OnceCell::const_new();
    let jars = jars().await?;
    Some(SHARED.get_or_init(|| Kafka::start(jars)).await)
}

/// A broker for a test that kills it; `None` where it cannot run.
async fn own_broker() -> Option<Kafka> {
    // Each of them kills, starts and loads its own: more at a time, and a machine of two cores is too slow for any deadline.
    static PLACES: Semaphore = Semaphore::const_new(2);
    let jars = jars().await?;
    let place = PLACES.acquire().await.expect("it is never closed");
    Some(Kafka::start(jars).await.at(place))
}

async fn jars() -> Option<std::path::PathBuf> {
    static SAID: Once = Once::new();
    match kafka::jars().await {
        Ok(jars) => Some(jars),
        Err(missing) => {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI runs every test of tests/real: {missing}"
            );
            SAID.call_once(|| {
                announce(&format!(
                    "real: NOT RUN, every test that needs a broker is skipped: {missing}"
                ))
            });
            None
        }
    }
}
