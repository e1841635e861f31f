//! Programs that a test starts: each ends with the test, however the test ends.
//!
//! A drop kills the program. Should the test process itself be killed, or leave by `exit` as libtest does while a
//! static still holds a broker, no drop runs: so a shell stands beside each program, blocked on a pipe that only
//! we hold. When the pipe closes the shell kills the program by its pid and removes its folder.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::eventually::eventually;

/// A running program. Its output goes to files, so that no full pipe can ever stop it.
pub(crate) struct Process {
    name: String,
    child: Child,
    watchdog: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command`, with `folder` for its output. The folder goes too if the test process is killed.
    pub(crate) fn start(name: &str, command: &mut Command, folder: &Path) -> Self {
        let stdout = folder.join(format!("{name}.out"));
        let stderr = folder.join(format!("{name}.log"));
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).expect("the folder can be written"))
            .stderr(File::create(&stderr).expect("the folder can be written"))
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let watchdog = watchdog(child.id(), folder);
        Self {
            name: name.to_owned(),
            child,
            watchdog,
            stdout,
            stderr,
        }
    }

    /// The program's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it wrote to stdout so far.
    pub(crate) fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// Everything it wrote to stderr so far.
    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child is ours")
    }

    /// Ends it with SIGKILL: no handler runs, nothing is flushed.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the child is ours");
        self.release();
        self.child.wait().expect("the child is ours");
    }

    /// Ends it with SIGTERM and waits for it to leave.
    pub(crate) async fn terminate(&mut self, within: Duration) -> ExitStatus {
        let sent = Command::new("kill")
            .args(["-TERM", &self.pid().to_string()])
            .status();
        assert!(
            sent.is_ok_and(|status| status.success()),
            "{} cannot be signalled",
            self.name
        );
        let what = format!("{} leaves after SIGTERM", self.name);
        eventually(&what, within, async || self.ended()).await
    }

    // The shell goes before the pid is free again, or it might one day kill a stranger that has the same pid.
    fn release(&mut self) {
        let gone = self.watchdog.kill().and_then(|()| self.watchdog.wait());
        assert!(
            gone.is_ok(),
            "the shell beside {} cannot be ended",
            self.name
        );
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.release();
        }
        // An error here means that it was waited for before.
        drop(self.child.wait());
        if std::thread::panicking() {
            let log = self.stderr();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            eprintln!(
                "--- the end of what {} logged\n{}\n---",
                self.name,
                tail.join("\n")
            );
        }
    }
}

/// Writes one line that libtest does not swallow, for what a newcomer must see even when all is well.
pub(crate) fn announce(line: &str) {
    // Not `eprintln!`: libtest keeps that back while a test passes.
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

fn watchdog(pid: u32, folder: &Path) -> Child {
    Command::new("sh")
        .args([
            "-c",
            r#"read -r _; kill -9 "$1"; rm -rf "$2""#,
            "watchdog",
            &pid.to_string(),
        ])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell can be started")
}
