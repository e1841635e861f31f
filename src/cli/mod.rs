//! The command line: a file each. Results go to stdout, everything else to stderr.

mod admin;
pub mod broker;
pub mod check;
pub mod dead_letters;
pub mod demo;
pub mod drain;
pub mod explain;
mod live;
pub mod messages;
pub mod run;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, Loaded, Report};
use crate::kafka::properties::Judge;

/// The configuration is wrong; everything else that fails is 1.
const BAD_CONFIG: u8 = 2;

/// A sidecar that turns plain HTTP calls into the pattern its YAML chooses.
#[derive(Debug, Parser)]
#[command(name = "wayside", version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the sidecar until SIGTERM; SIGHUP or a changed file reloads it
    Run(run::Args),
    /// Read configuration files and tell every error in them; with --live also what they meet at the broker
    Check(check::Args),
    /// Tell which route takes a call, why the others do not, and what would be done
    Explain(explain::Args),
    /// See the main job work: three services, their sidecars and a broker, on this machine
    Demo(demo::Args),
    /// Run the embedded broker on its own, for several sidecars to share
    Broker(broker::Args),
    /// Take a running sidecar out of service and wait until its app is gone (for preStop)
    Drain(drain::Args),
    /// Find a message in a running sidecar: what happened to it and when
    Messages(messages::Args),
    /// Look at what was given up, and put it back
    DeadLetters(dead_letters::Args),
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Broker(args) => broker::run(&args),
        Command::Drain(args) => drain::run(&args),
        Command::Messages(args) => messages::run(&args),
        Command::DeadLetters(args) => dead_letters::run(&args),
    }
}

/// The process's environment, as a configuration may name it.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Reads a configuration as every command does: compiled, and the broker's client asked about its own properties, which
/// needs no broker.
fn load(file: &Path, judge: Judge) -> Result<Loaded, Report> {
    config::load_judged(file, &environment, &judge)
}

/// A runtime for a command that asks and waits; without one the reason is told.
fn runtime() -> Option<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .map_err(|error| complain(&format!("wayside: {error}")))
        .ok()
}

/// Writes a result. A reader that has gone away is not our error.
fn tell(text: &str) {
    let mut out = std::io::stdout().lock();
    let _gone = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Writes what is not a result.
fn complain(text: &str) {
    let _gone = writeln!(std::io::stderr().lock(), "{text}");
}

/// Tells what is wrong with a configuration.
fn bad_config(report: &impl std::fmt::Display) -> ExitCode {
    complain(&report.to_string());
    ExitCode::from(BAD_CONFIG)
}
