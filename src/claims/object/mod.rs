//! A store in a place that many sidecars share: a bucket of an S3-compatible store, or a folder that is mounted everywhere.
//!
//! A body is an object named by its SHA-256 (one that came in parts by chance) in a folder named by the hour after which
//! nobody has a claim on it, so that what has expired is found by its folder and deleted by whichever sidecar looks first
//! ([`sweep`]). That also takes the bodies whose records were never published. The key that signs the ids lies beside
//! them, made by whoever came first.
//!
//! * `key`: what signs the ids
//! * `place`: how the place is reached, and how long it is waited for
//! * `upload`: a body that comes in parts
//! * `sweep`: what has expired goes

mod key;
mod place;
mod sweep;
mod upload;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;

use self::key::Keys;
use self::place::{PATIENCE, patience};
pub use self::upload::Upload;
use super::answers::{Answers, MISSES};
use super::id::{Audience, Object, Said};
use super::{Claim, Whole, expiry, parts};
use crate::body::Body;
use crate::config::model::{ClaimObjects, ClaimStore, ObjectPlace, Survives};
use crate::error::{Error, Kind};
use crate::lifecycle;

const HOUR: u64 = 60 * 60;
/// Bytes that are read or written at a time, and held in memory: a bucket takes no parts under 5 MiB.
const PART_LEN: usize = 8 << 20;

/// A store in a shared place.
pub struct Objects {
    name: String,
    place: String,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Where it is mounted, if it is a folder.
    folder: Option<PathBuf>,
    ttl: Duration,
    survives: Survives,
    /// Calls that are under way.
    calls: Arc<Semaphore>,
    /// Whether it answers.
    answers: Arc<Answers>,
    keys: OnceCell<ArcSwap<Keys>>,
    /// Whether it gives its key, without which there is nothing else to ask for.
    keyless: Arc<Answers>,
    /// Since when it is known to have bodies but no key.
    lost: Mutex<Option<Instant>>,
}

impl Objects {
    /// Opens a shared place. A folder is made if it is missing; a bucket is only asked when it is first needed.
    ///
    /// # Errors
    /// The folder cannot be made, or the settings of the bucket make no client.
    pub fn open(config: &ClaimStore, objects: &ClaimObjects) -> io::Result<Self> {
        let (store, prefix) = place::open(&objects.at)?;
        let folder = match &objects.at {
            ObjectPlace::Folder(path) => Some(path.clone()),
            ObjectPlace::S3(_) => None,
        };
        Ok(Self {
            name: config.name.clone(),
            place: objects.at.to_string(),
            store,
            prefix,
            folder,
            ttl: config.ttl,
            survives: objects.survives,
            calls: Arc::new(Semaphore::new(place::calls(&objects.at))),
            answers: Answers::new(MISSES),
            keys: OnceCell::new(),
            keyless: Answers::new(1),
            lost: Mutex::default(),
        })
    }

    /// Keeps a body; when this returns, the place has it.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the place does not take it in time.
    pub async fn keep(self: &Arc<Self>, whole: &Whole, audience: Audience) -> Result<Claim, Error> {
        let keys = self.keys().await?;
        let object = Object {
            audience,
            length: whole.body.len() as u64,
            name: whole.digest,
            ..self.lasting()
        };
        if whole.body.len() > PART_LEN {
            let empty = Object {
                length: 0,
                ..object
            };
            let mut upload = self.upload(empty, object.length).await?;
            upload.write(&whole.body).await?;
            return upload.finish(whole.digest, audience).await;
        }
        let path = self.path(&object);
        let body = whole.body.clone();
        self.done(
            "does not take the body",
            patience(object.length),
            |store| async move { store.put(&path, body.into()).await },
        )
        .await?;
        Ok(Claim {
            id: keys.sign(&object),
            digest: whole.digest,
            size: object.length,
            expires: UNIX_EPOCH + Duration::from_secs(object.expires),
        })
    }

    /// An object that is made now, so far as its time goes.
    fn lasting(&self) -> Object {
        let expires = expiry(self.ttl);
        Object {
            audience: Audience::default(),
            hour: u32::try_from(expires / HOUR + 1).unwrap_or(u32::MAX),
            length: 0,
            expires,
            name: [0; 32],
        }
    }

    /// Where a claim lies, if it is to be served.
    async fn place_of(&self, id: &str) -> Result<Object, Error> {
        let object = self.keys().await?.verify(id);
        let object = object.ok_or_else(|| Error::new(Kind::Unknown, "no claim has this id"))?;
        match SystemTime::now() >= UNIX_EPOCH + Duration::from_secs(object.expires) {
            true => Err(Error::new(Kind::Expired, "the claim has expired")),
            false => Ok(object),
        }
    }

    /// Reads a claim's body.
    ///
    /// # Errors
    /// [`Kind::Unknown`] for an id that was not signed here and for a body that is not there, [`Kind::Expired`],
    /// [`Kind::ClaimDamaged`] if it has not its length, [`Kind::ClaimStore`] if the place is away.
    pub async fn fetch(&self, id: &str) -> Result<Bytes, Error> {
        let object = self.place_of(id).await?;
        let path = self.path(&object);
        let reads = path.clone();
        let read = self.done(
            "cannot be read",
            patience(object.length),
            |store| async move {
                let found = store.get(&reads).await?;
                match found.meta.size == object.length {
                    true => found.bytes().await.map(Some),
                    false => Ok(None),
                }
            },
        );
        match read.await? {
            Some(body) => Ok(body),
            None => {
                tracing::error!(store = self.name, place = self.place, %path, "claim damaged");
                let detail = "the claim's bytes are damaged";
                Err(Error::new(Kind::ClaimDamaged, detail))
            }
        }
    }

    /// Bytes of a claim's body, by its id.
    ///
    /// # Errors
    /// As [`Objects::made`].
    pub async fn size(&self, id: &str) -> Result<Option<u64>, Error> {
        let object = self.keys().await?.verify(id);
        Ok(object.map(|object| object.length))
    }

    /// Reads a claim's body part by part. Its digest is for the reader to check.
    ///
    /// # Errors
    /// As [`Objects::fetch`], as far as it shows before the first byte.
    pub async fn stream(self: &Arc<Self>, id: &str) -> Result<Body, Error> {
        let object = self.place_of(id).await?;
        let path = self.path(&object);
        let looks = path.clone();
        let found = self.done("cannot be read", PATIENCE, |store| async move {
            store.head(&looks).await
        });
        let found = found.await?;
        if found.size != object.length {
            let detail = "the claim's bytes are damaged";
            return Err(Error::new(Kind::ClaimDamaged, detail));
        }
        let (sender, body) = parts::parts(object.length);
        let own = Arc::clone(self);
        let reading = async move {
            let mut at = 0;
            while at < object.length {
                let end = object.length.min(at + PART_LEN as u64);
                let (store, reads) = (Arc::clone(&own.store), path.clone());
                let read = async move { store.get_range(&reads, at..end).await };
                let part = own.goes_on("cannot be read", patience(end - at), read);
                let part = part.await;
                let broken = part.is_err();
                if sender.send(part).await.is_err() || broken {
                    return;
                }
                at = end;
            }
        };
        lifecycle::spawn(&Handle::current(), "claim", reading);
        Ok(body)
    }

    /// Whether this is the place that an id names.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the place is away, so that its key is not known yet.
    pub async fn made(&self, said: &Said) -> Result<bool, Error> {
        self.keys().await.map(|keys| keys.made(said))
    }

    /// The store's name in the config.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it outlives.
    pub fn survives(&self) -> Survives {
        self.survives
    }

    /// How often it is worth looking for what has expired.
    pub fn rhythm(&self) -> Duration {
        (self.ttl / 4).clamp(Duration::from_secs(60), Duration::from_secs(HOUR))
    }

    /// What is listed to see all that is ours.
    fn listed(&self) -> Option<Path> {
        (!self.prefix.as_ref().is_empty()).then(|| self.prefix.clone())
    }

    fn path(&self, object: &Object) -> Path {
        let hex: String = object
            .name
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.prefix
            .clone()
            .join(sweep::hour_text(object.hour))
            .join(hex)
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.place)
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::claims::answers::AWAY;
    use crate::claims::id::audience;
    use crate::config::model::ClaimPlace;

    pub(super) fn open(path: &std::path::Path) -> Arc<Objects> {
        let place = ClaimObjects {
            at: ObjectPlace::Folder(path.to_owned()),
            survives: Survives::Volume,
        };
        let config = ClaimStore {
            name: "shared".into(),
            ttl: Duration::from_secs(100),
            place: ClaimPlace::Object(place.clone()),
        };
        Arc::new(Objects::open(&config, &place).expect("the folder opens"))
    }

    pub(super) async fn keep(objects: &Arc<Objects>, body: &'static str) -> Claim {
        let whole = Whole {
            body: body.into(),
            digest: Sha256::digest(body).into(),
        };
        let kept = objects.keep(&whole, audience("t")).await;
        kept.expect("the folder takes it")
    }

    #[tokio::test]
    async fn what_has_expired_is_deleted_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let objects = open(folder.path());
        std::fs::create_dir(folder.path().join("mine")).unwrap();
        std::fs::write(folder.path().join("mine/file"), "x").unwrap();
        let claim = keep(&objects, "the whole body").await;
        assert_eq!(objects.fetch(&claim.id).await.unwrap(), "the whole body");
        assert_eq!(objects.sweep(claim.expires).await.unwrap(), 0);
        let kept = objects.keys().await.unwrap().verify(&claim.id);
        let path = objects.path(&kept.unwrap());
        let half = folder.path().join(format!("{path}#1"));
        std::fs::write(half, "what a crash left").unwrap();
        let hours = |hours| claim.expires + Duration::from_secs(hours * HOUR);
        assert_eq!(objects.sweep(hours(2)).await.unwrap(), 1);
        assert_eq!(objects.sweep(hours(2)).await.unwrap(), 0);
        let gone = objects.fetch(&claim.id).await.unwrap_err();
        assert_eq!(gone.kind(), Kind::Unknown);
        assert!(folder.path().join("mine/file").exists());
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 2, "the hour went with what a crash had left in it");
        assert!(folder.path().join("key").exists());
    }

    #[tokio::test]
    async fn many_that_open_a_new_place_at_once_agree_on_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let all: Vec<Arc<Objects>> = (0..8).map(|_| open(folder.path())).collect();
        let mut asked = tokio::task::JoinSet::new();
        for objects in all {
            asked.spawn(async move {
                let claim = keep(&objects, "the same").await;
                (objects, claim)
            });
        }
        let kept = asked.join_all().await;
        for (objects, _) in &kept {
            for (_, claim) in &kept {
                assert_eq!(objects.fetch(&claim.id).await.unwrap(), "the same");
            }
        }
    }

    #[tokio::test]
    async fn a_body_of_another_length_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let objects = open(folder.path());
        let claim = keep(&objects, "the whole body").await;
        let object = objects.keys().await.unwrap().verify(&claim.id).unwrap();
        let path = folder.path().join(objects.path(&object).as_ref());
        std::fs::write(path, "the whole").unwrap();
        let damaged = objects.fetch(&claim.id).await.unwrap_err();
        assert_eq!(damaged.kind(), Kind::ClaimDamaged);
    }

    #[tokio::test]
    async fn a_folder_that_hangs_takes_no_more_than_its_threads_and_is_then_left_in_peace() {
        let folder = tempfile::tempdir().unwrap();
        let objects = open(folder.path());
        let (good, bad) = (keep(&objects, "good").await, keep(&objects, "bad").await);
        let object = objects.keys().await.unwrap().verify(&bad.id).unwrap();
        let path = folder.path().join(objects.path(&object).as_ref());
        std::fs::remove_file(&path).unwrap();
        // Whoever opens it waits for somebody who writes.
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..300 {
            let (objects, id) = (Arc::clone(&objects), bad.id.clone());
            asked.spawn(async move { objects.fetch(&id).await.unwrap_err().kind() });
        }
        while objects.calls.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        tokio::time::pause();
        let mut kinds = Vec::new();
        while !asked.is_empty() {
            tokio::time::advance(PATIENCE).await;
            kinds.extend(std::iter::from_fn(|| asked.try_join_next()));
        }
        let kinds: Vec<Kind> = kinds.into_iter().map(Result::unwrap).collect();
        let begun = Instant::now();
        let refused = objects.fetch(&good.id).await;
        let (waited, free) = (begun.elapsed(), objects.calls.available_permits());
        // Before anything fails: the test itself would wait for the threads.
        let ends = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path);
        let _ends = ends.unwrap();
        assert!(kinds.iter().all(|kind| *kind == Kind::ClaimStore));
        assert_eq!(refused.unwrap_err().kind(), Kind::ClaimStore);
        assert_eq!(waited, Duration::ZERO, "nobody waits for it");
        assert_eq!(free, 0, "the threads are not back");
        let calls = u32::try_from(place::calls(&ObjectPlace::Folder("".into()))).unwrap();
        let back = objects.calls.acquire_many(calls).await;
        drop(back.expect("all threads are back"));
        tokio::time::advance(AWAY).await;
        assert_eq!(objects.fetch(&good.id).await.unwrap(), "good");
    }
}
