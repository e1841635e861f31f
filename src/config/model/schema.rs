//! What a body must be: the schema it is checked against, and the media types it may have.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jsonschema::json::Json;
use jsonschema::{PatternOptions, ValidationError, Validator};
use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};
use serde_json::Value;

/// Bytes that one compiled pattern may take; a larger one makes its schema invalid.
const PATTERN_MAX: usize = 1 << 20;

/// A JSON Schema that was read and found good. Two are the same if their files and contents are.
#[derive(Clone)]
pub struct Schema {
    file: PathBuf,
    digest: [u8; 32],
    document: Arc<Value>,
}

impl Schema {
    /// A document from a file; `digest` is SHA-256 of the file's bytes.
    pub(in crate::config) fn new(file: &Path, digest: [u8; 32], document: Value) -> Self {
        Self {
            file: file.to_owned(),
            digest,
            document: Arc::new(document),
        }
    }

    /// A document from nowhere.
    #[cfg(test)]
    pub(crate) fn for_test(document: Value) -> Self {
        Self::new(Path::new("test.json"), [0; 32], document)
    }

    /// The file as the configuration names it.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The schema itself.
    pub(in crate::config) fn document(&self) -> &Value {
        &self.document
    }

    /// Makes the validator of this schema for bodies in the representation `F`.
    ///
    /// Nothing is fetched, patterns run in linear time, and `format` is asserted in every draft.
    ///
    /// # Errors
    /// What is wrong with the schema. Compiling a configuration has looked for that already.
    pub fn validator<F: Json>(&self) -> Result<Validator<F>, ValidationError<'static>> {
        jsonschema::options_for::<F>()
            .offline()
            .should_validate_formats(true)
            .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_MAX))
            .build(&self.document)
    }

    fn sha256(&self) -> String {
        let mut text = String::with_capacity(64);
        for byte in self.digest {
            text.push_str(&format!("{byte:02x}"));
        }
        text
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schema({:?}, {})", self.file, self.sha256())
    }
}

impl Serialize for Schema {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut shown = serializer.serialize_struct("Schema", 2)?;
        shown.serialize_field("file", &self.file)?;
        shown.serialize_field("sha256", &self.sha256())?;
        shown.end()
    }
}

/// A media range (RFC 9110 section 12.5.1), and beside it `type/*+suffix` for a structured syntax (RFC 6839). In lower
/// case, without parameters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MediaRange {
    /// `*/*`: whatever it is, and no type at all.
    Any,
    /// `text/*`; held as `text/`.
    Type(String),
    /// `application/*+json`; held as `application/` and `+json`.
    Suffix(String, String),
    /// `application/json`.
    Exact(String),
}

impl MediaRange {
    /// What a body has to be that is checked against a schema, unless the route says otherwise.
    pub fn json() -> Vec<Self> {
        let suffix = Self::Suffix("application/".to_owned(), "+json".to_owned());
        vec![Self::Exact("application/json".to_owned()), suffix]
    }

    /// Whether it has this type, which is `type/subtype` without parameters; case does not matter.
    pub fn takes(&self, essence: &str) -> bool {
        let essence = essence.to_ascii_lowercase();
        match self {
            Self::Any => true,
            Self::Type(start) => essence.starts_with(start.as_str()),
            Self::Suffix(start, end) => essence
                .strip_prefix(start.as_str())
                .and_then(|subtype| subtype.strip_suffix(end.as_str()))
                .is_some_and(|name| !name.is_empty()),
            Self::Exact(name) => *name == essence,
        }
    }
}

impl fmt::Display for MediaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*/*"),
            Self::Type(start) => write!(f, "{start}*"),
            Self::Suffix(start, end) => write!(f, "{start}*{end}"),
            Self::Exact(name) => f.write_str(name),
        }
    }
}

impl Serialize for MediaRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_takes_its_types_and_no_others() {
        let json = MediaRange::json();
        let takes = |essence: &str| json.iter().any(|range| range.takes(essence));
        assert!(takes("application/json") && takes("Application/JSON"));
        assert!(takes("application/problem+json"));
        assert!(!takes("application/+json"), "a suffix of nothing");
        assert!(!takes("application/jsonp") && !takes("text/json") && !takes(""));
        let text = MediaRange::Type("text/".to_owned());
        assert!(text.takes("text/plain") && !text.takes("textual/plain"));
        assert!(MediaRange::Any.takes("") && MediaRange::Any.takes("x/y"));
    }
}
