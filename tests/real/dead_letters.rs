//! Dead letters that are put back by a command that does not always get to its end.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::broker;
use crate::line::Line;
use crate::support::app::{Answer, App};
use crate::support::eventually::eventually;
use crate::support::process::{Process, announce};

const LONG: Duration = Duration::from_secs(120);
const LETTERS: usize = 300;
const KEYS: usize = 10;
/// How often the command is killed.
const KILLS: usize = 5;

#[tokio::test]
async fn a_redrive_that_is_killed_again_and_again_puts_each_letter_back_once_and_in_order() {
    let Some(kafka) = broker().await else { return };
    kafka.make_topic("mortal.dead", 2).await;
    let well = Arc::new(AtomicBool::new(false));
    let app = {
        let well = Arc::clone(&well);
        App::by(move |_| match well.load(Ordering::Relaxed) {
            true => Answer::ok(),
            false => Answer::status(400),
        })
        .await
    };
    let line = Line::steady(kafka, "mortal", &app, "dead_letter: mortal.dead").await;
    for n in 0..LETTERS {
        line.publish(&format!("key-{}", n % KEYS), n).await;
    }
    kafka.wait_for_no_lag("mortal", "mortal", LETTERS).await;
    assert_eq!(app.count(), LETTERS, "a 400 is not tried again");
    app.forget();
    well.store(true, Ordering::Relaxed);

    let file = line.billing.folder().join("wayside.yaml");
    let redrive = |nth: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wayside"));
        command.args(["dead-letters", "redrive", "--all", "--rate", "40"]);
        command.arg(&file).stdin(Stdio::null());
        Process::start(
            &format!("redrive-{nth}"),
            &mut command,
            line.billing.folder(),
        )
    };
    for nth in 0..KILLS {
        kill_some_time_in(redrive(nth), &app).await;
    }
    let left = LETTERS - app.count();
    let mut command = redrive(KILLS);
    let ended = eventually("it ends", LONG, async || command.ended()).await;
    assert!(
        ended.success() || left == 0,
        "{ended}: {}",
        command.stderr()
    );
    eventually("all were put back", LONG, async || {
        (app.count() >= LETTERS).then_some(())
    })
    .await;
    eventually(
        "all is committed, the marks of the transactions too",
        LONG,
        async || {
            let rows = kafka.committed("mortal", "mortal").await;
            let level = rows.values().all(|(current, end)| current == end);
            level.then_some(())
        },
    )
    .await;
    assert_in_order(&app);
    announce(&format!(
        "real: redrive: {LETTERS} letters, killed {KILLS} times: each delivered once, in order; {left} were left to the last"
    ));
    assert_eq!(app.count(), LETTERS);
}

/// A batch is 40 letters: kills the command some time into the one after its first, wherever that is.
async fn kill_some_time_in(mut command: Process, app: &App) {
    let before = app.count();
    eventually("a batch is put back", LONG, async || {
        (app.count() > before || command.ended().is_some()).then_some(())
    })
    .await;
    let later = Instant::now() + Duration::from_millis(fastrand::u64(0..1100));
    eventually("some time passes", LONG, async || {
        (Instant::now() >= later).then_some(())
    })
    .await;
    command.kill();
}

fn assert_in_order(app: &App) {
    let mut came: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for call in app.seen() {
        let body = call.json();
        let of_its_key = came.entry(body["key"].to_string()).or_default();
        of_its_key.push(body["n"].as_u64().expect("a number"));
    }
    for (key, order) in &came {
        assert!(
            order.is_sorted_by(|one, next| one < next),
            "{key}: {order:?}"
        );
    }
}
