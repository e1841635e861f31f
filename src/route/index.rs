//! Finds the routes that could take a call by its host and the segments of its path, so that thousands of routes cost a
//! call no more than ten.
//!
//! Each route lies in one place: below its host, at the node of its path's fixed beginning. A call visits the nodes on its
//! own path, under its own host, the suffixes of that, and no host at all; what lies there is asked in file order.

use std::collections::HashMap;
use std::iter::Skip;
use std::str::Split;

use crate::config::model::{HostPattern, Match, PathPattern};

/// The routes by where a call could meet them.
#[derive(Debug, Default)]
pub(super) struct Index {
    any_host: Node,
    exact: HashMap<String, Node>,
    /// `.shop` → the routes of `*.shop`.
    suffixes: HashMap<String, Node>,
}

/// What lies at one beginning of paths: positions of routes, ascending.
#[derive(Debug, Default)]
struct Node {
    /// Routes of exactly this path.
    exact: Vec<usize>,
    /// Routes of everything from here on.
    open: Vec<usize>,
    below: HashMap<String, Node>,
    /// Below a free segment.
    free: Option<Box<Node>>,
}

impl Index {
    pub(super) fn new<'a>(rules: impl Iterator<Item = &'a Match>) -> Self {
        let mut index = Self::default();
        for (at, rule) in rules.enumerate() {
            let root = match &rule.host {
                None => &mut index.any_host,
                Some(HostPattern::Exact(name)) => index.exact.entry(name.clone()).or_default(),
                Some(HostPattern::Suffix(name)) => index.suffixes.entry(name.clone()).or_default(),
            };
            root.insert(at, &rule.path);
        }
        index
    }

    /// The first route, in file order, among those that could take a call, for which `takes` says that it does.
    pub(super) fn first(
        &self,
        host: &str,
        path: &str,
        takes: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut best = usize::MAX;
        let mut ask = |routes: &[usize]| {
            let better = routes.iter().take_while(|at| **at < best);
            if let Some(found) = better.copied().find(|at| takes(*at)) {
                best = found;
            }
        };
        self.any_host.visit(path, &mut ask);
        if let Some(root) = self.exact.get(host) {
            root.visit(path, &mut ask);
        }
        if !self.suffixes.is_empty() {
            for (dot, _) in host.match_indices('.') {
                if let Some(root) = self.suffixes.get(&host[dot..]) {
                    root.visit(path, &mut ask);
                }
            }
        }
        (best != usize::MAX).then_some(best)
    }
}

impl Node {
    fn insert(&mut self, at: usize, path: &PathPattern) {
        match path {
            PathPattern::Any => self.open.push(at),
            PathPattern::Exact(path) => self.at(path).exact.push(at),
            PathPattern::Prefix(path) => self.at(path).open.push(at),
            PathPattern::Template { segments, open, .. } => {
                let mut node = self;
                for segment in segments {
                    node = match segment {
                        Some(segment) => node.below.entry(segment.clone()).or_default(),
                        None => node.free.get_or_insert_default(),
                    };
                }
                match open {
                    true => node.open.push(at),
                    false => node.exact.push(at),
                }
            }
        }
    }

    fn at(&mut self, path: &str) -> &mut Self {
        let segments = path.split('/').skip(1);
        segments.fold(self, |node, segment| {
            node.below.entry(segment.to_owned()).or_default()
        })
    }

    /// Shows `ask` everything that lies on the way of a path.
    fn visit(&self, path: &str, ask: &mut impl FnMut(&[usize])) {
        if self.below.is_empty() && self.free.is_none() && self.exact.is_empty() {
            // Nothing depends on the path, so it need not be taken apart.
            return ask(&self.open);
        }
        self.walk(path.split('/').skip(1), ask);
    }

    fn walk<'a>(&self, mut rest: Skip<Split<'a, char>>, ask: &mut impl FnMut(&[usize])) {
        ask(&self.open);
        let Some(segment) = rest.next() else {
            return ask(&self.exact);
        };
        if let Some(below) = self.below.get(segment) {
            below.walk(rest.clone(), ask);
        }
        if let Some(free) = &self.free {
            free.walk(rest, ask);
        }
    }
}
