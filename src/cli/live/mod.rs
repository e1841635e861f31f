//! `wayside check --live`: what a good file meets at the broker and the name servers, by the rules of [`rules`].
//!
//! The facts are asked for first, all within one time, and nothing is changed anywhere; the rules then are pure.

mod finding;
mod rules;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use self::finding::{Finding, Severity};
use self::rules::services::Resolved;
use super::complain;
use crate::config::Loaded;
use crate::config::model::{Cluster, Config};
use crate::kafka::client::Bootstrap;
use crate::kafka::inspect::{Questions, inspect};
use crate::upstream::Resolver;

/// Between two lines of progress.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// What was found, and what was looked at.
#[derive(Debug, Serialize)]
pub(super) struct Live {
    /// What was asked, in words.
    pub(super) seen: String,
    /// Errors first, then by place.
    pub(super) findings: Vec<Finding>,
}

impl Live {
    /// Whether no finding is an error.
    pub(super) fn is_ok(&self) -> bool {
        let mut findings = self.findings.iter();
        findings.all(|finding| finding.severity != Severity::Error)
    }
}

/// Checks one file against the world, for so long at most.
pub(super) fn check(file: &str, loaded: &Loaded, within: Duration) -> Live {
    let progress = Progress::new(file);
    let config = &loaded.config;
    let names = names(config);
    let asked = names.len();
    let servers = config.dns.clone();
    let resolving = std::thread::spawn(move || resolve(&servers, names, within));
    let (mut findings, mut seen) = broker(loaded, within, progress);
    match resolving.join() {
        Ok(resolved) => findings.extend(rules::services::apply(loaded, &resolved)),
        Err(_) => complain("wayside: the names were not looked up: their thread ended"),
    }
    seen.extend((asked > 0).then(|| many(asked, "name")));
    findings.sort_by_key(Finding::order);
    Live {
        seen: seen.join(", "),
        findings,
    }
}

fn broker(loaded: &Loaded, within: Duration, progress: Progress) -> (Vec<Finding>, Vec<String>) {
    let nothing = |why: &str| (Vec::new(), vec![why.to_owned()]);
    let Some(kafka) = &loaded.config.kafka else {
        return nothing("no broker to ask: there is no `kafka`");
    };
    let brokers = match &kafka.cluster {
        Cluster::Embedded => {
            return nothing("no broker to ask: `kafka: embedded` has nothing live to check");
        }
        Cluster::Brokers(brokers) => brokers,
    };
    let questions = questions(&loaded.config);
    let (topics, groups) = (questions.topics.len(), questions.subscribed.len());
    let bootstrap = Bootstrap::brokers(brokers);
    let say = move |doing: &str| progress.say(doing);
    match inspect(kafka, &bootstrap, questions, within, say) {
        Ok(facts) => {
            let seen = [
                many(facts.brokers.len(), "broker"),
                many(topics, "topic"),
                many(groups, "subscription"),
            ];
            (rules::apply(loaded, &facts), seen.to_vec())
        }
        Err(why) => {
            let (rule, found) = rules::unreachable(&why, &bootstrap.address);
            let finding = found.at(rule, &loaded.places);
            (vec![finding], vec!["no broker".to_owned()])
        }
    }
}

fn questions(config: &Config) -> Questions {
    let mut questions = Questions::default();
    for one in rules::uses(config) {
        questions.topics.insert(one.topic.to_owned());
        if one.role.is_written() {
            questions.written.insert(one.topic.to_owned());
        }
    }
    // A broadcast has no place in its topics.
    let of = config.subscriptions.iter().filter(|one| !one.broadcast);
    let of = of.map(|one| (one.group.clone(), one.topic.clone()));
    questions.subscribed = of.collect();
    questions
}

/// The names of services; addresses need no look-up.
fn names(config: &Config) -> BTreeSet<String> {
    let addresses = config
        .services
        .iter()
        .flat_map(|service| &service.addresses);
    addresses
        .filter(|address| address.host.parse::<IpAddr>().is_err())
        .map(|address| address.host.clone())
        .collect()
}

/// Looks all of them up at once, as a sidecar does.
fn resolve(servers: &[SocketAddr], names: BTreeSet<String>, within: Duration) -> Resolved {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let failed = |name| (name, Err(error.to_string()));
            return names.into_iter().map(failed).collect();
        }
    };
    runtime.block_on(async {
        let resolver = Arc::new(Resolver::new(servers));
        let mut looking = JoinSet::new();
        for name in names {
            let resolver = Arc::clone(&resolver);
            looking.spawn(async move {
                let found = timeout(within, resolver.look_up(&name)).await;
                let found = found.unwrap_or_else(|_| Err("the look-up timed out".to_owned()));
                (name, found.map(|(addresses, _)| addresses))
            });
        }
        looking.join_all().await.into_iter().collect()
    })
}

fn many(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// Says on stderr what takes so long, from the first second on.
#[derive(Debug)]
struct Progress {
    file: String,
    started: Instant,
    last: Mutex<Instant>,
}

impl Progress {
    fn new(file: &str) -> Self {
        let now = Instant::now();
        Self {
            file: file.to_owned(),
            started: now,
            last: Mutex::new(now),
        }
    }

    fn say(&self, doing: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() < SAY_EVERY {
            return;
        }
        *last = Instant::now();
        let seconds = self.started.elapsed().as_secs_f64();
        complain(&format!("[{seconds:5.1} s] {}: {doing}", self.file));
    }
}
