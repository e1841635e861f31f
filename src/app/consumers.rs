//! The subscriptions as they run: one consumer a group, started anew when a reload changes its rules.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;
use http::uri::PathAndQuery;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::live::{self, Live};
use super::parts::{Broker, BuildError, Parts};
use crate::claims::id::{Audience, audience};
use crate::config::model::{Config, Subscription as Rule};
use crate::kafka::all::Positions;
use crate::kafka::consumer::{Consumer, Sharing, StopError};
use crate::lifecycle::{self, Workers};
use crate::listen::subscription::{Records, Subscription};
use crate::pattern::deliver::Deliver;
use crate::pattern::hop::Via;
use crate::pattern::hydrate::Hydrate;
use crate::pattern::receipts::Receipts;
use crate::pattern::verdict::Table;

/// How long a reload waits for the consumers that it replaces.
const HANDOVER: Duration = Duration::from_secs(2);
/// How long a consumer that a reload replaces may take to finish what is in flight.
const REPLACED: Duration = Duration::from_secs(10);

/// Every consumer of a sidecar.
pub(super) struct Consumers {
    /// Shared parts.
    pub(super) parts: Arc<Parts>,
    /// Run the lanes.
    pub(super) workers: Arc<Workers>,
    /// Notes what happens to messages and tells their origins; present with `kafka`.
    pub(super) receipts: Option<Arc<Receipts>>,
    /// Fetches claims.
    pub(super) hydrate: Arc<Hydrate>,
    /// Where the app reaches the outbound door: `http://127.0.0.1:4140`.
    pub(super) claims_at: String,
    /// The groups that run now.
    pub(super) groups: Mutex<Vec<Group>>,
    /// Those that a reload replaced and that are not gone yet.
    pub(super) leaving: Mutex<JoinSet<Result<(), StopError>>>,
}

/// A group's name, and whether it shares its messages.
type Who = (String, Sharing);

/// One group and the rules it was started with.
pub(super) struct Group {
    who: Who,
    rules: Vec<Rule>,
    consumer: Consumer,
}

impl Consumers {
    /// Makes the groups that run those of a configuration. Groups whose rules did not change go on; the others are
    /// started beside the old ones, which then finish and leave, so that the broker hands their partitions over. Two kinds
    /// are started after the old ones have gone: static members, of which two of one `group.instance.id` would fence each
    /// other (KIP-345), and broadcasts, which go on where the old one stopped.
    ///
    /// # Errors
    /// A group does not start; everything is then as it was, but for those two kinds.
    pub(super) async fn apply(&self, config: &Config) -> Result<(), BuildError> {
        let wanted = by_group(&config.subscriptions);
        let changed = |who: &Who, rules: &[Rule]| {
            let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
            !groups
                .iter()
                .any(|group| group.who == *who && same(&group.rules, rules))
        };
        let mut started = Vec::new();
        for (who, rules) in &wanted {
            if changed(who, rules) {
                let from = match who.1 == Sharing::Broadcast || self.is_static() {
                    true => self.leave_first(who).await,
                    false => Positions::new(),
                };
                let consumer = self.start(config, who, rules, from).await?;
                started.push(Group {
                    who: who.clone(),
                    rules: rules.clone(),
                    consumer,
                });
            }
        }
        let mut left = Vec::new();
        for replaced in self.swap(&wanted, started) {
            left.push(self.let_go(replaced));
        }
        // Usually over at once, and then no message is delivered by an old rule any more. What an app still holds is
        // waited for beside everything else.
        let all_left = async {
            for one in left {
                drop(one.await);
            }
        };
        drop(timeout(HANDOVER, all_left).await);
        Ok(())
    }

    /// Whether members of groups have names that outlive them.
    fn is_static(&self) -> bool {
        let broker = self.parts.broker.as_ref();
        let mut properties = broker.iter().flat_map(|broker| &broker.kafka.properties);
        properties.any(|(name, _)| name == "group.instance.id")
    }

    /// Ends the group that is to be replaced, waits for that, and says where a broadcast stopped.
    async fn leave_first(&self, who: &Who) -> Positions {
        let old = {
            let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
            let at = groups.iter().position(|group| group.who == *who);
            at.map(|at| groups.swap_remove(at))
        };
        let Some(old) = old else {
            return Positions::new();
        };
        let positions = old.consumer.positions();
        // An error means that it has gone.
        drop(self.let_go(old).await);
        positions.get().cloned().unwrap_or_default()
    }

    /// Lets a replaced group finish in the background; the receiver ends with it.
    fn let_go(&self, group: Group) -> oneshot::Receiver<()> {
        let (done, left) = oneshot::channel();
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        while leaving.try_join_next().is_some() {}
        leaving.spawn(async move {
            let stopped = group.consumer.stop(REPLACED).await;
            drop(done);
            stopped
        });
        left
    }

    /// Puts what was started in place and gives back what it replaces.
    fn swap(&self, wanted: &[(Who, Vec<Rule>)], started: Vec<Group>) -> Vec<Group> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = |group: &Group| {
            wanted.iter().any(|(who, _)| *who == group.who)
                && !started.iter().any(|new| new.who == group.who)
        };
        let (kept, replaced): (Vec<Group>, Vec<Group>) = groups.drain(..).partition(goes_on);
        groups.extend(kept);
        groups.extend(started);
        replaced
    }

    /// Finishes what is in flight, commits and leaves, all groups at once: one whose broker is slow must not use up
    /// the others' time. Says whether all of it ended `within` the time.
    pub(super) async fn stop(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let groups =
            std::mem::take(&mut *self.groups.lock().unwrap_or_else(PoisonError::into_inner));
        let mut leaving =
            std::mem::take(&mut *self.leaving.lock().unwrap_or_else(PoisonError::into_inner));
        for group in groups {
            leaving.spawn(group.consumer.stop(within));
        }
        let ended = timeout_at(deadline, leaving.join_all()).await;
        ended.is_ok_and(|all| all.iter().all(Result::is_ok))
    }

    async fn start(
        &self,
        config: &Config,
        (group, sharing): &Who,
        rules: &[Rule],
        from: Positions,
    ) -> Result<Consumer, BuildError> {
        let (Some(broker), Some(receipts), Some(_)) =
            (&self.parts.broker, &self.receipts, &config.app)
        else {
            return Err(io::Error::other("a subscription needs `kafka` and `app`").into());
        };
        let mut members = Vec::new();
        for rule in rules {
            members.push(self.subscription(config, (broker, receipts), rule).await?);
        }
        let topics = members
            .iter()
            .map(|member| member.topic().to_owned())
            .collect();
        let workers = Arc::clone(&self.workers);
        let consumer = Consumer::start(
            &broker.kafka,
            &broker.bootstrap,
            (group, *sharing, from),
            topics,
            move |intake| match members
                .iter()
                .find(|member| member.topic() == &*intake.topic)
            {
                Some(member) => {
                    lifecycle::spawn(workers.next(), "partition", Arc::clone(member).run(intake));
                }
                None => tracing::error!(
                    topic = &*intake.topic,
                    "a partition of a topic that nobody subscribed to"
                ),
            },
        )?;
        Ok(consumer)
    }

    async fn subscription(
        &self,
        config: &Config,
        (broker, receipts): (&Broker, &Arc<Receipts>),
        rule: &Rule,
    ) -> Result<Arc<Subscription>, BuildError> {
        let app = config
            .app
            .as_ref()
            .ok_or_else(|| io::Error::other("a subscription needs `app`"))?;
        let forward =
            live::to_app(app, Via::new(&config.service, "subscription"), &self.parts).await;
        let deliver = Deliver {
            forward: live::within(forward, rule.timeout),
            hydrate: Arc::clone(&self.hydrate),
            mode: rule.hydrate.clone(),
            unhydrated: rule.unhydrated,
            row: self.parts.worth.reading(&rule.topic, &rule.group),
            audiences: audiences(config, &rule.topic),
            verdicts: Table::new(&rule.verdicts),
            path: path(rule)?,
            host: HeaderValue::from_str(&app.to_string()).map_err(io::Error::other)?,
            claims_at: self.claims_at.clone(),
        };
        let producer = Arc::clone(&broker.sender.producer);
        let records = Records {
            receipts: Arc::clone(receipts),
            timelines: &self.parts.timelines,
            spans: self.parts.spans.clone(),
            metrics: &self.parts.metrics,
        };
        let subscription = Subscription::new(rule, deliver, producer, records);
        self.parts.subscriptions.add(&subscription);
        Ok(subscription)
    }
}

/// Whose claims the records of a topic may carry: its own, and those of the topics whose dead letters go to it, as far as the
/// file tells.
fn audiences(config: &Config, topic: &str) -> Vec<Audience> {
    let subscriptions = config.subscriptions.iter();
    let dying = subscriptions.filter(|other| other.dead_letter.as_deref() == Some(topic));
    let dying = dying.map(|other| other.topic.as_str());
    std::iter::once(topic).chain(dying).map(audience).collect()
}

/// What tells the origins of messages how those ended, by the topics of whichever configuration is in force.
pub(super) fn receipts(
    parts: &Parts,
    live: &Arc<ArcSwap<Live>>,
    service: &str,
) -> Option<Arc<Receipts>> {
    let broker = parts.broker.as_ref()?;
    let (live, topics) = (Arc::clone(live), broker.kafka.replies.clone());
    let topic_of = Arc::new(move |service: &str| {
        let live = live.load();
        let mut services = live.config.services.iter();
        let own = services
            .find(|known| known.name == service)
            .and_then(|known| known.replies.clone());
        own.or_else(|| topics.as_ref().map(|topics| topics.topic(service)))
    });
    let sender = &broker.sender;
    Some(Receipts::new(
        service,
        (&parts.timelines, sender.answers.as_ref()),
        &sender.producer,
        topic_of,
        &parts.metrics,
    ))
}

/// The rules of each group, in file order.
fn by_group(rules: &[Rule]) -> Vec<(Who, Vec<Rule>)> {
    let mut groups: Vec<(Who, Vec<Rule>)> = Vec::new();
    for rule in rules {
        let sharing = match rule.broadcast {
            true => Sharing::Broadcast,
            false => Sharing::Group,
        };
        let who = (rule.group.clone(), sharing);
        match groups.iter_mut().find(|(known, _)| *known == who) {
            Some((_, members)) => members.push(rule.clone()),
            None => groups.push((who, vec![rule.clone()])),
        }
    }
    groups
}

/// Whether two lists of rules mean the same. Where a rule stands in its file means nothing; all else is plain data,
/// whose debug text is exact.
fn same(one: &[Rule], other: &[Rule]) -> bool {
    let text = |rules: &[Rule]| {
        let nowhere = |rule: &Rule| Rule {
            line: 0,
            ..rule.clone()
        };
        format!("{:?}", rules.iter().map(nowhere).collect::<Vec<_>>())
    };
    text(one) == text(other)
}

fn path(rule: &Rule) -> io::Result<Option<PathAndQuery>> {
    rule.path
        .as_ref()
        .map(|path| path.parse().map_err(io::Error::other))
        .transpose()
}
