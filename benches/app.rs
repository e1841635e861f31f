//! The app that `benches/delivery` delivers to: `app LISTEN DELAY [POISON]`, with LISTEN as `127.0.0.1:PORT` and DELAY in
//! milliseconds.
//!
//! It answers each POST with 200 after DELAY, but one whose body contains POISON with 500. `GET /count` tells how many it
//! answered with 200 and how many with 500, as `done failed`. Everything else is a 404, which Dapr takes for an app that
//! has no wishes.

#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    missing_docs,
    reason = "a program that is measured with, and ends if it can not start"
)]

use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::time::sleep;

const BODY_MAX: usize = 1024 * 1024;

struct App {
    delay: Duration,
    poison: Option<String>,
    done: AtomicU64,
    failed: AtomicU64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (listen, delay, poison) = match &arguments[..] {
        [listen, delay] => (listen, delay, None),
        [listen, delay, poison] => (listen, delay, Some(poison.clone())),
        _ => {
            eprintln!("usage: app LISTEN DELAY [POISON]; see benches/delivery");
            return ExitCode::from(2);
        }
    };
    let app = Arc::new(App {
        delay: Duration::from_millis(delay.parse().unwrap()),
        poison,
        done: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    });
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve(listen, app))
}

async fn serve(listen: &str, app: Arc<App>) -> ExitCode {
    let listener = TcpListener::bind(listen).await.unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let app = Arc::clone(&app);
        let service = service_fn(move |request| {
            let app = Arc::clone(&app);
            async move { Ok::<_, Infallible>(app.answer(request).await) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        Handle::current().spawn(connection);
    }
    ExitCode::FAILURE
}

impl App {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() == "/count" {
            let (done, failed) = (&self.done, &self.failed);
            let text = format!(
                "{} {}\n",
                done.load(Ordering::Relaxed),
                failed.load(Ordering::Relaxed)
            );
            return Response::new(Full::from(text));
        }
        if request.method() != Method::POST {
            return status(StatusCode::NOT_FOUND);
        }
        let (mut request, mut body) = (request.into_body(), Vec::new());
        while let Some(frame) = request.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) if body.len() + data.len() <= BODY_MAX => {
                    body.extend_from_slice(&data)
                }
                Ok(Err(_trailers)) => {}
                _ => return status(StatusCode::BAD_REQUEST),
            }
        }
        if !self.delay.is_zero() {
            sleep(self.delay).await;
        }
        let ill = self.poison.as_ref().is_some_and(|poison| {
            let mut places = body.windows(poison.len());
            places.any(|place| place == poison.as_bytes())
        });
        if ill {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return status(StatusCode::INTERNAL_SERVER_ERROR);
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        status(StatusCode::OK)
    }
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
