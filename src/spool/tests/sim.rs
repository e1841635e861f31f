//! A disk in memory that forgets what was not synced, fails when it is told to, and is the same for the same seed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::spool::disk::{Disk, Readable, Writable};

/// What reaches a disk in one piece.
const PAGE: usize = 512;

#[derive(Clone)]
pub(super) struct SimDisk(Arc<Mutex<State>>);

struct State {
    random: fastrand::Rng,
    files: BTreeMap<u64, File>,
    next: u64,
    /// The folder as processes see it, and as it is on the disk itself.
    entries: BTreeMap<PathBuf, u64>,
    durable: BTreeMap<PathBuf, u64>,
    capacity: u64,
    clock: Duration,
    /// One write or sync in so many fails; never, if 0.
    faults: u32,
    /// Whether files can be opened.
    opens: bool,
    /// Whether folders are made durable when they are synced. A disk that does not is what one test is about.
    pub(super) ops: Vec<String>,
}

#[derive(Default, Clone)]
struct File {
    seen: Vec<u8>,
    durable: Vec<u8>,
}

impl SimDisk {
    pub(super) fn new(seed: u64, capacity: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: fastrand::Rng::with_seed(seed),
            files: BTreeMap::new(),
            next: 0,
            entries: BTreeMap::new(),
            durable: BTreeMap::new(),
            capacity,
            clock: Duration::from_secs(1_800_000_000),
            faults: 0,
            opens: true,
            ops: Vec::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics in here")
    }

    /// From now on one write or sync in so many fails.
    pub(super) fn faults(&self, one_in: u32) {
        self.lock().faults = one_in;
    }

    /// Whether files can be opened from now on.
    pub(super) fn opens(&self, opens: bool) {
        self.lock().opens = opens;
    }

    pub(super) fn advance(&self, time: Duration) {
        self.lock().clock += time;
    }

    /// The power goes: of what was not synced, each page and each entry is there, half there or not.
    pub(super) fn power_cut(&self) {
        let mut state = self.lock();
        let State {
            random,
            files,
            entries,
            durable,
            ..
        } = &mut *state;
        for file in files.values_mut() {
            let mut kept = file.durable.clone();
            kept.resize(file.seen.len(), 0);
            for (seen, kept) in file.seen.chunks(PAGE).zip(kept.chunks_mut(PAGE)) {
                match random.u8(0..3) {
                    0 => kept.copy_from_slice(seen),
                    1 => {
                        let half = random.usize(0..=seen.len());
                        kept[..half].copy_from_slice(&seen[..half]);
                    }
                    _ => {}
                }
            }
            *file = File {
                seen: kept.clone(),
                durable: kept,
            };
        }
        let made: Vec<_> = entries
            .iter()
            .map(|(path, file)| (path.clone(), *file))
            .collect();
        for (path, file) in made {
            if !durable.contains_key(&path) && random.bool() {
                durable.insert(path, file);
            }
        }
        let gone: Vec<_> = durable
            .keys()
            .filter(|path| !entries.contains_key(*path))
            .cloned()
            .collect();
        for path in gone {
            if random.bool() {
                durable.remove(&path);
            }
        }
        *entries = durable.clone();
        files.retain(|file, _| entries.values().any(|entry| entry == file));
    }

    /// The bytes of a file.
    pub(super) fn bytes(&self, path: &Path) -> Vec<u8> {
        let state = self.lock();
        state.files[&state.entries[path]].seen.clone()
    }

    /// Puts other bytes into a file, durably.
    pub(super) fn put(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.lock();
        let file = state.entries[path];
        let file = state.files.get_mut(&file).expect("it is there");
        file.seen = bytes.to_vec();
        file.durable = bytes.to_vec();
    }

    /// A disk of its own with the same contents.
    pub(super) fn copy(&self) -> Self {
        let state = self.lock();
        let copy = Self::new(1, state.capacity);
        {
            let mut to = copy.lock();
            to.files = state.files.clone();
            to.next = state.next;
            to.entries = state.entries.clone();
            to.durable = state.durable.clone();
        }
        copy
    }

    /// What was asked of the disk since the last time, by words.
    pub(super) fn ops(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().ops)
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.lock().entries.keys().cloned().collect()
    }
}

impl State {
    fn fault(&mut self) -> io::Result<()> {
        if self.faults > 0 && self.random.u32(0..self.faults) == 0 {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }

    fn used(&self) -> u64 {
        self.entries
            .values()
            .map(|file| self.files[file].seen.len() as u64)
            .sum()
    }
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

impl Disk for SimDisk {
    fn now(&self) -> SystemTime {
        let mut state = self.lock();
        state.clock += Duration::from_millis(20);
        UNIX_EPOCH + state.clock
    }

    fn salt(&self) -> u64 {
        self.lock().random.u64(..)
    }

    fn make_folder(&self, _folder: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _folder: &Path) -> io::Result<Vec<String>> {
        Ok(self.lock().entries.keys().map(|path| name(path)).collect())
    }

    fn create(&self, path: &Path, reserve: u64) -> io::Result<Box<dyn Writable>> {
        let mut state = self.lock();
        state.ops.push(format!("create {}", name(path)));
        if state.used() + reserve > state.capacity {
            return Err(io::Error::from_raw_os_error(28));
        }
        state.fault()?;
        if state.entries.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = state.next;
        state.next += 1;
        let zeros = File {
            seen: vec![0; reserve as usize],
            durable: vec![0; reserve as usize],
        };
        state.files.insert(file, zeros);
        state.entries.insert(path.to_owned(), file);
        Ok(Box::new(Handle {
            disk: self.clone(),
            file,
            name: name(path),
        }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Readable>> {
        let state = self.lock();
        if !state.opens {
            // Too many open files.
            return Err(io::Error::from_raw_os_error(24));
        }
        let file = *state.entries.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Handle {
            disk: self.clone(),
            file,
            name: name(path),
        }))
    }

    fn sync_folder(&self, _folder: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.ops.push("sync folder".into());
        state.fault()?;
        state.durable = state.entries.clone();
        Ok(())
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.fault()?;
        let file = *state.entries.get(path).ok_or(io::ErrorKind::NotFound)?;
        let file = state.files.get_mut(&file).expect("it is there");
        file.durable = file.seen.clone();
        Ok(())
    }

    fn shrink(&self, path: &Path, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.fault()?;
        let file = *state.entries.get(path).ok_or(io::ErrorKind::NotFound)?;
        let file = state.files.get_mut(&file).expect("it is there");
        file.seen.truncate(len as usize);
        file.durable.truncate(len as usize);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let file = state.entries.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.entries.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.ops.push(format!("remove {}", name(path)));
        state
            .entries
            .remove(path)
            .map(drop)
            .ok_or(io::ErrorKind::NotFound.into())
    }
}

struct Handle {
    disk: SimDisk,
    file: u64,
    name: String,
}

impl Writable for Handle {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        let failed = state.fault();
        // A failed write may have written a part.
        let length = match failed {
            Ok(()) => bytes.len(),
            Err(_) => state.random.usize(0..=bytes.len()),
        };
        let at = at as usize;
        let file = state.files.get_mut(&self.file).expect("it is open");
        file.seen[at..at + length].copy_from_slice(&bytes[..length]);
        failed
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.ops.push(format!("sync {}", self.name));
        let failed = state.fault();
        let file = state.files.get_mut(&self.file).expect("it is open");
        // As Linux does after a failed sync: the pages count as clean, and nobody will ever write them.
        if failed.is_ok() {
            file.durable = file.seen.clone();
        }
        failed
    }
}

impl Readable for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().files[&self.file].seen.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.disk.lock();
        let seen = &state.files[&self.file].seen;
        let at = (at as usize).min(seen.len());
        let length = buffer.len().min(seen.len() - at);
        buffer[..length].copy_from_slice(&seen[at..at + length]);
        Ok(length)
    }
}
