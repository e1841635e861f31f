//! `forward`: where to, in which time, how often, and what is changed on the way.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::{Around, publish, retry, services};
use crate::config::diagnostic::{Invalid, quoted};
use crate::config::model::{ENDLESS, Forward, PathPattern, Rewrite, ServiceIndex, Timeouts};
use crate::config::names::parse_changed_header;
use crate::config::patterns::{parse_host_rule, parse_rewrite};
use crate::config::read::{At, Map, all, listed};
use crate::config::units::{self, parse_duration};
use crate::config::words::{CHANGES, FORWARD, OTHERWISE, REWRITE, TIMEOUTS, nearest};

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
const WHOLE_DEFAULT: Duration = Duration::from_secs(15);
const CONNECT_DEFAULT: Duration = Duration::from_secs(1);
const IDLE_DEFAULT: Duration = Duration::from_secs(30);
/// Services that share the calls of one route, and headers that it changes, at most.
const SHARES_MAX: usize = 16;
const HEADERS_MAX: usize = 50;

/// Reads what a route forwards to, and how; `path` is the route's own, which a rewrite refers to.
pub(super) fn forward(at: &At<'_>, path: &PathPattern, around: &Around) -> Option<Forward> {
    let map = at.map(&FORWARD)?;
    let to = map.need("to", |at| shares(at, around));
    let timeouts = timeouts(&map);
    let retry = map.or("retry", retry::forward_default(), retry::forward);
    let idempotent = map.or("idempotent", false, At::flag);
    let rewrite = map.or("rewrite", Rewrite::default(), |at| rewrite(at, path));
    let rate = map.maybe("rate", services::rate);
    let otherwise = map.maybe("otherwise", |at| {
        at.map(&OTHERWISE)?
            .need("publish", |at| publish::otherwise(at, path, around))
    });
    Some(Forward {
        to: to?,
        timeouts: timeouts?,
        retry: retry?,
        idempotent: idempotent?,
        rewrite: rewrite?,
        rate: rate?,
        otherwise: otherwise?.map(Box::new),
    })
}

/// One service, or a mapping of services to their weights.
fn shares(at: &At<'_>, around: &Around) -> Option<Vec<(ServiceIndex, u32)>> {
    if !at.is_map() {
        return service(at, around).map(|service| vec![(service, 1)]);
    }
    let known = around.services.as_ref()?;
    let share = |(name, at): &(&str, At<'_>)| {
        let weight = at.count(0..=1_000_000);
        let found = named(name, known).map_err(|error| at.invalid_key(error));
        Some((found.ok()?, u32::try_from(weight?).ok()?))
    };
    let mut shares = all(at.named(SHARES_MAX)?.iter().map(share))?;
    // A weight of 0 keeps a service in the file that has no calls now.
    shares.retain(|(_, weight)| *weight > 0);
    if shares.is_empty() {
        at.error("some service must have a weight above 0");
        return None;
    }
    Some(shares)
}

fn rewrite(at: &At<'_>, path: &PathPattern) -> Option<Rewrite> {
    let map = at.map(&REWRITE)?;
    let path = map.maybe("path", |at| {
        at.parse("a path such as /v2", |text| parse_rewrite(text, path))
    });
    let host = map.maybe("host", |at| {
        at.parse("a host such as billing", |text| {
            parse_host_rule(text)?;
            match text.contains('*') {
                true => Err(Invalid::new("a call has one host, without a `*`")),
                false => Ok(text.to_ascii_lowercase()),
            }
        })
    });
    let headers = map.or("headers", Default::default(), changes);
    let answer = map.or("answer", Default::default(), changes);
    let ((set, remove), (answer_set, answer_remove)) = (headers?, answer?);
    Some(Rewrite {
        path: path?,
        host: host?,
        set,
        remove,
        answer_set,
        answer_remove,
    })
}

type Changes = (Vec<(HeaderName, HeaderValue)>, Vec<HeaderName>);

/// Headers that are set, and headers that are taken away.
fn changes(at: &At<'_>) -> Option<Changes> {
    let map = at.map(&CHANGES)?;
    let set = map.or("set", Vec::new(), |at| {
        let one = |(name, at): &(&str, At<'_>)| {
            let value = at.parse("the value of a header", |text| {
                HeaderValue::from_str(text)
                    .map_err(|_| Invalid::new(format!("{} is no header's value", quoted(text))))
            });
            let name = parse_changed_header(name).map_err(|error| at.invalid_key(error));
            Some((name.ok()?, value?))
        };
        all(at.named(HEADERS_MAX)?.iter().map(one))
    });
    let remove = map.or("remove", Vec::new(), |at| {
        let list = at.list(HEADERS_MAX, "[x-debug]")?;
        all(list
            .iter()
            .map(|at| at.parse("the name of a header", parse_changed_header)))
    });
    Some((set?, remove?))
}

/// Reads a share in percent, `80%`.
pub(super) fn percent(at: &At<'_>) -> Option<u32> {
    at.parse("a share such as 80%", |text| {
        let number = text
            .strip_suffix('%')
            .and_then(|number| number.parse().ok());
        number.filter(|percent| *percent <= 100).ok_or_else(|| {
            let plain = text.parse::<u32>().is_ok_and(|percent| percent <= 100);
            Invalid::new(format!("{} is not a share from 0% to 100%", quoted(text)))
                .hint(plain.then(|| format!("{text}%")))
        })
    })
}

fn service(at: &At<'_>, around: &Around) -> Option<ServiceIndex> {
    let services = around.services.as_ref()?;
    at.parse("the name of a service", |text| named(text, services))
}

fn named(text: &str, services: &[String]) -> Result<ServiceIndex, Invalid> {
    if let Some(index) = services.iter().position(|name| name == text) {
        return Ok(ServiceIndex(index));
    }
    let hint = nearest(text, services.iter().map(String::as_str));
    let known = match (&hint, services.is_empty()) {
        (_, true) => "; there is no `services` section".to_owned(),
        (Some(_), _) => String::new(),
        (None, _) => format!("; there are {}", listed(services)),
    };
    let reason = format!("no service is called {}{known}", quoted(text));
    Err(Invalid::new(reason).hint(hint))
}

fn timeouts(map: &Map<'_>) -> Option<Timeouts> {
    let whole = map.or("timeout", WHOLE_DEFAULT, endless);
    let Some(phases) = map.find("timeouts") else {
        return whole.map(|whole| defaults(whole, a_try(whole)));
    };
    let phases = phases.map(&TIMEOUTS)?;
    let connect = phases.maybe("connect", phase);
    let head = phases.maybe("head", phase);
    let per_try = phases.maybe("try", phase);
    let idle = phases.maybe("idle", endless);
    let whole = whole?;
    let limits = Limits {
        phases: &phases,
        whole,
        per_try: per_try.flatten(),
    };
    let fits = [
        limits.check("connect", connect?),
        limits.check("head", head?),
        limits.check("try", per_try?),
        limits.check("idle", idle?),
    ];
    if fits.contains(&false) {
        return None;
    }
    let default = defaults(whole, per_try?.unwrap_or_else(|| a_try(whole)));
    Some(Timeouts {
        whole,
        connect: connect?.unwrap_or(default.connect),
        head: head?.unwrap_or(default.head),
        per_try: default.per_try,
        idle: idle?.unwrap_or(default.idle),
    })
}

/// Phases that the file leaves out; none is longer than what it is a part of.
fn defaults(whole: Duration, per_try: Duration) -> Timeouts {
    Timeouts {
        whole,
        connect: CONNECT_DEFAULT.min(per_try),
        head: per_try,
        per_try,
        idle: IDLE_DEFAULT.min(whole),
    }
}

/// What one try may take of a whole: all of it, unless that never ends.
fn a_try(whole: Duration) -> Duration {
    match whole {
        ENDLESS => WHOLE_DEFAULT,
        whole => whole,
    }
}

/// A phase that may be without end, `none`: for streams.
fn endless(at: &At<'_>) -> Option<Duration> {
    let value = at.parse("a duration such as 250ms, or `none`", |text| match text {
        "none" => Ok(ENDLESS),
        text => parse_duration(text),
    })?;
    if value != ENDLESS && !(SHORTEST..=LONGEST).contains(&value) {
        return phase(at);
    }
    Some(value)
}

fn phase(at: &At<'_>) -> Option<Duration> {
    at.duration(SHORTEST..=LONGEST)
}

struct Limits<'a> {
    phases: &'a Map<'a>,
    whole: Duration,
    per_try: Option<Duration>,
}

impl Limits<'_> {
    /// Refuses a phase that is longer than what it is a part of.
    fn check(&self, word: &str, value: Option<Duration>) -> bool {
        let (Some(value), Some(at)) = (value, self.phases.find(word)) else {
            return true;
        };
        if word == "idle" && value == ENDLESS {
            return true;
        }
        let whole = units::duration(self.whole);
        if value > self.whole {
            at.error(format!(
                "longer than the whole call, whose `timeout` is {whole}"
            ));
            return false;
        }
        let part = matches!(word, "connect" | "head");
        match self.per_try.filter(|per_try| part && value > *per_try) {
            Some(per_try) => {
                let per_try = units::duration(per_try);
                at.error(format!(
                    "longer than one try, whose limit (`try`) is {per_try}"
                ));
                false
            }
            None => true,
        }
    }
}
