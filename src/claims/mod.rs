//! Kept bodies: where the whole of a message lies while only its slim body goes through the broker.
//!
//! A [`Store`] appends bodies to segments on disk and names each by a signed, expiring [`id`]; [`Stores`] are all that
//! the config has. A [`Reference`] is what the receiving sidecar hands to its app in place of the body: it names the
//! service to ask, and the digest that the answer must have.

pub mod id;
mod reference;
mod store;

use std::io;

use bytes::Bytes;

pub use reference::Reference;
pub use store::{Claim, Store};

use crate::config::model::{ClaimIndex, ClaimStore};
use crate::error::{Error, Kind};

/// All stores of the config, in its order.
#[derive(Debug)]
pub struct Stores(Vec<Store>);

impl Stores {
    /// Opens every store for this service.
    ///
    /// # Errors
    /// That of the first store that does not open, with its name.
    pub fn open(configs: &[ClaimStore], service: &str) -> io::Result<Self> {
        let open = |config: &ClaimStore| {
            Store::open(config, service).map_err(|error| {
                io::Error::new(error.kind(), format!("claims.{}: {error}", config.name))
            })
        };
        configs
            .iter()
            .map(open)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// Keeps a body in one of the stores; see [`Store::keep`].
    ///
    /// # Errors
    /// [`Kind::ClaimStore`], as [`Store::keep`]; [`Kind::Internal`] for an index that the config does not have.
    pub async fn keep(
        &self,
        index: ClaimIndex,
        body: Bytes,
        digest: [u8; 32],
    ) -> Result<Claim, Error> {
        match self.store(index) {
            Some(store) => store.keep(body, digest).await,
            None => Err(Error::new(
                Kind::Internal,
                "the route's claim store is not open",
            )),
        }
    }

    /// Reads a claim's body from whichever store signed its id.
    ///
    /// # Errors
    /// [`Kind::Unknown`] if none did, else as [`Store::read`].
    pub async fn fetch(&self, id: &str) -> Result<Bytes, Error> {
        match self.0.iter().find(|store| store.knows(id)) {
            Some(store) => store.fetch(id).await,
            None => Err(Error::new(Kind::Unknown, "no claim has this id")),
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
    use std::time::Duration;

    use super::*;
    use crate::config::model::Survives;

    fn config(name: &str, disk: &Path) -> ClaimStore {
        let (ttl, survives) = (Duration::from_secs(3600), Survives::Pod);
        ClaimStore {
            name: name.into(),
            disk: disk.to_owned(),
            ttl,
            survives,
            max: 1 << 20,
        }
    }

    #[tokio::test]
    async fn a_claim_is_found_in_whichever_store_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let configs = [
            config("a", &folder.path().join("a")),
            config("b", &folder.path().join("b")),
        ];
        let stores = Stores::open(&configs, "orders").unwrap();
        for index in [0, 1] {
            let body = Bytes::from(format!("kept in {index}"));
            let digest = <[u8; 32]>::from(<sha2::Sha256 as sha2::Digest>::digest(&body));
            let claim = stores
                .keep(ClaimIndex(index), body.clone(), digest)
                .await
                .unwrap();
            assert_eq!(stores.fetch(&claim.id).await.unwrap(), body);
            let other = stores.store(ClaimIndex(1 - index)).unwrap();
            assert_eq!(
                other.fetch(&claim.id).await.unwrap_err().kind(),
                Kind::Unknown
            );
        }
        assert_eq!(
            stores.fetch("nonsense").await.unwrap_err().kind(),
            Kind::Unknown
        );
    }

    #[test]
    fn two_stores_in_one_folder_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let configs = [config("a", folder.path()), config("b", folder.path())];
        let error = Stores::open(&configs, "orders").expect_err("the folder is taken");
        assert!(
            error.to_string().starts_with("claims.b: the claim folder "),
            "{error}"
        );
    }
}
