//! Names of services that hide how many replicas there are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::cli::live::finding::{Finding, Found};
use crate::config::Loaded;
use crate::config::model::Balance;

/// What each name resolves to, or why it does not.
pub(in crate::cli::live) type Resolved = BTreeMap<String, Result<Vec<IpAddr>, String>>;

/// Everything about names.
pub(in crate::cli::live) fn apply(loaded: &Loaded, resolved: &Resolved) -> Vec<Finding> {
    let mut found = unresolved(loaded, resolved);
    found.extend(one_address(loaded, resolved));
    found
}

fn unresolved(loaded: &Loaded, resolved: &Resolved) -> Vec<Finding> {
    let mut found = Vec::new();
    for service in &loaded.config.services {
        for (index, address) in service.addresses.iter().enumerate() {
            let (path, host) = (path(&service.name, index), &address.host);
            let reason = match resolved.get(host) {
                Some(Err(words)) => format!("`{host}` does not resolve here: {words}"),
                Some(Ok(none)) if none.is_empty() => format!("`{host}` has no address"),
                _ => continue,
            };
            let remedy = "check the name and `dns.servers`; where it does not resolve, calls are a 503 destination-unresolved";
            let seen = Found::warning(path, reason).of("name", host).remedy(remedy);
            found.push(seen.at("name-resolves", &loaded.places));
        }
    }
    found
}

/// One name with one address leaves nothing to choose from. It is told where a choice is asked for, and where the name
/// looks like that of a Kubernetes Service, whose one address stands for all of its pods.
fn one_address(loaded: &Loaded, resolved: &Resolved) -> Vec<Finding> {
    let mut found = Vec::new();
    for service in &loaded.config.services {
        let [address] = &service.addresses[..] else {
            continue;
        };
        let host = &address.host;
        let Some(Ok([one])) = resolved.get(host).map(|all| all.as_deref()) else {
            continue;
        };
        let asked = loaded
            .places
            .is_written(&format!("services.{}.balance", service.name));
        let kubernetes = host.split('.').any(|label| label == "svc");
        if one.is_loopback() || !(asked || kubernetes) {
            continue;
        }
        let balance = match &service.balance {
            Balance::PeakEwma => "peak-ewma",
            Balance::LeastRequest => "least-request",
            Balance::RoundRobin => "round-robin",
            Balance::RingHash(_) => "ring-hash",
        };
        let reason = format!(
            "`{host}` has one address, so `balance: {balance}` has nothing to choose from, and neither ejection nor a retry elsewhere works: each connection stays with whichever replica took it"
        );
        let remedy = match kubernetes {
            true => {
                "name a headless Service (`clusterIP: None`), which resolves to every ready pod"
            }
            false => {
                "use a name that resolves to every replica (in Kubernetes a headless Service, `clusterIP: None`), or list them in `addresses`"
            }
        };
        let seen = Found::warning(path(&service.name, 0), reason).of("name", host);
        let seen = seen.set("address", one).remedy(remedy);
        found.push(seen.at("one-address", &loaded.places));
    }
    found
}

fn path(service: &str, index: usize) -> String {
    format!("services.{service}.addresses[{index}]")
}
