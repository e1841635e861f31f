//! Typed readers over the tree. Each notes its error with place and path and answers `None`, so that the
//! walk goes on and finds the next one.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::Judge;
use super::diagnostic::{Collector, Invalid, Place, quoted};
use super::expand::expand;
use super::raw::{Entry, MERGE, Node, Value, join};
use super::schema::Schemas;
use super::units;
use super::words::{Shape, State, nearest, sections_with};

/// Keys of one mapping that are compared with a missing one, at most.
const ENTRIES_SEARCHED: usize = 100;

/// What every reader needs.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) errors: &'a Collector,
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    pub(super) judge: &'a dyn Judge,
    pub(super) schemas: &'a Schemas<'a>,
}

/// A node and how it was reached.
#[derive(Clone)]
pub(super) struct At<'a> {
    source: Source<'a>,
    node: &'a Node,
    /// Where the key of this value stands; the value itself for the file and for entries of a list.
    key: Place,
    path: String,
}

/// A mapping whose keys are known to be right; their values are not.
pub(super) struct Map<'a> {
    at: At<'a>,
    entries: &'a [Entry],
    shape: &'static Shape,
}

impl<'a> At<'a> {
    /// The whole file.
    pub(super) fn root(node: &'a Node, source: Source<'a>) -> Self {
        Self {
            source,
            node,
            key: node.place,
            path: String::new(),
        }
    }

    /// Whom to ask about properties of the broker's client.
    pub(super) fn judge(&self) -> &'a dyn Judge {
        self.source.judge
    }

    /// The schemas that the file names.
    pub(super) fn schemas(&self) -> &'a Schemas<'a> {
        self.source.schemas
    }

    pub(super) fn place(&self) -> Place {
        self.node.place
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Notes an error here.
    pub(super) fn error(&self, reason: impl Into<String>) {
        self.invalid(Invalid::new(reason));
    }

    /// Notes an error here, with its hint.
    pub(super) fn invalid(&self, what: Invalid) {
        self.source.errors.error(self.node.place, &self.path, what);
    }

    /// Notes an error at the key of this value.
    pub(super) fn invalid_key(&self, what: Invalid) {
        self.source.errors.error(self.key, &self.path, what);
    }

    /// Notes a warning here.
    pub(super) fn warning(&self, reason: impl Into<String>) {
        self.source
            .errors
            .warning(self.node.place, &self.path, reason.into());
    }

    /// The text, if this is a scalar; variables are not filled in.
    pub(super) fn raw_text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    /// A key's value, without a look at the other keys and without noting anything.
    pub(super) fn peek(&self, word: &str) -> Option<At<'a>> {
        match &self.node.value {
            Value::Map(entries) => entries
                .iter()
                .find(|entry| entry.key == word)
                .map(|entry| self.child(entry)),
            _ => None,
        }
    }

    /// The values of a list, if this is one, without noting anything.
    pub(super) fn peek_list(&self) -> Vec<At<'a>> {
        match &self.node.value {
            Value::List(nodes) => self.items(nodes),
            _ => Vec::new(),
        }
    }

    /// Reads a mapping of fixed keys; the wrong ones are noted.
    pub(super) fn map(&self, shape: &'static Shape) -> Option<Map<'a>> {
        let entries = self.entries()?;
        for entry in entries {
            // A file of nothing but wrong keys is not looked at for ever.
            if self.source.errors.is_full() {
                break;
            }
            match shape.find(&entry.key) {
                Some(key) if key.state == State::Built => {}
                Some(_) => {
                    let what = Invalid::new("not available in this version");
                    self.source
                        .errors
                        .error(entry.place, &join(&self.path, &entry.key), what);
                }
                None if entry.key == MERGE => {}
                None => self.unknown(entry, shape),
            }
        }
        Some(Map {
            at: self.clone(),
            entries,
            shape,
        })
    }

    /// Reads a mapping of at most `most` keys, which are names that the file chooses.
    pub(super) fn named(&self, most: usize) -> Option<Vec<(&'a str, At<'a>)>> {
        let entries = self.entries()?;
        if entries.len() > most {
            self.error(format!(
                "{} entries, but at most {most} are allowed",
                entries.len()
            ));
            return None;
        }
        Some(
            entries
                .iter()
                .map(|entry| (entry.key.as_str(), self.child(entry)))
                .collect(),
        )
    }

    /// The keys of a mapping, without noting anything.
    pub(super) fn keys(&self) -> Option<Vec<String>> {
        match &self.node.value {
            Value::Map(entries) => Some(entries.iter().map(|entry| entry.key.clone()).collect()),
            _ => None,
        }
    }

    /// Reads a list of at most `most` values; `example` shows how one looks.
    pub(super) fn list(&self, most: usize, example: &str) -> Option<Vec<At<'a>>> {
        let nodes = match &self.node.value {
            Value::List(nodes) => nodes,
            Value::Refused => return None,
            Value::Text(text) => {
                let what = Invalid::new(format!("expected a list such as {example}, found text"));
                let simple = text.len() < 40 && !text.contains([',', '[', '\n', '#', ':']);
                self.invalid(what.hint((simple && !text.is_empty()).then(|| format!("[{text}]"))));
                return None;
            }
            _ => {
                self.error(format!(
                    "expected a list such as {example}, found {}",
                    self.found()
                ));
                return None;
            }
        };
        if nodes.len() > most {
            self.error(format!(
                "{} entries, but at most {most} are allowed",
                nodes.len()
            ));
            return None;
        }
        Some(self.items(nodes))
    }

    /// Reads a scalar by `parse`; `what` completes "expected …".
    pub(super) fn parse<T>(
        &self,
        what: &str,
        parse: impl FnOnce(&str) -> Result<T, Invalid>,
    ) -> Option<T> {
        let raw = match &self.node.value {
            Value::Text(raw) => raw,
            Value::Refused => return None,
            _ => {
                self.error(format!("expected {what}, found {}", self.found()));
                return None;
            }
        };
        let text = expand(raw, self.source.env)
            .map_err(|error| self.invalid(error))
            .ok()?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(mut error) => {
                if text != *raw {
                    error.reason = format!("{} (the value of {})", error.reason, quoted(raw));
                }
                self.invalid(error);
                None
            }
        }
    }

    /// Reads a scalar that no message may repeat.
    pub(super) fn secret(&self) -> Option<String> {
        match &self.node.value {
            Value::Text(raw) => expand(raw, self.source.env)
                .map_err(|error| self.invalid(error))
                .ok(),
            Value::Refused => None,
            _ => {
                self.error(format!(
                    "expected a text or a number, found {}",
                    self.found()
                ));
                None
            }
        }
    }

    /// Reads a whole number of any size.
    pub(super) fn number(&self) -> Option<u64> {
        self.parse("a whole number", |text| {
            let leading_zero = text.len() > 1 && text.starts_with('0');
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            match text.parse() {
                Ok(number) if digits && !leading_zero => Ok(number),
                _ => {
                    let plain: String = text
                        .chars()
                        .filter(|letter| !matches!(letter, '_' | ',' | ' '))
                        .collect();
                    let plain = plain.trim_start_matches('0').to_owned();
                    let meant = plain != text && plain.parse::<u64>().is_ok();
                    let reason = format!("{} is not a whole number", quoted(text));
                    Err(Invalid::new(reason).hint(meant.then_some(plain)))
                }
            }
        })
    }

    /// Reads a whole number within a range.
    pub(super) fn count(&self, range: RangeInclusive<u64>) -> Option<usize> {
        let number = self.within(self.number()?, range, u64::to_string)?;
        Some(usize::try_from(number).unwrap_or(usize::MAX))
    }

    /// Reads `true` or `false`.
    pub(super) fn flag(&self) -> Option<bool> {
        self.parse("`true` or `false`", |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => {
                let meant = match text.to_ascii_lowercase().as_str() {
                    "true" | "yes" | "on" | "y" | "1" => Some("true"),
                    "false" | "no" | "off" | "n" | "0" => Some("false"),
                    _ => None,
                };
                let reason = format!("{} is neither `true` nor `false`", quoted(text));
                Err(Invalid::new(reason).hint(meant.map(str::to_owned)))
            }
        })
    }

    /// Reads a duration.
    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let value = self.parse("a duration such as 250ms", units::parse_duration)?;
        self.within(value, range, |value| units::duration(*value))
    }

    /// Reads a size in bytes.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.parse("a size such as 64KiB", units::parse_size)?;
        self.within(value, range, |value| units::size(*value))
    }

    /// Reads a size of something held in memory.
    pub(super) fn bytes(&self, range: RangeInclusive<u64>) -> Option<usize> {
        let size = self.size(range)?;
        Some(usize::try_from(size).unwrap_or(usize::MAX))
    }

    /// Reads one of a few words; `None` as a word's value means that it is not available yet.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, Option<T>)]) -> Option<T> {
        let built = words
            .iter()
            .filter(|(_, value)| value.is_some())
            .map(|(word, _)| *word);
        let expected = either(&built.clone().collect::<Vec<_>>());
        self.parse(&expected, |text| {
            match words.iter().find(|(word, _)| *word == text) {
                Some((_, Some(value))) => Ok(*value),
                Some((_, None)) => Err(Invalid::new(format!(
                    "`{text}` is not available in this version; use {expected}"
                ))),
                None => Err(Invalid::new(format!(
                    "{} is not known here; use {expected}",
                    quoted(text)
                ))
                .hint(nearest(text, built.clone()))),
            }
        })
    }

    fn items(&self, nodes: &'a [Node]) -> Vec<At<'a>> {
        let item = |(index, node)| {
            let path = format!("{}[{index}]", self.path);
            At {
                source: self.source,
                node,
                key: node.place,
                path,
            }
        };
        nodes.iter().enumerate().map(item).collect()
    }

    fn within<T: PartialOrd>(
        &self,
        value: T,
        range: RangeInclusive<T>,
        show: impl Fn(&T) -> String,
    ) -> Option<T> {
        if range.contains(&value) {
            return Some(value);
        }
        let (low, high) = (show(range.start()), show(range.end()));
        self.error(format!("must be {low} to {high}, but is {}", show(&value)));
        None
    }

    fn entries(&self) -> Option<&'a [Entry]> {
        match &self.node.value {
            Value::Map(entries) => Some(entries),
            Value::Refused => None,
            Value::Null => {
                self.error("nothing stands here; write `{}` for the defaults, or remove the key");
                None
            }
            _ => {
                self.error(format!(
                    "expected a mapping (`key: value`), found {}",
                    self.found()
                ));
                None
            }
        }
    }

    fn child(&self, entry: &'a Entry) -> At<'a> {
        At {
            source: self.source,
            node: &entry.node,
            key: entry.place,
            path: join(&self.path, &entry.key),
        }
    }

    fn unknown(&self, entry: &Entry, shape: &'static Shape) {
        let near = nearest(&entry.key, shape.keys.iter().map(|key| key.word));
        let mut reason = "unknown key".to_owned();
        if near.is_none() {
            let places = sections_with(&entry.key);
            let sections: Vec<_> = places.iter().map(|section| where_is(section)).collect();
            if sections.is_empty() {
                let known = shape.built().collect::<Vec<_>>().join(", ");
                reason = format!("unknown key; the keys here are {known}");
            } else {
                reason = format!("unknown key here; it belongs {}", sections.join(" or "));
            }
        }
        let path = join(&self.path, &entry.key);
        self.source
            .errors
            .error(entry.place, &path, Invalid::new(reason).hint(near));
    }

    /// What stands here, without its text, which may be a secret.
    fn found(&self) -> &'static str {
        match &self.node.value {
            Value::Null | Value::Refused => "nothing",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

impl<'a> Map<'a> {
    /// The mapping itself.
    pub(super) fn at(&self) -> &At<'a> {
        &self.at
    }

    /// The value of a key, if it is there.
    pub(super) fn find(&self, word: &str) -> Option<At<'a>> {
        debug_assert!(
            self.shape.find(word).is_some(),
            "{word} is not in the table of keys"
        );
        let entry = self.entries.iter().find(|entry| entry.key == word)?;
        Some(self.at.child(entry))
    }

    /// Reads a key that must be there.
    pub(super) fn need<T>(&self, word: &str, read: impl FnOnce(&At<'a>) -> Option<T>) -> Option<T> {
        if let Some(at) = self.find(word) {
            return read(&at);
        }
        if !self.may_hold(word) {
            let path = join(&self.at.path, word);
            let what = Invalid::new("this key is required, but missing");
            self.at.source.errors.error(self.at.node.place, &path, what);
        }
        None
    }

    /// Whether a key that is not there may stand behind another error: misspelt, or merged in.
    pub(super) fn may_hold(&self, word: &str) -> bool {
        let words = || self.shape.keys.iter().map(|key| key.word);
        let misspelt = |key: &str| {
            words().all(|known| known != key) && nearest(key, words()).as_deref() == Some(word)
        };
        let mut entries = self.entries.iter().take(ENTRIES_SEARCHED);
        entries.any(|entry| entry.key == MERGE || misspelt(&entry.key))
    }

    /// Reads a key that may be left out.
    pub(super) fn maybe<T>(
        &self,
        word: &str,
        read: impl FnOnce(&At<'a>) -> Option<T>,
    ) -> Option<Option<T>> {
        self.find(word).map_or(Some(None), |at| read(&at).map(Some))
    }

    /// Reads a key that has a default.
    pub(super) fn or<T>(
        &self,
        word: &str,
        default: T,
        read: impl FnOnce(&At<'a>) -> Option<T>,
    ) -> Option<T> {
        self.find(word).map_or(Some(default), |at| read(&at))
    }
}

/// All values, or `None` if one of them is wrong; unlike collecting options, it reads every one.
pub(super) fn all<T>(values: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let mut list = Vec::new();
    let mut complete = true;
    for value in values {
        match value {
            Some(value) => list.push(value),
            None => complete = false,
        }
    }
    complete.then_some(list)
}

/// Names in backticks, for "the … are" lists; long ones are cut.
pub(super) fn listed<T: Display>(names: impl IntoIterator<Item = T>) -> String {
    const SHOWN: usize = 8;
    let mut all: Vec<_> = names.into_iter().map(|name| format!("`{name}`")).collect();
    if all.len() > SHOWN {
        all.truncate(SHOWN);
        all.push("…".to_owned());
    }
    all.join(", ")
}

/// "`a`, `b` or `c`".
fn either(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [word] => format!("`{word}`"),
        [first @ .., last] => format!("{} or `{last}`", listed(first)),
    }
}

fn where_is(section: &str) -> String {
    match section {
        "" => "at the top level".to_owned(),
        _ => format!("in `{section}`"),
    }
}
