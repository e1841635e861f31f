//! Services that speak HTTP/2, gRPC among them: what they refuse, say goodbye to, or break off.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::Full;

use crate::forward::in_front_of;
use crate::mesh::service;
use crate::support::app::App;
use crate::support::client::post;
use crate::support::http2::Http2;
use crate::support::raw::{RawApp, Wire, status};

/// A SETTINGS frame without any, and a GOAWAY with last stream 0: nothing was processed (RFC 9113 sections 6.5 and 6.8).
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const GOODBYE: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Begins a connection as a server does, up to the caller's first frame.
async fn greet(wire: &mut Wire) {
    wire.try_until(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    wire.send(SETTINGS).await;
    wire.bytes(9).await;
}

/// A gRPC service that says UNAVAILABLE `times` times in an answer without messages, then answers.
async fn unavailable(times: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("bound");
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    tokio::runtime::Handle::current().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            let service = service_fn(move |_| {
                let code = if count.fetch_add(1, SeqCst) < times {
                    "14"
                } else {
                    "0"
                };
                let answer = http::Response::builder()
                    .header("content-type", "application/grpc")
                    .header("grpc-status", code)
                    .body(Full::<Bytes>::default());
                async move { answer }
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::runtime::Handle::current().spawn(connection);
        }
    });
    (address, calls)
}

fn grpc(timeout: &str) -> Request<Full<Bytes>> {
    let request = Request::post("http://billing/pkg.Service/Method")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout);
    request.body(Full::default()).expect("a request")
}

#[tokio::test]
async fn a_grpc_call_that_is_unavailable_is_tried_once_more_where_the_route_says_that_it_may() {
    for (route, expected, tries) in [(", idempotent: true", "0", 2), ("", "14", 1)] {
        let (address, calls) = unavailable(1).await;
        let route = format!("{route}, retry: {{ backoff: 1ms..2ms }}");
        let sidecar = in_front_of(address, &route).await;
        let mut caller = Http2::connect(sidecar.outbound()).await;
        let reply = caller.send(grpc("2S")).await;
        let code = |headers: &HeaderMap| headers.get("grpc-status").cloned();
        let said = code(&reply.headers).or_else(|| code(&reply.trailers));
        assert_eq!(said.expect("a status"), expected);
        assert_eq!(calls.load(SeqCst), tries);
    }
}

#[tokio::test]
async fn a_grpc_caller_is_refused_in_its_own_words() {
    let sidecar = in_front_of(App::nowhere(), "").await;
    let mut caller = Http2::connect(sidecar.outbound()).await;
    let reply = caller.send(grpc("2S")).await;
    assert_eq!((reply.status.as_u16(), reply.body.len()), (200, 0));
    assert_eq!(reply.headers["content-type"], "application/grpc");
    assert_eq!(reply.headers["grpc-status"], "14");
    let message = reply.headers["grpc-message"].to_str().expect("ascii");
    assert!(message.starts_with("destination-unreachable"), "{message}");
    assert!(reply.headers.contains_key("proxy-status"));
}

#[tokio::test]
async fn an_http2_stream_that_was_never_looked_at_goes_elsewhere_whatever_its_method() {
    // Says goodbye with last stream 0 to whatever comes: nothing was processed.
    let refusing = RawApp::start(|mut wire, _| async move {
        greet(&mut wire).await;
        wire.send(GOODBYE).await;
        wire.rest().await;
    })
    .await;
    let (good, calls) = unavailable(0).await;
    let sidecar = service(&[refusing.address, good], "protocol: h2, ejection: off").await;
    for _ in 0..10 {
        let reply = post("billing", "/")
            .body("x")
            .send(sidecar.outbound())
            .await;
        assert_eq!(reply.status, 200, "{:?}", reply.body);
    }
    assert_eq!(calls.load(SeqCst), 10);
}

#[tokio::test]
async fn a_goodbye_that_crosses_a_call_costs_it_nothing_where_there_is_one_address() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
    let (good, calls) = unavailable(0).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("bound");
    let runtime = tokio::runtime::Handle::current();
    let serving = runtime.clone();
    runtime.spawn(async move {
        for at in 0.. {
            let Ok((mut stream, _)) = listener.accept().await else {
                return;
            };
            serving.spawn(async move {
                if at % 2 == 1 {
                    let mut to = tokio::net::TcpStream::connect(good)
                        .await
                        .expect("it listens");
                    drop(copy_bidirectional(&mut stream, &mut to).await);
                    return;
                }
                // Settings, and a goodbye with last stream 0.
                let mut begin = [0; 24];
                stream.read_exact(&mut begin).await.expect("a preface");
                let frames = [
                    &[0, 0, 0, 4, 0, 0, 0, 0, 0][..],
                    &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
                ];
                stream
                    .write_all(&frames.concat())
                    .await
                    .expect("it is taken");
                drop(stream.read_to_end(&mut Vec::new()).await);
            });
        }
    });
    let sidecar = service(&[address], "protocol: h2").await;
    let reply = post("billing", "/")
        .body("x")
        .send(sidecar.outbound())
        .await;
    assert_eq!(reply.status, 200, "{:?}", reply.body);
    assert_eq!(calls.load(SeqCst), 1);
    assert_eq!(
        sidecar.metric("wayside_retries_total", &["reason=\"never-sent\""]),
        1.0
    );
}

#[tokio::test]
async fn an_http2_answer_that_is_broken_from_the_start_is_a_502() {
    let broken = RawApp::start(|mut wire, _| async move {
        greet(&mut wire).await;
        // :status 200, content-length 10, then five bytes and the end of the stream.
        let head = [0x88, 0x0f, 0x0d, 2, b'1', b'0'];
        let mut frames = vec![0, 0, head.len() as u8, 1, 4, 0, 0, 0, 1];
        frames.extend_from_slice(&head);
        frames.extend_from_slice(&[0, 0, 5, 0, 1, 0, 0, 0, 1]);
        frames.extend_from_slice(b"short");
        wire.send(&frames[..]).await;
        wire.rest().await;
    })
    .await;
    let sidecar = service(&[broken.address], "protocol: h2, ejection: off").await;
    let call = post("billing", "/").body("x");
    let reply = call.try_send(sidecar.outbound()).await.expect("an answer");
    assert_eq!(reply.status, 502);
}

#[tokio::test]
async fn trailers_that_belong_to_a_connection_break_no_message_over_http2() {
    let (service_address, _) = unavailable(0).await;
    let sidecar = service(&[service_address], "protocol: h2").await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller
        .send("POST / HTTP/1.1\r\nhost: billing\r\nwayside-timeout: 5000\r\ntrailer: connection, x-sum\r\n\
               transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nconnection: close\r\nx-sum: 1\r\n\r\n")
        .await;
    assert_eq!(status(&caller.head().await), 200);
    let app = RawApp::saying(
        "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\
         transfer-encoding: x\r\nconnection: close\r\nx-sum: 7\r\n\r\n",
    )
    .await;
    let sidecar = in_front_of(app.address, "").await;
    let mut caller = Http2::connect(sidecar.outbound()).await;
    let call = Request::get("http://billing/").body(Full::default());
    let reply = caller.send(call.expect("a request")).await;
    assert_eq!((reply.status.as_u16(), &reply.body[..]), (200, &b"ok"[..]));
    assert_eq!(reply.trailers.len(), 1);
    assert_eq!(reply.trailers["x-sum"], "7");
}
