//! No store at all: the service that made a body is asked for it again, at an address made of the slim body's fields.
//!
//! The record names no address. The reader makes it of its own template and of the fields that the record's body has, so
//! that a record can lead nowhere but where the reader's config says; and the answer must have the digest of what was
//! sent, so that a body which has changed since is never taken for it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::id::{self, Audience, Said};
use super::{Claim, Whole, expiry};
use crate::config::model::{ClaimTemplate, TemplatePart};
use crate::error::{Error, Kind};

/// Longest path and query that is made of a body.
const PATH_MAX: usize = 1024;

/// Bodies that their service keeps itself.
#[derive(Debug)]
pub struct Origin {
    template: ClaimTemplate,
    tag: [u8; 4],
    ttl: Duration,
}

impl Origin {
    /// Of a template; `ttl` is how long the service is trusted to have a body unchanged.
    pub fn new(template: &ClaimTemplate, ttl: Duration) -> Self {
        let mut tag = [0; 4];
        tag.copy_from_slice(&Sha256::digest(template.to_string())[..4]);
        Self {
            template: template.clone(),
            tag,
            ttl,
        }
    }

    /// Names a body by the fields of its slim form; nothing is written.
    ///
    /// # Errors
    /// [`Kind::BadRequest`] if the slim body has not the fields.
    pub fn keep(&self, whole: &Whole, audience: Audience, slim: &[u8]) -> Result<Claim, Error> {
        self.path(slim)?;
        let expires = expiry(self.ttl);
        Ok(Claim {
            id: id::nowhere(self.tag, audience, expires),
            digest: whole.digest,
            size: whole.body.len() as u64,
            expires: UNIX_EPOCH + Duration::from_secs(expires),
        })
    }

    /// Whether an id is of this template.
    pub fn made(&self, said: &Said) -> bool {
        said.tag == self.tag
    }

    /// The service that is asked.
    pub fn service(&self) -> &str {
        &self.template.service
    }

    /// The path and query of a body, made of its slim form.
    ///
    /// # Errors
    /// [`Kind::BadRequest`] if the slim body has not the fields.
    pub fn path(&self, slim: &[u8]) -> Result<String, Error> {
        let refuse = |detail| Error::new(Kind::BadRequest, detail);
        let value: &RawValue = serde_json::from_slice(slim)
            .map_err(|cause| refuse("the slim body is not JSON".to_owned()).because(cause))?;
        let mut path = String::new();
        for part in &self.template.parts {
            match part {
                TemplatePart::Text(text) => path.push_str(text),
                TemplatePart::Field(pointer) => {
                    let text = at(value, &pointer.0).and_then(scalar);
                    let text = text.ok_or_else(|| {
                        let detail = format!(
                            "the body has no text or number at {pointer}, of which `claims` makes the address to have it back from"
                        );
                        refuse(detail)
                    })?;
                    encode(&mut path, &text);
                }
            }
            if path.len() > PATH_MAX {
                let detail = format!("the address of the body is over {PATH_MAX} bytes long");
                return Err(refuse(detail));
            }
        }
        match has_step(&path) {
            true => Err(refuse(
                "a field of the address to have the body back from is `.` or `..`".to_owned(),
            )),
            false => Ok(path),
        }
    }

    /// Whether a path is one that [`Origin::path`] could have made.
    pub fn admits(&self, path: &str) -> bool {
        let bytes = path.as_bytes();
        if bytes.len() > PATH_MAX || has_step(path) {
            return false;
        }
        // Where in the path each part may end: a value may hold what the template goes on with.
        let mut ends = vec![0];
        for part in &self.template.parts {
            let mut next: Vec<usize> = Vec::new();
            for end in ends {
                let rest = &bytes[end..];
                match part {
                    TemplatePart::Text(text) if rest.starts_with(text.as_bytes()) => {
                        next.push(end + text.len());
                    }
                    TemplatePart::Text(_) => {}
                    TemplatePart::Field(_) => {
                        let value = rest
                            .iter()
                            .take_while(|byte| **byte == b'%' || is_plain(**byte));
                        next.extend((1..=value.count()).map(|len| end + len));
                    }
                }
            }
            next.sort_unstable();
            next.dedup();
            ends = next;
        }
        ends.last() == Some(&bytes.len())
    }
}

/// The value that a pointer leads to (RFC 6901).
fn at<'v>(value: &'v RawValue, pointer: &[String]) -> Option<&'v RawValue> {
    let Some((token, rest)) = pointer.split_first() else {
        return Some(value);
    };
    let next = match value.get().as_bytes().first()? {
        b'{' => {
            let mut members: HashMap<Cow<'_, str>, &RawValue> =
                serde_json::from_str(value.get()).ok()?;
            members.remove(token.as_str())?
        }
        b'[' => {
            let elements: Vec<&RawValue> = serde_json::from_str(value.get()).ok()?;
            *elements.get(token.parse::<usize>().ok()?)?
        }
        _ => return None,
    };
    at(next, rest)
}

/// The text of a string, or of a number or truth value as it is written: a number may be larger than any type of ours.
fn scalar(value: &RawValue) -> Option<String> {
    let text = value.get();
    match text.as_bytes().first()? {
        b'"' => {
            let text: String = serde_json::from_str(text).ok()?;
            (!text.is_empty()).then_some(text)
        }
        b'{' | b'[' | b'n' => None,
        _ => Some(text.to_owned()),
    }
}

/// Whether a segment is a step, which would lead to another address.
fn has_step(path: &str) -> bool {
    path.split(['/', '?'])
        .any(|segment| matches!(segment, "." | ".."))
}

/// RFC 3986 section 2.3: what needs no escape anywhere.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn encode(to: &mut String, text: &str) {
    for byte in text.bytes() {
        match is_plain(byte) {
            true => to.push(char::from(byte)),
            false => to.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Pointer;

    fn field(name: &str) -> TemplatePart {
        TemplatePart::Field(Pointer(vec![name.to_owned()]))
    }

    fn text(text: &str) -> TemplatePart {
        TemplatePart::Text(text.to_owned())
    }

    fn origin(parts: Vec<TemplatePart>) -> Origin {
        let service = "orders".to_owned();
        Origin::new(&ClaimTemplate { service, parts }, Duration::from_secs(60))
    }

    #[test]
    fn an_address_is_made_of_the_fields_and_cannot_leave_the_template() {
        let origin = origin(vec![
            text("/orders/"),
            field("id"),
            text("?full=1&n="),
            field("n"),
        ]);
        let path = |body: &str| origin.path(body.as_bytes()).map_err(|error| error.kind());
        for (id, expected) in [
            (r#""o-1""#, "/orders/o-1?full=1&n=7"),
            (
                r#""../admin?x#y/é %""#,
                "/orders/..%2Fadmin%3Fx%23y%2F%C3%A9%20%25?full=1&n=7",
            ),
            ("17", "/orders/17?full=1&n=7"),
            ("true", "/orders/true?full=1&n=7"),
            (
                "123456789012345678901234567890",
                "/orders/123456789012345678901234567890?full=1&n=7",
            ),
            ("1.10", "/orders/1.10?full=1&n=7"),
        ] {
            let made = path(&format!(r#"{{"id":{id},"n":7}}"#));
            assert_eq!(made.as_deref(), Ok(expected));
            assert!(origin.admits(expected), "{expected}");
        }
        for id in [r#""..""#, r#"".""#, r#""""#, "null", "{}", "[1]"] {
            let made = path(&format!(r#"{{"id":{id},"n":7}}"#));
            assert_eq!(made, Err(Kind::BadRequest), "{id}");
        }
        assert_eq!(path(r#"{"n":7}"#), Err(Kind::BadRequest));
        assert_eq!(path("no JSON"), Err(Kind::BadRequest));
        let long = format!(r#"{{"id":"{}","n":7}}"#, "x".repeat(2000));
        assert_eq!(path(&long), Err(Kind::BadRequest));
        for foreign in [
            "/orders/o-1",
            "/orders/?full=1&n=7",
            "/orders/a/b?full=1&n=7",
            "/orders/..?full=1&n=7",
            "/orders/o-1?full=1&n=7&x=1",
            "/admin/o-1?full=1&n=7",
            "/orders/o-1?full=1&n=",
            "",
        ] {
            assert!(!origin.admits(foreign), "{foreign}");
        }
    }

    #[test]
    fn a_value_may_hold_what_the_template_goes_on_with() {
        let origin = origin(vec![
            text("/a/"),
            field("x"),
            text("-"),
            field("y"),
            text(".json"),
        ]);
        let path = origin.path(br#"{"x":"p-q","y":"r.json"}"#).unwrap();
        assert_eq!(path, "/a/p-q-r.json.json");
        assert!(origin.admits(&path) && origin.admits("/a/1-2.json"));
        assert!(!origin.admits("/a/12.json") && !origin.admits("/a/1-2.jso"));
    }
}
