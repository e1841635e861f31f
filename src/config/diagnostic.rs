//! What is wrong with a file, where, and what was probably meant.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;

use serde::Serialize;

use super::files::ReadFile;

/// Errors printed at most; the rest is counted.
const PRINTED_MAX: usize = 50;
/// Diagnostics kept at most; a file with more is hopeless, and memory is not.
const KEPT_MAX: usize = 1000;
/// Characters of a wrong value that a message repeats.
const QUOTED_MAX: usize = 60;

/// Characters that hide or reorder others on a terminal.
const INVISIBLE: [RangeInclusive<char>; 4] = [
    '\u{200b}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2060}'..='\u{206f}',
    '\u{feff}'..='\u{feff}',
];

/// Line and column, both from 1, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Place {
    /// The first character.
    pub(super) const START: Place = Place { line: 1, column: 1 };

    /// The place that follows these bytes, which are UTF-8.
    pub(super) fn after(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let last = text.rsplit('\n').next().unwrap_or_default();
        Self {
            line: text.matches('\n').count() + 1,
            column: last.chars().count() + 1,
        }
    }
}

/// Every error of one file, by line and column.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// At least one.
    pub errors: Vec<Diagnostic>,
    /// The other files that were read, good or not.
    #[serde(skip)]
    pub files: Vec<ReadFile>,
}

/// One error or warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file as it was named by the caller.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Where in the tree: `outbound.routes[2].forward.retry.attempts`; empty for the file as a whole.
    pub path: String,
    /// What is wrong.
    pub reason: String,
    /// The nearest right word.
    pub hint: Option<String>,
}

/// Why a text is not the value that is asked for; has no place yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong.
    pub reason: String,
    /// The nearest right word.
    pub hint: Option<String>,
}

impl Report {
    /// A report of one error about the file as a whole.
    pub(super) fn single(file: &str, place: Place, reason: impl Into<String>) -> Self {
        let collector = Collector::new(file);
        collector.error(place, "", Invalid::new(reason));
        Self {
            errors: collector.finish().0,
            files: Vec::new(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().take(PRINTED_MAX).enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        match self.errors.len().saturating_sub(PRINTED_MAX) {
            0 => Ok(()),
            1 => write!(f, "\n… and 1 more error"),
            more if self.errors.len() < KEPT_MAX => write!(f, "\n… and {more} more errors"),
            more => write!(f, "\n… and at least {more} more errors"),
        }
    }
}

impl std::error::Error for Report {}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)?;
        match &self.hint {
            Some(hint) => write!(f, " (did you mean `{hint}`?)"),
            None => Ok(()),
        }
    }
}

impl Invalid {
    /// A reason without a better word.
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            hint: None,
        }
    }

    /// Adds what was probably meant.
    pub(super) fn hint(mut self, hint: impl Into<Option<String>>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        match &self.hint {
            Some(hint) => write!(f, " (did you mean `{hint}`?)"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Invalid {}

/// Takes the errors and warnings of one walk.
pub(super) struct Collector {
    file: String,
    errors: RefCell<Vec<Diagnostic>>,
    warnings: RefCell<Vec<Diagnostic>>,
}

impl Collector {
    /// An empty one for a file.
    pub(super) fn new(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            errors: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    /// Notes an error.
    pub(super) fn error(&self, place: Place, path: &str, what: Invalid) {
        self.note(&self.errors, place, path, what);
    }

    /// Notes something that is allowed but probably not meant.
    pub(super) fn warning(&self, place: Place, path: &str, reason: String) {
        self.note(&self.warnings, place, path, Invalid::new(reason));
    }

    /// Whether reading on would only add to a heap that nobody reads.
    pub(super) fn is_full(&self) -> bool {
        self.errors.borrow().len() >= KEPT_MAX
    }

    /// Errors and warnings, each by line and column.
    pub(super) fn finish(self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        let sorted = |list: RefCell<Vec<Diagnostic>>| {
            let mut list = list.into_inner();
            list.sort_by_key(|entry| (entry.line, entry.column));
            list
        };
        (sorted(self.errors), sorted(self.warnings))
    }

    fn note(&self, list: &RefCell<Vec<Diagnostic>>, place: Place, path: &str, what: Invalid) {
        let mut list = list.borrow_mut();
        if list.len() < KEPT_MAX {
            list.push(Diagnostic {
                file: self.file.clone(),
                line: place.line,
                column: place.column,
                path: path.to_owned(),
                reason: what.reason,
                hint: what.hint,
            });
        }
    }
}

/// A value as messages repeat it: in backticks, on one line, cut, without what a terminal would obey, and without the
/// user and password of a URL.
pub(super) fn quoted(text: &str) -> String {
    if text.is_empty() {
        return "an empty value".to_owned();
    }
    let text = &*without_userinfo(text);
    let mut out = String::from("`");
    for (index, letter) in text.chars().enumerate() {
        if index == QUOTED_MAX {
            out.push('…');
            break;
        }
        let hidden = letter.is_control() || INVISIBLE.iter().any(|range| range.contains(&letter));
        if hidden {
            out.extend(letter.escape_default());
        } else {
            out.push(letter);
        }
    }
    out.push('`');
    out
}

/// Hides what stands before the last `@`, if it may hold a password: `sasl://user:pass@host` becomes `sasl://…@host`.
fn without_userinfo(text: &str) -> Cow<'_, str> {
    let Some((before, host)) = text.rsplit_once('@') else {
        return Cow::Borrowed(text);
    };
    let (scheme, user) = match before.find("://") {
        Some(end) => before.split_at(end + "://".len()),
        None => ("", before),
    };
    match user.contains(':') || !scheme.is_empty() {
        true => Cow::Owned(format!("{scheme}…@{host}")),
        false => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_url_has_no_password() {
        let quoted_as = [
            ("sasl://user:pass@host:9092", "`sasl://…@host:9092`"),
            ("sasl://user:p@ss,w://d@host", "`sasl://…@host`"),
            ("user:pass@host:1", "`…@host:1`"),
            ("https://token@host", "`https://…@host`"),
            ("ann@example", "`ann@example`"),
        ];
        for (text, expected) in quoted_as {
            assert_eq!(quoted(text), expected);
        }
    }

    #[test]
    fn a_repeated_value_cannot_steer_the_terminal() {
        assert_eq!(quoted("a b"), "`a b`");
        assert_eq!(quoted("\u{1b}[31m\n\u{202e}"), "`\\u{1b}[31m\\n\\u{202e}`");
        assert_eq!(quoted(""), "an empty value");
        assert_eq!(quoted(&"x".repeat(100)).chars().count(), QUOTED_MAX + 3);
    }
}
