//! How a shared place is reached, and how long it is waited for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, RetryConfig};
use tokio::time::timeout;

use super::Objects;
use crate::claims::http::Connector;
use crate::config::model::{Bucket, ObjectPlace};
use crate::error::{Error, Kind};
use crate::lifecycle::folder;

/// How long a request to the place may take that carries next to nothing, with its repetitions.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// And one that carries however much.
const PATIENCE_MAX: Duration = Duration::from_secs(300);
/// Bytes a second under which a place is too slow.
const SLOWEST: u64 = 1 << 20;
const RETRIES: usize = 2;
/// When a caller may come back after a place that is away.
pub(super) const AFTER: Duration = Duration::from_secs(1);

/// How long a request may take that carries so many bytes, or puts them together.
pub(super) fn patience(bytes: u64) -> Duration {
    (PATIENCE + Duration::from_secs(bytes / SLOWEST)).min(PATIENCE_MAX)
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
    /// Waits for the place, so long. What is not there is [`Kind::Unknown`].
    pub(super) async fn done<T>(
        &self,
        what: &str,
        (asked, patience): (impl Future<Output = object_store::Result<T>>, Duration),
    ) -> Result<T, Error> {
        match timeout(patience, asked).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error @ object_store::Error::NotFound { .. })) => {
                Err(Error::new(Kind::Unknown, "the claim is not in its store").because(error))
            }
            Ok(Err(error)) => Err(self.away(what, Some(error))),
            Err(_) => Err(self.away("does not answer", None)),
        }
    }

    pub(super) fn away(&self, what: &str, cause: Option<object_store::Error>) -> Error {
        let detail = format!("the claim store {} {what}", self.name);
        let error = Error::new(Kind::ClaimStore, detail).after(AFTER);
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
