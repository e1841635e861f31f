//! A reload replaces routes and services while calls go on; what it can not replace it refuses.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use tempfile::TempDir;

use crate::forward::{in_front_of, yaml};
use crate::support::app::{Answer, App};
use crate::support::client::get;
use crate::support::eventually::eventually;
use crate::support::process::Process;
use crate::support::sidecar::Sidecar;

const RELOADS: &str = "wayside_config_reloads_total";

#[tokio::test]
async fn routes_are_swapped_under_load_without_a_failed_call() {
    let apps = [
        App::by(|_| Answer::ok().body("a")).await,
        App::by(|_| Answer::ok().body("b")).await,
    ];
    let yamls = apps
        .each_ref()
        .map(|app| yaml(&[app.address.to_string()], "", ""));
    let sidecar = Sidecar::start(&yamls[0]).await;
    let (door, stop) = (sidecar.outbound(), Arc::new(AtomicBool::new(false)));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let stop = Arc::clone(&stop);
            tokio::runtime::Handle::current().spawn(async move {
                let mut statuses = Vec::new();
                while !stop.load(SeqCst) {
                    statuses.push(get("billing", "/").send(door).await.status.as_u16());
                }
                statuses
            })
        })
        .collect();
    for round in 1..=20 {
        sidecar
            .reload(&yamls[round % 2])
            .await
            .expect("routes and services can be swapped");
        let wanted = ["a", "b"][round % 2];
        assert_eq!(
            get("billing", "/").send(door).await.body,
            wanted,
            "the very next call"
        );
    }
    stop.store(true, SeqCst);
    for caller in callers {
        let statuses = caller.await.expect("no caller panics");
        assert!(
            statuses.len() > 2 && statuses.iter().all(|status| *status == 200),
            "{statuses:?}"
        );
    }
    assert_eq!(sidecar.metric(RELOADS, &["result=\"ok\""]), 20.0);
}

#[tokio::test]
async fn a_call_in_flight_ends_as_it_began() {
    let slow = App::by(|_| Answer::ok().body("old").after(Duration::from_millis(300))).await;
    let sidecar = Arc::new(in_front_of(slow.address, "").await);
    let calling = {
        let door = sidecar.outbound();
        tokio::runtime::Handle::current().spawn(async move { get("billing", "/").send(door).await })
    };
    eventually("the app has the call", Duration::from_secs(5), async || {
        (slow.count() == 1).then_some(())
    })
    .await;
    let new = yaml(&["127.0.0.1:1".to_owned()], "", "").replace("host: billing", "host: rates");
    sidecar
        .reload(&new)
        .await
        .expect("routes and services can be swapped");
    assert_eq!(
        get("billing", "/").send(sidecar.outbound()).await.status,
        404,
        "the new routes are in force"
    );
    assert_eq!(calling.await.expect("no panic").body, "old");
}

#[tokio::test]
async fn a_service_that_did_not_change_keeps_its_connections() {
    let app = App::agreeable().await;
    let addresses = [app.address.to_string()];
    let sidecar = Sidecar::start(&yaml(&addresses, "", "")).await;
    for timeout in ["1s", "2s", "3s"] {
        assert_eq!(
            get("billing", "/").send(sidecar.outbound()).await.status,
            200
        );
        let new = yaml(&addresses, &format!(", timeout: {timeout}"), "");
        sidecar.reload(&new).await.expect("routes can be swapped");
    }
    assert_eq!(app.connections(), 1);
}

#[tokio::test]
async fn a_reload_gives_no_route_a_second_burst_and_counts_the_calls_under_way() {
    let app = App::agreeable().await;
    let limited = yaml(&[app.address.to_string()], ", rate: 3/h", "");
    let sidecar = Sidecar::start(&limited).await;
    let passed = async || {
        let mut passed = 0;
        for _ in 0..5 {
            passed += usize::from(get("billing", "/").send(sidecar.outbound()).await.status == 200);
        }
        passed
    };
    assert_eq!(passed().await, 3);
    let other =
        "routes:\n    - { name: other, match: { host: other }, forward: { to: billing } }\n";
    let more = limited.replacen("routes:\n", other, 1);
    assert_ne!(more, limited);
    sidecar.reload(&more).await.expect("a route may be added");
    assert_eq!(passed().await, 0);
    let slow = App::by(|_| Answer::ok().after(Duration::from_millis(400))).await;
    let limit = |queue: u32| {
        let yaml = yaml(&[slow.address.to_string()], "", "");
        yaml.replace(
            "] }\n",
            &format!("], limit: {{ in_flight: 2, queue: {queue}, wait: 10ms }} }}\n"),
        )
    };
    sidecar.reload(&limit(0)).await.expect("a limit may be set");
    let door = sidecar.outbound();
    let two = [(); 2].map(|()| {
        tokio::runtime::Handle::current().spawn(async move { get("billing", "/").send(door).await })
    });
    eventually("two are under way", Duration::from_secs(5), async || {
        (slow.count() == 2).then_some(())
    })
    .await;
    sidecar.reload(&limit(1)).await.expect("a limit may change");
    assert_eq!(get("billing", "/").send(door).await.status, 503);
    for one in two {
        assert_eq!(one.await.expect("it does not panic").status, 200);
    }
}

#[tokio::test]
async fn a_change_that_needs_a_restart_is_refused_and_named() {
    let app = App::agreeable().await;
    let addresses = [app.address.to_string()];
    let old = yaml(&addresses, "", "");
    let sidecar = Sidecar::start(&old).await;
    for (rest, section) in [
        ("limits: { in_flight: 7 }", "limits"),
        ("drain: 3s", "drain"),
        ("probe: { listen: 127.0.0.1:0 }", "probe"),
    ] {
        let error = sidecar
            .reload(&yaml(&addresses, ", timeout: 1ms", rest))
            .await
            .expect_err("it needs a restart");
        assert!(
            error.contains(section) && error.contains("restart"),
            "{error}"
        );
    }
    assert_eq!(
        get("billing", "/").send(sidecar.outbound()).await.status,
        200,
        "nothing of it is in force"
    );
    sidecar.reload(&old).await.expect("nothing changed");
    assert_eq!(sidecar.metric(RELOADS, &["result=\"refused\""]), 3.0);
    assert_eq!(sidecar.metric(RELOADS, &["result=\"unchanged\""]), 1.0);
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_a_mended_one_is_taken() {
    let app = App::by(|_| Answer::ok().body("here")).await;
    let folder = TempDir::with_prefix("wayside-reload-").expect("a folder can be made");
    let file = folder.path().join("wayside.yaml");
    let good = format!(
        "{}admin: {{ listen: 127.0.0.1:0 }}\n",
        yaml(&[app.address.to_string()], "", "")
    );
    std::fs::write(&file, &good).expect("the folder can be written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayside"));
    let mut process = Process::start("wayside", command.arg("run").arg(&file), folder.path());
    let ready = eventually("it is ready", Duration::from_secs(20), async || {
        serde_json::from_str::<serde_json::Value>(process.stdout().lines().next()?).ok()
    })
    .await;
    let door = ready["outbound"]
        .as_str()
        .and_then(|door| door.parse().ok())
        .expect("an address");
    std::fs::write(&file, good.replace("forward:", "forwrad:")).expect("the folder can be written");
    let refused = async || process.stderr().contains("forwrad").then_some(());
    eventually("the mistake is told", Duration::from_secs(10), refused).await;
    assert_eq!(get("billing", "/").send(door).await.body, "here");
    std::fs::write(&file, good.replace("host: billing", "host: rates"))
        .expect("the folder can be written");
    eventually(
        "the new routes are in force",
        Duration::from_secs(10),
        async || (get("rates", "/").send(door).await.status == 200).then_some(()),
    )
    .await;
    assert_eq!(get("billing", "/").send(door).await.status, 404);
    assert!(process.terminate(Duration::from_secs(10)).await.success());
}
