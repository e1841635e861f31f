//! `wayside run FILE`: exit 0 after a drain, 2 for a bad configuration, 1 otherwise.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use tracing::level_filters::LevelFilter;

use super::{bad_config, complain, environment, tell};
use crate::app::{Addresses, Sidecar, Surroundings, Watcher};
use crate::config;
use crate::lifecycle::{Signal, Signals};
use crate::telemetry::log::{Format, Log};

/// What `wayside run` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration
    file: PathBuf,
    /// How a log line looks
    #[arg(long, value_enum, default_value_t)]
    log_format: Format,
    /// The least important lines that are written: error, warn, info, debug or trace
    #[arg(long, default_value_t = LevelFilter::INFO)]
    log_level: LevelFilter,
    /// Worker threads; by default as many as the CPU quota allows
    #[arg(long)]
    workers: Option<usize>,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    #[serde(flatten)]
    addresses: Addresses,
}

/// Runs until a signal ends it.
pub fn run(args: &Args) -> ExitCode {
    let loaded = match config::load(&args.file, &environment) {
        Ok(loaded) => loaded,
        Err(report) => return bad_config(&report),
    };
    for warning in &loaded.warnings {
        complain(&format!("warning: {warning}"));
    }
    let log = Log::install(args.log_format, args.log_level);
    let surroundings = Surroundings {
        pod_ip: environment("POD_IP").and_then(|ip| ip.parse().ok()),
        hostname: environment("HOSTNAME"),
        workers: args.workers,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    runtime.block_on(async {
        match Sidecar::start(loaded.config, surroundings).await {
            Ok(sidecar) => serve(sidecar, &args.file, &log).await,
            Err(error) => failed(&error),
        }
    })
}

async fn serve(sidecar: Sidecar, file: &Path, log: &Log) -> ExitCode {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return failed(&error),
    };
    let ready = Ready {
        ready: true,
        addresses: sidecar.addresses,
    };
    tell(&serde_json::to_string(&ready).unwrap_or_default());
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
    let mut watcher = Watcher::new(file);
    let mut look = tokio::time::interval(crate::app::LOOK);
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Stop => break,
                Signal::Reload => {
                    watcher.changed();
                    reload(&sidecar, file).await;
                }
            },
            _ = look.tick() => {
                sidecar.count_dropped_lines(log.dropped());
                if watcher.changed() {
                    reload(&sidecar, file).await;
                }
            }
        }
    }
    tracing::info!("stopping");
    if sidecar.stop().await {
        tracing::info!("drained");
        return ExitCode::SUCCESS;
    }
    tracing::warn!("the drain's time was up before everything ended");
    ExitCode::FAILURE
}

async fn reload(sidecar: &Sidecar, file: &Path) {
    match config::load(file, &environment) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                tracing::warn!(%warning, "configuration");
            }
            match sidecar.reload(loaded.config).await {
                Ok(result) => tracing::info!(?result, "configuration reloaded"),
                Err(error) => tracing::error!(error, "configuration refused; the old one goes on"),
            }
        }
        Err(report) => {
            sidecar.count_reload("refused");
            for error in &report.errors {
                tracing::error!(%error, "configuration refused; the old one goes on");
            }
        }
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    complain(&format!("wayside: {error}"));
    ExitCode::FAILURE
}
