//! `wayside check FILE…`: exit 0 when every file is good, 2 otherwise.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

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
                    files: Vec::new(),
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
    let (errors, warnings) = match load(path, Judge::Anywhere) {
        Ok(loaded) => (Vec::new(), loaded.warnings),
        Err(report) => (report.errors, Vec::new()),
    };
    Checked {
        file,
        ok: errors.is_empty(),
        errors,
        warnings,
    }
}
