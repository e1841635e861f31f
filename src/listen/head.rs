//! Brings a request's head into the one form that is matched and forwarded, or refuses it.
//!
//! Sources: RFC 9112 section 3.2 (request target and Host), RFC 3986 section 6.2.2 (normal form).

use std::borrow::Cow;

use http::header::{HOST, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{Method, Uri, Version};

use crate::error::{Error, Kind};
use crate::reply::headers::TIMEOUT;
use crate::service::Request;

/// Longest request target, in bytes; a longer one is a 400.
const TARGET_MAX: usize = 8 << 10;

/// Checks the head and rewrites it: afterwards there is exactly one Host (none only for HTTP/1.0), the target is in
/// origin form, and its path has one spelling.
///
/// # Errors
/// [`Kind::BadRequest`] with the rule that was broken.
pub fn canonical(request: &mut Request) -> Result<(), Error> {
    let (mut coded, mut forged) = (false, false);
    for name in request.headers().keys() {
        coded |= *name == TRANSFER_ENCODING;
        forged |= is_ours(name);
    }
    if coded {
        let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
        let exact = codings.next().is_some_and(|first| first == "chunked");
        if !exact || codings.next().is_some() {
            return Err(bad("the only transfer coding taken is exactly `chunked`"));
        }
    }
    one_host(request)?;
    if forged {
        drop_forged(request);
    }
    if request.method() == Method::CONNECT {
        // Its target is an authority and nothing else (RFC 9112 section 3.2.3), which is the Host by now.
        *request.uri_mut() = Uri::from_static("/");
        return Ok(());
    }
    let target = request
        .uri()
        .path_and_query()
        .map_or("/", PathAndQuery::as_str);
    if target == "*" && request.method() != Method::OPTIONS {
        return Err(bad("only OPTIONS may be for `*`"));
    }
    let target = match one_spelling(target)? {
        Cow::Owned(target) => Some(
            PathAndQuery::try_from(target)
                .map_err(|cause| bad("the target is malformed").because(cause))?,
        ),
        Cow::Borrowed(_) if request.uri().authority().is_none() => None,
        Cow::Borrowed(_) => request.uri().path_and_query().cloned(),
    };
    if let Some(target) = target {
        *request.uri_mut() = Uri::from(target);
    }
    Ok(())
}

fn bad(detail: &'static str) -> Error {
    Error::new(Kind::BadRequest, detail)
}

/// Reads a target that came by another way, a record, under the same rules.
///
/// # Errors
/// As [`canonical`].
pub fn target(text: &str) -> Result<PathAndQuery, Error> {
    let target = one_spelling(text)?;
    PathAndQuery::try_from(&*target).map_err(|cause| bad("the target is malformed").because(cause))
}

/// Headers of ours mean something to an app only because nobody else can send them through a door.
fn drop_forged(request: &mut Request) {
    let names = request.headers().keys();
    let forged: Vec<HeaderName> = names.filter(|name| is_ours(name)).cloned().collect();
    for name in forged {
        request.headers_mut().remove(name);
    }
}

/// With an underscore too: CGI and its heirs hand both to an app under one name.
fn is_ours(name: &HeaderName) -> bool {
    name.as_str()
        .strip_prefix("wayside")
        .is_some_and(|rest| rest.starts_with(['-', '_']))
        // The time that a caller gives the call can only shorten ours, so anybody may say it.
        && *name != TIMEOUT
}

/// An absolute-form target replaces Host (RFC 9112 section 3.2.2).
fn one_host(request: &mut Request) -> Result<(), Error> {
    let mut lines = request.headers().get_all(HOST).iter();
    let (first, second) = (lines.next(), lines.next());
    if second.is_some() {
        return Err(bad("there is more than one Host header"));
    }
    let http2 = request.version() >= Version::HTTP_2;
    // HTTP/1.1 has one with an absolute-form target too (RFC 9112 section 3.2).
    let needed = match http2 {
        true => request.uri().authority().is_none(),
        false => request.version() == Version::HTTP_11,
    };
    if first.is_none() && needed {
        return Err(bad("the Host header is missing"));
    }
    if let Some(authority) = request.uri().authority() {
        if !http2 && request.uri().scheme().is_none() && request.method() != Method::CONNECT {
            // RFC 9112 section 3.2.3.
            return Err(bad("only a CONNECT may be for an authority"));
        }
        let same = |host: &HeaderValue| {
            host.as_bytes()
                .eq_ignore_ascii_case(authority.as_str().as_bytes())
        };
        if http2 && !first.is_none_or(same) {
            // RFC 9113 section 8.3.1.
            return Err(bad("the Host header is not what `:authority` says"));
        }
        // On HTTP/2 the scheme only repeats what the connection is.
        if !http2
            && request
                .uri()
                .scheme_str()
                .is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http"))
        {
            return Err(bad(
                "only http:// targets are taken; give the proxy plain HTTP and let it do the TLS",
            ));
        }
        // A user named there ends here; over HTTP/2 there must be none (RFC 9113 section 8.3.1).
        let host = match authority.as_str().rsplit_once('@') {
            Some((_, host)) if !http2 => host,
            _ => authority.as_str(),
        };
        if !is_authority(host.as_bytes()) {
            return Err(bad("the target's host is malformed"));
        }
        if request.method() == Method::CONNECT && authority.port_u16().is_none() {
            // RFC 9110 section 9.3.6.
            return Err(bad("a CONNECT needs a host and a port"));
        }
        let host = HeaderValue::from_str(host)
            .map_err(|cause| bad("the target's host is malformed").because(cause))?;
        request.headers_mut().insert(HOST, host);
        return Ok(());
    }
    match first {
        None => Ok(()),
        Some(host) if is_authority(host.as_bytes()) => Ok(()),
        Some(_) => Err(bad("the Host header is malformed")),
    }
}

/// A DNS name, an IPv4 address or an IPv6 address in brackets, with or without a port. The grammar of RFC 3986 takes far
/// more, such as commas and escapes, that two parsers could read in two ways.
fn is_authority(host: &[u8]) -> bool {
    let (name, port) = match host.iter().rposition(|byte| *byte == b':') {
        Some(at) if !host.ends_with(b"]") => (&host[..at], &host[at + 1..]),
        _ => (host, &b""[..]),
    };
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let literal = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':');
    let named = match name {
        [b'[', address @ .., b']'] => !address.is_empty() && address.iter().all(literal),
        name => !name.is_empty() && name.iter().all(plain),
    };
    named && port.iter().all(u8::is_ascii_digit)
}

/// Gives a target its one spelling: needless percent-escapes are resolved, the others written in upper case.
///
/// What two parsers could read in two ways is refused: dot segments, also when escaped; an escaped NUL; a backslash;
/// a fragment. An escaped slash stays escaped and never separates segments.
fn one_spelling(target: &str) -> Result<Cow<'_, str>, Error> {
    if target.len() > TARGET_MAX {
        let detail = "the request target is over 8192 bytes";
        return Err(Error::new(Kind::TargetTooLong, detail));
    }
    if is_plain(target) {
        return Ok(Cow::Borrowed(target));
    }
    let (path, query) = target
        .split_once('?')
        .map_or((target, None), |(path, query)| (path, Some(query)));
    if path.bytes().any(|byte| matches!(byte, b'\\' | b'#')) {
        return Err(bad("the path has a backslash or a `#`"));
    }
    let path = if path.contains('%') {
        Cow::Owned(resolve_escapes(path)?)
    } else {
        Cow::Borrowed(path)
    };
    if has_dots(&path) {
        return Err(bad("the path has a dot segment"));
    }
    Ok(match (path, query) {
        (Cow::Borrowed(_), _) => Cow::Borrowed(target),
        (Cow::Owned(path), None) => Cow::Owned(path),
        (Cow::Owned(path), Some(query)) => Cow::Owned(format!("{path}?{query}")),
    })
}

/// Whether some server finds a dot segment in a canonical path. With parameters or an escape behind it: some cut `;…` off
/// first, or blanks. And with slashes that are escaped: some resolve these before they look for dots, and would arrive
/// elsewhere than the rule that let the call pass.
fn has_dots(path: &str) -> bool {
    let segments = path
        .split('/')
        .flat_map(|segment| segment.split("%2F"))
        .flat_map(|segment| segment.split("%5C"));
    segments
        .filter_map(|segment| segment.split([';', '%']).next())
        .any(|name| matches!(name, "." | ".."))
}

/// Whether nothing in the path could have a second spelling, as in most calls: one look at each byte.
fn is_plain(target: &str) -> bool {
    let mut before = b'/';
    for byte in target.bytes() {
        match byte {
            b'?' => break,
            b'%' | b'\\' | b'#' => return false,
            b'.' if before == b'/' => return false,
            _ => before = byte,
        }
    }
    true
}

fn resolve_escapes(path: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let code = after
            .get(..2)
            .filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|code| u8::from_str_radix(code, 16).ok())
            .ok_or_else(|| bad("the path has a broken percent-escape"))?;
        match code {
            0 => return Err(bad("the path has an escaped NUL")),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(code))
            }
            _ => out.push_str(&format!("%{code:02X}")),
        }
        rest = &after[2..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;
    use crate::route::Facts;

    fn check(target: &str, hosts: &[&str]) -> Result<(String, String), String> {
        let mut request = http::Request::builder().uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let mut request = request
            .body(Body::empty())
            .map_err(|error| error.to_string())?;
        canonical(&mut request).map_err(|error| error.detail().to_owned())?;
        let facts = Facts::of(&request);
        Ok((facts.host.into_owned(), request.uri().to_string()))
    }

    fn ok(host: &str, target: &str) -> Result<(String, String), String> {
        Ok((host.to_owned(), target.to_owned()))
    }

    #[test]
    fn the_path_has_one_spelling_and_the_query_stays_as_it_was() {
        assert_eq!(
            check("/a/b?x=%41", &["billing"]),
            ok("billing", "/a/b?x=%41")
        );
        assert_eq!(
            check("/%61/%7euser", &["billing"]),
            ok("billing", "/a/~user")
        );
        assert_eq!(check("/a%2fb?q", &["billing"]), ok("billing", "/a%2Fb?q"));
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        for target in [
            "/a/../b",
            "/a/%2e%2e/b",
            "/a/%2E/b",
            "/a%00",
            "/a\\b",
            "/a%zz",
            "/a%4",
            "/a/..;x/b",
            "/a/..%2fb",
            "/a/%2e%2E%2Fb",
            "/a/x%2f..%2f..%2fb",
            "/a%2f..",
            "/a/..%5cb",
            "/a/%5C../b",
            "/a/..%3b/b",
            "/a/..%20/b",
        ] {
            assert!(check(target, &["billing"]).is_err(), "{target} is taken");
        }
    }

    #[test]
    fn an_absolute_target_replaces_the_host() {
        assert_eq!(
            check("http://Billing:80/a?b", &["other"]),
            ok("billing", "/a?b")
        );
        assert!(check("http://Billing:80/a?b", &[]).is_err(), "without one");
        assert!(check("billing:80", &["billing:80"]).is_err());
        assert!(check("https://billing/a", &[]).is_err());
    }

    #[test]
    fn headers_of_ours_can_not_be_forged() {
        let mut request = http::Request::builder()
            .uri("/")
            .header(HOST, "billing")
            .header("wayside-message-id", "forged")
            .body(Body::empty())
            .expect("a valid request");
        canonical(&mut request).expect("nothing is wrong with it");
        assert_eq!(request.headers().len(), 1);
    }

    #[test]
    fn a_missing_double_or_malformed_host_is_refused() {
        assert!(check("/a", &[]).is_err());
        assert!(check("/a", &["a", "b"]).is_err());
        assert!(check("/a", &["a b"]).is_err());
        assert!(check("/a", &["user@a"]).is_err());
        assert_eq!(check("/a", &["[::1]:80"]), ok("[::1]", "/a"));
    }
}
