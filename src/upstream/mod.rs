//! Stage 4a: the way to an HTTP peer or to the app. Names become addresses, one is chosen, a connection is taken from
//! its pool or made.
//!
//! Nothing in here repeats a call by itself: [`Connection::send`] says whether a byte left, and `pattern` decides.

mod balance;
mod breaker;
mod connect;
mod connection;
mod endpoint;
mod health;
mod limit;
mod peers;
mod pool;
mod resolve;
mod traffic;

pub use balance::Endpoints;
pub use connect::Version;
pub use connection::{Connection, Evidence, SendError};
pub use endpoint::{Endpoint, Open};
pub use limit::{Place, Rate};
pub use peers::{Changes, PeerState};
pub use resolve::Resolver;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::{Counter, Gauge};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};
use tower::retry::budget::{Budget, TpsBudget};

use crate::config::model::{Address, Balance, HashOf, Protocol, Service};
use crate::error::{Error, Kind};
use crate::lifecycle;
use crate::service::Request;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names;
use crate::tls::{Connector, Socket};
use breaker::Finding;
use connect::{ConnectError, Sender};
use limit::Limit;
use traffic::{Counted, Traffic};

/// Repeated tries a destination may get: a share of its calls, and a floor a second.
const BUDGET_SHARE: f32 = 0.2;
const BUDGET_FLOOR: u32 = 10;
const BUDGET_WINDOW: Duration = Duration::from_secs(10);
/// How long a connection may lie idle to be trusted with a call that must not run twice: the other side closes idle
/// connections when it likes, and a call that meets that has no answer.
const JUST_USED: Duration = Duration::from_millis(500);

/// One named service, or the app.
pub struct Upstream {
    /// Its name in the configuration, or `app`.
    pub name: String,
    rule: Service,
    idle: Duration,
    tls: Option<Arc<Connector>>,
    endpoints: ArcSwap<Endpoints>,
    budget: TpsBudget,
    limit: Option<Limit>,
    rate: Option<Arc<Rate>>,
    shared: Shared,
    meters: Meters,
}

struct Meters {
    addresses: Gauge,
    ejected: Gauge,
    connects: Counter,
    failures: Counter,
    ejections: Counter,
    never_sent: Counter,
    no_answer: Counter,
    status: Counter,
    lost_race: Counter,
    cuts: Counter,
}

/// Why a try is repeated, for the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryReason {
    /// Not one byte left.
    NeverSent,
    /// Sent, and no answer began.
    NoAnswer,
    /// An answer whose status the route repeats.
    Status,
    /// Sent on a connection that was idle and broke before a byte came back: it was closed at that moment.
    LostRace,
}

/// How long a connection may take.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    /// When it began.
    pub began: Instant,
    /// The end of it.
    pub until: Instant,
    /// That is most of the route's own time, not what a caller in a hurry or a queue has left of it: then the address is
    /// to blame for it.
    pub fair: bool,
}

impl Wait {
    /// For at most `longest`, and not beyond `limit`.
    pub fn new(began: Instant, longest: Duration, limit: Instant) -> Self {
        Self {
            began,
            until: limit.min(began + longest),
            fair: limit >= began + longest / 2,
        }
    }
}

/// What all upstreams of a sidecar share.
#[derive(Clone)]
pub struct Shared {
    /// Where the metrics go.
    pub metrics: Metrics,
    /// Pool shards (see [`lifecycle::shard`]).
    pub shards: usize,
    /// Idle connections to one address that a shard keeps: as many as there may be calls.
    pub idle_max: usize,
    /// Runs the name look-ups and the health checks.
    pub runtime: Handle,
    /// Told when an address goes up or down.
    pub changes: Changes,
    /// Asks for names.
    pub resolver: Arc<Resolver>,
}

/// How a service is reached that the configuration does not describe: the app.
pub fn plain(name: &str, address: &Address, protocol: Protocol) -> Service {
    Service {
        name: name.to_owned(),
        addresses: vec![address.clone()],
        balance: Balance::PeakEwma,
        protocol,
        tls: None,
        health: None,
        limit: None,
        rate: None,
        ejection: None,
        replies: None,
    }
}

impl Upstream {
    /// Looks the addresses up once and keeps them fresh while the upstream lives. A name that does not resolve yet is
    /// no error: calls get a 503 until it does. `before` is the upstream whose place it takes, if there is one: the calls
    /// that it let in still count.
    pub async fn start(
        rule: Service,
        (idle, tls): (Duration, Option<Connector>),
        shared: &Shared,
        before: Option<&Self>,
    ) -> Arc<Self> {
        let old_limit = before.and_then(|before| before.limit.as_ref());
        let old_rate = before.and_then(|before| before.rate.as_ref());
        let upstream = Arc::new(Self {
            name: rule.name.clone(),
            idle,
            tls: tls.map(Arc::new),
            endpoints: ArcSwap::default(),
            budget: TpsBudget::new(BUDGET_WINDOW, BUDGET_FLOOR, BUDGET_SHARE),
            limit: rule.limit.map(|rule| Limit::after(rule, old_limit)),
            rate: rule.rate.map(|rule| Rate::after(rule, old_rate)),
            meters: Meters::new(&shared.metrics, &rule.name),
            shared: shared.clone(),
            rule,
        });
        let mut names = resolve::Names::new(&upstream.rule.addresses);
        names.refresh(&upstream).await;
        lifecycle::spawn(
            &shared.runtime,
            "resolve",
            resolve::keep_fresh(Arc::downgrade(&upstream), names),
        );
        if upstream.rule.health.is_some() {
            lifecycle::spawn(
                &shared.runtime,
                "health",
                health::keep_checking(Arc::downgrade(&upstream)),
            );
        }
        upstream
    }

    /// What it was built from.
    pub fn rule(&self) -> &Service {
        &self.rule
    }

    /// The addresses now.
    pub fn endpoints(&self) -> Arc<Endpoints> {
        self.endpoints.load_full()
    }

    /// Puts addresses in force, whoever found them. Those that stay keep their connections and their account; those that
    /// are gone lose theirs.
    fn replace(&self, found: &[SocketAddr]) {
        let old = self.endpoints.load_full();
        if found
            .iter()
            .eq(old.iter().map(|endpoint| &endpoint.address))
        {
            return;
        }
        let kept = |address: &SocketAddr| {
            let mut known = old.iter();
            known.find(|endpoint| endpoint.address == *address).cloned()
        };
        let endpoints: Vec<Arc<Endpoint>> = found
            .iter()
            .map(|address| {
                kept(address).unwrap_or_else(|| {
                    Endpoint::new(*address, self.shared.shards, self.shared.idle_max)
                })
            })
            .collect();
        tracing::info!(
            service = self.name,
            addresses = endpoints.len(),
            "addresses changed"
        );
        self.meters.addresses.set(endpoints.len() as f64);
        self.endpoints
            .store(Arc::new(Endpoints::new(endpoints, &self.rule.balance)));
        self.count_ejected();
        self.shared.changes.tell();
    }

    /// Chooses an address that is not in `tried`, by the service's rule; `hashed` is the call's place on a ring. `None`
    /// when all were tried.
    ///
    /// # Errors
    /// [`Kind::Unresolved`] when the service has no address at all.
    pub fn pick(
        &self,
        tried: &[SocketAddr],
        hashed: Option<u64>,
    ) -> Result<Option<Arc<Endpoint>>, Error> {
        let endpoints = self.endpoints.load();
        if endpoints.is_empty() {
            let detail = format!(
                "none of the addresses of {} resolves at the moment",
                self.name
            );
            return Err(Error::new(Kind::Unresolved, detail).after(resolve::SHORTEST * 5));
        }
        Ok(endpoints.choose(&self.rule.balance, tried, hashed).cloned())
    }

    /// Whether an address is left that is not in `tried`.
    pub fn has_untried(&self, tried: &[SocketAddr]) -> bool {
        let endpoints = self.endpoints.load();
        endpoints.iter().any(|one| !tried.contains(&one.address))
    }

    /// A call's place on the ring, for services that are balanced that way.
    pub fn hash(&self, request: &Request) -> Option<u64> {
        let Balance::RingHash(of) = &self.rule.balance else {
            return None;
        };
        match of {
            HashOf::Path => Some(balance::hash(request.uri().path().as_bytes())),
            HashOf::Header(name) => {
                let value = request.headers().get(name)?;
                Some(balance::hash(value.as_bytes()))
            }
        }
    }

    /// The protocol for a call: HTTP/2 where the service has it or the call is gRPC, but HTTP/1.1 for an upgrade.
    pub fn version(&self, grpc: bool) -> Version {
        match self.rule.protocol {
            Protocol::Http2 => Version::Two,
            Protocol::Auto if grpc => Version::Two,
            Protocol::Auto | Protocol::Http1 => Version::One,
        }
    }

    /// Lets a call in under the service's rate and its limit of calls at a time, waiting in the queue if it must.
    ///
    /// # Errors
    /// [`Kind::RateLimited`] or [`Kind::Overloaded`]; nothing was sent, and it is no fault of an address.
    pub async fn enter(&self, deadline: Instant) -> Result<Place, Error> {
        if let Some(rate) = &self.rate {
            rate.pass(&self.name)?;
        }
        match &self.limit {
            None => Ok(Place::default()),
            // Boxed: most services have no limit, and every call would carry the wait.
            Some(limit) => Box::pin(limit.enter(&self.name, deadline)).await,
        }
    }

    /// Counts a call towards the retry budget.
    pub fn deposit(&self) {
        self.budget.deposit();
    }

    /// Asks for a repeated try and counts it. A try that never left costs the peer nothing, and one that lost a race for
    /// an idle connection was not heard, so only others need the budget.
    pub fn may_repeat(&self, reason: RetryReason) -> bool {
        let (counter, free) = match reason {
            RetryReason::NeverSent => (&self.meters.never_sent, true),
            RetryReason::LostRace => (&self.meters.lost_race, true),
            RetryReason::NoAnswer => (&self.meters.no_answer, false),
            RetryReason::Status => (&self.meters.status, false),
        };
        if !free && !self.budget.withdraw() {
            return false;
        }
        counter.increment(1);
        true
    }

    /// Takes a connection to `endpoint` that may serve another call, or makes one within `deadline`. `once`: the call
    /// must not run twice, so only one that was used a moment ago will do.
    ///
    /// # Errors
    /// [`Kind::Unreachable`] or [`Kind::TlsFailed`]; it was never sent.
    pub async fn connection(
        &self,
        endpoint: &Arc<Endpoint>,
        (version, once): (Version, bool),
        wait: Wait,
    ) -> Result<Connection, Error> {
        if version == Version::One {
            let longest = if once {
                self.idle.min(JUST_USED)
            } else {
                self.idle
            };
            if let Some(idle) = endpoint.pool.here().take(longest, wait.began) {
                return Ok(Connection::idle(idle, endpoint, self.idle, wait.began));
            }
        } else if let Some(place) = endpoint.pool.here().join() {
            return Ok(Connection::shared(place, endpoint, true));
        }
        // Boxed: most calls find a connection, and this branch would double their future.
        Box::pin(self.fresh_connection(endpoint, version, wait)).await
    }

    /// Makes a connection to `endpoint` within `deadline`, whatever waits in the pool. Of HTTP/2 connections, one is made
    /// at a time, and who waited for it shares it.
    ///
    /// # Errors
    /// [`Kind::Unreachable`] or [`Kind::TlsFailed`]; it was never sent.
    pub async fn fresh_connection(
        &self,
        endpoint: &Arc<Endpoint>,
        version: Version,
        wait: Wait,
    ) -> Result<Connection, Error> {
        let failed = |error| self.unreachable(endpoint, error, wait);
        let making = match version {
            Version::One => None,
            Version::Two => {
                let turn = timeout_at(wait.until, endpoint.pool.here().making.acquire()).await;
                if let Some(place) = endpoint.pool.here().join() {
                    return Ok(Connection::shared(place, endpoint, false));
                }
                Some(turn.map_err(|_| failed(ConnectError::TimedOut))?)
            }
        };
        let traffic = Arc::new(Traffic::default());
        let made = self.make(endpoint, version, &traffic, wait.until).await;
        drop(making);
        match made.map_err(failed)? {
            Sender::One(sender) => Ok(Connection::fresh(sender, traffic, endpoint, self.idle)),
            Sender::Two(sender, room) => {
                let place = endpoint.pool.here().share(sender, room, traffic);
                Ok(Connection::shared(place, endpoint, false))
            }
        }
    }

    /// Makes a bare connection to `endpoint`, for a tunnel.
    ///
    /// # Errors
    /// [`Kind::Unreachable`] or [`Kind::TlsFailed`]; nothing was sent.
    pub async fn socket(&self, endpoint: &Arc<Endpoint>, wait: Wait) -> Result<Socket, Error> {
        self.meters.connects.increment(1);
        connect::socket(
            endpoint.address,
            self.tls.as_deref(),
            Version::One,
            wait.until,
        )
        .await
        .map_err(|error| self.unreachable(endpoint, error, wait))
    }

    async fn make(
        &self,
        endpoint: &Endpoint,
        version: Version,
        traffic: &Arc<Traffic>,
        deadline: Instant,
    ) -> Result<Sender, ConnectError> {
        self.meters.connects.increment(1);
        let tls = self.tls.as_ref();
        let socket =
            connect::socket(endpoint.address, tls.map(Arc::as_ref), version, deadline).await?;
        let counted = Counted::new(socket, Arc::clone(traffic), tls.map(Arc::clone));
        connect::speak(counted, version).await
    }

    fn unreachable(&self, endpoint: &Endpoint, error: ConnectError, wait: Wait) -> Error {
        self.meters.failures.increment(1);
        let hurried = !wait.fair && matches!(error, ConnectError::TimedOut);
        if error.blames_peer() && !hurried {
            self.failed(endpoint, wait.began);
        }
        error.detailed(&self.name, endpoint.address)
    }

    /// Notes an answer that came `now`, after `latency`; `well` unless its status blames the service.
    pub fn answered(&self, endpoint: &Endpoint, latency: Duration, now: Instant, well: bool) {
        if !well {
            // A fast refusal must not attract more calls.
            return self.failed(endpoint, now - latency);
        }
        endpoint.load.answered(latency, now);
        if self.rule.ejection.is_some() && endpoint.breaker.succeeded(now - latency, now) {
            self.changed(endpoint, "back");
        }
    }

    /// Notes that `endpoint` failed a call that `began` then: no connection, no answer, or one that blames it.
    pub fn failed(&self, endpoint: &Endpoint, began: Instant) {
        endpoint.load.failed();
        let Some(rule) = &self.rule.ejection else {
            return;
        };
        let now = Instant::now();
        let finding = endpoint.breaker.failed(rule, began, now);
        let reason = match finding {
            Finding::Fine => return,
            Finding::InARow(count) => format!("{count} failures in a row"),
            Finding::Rate(percent) => format!("only {percent} % of calls succeed"),
            Finding::Probe => "the call that probed it failed".to_owned(),
        };
        if finding != Finding::Probe && !self.may_leave_out(endpoint) {
            return;
        }
        let ejected = endpoint
            .breaker
            .eject((rule, finding), now, fastrand::f64());
        let Some(time) = ejected else { return };
        endpoint.note(reason);
        self.meters.ejections.increment(1);
        tracing::warn!(service = self.name, address = %endpoint.address, why = endpoint.why(), for_ms = time.as_millis() as u64, "address left out");
        self.changed(endpoint, "out");
    }

    /// Whether one more may be out. At most half, health checks included: with everything out, everything would be tried
    /// again at once.
    fn may_leave_out(&self, endpoint: &Endpoint) -> bool {
        let endpoints = self.endpoints.load();
        let others = endpoints
            .iter()
            .filter(|one| !one.is_up() && one.address != endpoint.address);
        (others.count() + 1) * 2 <= endpoints.len()
    }

    /// Notes an answer that broke off.
    pub fn cut(&self) {
        self.meters.cuts.increment(1);
    }

    /// Notes what a health check found.
    fn checked(&self, endpoint: &Endpoint, ill: Option<String>) {
        if endpoint.breaker.set_ill(ill.is_some()) {
            let word = if ill.is_some() { "ill" } else { "well" };
            endpoint.note(ill.unwrap_or_default());
            tracing::warn!(service = self.name, address = %endpoint.address, why = endpoint.why(), "a health check finds it {word}");
            self.changed(endpoint, word);
        }
    }

    fn changed(&self, endpoint: &Endpoint, word: &'static str) {
        tracing::info!(service = self.name, address = %endpoint.address, word, "address");
        endpoint.stamp();
        self.count_ejected();
        self.shared.changes.tell();
    }

    /// Is no service any more: nobody shall take its addresses for those of one.
    pub fn retire(&self) {
        self.meters.addresses.set(0.0);
        self.meters.ejected.set(0.0);
    }

    fn count_ejected(&self) {
        let endpoints = self.endpoints.load();
        let out = endpoints.iter().filter(|one| !one.is_up()).count();
        self.meters.ejected.set(out as f64);
    }
}

impl Meters {
    fn new(metrics: &Metrics, service: &str) -> Self {
        let labels = [("service", service)];
        let retries =
            |reason| metrics.counter(&names::RETRIES, &[("service", service), ("reason", reason)]);
        Self {
            addresses: metrics.gauge(&names::ADDRESSES, &labels),
            ejected: metrics.gauge(&names::ADDRESSES_OUT, &labels),
            connects: metrics.counter(&names::CONNECTS, &labels),
            failures: metrics.counter(&names::CONNECT_FAILURES, &labels),
            ejections: metrics.counter(&names::EJECTIONS, &labels),
            never_sent: retries("never-sent"),
            no_answer: retries("no-answer"),
            status: retries("status"),
            lost_race: retries("lost-race"),
            cuts: metrics.counter(&names::ANSWERS_CUT, &labels),
        }
    }
}
