//! `schema`: a file of JSON Schema, read once, and everything that is wrong with it.
//!
//! The library that compiles it stops at its first error and does not always say where, so that what can be found by
//! looking at the document alone is found here: what breaks the rules of the schema's draft, all of it, and references
//! that lead out of the file or nowhere.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use jsonschema::error::ValidationErrorKind;
use jsonschema::json::SerdeJson;
use jsonschema::{Draft, ReferencingError, ValidationError};
use serde_json::Value;

use super::diagnostic::quoted;
use super::files::{FILE_MAX, Files, digest};
use super::model::Schema;

/// Mistakes of one schema that are told.
const TOLD_MAX: usize = 10;
/// Different schemas of one configuration, and their bytes in all: their files are looked at every second.
const SCHEMAS_MAX: usize = 256;
const BYTES_MAX: usize = 4 << 20;

const DRAFTS: &str =
    "leave it out for draft 2020-12, or name that one, 2019-09, draft-07, draft-06 or draft-04";

/// The schemas of one configuration, each read once however many routes name it.
pub(super) struct Schemas<'a> {
    files: &'a dyn Files,
    known: RefCell<HashMap<PathBuf, Result<Schema, Vec<String>>>>,
    bytes: RefCell<usize>,
}

impl<'a> Schemas<'a> {
    pub(super) fn new(files: &'a dyn Files) -> Self {
        Self {
            files,
            known: RefCell::default(),
            bytes: RefCell::default(),
        }
    }

    /// The schema of a file and what is probably not meant in it, or what is wrong with it. Warnings come only once.
    pub(super) fn get(&self, path: &Path) -> Result<(Schema, Vec<String>), Vec<String>> {
        if let Some(known) = self.known.borrow().get(path) {
            return known.clone().map(|schema| (schema, Vec::new()));
        }
        let read = self.read(path);
        let schema = read.clone().map(|(schema, _)| schema);
        self.known.borrow_mut().insert(path.to_owned(), schema);
        read
    }

    fn read(&self, path: &Path) -> Result<(Schema, Vec<String>), Vec<String>> {
        let name = path.display();
        let one = |reason: String| vec![reason];
        if self.known.borrow().len() >= SCHEMAS_MAX {
            return Err(one(format!("at most {SCHEMAS_MAX} different schemas")));
        }
        let bytes = self
            .files
            .read(path)
            .map_err(|reason| one(format!("{name} {reason}")))?;
        if bytes.len() > FILE_MAX {
            return Err(one(format!("{name} is over 1 MiB, the most that is read")));
        }
        *self.bytes.borrow_mut() += bytes.len();
        if *self.bytes.borrow() > BYTES_MAX {
            return Err(one(
                "the schemas of this file are over 4 MiB in all".to_owned()
            ));
        }
        let document: Value = serde_json::from_slice(&bytes).map_err(|error| {
            let (line, column) = (error.line(), error.column().max(1));
            let text = error.to_string();
            let text = text.split(" at line ").next().unwrap_or_default();
            one(format!("{name}:{line}:{column}: not JSON: {text}"))
        })?;
        let schema = Schema::new(path, digest(&bytes), document);
        let mut wrong = mistakes(&schema);
        if wrong.is_empty() {
            let warnings = unchecked_formats(schema.document());
            let named = |told: String| format!("{name}: {told}");
            return Ok((schema, warnings.into_iter().map(named).collect()));
        }
        let more = wrong.len().saturating_sub(TOLD_MAX);
        wrong.truncate(TOLD_MAX);
        if more > 0 {
            wrong.push(format!("… and {more} more"));
        }
        Err(wrong
            .into_iter()
            .map(|told| format!("{name}: {told}"))
            .collect())
    }
}

/// Everything that is wrong with a document as a schema, as `POINTER: reason`.
fn mistakes(schema: &Schema) -> Vec<String> {
    let document = schema.document();
    if Draft::default().detect(document) == Draft::Unknown {
        let named = document.get("$schema").and_then(Value::as_str);
        let named = quoted(named.unwrap_or_default());
        return vec![format!("/$schema: {named} is no known draft; {DRAFTS}")];
    }
    let mut wrong = match jsonschema::meta::validator_for(document) {
        Ok(rules) => rules.iter_errors(document).map(told).collect(),
        Err(error) => vec![told(error)],
    };
    wrong.dedup();
    if wrong.is_empty()
        && let Err(error) = schema.validator::<SerdeJson>()
    {
        wrong = match error.kind() {
            ValidationErrorKind::Referencing(cause) => lost_references(document, cause),
            _ => vec![told(error)],
        };
    }
    wrong
}

/// One mistake with its place in the schema.
fn told(error: ValidationError<'_>) -> String {
    let at = match error.instance_path().as_str() {
        "" => "the schema".to_owned(),
        at => at.to_owned(),
    };
    match error.kind() {
        ValidationErrorKind::Format { format } if format == "regex" => format!(
            "{at}: this is no regular expression that can be searched in linear time: look-around and back-references are not taken, nor what needs over 1 MiB"
        ),
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            // What one of the choices says is of more use than that there is none.
            let inner = context.iter().flatten().next();
            match inner {
                Some(inner) => format!("{at}: {}", short(&inner.to_string())),
                None => format!("{at}: {}", short(&error.to_string())),
            }
        }
        _ => format!("{at}: {}", short(&error.to_string())),
    }
}

fn short(text: &str) -> String {
    const SHOWN: usize = 200;
    let mut out: String = text
        .chars()
        .take(SHOWN)
        .filter(|c| !c.is_control())
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        out.push('…');
    }
    out
}

/// Why references can not be followed, all of that kind with their places.
fn lost_references(document: &Value, cause: &ReferencingError) -> Vec<String> {
    let mut found = Found::default();
    found.walk(document, "");
    let outside = |reference: &&(String, String)| {
        let target = reference.1.split('#').next().unwrap_or_default();
        let plain = target.trim_start_matches("./").trim_start_matches("../");
        let known = |id: &String| id.trim_end_matches('#').ends_with(plain);
        !target.is_empty() && !found.ids.iter().any(known) && !is_known_draft(&reference.1)
    };
    let wrong: Vec<String> = match cause {
        ReferencingError::Unretrievable { .. } => found
            .references
            .iter()
            .filter(outside)
            .map(|(at, target)| {
                let target = quoted(target);
                format!("{at}: {target} lies outside this file, and nothing is fetched; put it under `$defs`")
            })
            .collect(),
        ReferencingError::PointerToNowhere { pointer } => found.to(pointer),
        ReferencingError::NoSuchAnchor { anchor } | ReferencingError::InvalidAnchor { anchor } => {
            found.to(anchor)
        }
        _ => Vec::new(),
    };
    match wrong.is_empty() {
        true => vec![format!(
            "a reference can not be followed: {}",
            short(&cause.to_string())
        )],
        false => wrong,
    }
}

fn is_known_draft(uri: &str) -> bool {
    let probe = serde_json::json!({ "$schema": uri });
    Draft::default().detect(&probe) != Draft::Unknown
}

/// References and names of a document, by their places.
#[derive(Default)]
struct Found {
    references: Vec<(String, String)>,
    ids: Vec<String>,
    formats: Vec<(String, String)>,
}

impl Found {
    fn walk(&mut self, value: &Value, at: &str) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    let token = name.replace('~', "~0").replace('/', "~1");
                    let below = format!("{at}/{token}");
                    match (name.as_str(), value) {
                        // Data, whatever it looks like.
                        ("const" | "enum" | "default" | "examples", _) => {}
                        ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(target)) => {
                            self.references.push((below, target.clone()));
                        }
                        ("$id" | "id", Value::String(id)) => self.ids.push(id.clone()),
                        ("format", Value::String(name)) => self.formats.push((below, name.clone())),
                        _ => self.walk(value, &below),
                    }
                }
            }
            Value::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    self.walk(value, &format!("{at}/{index}"));
                }
            }
            _ => {}
        }
    }

    /// The references that lead to a pointer or an anchor that is not there.
    fn to(&self, fragment: &str) -> Vec<String> {
        let ends = |target: &str| {
            let there = target.split_once('#').map_or("", |(_, fragment)| fragment);
            there == fragment || there.trim_start_matches('/') == fragment.trim_start_matches('/')
        };
        let hits = self.references.iter().filter(|(_, target)| ends(target));
        hits.map(|(at, target)| format!("{at}: {} leads nowhere", quoted(target)))
            .collect()
    }
}

/// Formats that nothing is known about, and which therefore constrain nothing.
fn unchecked_formats(document: &Value) -> Vec<String> {
    let draft = Draft::default().detect(document);
    let options = jsonschema::options();
    let mut found = Found::default();
    found.walk(document, "");
    found
        .formats
        .retain(|(_, name)| !options.is_known_format(draft, name));
    found.formats.truncate(TOLD_MAX);
    let told =
        |(at, name): (String, String)| format!("{at}: the format {} is not checked", quoted(&name));
    found.formats.into_iter().map(told).collect()
}
