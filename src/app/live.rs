//! What a reload replaces as a whole: the table, the routes' patterns and the services they go to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::parts::Parts;
use crate::config::model::{
    Address, Config, ENDLESS, Forward as ForwardRule, Pattern, Protocol, Publish as PublishRule,
    Retry, Rewrite, Service, Timeouts,
};
use crate::error::{Error, Kind};
use crate::pattern::fallback::Fallback;
use crate::pattern::forward::{Forward, Split};
use crate::pattern::hop::{self, Via};
use crate::pattern::publish::Publish;
use crate::reply::headers::Carried;
use crate::route::{Facts, Table, rewrite};
use crate::service::{Attended, Call, Meters, Outcome, Response};
use crate::telemetry::names;
use crate::tls::Connector;
use crate::upstream::{self, Rate, Upstream};

/// How long a connection to a peer may lie idle; its sidecar closes later than this.
const PEER_IDLE: Duration = Duration::from_secs(30);
/// How long a connection to the app may lie idle: below the 5 s after which Node's server closes.
const APP_IDLE: Duration = Duration::from_secs(3);

/// How long a body on its way to or from the app may be silent: the caller's sidecar decides with its own limit; this
/// one only ends what a caller has abandoned half-way.
const APP_IDLE_BODY: Duration = Duration::from_secs(300);

/// One generation of the configuration, running.
pub(crate) struct Live {
    /// What it was built from.
    pub(crate) config: Arc<Config>,
    table: Table,
    routes: Vec<Running>,
    /// Every named service.
    pub(crate) services: HashMap<String, Arc<Upstream>>,
    unrouted: Arc<Meters>,
}

struct Running {
    meters: Arc<Meters>,
    action: Action,
}

#[expect(
    clippy::large_enum_variant,
    reason = "made once a route; the plain one is read by every call, without another hop through a box"
)]
enum Action {
    Forward(Forward),
    /// With what the route changes, lets through only so often, or queues.
    Changed(Box<Changed>),
    // Boxed: far larger than the other, and made once.
    Publish(Box<Publish>),
}

struct Changed {
    onward: Onward,
    rewrite: Rewrite,
    rate: Option<Arc<Rate>>,
    name: String,
}

#[expect(
    clippy::large_enum_variant,
    reason = "made once a route, and in a box already"
)]
enum Onward {
    Forward(Forward),
    Fallback(Fallback),
}

impl Changed {
    async fn call(&self, mut call: Box<Call>) -> Result<Response, Error> {
        if let Some(rate) = &self.rate {
            rate.pass(&self.name)?;
        }
        let set = &self.rewrite.set;
        if !set.is_empty() {
            let ours = |token: &str| {
                let mut names = set.iter().map(|(name, _)| name.as_str());
                names.any(|name| name.eq_ignore_ascii_case(token))
            };
            hop::unlist(call.request.headers_mut(), ours);
        }
        rewrite::request(&self.rewrite, &mut call.request)?;
        let mut response = match &self.onward {
            Onward::Forward(forward) => forward.call(call).await?,
            Onward::Fallback(fallback) => fallback.call(call).await?,
        };
        // What is changed is the service's answer, not ours.
        if response.extensions().get::<Carried>().is_none() {
            rewrite::answer(&self.rewrite, response.headers_mut());
        }
        Ok(response)
    }
}

impl Live {
    /// Builds a generation. Services whose addresses did not change keep their connections.
    pub(crate) async fn build(
        config: Arc<Config>,
        parts: &Parts,
        old: Option<&Self>,
    ) -> Result<Self, Error> {
        let services = services(&config, parts, old).await;
        let routes = config
            .outbound
            .as_ref()
            .map_or(&[][..], |outbound| &outbound.routes);
        let running = routes
            .iter()
            .map(|route| {
                let word = word(&route.pattern);
                let action = match &route.pattern {
                    Pattern::Forward(rule) => {
                        forward((&route.name, rule), &config, &services, (parts, old))?
                    }
                    Pattern::Publish(rule) => {
                        Action::Publish(Box::new(publish((&route.name, rule), parts)?))
                    }
                };
                Ok(Running {
                    meters: Meters::new(&parts.metrics, "outbound", &route.name, word),
                    action,
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let table = Table::new(routes);
        let unrouted = Arc::clone(&parts.unrouted);
        Ok(Self {
            config,
            table,
            routes: running,
            services,
            unrouted,
        })
    }

    /// Finds a call's route and runs its pattern.
    pub(crate) async fn call(&self, call: Box<Call>) -> Outcome {
        let running = match self.find(&call) {
            Ok(running) => running,
            Err(error) => {
                return Outcome {
                    result: Err(error),
                    meters: Arc::clone(&self.unrouted),
                };
            }
        };
        let meters = Arc::clone(&running.meters);
        let attended = Attended::new(&meters, &call.trace);
        let result = match &running.action {
            Action::Forward(forward) => forward.call(call).await.map_err(Error::from),
            // Boxed, like the next: the plain future is the one that every call pays for.
            Action::Changed(changed) => Box::pin(changed.call(call)).await,
            // Boxed: publishing holds more across its waits than forwarding, whose future every call pays for.
            Action::Publish(publish) => Box::pin(publish.call(call)).await,
        };
        attended.over();
        Outcome { result, meters }
    }

    fn find(&self, call: &Call) -> Result<&Running, Error> {
        let facts = Facts::of(&call.request);
        let found = self.table.find(&facts).and_then(|at| self.routes.get(at));
        found.ok_or_else(|| self.no_route(&facts))
    }

    /// The rate of a route that has one.
    fn rate(&self, name: &str) -> Option<&Arc<Rate>> {
        let mut routes = self.routes.iter();
        let running = routes.find(|running| running.meters.route == name)?;
        match &running.action {
            Action::Changed(changed) => changed.rate.as_ref(),
            _ => None,
        }
    }

    fn no_route(&self, facts: &Facts<'_>) -> Error {
        if facts.method == http::Method::CONNECT {
            let detail = "CONNECT is switched off; a route that names it in `methods` takes it";
            return Error::new(Kind::NotImplemented, detail);
        }
        let detail = match self.table.nearest(facts) {
            Some((name, mismatch)) => {
                format!("no route takes this call; the nearest is `{name}`, but {mismatch}")
            }
            None => "this sidecar has no routes".to_owned(),
        };
        Error::new(Kind::NoRoute, detail)
    }
}

fn forward(
    (name, rule): (&str, &ForwardRule),
    config: &Config,
    services: &HashMap<String, Arc<Upstream>>,
    (parts, old): (&Parts, Option<&Live>),
) -> Result<Action, Error> {
    let shares = rule.to.iter().map(|(service, weight)| {
        let service = &config.services[service.0].name;
        let upstream = services.get(service).ok_or_else(|| unbuilt(name))?;
        Ok((Arc::clone(upstream), *weight))
    });
    let forward = Forward {
        to: Split::new(shares.collect::<Result<Vec<_>, Error>>()?),
        timeouts: rule.timeouts,
        retry: rule.retry.clone(),
        idempotent: rule.idempotent,
        replay: Arc::clone(&parts.replay),
        via: parts.outbound_via.clone(),
        timing: Some(format!("wayside-{}", config.service)),
    };
    let onward = match &rule.otherwise {
        Some(publish) => fallback((name, publish), forward, config, parts)?,
        None if rule.rate.is_none() && rule.rewrite == Rewrite::default() => {
            return Ok(Action::Forward(forward));
        }
        None => Onward::Forward(forward),
    };
    Ok(Action::Changed(Box::new(Changed {
        onward,
        rewrite: rule.rewrite.clone(),
        rate: rule
            .rate
            .map(|rule| Rate::after(rule, old.and_then(|old| old.rate(name)))),
        name: format!("the route {name}"),
    })))
}

fn fallback(
    (name, rule): (&str, &PublishRule),
    forward: Forward,
    config: &Config,
    parts: &Parts,
) -> Result<Onward, Error> {
    let publish = publish((name, rule), parts)?;
    let broker = parts.broker.as_ref();
    let answers = broker.and_then(|broker| broker.sender.answers.as_ref());
    let queued = answers.ok_or_else(|| unbuilt("kafka.replies"))?.queued();
    let named = (name, config.service.as_str());
    let fallback = Fallback::new(named, forward, publish, queued, &parts.metrics);
    Ok(Onward::Fallback(fallback))
}

/// The TLS side of the way to a service, if it has one.
fn connector(service: &Service, parts: &Parts) -> Option<Connector> {
    let tls = service.tls.as_ref()?;
    let identity = Arc::clone(parts.identities.get(tls.identity.0)?);
    let failure = |reason: crate::tls::Reason| {
        let labels = [
            ("side", "service"),
            ("name", service.name.as_str()),
            ("reason", reason.word()),
        ];
        parts.metrics.counter(&names::TLS_FAILURES, &labels)
    };
    Some(Connector::new(
        identity,
        tls.expected.clone(),
        &service.name,
        failure,
    ))
}

/// Every service by its name; one whose rule did not change goes on as it is. All are looked up at once.
async fn services(
    config: &Config,
    parts: &Parts,
    old: Option<&Live>,
) -> HashMap<String, Arc<Upstream>> {
    let mut services = HashMap::new();
    let mut starting = JoinSet::new();
    for service in &config.services {
        let tls = old.is_none_or(|old| old.config.tls == config.tls);
        let kept = old
            .and_then(|old| old.services.get(&service.name))
            .filter(|upstream| tls && upstream.rule() == service);
        match kept {
            Some(upstream) => {
                services.insert(service.name.clone(), Arc::clone(upstream));
            }
            None => {
                let (service, shared) = (service.clone(), parts.upstream.clone());
                let before = old.and_then(|old| old.services.get(&service.name).cloned());
                let connector = connector(&service, parts);
                starting.spawn(async move {
                    let name = service.name.clone();
                    let how = (PEER_IDLE, connector);
                    let upstream = Upstream::start(service, how, &shared, before.as_deref()).await;
                    (name, upstream)
                });
            }
        }
    }
    services.extend(starting.join_all().await);
    services
}

/// The word for a pattern in headers, logs and metrics.
pub(crate) fn word(pattern: &Pattern) -> &'static str {
    match pattern {
        Pattern::Forward(_) => "forward",
        Pattern::Publish(rule) if rule.slim.is_some() => "event",
        Pattern::Publish(_) => "publish",
    }
}

/// The way to the app: never repeated once sent, since the caller's sidecar repeats, and one hop that does is enough.
pub(crate) async fn to_app(address: &Address, via: Via, parts: &Parts) -> Forward {
    let rule = upstream::plain("app", address, Protocol::Auto);
    let upstream = Upstream::start(rule, (APP_IDLE, None), &parts.upstream, None).await;
    let connect = Duration::from_secs(1);
    let backoff = crate::config::model::Backoff {
        first: Duration::ZERO,
        longest: Duration::ZERO,
    };
    Forward {
        to: Split::one(upstream),
        // The caller's own deadline ends a call; it came with it.
        timeouts: Timeouts {
            whole: ENDLESS,
            connect,
            head: ENDLESS,
            per_try: ENDLESS,
            idle: APP_IDLE_BODY,
        },
        retry: Retry {
            attempts: 1,
            backoff,
            statuses: Vec::new(),
        },
        idempotent: false,
        replay: Arc::clone(&parts.replay),
        via,
        timing: None,
    }
}

fn publish((name, rule): (&str, &PublishRule), parts: &Parts) -> Result<Publish, Error> {
    let broker = parts.broker.as_ref().ok_or_else(|| unbuilt("kafka"))?;
    if let Some(answers) = &broker.sender.answers {
        answers.open()?;
    }
    Publish::new((name, rule), &broker.sender, &parts.metrics)
}

/// Compiling the configuration has ruled this out; the error is there so that a defect is no panic.
fn unbuilt(part: &str) -> Error {
    Error::new(
        Kind::Internal,
        format!("`{part}` needs a part that was not built"),
    )
}

/// The same way with a limit on one delivery.
pub(crate) fn within(mut forward: Forward, whole: Duration) -> Forward {
    forward.timeouts.whole = whole;
    forward.timeouts.connect = forward.timeouts.connect.min(whole);
    forward
}
