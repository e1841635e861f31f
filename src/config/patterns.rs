//! The small languages inside values: host and path rules of a match, paths at the app, JSON pointers.

use super::address::parse_host;
use super::diagnostic::{Invalid, quoted};
use super::model::{HostPattern, PathPattern, Pointer};

/// Tokens of one JSON pointer, at most.
const POINTER_TOKENS_MAX: usize = 32;

/// Reads a host rule: a name, an IP address, or `*.suffix`.
pub(super) fn parse_host_rule(text: &str) -> Result<HostPattern, Invalid> {
    let wrong = |why: &str| Invalid::new(format!("{} is not a host rule: {why}", quoted(text)));
    if text == "*" || text == "**" {
        return Err(wrong("to take every host, leave `host` out"));
    }
    let (suffix, name) = match text.strip_prefix("*.") {
        Some(name) => (true, name),
        None => (false, text),
    };
    if name.contains('*') {
        return Err(wrong("`*` may only be the whole first part, as in *.shop"));
    }
    if let Some((_, rest)) = name.split_once("://") {
        let host = rest.split([':', '/']).next().unwrap_or_default();
        let hint = parse_host(host).is_ok().then(|| host.to_owned());
        return Err(wrong("write the host alone, without a scheme").hint(hint));
    }
    let bracketed = name.starts_with('[') && name.ends_with(']') && !suffix;
    if bracketed
        && name[1..name.len() - 1]
            .parse::<std::net::Ipv6Addr>()
            .is_ok()
    {
        return Ok(HostPattern::Exact(name.to_ascii_lowercase()));
    }
    if let Some((host, _)) = name.rsplit_once(':') {
        let star = if suffix { "*." } else { "" };
        let hint = parse_host(host).is_ok().then(|| format!("{star}{host}"));
        return Err(wrong("leave the port out, it is not compared").hint(hint));
    }
    let host = parse_host(name).map_err(|_| wrong("write a name, an IP address or *.suffix"))?;
    Ok(if suffix {
        HostPattern::Suffix(format!(".{host}"))
    } else {
        HostPattern::Exact(host)
    })
}

/// Reads a path rule: a path, or `/a/**`.
pub(super) fn parse_path_rule(text: &str) -> Result<PathPattern, Invalid> {
    let wrong = |why: &str| Invalid::new(format!("{} is not a path rule: {why}", quoted(text)));
    if text == "/**" {
        return Ok(PathPattern::Any);
    }
    let (prefix, path) = match text.strip_suffix("/**") {
        Some(path) => (true, path),
        None => (false, text),
    };
    if let Some(path) = path.strip_suffix("/*").filter(|path| !path.contains('*')) {
        return Err(wrong("a single `*` is not supported").hint(format!("{path}/**")));
    }
    if path.contains('*') {
        return Err(wrong(
            "`**` may only be the last segment, as in /invoices/**",
        ));
    }
    if path.is_empty() && !prefix {
        return Err(wrong("to take every path, leave `path` out"));
    }
    if prefix && path.ends_with('/') {
        return Err(wrong("it has an empty segment (`//`)"));
    }
    check_path(path).map_err(|(why, hint)| {
        let star = if prefix { "/**" } else { "" };
        wrong(why).hint(hint.map(|hint| format!("{hint}{star}")))
    })?;
    let path = path.to_owned();
    Ok(if prefix {
        PathPattern::Prefix(path)
    } else {
        PathPattern::Exact(path)
    })
}

/// Reads a path at the app.
pub(super) fn parse_path(text: &str) -> Result<String, Invalid> {
    match check_path(text) {
        Ok(()) => Ok(text.to_owned()),
        Err((why, hint)) => {
            Err(Invalid::new(format!("{} is not a path: {why}", quoted(text))).hint(hint))
        }
    }
}

/// Reads a JSON pointer (RFC 6901) of at least one token.
pub(super) fn parse_pointer(text: &str) -> Result<Pointer, Invalid> {
    let wrong = |why: &str| Invalid::new(format!("{} is not a JSON pointer: {why}", quoted(text)));
    let Some(rest) = text.strip_prefix('/') else {
        let plain = text.strip_prefix("$.").unwrap_or(text).replace('.', "/");
        let simple = plain
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || "_-/".contains(letter));
        let hint = (simple && !plain.is_empty()).then(|| format!("/{plain}"));
        return Err(wrong("it must start with `/`").hint(hint));
    };
    if rest.is_empty() {
        return Err(wrong("it must name a field, such as /id"));
    }
    let mut tokens = Vec::new();
    for token in rest.split('/') {
        let mut escapes = token.split('~').skip(1);
        if escapes.any(|after| !after.starts_with(['0', '1'])) {
            return Err(wrong("after `~` comes 0 or 1; `~` itself is written `~0`"));
        }
        tokens.push(token.replace("~1", "/").replace("~0", "~"));
    }
    if tokens.len() > POINTER_TOKENS_MAX {
        return Err(wrong("it is over 32 levels deep"));
    }
    Ok(Pointer(tokens))
}

/// Whether a path is in the one form that calls are compared in: no dot segment, no needless escape.
fn check_path(path: &str) -> Result<(), (&'static str, Option<String>)> {
    if !path.starts_with('/') {
        let hint = path.starts_with(|first: char| first.is_ascii_alphanumeric());
        return Err(("it must start with `/`", hint.then(|| format!("/{path}"))));
    }
    if let Some((before, _)) = path.split_once(['?', '#']) {
        return Err((
            "leave the query and the fragment out",
            Some(before.to_owned()),
        ));
    }
    if path.contains("//") {
        return Err(("it has an empty segment (`//`)", None));
    }
    if path
        .split('/')
        .any(|segment| segment == "." || segment == "..")
    {
        return Err((
            "`.` and `..` never arrive, as they are resolved before",
            None,
        ));
    }
    if path.split('/').nth(1) == Some(".wayside") {
        return Err(("`/.wayside` is reserved for Wayside itself", None));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&byte);
    if !path.bytes().all(allowed) {
        return Err((
            "blanks, letters outside ASCII and the like are written as %XX",
            None,
        ));
    }
    path.split('%').skip(1).try_for_each(check_escape)
}

/// Looks at what follows a `%`.
fn check_escape(after: &str) -> Result<(), (&'static str, Option<String>)> {
    let hex = after
        .get(..2)
        .filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) else {
        return Err(("two hexadecimal digits follow a `%`", None));
    };
    if matches!(byte, 0 | b'/' | b'\\') {
        return Err(("%00, %2F and %5C are refused in every call", None));
    }
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        return Err(("it escapes a character that needs no escape", None));
    }
    if hex.is_some_and(|hex| hex.bytes().any(|digit| digit.is_ascii_lowercase())) {
        return Err(("escapes are written in capitals, as in %2B", None));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_rule_is_a_name_or_a_suffix() {
        let rule = |text| parse_host_rule(text).ok();
        assert_eq!(
            rule("Billing"),
            Some(HostPattern::Exact("billing".to_owned()))
        );
        assert_eq!(
            rule("*.Shop"),
            Some(HostPattern::Suffix(".shop".to_owned()))
        );
        assert_eq!(rule("[::1]"), Some(HostPattern::Exact("[::1]".to_owned())));
        for bad in ["", "*", "a*", "*.*.a", "a:80", "http://a", "a/b", "*."] {
            assert_eq!(rule(bad), None, "{bad}");
        }
        assert_eq!(
            parse_host_rule("*.a:80").unwrap_err().hint.as_deref(),
            Some("*.a")
        );
    }

    #[test]
    fn a_path_rule_is_whole_segments() {
        let rule = |text| parse_path_rule(text).ok();
        assert_eq!(rule("/**"), Some(PathPattern::Any));
        assert_eq!(rule("/a/**"), Some(PathPattern::Prefix("/a".to_owned())));
        assert_eq!(rule("/"), Some(PathPattern::Exact("/".to_owned())));
        assert_eq!(
            rule("/a/%C3%A4"),
            Some(PathPattern::Exact("/a/%C3%A4".to_owned()))
        );
        let bad = [
            "",
            "a",
            "/a?b",
            "/a#b",
            "/**/a",
            "/a**",
            "/a/*",
            "/a//b",
            "/a/../b",
            "//**",
            "/ä",
            "/a b",
            "/%2f",
            "/%41",
            "/%c3",
            "/%",
            "/%2",
            "/.wayside",
            "/.wayside/x",
            "/.wayside/**",
            "*",
        ];
        for text in bad {
            assert_eq!(rule(text), None, "{text}");
        }
        assert_eq!(
            parse_path_rule("/a/*").unwrap_err().hint.as_deref(),
            Some("/a/**")
        );
        assert_eq!(
            parse_path_rule("a/**").unwrap_err().hint.as_deref(),
            Some("/a/**")
        );
    }

    #[test]
    fn a_pointer_is_unescaped_token_by_token() {
        let tokens = |text| parse_pointer(text).unwrap().0;
        assert_eq!(tokens("/customer/id"), ["customer", "id"]);
        assert_eq!(tokens("/a~1b/~01"), ["a/b", "~1"]);
        assert_eq!(tokens("/a//b"), ["a", "", "b"]);
        for bad in ["", "/", "id", "/a~", "/a~2", "$.a"] {
            assert!(parse_pointer(bad).is_err(), "{bad}");
        }
        assert_eq!(
            parse_pointer("$.customer.id").unwrap_err().hint.as_deref(),
            Some("/customer/id")
        );
    }
}
