//! The few things that the spool needs of the machine. Tests put faults, power cuts and another clock in its place.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::lifecycle::folder;

/// The machine.
pub(super) trait Disk: Send + Sync + 'static {
    /// The wall clock.
    fn now(&self) -> SystemTime;
    /// A number that nobody outside can guess.
    fn salt(&self) -> u64;
    /// Makes a folder with its ancestors, each one's entry durable.
    fn make_folder(&self, folder: &Path) -> io::Result<()>;
    /// The names of a folder's files.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;
    /// Makes a new file of so many zeros, with room for them, that only its owner may read.
    fn create(&self, path: &Path, reserve: u64) -> io::Result<Box<dyn Writable>>;
    /// Opens a file to read.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Readable>>;
    /// Makes a folder's entries durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Makes durable what is in a file.
    fn sync_file(&self, path: &Path) -> io::Result<()>;
    /// Cuts zeros off a file's end.
    fn shrink(&self, path: &Path, len: u64) -> io::Result<()>;
    /// Gives a file another name in the same folder.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Deletes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// A file that is written.
pub(super) trait Writable: Send {
    /// Writes all of it at a place.
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Makes all that was written durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file that is read.
pub(super) trait Readable: Send {
    /// Its bytes, zeros at the end included.
    fn len(&self) -> io::Result<u64>;
    /// Fills the buffer from a place; less at the end of the file.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
}

/// The real one.
#[derive(Debug)]
pub(super) struct RealDisk;

impl Disk for RealDisk {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn salt(&self) -> u64 {
        fastrand::u64(..)
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        folder::make(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    }

    fn create(&self, path: &Path, reserve: u64) -> io::Result<Box<dyn Writable>> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let reserved = match fallocate(&file, FallocateFlags::empty(), 0, reserve) {
            // A file system that cannot reserve: a full disk is then met by a write, which is an error like another.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(reserve),
            other => other.map_err(io::Error::from),
        };
        if let Err(error) = reserved {
            // The first error is what counts; an empty file is known for what it is at the next open.
            fs::remove_file(path).ok();
            return Err(error);
        }
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Readable>> {
        Ok(Box::new(File::open(path)?))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        folder::sync(path)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_data()
    }

    fn shrink(&self, path: &Path, len: u64) -> io::Result<()> {
        OpenOptions::new().write(true).open(path)?.set_len(len)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

impl Writable for File {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        // A file that somebody deleted takes writes as if nothing had happened, but nobody will ever read them.
        if self.metadata()?.nlink() == 0 {
            return Err(io::Error::other("the segment was deleted from outside"));
        }
        self.sync_data()
    }
}

impl Readable for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match std::os::unix::fs::FileExt::read_at(
                self,
                &mut buffer[filled..],
                at + filled as u64,
            ) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

/// Reads a whole file.
pub(super) fn read_whole(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let length = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}
