//! A certificate, its key and the CA that peers must have, read from files and read again when these change.
//!
//! What is read is checked before it is used: the key belongs to the certificate, the chain leads to the CA, and its
//! time has come and is not over. If not, what was there before stays.

use std::io;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use webpki::KeyUsage;

use super::BOTH;
use crate::config::model::TlsFiles;

/// Bytes of one file, at most.
const FILE_MAX: u64 = 1 << 20;

/// One name of `tls:`.
pub struct Identity {
    files: TlsFiles,
    current: ArcSwap<Loaded>,
}

/// What the files held when they were last good.
pub(super) struct Loaded {
    pub(super) server: Arc<ServerConfig>,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) key: Arc<CertifiedKey>,
    digest: [u8; 32],
}

/// Why files are not used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file can not be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: {why}")]
    Content {
        /// Which.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn load(files: &TlsFiles) -> Result<Self, LoadError> {
        let loaded = Loaded::read(files, &Bytes::read(files)?)?;
        Ok(Self {
            files: files.clone(),
            current: ArcSwap::from_pointee(loaded),
        })
    }

    /// The name in the configuration.
    pub fn name(&self) -> &str {
        &self.files.name
    }

    /// Reads the files again. `true`: they have changed and are in force.
    ///
    /// # Errors
    /// They have changed and are not good; what was in force stays.
    pub fn refresh(&self) -> Result<bool, LoadError> {
        let bytes = Bytes::read(&self.files)?;
        if bytes.digest() == self.current.load().digest {
            return Ok(false);
        }
        self.current
            .store(Arc::new(Loaded::read(&self.files, &bytes)?));
        Ok(true)
    }

    pub(super) fn current(&self) -> Arc<Loaded> {
        self.current.load_full()
    }
}

/// The primitives that all of TLS here uses.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

struct Bytes {
    cert: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
}

impl Bytes {
    fn read(files: &TlsFiles) -> Result<Self, LoadError> {
        Ok(Self {
            cert: read(&files.cert)?,
            key: read(&files.key)?,
            ca: read(&files.ca)?,
        })
    }

    fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for part in [&self.cert, &self.key, &self.ca] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let failed = |source| LoadError::File {
        path: path.display().to_string(),
        source,
    };
    let found = std::fs::metadata(path).map_err(failed)?;
    // A pipe in its place would hold the reader, and with it every door, for ever.
    if !found.is_file() {
        return Err(wrong(path, "it is no file"));
    }
    if found.len() > FILE_MAX {
        return Err(wrong(path, "it is over 1 MiB"));
    }
    std::fs::read(path).map_err(failed)
}

fn wrong(path: &Path, why: impl ToString) -> LoadError {
    LoadError::Content {
        path: path.display().to_string(),
        why: why.to_string(),
    }
}

impl Loaded {
    fn read(files: &TlsFiles, bytes: &Bytes) -> Result<Self, LoadError> {
        let provider = provider();
        let chain = certificates(&files.cert, &bytes.cert)?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(&files.ca, &bytes.ca)? {
            roots
                .add(authority)
                .map_err(|error| wrong(&files.ca, error))?;
        }
        let key = PrivateKeyDer::from_pem_slice(&bytes.key)
            .map_err(|_| wrong(&files.key, "it holds no private key in PEM form"))?;
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|error| wrong(&files.key, error))?;
        check_chain(files, &chain, &roots, &provider)?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(|_| {
            let path = files.cert.display();
            wrong(&files.key, format!("the key is not that of {path}"))
        })?;
        let (roots, key) = (Arc::new(roots), Arc::new(key));
        Ok(Self {
            server: server(files, &roots, &key, &provider)?,
            roots,
            key,
            digest: bytes.digest(),
        })
    }
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(path, error))?;
    if found.is_empty() {
        return Err(wrong(path, "it holds no certificate in PEM form"));
    }
    Ok(found)
}

/// Our own certificate must be one that a peer with the same CA would take now: found out here, not in an outage.
fn check_chain(
    files: &TlsFiles,
    chain: &[CertificateDer<'static>],
    roots: &RootCertStore,
    provider: &CryptoProvider,
) -> Result<(), LoadError> {
    let [leaf, intermediates @ ..] = chain else {
        return Err(wrong(&files.cert, "it holds no certificate in PEM form"));
    };
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|error| wrong(&files.cert, error))?;
    let check = |usage| {
        leaf.verify_for_usage(
            provider.signature_verification_algorithms.all,
            &roots.roots,
            intermediates,
            UnixTime::now(),
            usage,
            None,
            None,
        )
        .map(drop)
    };
    // A certificate for one side only is good for what it is used for; the other side refuses it otherwise.
    check(KeyUsage::server_auth())
        .or_else(|_| check(KeyUsage::client_auth()))
        .map_err(|error| {
            let ca = files.ca.display();
            let why = judgement(&error);
            wrong(
                &files.cert,
                format!("a peer with {ca} would refuse it: {why}"),
            )
        })
}

/// What is wrong with a certificate, where the library has but a word of its code.
fn judgement(error: &webpki::Error) -> String {
    match error {
        webpki::Error::CertExpired { .. } => "it has expired".to_owned(),
        webpki::Error::CertNotValidYet { .. } => "it is not valid yet".to_owned(),
        webpki::Error::UnknownIssuer => "no CA there has signed it".to_owned(),
        other => other.to_string(),
    }
}

/// What a door uses: every caller shows a certificate of our CA.
fn server(
    files: &TlsFiles,
    roots: &Arc<RootCertStore>,
    key: &Arc<CertifiedKey>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<ServerConfig>, LoadError> {
    let callers =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
            .build()
            .map_err(|error| wrong(&files.ca, error))?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong(&files.cert, error))?
        .with_client_cert_verifier(callers)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::clone(key))));
    server.alpn_protocols = BOTH.iter().map(|name| name.to_vec()).collect();
    // A resumed session is as good as its first handshake was, however long ago: each connection proves itself anew.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(Arc::new(server))
}
