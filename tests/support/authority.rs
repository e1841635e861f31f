//! A certificate authority of the test's own, and peers that use its papers as no sidecar of ours would.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, ServerConfig, SignatureScheme,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::raw::RawApp;

const LONGEST: Duration = Duration::from_secs(60);

/// Signs certificates.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What one peer has, all in PEM form.
#[derive(Debug, Clone)]
pub(crate) struct Papers {
    /// Its certificate.
    pub(crate) cert: String,
    /// The certificate's key.
    pub(crate) key: String,
    /// Whom it believes.
    pub(crate) ca: String,
}

impl Authority {
    /// Founds one that nobody else knows.
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, key());
        Self {
            issuer: issuer.expect("the parameters are legal"),
        }
    }

    /// Issues papers for these names: URIs where there is `://`, DNS names else.
    pub(crate) fn issue(&self, names: &[&str]) -> Papers {
        self.sign(params(names))
    }

    /// Issues papers that were good for a year, long ago.
    pub(crate) fn issue_expired(&self, names: &[&str]) -> Papers {
        let mut params = params(names);
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Papers {
        let key = key();
        let cert = params.signed_by(&key, &self.issuer);
        Papers {
            cert: cert.expect("the parameters are legal").pem(),
            key: key.serialize_pem(),
            ca: self.issuer.pem(),
        }
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("the machine has randomness")
}

fn params(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    let name = |name: &&str| {
        let text = (*name).try_into().expect("the name is ASCII");
        match name.contains("://") {
            true => SanType::URI(text),
            false => SanType::DnsName(text),
        }
    };
    params.subject_alt_names = names.iter().map(name).collect();
    params
}

impl Papers {
    /// Writes `tls.crt`, `tls.key` and `ca.crt`, one after the other as a careless tool would.
    pub(crate) fn write(&self, folder: &Path) {
        let files = [
            ("ca.crt", &self.ca),
            ("tls.crt", &self.cert),
            ("tls.key", &self.key),
        ];
        for (name, text) in files {
            fs::write(folder.join(name), text).expect("the folder can be written");
        }
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(self.cert.as_bytes()).expect("a certificate")]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("a key")
    }
}

/// Calls a TLS door as a client that believes everybody and shows these papers, or none; gives what came back.
///
/// # Errors
/// How the connection ended, if not in order.
pub(crate) async fn call(door: SocketAddr, papers: Option<&Papers>) -> Result<String, String> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let config = match papers {
        Some(papers) => config
            .with_client_auth_cert(papers.chain(), papers.key())
            .expect("the key is the certificate's"),
        None => config.with_no_client_auth(),
    };
    let exchange = async {
        let stream = TcpStream::connect(door).await?;
        let name = ServerName::try_from("anybody").expect("a name");
        let connector = TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(name, stream).await?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let ended = timeout(LONGEST, exchange).await;
    ended
        .expect("the door answers or ends")
        .map_err(|error| error.to_string())
}

/// A TLS server with these papers that asks nobody for a certificate and answers every head with a 200.
pub(crate) async fn server(papers: &Papers) -> RawApp {
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_no_client_auth()
        .with_single_cert(papers.chain(), papers.key())
        .expect("the key is the certificate's");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    RawApp::start(move |wire, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(wire.into_stream()).await else {
                return;
            };
            let mut scrap = [0; 4096];
            while stream.read(&mut scrap).await.is_ok_and(|read| read > 0) {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Believes everybody.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
