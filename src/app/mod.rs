//! The composition root: builds every part from a configuration, in order, and takes them down again, in order.
//!
//! Doors are bound first, so that a port in use is known at once; then parts are built; then the sidecar is ready.

mod consumers;
mod doors;
mod live;
mod parts;
mod reload;
mod stack;
mod subscriptions;
mod upkeep;

pub use parts::BuildError;
pub use reload::{LOOK, Reloaded, Watcher};

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use crate::admin::{Dump, Probe, admin_handler, probe_handler};
use crate::config::model::Config;
use crate::lifecycle::{self, Drain, Ready, Workers};
use crate::listen::http::{Door, HEAD_TIMEOUT};
use crate::listen::tcp;
use crate::pattern::hop::Via;
use crate::pattern::hydrate::Hydrate;
use crate::pattern::publish::Sender;
use crate::service::{Call, Gate, Handler, Meters};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names;
use crate::tls::{Acceptor, Reason};
use crate::upstream;
use consumers::Consumers;
use doors::{InboundDoor, OutboundDoor};
use live::Live;
use parts::Parts;
use stack::Keeper;

/// The outbound door closes when nothing was in flight for this long: the app may still be finishing.
const OUTBOUND_QUIET: Duration = Duration::from_secs(1);
/// How long before the end of `drain` the outbound door closes although calls are in flight: what would go on for ever,
/// such as a tunnel or an idle connection, ends in order only if it is told before the end. Of a short drain a quarter.
const OUTBOUND_LAST: Duration = Duration::from_secs(1);
/// The part of `drain` that deliveries may use up, so that an app which hangs leaves the doors some.
const CONSUMERS_SHARE: f32 = 0.75;
/// How long the broker may take for the last receipts: they must not use up the time of calls. Of a short drain a quarter.
const RECEIPTS_FLUSH: Duration = Duration::from_secs(2);
/// How long the last spans may take at most, of what is left of `drain`.
const SPANS_LAST: Duration = Duration::from_secs(3);
/// Connections of a side door, and how long one may be silent: whoever opens many must not keep the kubelet out.
const SIDE_CONNECTIONS: usize = 256;
const SIDE_HEAD_TIMEOUT: Duration = Duration::from_secs(2);

/// What a sidecar knows of its surroundings.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The pod's own address, under which peers reach the inbound door.
    pub pod_ip: Option<IpAddr>,
    /// The machine's name.
    pub hostname: Option<String>,
    /// Worker threads; as many as CPUs if `None`.
    pub workers: Option<usize>,
}

/// Where the doors are in the end; a port 0 has become a real one.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Addresses {
    /// The app's own calls.
    pub outbound: Option<SocketAddr>,
    /// Other sidecars' calls.
    pub inbound: Option<SocketAddr>,
    /// Kubelet and Prometheus.
    pub probe: Option<SocketAddr>,
    /// People on this machine.
    pub admin: SocketAddr,
}

/// A running sidecar.
pub struct Sidecar {
    /// Where its doors are.
    pub addresses: Addresses,
    /// Everything it counts.
    pub metrics: Metrics,
    live: Arc<ArcSwap<Live>>,
    parts: Arc<Parts>,
    ready: Arc<Ready>,
    /// Present once the sidecar is open.
    consumers: Option<Consumers>,
    outbound_gate: Arc<Gate>,
    drains: Drains,
    workers: Arc<Workers>,
}

#[derive(Default)]
struct Drains {
    outbound: Drain,
    inbound: Drain,
    side: Drain,
}

struct Listeners {
    outbound: Option<TcpListener>,
    inbound: Option<TcpListener>,
    probe: Option<TcpListener>,
    admin: TcpListener,
}

impl Sidecar {
    /// Starts a sidecar on the current runtime, which does everything but serve calls; worker threads do that.
    ///
    /// # Errors
    /// A door's address is taken, a claims folder is in use or not writable, or the broker's settings are refused. A
    /// broker or a service that is away is no error.
    pub async fn start(config: Config, surroundings: Surroundings) -> Result<Self, BuildError> {
        lifecycle::raise_open_files();
        let listeners = Listeners::bind(&config).await?;
        let addresses = listeners.addresses()?;
        let workers = Workers::start(
            surroundings
                .workers
                .unwrap_or_else(Workers::count_for_this_machine),
        )?;
        let workers = Arc::new(workers);
        let metrics = Metrics::new();
        let shared = upstream::Shared {
            metrics: metrics.clone(),
            shards: workers.shards(),
            idle_max: config.limits.in_flight,
            runtime: Handle::current(),
            changes: upstream::Changes::new(),
            resolver: Arc::new(upstream::Resolver::new(&config.dns)),
        };
        let instance = instance(&addresses, &surroundings);
        let config = Arc::new(config);
        let parts = Arc::new(Parts::build(&config, instance, shared)?);
        let live = Live::build(Arc::clone(&config), &parts, None).await?;
        let live = Arc::new(ArcSwap::from_pointee(live));
        let gate = |door| {
            let gate = Gate::new(config.limits.in_flight);
            let inside = Arc::clone(&gate);
            let read = move || inside.inside() as f64;
            metrics.watch(&names::IN_FLIGHT, &[("door", door)], read);
            gate
        };
        let mut sidecar = Self {
            addresses,
            metrics: metrics.clone(),
            live,
            parts,
            ready: Arc::default(),
            consumers: None,
            outbound_gate: gate("outbound"),
            drains: Drains::default(),
            workers,
        };
        sidecar.open(&config, listeners, gate("inbound")).await?;
        let parts = || Arc::downgrade(&sidecar.parts);
        lifecycle::spawn(&Handle::current(), "upkeep", upkeep::metrics(parts()));
        if !config.claims.is_empty() || config.subscriptions.iter().any(upkeep::reads_slim) {
            lifecycle::spawn(&Handle::current(), "worth", upkeep::worth(parts()));
        }
        lifecycle::spawn(&Handle::current(), "sweep", upkeep::sweep(parts()));
        lifecycle::spawn(&Handle::current(), "keys", upkeep::keys(parts()));
        if !config.tls.is_empty() {
            lifecycle::spawn(
                &Handle::current(),
                "tls",
                upkeep::refresh_identities(parts()),
            );
        }
        sidecar.ready.started();
        Ok(sidecar)
    }

    /// Hands every door its calls, the consumers their lanes.
    async fn open(
        &mut self,
        config: &Config,
        listeners: Listeners,
        inbound_gate: Arc<Gate>,
    ) -> Result<(), BuildError> {
        let parts = Arc::clone(&self.parts);
        let hydrate = Arc::new(self.hydrate(config));
        let gates = vec![
            ("outbound", Arc::clone(&self.outbound_gate)),
            ("inbound", Arc::clone(&inbound_gate)),
        ];
        if let Some(listener) = listeners.outbound {
            let door = Arc::new(OutboundDoor {
                live: Arc::clone(&self.live),
                hydrate: Arc::clone(&hydrate),
                timelines: Arc::clone(&parts.timelines),
                answers: parts
                    .broker
                    .as_ref()
                    .and_then(|broker| broker.sender.answers.clone()),
                streams: doors::streams(&self.metrics),
                changes: parts.upstream.changes.clone(),
                unrouted: Arc::clone(&parts.unrouted),
                reserved: Meters::new(&parts.metrics, "outbound", "(wayside)", "-"),
            });
            let keeper = self.keeper(config, "outbound", &self.outbound_gate, &parts.unrouted);
            let handler = stack::stack(keeper, move |call: Box<Call>| {
                let door = Arc::clone(&door);
                async move { door.call(call).await }
            });
            self.accept(config, listener, "outbound", handler);
        }
        if let Some(listener) = listeners.inbound {
            let door = Arc::new(self.inbound(config, &parts).await);
            let keeper = self.keeper(config, "inbound", &inbound_gate, &door.unrouted);
            let handler = stack::stack(keeper, move |call: Box<Call>| {
                let door = Arc::clone(&door);
                async move { door.call(call).await }
            });
            self.accept(config, listener, "inbound", handler);
        }
        self.open_side_doors(config, (listeners.probe, listeners.admin), gates);
        self.subscribe(config, hydrate).await
    }

    fn open_side_doors(
        &self,
        config: &Config,
        (probe_listener, admin_listener): (Option<TcpListener>, TcpListener),
        gates: Vec<(&'static str, Arc<Gate>)>,
    ) {
        let probe = Arc::new(Probe {
            ready: Arc::clone(&self.ready),
            metrics: self.metrics.clone(),
        });
        if let Some(listener) = probe_listener {
            self.accept(config, listener, "probe", probe_handler(Arc::clone(&probe)));
        }
        let live = Arc::clone(&self.live);
        let dump = Dump {
            probe,
            config: Box::new(move || Arc::clone(&live.load().config)),
            timelines: Arc::clone(&self.parts.timelines),
            worth: Arc::clone(&self.parts.worth),
            subscriptions: Arc::clone(&self.parts.subscriptions) as _,
            gates,
        };
        self.accept(
            config,
            admin_listener,
            "admin",
            admin_handler(Arc::new(dump)),
        );
    }

    async fn inbound(&self, config: &Config, parts: &Parts) -> InboundDoor {
        let app = match &config.app {
            Some(address) => {
                Some(live::to_app(address, Via::new(&config.service, "inbound"), parts).await)
            }
            None => None,
        };
        let meters = |route, pattern| Meters::new(&parts.metrics, "inbound", route, pattern);
        InboundDoor {
            app,
            allow: config.inbound.as_ref().and_then(|door| door.allow.clone()),
            claims: Arc::clone(&parts.claims),
            worth: Arc::clone(&parts.worth),
            meters: meters("(app)", "forward"),
            reserved: meters("(wayside)", "-"),
            unrouted: meters("(none)", "-"),
        }
    }

    fn hydrate(&self, config: &Config) -> Hydrate {
        let live = Arc::clone(&self.live);
        let services = Arc::new(move |name: &str| live.load().services.get(name).cloned());
        let claims = Arc::clone(&self.parts.claims);
        Hydrate::new(
            &config.service,
            claims,
            services,
            &config.limits,
            (&self.parts.worth, &self.metrics),
        )
    }

    /// Starts the consumers.
    async fn subscribe(
        &mut self,
        config: &Config,
        hydrate: Arc<Hydrate>,
    ) -> Result<(), BuildError> {
        let claims_at = match self.addresses.outbound {
            Some(address) if address.ip().is_unspecified() => {
                format!("http://127.0.0.1:{}", address.port())
            }
            Some(address) => format!("http://{address}"),
            None => String::new(),
        };
        let consumers = Consumers {
            parts: Arc::clone(&self.parts),
            workers: Arc::clone(&self.workers),
            receipts: consumers::receipts(&self.parts, &self.live, &config.service),
            hydrate,
            claims_at,
            groups: Mutex::default(),
            leaving: Mutex::default(),
        };
        consumers.apply(config).await?;
        self.consumers = Some(consumers);
        Ok(())
    }

    fn keeper(
        &self,
        config: &Config,
        door: &'static str,
        gate: &Arc<Gate>,
        unrouted: &Arc<Meters>,
    ) -> Keeper {
        Keeper {
            who: format!("wayside-{}", config.service),
            door,
            gate: Arc::clone(gate),
            unrouted: Arc::clone(unrouted),
            panics: self.metrics.counter(&names::PANICS, &[]),
            spans: self.parts.spans.clone(),
        }
    }

    fn accept(&self, config: &Config, listener: TcpListener, name: &'static str, handler: Handler) {
        let most = config.limits.connections;
        let (drain, connections_max, head_timeout) = match name {
            "outbound" => (&self.drains.outbound, most, HEAD_TIMEOUT),
            "inbound" => (&self.drains.inbound, most, HEAD_TIMEOUT),
            _ => (&self.drains.side, SIDE_CONNECTIONS, SIDE_HEAD_TIMEOUT),
        };
        let door = Door {
            name,
            handler,
            tls: self.acceptor(config, name),
            connections_max,
            head_max: config.limits.head,
            head_timeout,
            open: self.metrics.gauge(&names::CONNECTIONS, &[("door", name)]),
        };
        let accepting = tcp::accept(
            listener,
            Arc::new(door),
            Arc::clone(&self.workers),
            drain.guard(),
        );
        lifecycle::spawn(&Handle::current(), "accept", accepting);
    }

    /// The TLS side of a door, if it has one: only `inbound` may.
    fn acceptor(&self, config: &Config, door: &'static str) -> Option<Acceptor> {
        let inbound = config.inbound.as_ref().filter(|_| door == "inbound")?;
        let identity = Arc::clone(self.parts.identities.get(inbound.tls?.0)?);
        let failure = |reason: Reason| {
            let labels = [("side", "door"), ("name", door), ("reason", reason.word())];
            self.metrics.counter(&names::TLS_FAILURES, &labels)
        };
        Some(Acceptor::new(identity, failure))
    }

    /// Takes everything down in order, within the configured `drain`: consumers, inbound, outbound, producer. Names
    /// what did not end in its time: nothing, after a clean drain.
    pub async fn stop(self) -> Vec<&'static str> {
        let within = self.live.load().config.drain;
        let deadline = Instant::now() + within;
        self.ready.draining();
        let mut left = Vec::new();
        let mut note = |ended: bool, what| {
            if !ended {
                left.push(what);
            }
        };
        if let Some(consumers) = &self.consumers {
            let ended = consumers.stop(within.mul_f32(CONSUMERS_SHARE)).await;
            note(ended, "consumers");
        }
        self.drains.inbound.begin(deadline);
        note(
            self.drains.inbound.finished(deadline).await,
            "inbound calls",
        );
        let receipts = self
            .consumers
            .as_ref()
            .and_then(|all| all.receipts.as_ref());
        if let Some(receipts) = receipts {
            let until = Instant::now() + RECEIPTS_FLUSH.min(within / 4);
            note(receipts.flush(until).await, "receipts");
        }
        let answers = self
            .parts
            .broker
            .as_ref()
            .and_then(|broker| broker.sender.answers.as_ref());
        if let Some(answers) = answers {
            // Callers that wait get their 202; what they waited for is at its address.
            answers.results().close();
        }
        let last = deadline - OUTBOUND_LAST.min(within / 4);
        self.wait_for_quiet(last).await;
        self.parts.upstream.changes.end();
        self.drains.outbound.begin(deadline);
        note(
            self.drains.outbound.finished(deadline).await,
            "outbound calls",
        );
        if let Some(broker) = &self.parts.broker {
            note(
                empty(&broker.sender, deadline).await,
                "records on their way",
            );
        }
        if let Some(spans) = &self.parts.spans {
            // Not among what is left: whatever the collector does, the calls ended as they should.
            spans.flush(deadline.min(Instant::now() + SPANS_LAST)).await;
        }
        self.parts.timelines.close();
        let side_deadline = deadline.max(Instant::now() + Duration::from_millis(200));
        self.drains.side.begin(side_deadline);
        self.drains.side.finished(side_deadline).await;
        left
    }

    /// Waits until the outbound door had nothing in flight for a while. Calls shorter than the time between two looks
    /// are seen by their number.
    async fn wait_for_quiet(&self, last: Instant) {
        if self.addresses.outbound.is_none() {
            return;
        }
        let (mut quiet_since, mut entered) = (Instant::now(), self.outbound_gate.entered());
        while Instant::now() < last && quiet_since.elapsed() < OUTBOUND_QUIET {
            sleep(Duration::from_millis(20)).await;
            let seen = self.outbound_gate.entered();
            if self.outbound_gate.inside() > 0 || seen != entered {
                (quiet_since, entered) = (Instant::now(), seen);
            }
        }
    }
}

impl Listeners {
    async fn bind(config: &Config) -> io::Result<Self> {
        async fn optional(
            name: &str,
            address: Option<SocketAddr>,
        ) -> io::Result<Option<TcpListener>> {
            match address {
                Some(address) => tcp::bind(name, address).await.map(Some),
                None => Ok(None),
            }
        }
        Ok(Self {
            outbound: optional("outbound", config.outbound.as_ref().map(|door| door.listen))
                .await?,
            inbound: optional("inbound", config.inbound.as_ref().map(|door| door.listen)).await?,
            probe: optional("probe", config.probe).await?,
            admin: tcp::bind("admin", config.admin).await?,
        })
    }

    fn addresses(&self) -> io::Result<Addresses> {
        let of = |listener: &Option<TcpListener>| {
            listener.as_ref().map(TcpListener::local_addr).transpose()
        };
        Ok(Addresses {
            outbound: of(&self.outbound)?,
            inbound: of(&self.inbound)?,
            probe: of(&self.probe)?,
            admin: self.admin.local_addr()?,
        })
    }
}

/// What a record calls this sidecar: where its claims can be fetched if that is known, else the machine's name.
fn instance(addresses: &Addresses, surroundings: &Surroundings) -> String {
    let ip = |address: SocketAddr| match address.ip() {
        ip if !ip.is_unspecified() => Some(ip),
        _ => surroundings.pod_ip,
    };
    let reachable = addresses
        .inbound
        .and_then(|address| Some(SocketAddr::new(ip(address)?, address.port())));
    match (reachable, &surroundings.hostname) {
        (Some(address), _) => address.to_string(),
        (None, Some(name)) => name.replace('/', "-"),
        (None, None) => IpAddr::V4(Ipv4Addr::LOCALHOST).to_string(),
    }
}

/// Sends what is on its way to the broker. What stays in the spool is not lost, and so not left behind. True if nothing
/// else is left.
async fn empty(sender: &Arc<Sender>, deadline: Instant) -> bool {
    let producer = &sender.producer;
    let Some((outbox, _)) = &sender.outbox else {
        return producer.flush(deadline).await;
    };
    if !outbox.flush(deadline).await {
        tracing::warn!(
            messages = outbox.spool().owed(),
            "what the broker has not taken stays in the spool"
        );
    }
    let flushed = producer.flush(deadline).await;
    let sender = Arc::clone(sender);
    let closing = tokio::task::spawn_blocking(move || {
        if let Some((outbox, _)) = &sender.outbox {
            outbox.close();
        }
    });
    // A panic in there was reported by the thread that had it.
    closing.await.ok();
    flushed
}
