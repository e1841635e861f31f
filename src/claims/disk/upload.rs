//! A body too large for memory, on its way into a segment of its own.
//!
//! Its record's head is written last, when length and digest are known, and only then is the file synced. What a crash
//! leaves is a segment that no id leads into; it goes when its time is over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::segment::{self, HEADER_LEN, RECORD_LEN, Sealed};
use super::{Disk, Queue, Shared, unavailable};
use crate::claims::id::{Audience, Place};
use crate::claims::{Claim, expiry};
use crate::error::{Error, Kind};
use crate::lifecycle::folder;

/// Bytes that are written at a time, and held in memory.
const PART_LEN: usize = 1 << 20;
/// Bytes of a body: its length has four bytes.
const BODY_MAX: u64 = u32::MAX as u64 - (HEADER_LEN + RECORD_LEN) as u64;

/// A body that comes in parts.
#[derive(Debug)]
pub struct Upload {
    shared: Arc<Shared>,
    writer: Weak<Queue>,
    number: u64,
    file: Option<File>,
    buffer: Vec<u8>,
    body: u64,
    /// Bytes that count against the store's limit.
    counted: u64,
    finished: bool,
}

impl Disk {
    /// Begins a body whose length is not known yet.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the store is full or its disk refuses.
    pub async fn begin(&self) -> Result<Upload, Error> {
        let number = self.shared.number(SystemTime::now());
        let mut upload = Upload {
            number: number.map_err(|error| refused(&self.shared, &error))?,
            shared: Arc::clone(&self.shared),
            writer: self.writer_queue(),
            file: None,
            buffer: Vec::new(),
            body: 0,
            counted: 0,
            finished: false,
        };
        upload.count(HEADER_LEN + RECORD_LEN).await?;
        let (folder, number) = (self.shared.folder.clone(), upload.number);
        let ends = expiry(self.shared.ttl) + 2;
        let opening = tokio::task::spawn_blocking(move || open(&folder, number, ends)).await;
        let opened = opening.unwrap_or_else(|cause| Err(io::Error::other(cause)));
        upload.file = Some(opened.map_err(|error| refused(&self.shared, &error))?);
        Ok(upload)
    }
}

impl Upload {
    /// Counts bytes against the store's limit.
    async fn count(&mut self, bytes: usize) -> Result<(), Error> {
        if !self.shared.room(bytes as u64, &self.writer).await {
            let full = io::Error::other("the claim store is full");
            return Err(refused(&self.shared, &full));
        }
        self.counted += bytes as u64;
        Ok(())
    }

    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// [`Kind::BodyTooLarge`] over 4 GiB; [`Kind::ClaimStore`] if the store is full or its disk refuses.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.body += bytes.len() as u64;
        if self.body > BODY_MAX {
            let detail = "a body that is kept on disk is at most 4 GiB";
            return Err(Error::new(Kind::BodyTooLarge, detail));
        }
        self.buffer.extend_from_slice(bytes);
        match self.buffer.len() >= PART_LEN {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let bytes = std::mem::take(&mut self.buffer);
        self.count(bytes.len()).await?;
        self.on_file(move |file| file.write_all(&bytes)).await
    }

    /// Works on the file where it may block.
    async fn on_file(
        &mut self,
        work: impl FnOnce(&mut File) -> io::Result<()> + Send + 'static,
    ) -> Result<(), Error> {
        let Some(mut file) = self.file.take() else {
            return Err(Error::new(Kind::Internal, "the body's file is closed"));
        };
        let working = tokio::task::spawn_blocking(move || work(&mut file).map(|()| file)).await;
        let worked = working.unwrap_or_else(|cause| Err(io::Error::other(cause)));
        self.file = Some(worked.map_err(|error| refused(&self.shared, &error))?);
        Ok(())
    }

    /// Keeps the body; when this returns, it is on disk.
    ///
    /// # Errors
    /// As [`Upload::write`].
    pub async fn finish(mut self, digest: [u8; 32], audience: Audience) -> Result<Claim, Error> {
        self.flush().await?;
        let length = u32::try_from(self.body).unwrap_or(u32::MAX);
        let (number, path) = (self.number, self.shared.folder.clone());
        // Its time begins now, however long it took to come.
        let expires = expiry(self.shared.ttl);
        let ends = expires + 2;
        self.on_file(move |file| {
            file.write_all_at(&segment::header(number, ends), 0)?;
            file.write_all_at(&segment::record(length, &digest), HEADER_LEN as u64)?;
            file.sync_data()?;
            folder::sync(&path)
        })
        .await?;
        self.finished = true;
        self.shared.sealed(Sealed {
            number,
            len: self.counted,
            ends,
        });
        let place = Place {
            audience,
            segment: number,
            offset: HEADER_LEN as u32,
            length,
            expires,
        };
        Ok(Claim {
            id: self.shared.signer.sign(&place),
            digest,
            size: self.body,
            expires: UNIX_EPOCH + Duration::from_secs(expires),
        })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.shared.frees(self.counted);
        let path = segment::path(&self.shared.folder, self.number);
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            let store = &self.shared.name;
            tracing::warn!(store, %error, "a body that broke off is not deleted yet");
        }
    }
}

/// Makes its segment, with room for what is only known at its end.
fn open(folder: &Path, number: u64, ends: u64) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(segment::path(folder, number))?;
    file.write_all(&segment::header(number, ends))?;
    file.write_all(&[0; RECORD_LEN])?;
    Ok(file)
}

fn refused(shared: &Shared, error: &io::Error) -> Error {
    let store = &shared.name;
    tracing::error!(store, %error, "a large body is not kept");
    let detail = format!("the claim store {store} is full or cannot write");
    unavailable(detail).because(error.to_string())
}
