//! `wayside check --live` where no real broker is needed: imitations of one, silence, and names.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::types::RDKafkaApiKey;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::support::broker;
use crate::support::dns::Dns;

/// Runs `wayside check --live ARGS…` with these files in its folder: its code, its stdout and its stderr.
async fn check(files: &[(&str, &str)], args: &[&str]) -> (Option<i32>, String, String) {
    let folder = TempDir::with_prefix("wayside-live-").expect("a folder can be made");
    for (name, yaml) in files {
        fs::write(folder.path().join(name), yaml).expect("the folder can be written");
    }
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_wayside"))
        .current_dir(folder.path())
        .args(["check", "--live"])
        .args(args)
        .args(files.iter().map(|(name, _)| name))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn publishing(address: &str, topic: &str) -> String {
    format!(
        "\
service: a
outbound:
  listen: 127.0.0.1:0
  routes:
    - {{ name: one, publish: {{ topic: {topic} }} }}
kafka: {{ brokers: [\"{address}\"] }}
"
    )
}

#[tokio::test]
async fn an_embedded_broker_has_nothing_to_check() {
    let yaml = publishing("", "t").replace("{ brokers: [\"\"] }", "embedded");
    let (code, out, told) = check(&[("w.yaml", &yaml)], &[]).await;
    assert_eq!((code, told.as_str()), (Some(0), ""));
    assert_eq!(
        out,
        "w.yaml: ok (live: no broker to ask: `kafka: embedded` has nothing live to check)\n"
    );
}

#[tokio::test]
async fn what_an_embedded_broker_of_another_process_cannot_tell_is_said() {
    let yaml = publishing(&broker::address(), &broker::topic("live", 4));
    let (code, out, told) = check(&[("w.yaml", &yaml)], &[]).await;
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(
        told.starts_with("warning: w.yaml:6:19: kafka.brokers: ") && told.contains("[unchecked]"),
        "{told}"
    );
    assert_eq!(
        out,
        "w.yaml: ok (live: 1 broker, 1 topic, 0 subscriptions)\n"
    );
}

#[tokio::test]
async fn a_broker_that_is_too_old_for_idempotence_is_an_error() {
    let cluster = MockCluster::new(1).expect("a broker");
    cluster.create_topic("old", 2, 1).expect("the name is new");
    cluster
        .apiversion(RDKafkaApiKey::InitProducerId, None, None)
        .expect("it has this request");
    let yaml = publishing(&cluster.bootstrap_servers(), "old");
    let (code, _, told) = check(&[("w.yaml", &yaml)], &[]).await;
    assert_eq!(code, Some(1), "{told}");
    let first = told.lines().next().expect("a line");
    assert!(
        first.starts_with("error: w.yaml:6:19: kafka.brokers: ")
            && first.ends_with("[idempotence]"),
        "{told}"
    );
}

#[tokio::test]
async fn a_broker_that_refuses_or_is_silent_is_one_error_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port is free");
    let silent = silent
        .local_addr()
        .map(|address| (silent, address))
        .expect("it is bound");
    for (address, most) in [("127.0.0.1:1".to_owned(), 6), (silent.1.to_string(), 5)] {
        let began = Instant::now();
        let yaml = publishing(&address, "t");
        let (code, out, told) = check(&[("w.yaml", &yaml)], &["--timeout", "2s"]).await;
        assert_eq!((code, out.as_str()), (Some(1), ""), "{told}");
        let found: Vec<_> = told
            .lines()
            .filter(|line| line.starts_with("error: "))
            .collect();
        assert_eq!(found.len(), 1, "{told}");
        assert!(
            found[0].starts_with("error: w.yaml:6:19: kafka.brokers: no broker answers"),
            "{told}"
        );
        assert!(
            told.contains("s] w.yaml: connecting to"),
            "progress is told: {told}"
        );
        assert!(
            began.elapsed() < Duration::from_secs(most),
            "{:?}",
            began.elapsed()
        );
    }
}

#[tokio::test]
async fn a_name_with_one_address_defeats_balancing() {
    let dns = Dns::start(&[Ipv4Addr::new(10, 0, 0, 1)], 60).await;
    let yaml = format!(
        "\
service: a
dns: {{ servers: [\"{}\"] }}
services:
  chosen: {{ addresses: [chosen.test:80], balance: least-request }}
  cluster: {{ addresses: [cluster.shop.svc:80] }}
  plain: {{ addresses: [plain.test:80] }}
  listed: {{ addresses: [10.0.0.7:80], balance: round-robin }}
",
        dns.address
    );
    let (code, out, told) = check(&[("w.yaml", &yaml)], &[]).await;
    assert_eq!(code, Some(0), "{told}");
    let found: Vec<_> = told
        .lines()
        .filter(|line| line.ends_with("[one-address]"))
        .collect();
    assert_eq!(found.len(), 2, "{told}");
    assert!(
        found[0].starts_with("warning: w.yaml:4:25: services.chosen.addresses[0]: "),
        "{told}"
    );
    assert!(found[1].contains("name a headless Service"), "{told}");
    assert!(
        out.contains("no broker to ask: there is no `kafka`, 3 names"),
        "{out}"
    );
    let gone = "service: a\nservices: { b: { addresses: [nowhere.invalid:80] } }\n";
    let (code, _, unresolved) = check(&[("w.yaml", gone)], &[]).await;
    assert_eq!(code, Some(0), "{unresolved}");
    assert!(
        unresolved.starts_with("warning: w.yaml:2:30: services.b.addresses[0]: ")
            && unresolved.trim_end().ends_with("[name-resolves]"),
        "{unresolved}"
    );
    dns.now(&[Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)]);
    let (_, _, told) = check(&[("w.yaml", &yaml)], &[]).await;
    assert!(!told.contains("[one-address]"), "{told}");
}

#[tokio::test]
async fn every_file_is_checked_and_the_worst_decides_the_exit_code() {
    let away = publishing("127.0.0.1:1", "t");
    let files = [
        ("good.yaml", "service: a\n"),
        ("away.yaml", &*away),
        ("bad.yaml", "service: A\n"),
    ];
    let (code, out, _) = check(&files, &["--timeout", "1s", "--json"]).await;
    assert_eq!(code, Some(2), "{out}");
    let told: Vec<serde_json::Value> = out
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let ok: Vec<_> = told.iter().map(|one| one["ok"] == true).collect();
    assert_eq!(ok, [true, false, false], "{out}");
    let finding = &told[1]["live"]["findings"][0];
    for (name, value) in [
        ("severity", "error"),
        ("rule", "broker"),
        ("path", "kafka.brokers"),
    ] {
        assert_eq!(finding[name], value, "{finding}");
    }
    assert_eq!(told[2].get("live"), None, "a bad file is not asked about");
    let (code, ..) = check(&files[..2], &["--timeout", "1s"]).await;
    assert_eq!(code, Some(1));
    let (code, ..) = check(&files[..1], &[]).await;
    assert_eq!(code, Some(0));
}
