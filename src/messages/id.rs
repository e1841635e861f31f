//! The ids of messages: how they are made, and how they are found.

use std::time::SystemTime;

use uuid::{Builder, Uuid};

use super::millis;

/// A new UUIDv7 (RFC 9562 section 5.7). Its random bits are not the system's: it names a message and guards nothing, and a
/// call to the system for each is a tenth of what publishing costs beyond the broker's own client.
pub fn new(now: SystemTime) -> Uuid {
    let mut random = [0; 10];
    fastrand::fill(&mut random);
    Builder::from_unix_timestamp_millis(millis(now), &random).into_uuid()
}

/// Hashes ids by their end, which is random in every version in use (a UUIDv8 of ours ends in a SHA-256), with a number of
/// this process, so that nobody can prepare ids that meet in one place.
#[derive(Debug)]
pub(super) struct Ids(u64);

impl Default for Ids {
    fn default() -> Self {
        Self(fastrand::u64(..))
    }
}

impl Ids {
    pub(super) fn hash(&self, id: Uuid) -> u64 {
        // A record of others may have any id, so its bits are mixed (Knuth, TAOCP vol. 3, 6.4: multiplicative hashing).
        let mixed = u128::from(self.0 ^ id.as_u128() as u64) * 0x9e37_79b9_7f4a_7c15;
        (mixed as u64) ^ (mixed >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn an_id_says_when_it_was_made_and_no_two_are_the_same() {
        let now = UNIX_EPOCH + Duration::from_millis(1_800_000_000_123);
        let ids: HashSet<Uuid> = (0..10_000).map(|_| new(now)).collect();
        assert_eq!(ids.len(), 10_000);
        for id in &ids {
            assert_eq!(
                (id.get_version_num(), id.get_variant()),
                (7, uuid::Variant::RFC4122)
            );
            let (seconds, nanos) = id.get_timestamp().expect("it has one").to_unix();
            assert_eq!((seconds, nanos / 1_000_000), (1_800_000_000, 123));
        }
    }

    #[test]
    fn ids_are_spread_and_those_that_count_up_too() {
        let hasher = Ids::default();
        let spread = |ids: &mut dyn Iterator<Item = Uuid>| {
            let places: HashSet<u64> = ids
                .map(|id| hasher.hash(id) >> 57 << 8 | hasher.hash(id) & 255)
                .collect();
            places.len()
        };
        let now = SystemTime::now();
        assert!(spread(&mut (0..20_000).map(|_| new(now))) > 13_000);
        assert!(spread(&mut (0..20_000).map(Uuid::from_u128)) > 8_000);
        assert!(spread(&mut (0..20_000).map(|n| Uuid::from_u128(n << 32))) > 8_000);
    }
}
