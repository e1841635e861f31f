//! Serves one connection: the only place where a server-side HTTP connection is built, with every timeout set.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service as HyperService;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::Gauge;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};
use tower::Service;

use super::patient::Patient;
use crate::body::Body;
use crate::lifecycle::Guard;
use crate::service::{Call, Handler, Response};

/// How long a connection may stay silent before a head, and a head may take. Longer than the 30 s for which peers keep
/// idle connections, so that the calling side closes first and no call is lost to a race.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(35);
/// How long a caller may take not one byte of its answer, before its connection is closed.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// What a drain leaves a connection to send the rest of its first head.
const HALF_HEAD: Duration = Duration::from_secs(1);
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
    /// Bytes of a request's head; above it the answer is a 431, as it is above hyper's 100 headers.
    pub head_max: usize,
    /// How long a head may take, and the silence before it.
    pub head_timeout: Duration,
    /// Open connections.
    pub open: Gauge,
}

impl Door {
    /// Serves a connection to its end. A drain lets the call in flight finish and closes an idle connection.
    pub async fn serve(&self, stream: TcpStream, mut guard: Guard) {
        self.open.increment(1.0);
        let seen = Arc::new(Seen::default());
        let calls = Calls {
            handler: RefCell::new(self.handler.clone()),
            seen: Arc::clone(&seen),
        };
        // `max_headers` is left at its default of 100: set, it costs an allocation a call.
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.head_timeout)
            .max_header_size(self.head_max)
            // hyper takes no less than 8 KiB.
            .max_buf_size(self.head_max.max(8 << 10))
            .serve_connection(TokioIo::new(Patient::new(stream)), calls);
        let ended = {
            let mut draining = pin!(guard.draining());
            let mut patience: Option<Pin<Box<Sleep>>> = None;
            std::future::poll_fn(|cx| {
                if patience.is_none() && draining.as_mut().poll(cx).is_ready() {
                    Pin::new(&mut connection).graceful_shutdown();
                    patience = Some(Box::pin(sleep(HALF_HEAD)));
                }
                let ended = connection.poll_without_shutdown(cx);
                // hyper waits for the rest of a first head that began; the whole drain would wait with it.
                match &mut patience {
                    Some(patience) if ended.is_pending() && !seen.called.load(Relaxed) => {
                        patience.as_mut().poll(cx).map(Ok)
                    }
                    _ => ended,
                }
            })
            .await
        };
        let stream = connection.into_parts().io.into_inner().into_inner();
        if let Err(error) = &ended {
            tracing::debug!(door = self.name, %error, "connection ended early");
        }
        if ended.is_err() && seen.old.load(Relaxed) {
            // To an HTTP/1.0 caller an orderly end is the body's end: only a reset says that it broke off.
            let _gone = stream.set_zero_linger();
        } else {
            linger(stream).await;
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
struct Calls {
    handler: RefCell<Handler>,
    seen: Arc<Seen>,
}

/// What a connection has seen of its calls.
#[derive(Default)]
struct Seen {
    /// There was one.
    called: AtomicBool,
    /// The last one was older than HTTP/1.1.
    old: AtomicBool,
}

impl HyperService<http::Request<Incoming>> for Calls {
    type Response = Response;
    type Error = Infallible;
    type Future = <Handler as Service<Box<Call>>>::Future;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        self.seen.called.store(true, Relaxed);
        self.seen
            .old
            .store(request.version() < http::Version::HTTP_11, Relaxed);
        self.handler
            .borrow_mut()
            .call(Box::new(Call::new(request.map(Body::incoming))))
    }
}
