//! One store: a folder of segments, one thread that appends to them, and readers that need neither lock nor index.
//!
//! Every body that waits is written in one group, with one fdatasync for all of them, and only then are their callers
//! told. A segment is begun when the last one is full or an eighth of the time to live old, and is deleted when the
//! last claim in it has expired, never on a read. A store that may evict deletes its oldest segment for want of room.
//! After an error of a write or a sync nothing is appended to that file again, since what the kernel still holds of it is
//! unknown; what was promised before stays readable.

mod segment;
mod upload;
mod writer;

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use crate::body::Body;
use crate::claims::id::{self, Audience, KEY_LEN, Place, Said, Signer};
use crate::claims::parts;
use crate::claims::{Claim, Whole};
use segment::{Machine, Real, Sealed};
pub(super) use upload::Upload;
use writer::{Ask, Asked, Writer};

use crate::config::model::{ClaimFolder, ClaimStore, Survives, WhenFull};
use crate::error::{Error, Kind};
use crate::lifecycle::{self, folder};

/// Bodies that may wait for the writer; above it a call is a 503. Their callers hold them in memory in any case.
const QUEUE_MAX: usize = 1024;
/// Bytes that may wait beside a full store until what is evicted has made room for them.
const EVICTING_MAX: u64 = 64 << 20;
/// How long a body waits for that.
const ROOM: Duration = Duration::from_secs(5);
/// When a caller may come back after a full store or a failed disk.
const AFTER: Duration = Duration::from_secs(1);

/// Keeps bodies on disk until they expire.
#[derive(Debug)]
pub struct Disk {
    shared: Arc<Shared>,
    survives: Survives,
    queue: Option<Arc<Queue>>,
    writer: Option<JoinHandle<()>>,
    /// Held as long as the store is: another process must not write here.
    _lock: File,
}

/// What waits for the writer.
type Queue = SyncSender<Asked>;

/// What readers and the writer both need.
struct Shared {
    name: String,
    folder: PathBuf,
    signer: Signer,
    ttl: Duration,
    max: u64,
    full: WhenFull,
    /// Bytes on disk, and those that wait to be.
    used: AtomicU64,
    /// Bytes that went before their time.
    evicted: AtomicU64,
    /// Tells those who wait for room that there is some.
    freed: Notify,
    /// The lowest number that a new segment may have.
    next: AtomicU64,
    /// Segments that were written beside the writer, which it is to delete in their time.
    beside: Mutex<Vec<Sealed>>,
    /// Bodies that the writer has kept, and the CPU that it used, in nanoseconds.
    kept: AtomicU64,
    used_ns: AtomicU64,
    /// Segments below this number that are not there were evicted, or have expired.
    gone_below: AtomicU64,
}

impl Disk {
    /// Opens a store's folder, makes it if it is missing, and starts its thread. A reload that leaves a store as it is
    /// must hand on the open one: the folder is locked.
    ///
    /// # Errors
    /// Whatever the file system refuses; `WouldBlock` if another store has the folder open.
    pub fn open(config: &ClaimStore, place: &ClaimFolder, service: &str) -> io::Result<Self> {
        Self::open_on(Box::new(Real), (config, place), service)
    }

    /// Opens a store on another machine.
    fn open_on(
        machine: Box<dyn Machine>,
        (config, place): (&ClaimStore, &ClaimFolder),
        service: &str,
    ) -> io::Result<Self> {
        let folder = place.path.clone();
        make_folder(&folder)?;
        let lock = lock(&folder)?;
        let signer = Signer::new(&key(&folder)?, service);
        let sealed = segment::Sealed::find(&folder, config.ttl)?;
        let used = AtomicU64::new(sealed.iter().map(|segment| segment.len).sum());
        let gone_below = AtomicU64::new(segment::read_evicted(&folder)?);
        let shared = Arc::new(Shared {
            name: config.name.clone(),
            folder,
            signer,
            ttl: config.ttl,
            max: place.max,
            full: place.full,
            used,
            evicted: AtomicU64::new(0),
            freed: Notify::new(),
            next: AtomicU64::new(segment::next_after(&sealed)),
            beside: Mutex::default(),
            kept: AtomicU64::new(0),
            used_ns: AtomicU64::new(0),
            gone_below,
        });
        let (queue, asked) = sync_channel(QUEUE_MAX);
        let writer = Writer::new(Arc::clone(&shared), machine, sealed);
        let writer = std::thread::Builder::new()
            .name(format!("claims-{}", config.name))
            .spawn(move || writer.run(&asked))?;
        Ok(Self {
            shared,
            survives: place.survives,
            queue: Some(Arc::new(queue)),
            writer: Some(writer),
            _lock: lock,
        })
    }

    /// Keeps a body; when this returns, it is on disk. Every later read is checked against the digest.
    ///
    /// # Errors
    /// [`Kind::ClaimStore`] if the store is full and may not evict, its queue is, or its disk refuses.
    pub async fn keep(&self, whole: &Whole, audience: Audience) -> Result<Claim, Error> {
        let needed = segment::RECORD_LEN as u64 + whole.body.len() as u64;
        if u32::try_from(needed).is_err() {
            return Err(Error::new(
                Kind::ClaimStore,
                "a claim cannot be larger than 4 GiB",
            ));
        }
        let Shared { name, .. } = &*self.shared;
        if !self.shared.room(needed, &self.writer_queue()).await {
            return Err(unavailable(format!("the claim store {name} is full")));
        }
        let (reply, kept) = oneshot::channel();
        let asked = self.queue.as_ref().map(|queue| {
            queue.try_send(Asked::Keep(Ask {
                body: whole.body.clone(),
                digest: whole.digest,
                audience,
                reply,
            }))
        });
        if !matches!(asked, Some(Ok(()))) {
            self.shared.frees(needed);
            return Err(unavailable(format!(
                "too many bodies wait for the claim store {name}"
            )));
        }
        let gone = |_| Err(unavailable(format!("the claim store {name} has stopped")));
        kept.await.unwrap_or_else(gone)
    }

    /// For those who may live longer than the store: its thread ends when nobody can ask it any more.
    fn writer_queue(&self) -> Weak<Queue> {
        self.queue.as_ref().map(Arc::downgrade).unwrap_or_default()
    }

    /// Reads a claim's body. Blocks on the disk; [`Disk::fetch`] does not.
    ///
    /// # Errors
    /// [`Kind::Unknown`] for an id that this store did not sign, [`Kind::Expired`], [`Kind::ClaimDamaged`] if the bytes
    /// are not those that were kept, [`Kind::ClaimStore`] if the disk refuses.
    pub fn read(&self, id: &str, now: SystemTime) -> Result<Bytes, Error> {
        self.shared.read(id, now)
    }

    /// Reads a claim's body on a thread where it may block.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub async fn fetch(&self, id: &str) -> Result<Bytes, Error> {
        let (shared, id) = (Arc::clone(&self.shared), id.to_owned());
        let reading = tokio::task::spawn_blocking(move || shared.read(&id, SystemTime::now()));
        let failed = |cause| Err(Error::new(Kind::Internal, "a claim was not read").because(cause));
        reading.await.unwrap_or_else(failed)
    }

    /// Bytes of a claim's body, by its id.
    pub fn size(&self, id: &str) -> Option<u64> {
        let place = self.shared.signer.verify(id)?;
        Some(u64::from(place.length))
    }

    /// Reads a claim's body part by part, on a thread where it may block. Its digest is for the reader to check.
    ///
    /// # Errors
    /// As [`Disk::read`], as far as it shows before the first byte.
    pub async fn stream(&self, id: &str) -> Result<Body, Error> {
        let place = self.shared.place(id, SystemTime::now())?;
        let shared = Arc::clone(&self.shared);
        let opening = tokio::task::spawn_blocking(move || {
            let opened = segment::open(&shared.folder, &place);
            shared.found(&place, opened)
        });
        let failed = |cause| Err(Error::new(Kind::Internal, "a claim was not read").because(cause));
        let file = opening.await.unwrap_or_else(failed)?;
        let (sender, body) = parts::parts(u64::from(place.length));
        // Ends when the body is read, or is no more. A slow reader keeps no thread.
        let reading = async move {
            let (file, mut at) = (Arc::new(file), 0);
            while at < place.length {
                let file = Arc::clone(&file);
                let part = tokio::task::spawn_blocking(move || segment::part(&file, &place, at));
                let part = part
                    .await
                    .unwrap_or_else(|cause| Err(io::Error::other(cause)));
                let part = part.map_err(|error| {
                    let detail = "the claim's bytes end too soon";
                    Error::new(Kind::ClaimDamaged, detail).because(error)
                });
                let read = part.as_ref().map_or(0, Bytes::len);
                if sender.send(part).await.is_err() || read == 0 {
                    return;
                }
                at += read as u32;
            }
        };
        lifecycle::spawn(&Handle::current(), "claim", reading);
        Ok(body)
    }

    /// Whether this store is the one that an id names.
    pub fn made(&self, said: &Said) -> bool {
        self.shared.signer.made(said)
    }

    /// The store's name in the config.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What its folder outlives.
    pub fn survives(&self) -> Survives {
        self.survives
    }

    /// Bytes on disk, and those that wait to be.
    pub fn used(&self) -> u64 {
        self.shared.used.load(Ordering::Acquire)
    }

    /// The CPU that writing one body has cost on average.
    pub fn writing_costs(&self) -> Duration {
        let kept = self.shared.kept.load(Ordering::Relaxed).max(1);
        Duration::from_nanos(self.shared.used_ns.load(Ordering::Relaxed) / kept)
    }

    /// Bytes that went before their time, since the store was opened.
    pub fn evicted(&self) -> u64 {
        self.shared.evicted.load(Ordering::Acquire)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What waits is still written, and only then may another process have the folder.
        drop(self.queue.take());
        if self
            .writer
            .take()
            .is_some_and(|writer| writer.join().is_err())
        {
            tracing::error!(
                store = self.shared.name,
                "the claim store's thread panicked"
            );
        }
    }
}

impl Shared {
    /// A number for a new segment: never one that was used before, even if all older segments are gone, since their ids may
    /// still be about.
    fn number(&self, now: SystemTime) -> io::Result<u64> {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = since.as_millis() as u64;
        let after = |next: u64| next.max(now).checked_add(1);
        let taken = self
            .next
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, after);
        let taken = taken.map(|next| next.max(now));
        taken.map_err(|_| io::Error::other("the claim folder has no number left for a segment"))
    }

    /// Counts bytes when there is room for them: in a store that may evict, that is made.
    async fn room(&self, bytes: u64, writer: &Weak<Queue>) -> bool {
        if self.takes(bytes) {
            return true;
        }
        if self.full == WhenFull::Refuse || bytes > self.max {
            return false;
        }
        let waiting = async {
            loop {
                let freed = self.freed.notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                if self.takes(bytes) {
                    return;
                }
                // If its queue is full, it makes room without being asked.
                if let Some(writer) = writer.upgrade() {
                    writer.try_send(Asked::Room).ok();
                }
                freed.await;
            }
        };
        timeout(ROOM, waiting).await.is_ok()
    }

    /// Counts bytes if there is room for them. What is evicted for a body leaves that at the latest when its turn to be
    /// written comes.
    fn takes(&self, bytes: u64) -> bool {
        let fits = |now: u64| {
            let after = now.checked_add(bytes).filter(|_| bytes <= self.max)?;
            let fits = match self.full {
                WhenFull::Refuse => after <= self.max,
                // One that is larger than what may wait comes alone.
                WhenFull::Evict => now <= self.max || after - self.max <= EVICTING_MAX,
            };
            fits.then_some(after)
        };
        let counted = self
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits);
        counted.is_ok()
    }

    /// Counts bytes no more.
    fn frees(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
        self.freed.notify_waiters();
    }

    /// Hands a segment to the writer, which deletes it in its time.
    fn sealed(&self, sealed: Sealed) {
        let mut beside = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
        beside.push(sealed);
    }

    /// Where a claim lies, if it is to be served.
    fn place(&self, id: &str, now: SystemTime) -> Result<Place, Error> {
        let place = self.signer.verify(id);
        let place = place.ok_or_else(|| Error::new(Kind::Unknown, "no claim has this id"))?;
        match now >= UNIX_EPOCH + Duration::from_secs(place.expires) {
            true => Err(Error::new(Kind::Expired, "the claim has expired")),
            false => Ok(place),
        }
    }

    fn read(&self, id: &str, now: SystemTime) -> Result<Bytes, Error> {
        let place = self.place(id, now)?;
        self.found(&place, segment::read(&self.folder, &place))
    }

    /// What a look into a segment means.
    fn found<T>(&self, place: &Place, looked: io::Result<Option<T>>) -> Result<T, Error> {
        let name = &self.name;
        match looked {
            Ok(Some(found)) => Ok(found),
            Ok(None) => {
                tracing::error!(store = name, segment = place.segment, "claim damaged");
                Err(Error::new(
                    Kind::ClaimDamaged,
                    "the claim's bytes are damaged",
                ))
            }
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && place.segment < self.gone_below.load(Ordering::Acquire) =>
            {
                let detail = "the claim went before its time: its store was full and may evict";
                Err(Error::new(Kind::Expired, detail))
            }
            // Signed and in time, so it was promised: that is a loss, not an unknown claim.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::error!(
                    store = name,
                    segment = place.segment,
                    "claim segment missing"
                );
                Err(Error::new(Kind::ClaimDamaged, "the claim's bytes are gone").because(error))
            }
            Err(error) => {
                Err(unavailable(format!("the claim store {name} cannot be read")).because(error))
            }
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.folder.display())
    }
}

fn unavailable(detail: String) -> Error {
    Error::new(Kind::ClaimStore, detail).after(AFTER)
}

fn make_folder(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => folder::make(path),
        Err(error) => Err(error),
        // A mount's own rights are not ours to change; the files in it are for the owner alone in any case.
        Ok(found) if found.is_dir() => {
            if found.permissions().mode() & 0o077 != 0 {
                tracing::warn!(folder = %path.display(), "others may list the claim folder");
            }
            Ok(())
        }
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            "the claim folder is a file",
        )),
    }
}

fn lock(path: &Path) -> io::Result<File> {
    folder::lock(path)?.ok_or_else(|| {
        let text = format!(
            "the claim folder {} is in use by another process or store",
            path.display()
        );
        io::Error::new(io::ErrorKind::WouldBlock, text)
    })
}

/// The store's key, made at the first open. The caller holds the folder's lock.
fn key(folder: &Path) -> io::Result<[u8; KEY_LEN]> {
    let path = folder.join("key");
    match fs::read(&path) {
        Ok(found) => found.try_into().map_err(|_| {
            let text = format!("{} does not hold a key of {KEY_LEN} bytes", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(folder, &path),
        Err(error) => Err(error),
    }
}

fn make_key(store: &Path, path: &Path) -> io::Result<[u8; KEY_LEN]> {
    let key = id::new_key()?;
    // Whole under another name first: a crash must not leave half a key.
    let new = store.join("key.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&key)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    folder::sync(store)?;
    Ok(key)
}

#[cfg(test)]
mod tests;
