//! A store in a place that many sidecars share: a bucket of an S3-compatible store, or a folder that is mounted everywhere.
//!
//! A body is an object named by its SHA-256 (one that came in parts by chance) in a folder named by the hour after which nobody has a claim on it, so that
//! what has expired is found by its folder and deleted by whichever sidecar looks first. That also takes the bodies whose
//! records were never published. The key that signs the ids lies beside them, made by whoever came first.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    MultipartUpload, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, RetryConfig,
};
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::http::Connector;
use super::id::{self, Audience, KEY_LEN, Object, Said, Signer};
use super::{Claim, Whole, expiry, parts};
use crate::body::Body;
use crate::config::model::{Bucket, ClaimObjects, ClaimStore, ObjectPlace, Survives};
use crate::error::{Error, Kind};
use crate::lifecycle::{self, folder};

const HOUR: u64 = 60 * 60;
/// How long one request to the place may take, with its repetitions.
const PATIENCE: Duration = Duration::from_secs(5);
const RETRIES: usize = 2;
/// When a caller may come back after a place that is away.
const AFTER: Duration = Duration::from_secs(1);
/// Bytes that are read or written at a time, and held in memory: a bucket takes no parts under 5 MiB.
const PART_LEN: usize = 8 << 20;
/// Objects of one expired hour that are deleted between two looks, at most.
const SWEPT_MAX: usize = 10_000;
/// Bytes of the name of an hour: `2026-12-04T08`.
const HOUR_LEN: usize = 13;

/// A store in a shared place.
pub struct Objects {
    name: String,
    place: String,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    ttl: Duration,
    survives: Survives,
    signer: OnceCell<Signer>,
}

impl Objects {
    /// Opens a shared place. A folder is made if it is missing; a bucket is only asked when it is first needed.
    ///
    /// # Errors
    /// The folder cannot be made, or the settings of the bucket make no client.
    pub fn open(config: &ClaimStore, objects: &ClaimObjects) -> io::Result<Self> {
        let (store, prefix): (Arc<dyn ObjectStore>, _) = match &objects.at {
            ObjectPlace::Folder(path) => {
                if !path.is_dir() {
                    folder::make(path)?;
                }
                // A record is only published when what it names is on the disk.
                let store = LocalFileSystem::new_with_prefix(path).map_err(io::Error::other)?;
                (Arc::new(store.with_fsync(true)), Path::default())
            }
            ObjectPlace::S3(bucket) => {
                let prefix = Path::from(bucket.prefix.as_str());
                (Arc::new(s3(bucket).map_err(io::Error::other)?), prefix)
            }
        };
        Ok(Self {
            name: config.name.clone(),
            place: objects.at.to_string(),
            store,
            prefix,
            ttl: config.ttl,
            survives: objects.survives,
            signer: OnceCell::new(),
        })
    }

    /// Keeps a body; when this returns, the place has it.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the place does not take it in time.
    pub async fn keep(&self, whole: &Whole, audience: Audience) -> Result<Claim, Error> {
        let signer = self.signer().await?;
        let object = Object {
            audience,
            length: whole.body.len() as u64,
            name: whole.digest,
            ..self.lasting()
        };
        let path = self.path(&object);
        let put = self.store.put(&path, whole.body.clone().into());
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
        let read = async {
            let found = self.store.get(&path).await?;
            match found.meta.size == object.length {
                true => found.bytes().await.map(Some),
                false => Ok(None),
            }
        };
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
        let found = self.done("cannot be read", self.store.head(&path)).await?;
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

    /// Begins a body whose length is not known yet.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the place does not take it.
    pub async fn begin(self: &Arc<Self>) -> Result<Upload, Error> {
        let name = id::new_key().map_err(|error| {
            Error::new(Kind::Internal, "the machine gives no random bytes").because(error)
        })?;
        let object = Object {
            audience: Audience::default(),
            length: 0,
            name,
            ..self.lasting()
        };
        let path = self.path(&object);
        let begun = self.store.put_multipart(&path);
        let upload = self.done("does not take the body", begun).await?;
        Ok(Upload {
            place: Arc::clone(self),
            upload,
            object,
            buffer: Vec::new(),
        })
    }

    /// Whether this is the place that an id names.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the place is away, so that its key is not known yet.
    pub async fn made(&self, said: &Said) -> Result<bool, Error> {
        self.signer().await.map(|signer| signer.made(said))
    }

    /// Deletes what has expired; the number of objects.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the place is away.
    pub async fn sweep(&self, now: SystemTime) -> Result<usize, Error> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / HOUR;
        let now = hour_text(u32::try_from(now).unwrap_or(u32::MAX));
        let prefix = (!self.prefix.as_ref().is_empty()).then_some(&self.prefix);
        let look = "cannot be looked through";
        let listed = self.store.list_with_delimiter(prefix);
        let hours = self.done(look, listed).await?.common_prefixes;
        let mut deleted = 0;
        for hour in hours {
            let old = hour
                .filename()
                .is_some_and(|name| is_hour(name) && name < now.as_str());
            if !old {
                continue;
            }
            let listed = self.store.list_with_delimiter(Some(&hour));
            for object in self.done(look, listed).await?.objects {
                if deleted == SWEPT_MAX {
                    return Ok(deleted);
                }
                let path = &object.location;
                match self.done("does not delete", self.store.delete(path)).await {
                    // Another sidecar may have been first.
                    Err(error) if error.kind() != Kind::Unknown => return Err(error),
                    _ => deleted += 1,
                }
            }
        }
        Ok(deleted)
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
        self.prefix.clone().join(hour_text(object.hour)).join(hex)
    }

    async fn signer(&self) -> Result<&Signer, Error> {
        let opened = self.signer.get_or_try_init(|| async {
            let key = self.key().await?;
            Ok(Signer::new(&key, ""))
        });
        opened.await
    }

    /// The key beside the bodies, made by whoever comes first.
    async fn key(&self) -> Result<[u8; KEY_LEN], Error> {
        let path = self.prefix.clone().join("key");
        let read = async || {
            let read = async { self.store.get(&path).await?.bytes().await };
            let key = self.done("cannot be read", read).await?;
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

    /// Waits for the place. What is not there is [`Kind::Unknown`].
    async fn done<T>(
        &self,
        what: &str,
        asked: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Error> {
        match timeout(PATIENCE, asked).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error @ object_store::Error::NotFound { .. })) => {
                Err(Error::new(Kind::Unknown, "the claim is not in its store").because(error))
            }
            Ok(Err(error)) => Err(self.away(what, Some(error))),
            Err(_) => Err(self.away("does not answer", None)),
        }
    }

    fn away(&self, what: &str, cause: Option<object_store::Error>) -> Error {
        let detail = format!("the claim store {} {what}", self.name);
        let error = Error::new(Kind::ClaimStore, detail).after(AFTER);
        match cause {
            Some(cause) => error.because(cause),
            None => error,
        }
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.place)
    }
}

/// A body that comes in parts.
#[derive(Debug)]
pub struct Upload {
    place: Arc<Objects>,
    upload: Box<dyn MultipartUpload>,
    object: Object,
    buffer: Vec<u8>,
}

impl Upload {
    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the place does not take them in time.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.object.length += bytes.len() as u64;
        self.buffer.extend_from_slice(bytes);
        match self.buffer.len() >= PART_LEN {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let put = self.upload.put_part(bytes.into());
        self.place.done("does not take the body", put).await
    }

    /// Keeps the body; when this returns, the place has it.
    ///
    /// # Errors
    /// As [`Upload::write`].
    pub async fn finish(mut self, digest: [u8; 32], audience: Audience) -> Result<Claim, Error> {
        self.flush().await?;
        let completed = self.upload.complete();
        self.place.done("does not take the body", completed).await?;
        self.object.audience = audience;
        let signer = self.place.signer().await?;
        Ok(Claim {
            id: signer.sign_object(&self.object),
            digest,
            size: self.object.length,
            expires: UNIX_EPOCH + Duration::from_secs(self.object.expires),
        })
    }

    /// Gives up what was taken so far.
    pub async fn abort(mut self) {
        let aborted = self.upload.abort();
        if let Err(error) = self.place.done("does not give up a body", aborted).await {
            let store = &self.place.name;
            tracing::warn!(store, %error, "parts of a body that broke off are left for the place to collect");
        }
    }
}

fn s3(bucket: &Bucket) -> object_store::Result<object_store::aws::AmazonS3> {
    let retry = RetryConfig {
        max_retries: RETRIES,
        retry_timeout: PATIENCE,
        ..RetryConfig::default()
    };
    let plain = bucket
        .endpoint
        .as_deref()
        .is_some_and(|at| at.starts_with("http://"));
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&bucket.name)
        .with_retry(retry)
        .with_allow_http(plain)
        .with_http_connector(Connector::new(!plain));
    if let Some(endpoint) = &bucket.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &bucket.region {
        builder = builder.with_region(region);
    }
    if let Some((id, key)) = &bucket.key {
        builder = builder
            .with_access_key_id(id)
            .with_secret_access_key(key.reveal());
    }
    builder.build()
}

/// The name of an hour since 1970: `2026-12-04T08`. In the order of time.
fn hour_text(hour: u32) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(u64::from(hour) * HOUR);
    let mut text = humantime::format_rfc3339_seconds(time).to_string();
    text.truncate(HOUR_LEN);
    text
}

fn is_hour(name: &str) -> bool {
    let shape = |(at, byte): (usize, u8)| match at {
        4 | 7 => byte == b'-',
        10 => byte == b'T',
        _ => byte.is_ascii_digit(),
    };
    name.len() == HOUR_LEN && name.bytes().enumerate().all(shape)
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::claims::id::audience;
    use crate::config::model::ClaimPlace;

    fn open(path: &std::path::Path) -> Objects {
        let place = ClaimObjects {
            at: ObjectPlace::Folder(path.to_owned()),
            survives: Survives::Volume,
        };
        let config = ClaimStore {
            name: "shared".into(),
            ttl: Duration::from_secs(100),
            place: ClaimPlace::Object(place.clone()),
        };
        Objects::open(&config, &place).expect("the folder opens")
    }

    async fn keep(objects: &Objects, body: &'static str) -> Claim {
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
        let hours = |hours| claim.expires + Duration::from_secs(hours * HOUR);
        assert_eq!(objects.sweep(hours(2)).await.unwrap(), 1);
        assert_eq!(objects.sweep(hours(2)).await.unwrap(), 0);
        let gone = objects.fetch(&claim.id).await.unwrap_err();
        assert_eq!(gone.kind(), Kind::Unknown);
        assert!(folder.path().join("mine/file").exists());
        assert!(folder.path().join("key").exists());
    }

    #[tokio::test]
    async fn many_that_open_a_new_place_at_once_agree_on_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let all: Vec<Objects> = (0..8).map(|_| open(folder.path())).collect();
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

    #[test]
    fn an_hour_has_a_name_in_the_order_of_time() {
        assert_eq!(hour_text(0), "1970-01-01T00");
        assert_eq!(hour_text(498_416), "2026-11-10T08");
        assert!(is_hour(&hour_text(498_416)) && !is_hour("2026-11-10-08") && !is_hour("key"));
        assert!(hour_text(498_416) < hour_text(498_417));
    }
}
