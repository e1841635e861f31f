//! `wayside demo`: a small world of services and sidecars, four troubles, and what was measured.
//!
//! Nothing here is simulated: each sidecar is a process of this same binary with a YAML file of its own, and they
//! share nothing but sockets. The services are plain HTTP and live in the demo's own process, which is how it knows
//! what each of them really saw.

mod acts;
mod child;
mod ledger;
mod order;
mod plain_http;
mod progress;
mod report;
mod scrape;
mod services;
mod stay;
mod wait;
mod world;
mod yaml;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use self::child::Tails;
use self::progress::Progress;
use self::report::Report;
use self::wait::{Result, Trouble, within};
use self::world::World;
use crate::lifecycle::Signals;

/// For everything up to the report; each step has a shorter limit of its own.
const LIMIT: Duration = Duration::from_secs(180);

/// The exit status of a process that Ctrl-C ended, as shells have it.
const INTERRUPTED: u8 = 130;

/// Shows what Wayside does: four small services with a sidecar each, four troubles, and what was measured.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A Kafka broker to use in place of the one in memory; the demo makes topics of its own there and leaves them.
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    kafka: Option<String>,

    /// Keeps everything running after the report and prints calls to try with curl, until Ctrl-C.
    #[arg(long)]
    stay: bool,
}

/// Runs the demo. The exit status is 0 if every promise was kept, 1 if not, 130 after Ctrl-C.
pub fn run(args: &Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(show(args)),
        Err(error) => Err(Trouble::new(format!("no runtime: {error}"))),
    };
    outcome.unwrap_or_else(|trouble| {
        writeln!(std::io::stderr(), "{trouble}").ok();
        ExitCode::FAILURE
    })
}

async fn show(args: &Args) -> Result<ExitCode> {
    let unheard = |error| Trouble::new(format!("signals cannot be heard: {error}"));
    let mut signals = Signals::new().map_err(unheard)?;
    let tails = Tails::default();
    let shown = tokio::select! {
        shown = within("the demo", LIMIT, perform(args, &tails)) => shown,
        // Whatever runs is dropped with the other branch, and so ended.
        _ = signals.next() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    let (world, code) = shown.inspect_err(|_| last_words(&tails))?;
    if args.stay {
        print(&stay::text(&world)?)?;
        signals.next().await;
    }
    drop(world);
    Ok(code)
}

async fn perform(args: &Args, tails: &Tails) -> Result<(World, ExitCode)> {
    let (progress, mut report) = (Progress::new(), Report::default());
    let mut world = World::start(args.kafka.as_deref(), tails, &progress).await?;
    if let Err(trouble) = acts::play(&mut world, &progress, &mut report).await {
        report.broken.push(trouble.to_string());
    }
    if let Some(broker) = &args.kafka {
        let (topic, dead) = (&world.names.topic, &world.names.dead);
        report
            .notes
            .push(format!("left at {broker}: the topics {topic} and {dead}"));
    }
    progress.say("done");
    let (entries, dead) = (world.ledger.entries(), world.ledger.dead());
    print(&report.text(&entries, &dead, progress.seconds()))?;
    if report.broken.is_empty() {
        return Ok((world, ExitCode::SUCCESS));
    }
    last_words(tails);
    Ok((world, ExitCode::FAILURE))
}

fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    written.map_err(|error| Trouble::new(format!("the report cannot be written: {error}")))
}

fn last_words(tails: &Tails) {
    write!(std::io::stderr(), "{}", tails.text()).ok();
}

fn host_and_port(text: &str) -> std::result::Result<String, String> {
    let plain = |host: &str| {
        host.chars()
            .all(|it| it.is_ascii_alphanumeric() || ".-_:[]".contains(it))
    };
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && plain(host) && port.parse::<u16>().is_ok() => {
            Ok(text.to_owned())
        }
        _ => Err("must be a host and a port, as in localhost:9092".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_a_host_and_a_port() {
        assert!(host_and_port("kafka.shop.svc:9092").is_ok());
        assert!(host_and_port("[::1]:9092").is_ok());
        for wrong in ["kafka", ":9092", "kafka:port", "a\" b:9092"] {
            assert!(host_and_port(wrong).is_err(), "{wrong}");
        }
    }
}
