//! The routes in file order; the first match wins.

use super::facts::Facts;
use super::index::Index;
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
    index: Index,
}

impl Table {
    /// Compiles the table; positions are those of `routes`.
    pub fn new(routes: &[Route]) -> Self {
        let named = routes
            .iter()
            .map(|route| (route.name.clone(), route.matches.clone()));
        Self::of(named.collect())
    }

    fn of(rules: Vec<(String, Match)>) -> Self {
        let index = Index::new(rules.iter().map(|(_, rule)| rule));
        Self { rules, index }
    }

    /// The position of the route that takes a call.
    pub fn find(&self, facts: &Facts<'_>) -> Option<usize> {
        self.index.first(&facts.host, facts.path, |at| {
            matcher::takes(&self.rules[at].1, facts)
        })
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
    use std::sync::LazyLock;

    use http::{HeaderMap, Method};

    use super::*;
    use crate::config::model::{HostPattern, MatchHeader, PathPattern, Wanted};

    static NO_HEADERS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);

    fn table(rules: &[(&str, Option<HostPattern>, PathPattern, &[Method])]) -> Table {
        let rule =
            |(name, host, path, methods): &(&str, Option<HostPattern>, PathPattern, &[Method])| {
                let rule = Match {
                    host: host.clone(),
                    methods: methods.to_vec(),
                    path: path.clone(),
                    ..Match::default()
                };
                ((*name).to_owned(), rule)
            };
        Table::of(rules.iter().map(rule).collect())
    }

    fn facts<'a>(method: &'a Method, host: &'a str, path: &'a str) -> Facts<'a> {
        Facts {
            host: Cow::Borrowed(host),
            method,
            path,
            query: "",
            headers: &NO_HEADERS,
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
        assert!(matches!(&verdicts[0], Verdict::Passes(mismatch) if mismatch.nearness() == 2));
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

    #[test]
    fn the_index_finds_what_asking_every_route_in_turn_would_find() {
        let random = fastrand::Rng::with_seed(7);
        let mut random = random;
        let word = |random: &mut fastrand::Rng| ["a", "b", "c", ""][random.usize(..4)].to_owned();
        let path = |random: &mut fastrand::Rng| {
            let count = random.usize(1..4);
            (0..count)
                .map(|_| format!("/{}", word(random)))
                .collect::<String>()
        };
        for _ in 0..300 {
            let rule = |random: &mut fastrand::Rng| {
                let host = match random.usize(..3) {
                    0 => None,
                    1 => Some(HostPattern::Exact(
                        ["x", "x.y", "y"][random.usize(..3)].into(),
                    )),
                    _ => Some(HostPattern::Suffix(
                        [".y", ".z.y"][random.usize(..2)].into(),
                    )),
                };
                let rule = match random.usize(..4) {
                    0 => PathPattern::Any,
                    1 => PathPattern::Exact(path(random)),
                    2 => PathPattern::Prefix(path(random)),
                    _ => PathPattern::Template {
                        segments: (0..random.usize(1..4))
                            .map(|_| random.bool().then(|| word(random)))
                            .collect(),
                        names: Vec::new(),
                        open: random.bool(),
                    },
                };
                let methods = if random.bool() {
                    vec![Method::GET]
                } else {
                    vec![]
                };
                let rule = Match {
                    host,
                    methods,
                    path: rule,
                    ..Match::default()
                };
                (String::new(), rule)
            };
            let table = Table::of((0..12).map(|_| rule(&mut random)).collect());
            for _ in 0..50 {
                let path = path(&mut random);
                let host = ["x", "x.y", "y", "z.y", "a.z.y", "q"][random.usize(..6)];
                let method = if random.bool() {
                    Method::GET
                } else {
                    Method::POST
                };
                let facts = facts(&method, host, &path);
                let one_by_one = table
                    .rules
                    .iter()
                    .position(|(_, rule)| matcher::takes(rule, &facts));
                assert_eq!(table.find(&facts), one_by_one, "{host}{path}");
            }
        }
    }

    #[test]
    fn headers_and_parameters_are_looked_at_and_a_header_that_differs_is_not_shown() {
        let rule = Match {
            headers: vec![MatchHeader {
                name: http::HeaderName::from_static("x-key"),
                wanted: Wanted::Prefix("k-".into()),
            }],
            query: vec![("v".into(), Wanted::Exact("2".into()))],
            ..Match::default()
        };
        let table = Table::of(vec![("a".into(), rule)]);
        let mut headers = HeaderMap::new();
        let check = |headers: &HeaderMap, query: &str| {
            let facts = Facts {
                query,
                headers,
                ..facts(&Method::GET, "x", "/")
            };
            match table.nearest(&facts) {
                Some((_, mismatch)) => Err(mismatch.to_string()),
                None => Ok(table.find(&facts)),
            }
        };
        let missing = "its header x-key is k-*, the call's is none".to_owned();
        assert_eq!(check(&headers, "v=2"), Err(missing));
        headers.insert("x-key", http::HeaderValue::from_static("secret"));
        let other = "its header x-key is k-*, the call's is another".to_owned();
        assert_eq!(check(&headers, "v=2"), Err(other));
        headers.append("x-key", http::HeaderValue::from_static("k-7"));
        let parameter = "its parameter v is 2, the call's is none".to_owned();
        assert_eq!(check(&headers, "a=2"), Err(parameter));
        assert_eq!(check(&headers, "a=2&v=2"), Ok(Some(0)));
    }
}
