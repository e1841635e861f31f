//! Makes one connection: TCP, TLS where the service has it, then HTTP/1.1 or HTTP/2.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper::rt::{Executor, Read, Write};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use super::pool::Room;
use super::traffic::Counted;
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
/// Calls that are sent before the other side has said how many it takes at a time: more may be refused.
const BEFORE_SETTINGS: usize = 1;
/// How long the other end of an HTTP/2 connection may be silent before its kernel is asked whether it lives, how often it
/// is asked, and for how long nothing may come of that or of bytes that were sent: a peer whose address went to somebody
/// else never says goodbye. TCP asks and not HTTP/2: servers of gRPC take a PING more often than each five minutes for an
/// attack and close the connection, with every silent stream on it (gRPC proposal A8).
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_secs(5);
#[cfg(target_os = "linux")]
const UNHEARD_MAX: Duration = Duration::from_secs(15);

/// What a caller is told to wait where we have run out of files or ports.
const REST: Duration = Duration::from_secs(1);

/// What a connection speaks.
pub(super) enum Sender {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>, Arc<Room>),
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
    /// Nothing of ours is left to connect with, which says nothing about the address.
    Ours(std::io::Error),
    Failed(BoxError),
    Tls(Reason, String),
}

impl From<std::io::Error> for ConnectError {
    fn from(error: std::io::Error) -> Self {
        const OURS: [i32; 4] = [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::EADDRNOTAVAIL,
        ];
        match error.raw_os_error() {
            Some(code) if OURS.contains(&code) => Self::Ours(error),
            _ => Self::Failed(error.into()),
        }
    }
}

impl ConnectError {
    /// Whether it tells something about the address.
    pub(super) fn blames_peer(&self) -> bool {
        !matches!(self, Self::Ours(_))
    }

    /// Says whose connection it was.
    pub(super) fn detailed(self, service: &str, address: SocketAddr) -> Error {
        match self {
            Self::TimedOut => Error::new(
                Kind::Unreachable,
                format!("{service} did not take a connection in time"),
            )
            .because(format!("connect to {address} timed out")),
            Self::Ours(cause) => Error::new(
                Kind::Overloaded,
                format!("this sidecar can open no connection to {service}: {cause}"),
            )
            .after(REST),
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
        if version == Version::Two {
            watch(&stream)?;
        }
        Ok::<_, std::io::Error>(stream)
    };
    let stream = match timeout_at(deadline, connecting).await {
        Err(_) => return Err(ConnectError::TimedOut),
        Ok(Err(error)) => return Err(error.into()),
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

/// Lets the kernel find out that nobody is at the other end any more.
fn watch(stream: &TcpStream) -> std::io::Result<()> {
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(PROBE_EVERY);
    socket.set_tcp_keepalive(&probes)?;
    // Elsewhere, bytes without an acknowledgement are given up after the system's own time.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNHEARD_MAX))?;
    Ok(())
}

/// Speaks HTTP on a socket and leaves the connection's own task on this worker.
pub(super) async fn speak(socket: Counted, version: Version) -> Result<Sender, ConnectError> {
    let failed = |error: hyper::Error| ConnectError::Failed(error.into());
    let io = TokioIo::new(socket);
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
                .initial_max_send_streams(BEFORE_SETTINGS)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(HEAD_MAX as u32)
                .handshake(io)
                .await
                .map_err(failed)?;
            let room = Arc::new(Room::default());
            in_background(telling(connection, Arc::clone(&room)));
            Ok(Sender::Two(sender, room))
        }
    }
}

/// Runs a connection, and tells at each call that is sent how many the other side takes at a time.
async fn telling<T>(
    connection: http2::Connection<T, Body, Background>,
    room: Arc<Room>,
) -> hyper::Result<()>
where
    T: Read + Write + Unpin + Send + 'static,
{
    let mut connection = pin!(connection);
    poll_fn(|cx| {
        let ended = connection.as_mut().poll(cx);
        let streams = connection.current_max_send_streams();
        if streams != BEFORE_SETTINGS {
            room.is(streams);
        }
        ended
    })
    .await
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_kernel_watches_connections_of_http2_and_leaves_others_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        for (version, watched) in [(Version::One, false), (Version::Two, true)] {
            let deadline = Instant::now() + Duration::from_secs(5);
            let Ok(socket) = socket(address, None, version, deadline).await else {
                panic!("the port takes no connection");
            };
            let socket = SockRef::from(socket.tcp());
            assert_eq!(socket.keepalive().expect("it can be asked"), watched);
            let unheard = socket.tcp_user_timeout().expect("it can be asked");
            assert_eq!(unheard, watched.then_some(UNHEARD_MAX));
        }
    }
}
