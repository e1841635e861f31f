//! Power cuts, kills and failing disks at random moments, against a model that only knows what was promised.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// What may be asked of the spool after any accident.
#[derive(Default)]
struct Model {
    /// Every message ever handed in.
    handed: BTreeMap<u64, Entry>,
    /// Those whose sync was told to have worked, less those that were acknowledged.
    promised: BTreeSet<u64>,
    acked: BTreeSet<u64>,
}

struct World {
    random: fastrand::Rng,
    disk: SimDisk,
    model: Model,
    next: u64,
    spool: Open,
    /// Written since the last sync.
    loose: Vec<(u64, u64)>,
    /// Owed to the broker as the sender knows it.
    out: Vec<(Place, u64)>,
    accidents: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed, 3 << 20);
        let spool = open(&disk, 4 << 20).expect("an empty folder");
        Self {
            random: fastrand::Rng::with_seed(seed ^ 0x5eed),
            disk,
            model: Model::default(),
            next: 0,
            spool,
            loose: Vec::new(),
            out: Vec::new(),
            accidents: 0,
        }
    }

    fn step(&mut self) {
        match self.random.u32(0..100) {
            0..45 => self.append(),
            45..65 => self.sync(),
            65..82 => self.ack(),
            82..90 => self.spool.log.tidy(),
            90..93 => self
                .disk
                .advance(Duration::from_secs(self.random.u64(1..4000))),
            93..96 => self
                .disk
                .faults(*self.random.choice(&[0, 0, 7, 30]).unwrap_or(&0)),
            _ => self.accident(),
        }
    }

    fn append(&mut self) {
        let count = self.random.usize(1..8);
        let mut entries = Vec::new();
        for _ in 0..count {
            let topic = *self.random.choice(&["a", "b", "c"]).unwrap_or(&"a");
            let size = match self.random.u8(0..20) {
                0 => self.random.usize(0..300_000),
                _ => self.random.usize(0..3000),
            };
            let entry = entry(topic, self.next, size);
            self.model.handed.insert(self.next, entry.clone());
            self.next += 1;
            entries.push(entry);
        }
        let (mut rest, mut places) = (&entries[..], Vec::new());
        while !rest.is_empty() {
            let before = self.spool.log.written();
            if self.spool.log.append(rest.iter(), &mut places).is_err() {
                return;
            }
            for ((place, entry), lsn) in places.iter().zip(rest).zip(before + 1..) {
                self.out.push((*place, number(entry)));
                self.loose.push((lsn, number(entry)));
            }
            rest = &rest[places.len()..];
        }
    }

    fn sync(&mut self) {
        self.spool.log.sync().ok();
        for (lsn, number) in std::mem::take(&mut self.loose) {
            if self.spool.log.durable(lsn) == Some(true) && !self.model.acked.contains(&number) {
                self.model.promised.insert(number);
            }
        }
    }

    fn ack(&mut self) {
        let count = self.random.usize(0..20).min(self.out.len());
        for _ in 0..count {
            // Mostly in order, as a broker does.
            let at = match self.random.bool() {
                true => 0,
                false => self.random.usize(0..self.out.len().min(10)),
            };
            let (place, number) = self.out.remove(at);
            self.model.acked.insert(number);
            self.model.promised.remove(&number);
            self.spool.ack(&[place]);
        }
    }

    fn accident(&mut self) {
        self.disk.faults(0);
        // A killed process leaves what it wrote; a power cut only what was synced.
        if self.random.bool() {
            self.disk.power_cut();
        }
        self.accidents += 1;
        self.spool = open(&self.disk, 4 << 20).expect("no accident stops the process");
        self.loose.clear();
        let owed = self.spool.owed();
        let mut last: BTreeMap<u16, u64> = BTreeMap::new();
        for (place, entry) in &owed {
            let number = number(entry);
            assert_eq!(
                Some(entry),
                self.model.handed.get(&number),
                "a message was changed"
            );
            let before = last.insert(place.topic, number);
            assert!(before < Some(number), "{number} after {before:?}");
        }
        let found: BTreeSet<_> = owed.iter().map(|(_, entry)| number(entry)).collect();
        let lost: Vec<_> = self.model.promised.difference(&found).collect();
        assert!(lost.is_empty(), "promised and lost: {lost:?}");
        assert_eq!(found.len(), owed.len(), "a message is there twice");
        self.out = owed
            .iter()
            .map(|(place, entry)| (*place, number(entry)))
            .collect();
    }
}

/// How many worlds; `WAYSIDE_SEEDS` for more.
fn seeds() -> u64 {
    let wanted = std::env::var("WAYSIDE_SEEDS").ok();
    wanted.and_then(|wanted| wanted.parse().ok()).unwrap_or(100)
}

#[test]
fn nothing_that_was_promised_is_lost_to_power_cuts_kills_and_failing_disks() {
    let (mut accidents, mut promised) = (0, 0);
    for seed in 0..seeds() {
        let mut world = World::new(seed);
        let run = std::panic::AssertUnwindSafe(|| {
            for _ in 0..150 {
                world.step();
            }
            world.accident();
        });
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("the seed is {seed}");
            std::panic::resume_unwind(panic);
        }
        accidents += world.accidents;
        promised += world.model.promised.len() + world.model.acked.len();
    }
    assert!(accidents > seeds() as u32 * 2, "{accidents} accidents");
    assert!(promised > seeds() as usize * 20, "{promised} promises");
}

// The five crash bugs of another program's disk buffer, each as what must hold here.

#[test]
fn a_promise_is_made_only_after_the_sync_of_its_bytes() {
    let disk = SimDisk::new(1, 64 << 20);
    let mut spool = open(&disk, MAX).expect("an empty folder");
    spool.append(&[entry("a", 0, 10)]).expect("written");
    assert_eq!(spool.log.durable(spool.log.written()), None);
    spool.log.sync().expect("synced");
    assert_eq!(spool.log.durable(spool.log.written()), Some(true));
    disk.power_cut();
    assert_eq!(open(&disk, MAX).expect("readable").owed().len(), 1);
}

#[test]
fn a_new_segment_s_entry_is_durable_before_the_first_promise_from_it() {
    for seed in 0..50 {
        let disk = SimDisk::new(seed, 64 << 20);
        let mut spool = open(&disk, 4 << 20).expect("an empty folder");
        let mut n = 0;
        while segments(&disk).len() < 3 {
            spool.append(&[entry("a", n, 20_000)]).expect("written");
            n += 1;
        }
        spool.log.sync().expect("synced");
        disk.power_cut();
        assert_eq!(open(&disk, 4 << 20).expect("readable").recovery.owed, n);
    }
}

#[test]
fn a_segment_is_deleted_only_after_its_acknowledgements_are_durable() {
    let disk = SimDisk::new(1, 64 << 20);
    let mut spool = open(&disk, 4 << 20).expect("an empty folder");
    let entries: Vec<_> = (0..100).map(|n| entry("a", n, 20_000)).collect();
    let places = spool.append(&entries).expect("written");
    disk.ops();
    spool.ack(&places);
    disk.advance(KEEP * 2);
    spool.log.tidy();
    let ops = disk.ops();
    let removed = ops
        .iter()
        .position(|op| op.starts_with("remove"))
        .expect("one is deleted");
    let synced = ops[..removed].iter().any(|op| op.starts_with("sync 0"));
    assert!(synced, "{ops:?}");
}

#[test]
fn a_restart_right_after_a_new_segment_goes_on_where_it_was() {
    let disk = SimDisk::new(1, 64 << 20);
    let mut spool = open(&disk, 4 << 20).expect("an empty folder");
    let mut n = 0;
    while segments(&disk).len() < 2 {
        spool.append(&[entry("a", n, 20_000)]).expect("written");
        n += 1;
    }
    for _ in 0..3 {
        let mut spool = open(&disk, 4 << 20).expect("readable");
        assert_eq!(spool.recovery.lost, 0);
        let place = spool.append(&[entry("a", n, 10)]).expect("it takes more");
        assert_eq!(place[0].seq, n);
        n += 1;
        let name = Arc::from("a");
        let (last, _) = spool
            .reader(0, &name)
            .read(n - 1, 10)
            .expect("readable")
            .pop()
            .expect("it is read");
        assert_eq!(last, n - 1);
    }
}

#[test]
fn a_message_over_the_limit_is_refused_and_the_next_is_taken() {
    let disk = SimDisk::new(1, 64 << 20);
    let mut spool = open(&disk, 4 << 20).expect("an empty folder");
    assert_eq!(spool.append(&[entry("a", 0, 2 << 20)]), Err(Refused::Full));
    spool
        .append(&[entry("a", 1, 900_000)])
        .expect("a quarter of the spool is taken");
    spool
        .append(&[entry("a", 2, 10)])
        .expect("and so is the next");
}
