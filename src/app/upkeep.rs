//! What goes on in the background for as long as a sidecar lives: metrics, expired claims in shared places, certificates.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use tokio::time::sleep;

use super::LOOK;
use super::parts::Parts;
use crate::claims::{Objects, Store};
use crate::config::model::{Hydrate, Subscription};
use crate::telemetry::names;
use crate::worth::calibrate;

/// How often histograms are moved into their buckets and gauges are read.
const UPKEEP: Duration = Duration::from_secs(1);

/// Keeps memory flat while nobody scrapes, and reads what has no event of its own.
pub(super) async fn metrics(parts: Weak<Parts>) {
    loop {
        sleep(UPKEEP).await;
        // A stopped sidecar's claim folder must be free for the next one.
        let Some(parts) = parts.upgrade() else { return };
        let queue = parts.metrics.gauge(&names::PRODUCER_QUEUE, &[]);
        parts.metrics.upkeep();
        parts.subscriptions.refresh();
        if let Some(broker) = &parts.broker {
            let outbox = broker.sender.outbox.as_ref();
            let spooled = outbox.map_or(0, |(outbox, _)| outbox.waiting());
            queue.set((broker.sender.producer.waiting() + spooled) as f64);
            if let Some((outbox, _)) = outbox {
                let set = |name, value: u64| parts.metrics.gauge(name, &[]).set(value as f64);
                set(&names::SPOOL_BYTES, outbox.spool().used());
                set(&names::SPOOL_OWED, outbox.spool().owed());
            }
        }
        for store in parts.claims.iter() {
            if let Store::Disk(disk) = store {
                let labels = [("store", disk.name())];
                let used = parts.metrics.gauge(&names::CLAIM_BYTES, &labels);
                used.set(disk.used() as f64);
                let evicted = parts.metrics.counter(&names::CLAIM_EVICTED, &labels);
                evicted.absolute(disk.evicted());
            }
        }
    }
}

/// Between two looks at whether shared places have their keys.
const KEYS: Duration = Duration::from_secs(30);
/// Seconds between two looks at how many replicas the topics of events have.
const REPLICAS_EVERY: u32 = 60;

/// Whether a subscription may have to do with slim messages.
pub(super) fn reads_slim(subscription: &Subscription) -> bool {
    subscription.hydrate != Hydrate::Never
}

/// Keeps the balance of events: what things cost here, once there is one; what was counted, each second; how many replicas there are.
pub(super) async fn worth(parts: Weak<Parts>) {
    let mut measured = false;
    for second in 0_u32.. {
        sleep(UPKEEP).await;
        let Some(worth) = parts.upgrade().map(|parts| Arc::clone(&parts.worth)) else {
            return;
        };
        // Not before there is a slim message: most consumers never see one, and it costs milliseconds. Nothing else is held
        // meanwhile: a stopped sidecar's claim folder must be free for the next one.
        if !measured && !worth.topics().is_empty() {
            measured = true;
            match tokio::task::spawn_blocking(calibrate::measure).await {
                Ok(Ok(found)) => worth.measured(found),
                failed => tracing::warn!(?failed, "what things cost here was not measured"),
            }
        }
        worth.tick();
        let Some(parts) = parts.upgrade() else { return };
        let broker = parts
            .broker
            .as_ref()
            .filter(|_| second % REPLICAS_EVERY == 3);
        if let Some(broker) = broker {
            let sender = Arc::clone(&broker.sender);
            drop(parts);
            let looking = tokio::task::spawn_blocking(move || {
                for topic in worth.topics() {
                    if let Some(replicas) = sender.producer.replicas(&topic) {
                        worth.replicas(&topic, replicas);
                    }
                }
            });
            looking.await.ok();
        }
    }
}

/// The places that are shared with others; `None` once the sidecar is gone. Nothing else is held: a stopped sidecar's claim
/// folder must be free for the next one.
fn shared(parts: &Weak<Parts>) -> Option<Vec<Arc<Objects>>> {
    let parts = parts.upgrade()?;
    let shared = parts.claims.iter().filter_map(|store| match store {
        Store::Objects(objects) => Some(Arc::clone(objects)),
        Store::Disk(_) | Store::Origin(_) => None,
    });
    Some(shared.collect())
}

/// Deletes what has expired in shared places, which belong to nobody who would do it alone.
pub(super) async fn sweep(parts: Weak<Parts>) {
    let rhythm = || shared(&parts)?.iter().map(|place| place.rhythm()).min();
    while let Some(rhythm) = rhythm() {
        // Not all at the same time, since each looks through the whole place.
        sleep(rhythm.mul_f64(0.5 + fastrand::f64())).await;
        for place in shared(&parts).into_iter().flatten() {
            let store = place.name();
            match place.sweep(SystemTime::now()).await {
                Ok(0) => {}
                Ok(deleted) => tracing::info!(store, deleted, "expired claims deleted"),
                Err(error) => tracing::warn!(store, %error, "expired claims not deleted"),
            }
        }
    }
}

/// Sees to it that shared places keep the keys that the ids in them are signed with.
pub(super) async fn keys(parts: Weak<Parts>) {
    while shared(&parts).is_some_and(|places| !places.is_empty()) {
        sleep(KEYS.mul_f64(0.5 + fastrand::f64())).await;
        for place in shared(&parts).into_iter().flatten() {
            if let Err(error) = place.look_after_key().await {
                let store = place.name();
                tracing::warn!(store, %error, "the key of a shared place is not to be seen");
            }
        }
    }
}

/// Reads certificates again when their files change. Connections that are open go on; the next handshake uses the new.
pub(super) async fn refresh_identities(parts: Weak<Parts>) {
    let mut refused: Vec<String> = Vec::new();
    loop {
        sleep(LOOK).await;
        let Some(parts) = parts.upgrade() else { return };
        refused.resize(parts.identities.len(), String::new());
        for (identity, refused) in parts.identities.iter().zip(&mut refused) {
            let tls = identity.name();
            let count = |result| {
                let labels = [("tls", tls), ("result", result)];
                parts
                    .metrics
                    .counter(&names::TLS_RELOADS, &labels)
                    .increment(1);
            };
            match identity.refresh() {
                // Back to what is in force, perhaps: the next mistake is news, even if it is the last one.
                Ok(false) => refused.clear(),
                Ok(true) => {
                    count("ok");
                    refused.clear();
                    tracing::info!(tls, "certificate files have changed and are in force");
                }
                Err(error) => {
                    // Said once: what is wrong stays wrong until somebody writes the files again.
                    let error = error.to_string();
                    if error != *refused {
                        count("refused");
                        tracing::error!(
                            tls,
                            error,
                            "certificate files refused; the old ones go on"
                        );
                        *refused = error;
                    }
                }
            }
        }
    }
}
