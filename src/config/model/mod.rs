//! The compiled configuration: only valid values, defaults filled, names resolved to indexes.
//!
//! Everything here is plain data. It knows no socket, clock, runtime or broker client, so that `check`, `explain`
//! and the tests can use it without starting anything.

mod claims;
mod forward;
mod schema;
mod service;
mod subscription;
mod telemetry;

pub use claims::{
    Bucket, ClaimFolder, ClaimObjects, ClaimPlace, ClaimStore, ClaimTemplate, ObjectPlace,
    TemplatePart, WhenFull,
};
pub use forward::{Backoff, ENDLESS, Forward, PathRewrite, Piece, Retry, Rewrite, Timeouts};
pub use schema::{MediaRange, Schema};
pub use service::{
    Balance, Ejection, HashOf, Health, Limit, PeerName, Protocol, Rate, Service, ServiceTls,
    TlsFiles, TlsIndex,
};
pub use subscription::{Full, Hydrate, Judged, Means, Ordering, Subscription, Unhydrated, Window};
pub use telemetry::{Otlp, Share, Telemetry};

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

/// One compiled file.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// This service's own name: 1 to 63 characters of `a-z 0-9 -`.
    pub service: String,
    /// Where the service beside us listens; absent for a sidecar that only sends.
    pub app: Option<Address>,
    /// The door for the app's own calls.
    pub outbound: Option<Outbound>,
    /// The door for other sidecars' calls.
    pub inbound: Option<Inbound>,
    /// Topics delivered to the app.
    pub subscriptions: Vec<Subscription>,
    /// Named peers; [`ServiceIndex`] points in here.
    pub services: Vec<Service>,
    /// Certificates; [`TlsIndex`] points in here.
    pub tls: Vec<TlsFiles>,
    /// Name servers to ask; the machine's own if empty.
    pub dns: Vec<SocketAddr>,
    /// The broker, if any part needs one.
    pub kafka: Option<Kafka>,
    /// The durable log before the broker.
    pub spool: Option<Spool>,
    /// Stores of whole bodies; [`ClaimIndex`] points in here.
    pub claims: Vec<ClaimStore>,
    /// How many timelines are kept, and how long.
    pub messages: Messages,
    /// Read-only door for the kubelet and Prometheus.
    pub probe: Option<SocketAddr>,
    /// The door for people on this machine.
    pub admin: SocketAddr,
    /// Bounds everything after SIGTERM.
    #[serde(serialize_with = "duration")]
    pub drain: Duration,
    /// Process-wide limits.
    pub limits: Limits,
    /// Which calls are recorded as spans; without it none, at no cost.
    pub telemetry: Option<Telemetry>,
}

/// `host:port`, where host is a name or an IP address (IPv6 in brackets in its text form).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// A DNS name in lower case, or an IP address without brackets.
    pub host: String,
    /// 1 to 65535, or 0 in tests.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Position of a service in [`Config::services`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct ServiceIndex(pub usize);

/// Position of a store in [`Config::claims`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct ClaimIndex(pub usize);

/// The outbound door.
#[derive(Debug, Clone, Serialize)]
pub struct Outbound {
    /// Default `127.0.0.1:4140`.
    pub listen: SocketAddr,
    /// In file order: the first match wins. Empty when the door only serves `/.wayside/`.
    pub routes: Vec<Route>,
}

/// One rule of the outbound door.
#[derive(Debug, Clone, Serialize)]
pub struct Route {
    /// Unique within the file; the word used in logs and metrics.
    pub name: String,
    /// 1-based line of the route in its file, for `explain`.
    pub line: usize,
    /// Which calls it takes.
    pub matches: Match,
    /// What is done with them.
    pub pattern: Pattern,
}

/// What a call must look like. An absent part takes everything.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Match {
    /// Compared without port and without regard to case.
    pub host: Option<HostPattern>,
    /// Registered methods (RFC 9110 section 16.1); empty takes all.
    #[serde(serialize_with = "texts")]
    pub methods: Vec<Method>,
    /// Compared with the canonical path, without the query.
    pub path: PathPattern,
    /// Headers that must be there, each with its value. Of several lines of one name any may do.
    pub headers: Vec<MatchHeader>,
    /// The same of query parameters, names and values as they are written in the target.
    pub query: Vec<(String, Wanted)>,
}

/// What is shown in the place of a secret.
const REDACTED: &str = "[redacted]";

/// A header that must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchHeader {
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    pub wanted: Wanted,
}

impl Serialize for MatchHeader {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = self.name.as_str();
        let credential = ["auth", "cookie", "key", "password", "secret", "token"]
            .iter()
            .any(|word| name.contains(word));
        let mut shown = serializer.serialize_struct("MatchHeader", 2)?;
        shown.serialize_field("name", name)?;
        match credential {
            true => shown.serialize_field("wanted", REDACTED)?,
            false => shown.serialize_field("wanted", &self.wanted)?,
        }
        shown.end()
    }
}

/// What a header or a query parameter must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// There, whatever its value (`*`).
    Any,
    /// This value.
    Exact(String),
    /// A value that begins so (`abc*`).
    Prefix(String),
}

/// A host rule, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HostPattern {
    /// The whole name.
    Exact(String),
    /// `*.suffix`: any name that ends in `.suffix`; held as `.suffix`.
    Suffix(String),
}

/// A path rule.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathPattern {
    /// Every path.
    #[default]
    Any,
    /// This path and no other.
    Exact(String),
    /// `/a/**`: `/a` and everything below it by whole segments; held as `/a` (`/**` is [`PathPattern::Any`]).
    Prefix(String),
    /// `/orders/{id}/lines`: some segments are free, but not empty; with `/**` at its end, so is what follows.
    Template {
        /// The segments; `None` takes any.
        segments: Vec<Option<String>>,
        /// What the free ones are called, in their order.
        names: Vec<String>,
        /// Whether anything may follow.
        open: bool,
    },
}

/// What is done with a call.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// Passed on at once.
    Forward(Forward),
    /// Made a record; with [`Publish::slim`] it is an event.
    Publish(Publish),
}

/// Publishing to a topic.
#[derive(Debug, Clone, Serialize)]
pub struct Publish {
    /// A legal Kafka topic name: 1 to 249 characters of `a-z A-Z 0-9 . _ -`, not `.` or `..`.
    pub topic: String,
    /// Where the record's key comes from; `None` leaves the record without one.
    pub key: Option<KeyRule>,
    /// What a call without that key gets.
    pub key_missing: KeyMissing,
    /// What the whole body must be; `None` takes everything.
    pub schema: Option<Schema>,
    /// Media types that a body may have; empty takes every body. Default: JSON's with a schema, else empty.
    pub content_type: Vec<MediaRange>,
    /// Present for an event: what stays in the record and where the whole goes.
    pub slim: Option<Slim>,
    /// Which of the call's headers travel.
    pub headers: HeaderRule,
    /// Largest body taken, in bytes; default 1 MiB. Above it the call is a 413.
    pub max_body: usize,
    /// How long the broker may take to acknowledge where there is no spool; default 5 s.
    #[serde(serialize_with = "duration")]
    pub timeout: Duration,
    /// Which event releases the 202.
    pub accept: Accept,
    /// How long a `replicated` call waits for the broker before the spool's promise does; default 1 s.
    #[serde(serialize_with = "duration")]
    pub ack_wait: Duration,
    /// How much of a message's way its receivers report back; default nothing, unless the caller waits.
    pub track: Track,
    /// The consumer group whose verdict is the result; `None` takes the first group's.
    pub reply_from: Option<String>,
}

/// Which event releases a 202.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Accept {
    /// The broker's acknowledgement with acks=all; the default.
    #[default]
    Replicated,
    /// The sync of the record in the spool, or the broker's acknowledgement if that comes first.
    Spooled,
}

/// How much of a message's way is reported back on the reply topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Track {
    /// Nothing; the default. Its records carry no word of it.
    #[default]
    None,
    /// The final verdict, with the app's answer.
    Verdict,
    /// Every attempt as well.
    All,
}

/// The topics of replies: a name that may hold `{service}`, which stands for the service that gets them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Replies(pub String);

impl Replies {
    /// The part that stands for the service.
    pub const SERVICE: &'static str = "{service}";

    /// The topic of one service's replies.
    pub fn topic(&self, service: &str) -> String {
        self.0.replace(Self::SERVICE, service)
    }
}

/// Where a record's key comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyRule {
    /// `/customer/id`: a JSON pointer (RFC 6901) into the body.
    Body(Pointer),
    /// `header: name`.
    Header(#[serde(serialize_with = "text")] HeaderName),
    /// `path: 1`: a segment of the path, counted from 1.
    Path(usize),
}

/// What happens to a call whose key is missing, null or a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyMissing {
    /// 400, the default.
    #[default]
    Refuse,
    /// The record goes without a key, in no order.
    Unordered,
}

/// A JSON pointer (RFC 6901) of at least one token, tokens unescaped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pointer(pub Vec<String>);

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for token in &self.0 {
            write!(f, "/{}", token.replace('~', "~0").replace('/', "~1"))?;
        }
        Ok(())
    }
}

impl Serialize for Pointer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How a body is made small.
#[derive(Debug, Clone, Serialize)]
pub struct Slim {
    /// What stays.
    pub rule: SlimRule,
    /// Bytes above which a body that is not JSON is kept as a whole, so that its record's value is empty; `None` refuses
    /// such bodies.
    pub whole_over: Option<usize>,
    /// Where the whole body is kept.
    pub claim: ClaimIndex,
}

/// Which fields stay in the record. No pointer is a prefix of another; `*` stands for every element of an array.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SlimRule {
    /// Only these.
    Keep(Vec<Pointer>),
    /// All but these, and but what is larger.
    Drop {
        /// Never stay.
        fields: Vec<Pointer>,
        /// Bytes of JSON above which any other value goes too; of values one inside the other the innermost.
        over: Option<usize>,
    },
}

/// Which headers of a call travel in its record, on top of the fixed rule of what never does.
#[derive(Debug, Clone, Default, Serialize)]
pub struct HeaderRule {
    /// Travel although the fixed rule drops them by default (`authorization`, `cookie`).
    #[serde(serialize_with = "texts")]
    pub keep: Vec<HeaderName>,
    /// Never travel.
    #[serde(serialize_with = "texts")]
    pub drop: Vec<HeaderName>,
}

/// The inbound door.
#[derive(Debug, Clone, Serialize)]
pub struct Inbound {
    /// Where other sidecars call.
    pub listen: SocketAddr,
    /// Present: mutual TLS, and nothing else.
    pub tls: Option<TlsIndex>,
    /// Who may call what; `None` lets everyone.
    pub allow: Option<Vec<Allow>>,
}

/// One rule of `inbound.allow`: a call that meets all its parts is let in.
#[derive(Debug, Clone, Serialize)]
pub struct Allow {
    /// Names of certificates, any of which the caller must have; empty takes every caller.
    pub from: Vec<Wanted>,
    /// Empty takes all.
    #[serde(serialize_with = "texts")]
    pub methods: Vec<Method>,
    /// Compared as in [`Match`].
    pub path: PathPattern,
}

/// The broker.
#[derive(Debug, Clone, Serialize)]
pub struct Kafka {
    /// Where it is.
    pub cluster: Cluster,
    /// librdkafka properties that override ours, in file order.
    pub properties: Vec<(String, Secret)>,
    /// Bytes that may wait in the producer; default 32 MiB. Above it a call is a 503.
    pub queue_max: usize,
    /// Where replies come to and go to; `None`: nobody is asked for any.
    pub replies: Option<Replies>,
}

/// Which broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cluster {
    /// `host:port` each.
    Brokers(Vec<String>),
    /// In this process, for trying things out.
    Embedded,
}

/// A value that no log, dump or error prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

/// The durable log before the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Spool {
    /// Its folder; made if missing, and for one process alone.
    pub path: PathBuf,
    /// Bytes on disk; default 1 GiB. Above it a call is a 503.
    pub max: u64,
    /// What the folder outlives, told in every 202.
    pub survives: Survives,
}

/// What a folder outlives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Survives {
    /// An `emptyDir`: the container's restart, not the pod's end.
    Pod,
    /// A persistent volume.
    Volume,
}

/// How many timelines are kept.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Messages {
    /// Default 100,000; the oldest goes first.
    pub max: usize,
    /// Default 1 h.
    #[serde(serialize_with = "duration")]
    pub keep: Duration,
}

/// Process-wide limits (`limits:`).
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Limits {
    /// Open connections a door; default 10,000. Above it the newest waits in the listen queue.
    pub connections: usize,
    /// Calls in flight a door; default 1,000. Above it a call is a 503 `overloaded`.
    pub in_flight: usize,
    /// Bytes of a request's head; default 64 KiB. Above it a call is a 431.
    pub head: usize,
    /// Bytes of a body held for a retry; default 64 KiB. Above it the call goes on without one.
    pub replay: usize,
    /// Bytes held for retries in all; default 32 MiB. Above it calls go on without one.
    pub replay_total: usize,
    /// Bytes of a claim that is fetched for the app; default 10 MiB. Above it the claim is refused.
    pub claim: usize,
    /// Bytes of fetched claims that are held for who asks next; default 32 MiB. Above it the least used goes.
    pub claim_cache: usize,
    /// Claims fetched from one service at the same time; default 32. Above it the next one waits.
    pub claim_fetches: usize,
    /// Bytes of results kept for their askers; default 32 MiB. Above it the oldest is forgotten.
    pub results: usize,
}

fn duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    if *value == ENDLESS {
        return serializer.serialize_str("none");
    }
    serializer.collect_str(&humantime::format_duration(*value))
}

fn maybe_duration<S: Serializer>(
    value: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => duration(value, serializer),
        None => serializer.serialize_none(),
    }
}

fn text<S: Serializer>(value: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn texts<S: Serializer, T: fmt::Display>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(T::to_string))
}

/// Names, and that there are values: what a route sets may be a credential, whatever its name is.
fn pairs<S: Serializer>(
    values: &[(HeaderName, HeaderValue)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(values.iter().map(|(name, _)| (name.as_str(), REDACTED)))
}
