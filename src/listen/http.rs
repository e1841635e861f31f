//! Serves one connection: the only place where server-side HTTP connections are built, with every timeout set.
//!
//! A door speaks HTTP/1.1, HTTP/1.0 and HTTP/2 on one port: inside TLS the caller has said which, in the clear its first
//! bytes do.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use http::header::UPGRADE;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service as HyperService;
use hyper_util::rt::TokioIo;
use metrics::Gauge;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};
use tower::Service;

use super::head_timer::HeadTimer;
use super::patient::Patient;
use super::{http2, tunnel};
use crate::body::Body;
use crate::lifecycle::Guard;
use crate::pattern::forward::Crossing;
use crate::service::{Call, Handler, Leash, Response};
use crate::tls::{Acceptor, Peer, Socket};

/// How long a connection may stay silent before a head, and a head may take. Longer than the 30 s for which peers keep
/// idle connections, so that the calling side closes first and no call is lost to a race.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(35);
/// How long a caller may take not one byte of its answer, before its connection is closed. Sooner if the call's own time
/// is up.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// What a drain leaves a connection to send the rest of its first head.
const HALF_HEAD: Duration = Duration::from_secs(1);
/// After we close, how long a caller that still sends is read, so that it sees our answer and not a reset
/// (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(5);
/// How long a caller that is read after our close may send nothing.
const LINGER_QUIET: Duration = Duration::from_millis(500);

/// A door's settings and what its calls are handed to.
pub struct Door {
    /// `outbound`, `inbound`, `probe` or `admin`.
    pub name: &'static str,
    /// Takes the calls.
    pub handler: Handler,
    /// Present: callers show their certificates, and nothing is taken in the clear.
    pub tls: Option<Acceptor>,
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
    pub async fn serve(&self, stream: TcpStream, guard: Guard) {
        self.open.increment(1.0);
        self.shake(stream, guard).await;
        self.open.decrement(1.0);
    }

    /// Finds out who calls and what it speaks.
    async fn shake(&self, stream: TcpStream, guard: Guard) {
        let (socket, peer, said) = match &self.tls {
            None => (Socket::Plain(stream), None, None),
            Some(tls) => match tls.accept(stream).await {
                Ok(accepted) => (accepted.socket, Some(accepted.peer), Some(accepted.http2)),
                Err(None) => return,
                Err(Some(told)) => return linger(Socket::Plain(told)).await,
            },
        };
        let seen = Arc::new(Seen::default());
        let leash = Leash::new();
        let mut io = Patient::new(socket, Arc::clone(&leash));
        let http2 = match said {
            Some(said) => said,
            // A caller that says nothing is ended as one whose head does not come.
            None => match timeout(self.head_timeout, first_bytes(&mut io, guard.clone())).await {
                Ok(Some(http2)) => http2,
                _ => return linger(io.into_inner()).await,
            },
        };
        let calls = Calls {
            handler: RefCell::new(self.handler.clone()),
            seen: Arc::clone(&seen),
            peer,
            // Many calls share an HTTP/2 connection, which must not end with the first of them.
            leash: (!http2).then_some(leash),
        };
        if http2 {
            http2::serve(self, io, calls, guard).await;
        } else {
            self.serve_http1(io, calls, guard).await;
        }
    }

    async fn serve_http1(&self, io: Patient, calls: Calls, mut guard: Guard) {
        let seen = Arc::clone(&calls.seen);
        // `max_headers` is left at its default of 100: set, it costs an allocation a call.
        let (mut head_timer, timers) = HeadTimer::new(self.head_timeout);
        let mut connection = http1::Builder::new()
            .timer(timers)
            .header_read_timeout(self.head_timeout)
            .max_header_size(self.head_max)
            // hyper takes no less than 8 KiB.
            .max_buf_size(self.head_max.max(8 << 10))
            .serve_connection(TokioIo::new(io), calls);
        let ended = {
            let watch = guard.clone();
            let mut draining = pin!(guard.draining());
            let mut patience: Option<Pin<Box<Sleep>>> = None;
            let mut registered = false;
            std::future::poll_fn(|cx| {
                // Once is enough to be woken, since a task has one waker; after that a look at a flag, at each poll.
                let look = !std::mem::replace(&mut registered, true) || watch.is_draining();
                if look && patience.is_none() && draining.as_mut().poll(cx).is_ready() {
                    Pin::new(&mut connection).graceful_shutdown();
                    patience = Some(Box::pin(sleep(HALF_HEAD)));
                }
                head_timer.look(cx);
                let ended = connection.poll_without_shutdown(cx);
                // hyper waits for the rest of a first head that began; the whole drain would wait with it.
                match &mut patience {
                    Some(patience) if ended.is_pending() && !seen.called() => {
                        patience.as_mut().poll(cx).map(Ok)
                    }
                    _ => ended,
                }
            })
            .await
        };
        let parts = connection.into_parts();
        let socket = parts.io.into_inner().into_inner();
        if let Err(error) = &ended {
            tracing::debug!(door = self.name, %error, "connection ended early");
        }
        let far = seen.crossing().and_then(|crossing| crossing.take());
        match far {
            Some(far) if ended.is_ok() => tunnel::join(socket, parts.read_buf, far, guard).await,
            _ if ended.is_err() && seen.old.load(Relaxed) => {
                // To an HTTP/1.0 caller an orderly end is the body's end: only a reset says that it broke off.
                let _gone = socket.tcp().set_zero_linger();
            }
            _ => linger(socket).await,
        }
    }
}

/// Whether a caller begins as HTTP/2 does; `None` if it is gone, or says nothing until a drain begins.
async fn first_bytes(io: &mut Patient, mut guard: Guard) -> Option<bool> {
    tokio::select! {
        // What is there already goes first: its call was sent before the drain.
        biased;
        http2 = io.speaks_http2() => http2.ok(),
        _end = guard.draining() => None,
    }
}

/// Closes our half, then reads what still comes for a while. However much that is: a caller in the middle of a large body
/// may look for an answer only when all of it is sent.
async fn linger(mut socket: Socket) {
    let read_on = async {
        socket.shutdown().await?;
        // Not in the future, which each open connection has the room of.
        let mut scrap = vec![0; 16 << 10];
        while timeout(LINGER_QUIET, socket.read(&mut scrap)).await?? > 0 {}
        Ok::<(), std::io::Error>(())
    };
    // Neither a timeout nor an error matters any more: the call is over.
    let _over = timeout(LINGER, read_on).await;
}

/// Hands the calls of one connection on.
pub(super) struct Calls {
    /// Borrowed only while a call is handed over, so never twice at a time.
    handler: RefCell<Handler>,
    pub(super) seen: Arc<Seen>,
    peer: Option<Arc<Peer>>,
    leash: Option<Arc<Leash>>,
}

/// What a connection has seen of its calls.
#[derive(Default)]
pub(super) struct Seen {
    /// How many there were.
    count: AtomicU64,
    /// The last one was older than HTTP/1.1.
    old: AtomicBool,
    /// Where the far end is left if the last one asked to switch to another protocol.
    crossing: Mutex<Option<Crossing>>,
}

impl Seen {
    pub(super) fn called(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    fn crossing(&self) -> Option<Crossing> {
        self.lock().take()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Crossing>> {
        self.crossing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HyperService<http::Request<Incoming>> for Calls {
    type Response = Response;
    type Error = Infallible;
    type Future = <Handler as Service<Box<Call>>>::Future;

    fn call(&self, mut request: http::Request<Incoming>) -> Self::Future {
        self.seen.count.fetch_add(1, Relaxed);
        let old = request.version() < http::Version::HTTP_11;
        self.seen.old.store(old, Relaxed);
        // One look at each name: cheaper than to look up one that is hardly ever there.
        let switches = request.method() == Method::CONNECT
            || request.headers().keys().any(|name| *name == UPGRADE);
        if switches && request.version() == http::Version::HTTP_11 {
            let crossing = Crossing::default();
            request.extensions_mut().insert(crossing.clone());
            *self.seen.lock() = Some(crossing);
        }
        let mut call = Box::new(Call::new(request.map(Body::incoming)));
        call.peer.clone_from(&self.peer);
        if let Some(leash) = &self.leash {
            leash.loosen();
            call.leash = Some(Arc::clone(leash));
        }
        self.handler.borrow_mut().call(call)
    }
}
