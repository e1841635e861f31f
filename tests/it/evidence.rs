//! What the log of a real process says of a try that got no answer.

use std::process::Command;
use std::time::Duration;

use crate::forward::yaml;
use crate::support::client::post;
use crate::support::eventually::eventually;
use crate::support::process::Process;
use crate::support::raw::RawApp;

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
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("wayside.yaml");
    let yaml = yaml(
        &[app.address.to_string()],
        "",
        "admin: { listen: 127.0.0.1:0 }",
    );
    std::fs::write(&file, yaml).expect("the folder can be written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayside"));
    // One worker: each has connections of its own.
    command
        .args(["run", "--workers", "1", "--log-format", "json"])
        .arg(&file);
    let process = Process::start("wayside", &mut command, folder.path());
    let ready = eventually("it is ready", Duration::from_secs(20), async || {
        serde_json::from_str::<serde_json::Value>(&process.stdout()).ok()
    })
    .await;
    let outbound = ready["outbound"].as_str().expect("a door");
    let outbound = outbound.parse().expect("an address");
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
