//! The whole of it on a real disk: one lock, one writer, callers that wait.

use std::sync::Mutex;

use super::*;
use crate::config::model::{Spool as Rule, Survives};
use crate::spool::{Promise, Sink, Spool, Unkept, Written};

/// Sees what goes on, and acknowledges it if it is told to.
#[derive(Default)]
struct Seen {
    numbers: Mutex<Vec<u64>>,
    acknowledge: bool,
}

impl Sink for Seen {
    fn written(&self, written: Written<'_>) {
        self.numbers
            .lock()
            .expect("whole")
            .push(number(written.entry));
        if self.acknowledge {
            written.caller.replicated(2, written.place.seq as i64);
        }
    }
}

fn rule(folder: &tempfile::TempDir) -> Rule {
    Rule {
        path: folder.path().join("a/b/spool"),
        max: 8 << 20,
        survives: Survives::Pod,
    }
}

fn start(folder: &tempfile::TempDir, seen: &Arc<Seen>) -> Spool {
    let opened = Spool::open(&rule(folder), 100, KEEP).expect("it opens");
    opened
        .start(Arc::clone(seen) as Arc<dyn Sink>)
        .expect("a thread")
}

#[tokio::test]
async fn a_caller_is_told_when_its_message_is_on_disk_or_at_the_broker() {
    let folder = tempfile::tempdir().expect("a folder");
    let seen = Arc::new(Seen::default());
    let spool = start(&folder, &seen);
    let receipts: Vec<_> = (0..50)
        .map(|n| spool.append(entry("a", n, 100), true).expect("taken"))
        .collect();
    for receipt in &receipts {
        assert_eq!(receipt.kept().await, Ok(Promise::Spooled));
    }
    let later = spool.append(entry("a", 50, 100), false).expect("taken");
    spool.sync(&later);
    assert_eq!(later.kept().await, Ok(Promise::Spooled));
    assert_eq!(
        *seen.numbers.lock().expect("whole"),
        (0..=50).collect::<Vec<_>>()
    );
    drop(spool);

    let seen = Arc::new(Seen {
        acknowledge: true,
        ..Seen::default()
    });
    let spool = start(&folder, &seen);
    assert_eq!(spool.owed(), 51);
    let receipt = spool.append(entry("a", 51, 100), false).expect("taken");
    assert_eq!(receipt.kept().await, Ok(Promise::Replicated(2, 51)));
}

#[tokio::test]
async fn two_spools_do_not_share_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = start(&folder, &Arc::default());
    let Err(refused) = Spool::open(&rule(&folder), 100, KEEP) else {
        panic!("two at a time");
    };
    assert!(refused.to_string().contains("another process"), "{refused}");
    drop(spool);
    Spool::open(&rule(&folder), 100, KEEP).expect("it is free again");
}

#[tokio::test]
async fn a_segment_that_was_deleted_from_outside_promises_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = start(&folder, &Arc::default());
    let kept = spool.append(entry("a", 0, 100), true).expect("taken");
    assert_eq!(kept.kept().await, Ok(Promise::Spooled));
    for file in std::fs::read_dir(rule(&folder).path).expect("it is there") {
        let path = file.expect("it is listed").path();
        if path.extension().is_some_and(|end| end == "spool") {
            std::fs::remove_file(path).expect("it is deleted");
        }
    }
    let receipt = spool.append(entry("a", 1, 100), true).expect("taken");
    assert_eq!(receipt.kept().await, Err(Unkept::Doubtful(Refused::Disk)));
    let mut told = Err(Unkept::Refused(Refused::Disk));
    for _ in 0..1000 {
        let receipt = spool.append(entry("a", 2, 100), true).expect("taken");
        told = receipt.kept().await;
        if told.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(told, Ok(Promise::Spooled), "a new segment, after a rest");
}
