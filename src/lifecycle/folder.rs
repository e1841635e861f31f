//! Folders that hold what was promised: made so that they are there after a power cut, and held by one process.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Makes a folder, for its owner alone, with the ancestors that are missing; the entry of each is durable. One that is
/// there is left as it is.
///
/// # Errors
/// Whatever the file system refuses.
pub fn make(folder: &Path) -> io::Result<()> {
    if fs::metadata(folder).is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    let parent = parent(folder)?;
    make(parent)?;
    // Recursive: it is no error that another process has made it just now.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    sync(parent)
}

/// Makes a folder's entries durable.
///
/// # Errors
/// Whatever the file system refuses.
pub fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Takes a folder for this process as long as the file is open; `None` if somebody has it.
///
/// # Errors
/// Whatever the file system refuses.
pub fn lock(folder: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(folder.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn parent(folder: &Path) -> io::Result<&Path> {
    match folder.parent() {
        // The parent of a relative path of one part is written as nothing.
        Some(parent) if parent.as_os_str().is_empty() => Ok(Path::new(".")),
        Some(parent) => Ok(parent),
        None => Err(io::Error::other("it has no parent")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_with_its_ancestors_and_held_by_one() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("a/b/c");
        make(&folder).expect("it can be made");
        make(&folder).expect("it may be there");
        let held = lock(&folder).expect("it can be locked");
        assert!(held.is_some());
        assert!(lock(&folder).expect("it can be asked").is_none());
        drop(held);
        assert!(lock(&folder).expect("it can be locked").is_some());
        fs::write(root.path().join("file"), "").expect("it can be written");
        assert!(make(&root.path().join("file/below")).is_err());
    }
}
