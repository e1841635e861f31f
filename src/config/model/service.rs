//! The named peers: where they are, how they are reached, and how much they get.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use serde::{Serialize, Serializer};

use super::{Address, duration, text};

/// A named peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Service {
    /// The word used by routes, logs and metrics.
    pub name: String,
    /// At least one.
    pub addresses: Vec<Address>,
    /// Which address gets a call.
    pub balance: Balance,
    /// What is spoken with it.
    pub protocol: Protocol,
    /// Present: mutual TLS, and nothing else.
    pub tls: Option<ServiceTls>,
    /// Present: its addresses are asked whether they are well.
    pub health: Option<Health>,
    /// Present: so many calls at a time.
    pub limit: Option<Limit>,
    /// Present: so many calls a second.
    pub rate: Option<Rate>,
    /// Present, the default: addresses whose calls fail are left out for a while.
    pub ejection: Option<Ejection>,
    /// The topic of replies to it, if it is not the one of `kafka.replies`.
    pub replies: Option<String>,
}

/// Which address of a service gets a call.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Of two random ones the one with the lower recent latency times open calls; the default.
    #[default]
    PeakEwma,
    /// Of two random ones the one with fewer open calls.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Equal values at the same address, as long as it is there.
    RingHash(HashOf),
}

/// What is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HashOf {
    /// The canonical path, without the query.
    Path,
    /// A header; a call without it goes by peak-ewma.
    Header(#[serde(serialize_with = "text")] HeaderName),
}

/// What is spoken with a service or the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// HTTP/1.1, but HTTP/2 for gRPC, which has no other; the default.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2; in the clear with prior knowledge (RFC 9113 section 3.3). Upgrades still go over HTTP/1.1.
    Http2,
}

/// Mutual TLS with a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceTls {
    /// Position in [`super::Config::tls`].
    pub identity: TlsIndex,
    /// What the service's certificate must call it.
    pub expected: PeerName,
}

/// Position of an identity in [`super::Config::tls`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct TlsIndex(pub usize);

/// One name of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerName {
    /// A DNS name.
    Dns(String),
    /// A URI, such as a SPIFFE ID.
    Uri(String),
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) | Self::Uri(name) => f.write_str(name),
        }
    }
}

impl Serialize for PeerName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Files of one name of `tls:`, all PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TlsFiles {
    /// The word that `inbound.tls` and `services.*.tls` use.
    pub name: String,
    /// Our certificate, then the intermediate ones.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CAs whose certificates peers must have.
    pub ca: PathBuf,
}

/// Active health checks: a `GET` that must be answered with 2xx or 3xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The path that is asked for.
    pub path: String,
    /// Default 5 s.
    #[serde(serialize_with = "duration")]
    pub every: Duration,
    /// Default 1 s, not above `every`.
    #[serde(serialize_with = "duration")]
    pub timeout: Duration,
    /// Bad answers in a row that put an address out; default 3.
    pub unhealthy: u32,
    /// Good answers in a row that bring it back; default 2.
    pub healthy: u32,
}

/// Calls at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// In flight at once, until their last byte.
    pub in_flight: usize,
    /// That wait for a place; default as many. More are a 503 `overloaded`.
    pub queue: usize,
    /// How long one waits; default 1 s, never beyond its deadline.
    #[serde(serialize_with = "duration")]
    pub wait: Duration,
}

/// Calls in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rate {
    /// At least 1.
    pub calls: u32,
    /// A second, a minute or an hour.
    #[serde(serialize_with = "duration")]
    pub per: Duration,
    /// That may come at once after a silence; default `calls`.
    pub burst: u32,
}

/// When an address is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ejection {
    /// Failures in a row; default 5.
    pub failures: u32,
    /// Percent of calls that must succeed, over 10 s with at least 20 calls; default 80.
    pub success_rate: u32,
    /// How long the first time; doubled each time in a row, at most 60 s; default 1 s.
    #[serde(serialize_with = "duration")]
    pub time: Duration,
}
