//! Stage 4a: the way to an HTTP peer or to the app. Names become addresses, one is chosen, a connection is taken from
//! its pool or made.
//!
//! Nothing in here repeats a call by itself: [`Connection::send`] says whether a byte left, and `pattern` decides.

mod balance;
mod connect;
mod pool;
mod resolve;

pub use pool::{Connection, Open, SendError};

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::{Counter, Gauge};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tower::retry::budget::{Budget, TpsBudget};

use crate::config::model::Address;
use crate::error::{Error, Kind};
use crate::lifecycle;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names;
use balance::Load;
use pool::Pool;

/// Repeated tries a destination may get: a share of its calls, and a floor a second.
const BUDGET_SHARE: f32 = 0.2;
const BUDGET_FLOOR: u32 = 10;
const BUDGET_WINDOW: Duration = Duration::from_secs(10);

/// One named service, or the app.
pub struct Upstream {
    /// Its name in the configuration, or `app`.
    pub name: String,
    addresses: Vec<Address>,
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    budget: TpsBudget,
    settings: pool::Settings,
    meters: Meters,
}

struct Meters {
    addresses: Gauge,
    never_sent: Counter,
    no_answer: Counter,
    status: Counter,
}

/// One address of a service.
pub struct Endpoint {
    /// Where it is.
    pub address: SocketAddr,
    load: Load,
    pool: Pool,
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
}

/// What all upstreams of a sidecar share.
#[derive(Clone)]
pub struct Shared {
    /// Where the metrics go.
    pub metrics: Metrics,
    /// Pool shards (see [`lifecycle::shard`]).
    pub shards: usize,
    /// Runs the name look-ups.
    pub runtime: Handle,
}

impl Upstream {
    /// Looks the addresses up once and keeps them fresh while the upstream lives. A name that does not resolve yet is
    /// no error: calls get a 503 until it does.
    pub async fn start(
        name: &str,
        addresses: &[Address],
        idle: Duration,
        shared: &Shared,
    ) -> Arc<Self> {
        let labels = [("service", name)];
        let retries = |reason| {
            shared
                .metrics
                .counter(&names::RETRIES, &[("service", name), ("reason", reason)])
        };
        let upstream = Arc::new(Self {
            name: name.to_owned(),
            addresses: addresses.to_vec(),
            endpoints: ArcSwap::default(),
            budget: TpsBudget::new(BUDGET_WINDOW, BUDGET_FLOOR, BUDGET_SHARE),
            settings: pool::Settings {
                idle,
                shards: shared.shards,
                connects: shared.metrics.counter(&names::CONNECTS, &labels),
                failures: shared.metrics.counter(&names::CONNECT_FAILURES, &labels),
            },
            meters: Meters {
                addresses: shared.metrics.gauge(&names::ADDRESSES, &labels),
                never_sent: retries("never-sent"),
                no_answer: retries("no-answer"),
                status: retries("status"),
            },
        });
        let mut answers = resolve::Answers::default();
        resolve::refresh(&upstream, &mut answers).await;
        lifecycle::spawn(
            &shared.runtime,
            "resolve",
            resolve::keep_fresh(Arc::downgrade(&upstream), answers),
        );
        upstream
    }

    /// The addresses as configured.
    pub fn configured(&self) -> &[Address] {
        &self.addresses
    }

    /// The addresses now.
    pub fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.endpoints.load_full()
    }

    /// Chooses an address that is not in `tried`: peak-EWMA of two random ones. `None` when all were tried.
    ///
    /// # Errors
    /// [`Kind::Unresolved`] when the service has no address at all.
    pub fn pick(&self, tried: &[SocketAddr]) -> Result<Option<Arc<Endpoint>>, Error> {
        let endpoints = self.endpoints.load();
        if endpoints.is_empty() {
            let detail = format!(
                "none of the addresses of {} resolves at the moment",
                self.name
            );
            return Err(Error::new(Kind::Unresolved, detail).after(resolve::FRESH));
        }
        Ok(balance::choose(&endpoints, tried).cloned())
    }

    /// Counts a call towards the retry budget.
    pub fn deposit(&self) {
        self.budget.deposit();
    }

    /// Asks for a repeated try and counts it. A try that never left costs the peer nothing, so only others need the
    /// budget.
    pub fn may_repeat(&self, reason: RetryReason) -> bool {
        if reason != RetryReason::NeverSent && !self.budget.withdraw() {
            return false;
        }
        match reason {
            RetryReason::NeverSent => self.meters.never_sent.increment(1),
            RetryReason::NoAnswer => self.meters.no_answer.increment(1),
            RetryReason::Status => self.meters.status.increment(1),
        }
        true
    }

    /// Takes an idle connection to `endpoint`, or makes one within `deadline`.
    ///
    /// # Errors
    /// [`Kind::Unreachable`]; it was never sent.
    pub async fn connection(
        &self,
        endpoint: &Arc<Endpoint>,
        deadline: Instant,
    ) -> Result<Connection, Error> {
        match endpoint.pool.take(&self.settings) {
            Some(idle) => Ok(idle.into_connection(endpoint)),
            // Boxed: most calls find an idle connection, and this branch would double their future.
            None => Box::pin(self.fresh_connection(endpoint, deadline)).await,
        }
    }

    /// Makes a connection to `endpoint` within `deadline`, whatever waits in the pool.
    ///
    /// # Errors
    /// [`Kind::Unreachable`]; it was never sent.
    pub async fn fresh_connection(
        &self,
        endpoint: &Arc<Endpoint>,
        deadline: Instant,
    ) -> Result<Connection, Error> {
        self.settings.connects.increment(1);
        let connected = connect::connect(endpoint.address, deadline).await;
        match connected {
            Ok(sender) => Ok(Connection::fresh(sender, endpoint)),
            Err(error) => {
                self.settings.failures.increment(1);
                endpoint.load.failed();
                Err(error.detailed(&self.name, endpoint.address))
            }
        }
    }
}

impl Endpoint {
    fn new(address: SocketAddr, shards: usize) -> Arc<Self> {
        Arc::new(Self {
            address,
            load: Load::default(),
            pool: Pool::new(shards),
        })
    }

    /// Tells that a call got no answer here in time.
    pub fn failed(&self) {
        self.load.failed();
    }
}
