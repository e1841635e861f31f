//! Each rule is a pure function from a configuration and the facts to what it finds. To add one, write it and put it
//! into [`RULES`].

mod access;
mod durability;
mod groups;
mod retention;
pub(super) mod services;
mod sizes;
mod topics;

#[cfg(test)]
mod tests;

use super::finding::{Finding, Found};
use crate::config::model::{Config, Pattern, Publish, Subscription};
use crate::config::{Loaded, Places};
use crate::kafka::inspect::facts::{Facts, Settings, Topic};

pub(super) use access::unreachable;

/// What a rule may look at.
pub(super) struct World<'a> {
    pub(super) config: &'a Config,
    pub(super) places: &'a Places,
    pub(super) facts: &'a Facts,
}

/// Adds what it finds.
type Rule = fn(&World<'_>, &mut Vec<Found>);

/// Every rule about the broker, by the name that findings carry.
const RULES: &[(&str, Rule)] = &[
    ("acl", access::denied),
    ("advertised", access::advertised),
    ("idempotence", access::idempotence),
    ("unchecked", access::unchecked),
    ("topic-exists", topics::exist),
    ("leader", topics::led),
    ("partitions", topics::partitions),
    ("record-size", sizes::records),
    ("dead-letter-size", sizes::dead_letters),
    ("answer-size", sizes::answers),
    ("min-insync", durability::in_sync),
    ("replication", durability::replication),
    ("unclean-election", durability::elections),
    ("compaction", retention::compaction),
    ("claim-ttl", retention::claims),
    ("dead-letter-retention", retention::dead_letters),
    ("offset-reset", groups::reset),
    ("offset-lost", groups::lost),
    ("session-timeout", groups::session),
];

/// Everything that the rules find.
pub(super) fn apply(loaded: &Loaded, facts: &Facts) -> Vec<Finding> {
    let world = World {
        config: &loaded.config,
        places: &loaded.places,
        facts,
    };
    let one = |(name, rule): &(&'static str, Rule)| {
        let mut found = Vec::new();
        rule(&world, &mut found);
        let place = |found: Found| found.at(name, world.places);
        found.into_iter().map(place).collect::<Vec<_>>()
    };
    RULES.iter().flat_map(one).collect()
}

/// What a topic is to a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A route writes to it.
    Published,
    /// A subscription reads from it.
    Subscribed,
    /// A subscription writes to it what it gives up.
    DeadLetters,
}

impl Role {
    /// Whether records are written to it.
    pub(super) fn is_written(self) -> bool {
        self != Self::Subscribed
    }

    /// The operations that a principal needs; `Describe` comes with each of them.
    fn operation(self) -> &'static str {
        match self {
            Self::Published | Self::DeadLetters => "Write",
            Self::Subscribed => "Read",
        }
    }
}

/// A place of a file that names a topic.
pub(super) struct Use<'a> {
    pub(super) path: String,
    pub(super) topic: &'a str,
    pub(super) role: Role,
}

/// Every place that names a topic, in the order of the file.
pub(super) fn uses(config: &Config) -> Vec<Use<'_>> {
    let published = publishes(config).map(|(path, publish)| Use {
        path: format!("{path}.topic"),
        topic: &publish.topic,
        role: Role::Published,
    });
    let mut uses: Vec<_> = published.collect();
    for (path, subscription) in subscriptions(config) {
        uses.push(Use {
            path: format!("{path}.topic"),
            topic: &subscription.topic,
            role: Role::Subscribed,
        });
        uses.extend(subscription.dead_letter.iter().map(|topic| Use {
            path: format!("{path}.dead_letter"),
            topic,
            role: Role::DeadLetters,
        }));
    }
    uses
}

/// Every route that publishes, with its path.
fn publishes(config: &Config) -> impl Iterator<Item = (String, &Publish)> {
    let routes = config.outbound.iter().flat_map(|door| &door.routes);
    routes
        .enumerate()
        .filter_map(|(index, route)| match &route.pattern {
            Pattern::Publish(publish) => {
                Some((format!("outbound.routes[{index}].publish"), publish))
            }
            Pattern::Forward(forward) => {
                let path = format!("outbound.routes[{index}].forward.otherwise.publish");
                forward.otherwise.as_deref().map(|publish| (path, publish))
            }
        })
}

/// Every subscription, with its path.
fn subscriptions(config: &Config) -> impl Iterator<Item = (String, &Subscription)> {
    let all = config.subscriptions.iter().enumerate();
    all.map(|(index, subscription)| (format!("subscriptions[{index}]"), subscription))
}

impl<'a> World<'a> {
    fn topic(&self, name: &str) -> Option<&'a Topic> {
        self.facts.topics.get(name)
    }

    fn settings(&self, name: &str) -> Option<&'a Settings> {
        self.topic(name)?.settings.as_ref().ok()
    }

    /// The first value that a broker tells of one of its own settings.
    fn broker(&self, setting: &str) -> Option<&'a str> {
        let told = self.facts.brokers.iter();
        told.filter_map(|broker| broker.settings.as_ref().ok())
            .find_map(|settings| settings.text(setting))
    }
}
