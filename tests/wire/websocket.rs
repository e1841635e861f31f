//! WebSockets (RFC 6455) of a Python library, client and server, with two sidecars between them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::sidecar::Sidecar;
use crate::support::eventually::eventually;
use crate::support::process::Process;
use crate::tools;

/// What a socket without compression and with it must bear, one function of `client.py` each.
const TRIALS: [&str; 5] = ["messages", "pings", "crowd", "closed", "closes"];

/// The echo server and the two sidecars on the way to it.
struct Line {
    packages: &'static Path,
    echo: Process,
    near: Sidecar,
    far: Sidecar,
    folder: TempDir,
}

impl Line {
    async fn lay(packages: &'static Path) -> Self {
        let folder = TempDir::with_prefix("wayside-websocket-").expect("a folder can be made");
        let mut command = python(packages, "echo.py");
        let mut echo = Process::start("echo", &mut command, folder.path());
        let port: u16 = eventually("the server listens", Duration::from_secs(30), async || {
            assert!(echo.ended().is_none(), "{}", echo.stderr());
            echo.stdout().lines().next()?.parse().ok()
        })
        .await;
        let far = Sidecar::run(&format!(
            "service: echo\napp: 127.0.0.1:{port}\ninbound: {{ listen: 127.0.0.1:0 }}\n"
        ))
        .await;
        let near = Sidecar::run(&format!(
            "
service: client
outbound:
  listen: 127.0.0.1:0
  routes: [{{ name: echo, match: {{ host: echo }}, forward: {{ to: echo }} }}]
services: {{ echo: {{ addresses: [\"{}\"] }} }}
",
            far.inbound.expect("the file has an inbound door")
        ))
        .await;
        Self {
            packages,
            echo,
            near,
            far,
            folder,
        }
    }

    /// The client, which is to do one of its functions.
    fn client(&self, function: &str) -> Command {
        let mut command = python(self.packages, "client.py");
        command
            .arg(self.near.door().port().to_string())
            .arg(function);
        command
    }
}

fn python(packages: &Path, file: &str) -> Command {
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", packages);
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg(tools::here().join("python").join(file));
    command
}

#[tokio::test]
async fn messages_pings_crowds_and_closes_pass_two_sidecars_as_they_are() {
    let Some(packages) = tools::python().await else {
        return;
    };
    let line = Line::lay(packages).await;
    for trial in TRIALS {
        let output = tools::run(line.client(trial), Duration::from_secs(60)).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{trial}: {said}");
    }
    let told = line.echo.stdout();
    let ended = |line: &&str| line.starts_with("ended");
    let broken: Vec<_> = told.lines().filter(ended).collect();
    assert!(broken.is_empty(), "the server saw {broken:?}");
    assert!(
        told.contains("closed 4002"),
        "the client's code arrives: {told}"
    );
}

/// Sends SIGTERM to one of the two sidecars and looks at a socket that is open.
async fn drains(which: impl AsyncFn(&mut Line) -> std::process::ExitStatus) {
    let Some(packages) = tools::python().await else {
        return;
    };
    let mut line = Line::lay(packages).await;
    let mut client = Process::start("client", &mut line.client("stays"), line.folder.path());
    let turns = |client: &Process| client.stdout().matches("turn").count();
    eventually(
        "the socket is in use",
        Duration::from_secs(20),
        async || (turns(&client) >= 3).then_some(()),
    )
    .await;
    let before = turns(&client);
    let left = which(&mut line).await;
    assert_eq!(left.code(), Some(0), "a drain ends with 0");
    let status = eventually(
        "the client has seen the end",
        Duration::from_secs(5),
        async || client.ended(),
    )
    .await;
    assert!(status.success(), "{}", client.stderr());
    let during = turns(&client) - before;
    // One each 50 ms for the ten seconds of the drain, on a machine that has other things to do.
    assert!(during >= 60, "only {during} turns during the drain");
    let told = client.stdout();
    let end = told.lines().find(|line| line.starts_with("ended"));
    let end = end.unwrap_or_else(|| panic!("it did not end: {told}"));
    assert!(!end.contains("Reset"), "a reset is no orderly end: {end}");
    let server = eventually(
        "the server has seen it",
        Duration::from_secs(5),
        async || {
            let told = line.echo.stdout();
            let end = told.lines().find(|line| line.starts_with("ended"));
            end.map(str::to_owned)
        },
    )
    .await;
    assert!(
        !server.contains("Reset"),
        "a reset is no orderly end: {server}"
    );
}

#[tokio::test]
async fn a_socket_serves_on_until_the_drain_of_its_callers_sidecar_is_over() {
    drains(async |line| line.near.terminate().await).await;
}

#[tokio::test]
async fn a_socket_serves_on_until_the_drain_of_its_services_sidecar_is_over() {
    drains(async |line| line.far.terminate().await).await;
}
