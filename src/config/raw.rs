//! The file as a tree in which every node knows its place; scalars keep their raw text.
//!
//! Refused here, each with its place: duplicate keys, anchors, aliases, merge keys, tags, keys that are
//! not plain words, deep nesting, a second document, a file without content.

use std::collections::HashMap;
use std::fmt::Write;

use granit_parser::{ErrorKind, Event, Options, Parser, ScalarStyle, ScanError, Span, StrInput};

use super::diagnostic::{Collector, Invalid, Place, quoted};

/// Lists and mappings inside one another, at most; the deepest key that exists needs 7.
const DEPTH_MAX: usize = 16;

/// The key that would add another mapping's keys.
pub(super) const MERGE: &str = "<<";

/// A value with its place.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// A value.
#[derive(Debug)]
pub(super) enum Value {
    /// Nothing: `key:`, `~` or `null`.
    Null,
    /// The text as written, escapes resolved.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in file order, no key twice; a merge key stays as a sign that something is missing.
    Map(Vec<Entry>),
    /// Something that was refused; its error is noted already.
    Refused,
}

/// A key and its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) node: Node,
}

fn place_of(span: Span) -> Place {
    Place {
        line: span.start.line().max(1),
        column: span.start.col() + 1,
    }
}

/// Reads one document; `None` if there is no tree to walk, with the reason in `errors`.
pub(super) fn parse(text: &str, errors: &Collector) -> Option<Node> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.emit_unresolved_aliases = true;
    options.flow_nesting_limit = DEPTH_MAX * 4;
    options.block_nesting_limit = DEPTH_MAX * 4;
    let parser = Parser::new_from_str_with_options(text, options);
    let mut builder = Builder {
        parser,
        errors,
        path: Vec::new(),
    };
    match builder.document() {
        Ok(root) => root,
        Err(Stop::Syntax(error)) => {
            let mark = error.marker();
            let place = Place {
                line: mark.line().max(1),
                column: mark.col() + 1,
            };
            errors.error(place, "", Invalid::new(syntax(&error)));
            None
        }
        Err(Stop::Noted) => None,
    }
}

/// Extends a path by a key; keys with other than word characters are quoted.
pub(super) fn join(path: &str, key: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
    if key.is_empty() || !key.chars().all(plain) {
        let key = quoted(key);
        return format!("{path}[\"{}\"]", key.trim_matches('`'));
    }
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// Why reading ends before the document does.
enum Stop {
    Syntax(ScanError),
    /// The reason stands in the collector.
    Noted,
}

impl From<ScanError> for Stop {
    fn from(error: ScanError) -> Self {
        Self::Syntax(error)
    }
}

enum Step {
    Key(String),
    Index(usize),
}

struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    errors: &'a Collector,
    path: Vec<Step>,
}

impl<'a> Builder<'a> {
    fn document(&mut self) -> Result<Option<Node>, Stop> {
        let empty = || Invalid::new("the file is empty; the smallest one has `service`");
        loop {
            match self.next()? {
                (Event::DocumentStart(..), _) => break,
                (Event::StreamEnd, _) => {
                    self.errors.error(Place::START, "", empty());
                    return Ok(None);
                }
                _ => {}
            }
        }
        let first = self.next()?;
        let root = self.node(first)?;
        if matches!(root.value, Value::Null) {
            self.errors.error(Place::START, "", empty());
            return Ok(None);
        }
        loop {
            match self.next()? {
                (Event::DocumentStart(..), span) => {
                    let reason =
                        "a second document starts here, but one file holds one configuration";
                    self.errors.error(place_of(span), "", Invalid::new(reason));
                    return Ok(Some(root));
                }
                (Event::StreamEnd, _) => return Ok(Some(root)),
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), Stop> {
        if self.errors.is_full() {
            return Err(Stop::Noted);
        }
        match self.parser.next_event() {
            Some(event) => Ok(event?),
            None => {
                self.refuse(Place::START, "the file ends in the middle of a value");
                Err(Stop::Noted)
            }
        }
    }

    fn node(&mut self, (event, span): (Event<'a>, Span)) -> Result<Node, Stop> {
        let place = place_of(span);
        let value = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_properties(place, anchor, tag.is_some());
                scalar(text.into_owned(), style)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse_properties(place, anchor, tag.is_some());
                self.refuse_depth(place)?;
                Value::List(self.list()?)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse_properties(place, anchor, tag.is_some());
                self.refuse_depth(place)?;
                Value::Map(self.map()?)
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                self.refuse(
                    place,
                    "aliases (`*name`) are not supported; write the value out",
                );
                Value::Refused
            }
            _ => Value::Refused,
        };
        Ok(Node { place, value })
    }

    fn list(&mut self) -> Result<Vec<Node>, Stop> {
        let mut nodes = Vec::new();
        loop {
            let next = self.next()?;
            if matches!(next.0, Event::SequenceEnd) {
                return Ok(nodes);
            }
            self.path.push(Step::Index(nodes.len()));
            nodes.push(self.node(next)?);
            self.path.pop();
        }
    }

    fn map(&mut self) -> Result<Vec<Entry>, Stop> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen: HashMap<String, usize> = HashMap::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                return Ok(entries);
            }
            let place = place_of(span);
            let Some(key) = self.key((event, span))? else {
                let value = self.next()?;
                self.node(value)?;
                continue;
            };
            self.path.push(Step::Key(key.clone()));
            let first = seen.get(&key).copied();
            if let Some(line) = first {
                self.refuse(
                    place,
                    &format!("this key is here twice; the first is in line {line}"),
                );
            }
            let value = self.next()?;
            let alias = matches!(value.0, Event::Alias(_) | Event::UnresolvedAlias(_));
            let node = if key == MERGE && alias {
                Node {
                    place,
                    value: Value::Refused,
                }
            } else {
                self.node(value)?
            };
            if key == MERGE {
                self.refuse(
                    place,
                    "merge keys (`<<`) are not supported; write the keys out",
                );
            }
            if first.is_none() {
                seen.insert(key.clone(), place.line);
                entries.push(Entry { key, place, node });
            }
            self.path.pop();
        }
    }

    /// The key's text, or `None` once its error is noted.
    fn key(&mut self, (event, span): (Event<'a>, Span)) -> Result<Option<String>, Stop> {
        let place = place_of(span);
        if let Event::Scalar(text, style, anchor, tag) = event {
            self.refuse_properties(place, anchor, tag.is_some());
            if !text.is_empty()
                && matches!(scalar(String::new(), style), Value::Null | Value::Text(_))
            {
                return Ok(Some(text.into_owned()));
            }
            self.refuse(place, "a key is missing before the `:`");
            return Ok(None);
        }
        self.refuse(
            place,
            "a key must be one word, not a list, a mapping or an alias",
        );
        if !matches!(event, Event::Alias(_) | Event::UnresolvedAlias(_)) {
            self.node((event, span))?;
        }
        Ok(None)
    }

    fn refuse_properties(&self, place: Place, anchor: usize, tagged: bool) {
        if anchor != 0 {
            self.refuse(
                place,
                "anchors (`&name`) are not supported; write the value out each time",
            );
        }
        if tagged {
            self.refuse(place, "tags (`!name`) are not supported; remove the tag");
        }
    }

    fn refuse_depth(&self, place: Place) -> Result<(), Stop> {
        if self.path.len() < DEPTH_MAX {
            return Ok(());
        }
        self.refuse(place, TOO_DEEP);
        Err(Stop::Noted)
    }

    fn refuse(&self, place: Place, reason: &str) {
        self.errors.error(place, &self.path(), Invalid::new(reason));
    }

    fn path(&self) -> String {
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Key(key) => path = join(&path, key),
                Step::Index(index) => {
                    write!(path, "[{index}]").expect("a string takes all that is written");
                }
            }
        }
        path
    }
}

const TOO_DEEP: &str =
    "lists and mappings are nested too deep (16 levels at most); the rest was not checked";

fn scalar(text: String, style: ScalarStyle) -> Value {
    if style == ScalarStyle::Plain && matches!(text.as_str(), "" | "~" | "null") {
        return Value::Null;
    }
    Value::Text(text)
}

/// The parser's finding in an operator's words.
fn syntax(error: &ScanError) -> String {
    let what = match error.kind() {
        ErrorKind::RecursionLimitExceeded => return TOO_DEEP.to_owned(),
        ErrorKind::TabInIndentation
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabNotAllowed => {
            "a tab stands where only spaces may; indent with spaces".to_owned()
        }
        ErrorKind::UnclosedQuotedScalar => "the quotation mark is never closed".to_owned(),
        ErrorKind::UnclosedFlowCollection { open } => format!("the `{open}` is never closed"),
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => {
            format!("`{open}` is closed by `{close}`")
        }
        ErrorKind::MisplacedFlowCollectionEnd => {
            "a bracket is closed that was not opened".to_owned()
        }
        ErrorKind::ExpectedBlockMappingKey
        | ErrorKind::InvalidIndentation
        | ErrorKind::ExpectedBlockSequenceEntry => {
            "this line does not fit the indentation of the lines above it".to_owned()
        }
        ErrorKind::MappingValueNotAllowed | ErrorKind::InvalidColonPlacement => {
            "a `:` stands where none may; a value that contains `: ` needs quotes".to_owned()
        }
        ErrorKind::SimpleKeyExpected => "a `:` is missing after the key".to_owned(),
        ErrorKind::ExpectedFlowMappingSeparator => "a `,` or `}` is missing".to_owned(),
        ErrorKind::ExpectedFlowSequenceSeparator => "a `,` or `]` is missing".to_owned(),
        ErrorKind::UnexpectedCharacter { character } => {
            format!(
                "a value cannot start with {}; put it in quotes",
                quoted(&character.to_string())
            )
        }
        _ => error.info(),
    };
    format!("this is not YAML: {what}; the rest was not checked")
}
