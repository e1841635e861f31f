//! A spool that is closed, damaged, full, out of luck with its disk, and without power.

mod damage;
mod power;
mod sim;
mod threads;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::frame::{Ack, Entry, Place};
use super::log::{Limits, Log, Refused};
use super::reader::Reader;
use super::recover::{self, OpenError, Recovery, Standing};
use super::segment::Index;
use sim::SimDisk;

const KEEP: Duration = Duration::from_secs(3600);
const MAX: u64 = 8 << 20;

fn folder() -> PathBuf {
    PathBuf::from("spool")
}

fn entry(topic: &str, number: u64, size: usize) -> Entry {
    Entry {
        id: Uuid::from_u128(u128::from(number) << 64 | 1),
        topic: Arc::from(topic),
        route: Arc::from("create"),
        accepted: std::time::UNIX_EPOCH + Duration::from_millis(1_800_000_000_000 + number),
        proof: number.is_multiple_of(3).then_some([number as u8; 32]),
        key: (!number.is_multiple_of(5)).then(|| Bytes::from(format!("k{}", number % 7))),
        headers: [("ce_id", number.to_string()), ("empty", String::new())]
            .into_iter()
            .collect(),
        value: Bytes::from(vec![number as u8; size]),
    }
}

fn number(entry: &Entry) -> u64 {
    (entry.id.as_u128() >> 64) as u64
}

/// A log and what reads it.
struct Open {
    disk: SimDisk,
    log: Log,
    index: Arc<Index>,
    recovery: Recovery,
    /// Names, next numbers, and the first that is owed.
    topics: Vec<(Arc<str>, u64, Vec<std::ops::Range<u64>>)>,
}

fn open(disk: &SimDisk, max: u64) -> Result<Open, OpenError> {
    let (found, recovery) = recover::recover(disk, &folder(), 1000)?;
    let index = Arc::clone(&found.index);
    let topics = found.topics.list.iter();
    let topics = topics.map(|topic| {
        (
            Arc::clone(&topic.name),
            topic.next,
            topic.acked.first(usize::MAX),
        )
    });
    let topics = topics.collect();
    let limits = Limits { max, keep: KEEP };
    let log = Log::new(Arc::new(disk.clone()), folder(), limits, found);
    Ok(Open {
        disk: disk.clone(),
        log,
        index,
        recovery,
        topics,
    })
}

impl Open {
    /// Writes messages, all of them; the places in order.
    fn append(&mut self, entries: &[Entry]) -> Result<Vec<Place>, Refused> {
        let (mut all, mut places) = (Vec::new(), Vec::new());
        while all.len() < entries.len() {
            self.log.append(entries[all.len()..].iter(), &mut places)?;
            all.extend_from_slice(&places);
        }
        Ok(all)
    }

    fn ack(&mut self, places: &[Place]) {
        let ack = |place: &Place| Ack {
            place: *place,
            partition: 1,
            offset: place.seq as i64 * 10,
        };
        self.log.acked(&places.iter().map(ack).collect::<Vec<_>>());
    }

    fn reader(&self, topic: u16, name: &Arc<str>) -> Reader {
        let disk = Arc::new(self.disk.clone());
        Reader::new(
            disk,
            folder(),
            Arc::clone(&self.index),
            (topic, Arc::clone(name)),
        )
    }

    /// What an earlier run left owed, by topic, in order, read back.
    fn owed(&self) -> Vec<(Place, Entry)> {
        let mut owed = Vec::new();
        for (topic, (name, next, done)) in (0..).zip(&self.topics) {
            let mut reader = self.reader(topic, name);
            let mut from = 0;
            while from < *next {
                let batch = reader.read(from, 4096).expect("readable");
                let Some((last, _)) = batch.last() else { break };
                from = last + 1;
                for (seq, entry) in batch {
                    if !done.iter().any(|range| range.contains(&seq)) {
                        owed.push((Place { topic, seq }, entry));
                    }
                }
            }
        }
        owed
    }
}

/// The segments, the oldest first.
fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let named = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| super::segment::number(name).is_some())
    };
    disk.paths().into_iter().filter(named).collect()
}

fn aside(disk: &SimDisk) -> Vec<PathBuf> {
    let damaged = |path: &PathBuf| Path::extension(path).is_some_and(|end| end == "damaged");
    disk.paths().into_iter().filter(damaged).collect()
}

#[test]
fn what_is_written_is_read_back_in_order_and_owed_until_it_is_acknowledged() {
    let disk = SimDisk::new(1, 64 << 20);
    let mut spool = open(&disk, MAX).expect("an empty folder");
    let entries: Vec<_> = (0..500)
        .map(|n| entry(if n % 3 == 0 { "b" } else { "a" }, n, 40 + n as usize * 10))
        .collect();
    let places = spool.append(&entries).expect("there is room");
    spool.log.sync().expect("the disk is well");
    spool.ack(&places[..100]);
    spool.log.tidy();

    let again = open(&disk, MAX).expect("it is readable");
    assert_eq!(
        (
            again.recovery.lost,
            again.recovery.damaged,
            again.recovery.torn
        ),
        (0, 0, 0)
    );
    assert_eq!(again.recovery.owed, 400);
    let mut owed: Vec<_> = again.owed().into_iter().map(|(_, entry)| entry).collect();
    owed.sort_by_key(number);
    assert_eq!(owed, entries[100..]);
    let known = &again.recovery.known;
    assert_eq!(known.len(), 500);
    assert_eq!(known[7].id, entries[7].id);
    let Standing::Replicated(_, partition, offset) = known[7].standing else {
        panic!("it is acknowledged: {:?}", known[7]);
    };
    assert_eq!((partition, offset), (1, places[7].seq as i64 * 10));
    assert_eq!(
        (known[101].standing, known[102].proof),
        (Standing::Owed, entries[102].proof)
    );
}

#[test]
fn a_full_spool_refuses_and_takes_again_what_there_is_room_for() {
    let disk = SimDisk::new(1, 64 << 20);
    let mut spool = open(&disk, 4 << 20).expect("an empty folder");
    let (mut places, mut n) = (Vec::new(), 0);
    let refused = loop {
        match spool.append(&[entry("a", n, 10_000)]) {
            Ok(new) => places.extend(new),
            Err(refused) => break refused,
        }
        n += 1;
    };
    assert_eq!(refused, Refused::Full);
    assert!(
        n > 300 && spool.log.used() <= 4 << 20,
        "{n} messages, {} bytes",
        spool.log.used()
    );
    // Everything that was taken is still there, and nothing was written beside it.
    spool.log.sync().expect("the disk is well");
    let now = disk.copy();
    assert_eq!(open(&now, 4 << 20).expect("readable").recovery.owed, n);

    spool.ack(&places[..150]);
    spool.log.tidy();
    let more = spool
        .append(&[entry("a", n, 10_000)])
        .expect("there is room again");
    spool.log.sync().expect("the disk is well");
    let again = open(&disk, 4 << 20).expect("readable");
    assert_eq!((again.recovery.owed, again.recovery.lost), (n + 1 - 150, 0));
    assert_eq!(again.owed().last().map(|(place, _)| *place), Some(more[0]));
}

#[test]
fn a_full_disk_refuses_and_acknowledgements_free_it_without_a_restart() {
    let disk = SimDisk::new(1, 3 << 20);
    let mut spool = open(&disk, 64 << 20).expect("an empty folder");
    let mut places = Vec::new();
    let refused = loop {
        match spool.append(&[entry("a", places.len() as u64, 5000)]) {
            Ok(new) => places.extend(new),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, Refused::Full);
    for part in places.chunks(10) {
        spool.ack(part);
        spool.log.tidy();
    }
    let count = places.len() as u64;
    spool
        .append(&[entry("a", count, 5000)])
        .expect("the space is back");
    spool.log.sync().expect("the disk is well");
    let again = open(&disk, 64 << 20).expect("readable");
    assert_eq!((again.recovery.owed, again.recovery.lost), (1, 0));
}

#[test]
fn a_failed_sync_promises_nothing_and_the_segment_is_not_trusted_again() {
    let disk = SimDisk::new(1, 64 << 20);
    let mut spool = open(&disk, MAX).expect("an empty folder");
    spool.append(&[entry("a", 0, 10)]).expect("written");
    spool.log.sync().expect("synced");
    let kept = spool.log.written();
    spool.append(&[entry("a", 1, 10)]).expect("written");
    let doubtful = spool.log.written();
    disk.faults(1);
    assert_eq!(spool.log.sync(), Err(Refused::Disk));
    disk.faults(0);
    assert_eq!(spool.log.durable(kept), Some(true));
    assert_eq!(spool.log.durable(doubtful), Some(false));
    spool.log.sync().expect("nothing is left to sync");
    assert_eq!(
        spool.log.durable(doubtful),
        Some(false),
        "a second sync proves nothing"
    );
    assert_eq!(
        spool.append(&[entry("a", 2, 10)]),
        Err(Refused::Disk),
        "the disk has a rest"
    );
    disk.advance(Duration::from_secs(1));
    spool.append(&[entry("a", 2, 10)]).expect("another segment");
    spool.log.sync().expect("the disk is well");
    assert_eq!(spool.log.durable(spool.log.written()), Some(true));
    assert_eq!(segments(&disk).len(), 2);
    disk.power_cut();
    let owed: Vec<_> = open(&disk, MAX).expect("readable").owed();
    let numbers: Vec<_> = owed.iter().map(|(_, entry)| number(entry)).collect();
    assert!(numbers == [0, 2] || numbers == [0, 1, 2], "{numbers:?}");
}

#[test]
fn messages_of_a_topic_that_is_stuck_do_not_hold_up_the_space_of_others() {
    let disk = SimDisk::new(1, 64 << 20);
    let mut spool = open(&disk, 4 << 20).expect("an empty folder");
    spool.append(&[entry("stuck", 0, 100)]).expect("written");
    for n in 1..3000 {
        let places = spool
            .append(&[entry("free", n, 5000)])
            .expect("space is freed");
        spool.ack(&places);
        if n % 50 == 0 {
            spool.log.tidy();
        }
    }
    spool.log.sync().expect("the disk is well");
    let again = open(&disk, 4 << 20).expect("readable");
    let owed: Vec<_> = again
        .owed()
        .iter()
        .map(|(_, entry)| number(entry))
        .collect();
    assert_eq!(owed.first(), Some(&0));
    assert!(owed.len() < 60, "{}", owed.len());
}

#[test]
fn done_messages_are_kept_for_a_while_where_there_is_room() {
    let disk = SimDisk::new(1, 64 << 20);
    let mut spool = open(&disk, 16 << 20).expect("an empty folder");
    let entries: Vec<_> = (0..600).map(|n| entry("a", n, 5000)).collect();
    let places = spool.append(&entries).expect("written");
    spool.ack(&places);
    spool.log.tidy();
    let held = spool.log.used();
    assert!(held > 2 << 20, "{held}");
    disk.advance(KEEP * 2);
    spool.append(&[entry("a", 600, 10)]).expect("written");
    spool.log.tidy();
    assert!(spool.log.used() <= 2 << 20, "{}", spool.log.used());
}

#[test]
fn many_short_runs_and_many_failures_do_not_fill_the_spool() {
    let disk = SimDisk::new(1, 64 << 20);
    for n in 0..200 {
        let mut spool = open(&disk, 4 << 20).expect("readable");
        spool.append(&[entry("a", n, 100)]).expect("there is room");
        spool.log.sync().expect("the disk is well");
    }
    let mut spool = open(&disk, 4 << 20).expect("readable");
    disk.faults(2);
    for n in 200..2000 {
        disk.advance(Duration::from_secs(1));
        if spool.append(&[entry("a", n, 100)]) == Err(Refused::Full) {
            panic!("full after {n} messages of 100 bytes");
        }
        spool.log.sync().ok();
    }
    disk.faults(0);
    disk.advance(Duration::from_secs(1));
    spool
        .append(&[entry("a", 2000, 100)])
        .expect("there is room");
}

#[test]
fn a_message_that_was_taken_back_is_not_known_to_the_next_run() {
    let disk = SimDisk::new(1, 64 << 20);
    let mut spool = open(&disk, MAX).expect("an empty folder");
    let entries: Vec<_> = (0..3).map(|n| entry("a", n, 10)).collect();
    let places = spool.append(&entries).expect("written");
    let void = Ack {
        place: places[1],
        partition: -1,
        offset: -1,
    };
    spool.log.acked(&[void]);
    spool.log.tidy();
    let again = open(&disk, MAX).expect("readable");
    let known: Vec<_> = again.recovery.known.iter().map(|known| known.id).collect();
    assert_eq!(known, [entries[0].id, entries[2].id]);
    assert_eq!(again.recovery.owed, 2);
}

#[test]
fn a_spool_that_is_full_and_started_again_and_again_takes_messages_once_there_is_room() {
    let disk = SimDisk::new(1, 64 << 20);
    let max = 4 << 20;
    let mut n = 0;
    for _ in 0..5 {
        let mut spool = open(&disk, max).expect("readable");
        while spool.append(&[entry("a", n, 20_000)]).is_ok() {
            n += 1;
        }
        assert!(spool.log.used() <= max + (64 << 10), "{}", spool.log.used());
        spool.log.sync().expect("the disk is well");
    }
    let mut spool = open(&disk, max).expect("readable");
    let owed: Vec<_> = spool.owed().into_iter().map(|(place, _)| place).collect();
    assert_eq!(owed.len() as u64, n);
    for part in owed.chunks(7) {
        spool.ack(part);
        spool.log.tidy();
    }
    spool
        .append(&[entry("a", n, 20_000)])
        .expect("there is room again");
    spool.log.sync().expect("the disk is well");
    let again = open(&disk, max).expect("readable");
    assert_eq!((again.recovery.owed, again.recovery.lost), (1, 0));
}

#[test]
fn a_spool_that_was_made_smaller_than_what_is_in_it_empties_and_goes_on() {
    let disk = SimDisk::new(1, 64 << 20);
    let mut spool = open(&disk, 16 << 20).expect("an empty folder");
    let entries: Vec<_> = (0..600).map(|n| entry("a", n, 20_000)).collect();
    let places = spool.append(&entries).expect("there is room");
    spool.log.sync().expect("the disk is well");
    let mut spool = open(&disk, 4 << 20).expect("readable");
    assert_eq!(spool.append(&[entry("a", 600, 100)]), Err(Refused::Full));
    for part in places.chunks(50) {
        spool.ack(part);
        spool.log.tidy();
    }
    spool
        .append(&[entry("a", 600, 100)])
        .expect("there is room again");
    assert_eq!(
        open(&disk.copy(), 4 << 20).expect("readable").recovery.owed,
        1
    );
}

#[test]
fn a_full_spool_of_many_topics_is_freed_without_a_restart() {
    let disk = SimDisk::new(1, 64 << 20);
    let mut spool = open(&disk, 4 << 20).expect("an empty folder");
    let (mut places, mut n) = (Vec::new(), 0);
    while let Ok(new) = spool.append(&[entry(&format!("topic-{}", n % 600), n, 1000)]) {
        places.extend(new);
        n += 1;
    }
    assert!(n > 1000, "{n}");
    for part in places.chunks(20) {
        spool.ack(part);
        spool.log.tidy();
    }
    spool
        .append(&[entry("topic-1", n, 1000)])
        .expect("there is room again");
}

#[test]
fn a_first_write_that_fails_gives_its_topic_s_number_to_no_other() {
    let disk = SimDisk::new(1, 64 << 20);
    let mut spool = open(&disk, MAX).expect("an empty folder");
    spool.append(&[entry("x", 0, 10)]).expect("written");
    disk.faults(1);
    assert!(spool.append(&[entry("a", 1, 10)]).is_err());
    disk.faults(0);
    disk.advance(Duration::from_secs(2));
    let b = spool.append(&[entry("b", 2, 10)]).expect("written")[0];
    let a = spool.append(&[entry("a", 3, 10)]).expect("written")[0];
    assert_ne!(a.topic, b.topic);
    spool.log.sync().expect("the disk is well");
    let again = open(&disk, MAX).expect("readable");
    let owed: Vec<_> = again
        .owed()
        .iter()
        .map(|(_, entry)| (entry.topic.to_string(), number(entry)))
        .collect();
    for (topic, number) in [("x", 0), ("a", 3), ("b", 2)] {
        assert!(owed.contains(&(topic.to_owned(), number)), "{owed:?}");
    }
}

#[test]
fn acknowledgements_for_which_there_was_no_room_are_not_forgotten() {
    let disk = SimDisk::new(1, 64 << 20);
    let mut spool = open(&disk, 4 << 20).expect("an empty folder");
    let entries: Vec<_> = (0..6000).map(|n| entry("a", n, 100)).collect();
    let places = spool.append(&entries).expect("there is room");
    spool.ack(&places[..5000]);
    spool.log.tidy();
    spool.ack(&places[5000..5010]);
    spool.log.tidy();
    disk.advance(KEEP * 2);
    spool.log.tidy();
    let again = open(&disk, 4 << 20).expect("readable");
    assert_eq!(again.recovery.lost, 0);
    assert!(again.recovery.owed <= 6000 - 10, "{}", again.recovery.owed);
}

#[test]
fn a_disk_that_cannot_be_read_for_a_moment_costs_no_message() {
    let disk = SimDisk::new(1, 64 << 20);
    let mut spool = open(&disk, MAX).expect("an empty folder");
    let entries: Vec<_> = (0..100).map(|n| entry("a", n, 20_000)).collect();
    spool.append(&entries).expect("written");
    assert!(segments(&disk).len() > 2);
    let name = Arc::from("a");
    let mut reader = spool.reader(0, &name);
    let mut read = Vec::new();
    while read.len() < 100 {
        disk.opens(read.len() % 3 == 0);
        let from = read.len() as u64;
        match reader.read(from, 30_000) {
            Ok(batch) => read.extend(batch.into_iter().map(|(seq, _)| seq)),
            Err(_) => disk.opens(true),
        }
        reader.rest();
        disk.opens(true);
        let from = read.len() as u64;
        read.extend(
            reader
                .read(from, 0)
                .expect("readable")
                .into_iter()
                .map(|(seq, _)| seq),
        );
    }
    assert_eq!(read, (0..100).collect::<Vec<_>>());
    // At the start too: what cannot be read at the moment is no damage.
    disk.opens(false);
    assert!(matches!(open(&disk, MAX), Err(OpenError::Io { .. })));
    disk.opens(true);
    assert_eq!(open(&disk, MAX).expect("readable").recovery.owed, 100);
    assert!(aside(&disk).is_empty());
}
