//! What a body must be before anything is kept or sent: its media type, its form as JSON, and its schema.
//!
//! The rules:
//!
//! * The media type is looked at before the body is read; the rest is about the whole body, whatever a slim record keeps
//!   of it.
//! * Every violation is told with its JSON pointer, those of the key among them, up to [`TOLD_MAX`]. No value of the
//!   body is repeated: it may be a secret, and the answer may end in a log.
//! * A name that is there twice in one object is a violation (RFC 8259 section 4 leaves open which value counts, and
//!   what is checked here must be what the receiver reads).
//! * A large body is checked on a thread of its own, a few at a time, so that no other call of its worker waits for it.

mod document;
mod node;
mod reason;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use jsonschema::Validator;
use tokio::sync::Semaphore;

use crate::config::model::{MediaRange, Publish};
use crate::error::{Error, Kind, Violation, Violations};

use document::{Document, NotJson};
use node::{Bodies, Spent, Spot};

/// Violations that are told; what is left out is only said to be there.
pub const TOLD_MAX: usize = 100;
/// Bytes from which on a body is checked beside its worker: at 4 to 7 ns a byte this one takes a third of a millisecond
/// (`benches/pure.rs`), and the way to another thread and back a fiftieth.
const LARGE: usize = 64 << 10;
/// Containers in containers up to which a worker's own stack of 2 MiB is enough for any schema.
const SHALLOW: usize = 16;
/// Bytes of the stack for deeper ones, of which the parser takes 127. Only what is used of it takes memory.
const STACK: usize = 64 << 20;
/// Large bodies that are checked at the same time in the process; more of them wait. Bounds what they take of the
/// processor, and of memory (see [`document`]).
static TURNS: Semaphore = Semaphore::const_new(2);

/// What one route asks of a body, compiled once.
pub struct Check {
    types: Vec<MediaRange>,
    schema: Option<Arc<Validator<Bodies>>>,
}

impl Check {
    /// Compiles what a route asks; `None` if it takes every body.
    ///
    /// # Errors
    /// [`Kind::Internal`] for a schema that does not compile, which the configuration has ruled out.
    pub fn of(rule: &Publish) -> Result<Option<Self>, Error> {
        let schema = rule.schema.as_ref().map(|schema| {
            let compiled = schema.validator::<Bodies>().map(Arc::new);
            compiled.map_err(|error| {
                let file = schema.file().display();
                Error::new(Kind::Internal, format!("{file} does not compile: {error}"))
            })
        });
        let schema = schema.transpose()?;
        let types = rule.content_type.clone();
        let asks = schema.is_some() || !types.is_empty();
        Ok(asks.then_some(Self { types, schema }))
    }

    /// Looks at a call's `Content-Type`. A call without body and type has none to look at.
    ///
    /// # Errors
    /// [`Kind::MediaType`], which names the types that are taken (RFC 9110 section 15.5.16).
    pub fn head(&self, headers: &HeaderMap, has_body: bool) -> Result<(), Error> {
        let mut given = headers.get_all(CONTENT_TYPE).iter();
        let (first, second) = (given.next(), given.next());
        if self.types.is_empty() || (first.is_none() && !has_body) {
            return Ok(());
        }
        let essence = match (first, second) {
            (None, _) => Some(""),
            (Some(_), Some(_)) => None,
            (Some(value), None) => value.to_str().ok(),
        };
        let essence = essence.map(|text| text.split(';').next().unwrap_or_default().trim());
        if essence.is_some_and(|essence| self.types.iter().any(|range| range.takes(essence))) {
            return Ok(());
        }
        let taken: Vec<String> = self.types.iter().map(ToString::to_string).collect();
        let taken = taken.join(", ");
        let detail = match (first, second) {
            (None, _) => format!("the body has no Content-Type; taken are {taken}"),
            (_, Some(_)) => format!("there is more than one Content-Type; taken are {taken}"),
            _ => format!("the body's Content-Type is none that is taken: {taken}"),
        };
        Err(Error::new(Kind::MediaType, detail).taking(taken))
    }

    /// Checks a whole body, in this thread if it is small.
    ///
    /// # Errors
    /// [`Kind::NotJson`] with the place of the first wrong byte.
    pub async fn body(&self, body: &Bytes) -> Result<Violations, Error> {
        let Some(schema) = &self.schema else {
            return Ok(Violations::default());
        };
        if body.len() < LARGE {
            return violations(schema, body);
        }
        let turn = TURNS.acquire().await;
        let (schema, body) = (Arc::clone(schema), body.clone());
        // The turn ends with the work, even if the caller does not wait for that.
        let work = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            violations(&schema, &body)
        });
        work.await.unwrap_or_else(|cause| {
            Err(Error::new(Kind::Internal, "the check of the body was broken off").because(cause))
        })
    }

    /// As [`Check::body`], always in this thread.
    ///
    /// # Errors
    /// As [`Check::body`].
    pub fn body_here(&self, body: &[u8]) -> Result<Violations, Error> {
        match &self.schema {
            Some(schema) => violations(schema, body),
            None => Ok(Violations::default()),
        }
    }
}

/// The end of a check: what was found in the body, together with what was wrong when its key was looked for.
///
/// # Errors
/// [`Kind::SchemaViolated`] with all violations, or what the key's own error is where there are no others.
pub fn judge<T>(mut found: Violations, keyed: Result<T, Error>) -> Result<T, Error> {
    if found.list.is_empty() {
        return keyed;
    }
    if let Err(error) = keyed {
        found.list.extend(error.violations().list.iter().cloned());
    }
    if found.list.len() > TOLD_MAX {
        found.list.truncate(TOLD_MAX);
        found.more = true;
    }
    let count = match (found.list.len(), found.more) {
        (1, false) => "one place".to_owned(),
        (count, false) => format!("{count} places"),
        (count, true) => format!("more than {count} places"),
    };
    let first = found.list.first().map(ToString::to_string);
    let detail = format!(
        "the body is not as the route asks at {count}, the first: {}",
        first.unwrap_or_default()
    );
    Err(Error::new(Kind::SchemaViolated, detail).violating(found))
}

fn violations(schema: &Validator<Bodies>, body: &[u8]) -> Result<Violations, Error> {
    let document = Document::parse(body).map_err(not_json)?;
    match document.depth <= SHALLOW {
        true => Ok(search(schema, &document)),
        false => deeply(schema, &document),
    }
}

/// The library goes down by recursion, and a schema that refers to itself goes down as far as the body does: where that
/// is deep, on a stack that is large enough for any schema.
fn deeply(schema: &Validator<Bodies>, document: &Document<'_>) -> Result<Violations, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("schema".to_owned())
            .stack_size(STACK);
        let searching = thread
            .spawn_scoped(scope, || search(schema, document))
            .map_err(|cause| {
                Error::new(
                    Kind::Overloaded,
                    "no thread can be started to check the body",
                )
                .after(Duration::from_secs(1))
                .because(cause)
            })?;
        searching
            .join()
            .map_err(|_| Error::new(Kind::Internal, "the check of the body was broken off"))
    })
}

fn search(schema: &Validator<Bodies>, document: &Document<'_>) -> Violations {
    let twice = |pointer: &String| Violation {
        pointer: Some(cut(pointer)),
        keyword: Some("uniqueNames".to_owned()),
        reason: "is there twice, and readers differ on which one counts".to_owned(),
    };
    let mut found = Violations {
        list: document.twice.iter().map(twice).collect(),
        more: false,
    };
    let (unlimited, spent) = (Spent::default(), Spent::on(document));
    let spot = |spent| Spot {
        tree: &document.root,
        spent,
    };
    if schema.is_valid(spot(&unlimited)) {
        return found;
    }
    let mut broken = false;
    for error in schema.iter_errors(spot(&spent)) {
        if !spent.believes(error.instance()) {
            continue;
        }
        broken = true;
        for violation in reason::told(&error) {
            if found.list.len() >= TOLD_MAX {
                found.more = true;
                break;
            }
            if !found.list.contains(&violation) {
                found.list.push(violation);
            }
        }
    }
    found.more |= spent.is_over();
    if !broken {
        found.list.push(Violation {
            pointer: Some(String::new()),
            keyword: None,
            reason: "is not as the schema asks, at more places than are searched for".to_owned(),
        });
    }
    found
}

fn not_json(wrong: NotJson) -> Error {
    let NotJson {
        reason,
        offset,
        line,
        column,
    } = wrong;
    let detail =
        format!("the body is not JSON: {reason} at line {line} column {column} (byte {offset})");
    Error::new(Kind::NotJson, detail)
}

/// A token of a pointer with its slash (RFC 6901 section 3).
fn token(name: &str) -> String {
    format!("/{}", cut(name).replace('~', "~0").replace('/', "~1"))
}

/// A text as it is told: a caller's names may be as long as its body.
fn cut(text: &str) -> String {
    const SHOWN: usize = 500;
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests;
