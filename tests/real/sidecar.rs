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
    with: With,
}

/// What a sidecar is started with beside its file.
#[derive(Debug, Clone, Default)]
pub(crate) struct With {
    /// The program that starts it, with its arguments; none if empty. `{spool}` in it stands for the spool's folder.
    pub(crate) by: Vec<String>,
    /// Variables of its environment.
    pub(crate) env: Vec<(&'static str, String)>,
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
    /// test has; `{claims}` and `{spool}` in it stand for folders of the sidecar's own.
    pub(crate) async fn run(yaml: &str) -> Self {
        Self::run_with(yaml, With::default()).await
    }

    /// The same with more than its file.
    pub(crate) async fn run_with(yaml: &str, mut with: With) -> Self {
        let folder = TempDir::with_prefix("wayside-real-").expect("a folder can be made");
        let claims = folder.path().join("claims").display().to_string();
        let own = "probe: { listen: 127.0.0.1:0 }\nadmin: { listen: 127.0.0.1:0 }\ndrain: 10s\n";
        let spool = folder.path().join("spool").display().to_string();
        for word in &mut with.by {
            *word = word.replace("{spool}", &spool);
        }
        let yaml = yaml.replace("{claims}", &claims).replace("{spool}", &spool);
        let yaml = format!("{yaml}\n{own}");
        let file = folder.path().join("wayside.yaml");
        fs::write(&file, yaml).expect("the folder can be written");
        let (process, ready) = start(&folder, 1, &with).await;
        Self {
            outbound: ready.outbound,
            inbound: ready.inbound,
            probe: ready.probe,
            process,
            folder,
            starts: 1,
            with,
        }
    }

    /// A folder of its own that outlives its restarts.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Bytes of memory that it has.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        1024 * kib
            .and_then(|kib| kib.parse::<u64>().ok())
            .expect("Linux tells")
    }

    /// What it logged since its last start.
    pub(crate) fn log(&self) -> String {
        self.process.stderr()
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let process = &mut self.process;
        eventually("wayside ends", Duration::from_secs(60), async || {
            process.ended()
        })
        .await
    }

    /// Changes what it is started with the next time.
    pub(crate) fn with(&mut self, with: With) {
        self.with = with;
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
        let (process, ready) = start(&self.folder, self.starts, &self.with).await;
        self.process = process;
        self.outbound = ready.outbound;
        self.inbound = ready.inbound;
        self.probe = ready.probe;
    }

    /// Starts it again, to end by itself: before it is ready or after, whichever comes first. Its door, if it had one.
    pub(crate) async fn start_doomed(&mut self) -> Option<SocketAddr> {
        self.starts += 1;
        let (mut process, _) = spawn(&self.folder, self.starts, &self.with);
        let ready = eventually(
            "wayside is ready, or ends",
            Duration::from_secs(30),
            async || {
                let ready = told(&process);
                (ready.is_some() || process.ended().is_some()).then_some(ready)
            },
        )
        .await;
        self.process = process;
        ready?.outbound
    }

    /// Whether the process is the one that was started first, or since [`Sidecar::start_again`].
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// The sum of a metric's series.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let reply = client::get("probe", "/metrics").send(self.probe).await;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let series = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        series
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
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

fn spawn(folder: &TempDir, nth: usize, with: &With) -> (Process, String) {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_wayside"));
    let mut command = match with.by.split_first() {
        None => Command::new(program),
        Some((by, arguments)) => {
            let mut command = Command::new(by);
            command.args(arguments).arg(program);
            command
        }
    };
    command.envs(with.env.iter().map(|(name, value)| (name, value)));
    command.arg("run").arg(folder.path().join("wayside.yaml"));
    let name = format!("wayside-{nth}");
    (Process::start(&name, &mut command, folder.path()), name)
}

/// What it said when it was ready.
fn told(process: &Process) -> Option<Ready> {
    let text = process.stdout();
    let line = text.lines().find(|line| line.starts_with('{'))?;
    serde_json::from_str::<Ready>(line)
        .ok()
        .filter(|line| line.ready)
}

async fn start(folder: &TempDir, nth: usize, with: &With) -> (Process, Ready) {
    let (mut process, name) = spawn(folder, nth, with);
    let ready = eventually("wayside is ready", Duration::from_secs(30), async || {
        if let Some(status) = process.ended() {
            panic!("{name} left with {status}: {}", process.stderr());
        }
        told(&process)
    })
    .await;
    (process, ready)
}
