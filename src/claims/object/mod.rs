//! A store in a place that many sidecars share: a bucket of an S3-compatible store, or a folder that is mounted everywhere.
//!
//! A body is an object named by its SHA-256 (one that came in parts by chance) in a folder named by the hour after which
//! nobody has a claim on it, so that what has expired is found by its folder and deleted by whichever sidecar looks first
//! ([`sweep`]). That also takes the bodies whose records were never published. The key that signs the ids lies beside
//! them, made by whoever came first.
//!
//! * `place`: how the place is reached, and how long it is waited for
//! * `upload`: a body that comes in parts
//! * `sweep`: what has expired goes

mod place;
mod sweep;
mod upload;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions};
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

use self::place::{AFTER, PATIENCE, patience};
pub use self::upload::Upload;
use super::id::{self, Audience, KEY_LEN, Object, Said, Signer};
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
    signer: OnceCell<Signer>,
    /// Since its key was not to be had: until when nobody asks for it again.
    keyless: Mutex<Option<Instant>>,
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
            signer: OnceCell::new(),
            keyless: Mutex::default(),
        })
    }

    /// Keeps a body; when this returns, the place has it.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the place does not take it in time.
    pub async fn keep(self: &Arc<Self>, whole: &Whole, audience: Audience) -> Result<Claim, Error> {
        let signer = self.signer().await?;
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
        let put = self.store.put(&path, whole.body.clone().into());
        let put = (put, patience(object.length));
        self.done("does not take the body", put).await?;
        Ok(Claim {
            id: signer.sign_object(&object),
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
        let object = self.signer().await?.verify_object(id);
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
        let found = (self.store.get(&path), PATIENCE);
        let found = self.done("cannot be read", found).await?;
        let read = async {
            match found.meta.size == object.length {
                true => found.bytes().await.map(Some),
                false => Ok(None),
            }
        };
        let read = (read, patience(object.length));
        match self.done("cannot be read", read).await? {
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
        let object = self.signer().await?.verify_object(id);
        Ok(object.map(|object| object.length))
    }

    /// Reads a claim's body part by part. Its digest is for the reader to check.
    ///
    /// # Errors
    /// As [`Objects::fetch`], as far as it shows before the first byte.
    pub async fn stream(self: &Arc<Self>, id: &str) -> Result<Body, Error> {
        let object = self.place_of(id).await?;
        let path = self.path(&object);
        let found = (self.store.head(&path), PATIENCE);
        let found = self.done("cannot be read", found).await?;
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
                let part = own.store.get_range(&path, at..end);
                let part = (part, patience(end - at));
                let part = own.done("cannot be read", part).await;
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
        self.signer().await.map(|signer| signer.made(said))
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

    async fn signer(&self) -> Result<&Signer, Error> {
        if let Some(signer) = self.signer.get() {
            return Ok(signer);
        }
        let until = *self.keyless.lock().unwrap_or_else(PoisonError::into_inner);
        if until.is_some_and(|until| Instant::now() < until) {
            return Err(self.away("did not give its key a moment ago", None));
        }
        let opened = self.signer.get_or_try_init(|| async {
            let key = self.key().await?;
            Ok(Signer::new(&key, ""))
        });
        // With the wait for another who asks for it.
        let opened = timeout(PATIENCE, opened).await;
        let opened = opened.unwrap_or_else(|_| Err(self.away("does not answer", None)));
        if opened.is_err() {
            let until = Some(Instant::now() + AFTER);
            *self.keyless.lock().unwrap_or_else(PoisonError::into_inner) = until;
        }
        opened
    }

    /// The key beside the bodies, made by whoever comes first.
    async fn key(&self) -> Result<[u8; KEY_LEN], Error> {
        let path = self.prefix.clone().join("key");
        let read = async || {
            let read = async { self.store.get(&path).await?.bytes().await };
            let key = self.done("cannot be read", (read, PATIENCE)).await?;
            let key = <[u8; KEY_LEN]>::try_from(&key[..]);
            key.map_err(|_| self.away("has a `key` that is none", None))
        };
        match read().await {
            Err(error) if error.kind() == Kind::Unknown => {}
            key => return key,
        }
        let key = id::new_key()
            .map_err(|error| Error::new(Kind::Internal, "no random bytes").because(error))?;
        let first = PutOptions::from(PutMode::Create);
        let put = self
            .store
            .put_opts(&path, Bytes::copy_from_slice(&key).into(), first);
        match timeout(PATIENCE, put).await {
            Ok(Ok(_)) => Ok(key),
            Ok(Err(object_store::Error::AlreadyExists { .. })) => read().await,
            Ok(Err(error)) => Err(self.away("does not take its key", Some(error))),
            Err(_) => Err(self.away("does not answer", None)),
        }
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
    use crate::claims::id::audience;
    use crate::config::model::ClaimPlace;

    fn open(path: &std::path::Path) -> Arc<Objects> {
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

    async fn keep(objects: &Arc<Objects>, body: &'static str) -> Claim {
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
        let kept = objects.signer().await.unwrap().verify_object(&claim.id);
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
        let object = objects
            .signer()
            .await
            .unwrap()
            .verify_object(&claim.id)
            .unwrap();
        let path = folder.path().join(objects.path(&object).as_ref());
        std::fs::write(path, "the whole").unwrap();
        let damaged = objects.fetch(&claim.id).await.unwrap_err();
        assert_eq!(damaged.kind(), Kind::ClaimDamaged);
    }
}
