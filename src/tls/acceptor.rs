//! The handshake at a door: bounded in time by a limit of its own, in number by the door's connections.
//!
//! There is no queue for handshakes: callers that open a connection and say nothing would fill it, and everybody else
//! would wait behind them.

use std::collections::HashMap;
use std::sync::Arc;

use metrics::Counter;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::identity::Identity;
use super::names::{Peer, Reason};
use super::socket::Socket;
use super::{BOTH, HANDSHAKE_TIMEOUT};

/// The TLS side of one door.
pub struct Acceptor {
    identity: Arc<Identity>,
    failures: HashMap<Reason, Counter>,
}

/// A connection that was taken.
pub struct Accepted {
    /// What is inside.
    pub socket: Socket,
    /// Who calls.
    pub peer: Arc<Peer>,
    /// The caller asked for HTTP/2.
    pub http2: bool,
}

impl Acceptor {
    /// Prepares a door; `failure` resolves its counter for each reason.
    pub fn new(identity: Arc<Identity>, failure: impl Fn(Reason) -> Counter) -> Self {
        Self {
            identity,
            failures: Reason::ALL
                .into_iter()
                .map(|reason| (reason, failure(reason)))
                .collect(),
        }
    }

    /// Makes the handshake.
    ///
    /// # Errors
    /// There is no connection, which is counted and logged. The stream comes back if the caller was told why: closed at
    /// once, with something of the caller unread, it would end in a reset that overtakes what was told.
    pub async fn accept(&self, stream: TcpStream) -> Result<Accepted, Option<TcpStream>> {
        let from = stream.peer_addr().ok();
        let shaking = TlsAcceptor::from(Arc::clone(&self.identity.current().server))
            .accept(stream)
            .into_fallible();
        let (reason, error, told) = match timeout(HANDSHAKE_TIMEOUT, shaking).await {
            Ok(Ok(stream)) => {
                let (_, session) = stream.get_ref();
                let certificate = session.peer_certificates().and_then(|chain| chain.first());
                let peer = certificate
                    .map(Peer::of)
                    .unwrap_or(Peer { names: Vec::new() });
                let http2 = session.alpn_protocol() == Some(BOTH[0]);
                return Ok(Accepted {
                    peer: Arc::new(peer),
                    http2,
                    socket: Socket::Tls(Box::new(stream.into())),
                });
            }
            Ok(Err((error, stream))) => (Reason::of(&error), error.to_string(), Some(stream)),
            Err(_) => (Reason::TimedOut, String::new(), None),
        };
        if let Some(counter) = self.failures.get(&reason) {
            counter.increment(1);
        }
        tracing::warn!(
            tls = self.identity.name(),
            from = from.map(tracing::field::display),
            reason = reason.word(),
            error,
            "a caller's handshake failed"
        );
        Err(told)
    }
}
