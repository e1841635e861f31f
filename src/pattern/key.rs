//! A record's key: from a header, from the path, or from the body by way of [`super::slim::Plan`].
//!
//! The bytes are the value itself, as any other Kafka producer would write it: a string's unescaped UTF-8, a number's
//! or boolean's JSON text, a header's value, a path segment without percent-encoding.

use bytes::Bytes;
use http::HeaderMap;

use crate::config::model::{KeyMissing, KeyRule};
use crate::error::{Error, Kind, Violation, Violations};

/// The key that a call's head carries; `None` for a rule that looks into the body and for a head without the key.
///
/// A header that comes more than once is joined by `, ` (RFC 9110 section 5.3), so that the key does not depend on how
/// it was sent. `path` is the canonical path without the query. An empty value is a missing one.
pub fn from_head(rule: &KeyRule, headers: &HeaderMap, path: &str) -> Option<Bytes> {
    let key = match rule {
        KeyRule::Body(_) => return None,
        KeyRule::Header(name) => {
            let values: Vec<&[u8]> = headers.get_all(name).iter().map(|v| v.as_bytes()).collect();
            values.join(&b", "[..])
        }
        KeyRule::Path(place) => percent_decoded(path.split('/').nth(*place)?),
    };
    (!key.is_empty()).then(|| Bytes::from(key))
}

/// Applies the rule for calls without their key.
///
/// # Errors
/// [`Kind::KeyMissing`] where the route refuses them.
pub fn require(
    key: Option<Bytes>,
    rule: &KeyRule,
    missing: KeyMissing,
) -> Result<Option<Bytes>, Error> {
    match (key, missing) {
        (None, KeyMissing::Refuse) => {
            let place = match rule {
                KeyRule::Body(pointer) => format!("{pointer} of the body"),
                KeyRule::Header(name) => format!("the header {name}"),
                KeyRule::Path(place) => format!("segment {place} of the path"),
            };
            let detail = format!("no text, number or boolean at {place}, which is the key");
            let (pointer, reason) = match rule {
                KeyRule::Body(pointer) => (
                    Some(pointer.to_string()),
                    "must be a text, number or boolean, since it is the key".to_owned(),
                ),
                _ => (None, detail.clone()),
            };
            let violation = Violation {
                pointer,
                keyword: Some("key".to_owned()),
                reason,
            };
            let violations = Violations {
                list: vec![violation],
                more: false,
            };
            Err(Error::new(Kind::KeyMissing, detail).violating(violations))
        }
        (key, _) => Ok(key),
    }
}

/// Undoes percent-encoding (RFC 3986 section 2.1); a `%` without two hex digits stays as it is.
pub fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let hex = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
        match (first, tail) {
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push(high << 4 | low);
                    rest = after;
                }
                _ => bytes.push(b'%'),
            },
            _ => bytes.push(*first),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn check(rule: &KeyRule, path: &str, expected: Option<&str>) {
        let mut headers = HeaderMap::new();
        headers.append("x-once", HeaderValue::from_static("a b"));
        headers.append("x-twice", HeaderValue::from_static("1"));
        headers.append("x-twice", HeaderValue::from_static("2"));
        headers.append("x-empty", HeaderValue::from_static(""));
        let key = from_head(rule, &headers, path);
        assert_eq!(
            key.as_deref(),
            expected.map(str::as_bytes),
            "{rule:?} on {path}"
        );
    }

    #[test]
    fn a_header_rule_takes_the_value() {
        let header = |name| KeyRule::Header(HeaderName::from_static(name));
        check(&header("x-once"), "/", Some("a b"));
        check(&header("x-twice"), "/", Some("1, 2"));
        check(&header("x-empty"), "/", None);
        check(&header("x-none"), "/", None);
    }

    #[test]
    fn a_path_rule_counts_segments_from_one() {
        check(&KeyRule::Path(1), "/orders/7", Some("orders"));
        check(&KeyRule::Path(2), "/orders/a%20b", Some("a b"));
        check(&KeyRule::Path(2), "/orders/100%", Some("100%"));
        check(&KeyRule::Path(3), "/orders/7", None);
        check(&KeyRule::Path(2), "/orders//7", None);
        check(&KeyRule::Path(1), "*", None);
    }

    #[test]
    fn a_missing_key_is_refused_unless_the_route_wants_no_order() {
        let rule = KeyRule::Path(2);
        let error = require(None, &rule, KeyMissing::Refuse).expect_err("it is missing");
        assert_eq!(error.kind(), Kind::KeyMissing);
        assert_eq!(require(None, &rule, KeyMissing::Unordered).unwrap(), None);
        let key = Some(Bytes::from_static(b"k"));
        assert_eq!(
            require(key.clone(), &rule, KeyMissing::Refuse).unwrap(),
            key
        );
    }
}
