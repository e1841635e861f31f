//! The handshake with a service.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use metrics::Counter;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::identity::{Identity, Loaded, provider};
use super::names::Reason;
use super::socket::Socket;
use super::verify::Verifier;
use super::{BOTH, HANDSHAKE_TIMEOUT};
use crate::config::model::PeerName;

/// The TLS side of the way to one service.
pub struct Connector {
    identity: Arc<Identity>,
    expected: PeerName,
    /// What is asked for in the handshake (SNI).
    asked: ServerName<'static>,
    made: Mutex<Option<Made>>,
    failures: HashMap<Reason, Counter>,
}

/// Client settings for HTTP/1.1 and for HTTP/2, made of one state of the files.
#[derive(Clone)]
struct Made {
    of: Arc<Loaded>,
    one: Arc<ClientConfig>,
    two: Arc<ClientConfig>,
}

impl Connector {
    /// Prepares the way to a service whose certificate must say `expected`; `service` is asked for where that is no DNS
    /// name. `failure` resolves its counter for each reason.
    pub fn new(
        identity: Arc<Identity>,
        expected: PeerName,
        service: &str,
        failure: impl Fn(Reason) -> Counter,
    ) -> Self {
        let named = match &expected {
            PeerName::Dns(name) => ServerName::try_from(name.clone()),
            PeerName::Uri(_) => ServerName::try_from(service.to_owned()),
        };
        let nobody = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
        Self {
            identity,
            expected,
            asked: named.unwrap_or(nobody),
            made: Mutex::default(),
            failures: Reason::ALL
                .into_iter()
                .map(|reason| (reason, failure(reason)))
                .collect(),
        }
    }

    /// Makes the handshake, at the latest by `deadline`.
    ///
    /// # Errors
    /// Why there is no connection; it is counted. Nothing of a call was sent.
    pub async fn connect(
        &self,
        stream: TcpStream,
        http2: bool,
        deadline: Instant,
    ) -> Result<Socket, (Reason, String)> {
        let config = self
            .config(http2)
            .map_err(|error| (Reason::Protocol, error))?;
        let shaking = TlsConnector::from(config).connect(self.asked.clone(), stream);
        let by = deadline.min(Instant::now() + HANDSHAKE_TIMEOUT);
        let failed = match timeout_at(by, shaking).await {
            Ok(Ok(stream)) => match stream.get_ref().1.alpn_protocol() {
                // No answer to ALPN is an HTTP/1.1 server; for HTTP/2 it has to agree (RFC 9113 section 3.2).
                other if http2 && other != Some(BOTH[0]) => {
                    (Reason::Protocol, "it does not offer h2".to_owned())
                }
                _ => return Ok(Socket::Tls(Box::new(stream.into()))),
            },
            Ok(Err(error)) => (Reason::of(&error), error.to_string()),
            Err(_) => (Reason::TimedOut, "the handshake took too long".to_owned()),
        };
        self.count(failed.0);
        Err(failed)
    }

    /// Notes that the service refused a handshake which had seemed to be through: in TLS 1.3 it looks at our certificate
    /// only when we may send already.
    pub fn refused(&self, reason: Reason) {
        self.count(reason);
    }

    fn count(&self, reason: Reason) {
        if let Some(counter) = self.failures.get(&reason) {
            counter.increment(1);
        }
    }

    /// The settings for the files as they are now.
    fn config(&self, http2: bool) -> Result<Arc<ClientConfig>, String> {
        let loaded = self.identity.current();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = match made.take().filter(|made| Arc::ptr_eq(&made.of, &loaded)) {
            Some(made) => made,
            None => self.make(loaded).map_err(|error| error.to_string())?,
        };
        let fresh = made.insert(fresh);
        Ok(Arc::clone(if http2 { &fresh.two } else { &fresh.one }))
    }

    fn make(&self, of: Arc<Loaded>) -> Result<Made, rustls::Error> {
        let provider = provider();
        let verifier = Verifier {
            roots: Arc::clone(&of.roots),
            provider: Arc::clone(&provider),
            expected: self.expected.clone(),
        };
        let key = SingleCertAndKey::from(rustls::sign::CertifiedKey::clone(&of.key));
        let mut one = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(key));
        one.resumption = Resumption::disabled();
        let mut two = one.clone();
        one.alpn_protocols = vec![BOTH[1].to_vec()];
        two.alpn_protocols = vec![BOTH[0].to_vec()];
        Ok(Made {
            of,
            one: Arc::new(one),
            two: Arc::new(two),
        })
    }
}
