//! One `wayside run` process with its file, its doors and its claims.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use serde::Deserialize;
use tempfile::TempDir;

use crate::support::client;
use crate::support::eventually::eventually;
use crate::support::process::Process;

/// A running sidecar. It ends when dropped.
pub(crate) struct Sidecar {
    /// Where the app sends its calls.
    pub(crate) outbound: Option<SocketAddr>,
    /// Where other sidecars send theirs.
    pub(crate) inbound: Option<SocketAddr>,
    probe: SocketAddr,
    process: Process,
    folder: TempDir,
    starts: usize,
}

/// The one line that `wayside run` writes on stdout.
#[derive(Deserialize)]
struct Ready {
    ready: bool,
    outbound: Option<SocketAddr>,
    inbound: Option<SocketAddr>,
    probe: SocketAddr,
}

impl Sidecar {
    /// Starts a sidecar with this file and waits until it is ready. To the file are added the doors that every
    /// test has; `{claims}` in it stands for a folder of the sidecar's own.
    pub(crate) async fn run(yaml: &str) -> Self {
        let folder = TempDir::with_prefix("wayside-real-").expect("a folder can be made");
        let claims = folder.path().join("claims").display().to_string();
        let own = "probe: { listen: 127.0.0.1:0 }\nadmin: { listen: 127.0.0.1:0 }\ndrain: 10s\n";
        let yaml = format!("{}\n{own}", yaml.replace("{claims}", &claims));
        let file = folder.path().join("wayside.yaml");
        fs::write(&file, yaml).expect("the folder can be written");
        let (process, ready) = start(&folder, 1).await;
        Self {
            outbound: ready.outbound,
            inbound: ready.inbound,
            probe: ready.probe,
            process,
            folder,
            starts: 1,
        }
    }

    /// The outbound door, which the file must have.
    pub(crate) fn door(&self) -> SocketAddr {
        self.outbound.expect("the file has an outbound door")
    }

    /// Ends it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Ends it with SIGTERM, in order, and tells how it left.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        self.process.terminate(Duration::from_secs(15)).await
    }

    /// Starts it again with the same file and folder; its doors get new ports.
    pub(crate) async fn start_again(&mut self) {
        self.starts += 1;
        let (process, ready) = start(&self.folder, self.starts).await;
        self.process = process;
        self.outbound = ready.outbound;
        self.inbound = ready.inbound;
        self.probe = ready.probe;
    }

    /// Whether the process is the one that was started first, or since [`Sidecar::start_again`].
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// The status of `/ready`.
    pub(crate) async fn ready(&self) -> u16 {
        client::get("probe", "/ready")
            .send(self.probe)
            .await
            .status
            .as_u16()
    }
}

async fn start(folder: &TempDir, nth: usize) -> (Process, Ready) {
    let mut command = Command::new(PathBuf::from(env!("CARGO_BIN_EXE_wayside")));
    command.arg("run").arg(folder.path().join("wayside.yaml"));
    let mut process = Process::start(&format!("wayside-{nth}"), &mut command, folder.path());
    let ready = eventually("wayside is ready", Duration::from_secs(30), async || {
        if let Some(status) = process.ended() {
            panic!("wayside left with {status}: {}", process.stderr());
        }
        let text = process.stdout();
        let line = text.lines().find(|line| line.starts_with('{'))?;
        serde_json::from_str::<Ready>(line)
            .ok()
            .filter(|line| line.ready)
    })
    .await;
    (process, ready)
}
