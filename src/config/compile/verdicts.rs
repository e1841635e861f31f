//! `verdicts`: what the app's answers mean to one subscription, where that is not the default.

use crate::config::diagnostic::{Invalid, quoted};
use crate::config::model::{Judged, Means};
use crate::config::read::{At, all};

/// One of each status, and of each class.
const VERDICTS_MAX: usize = 505;

/// Reads a mapping such as `{ 409: done, 5xx: dead-letter }`. What names one status stands above what names a class.
pub(super) fn verdicts(at: &At<'_>) -> Option<Vec<Judged>> {
    let entries = at.named(VERDICTS_MAX)?;
    let judged = entries.iter().map(|(name, at)| judged(name, at));
    let mut judged = all(judged.collect::<Vec<_>>().into_iter())?;
    judged.sort_by_key(|judged| std::cmp::Reverse(judged.statuses.1 - judged.statuses.0));
    Some(judged)
}

fn judged(name: &str, at: &At<'_>) -> Option<Judged> {
    let statuses = statuses(name);
    if let Err(error) = &statuses {
        at.invalid_key(error.clone());
    }
    let means = at.word(&[
        ("done", Some(Means::Done)),
        ("retry", Some(Means::Retry)),
        ("dead-letter", Some(Means::DeadLetter)),
        ("drop", Some(Means::Drop)),
    ]);
    Some(Judged {
        statuses: statuses.ok()?,
        means: means?,
    })
}

/// `409`, or a class such as `4xx`.
fn statuses(name: &str) -> Result<(u16, u16), Invalid> {
    let class = name.strip_suffix("xx").and_then(|class| class.parse().ok());
    if let Some(class @ 2..=5) = class {
        return Ok((100 * class, 100 * class + 99));
    }
    match name.parse() {
        // What comes before the answer is none (RFC 9110 section 15.2).
        Ok(status @ 200..=599) if name.len() == 3 => Ok((status, status)),
        _ => Err(Invalid::new(format!(
            "{} is no status of an answer; use 200 to 599, or a class from `2xx` to `5xx`",
            quoted(name)
        ))),
    }
}
