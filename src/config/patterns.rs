//! The small languages inside values: host and path rules of a match, paths at the app, JSON pointers.

use super::address::parse_host;
use super::diagnostic::{Invalid, quoted};
use super::model::{HostPattern, PathPattern, PathRewrite, Piece, Pointer, Wanted};

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

/// Reads a path rule: a path, `/a/**`, or one with free segments such as `/orders/{id}`.
pub(super) fn parse_path_rule(text: &str) -> Result<PathPattern, Invalid> {
    let wrong = |why: &str| Invalid::new(format!("{} is not a path rule: {why}", quoted(text)));
    if text == "/**" {
        return Ok(PathPattern::Any);
    }
    if text.contains(['{', '}']) {
        return parse_template(text);
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

/// Reads a path rule with free segments.
fn parse_template(text: &str) -> Result<PathPattern, Invalid> {
    let wrong = |why: &str| Invalid::new(format!("{} is not a path rule: {why}", quoted(text)));
    let (open, path) = match text.strip_suffix("/**") {
        Some(path) => (true, path),
        None => (false, text),
    };
    if path.contains('*') {
        return Err(wrong(
            "`**` may only be the last segment, as in /orders/{id}/**",
        ));
    }
    let mut names: Vec<String> = Vec::new();
    let mut segments = Vec::new();
    for segment in path.split('/').skip(1) {
        match free_segment(segment).map_err(wrong)? {
            None => segments.push(Some(segment.to_owned())),
            Some(name) if names.iter().any(|known| known == name) => {
                return Err(wrong("it has two free segments of one name"));
            }
            Some(name) => {
                names.push(name.to_owned());
                segments.push(None);
            }
        }
    }
    let literal = path.replace(['{', '}'], "");
    check_path(&literal).map_err(|(why, _)| wrong(why))?;
    Ok(PathPattern::Template {
        segments,
        names,
        open,
    })
}

/// The name of a free segment, `{name}`.
fn free_segment(segment: &str) -> Result<Option<&str>, &'static str> {
    let Some(name) = segment
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
    else {
        return match segment.contains(['{', '}']) {
            true => Err("a free segment is `{name}` and nothing else between two slashes"),
            false => Ok(None),
        };
    };
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-';
    if name.is_empty() || !name.chars().all(plain) {
        return Err("a free segment is called by letters, digits, `_` and `-`");
    }
    Ok(Some(name))
}

/// Reads how a path that `rule` took is changed: what the rule fixed is replaced, free segments are called by name.
pub(super) fn parse_rewrite(text: &str, rule: &PathPattern) -> Result<PathRewrite, Invalid> {
    let wrong = |why: &str| Invalid::new(format!("{} is not a path to write: {why}", quoted(text)));
    let literal = text.strip_suffix("/**").unwrap_or(text);
    if !(literal.is_empty() && text == "/**") {
        check_path(&literal.replace(['{', '}'], "")).map_err(|(why, _)| wrong(why))?;
    }
    let fixed = match rule {
        PathPattern::Any => 0,
        PathPattern::Exact(path) | PathPattern::Prefix(path) => path.len(),
        PathPattern::Template { .. } => return rewrite_template(text, rule),
    };
    if text.contains(['{', '}', '*']) {
        let why =
            "there is no such free segment in `match.path`; what follows a prefix stays by itself";
        return Err(wrong(why));
    }
    let by = match rule {
        PathPattern::Exact(_) => text,
        _ => text.trim_end_matches('/'),
    };
    Ok(PathRewrite::Prefix {
        instead_of: fixed,
        by: by.to_owned(),
    })
}

fn rewrite_template(text: &str, rule: &PathPattern) -> Result<PathRewrite, Invalid> {
    let wrong = |why: &str| Invalid::new(format!("{} is not a path to write: {why}", quoted(text)));
    let PathPattern::Template {
        segments,
        names,
        open,
    } = rule
    else {
        return Err(wrong("`match.path` has no free segment"));
    };
    let free: Vec<usize> = (0..segments.len())
        .filter(|at| segments[*at].is_none())
        .collect();
    let (rest, path) = match text.strip_suffix("/**") {
        Some(path) => (true, path),
        None => (false, text),
    };
    if rest && !open {
        return Err(wrong("`match.path` has no `/**` whose rest it could be"));
    }
    let mut pieces: Vec<Piece> = Vec::new();
    let mut said = String::new();
    for segment in path.split('/').skip(1) {
        said.push('/');
        let Some(name) = free_segment(segment).map_err(wrong)? else {
            said.push_str(segment);
            continue;
        };
        let Some(nth) = names.iter().position(|known| known == name) else {
            return Err(wrong("`match.path` has no free segment of this name"));
        };
        pieces.push(Piece::Text(std::mem::take(&mut said)));
        pieces.push(Piece::Segment(free[nth]));
    }
    if !said.is_empty() {
        pieces.push(Piece::Text(said));
    }
    if rest {
        pieces.push(Piece::Rest(segments.len()));
    }
    Ok(PathRewrite::Template(pieces))
}

/// Reads what a value must be: `*`, `begins*` or the whole of it.
pub(super) fn parse_wanted(text: &str) -> Result<Wanted, Invalid> {
    let wrong = |why: &str| Invalid::new(format!("{} is not a value: {why}", quoted(text)));
    if text == "*" {
        return Ok(Wanted::Any);
    }
    let (prefix, value) = match text.strip_suffix('*') {
        Some(value) => (true, value),
        None => (false, text),
    };
    if value.contains('*') {
        return Err(wrong("a `*` may only stand at the end"));
    }
    if !value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) || value.trim() != value {
        return Err(wrong("only visible ASCII can be compared"));
    }
    Ok(match prefix {
        true => Wanted::Prefix(value.to_owned()),
        false => Wanted::Exact(value.to_owned()),
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
        return Err((
            "a rule names no %00, %2F or %5C: the first is refused in every call, and the others separate nothing",
            None,
        ));
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
    fn free_segments_have_names_and_can_be_written_elsewhere() {
        let rule = parse_path_rule("/orders/{id}/lines/{line}/**").unwrap();
        let PathPattern::Template {
            segments,
            names,
            open,
        } = &rule
        else {
            panic!("{rule:?}");
        };
        assert_eq!(segments[0].as_deref(), Some("orders"));
        assert_eq!((segments[1].as_deref(), *open), (None, true));
        assert_eq!(names, &["id", "line"]);
        let pieces = match parse_rewrite("/v2/{line}/of/{id}/**", &rule).unwrap() {
            PathRewrite::Template(pieces) => pieces,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            pieces,
            [
                Piece::Text("/v2/".to_owned()),
                Piece::Segment(3),
                Piece::Text("/of/".to_owned()),
                Piece::Segment(1),
                Piece::Rest(4)
            ]
        );
        for bad in [
            "/a/{",
            "/a/{}",
            "/a/x{id}",
            "/{a}/{a}",
            "/{a b}",
            "/{a}/**/b",
        ] {
            assert!(parse_path_rule(bad).is_err(), "{bad}");
        }
        for bad in ["v2", "/{other}", "/a?b", "/x{id}"] {
            assert!(parse_rewrite(bad, &rule).is_err(), "{bad}");
        }
        let prefix = PathPattern::Prefix("/a".to_owned());
        assert!(parse_rewrite("/{id}", &prefix).is_err());
        assert_eq!(
            parse_rewrite("/b/", &prefix).ok(),
            Some(PathRewrite::Prefix {
                instead_of: 2,
                by: "/b".to_owned()
            })
        );
    }

    #[test]
    fn a_value_is_whole_begun_or_any() {
        assert_eq!(parse_wanted("*").ok(), Some(Wanted::Any));
        assert_eq!(
            parse_wanted("spiffe://shop/*").ok(),
            Some(Wanted::Prefix("spiffe://shop/".to_owned()))
        );
        assert_eq!(
            parse_wanted("acme").ok(),
            Some(Wanted::Exact("acme".to_owned()))
        );
        for bad in ["*a", "a*b*", "ä", " a", "a\n"] {
            assert!(parse_wanted(bad).is_err(), "{bad:?}");
        }
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
