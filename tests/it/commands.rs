//! The command line from outside: what it says of a file or a call, and how it ends.

use std::fs;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::support::raw::{Wire, status};
use crate::support::sidecar::Sidecar;

/// One file, and commands about it.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn with(yaml: &str) -> Self {
        let folder = TempDir::with_prefix("wayside-commands-").expect("a folder can be made");
        fs::write(folder.path().join("w.yaml"), yaml).expect("the folder can be written");
        Self { folder }
    }

    /// Runs `wayside COMMAND w.yaml REST…` to its end: its code, its stdout and its stderr.
    fn run(&self, command: &str, rest: &[&str]) -> (Option<i32>, String, String) {
        let Output {
            status,
            stdout,
            stderr,
        } = Command::new(env!("CARGO_BIN_EXE_wayside"))
            .current_dir(self.folder.path())
            .arg(command)
            .arg("w.yaml")
            .args(rest)
            .output()
            .expect("the program starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        (status.code(), text(stdout), text(stderr))
    }
}

fn kafka(properties: &str) -> Desk {
    Desk::with(&format!(
        "\
service: a
admin: {{ listen: 127.0.0.1:0 }}
kafka:
  brokers: [127.0.0.1:1]
  properties:
{properties}"
    ))
}

#[test]
fn check_tells_mistakes_of_the_brokers_properties_beside_all_others() {
    let desk = Desk::with(
        "\
service: A
kafka:
  brokers: [127.0.0.1:1]
  properties:
    sasl.pasword: hunter2
    linger.ms: hunter2
outbound:
  routes:
    - { name: one, match: { path: x }, forward: { to: b } }
    - { name: one, forward: { to: nobody } }
    - { name: one, forward: { to: b } }
services: { b: { addresses: [b:80] } }
drian: 5s
",
    );
    let (code, _, told) = desk.run("check", &[]);
    assert_eq!(code, Some(2));
    for line in [
        "w.yaml:1:10: service: ",
        "w.yaml:5:5: kafka.properties[\"sasl.pasword\"]: No such configuration property: \"sasl.pasword\" (did you mean `sasl.password`?)",
        "w.yaml:6:5: kafka.properties[\"linger.ms\"]: ",
        "w.yaml:9:35: outbound.routes[0].match.path: ",
        "w.yaml:10:15: outbound.routes[1].name: the route in line 9 has this name already",
        "w.yaml:10:35: outbound.routes[1].forward.to: ",
        "w.yaml:11:15: outbound.routes[2].name: the route in line 10 has this name already",
        "w.yaml:13:1: drian: unknown key",
    ] {
        assert!(
            told.lines().any(|told| told.starts_with(line)),
            "{line}\n{told}"
        );
    }
    assert_eq!(told.lines().count(), 8, "{told}");
    assert!(!told.contains("hunter2"), "{told}");
}

#[test]
fn check_and_run_refuse_what_no_client_of_the_broker_can_be_made_of() {
    let desk = kafka("    security.protocol: sasl_plaintext\n    sasl.mechanism: HUNTER2\n");
    for command in ["check", "run"] {
        let (code, out, told) = desk.run(command, &[]);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{command}: {told}");
        assert!(
            told.starts_with("w.yaml:7:5: kafka.properties[\"sasl.mechanism\"]: "),
            "{told}"
        );
        assert!(!told.contains("HUNTER2"), "{told}");
    }
}

#[test]
fn run_refuses_a_file_of_the_brokers_properties_that_is_not_here() {
    let desk = kafka("    security.protocol: ssl\n    ssl.ca.location: /nonexistent/hunter2.pem\n");
    let (code, _, told) = desk.run("check", &[]);
    assert_eq!(code, Some(0), "it may be there where it runs: {told}");
    let (code, _, told) = desk.run("run", &[]);
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.starts_with("w.yaml:7:5: kafka.properties[\"ssl.ca.location\"]: "),
        "{told}"
    );
    assert!(!told.contains("hunter2"), "{told}");
}

#[test]
fn check_repeats_no_password_of_a_broker_or_an_address() {
    for broker in [
        "sasl://user:hunter2@host:9092",
        "user:hunter2@host:9092",
        "sasl://user:hun,ter2@host:9092",
        "sasl://user:hunter2@${NO_SUCH_HOST:-host}:9092",
    ] {
        let desk = Desk::with(&format!(
            "service: a\napp: \"{broker}\"\nkafka: {{ brokers: [\"{broker}\"] }}\n"
        ));
        let (code, out, told) = desk.run("check", &[]);
        assert_eq!(code, Some(2));
        assert_eq!(told.lines().count(), 2, "{told}");
        for part in ["hun", "ter2", "user"] {
            let told = told.replace("has a user", "").replace("sasl.username", "");
            assert!(
                !told.contains(part) && !out.contains(part),
                "{part}: {told}"
            );
        }
    }
}

const ROUTES: &str = "\
service: a
outbound:
  listen: 127.0.0.1:0
  routes:
    - { name: all, match: { host: b }, forward: { to: b } }
services: { b: { addresses: [b:80] } }
limits: { head: 8KiB }
";

#[tokio::test]
async fn explain_refuses_a_head_that_the_door_would_not_read() {
    let desk = Desk::with(ROUTES);
    let of = |length: usize| format!("X: {}", "x".repeat(length));
    // `GET / HTTP/1.1`, `host: b` and the empty line take 27 bytes, the header's name 5 beside its value.
    let (code, out, _) = desk.run("explain", &["GET", "http://b/", "-H", &of(8192 - 32)]);
    assert!(code == Some(0) && out.contains("takes"), "{out}");
    let (code, out, told) = desk.run("explain", &["GET", "http://b/", "-H", &of(8192 - 31)]);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{told}");
    assert!(
        told.contains("431") && told.contains("8193") && told.contains("limits.head"),
        "{told}"
    );
    let sidecar = Sidecar::start(ROUTES).await;
    for (length, refused) in [(8192 - 32, false), (8192 - 31, true)] {
        let head = format!("GET / HTTP/1.1\r\nhost: b\r\n{}\r\n\r\n", of(length));
        let mut wire = Wire::connect(sidecar.outbound()).await;
        wire.send(head).await;
        let answer = wire.head().await;
        assert_eq!(status(&answer) == 431, refused, "{length}: {answer}");
    }
    let headers: Vec<String> = (0..101).map(|index| format!("X{index}: 1")).collect();
    let mut args = vec!["GET", "http://b/"];
    for header in &headers {
        args.extend(["-H", header]);
    }
    let (code, _, told) = desk.run("explain", &args);
    assert!(code == Some(1) && told.contains("431"), "{told}");
}

#[test]
fn explain_tells_what_max_forwards_ends_here() {
    let desk = Desk::with(ROUTES);
    let out = |method: &str, hops: &str| {
        let header = format!("Max-Forwards: {hops}");
        desk.run("explain", &[method, "http://b/", "-H", &header]).1
    };
    let last = out("TRACE", "1");
    assert!(
        last.contains("501") && !last.contains("forward to"),
        "{last}"
    );
    let last = out("OPTIONS", "0");
    assert!(
        last.contains("200 here") && !last.contains("forward to"),
        "{last}"
    );
    for (method, hops) in [("OPTIONS", "1"), ("GET", "0")] {
        let on = out(method, hops);
        assert!(on.contains("forward to b"), "{on}");
    }
}

#[test]
fn explain_tells_of_slim_bodies_what_the_route_would_do() {
    let desk = Desk::with(
        "\
service: a
outbound:
  listen: 127.0.0.1:0
  routes:
    - { name: files, match: { host: files }, publish: { topic: f, slim: { keep: [/id], claim: disk, whole_over: 4B } } }
    - { name: things, match: { host: things }, publish: { topic: t, slim: { keep: [/id], claim: api } } }
claims: { disk: { disk: bodies }, api: { origin: \"http://things/things/{/id}\" } }
services: { things: { addresses: [127.0.0.1:1] } }
kafka: { brokers: [127.0.0.1:1] }
",
    );
    let told = |host: &str, body: &str, kind: &str| {
        let (url, kind) = (format!("http://{host}/"), format!("content-type: {kind}"));
        desk.run("explain", &["POST", &url, "-d", body, "-H", &kind])
            .1
    };
    let large = told("files", "a text", "text/plain");
    assert!(large.contains("202 after"), "{large}");
    let none = "record value: none, since 6 bytes are over whole_over 4";
    assert!(large.contains(none), "{large}");
    let small = told("files", "text", "text/plain");
    assert!(
        small.contains("202 after") && !small.contains("whole_over"),
        "{small}"
    );
    let json = told("files", "text", "application/json");
    assert!(json.contains("400 not-json"), "{json}");
    let fine = told("things", r#"{"id":1,"x":2}"#, "application/json");
    assert!(fine.contains("202 after"), "{fine}");
    let nameless = told("things", r#"{"id":null,"x":2}"#, "application/json");
    assert!(
        nameless.contains("400 bad-request") && nameless.contains("/id"),
        "{nameless}"
    );
}

#[test]
fn explain_tells_what_receivers_would_report_back() {
    let desk = Desk::with(
        "\
service: a
admin: { listen: 127.0.0.1:0 }
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: all
      match: { host: all }
      publish: { topic: t, track: all, reply: { from: billing } }
    - { name: none, match: { host: none }, publish: { topic: t } }
kafka: { brokers: [127.0.0.1:1], replies: \"{service}.replies\" }
",
    );
    let told = |host: &str, header: &str| {
        let url = format!("http://{host}/");
        desk.run("explain", &["POST", &url, "-H", header]).1
    };
    let all = told("all", "X: 1");
    let expected = "report every attempt and how it ends to topic a.replies; the verdict of group billing counts";
    assert!(all.contains(expected), "{all}");
    let waits = told("none", "Prefer: wait=2");
    assert!(
        waits.contains("the receiver's own, if it comes within 2s"),
        "{waits}"
    );
    assert!(
        waits.contains("report how it ends to topic a.replies"),
        "{waits}"
    );
    let none = told("none", "X: 1");
    assert!(!none.contains("report") && none.contains("202"), "{none}");
}
