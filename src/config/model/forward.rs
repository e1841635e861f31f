//! Synchronous forwarding: where to, in which time, how often, and what is changed on the way.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde::Serialize;

use super::{Publish, Rate, ServiceIndex, duration, pairs, texts};

/// Stands for `none`, where a phase has no end of its own.
pub const ENDLESS: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// Synchronous forwarding.
#[derive(Debug, Clone, Serialize)]
pub struct Forward {
    /// Where to: one service, or several that share the calls by weight. At least one; no weight is 0.
    pub to: Vec<(ServiceIndex, u32)>,
    /// Every phase, all under `whole`.
    pub timeouts: Timeouts,
    /// When a try is repeated.
    pub retry: Retry,
    /// The route promises that running a call twice does no harm, whatever its method.
    pub idempotent: bool,
    /// What is changed on the way.
    pub rewrite: Rewrite,
    /// Present: the route takes so many calls a second.
    pub rate: Option<Rate>,
    /// Where calls go that could not be sent. It tracks verdicts.
    pub otherwise: Option<Box<Publish>>,
}

/// The phases of one forwarded call. No phase may be longer than `whole`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Timeouts {
    /// The whole call, tries and backoff included, until the answer's last byte; default 15 s, [`ENDLESS`] for `none`.
    #[serde(serialize_with = "duration")]
    pub whole: Duration,
    /// Connect of one try, TLS included; default 1 s, or `per_try` if that is shorter.
    #[serde(serialize_with = "duration")]
    pub connect: Duration,
    /// From the request's last byte to the answer's head, in one try; default: `per_try`.
    #[serde(serialize_with = "duration")]
    pub head: Duration,
    /// One try, connect included, until its head; default: `whole`, or 15 s where that is endless.
    #[serde(serialize_with = "duration")]
    pub per_try: Duration,
    /// Silence between two frames of a body, either way; default 30 s, at most `whole`; [`ENDLESS`] for `none`.
    #[serde(serialize_with = "duration")]
    pub idle: Duration,
}

/// When and how often a try is repeated.
#[derive(Debug, Clone, Serialize)]
pub struct Retry {
    /// Tries in all, the first one counted: 1 to 10, default 3 for `forward`; 1 to 1000, default 5 for a subscription.
    pub attempts: u32,
    /// Shortest and longest wait before an address is tried again; random between the shortest and a doubling value.
    pub backoff: Backoff,
    /// Statuses that are tried again for idempotent calls; default 502, 503, 504. Unused by subscriptions.
    pub statuses: Vec<u16>,
}

/// `first..longest`, doubling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Backoff {
    /// Not above `longest`.
    #[serde(serialize_with = "duration")]
    pub first: Duration,
    /// The cap.
    #[serde(serialize_with = "duration")]
    pub longest: Duration,
}

/// What a route changes of its calls.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Rewrite {
    /// The path, if it is changed.
    pub path: Option<PathRewrite>,
    /// The host that the service hears, if it is another.
    pub host: Option<String>,
    /// Headers that the service gets instead of what was there.
    #[serde(serialize_with = "pairs")]
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Headers that it does not get.
    #[serde(serialize_with = "texts")]
    pub remove: Vec<HeaderName>,
    /// Headers that the caller gets instead of what was there.
    #[serde(serialize_with = "pairs")]
    pub answer_set: Vec<(HeaderName, HeaderValue)>,
    /// Headers that it does not get.
    #[serde(serialize_with = "texts")]
    pub answer_remove: Vec<HeaderName>,
}

/// How a path is changed. The query stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathRewrite {
    /// What `match.path` fixed at the beginning is replaced; what follows stays. Both without a slash at the end.
    Prefix {
        /// Bytes of the path that are replaced.
        instead_of: usize,
        /// By what.
        by: String,
    },
    /// Built from pieces and from segments of the call's path.
    Template(Vec<Piece>),
}

/// One piece of a [`PathRewrite::Template`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Piece {
    /// As it stands.
    Text(String),
    /// The segment at this position of the call's path, counted from 0.
    Segment(usize),
    /// Everything from this segment on, with the slash before it; nothing if there is none.
    Rest(usize),
}
