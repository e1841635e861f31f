//! Child processes of this same binary: sidecars and the broker. Whatever way the demo ends, none outlives it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;

use super::wait::{Result, Trouble, within};

/// How long a child may take to say that it is ready.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Bytes of a line that a child may print on stdout.
const LINE_MAX: u64 = 4096;

/// Bytes of a child's stderr that are kept for an error report; the oldest go first.
const TAIL_MAX: usize = 4096;

/// A running `wayside …`, killed when dropped.
pub(super) struct Process {
    name: String,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    _log: JoinSet<()>,
}

/// The last words of every child, still to be had after its end.
#[derive(Default)]
pub(super) struct Tails(Mutex<Vec<Tail>>);

struct Tail {
    name: String,
    bytes: Arc<Mutex<Vec<u8>>>,
}

/// The doors of a sidecar: its one line on stdout once it is ready.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Doors {
    /// Where the app calls.
    pub(super) outbound: Option<SocketAddr>,
    /// Where other sidecars call.
    pub(super) inbound: Option<SocketAddr>,
    /// Where a person looks.
    pub(super) admin: Option<SocketAddr>,
}

/// A service's sidecar.
pub(super) struct Sidecar {
    /// Its doors.
    pub(super) doors: Doors,
    process: Process,
}

impl Process {
    /// Starts this binary with `arguments`; `tails` gets its last words, however it ends.
    fn start(name: &str, arguments: &[&str], tails: &Tails) -> Result<Self> {
        let failed =
            |error: std::io::Error| Trouble::new(format!("{name}: cannot be started: {error}"));
        let binary = std::env::current_exe().map_err(failed)?;
        let mut child = Command::new(binary)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C reaches the whole foreground group; a child must not end before its demo does.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let missing = || Trouble::new(format!("{name}: its pipes are missing"));
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let mut log = JoinSet::new();
        log.spawn(follow(stderr, tails.open(name)));
        Ok(Self {
            name: name.to_owned(),
            child,
            stdin,
            stdout,
            _log: log,
        })
    }

    /// The next line of its stdout, as JSON.
    async fn answer<T: DeserializeOwned>(&mut self, step: &str) -> Result<T> {
        let step = format!("{}: {step}", self.name);
        within(&step, START_LIMIT, async {
            let mut line = String::new();
            let read = (&mut self.stdout).take(LINE_MAX).read_line(&mut line).await;
            let read = read.map_err(|error| Trouble::new(format!("{step}: {error}")))?;
            if read == 0 {
                let status = self.child.wait().await;
                let status = status.map_or_else(|error| error.to_string(), |it| it.to_string());
                return Err(Trouble::new(format!("{step}: it ended with {status}")));
            }
            let unread = |error| Trouble::new(format!("{step}: {line:?} is not expected: {error}"));
            serde_json::from_str(&line).map_err(unread)
        })
        .await
    }
}

async fn follow(mut stderr: ChildStderr, tail: Arc<Mutex<Vec<u8>>>) {
    let mut chunk = [0; 1024];
    while let Ok(count @ 1..) = stderr.read(&mut chunk).await {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(&chunk[..count]);
        let old = tail.len().saturating_sub(TAIL_MAX);
        tail.drain(..old);
    }
}

impl Tails {
    fn open(&self, name: &str) -> Arc<Mutex<Vec<u8>>> {
        let bytes = Arc::default();
        let tail = Tail {
            name: name.to_owned(),
            bytes: Arc::clone(&bytes),
        };
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(tail);
        bytes
    }

    /// The last lines of each child that said anything, under its name.
    pub(super) fn text(&self) -> String {
        let tails = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tails.iter().map(Tail::text).collect()
    }
}

impl Tail {
    fn text(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&bytes);
        if text.trim().is_empty() {
            return String::new();
        }
        let lines: String = text.lines().map(|line| format!("    {line}\n")).collect();
        format!("  {} said last:\n{lines}", self.name)
    }
}

impl Sidecar {
    /// Starts `wayside run FILE` and waits until it is ready.
    ///
    /// # Errors
    /// It does not start, or is not ready in time.
    pub(super) async fn start(name: &str, file: &Path, tails: &Tails) -> Result<Self> {
        let file = file
            .to_str()
            .ok_or_else(|| Trouble::new("the temporary folder is not UTF-8"))?;
        let log = ["--log-format", "json", "--log-level", "warn"];
        // Should the demo be killed, no drop of ours runs.
        let arguments = [&["run", file, "--tied"], &log[..]].concat();
        let mut process = Process::start(&format!("the sidecar of {name}"), &arguments, tails)?;
        let doors = process.answer("waiting until it is ready").await?;
        Ok(Self { doors, process })
    }

    /// The outbound door.
    ///
    /// # Errors
    /// It has none.
    pub(super) fn outbound(&self) -> Result<SocketAddr> {
        self.door("outbound", self.doors.outbound)
    }

    /// The inbound door.
    ///
    /// # Errors
    /// It has none.
    pub(super) fn inbound(&self) -> Result<SocketAddr> {
        self.door("inbound", self.doors.inbound)
    }

    /// The admin door.
    ///
    /// # Errors
    /// It has none.
    pub(super) fn admin(&self) -> Result<SocketAddr> {
        self.door("admin", self.doors.admin)
    }

    fn door(&self, name: &str, address: Option<SocketAddr>) -> Result<SocketAddr> {
        let none = || Trouble::new(format!("{}: it opened no {name} door", self.process.name));
        address.ok_or_else(none)
    }
}

/// A broker shared by the sidecars: `wayside broker`.
pub(super) struct Broker {
    /// `127.0.0.1:port`.
    pub(super) address: String,
    process: Process,
}

#[derive(Deserialize)]
struct Listening {
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Switched {
    Down(bool),
    Up(bool),
}

impl Broker {
    /// Starts one and waits for its address.
    ///
    /// # Errors
    /// It does not start, or is not ready in time.
    pub(super) async fn start(tails: &Tails) -> Result<Self> {
        let mut process = Process::start("the broker", &["broker"], tails)?;
        let Listening { address } = process.answer("waiting for its address").await?;
        Ok(Self { address, process })
    }

    /// Makes it refuse every connection, keeping what it holds.
    ///
    /// # Errors
    /// It does not obey.
    pub(super) async fn down(&mut self) -> Result<()> {
        match self.switch("down").await? {
            Switched::Down(true) => Ok(()),
            _ => Err(Trouble::new("the broker: it did not go down")),
        }
    }

    /// Makes it answer again.
    ///
    /// # Errors
    /// It does not obey.
    pub(super) async fn up(&mut self) -> Result<()> {
        match self.switch("up").await? {
            Switched::Up(true) => Ok(()),
            _ => Err(Trouble::new("the broker: it did not come up")),
        }
    }

    async fn switch(&mut self, command: &str) -> Result<Switched> {
        let line = format!("{command}\n");
        let written = self.process.stdin.write_all(line.as_bytes()).await;
        written.map_err(|error| Trouble::new(format!("the broker: {command}: {error}")))?;
        self.process.answer(command).await
    }
}
