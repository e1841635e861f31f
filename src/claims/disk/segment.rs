//! The files of a store: what is in them, and the few things that writing them needs of the machine.
//!
//! A segment is a header (magic, version, number, end of life, the first bytes of the SHA-256 of all these) and then
//! records one after another (magic, length, SHA-256 of the body, body). Numbers are big-endian. A record is only ever
//! found by a signed id, so a torn tail is never looked at; each open begins a new segment instead of appending to it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::claims::id::Place;
use crate::lifecycle::folder;

/// Bytes before a segment's first record.
pub(super) const HEADER_LEN: usize = 32;
/// Bytes before a record's body.
pub(super) const RECORD_LEN: usize = 40;

const HEADER_MAGIC: [u8; 8] = *b"waysideC";
const RECORD_MAGIC: [u8; 4] = *b"clm\n";
const VERSION: u32 = 1;
const SUFFIX: &str = ".claims";

/// What the writer needs of the machine; tests put faults and another clock in its place.
pub(super) trait Machine: Send + 'static {
    /// The wall clock.
    fn now(&self) -> SystemTime;
    /// Makes a new file that only its owner may read.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Appended>>;
    /// Makes a folder's entries durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Deletes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// A file that only grows.
pub(super) trait Appended: Send {
    /// Writes at its end.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes all that was appended durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// The real machine.
#[derive(Debug)]
pub(super) struct Real;

impl Machine for Real {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Appended>> {
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        Ok(Box::new(file))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        folder::sync(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

impl Appended for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        // A file that somebody deleted or cut takes writes as if nothing had happened, but nobody can read them.
        let found = self.metadata()?;
        if found.nlink() == 0 || found.len() != self.stream_position()? {
            let harm = "the segment was deleted or changed from outside";
            return Err(io::Error::other(harm));
        }
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The file of a segment.
pub(super) fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:016x}{SUFFIX}"))
}

/// The number in a segment's file name.
pub(super) fn number(path: &Path) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    let plain = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain {
        u64::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

/// A segment's header. `ends` is when its last claim has expired, in seconds since 1970.
pub(super) fn header(number: u64, ends: u64) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(&HEADER_MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_be_bytes());
    header[12..20].copy_from_slice(&number.to_be_bytes());
    header[20..28].copy_from_slice(&ends.to_be_bytes());
    let check = Sha256::digest(&header[..28]);
    header[28..].copy_from_slice(&check[..4]);
    header
}

/// When a segment ends, if its header is whole and of this version.
pub(super) fn ends(found: &[u8; HEADER_LEN], number: u64) -> Option<u64> {
    let ends = u64::from_be_bytes(found[20..28].try_into().ok()?);
    (*found == header(number, ends)).then_some(ends)
}

/// Reads only a segment's header; `None` if it is torn or damaged.
pub(super) fn read_ends(path: &Path, number: u64) -> io::Result<Option<u64>> {
    let mut found = [0; HEADER_LEN];
    match File::open(path)?.read_exact_at(&mut found, 0) {
        Ok(()) => Ok(ends(&found, number)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where it is written up to which segment the folder was evicted.
const EVICTED: &str = "evicted";

/// The number below which segments may have been evicted; 0 if none was. A note that a crash has spoilt is as good as none:
/// then what is gone counts as lost.
///
/// # Errors
/// The note is there and cannot be read.
pub(super) fn read_evicted(folder: &Path) -> io::Result<u64> {
    let path = folder.join(EVICTED);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().parse().unwrap_or_else(|_| {
            tracing::warn!(path = %path.display(), "does not hold a number, and is taken for none");
            0
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// Notes that segments below this number may be gone. A crash may leave the older note or the newer, never half of one.
pub(super) fn write_evicted(folder: &Path, below: u64) -> io::Result<()> {
    let new = folder.join("evicted.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(below.to_string().as_bytes())?;
    file.sync_all()?;
    fs::rename(new, folder.join(EVICTED))?;
    folder::sync(folder)
}

/// What stands before a body.
pub(super) fn record(length: u32, digest: &[u8; 32]) -> [u8; RECORD_LEN] {
    let mut record = [0; RECORD_LEN];
    record[..4].copy_from_slice(&RECORD_MAGIC);
    record[4..8].copy_from_slice(&length.to_be_bytes());
    record[8..].copy_from_slice(digest);
    record
}

/// Reads the body at a place; `None` if the segment's header, the record's or the body is not as it was written.
pub(super) fn read(folder: &Path, place: &Place) -> io::Result<Option<Bytes>> {
    let file = File::open(path(folder, place.segment))?;
    let whole = u64::from(place.offset) + RECORD_LEN as u64 + u64::from(place.length);
    if file.metadata()?.len() < whole {
        return Ok(None);
    }
    let mut head = [0; HEADER_LEN];
    file.read_exact_at(&mut head, 0)?;
    let mut bytes = vec![0; RECORD_LEN + place.length as usize];
    file.read_exact_at(&mut bytes, u64::from(place.offset))?;
    let bytes = Bytes::from(bytes);
    let body = bytes.slice(RECORD_LEN..);
    let digest: [u8; 32] = Sha256::digest(&body).into();
    let whole = ends(&head, place.segment).is_some()
        && bytes[..RECORD_LEN] == record(place.length, &digest);
    Ok(whole.then_some(body))
}

/// Bytes of a body that are read at a time.
const PART_LEN: usize = 256 << 10;

/// Opens the segment of a place; `None` if its header or the record's is not as it was written, or the body is not all
/// there.
pub(super) fn open(folder: &Path, place: &Place) -> io::Result<Option<File>> {
    let file = File::open(path(folder, place.segment))?;
    let whole = u64::from(place.offset) + RECORD_LEN as u64 + u64::from(place.length);
    if file.metadata()?.len() < whole {
        return Ok(None);
    }
    let (mut head, mut found) = ([0; HEADER_LEN], [0; RECORD_LEN]);
    file.read_exact_at(&mut head, 0)?;
    file.read_exact_at(&mut found, u64::from(place.offset))?;
    let expected = record(place.length, &[0; 32]);
    let whole = ends(&head, place.segment).is_some() && found[..8] == expected[..8];
    Ok(whole.then_some(file))
}

/// Reads the part of the body at a place that begins so many bytes into it.
pub(super) fn part(file: &File, place: &Place, at: u32) -> io::Result<Bytes> {
    let left = place.length.saturating_sub(at) as usize;
    let mut part = vec![0; left.min(PART_LEN)];
    let begins = u64::from(place.offset) + RECORD_LEN as u64 + u64::from(at);
    file.read_exact_at(&mut part, begins)?;
    Ok(part.into())
}

/// The lowest number that a new segment may have.
pub(super) fn next_after(sealed: &[Sealed]) -> u64 {
    // Numbers are milliseconds: one that has no successor was not given by a store.
    let after = sealed
        .iter()
        .filter_map(|segment| segment.number.checked_add(1));
    after.max().unwrap_or(1)
}

/// A segment that is not written to any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sealed {
    pub(super) number: u64,
    /// Bytes that count against the store's limit.
    pub(super) len: u64,
    /// Seconds since 1970 after which it is deleted.
    pub(super) ends: u64,
}

impl Sealed {
    /// All segments that an earlier run left in a folder. What is no file of its own only has the name of one.
    ///
    /// # Errors
    /// The folder or a segment in it cannot be read; the segment is named.
    pub(super) fn find(folder: &Path, ttl: Duration) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            let Some(number) = number(&path) else {
                continue;
            };
            if !entry.file_type()?.is_file() {
                let path = path.display();
                tracing::warn!(%path, "not a file but named as a claim segment; it is left alone");
                continue;
            }
            found.push(Self::look(&path, number, ttl)?);
        }
        Ok(found)
    }

    /// Looks at one segment.
    ///
    /// # Errors
    /// It cannot be read; it is named.
    pub(super) fn look(path: &Path, number: u64, ttl: Duration) -> io::Result<Self> {
        let look = || {
            let metadata = fs::metadata(path)?;
            let ends = match read_ends(path, number)? {
                Some(ends) => ends,
                // Without a header it has served its time once nothing can have been written to it for that long.
                None => {
                    let written = metadata.modified()?;
                    let written = written.duration_since(UNIX_EPOCH).unwrap_or_default();
                    tracing::warn!(segment = number, "claim segment with a damaged header");
                    (written + ttl).as_secs() + 2
                }
            };
            Ok(Self {
                number,
                len: metadata.len(),
                ends,
            })
        };
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        look().map_err(named)
    }
}
