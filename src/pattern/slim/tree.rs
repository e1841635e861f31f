//! The pointers of a plan as a tree of their tokens, so that one walk through a body serves them all.

/// One token of the pointers, and those that go on below it.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    children: Vec<Child>,
    /// The key's pointer ends here.
    pub(super) key: bool,
    /// The key's pointer goes on below.
    pub(super) key_below: bool,
    /// A pointer of `keep` or `drop` ends here.
    pub(super) slim: bool,
    /// A pointer of `keep` or `drop` goes on below.
    pub(super) slim_below: bool,
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

    /// Where the pointers go on in the member of this name.
    pub(super) fn member(&self, name: &str) -> Option<&Node> {
        self.children
            .iter()
            .find(|child| child.name == name)
            .map(|child| &child.node)
    }

    /// Where the pointers go on in this element.
    pub(super) fn element(&self, index: usize) -> Option<&Node> {
        self.children
            .iter()
            .find(|child| child.index == Some(index))
            .map(|child| &child.node)
    }
}
