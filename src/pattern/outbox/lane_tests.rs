//! A topic's messages against a broker that takes, fails, refuses and forgets at random.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::spool::{Receipt, pair};

const ROOM: usize = 1000;
const PARTITIONS: u64 = 3;

/// The broker and its client as a lane sees them: a queue for each partition, answered in order.
#[derive(Default)]
struct Broker {
    queues: BTreeMap<u64, VecDeque<u64>>,
    /// In the order in which they were taken, twice if they were sent twice.
    taken: Vec<u64>,
}

struct World {
    random: fastrand::Rng,
    now: Instant,
    lane: Lane,
    broker: Broker,
    /// Messages in the log, each with its size.
    log: Vec<usize>,
    receipts: Vec<Receipt>,
    /// Taken back: nobody was promised them.
    returned: BTreeSet<u64>,
    /// Larger than the topic takes.
    limit: usize,
    aside: BTreeSet<u64>,
}

impl World {
    fn new(seed: u64, limit: usize) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            now: Instant::now(),
            lane: Lane::new(0, Arc::from("orders"), 0, &[]),
            broker: Broker::default(),
            log: Vec::new(),
            receipts: Vec::new(),
            returned: BTreeSet::new(),
            limit,
            aside: BTreeSet::new(),
        }
    }

    fn size(&self, seq: u64) -> usize {
        self.log[seq as usize]
    }

    fn message(&self, seq: u64) -> (Uuid, usize) {
        (Uuid::from_u128(seq.into()), self.size(seq))
    }

    fn room(&self) -> usize {
        ROOM.saturating_sub(self.lane.bytes())
    }

    fn write(&mut self) {
        let seq = self.log.len() as u64;
        let size = match self.random.u8(0..20) {
            0 => 150,
            _ => self.random.usize(1..40),
        };
        self.log.push(size);
        let (caller, receipt) = pair();
        // Some callers are gone, or were promised the message before.
        match self.random.bool() {
            true => self.receipts.push(receipt),
            false => caller.promised(),
        }
        if self
            .lane
            .written(seq, self.message(seq), &caller, self.room())
        {
            self.offer(seq);
        }
    }

    fn offer(&mut self, seq: u64) {
        if self.random.u8(0..30) == 0 {
            self.lane.not_taken(seq, self.now);
            return;
        }
        let queue = self.broker.queues.entry(seq % PARTITIONS).or_default();
        queue.push_back(seq);
    }

    /// The reading thread's turn.
    fn read(&mut self) {
        if let Some(seq) = self.lane.aside(self.now) {
            let said = match self.size(seq) <= self.limit {
                true => Said::Taken(0, 0),
                false => Said::TooLarge,
            };
            self.settle(seq, said);
            return;
        }
        let Some(wanted) = self.lane.wants(self.now) else {
            return;
        };
        for seq in wanted {
            assert!(self.lane.pass(seq).is_empty(), "all is in the log");
            match self.lane.read(seq, self.message(seq), self.room()) {
                Some(true) => self.offer(seq),
                Some(false) => {}
                None => return,
            }
        }
        self.lane.caught_up();
    }

    fn settle(&mut self, seq: u64, said: Said) {
        if let Said::Taken(..) = said {
            self.broker.taken.push(seq);
        }
        let settled = self.lane.settle(self.lane.seq(seq as u32), said, self.now);
        if settled.aside {
            self.aside.insert(seq);
        } else if settled.over && !matches!(said, Said::Taken(..)) {
            self.returned.insert(seq);
        }
    }

    /// The broker answers the first of a partition, or something befalls all of it.
    fn answer(&mut self) {
        let partition = self.random.u64(0..PARTITIONS);
        match self.random.u32(0..100) {
            0..3 => self.fail(partition, Said::Again),
            3..5 => {
                for partition in 0..PARTITIONS {
                    self.fail(partition, Said::Refused(Kind::TopicUnknown));
                }
            }
            5 => {
                self.broker.queues.clear();
                self.lane.lost(self.now);
            }
            _ => self.take(partition),
        }
    }

    /// A batch: some of the first, all of them refused if together they are too large.
    fn take(&mut self, partition: u64) {
        let count = self.random.usize(1..5);
        let queue = self.broker.queues.entry(partition).or_default();
        let batch: Vec<_> = queue.drain(..count.min(queue.len())).collect();
        let bytes: usize = batch.iter().map(|seq| self.log[*seq as usize]).sum();
        for seq in batch {
            let fits = bytes <= self.limit;
            self.settle(
                seq,
                if fits {
                    Said::Taken(0, 0)
                } else {
                    Said::TooLarge
                },
            );
        }
    }

    fn fail(&mut self, partition: u64, said: Said) {
        let queue = self.broker.queues.entry(partition).or_default();
        let failed = std::mem::take(queue);
        // Nobody knows: the first of them may have been taken all the same, as the client numbers them.
        if said == Said::Again {
            let taken = self.random.usize(0..=failed.len());
            self.broker.taken.extend(failed.iter().take(taken));
        }
        for seq in failed {
            self.settle(seq, said);
        }
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.random.u8(0..10) {
                0..4 => self.write(),
                4..6 => self.read(),
                6..9 => self.answer(),
                _ => self.now += Duration::from_millis(self.random.u64(0..400)),
            }
        }
    }

    /// From here on all is well; everything must come to its end.
    fn finish(&mut self) {
        for _ in 0..100_000 {
            if self.lane.is_empty() && self.lane.aside_len() == self.stuck() {
                return;
            }
            self.read();
            (0..PARTITIONS).for_each(|partition| self.take(partition));
            self.now += Duration::from_millis(100);
        }
        panic!("it does not come to its end: {:?}", self.lane);
    }

    /// Messages that no topic of this limit ever takes, and whose callers were promised them.
    fn stuck(&self) -> usize {
        self.aside
            .iter()
            .filter(|seq| self.size(**seq) > self.limit)
            .count()
    }
}

/// The order in each partition. Where a broker refuses a batch for its size alone, it takes the next one all the same, so
/// that is not asked of it.
fn check_order(world: &World) {
    let (mut seen, mut last) = (BTreeSet::new(), BTreeMap::new());
    for seq in &world.broker.taken {
        // The first time is what counts: a reader drops what has an id that it knows.
        if seen.insert(*seq) {
            let before = last.insert(seq % PARTITIONS, *seq);
            assert!(before < Some(*seq), "{seq} after {before:?}");
        }
    }
}

fn check_all_there(world: &World) {
    for seq in 0..world.log.len() as u64 {
        let stuck = world.aside.contains(&seq) && world.size(seq) > world.limit;
        let over = world.broker.taken.contains(&seq) || world.returned.contains(&seq) || stuck;
        assert!(over, "{seq} is lost");
    }
}

#[test]
fn every_message_arrives_in_order_whatever_befalls_the_broker() {
    for seed in 0..400 {
        let mut world = World::new(seed, usize::MAX);
        world.run(600);
        world.finish();
        assert!(world.aside.is_empty());
        check_order(&world);
        check_all_there(&world);
    }
}

#[test]
fn what_is_too_large_alone_is_told_from_what_was_too_large_together() {
    let (mut aside, mut returned) = (0, 0);
    for seed in 0..400 {
        let mut world = World::new(seed, 100);
        world.run(600);
        world.finish();
        check_all_there(&world);
        let large = |seq: &&u64| world.size(**seq) <= 100;
        assert_eq!(
            world.aside.iter().filter(large).count(),
            0,
            "only those of 150 are put aside"
        );
        aside += world.aside.len();
        returned += world.returned.len();
    }
    assert!(
        aside > 100 && returned > 100,
        "{aside} aside, {returned} returned"
    );
}

#[test]
fn what_was_put_aside_leaves_when_the_topic_takes_it() {
    let mut world = World::new(3, 100);
    while world.aside.is_empty() {
        world.run(50);
        world.finish();
    }
    world.limit = usize::MAX;
    world.now += ASIDE + Duration::from_secs(1);
    for _ in 0..1000 {
        world.read();
    }
    assert_eq!(world.lane.aside_len(), 0);
    assert!(
        world
            .aside
            .iter()
            .all(|seq| world.broker.taken.contains(seq))
    );
}

#[test]
fn an_earlier_run_s_messages_go_on_where_it_was() {
    let wants = |end, done: &[Range<u64>]| {
        let mut lane = Lane::new(0, Arc::from("orders"), end, done);
        lane.wants(Instant::now())
    };
    assert_eq!(wants(5, &[]), Some(0..5));
    assert_eq!(wants(5, std::slice::from_ref(&(0..5))), None);
    assert_eq!(wants(9, &[0..3, 5..7]), Some(3..9));
    // A wide range costs nothing, and is passed at a step.
    let mut lane = Lane::new(0, Arc::from("orders"), 1 << 40, &[0..3, 4..1 << 40]);
    let now = Instant::now();
    assert_eq!(lane.wants(now), Some(3..1 << 40));
    assert_eq!(lane.read(3, (Uuid::nil(), 10), 100), Some(true));
    lane.caught_up();
    assert!(lane.is_live() && !lane.is_empty());
    assert!(lane.settle(3, Said::Taken(0, 0), now).over);
    assert!(lane.is_empty());
}

#[test]
fn numbers_that_were_never_written_are_no_loss_and_those_that_cannot_be_read_are() {
    let mut lane = Lane::from(0, Arc::from("orders"), 4);
    let (caller, _receipt) = pair();
    let message = |seq: u64| (Uuid::from_u128(seq.into()), 10);
    assert!(
        lane.written(6, message(6), &caller, 100),
        "4 and 5 are nowhere"
    );
    assert!(lane.settle(6, Said::Taken(0, 0), Instant::now()).over);
    assert!(lane.is_empty());
    assert!(!lane.written(9, message(9), &caller, 0) || lane.bytes() == 10);
    let mut lane = Lane::new(0, Arc::from("orders"), 8, &[0..3, 5..6]);
    assert_eq!(lane.wants(Instant::now()), Some(3..8));
    assert_eq!(lane.pass(8), [3, 4, 6, 7]);
    lane.caught_up();
    assert!(lane.is_live() && lane.is_empty());
}

#[test]
fn what_failed_leaves_again_together_and_a_late_answer_is_no_answer() {
    let now = Instant::now();
    let mut lane = Lane::from(0, Arc::from("orders"), 0);
    let (caller, _receipt) = pair();
    let many = OUT_MAX as u64;
    let message = |seq: u64| (Uuid::from_u128(seq.into()), 1);
    for seq in 0..many {
        assert!(lane.written(seq, message(seq), &caller, usize::MAX));
    }
    assert!(
        !lane.written(many, message(many), &caller, usize::MAX),
        "as many as may"
    );
    lane.lost(now);
    assert!(
        lane.settle(5, Said::Taken(0, 0), now).id.is_none(),
        "it is not out"
    );
    let later = now + AGAIN;
    assert_eq!(lane.wants(later), Some(0..many + 1));
    for seq in 0..many {
        assert_eq!(
            lane.read(seq, message(seq), usize::MAX),
            Some(true),
            "{seq}"
        );
    }
    assert_eq!(lane.read(many, message(many), usize::MAX), None);
    assert!(lane.settle(0, Said::Taken(0, 0), later).over);
    assert_eq!(lane.read(many, message(many), usize::MAX), Some(true));
}

#[test]
fn a_tag_s_half_names_its_message_beyond_four_billion() {
    let base = (1 << 33) - 5;
    let lane = Lane::from(0, Arc::from("orders"), base);
    for seq in base - 100..base + 100 {
        assert_eq!(lane.seq(seq as u32), seq);
    }
}
