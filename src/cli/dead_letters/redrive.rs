//! `wayside dead-letters redrive`: letters go back into the topic that they come from.
//!
//! Each batch is one transaction of the broker: the messages, and a note among the dead letters that says which they are.
//! So a letter is put back once, whenever this is interrupted, and two of these at the same time do not mix.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::letter::{Letter, Place};
use super::{Failed, Grave, Wanted};
use crate::cli::{complain, tell};
use crate::config::model::Subscription;
use crate::headers::Headers;
use crate::kafka::intake::Received;
use crate::kafka::producer::Outgoing;
use crate::kafka::topic::{TopicError, Transactions};
use crate::pattern::dead_letter;

/// Letters and bytes of one transaction, at most; a single letter may be larger.
const BATCH_LETTERS: usize = 100;
const BATCH_BYTES: usize = 1 << 20;
/// Between two lines of progress.
const SAY_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Redrive {
    #[command(flatten)]
    wanted: Wanted,
    /// Put back all; without it, `--key`, `--id` or `--since` says which
    #[arg(long, conflicts_with_all = ["key", "id", "since"])]
    all: bool,
    /// Letters in a second, at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Say what would be put back, and leave everything as it is
    #[arg(long)]
    dry_run: bool,
}

/// A letter on its way back.
struct Back {
    place: Place,
    topic: String,
    received: Received,
    headers: Headers,
}

pub(super) fn run(args: &Redrive) -> Result<(), Failed> {
    let wanted = &args.wanted;
    if !args.all && wanted.key.is_none() && wanted.id.is_none() && wanted.since.is_none() {
        let why = "wayside: say which: --key, --id, --since, or --all";
        return Err(Failed::BadConfig(why.to_owned()));
    }
    let grave = Grave::open(wanted)?;
    // The transaction comes first: an earlier redrive that still runs can write nothing after this, so that what it put
    // back is known below.
    let transactions = match args.dry_run {
        true => None,
        false => {
            let id = format!("wayside-redrive-{}", grave.topic);
            Some(Transactions::begin(&grave.kafka, &grave.bootstrap, &id)?)
        }
    };
    let put_back = grave.put_back()?;
    let ends = ends(&grave, &put_back)?;
    let mut run = Run {
        transactions,
        grave: &grave,
        rate: args.rate,
        batch: Vec::new(),
        bytes: 0,
        done: 0,
        refused: 0,
        begun: Instant::now(),
        said: Instant::now(),
        failed: None,
    };
    grave.letters(&put_back, |letter, received| {
        // What died again since this began is left for another time.
        if !ends.contains(&letter.place) {
            return true;
        }
        run.add(&letter, received)
    })?;
    run.flush();
    if let Some(error) = run.failed {
        complain(&format!("{} put back before that", run.done));
        return Err(error.into());
    }
    let word = if args.dry_run {
        "would be put back"
    } else {
        "put back"
    };
    tell(&format!("{} {word}", run.done));
    match (run.done + run.refused, run.refused) {
        (0, _) => Err(Failed::Unknown),
        (_, 0) => Ok(()),
        (_, refused) => Err(Failed::Plainly(format!(
            "{refused} were left where they are"
        ))),
    }
}

/// The letters that are there when this begins.
fn ends(grave: &Grave<'_>, put_back: &HashSet<Place>) -> Result<HashSet<Place>, Failed> {
    let mut all = HashSet::new();
    grave.letters(put_back, |letter, _| {
        all.insert(letter.place);
        true
    })?;
    Ok(all)
}

struct Run<'a> {
    /// `None` for a dry run.
    transactions: Option<Transactions>,
    grave: &'a Grave<'a>,
    rate: u32,
    batch: Vec<Back>,
    bytes: usize,
    done: usize,
    refused: usize,
    begun: Instant,
    said: Instant,
    failed: Option<TopicError>,
}

impl Run<'_> {
    /// Adds a letter; false if there is no use in going on.
    fn add(&mut self, letter: &Letter, received: &Received) -> bool {
        match self.back(letter, received) {
            Ok(back) => {
                self.bytes += back.received.bytes();
                self.batch.push(back);
            }
            Err(why) => {
                self.refused += 1;
                complain(&format!("{} {} stays: {why}", letter.place, letter.id));
            }
        }
        let most = BATCH_LETTERS.min(self.rate as usize);
        if self.batch.len() >= most || self.bytes >= BATCH_BYTES {
            self.flush();
        }
        self.failed.is_none()
    }

    /// The message as it was. It goes to a topic that the file names: no letter chooses one.
    fn back(&self, letter: &Letter, received: &Received) -> Result<Back, String> {
        if letter
            .cut
            .as_deref()
            .is_some_and(|cut| cut.starts_with("value"))
        {
            let origin = letter.origin.as_deref().unwrap_or("its topic");
            return Err(format!(
                "its value was too large to be kept here; it lies at {origin}"
            ));
        }
        let rule = self.rule(letter)?;
        let mut headers = Headers::new();
        let theirs =
            |name: &str| name.starts_with(dead_letter::PREFIX) || name == dead_letter::REDRIVEN_FOR;
        for (name, value) in received.headers.iter().filter(|(name, _)| !theirs(name)) {
            headers.push(name.to_owned(), value);
        }
        headers.push(dead_letter::REDRIVEN_FOR, rule.group.as_bytes());
        Ok(Back {
            place: letter.place,
            topic: rule.topic.clone(),
            received: received.clone(),
            headers,
        })
    }

    fn rule(&self, letter: &Letter) -> Result<&Subscription, String> {
        let (origin, group) = (letter.origin_topic(), letter.group.as_deref());
        let mut rules = self.grave.config.subscriptions.iter();
        let found = rules.find(|rule| {
            rule.dead_letter.as_deref() == Some(&self.grave.topic)
                && origin == Some(rule.topic.as_str())
                && group == Some(rule.group.as_str())
        });
        found.ok_or_else(|| {
            let (origin, group) = (origin.unwrap_or("-"), group.unwrap_or("-"));
            format!("it comes from topic `{origin}` and group `{group}`, which is no subscription of this file with these dead letters")
        })
    }

    fn flush(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        if batch.is_empty() || self.failed.is_some() {
            return;
        }
        let written = match &self.transactions {
            Some(transactions) => write(transactions, &self.grave.topic, &batch),
            None => Ok(()),
        };
        if let Err(error) = written {
            self.failed = Some(error);
            return;
        }
        self.done += batch.len();
        if self.said.elapsed() >= SAY_EVERY {
            self.said = Instant::now();
            complain(&format!("{} so far", self.done));
        }
        if self.transactions.is_some() {
            let due = self.begun
                + Duration::from_secs(1).mul_f64(self.done as f64 / f64::from(self.rate));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}

fn write(transactions: &Transactions, grave: &str, batch: &[Back]) -> Result<(), TopicError> {
    let places: Vec<String> = batch.iter().map(|back| back.place.to_string()).collect();
    let note = places.join("\n");
    let note_headers: Headers = [(dead_letter::REDRIVEN, batch.len().to_string())]
        .into_iter()
        .collect();
    let mut records: Vec<Outgoing<'_>> = batch
        .iter()
        .map(|back| Outgoing {
            topic: &back.topic,
            key: back.received.key.as_deref(),
            value: &back.received.value,
            headers: &back.headers,
        })
        .collect();
    records.push(Outgoing {
        topic: grave,
        key: None,
        value: note.as_bytes(),
        headers: &note_headers,
    });
    transactions.write(&records)
}
