//! Key, slimming and projection of a JSON body in one pass over its bytes, without building a document.
//!
//! The rules:
//!
//! * Pointers (RFC 6901) are compared with unescaped member names. In an array a token is an index; `-` matches nothing.
//! * What stays is copied byte for byte: numbers, escapes and inner whitespace as the caller sent them. Only the
//!   containers on the way to a pointer are written anew, members in their old order, without whitespace between them.
//! * An index means the same element before and after: an element that is cut leaves `null`, and only what follows the
//!   last kept one vanishes. A container that `keep` empties vanishes too, except the root.
//! * Of a member that is there twice the last one gives the key, as in most JSON readers; slimming treats all alike.
//! * A body that is one string, number, boolean or null has no fields to choose from: it is refused as not fitting.
//! * Containers that are walked into may be nested 128 deep. All others are skipped without recursion, so their depth
//!   costs no stack.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::key;
use crate::config::model::{KeyMissing, KeyRule, Pointer, Publish, SlimRule};
use crate::error::{Error, Kind};

/// What was cut is named up to this many fields; above it the whole document is named (see [`Cut::fields`]).
const CUT_MAX: usize = 64;
/// And up to this many bytes of pointers, since they travel in a record's header.
const CUT_BYTES_MAX: usize = 4096;
/// Fields that one `?fields=` may ask for; above it the call is a 400.
const FIELDS_MAX: usize = 64;

/// What a route reads from a body and what it leaves of it, compiled once.
#[derive(Debug, Clone)]
pub struct Plan {
    key: Option<KeyRule>,
    missing: KeyMissing,
    mode: Option<Mode>,
    root: Node,
}

/// What one body gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slimmed {
    /// The record's key, if the body carries it. Shares the body's memory where it needs no unescaping.
    pub key: Option<Bytes>,
    /// What was made small; `None` where nothing had to be cut, so that no claim is needed.
    pub cut: Option<Cut>,
}

/// A body made small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The slim body: JSON, of the same outermost kind as the whole.
    pub body: Bytes,
    /// Pointers to what was cut, topmost only, in the body's order. One empty pointer, which is RFC 6901 for the whole
    /// document, where they are more than 64 or longer than 4 KiB.
    pub fields: Vec<String>,
    /// SHA-256 of the whole body.
    pub digest: [u8; 32],
}

impl Plan {
    /// Compiles the key rule and the slim rule of a route.
    pub fn new(key: Option<&KeyRule>, missing: KeyMissing, slim: Option<&SlimRule>) -> Self {
        let mut root = Node::default();
        if let Some(KeyRule::Body(pointer)) = key {
            root.insert(&pointer.0, Role::Key);
        }
        let (mode, pointers) = match slim {
            None => (None, &[][..]),
            Some(SlimRule::Keep(pointers)) => (Some(Mode::Keep), &pointers[..]),
            Some(SlimRule::Drop(pointers)) => (Some(Mode::Drop), &pointers[..]),
        };
        for pointer in pointers {
            root.insert(&pointer.0, Role::Slim);
        }
        Self {
            key: key.cloned(),
            missing,
            mode,
            root,
        }
    }

    /// Compiles the rules of a publish route.
    pub fn of(publish: &Publish) -> Self {
        let slim = publish.slim.as_ref().map(|slim| &slim.rule);
        Self::new(publish.key.as_ref(), publish.key_missing, slim)
    }

    /// Whether the body must be JSON.
    pub fn reads_body(&self) -> bool {
        self.mode.is_some() || matches!(self.key, Some(KeyRule::Body(_)))
    }

    /// Reads the key and makes the body small, as far as the rules look into the body. A key from the head is
    /// [`key::from_head`]'s.
    ///
    /// # Errors
    /// [`Kind::NotJson`] for a body that a rule cannot look into, [`Kind::KeyMissing`] for one without its key unless
    /// the route sends such calls in no order.
    pub fn apply(&self, body: &Bytes) -> Result<Slimmed, Error> {
        if !self.reads_body() {
            return Ok(Slimmed {
                key: None,
                cut: None,
            });
        }
        let mut walk = Walk::new(text_of(body)?, self.mode.unwrap_or(Mode::Drop));
        let emit = if self.mode.is_some() {
            Emit::Select
        } else {
            Emit::Silent
        };
        walk.run(&self.root, emit)?;
        let mut key = None;
        if let Some(rule @ KeyRule::Body(_)) = &self.key {
            let found = walk.key.take().map(|text| match text {
                Cow::Borrowed(text) => body.slice_ref(text.as_bytes()),
                Cow::Owned(text) => Bytes::from(text),
            });
            key = key::require(found, rule, self.missing)?;
        }
        let cut = walk.cut.is_some().then(|| Cut {
            body: Bytes::from(walk.out),
            fields: walk.cut.fields,
            digest: Sha256::digest(body).into(),
        });
        Ok(Slimmed { key, cut })
    }

    /// The record's key from wherever the rule says, given what [`Plan::apply`] found in the body.
    ///
    /// # Errors
    /// [`Kind::KeyMissing`], as in [`Plan::apply`].
    pub fn key(
        &self,
        slimmed: &Slimmed,
        headers: &http::HeaderMap,
        path: &str,
    ) -> Result<Option<Bytes>, Error> {
        match &self.key {
            None => Ok(None),
            Some(KeyRule::Body(_)) => Ok(slimmed.key.clone()),
            Some(rule) => key::require(key::from_head(rule, headers, path), rule, self.missing),
        }
    }
}

/// A document with just these fields of a body, as [`SlimRule::Keep`] would leave it. Fields that are missing are left
/// out; a field inside another one that is asked for adds nothing.
///
/// # Errors
/// [`Kind::NotJson`] for a body that has no fields.
pub fn project(body: &[u8], fields: &[Pointer]) -> Result<Vec<u8>, Error> {
    let mut root = Node::default();
    for pointer in fields {
        root.insert(&pointer.0, Role::Slim);
    }
    let mut walk = Walk::new(text_of(body)?, Mode::Keep);
    walk.run(&root, Emit::Select)?;
    Ok(walk.out)
}

/// The pointers of `fields=/lines,/a/b` in a query, percent-encoded or not; `None` where it does not ask for fields. A
/// member's name may hold a comma, as long as it does not end in one.
///
/// # Errors
/// [`Kind::BadRequest`] for something that is no list of JSON pointers, and above 64 fields.
pub fn fields_of(query: &str) -> Result<Option<Vec<Pointer>>, Error> {
    let refuse = |detail: &'static str| Error::new(Kind::BadRequest, detail);
    let Some(value) = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("fields="))
    else {
        return Ok(None);
    };
    // Many clients encode the commas too, so they are looked for only after decoding.
    let text = String::from_utf8(key::percent_decoded(value)).ok();
    let Some(list) = text.as_deref().and_then(|text| text.strip_prefix('/')) else {
        return Err(refuse(
            "fields is not a list of JSON pointers like /lines,/a/b",
        ));
    };
    if list.split(",/").nth(FIELDS_MAX).is_some() {
        return Err(refuse("more than 64 fields are asked for"));
    }
    let token = |token: &str| token.replace("~1", "/").replace("~0", "~");
    let pointer = |field: &str| Pointer(field.split('/').map(token).collect());
    Ok(Some(list.split(",/").map(pointer).collect()))
}

fn text_of(body: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(body)
        .map_err(|cause| Error::new(Kind::NotJson, "the body is not UTF-8").because(cause))
}

/// One token of the pointers, and those that go on below it.
#[derive(Debug, Clone, Default)]
struct Node {
    children: Vec<Child>,
    key: bool,
    key_below: bool,
    slim: bool,
    slim_below: bool,
}

#[derive(Debug, Clone)]
struct Child {
    name: String,
    index: Option<usize>,
    node: Node,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Key,
    Slim,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Keep,
    Drop,
}

/// What becomes of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Emit {
    /// It is written as it is.
    Copy,
    /// It is written as far as the pointers below it say.
    Select,
    /// It is cut; its container names it.
    Cut,
    /// Nothing is written: whoever holds it has decided already.
    Silent,
}

impl Node {
    fn insert(&mut self, tokens: &[String], role: Role) {
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
        self.children
            .iter()
            .find(|child| child.name == name)
            .map(|child| &child.node)
    }

    fn element(&self, index: usize) -> Option<&Node> {
        self.children
            .iter()
            .find(|child| child.index == Some(index))
            .map(|child| &child.node)
    }
}

impl Mode {
    /// What becomes of a value whose container is selected from.
    fn emit(self, node: Option<&Node>) -> Emit {
        let (slim, below) = node.map_or((false, false), |node| (node.slim, node.slim_below));
        match (self, slim, below) {
            (Mode::Keep, true, _) | (Mode::Drop, false, false) => Emit::Copy,
            (Mode::Keep, false, false) | (Mode::Drop, true, _) => Emit::Cut,
            (_, false, true) => Emit::Select,
        }
    }
}

/// Pointers to what was cut, as many as are named.
#[derive(Debug, Default)]
struct CutList {
    fields: Vec<String>,
    bytes: usize,
    over: bool,
}

impl CutList {
    fn push(&mut self, pointer: &str) {
        self.bytes += pointer.len();
        if self.over || self.fields.len() == CUT_MAX || self.bytes > CUT_BYTES_MAX {
            self.over = true;
            self.fields.clear();
            self.fields.push(String::new());
        } else {
            self.fields.push(pointer.to_owned());
        }
    }

    /// Forgets what was cut inside a value that is now cut as a whole.
    fn truncate(&mut self, len: usize) {
        if !self.over {
            self.bytes -= self
                .fields
                .drain(len..)
                .map(|field| field.len())
                .sum::<usize>();
        }
    }

    fn is_some(&self) -> bool {
        !self.fields.is_empty()
    }
}

/// The state of one pass. `pos` is where the parser stands: raw spans say where a value ended, and between two values
/// of a valid document there is only punctuation.
struct Walk<'t> {
    text: &'t str,
    pos: usize,
    mode: Mode,
    out: Vec<u8>,
    cut: CutList,
    key: Option<Cow<'t, str>>,
    path: String,
}

impl<'t> Walk<'t> {
    fn new(text: &'t str, mode: Mode) -> Self {
        let (out, cut, path) = (Vec::new(), CutList::default(), String::new());
        Self {
            text,
            pos: 0,
            mode,
            out,
            cut,
            key: None,
            path,
        }
    }

    fn run(&mut self, root: &Node, emit: Emit) -> Result<(), Error> {
        self.skip(b"");
        let opening = self.text.as_bytes().get(self.pos).copied();
        let mut parser = serde_json::Deserializer::from_str(self.text);
        let value = Value {
            walk: self,
            node: Some(root),
            emit,
        };
        let kept = value
            .deserialize(&mut parser)
            .and_then(|kept| parser.end().map(|()| kept));
        let kept = kept
            .map_err(|cause| Error::new(Kind::NotJson, format!("the body is not JSON: {cause}")))?;
        match (opening, kept) {
            _ if emit != Emit::Select => {}
            (Some(b'{'), Kept::No) => self.out.extend_from_slice(b"{}"),
            (Some(b'['), Kept::No) => self.out.extend_from_slice(b"[]"),
            (Some(b'{' | b'['), Kept::Yes) => {}
            _ => {
                return Err(Error::new(
                    Kind::NotJson,
                    "the body is not a JSON object or array",
                ));
            }
        }
        Ok(())
    }

    /// Moves over whitespace and the given punctuation, to the next value or closing bracket.
    fn skip(&mut self, punctuation: &[u8]) {
        let rest = self.text.as_bytes().get(self.pos..).unwrap_or_default();
        let blank = |byte: &&u8| {
            matches!(**byte, b' ' | b'\t' | b'\n' | b'\r') || punctuation.contains(*byte)
        };
        self.pos += rest.iter().take_while(blank).count();
    }

    /// Moves over the bracket that closes a container.
    fn close(&mut self) {
        self.skip(b"");
        self.pos += 1;
    }

    /// Takes a raw span and stands behind it.
    fn raw(&mut self, raw: &'t RawValue) -> &'t str {
        let text = raw.get();
        let start = (text.as_ptr() as usize).wrapping_sub(self.text.as_ptr() as usize);
        self.pos = start + text.len();
        text
    }

    fn copy_from(&mut self, start: usize) {
        let (text, end) = (self.text.as_bytes(), self.pos);
        self.out
            .extend_from_slice(text.get(start..end).unwrap_or_default());
    }

    fn enter(&mut self, token: &str) -> usize {
        let outer = self.path.len();
        self.path.push('/');
        if token.contains(['~', '/']) {
            self.path
                .push_str(&token.replace('~', "~0").replace('/', "~1"));
        } else {
            self.path.push_str(token);
        }
        outer
    }

    fn enter_index(&mut self, index: usize) {
        // A string takes all that is written to it.
        write!(self.path, "/{index}").ok();
    }
}

/// Whether a value left anything in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Yes,
    No,
}

/// Reads one value.
struct Value<'w, 't, 'n> {
    walk: &'w mut Walk<'t>,
    node: Option<&'n Node>,
    emit: Emit,
}

impl<'t> DeserializeSeed<'t> for Value<'_, 't, '_> {
    type Value = Kept;

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<Kept, D::Error> {
        let Self { walk, node, emit } = self;
        walk.skip(b",:");
        let start = walk.pos;
        let inside = node.filter(|node| node.key_below || emit == Emit::Select);
        if node.is_some_and(|node| node.key || node.key_below) {
            // The last of several members with one name wins, even if it does not have the key.
            walk.key = None;
        }
        let inner = if emit == Emit::Select {
            Emit::Select
        } else {
            Emit::Silent
        };
        let kept = match (walk.text.as_bytes().get(start), inside) {
            (Some(b'{'), Some(node)) => deserializer.deserialize_map(Object {
                walk: &mut *walk,
                node,
                emit: inner,
            })?,
            (Some(b'['), Some(node)) => deserializer.deserialize_seq(Array {
                walk: &mut *walk,
                node,
                emit: inner,
            })?,
            _ => {
                let raw = walk.raw(<&RawValue>::deserialize(deserializer)?);
                if node.is_some_and(|node| node.key) {
                    walk.key = scalar(raw).map_err(D::Error::custom)?;
                }
                match (emit, walk.mode) {
                    // A pointer that leads into a scalar names nothing: `drop` drops nothing, `keep` keeps nothing.
                    (Emit::Select, Mode::Drop) => {
                        walk.copy_from(start);
                        Kept::Yes
                    }
                    _ => Kept::No,
                }
            }
        };
        match emit {
            Emit::Copy => {
                walk.copy_from(start);
                Ok(Kept::Yes)
            }
            Emit::Select => Ok(kept),
            Emit::Cut | Emit::Silent => Ok(Kept::No),
        }
    }
}

/// The text that a scalar gives as a key; `None` for null and containers.
fn scalar(raw: &str) -> Result<Option<Cow<'_, str>>, serde_json::Error> {
    match raw.as_bytes().first() {
        Some(b'"') => unquoted(raw).map(Some),
        Some(b'n' | b'{' | b'[') | None => Ok(None),
        Some(_) => Ok(Some(Cow::Borrowed(raw))),
    }
}

fn unquoted(raw: &str) -> Result<Cow<'_, str>, serde_json::Error> {
    match raw.get(1..raw.len().saturating_sub(1)) {
        Some(plain) if !plain.contains('\\') => Ok(Cow::Borrowed(plain)),
        _ => serde_json::from_str::<String>(raw).map(Cow::Owned),
    }
}

/// Reads an object that a pointer leads into.
struct Object<'w, 't, 'n> {
    walk: &'w mut Walk<'t>,
    node: &'n Node,
    emit: Emit,
}

impl<'t> Visitor<'t> for Object<'_, 't, '_> {
    type Value = Kept;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'t>>(self, mut map: A) -> Result<Kept, A::Error> {
        let Self { walk, node, emit } = self;
        walk.pos += 1;
        let opened = walk.out.len();
        let mut members = 0_usize;
        while let Some(name) = map.next_key::<&'t RawValue>()? {
            let quoted = walk.raw(name);
            let name = unquoted(quoted).map_err(A::Error::custom)?;
            let child = node.member(&name);
            if emit != Emit::Select {
                map.next_value_seed(Value {
                    walk: &mut *walk,
                    node: child,
                    emit,
                })?;
                continue;
            }
            let (mark, cuts, outer) = (walk.out.len(), walk.cut.fields.len(), walk.enter(&name));
            walk.out.push(if members == 0 { b'{' } else { b',' });
            walk.out.extend_from_slice(quoted.as_bytes());
            walk.out.push(b':');
            let how = walk.mode.emit(child);
            match map.next_value_seed(Value {
                walk: &mut *walk,
                node: child,
                emit: how,
            })? {
                Kept::Yes => members += 1,
                Kept::No => walk.take_back(mark, cuts),
            }
            walk.path.truncate(outer);
        }
        walk.close();
        Ok(walk.finish(opened, members, emit, b"{}"))
    }
}

/// Reads an array that a pointer leads into.
struct Array<'w, 't, 'n> {
    walk: &'w mut Walk<'t>,
    node: &'n Node,
    emit: Emit,
}

impl<'t> Visitor<'t> for Array<'_, 't, '_> {
    type Value = Kept;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'t>>(self, mut seq: A) -> Result<Kept, A::Error> {
        let Self { walk, node, emit } = self;
        walk.pos += 1;
        let opened = walk.out.len();
        let (mut index, mut written) = (0_usize, 0_usize);
        loop {
            let child = node.element(index);
            let (mark, cuts, outer) = (walk.out.len(), walk.cut.fields.len(), walk.path.len());
            let mut how = emit;
            if emit == Emit::Select {
                walk.enter_index(index);
                how = walk.mode.emit(child);
            }
            if matches!(how, Emit::Copy | Emit::Select) {
                walk.out.push(if written == 0 { b'[' } else { b',' });
                // What is cut before an element that stays leaves null, so that indexes hold.
                (written..index).for_each(|_| walk.out.extend_from_slice(b"null,"));
            }
            let Some(kept) = seq.next_element_seed(Value {
                walk: &mut *walk,
                node: child,
                emit: how,
            })?
            else {
                walk.out.truncate(mark);
                walk.path.truncate(outer);
                break;
            };
            index += 1;
            if emit == Emit::Select {
                match kept {
                    Kept::Yes => written = index,
                    Kept::No => walk.take_back(mark, cuts),
                }
                walk.path.truncate(outer);
            }
        }
        walk.close();
        Ok(walk.finish(opened, written, emit, b"[]"))
    }
}

impl Walk<'_> {
    /// Undoes the beginning of a value of which nothing stays, and names it as cut in place of its parts.
    fn take_back(&mut self, mark: usize, cuts: usize) {
        self.out.truncate(mark);
        self.cut.truncate(cuts);
        let path = std::mem::take(&mut self.path);
        self.cut.push(&path);
        self.path = path;
    }

    /// Closes a container; one that was emptied by `drop`, or was empty before, stays empty under `drop`.
    fn finish(&mut self, opened: usize, written: usize, emit: Emit, brackets: &[u8; 2]) -> Kept {
        match (emit, written, self.mode) {
            (Emit::Select, 0, Mode::Keep) => Kept::No,
            (Emit::Select, 0, Mode::Drop) => {
                self.out.truncate(opened);
                self.out.extend_from_slice(brackets);
                Kept::Yes
            }
            (Emit::Select, ..) => {
                self.out.push(brackets[1]);
                Kept::Yes
            }
            _ => Kept::No,
        }
    }
}

#[cfg(test)]
mod tests;
