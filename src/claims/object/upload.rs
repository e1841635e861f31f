//! A body that comes in parts, on its way into a shared place.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use object_store::{Error as StoreError, MultipartUpload, ObjectStoreExt as _};
use tokio::runtime::Handle;

use super::place::{PATIENCE, patience};
use super::{HOUR, Objects, PART_LEN};
use crate::claims::id::{self, Audience, Object};
use crate::claims::{Claim, expiry};
use crate::error::{Error, Kind};
use crate::lifecycle;

/// Parts of one object, at most (S3).
const PARTS_MAX: u64 = 10_000;

/// A body that comes in parts. If it is dropped before its end, what the place took so far is given up.
#[derive(Debug)]
pub struct Upload {
    begun: Begun,
    object: Object,
    /// Bytes of each part but the last: some stores want all alike.
    part_len: usize,
    buffer: Vec<u8>,
}

impl Objects {
    /// Begins a body of a length that is not known yet, of `most` bytes at most.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the place does not take it.
    pub async fn begin(self: &Arc<Self>, most: u64) -> Result<Upload, Error> {
        let name = id::new_key().map_err(|error| {
            Error::new(Kind::Internal, "the machine gives no random bytes").because(error)
        })?;
        let mut object = Object {
            name,
            ..self.lasting()
        };
        // It may take an hour to come before that costs its claim time.
        object.hour = object.hour.saturating_add(1);
        self.upload(object, most).await
    }

    /// Begins to put an object in parts.
    pub(super) async fn upload(
        self: &Arc<Self>,
        object: Object,
        most: u64,
    ) -> Result<Upload, Error> {
        // Before there is anything: a place with bodies and no key has lost it.
        self.keys().await?;
        let path = self.path(&object);
        let is_folder = self.folder.is_some();
        let begun = self.done("does not take the body", PATIENCE, |store| async move {
            if !is_folder {
                return store.put_multipart(&path).await;
            }
            // It makes its file on the thread that asks, and a folder that hangs would keep a worker.
            let runtime = Handle::current();
            let making = move || runtime.block_on(store.put_multipart(&path));
            tokio::task::spawn_blocking(making).await?
        });
        Ok(Upload {
            begun: Begun {
                upload: Some(begun.await?),
                place: Arc::clone(self),
            },
            object,
            part_len: part_len(most),
            buffer: Vec::new(),
        })
    }
}

/// What the place knows of an upload, and gives up with this.
#[derive(Debug)]
struct Begun {
    place: Arc<Objects>,
    /// Until it is complete.
    upload: Option<Box<dyn MultipartUpload>>,
}

impl Begun {
    /// There is nothing left to give up.
    fn completed(&mut self) {
        self.upload = None;
    }
}

/// Bytes of a part, so that so many bytes can be put.
fn part_len(most: u64) -> usize {
    let needed = most.div_ceil(PARTS_MAX);
    usize::try_from(needed).unwrap_or(usize::MAX).max(PART_LEN)
}

impl Upload {
    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the place does not take them in time.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        self.object.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let fits = bytes.len().min(self.part_len - self.buffer.len());
            let (now, later) = bytes.split_at(fits);
            self.buffer.extend_from_slice(now);
            if self.buffer.len() == self.part_len {
                self.flush().await?;
            }
            bytes = later;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let patience = patience(bytes.len() as u64);
        let put = self
            .begun
            .upload
            .as_mut()
            .map(|upload| upload.put_part(bytes.into()));
        let put = async move { put.ok_or_else(complete_already)?.await };
        self.begun
            .place
            .goes_on("does not take the body", patience, put)
            .await
    }

    /// Keeps the body; when this returns, the place has it.
    ///
    /// # Errors
    /// As [`Upload::write`].
    pub async fn finish(mut self, digest: [u8; 32], audience: Audience) -> Result<Claim, Error> {
        if !self.buffer.is_empty() {
            self.flush().await?;
        }
        let place = Arc::clone(&self.begun.place);
        let mut begun = self.begun;
        let complete = async move {
            begun
                .upload
                .as_mut()
                .ok_or_else(complete_already)?
                .complete()
                .await?;
            begun.completed();
            Ok(())
        };
        let patience = patience(self.object.length);
        place
            .goes_on("does not take the body", patience, complete)
            .await?;
        let object = Object {
            audience,
            expires: expiry(place.ttl).min(u64::from(self.object.hour) * HOUR),
            ..self.object
        };
        let keys = place.keys().await?;
        Ok(Claim {
            id: keys.sign(&object),
            digest,
            size: object.length,
            expires: UNIX_EPOCH + Duration::from_secs(object.expires),
        })
    }
}

fn complete_already() -> StoreError {
    StoreError::Generic {
        store: "upload",
        source: "the body is complete already".into(),
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let (Some(mut upload), Ok(runtime)) = (self.upload.take(), Handle::try_current()) else {
            return;
        };
        let place = Arc::clone(&self.place);
        lifecycle::spawn(&runtime, "claim", async move {
            let aborted = place.goes_on("does not give up a body", PATIENCE, async move {
                upload.abort().await
            });
            if let Err(error) = aborted.await {
                let store = &place.name;
                tracing::warn!(store, %error, "parts of a body that broke off are left for the place to collect");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_any_size_that_a_bucket_takes_fits_into_its_parts() {
        assert_eq!(part_len(0), PART_LEN);
        assert_eq!(part_len(80 << 30), 8_589_935);
        assert!(part_len(5 << 40) as u64 * PARTS_MAX >= 5 << 40);
    }
}
