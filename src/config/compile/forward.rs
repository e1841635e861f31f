//! `forward`: synchronous forwarding, its timeouts and its retries.

use std::time::Duration;

use super::{Around, retry};
use crate::config::diagnostic::{Invalid, quoted};
use crate::config::model::{Forward, ServiceIndex, Timeouts};
use crate::config::read::{At, Map, listed};
use crate::config::units;
use crate::config::words::{FORWARD, TIMEOUTS, nearest};

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
const WHOLE_DEFAULT: Duration = Duration::from_secs(15);
const CONNECT_DEFAULT: Duration = Duration::from_secs(1);
const IDLE_DEFAULT: Duration = Duration::from_secs(30);

/// Reads what a route forwards to, and how.
pub(super) fn forward(at: &At<'_>, around: &Around) -> Option<Forward> {
    let map = at.map(&FORWARD)?;
    let to = map.need("to", |at| service(at, around));
    let timeouts = timeouts(&map);
    let retry = map.or("retry", retry::forward_default(), retry::forward);
    let idempotent = map.or("idempotent", false, At::flag);
    Some(Forward {
        to: to?,
        timeouts: timeouts?,
        retry: retry?,
        idempotent: idempotent?,
    })
}

fn service(at: &At<'_>, around: &Around) -> Option<ServiceIndex> {
    let services = around.services.as_ref()?;
    at.parse("the name of a service", |text| {
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
    })
}

fn timeouts(map: &Map<'_>) -> Option<Timeouts> {
    let whole = map.or("timeout", WHOLE_DEFAULT, phase);
    let Some(phases) = map.find("timeouts") else {
        return whole.map(|whole| defaults(whole, whole));
    };
    let phases = phases.map(&TIMEOUTS)?;
    let connect = phases.maybe("connect", phase);
    let head = phases.maybe("head", phase);
    let per_try = phases.maybe("try", phase);
    let idle = phases.maybe("idle", phase);
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
    let default = defaults(whole, per_try?.unwrap_or(whole));
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
