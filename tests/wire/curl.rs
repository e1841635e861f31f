//! curl: HTTP/1.0, HTTP/1.1 and HTTP/2, as a proxy's client and as a reader of endless events.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::sidecar::Sidecar;
use crate::support::app::{Answer, App};
use crate::support::eventually::eventually;
use crate::support::process::Process;
use crate::support::raw::RawApp;
use crate::tools;

const SOON: Duration = Duration::from_secs(20);

/// A sidecar whose app calls `billing`.
async fn in_front_of(address: SocketAddr) -> Sidecar {
    Sidecar::run(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - {{ name: billing, match: {{ host: billing }}, forward: {{ to: billing, timeout: none }} }}
services: {{ billing: {{ addresses: [\"{address}\"] }} }}
"
    ))
    .await
}

/// A sidecar with an app.
async fn beside(app: SocketAddr) -> Sidecar {
    Sidecar::run(&format!(
        "service: billing\napp: {app}\ninbound: {{ listen: 127.0.0.1:0 }}\n"
    ))
    .await
}

fn inbound(sidecar: &Sidecar) -> SocketAddr {
    sidecar.inbound.expect("the file has an inbound door")
}

/// curl without its own configuration and without what the environment says of proxies.
fn curl(arguments: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args(["-q", "--silent", "--show-error", "--max-time", "20"]);
    for name in [
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "no_proxy",
        "NO_PROXY",
    ] {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

/// The status, the version of the answer, and the body.
async fn asked(mut command: Command) -> (String, String) {
    command.args(["--write-out", "\n%{http_code} %{http_version}"]);
    let output = tools::run(command, Duration::from_secs(30)).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, outcome) = text.rsplit_once('\n').expect("curl writes a last line");
    (outcome.to_owned(), body.to_owned())
}

#[tokio::test]
async fn every_version_and_a_proxys_form_reach_the_app_as_the_same_call() {
    if tools::curl().await.is_none() {
        return;
    }
    let app = App::by(|call| {
        let body = format!("{} {} {}", call.method, call.target, call.body.len());
        Answer::ok().body(body)
    })
    .await;
    let billing = beside(app.address).await;
    let orders = in_front_of(inbound(&billing)).await;
    let door = orders.door();
    let url = format!("http://{door}/a%2Fb?c=d");
    let (proxied, proxy) = ("http://billing/a%2Fb?c=d", format!("http://{door}"));
    // Above a window of HTTP/2 and above what a socket takes at once.
    let folder = TempDir::with_prefix("wayside-curl-").expect("a folder can be made");
    let large = folder.path().join("large");
    std::fs::write(&large, vec![b'x'; 3 << 20]).expect("the folder can be written");
    let data = format!("@{}", large.display());
    for (version, way, expected) in [
        ("--http1.0", vec!["-H", "host: billing", &url], "1"),
        ("--http1.1", vec!["-H", "host: billing", &url], "1.1"),
        (
            "--http2-prior-knowledge",
            vec!["-H", "host: billing", &url],
            "2",
        ),
        ("--http1.1", vec!["--proxy", &proxy, proxied], "1.1"),
        ("--http1.0", vec!["--proxy", &proxy, proxied], "1"),
        // An offer of h2c by upgrade is passed over, as a server may.
        ("--http2", vec!["-H", "host: billing", &url], "1.1"),
    ] {
        let get = [&[version][..], &way].concat();
        let (outcome, body) = asked(curl(&get)).await;
        assert_eq!(outcome, format!("200 {expected}"), "{get:?}: {body}");
        assert_eq!(body, "GET /a%2Fb?c=d 0", "{get:?}");
        let post = [&[version, "--data-binary", &data][..], &way].concat();
        let (outcome, body) = asked(curl(&post)).await;
        assert_eq!(outcome, format!("200 {expected}"), "{post:?}: {body}");
        assert_eq!(body, format!("POST /a%2Fb?c=d {}", 3 << 20), "{post:?}");
        let chunked = [&["-H", "transfer-encoding: chunked"][..], &post].concat();
        if expected == "1.1" {
            let (_, body) = asked(curl(&chunked)).await;
            assert_eq!(body, format!("POST /a%2Fb?c=d {}", 3 << 20), "{chunked:?}");
        }
    }
    let hosts: Vec<_> = app
        .seen()
        .iter()
        .map(|call| call.header("host").map(str::to_owned))
        .collect();
    assert!(
        hosts.iter().all(|host| host.as_deref() == Some("billing")),
        "{hosts:?}"
    );
}

#[tokio::test]
async fn a_head_and_a_refusal_come_back_over_http2() {
    if tools::curl().await.is_none() {
        return;
    }
    let app = App::agreeable().await;
    let billing = beside(app.address).await;
    let orders = in_front_of(inbound(&billing)).await;
    let url = format!("http://{}/", orders.door());
    let head = curl(&[
        "--http2-prior-knowledge",
        "--head",
        "-H",
        "host: billing",
        &url,
    ]);
    let (outcome, _) = asked(head).await;
    assert_eq!(outcome, "200 2");
    let unknown = curl(&["--http2-prior-knowledge", "-H", "host: nobody", &url]);
    let (outcome, body) = asked(unknown).await;
    assert_eq!(outcome, "404 2", "{body}");
}

#[tokio::test]
async fn the_environments_proxy_is_a_door_too() {
    if tools::curl().await.is_none() {
        return;
    }
    let app = App::by(|call| Answer::ok().body(call.target.clone())).await;
    let billing = beside(app.address).await;
    let orders = in_front_of(inbound(&billing)).await;
    let mut command = curl(&["http://billing/from/the/environment"]);
    command.env("http_proxy", format!("http://{}", orders.door()));
    let (outcome, body) = asked(command).await;
    assert_eq!((&*outcome, &*body), ("200 1.1", "/from/the/environment"));
}

#[tokio::test]
async fn endless_events_arrive_one_by_one_and_end_at_the_app_when_the_reader_leaves() {
    if tools::curl().await.is_none() {
        return;
    }
    let folder = TempDir::with_prefix("wayside-curl-").expect("a folder can be made");
    let (ask, asks) = tokio::sync::watch::channel(0_usize);
    let (gone, mut left) = tokio::sync::mpsc::channel(4);
    let app = RawApp::start(move |mut wire, _| {
        let (mut asks, gone) = (asks.clone(), gone.clone());
        async move {
            if wire.try_head().await.is_none() {
                return;
            }
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            wire.send(head).await;
            let mut sent = 0;
            loop {
                while sent < *asks.borrow_and_update() {
                    sent += 1;
                    let event = format!("data: {sent}\n\n");
                    wire.send(format!("{:x}\r\n{event}\r\n", event.len())).await;
                }
                tokio::select! {
                    _ = asks.changed() => {}
                    _end = wire.try_until(b"never") => break,
                }
            }
            let _told = gone.send(()).await;
        }
    })
    .await;
    let billing = beside(app.address).await;
    let orders = in_front_of(inbound(&billing)).await;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        ask.send_replace(0);
        let url = format!("http://{}/events", orders.door());
        let mut command = curl(&["-N", version, "-H", "host: billing", &url]);
        let mut reader = Process::start("curl", &mut command, folder.path());
        for count in 1..=20 {
            ask.send_replace(count);
            let last = format!("data: {count}\n\n");
            // The next is sent only when this one is there: nothing on the way may wait for more.
            eventually(&last, SOON, async || {
                reader.stdout().ends_with(&last).then_some(())
            })
            .await;
        }
        assert!(reader.ended().is_none(), "it reads on: {}", reader.stderr());
        reader.kill();
        let told = tokio::time::timeout(SOON, left.recv()).await;
        assert!(told.is_ok(), "{version}: the app's connection ends too");
    }
}
