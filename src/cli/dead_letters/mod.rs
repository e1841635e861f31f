//! `wayside dead-letters`: what was given up, why, and a way to put it back.
//!
//! It asks the broker by itself, so it works whether or not the sidecar runs. Exit 0; 1 when the broker does not do what
//! is asked or a letter could not be put back, 2 for a bad file or wrong arguments, 3 for a letter that is not there.

mod letter;
mod redrive;

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use uuid::Uuid;

use self::letter::{Letter, Place, Shown};
use super::{bad_config, complain, load, tell};
use crate::config::model::{Cluster, Config, Kafka};
use crate::kafka::client::Bootstrap;
use crate::kafka::intake::Received;
use crate::kafka::properties::Judge;
use crate::kafka::topic::{self, TopicError};
use crate::pattern::dead_letter;

/// Exit code for a letter that is not there.
const UNKNOWN: u8 = 3;

/// What `wayside dead-letters` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0, or 1 if the broker does not do what is asked or a letter could not be put back, 2 for a \
                        bad file or wrong arguments, 3 for a letter that is not there."
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List what was given up and not put back, the latest last
    List(List),
    /// Show letters whole: the story, the headers and the value
    Show(Show),
    /// Put letters back into the topic that they come from, in order, each once even if this is interrupted
    Redrive(redrive::Redrive),
}

/// Which letters.
#[derive(Debug, clap::Args)]
struct Wanted {
    /// The configuration of the sidecar that gave them up
    file: PathBuf,
    /// The topic of dead letters; needed only where the file names several
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Only those with this key
    #[arg(long)]
    key: Option<String>,
    /// Only the one with this message id
    #[arg(long)]
    id: Option<Uuid>,
    /// Only those given up since then: a time such as 2026-11-26T10:00:00Z, or how long ago, such as 2h
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<SystemTime>,
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    wanted: Wanted,
    /// How many to list, the latest
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Write JSON, a document a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Show {
    #[command(flatten)]
    wanted: Wanted,
    /// Write JSON, a document a line
    #[arg(long)]
    json: bool,
}

fn since(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        let then = SystemTime::now().checked_sub(ago);
        return then.ok_or_else(|| "that is before all time".to_owned());
    }
    humantime::parse_rfc3339_weak(text)
        .map_err(|_| "a time such as 2026-11-26T10:00:00Z, or how long ago, such as 2h".to_owned())
}

/// Why the command ends otherwise than well.
enum Failed {
    BadConfig(String),
    Plainly(String),
    Unknown,
}

impl From<TopicError> for Failed {
    fn from(error: TopicError) -> Self {
        Self::Plainly(format!("wayside: {error}"))
    }
}

/// Does what is asked.
pub fn run(args: &Args) -> ExitCode {
    let done = match &args.command {
        Command::List(list) => self::list(list),
        Command::Show(show) => self::show(show),
        Command::Redrive(redrive) => redrive::run(redrive),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed::BadConfig(why)) => bad_config(&why),
        Err(Failed::Plainly(why)) => {
            complain(&why);
            ExitCode::FAILURE
        }
        Err(Failed::Unknown) => {
            complain("wayside: no such dead letter");
            ExitCode::from(UNKNOWN)
        }
    }
}

fn list(args: &List) -> Result<(), Failed> {
    let grave = Grave::open(&args.wanted)?;
    let put_back = grave.put_back()?;
    let most = args.limit as usize;
    let (mut letters, mut count) = (std::collections::VecDeque::new(), 0_usize);
    grave.letters(&put_back, |letter, _| {
        count += 1;
        if letters.len() == most {
            letters.pop_front();
        }
        letters.push_back(letter);
        true
    })?;
    let mut letters: Vec<Letter> = letters.into();
    letters.sort_by_key(|letter| (letter.last, letter.place));
    for letter in &letters {
        match args.json {
            true => tell(&letter.json(None)),
            false => tell(&letter.line()),
        }
    }
    if count > letters.len() {
        complain(&format!("{} more; see --limit", count - letters.len()));
    } else if count == 0 {
        complain("no dead letters");
    }
    Ok(())
}

fn show(args: &Show) -> Result<(), Failed> {
    let grave = Grave::open(&args.wanted)?;
    let put_back = grave.put_back()?;
    let mut found = false;
    grave.letters(&put_back, |letter, received| {
        found = true;
        match args.json {
            true => tell(&letter.json(Some(received))),
            false => tell(&Shown(&letter, received).to_string()),
        }
        true
    })?;
    found.then_some(()).ok_or(Failed::Unknown)
}

/// A topic of dead letters, and which of them are wanted.
struct Grave<'a> {
    wanted: &'a Wanted,
    config: Config,
    kafka: Kafka,
    bootstrap: Bootstrap,
    topic: String,
}

impl<'a> Grave<'a> {
    fn open(wanted: &'a Wanted) -> Result<Self, Failed> {
        let loaded = load(&wanted.file, Judge::Here);
        let loaded = loaded.map_err(|report| Failed::BadConfig(report.to_string()))?;
        let config = loaded.config;
        let kafka = config.kafka.clone();
        let kafka = kafka.ok_or_else(|| bad("it has no `kafka`, and so no dead letters"))?;
        let Cluster::Brokers(brokers) = &kafka.cluster else {
            return Err(bad(
                "its broker is the embedded one, which ends with the sidecar, and the letters with it",
            ));
        };
        let bootstrap = Bootstrap::brokers(brokers);
        let topic = named(&config, wanted)?;
        Ok(Self {
            wanted,
            config,
            kafka,
            bootstrap,
            topic,
        })
    }

    /// The letters that were put back already.
    fn put_back(&self) -> Result<HashSet<Place>, Failed> {
        let mut all = HashSet::new();
        topic::read(&self.kafka, &self.bootstrap, &self.topic, |received| {
            all.extend(letter::put_back(&received));
            true
        })?;
        Ok(all)
    }

    /// Those that are wanted and were not put back, in the order of each partition.
    fn letters(
        &self,
        put_back: &HashSet<Place>,
        mut on_letter: impl FnMut(Letter, &Received) -> bool,
    ) -> Result<(), Failed> {
        topic::read(&self.kafka, &self.bootstrap, &self.topic, |received| {
            if received.headers.get(dead_letter::REDRIVEN).is_some() {
                return true;
            }
            let letter = Letter::of(&received);
            if put_back.contains(&letter.place) || !self.wanted.takes(&letter, &received) {
                return true;
            }
            on_letter(letter, &received)
        })?;
        Ok(())
    }
}

impl Wanted {
    fn takes(&self, letter: &Letter, received: &Received) -> bool {
        let key = self.key.as_deref().map(str::as_bytes);
        key.is_none_or(|key| received.key.as_deref() == Some(key))
            && self.id.is_none_or(|id| letter.id == id)
            && self
                .since
                .is_none_or(|since| letter.last.is_some_and(|last| last >= since))
    }
}

/// The topic that is meant.
fn named(config: &Config, wanted: &Wanted) -> Result<String, Failed> {
    let mut topics: Vec<&str> = config
        .subscriptions
        .iter()
        .filter_map(|rule| rule.dead_letter.as_deref())
        .collect();
    topics.sort_unstable();
    topics.dedup();
    let all = topics.join(", ");
    match (&wanted.topic, &topics[..]) {
        (_, []) => Err(bad("none of its subscriptions has a `dead_letter`")),
        (Some(topic), topics) if topics.contains(&topic.as_str()) => Ok(topic.clone()),
        (Some(topic), _) => Err(bad(&format!(
            "`{topic}` is none of its topics of dead letters: {all}"
        ))),
        (None, [one]) => Ok((*one).to_owned()),
        (None, _) => Err(bad(&format!(
            "it has several topics of dead letters: choose by --topic one of {all}"
        ))),
    }
}

fn bad(why: &str) -> Failed {
    Failed::BadConfig(format!("wayside: {why}"))
}
