//! `services`: the named peers.

use std::collections::HashMap;

use crate::config::address::parse_address;
use crate::config::model::{Address, Service};
use crate::config::names::parse_name;
use crate::config::read::{At, all};
use crate::config::words::SERVICE;

/// Services of one file, at most; more need discovery rather than a list.
const SERVICES_MAX: usize = 1000;
/// Addresses of one service, at most.
const ADDRESSES_MAX: usize = 256;

/// Reads every service, in file order.
pub(super) fn services(at: &At<'_>) -> Option<Vec<Service>> {
    all(at
        .named(SERVICES_MAX)?
        .iter()
        .map(|(name, at)| service(name, at)))
}

fn service(name: &str, at: &At<'_>) -> Option<Service> {
    let name = parse_name(name).map_err(|error| at.invalid_key(error)).ok();
    let map = at.map(&SERVICE)?;
    let elsewhere = at.peek("kubernetes").is_some();
    let addresses = if elsewhere {
        None
    } else {
        map.need("addresses", addresses)
    };
    let balance = map.or("balance", (), |at| {
        at.word(&[
            ("peak-ewma", Some(())),
            ("round-robin", None),
            ("random", None),
        ])
    });
    balance?;
    Some(Service {
        name: name?,
        addresses: addresses?,
    })
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
