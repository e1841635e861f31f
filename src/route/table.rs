//! The routes in file order; the first match wins.

use super::facts::Facts;
use super::matcher::{self, Mismatch};
use crate::config::model::{Match, Route};

/// What the table says of one route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It takes the call.
    Takes,
    /// It does not, and why.
    Passes(Mismatch),
    /// An earlier route took the call.
    NotAsked,
}

/// The routes of the outbound door.
#[derive(Debug, Default)]
pub struct Table {
    rules: Vec<(String, Match)>,
}

impl Table {
    /// Compiles the table; positions are those of `routes`.
    pub fn new(routes: &[Route]) -> Self {
        Self {
            rules: routes
                .iter()
                .map(|route| (route.name.clone(), route.matches.clone()))
                .collect(),
        }
    }

    /// The position of the route that takes a call.
    pub fn find(&self, facts: &Facts<'_>) -> Option<usize> {
        self.rules
            .iter()
            .position(|(_, rule)| matcher::takes(rule, facts))
    }

    /// What each route says to a call, in order.
    pub fn explain(&self, facts: &Facts<'_>) -> Vec<Verdict> {
        let mut taken = false;
        let ask = |(_, rule): &(String, Match)| match matcher::check(rule, facts) {
            _ if taken => Verdict::NotAsked,
            Ok(()) => {
                taken = true;
                Verdict::Takes
            }
            Err(mismatch) => Verdict::Passes(mismatch),
        };
        self.rules.iter().map(ask).collect()
    }

    /// The route that came nearest to taking a call, and what kept it from that.
    pub fn nearest(&self, facts: &Facts<'_>) -> Option<(&str, Mismatch)> {
        let misses = self.rules.iter().filter_map(|(name, rule)| {
            matcher::check(rule, facts)
                .err()
                .map(|mismatch| (name.as_str(), mismatch))
        });
        // `max_by_key` keeps the last of equals; reversed, it is the first in the file.
        misses.rev().max_by_key(|(_, mismatch)| mismatch.nearness())
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use http::Method;

    use super::*;
    use crate::config::model::{HostPattern, PathPattern};

    fn table(rules: &[(&str, Option<HostPattern>, PathPattern, &[Method])]) -> Table {
        let rule =
            |(name, host, path, methods): &(&str, Option<HostPattern>, PathPattern, &[Method])| {
                let rule = Match {
                    host: host.clone(),
                    methods: methods.to_vec(),
                    path: path.clone(),
                };
                ((*name).to_owned(), rule)
            };
        Table {
            rules: rules.iter().map(rule).collect(),
        }
    }

    fn facts<'a>(method: &'a Method, host: &'a str, path: &'a str) -> Facts<'a> {
        Facts {
            host: Cow::Borrowed(host),
            method,
            path,
        }
    }

    #[test]
    fn the_first_match_wins_and_later_routes_are_not_asked() {
        let table = table(&[
            (
                "read",
                Some(HostPattern::Exact("billing".into())),
                PathPattern::Prefix("/invoices".into()),
                &[Method::GET],
            ),
            (
                "write",
                Some(HostPattern::Exact("billing".into())),
                PathPattern::Exact("/invoices".into()),
                &[Method::POST],
            ),
            ("rest", None, PathPattern::Any, &[]),
        ]);
        let check =
            |method: Method, host: &str, path: &str| table.find(&facts(&method, host, path));
        assert_eq!(check(Method::GET, "billing", "/invoices/7"), Some(0));
        assert_eq!(check(Method::GET, "billing", "/invoices"), Some(0));
        assert_eq!(check(Method::GET, "billing", "/invoicesx"), Some(2));
        assert_eq!(check(Method::POST, "billing", "/invoices"), Some(1));
        assert_eq!(check(Method::POST, "rates", "/"), Some(2));
        let verdicts = table.explain(&facts(&Method::POST, "billing", "/invoices"));
        assert!(matches!(
            verdicts[0],
            Verdict::Passes(Mismatch::Method { .. })
        ));
        assert_eq!(verdicts[1..], [Verdict::Takes, Verdict::NotAsked]);
    }

    #[test]
    fn the_nearest_route_is_the_one_whose_last_part_differs() {
        let table = table(&[
            (
                "a",
                Some(HostPattern::Suffix(".shop".into())),
                PathPattern::Any,
                &[],
            ),
            (
                "b",
                Some(HostPattern::Exact("billing".into())),
                PathPattern::Exact("/x".into()),
                &[Method::PUT],
            ),
        ]);
        let (name, mismatch) = table
            .nearest(&facts(&Method::GET, "billing", "/x"))
            .expect("there are routes");
        assert_eq!(
            (name, mismatch.to_string().as_str()),
            ("b", "its method is PUT, the call's is GET")
        );
        assert_eq!(table.find(&facts(&Method::GET, "a.shop", "/")), Some(0));
        assert_eq!(table.find(&facts(&Method::GET, ".shop", "/")), None);
    }
}
