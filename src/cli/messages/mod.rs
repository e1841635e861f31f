//! `wayside messages`: what happened to a message, or which messages there were, asked of a running sidecar.
//!
//! Exit 0; 1 when the admin door does not answer or stops telling; 3 for a message that is not known, 4 for one whose
//! timeline is no longer kept.

mod show;
mod stream;

use std::net::SocketAddr;
use std::process::ExitCode;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;
use uuid::Uuid;

use super::{admin, complain, runtime, tell};
use crate::messages::Status;
use show::{Message, Table, Told};
use stream::{Event, Stream};

/// Exit code for a message that is not known.
const UNKNOWN: u8 = 3;
/// Exit code for a message of which nothing is kept any more.
const GONE: u8 = 4;

/// What `wayside messages` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0, or 1 if the admin door does not answer, 2 for wrong arguments, 3 for a message \
                        that is not known here, 4 for one whose timeline is no longer kept."
)]
pub struct Args {
    /// A message's id, as in the 202, the logs, or Wayside-Message-Id; without it the latest messages are listed
    id: Option<Uuid>,
    /// Only messages of this route
    #[arg(long, value_name = "NAME", conflicts_with = "id")]
    route: Option<String>,
    /// Only messages that are accepted, spooled, replicated, delivered, done, dead or dropped
    #[arg(long, value_name = "STATUS", conflicts_with = "id", value_parser = status)]
    status: Option<Status>,
    /// How many messages to list
    #[arg(
        long,
        value_name = "N",
        default_value_t = 20,
        conflicts_with = "id",
        value_parser = clap::value_parser!(u16).range(1..=1000)
    )]
    limit: u16,
    /// Go on telling of changes until interrupted; of one message until its final verdict
    #[arg(long)]
    follow: bool,
    /// Write JSON; with --follow one document a line
    #[arg(long)]
    json: bool,
    /// The sidecar's admin door
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4191")]
    admin: SocketAddr,
}

fn status(word: &str) -> Result<Status, String> {
    Status::parse(word).ok_or_else(|| {
        let words = Status::ALL.map(Status::word).join(", ");
        format!("a status is one of {words}")
    })
}

/// Why the command fails.
struct Failed {
    code: u8,
    why: String,
}

impl Failed {
    fn plainly(why: impl Into<String>) -> Self {
        let why = why.into();
        Self { code: 1, why }
    }
}

/// Asks and shows.
pub fn run(args: &Args) -> ExitCode {
    let Some(runtime) = runtime() else {
        return ExitCode::FAILURE;
    };
    let shown = runtime.block_on(async {
        match (args.id, args.follow) {
            (Some(id), false) => one(args, id).await,
            (Some(id), true) => follow_one(args, id).await,
            (None, false) => list(args).await,
            (None, true) => follow_all(args).await,
        }
    });
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed { code, why }) => {
            complain(&why);
            ExitCode::from(code)
        }
    }
}

async fn one(args: &Args, id: Uuid) -> Result<(), Failed> {
    let body = ask(args, &target_of(id)).await?;
    if args.json {
        tell(String::from_utf8_lossy(&body).trim_end());
        return Ok(());
    }
    Told::default().message(&parse(&body)?);
    Ok(())
}

async fn list(args: &Args) -> Result<(), Failed> {
    let body = ask(args, &target(args)).await?;
    if args.json {
        tell(String::from_utf8_lossy(&body).trim_end());
        return Ok(());
    }
    let messages: Vec<Message> = parse(&body)?;
    if messages.is_empty() {
        complain("no such messages");
        return Ok(());
    }
    let mut table = Table::default();
    table.fit(&messages);
    messages.iter().for_each(|message| table.row(message));
    Ok(())
}

async fn follow_one(args: &Args, id: Uuid) -> Result<(), Failed> {
    let mut stream = open(args, &target_of(id)).await?;
    let mut told = Told::default();
    while let Some(Event { data, .. }) = next(&mut stream).await? {
        let message: Message = parse(data.as_bytes())?;
        match args.json {
            true => tell(&data),
            false => told.message(&message),
        }
        if message.is_final() {
            return Ok(());
        }
    }
    Err(Failed::plainly(
        "the sidecar stops telling: it ends, or keeps the message's timeline no longer",
    ))
}

async fn follow_all(args: &Args) -> Result<(), Failed> {
    let mut stream = open(args, &target(args)).await?;
    let mut table = Table::default();
    while let Some(Event { name, data }) = next(&mut stream).await? {
        if name == "skipped" {
            let skipped: Skipped = parse(data.as_bytes())?;
            let changes = skipped.changes;
            complain(&format!("{changes} changes came too fast to be told"));
            continue;
        }
        match args.json {
            true => tell(&data),
            false => {
                let message: Message = parse(data.as_bytes())?;
                table.fit(std::slice::from_ref(&message));
                table.row(&message);
            }
        }
    }
    Err(Failed::plainly("the sidecar stops telling: it ends"))
}

#[derive(Deserialize)]
struct Skipped {
    changes: u64,
}

/// What a refusal of the admin door says (RFC 9457).
#[derive(Deserialize)]
struct Problem {
    detail: String,
}

fn target_of(id: Uuid) -> String {
    format!("/messages/{id}")
}

fn target(args: &Args) -> String {
    let mut target = format!("/messages?limit={}", args.limit);
    if let Some(route) = &args.route {
        // What no route's name has would end the query or the line.
        let plain = |letter: char| {
            if letter.is_ascii_alphanumeric() {
                letter
            } else {
                '-'
            }
        };
        let route: String = route.chars().map(plain).collect();
        target.push_str(&format!("&route={route}"));
    }
    if let Some(status) = args.status {
        target.push_str(&format!("&status={}", status.word()));
    }
    target
}

async fn ask(args: &Args, target: &str) -> Result<Bytes, Failed> {
    let asked = admin::ask(args.admin, Method::GET, target).await;
    let (status, body) = asked.map_err(|error| unreachable(args, &error))?;
    match status {
        StatusCode::OK => Ok(body),
        status => Err(refused(args, status, &body)),
    }
}

async fn open(args: &Args, target: &str) -> Result<Stream, Failed> {
    let answer = admin::follow(args.admin, target).await;
    let (head, body) = answer
        .map_err(|error| unreachable(args, &error))?
        .into_parts();
    if head.status == StatusCode::OK {
        return Ok(Stream::new(body));
    }
    let body = admin::read(body).await;
    Err(refused(args, head.status, &body.unwrap_or_default()))
}

async fn next(stream: &mut Stream) -> Result<Option<Event>, Failed> {
    stream.next().await.map_err(Failed::plainly)
}

fn unreachable(args: &Args, error: &str) -> Failed {
    Failed::plainly(admin::unreachable(args.admin, error))
}

fn refused(args: &Args, status: StatusCode, body: &[u8]) -> Failed {
    let problem: Option<Problem> = serde_json::from_slice(body).ok();
    let detail = problem.map_or_else(|| status.to_string(), |problem| problem.detail);
    let code = match (status, args.id) {
        (StatusCode::NOT_FOUND, Some(_)) => UNKNOWN,
        (StatusCode::GONE, Some(_)) => GONE,
        _ => 1,
    };
    let subject = args.id.map(|id| format!("{id}: ")).unwrap_or_default();
    Failed {
        code,
        why: format!("wayside: {subject}{detail}"),
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Failed> {
    serde_json::from_slice(body)
        .map_err(|error| Failed::plainly(format!("wayside: the answer is not understood: {error}")))
}
