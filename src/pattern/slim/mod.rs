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
//! * `*` is every element of an array, and in an object the member of that name. What goes from every element is named
//!   once, with the `*`; in a key's pointer it is no more than a name.
//! * `over` goes from the inside to the outside: of a container it takes the parts that are too large, and the container
//!   itself if what is left still is. It never takes the outermost value.
//! * A body that is one string, number, boolean or null has no fields to choose from: it is refused as not fitting.
//! * Containers that are walked into may be nested 128 deep. All others are skipped without recursion, so their depth
//!   costs no stack.

mod scan;
mod tree;
mod walk;

use std::borrow::Cow;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use tree::{EACH, Node, Role};
use walk::{Emit, Mode, Walk};

use crate::config::model::{KeyMissing, KeyRule, Pointer, Publish, SlimRule};
use crate::error::{Error, Kind};
use crate::pattern::key;

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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
            Some(SlimRule::Drop { fields, over }) => {
                (Some(Mode::Drop { over: *over }), &fields[..])
            }
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
        let text = text_of(body)?;
        if let (None, Some(rule @ KeyRule::Body(pointer))) = (self.mode, &self.key)
            && let Some(found) = scan::key(text, &pointer.0)
        {
            let found = found.map(|text| body.slice_ref(text.as_bytes()));
            let key = key::require(found, rule, self.missing)?;
            return Ok(Slimmed { key, cut: None });
        }
        let mut walk = Walk::new(text, self.mode.unwrap_or(Mode::Drop { over: None }));
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

    /// What the body gives, and the record's key from wherever the rule says.
    ///
    /// # Errors
    /// As [`Plan::apply`].
    pub fn read(
        &self,
        body: &Bytes,
        headers: &http::HeaderMap,
        path: &str,
    ) -> Result<(Slimmed, Option<Bytes>), Error> {
        let slimmed = self.apply(body)?;
        let key = self.key(&slimmed, headers, path)?;
        Ok((slimmed, key))
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

/// The whole body without what was cut from it, except for what is wanted back. `cut` are the pointers of a [`Cut`]; a
/// wanted field that lies inside a cut one, or around it, brings back the whole of the cut one.
///
/// # Errors
/// [`Kind::NotJson`] for a body that has no fields.
pub fn put_back(whole: &Bytes, cut: &[String], wanted: &[Pointer]) -> Result<Bytes, Error> {
    let cut: Vec<Pointer> = cut.iter().map(|text| pointer(text)).collect();
    let still = cut
        .iter()
        .filter(|cut| !wanted.iter().any(|one| meet(&cut.0, &one.0)));
    let fields: Vec<Pointer> = still.cloned().collect();
    if fields.is_empty() {
        return Ok(whole.clone());
    }
    let rule = SlimRule::Drop { fields, over: None };
    let slimmed = Plan::new(None, KeyMissing::Refuse, Some(&rule)).apply(whole)?;
    Ok(slimmed.cut.map_or_else(|| whole.clone(), |cut| cut.body))
}

/// Whether one pointer leads to the other, or further on from there.
fn meet(one: &[String], other: &[String]) -> bool {
    let same = |(one, other): (&String, &String)| one == other || one == EACH || other == EACH;
    one.iter().zip(other).all(same)
}

/// Reads a JSON pointer's text; the empty one is the whole document.
fn pointer(text: &str) -> Pointer {
    let token = |token: &str| token.replace("~1", "/").replace("~0", "~");
    Pointer(text.split('/').skip(1).map(token).collect())
}

/// The pointers of `fields=/lines,/a/b` in a query, percent-encoded or not, once or several times; `None` where it does not ask for fields. A
/// member's name may hold a comma, as long as it does not end in one.
///
/// # Errors
/// [`Kind::BadRequest`] for something that is no list of JSON pointers, and above 64 fields.
pub fn fields_of(query: &str) -> Result<Option<Vec<Pointer>>, Error> {
    let refuse = |detail: &'static str| Error::new(Kind::BadRequest, detail);
    let wrong = || refuse("fields is not a list of JSON pointers like /lines,/a/b");
    let mut lists = Vec::new();
    let values = query.split('&').filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name == "fields").then_some(value)
    });
    for value in values {
        // Many clients encode the commas too, so they are looked for only after decoding.
        let list = String::from_utf8(key::percent_decoded(value)).ok();
        let list = list.filter(|list| list.starts_with('/') && !list.ends_with(','));
        lists.push(list.ok_or_else(wrong)?);
    }
    let lists = lists.join(",");
    let Some(list) = lists.strip_prefix('/') else {
        return Ok(None);
    };
    if list.split(",/").nth(FIELDS_MAX).is_some() {
        return Err(refuse("more than 64 fields are asked for"));
    }
    if escapes_wrongly(list) {
        return Err(wrong());
    }
    let pointers = list.split(",/").map(|field| pointer(&format!("/{field}")));
    Ok(Some(pointers.collect()))
}

/// Whether a `~` stands for nothing (RFC 6901 section 3).
fn escapes_wrongly(pointers: &str) -> bool {
    let mut after = pointers.split('~').skip(1);
    after.any(|rest| !rest.starts_with(['0', '1']))
}

fn text_of(body: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(body)
        .map_err(|cause| Error::new(Kind::NotJson, "the body is not UTF-8").because(cause))
}

#[cfg(test)]
mod tests;
