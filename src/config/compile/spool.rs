//! `spool`: the durable log before the broker.

use super::claims::{folder, survives};
use crate::config::model::{ClaimPlace, ClaimStore, Spool, Survives};
use crate::config::read::{At, Map};
use crate::config::words::SPOOL;

const MAX_DEFAULT: u64 = 1 << 30;
/// A segment is at least 256 KiB, and there are at least 16.
const MAX_LEAST: u64 = 4 << 20;

/// Reads the spool.
pub(super) fn spool(at: &At<'_>) -> Option<Spool> {
    let map = at.map(&SPOOL)?;
    let path = map.need("path", |at| at.parse("a folder", folder));
    let max = map.or("max", MAX_DEFAULT, |at| at.size(MAX_LEAST..=1 << 44));
    let survives = map.maybe("survives", survives);
    if survives == Some(None) {
        at.warning(
            "`survives` is not set, so a spooled message is told to end with the pod (`survives: pod`)",
        );
    }
    Some(Spool {
        path: path?,
        max: max?,
        survives: survives?.unwrap_or(Survives::Pod),
    })
}

/// Refuses a spool that nothing can fill, and one in the folder of a claim store.
pub(super) fn check(file: &Map<'_>, spool: Option<&Spool>, claims: &[ClaimStore]) {
    let (Some(at), Some(spool)) = (file.find("spool"), spool) else {
        return;
    };
    if file.find("kafka").is_none() {
        at.error("messages go on to a broker: add a `kafka` section, or leave `spool` out");
    }
    if let Some(store) = claims
        .iter()
        .find(|store| matches!(&store.place, ClaimPlace::Disk(disk) if disk.path == spool.path))
    {
        let at = at.peek("path").unwrap_or(at);
        at.error(format!(
            "the claim store `{}` has this folder already; each needs its own",
            store.name
        ));
    }
}
