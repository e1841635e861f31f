//! A call's idempotency key: the same key with the same call is the same message.

use http::HeaderMap;
use http::header::HeaderName;
use http::request;
use sha2::{Digest as _, Sha256};
use std::time::Duration;
use uuid::Uuid;

use super::Publish;
use super::large::Content;
use crate::error::{Error, Kind};
use crate::messages::keys::{Begun, Keys, Promised, Proof, Using};

/// Names a call so that it is accepted once.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_KEY_MAX: usize = 255;

/// What a call's idempotency key comes to.
pub(super) enum Key {
    /// It is the first with that key.
    New(Uuid, Proof, Using),
    /// Its message is there already.
    Used(Uuid, Promised),
}

impl Publish {
    /// Whether an earlier call with its idempotency key was published, or may have been.
    pub(in crate::pattern) fn is_repeated(&self, headers: &HeaderMap) -> bool {
        let key = headers.get(IDEMPOTENCY_KEY);
        key.is_some_and(|key| {
            let id = Keys::id(&self.sender.service, &self.route, key.as_bytes());
            self.sender.keys.knows(id)
        })
    }

    /// Looks up the call's idempotency key, if it has one. It is taken with its quotes where it has them
    /// (draft-ietf-httpapi-idempotency-key-header).
    pub(super) fn idempotency(
        &self,
        head: &request::Parts,
        content: &Content,
    ) -> Result<Option<Key>, Error> {
        let mut keys = head.headers.get_all(IDEMPOTENCY_KEY).iter();
        let Some(key) = keys.next() else {
            return Ok(None);
        };
        let key = key.as_bytes();
        if keys.next().is_some() || key.is_empty() || key.len() > IDEMPOTENCY_KEY_MAX {
            let detail =
                format!("a call has one idempotency-key of 1 to {IDEMPOTENCY_KEY_MAX} bytes");
            return Err(Error::new(Kind::BadRequest, detail));
        }
        let id = Keys::id(&self.sender.service, &self.route, key);
        let proof = proof(head, &content.digest());
        match self.sender.keys.begin(id, proof) {
            Begun::New(using) => Ok(Some(Key::New(id, proof, using))),
            Begun::Same(promised) => Ok(Some(Key::Used(id, promised))),
            Begun::InProgress => {
                let detail = "the first call with this idempotency-key has no answer yet";
                Err(Error::new(Kind::KeyInProgress, detail).after(Duration::from_secs(1)))
            }
            Begun::Other => Err(Error::new(
                Kind::KeyReused,
                "this idempotency-key was used for another call",
            )),
        }
    }
}

/// What must be the same for a call to be the same: method, target and, by its SHA-256, the body.
fn proof(head: &request::Parts, body: &[u8; 32]) -> Proof {
    let mut hash = Sha256::new();
    hash.update(head.method.as_str().as_bytes());
    // Neither of the two can hold a zero byte.
    hash.update([0]);
    let target = head.uri.path_and_query();
    hash.update(target.map_or("/", |target| target.as_str()).as_bytes());
    hash.update([0]);
    hash.update(body);
    hash.finalize().into()
}
