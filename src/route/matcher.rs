//! Whether one route takes a call, and if not, why.

use std::fmt;

use http::{HeaderMap, Method};

use super::facts::Facts;
use crate::config::model::{HostPattern, Match, PathPattern, Wanted};

/// The first part of a match that a call does not meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    part: Part,
    wanted: String,
    got: String,
}

/// The parts of a match, in the order in which they are checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Host,
    Path,
    Method,
    Header(String),
    Query(String),
}

impl Mismatch {
    /// How near the call came: a later mismatch is a nearer miss.
    pub fn nearness(&self) -> u8 {
        match self.part {
            Part::Host => 0,
            Part::Path => 1,
            Part::Method => 2,
            Part::Header(_) | Part::Query(_) => 3,
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its ")?;
        match &self.part {
            Part::Host => f.write_str("host")?,
            Part::Path => f.write_str("path")?,
            Part::Method => f.write_str("method")?,
            Part::Header(name) => write!(f, "header {name}")?,
            Part::Query(name) => write!(f, "parameter {name}")?,
        }
        let got = match self.got.as_str() {
            "" => "none",
            got => got,
        };
        write!(f, " is {}, the call's is {got}", self.wanted)
    }
}

/// Checks a call against one match.
///
/// # Errors
/// The first part that differs.
pub(super) fn check(rule: &Match, facts: &Facts<'_>) -> Result<(), Mismatch> {
    let differs = |part, wanted: String, got: &str| {
        Err(Mismatch {
            part,
            wanted,
            got: got.to_owned(),
        })
    };
    if let Some(host) = &rule.host
        && !takes_host(host, &facts.host)
    {
        return differs(Part::Host, host_text(host), &facts.host);
    }
    if !takes_path(&rule.path, facts.path) {
        return differs(Part::Path, path_text(&rule.path), facts.path);
    }
    if !takes_method(&rule.methods, facts.method) {
        let wanted: Vec<&str> = rule.methods.iter().map(Method::as_str).collect();
        let wanted = match wanted.is_empty() {
            true => "any but CONNECT, which must be named".to_owned(),
            false => wanted.join(" or "),
        };
        return differs(Part::Method, wanted, facts.method.as_str());
    }
    for header in &rule.headers {
        if !takes_header(&header.wanted, &header.name, facts.headers) {
            let part = Part::Header(header.name.to_string());
            // Named, not shown: a header may hold a secret.
            let got = match facts.headers.contains_key(&header.name) {
                true => "another",
                false => "",
            };
            return differs(part, wanted_text(&header.wanted), got);
        }
    }
    for (name, wanted) in &rule.query {
        if !takes_parameter(wanted, name, facts.query) {
            let got = match parameters(facts.query, name).next() {
                Some(_) => "another",
                None => "",
            };
            return differs(Part::Query(name.clone()), wanted_text(wanted), got);
        }
    }
    Ok(())
}

/// The same check without its reasons, for the hot path.
pub(super) fn takes(rule: &Match, facts: &Facts<'_>) -> bool {
    rule.host
        .as_ref()
        .is_none_or(|host| takes_host(host, &facts.host))
        && takes_path(&rule.path, facts.path)
        && takes_method(&rule.methods, facts.method)
        && rule
            .headers
            .iter()
            .all(|header| takes_header(&header.wanted, &header.name, facts.headers))
        && rule
            .query
            .iter()
            .all(|(name, wanted)| takes_parameter(wanted, name, facts.query))
}

/// Whether a list of methods has this one. Without a list all are taken, but for CONNECT: who opens tunnels says so.
pub fn takes_method(methods: &[Method], method: &Method) -> bool {
    if methods.is_empty() {
        *method != Method::CONNECT
    } else {
        methods.contains(method)
    }
}

fn takes_host(pattern: &HostPattern, host: &str) -> bool {
    match pattern {
        HostPattern::Exact(name) => name == host,
        HostPattern::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
    }
}

/// Whether a rule takes a canonical path.
pub fn takes_path(pattern: &PathPattern, path: &str) -> bool {
    match pattern {
        PathPattern::Any => true,
        PathPattern::Exact(exact) => exact == path,
        PathPattern::Prefix(prefix) => path
            .strip_prefix(prefix.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        PathPattern::Template { segments, open, .. } => {
            let mut given = path.split('/').skip(1);
            let fits = segments.iter().all(|wanted| match (wanted, given.next()) {
                (_, None) => false,
                (Some(wanted), Some(given)) => wanted == given,
                (None, Some(given)) => !given.is_empty(),
            });
            fits && (*open || given.next().is_none())
        }
    }
}

/// Whether a value is what is wanted.
pub fn is_wanted(wanted: &Wanted, value: &str) -> bool {
    match wanted {
        Wanted::Any => true,
        Wanted::Exact(exact) => exact == value,
        Wanted::Prefix(prefix) => value.starts_with(prefix.as_str()),
    }
}

fn takes_header(wanted: &Wanted, name: &http::HeaderName, headers: &HeaderMap) -> bool {
    headers
        .get_all(name)
        .iter()
        .any(|value| value.to_str().is_ok_and(|value| is_wanted(wanted, value)))
}

fn takes_parameter(wanted: &Wanted, name: &str, query: &str) -> bool {
    parameters(query, name).any(|value| is_wanted(wanted, value))
}

/// The values of a parameter, as they are written.
fn parameters<'a>(query: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(move |(key, _)| *key == name)
        .map(|(_, value)| value)
}

fn host_text(pattern: &HostPattern) -> String {
    match pattern {
        HostPattern::Exact(name) => name.clone(),
        HostPattern::Suffix(suffix) => format!("*{suffix}"),
    }
}

fn wanted_text(wanted: &Wanted) -> String {
    match wanted {
        Wanted::Any => "required".to_owned(),
        Wanted::Exact(exact) => exact.clone(),
        Wanted::Prefix(prefix) => format!("{prefix}*"),
    }
}

/// A path rule as the file writes it.
pub fn path_text(pattern: &PathPattern) -> String {
    match pattern {
        PathPattern::Any => "/**".to_owned(),
        PathPattern::Exact(path) => path.clone(),
        PathPattern::Prefix(prefix) => format!("{prefix}/**"),
        PathPattern::Template {
            segments,
            names,
            open,
        } => {
            let mut names = names.iter();
            let mut text = String::new();
            for segment in segments {
                match segment {
                    Some(segment) => text.extend(["/", segment]),
                    None => text.extend(["/{", names.next().map_or("", String::as_str), "}"]),
                }
            }
            text + if *open { "/**" } else { "" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_takes_whole_segments_that_are_not_empty() {
        let rule = |open| PathPattern::Template {
            segments: vec![Some("orders".into()), None, Some("lines".into())],
            names: vec!["id".into()],
            open,
        };
        for (path, closed, open) in [
            ("/orders/7/lines", true, true),
            ("/orders/7/lines/", false, true),
            ("/orders/7/lines/1/2", false, true),
            ("/orders//lines", false, false),
            ("/orders/7", false, false),
            ("/orders/7/linesx", false, false),
            ("/orders/7%2F8/lines", true, true),
        ] {
            assert_eq!(takes_path(&rule(false), path), closed, "{path}");
            assert_eq!(takes_path(&rule(true), path), open, "{path}");
        }
        assert_eq!(path_text(&rule(true)), "/orders/{id}/lines/**");
    }

    #[test]
    fn parameters_are_compared_as_they_are_written() {
        let exact = Wanted::Exact("1".to_owned());
        for (query, expected) in [
            ("a=1", true),
            ("b=2&a=1", true),
            ("a=2&a=1", true),
            ("aa=1", false),
            ("a", false),
            ("", false),
        ] {
            assert_eq!(takes_parameter(&exact, "a", query), expected, "{query}");
        }
        assert!(takes_parameter(&Wanted::Any, "a", "a"));
        assert!(!takes_parameter(&Wanted::Any, "a", ""));
    }
}
