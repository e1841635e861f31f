//! `wayside dead-letters`: what was given up is listed, shown and put back.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use crate::subscription::{FAST, bodies, calls, ended, subscribed};
use crate::support::app::{Answer, App, Seen};
use crate::support::broker::{self, Written};
use crate::support::sidecar::Sidecar;
use crate::support::topic;

/// Runs `wayside dead-letters` to its end: its code, its stdout and its stderr.
async fn dead_letters(word: &str, file: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayside"));
    command
        .args(["dead-letters", word])
        .arg(file)
        .args(arguments);
    let run = spawn_blocking(move || command.output().expect("the program starts"));
    let output = run.await.expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    let code = output.status.code().expect("it was not killed");
    (code, text(output.stdout), text(output.stderr))
}

fn keyed<'a>(key: &'a str, value: &'a str) -> Written<'a> {
    Written {
        key: Some(key),
        value: Some(value.as_bytes()),
        ..Written::default()
    }
}

/// A configuration with that subscription, for the command.
fn file(folder: &TempDir, rule: &str) -> PathBuf {
    let path = folder.path().join("wayside.yaml");
    let address = broker::address();
    let text = format!(
        "service: billing\napp: 127.0.0.1:1\nsubscriptions: [ {{ {rule} }} ]\nkafka: {{ brokers: [\"{address}\"] }}\n"
    );
    std::fs::write(&path, text).expect("the folder can be written");
    path
}

fn documents(stdout: &str) -> Vec<Value> {
    let document = |line: &str| serde_json::from_str(line).expect("JSON");
    stdout.lines().map(document).collect()
}

const ID: &str = "0190c7e0-0000-7000-8000-0000000000aa";

/// A sidecar whose app turns away what begins with `ill` until it is well, and three dead letters: two of key `a`, the
/// second in quarantine, and one of key `b`.
struct Mortal {
    app: App,
    sidecar: Sidecar,
    topic: String,
    well: Arc<AtomicBool>,
    _folder: TempDir,
    path: PathBuf,
}

impl Mortal {
    async fn start() -> Self {
        let (topic, grave) = (broker::topic("mortal", 1), broker::topic("mortal-dead", 1));
        let well = Arc::new(AtomicBool::new(false));
        let is_well = Arc::clone(&well);
        let app = App::by(move |seen| {
            match seen.body.starts_with(b"ill") && !is_well.load(Ordering::SeqCst) {
                true => Answer::status(422),
                false => Answer::ok(),
            }
        })
        .await;
        let group = broker::unique("group");
        let rule = format!(
            "topic: {topic}, group: {group}, deliver: {{ path: /m }}, dead_letter: {grave}, quarantine: true, dedupe: 10m, {FAST}"
        );
        let folder = TempDir::new().expect("a folder");
        let path = file(&folder, &rule);
        let sidecar = subscribed(app.address, &[rule]).await;
        let first = Written {
            headers: &[("ce_id", ID)],
            ..keyed("a", "ill 0")
        };
        let others = [keyed("a", "1"), keyed("b", "ill 2"), keyed("c", "3")];
        broker::write(&topic, &[first]);
        broker::write(&topic, &others);
        ended(&sidecar, &topic, "dead-letter", 3).await;
        ended(&sidecar, &topic, "done", 1).await;
        Self {
            app,
            sidecar,
            topic,
            well,
            _folder: folder,
            path,
        }
    }

    async fn dead_letters(&self, word: &str, arguments: &[&str]) -> (i32, String, String) {
        let (code, out, told) = dead_letters(word, &self.path, arguments).await;
        (code, out.trim().to_owned(), told.trim().to_owned())
    }
}

#[tokio::test]
async fn what_died_is_listed_and_shown() {
    let mortal = Mortal::start().await;
    let (code, out, _) = mortal.dead_letters("list", &["--json"]).await;
    let listed = documents(&out);
    assert_eq!((code, listed.len()), (0, 3), "{out}");
    let letter = listed
        .iter()
        .find(|letter| letter["id"] == ID)
        .expect("it is listed");
    assert_eq!(
        (&letter["key"], &letter["attempts"]),
        (&"a".into(), &"1".into())
    );
    assert_eq!(letter["reason"], "the app answered 422");
    assert_eq!(letter["origin"], format!("{}/0/0", mortal.topic));
    let (code, out, _) = mortal.dead_letters("show", &["--id", ID]).await;
    assert_eq!(code, 0);
    let reason = "wayside-dead-reason: the app answered 422";
    assert!(out.contains("ill 0") && out.contains(reason), "{out}");
    let (code, out, _) = mortal
        .dead_letters("list", &["--since", "1h", "--key", "b"])
        .await;
    assert_eq!((code, out.lines().count()), (0, 1), "{out}");
    let (code, _, told) = mortal.dead_letters("show", &["--key", "nobody"]).await;
    assert_eq!((code, told.as_str()), (3, "wayside: no such dead letter"));
    assert!(mortal.sidecar.stop().await);
}

#[tokio::test]
async fn what_died_is_put_back_once_and_in_order() {
    let mortal = Mortal::start().await;
    let (code, _, told) = mortal.dead_letters("redrive", &[]).await;
    assert_eq!(code, 2, "{told}");
    mortal.well.store(true, Ordering::SeqCst);
    mortal.app.forget();
    let (code, out, _) = mortal
        .dead_letters("redrive", &["--key", "a", "--dry-run"])
        .await;
    assert_eq!((code, out.as_str()), (0, "2 would be put back"));
    let (code, out, told) = mortal.dead_letters("redrive", &["--key", "a"]).await;
    assert_eq!((code, out.as_str()), (0, "2 put back"), "{told}");
    let seen = calls(&mortal.app, 2).await;
    assert_eq!(
        bodies(&seen),
        ["ill 0", "1"],
        "in order, and the quarantine is over"
    );
    assert_eq!(
        seen[0].header("wayside-message-id"),
        Some(ID),
        "it is the same message"
    );
    let dead = |seen: &Seen| {
        seen.headers
            .keys()
            .any(|name| name.as_str().contains("dead"))
    };
    assert!(!seen.iter().any(dead));
    let (code, _, _) = mortal.dead_letters("redrive", &["--key", "a"]).await;
    assert_eq!(code, 3, "each is put back once");
    let (code, out, _) = mortal.dead_letters("redrive", &["--all"]).await;
    assert_eq!((code, out.as_str()), (0, "1 put back"));
    let (_, out, told) = mortal.dead_letters("list", &[]).await;
    assert_eq!((out.as_str(), told.as_str()), ("", "no dead letters"));
    ended(&mortal.sidecar, &mortal.topic, "done", 4).await;
    assert!(mortal.sidecar.stop().await);
}

#[tokio::test]
async fn a_message_that_is_put_back_is_for_the_group_that_gave_it_up_and_for_no_other() {
    let (topic, grave) = (
        broker::topic("shared-grave", 1),
        broker::topic("shared-dead", 1),
    );
    let (ill, well) = (
        App::by(|seen| match seen.body == "x" {
            true => Answer::status(422),
            false => Answer::ok(),
        })
        .await,
        App::agreeable().await,
    );
    let (one, other) = (broker::unique("one"), broker::unique("other"));
    let rule =
        format!("topic: {topic}, group: {one}, deliver: {{ path: /m }}, dead_letter: {grave}");
    let folder = TempDir::new().expect("a folder");
    let path = file(&folder, &rule);
    let gives_up = subscribed(ill.address, &[rule]).await;
    let takes = subscribed(
        well.address,
        &[format!(
            "topic: {topic}, group: {other}, deliver: {{ path: /m }}"
        )],
    )
    .await;
    broker::write(&topic, &[keyed("a", "x")]);
    ended(&gives_up, &topic, "dead-letter", 1).await;
    calls(&well, 1).await;
    let (code, out, told) = dead_letters("redrive", &path, &["--all"]).await;
    assert_eq!((code, out.trim()), (0, "1 put back"), "{told}");
    ended(&gives_up, &topic, "dead-letter", 2).await;
    ended(&takes, &topic, "skipped", 1).await;
    assert_eq!(well.count(), 1);
    let back = topic::read(&broker::address(), &topic, 2).await;
    assert_eq!(
        back[1].header("wayside-redriven-for").as_deref(),
        Some(one.as_str())
    );
    // It died again after that, and may be put back again.
    let (code, out, _) = dead_letters("list", &path, &[]).await;
    assert_eq!((code, out.lines().count()), (0, 1), "{out}");
    assert!(gives_up.stop().await && takes.stop().await);
}

#[tokio::test]
async fn a_file_without_dead_letters_or_with_several_topics_of_them_says_what_to_do() {
    let folder = TempDir::new().expect("a folder");
    let none = file(&folder, "topic: a");
    let (code, _, told) = dead_letters("list", &none, &[]).await;
    assert_eq!(
        (code, told.trim()),
        (2, "wayside: none of its subscriptions has a `dead_letter`")
    );
    let several = file(
        &folder,
        "topic: a, dead_letter: x }, { topic: b, dead_letter: y",
    );
    let (code, _, told) = dead_letters("list", &several, &[]).await;
    assert_eq!(
        (code, told.trim()),
        (
            2,
            "wayside: it has several topics of dead letters: choose by --topic one of x, y"
        )
    );
    let (code, _, told) = dead_letters("list", &several, &["--topic", "z"]).await;
    assert_eq!(
        (code, told.trim()),
        (
            2,
            "wayside: `z` is none of its topics of dead letters: x, y"
        )
    );
    let (code, _, told) = dead_letters("list", &several, &["--topic", "x"]).await;
    assert_eq!(
        (code, told.trim()),
        (1, "wayside: the broker does not know the topic `x`")
    );
}
