//! Every key of the file: which section has which, which are built, and the nearest to a wrong one.

use std::collections::HashSet;

/// A mapping of fixed keys.
pub(super) struct Shape {
    pub(super) keys: &'static [Key],
}

/// One key of a [`Shape`].
pub(super) struct Key {
    pub(super) word: &'static str,
    pub(super) state: State,
    inside: Inside,
}

/// Whether a key may be used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// This version has it.
    Built,
    /// It is designed, but not in this version.
    Later,
}

#[derive(Clone, Copy)]
enum Inside {
    Leaf,
    Section(&'static Shape),
    /// A list of mappings.
    Each(&'static Shape),
    /// A mapping of names that the file chooses.
    Named(&'static Shape),
}

const fn key(word: &'static str) -> Key {
    Key {
        word,
        state: State::Built,
        inside: Inside::Leaf,
    }
}

const fn later(word: &'static str) -> Key {
    Key {
        word,
        state: State::Later,
        inside: Inside::Leaf,
    }
}

const fn section(word: &'static str, shape: &'static Shape) -> Key {
    Key {
        word,
        state: State::Built,
        inside: Inside::Section(shape),
    }
}

const fn each(word: &'static str, shape: &'static Shape) -> Key {
    Key {
        word,
        state: State::Built,
        inside: Inside::Each(shape),
    }
}

const fn named(word: &'static str, shape: &'static Shape) -> Key {
    Key {
        word,
        state: State::Built,
        inside: Inside::Named(shape),
    }
}

pub(super) static FILE: Shape = Shape {
    keys: &[
        key("service"),
        key("app"),
        section("outbound", &OUTBOUND),
        section("inbound", &INBOUND),
        each("subscriptions", &SUBSCRIPTION),
        named("services", &SERVICE),
        section("kafka", &KAFKA),
        section("spool", &SPOOL),
        named("claims", &CLAIM),
        section("messages", &MESSAGES),
        section("probe", &DOOR),
        section("admin", &DOOR),
        key("drain"),
        section("limits", &LIMITS),
        named("tls", &TLS),
        section("dns", &DNS),
        section("telemetry", &TELEMETRY),
        later("channels"),
        later("log"),
    ],
};

pub(super) static OUTBOUND: Shape = Shape {
    keys: &[key("listen"), each("routes", &ROUTE), later("capture")],
};

pub(super) static ROUTE: Shape = Shape {
    keys: &[
        key("name"),
        section("match", &MATCH),
        section("forward", &FORWARD),
        section("publish", &PUBLISH),
        later("channel"),
    ],
};

pub(super) static MATCH: Shape = Shape {
    keys: &[
        key("host"),
        key("methods"),
        key("path"),
        key("headers"),
        key("query"),
    ],
};

pub(super) static FORWARD: Shape = Shape {
    keys: &[
        key("to"),
        key("timeout"),
        section("timeouts", &TIMEOUTS),
        key("idempotent"),
        section("retry", &FORWARD_RETRY),
        section("rewrite", &REWRITE),
        key("rate"),
        section("otherwise", &OTHERWISE),
        later("mirror"),
        later("hedge"),
    ],
};

pub(super) static OTHERWISE: Shape = Shape {
    keys: &[section("publish", &PUBLISH)],
};

pub(super) static REWRITE: Shape = Shape {
    keys: &[
        key("path"),
        key("host"),
        section("headers", &CHANGES),
        section("answer", &CHANGES),
    ],
};

pub(super) static CHANGES: Shape = Shape {
    keys: &[key("set"), key("remove")],
};

pub(super) static RATE: Shape = Shape {
    keys: &[key("calls"), key("burst")],
};

pub(super) static TIMEOUTS: Shape = Shape {
    keys: &[key("connect"), key("head"), key("try"), key("idle")],
};

pub(super) static FORWARD_RETRY: Shape = Shape {
    keys: &[key("attempts"), key("backoff"), key("on"), later("budget")],
};

pub(super) static PUBLISH: Shape = Shape {
    keys: &[
        key("topic"),
        key("key"),
        key("key_missing"),
        key("accept"),
        key("ack_wait"),
        section("slim", &SLIM),
        section("headers", &HEADERS),
        key("max_body"),
        key("timeout"),
        key("schema"),
        key("content_type"),
        section("reply", &REPLY),
        key("track"),
    ],
};

pub(super) static REPLY: Shape = Shape {
    keys: &[key("from")],
};

pub(super) static KEY: Shape = Shape {
    keys: &[key("header"), key("path")],
};

pub(super) static SLIM: Shape = Shape {
    keys: &[
        key("keep"),
        key("drop"),
        key("over"),
        key("whole_over"),
        key("claim"),
    ],
};

pub(super) static HEADERS: Shape = Shape {
    keys: &[key("keep"), key("drop")],
};

pub(super) static INBOUND: Shape = Shape {
    keys: &[key("listen"), key("tls"), each("allow", &ALLOW)],
};

pub(super) static ALLOW: Shape = Shape {
    keys: &[key("from"), key("methods"), key("path")],
};

pub(super) static TLS: Shape = Shape {
    keys: &[key("cert"), key("key"), key("ca")],
};

pub(super) static TELEMETRY: Shape = Shape {
    keys: &[key("otlp"), key("sample")],
};

pub(super) static DNS: Shape = Shape {
    keys: &[key("servers")],
};

pub(super) static SUBSCRIPTION: Shape = Shape {
    keys: &[
        key("topic"),
        key("group"),
        section("deliver", &DELIVER),
        key("concurrency"),
        key("hydrate"),
        key("unhydrated"),
        section("retry", &SUBSCRIPTION_RETRY),
        key("dead_letter"),
        key("ordering"),
        section("window", &WINDOW),
        key("quarantine"),
        key("dedupe"),
        key("verdicts"),
        key("broadcast"),
    ],
};

pub(super) static WINDOW: Shape = Shape {
    keys: &[key("messages"), key("bytes"), key("full")],
};

pub(super) static DELIVER: Shape = Shape {
    keys: &[key("path"), key("timeout")],
};

pub(super) static SUBSCRIPTION_RETRY: Shape = Shape {
    keys: &[key("attempts"), key("backoff")],
};

pub(super) static SERVICE: Shape = Shape {
    keys: &[
        key("addresses"),
        key("balance"),
        key("protocol"),
        key("tls"),
        key("identity"),
        section("health", &HEALTH),
        section("limit", &LIMIT),
        key("rate"),
        section("ejection", &EJECTION),
        key("replies"),
        later("kubernetes"),
    ],
};

pub(super) static BALANCE: Shape = Shape {
    keys: &[key("ring-hash")],
};

pub(super) static RING_HASH: Shape = Shape {
    keys: &[key("header")],
};

pub(super) static HEALTH: Shape = Shape {
    keys: &[
        key("path"),
        key("every"),
        key("timeout"),
        key("unhealthy"),
        key("healthy"),
    ],
};

pub(super) static LIMIT: Shape = Shape {
    keys: &[key("in_flight"), key("queue"), key("wait")],
};

pub(super) static EJECTION: Shape = Shape {
    keys: &[key("failures"), key("success_rate"), key("time")],
};

pub(super) static KAFKA: Shape = Shape {
    keys: &[
        key("brokers"),
        key("properties"),
        key("queue_max"),
        key("replies"),
    ],
};

pub(super) static SPOOL: Shape = Shape {
    keys: &[key("path"), key("max"), key("survives")],
};

pub(super) static CLAIM: Shape = Shape {
    keys: &[
        key("disk"),
        key("ttl"),
        key("survives"),
        key("max"),
        key("full"),
        key("object"),
        section("s3", &S3),
        key("origin"),
    ],
};

pub(super) static S3: Shape = Shape {
    keys: &[
        key("endpoint"),
        key("region"),
        key("access_key"),
        key("secret_key"),
    ],
};

pub(super) static MESSAGES: Shape = Shape {
    keys: &[key("max"), key("keep")],
};

pub(super) static DOOR: Shape = Shape {
    keys: &[key("listen")],
};

pub(super) static LIMITS: Shape = Shape {
    keys: &[
        key("connections"),
        key("in_flight"),
        key("head"),
        key("replay"),
        key("replay_total"),
        key("claim"),
        key("claim_cache"),
        key("claim_fetches"),
        key("results"),
    ],
};

impl Shape {
    /// The key of this name.
    pub(super) fn find(&self, word: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.word == word)
    }

    /// The words that this version takes here.
    pub(super) fn built(&self) -> impl Iterator<Item = &'static str> + Clone {
        self.keys
            .iter()
            .filter(|key| key.state == State::Built)
            .map(|key| key.word)
    }
}

/// Every key that a file may have: `outbound.routes[].match.host`, `services.*.addresses`.
pub fn accepted_keys() -> Vec<String> {
    all_keys(State::Built)
}

/// Every key that is designed and refused as not available in this version.
pub fn later_keys() -> Vec<String> {
    all_keys(State::Later)
}

/// Where a key belongs that was used elsewhere; empty if nowhere or in too many sections to guess.
pub(super) fn sections_with(word: &str) -> Vec<String> {
    let mut found: Vec<String> = accepted_keys()
        .iter()
        .filter_map(|path| match path.rsplit_once('.') {
            Some((section, last)) => (last == word).then(|| section.to_owned()),
            None => (path == word).then(String::new),
        })
        .collect();
    if found.len() > 3 {
        found.clear();
    }
    found
}

/// The candidate that differs least from `word`, if it is near enough to be meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    const LONGEST: usize = 64;
    let letters = word.chars().count();
    if letters == 0 || letters > LONGEST {
        return None;
    }
    let far = match letters {
        1 => 0,
        2..=4 => 1,
        5..=7 => 2,
        _ => 3,
    };
    let lower = word.to_lowercase();
    candidates
        .into_iter()
        .filter(|candidate| *candidate != word)
        .map(|candidate| {
            (
                strsim::osa_distance(&lower, &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, _)| *distance <= far)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.to_owned())
}

fn all_keys(state: State) -> Vec<String> {
    let mut paths = Vec::new();
    walk(&FILE, "", state, &mut paths);
    let mut seen = HashSet::new();
    paths.retain(|path| seen.insert(path.clone()));
    paths
}

fn walk(shape: &Shape, above: &str, state: State, paths: &mut Vec<String>) {
    for key in shape.keys {
        let path = match above {
            "" => key.word.to_owned(),
            _ => format!("{above}.{}", key.word),
        };
        if key.state == state {
            paths.push(path.clone());
        }
        match key.inside {
            Inside::Leaf => {}
            Inside::Section(inside) => walk(inside, &path, state, paths),
            Inside::Each(inside) => walk(inside, &format!("{path}[]"), state, paths),
            Inside::Named(inside) => walk(inside, &format!("{path}.*"), state, paths),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_near() {
        let words = ["listen", "routes", "retry"];
        assert_eq!(nearest("listn", words).as_deref(), Some("listen"));
        assert_eq!(nearest("ROUTES", words).as_deref(), Some("routes"));
        assert_eq!(nearest("rerty", words).as_deref(), Some("retry"));
        assert_eq!(nearest("banana", words), None);
        assert_eq!(nearest("", words), None);
        assert_eq!(nearest(&"x".repeat(100_000), words), None);
    }

    #[test]
    fn a_misplaced_key_has_its_sections_named() {
        let both = [
            "outbound.routes[].forward.otherwise.publish",
            "outbound.routes[].publish",
        ];
        assert_eq!(sections_with("key_missing"), both);
        assert_eq!(sections_with("drain"), [""]);
        assert!(sections_with("listen").is_empty(), "four sections have it");
        assert!(sections_with("nonsense").is_empty());
    }

    #[test]
    fn no_section_has_a_key_twice() {
        let keys = [accepted_keys(), later_keys()].concat();
        let distinct: HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
