//! Names to addresses: looked up at the start, then again and again, the last good answer kept.
//!
//! The system's resolver tells no TTL, so the interval is fixed.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Endpoint, Upstream};
use crate::config::model::Address;

/// How often names are looked up.
pub(super) const FRESH: Duration = Duration::from_secs(5);
/// How long one look-up may take before the old answer stays.
const LOOKUP: Duration = Duration::from_secs(2);
/// Addresses that one service may have; more are ignored, with a warning.
const ADDRESSES_MAX: usize = 1_000;
/// How often idle connections are looked over.
const SWEEP: Duration = Duration::from_secs(1);

/// The last good answer of each configured address, in their order.
#[derive(Debug, Default)]
pub(super) struct Answers(Vec<Vec<SocketAddr>>);

/// Looks up and sweeps until the upstream is gone.
pub(super) async fn keep_fresh(upstream: Weak<Upstream>, mut answers: Answers) {
    let rounds = FRESH.as_secs() / SWEEP.as_secs();
    for round in 1_u64.. {
        sleep(SWEEP).await;
        let Some(upstream) = upstream.upgrade() else {
            return;
        };
        for endpoint in upstream.endpoints.load().iter() {
            endpoint.pool.sweep(upstream.settings.idle);
        }
        if round.is_multiple_of(rounds) {
            refresh(&upstream, &mut answers).await;
        }
    }
}

/// Looks all names up. One that fails keeps its last answer and does not hold up the others. Addresses that stay keep
/// their pool and their load; those that are gone lose theirs.
pub(super) async fn refresh(upstream: &Arc<Upstream>, answers: &mut Answers) {
    answers.0.resize_with(upstream.addresses.len(), Vec::new);
    // All at once: with the name server away, one after the other would take two seconds each.
    let mut looking = JoinSet::new();
    for (at, address) in upstream.addresses.iter().cloned().enumerate() {
        looking.spawn(async move { (at, look_up(&address).await) });
    }
    for (at, answer) in looking.join_all().await {
        match answer {
            Ok(answer) => answers.0[at] = answer,
            Err(error) => {
                let (address, kept) = (&upstream.addresses[at], answers.0[at].len());
                tracing::warn!(service = upstream.name, %address, %error, kept, "name does not resolve");
            }
        }
    }
    let old = upstream.endpoints.load_full();
    let mut found: Vec<SocketAddr> = answers.0.concat();
    found.sort_unstable();
    found.dedup();
    if found.len() > ADDRESSES_MAX {
        tracing::warn!(
            service = upstream.name,
            found = found.len(),
            max = ADDRESSES_MAX,
            "too many addresses"
        );
        found.truncate(ADDRESSES_MAX);
    }
    if found
        .iter()
        .eq(old.iter().map(|endpoint| &endpoint.address))
    {
        return;
    }
    let kept = |address: &SocketAddr| {
        old.iter()
            .find(|endpoint| endpoint.address == *address)
            .cloned()
    };
    let endpoints: Vec<Arc<Endpoint>> = found
        .iter()
        .map(|address| {
            kept(address).unwrap_or_else(|| Endpoint::new(*address, upstream.settings.shards))
        })
        .collect();
    tracing::info!(
        service = upstream.name,
        addresses = endpoints.len(),
        "addresses changed"
    );
    upstream.meters.addresses.set(endpoints.len() as f64);
    upstream.endpoints.store(Arc::new(endpoints));
}

async fn look_up(address: &Address) -> std::io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = address.host.parse() {
        return Ok(vec![SocketAddr::new(ip, address.port)]);
    }
    let looking = lookup_host((address.host.as_str(), address.port));
    match timeout(LOOKUP, looking).await {
        Ok(answers) => Ok(answers?.collect()),
        Err(_) => Err(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "the look-up timed out",
        )),
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Handle;

    use super::super::Shared;
    use super::*;
    use crate::telemetry::metrics::Metrics;

    #[tokio::test]
    async fn a_name_that_fails_keeps_its_last_answer_and_the_others_move_on() {
        let shared = Shared {
            metrics: Metrics::new(),
            shards: 1,
            runtime: Handle::current(),
        };
        let address = |host: &str| Address {
            host: host.to_owned(),
            port: 80,
        };
        let configured = [address("nowhere.invalid"), address("127.0.0.2")];
        let upstream =
            Upstream::start("billing", &configured, Duration::from_secs(1), &shared).await;
        let known = |host: [u8; 4]| SocketAddr::from((host, 80));
        let mut answers = Answers(vec![
            vec![known([127, 0, 0, 1])],
            vec![known([127, 0, 0, 9])],
        ]);
        refresh(&upstream, &mut answers).await;
        let found: Vec<SocketAddr> = upstream
            .endpoints()
            .iter()
            .map(|endpoint| endpoint.address)
            .collect();
        assert_eq!(found, [known([127, 0, 0, 1]), known([127, 0, 0, 2])]);
    }
}
