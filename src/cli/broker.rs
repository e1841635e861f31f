//! `wayside broker`: the embedded broker in a process of its own.
//!
//! Its address is the first line on stdout. On stdin it takes `down` and `up`, so that an outage can be played, and it
//! ends when stdin ends or a signal comes.

use std::io::BufRead;
use std::process::ExitCode;

use super::{complain, tell};
use crate::kafka::embedded::{Embedded, LIMITS};
use crate::lifecycle::Signals;

/// What `wayside broker` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on when stdin ends; without it the broker ends with whoever started it
    #[arg(long)]
    keep: bool,
}

/// Runs the broker.
pub fn run(args: &Args) -> ExitCode {
    let broker = match Embedded::start() {
        Ok(broker) => broker,
        Err(error) => {
            complain(&format!("wayside: {error}"));
            return ExitCode::FAILURE;
        }
    };
    complain(LIMITS);
    tell(&serde_json::json!({ "ready": true, "address": broker.bootstrap().address }).to_string());
    let (ended, mut wait) = tokio::sync::mpsc::channel::<()>(1);
    let keep = args.keep;
    let orders = std::thread::spawn(move || {
        obey(&broker);
        if !keep {
            drop(ended);
            return;
        }
        // Holds the sender and the broker until the process ends.
        loop {
            std::thread::park();
        }
    });
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("wayside: {error}"));
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        match Signals::new() {
            Ok(mut signals) => tokio::select! {
                _ = wait.recv() => {}
                _ = signals.next() => {}
            },
            Err(error) => complain(&format!("wayside: {error}")),
        }
    });
    drop(orders);
    ExitCode::SUCCESS
}

fn obey(broker: &Embedded) {
    for line in lines(std::io::stdin().lock()) {
        let done = match line.trim() {
            "down" => broker.down().map(|()| serde_json::json!({ "down": true })),
            "up" => broker.up().map(|()| serde_json::json!({ "up": true })),
            other => {
                complain(&format!("`{other}` is neither `down` nor `up`"));
                continue;
            }
        };
        match done {
            Ok(answer) => tell(&answer.to_string()),
            Err(error) => complain(&format!("wayside: {error}")),
        }
    }
}

/// Every line up to the end. One that is not text is as wrong as any other, but no end.
fn lines(input: impl BufRead) -> impl Iterator<Item = String> {
    let lines = input.split(b'\n').map_while(Result::ok);
    lines.map(|line| String::from_utf8_lossy(&line).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_no_text_does_not_end_the_orders() {
        let found: Vec<_> = lines(&b"down\n\xff\nup"[..]).collect();
        assert_eq!(found, ["down", "\u{fffd}", "up"]);
    }
}
