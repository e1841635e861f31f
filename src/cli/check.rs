//! `wayside check FILE…`: exit 0 when every file is good, 2 otherwise.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::{BAD_CONFIG, complain, environment, tell};
use crate::config::{self, Diagnostic};
use crate::kafka;

/// What `wayside check` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configurations
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Write the result as JSON, one object a file
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Checked {
    file: String,
    ok: bool,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

/// Checks every file, whatever the others are like.
pub fn run(args: &Args) -> ExitCode {
    let checked: Vec<Checked> = args.files.iter().map(|file| check(file)).collect();
    for one in &checked {
        if args.json {
            tell(&serde_json::to_string(one).unwrap_or_default());
            continue;
        }
        for warning in &one.warnings {
            complain(&format!("warning: {warning}"));
        }
        match one.ok {
            true => tell(&format!("{}: ok", one.file)),
            false => complain(
                &config::Report {
                    errors: one.errors.clone(),
                }
                .to_string(),
            ),
        }
    }
    if checked.iter().all(|one| one.ok) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(BAD_CONFIG)
    }
}

fn check(path: &Path) -> Checked {
    let file = path.display().to_string();
    let (mut errors, warnings, config) = match config::load(path, &environment) {
        Ok(loaded) => (Vec::new(), loaded.warnings, Some(loaded.config)),
        Err(report) => (report.errors, Vec::new(), None),
    };
    // The broker's client knows its own properties best, and asking it needs no broker.
    if let Some(kafka) = config.and_then(|config| config.kafka)
        && let Err(refused) = kafka::client::check(&kafka)
    {
        errors.extend(refused.iter().map(|error| Diagnostic {
            file: file.clone(),
            line: 1,
            column: 1,
            path: "kafka.properties".to_owned(),
            reason: error.to_string(),
            hint: None,
        }));
    }
    Checked {
        file,
        ok: errors.is_empty(),
        errors,
        warnings,
    }
}
