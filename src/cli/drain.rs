//! `wayside drain`: for a preStop hook. Takes the sidecar out of service and returns when its app is gone and nothing is
//! in flight, or when the time is up; exit 0 either way, 1 when the admin door does not answer.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{admin, complain, runtime};

/// How often the sidecar is asked.
const ASK: Duration = Duration::from_millis(200);

/// What `wayside drain` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The sidecar's admin door
    #[arg(long, default_value = "127.0.0.1:4191")]
    admin: SocketAddr,
    /// How long to wait for the app
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

#[derive(Deserialize)]
struct Draining {
    app: String,
    in_flight: Vec<InFlight>,
}

#[derive(Deserialize)]
struct InFlight {
    calls: usize,
}

/// Drains.
pub fn run(args: &Args) -> ExitCode {
    let Some(runtime) = runtime() else {
        return ExitCode::FAILURE;
    };
    match runtime.block_on(drain(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&admin::unreachable(args.admin, &error));
            ExitCode::FAILURE
        }
    }
}

async fn drain(args: &Args) -> Result<(), String> {
    let deadline = Instant::now() + args.timeout;
    let mut state = ask(args.admin, Method::POST).await?;
    while Instant::now() < deadline {
        let quiet = state.in_flight.iter().all(|door| door.calls == 0);
        if state.app != "up" && quiet {
            return Ok(());
        }
        sleep(ASK).await;
        state = ask(args.admin, Method::GET).await?;
    }
    complain("the app still runs or calls are in flight; the time is up");
    Ok(())
}

async fn ask(at: SocketAddr, method: Method) -> Result<Draining, String> {
    let (_, body) = admin::ask(at, method, "/drain").await?;
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}
