//! From ready to gone: nothing in flight is lost, nothing new is taken, and `drain` bounds it all.

use std::process::Command;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use crate::forward::{in_front_of, yaml};
use crate::support::app::{Answer, App};
use crate::support::client::{get, post};
use crate::support::eventually::eventually;
use crate::support::process::Process;
use crate::support::raw::{RawApp, Wire, field, status};
use crate::support::sidecar::Sidecar;

const SOON: Duration = Duration::from_secs(5);

fn slow(wait: u64) -> Answer {
    Answer::ok()
        .body("whole")
        .after(Duration::from_millis(wait))
}

#[tokio::test]
async fn a_drain_lets_calls_finish_and_then_takes_no_more() {
    let app = App::by(|_| slow(500)).await;
    let rest = format!(
        "app: {}\ninbound: {{ listen: 127.0.0.1:0 }}\ndrain: 10s",
        app.address
    );
    let sidecar = Sidecar::start(&yaml(&[app.address.to_string()], "", &rest)).await;
    let doors = [sidecar.outbound(), sidecar.inbound()];
    let calls = doors
        .map(|door| Handle::current().spawn(async move { get("billing", "/").send(door).await }));
    eventually("the app has both calls", SOON, async || {
        (app.count() == 2).then_some(())
    })
    .await;
    let started = Instant::now();
    assert!(sidecar.stop().await, "everything ended in time");
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
    for call in calls {
        let reply = call.await.expect("no panic");
        assert_eq!(
            (reply.status.as_u16(), &reply.body[..]),
            (200, &b"whole"[..])
        );
    }
    for door in doors {
        TcpStream::connect(door)
            .await
            .expect_err("the door is closed");
    }
}

#[tokio::test]
async fn a_drain_ends_in_its_time_whatever_hangs() {
    let app = App::by(|_| Answer::hang()).await;
    let sidecar = Sidecar::start(&yaml(&[app.address.to_string()], "", "drain: 1500ms")).await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller.send("GET / HTTP/1.1\r\nhost: billing\r\n\r\n").await;
    eventually("the app has the call", SOON, async || {
        (app.count() == 1).then_some(())
    })
    .await;
    let started = Instant::now();
    assert!(!sidecar.stop().await, "a call was cut");
    let took = started.elapsed();
    assert!(
        took >= Duration::from_millis(1400) && took < Duration::from_millis(2500),
        "{took:?}"
    );
    assert!(caller.ends_within(SOON).await);
}

#[tokio::test]
async fn a_tunnel_serves_on_while_draining_and_ends_in_order_before_the_drain_does() {
    let app = RawApp::start(async |mut wire: Wire, _| {
        wire.head().await;
        let switched =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
        wire.send(switched).await;
        while let Some(line) = wire.try_until(b"\n").await {
            wire.send(line).await;
        }
    })
    .await;
    let rest = format!(
        "app: {}\ninbound: {{ listen: 127.0.0.1:0 }}\ndrain: 3s",
        app.address
    );
    let sidecar = Sidecar::start(&yaml(&[app.address.to_string()], "", &rest)).await;
    let mut wires = Vec::new();
    for door in [sidecar.outbound(), sidecar.inbound()] {
        let mut wire = Wire::connect(door).await;
        wire.send("GET / HTTP/1.1\r\nhost: billing\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")
            .await;
        assert_eq!(status(&wire.head().await), 101);
        wires.push(wire);
    }
    let stopping = Handle::current().spawn(sidecar.stop_saying());
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(1500) {
        for wire in &mut wires {
            wire.send("still there?\n").await;
            assert_eq!(wire.bytes(13).await, b"still there?\n");
        }
        tokio::task::yield_now().await;
    }
    for wire in &mut wires {
        assert!(wire.ends_in_order().await, "no reset");
    }
    let left = stopping.await.expect("no panic");
    assert!(left.is_empty(), "not in its time: {left:?}");
}

#[tokio::test]
async fn the_outbound_door_stays_open_while_the_app_still_calls() {
    let app = App::agreeable().await;
    let sidecar = Sidecar::start(&yaml(&[app.address.to_string()], "", "drain: 10s")).await;
    let door = sidecar.outbound();
    let stopping = Handle::current().spawn(sidecar.stop());
    let mut caller = Wire::connect(door).await;
    let started = Instant::now();
    // Far less than the quiet second lies between two calls: the door must not close between them.
    while started.elapsed() < Duration::from_secs(2) {
        caller
            .send("POST / HTTP/1.1\r\nhost: billing\r\ncontent-length: 1\r\n\r\nx")
            .await;
        assert_eq!(status(&caller.head().await), 200);
        assert!(
            caller.is_silent_for(Duration::from_millis(250)).await,
            "closed while in use"
        );
    }
    assert!(
        timeout(SOON, stopping)
            .await
            .expect("it ends when all is quiet")
            .expect("no panic")
    );
    assert!(caller.ends_within(SOON).await);
}

#[tokio::test]
async fn readiness_goes_first_and_the_side_doors_last() {
    let app = App::by(|_| slow(700)).await;
    let rest = "drain: 10s\nprobe: { listen: 127.0.0.1:0 }";
    let sidecar = Sidecar::start(&yaml(&[app.address.to_string()], "", rest)).await;
    let (door, probe) = (
        sidecar.outbound(),
        sidecar.addresses().probe.expect("a probe door"),
    );
    assert_eq!(get("x", "/ready").send(probe).await.status, 200);
    let call =
        Handle::current().spawn(async move { post("billing", "/").body("x").send(door).await });
    eventually("the app has the call", SOON, async || {
        (app.count() == 1).then_some(())
    })
    .await;
    let stopping = Handle::current().spawn(sidecar.stop());
    eventually("it is no longer ready", SOON, async || {
        (get("x", "/ready").send(probe).await.status == 503).then_some(())
    })
    .await;
    assert_eq!(get("x", "/live").send(probe).await.status, 200, "but alive");
    assert!(!call.is_finished(), "while a call is still in flight");
    assert_eq!(call.await.expect("no panic").body, "whole");
    assert!(stopping.await.expect("no panic"));
    TcpStream::connect(probe)
        .await
        .expect_err("the door is closed");
}

#[tokio::test]
async fn a_drain_asked_for_at_the_admin_door_takes_readiness_and_goes_on_serving() {
    let app = App::agreeable().await;
    let yaml = yaml(
        &[app.address.to_string()],
        "",
        &format!("app: {}", app.address),
    );
    let sidecar = Sidecar::start(&yaml).await;
    let admin = sidecar.addresses().admin;
    let state = post("127.0.0.1", "/drain").send(admin).await.json();
    assert_eq!(
        (&state["draining"], &state["app"]),
        (&true.into(), &"up".into()),
        "{state}"
    );
    assert_eq!(get("127.0.0.1", "/ready").send(admin).await.status, 503);
    assert_eq!(
        get("billing", "/").send(sidecar.outbound()).await.status,
        200
    );
    drop(app);
    eventually("the app is gone", SOON, async || {
        (get("127.0.0.1", "/drain").send(admin).await.json()["app"] == "gone").then_some(())
    })
    .await;
}

#[tokio::test]
async fn idle_and_silent_connections_hold_up_no_drain() {
    let app = App::agreeable().await;
    let sidecar = in_front_of(app.address, "").await;
    let mut idle = Wire::connect(sidecar.outbound()).await;
    idle.send("GET / HTTP/1.1\r\nhost: billing\r\n\r\n").await;
    assert_eq!(status(&idle.head().await), 200);
    let mut silent = Wire::connect(sidecar.outbound()).await;
    let mut half = Wire::connect(sidecar.outbound()).await;
    half.send("GET / HTTP/1.1\r\nho").await;
    let started = Instant::now();
    assert!(sidecar.stop().await);
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    for wire in [&mut idle, &mut silent, &mut half] {
        assert!(wire.ends_within(SOON).await);
    }
}

#[tokio::test]
async fn an_answer_given_while_draining_says_that_its_connection_closes() {
    let app = App::by(|_| slow(300)).await;
    let rest = format!("app: {}\ninbound: {{ listen: 127.0.0.1:0 }}", app.address);
    let sidecar = Sidecar::start(&yaml(&[app.address.to_string()], "", &rest)).await;
    let mut caller = Wire::connect(sidecar.inbound()).await;
    caller.send("GET / HTTP/1.1\r\nhost: billing\r\n\r\n").await;
    eventually("the app has the call", SOON, async || {
        (app.count() == 1).then_some(())
    })
    .await;
    let stopping = Handle::current().spawn(sidecar.stop());
    let (head, body) = caller.message().await;
    assert_eq!(
        (field(&head, "connection"), &body[..]),
        (Some("close"), &b"whole"[..])
    );
    assert!(stopping.await.expect("no panic"));
}

/// Processes, each with its command line. What is left of them is killed, should the test fail.
struct Children(Vec<(String, Vec<u8>)>);

impl Children {
    fn alive(&self) -> impl Iterator<Item = &str> {
        let alive = |(id, command): &&(String, Vec<u8>)| command_line(id) == *command;
        self.0.iter().filter(alive).map(|(id, _)| &**id)
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for id in self.alive() {
            drop(Command::new("kill").args(["-9", id]).status());
        }
    }
}

/// The children that a process has now; Linux alone tells of them.
fn children(parent: u32) -> Vec<(String, Vec<u8>)> {
    let list = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let list = list.unwrap_or_default();
    let ids = list.split_whitespace().map(str::to_owned);
    ids.map(|id| (id.clone(), command_line(&id))).collect()
}

/// Empty once the process has ended.
fn command_line(id: &str) -> Vec<u8> {
    std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default()
}

#[tokio::test]
async fn a_demo_that_is_killed_leaves_no_sidecar_behind() {
    if !cfg!(target_os = "linux") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayside"));
    // The demo's own folder is in there too, since nobody else would remove it.
    command.arg("demo").env("TMPDIR", folder.path());
    let mut demo = Process::start("demo", &mut command, folder.path());
    let some = async || {
        let children = children(demo.pid());
        let runs =
            |(_, command): &(String, Vec<u8>)| command.windows(5).any(|word| word == b"\0run\0");
        (children.iter().filter(|one| runs(one)).count() >= 3).then(|| Children(children))
    };
    let children = eventually("the demo has sidecars", 4 * SOON, some).await;
    demo.kill();
    let none = async || (children.alive().count() == 0).then_some(());
    eventually("they end with it", SOON, none).await;
}
