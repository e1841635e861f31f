//! `wayside check FILE…`: exit 0 when every file is good, 2 otherwise. With `--live` also against the broker and the name
//! servers that it names: exit 1 when a good file meets something there that will fail.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::live::{self, Live};
use super::{BAD_CONFIG, complain, load, tell};
use crate::config::{self, Diagnostic};
use crate::kafka::properties::Judge;

/// What `wayside check` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configurations
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Write the result as JSON, one object a file
    #[arg(long)]
    json: bool,
    /// Also ask the broker and the name servers; nothing is changed there
    #[arg(long)]
    live: bool,
    /// How long to ask for one file
    #[arg(long, requires = "live", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

#[derive(Serialize)]
struct Checked {
    file: String,
    ok: bool,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    /// With `--live`, if the file itself is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<Live>,
}

/// Checks every file, whatever the others are like.
pub fn run(args: &Args) -> ExitCode {
    let (mut bad, mut failed) = (false, false);
    for file in &args.files {
        let one = check(file, args);
        bad |= !one.errors.is_empty();
        failed |= !one.ok;
        match args.json {
            true => tell(&serde_json::to_string(&one).unwrap_or_default()),
            false => write(&one),
        }
    }
    match (bad, failed) {
        (true, _) => ExitCode::from(BAD_CONFIG),
        (false, true) => ExitCode::FAILURE,
        (false, false) => ExitCode::SUCCESS,
    }
}

fn check(path: &Path, args: &Args) -> Checked {
    let file = path.display().to_string();
    let judge = match args.live {
        // It is the client of this process that asks.
        true => Judge::Here,
        false => Judge::Anywhere,
    };
    match load(path, judge) {
        Ok(loaded) => {
            let live = args.live.then(|| live::check(&file, &loaded, args.timeout));
            Checked {
                ok: live.as_ref().is_none_or(Live::is_ok),
                file,
                errors: Vec::new(),
                warnings: loaded.warnings,
                live,
            }
        }
        Err(report) => Checked {
            file,
            ok: false,
            errors: report.errors,
            warnings: Vec::new(),
            live: None,
        },
    }
}

fn write(one: &Checked) {
    for warning in &one.warnings {
        complain(&format!("warning: {warning}"));
    }
    if !one.errors.is_empty() {
        let report = config::Report {
            errors: one.errors.clone(),
            files: Vec::new(),
        };
        complain(&report.to_string());
        return;
    }
    let Some(live) = &one.live else {
        return tell(&format!("{}: ok", one.file));
    };
    for finding in &live.findings {
        complain(&finding.to_string());
    }
    match one.ok {
        true => tell(&format!("{}: ok (live: {})", one.file, live.seen)),
        false => complain(&format!(
            "{}: the file is good, what it meets is not (live: {})",
            one.file, live.seen
        )),
    }
}
