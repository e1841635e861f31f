//! Kept bodies: where the whole of a message lies while only its slim body goes through the broker.
//!
//! [`Stores`] are all that the config has, each behind the same [`Store`]: a folder of this sidecar ([`disk`]), a place
//! that many share ([`object`]), or nowhere, so that the service that made the body is asked again ([`origin`]). Each
//! names a body by a signed, expiring [`id`]. A [`Reference`] is what the receiving sidecar hands to its app in place of
//! the body: it names the service to ask, and the digest that the answer must have. The [`cache`] holds what was fetched.

pub mod answers;
pub mod cache;
mod disk;
mod http;
pub mod id;
pub mod object;
pub mod origin;
mod parts;
mod reference;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

pub use disk::Disk;
pub use object::Objects;
pub use origin::Origin;
pub use reference::Reference;

use crate::body::Body;
use crate::config::model::{ClaimIndex, ClaimPlace, ClaimStore, Survives};
use crate::error::{Error, Kind};
use id::{Audience, Form};

/// A body to keep.
#[derive(Debug, Clone)]
pub struct Whole {
    /// Byte for byte.
    pub body: Bytes,
    /// Its SHA-256.
    pub digest: [u8; 32],
}

/// A body that is safely kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Names it to its store; signed, so that it cannot be guessed.
    pub id: String,
    /// SHA-256 of the body.
    pub digest: [u8; 32],
    /// Bytes of the body.
    pub size: u64,
    /// Until when it is served, in whole seconds.
    pub expires: SystemTime,
}

/// Bytes of a body above which it is read part by part.
const IN_MEMORY: u64 = 1 << 20;

/// A body that comes in parts. What was taken so far is given up if this is dropped before it is finished.
#[derive(Debug)]
pub enum Upload {
    /// Into a folder of this sidecar.
    Disk(disk::Upload),
    /// Into a shared place.
    Objects(object::Upload),
}

impl Upload {
    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the store is full or refuses, [`Kind::BodyTooLarge`] over what it can hold.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Self::Disk(upload) => upload.write(bytes).await,
            Self::Objects(upload) => upload.write(bytes).await,
        }
    }

    /// Keeps the body for an audience; when this returns, it is as safe as the store is.
    ///
    /// # Errors
    /// As [`Upload::write`].
    pub async fn finish(self, digest: [u8; 32], audience: Audience) -> Result<Claim, Error> {
        match self {
            Self::Disk(upload) => upload.finish(digest, audience).await,
            Self::Objects(upload) => upload.finish(digest, audience).await,
        }
    }
}

/// One store of whatever kind.
#[derive(Debug)]
pub enum Store {
    /// A folder of this sidecar.
    Disk(Disk),
    /// A place that many sidecars share.
    Objects(Arc<Objects>),
    /// Nothing is kept: the service that made the body is asked again.
    Origin(Origin),
}

impl Store {
    /// The word for its kind in a 202.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Disk(_) => "disk",
            Self::Objects(_) => "object",
            Self::Origin(_) => "origin",
        }
    }

    /// What it outlives; `None` where nothing is kept.
    pub fn survives(&self) -> Option<Survives> {
        match self {
            Self::Disk(disk) => Some(disk.survives()),
            Self::Objects(objects) => Some(objects.survives()),
            Self::Origin(_) => None,
        }
    }
}

/// The store that has a body.
enum Keeper<'s> {
    Disk(&'s Disk),
    Objects(&'s Arc<Objects>),
}

impl Keeper<'_> {
    async fn size(&self, id: &str) -> Result<Option<u64>, Error> {
        match self {
            Self::Disk(disk) => Ok(disk.size(id)),
            Self::Objects(objects) => objects.size(id).await,
        }
    }

    async fn fetch(&self, id: &str) -> Result<Bytes, Error> {
        match self {
            Self::Disk(disk) => disk.fetch(id).await,
            Self::Objects(objects) => objects.fetch(id).await,
        }
    }

    async fn stream(&self, id: &str) -> Result<Body, Error> {
        match self {
            Self::Disk(disk) => disk.stream(id).await,
            Self::Objects(objects) => objects.stream(id).await,
        }
    }
}

/// Until when a body that is kept now for so long is served, in seconds since 1970. Rounded up, so that a claim never lives
/// shorter than it should.
fn expiry(ttl: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    (now.unwrap_or_default() + ttl).as_secs() + 1
}

/// All stores of the config, in its order.
#[derive(Debug)]
pub struct Stores(Vec<Store>);

impl Stores {
    /// Opens every store for this service. A shared place is only asked when it is first needed.
    ///
    /// # Errors
    /// That of the first store that does not open, with its name.
    pub fn open(configs: &[ClaimStore], service: &str) -> io::Result<Self> {
        let open = |config: &ClaimStore| {
            let opened = match &config.place {
                ClaimPlace::Disk(folder) => Disk::open(config, folder, service).map(Store::Disk),
                ClaimPlace::Object(objects) => {
                    Objects::open(config, objects).map(|objects| Store::Objects(Arc::new(objects)))
                }
                ClaimPlace::Origin(template) => {
                    Ok(Store::Origin(Origin::new(template, config.ttl)))
                }
            };
            opened.map_err(|error| {
                io::Error::new(error.kind(), format!("claims.{}: {error}", config.name))
            })
        };
        configs
            .iter()
            .map(open)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// Keeps a body in one of the stores, for an audience; when this returns, it is as safe as the store is.
    /// `slim` is what goes into the record, out of which an origin's address is made.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the store is full or refuses, [`Kind::BadRequest`] if `slim` has not the fields of the
    /// address; [`Kind::Internal`] for an index that the config does not have.
    pub async fn keep(
        &self,
        index: ClaimIndex,
        whole: &Whole,
        (audience, slim): (Audience, &[u8]),
    ) -> Result<Claim, Error> {
        match self.0.get(index.0) {
            Some(Store::Disk(disk)) => disk.keep(whole, audience).await,
            Some(Store::Objects(objects)) => objects.keep(whole, audience).await,
            Some(Store::Origin(origin)) => origin.keep(whole, audience, slim),
            None => Err(Error::new(
                Kind::Internal,
                "the route's claim store is not open",
            )),
        }
    }

    /// Reads a claim's body from whichever store made its id.
    ///
    /// # Errors
    /// [`Kind::Elsewhere`] if none of them did, [`Kind::Unknown`] for what no store ever made, [`Kind::Expired`],
    /// [`Kind::ClaimDamaged`], or [`Kind::ClaimStore`] if the store is not to be had now.
    pub async fn fetch(&self, id: &str) -> Result<Bytes, Error> {
        self.keeper(id).await?.fetch(id).await
    }

    /// The store that made an id.
    async fn keeper(&self, id: &str) -> Result<Keeper<'_>, Error> {
        let unknown = || Error::new(Kind::Unknown, "no claim has this id");
        let said = id::look(id).ok_or_else(unknown)?;
        let mut away = None;
        for store in &self.0 {
            match (store, said.form) {
                (Store::Disk(disk), Form::Folder) if disk.made(&said) => {
                    return Ok(Keeper::Disk(disk));
                }
                (Store::Objects(objects), Form::Shared) => match objects.made(&said).await {
                    Ok(true) => return Ok(Keeper::Objects(objects)),
                    Ok(false) => {}
                    // It may be the one: whether it is, only its key tells.
                    Err(error) => away = Some(error),
                },
                _ => {}
            }
        }
        let elsewhere = || {
            let detail = match said.form {
                Form::Shared => "no shared place here has the key that signed this claim",
                Form::Folder | Form::Nowhere => {
                    "another instance keeps this claim, or none does any more"
                }
            };
            Error::new(Kind::Elsewhere, detail)
        };
        Err(away.unwrap_or_else(elsewhere))
    }

    /// Begins a body whose length is not known yet, of `most` bytes at most.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the store is full or refuses; [`Kind::Internal`] for one that keeps nothing.
    pub async fn begin(&self, index: ClaimIndex, most: u64) -> Result<Upload, Error> {
        match self.0.get(index.0) {
            Some(Store::Disk(disk)) => disk.begin().await.map(Upload::Disk),
            Some(Store::Objects(objects)) => objects.begin(most).await.map(Upload::Objects),
            Some(Store::Origin(_)) | None => Err(Error::new(
                Kind::Internal,
                "the route's claim store keeps no bodies",
            )),
        }
    }

    /// A claim's body from whichever store made its id: in memory if it is small, else part by part, and then its digest
    /// is for the reader to check.
    ///
    /// # Errors
    /// As [`Stores::fetch`], as far as it shows before the first byte.
    pub async fn body(&self, id: &str) -> Result<Body, Error> {
        let keeper = self.keeper(id).await?;
        match keeper.size(id).await?.is_some_and(|size| size > IN_MEMORY) {
            true => keeper.stream(id).await,
            false => keeper.fetch(id).await.map(Body::full),
        }
    }

    /// The origin that an id is of, if the config has it.
    pub fn origin(&self, id: &str) -> Option<&Origin> {
        let said = id::look(id).filter(|said| said.form == Form::Nowhere)?;
        self.0.iter().find_map(|store| match store {
            Store::Origin(origin) if origin.made(&said) => Some(origin),
            _ => None,
        })
    }

    /// The CPU that a store of its own thread uses for one body.
    pub fn writing_costs(&self, index: ClaimIndex) -> Duration {
        match self.0.get(index.0) {
            Some(Store::Disk(disk)) => disk.writing_costs(),
            _ => Duration::ZERO,
        }
    }

    /// One store.
    pub fn store(&self, index: ClaimIndex) -> Option<&Store> {
        self.0.get(index.0)
    }

    /// Every store.
    pub fn iter(&self) -> impl Iterator<Item = &Store> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::model::{ClaimFolder, ClaimObjects, ObjectPlace, WhenFull};

    fn of(name: &str, place: ClaimPlace) -> ClaimStore {
        let ttl = Duration::from_secs(3600);
        let name = name.into();
        ClaimStore { name, ttl, place }
    }

    fn disk(name: &str, path: &Path) -> ClaimStore {
        let (path, max) = (path.to_owned(), 1 << 20);
        let (survives, full) = (Survives::Pod, WhenFull::Refuse);
        let folder = ClaimFolder {
            path,
            survives,
            max,
            full,
        };
        of(name, ClaimPlace::Disk(folder))
    }

    fn shared(name: &str, path: &Path) -> ClaimStore {
        let (at, survives) = (ObjectPlace::Folder(path.to_owned()), Survives::Volume);
        of(name, ClaimPlace::Object(ClaimObjects { at, survives }))
    }

    fn whole(body: String) -> Whole {
        let digest = <[u8; 32]>::from(<sha2::Sha256 as sha2::Digest>::digest(&body));
        let body = body.into();
        Whole { body, digest }
    }

    #[tokio::test]
    async fn a_claim_is_found_in_whichever_store_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let configs = [
            disk("a", &folder.path().join("a")),
            shared("b", &folder.path().join("b")),
            disk("c", &folder.path().join("c")),
            shared("d", &folder.path().join("d")),
        ];
        let stores = Stores::open(&configs, "orders").unwrap();
        let other = Stores::open(&[shared("x", &folder.path().join("x"))], "orders").unwrap();
        for index in 0..4 {
            let whole = whole(format!("kept in {index}"));
            let keeping = stores.keep(ClaimIndex(index), &whole, (*b"for whom", b"{}"));
            let claim = keeping.await.unwrap();
            assert_eq!(stores.fetch(&claim.id).await.unwrap(), whole.body);
            let elsewhere = other.fetch(&claim.id).await.unwrap_err();
            assert_eq!(elsewhere.kind(), Kind::Elsewhere);
        }
        assert_eq!(
            stores.fetch("nonsense").await.unwrap_err().kind(),
            Kind::Unknown
        );
    }

    #[tokio::test]
    async fn a_shared_place_is_read_by_every_sidecar_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let open = |service| Stores::open(&[shared("any", folder.path())], service).unwrap();
        let whole = whole("for all".into());
        let orders = open("orders");
        let claim = orders
            .keep(ClaimIndex(0), &whole, (*b"for whom", b"{}"))
            .await;
        let id = claim.unwrap().id;
        assert_eq!(open("billing").fetch(&id).await.unwrap(), "for all");
    }

    #[test]
    fn two_stores_in_one_folder_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let configs = [disk("a", folder.path()), disk("b", folder.path())];
        let error = Stores::open(&configs, "orders").expect_err("the folder is taken");
        assert!(
            error.to_string().starts_with("claims.b: the claim folder "),
            "{error}"
        );
    }
}
