//! What a reload replaces as a whole: the table, the routes' patterns and the services they go to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::parts::Parts;
use crate::config::model::{Address, Config, Pattern, Publish as PublishRule, Retry, Timeouts};
use crate::error::{Error, Kind};
use crate::pattern::forward::Forward;
use crate::pattern::hop::Via;
use crate::pattern::publish::Publish;
use crate::route::{Facts, Table};
use crate::service::{Call, Meters, Outcome};
use crate::upstream::Upstream;

/// How long a connection to a peer may lie idle; its sidecar closes later than this.
const PEER_IDLE: Duration = Duration::from_secs(30);
/// How long a connection to the app may lie idle: below the 5 s after which Node's server closes.
const APP_IDLE: Duration = Duration::from_secs(3);
/// The longest a call to the app may take. The caller's own deadline ends it sooner; this only bounds what is held.
const APP_WHOLE: Duration = Duration::from_secs(3600);

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

enum Action {
    Forward(Forward),
    // Boxed: far larger than the other, and made once.
    Publish(Box<Publish>),
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
                        let name = &config.services[rule.to.0].name;
                        let upstream = services.get(name).ok_or_else(|| unbuilt(&route.name))?;
                        Action::Forward(Forward {
                            upstream: Arc::clone(upstream),
                            timeouts: rule.timeouts,
                            retry: rule.retry.clone(),
                            idempotent: rule.idempotent,
                            replay: Arc::clone(&parts.replay),
                            via: parts.outbound_via.clone(),
                        })
                    }
                    Pattern::Publish(rule) => {
                        Action::Publish(Box::new(publish(rule, &config, parts)?))
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
        let facts = Facts::of(&call.request);
        let Some(running) = self.table.find(&facts).and_then(|at| self.routes.get(at)) else {
            let error = self.no_route(&facts);
            return Outcome {
                result: Err(error),
                meters: Arc::clone(&self.unrouted),
            };
        };
        let meters = Arc::clone(&running.meters);
        let result = match &running.action {
            Action::Forward(forward) => forward.call(call).await,
            // Boxed: publishing holds more across its waits than forwarding, whose future every call pays for.
            Action::Publish(publish) => Box::pin(publish.call(call)).await,
        };
        Outcome { result, meters }
    }

    fn no_route(&self, facts: &Facts<'_>) -> Error {
        let detail = match self.table.nearest(facts) {
            Some((name, mismatch)) => {
                format!("no route takes this call; the nearest is `{name}`, but {mismatch}")
            }
            None => "this sidecar has no routes".to_owned(),
        };
        Error::new(Kind::NoRoute, detail)
    }
}

/// Every service by its name; one whose addresses did not change goes on as it is. All are looked up at once.
async fn services(
    config: &Config,
    parts: &Parts,
    old: Option<&Live>,
) -> HashMap<String, Arc<Upstream>> {
    let mut services = HashMap::new();
    let mut starting = JoinSet::new();
    for service in &config.services {
        let kept = old
            .and_then(|old| old.services.get(&service.name))
            .filter(|upstream| upstream.configured() == service.addresses);
        match kept {
            Some(upstream) => {
                services.insert(service.name.clone(), Arc::clone(upstream));
            }
            None => {
                let (service, shared) = (service.clone(), parts.upstream.clone());
                starting.spawn(async move {
                    let upstream =
                        Upstream::start(&service.name, &service.addresses, PEER_IDLE, &shared)
                            .await;
                    (service.name, upstream)
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
    let upstream = Upstream::start(
        "app",
        std::slice::from_ref(address),
        APP_IDLE,
        &parts.upstream,
    )
    .await;
    let connect = Duration::from_secs(1);
    let backoff = crate::config::model::Backoff {
        first: Duration::ZERO,
        longest: Duration::ZERO,
    };
    Forward {
        upstream,
        timeouts: Timeouts {
            whole: APP_WHOLE,
            connect,
            head: APP_WHOLE,
            per_try: APP_WHOLE,
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
    }
}

fn publish(rule: &PublishRule, config: &Config, parts: &Parts) -> Result<Publish, Error> {
    let broker = parts.broker.as_ref().ok_or_else(|| unbuilt("kafka"))?;
    let survives = rule
        .slim
        .as_ref()
        .and_then(|slim| config.claims.get(slim.claim.0))
        .map(|store| store.survives);
    Ok(Publish::new(rule, survives, &broker.sender, &parts.metrics))
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
