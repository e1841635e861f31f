//! Makes one connection: TCP, TLS where the service has it, then HTTP/1.1 or HTTP/2.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use super::traffic::{Counted, Traffic};
use crate::body::Body;
use crate::error::{BoxError, Error, Kind, Retry};
use crate::lifecycle;
use crate::tls::{Connector, Reason, Socket};

/// Bytes of an answer's head (hyper's buffer; RFC 9112 names no limit).
const HEAD_MAX: usize = 64 << 10;
/// HTTP/2 flow control, in bytes. The connection's window is that of many streams together. Set by us: h2's budget for
/// small frames follows the window, and the smallest one closes healthy connections.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// How long an HTTP/2 connection may be silent before it is asked whether it lives, and how long it may take to say so:
/// a peer whose address went to somebody else never says goodbye.
const PING_AFTER: Duration = Duration::from_secs(10);
const PONG_WITHIN: Duration = Duration::from_secs(5);

/// What a connection speaks.
pub(super) enum Sender {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

/// Which of them to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
}

/// Why there is no connection.
pub(super) enum ConnectError {
    TimedOut,
    Failed(BoxError),
    Tls(Reason, String),
}

impl ConnectError {
    /// Says whose connection it was.
    pub(super) fn detailed(self, service: &str, address: SocketAddr) -> Error {
        match self {
            Self::TimedOut => Error::new(
                Kind::Unreachable,
                format!("{service} did not take a connection in time"),
            )
            .because(format!("connect to {address} timed out")),
            Self::Failed(cause) => Error::new(
                Kind::Unreachable,
                format!("{service} does not take connections"),
            )
            .because(format!("connect to {address}: {cause}")),
            Self::Tls(reason, cause) => Error::new(
                Kind::TlsFailed,
                format!("the handshake with {service} failed: {reason}"),
            )
            .because(format!("TLS with {address}: {cause}")),
        }
        .retry(Retry::NeverSent)
    }
}

/// Connects within `deadline`, as far as bytes go.
pub(super) async fn socket(
    address: SocketAddr,
    tls: Option<&Connector>,
    version: Version,
    deadline: Instant,
) -> Result<Socket, ConnectError> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>(stream)
    };
    let stream = match timeout_at(deadline, connecting).await {
        Err(_) => return Err(ConnectError::TimedOut),
        Ok(Err(error)) => return Err(ConnectError::Failed(error.into())),
        Ok(Ok(stream)) => stream,
    };
    match tls {
        None => Ok(Socket::Plain(stream)),
        Some(tls) => tls
            .connect(stream, version == Version::Two, deadline)
            .await
            .map_err(|(reason, cause)| ConnectError::Tls(reason, cause)),
    }
}

/// Speaks HTTP on a socket and leaves the connection's own task on this worker.
pub(super) async fn speak(
    socket: Socket,
    version: Version,
    traffic: Arc<Traffic>,
) -> Result<Sender, ConnectError> {
    let failed = |error: hyper::Error| ConnectError::Failed(error.into());
    let io = TokioIo::new(Counted::new(socket, traffic));
    match version {
        Version::One => {
            let (sender, connection) = http1::Builder::new()
                .max_buf_size(HEAD_MAX)
                .handshake(io)
                .await
                .map_err(failed)?;
            // With upgrades, for WebSockets; it costs other calls nothing.
            in_background(connection.with_upgrades());
            Ok(Sender::One(sender))
        }
        Version::Two => {
            let (sender, connection) = http2::Builder::new(Background)
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(HEAD_MAX as u32)
                .keep_alive_interval(PING_AFTER)
                .keep_alive_timeout(PONG_WITHIN)
                .keep_alive_while_idle(true)
                .handshake(io)
                .await
                .map_err(failed)?;
            in_background(connection);
            Ok(Sender::Two(sender))
        }
    }
}

fn in_background<F>(connection: F)
where
    F: Future<Output = hyper::Result<()>> + Send + 'static,
{
    lifecycle::spawn(&Handle::current(), "connection", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a peer ended early");
        }
    });
}

/// Runs what hyper splits off an HTTP/2 connection, on this worker.
#[derive(Clone)]
struct Background;

impl<F> Executor<F> for Background
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        lifecycle::spawn(&Handle::current(), "stream", future);
    }
}
