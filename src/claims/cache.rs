//! Bodies that were fetched, and the word that there is none: whoever asks for a claim while it is fetched, or soon after,
//! gets the same answer without another request.
//!
//! The key is the whole reference, not only the digest: who has seen a digest has no right to the body that it is of.

use std::time::Duration;

use bytes::Bytes;
use quick_cache::sync::{Cache as Inner, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::Reference;
use crate::error::{Error, Kind};

/// Bytes of an entry besides its body.
const ENTRY_LEN: u64 = 256;
/// How long it is believed that a body is gone for good.
const GONE: Duration = Duration::from_secs(60);
/// How long it is believed that it is damaged, or another one by now.
const WRONG: Duration = Duration::from_secs(1);
/// How long it is believed that it is not here, or that its store is away: as long as a burst of callers lasts.
const AWAY: Duration = Duration::from_millis(50);

/// What was fetched, by reference.
pub struct Cache(Inner<[u8; 32], Entry, Weight>);

#[derive(Clone)]
enum Entry {
    Whole(Bytes),
    Refused(Refusal),
}

#[derive(Clone)]
struct Refusal {
    until: Instant,
    kind: Kind,
    detail: String,
    after: Option<Duration>,
}

#[derive(Clone)]
struct Weight;

impl Weighter<[u8; 32], Entry> for Weight {
    fn weight(&self, _: &[u8; 32], entry: &Entry) -> u64 {
        match entry {
            Entry::Whole(body) => ENTRY_LEN + body.len() as u64,
            Entry::Refused(_) => ENTRY_LEN,
        }
    }
}

/// A body, and whether it was there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Had {
    /// Byte for byte.
    pub body: Bytes,
    /// Whether nobody was asked for it on this call's behalf.
    pub cached: bool,
}

impl Cache {
    /// Holds up to `max` bytes of bodies; with none, only those who ask at the same time share an answer.
    pub fn new(max: usize) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity((max / (16 << 10)).clamp(64, 1 << 20))
            .weight_capacity(max as u64)
            // Each shard has its share, which a body must fit into; whoever asks has crossed a network anyway.
            .shards(1)
            .build()
            .expect("both capacities are set");
        let lifecycle = DefaultLifecycle::default();
        let inner = Inner::with_options(options, Weight, Default::default(), lifecycle);
        Self(inner)
    }

    /// The body of a reference, fetched only if nobody did a moment ago or is at it. If whoever fetches gives up, the next
    /// who waits fetches in its place.
    ///
    /// # Errors
    /// Those of `fetch`, for a while also to others.
    pub async fn get(
        &self,
        reference: &Reference,
        fetch: impl Future<Output = Result<Bytes, Error>>,
    ) -> Result<Had, Error> {
        let key = key(reference);
        loop {
            let guard = match self.0.get_value_or_guard_async(&key).await {
                Ok(Entry::Whole(body)) => return Ok(Had { body, cached: true }),
                Ok(Entry::Refused(refusal)) if Instant::now() < refusal.until => {
                    return Err(refusal.error());
                }
                Ok(Entry::Refused(old)) => {
                    let same = |entry: &Entry| matches!(entry, Entry::Refused(refusal) if refusal.until == old.until);
                    self.0.remove_if(&key, same);
                    continue;
                }
                Err(guard) => guard,
            };
            // Nobody hears of an entry that could not be put in: it was replaced or is over the limit.
            return match fetch.await {
                Ok(body) => {
                    guard.insert(Entry::Whole(body.clone())).ok();
                    let cached = false;
                    Ok(Had { body, cached })
                }
                Err(error) => {
                    guard.insert(Entry::Refused(Refusal::of(&error))).ok();
                    Err(error)
                }
            };
        }
    }
}

impl Refusal {
    fn of(error: &Error) -> Self {
        let kind = error.kind();
        let believed = match kind {
            Kind::Expired => GONE,
            Kind::ClaimDamaged | Kind::ClaimChanged => WRONG,
            _ => AWAY,
        };
        Self {
            until: Instant::now() + believed,
            kind,
            detail: error.detail().to_owned(),
            after: error.retry_after(),
        }
    }

    fn error(self) -> Error {
        let error = Error::new(self.kind, self.detail);
        match self.after {
            Some(after) => error.after(after),
            None => error,
        }
    }
}

fn key(reference: &Reference) -> [u8; 32] {
    let mut hash = Sha256::new();
    for text in [&reference.origin, &reference.claim, &reference.path] {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    hash.update(reference.digest);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::SystemTime;

    use super::*;

    fn reference(claim: &str) -> Reference {
        Reference {
            origin: "orders".into(),
            claim: claim.into(),
            expires: SystemTime::now(),
            made: SystemTime::now(),
            ..Reference::default()
        }
    }

    #[tokio::test]
    async fn those_who_ask_at_once_share_one_request_and_those_after_them_too() {
        for max in [0, 1 << 20] {
            let cache = Arc::new(Cache::new(max));
            let asked = Arc::new(AtomicUsize::new(0));
            let mut all = tokio::task::JoinSet::new();
            for _ in 0..50 {
                let (cache, asked) = (Arc::clone(&cache), Arc::clone(&asked));
                all.spawn(async move {
                    let fetch = async {
                        asked.fetch_add(1, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                        Ok(Bytes::from_static(b"body"))
                    };
                    cache.get(&reference("a"), fetch).await.unwrap()
                });
            }
            let had = all.join_all().await;
            assert!(had.iter().all(|had| had.body == "body"));
            assert_eq!(had.iter().filter(|had| !had.cached).count(), 1, "{max}");
            assert_eq!(asked.load(Ordering::SeqCst), 1, "{max}");
            let again = cache.get(&reference("a"), async { Ok(Bytes::new()) }).await;
            assert_eq!(again.unwrap().cached, max > 0);
        }
    }

    #[tokio::test]
    async fn a_reference_that_differs_in_anything_is_another_one() {
        let cache = Cache::new(1 << 20);
        let get = async |reference: &Reference| {
            let had = cache.get(reference, async { Ok(Bytes::from_static(b"x")) });
            had.await.unwrap().cached
        };
        assert!(!get(&reference("a")).await);
        assert!(get(&reference("a")).await);
        let path = "/x".into();
        let digest = [1; 32];
        let origin = "other".into();
        for other in [
            reference("b"),
            Reference {
                path,
                ..reference("a")
            },
            Reference {
                digest,
                ..reference("a")
            },
            Reference {
                origin,
                ..reference("a")
            },
        ] {
            assert!(!get(&other).await, "{other:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_believed_for_as_long_as_it_is_likely_to_hold() {
        let cache = Cache::new(1 << 20);
        let refused = async |kind: Kind| {
            let mut asked = false;
            let fetch = async {
                asked = true;
                Err(Error::new(kind, "no").after(Duration::from_secs(3)))
            };
            let error = cache.get(&reference(kind.word()), fetch).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.retry_after()),
                (kind, Some(Duration::from_secs(3)))
            );
            asked
        };
        for (kind, believed) in [
            (Kind::Expired, GONE),
            (Kind::ClaimChanged, WRONG),
            (Kind::Unknown, AWAY),
        ] {
            assert!(refused(kind).await);
            tokio::time::advance(believed - Duration::from_millis(1)).await;
            assert!(!refused(kind).await, "{kind:?} is still believed");
            tokio::time::advance(Duration::from_millis(2)).await;
            assert!(refused(kind).await, "{kind:?} is asked again");
        }
    }

    #[tokio::test]
    async fn who_waits_fetches_when_the_one_before_gives_up() {
        let cache = Cache::new(1 << 20);
        let reference = reference("a");
        let mut first = Box::pin(cache.get(&reference, pending()));
        assert!(futures_now(&mut first).await.is_none());
        let mut second = Box::pin(cache.get(&reference, async { Ok(Bytes::from_static(b"x")) }));
        assert!(futures_now(&mut second).await.is_none());
        drop(first);
        assert_eq!(second.await.unwrap().body, "x");
    }

    /// One poll.
    async fn futures_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        tokio::select! {
            biased;
            done = future => Some(done),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn what_is_held_stays_within_its_limit() {
        let cache = Cache::new(64 << 10);
        for n in 0..1000 {
            let body = async { Ok(Bytes::from(vec![0; 4 << 10])) };
            cache.get(&reference(&n.to_string()), body).await.unwrap();
        }
        assert!(cache.0.weight() <= 64 << 10, "{}", cache.0.weight());
        let large = || async { Ok(Bytes::from(vec![0; 128 << 10])) };
        assert!(
            !cache
                .get(&reference("large"), large())
                .await
                .unwrap()
                .cached
        );
        assert!(
            !cache
                .get(&reference("large"), large())
                .await
                .unwrap()
                .cached
        );
    }
}
