//! Finding a message: the admin door's lists and streams, the command that asks for them, and one id through the logs of
//! two sidecars.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use crate::publish::{publishing, refused};
use crate::subscription::{FAST, subscribed};
use crate::support::app::{Answer, App};
use crate::support::broker::{self, plain};
use crate::support::client::{Outgoing, get, post};
use crate::support::eventually::eventually;
use crate::support::process::Process;
use crate::support::raw::Wire;
use crate::support::sidecar::Sidecar;

const LONG: Duration = Duration::from_secs(20);

/// Runs `wayside messages` to its end: its code, its stdout and its stderr.
async fn messages(sidecar: &Sidecar, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayside"));
    let admin = sidecar.addresses().admin.to_string();
    command
        .args(["messages", "--admin", &admin])
        .args(arguments);
    let run = spawn_blocking(move || command.output().expect("the program starts"));
    let Output {
        status,
        stdout,
        stderr,
    } = run.await.expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

async fn publish(sidecar: &Sidecar) -> String {
    let reply = post("billing", "/")
        .body("x")
        .send(sidecar.outbound())
        .await;
    assert_eq!(reply.status, 202, "{:?}", reply.body);
    reply.json()["id"].as_str().expect("an id").to_owned()
}

async fn admin(sidecar: &Sidecar, target: &str) -> crate::support::client::Reply {
    get("localhost", target)
        .send(sidecar.addresses().admin)
        .await
}

#[tokio::test]
async fn the_latest_messages_are_listed_with_route_topic_and_last_event() {
    let topic = broker::topic("listed", 1);
    let sidecar = publishing(&topic, "").await;
    let ids = [
        publish(&sidecar).await,
        publish(&sidecar).await,
        publish(&sidecar).await,
    ];

    let (code, told, _) = messages(&sidecar, &[]).await;
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 4, "{told}");
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        words(lines[0])[..5],
        ["ID", "WHEN", "ROUTE", "TOPIC", "STATUS"]
    );
    for (line, id) in lines[1..].iter().zip(ids.iter().rev()) {
        let row = words(line);
        assert_eq!(
            (&row[0], &*row[2], &*row[3], &*row[4]),
            (id, "all", &*topic, "replicated")
        );
        assert!(line.contains("replicated: partition 0, offset "), "{line}");
    }
    let (_, told, _) = messages(&sidecar, &["--limit", "1"]).await;
    assert!(told.contains(&ids[2]) && !told.contains(&ids[1]), "{told}");
    let (_, told, _) = messages(&sidecar, &["--route", "all", "--status", "replicated"]).await;
    assert_eq!(told.lines().count(), 4);
    for none in [["--route", "other"], ["--status", "dead"]] {
        let (code, told, said) = messages(&sidecar, &none).await;
        assert_eq!((code, &*told, &*said), (Some(0), "", "no such messages\n"));
    }
    let (_, told, _) = messages(&sidecar, &["--json"]).await;
    let all: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(all.as_array().map(Vec::len), Some(3));
    assert_eq!(
        (&all[0]["id"], &all[0]["route"]),
        (&ids[2].as_str().into(), &"all".into())
    );
}

#[tokio::test]
async fn one_message_is_told_event_by_event_and_what_is_not_there_has_its_own_exit_code() {
    let topic = broker::topic("told", 1);
    let sidecar = publishing(&topic, "").await;
    let id = publish(&sidecar).await;
    let (code, told, _) = messages(&sidecar, &[&id]).await;
    assert_eq!(code, Some(0));
    assert!(
        told.starts_with(&format!("id      {id}\nstatus  replicated\nroute   all\n")),
        "{told}"
    );
    assert!(
        told.contains("accepted\n") && told.contains("partition 0, offset 0\n"),
        "{told}"
    );
    let (_, told, _) = messages(&sidecar, &[&id, "--json"]).await;
    let one: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(one["id"], id);

    // From before the process, by its own time; and one that says none.
    for (missing, code, why) in [
        ("00000000-0000-7000-8000-000000000001", 4, "no longer kept"),
        (
            "00000000-0000-8000-8000-000000000001",
            3,
            "knows no such message",
        ),
    ] {
        for follow in [&[missing][..], &[missing, "--follow"]] {
            let (ended, told, said) = messages(&sidecar, follow).await;
            assert_eq!((ended, &*told), (Some(code), ""));
            assert!(said.contains(missing) && said.contains(why), "{said}");
        }
    }
    let nowhere = App::nowhere().to_string();
    let (code, _, said) = messages(&sidecar, &["--admin", &nowhere]).await;
    // Given twice: clap takes no such call.
    assert_eq!(code, Some(2), "{said}");
    let (code, _, said) = messages(&sidecar, &["no-uuid"]).await;
    assert_eq!(code, Some(2), "{said}");
    let (code, _, said) = messages(&sidecar, &[&id, "--route", "all"]).await;
    assert_eq!(code, Some(2), "{said}");
    let (code, _, said) = messages(&sidecar, &["--status", "lost"]).await;
    assert!(
        code == Some(2) && said.contains("accepted, spooled"),
        "{said}"
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayside"));
    command.args(["messages", "--admin", &nowhere]);
    let output = spawn_blocking(move || command.output().expect("the program starts"));
    let output = output.await.expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains(&nowhere) && said.contains("does not answer"),
        "{said}"
    );
}

#[tokio::test]
async fn the_admin_door_says_what_is_wrong_with_a_query() {
    let sidecar = publishing(&broker::topic("asked", 1), "").await;
    for wrong in [
        "limit=0",
        "limit=1001",
        "status=lost",
        "topic=a",
        "route=a&route=b",
    ] {
        refused(
            &admin(&sidecar, &format!("/messages?{wrong}")).await,
            400,
            "bad-request",
        );
    }
    refused(&admin(&sidecar, "/messages/7").await, 404, "unknown");
    let id = publish(&sidecar).await;
    let one = admin(&sidecar, &format!("/messages/{id}")).await;
    assert_eq!((one.status.as_u16(), &one.json()["id"]), (200, &id.into()));
}

#[tokio::test]
async fn a_message_is_followed_to_its_verdict() {
    let (topic, group) = (broker::topic("followed", 1), broker::unique("group"));
    let app = App::by(|_| Answer::status(200).after(Duration::from_millis(300))).await;
    let subscription = format!("topic: {topic}, group: {group}, deliver: {{ path: / }}, {FAST}");
    let receiver = subscribed(app.address, &[subscription]).await;
    let folder = TempDir::with_prefix("wayside-follow-").expect("a folder can be made");
    let all = follow(&receiver, &folder, "all", &[]);
    let admin_door = receiver.addresses().admin;
    // Whoever asks in curl's way sees that the stream has begun.
    let mut stream = Wire::connect(admin_door).await;
    let head = "GET /messages HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n";
    stream.send(head).await;
    assert!(stream.head().await.contains("text/event-stream"));
    broker::write(&topic, &[plain("a")]);
    let first = stream
        .try_until(b"\"status\":\"done\"")
        .await
        .expect("it is told");
    assert!(
        first.contains("event: message\ndata: {\"id\":\""),
        "{first}"
    );

    let known = admin(&receiver, "/messages").await.json();
    let id = known[0]["id"].as_str().expect("an id").to_owned();
    // Over already: told at once, and that is all.
    let (code, told, _) = messages(&receiver, &[&id, "--follow"]).await;
    assert_eq!(code, Some(0));
    assert!(
        told.contains("status  done") && told.contains("done           answered 200"),
        "{told}"
    );
    let shown = async || all.stdout().contains(" done ").then_some(());
    eventually("the change is told", LONG, shown).await;
    drop(all);
    assert!(receiver.stop().await);
}

#[tokio::test]
async fn following_one_message_ends_with_its_verdict() {
    let (topic, group) = (broker::topic("verdict", 1), broker::unique("group"));
    let app = App::by(|seen| match seen.header("wayside-attempt") {
        Some("1") => Answer::status(503),
        _ => Answer::status(200).after(Duration::from_millis(1_500)),
    })
    .await;
    let subscription = format!("topic: {topic}, group: {group}, deliver: {{ path: / }}, {FAST}");
    let receiver = subscribed(app.address, &[subscription]).await;
    broker::write(&topic, &[plain("a")]);
    // Known from its first event, which is the first attempt's.
    let id = eventually("the message is known", LONG, async || {
        let known = admin(&receiver, "/messages").await.json();
        known[0]["id"].as_str().map(str::to_owned)
    })
    .await;
    let (code, told, said) = messages(&receiver, &[&id, "--follow"]).await;
    assert_eq!(code, Some(0), "{said}");
    let events: Vec<&str> = told
        .lines()
        .filter_map(|line| line.split_once("Z  "))
        .map(|(_, event)| event)
        .collect();
    assert_eq!(
        events[0], "delivered      attempt 1, answered 503",
        "{told}"
    );
    assert_eq!(
        events.last(),
        Some(&"done           answered 200"),
        "{told}"
    );
    let (_, told, _) = messages(&receiver, &[&id, "--follow", "--json"]).await;
    assert_eq!(told.lines().count(), 1);
    assert!(receiver.stop().await);
}

#[tokio::test]
async fn only_so_many_follow_and_a_sidecar_that_stops_lets_them_go() {
    let sidecar = publishing(&broker::topic("crowd", 1), "").await;
    let mut streams = Vec::new();
    for _ in 0..wayside::messages::FOLLOWERS_MAX {
        let mut stream = Wire::connect(sidecar.addresses().admin).await;
        let head = "GET /messages HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n";
        stream.send(head).await;
        assert!(stream.head().await.starts_with("HTTP/1.1 200"));
        streams.push(stream);
    }
    let one_more = get("localhost", "/messages").header("accept", "text/event-stream");
    let reply = one_more.send(sidecar.addresses().admin).await;
    refused(&reply, 503, "overloaded");
    assert!(reply.header("retry-after").is_some());
    let folder = TempDir::with_prefix("wayside-follow-").expect("a folder can be made");
    drop(streams.pop());
    let mut following = eventually("there is room again", LONG, async || {
        let mut following = follow(&sidecar, &folder, "late", &["--json"]);
        let told = publish(&sidecar).await;
        eventually("it is told or refused", LONG, async || {
            let ended = following.ended().is_some();
            (ended || following.stdout().contains(&told)).then_some(())
        })
        .await;
        following.ended().is_none().then_some(following)
    })
    .await;
    assert!(sidecar.stop().await, "nobody who follows holds a drain up");
    let status = eventually("the command ends", LONG, async || following.ended()).await;
    assert_eq!(status.code(), Some(1));
    assert!(
        following.stderr().contains("stops telling"),
        "{}",
        following.stderr()
    );
}

/// Starts `wayside messages --follow`.
fn follow(sidecar: &Sidecar, folder: &TempDir, name: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayside"));
    let admin = sidecar.addresses().admin.to_string();
    command
        .args(["messages", "--follow", "--admin", &admin])
        .args(arguments)
        .stdin(Stdio::null());
    Process::start(name, &mut command, folder.path())
}

/// A sidecar in a process of its own, which logs everything as JSON.
async fn logging(name: &str, folder: &Path, yaml: &str) -> (Process, Value) {
    let file = folder.join(format!("{name}.yaml"));
    std::fs::write(
        &file,
        format!("{yaml}\nadmin: {{ listen: 127.0.0.1:0 }}\ndrain: 5s\n"),
    )
    .expect("the folder can be written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayside"));
    command.args(["run", "--log-format", "json", "--log-level", "debug"]);
    command.arg(&file);
    let mut process = Process::start(name, &mut command, folder);
    let ready = eventually("it is ready", LONG, async || {
        assert!(process.ended().is_none(), "{}", process.stderr());
        let told = process.stdout();
        told.lines()
            .find_map(|line| serde_json::from_str::<Value>(line).ok())
    })
    .await;
    (process, ready)
}

fn door(ready: &Value, name: &str) -> SocketAddr {
    let address = ready[name].as_str().expect("the door is open");
    address.parse().expect("an address")
}

/// The lines of a log that name a message, each with its words.
fn about(process: &Process, id: &str) -> Vec<Value> {
    let lines = process.stderr();
    let lines = lines
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines.filter(|line: &Value| line["id"] == id).collect()
}

/// A sidecar that makes events of what it publishes, and one that delivers them whole.
async fn pair(
    folder: &Path,
    app: SocketAddr,
    (topic, group, dead): (&str, &str, &str),
) -> (Process, SocketAddr, Process) {
    let bootstrap = broker::address();
    let (sender, sent) = logging(
        "orders",
        folder,
        &format!(
            "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: create
      match: {{ host: billing }}
      publish: {{ topic: {topic}, slim: {{ keep: [/id], claim: bodies }} }}
inbound: {{ listen: 127.0.0.1:0 }}
claims: {{ bodies: {{ disk: {}, survives: pod }} }}
kafka: {{ brokers: [\"{bootstrap}\"] }}",
            folder.join("claims").display()
        ),
    )
    .await;
    let (receiver, _) = logging(
        "billing",
        folder,
        &format!(
            "
service: billing
app: {}
services: {{ orders: {{ addresses: [\"{}\"] }} }}
subscriptions:
  - {{ topic: {topic}, group: {group}, hydrate: eager, dead_letter: {dead}, {FAST} }}
kafka: {{ brokers: [\"{bootstrap}\"] }}",
            app,
            door(&sent, "inbound")
        ),
    )
    .await;
    (sender, door(&sent, "outbound"), receiver)
}

#[tokio::test]
async fn one_id_and_one_trace_lead_through_the_logs_of_two_sidecars() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let folder = TempDir::with_prefix("wayside-logs-").expect("a folder can be made");
    let (topic, group) = (broker::topic("logged", 1), broker::unique("group"));
    let dead = broker::topic("logged-dead", 1);
    let app = App::script([Answer::cut(), Answer::status(503), Answer::status(422)]).await;
    let names = (&*topic, &*group, &*dead);
    let (sender, outbound, receiver) = pair(folder.path(), app.address, names).await;
    let reply = Outgoing::new(http::Method::POST, "billing", "/")
        .header("traceparent", &format!("00-{TRACE}-00f067aa0ba902b7-01"))
        .json("{\"id\":1,\"lines\":[1,2,3]}")
        .send(outbound)
        .await;
    assert_eq!(reply.status, 202, "{:?}", reply.body);
    let id = reply.json()["id"].as_str().expect("an id").to_owned();

    let lines = eventually("the message is dead", LONG, async || {
        let lines = about(&receiver, &id);
        let over = lines
            .iter()
            .any(|line| line["message"] == "message moved to the dead letters");
        over.then_some(lines)
    })
    .await;
    let words: Vec<&str> = lines
        .iter()
        .filter_map(|line| line["message"].as_str())
        .collect();
    assert_eq!(
        words,
        [
            "message hydrated",
            "a try got no answer",
            "message not done",
            "message hydrated",
            "message not done",
            "message hydrated",
            "message not done",
            "message moved to the dead letters",
        ]
    );
    let published = eventually("it was told", LONG, async || {
        Some(about(&sender, &id)).filter(|lines| !lines.is_empty())
    })
    .await;
    assert_eq!(published[0]["message"], "message published");
    for line in lines.iter().chain(&published) {
        assert_eq!(line["trace"], TRACE, "{line}");
    }
    for line in lines.iter().filter(|line| {
        line["message"] != "a try got no answer" && line["message"] != "message hydrated"
    }) {
        assert_eq!(line["topic"], topic, "{line}");
    }
    // Where the claim was kept, the fetch is of the same trace, and the later attempts need none.
    let kept = sender.stderr();
    let fetched = kept
        .lines()
        .filter(|line| line.contains("/.wayside/claims/") && line.contains(TRACE));
    assert_eq!(fetched.count(), 1, "{kept}");
}
