//! A store that is closed, damaged, full, and out of luck with its disk.

mod evicting;
mod strange;

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::sync::Mutex;

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::segment::Appended;
use super::*;
use crate::config::model::ClaimPlace;

const TTL: Duration = Duration::from_secs(80);

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder can be made")
}

fn config(folder: &TempDir, max: u64) -> (ClaimStore, ClaimFolder) {
    let place = ClaimFolder {
        path: folder.path().join("bodies"),
        survives: Survives::Pod,
        max,
        full: WhenFull::Refuse,
    };
    let store = ClaimStore {
        name: "bodies".into(),
        ttl: TTL,
        place: ClaimPlace::Disk(place.clone()),
    };
    (store, place)
}

fn open_with((store, place): &(ClaimStore, ClaimFolder)) -> io::Result<Disk> {
    Disk::open(store, place, "orders")
}

fn open(folder: &TempDir) -> Disk {
    open_with(&config(folder, 1 << 20)).expect("the store opens")
}

async fn keep(store: &Disk, body: impl Into<Bytes>) -> Result<Claim, Error> {
    let body = body.into();
    let digest = Sha256::digest(&body).into();
    store.keep(&Whole { body, digest }, *b"for whom").await
}

fn segments(folder: &TempDir) -> Vec<PathBuf> {
    let files = fs::read_dir(folder.path().join("bodies")).expect("the folder is there");
    let mut files: Vec<_> = files
        .map(|file| file.expect("it is listed").path())
        .collect();
    files.retain(|path| segment::number(path).is_some());
    files.sort();
    files
}

fn kind<T: fmt::Debug>(result: Result<T, Error>) -> Kind {
    result.expect_err("it is refused").kind()
}

/// What the next writes, syncs and folder syncs do: each takes one step; none left means that all is well.
/// Its clock stands still until it is moved.
#[derive(Clone)]
struct Script {
    start: SystemTime,
    steps: Arc<Mutex<VecDeque<(&'static str, bool)>>>,
    forward: Arc<AtomicU64>,
}

impl Script {
    fn new() -> Self {
        Self {
            start: SystemTime::now(),
            steps: Arc::default(),
            forward: Arc::default(),
        }
    }

    fn play(&self, steps: &[(&'static str, bool)]) {
        self.steps.lock().unwrap().extend(steps);
    }

    fn step(&self, call: &'static str) -> io::Result<()> {
        let mut steps = self.steps.lock().unwrap();
        match steps.front() {
            Some((expected, fine)) if *expected == call => {
                let fine = *fine;
                steps.pop_front();
                if fine {
                    Ok(())
                } else {
                    Err(io::Error::other("no space, or worse"))
                }
            }
            _ => Ok(()),
        }
    }

    fn advance(&self, time: Duration) {
        self.forward.fetch_add(time.as_secs(), Ordering::SeqCst);
    }

    fn now(&self) -> SystemTime {
        self.start + Duration::from_secs(self.forward.load(Ordering::SeqCst))
    }

    fn open(&self, folder: &TempDir) -> Disk {
        let (store, place) = config(folder, 1 << 20);
        let machine = Box::new(self.clone());
        Disk::open_on(machine, (&store, &place), "orders").expect("the store opens")
    }
}

impl Machine for Script {
    fn now(&self) -> SystemTime {
        Script::now(self)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Appended>> {
        self.step("create")?;
        Ok(Box::new(Faulty {
            file: Real.create(path)?,
            script: self.clone(),
        }))
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.step("folder")?;
        Real.sync_folder(folder)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Real.remove(path)
    }
}

struct Faulty {
    file: Box<dyn Appended>,
    script: Script,
}

impl Appended for Faulty {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let fine = self.script.step("append");
        // A failed write may have written a part.
        let len = if fine.is_ok() {
            bytes.len()
        } else {
            bytes.len() / 2
        };
        self.file.append(&bytes[..len])?;
        fine
    }

    fn sync(&mut self) -> io::Result<()> {
        self.script.step("sync")?;
        self.file.sync()
    }
}

#[tokio::test]
async fn a_body_comes_back_until_it_expires() {
    let folder = folder();
    let store = open(&folder);
    let before = SystemTime::now();
    let claim = keep(&store, "the whole body").await.unwrap();
    assert_eq!(claim.size, 14);
    assert_eq!(
        claim.digest,
        <[u8; 32]>::from(Sha256::digest("the whole body"))
    );
    assert!(
        claim.expires >= before + TTL,
        "never shorter than configured"
    );
    assert_eq!(store.fetch(&claim.id).await.unwrap(), "the whole body");
    let last = claim.expires - Duration::from_millis(1);
    assert_eq!(store.read(&claim.id, last).unwrap(), "the whole body");
    assert_eq!(kind(store.read(&claim.id, claim.expires)), Kind::Expired);
    assert_eq!(kind(store.read("nonsense", before)), Kind::Unknown);
}

#[tokio::test]
async fn a_segment_that_somebody_deleted_or_cut_promises_nothing_more() {
    for harm in [
        |path: &std::path::Path| fs::remove_file(path).unwrap(),
        |path: &std::path::Path| {
            OpenOptions::new()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(7)
                .unwrap();
        },
    ] {
        let folder = folder();
        let store = open(&folder);
        keep(&store, "before").await.unwrap();
        harm(&segments(&folder)[0]);
        assert_eq!(kind(keep(&store, "meanwhile").await), Kind::ClaimStore);
        let after = keep(&store, "after").await.unwrap();
        assert_eq!(store.fetch(&after.id).await.unwrap(), "after");
    }
}

#[tokio::test]
async fn many_bodies_of_every_size_are_kept_at_once() {
    let folder = folder();
    let store = Arc::new(open_with(&config(&folder, 1 << 30)).unwrap());
    let sizes = [0, 1, 1000, 262_143, 262_144, 262_145, 3 << 20];
    let body = move |n: usize| Bytes::from(vec![n as u8; sizes[n % sizes.len()]]);
    let mut keeping = tokio::task::JoinSet::new();
    for n in 0..120 {
        let store = Arc::clone(&store);
        keeping.spawn(async move { (n, keep(&store, body(n)).await.unwrap()) });
    }
    while let Some(kept) = keeping.join_next().await {
        let (n, claim) = kept.unwrap();
        assert_eq!(store.fetch(&claim.id).await.unwrap(), body(n));
    }
    let on_disk: u64 = segments(&folder)
        .iter()
        .map(|path| fs::metadata(path).unwrap().len())
        .sum();
    assert_eq!(store.used(), on_disk);
}

#[tokio::test]
async fn claims_outlive_a_restart_and_new_ones_go_to_a_new_segment() {
    let folder = folder();
    let mut kept = Vec::new();
    for round in 0..3 {
        let store = open(&folder);
        let claim = keep(&store, format!("round {round}")).await.unwrap();
        kept.push((claim.id, format!("round {round}")));
        for (id, body) in &kept {
            assert_eq!(store.fetch(id).await.unwrap(), *body);
        }
    }
    assert_eq!(segments(&folder).len(), 3);
    drop(open(&folder));
    assert_eq!(
        segments(&folder).len(),
        3,
        "an open without a claim leaves no file"
    );
}

#[tokio::test]
async fn a_torn_tail_costs_only_what_was_torn() {
    let folder = folder();
    let store = open(&folder);
    let first = keep(&store, "first").await.unwrap();
    let second = keep(&store, "second").await.unwrap();
    drop(store);
    let path = &segments(&folder)[0];
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 3).unwrap();
    let store = open(&folder);
    let third = keep(&store, "third").await.unwrap();
    assert_eq!(store.fetch(&first.id).await.unwrap(), "first");
    assert_eq!(kind(store.fetch(&second.id).await), Kind::ClaimDamaged);
    assert_eq!(store.fetch(&third.id).await.unwrap(), "third");
    fs::remove_file(path).unwrap();
    assert_eq!(kind(store.fetch(&first.id).await), Kind::ClaimDamaged);
}

#[tokio::test]
async fn a_flip_of_any_byte_is_noticed() {
    let folder = folder();
    let store = open(&folder);
    let claim = keep(&store, "a body of some bytes").await.unwrap();
    let path = &segments(&folder)[0];
    let whole = fs::read(path).unwrap();
    assert_eq!(whole.len(), segment::HEADER_LEN + segment::RECORD_LEN + 20);
    for at in 0..whole.len() {
        for flip in [1_u8, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] ^= flip;
            fs::write(path, damaged).unwrap();
            assert_eq!(
                kind(store.read(&claim.id, SystemTime::now())),
                Kind::ClaimDamaged,
                "byte {at}"
            );
        }
    }
    fs::write(path, whole).unwrap();
    assert_eq!(
        store.fetch(&claim.id).await.unwrap(),
        "a body of some bytes"
    );
}

#[tokio::test]
async fn a_folder_is_for_one_store_at_a_time_and_for_its_owner_alone() {
    let folder = folder();
    let store = open(&folder);
    keep(&store, "x").await.unwrap();
    let error = open_with(&config(&folder, 1 << 20)).expect_err("it is in use");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert!(
        error
            .to_string()
            .ends_with("is in use by another process or store"),
        "{error}"
    );
    let path = folder.path().join("bodies");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for file in fs::read_dir(&path).unwrap() {
        assert_eq!(mode(&file.unwrap().path()), 0o600);
    }
    drop(store);
    open(&folder);
}

#[tokio::test]
async fn another_services_or_folders_claims_are_unknown() {
    let (one, two) = (folder(), folder());
    let store = open(&one);
    let claim = keep(&store, "mine").await.unwrap();
    assert_eq!(kind(open(&two).fetch(&claim.id).await), Kind::Unknown);
    drop(store);
    let (store, place) = config(&one, 1 << 20);
    let billing = Disk::open(&store, &place, "billing").unwrap();
    assert_eq!(kind(billing.fetch(&claim.id).await), Kind::Unknown);
}

#[test]
fn a_damaged_key_is_an_error_and_half_a_new_one_is_not() {
    let folder = folder();
    drop(open(&folder));
    let path = folder.path().join("bodies");
    fs::write(path.join("key"), "short").unwrap();
    let error = open_with(&config(&folder, 1 << 20)).expect_err("the key is short");
    assert!(
        error
            .to_string()
            .contains("does not hold a key of 32 bytes"),
        "{error}"
    );
    fs::remove_file(path.join("key")).unwrap();
    fs::write(path.join("key.new"), "half").unwrap();
    drop(open(&folder));
    assert_eq!(fs::read(path.join("key")).unwrap().len(), 32);
}

#[tokio::test]
async fn a_full_store_refuses_and_takes_again_once_claims_have_expired() {
    let (folder, script) = (folder(), Script::new());
    let store = script.open(&folder);
    let max = 1 << 20;
    let first = keep(&store, vec![1; max / 2]).await.unwrap();
    let error = keep(&store, vec![2; max / 2])
        .await
        .expect_err("it does not fit");
    assert_eq!(
        (error.kind(), error.retry_after()),
        (Kind::ClaimStore, Some(AFTER))
    );
    assert_eq!(error.detail(), "the claim store bodies is full");
    assert_eq!(
        store.fetch(&first.id).await.unwrap(),
        vec![1; max / 2],
        "refusing hurts nobody else"
    );
    let small = keep(&store, "a small one still fits").await.unwrap();
    assert_eq!(
        store.fetch(&small.id).await.unwrap(),
        "a small one still fits"
    );

    script.advance(TTL * 2);
    // The writer looks for expired segments between groups, so the second of these comes after the look.
    keep(&store, "x").await.unwrap();
    keep(&store, "y").await.unwrap();
    assert_eq!(segments(&folder).len(), 1, "the old segment is deleted");
    keep(&store, vec![2; max / 2]).await.unwrap();
}

#[tokio::test]
async fn a_segment_is_deleted_only_when_its_last_claim_has_expired() {
    let (folder, script) = (folder(), Script::new());
    let store = script.open(&folder);
    let first = keep(&store, "first").await.unwrap();
    script.advance(TTL / 8 - Duration::from_secs(2));
    let second = keep(&store, "second").await.unwrap();
    assert_eq!(
        segments(&folder).len(),
        1,
        "it is not an eighth of the time to live old"
    );
    script.advance(Duration::from_secs(3));
    let third = keep(&store, "third").await.unwrap();
    assert_eq!(segments(&folder).len(), 2);
    script.advance(second.expires.duration_since(script.now()).unwrap() - Duration::from_secs(2));
    keep(&store, "x").await.unwrap();
    keep(&store, "y").await.unwrap();
    assert!(script.now() < second.expires);
    assert_eq!(store.read(&second.id, script.now()).unwrap(), "second");
    assert_eq!(kind(store.read(&first.id, first.expires)), Kind::Expired);
    script.advance(Duration::from_secs(7));
    keep(&store, "x").await.unwrap();
    keep(&store, "y").await.unwrap();
    let left = segments(&folder);
    assert_eq!(left.len(), 2, "the first is gone: {left:?}");
    assert_eq!(
        store
            .read(&third.id, third.expires - Duration::from_secs(1))
            .unwrap(),
        "third"
    );
}

#[tokio::test]
async fn expired_segments_of_an_earlier_run_are_deleted_at_the_next() {
    let (folder, script) = (folder(), Script::new());
    keep(&script.open(&folder), "old").await.unwrap();
    // One whose header is damaged is judged by its age.
    fs::write(folder.path().join("bodies/00000000000000ff.claims"), "torn").unwrap();
    let used = script.open(&folder).used();
    assert!(used > 4, "{used} bytes are counted");
    script.advance(TTL * 3);
    let store = script.open(&folder);
    keep(&store, "new").await.unwrap();
    assert_eq!(segments(&folder).len(), 1);
    assert_eq!(
        store.used(),
        fs::metadata(&segments(&folder)[0]).unwrap().len()
    );
}

#[tokio::test]
async fn no_claim_is_promised_that_the_disk_refused() {
    for faults in [
        &[("create", false)][..],
        &[("append", false)],
        &[("append", true), ("append", false)],
        &[("sync", false)],
        &[("folder", false)],
    ] {
        let (folder, script) = (folder(), Script::new());
        let store = script.open(&folder);
        script.play(faults);
        let error = keep(&store, "first").await.expect_err("the disk refuses");
        assert_eq!(
            (error.kind(), error.retry_after()),
            (Kind::ClaimStore, Some(AFTER))
        );
        assert!(error.to_string().contains("no space, or worse"), "{error}");
        let next = keep(&store, "next").await.expect("a new segment is begun");
        assert_eq!(store.fetch(&next.id).await.unwrap(), "next");
        let left = segments(&folder);
        assert_eq!(
            left.len(),
            1,
            "{faults:?}: nothing was promised from the first one"
        );
        assert_eq!(
            store.used(),
            fs::metadata(&left[0]).unwrap().len(),
            "{faults:?}"
        );
        assert!(
            script.steps.lock().unwrap().is_empty(),
            "the script was played to its end"
        );
    }
}

#[tokio::test]
async fn a_segment_is_not_trusted_again_after_an_error_but_its_promises_hold() {
    for fault in ["append", "sync"] {
        let (folder, script) = (folder(), Script::new());
        let store = script.open(&folder);
        let first = keep(&store, "first").await.unwrap();
        script.play(&[(fault, false)]);
        assert_eq!(kind(keep(&store, "lost").await), Kind::ClaimStore);
        let length = fs::metadata(&segments(&folder)[0]).unwrap().len();
        let next = keep(&store, "next").await.unwrap();
        assert_eq!(segments(&folder).len(), 2);
        assert_eq!(
            fs::metadata(&segments(&folder)[0]).unwrap().len(),
            length,
            "nothing is appended"
        );
        assert_eq!(store.fetch(&first.id).await.unwrap(), "first");
        assert_eq!(store.fetch(&next.id).await.unwrap(), "next");
        script.advance(TTL * 2);
        keep(&store, "x").await.unwrap();
        keep(&store, "y").await.unwrap();
        assert_eq!(segments(&folder).len(), 1, "it is deleted like any other");
        assert_eq!(
            store.used(),
            fs::metadata(&segments(&folder)[0]).unwrap().len()
        );
    }
}

/// What a store asks its thread for a body, whose bytes it counts first.
fn counted(store: &Disk, body: Bytes) -> (Ask, oneshot::Receiver<Result<Claim, Error>>) {
    let (reply, kept) = oneshot::channel();
    let digest = Sha256::digest(&body).into();
    let ask = Ask {
        audience: *b"for whom",
        body,
        digest,
        reply,
    };
    assert!(
        store
            .shared
            .takes(segment::RECORD_LEN as u64 + ask.body.len() as u64)
    );
    (ask, kept)
}

#[test]
fn bytes_of_a_group_that_was_not_written_count_no_longer_than_its_file() {
    let (folder, script) = (folder(), Script::new());
    let store = script.open(&folder);
    let (shared, machine) = (Arc::clone(&store.shared), Box::new(script.clone()));
    let mut writer = Writer::new(shared, machine, Vec::new());
    let large = || counted(&store, Bytes::from(vec![1; 300 << 10]));
    let (first, mut kept) = large();
    writer.commit(vec![first]);
    assert!(kept.try_recv().unwrap().is_ok());
    // The first append of the second group fails: its second body is not even tried.
    script.play(&[("append", false)]);
    let ((second, mut one), (third, mut other)) = (large(), large());
    writer.commit(vec![second, third]);
    for refused in [&mut one, &mut other] {
        assert_eq!(kind(refused.try_recv().unwrap()), Kind::ClaimStore);
    }
    script.advance(TTL * 2);
    writer.sweep();
    assert_eq!((segments(&folder).len(), store.used()), (0, 0));
}

#[test]
fn a_store_that_nobody_uses_deletes_its_last_segment_too() {
    let (folder, script) = (folder(), Script::new());
    let store = script.open(&folder);
    let mut writer = Writer::new(
        Arc::clone(&store.shared),
        Box::new(script.clone()),
        Vec::new(),
    );
    let (ask, mut kept) = counted(&store, Bytes::from_static(b"the last one"));
    writer.commit(vec![ask]);
    assert!(kept.try_recv().unwrap().is_ok());
    assert_eq!(
        writer.idle(),
        TTL / 8,
        "it wakes when the segment is to be closed"
    );
    script.advance(TTL / 8);
    writer.sweep();
    assert_eq!(segments(&folder).len(), 1);
    assert!(writer.idle() <= Duration::from_secs(60));
    script.advance(TTL + Duration::from_secs(2));
    writer.sweep();
    assert_eq!((segments(&folder).len(), store.used()), (0, 0));
}
