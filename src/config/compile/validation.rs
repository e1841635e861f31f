//! `schema` and `content_type` of a route that publishes: what a body must be before anything is done with it.

use super::tls;
use crate::config::diagnostic::{Invalid, quoted};
use crate::config::model::{MediaRange, Schema};
use crate::config::read::{At, Map, all};

/// Media types of one route, at most.
const TYPES_MAX: usize = 32;

/// Reads the schema that a route names; everything that is wrong with it is noted at its name.
pub(super) fn schema(at: &At<'_>) -> Option<Schema> {
    let path = at.parse("a path", tls::path)?;
    match at.schemas().get(&path) {
        Ok((schema, warnings)) => {
            for warning in warnings {
                at.warning(warning);
            }
            Some(schema)
        }
        Err(mistakes) => {
            for mistake in mistakes {
                at.error(mistake);
            }
            None
        }
    }
}

/// Reads the media types that a body may have: one or a list.
pub(super) fn content_type(map: &Map<'_>) -> Option<Vec<MediaRange>> {
    let default = match map.find("schema") {
        Some(_) => MediaRange::json(),
        None => Vec::new(),
    };
    map.or("content_type", default, |at| {
        if !at.is_list() {
            return one(at).map(|range| vec![range]);
        }
        let list = at.list(TYPES_MAX, "[application/json]")?;
        if list.is_empty() {
            at.error("an empty list takes no body at all; to take every one, leave the key out or write `*/*`");
            return None;
        }
        all(list.iter().map(one))
    })
}

fn one(at: &At<'_>) -> Option<MediaRange> {
    at.parse("a media type such as application/json", media_range)
}

fn media_range(text: &str) -> Result<MediaRange, Invalid> {
    let lower = text.to_ascii_lowercase();
    if let Some((essence, _)) = lower.split_once(';') {
        let reason = format!("{} has parameters, which are not compared", quoted(text));
        return Err(Invalid::new(reason).hint(essence.trim().to_owned()));
    }
    let wrong = || {
        let text = quoted(text);
        Invalid::new(format!(
            "{text} is no media type such as application/json, application/*+json, text/* or */*"
        ))
    };
    let (kind, subtype) = lower.split_once('/').ok_or_else(wrong)?;
    if (kind, subtype) == ("*", "*") {
        return Ok(MediaRange::Any);
    }
    if !is_name(kind) {
        return Err(wrong());
    }
    if subtype == "*" {
        return Ok(MediaRange::Type(format!("{kind}/")));
    }
    match subtype.strip_prefix("*+") {
        Some(suffix) if is_name(suffix) => {
            Ok(MediaRange::Suffix(format!("{kind}/"), format!("+{suffix}")))
        }
        None if is_name(subtype) => Ok(MediaRange::Exact(lower)),
        _ => Err(wrong()),
    }
}

/// A restricted name (RFC 6838 section 4.2).
fn is_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte);
    let first = text.bytes().next();
    first.is_some_and(|byte| byte.is_ascii_alphanumeric())
        && text.len() <= 127
        && text.bytes().all(letter)
}
