//! What concerns the process as a whole: `messages`, `limits`, `drain`.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::diagnostic::{Invalid, quoted};
use crate::config::model::{Limits, Messages};
use crate::config::read::{At, Map, all};
use crate::config::words::{DNS, LIMITS, MESSAGES};

const SECOND: Duration = Duration::from_secs(1);
const DRAIN_DEFAULT: Duration = Duration::from_secs(25);
const MESSAGES_DEFAULT: Messages = Messages {
    max: 100_000,
    keep: Duration::from_secs(60 * 60),
};
const LIMITS_DEFAULT: Limits = Limits {
    connections: 10_000,
    in_flight: 1_000,
    head: 64 << 10,
    replay: 64 << 10,
    replay_total: 32 << 20,
    claim: 10 << 20,
    claim_cache: 32 << 20,
    claim_fetches: 32,
    results: 32 << 20,
};

/// Reads `messages`.
pub(super) fn messages(file: &Map<'_>) -> Option<Messages> {
    file.or("messages", MESSAGES_DEFAULT, |at| {
        let map = at.map(&MESSAGES)?;
        let max = map.or("max", MESSAGES_DEFAULT.max, |at| at.count(1..=10_000_000));
        let keep = map.or("keep", MESSAGES_DEFAULT.keep, |at| {
            at.duration(SECOND..=SECOND * 7 * 24 * 60 * 60)
        });
        Some(Messages {
            max: max?,
            keep: keep?,
        })
    })
}

/// Reads `dns`.
pub(super) fn dns(file: &Map<'_>) -> Option<Vec<SocketAddr>> {
    /// As many as resolv.conf takes.
    const SERVERS_MAX: usize = 3;
    let server = |at: &At<'_>| {
        at.parse("an address such as 10.96.0.10:53", |text| {
            text.parse().map_err(|_| {
                let hint = text.parse::<std::net::IpAddr>().ok();
                let hint = hint.map(|ip| SocketAddr::new(ip, 53).to_string());
                let reason = format!("{} is not IP:PORT", quoted(text));
                Invalid::new(reason).hint(hint)
            })
        })
    };
    file.or("dns", Vec::new(), |at| {
        at.map(&DNS)?.need("servers", |at| {
            let list = at.list(SERVERS_MAX, "[10.96.0.10:53]")?;
            if list.is_empty() {
                at.error("an empty list asks nobody; to ask the machine's own, leave `dns` out");
                return None;
            }
            all(list.iter().map(server))
        })
    })
}

/// Reads `drain`.
pub(super) fn drain(file: &Map<'_>) -> Option<Duration> {
    file.or("drain", DRAIN_DEFAULT, |at| {
        at.duration(SECOND..=SECOND * 60 * 60)
    })
}

/// Reads `limits`.
pub(super) fn limits(file: &Map<'_>) -> Option<Limits> {
    let default = LIMITS_DEFAULT;
    file.or("limits", default, |at| {
        let map = at.map(&LIMITS)?;
        let connections =
            map.or("connections", default.connections, |at| at.count(1..=1_000_000));
        let in_flight = map.or("in_flight", default.in_flight, |at| at.count(1..=1_000_000));
        let head = map.or("head", default.head, |at| at.bytes(8 << 10..=1 << 20));
        let replay = map.or("replay", default.replay, |at| at.bytes(0..=64 << 20));
        let replay_total =
            map.or("replay_total", default.replay_total, |at| at.bytes(0..=8 << 30));
        let claim = map.or("claim", default.claim, |at| at.bytes(1 << 10..=1 << 30));
        let claim_cache =
            map.or("claim_cache", default.claim_cache, |at| at.bytes(0..=64 << 30));
        let claim_fetches =
            map.or("claim_fetches", default.claim_fetches, |at| at.count(1..=10_000));
        let results = map.or("results", default.results, |at| at.bytes(64 << 10..=8 << 30));
        let (replay, replay_total) = (replay?, replay_total?);
        if replay > replay_total {
            let at = map.find("replay").or_else(|| map.find("replay_total"));
            at.unwrap_or_else(|| map.at().clone()).error(
                "`replay`, the buffer of one call, is larger than `replay_total`, that of all calls",
            );
            return None;
        }
        Some(Limits {
            connections: connections?,
            in_flight: in_flight?,
            head: head?,
            replay,
            replay_total,
            claim: claim?,
            claim_cache: claim_cache?,
            claim_fetches: claim_fetches?,
            results: results?,
        })
    })
}
