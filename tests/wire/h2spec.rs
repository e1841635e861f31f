//! h2spec: how a door answers whoever speaks HTTP/2 wrongly, and at the edges of what is right (RFC 9113, RFC 7541).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::certificates;
use crate::sidecar::Sidecar;
use crate::support::app::{Answer, App};
use crate::support::eventually::eventually;
use crate::support::process::Process;
use crate::support::raw::{exchange, status};
use crate::tools;

/// The cases of v2.2.1 with `--strict`, which is one more than without.
const CASES: usize = 146;

/// 3.5, the second case, fails where a door speaks HTTP/1.1 too: it sends `INVALID CONNECTION PREFACE` and an empty line,
/// which here is a request line with a version that there is not. The door answers it by HTTP/1.1 and closes, as the RFC
/// lets it (section 3.4: no GOAWAY is owed to whoever does not speak HTTP/2); h2spec reads `HTTP/1.1 400` as the head of
/// a frame of 4 MiB and misses the rest of it.
const PREFACE: &str = "2: Sends invalid connection preface";

/// What a report says.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    passed: usize,
    skipped: usize,
    failed: BTreeSet<String>,
}

async fn app() -> App {
    App::by(|_| Answer::ok().body("h2spec wants a body of some bytes")).await
}

/// Runs every case against an address.
async fn every_case(programs: &Path, address: SocketAddr) -> Report {
    let folder = TempDir::with_prefix("wayside-h2spec-").expect("a folder can be made");
    let mut command = Command::new(programs.join("h2spec"));
    command.args(["--strict", "-h", "127.0.0.1", "-p"]);
    command.arg(address.port().to_string());
    command.current_dir(folder.path());
    let output = tools::run(command, Duration::from_secs(300)).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}");
    report(&text)
}

/// Reads `146 tests, 145 passed, 0 skipped, 1 failed` and the list of failures above it.
fn report(text: &str) -> Report {
    let line = text.lines().find(|line| line.contains(" tests, "));
    let line = line.unwrap_or_else(|| panic!("h2spec came to no end: {text}"));
    let count = |word: &str| -> usize {
        let part = line.split(", ").find(|part| part.ends_with(word));
        let number = part.and_then(|part| part.split(' ').next()?.parse().ok());
        number.unwrap_or_else(|| panic!("no count of {word}: {line}"))
    };
    assert_eq!(count("tests"), CASES, "h2spec has other cases now: {line}");
    let mark = "\u{d7} ";
    let failures = text.split("Failures:").nth(1).unwrap_or_default();
    let failures = failures
        .lines()
        .filter_map(|line| line.trim().strip_prefix(mark));
    let failed: BTreeSet<String> = failures.map(str::to_owned).collect();
    Report {
        passed: count("passed"),
        skipped: count("skipped"),
        failed,
    }
}

/// Fails unless every case passed but these.
fn is_clean_but_for(report: Report, failed: &[&str]) {
    let clean = Report {
        passed: CASES - failed.len(),
        skipped: 0,
        failed: failed.iter().map(|case| (*case).to_owned()).collect(),
    };
    assert_eq!(report, clean);
}

#[tokio::test]
async fn the_outbound_door_passes_h2spec_in_the_clear_but_for_the_preface_that_http1_answers() {
    let Some(programs) = tools::go().await else {
        return;
    };
    let app = app().await;
    let sidecar = Sidecar::run(&format!(
        "
service: caller
outbound:
  listen: 127.0.0.1:0
  routes: [{{ name: all, forward: {{ to: app }} }}]
services: {{ app: {{ addresses: [\"{}\"] }} }}
",
        app.address
    ))
    .await;
    is_clean_but_for(every_case(programs, sidecar.door()).await, &[PREFACE]);
    let answer = exchange(sidecar.door(), "INVALID CONNECTION PREFACE\r\n\r\n").await;
    assert_eq!(status(&answer), 400, "and the connection is closed");
}

/// Starts the relay that shows a certificate for h2spec, which has none to show.
async fn relay(programs: &Path, folder: &Path, door: SocketAddr) -> (Process, SocketAddr) {
    let mut command = Command::new(programs.join("relay"));
    command.args(["-name", "door", "-target", &door.to_string()]);
    for (flag, file) in [("-cert", "tls.crt"), ("-key", "tls.key"), ("-ca", "ca.crt")] {
        command.arg(flag).arg(folder.join(file));
    }
    let process = Process::start("relay", &mut command, folder);
    let address = eventually("the relay listens", Duration::from_secs(10), async || {
        process.stdout().lines().next()?.parse().ok()
    })
    .await;
    (process, address)
}

#[tokio::test]
async fn the_inbound_door_passes_every_case_of_h2spec_inside_mutual_tls() {
    let Some(programs) = tools::go().await else {
        return;
    };
    let folder = TempDir::with_prefix("wayside-relay-").expect("a folder can be made");
    certificates::write(folder.path());
    let app = app().await;
    let sidecar = Sidecar::run(&format!(
        "
service: door
app: {}
inbound: {{ listen: 127.0.0.1:0, tls: mesh }}
{}
",
        app.address,
        certificates::yaml(folder.path())
    ))
    .await;
    let door = sidecar.inbound.expect("the file has an inbound door");
    let (_relay, address) = relay(programs, folder.path(), door).await;
    is_clean_but_for(every_case(programs, address).await, &[]);
}
