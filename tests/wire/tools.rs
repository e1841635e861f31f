//! The programs of others: built or fetched once into `target/wire`, at the versions that this folder pins.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::support::process::announce;

/// Each program of the Go module, and what it is built from.
const PROGRAMS: [(&str, &str); 5] = [
    ("h2spec", "github.com/summerwind/h2spec/cmd/h2spec"),
    ("interop-client", "google.golang.org/grpc/interop/client"),
    ("interop-server", "google.golang.org/grpc/interop/server"),
    ("relay", "./relay"),
    ("streams", "./streams"),
];

/// What tells whether the programs are current.
const GO_SOURCES: [&str; 5] = [
    "go/go.mod",
    "go/go.sum",
    "go/relay/main.go",
    "go/streams/main.go",
    "go/streams/server.go",
];

/// What was found, or what is missing with its remedy.
type Found = Result<PathBuf, String>;

/// The folder of the Go programs; `None` where they cannot be built.
pub(crate) async fn go() -> Option<&'static Path> {
    static FOUND: OnceCell<Found> = OnceCell::const_new();
    static SAID: Once = Once::new();
    let found = FOUND.get_or_init(async || build()).await;
    or_say(found, "h2spec and gRPC", &SAID)
}

/// The folder of the Python packages; `None` where they cannot be fetched.
pub(crate) async fn python() -> Option<&'static Path> {
    static FOUND: OnceCell<Found> = OnceCell::const_new();
    static SAID: Once = Once::new();
    let found = FOUND.get_or_init(async || fetch()).await;
    or_say(found, "WebSockets and OpenTelemetry", &SAID)
}

/// curl, where it is there and speaks HTTP/2.
pub(crate) async fn curl() -> Option<&'static Path> {
    static FOUND: OnceCell<Found> = OnceCell::const_new();
    static SAID: Once = Once::new();
    let look = async || {
        let version = first_line("curl", "-V", "apt-get install curl")?;
        match version.contains("nghttp2") {
            true => Ok(PathBuf::from("curl")),
            false => Err(format!("this curl has no HTTP/2 ({version})")),
        }
    };
    or_say(FOUND.get_or_init(look).await, "curl", &SAID)
}

/// Runs a program to its end, which it must reach within `limit`.
pub(crate) async fn run(command: Command, limit: Duration) -> Output {
    let what = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(limit, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("not within {limit:?}: {what}"));
    output.unwrap_or_else(|error| panic!("{what} does not start: {error}"))
}

fn or_say(found: &'static Found, what: &str, said: &Once) -> Option<&'static Path> {
    match found {
        Ok(path) => Some(path),
        Err(missing) => {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI runs every test of tests/wire: {missing}"
            );
            said.call_once(|| {
                announce(&format!(
                    "wire: NOT RUN, every test with {what} is skipped: {missing}"
                ))
            });
            None
        }
    }
}

/// The first line that a program says about itself.
fn first_line(program: &str, flag: &str, remedy: &str) -> Result<String, String> {
    let output = Command::new(program).arg(flag).output();
    let output = output.map_err(|_| format!("there is no {program}: {remedy}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn build() -> Found {
    let version = first_line(
        "go",
        "version",
        "install Go 1.22 or later, or apt-get install golang",
    )?;
    let into = folder("go");
    let mark = sources(&GO_SOURCES) + &version;
    if is_current(&into, &mark) {
        return Ok(into);
    }
    announce("wire: building h2spec and gRPC's interop programs by Go, once");
    for (name, package) in PROGRAMS {
        let mut command = Command::new("go");
        command.current_dir(here().join("go"));
        command.args(["build", "-trimpath", "-o"]);
        command.arg(into.join(name)).arg(package);
        succeed(command, "let it reach proxy.golang.org")?;
    }
    finish(into, &mark)
}

fn fetch() -> Found {
    let remedy = "apt-get install python3 python3-pip";
    let version = first_line("python3", "-VV", remedy)?;
    let into = folder("python");
    let mark = sources(&["python/requirements.txt"]) + &version;
    if is_current(&into, &mark) {
        return Ok(into);
    }
    announce("wire: fetching Python's websockets and opentelemetry-proto by pip, once");
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "install", "--quiet", "--upgrade"]);
    command.arg("--target").arg(&into);
    command
        .arg("-r")
        .arg(here().join("python/requirements.txt"));
    succeed(command, remedy)?;
    finish(into, &mark)
}

fn succeed(mut command: Command, remedy: &str) -> Result<(), String> {
    let what = format!("{command:?}");
    let output = command
        .output()
        .map_err(|error| format!("{what} does not start ({error}): {remedy}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or("no reason given");
    Err(format!("{what} failed ({last}): {remedy}"))
}

/// This suite's own folder.
pub(crate) fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire")
}

fn folder(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    target.expect("tmp is in target").join("wire").join(name)
}

fn sources(names: &[&str]) -> String {
    let read =
        |name: &&str| fs::read_to_string(here().join(name)).expect("it is in the repository");
    names.iter().map(read).collect()
}

/// Whether what stands there was made of these sources: the mark is written last.
fn is_current(into: &Path, mark: &str) -> bool {
    fs::read_to_string(into.join("made-of")).is_ok_and(|kept| kept == mark)
}

fn finish(into: PathBuf, mark: &str) -> Found {
    match fs::write(into.join("made-of"), mark) {
        Ok(()) => Ok(into),
        Err(error) => Err(format!("{} cannot be kept: {error}", into.display())),
    }
}
