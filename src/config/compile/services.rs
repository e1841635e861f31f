//! `services`: the named peers.

use std::collections::HashMap;
use std::time::Duration;

use super::{Around, forward, tls};
use crate::config::address::parse_address;
use crate::config::model::{
    Address, Balance, Ejection, HashOf, Health, Limit, Protocol, Rate, Service,
};
use crate::config::names::{parse_header, parse_name, parse_topic};
use crate::config::patterns::parse_path;
use crate::config::read::{At, all};
use crate::config::units::{self, parse_rate};
use crate::config::words::{BALANCE, EJECTION, HEALTH, LIMIT, RATE, RING_HASH, SERVICE};

/// Services of one file, at most; more need discovery rather than a list.
const SERVICES_MAX: usize = 1000;
/// Addresses of one service, at most.
const ADDRESSES_MAX: usize = 256;
const SECOND: Duration = Duration::from_secs(1);
const EJECTION_DEFAULT: Ejection = Ejection {
    failures: 5,
    success_rate: 80,
    time: SECOND,
};
const HEALTH_EVERY: Duration = Duration::from_secs(5);
const UNHEALTHY: u32 = 3;
const HEALTHY: u32 = 2;

/// Reads every service, in file order.
pub(super) fn services(at: &At<'_>, around: &Around) -> Option<Vec<Service>> {
    all(at
        .named(SERVICES_MAX)?
        .iter()
        .map(|(name, at)| service(name, at, around)))
}

fn service(name: &str, at: &At<'_>, around: &Around) -> Option<Service> {
    let name = parse_name(name).map_err(|error| at.invalid_key(error)).ok();
    let map = at.map(&SERVICE)?;
    let elsewhere = at.peek("kubernetes").is_some();
    let addresses = if elsewhere {
        None
    } else {
        map.need("addresses", addresses)
    };
    let balance = map.or("balance", Balance::PeakEwma, balance);
    let protocol = map.or("protocol", Protocol::Auto, |at| {
        at.word(&[
            ("auto", Some(Protocol::Auto)),
            ("http1", Some(Protocol::Http1)),
            ("h2", Some(Protocol::Http2)),
        ])
    });
    let tls = tls::service(&map, addresses.as_deref(), around);
    let health = map.maybe("health", health);
    let limit = map.maybe("limit", limit);
    let rate = map.maybe("rate", rate);
    let ejection = map.or("ejection", Some(EJECTION_DEFAULT), ejection);
    let replies = map.maybe("replies", |at| at.parse("a topic", parse_topic));
    Some(Service {
        name: name?,
        addresses: addresses?,
        balance: balance?,
        protocol: protocol?,
        tls: tls?,
        health: health?,
        limit: limit?,
        rate: rate?,
        ejection: ejection?,
        replies: replies?,
    })
}

fn balance(at: &At<'_>) -> Option<Balance> {
    if !at.is_map() {
        if at.raw_text() == Some("ring-hash") {
            at.error(
                "say what is hashed: `{ ring-hash: path }` or `{ ring-hash: { header: NAME } }`",
            );
            return None;
        }
        return match at.word(&[
            ("peak-ewma", Some(0)),
            ("least-request", Some(1)),
            ("round-robin", Some(2)),
        ])? {
            0 => Some(Balance::PeakEwma),
            1 => Some(Balance::LeastRequest),
            _ => Some(Balance::RoundRobin),
        };
    }
    let map = at.map(&BALANCE)?;
    let of = map.need("ring-hash", |at| {
        if !at.is_map() {
            return at.word(&[("path", Some(()))]).map(|()| HashOf::Path);
        }
        let map = at.map(&RING_HASH)?;
        let header = map.need("header", |at| {
            at.parse("the name of a header", parse_header)
        })?;
        Some(HashOf::Header(header))
    })?;
    Some(Balance::RingHash(of))
}

fn health(at: &At<'_>) -> Option<Health> {
    if !at.is_map() {
        return at
            .parse("a path such as /live, or a mapping", parse_path)
            .map(|path| of_path(path, HEALTH_EVERY));
    }
    let map = at.map(&HEALTH)?;
    let path = map.need("path", |at| at.parse("a path such as /live", parse_path));
    let every = map.or("every", HEALTH_EVERY, |at| {
        at.duration(Duration::from_millis(100)..=SECOND * 3600)
    });
    let timeout = map.maybe("timeout", |at| {
        at.duration(Duration::from_millis(10)..=SECOND * 60)
    });
    let unhealthy = map.or("unhealthy", UNHEALTHY, times);
    let healthy = map.or("healthy", HEALTHY, times);
    let (every, timeout) = (every?, timeout?);
    if let Some(timeout) = timeout.filter(|timeout| *timeout > every) {
        let (timeout, every) = (units::duration(timeout), units::duration(every));
        let reason = format!("{timeout} is longer than {every}, which lies between two checks");
        map.find("timeout")?.error(reason);
        return None;
    }
    let default = of_path(path?, every);
    Some(Health {
        timeout: timeout.unwrap_or(default.timeout),
        unhealthy: unhealthy?,
        healthy: healthy?,
        ..default
    })
}

fn of_path(path: String, every: Duration) -> Health {
    Health {
        path,
        every,
        timeout: SECOND.min(every),
        unhealthy: UNHEALTHY,
        healthy: HEALTHY,
    }
}

fn times(at: &At<'_>) -> Option<u32> {
    u32::try_from(at.count(1..=100)?).ok()
}

fn limit(at: &At<'_>) -> Option<Limit> {
    let map = at.map(&LIMIT)?;
    let in_flight = map.need("in_flight", |at| at.count(1..=1_000_000));
    let queue = map.maybe("queue", |at| at.count(0..=1_000_000));
    let wait = map.or("wait", SECOND, |at| {
        at.duration(Duration::from_millis(1)..=SECOND * 3600)
    });
    let (in_flight, queue) = (in_flight?, queue?);
    Some(Limit {
        in_flight,
        queue: queue.unwrap_or(in_flight),
        wait: wait?,
    })
}

/// Reads `rate` of a service or a route.
pub(super) fn rate(at: &At<'_>) -> Option<Rate> {
    const WHAT: &str = "a rate such as 100/s";
    if !at.is_map() {
        return at.parse(WHAT, parse_rate);
    }
    let map = at.map(&RATE)?;
    let calls = map.need("calls", |at| at.parse(WHAT, parse_rate));
    let burst = map.maybe("burst", |at| at.count(1..=u64::from(u32::MAX)));
    let (calls, burst) = (calls?, burst?);
    Some(Rate {
        burst: burst.map_or(calls.burst, |burst| burst as u32),
        ..calls
    })
}

fn ejection(at: &At<'_>) -> Option<Option<Ejection>> {
    if !at.is_map() {
        return at.word(&[("off", Some(()))]).map(|()| None);
    }
    let map = at.map(&EJECTION)?;
    let failures = map.or("failures", EJECTION_DEFAULT.failures, times);
    let success_rate = map.or(
        "success_rate",
        EJECTION_DEFAULT.success_rate,
        forward::percent,
    );
    let time = map.or("time", EJECTION_DEFAULT.time, |at| {
        at.duration(Duration::from_millis(100)..=SECOND * 60)
    });
    Some(Some(Ejection {
        failures: failures?,
        success_rate: success_rate?,
        time: time?,
    }))
}

fn addresses(at: &At<'_>) -> Option<Vec<Address>> {
    let list = at.list(ADDRESSES_MAX, "[billing.shop.svc:4143]")?;
    if list.is_empty() {
        at.error("a service needs at least one address");
        return None;
    }
    let mut seen = HashMap::new();
    all(list.iter().map(|at| {
        let address = at.parse("an address such as billing.shop.svc:4143", parse_address)?;
        match seen.insert(address.clone(), at.place().line) {
            Some(line) => at.error(format!(
                "`{address}` is here twice; the first is in line {line}"
            )),
            None => return Some(address),
        }
        None
    }))
}
