//! Makes one connection: TCP, then HTTP/1.1.

use std::net::SocketAddr;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::body::Body;
use crate::error::{BoxError, Error, Kind, Retry};

/// Bytes of an answer's head (hyper's buffer; RFC 9112 names no limit).
const HEAD_MAX: usize = 64 << 10;

/// Why there is no connection.
pub(super) enum ConnectError {
    TimedOut,
    Failed(BoxError),
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
        }
        .retry(Retry::NeverSent)
    }
}

/// Connects within `deadline` and leaves the connection's own task on this worker.
pub(super) async fn connect(
    address: SocketAddr,
    deadline: Instant,
) -> Result<SendRequest<Body>, ConnectError> {
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
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ConnectError::Failed(error.into()))?;
    crate::lifecycle::spawn(
        &tokio::runtime::Handle::current(),
        "connection",
        async move {
            if let Err(error) = connection.await {
                tracing::debug!(%address, %error, "connection to a peer ended early");
            }
        },
    );
    Ok(sender)
}
