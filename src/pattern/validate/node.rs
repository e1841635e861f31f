//! [`Tree`] as the validator sees it, with a limit on what it may say.
//!
//! The library collects every violation before it gives the first one, with what each is about. A body that breaks a
//! rule at each of a million values would so cost far more memory than its own. So a node hands out a number in place
//! of its value, and when [`Spent::LIMIT`] numbers are used up, containers look as if they ended: the rest is soon over,
//! and what it says is not believed.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashSet;

use jsonschema::JsonType;
use jsonschema::json::{Array, Json, Node, NodeIdentity, Object};
use serde_json::{Number, Value};

use super::document::{Document, Tree};

/// What was said about one body.
#[derive(Default)]
pub(super) struct Spent {
    said: Cell<u64>,
    limit: Cell<Option<u64>>,
}

impl Spent {
    /// Violations that are found, those inside choices included, at most.
    const LIMIT: u64 = 10_000;
    /// Bytes of all their pointers, at most.
    const POINTERS: usize = 4 << 20;

    /// A limit for this document.
    pub(super) fn on(document: &Document<'_>) -> Self {
        let by_pointers = (Self::POINTERS / document.longest.max(1)) as u64;
        let limit = Self::LIMIT.min(by_pointers).max(1);
        Self {
            said: Cell::new(0),
            limit: Cell::new(Some(limit)),
        }
    }

    /// Whether what bears this number was said within the limit.
    pub(super) fn believes(&self, number: &Value) -> bool {
        let limit = self.limit.get().unwrap_or(u64::MAX);
        number.as_u64().is_some_and(|number| number <= limit)
    }

    /// Whether the limit is reached.
    pub(super) fn is_over(&self) -> bool {
        self.limit
            .get()
            .is_some_and(|limit| self.said.get() > limit)
    }

    fn number(&self) -> u64 {
        let number = self.said.get() + 1;
        self.said.set(number);
        number
    }
}

/// The representation of [`Tree`].
pub(super) struct Bodies;

impl Json for Bodies {
    type Node<'a> = Spot<'a>;
    type PreparedKey = Box<str>;
    type StringBuffer = (Tree<'static>, Spent);

    const KEYS_PER_LOOKUP: usize = 2;
    const ACYCLIC: bool = true;

    fn prepare_key(key: &str) -> Box<str> {
        key.into()
    }

    fn with_string_node<T>(
        (tree, spent): &mut Self::StringBuffer,
        string: &str,
        f: impl FnOnce(Spot<'_>) -> T,
    ) -> T {
        *tree = Tree::Text(Cow::Owned(string.to_owned()));
        f(Spot { tree, spent })
    }
}

/// A value in a body.
#[derive(Clone, Copy)]
pub(super) struct Spot<'a> {
    pub(super) tree: &'a Tree<'a>,
    pub(super) spent: &'a Spent,
}

impl<'a> Node<'a, Bodies> for Spot<'a> {
    type Object = Members<'a>;
    type Array = Elements<'a>;
    type Number = &'a Number;

    fn as_object(&self) -> Option<Members<'a>> {
        match self.tree {
            Tree::Object(members) => Some(Members {
                members,
                spent: self.spent,
            }),
            _ => None,
        }
    }

    fn as_array(&self) -> Option<Elements<'a>> {
        match self.tree {
            Tree::List(values) => Some(Elements {
                values,
                spent: self.spent,
            }),
            _ => None,
        }
    }

    fn as_string(&self) -> Option<Cow<'a, str>> {
        match self.tree {
            Tree::Text(text) => Some(Cow::Borrowed(text)),
            _ => None,
        }
    }

    fn as_number(&self) -> Option<&'a Number> {
        match self.tree {
            Tree::Number(number) => Some(number),
            _ => None,
        }
    }

    fn as_boolean(&self) -> Option<bool> {
        match self.tree {
            Tree::Bool(value) => Some(*value),
            _ => None,
        }
    }

    fn is_null(&self) -> bool {
        matches!(self.tree, Tree::Null)
    }

    fn is_string(&self) -> bool {
        matches!(self.tree, Tree::Text(_))
    }

    fn json_type(&self) -> JsonType {
        match self.tree {
            Tree::Null => JsonType::Null,
            Tree::Bool(_) => JsonType::Boolean,
            Tree::Number(_) => JsonType::Number,
            Tree::Text(_) => JsonType::String,
            Tree::List(_) => JsonType::Array,
            Tree::Object(_) => JsonType::Object,
        }
    }

    fn equals_value(&self, expected: &Value) -> bool {
        self.tree.is(expected)
    }

    /// A number, and never the value: this is asked for only where something is said about it.
    fn to_value(&self) -> Cow<'a, Value> {
        Cow::Owned(self.spent.number().into())
    }

    fn identity(&self) -> Option<NodeIdentity> {
        Some(NodeIdentity::new(std::ptr::from_ref(self.tree).addr()))
    }
}

/// The members of an object.
pub(super) struct Members<'a> {
    members: &'a [(Cow<'a, str>, Tree<'a>)],
    spent: &'a Spent,
}

impl<'a> Object<'a, Bodies> for Members<'a> {
    type Node = Spot<'a>;
    type MemberName = &'a str;
    type MembersIter = Until<'a, std::slice::Iter<'a, (Cow<'a, str>, Tree<'a>)>>;

    fn len(&self) -> usize {
        self.members.len()
    }

    fn get(&self, key: &Box<str>) -> Option<Spot<'a>> {
        let tree = Tree::member(self.members, key)?;
        Some(Spot {
            tree,
            spent: self.spent,
        })
    }

    fn members(&self) -> Self::MembersIter {
        Until {
            values: self.members.iter(),
            spent: self.spent,
        }
    }
}

/// The elements of an array.
pub(super) struct Elements<'a> {
    values: &'a [Tree<'a>],
    spent: &'a Spent,
}

impl<'a> Array<'a, Bodies> for Elements<'a> {
    type Node = Spot<'a>;
    type ElementsIter = Until<'a, std::slice::Iter<'a, Tree<'a>>>;

    fn len(&self) -> usize {
        self.values.len()
    }

    fn elements(&self) -> Self::ElementsIter {
        Until {
            values: self.values.iter(),
            spent: self.spent,
        }
    }

    fn is_unique(&self) -> bool {
        const FEW: usize = 8;
        if self.values.len() <= FEW {
            let mut pairs = self.values.iter().enumerate();
            return pairs
                .all(|(at, one)| !self.values.iter().skip(at + 1).any(|other| one == other));
        }
        let mut seen = HashSet::with_capacity(self.values.len());
        self.values.iter().all(|value| seen.insert(value))
    }
}

/// Goes through a container until its end, or until enough was said.
pub(super) struct Until<'a, I> {
    values: I,
    spent: &'a Spent,
}

impl<'a> Iterator for Until<'a, std::slice::Iter<'a, Tree<'a>>> {
    type Item = Spot<'a>;

    fn next(&mut self) -> Option<Spot<'a>> {
        if self.spent.is_over() {
            return None;
        }
        let spent = self.spent;
        self.values.next().map(|tree| Spot { tree, spent })
    }
}

impl<'a> Iterator for Until<'a, std::slice::Iter<'a, (Cow<'a, str>, Tree<'a>)>> {
    type Item = (&'a str, Spot<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.spent.is_over() {
            return None;
        }
        let spent = self.spent;
        let (name, tree) = self.values.next()?;
        Some((name, Spot { tree, spent }))
    }
}
