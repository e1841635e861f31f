//! One span, as it waits for the collector.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use super::Spans;
use crate::telemetry::trace::Trace;

/// Bytes of a text; what is longer is cut at a character, for a path may be as long as a head.
const TEXT_MAX: usize = 256;

/// What a span is in its conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A call that came in at a door.
    Server,
    /// A try that was made.
    Client,
    /// A message that was published.
    Producer,
    /// An attempt to deliver one.
    Consumer,
}

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(Cow<'static, str>),
    /// A number.
    Number(i64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// A copy of a text of the call, not longer than a span may hold.
pub(super) fn short(text: &str) -> String {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// What a span follows from without being its child.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) context: Trace,
    pub(super) state: Option<String>,
}

/// A span.
#[derive(Debug)]
pub(super) struct Span {
    /// Where it goes when it is over.
    pub(super) recorder: Option<Arc<Spans>>,
    /// Its trace and its own id.
    pub(super) context: Trace,
    /// The span that it is within.
    pub(super) parent: Option<[u8; 8]>,
    /// That one is another process's.
    pub(super) remote: bool,
    pub(super) state: Option<String>,
    pub(super) kind: Kind,
    pub(super) name: Cow<'static, str>,
    pub(super) start: SystemTime,
    pub(super) end: SystemTime,
    pub(super) attributes: Vec<(&'static str, Value)>,
    pub(super) link: Option<Link>,
    /// Why it failed, in a word.
    pub(super) failed: Option<Cow<'static, str>>,
}

/// A span on its way to the collector: it is moved several times, so by its pointer.
pub(super) type Queued = Box<Span>;

impl Span {
    pub(super) fn new(context: Trace, parent: [u8; 8], kind: Kind, recorder: Arc<Spans>) -> Self {
        let start = SystemTime::now();
        Self {
            recorder: Some(recorder),
            context,
            parent: Some(parent),
            remote: false,
            state: None,
            kind,
            name: Cow::Borrowed(""),
            start,
            end: start,
            attributes: Vec::with_capacity(10),
            link: None,
            failed: None,
        }
    }
}
