//! `claims`: the stores of whole bodies.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::diagnostic::{Invalid, quoted};
use crate::config::model::{ClaimStore, Survives};
use crate::config::names::parse_name;
use crate::config::read::{At, all};
use crate::config::words::CLAIM;

/// Stores of one file, at most.
const STORES_MAX: usize = 32;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const TTL_DEFAULT: Duration = Duration::from_secs(60 * 60);
const MAX_DEFAULT: u64 = 1 << 30;

/// Reads every store, in file order.
pub(super) fn claims(at: &At<'_>) -> Option<Vec<ClaimStore>> {
    let named = at.named(STORES_MAX)?;
    if named.is_empty() {
        at.error("name at least one store, such as `bodies: { disk: /var/lib/wayside/claims }`");
        return None;
    }
    let mut folders: HashMap<PathBuf, String> = HashMap::new();
    all(named.iter().map(|(name, at)| {
        let store = store(name, at)?;
        if let Some(other) = folders.insert(store.disk.clone(), store.name.clone()) {
            let disk = at.peek("disk").unwrap_or_else(|| at.clone());
            disk.error(format!(
                "the store `{other}` has this folder already; each needs its own"
            ));
            return None;
        }
        Some(store)
    }))
}

fn store(name: &str, at: &At<'_>) -> Option<ClaimStore> {
    let name = parse_name(name).map_err(|error| at.invalid_key(error)).ok();
    let map = at.map(&CLAIM)?;
    let elsewhere = ["object", "origin"]
        .iter()
        .any(|word| at.peek(word).is_some());
    let disk = if elsewhere {
        None
    } else {
        map.need("disk", |at| at.parse("a folder", folder))
    };
    let ttl = map.or("ttl", TTL_DEFAULT, |at| {
        at.duration(Duration::from_secs(1)..=365 * DAY)
    });
    let max = map.or("max", MAX_DEFAULT, |at| at.size(1 << 20..=1 << 48));
    let survives = map.maybe("survives", survives);
    if survives == Some(None) && !elsewhere {
        at.warning(
            "`survives` is not set, so bodies are told to end with the pod (`survives: pod`)",
        );
    }
    let survives = survives?.unwrap_or(Survives::Pod);
    Some(ClaimStore {
        name: name?,
        disk: disk?,
        ttl: ttl?,
        survives,
        max: max?,
    })
}

/// Reads what a folder outlives.
pub(super) fn survives(at: &At<'_>) -> Option<Survives> {
    at.word(&[
        ("pod", Some(Survives::Pod)),
        ("volume", Some(Survives::Volume)),
    ])
}

/// Reads a folder.
pub(super) fn folder(text: &str) -> Result<PathBuf, Invalid> {
    if text.is_empty() || text.contains('\0') {
        return Err(Invalid::new(format!("{} is not a folder", quoted(text))));
    }
    // Compared as components, so that `a/` and `a` are the same folder.
    Ok(PathBuf::from(text).components().collect())
}
