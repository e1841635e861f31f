//! What is sent again, or in another version of HTTP, is sent whole.

use std::time::Duration;

use crate::forward::forwarding;
use crate::support::app::App;
use crate::support::eventually::eventually;
use crate::support::raw::{RawApp, Wire, exchange, status};
use crate::support::sidecar::Sidecar;

#[tokio::test]
async fn a_body_that_outgrows_its_replay_during_a_backoff_arrives_whole_or_not_at_all() {
    let (seen, mut bodies) = tokio::sync::mpsc::channel(4);
    let app = RawApp::start(move |mut wire: Wire, nth| {
        let seen = seen.clone();
        async move {
            wire.head().await;
            if nth == 0 {
                wire.send("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")
                    .await;
                wire.rest().await;
            } else if let Some(body) = wire.try_until(b"\r\n0\r\n\r\n").await {
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await;
                seen.send(body).await.expect("the test listens");
            }
        }
    })
    .await;
    let route = ", retry: { attempts: 2, backoff: 400ms..800ms }";
    let sidecar = forwarding(&[app.address.to_string()], route).await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller
        .send("PUT / HTTP/1.1\r\nhost: billing\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    for letter in b'a'..=b'z' {
        let block = String::from_utf8(vec![letter; 16 << 10]).expect("ascii");
        caller.send(format!("4000\r\n{block}\r\n")).await;
        if letter == b'a' {
            eventually(
                "the first answer came",
                Duration::from_secs(5),
                async || (app.connections() == 1).then_some(()),
            )
            .await;
        }
    }
    caller.send("0\r\n\r\n").await;
    match status(&caller.head().await) {
        200 => {
            let body = bodies.recv().await.expect("a body came");
            for letter in 'a'..='z' {
                assert_eq!(body.matches(letter).count(), 16 << 10, "{letter}");
            }
        }
        refused => assert_eq!(refused, 503),
    }
}

#[tokio::test]
async fn a_call_without_host_is_sent_on_with_one() {
    let app = App::agreeable().await;
    let sidecar = Sidecar::start(&format!(
        "
service: orders
outbound: {{ listen: 127.0.0.1:0, routes: [{{ name: all, forward: {{ to: billing }} }}] }}
services: {{ billing: {{ addresses: ['{}'] }} }}
",
        app.address
    ))
    .await;
    let answer = exchange(sidecar.outbound(), "GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(status(&answer), 200);
    assert_eq!(app.seen()[0].header("host"), Some("billing"));
}
