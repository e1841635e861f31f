//! The pointers of a plan as a tree of their tokens, so that one walk through a body serves them all.

/// The token that stands for every element of an array. In an object it is a member of that name (RFC 6901).
pub(super) const EACH: &str = "*";

/// One token of the pointers, and those that go on below it.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    children: Vec<Child>,
    /// The key's pointer ends here.
    key: bool,
    /// The key's pointer goes on below.
    key_below: bool,
    /// A pointer of `keep` or `drop` ends here.
    slim: bool,
    /// A pointer of `keep` or `drop` goes on below.
    slim_below: bool,
}

#[derive(Debug, Clone)]
struct Child {
    name: String,
    index: Option<usize>,
    node: Node,
}

/// What a pointer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Key,
    Slim,
}

/// Tokens of one pointer. A longer one is left out: it leads deeper than a body may be walked into, and it may come
/// from a query, where it must not cost stack.
const TOKENS_MAX: usize = 128;

impl Node {
    /// Adds a pointer.
    pub(super) fn insert(&mut self, tokens: &[String], role: Role) {
        if tokens.len() > TOKENS_MAX {
            return;
        }
        let Some((token, rest)) = tokens.split_first() else {
            match role {
                Role::Key => self.key = true,
                Role::Slim => self.slim = true,
            }
            return;
        };
        match role {
            Role::Key => self.key_below = true,
            Role::Slim => self.slim_below = true,
        }
        let place = self.children.iter().position(|child| child.name == *token);
        let place = place.unwrap_or_else(|| {
            // RFC 6901 section 4: an index has no leading zero and no sign.
            let plain = token.bytes().all(|byte| byte.is_ascii_digit())
                && (token == "0" || !token.starts_with('0'));
            let index = if plain { token.parse().ok() } else { None };
            self.children.push(Child {
                name: token.clone(),
                index,
                node: Node::default(),
            });
            self.children.len() - 1
        });
        self.children[place].node.insert(rest, role);
    }

    fn member(&self, name: &str) -> Option<&Node> {
        let named = self.children.iter().find(|child| child.name == name);
        named.map(|child| &child.node)
    }

    fn element(&self, index: usize) -> Option<&Node> {
        let own = self
            .children
            .iter()
            .find(|child| child.index == Some(index));
        own.map(|child| &child.node)
    }
}

/// Where a walk is in the tree: at several places where a `*` and an index lead to the same element.
#[derive(Debug, Clone, Default)]
pub(super) struct Here<'n> {
    first: Option<Place<'n>>,
    rest: Vec<Place<'n>>,
}

#[derive(Debug, Clone, Copy)]
struct Place<'n> {
    node: &'n Node,
    /// Whether a `*` leads here: a key's pointer, whose tokens are taken as they stand, does not.
    starred: bool,
}

impl<'n> Here<'n> {
    pub(super) fn at(root: &'n Node) -> Self {
        Self::of([Place {
            node: root,
            starred: false,
        }])
    }

    fn of(places: impl IntoIterator<Item = Place<'n>>) -> Self {
        let mut places = places.into_iter();
        let first = places.next();
        let rest = places.collect();
        Self { first, rest }
    }

    fn places(&self) -> impl Iterator<Item = Place<'n>> + '_ {
        self.first.iter().chain(&self.rest).copied()
    }

    /// Where the pointers go on in the member of this name.
    pub(super) fn member(&self, name: &str) -> Self {
        Self::of(self.places().filter_map(|place| {
            let node = place.node.member(name)?;
            Some(Place { node, ..place })
        }))
    }

    /// Where the pointers go on in this element, and whether that is so of every element.
    pub(super) fn element(&self, index: usize) -> (Self, bool) {
        let own = self.places().filter_map(|place| {
            let node = place.node.element(index)?;
            Some(Place { node, ..place })
        });
        let each = self.places().filter_map(|place| {
            let node = place.node.member(EACH)?;
            let starred = true;
            Some(Place { node, starred })
        });
        let indexed = |place: Place<'_>| {
            place
                .node
                .children
                .iter()
                .any(|child| child.index.is_some())
        };
        (Self::of(own.chain(each)), !self.places().any(indexed))
    }

    pub(super) fn is_somewhere(&self) -> bool {
        self.first.is_some()
    }

    /// The key's pointer ends here.
    pub(super) fn key(&self) -> bool {
        self.places().any(|place| place.node.key && !place.starred)
    }

    /// The key's pointer goes on below.
    pub(super) fn key_below(&self) -> bool {
        self.places()
            .any(|place| place.node.key_below && !place.starred)
    }

    /// A pointer of `keep` or `drop` ends here.
    pub(super) fn slim(&self) -> bool {
        self.places().any(|place| place.node.slim)
    }

    /// A pointer of `keep` or `drop` goes on below.
    pub(super) fn slim_below(&self) -> bool {
        self.places().any(|place| place.node.slim_below)
    }
}
