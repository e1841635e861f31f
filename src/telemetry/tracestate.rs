//! What vendors say of a trace beside its context: kept as it came if it is well-formed, else dropped.
//!
//! Source: W3C Trace Context Level 1, section 3.3 (`tracestate`).

use http::{HeaderMap, HeaderName};

/// The header's name.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Members of one list (section 3.3.1.1).
const MEMBERS_MAX: usize = 32;
/// Characters that are passed on, all lines together (section 3.3.1.5 asks for at least as many).
const LENGTH_MAX: usize = 512;
/// Characters of a key and of a value (sections 3.3.1.3.1 and 3.3.1.3.2).
const PART_MAX: usize = 256;
/// Characters of the two halves of a key with an `@`.
const TENANT_MAX: usize = 241;
const SYSTEM_MAX: usize = 14;

/// A call's own, its lines joined by commas (RFC 9110 section 5.3); `None` if there is none or it is not well-formed.
pub fn of(headers: &HeaderMap) -> Option<String> {
    let mut joined = String::new();
    for line in headers.get_all(TRACESTATE) {
        let line = line.to_str().ok()?;
        if joined.len() + line.len() > LENGTH_MAX {
            return None;
        }
        if !joined.is_empty() {
            joined.push(',');
        }
        joined.push_str(line);
    }
    is_valid(&joined).then_some(joined)
}

/// Whether a text is a list that may be passed on: some member, each key once, nothing over a limit.
pub fn is_valid(text: &str) -> bool {
    if text.len() > LENGTH_MAX {
        return false;
    }
    let mut keys: Vec<&str> = Vec::new();
    for member in text
        .split(',')
        .map(|member| member.trim_matches([' ', '\t']))
    {
        // Empty members are allowed, for lists that others have put together.
        if member.is_empty() {
            continue;
        }
        match member.split_once('=') {
            Some((key, value)) if is_key(key) && is_value(value) && !keys.contains(&key) => {
                keys.push(key);
            }
            _ => return false,
        }
    }
    (1..=MEMBERS_MAX).contains(&keys.len())
}

fn is_key(key: &str) -> bool {
    let letters = |part: &str, most| {
        let plain = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/');
        (1..=most).contains(&part.len()) && part.bytes().all(plain)
    };
    let begins_low = |part: &str| part.starts_with(|letter: char| letter.is_ascii_lowercase());
    match key.split_once('@') {
        None => letters(key, PART_MAX) && begins_low(key),
        Some((tenant, system)) => {
            let digit = |part: &str| part.starts_with(|letter: char| letter.is_ascii_digit());
            letters(tenant, TENANT_MAX)
                && (begins_low(tenant) || digit(tenant))
                && letters(system, SYSTEM_MAX)
                && begins_low(system)
        }
    }
}

/// Printable, without `,` and `=`, and not ending in a space.
fn is_value(value: &str) -> bool {
    let plain = |byte| matches!(byte, b' '..=b'~') && !matches!(byte, b',' | b'=');
    let length = (1..=PART_MAX).contains(&value.len());
    length && value.bytes().all(plain) && !value.ends_with(' ')
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn lines_are_joined_in_their_order() {
        let mut headers = HeaderMap::new();
        assert_eq!(of(&headers), None);
        headers.append(
            TRACESTATE,
            HeaderValue::from_static("rojo=00f067aa0ba902b7"),
        );
        headers.append(TRACESTATE, HeaderValue::from_static("congo=t61rcWkgMzE"));
        let joined = of(&headers);
        assert_eq!(
            joined.as_deref(),
            Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")
        );
        headers.append(TRACESTATE, HeaderValue::from_static("not a member"));
        assert_eq!(of(&headers), None);
    }

    #[test]
    fn a_list_is_whole_or_nothing() {
        let members = |count: usize| {
            let members: Vec<String> = (0..count).map(|n| format!("k{n}=v")).collect();
            members.join(",")
        };
        let rows = [
            ("a=b", true),
            ("a=b , c=d", true),
            ("a=b,,c=d", true),
            ("fw529a3039@dt=FfSAA", true),
            ("0tenant@sys=1", true),
            ("a= b", true),
            ("", false),
            (" , ", false),
            ("a", false),
            ("=b", false),
            ("a=", false),
            ("a=b=c", false),
            ("A=b", false),
            ("0a=b", false),
            ("a@=b", false),
            ("a@0b=c", false),
            ("a=b,a=c", false),
            ("a=\u{e9}", false),
            ("a=b\u{7f}", false),
            (&members(32), true),
            (&members(33), false),
            (&format!("a={}", "x".repeat(256)), true),
            (&format!("a={}", "x".repeat(257)), false),
            (
                &format!("a={},b={}", "x".repeat(250), "x".repeat(257 - 5)),
                true,
            ),
            (
                &format!("a={},b={}", "x".repeat(256), "x".repeat(256)),
                false,
            ),
        ];
        for (text, valid) in rows {
            assert_eq!(is_valid(text), valid, "{text:?}");
        }
    }
}
