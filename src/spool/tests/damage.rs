//! Bytes that are not what was written.

use super::*;

/// Fills a log with a few messages of two topics in two segments.
fn written() -> (SimDisk, Vec<Entry>) {
    let disk = SimDisk::new(9, 64 << 20);
    let mut entries = Vec::new();
    for _ in 0..2 {
        let mut spool = open(&disk, MAX).expect("readable");
        let from = entries.len() as u64;
        let new: Vec<_> = (from..from + 6)
            .map(|n| entry(if n % 2 == 0 { "even" } else { "odd" }, n, 30))
            .collect();
        let places = spool.append(&new).expect("written");
        spool.ack(&places[..1]);
        spool.log.tidy();
        spool.log.sync().expect("synced");
        entries.extend(new);
    }
    (disk, entries)
}

#[test]
fn every_flipped_byte_is_noticed_and_takes_nothing_else_with_it() {
    let (disk, entries) = written();
    let whole: Vec<u64> = open(&disk, MAX)
        .expect("readable")
        .owed()
        .iter()
        .map(|(_, e)| number(e))
        .collect();
    for path in segments(&disk) {
        let bytes = disk.bytes(&path);
        let end = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .expect("not empty");
        disk.put(&path, &bytes[..bytes.len().min(end + 64)]);
    }
    let mut flips = 0_u32;
    for path in segments(&disk) {
        let good = disk.bytes(&path);
        let end = good.iter().rposition(|byte| *byte != 0).expect("not empty") + 1;
        for at in 0..end {
            let bad = disk.copy();
            let mut bytes = good.clone();
            bytes[at] ^= 0x41;
            bad.put(&path, &bytes);
            flips += 1;
            let found = match open(&bad, MAX) {
                Ok(found) => found,
                Err(OpenError::Version { .. }) => {
                    panic!("a flip at {at} looks like another version")
                }
                Err(error) => panic!("a flip at {at} stops the process: {error}"),
            };
            let told = found.recovery.damaged + found.recovery.torn + found.recovery.lost;
            // Between the two headers and behind the last frame nothing was written that could be damaged.
            let unused = good[at] == 0 && at < super::super::frame::HEADER_LEN;
            assert!(
                told > 0 || unused,
                "a flip at {at} of {} is not noticed",
                path.display()
            );
            let owed = found.owed();
            for (_, entry) in &owed {
                assert_eq!(
                    *entry,
                    entries[number(entry) as usize],
                    "a flip at {at} changed a message"
                );
            }
            let missing = whole
                .iter()
                .filter(|n| !owed.iter().any(|(_, e)| number(e) == **n))
                .count();
            assert!(missing <= 1, "a flip at {at} took {missing} messages");
        }
    }
    assert!(flips > 2000, "{flips}");
}

#[test]
fn a_damaged_part_is_put_aside_once_and_never_stops_the_process() {
    let (disk, _) = written();
    let path = segments(&disk).remove(0);
    let mut bytes = disk.bytes(&path);
    // In the middle of the first message's value.
    let at = bytes
        .windows(20)
        .position(|run| run == [2; 20])
        .expect("the third message");
    bytes[at] = 99;
    disk.put(&path, &bytes);
    for _ in 0..3 {
        let mut found = open(&disk, MAX).expect("it goes on");
        assert!(found.recovery.damaged > 0);
        found
            .append(&[entry("even", 50, 10)])
            .expect("it takes more");
        found.log.sync().expect("synced");
    }
    assert_eq!(aside(&disk).len(), 1);
}

#[test]
fn a_cut_end_is_left_out_and_what_was_synced_before_it_stays() {
    let (disk, _) = written();
    let path = segments(&disk).pop().expect("two segments");
    let good = disk.bytes(&path);
    let end = good.iter().rposition(|byte| *byte != 0).expect("not empty") + 1;
    for cut in (1024..end).rev().step_by(7) {
        let torn = disk.copy();
        torn.put(&path, &good[..cut]);
        let found = open(&torn, MAX).expect("it goes on");
        assert_eq!(found.recovery.damaged, 0, "cut at {cut}");
        assert!(found.owed().len() >= 5, "cut at {cut}");
    }
}

#[test]
fn a_segment_of_another_version_is_refused_and_left_alone() {
    let (disk, _) = written();
    let path = segments(&disk).remove(0);
    let mut bytes = disk.bytes(&path);
    for copy in [0, 512] {
        bytes[copy + 11] = 9;
        let check = crc32c::crc32c(&bytes[copy..copy + 40]).to_be_bytes();
        bytes[copy + 40..copy + 44].copy_from_slice(&check);
    }
    disk.put(&path, &bytes);
    let refused = open(&disk, MAX)
        .err()
        .expect("it is not ours to read")
        .to_string();
    assert!(refused.contains("version 9"), "{refused}");
    assert_eq!(disk.bytes(&path), bytes);
}

#[test]
fn a_body_that_looks_like_a_message_is_not_taken_for_one_after_damage() {
    let (disk, _) = written();
    let image = disk.bytes(&segments(&disk).remove(0));
    let image = image
        .iter()
        .copied()
        .take(image.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1);
    let mut spool = open(&disk, MAX).expect("readable");
    let mut forged = entry("even", 70, 0);
    forged.value = Bytes::from(image.collect::<Vec<_>>());
    spool
        .append(&[forged, entry("even", 71, 10)])
        .expect("written");
    spool.log.sync().expect("synced");
    let before = spool.owed().len();
    let path = segments(&disk).pop().expect("three segments");
    let mut bytes = disk.bytes(&path);
    let at = bytes
        .windows(4)
        .rposition(|run| run == *b"even")
        .expect("the forged body");
    // The header of the frame that holds it all: the walk must look for the next good one inside the body.
    bytes[at.saturating_sub(900)] ^= 1;
    disk.put(&path, &bytes);
    let found = open(&disk, MAX).expect("it goes on");
    let numbers: Vec<_> = found
        .owed()
        .iter()
        .map(|(_, entry)| number(entry))
        .collect();
    assert!(
        numbers.iter().filter(|n| **n == 2).count() <= 1,
        "{numbers:?}"
    );
    assert!(found.owed().len() <= before + 2);
}

#[test]
fn a_damaged_word_about_a_topic_takes_none_of_its_messages() {
    let disk = SimDisk::new(9, 64 << 20);
    let mut spool = open(&disk, MAX).expect("readable");
    let entries: Vec<_> = (0..20).map(|n| entry("a", n, 30)).collect();
    spool.append(&entries).expect("written");
    spool.log.sync().expect("synced");
    let path = segments(&disk).remove(0);
    let mut bytes = disk.bytes(&path);
    bytes[1024 + 20] ^= 1;
    disk.put(&path, &bytes);
    let found = open(&disk, MAX).expect("it goes on");
    assert_eq!((found.recovery.owed, found.recovery.lost), (20, 0));
    assert!(found.recovery.damaged > 0);
    assert_eq!(found.owed().len(), 20);
}
