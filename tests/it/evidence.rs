//! What the log of a real process says of a try that got no answer.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::forward::yaml;
use crate::support::app::App;
use crate::support::client::{get, post};
use crate::support::eventually::eventually;
use crate::support::process::Process;
use crate::support::raw::{RawApp, Wire, status};

/// Starts a sidecar as a process of its own, behind words such as those of a shell that sets limits.
async fn start(apps: &[SocketAddr], words: &[&str]) -> (Process, SocketAddr, TempDir) {
    let folder = TempDir::with_prefix("wayside-evidence-").expect("a folder can be made");
    let file = folder.path().join("wayside.yaml");
    let apps: Vec<String> = apps.iter().map(ToString::to_string).collect();
    let yaml = yaml(&apps, "", "admin: { listen: 127.0.0.1:0 }");
    std::fs::write(&file, yaml).expect("the folder can be written");
    let wayside = env!("CARGO_BIN_EXE_wayside");
    let words = [words, &[wayside]].concat();
    let mut command = Command::new(words[0]);
    // One worker: each has connections of its own.
    command
        .args(&words[1..])
        .args(["run", "--workers", "1", "--log-format", "json"])
        .arg(&file);
    let process = Process::start("wayside", &mut command, folder.path());
    let ready = eventually("it is ready", Duration::from_secs(20), async || {
        serde_json::from_str::<serde_json::Value>(&process.stdout()).ok()
    })
    .await;
    let outbound = ready["outbound"].as_str().expect("a door");
    let outbound = outbound.parse().expect("an address");
    (process, outbound, folder)
}

#[tokio::test]
async fn a_process_without_a_file_left_blames_nobody_else_and_recovers() {
    let (one, two) = (App::agreeable().await, App::agreeable().await);
    let few = ["sh", "-c", "ulimit -n 64; exec \"$@\"", "sh"];
    let (process, outbound, _folder) = start(&[one.address, two.address], &few).await;
    let told = async |what: &str| {
        let written = async || process.stderr().contains(what).then_some(());
        eventually(what, Duration::from_secs(10), written).await;
    };
    told("few files may be open").await;
    let mut caller = Wire::connect(outbound).await;
    let mut crowd = Vec::new();
    for _ in 0..80 {
        crowd.push(Wire::connect(outbound).await);
    }
    told("accept failed").await;
    // More than the failures in a row that put an address out.
    for _ in 0..8 {
        caller.send("GET / HTTP/1.1\r\nhost: billing\r\n\r\n").await;
        let (head, body) = caller.message().await;
        let body = String::from_utf8_lossy(&body);
        assert_eq!(status(&head), 503, "{body}");
        assert!(body.contains("problem:overloaded"), "{body}");
    }
    drop(crowd);
    let back = async || {
        let reply = get("billing", "/").send(outbound).await;
        (reply.status == 200).then_some(())
    };
    eventually("calls pass again", Duration::from_secs(10), back).await;
    assert!(!process.stderr().contains("address left out"));
}

#[tokio::test]
async fn a_try_without_an_answer_leaves_its_evidence_in_the_log() {
    // Answers once a connection, then takes the next call and closes.
    let app = RawApp::start(|mut wire, _| async move {
        wire.head().await;
        wire.bytes(1).await;
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        wire.try_head().await;
    })
    .await;
    let (process, outbound, _folder) = start(&[app.address], &[]).await;
    assert_eq!(
        post("billing", "/").body("x").send(outbound).await.status,
        200
    );
    assert_eq!(
        post("billing", "/").body("x").send(outbound).await.status,
        502
    );
    let line = eventually("the try is told", Duration::from_secs(10), async || {
        let log = process.stderr();
        let mut lines = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        lines.find(|line: &serde_json::Value| line["message"] == "a try got no answer")
    })
    .await;
    assert_eq!(
        (&line["service"], &line["reused"], &line["bytes_read"]),
        (&"billing".into(), &true.into(), &0.into())
    );
    assert!(
        line["bytes_written"]
            .as_u64()
            .is_some_and(|bytes| bytes > 100),
        "{line}"
    );
    assert!(
        line["idle_ms"].as_u64().is_some_and(|idle| idle < 500),
        "{line}"
    );
    assert_eq!(line["address"], app.address.to_string().as_str());
}
