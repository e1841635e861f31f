//! The files that a configuration names and that are read with it: how they are read, and what was found in them.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::reason;

/// Bytes of one file, at most.
pub(super) const FILE_MAX: usize = 1 << 20;

/// Reads what a configuration names. Whoever compiles says how, so that the compile itself touches no disk.
pub(super) trait Files {
    /// The content of a file, as far as [`FILE_MAX`] and one byte more. The error completes "NAME …".
    fn read(&self, path: &Path) -> Result<Vec<u8>, String>;
}

/// Reads nothing: whatever is asked for is a schema that takes everything.
pub(super) struct Unread;

impl Files for Unread {
    fn read(&self, _path: &Path) -> Result<Vec<u8>, String> {
        Ok(b"true".to_vec())
    }
}

/// A file that a configuration was made from, besides its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadFile {
    /// Where it lies.
    pub path: PathBuf,
    /// SHA-256 of what was read; `None` if it could not be.
    pub digest: Option<[u8; 32]>,
}

/// Reads files from beside the configuration, and notes which.
pub(super) struct Folder<'a> {
    folder: &'a Path,
    read: RefCell<Vec<ReadFile>>,
}

impl<'a> Folder<'a> {
    /// The folder in which a configuration lies.
    pub(super) fn of(file: &'a Path) -> Self {
        let folder = file.parent().unwrap_or(Path::new(""));
        let read = RefCell::default();
        Self { folder, read }
    }

    /// A path as it is meant in that folder.
    pub(super) fn join(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// Everything that was asked for.
    pub(super) fn sources(self) -> Vec<ReadFile> {
        self.read.into_inner()
    }
}

impl Files for Folder<'_> {
    fn read(&self, path: &Path) -> Result<Vec<u8>, String> {
        let path = self.join(path);
        let content = content(&path);
        let digest = content.as_ref().ok().map(|bytes| digest(bytes));
        self.read.borrow_mut().push(ReadFile { path, digest });
        content
    }
}

pub(super) fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// One byte more than is allowed, so that a growing file cannot fill the memory; and no pipe, which would hold the
/// reader for ever.
fn content(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {}", reason(&error));
    let found = std::fs::metadata(path).map_err(cannot)?;
    if found.is_dir() {
        return Err("is a folder, not a file".to_owned());
    }
    if !found.is_file() {
        return Err("is no plain file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(FILE_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    Ok(bytes)
}
