//! The key beside the bodies, which signs their ids: made by whoever comes first, and put back by whoever still knows it.
//!
//! Without it nobody reads what lies there, so a place that has lost it (a rule that deletes what is old, a folder that was
//! emptied) is no new one: whoever starts there waits for those who know the key, before a new one is made.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore as _, ObjectStoreExt as _};
use object_store::{PutMode, PutOptions};
use tokio::time::{Instant, timeout};

use super::place::PATIENCE;
use super::{Objects, sweep};
use crate::claims::id::{self, KEY_LEN, Object, Said, Signer};
use crate::error::{Error, Kind};

/// How long a place that has bodies but no key is left to those who may know it: some rounds of theirs.
const LOST: Duration = Duration::from_secs(120);
/// Keys that are known from before, at most.
const EARLIER_MAX: usize = 4;
/// Sidecars that run as several users share a folder by its group.
const MODE: u32 = 0o640;

type Key = [u8; KEY_LEN];

/// The key of a place, and those that it had before.
pub(super) struct Keys {
    key: Key,
    signer: Signer,
    earlier: Vec<Signer>,
}

impl Keys {
    fn new(key: Key, earlier: Vec<Signer>) -> Arc<Self> {
        let signer = Signer::new(&key, "");
        Arc::new(Self {
            key,
            signer,
            earlier,
        })
    }

    /// The same place with another key.
    fn followed_by(&self, key: Key) -> Arc<Self> {
        // One that comes back is no earlier one.
        let next = Signer::new(&key, "");
        let known = self.all().filter(|signer| !signer.is_as(&next));
        Self::new(key, known.take(EARLIER_MAX).cloned().collect())
    }

    pub(super) fn sign(&self, object: &Object) -> String {
        self.signer.sign_object(object)
    }

    pub(super) fn verify(&self, id: &str) -> Option<Object> {
        self.all().find_map(|signer| signer.verify_object(id))
    }

    pub(super) fn made(&self, said: &Said) -> bool {
        self.all().any(|signer| signer.made(said))
    }

    fn all(&self) -> impl Iterator<Item = &Signer> {
        std::iter::once(&self.signer).chain(&self.earlier)
    }
}

impl Objects {
    /// The place's keys.
    pub(super) async fn keys(&self) -> Result<Arc<Keys>, Error> {
        self.known().await.map(ArcSwap::load_full)
    }

    /// The keys as they are known now, asked for once.
    async fn known(&self) -> Result<&ArcSwap<Keys>, Error> {
        if let Some(known) = self.keys.get() {
            return Ok(known);
        }
        let asking = self.keyless.may_ask().map_err(|after| {
            self.away("did not give its key a moment ago", None)
                .after(after)
        })?;
        let opened = self.keys.get_or_try_init(|| async {
            let key = self.key().await?;
            Ok(ArcSwap::new(Keys::new(key, Vec::new())))
        });
        // With the wait for another who asks for it.
        let opened = timeout(PATIENCE, opened).await;
        let opened = opened.unwrap_or_else(|_| Err(self.away("does not answer", None)));
        asking.told(opened.is_ok());
        opened
    }

    /// Finds the key, or makes it in a new place.
    async fn key(&self) -> Result<Key, Error> {
        if let Some(key) = self.read_key().await? {
            return Ok(key);
        }
        if self.has_bodies().await? {
            // Another may have made it between the two looks.
            if let Some(key) = self.read_key().await? {
                return Ok(key);
            }
            self.wait_for_who_knows()?;
        }
        let key = id::new_key()
            .map_err(|error| Error::new(Kind::Internal, "no random bytes").because(error))?;
        match self.put_key(&key).await? {
            true => Ok(key),
            false => match self.read_key().await? {
                Some(key) => Ok(key),
                None => Err(self.away("has its key and has it not", None)),
            },
        }
    }

    /// Whether there are bodies that somebody may have a claim on. A place that does not let us look has none to tell of.
    async fn has_bodies(&self) -> Result<bool, Error> {
        let prefix = self.listed();
        let found = self
            .ask(PATIENCE, |store| async move {
                store.list_with_delimiter(prefix.as_ref()).await
            })
            .await?;
        let found = match found {
            Ok(found) => found,
            Err(
                StoreError::PermissionDenied { .. }
                | StoreError::Unauthenticated { .. }
                | StoreError::NotFound { .. },
            ) => return Ok(false),
            Err(error) => return Err(self.away("cannot be looked through", Some(error))),
        };
        let mut folders = found.common_prefixes.iter();
        Ok(folders.any(|folder| folder.filename().is_some_and(sweep::is_hour)))
    }

    fn wait_for_who_knows(&self) -> Result<(), Error> {
        let now = Instant::now();
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *lost.get_or_insert(now);
        let (store, place) = (&self.name, &self.place);
        if now.saturating_duration_since(since) >= LOST {
            tracing::error!(
                store,
                place,
                "the place has lost its `key` and nobody puts it back, so a new one is made: nobody can read the bodies from before"
            );
            return Ok(());
        }
        if since == now {
            tracing::error!(
                store,
                place,
                "the place has bodies but no `key`: put it back, or wait for a sidecar that knows it; in two minutes a new one is made"
            );
        }
        Err(self.away("has lost its `key`, and waits for whoever knows it", None))
    }

    /// Sees to it that the place still has the key that we sign with; one that was deleted is put back, and another one is
    /// taken over, so that everybody can read what is kept from now on.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the place is away.
    pub async fn look_after_key(&self) -> Result<(), Error> {
        // Who has not needed it yet learns it now: the more know it, the less it can be lost.
        let known = self.known().await?;
        let keys = known.load_full();
        let (store, place) = (&self.name, &self.place);
        match self.read_key().await? {
            Some(key) if key == keys.key => {}
            Some(other) => {
                known.store(keys.followed_by(other));
                tracing::error!(
                    store,
                    place,
                    "the place has another `key` than before, which is used from now on: only sidecars that knew the earlier one can read the bodies from before"
                );
            }
            None if self.put_key(&keys.key).await? => {
                tracing::error!(
                    store,
                    place,
                    "the place had lost its `key`, and has it again: no rule may delete that object, since nobody reads the bodies without it"
                );
            }
            // Somebody was faster; the next look tells with which one.
            None => {}
        }
        Ok(())
    }

    async fn read_key(&self) -> Result<Option<Key>, Error> {
        let path = self.key_path();
        let key = self
            .done("does not give its key", PATIENCE, |store| async move {
                store.get(&path).await?.bytes().await
            })
            .await;
        match key {
            Ok(key) => match Key::try_from(&key[..]) {
                Ok(key) => Ok(Some(key)),
                Err(_) => Err(self.away("has a `key` that is none", None)),
            },
            Err(error) if error.kind() == Kind::Unknown => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts the key where there is none; whether that was so.
    async fn put_key(&self, key: &Key) -> Result<bool, Error> {
        let path = self.key_path();
        let bytes = Bytes::copy_from_slice(key);
        let file = self.folder.as_ref().map(|folder| folder.join("key"));
        let put = self
            .ask(PATIENCE, |store| async move {
                let first = PutOptions::from(PutMode::Create);
                store.put_opts(&path, bytes.into(), first).await?;
                let Some(file) = file else { return Ok(()) };
                let closing = tokio::task::spawn_blocking(move || close(&file)).await?;
                closing.map_err(|error| StoreError::Generic {
                    store: "folder",
                    source: error.into(),
                })
            })
            .await?;
        match put {
            Ok(()) => Ok(true),
            Err(StoreError::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(self.away("does not take its key", Some(error))),
        }
    }

    fn key_path(&self) -> Path {
        self.prefix.clone().join("key")
    }
}

/// Nobody else may read the key, whatever the process's umask is.
fn close(file: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(MODE))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::tests::{keep, open};
    use super::*;

    #[tokio::test]
    async fn a_key_that_was_deleted_is_put_back_by_whoever_knows_it() {
        let folder = tempfile::tempdir().unwrap();
        let running = open(folder.path());
        let claim = keep(&running, "the whole body").await;
        let key = folder.path().join("key");
        let mode = std::fs::metadata(&key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        std::fs::remove_file(&key).unwrap();
        let starting = open(folder.path());
        let lost = starting.fetch(&claim.id).await.unwrap_err();
        assert_eq!(lost.kind(), Kind::ClaimStore);
        assert!(
            lost.detail().contains("lost its `key`"),
            "{}",
            lost.detail()
        );
        assert!(!key.exists(), "a new one would make the body unreadable");
        running.look_after_key().await.unwrap();
        let started = open(folder.path());
        assert_eq!(started.fetch(&claim.id).await.unwrap(), "the whole body");
    }

    #[tokio::test]
    async fn a_key_that_nobody_puts_back_is_made_anew_and_taken_over_by_all() {
        let folder = tempfile::tempdir().unwrap();
        let running = open(folder.path());
        let before = keep(&running, "from before").await;
        std::fs::remove_file(folder.path().join("key")).unwrap();
        let starting = open(folder.path());
        *starting.lost.lock().unwrap() = Instant::now().checked_sub(LOST);
        let after = keep(&starting, "from after").await;
        let unknown = running.fetch(&after.id).await.unwrap_err();
        assert_eq!(unknown.kind(), Kind::Unknown);
        running.look_after_key().await.unwrap();
        assert_eq!(running.fetch(&after.id).await.unwrap(), "from after");
        assert_eq!(running.fetch(&before.id).await.unwrap(), "from before");
        let next = keep(&running, "for all").await;
        assert_eq!(starting.fetch(&next.id).await.unwrap(), "for all");
    }
}
