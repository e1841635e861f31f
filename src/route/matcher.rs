//! Whether one route takes a call, and if not, why.

use std::fmt;

use super::facts::Facts;
use crate::config::model::{HostPattern, Match, PathPattern};

/// The first part of a match that a call does not meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// Another host.
    Host {
        /// What the route wants.
        wanted: String,
        /// What the call has.
        got: String,
    },
    /// Another path.
    Path {
        /// What the route wants.
        wanted: String,
        /// What the call has.
        got: String,
    },
    /// Another method.
    Method {
        /// What the route wants.
        wanted: String,
        /// What the call has.
        got: String,
    },
}

impl Mismatch {
    /// How near the call came: parts are checked in this order, so a later mismatch is a nearer miss.
    pub fn nearness(&self) -> u8 {
        match self {
            Self::Host { .. } => 0,
            Self::Path { .. } => 1,
            Self::Method { .. } => 2,
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (part, wanted, got) = match self {
            Self::Host { wanted, got } => ("host", wanted, got),
            Self::Path { wanted, got } => ("path", wanted, got),
            Self::Method { wanted, got } => ("method", wanted, got),
        };
        let got = if got.is_empty() { "none" } else { got };
        write!(f, "its {part} is {wanted}, the call's is {got}")
    }
}

/// Checks a call against one match.
///
/// # Errors
/// The first part that differs.
pub(super) fn check(rule: &Match, facts: &Facts<'_>) -> Result<(), Mismatch> {
    if let Some(host) = &rule.host
        && !takes_host(host, &facts.host)
    {
        return Err(Mismatch::Host {
            wanted: host_text(host),
            got: facts.host.clone().into_owned(),
        });
    }
    if !takes_path(&rule.path, facts.path) {
        return Err(Mismatch::Path {
            wanted: path_text(&rule.path),
            got: facts.path.to_owned(),
        });
    }
    if !rule.methods.is_empty() && !rule.methods.contains(facts.method) {
        let wanted: Vec<&str> = rule.methods.iter().map(http::Method::as_str).collect();
        return Err(Mismatch::Method {
            wanted: wanted.join(" or "),
            got: facts.method.to_string(),
        });
    }
    Ok(())
}

/// The same check without its reasons, for the hot path.
pub(super) fn takes(rule: &Match, facts: &Facts<'_>) -> bool {
    rule.host
        .as_ref()
        .is_none_or(|host| takes_host(host, &facts.host))
        && takes_path(&rule.path, facts.path)
        && (rule.methods.is_empty() || rule.methods.contains(facts.method))
}

fn takes_host(pattern: &HostPattern, host: &str) -> bool {
    match pattern {
        HostPattern::Exact(name) => name == host,
        HostPattern::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
    }
}

fn takes_path(pattern: &PathPattern, path: &str) -> bool {
    match pattern {
        PathPattern::Any => true,
        PathPattern::Exact(exact) => exact == path,
        PathPattern::Prefix(prefix) => path
            .strip_prefix(prefix.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
    }
}

fn host_text(pattern: &HostPattern) -> String {
    match pattern {
        HostPattern::Exact(name) => name.clone(),
        HostPattern::Suffix(suffix) => format!("*{suffix}"),
    }
}

fn path_text(pattern: &PathPattern) -> String {
    match pattern {
        PathPattern::Any => "/**".to_owned(),
        PathPattern::Exact(path) => path.clone(),
        PathPattern::Prefix(prefix) => format!("{prefix}/**"),
    }
}
