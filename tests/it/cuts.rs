//! Answers cut at random offsets: not one may look whole. `WAYSIDE_CUTS` says how many.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::task::JoinSet;

use crate::forward::in_front_of;
use crate::support::client::get;
use crate::support::http2::{Http2, whole};
use crate::support::raw::{RawApp, Wire};

/// How the app says where its answer ends.
#[derive(Clone, Copy)]
enum Framing {
    Length,
    Chunked,
}

const BODY: usize = 10_000;

fn answer(framing: Framing) -> Vec<u8> {
    let body = vec![b'x'; BODY];
    let mut bytes = match framing {
        Framing::Length => format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n"),
        Framing::Chunked => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(),
    }
    .into_bytes();
    match framing {
        Framing::Length => bytes.extend(body),
        Framing::Chunked => {
            for chunk in body.chunks(1_000) {
                bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
        }
    }
    bytes
}

/// An app whose answer ends, in order or with a reset, after a random number of its bytes.
async fn cutting(framing: Framing) -> RawApp {
    let whole = answer(framing);
    RawApp::start(move |mut wire: Wire, _| {
        let whole = whole.clone();
        async move {
            if wire.try_head().await.is_none() {
                return;
            }
            let cut = fastrand::usize(1..whole.len());
            wire.try_send(&whole[..cut]).await;
            if fastrand::bool() {
                wire.reset();
            }
        }
    })
    .await
}

fn cuts() -> usize {
    let wanted = std::env::var("WAYSIDE_CUTS").ok();
    wanted.and_then(|count| count.parse().ok()).unwrap_or(400)
}

#[tokio::test]
async fn no_answer_that_was_cut_looks_whole() {
    let each = cuts() / 4;
    for framing in [Framing::Length, Framing::Chunked] {
        let app = cutting(framing).await;
        let route = ", retry: { attempts: 1 }, timeout: 5s";
        let sidecar = in_front_of(app.address, route).await;
        let mut calls = JoinSet::new();
        for _ in 0..8 {
            let outbound = sidecar.outbound();
            calls.spawn(async move {
                let mut complete = 0;
                for _ in 0..each / 8 + 1 {
                    let reply = get("billing", "/").try_send(outbound).await;
                    complete += usize::from(reply.is_ok_and(|reply| reply.status == 200));
                }
                complete
            });
        }
        assert_eq!(
            calls.join_all().await.iter().sum::<usize>(),
            0,
            "over HTTP/1.1"
        );
        let mut complete = 0;
        let mut caller = Http2::connect(sidecar.outbound()).await;
        for _ in 0..each {
            let request = Request::get("http://billing/").body(Full::<Bytes>::default());
            if let Ok(reply) = caller.begin(request.expect("a request")).await
                && reply.status() == 200
            {
                complete += usize::from(whole(reply.into_body()).await.is_ok());
            }
        }
        assert_eq!(complete, 0, "over HTTP/2");
        assert!(sidecar.metric("wayside_answers_cut_total", &[]) > 0.0);
    }
}
