//! The handshake at a door: bounded in time and in number, since each costs more than a hundred calls.

use std::collections::HashMap;
use std::sync::Arc;

use metrics::Counter;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::identity::Identity;
use super::names::{Peer, Reason};
use super::socket::Socket;
use super::{BOTH, HANDSHAKE_TIMEOUT};

/// Handshakes at the same time at one door; more wait, within the same limit of time.
const HANDSHAKES_MAX: usize = 64;

/// The TLS side of one door.
pub struct Acceptor {
    identity: Arc<Identity>,
    places: Semaphore,
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
            places: Semaphore::new(HANDSHAKES_MAX),
            failures: Reason::ALL
                .into_iter()
                .map(|reason| (reason, failure(reason)))
                .collect(),
        }
    }

    /// Makes the handshake.
    ///
    /// # Errors
    /// Why there is no connection; it is counted and logged.
    pub async fn accept(&self, stream: TcpStream) -> Result<Accepted, Reason> {
        let from = stream.peer_addr().ok();
        let shaking = async {
            let _place = self.places.acquire().await;
            TlsAcceptor::from(Arc::clone(&self.identity.current().server))
                .accept(stream)
                .await
        };
        let (reason, error) = match timeout(HANDSHAKE_TIMEOUT, shaking).await {
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
            Ok(Err(error)) => (Reason::of(&error), error.to_string()),
            Err(_) => (Reason::TimedOut, String::new()),
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
        Err(reason)
    }
}
