//! Where each value of a file stands, for what is found out only after it was compiled.

use std::collections::BTreeMap;

use super::diagnostic::{Diagnostic, Place};
use super::raw::{Node, Value, join};

/// The place of every value of one good file, by its path in the tree.
#[derive(Debug, Clone)]
pub struct Places {
    file: String,
    found: BTreeMap<String, Place>,
}

impl Places {
    /// Walks a tree whose file errors call `file`.
    pub(super) fn of(file: &str, root: &Node) -> Self {
        let mut places = Self {
            file: file.to_owned(),
            found: BTreeMap::new(),
        };
        places.add("", root);
        places
    }

    /// Whether the file itself has this value: `subscriptions[0].concurrency`. A default has no place.
    pub fn is_written(&self, path: &str) -> bool {
        self.found.contains_key(path)
    }

    /// What is to be said of a value, at its place. What the file leaves out is told at the nearest thing around it
    /// that is there, but by its own path.
    pub fn tell(&self, path: &str, reason: impl Into<String>) -> Diagnostic {
        let mut around = path;
        let place = loop {
            match self.found.get(around) {
                Some(place) => break *place,
                None if around.is_empty() => break Place::START,
                None => around = parent(around),
            }
        };
        Diagnostic {
            file: self.file.clone(),
            line: place.line,
            column: place.column,
            path: path.to_owned(),
            reason: reason.into(),
            hint: None,
        }
    }

    fn add(&mut self, path: &str, node: &Node) {
        match &node.value {
            Value::Map(entries) => {
                for entry in entries {
                    self.add(&join(path, &entry.key), &entry.node);
                }
            }
            Value::List(nodes) => {
                for (index, node) in nodes.iter().enumerate() {
                    self.add(&format!("{path}[{index}]"), node);
                }
            }
            Value::Null | Value::Text(_) | Value::Refused => {}
        }
        self.found.insert(path.to_owned(), node.place);
    }
}

/// `a.b[2].c` → `a.b[2]` → `a.b` → `a` → the file.
fn parent(path: &str) -> &str {
    let from = match path.ends_with(']') {
        true => path.rfind('['),
        false => path.rfind('.'),
    };
    &path[..from.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::compile;

    #[test]
    fn a_default_is_told_at_what_is_around_it() {
        let text = "\
service: a
services: { b: { addresses: [b:80] } }
outbound:
  routes:
    - { name: one, forward: { to: b } }
";
        let places = compile("w.yaml", text, &|_| None).expect("good").places;
        let told = |path: &str| places.tell(path, "x").to_string();
        assert_eq!(
            told("outbound.routes[0].forward.to"),
            "w.yaml:5:35: outbound.routes[0].forward.to: x"
        );
        assert_eq!(
            told("outbound.routes[0].forward.timeout"),
            "w.yaml:5:29: outbound.routes[0].forward.timeout: x"
        );
        assert_eq!(
            told("kafka.properties[\"a.b\"]"),
            "w.yaml:1:1: kafka.properties[\"a.b\"]: x"
        );
        assert!(places.is_written("services.b.addresses[0]"));
        assert!(!places.is_written("services.b.balance"));
    }

    #[test]
    fn a_path_ends_at_the_file() {
        let mut path = "a.b[2].c[\"d.e\"]";
        let mut seen = Vec::new();
        while !path.is_empty() {
            path = parent(path);
            seen.push(path);
        }
        assert_eq!(seen, ["a.b[2].c", "a.b[2]", "a.b", "a", ""]);
    }
}
