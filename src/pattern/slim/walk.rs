//! The one pass: a JSON parser driven along a tree of pointers, which copies what stays and names what is cut.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::tree::{Here, Node};
use super::{CUT_BYTES_MAX, CUT_MAX};
use crate::error::{Error, Kind};

/// Containers that `over` looks into, one inside the other; a deeper one stays or goes as a whole. The parser itself goes
/// 128 deep.
const DEPTH_MAX: usize = 100;

/// Which of the two slim rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// All but the pointers is cut.
    Keep,
    /// The pointers are cut, and whatever is larger than this in bytes of JSON.
    Drop { over: Option<usize> },
}

/// What becomes of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Emit {
    /// It is written as it is.
    Copy,
    /// It is written if it is small enough, or as far as its parts are.
    Fit,
    /// It is written as far as the pointers below it say.
    Select,
    /// It is cut; its container names it.
    Cut,
    /// Nothing is written: whoever holds it has decided already.
    Silent,
}

impl Emit {
    /// Why a value goes that has this before it.
    fn why(self) -> Why {
        match self {
            Emit::Cut => Why::Ruled,
            _ => Why::Found,
        }
    }
}

impl Mode {
    /// What becomes of a value whose container is selected from.
    fn emit(self, here: &Here<'_>) -> Emit {
        match (self, here.slim(), here.slim_below()) {
            (Mode::Keep, true, _) | (Mode::Drop { over: None }, false, false) => Emit::Copy,
            (Mode::Drop { over: Some(_) }, false, false) => Emit::Fit,
            (Mode::Keep, false, false) | (Mode::Drop { .. }, true, _) => Emit::Cut,
            (_, false, true) => Emit::Select,
        }
    }

    /// Bytes of JSON above which a value goes.
    fn over(self) -> usize {
        match self {
            Mode::Drop { over: Some(over) } => over,
            _ => usize::MAX,
        }
    }
}

/// Pointers to what was cut, as many as are named.
#[derive(Debug, Default)]
pub(super) struct CutList {
    pub(super) fields: Vec<String>,
    bytes: usize,
    over: bool,
    /// Cuts so far, those included that are not named or were taken back.
    made: usize,
}

impl CutList {
    fn push(&mut self, pointer: &str) {
        self.made += 1;
        if self.fields.iter().any(|named| named == pointer) {
            return;
        }
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

    pub(super) fn is_some(&self) -> bool {
        !self.fields.is_empty()
    }
}

/// The state of one pass. `pos` is where the parser stands: raw spans say where a value ended, and between two values
/// of a valid document there is only punctuation.
pub(super) struct Walk<'t> {
    text: &'t str,
    pos: usize,
    mode: Mode,
    pub(super) out: Vec<u8>,
    pub(super) cut: CutList,
    pub(super) key: Option<Cow<'t, str>>,
    path: Path,
    /// Containers that the parser is in.
    depth: usize,
}

/// Where the walk is, as a JSON pointer.
#[derive(Debug, Default)]
struct Path {
    /// With the index of each element.
    exact: String,
    /// With `*` for an element whose rule is every element's.
    ruled: String,
}

impl Path {
    fn len(&self) -> (usize, usize) {
        (self.exact.len(), self.ruled.len())
    }

    fn truncate(&mut self, (exact, ruled): (usize, usize)) {
        self.exact.truncate(exact);
        self.ruled.truncate(ruled);
    }
}

/// Why a value goes, which says how it is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// A pointer says so, or none says that it stays: true of every element if one `*` leads here.
    Ruled,
    /// Nothing in it stays, or it is too large: that is so of this one.
    Found,
}

impl<'t> Walk<'t> {
    pub(super) fn new(text: &'t str, mode: Mode) -> Self {
        let (out, cut, path) = (Vec::new(), CutList::default(), Path::default());
        Self {
            text,
            pos: 0,
            mode,
            out,
            cut,
            key: None,
            path,
            depth: 0,
        }
    }

    pub(super) fn run(&mut self, root: &Node, emit: Emit) -> Result<(), Error> {
        self.skip(b"");
        let opening = self.text.as_bytes().get(self.pos).copied();
        let mut parser = serde_json::Deserializer::from_str(self.text);
        let value = Value {
            walk: self,
            here: Here::at(root),
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

    fn enter(&mut self, token: &str) -> (usize, usize) {
        let outer = self.path.len();
        for path in [&mut self.path.exact, &mut self.path.ruled] {
            path.push('/');
            if token.contains(['~', '/']) {
                path.push_str(&token.replace('~', "~0").replace('/', "~1"));
            } else {
                path.push_str(token);
            }
        }
        outer
    }

    fn enter_element(&mut self, index: usize, each: bool) {
        // A string takes all that is written to it.
        write!(self.path.exact, "/{index}").ok();
        match each {
            true => self.path.ruled.push_str("/*"),
            false => write!(self.path.ruled, "/{index}").unwrap_or_default(),
        }
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
    here: Here<'n>,
    emit: Emit,
}

impl<'t> DeserializeSeed<'t> for Value<'_, 't, '_> {
    type Value = Kept;

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<Kept, D::Error> {
        let Self { walk, here, emit } = self;
        walk.skip(b",:");
        let start = walk.pos;
        let (mark, made) = (walk.out.len(), walk.cut.made);
        let nested = emit == Emit::Fit && walk.depth < DEPTH_MAX;
        let (key, key_below) = (here.key(), here.key_below());
        let inside = nested || key_below || (emit == Emit::Select && here.is_somewhere());
        if key || key_below {
            // The last of several members with one name wins, even if it does not have the key.
            walk.key = None;
        }
        let inner = match emit {
            Emit::Select => Emit::Select,
            Emit::Fit if nested => Emit::Select,
            _ => Emit::Silent,
        };
        walk.depth += 1;
        let kept = match (walk.text.as_bytes().get(start), inside) {
            (Some(b'{'), true) => deserializer.deserialize_map(Object {
                walk: &mut *walk,
                here,
                emit: inner,
            })?,
            (Some(b'['), true) => deserializer.deserialize_seq(Array {
                walk: &mut *walk,
                here,
                emit: inner,
            })?,
            _ => {
                let raw = walk.raw(<&RawValue>::deserialize(deserializer)?);
                if key {
                    walk.key = scalar(raw).map_err(|cause| D::Error::custom(bare(&cause)))?;
                }
                match (emit, walk.mode) {
                    // A pointer that leads into a scalar names nothing: `drop` drops nothing, `keep` keeps nothing.
                    (Emit::Select, Mode::Drop { .. }) | (Emit::Fit, _) => {
                        walk.copy_from(start);
                        Kept::Yes
                    }
                    _ => Kept::No,
                }
            }
        };
        walk.depth -= 1;
        match emit {
            Emit::Copy => {
                walk.copy_from(start);
                Ok(Kept::Yes)
            }
            Emit::Fit if walk.cut.made == made => {
                // Nothing went, so it stays as the caller wrote it.
                walk.out.truncate(mark);
                walk.copy_from(start);
                Ok(walk.fits(mark, Kept::Yes))
            }
            Emit::Fit => Ok(walk.fits(mark, kept)),
            // The outermost value is never cut, whatever its size.
            Emit::Select if walk.depth > 0 => Ok(walk.fits(mark, kept)),
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

/// What is wrong with a part of the body, without the place in that part: whoever parses the body puts its own there.
fn bare(cause: &serde_json::Error) -> String {
    let mut text = cause.to_string();
    text.truncate(text.rfind(" at line ").unwrap_or(text.len()));
    text
}

/// Reads an object that a pointer leads into.
struct Object<'w, 't, 'n> {
    walk: &'w mut Walk<'t>,
    here: Here<'n>,
    emit: Emit,
}

impl<'t> Visitor<'t> for Object<'_, 't, '_> {
    type Value = Kept;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'t>>(self, mut map: A) -> Result<Kept, A::Error> {
        let Self { walk, here, emit } = self;
        walk.pos += 1;
        let opened = walk.out.len();
        let mut members = 0_usize;
        while let Some(name) = map.next_key::<&'t RawValue>()? {
            let quoted = walk.raw(name);
            let name = unquoted(quoted).map_err(|cause| A::Error::custom(bare(&cause)))?;
            let child = here.member(&name);
            if emit != Emit::Select {
                map.next_value_seed(Value {
                    walk: &mut *walk,
                    here: child,
                    emit,
                })?;
                continue;
            }
            let (mark, cuts, outer) = (walk.out.len(), walk.cut.fields.len(), walk.enter(&name));
            walk.out.push(if members == 0 { b'{' } else { b',' });
            walk.out.extend_from_slice(quoted.as_bytes());
            walk.out.push(b':');
            let how = walk.mode.emit(&child);
            match map.next_value_seed(Value {
                walk: &mut *walk,
                here: child,
                emit: how,
            })? {
                Kept::Yes => members += 1,
                Kept::No => walk.take_back(mark, cuts, how.why()),
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
    here: Here<'n>,
    emit: Emit,
}

impl<'t> Visitor<'t> for Array<'_, 't, '_> {
    type Value = Kept;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'t>>(self, mut seq: A) -> Result<Kept, A::Error> {
        let Self { walk, here, emit } = self;
        walk.pos += 1;
        let opened = walk.out.len();
        let (mut index, mut written) = (0_usize, 0_usize);
        loop {
            let (child, each) = here.element(index);
            let (mark, cuts, outer) = (walk.out.len(), walk.cut.fields.len(), walk.path.len());
            let mut how = emit;
            if emit == Emit::Select {
                walk.enter_element(index, each && child.is_somewhere());
                how = walk.mode.emit(&child);
            }
            if matches!(how, Emit::Copy | Emit::Fit | Emit::Select) {
                walk.out.push(if written == 0 { b'[' } else { b',' });
            }
            let Some(kept) = seq.next_element_seed(Value {
                walk: &mut *walk,
                here: child,
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
                    Kept::Yes => {
                        walk.fill(mark, index - 1 - written);
                        written = index;
                    }
                    Kept::No => walk.take_back(mark, cuts, how.why()),
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
    fn take_back(&mut self, mark: usize, cuts: usize, why: Why) {
        self.out.truncate(mark);
        self.cut.truncate(cuts);
        self.cut.push(match why {
            Why::Ruled => &self.path.ruled,
            Why::Found => &self.path.exact,
        });
    }

    /// What was cut before an element that stays leaves null, so that indexes hold. Only now is it known that it stays: of
    /// many that go, nulls before each would cost the square of their number.
    fn fill(&mut self, mark: usize, gone: usize) {
        if gone > 0 {
            let nulls = std::iter::repeat_n(*b"null,", gone).flatten();
            self.out.splice(mark + 1..mark + 1, nulls);
        }
    }

    /// Whether what was written of a value since the mark is small enough to stay.
    fn fits(&self, mark: usize, kept: Kept) -> Kept {
        match self.out.len() - mark > self.mode.over() {
            true => Kept::No,
            false => kept,
        }
    }

    /// Closes a container; one that was emptied by `drop`, or was empty before, stays empty under `drop`.
    fn finish(&mut self, opened: usize, written: usize, emit: Emit, brackets: &[u8; 2]) -> Kept {
        match (emit, written, self.mode) {
            (Emit::Select, 0, Mode::Keep) => Kept::No,
            (Emit::Select, 0, Mode::Drop { .. }) => {
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
