//! What a certificate calls its owner, and why a handshake failed.

use std::fmt;

use rustls::pki_types::CertificateDer;
use rustls::{AlertDescription, CertificateError, Error as TlsError};

/// Names of one certificate that are kept; more are ignored.
const NAMES_MAX: usize = 256;

/// The other side of a connection, as its verified certificate calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its URI names (SPIFFE IDs) first, then its DNS names.
    pub names: Vec<String>,
}

impl Peer {
    /// Reads the names of a certificate that was verified before.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        let names = match webpki::EndEntityCert::try_from(certificate) {
            Ok(certificate) => certificate
                .valid_uri_names()
                .map(str::to_owned)
                // DNS names have no case; rules are written without.
                .chain(certificate.valid_dns_names().map(str::to_ascii_lowercase))
                .take(NAMES_MAX)
                .collect(),
            Err(_) => Vec::new(),
        };
        Self { names }
    }

    /// The name for logs: the first one.
    pub fn name(&self) -> &str {
        self.names.first().map_or("nameless", String::as_str)
    }
}

/// Why a handshake failed: a word for logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The other side showed no certificate.
    NoCertificate,
    /// Its certificate is not signed by our CA.
    UnknownCa,
    /// Its certificate, or ours in its eyes, is out of date.
    Expired,
    /// Its certificate is good, but is another service's.
    WrongName,
    /// It refuses our certificate.
    Refused,
    /// It does not speak TLS 1.3.
    Protocol,
    /// It did not finish in time.
    TimedOut,
    /// The connection broke.
    Broken,
}

impl Reason {
    /// Every reason, for metrics.
    pub const ALL: [Self; 8] = [
        Self::NoCertificate,
        Self::UnknownCa,
        Self::Expired,
        Self::WrongName,
        Self::Refused,
        Self::Protocol,
        Self::TimedOut,
        Self::Broken,
    ];

    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::NoCertificate => "no-certificate",
            Self::UnknownCa => "unknown-ca",
            Self::Expired => "expired",
            Self::WrongName => "wrong-name",
            Self::Refused => "refused",
            Self::Protocol => "protocol",
            Self::TimedOut => "timed-out",
            Self::Broken => "broken",
        }
    }

    /// Sorts what a handshake ended in.
    pub(super) fn of(error: &std::io::Error) -> Self {
        let inner = error.get_ref();
        match inner.and_then(|inner| inner.downcast_ref::<TlsError>()) {
            Some(error) => Self::of_tls(error),
            None => Self::Broken,
        }
    }

    /// What the other side's alert says of our certificate, if `error` is one: it refused us, and came to nothing that
    /// was sent behind the handshake (RFC 8446 sections 4.4.2 and 6.2).
    pub fn refusal(error: &std::io::Error) -> Option<Self> {
        let error = error.get_ref()?.downcast_ref::<TlsError>()?;
        let TlsError::AlertReceived(alert) = error else {
            return None;
        };
        matches!(
            alert,
            AlertDescription::HandshakeFailure
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
                | AlertDescription::DecryptError
                | AlertDescription::CertificateRequired
        )
        .then(|| Self::of_tls(error))
    }

    fn of_tls(error: &TlsError) -> Self {
        match error {
            TlsError::NoCertificatesPresented => Self::NoCertificate,
            TlsError::InvalidCertificate(error) => match error {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::Expired,
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. }
                | CertificateError::ApplicationVerificationFailure => Self::WrongName,
                _ => Self::UnknownCa,
            },
            TlsError::AlertReceived(alert) => match alert {
                AlertDescription::CertificateExpired => Self::Expired,
                AlertDescription::UnknownCA => Self::UnknownCa,
                AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
                    Self::Protocol
                }
                _ => Self::Refused,
            },
            _ => Self::Protocol,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
