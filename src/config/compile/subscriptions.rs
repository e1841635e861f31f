//! `subscriptions`: the topics that are delivered to the app.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::{Around, retry, slim, verdicts};
use crate::config::model::{Full, Hydrate, Ordering, Subscription, Unhydrated, Window};
use crate::config::names::{parse_group, parse_topic};
use crate::config::patterns::parse_path;
use crate::config::read::{At, Map, all};
use crate::config::words::{DELIVER, SUBSCRIPTION, WINDOW};

/// Subscriptions of one file, at most; those of one group share a consumer.
const SUBSCRIPTIONS_MAX: usize = 256;
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const CONCURRENCY_DEFAULT: usize = 64;
const WINDOW_DEFAULT: Window = Window {
    messages: 10_000,
    bytes: 32 << 20,
    full: Full::Wait,
};

/// Reads every subscription, in file order.
pub(super) fn subscriptions(at: &At<'_>, around: &Around) -> Option<Vec<Subscription>> {
    let list = at.list(SUBSCRIPTIONS_MAX, "[{ topic: payments }]")?;
    let read: Vec<_> = list.iter().map(|at| subscription(at, around)).collect();
    let mut seen = HashMap::new();
    for (at, subscription) in list.iter().zip(&read) {
        let Some(Subscription {
            topic, group, line, ..
        }) = subscription
        else {
            continue;
        };
        if let Some(first) = seen.insert((topic, group), *line) {
            at.error(format!(
                "topic `{topic}` with group `{group}` is subscribed twice; the first is in line {first}"
            ));
        }
    }
    let read = all(read.into_iter())?;
    refuse_circles(&list, &read);
    Some(read)
}

fn subscription(at: &At<'_>, around: &Around) -> Option<Subscription> {
    let map = at.map(&SUBSCRIPTION)?;
    let topic = map.need("topic", |at| at.parse("a topic", parse_topic));
    let broadcast = map.or("broadcast", false, At::flag);
    let group = group(&map, around, broadcast == Some(true));
    let deliver = map.or("deliver", (None, TIMEOUT_DEFAULT), deliver);
    let concurrency = map.or("concurrency", CONCURRENCY_DEFAULT, |at| {
        at.count(1..=10_000)
    });
    let hydrate = map.or("hydrate", Hydrate::Lazy, hydrate);
    let retry = map.or("retry", retry::subscription_default(), retry::subscription);
    let dead_letter = map.maybe("dead_letter", |at| at.parse("a topic", parse_topic));
    let ordering = map.or("ordering", Ordering::Key, |at| {
        at.word(&[
            ("key", Some(Ordering::Key)),
            ("partition", Some(Ordering::Partition)),
            ("none", Some(Ordering::None)),
        ])
    });
    let window = map.or("window", WINDOW_DEFAULT, window);
    let quarantine = map.or("quarantine", false, At::flag);
    let dedupe = map.maybe("dedupe", |at| {
        at.duration(Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60))
    });
    let verdicts = map.or("verdicts", Vec::new(), verdicts::verdicts);
    if let (Some(at), Some(true), Some(Ordering::None)) =
        (map.find("quarantine"), quarantine, ordering)
    {
        at.error(
            "without an order nothing follows a dead letter: remove it, or use `ordering: key`",
        );
    }
    attempts_end_somewhere(&map);
    dead_letters_go_somewhere(&map, window.as_ref(), quarantine);
    let unhydrated = map.maybe("unhydrated", unhydrated);
    bodies_are_fetched(&map, hydrate.as_ref(), unhydrated.flatten(), around);
    let (path, timeout) = deliver?;
    Some(Subscription {
        topic: topic?,
        group: group?,
        broadcast: broadcast?,
        line: at.place().line,
        path,
        timeout,
        concurrency: concurrency?,
        hydrate: hydrate?,
        unhydrated: unhydrated?.unwrap_or_default(),
        retry: retry?,
        dead_letter: dead_letter?,
        ordering: ordering?,
        window: window?,
        quarantine: quarantine?,
        dedupe: dedupe?,
        verdicts: verdicts?,
    })
}

fn group(map: &Map<'_>, around: &Around, broadcast: bool) -> Option<String> {
    match map.find("group") {
        Some(at) if broadcast => {
            at.error("a group shares its messages, and a broadcast gives every copy all: remove `group` or `broadcast`");
            None
        }
        Some(at) => at.parse("a group", parse_group),
        None => around.service.clone(),
    }
}

fn deliver(at: &At<'_>) -> Option<(Option<String>, Duration)> {
    let map = at.map(&DELIVER)?;
    let path = map.maybe("path", |at| at.parse("a path such as /events", parse_path));
    let timeout = map.or("timeout", TIMEOUT_DEFAULT, |at| {
        at.duration(Duration::from_millis(1)..=Duration::from_secs(60 * 60))
    });
    Some((path?, timeout?))
}

fn hydrate(at: &At<'_>) -> Option<Hydrate> {
    if at.is_list() {
        return slim::pointers(at).map(Hydrate::Fields);
    }
    let mode = at.word(&[
        ("never", Some(Some(false))),
        ("lazy", Some(None)),
        ("eager", Some(Some(true))),
    ])?;
    Some(match mode {
        Some(false) => Hydrate::Never,
        None => Hydrate::Lazy,
        Some(true) => Hydrate::Eager,
    })
}

fn unhydrated(at: &At<'_>) -> Option<Unhydrated> {
    at.word(&[
        ("retry", Some(Unhydrated::Retry)),
        ("deliver-slim", Some(Unhydrated::DeliverSlim)),
        ("dead-letter", Some(Unhydrated::DeadLetter)),
    ])
}

/// Whether what is fetched before a delivery can be fetched, and goes somewhere if not.
fn bodies_are_fetched(
    map: &Map<'_>,
    hydrate: Option<&Hydrate>,
    unhydrated: Option<Unhydrated>,
    around: &Around,
) {
    let before = hydrate.is_some_and(Hydrate::is_before);
    let none = around.services.as_ref().is_some_and(Vec::is_empty);
    if let (Some(at), true, true) = (map.find("hydrate"), before, none && !around.shared) {
        at.warning("bodies are fetched from the service that made them, but `services` names none");
    }
    let Some(at) = map.find("unhydrated") else {
        return;
    };
    let unusual = unhydrated.is_some_and(|unhydrated| unhydrated != Unhydrated::Retry);
    if hydrate.is_some() && !before && unusual {
        at.error("nothing is fetched before a delivery: it goes with `hydrate: eager` or a list of fields");
    }
    if let (Some(Unhydrated::DeadLetter), None) = (unhydrated, map.find("dead_letter")) {
        at.error("there is no topic for dead letters: add `dead_letter`, or use `retry`");
    }
}

fn attempts_end_somewhere(map: &Map<'_>) {
    let attempts = map.find("retry").and_then(|retry| retry.peek("attempts"));
    if let (Some(attempts), None) = (attempts, map.find("dead_letter")) {
        attempts.warning("of no effect without `dead_letter`: a message is tried until it is done");
    }
}

fn window(at: &At<'_>) -> Option<Window> {
    let map = at.map(&WINDOW)?;
    let messages = map.or("messages", WINDOW_DEFAULT.messages, |at| {
        at.count(1..=1_000_000)
    });
    let bytes = map.or("bytes", WINDOW_DEFAULT.bytes, |at| {
        at.bytes(64 << 10..=16 << 30)
    });
    let full = map.or("full", WINDOW_DEFAULT.full, |at| {
        at.word(&[
            ("wait", Some(Full::Wait)),
            ("dead-letter", Some(Full::DeadLetter)),
        ])
    });
    Some(Window {
        messages: messages?,
        bytes: bytes?,
        full: full?,
    })
}

/// What sends messages to the dead letters needs a topic for them.
fn dead_letters_go_somewhere(map: &Map<'_>, window: Option<&Window>, quarantine: Option<bool>) {
    if map.find("dead_letter").is_some() {
        return;
    }
    let full = map.find("window").and_then(|at| at.peek("full"));
    if let (Some(at), Some(Full::DeadLetter)) = (full, window.map(|window| window.full)) {
        at.error("there is no topic for dead letters: add `dead_letter`, or use `wait`");
    }
    if let (Some(at), Some(true)) = (map.find("quarantine"), quarantine) {
        at.error("nothing follows a dead letter where there is none: add `dead_letter`");
    }
}

/// Refuses dead letters that come back: to their own topic, or by way of other subscriptions.
fn refuse_circles(list: &[At<'_>], subscriptions: &[Subscription]) {
    let mut next: HashMap<&str, &str> = HashMap::new();
    for subscription in subscriptions {
        if let Some(dead_letter) = &subscription.dead_letter {
            next.entry(&subscription.topic).or_insert(dead_letter);
        }
    }
    let mut told: HashSet<&str> = HashSet::new();
    for (at, subscription) in list.iter().zip(subscriptions) {
        let Some(dead_letter) = subscription.dead_letter.as_deref() else {
            continue;
        };
        let topic = subscription.topic.as_str();
        let at = at.peek("dead_letter").unwrap_or_else(|| at.clone());
        if dead_letter == topic {
            at.error(
                "dead letters would go to their own topic, and so be delivered again for ever",
            );
            continue;
        }
        let mut way = vec![topic, dead_letter];
        while let Some(after) = way.last().and_then(|last| next.get(last)) {
            way.push(after);
            if *after == topic && told.insert(topic) {
                let names = way.join("` → `");
                at.error(format!(
                    "dead letters would go round in a circle: `{names}`"
                ));
                told.extend(&way);
            }
            if way[..way.len() - 1].contains(after) {
                break;
            }
        }
    }
}
