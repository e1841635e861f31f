//! `wayside run FILE`: exit 0 after a drain, 2 for a bad configuration, 1 otherwise.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;

use serde::Serialize;
use tracing::level_filters::LevelFilter;

use super::{bad_config, complain, environment, load, tell};
use crate::app::{Addresses, Sidecar, Surroundings, Watcher};
use crate::config::{Diagnostic, ReadFile};
use crate::kafka::properties::Judge;
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
    /// End at once when stdin ends, and so with whoever started it, however that ends
    #[arg(long, hide = true)]
    tied: bool,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    #[serde(flatten)]
    addresses: Addresses,
}

/// Runs until a signal ends it.
pub fn run(args: &Args) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => {
            let code = runtime.block_on(async {
                tokio::select! {
                    code = live(args) => code,
                    () = alone(args.tied) => ExitCode::FAILURE,
                }
            });
            // Whatever still waits for a file system that hangs would keep us here.
            runtime.shutdown_background();
            code
        }
        Err(error) => failed(&error),
    }
}

/// Resolves when stdin has ended, if that is to end us. Nothing but a pipe tells of a parent that was killed.
async fn alone(tied: bool) {
    if !tied {
        return std::future::pending().await;
    }
    let (parent, mut ended) = tokio::sync::mpsc::channel::<()>(1);
    // A thread of its own: a read of stdin cannot be given up, and the runtime would wait for it at its end.
    std::thread::spawn(move || {
        drop(std::io::copy(
            &mut std::io::stdin().lock(),
            &mut std::io::sink(),
        ));
        drop(parent);
    });
    ended.recv().await;
}

async fn live(args: &Args) -> ExitCode {
    // Before anything that takes time: a signal during the start must not have its default action.
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return failed(&error),
    };
    // What it sees first is what is loaded or older, so that no change in between is missed.
    let mut watcher = Watcher::new(&args.file);
    let loaded = match load(&args.file, Judge::Here) {
        Ok(loaded) => loaded,
        Err(report) => return bad_config(&report),
    };
    watcher.follow(loaded.files);
    let log = Log::install(args.log_format, args.log_level);
    warn(&loaded.warnings);
    let surroundings = Surroundings {
        pod_ip: environment("POD_IP").and_then(|ip| ip.parse().ok()),
        hostname: environment("HOSTNAME"),
        workers: args.workers,
    };
    let mut starting = pin!(Sidecar::start(loaded.config, surroundings));
    let mut wanted = false;
    let started = loop {
        tokio::select! {
            started = &mut starting => break started,
            signal = signals.next() => match signal {
                Signal::Reload => wanted = true,
                Signal::Stop => {
                    tracing::info!("stopped before it was ready");
                    return ExitCode::SUCCESS;
                }
            },
        }
    };
    let file = Watched {
        path: &args.file,
        watcher,
        wanted,
    };
    match started {
        Ok(sidecar) => serve(sidecar, file, &log, signals).await,
        Err(error) => failed(&error),
    }
}

/// The configuration's file, and whether it is to be read again.
struct Watched<'a> {
    path: &'a Path,
    watcher: Watcher,
    wanted: bool,
}

async fn serve(sidecar: Sidecar, file: Watched<'_>, log: &Log, mut signals: Signals) -> ExitCode {
    let ready = Ready {
        ready: true,
        addresses: sidecar.addresses,
    };
    tell(&serde_json::to_string(&ready).unwrap_or_default());
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
    let Watched {
        path,
        mut watcher,
        mut wanted,
    } = file;
    let mut look = tokio::time::interval(crate::app::LOOK);
    // A stop ends a reload wherever it is: what it was about to replace is stopped all the same.
    'serving: loop {
        if std::mem::take(&mut wanted) {
            let mut reloading = pin!(reload(&sidecar, path));
            loop {
                tokio::select! {
                    files = &mut reloading => {
                        if let Some(files) = files {
                            watcher.follow(files);
                        }
                        break;
                    }
                    signal = signals.next() => match signal {
                        Signal::Stop => break 'serving,
                        Signal::Reload => wanted = true,
                    },
                }
            }
        }
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Stop => break,
                Signal::Reload => {
                    watcher.changed();
                    wanted = true;
                }
            },
            _ = look.tick() => {
                sidecar.count_dropped_lines(log.dropped());
                wanted |= watcher.changed();
            }
        }
    }
    stop(sidecar, signals).await
}

async fn stop(sidecar: Sidecar, mut signals: Signals) -> ExitCode {
    tracing::info!("stopping");
    let mut stopping = pin!(sidecar.stop());
    loop {
        tokio::select! {
            left = &mut stopping => {
                if left.is_empty() {
                    tracing::info!("drained");
                    return ExitCode::SUCCESS;
                }
                tracing::warn!(left = left.join(", "), "stopped with something that had not ended in its time");
                return ExitCode::FAILURE;
            }
            signal = signals.next() => if signal == Signal::Stop {
                tracing::warn!("told twice to stop: not waiting for the drain");
                return ExitCode::FAILURE;
            },
        }
    }
}

fn warn(warnings: &[Diagnostic]) {
    for warning in warnings {
        tracing::warn!(%warning, "configuration");
    }
}

/// Reloads, and says which files were read beside the configuration's own.
async fn reload(sidecar: &Sidecar, file: &Path) -> Option<Vec<ReadFile>> {
    if !std::fs::metadata(file).is_ok_and(|found| found.is_file()) {
        sidecar.count_reload("refused");
        tracing::error!("configuration is no file that can be read; the old one goes on");
        return None;
    }
    // The broker's settings can not change in a reload; files that they name may be in the middle of their replacement.
    match load(file, Judge::Anywhere) {
        Ok(loaded) => {
            warn(&loaded.warnings);
            match sidecar.reload(loaded.config).await {
                Ok(result) => tracing::info!(?result, "configuration reloaded"),
                Err(error) => {
                    tracing::error!(error, "configuration refused; the old one goes on");
                }
            }
            Some(loaded.files)
        }
        Err(report) => {
            sidecar.count_reload("refused");
            for error in &report.errors {
                tracing::error!(%error, "configuration refused; the old one goes on");
            }
            Some(report.files)
        }
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    complain(&format!("wayside: {error}"));
    ExitCode::FAILURE
}
