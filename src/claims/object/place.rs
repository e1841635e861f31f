//! How a shared place is reached, and how long it is waited for.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, RetryConfig};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::Objects;
use crate::claims::answers::{AWAY, Asking};
use crate::claims::http::Connector;
use crate::config::model::{Bucket, ObjectPlace};
use crate::error::{Error, Kind};
use crate::lifecycle::{self, folder};

/// How long a request to the place may take that carries next to nothing, with its repetitions.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// And one that carries however much.
const PATIENCE_MAX: Duration = Duration::from_secs(300);
/// Bytes a second under which a place is too slow.
const SLOWEST: u64 = 1 << 20;
const RETRIES: usize = 2;
/// Calls to a folder that are under way, at most. Each has a thread, which nobody can take back from a file system that
/// hangs; a worker has 512 of them for all that it does.
const FOLDER_CALLS: usize = 64;

/// How long a request may take that carries so many bytes, or puts them together.
pub(super) fn patience(bytes: u64) -> Duration {
    (PATIENCE + Duration::from_secs(bytes / SLOWEST)).min(PATIENCE_MAX)
}

/// Calls to a place that may be under way at the same time.
pub(super) fn calls(at: &ObjectPlace) -> usize {
    match at {
        ObjectPlace::Folder(_) => FOLDER_CALLS,
        ObjectPlace::S3(_) => Semaphore::MAX_PERMITS,
    }
}

/// Opens a place; the path is where in it our objects are.
pub(super) fn open(at: &ObjectPlace) -> io::Result<(Arc<dyn ObjectStore>, Path)> {
    match at {
        ObjectPlace::Folder(path) => {
            if !path.is_dir() {
                folder::make(path)?;
            }
            // A record is only published when what it names is on the disk.
            let store = LocalFileSystem::new_with_prefix(path).map_err(io::Error::other)?;
            Ok((Arc::new(store.with_fsync(true)), Path::default()))
        }
        ObjectPlace::S3(bucket) => {
            let prefix = Path::from(bucket.prefix.as_str());
            Ok((Arc::new(s3(bucket).map_err(io::Error::other)?), prefix))
        }
    }
}

impl Objects {
    /// Asks the place, and waits so long. What is not there is [`Kind::Unknown`].
    ///
    /// # Errors
    /// As [`Objects::ask`]; [`Kind::ClaimStore`] with `what` for all else that the place says.
    pub(super) async fn done<T, F>(
        &self,
        what: &str,
        patience: Duration,
        asks: impl FnOnce(Arc<dyn ObjectStore>) -> F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = object_store::Result<T>> + Send + 'static,
    {
        match self.ask(patience, asks).await? {
            Ok(done) => Ok(done),
            Err(error @ object_store::Error::NotFound { .. }) => {
                Err(Error::new(Kind::Unknown, "the claim is not in its store").because(error))
            }
            Err(error) => Err(self.away(what, Some(error))),
        }
    }

    /// Asks the place; whatever it says within this time. It is a task of its own, so that a caller who leaves does not hide
    /// that the place hangs, and so that a call to a folder keeps its place among [`FOLDER_CALLS`] until its thread is back.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if it says nothing, or is known to say nothing.
    pub(super) async fn ask<T, F>(
        &self,
        patience: Duration,
        asks: impl FnOnce(Arc<dyn ObjectStore>) -> F,
    ) -> Result<object_store::Result<T>, Error>
    where
        T: Send + 'static,
        F: Future<Output = object_store::Result<T>> + Send + 'static,
    {
        let asking = self
            .answers
            .may_ask()
            .map_err(|after| self.away("did not answer a moment ago", None).after(after))?;
        self.asked(Some(asking), patience, asks(Arc::clone(&self.store)))
            .await
    }

    /// Goes on with what was begun, whether the place answers others or not: what it has of it would be lost.
    ///
    /// # Errors
    /// As [`Objects::done`].
    pub(super) async fn goes_on<T, F>(
        &self,
        what: &str,
        patience: Duration,
        asked: F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = object_store::Result<T>> + Send + 'static,
    {
        let done = self.asked(None, patience, asked).await?;
        done.map_err(|error| self.away(what, Some(error)))
    }

    async fn asked<T, F>(
        &self,
        asking: Option<Asking>,
        patience: Duration,
        asked: F,
    ) -> Result<object_store::Result<T>, Error>
    where
        T: Send + 'static,
        F: Future<Output = object_store::Result<T>> + Send + 'static,
    {
        let (calls, hangs) = (Arc::clone(&self.calls), self.folder.is_some());
        let (said, hears) = oneshot::channel();
        let call = async move {
            let probes = asking.as_ref().filter(|asking| asking.probes());
            let under_way = match probes {
                Some(_) => calls.try_acquire().ok(),
                None => timeout(patience, calls.acquire())
                    .await
                    .ok()
                    .and_then(Result::ok),
            };
            let Some(_under_way) = under_way else {
                // Others may be long but in time, which says nothing of the place; if it was away before, it still is.
                if let Some(asking) = probes {
                    asking.told(false);
                }
                return;
            };
            let mut asked = pin!(asked);
            let tell = |answered| asking.iter().for_each(|asking| asking.told(answered));
            // All of its time begins here: a call that waited for others says nothing of the place.
            let Ok(done) = timeout(patience, &mut asked).await else {
                tell(false);
                drop((asking, said));
                if hangs {
                    drop(asked.await);
                }
                return;
            };
            tell(true);
            // Whoever asked may have left.
            said.send(done).ok();
        };
        lifecycle::spawn(&Handle::current(), "claim", call);
        hears.await.map_err(|_| self.away("does not answer", None))
    }

    pub(super) fn away(&self, what: &str, cause: Option<object_store::Error>) -> Error {
        let detail = format!("the claim store {} {what}", self.name);
        let error = Error::new(Kind::ClaimStore, detail).after(AWAY);
        match cause {
            Some(cause) => error.because(cause),
            None => error,
        }
    }
}

fn s3(bucket: &Bucket) -> object_store::Result<AmazonS3> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_body_is_waited_for_longer_but_not_for_ever() {
        assert_eq!(patience(0), Duration::from_secs(5));
        assert_eq!(patience(8 << 20), Duration::from_secs(13));
        assert_eq!(patience(80 << 30), Duration::from_secs(300));
    }
}
