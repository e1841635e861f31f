//! Serves one connection: the only place where a server-side HTTP connection is built, with every timeout set.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service as HyperService;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::Gauge;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::Service;

use crate::body::Body;
use crate::lifecycle::Guard;
use crate::service::{Call, Handler, Response};

/// How long a connection may stay silent before a head, and a head may take. Longer than the 30 s for which peers keep
/// idle connections, so that the calling side closes first and no call is lost to a race.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(35);
/// Headers of one request (Envoy's default too).
pub const HEADERS_MAX: usize = 100;
/// After we close, how long a caller that still sends is read, so that it sees our answer and not a reset
/// (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_millis(500);
/// Bytes read while lingering.
const LINGER_BYTES: usize = 16 << 20;

/// A door's settings and what its calls are handed to.
pub struct Door {
    /// `outbound`, `inbound`, `probe` or `admin`.
    pub name: &'static str,
    /// Takes the calls.
    pub handler: Handler,
    /// Connections at a time.
    pub connections_max: usize,
    /// Bytes of a request's head.
    pub head_max: usize,
    /// Open connections.
    pub open: Gauge,
}

impl Door {
    /// Serves a connection to its end. A drain lets the call in flight finish and closes an idle connection.
    pub async fn serve(&self, stream: TcpStream, mut guard: Guard) {
        self.open.increment(1.0);
        let calls = Calls(RefCell::new(self.handler.clone()));
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_headers(HEADERS_MAX)
            // hyper takes no less than 8 KiB.
            .max_buf_size(self.head_max.max(8 << 10))
            .serve_connection(TokioIo::new(stream), calls);
        let ended = {
            let mut draining = pin!(guard.draining());
            let mut told = false;
            std::future::poll_fn(|cx| {
                if !told && draining.as_mut().poll(cx).is_ready() {
                    told = true;
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                }
                connection.poll_without_shutdown(cx)
            })
            .await
        };
        match ended {
            Ok(()) => linger(connection.into_parts().io.into_inner()).await,
            Err(error) => tracing::debug!(door = self.name, %error, "connection ended early"),
        }
        self.open.decrement(1.0);
    }
}

/// Closes our half, then reads what still comes for a while.
async fn linger(mut stream: TcpStream) {
    let read_on = async {
        stream.shutdown().await?;
        let mut scrap = [0; 4096];
        let mut left = LINGER_BYTES;
        loop {
            let read = stream.read(&mut scrap).await?;
            left = left.saturating_sub(read);
            if read == 0 || left == 0 {
                return Ok::<(), std::io::Error>(());
            }
        }
    };
    // Neither a timeout nor an error matters any more: the call is over.
    let _over = timeout(LINGER, read_on).await;
}

/// Calls of one connection come one after the other, so the cell is never borrowed twice.
struct Calls(RefCell<Handler>);

impl HyperService<http::Request<Incoming>> for Calls {
    type Response = Response;
    type Error = Infallible;
    type Future = <Handler as Service<Box<Call>>>::Future;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        self.0.borrow_mut().call(Box::new(Call::new(request.map(Body::incoming))))
    }
}
