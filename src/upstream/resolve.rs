//! Names to addresses: looked up at the start, then again whenever an answer's time is over, the last good answer kept.
//!
//! [`Upstream::replace`] is all that finding addresses needs to know; another source of them, such as Kubernetes'
//! endpoints, calls the same.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::Upstream;
use crate::config::model::Address;

/// An answer is believed at least and at most this long, whatever its TTL says: 0 would ask before each call, and a day
/// would keep calls at an address that somebody else has by now.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// When a name that did not resolve is asked for again.
const AGAIN: Duration = Duration::from_secs(5);
/// How long one look-up may take before the old answer stays.
const LOOKUP: Duration = Duration::from_secs(2);
/// Addresses that one service may have; more are ignored, with a warning.
const ADDRESSES_MAX: usize = 1_000;
/// How often idle connections are looked over, and answers whose time is over.
const SWEEP: Duration = Duration::from_secs(1);

/// Asks the machine's name servers, or those of the configuration, after a look at the hosts file.
pub struct Resolver {
    servers: Vec<SocketAddr>,
    /// Made anew after a failure: the machine may have other name servers by then.
    made: ArcSwapOption<TokioResolver>,
}

impl Resolver {
    /// Asks `servers`, or if there are none those that the machine names.
    pub fn new(servers: &[SocketAddr]) -> Self {
        Self {
            servers: servers.to_vec(),
            made: ArcSwapOption::empty(),
        }
    }

    /// The addresses of a name, and how long they may be believed.
    ///
    /// # Errors
    /// Why the name does not resolve, after two seconds at the latest.
    pub async fn look_up(&self, host: &str) -> Result<(Vec<IpAddr>, Duration), String> {
        let resolver = match self.made.load_full() {
            Some(made) => made,
            None => {
                let made = Arc::new(self.make()?);
                self.made.store(Some(Arc::clone(&made)));
                made
            }
        };
        let found = match timeout(LOOKUP, resolver.lookup_ip(host)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                self.made.store(None);
                return Err(error.to_string());
            }
            Err(_) => {
                self.made.store(None);
                return Err("the look-up timed out".to_owned());
            }
        };
        let ttl = found
            .valid_until()
            .saturating_duration_since(Instant::now().into_std());
        Ok((found.iter().collect(), ttl.clamp(SHORTEST, LONGEST)))
    }

    fn make(&self) -> Result<TokioResolver, String> {
        let mut builder = if self.servers.is_empty() {
            TokioResolver::builder_tokio().map_err(|error| error.to_string())?
        } else {
            let server = |address: &SocketAddr| {
                let at = |mut connection: ConnectionConfig| {
                    connection.port = address.port();
                    connection
                };
                let connections = vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())];
                NameServerConfig::new(address.ip(), true, connections)
            };
            let servers = self.servers.iter().map(server).collect();
            let config = ResolverConfig::from_name_servers(servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        // Kept here, each with its own time; a second memory would only make answers older.
        options.cache_size = 0;
        options.timeout = LOOKUP / 2;
        options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
        builder.build().map_err(|error| error.to_string())
    }
}

/// The configured addresses, each with its last good answer.
pub(super) struct Names(Vec<Name>);

struct Name {
    address: Address,
    answer: Vec<SocketAddr>,
    due: Instant,
}

impl Names {
    pub(super) fn new(addresses: &[Address]) -> Self {
        let name = |address: &Address| Name {
            address: address.clone(),
            answer: Vec::new(),
            due: Instant::now(),
        };
        Self(addresses.iter().map(name).collect())
    }

    /// Looks up all names whose time is over. One that fails keeps its last answer and does not hold up the others.
    pub(super) async fn refresh(&mut self, upstream: &Upstream) {
        let now = Instant::now();
        // All at once: with the name server away, one after the other would take two seconds each.
        let mut looking = JoinSet::new();
        for (at, name) in self.0.iter_mut().enumerate() {
            let port = name.address.port;
            if let Ok(ip) = name.address.host.parse() {
                name.answer = vec![SocketAddr::new(ip, port)];
            } else if name.due <= now {
                let resolver = Arc::clone(&upstream.shared.resolver);
                let host = name.address.host.clone();
                looking.spawn(async move { (at, resolver.look_up(&host).await) });
            }
        }
        for (at, answer) in looking.join_all().await {
            let name = &mut self.0[at];
            match answer {
                Ok((found, ttl)) => {
                    let port = name.address.port;
                    name.answer = found
                        .into_iter()
                        .map(|ip| SocketAddr::new(ip, port))
                        .collect();
                    name.due = Instant::now() + ttl;
                }
                Err(error) => {
                    name.due = Instant::now() + AGAIN;
                    tracing::warn!(service = upstream.name, address = %name.address, error, kept = name.answer.len(), "name does not resolve");
                }
            }
        }
        upstream.replace(&self.all(&upstream.name));
    }

    fn all(&self, service: &str) -> Vec<SocketAddr> {
        let mut found: Vec<SocketAddr> = self
            .0
            .iter()
            .flat_map(|name| name.answer.iter().copied())
            .collect();
        found.sort_unstable();
        found.dedup();
        if found.len() > ADDRESSES_MAX {
            let (found, max) = (found.len(), ADDRESSES_MAX);
            tracing::warn!(service, found, max, "too many addresses");
        }
        found.truncate(ADDRESSES_MAX);
        found
    }
}

/// Looks up and sweeps until the upstream is gone.
pub(super) async fn keep_fresh(upstream: Weak<Upstream>, mut names: Names) {
    loop {
        sleep(SWEEP).await;
        let Some(upstream) = upstream.upgrade() else {
            return;
        };
        for endpoint in upstream.endpoints.load().iter() {
            endpoint.pool.sweep(upstream.idle);
        }
        names.refresh(&upstream).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Handle;

    use super::super::{Changes, Shared, plain};
    use super::*;
    use crate::config::model::Protocol;
    use crate::telemetry::metrics::Metrics;

    #[tokio::test]
    async fn a_name_that_fails_keeps_its_last_answer_and_the_others_move_on() {
        let shared = Shared {
            metrics: Metrics::new(),
            shards: 1,
            idle_max: 1,
            runtime: Handle::current(),
            changes: Changes::new(),
            resolver: Arc::new(Resolver::new(&[])),
        };
        let address = |host: &str| Address {
            host: host.to_owned(),
            port: 80,
        };
        let mut rule = plain("billing", &address("nowhere.invalid"), Protocol::Auto);
        rule.addresses.push(address("127.0.0.2"));
        let mut names = Names::new(&rule.addresses);
        let upstream = Upstream::start(rule, (Duration::from_secs(1), None), &shared, None).await;
        let known = |host: [u8; 4]| SocketAddr::from((host, 80));
        names.0[0].answer = vec![known([127, 0, 0, 1])];
        names.refresh(&upstream).await;
        let found: Vec<SocketAddr> = upstream
            .endpoints()
            .iter()
            .map(|endpoint| endpoint.address)
            .collect();
        assert_eq!(found, [known([127, 0, 0, 1]), known([127, 0, 0, 2])]);
    }
}
