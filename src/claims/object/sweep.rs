//! What has expired goes: whole hours of it, page by page.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore as _};

use super::place::PATIENCE;
use super::{HOUR, Objects};
use crate::error::Error;

/// Bytes of the name of an hour: `2026-12-04T08`.
const HOUR_LEN: usize = 13;
/// How long the next page of an hour may take to be listed and deleted.
const PAGE: Duration = Duration::from_secs(30);

impl Objects {
    /// Deletes what has expired; the number of objects.
    ///
    /// # Errors
    /// [`crate::error::Kind::ClaimStore`] if the place is away.
    pub async fn sweep(&self, now: SystemTime) -> Result<u64, Error> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / HOUR;
        let now = hour_text(u32::try_from(now).unwrap_or(u32::MAX));
        let prefix = self.listed();
        let listed = self.done("cannot be looked through", PATIENCE, |store| async move {
            store.list_with_delimiter(prefix.as_ref()).await
        });
        let found = listed.await?;
        let mut deleted = 0;
        for hour in found.common_prefixes {
            match hour.filename() {
                Some(name) if is_hour(name) && name < now.as_str() => {
                    deleted += self.sweep_hour(&hour).await?;
                }
                _ => {}
            }
        }
        Ok(deleted)
    }

    async fn sweep_hour(&self, hour: &Path) -> Result<u64, Error> {
        let listed = self.store.list(Some(hour));
        let paths = listed.map_ok(|object| object.location).boxed();
        let mut going = self.store.delete_stream(paths);
        let mut deleted = 0;
        loop {
            let next = self.done("does not delete", PAGE, |_| async move {
                let next = match going.next().await {
                    // Another sidecar may have been first.
                    Some(Err(StoreError::NotFound { .. })) => Some(0),
                    next => next.transpose()?.map(|_| 1),
                };
                Ok((going, next))
            });
            let (rest, next) = next.await?;
            going = rest;
            match next {
                Some(one) => deleted += one,
                None => break,
            }
        }
        if let (Some(folder), Some(hour)) = (&self.folder, hour.filename()) {
            // With it goes what a crash has left half written, which is not listed.
            let path = folder.join(hour);
            let removing = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(path));
            match removing.await {
                Ok(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(store = self.name, %error, "a folder of expired claims is not deleted");
                }
                _ => {}
            }
        }
        Ok(deleted)
    }
}

/// The name of an hour since 1970: `2026-12-04T08`. In the order of time.
pub(super) fn hour_text(hour: u32) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(u64::from(hour) * HOUR);
    let mut text = humantime::format_rfc3339_seconds(time).to_string();
    text.truncate(HOUR_LEN);
    text
}

pub(super) fn is_hour(name: &str) -> bool {
    let shape = |(at, byte): (usize, u8)| match at {
        4 | 7 => byte == b'-',
        10 => byte == b'T',
        _ => byte.is_ascii_digit(),
    };
    name.len() == HOUR_LEN && name.bytes().enumerate().all(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_has_a_name_in_the_order_of_time() {
        assert_eq!(hour_text(0), "1970-01-01T00");
        assert_eq!(hour_text(498_416), "2026-11-10T08");
        assert!(is_hour(&hour_text(498_416)) && !is_hour("2026-11-10-08") && !is_hour("key"));
        assert!(hour_text(498_416) < hour_text(498_417));
    }
}
