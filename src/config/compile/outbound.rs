//! `outbound`: the door for the app's own calls and its routes.

use std::collections::HashMap;

use http::Method;

use super::{Around, doors, forward, publish};
use crate::config::diagnostic::Invalid;
use crate::config::model::{
    HostPattern, Match, MatchHeader, Outbound, PathPattern, Pattern, Route, Wanted,
};
use crate::config::names::{parse_header, parse_method, parse_name};
use crate::config::patterns::{parse_host_rule, parse_path_rule, parse_wanted};
use crate::config::read::{At, Map, all};
use crate::config::words::{MATCH, OUTBOUND, ROUTE};

/// Routes of one file, at most. How many there are does not matter to a call: they are found by host and path.
const ROUTES_MAX: usize = 20_000;
/// Headers or parameters of one match, at most.
const FIELDS_MAX: usize = 16;
/// Routes that are compared with all earlier ones; a longer file is not searched for routes that are never reached.
const COVERS_MAX: usize = 1000;
/// Methods of one match, at most: as many as are registered.
const METHODS_MAX: usize = 40;

/// Reads the door and its routes, in file order.
pub(super) fn outbound(at: &At<'_>, around: &Around) -> Option<Outbound> {
    let map = at.map(&OUTBOUND)?;
    let listen = map.or("listen", doors::OUTBOUND_DEFAULT, |at| {
        let address = doors::listen(at)?;
        if !address.ip().is_loopback() {
            at.warning("everyone who reaches this port may call in the app's name");
        }
        Some(address)
    });
    let routes = map.or("routes", Vec::new(), |at| routes(at, around));
    Some(Outbound {
        listen: listen?,
        routes: routes?,
    })
}

fn routes(at: &At<'_>, around: &Around) -> Option<Vec<Route>> {
    let list = at.list(ROUTES_MAX, "[{ name: …, match: …, forward: … }]")?;
    let (names, routes): (Vec<_>, Vec<_>) = list.iter().map(|at| route(at, around)).unzip();
    one_name_each(&list, &names);
    for (index, (at, route)) in list.iter().zip(&routes).enumerate() {
        let Some(route) = route else { continue };
        let mut earlier = routes[..index.min(COVERS_MAX)].iter().flatten();
        if let Some(first) = earlier.find(|first| covers(&first.matches, &route.matches)) {
            let Route { name, line, .. } = first;
            at.warning(format!(
                "never reached: `{name}` in line {line} takes all of its calls"
            ));
        }
    }
    all(routes.into_iter())
}

/// Refuses a name that an earlier route has, whatever else may be wrong with either.
fn one_name_each(list: &[At<'_>], names: &[Option<String>]) {
    let mut lines: HashMap<&str, usize> = HashMap::new();
    for (at, name) in list.iter().zip(names) {
        let Some(name) = name else { continue };
        if let Some(line) = lines.insert(name, at.place().line) {
            let at = at.peek("name").unwrap_or_else(|| at.clone());
            at.error(format!("the route in line {line} has this name already"));
        }
    }
}

/// Its name, which counts even if the route is wrong, and the route.
fn route(at: &At<'_>, around: &Around) -> (Option<String>, Option<Route>) {
    let Some(map) = at.map(&ROUTE) else {
        return (None, None);
    };
    let name = map.need("name", |at| at.parse("a name", parse_name));
    let matches = map.or("match", Match::default(), matches);
    let pattern = pattern(&map, matches.as_ref(), around);
    let route = name.clone().zip(matches).zip(pattern);
    let route = route.map(|((name, matches), pattern)| Route {
        name,
        line: at.place().line,
        matches,
        pattern,
    });
    (name, route)
}

/// Exactly one of the patterns.
fn pattern(map: &Map<'_>, matches: Option<&Match>, around: &Around) -> Option<Pattern> {
    let any = PathPattern::Any;
    let path = matches.map_or(&any, |matches| &matches.path);
    let forward = map.maybe("forward", |at| forward::forward(at, path, around));
    let publish = map.maybe("publish", |at| publish::publish(at, path, around));
    if map.find("forward").is_some() && map.find("publish").is_some() {
        map.at()
            .error("a route does one thing: either `forward` or `publish`");
        return None;
    }
    let tunnel = matches.is_some_and(|matches| matches.methods.contains(&Method::CONNECT));
    if tunnel && map.find("publish").is_some() {
        map.at()
            .error("CONNECT opens a tunnel, which cannot be published");
        return None;
    }
    let otherwise = map.find("forward").and_then(|at| at.peek("otherwise"));
    let methods = matches.map_or(&[][..], |matches| &matches.methods);
    let never = |method: &Method| method.is_safe() || *method == Method::CONNECT;
    if let (Some(at), false, true) = (otherwise, methods.is_empty(), methods.iter().all(never)) {
        at.error("reads and tunnels are never queued, and this route has no others");
        return None;
    }
    match (forward?, publish?) {
        (Some(forward), _) => Some(Pattern::Forward(forward)),
        (None, Some(publish)) => Some(Pattern::Publish(publish)),
        (None, None) => {
            // A pattern of a later version or a misspelt one has its own error already.
            let told = map.at().peek("channel").is_some();
            if !told && !map.may_hold("forward") && !map.may_hold("publish") {
                map.at()
                    .error("say what is done with these calls: add `forward` or `publish`");
            }
            None
        }
    }
}

fn matches(at: &At<'_>) -> Option<Match> {
    let map = at.map(&MATCH)?;
    let host = map.maybe("host", |at| {
        at.parse("a host such as billing or *.shop", parse_host_rule)
    });
    let methods = map.or("methods", Vec::new(), methods);
    let path = map.or("path", PathPattern::Any, |at| {
        at.parse("a path such as /invoices or /invoices/**", parse_path_rule)
    });
    let headers = map.or("headers", Vec::new(), headers);
    let query = map.or("query", Vec::new(), |at| {
        let named = at.named(FIELDS_MAX)?.into_iter();
        all(named.map(|(name, at)| Some((name.to_owned(), wanted(&at)?))))
    });
    Some(Match {
        host: host?,
        methods: methods?,
        path: path?,
        headers: headers?,
        query: query?,
    })
}

fn headers(at: &At<'_>) -> Option<Vec<MatchHeader>> {
    let one = |(name, at): (&str, At<'_>)| {
        let wanted = wanted(&at);
        let name = match parse_header(name) {
            Ok(name) if name == http::header::HOST => {
                Err(Invalid::new("the host is compared by `host`"))
            }
            read => read,
        };
        let name = name.map_err(|error| at.invalid_key(error)).ok()?;
        Some(MatchHeader {
            name,
            wanted: wanted?,
        })
    };
    all(at.named(FIELDS_MAX)?.into_iter().map(one))
}

fn wanted(at: &At<'_>) -> Option<Wanted> {
    at.parse("a value, `begins*` or `*`", parse_wanted)
}

/// Reads a list of methods.
pub(super) fn methods(at: &At<'_>) -> Option<Vec<Method>> {
    let list = at.list(METHODS_MAX, "[GET, POST]")?;
    if list.is_empty() {
        at.error("an empty list takes no call; to take every method, leave `methods` out");
        return None;
    }
    let mut seen = Vec::new();
    all(list.iter().map(|at| {
        let method = at.parse("a method such as GET", parse_method)?;
        if seen.contains(&method) {
            at.error(format!("{method} is here twice"));
            return None;
        }
        seen.push(method.clone());
        Some(method)
    }))
}

/// Whether every call that `inner` takes is taken by `outer`.
fn covers(outer: &Match, inner: &Match) -> bool {
    let host = match (&outer.host, &inner.host) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(HostPattern::Exact(outer)), Some(HostPattern::Exact(inner))) => outer == inner,
        (Some(HostPattern::Exact(_)), Some(HostPattern::Suffix(_))) => false,
        (
            Some(HostPattern::Suffix(outer)),
            Some(HostPattern::Exact(inner) | HostPattern::Suffix(inner)),
        ) => inner.ends_with(outer.as_str()),
    };
    let methods = outer.methods.is_empty() && !inner.methods.contains(&Method::CONNECT)
        || (!inner.methods.is_empty()
            && inner
                .methods
                .iter()
                .all(|method| outer.methods.contains(method)));
    let path = match (&outer.path, &inner.path) {
        (PathPattern::Any, _) => true,
        (_, PathPattern::Any) => false,
        (PathPattern::Exact(outer), PathPattern::Exact(inner)) => outer == inner,
        (PathPattern::Exact(_), PathPattern::Prefix(_)) => false,
        (PathPattern::Prefix(outer), PathPattern::Exact(inner) | PathPattern::Prefix(inner)) => {
            inner
                .strip_prefix(outer.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        (outer, inner) => outer == inner,
    };
    let headers = outer
        .headers
        .iter()
        .all(|wanted| inner.headers.contains(wanted));
    let query = outer
        .query
        .iter()
        .all(|wanted| inner.query.contains(wanted));
    host && methods && path && headers && query
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(host: &str, methods: &str, path: &str) -> Match {
        let part = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Match {
            host: part(host).map(|host| parse_host_rule(&host).unwrap()),
            methods: methods
                .split_whitespace()
                .map(|word| parse_method(word).unwrap())
                .collect(),
            path: part(path)
                .map(|path| parse_path_rule(&path).unwrap())
                .unwrap_or_default(),
            ..Match::default()
        }
    }

    fn check(outer: (&str, &str, &str), inner: (&str, &str, &str), expected: bool) {
        let (one, other) = (
            rule(outer.0, outer.1, outer.2),
            rule(inner.0, inner.1, inner.2),
        );
        assert_eq!(covers(&one, &other), expected, "{outer:?} {inner:?}");
    }

    #[test]
    fn a_rule_covers_what_it_takes_entirely() {
        check(("", "", ""), ("a", "GET", "/x"), true);
        check(("a", "", ""), ("", "", ""), false);
        check(("*.shop", "", ""), ("a.shop", "", ""), true);
        check(("*.shop", "", ""), ("*.b.shop", "", ""), true);
        check(("*.shop", "", ""), ("shop", "", ""), false);
        check(("a.shop", "", ""), ("*.shop", "", ""), false);
        check(("", "GET POST", ""), ("", "GET", ""), true);
        check(("", "GET", ""), ("", "", ""), false);
        check(("", "", "/a/**"), ("", "", "/a"), true);
        check(("", "", "/a/**"), ("", "", "/a/b/**"), true);
        check(("", "", "/a/**"), ("", "", "/ab"), false);
        check(("", "", "/a"), ("", "", "/a/**"), false);
    }
}
