//! What a proxy removes and adds at each hop.
//!
//! Sources: RFC 9110 sections 7.6.1 (Connection), 7.6.2 (Max-Forwards), 7.6.3 (Via); RFC 9112 section 6 (framing).

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, MAX_FORWARDS, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::Body as _;

use crate::body::Body;
use crate::error::{Error, Kind};
use crate::service::Request;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Headers that end at this hop, whatever Connection says, and those of a request that are looked at besides. Each is
/// a bit of what [`found`] finds. `te` is rewritten, not just removed.
const LOOKED_FOR: [HeaderName; 13] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HTTP2_SETTINGS,
    VIA,
    EXPECT,
    COOKIE,
    CONTENT_LENGTH,
];
/// How many of them are hop-by-hop.
const HOP_BY_HOP: usize = 9;
const HAS_CONNECTION: u16 = 1;
const HAS_TE: u16 = 1 << 3;
const HAS_TRANSFER_ENCODING: u16 = 1 << 4;
const HAS_VIA: u16 = 1 << 9;
const HAS_EXPECT: u16 = 1 << 10;
const HAS_COOKIE: u16 = 1 << 11;
const HAS_CONTENT_LENGTH: u16 = 1 << 12;

/// Names that one Connection header may list; more is an attack, not a message.
const NOMINATED_MAX: usize = 16;

/// This sidecar's name in Via, one a door and process, so that a second pass shows.
#[derive(Debug, Clone)]
pub struct Via {
    value: HeaderValue,
}

impl Via {
    /// Makes the name from words of `a-z 0-9 -`.
    pub fn new(service: &str, door: &str) -> Self {
        let text = format!("1.1 {service}-{door}-{:08x}", fastrand::u32(..));
        Self {
            value: HeaderValue::from_str(&text)
                .unwrap_or_else(|_| HeaderValue::from_static("1.1 wayside")),
        }
    }

    fn pseudonym(&self) -> &[u8] {
        self.value.as_bytes().get(4..).unwrap_or_default()
    }
}

/// Whether the request that came in had a body, and of which kind; decided before its headers are cleaned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// A Content-Length tells.
    Length,
    /// Chunked.
    Chunked,
}

/// Makes a request fit to be sent on: hop-by-hop headers are gone, framing is stated anew, our
/// own headers are added last.
///
/// # Errors
/// [`Kind::Loop`] when the call was here before; [`Kind::BadRequest`] for a Connection header that lists too much.
pub fn clean_request(request: &mut Request, via: &Via) -> Result<Framing, Error> {
    let framing = framing_of(request.body());
    let (method, version) = (request.method().clone(), request.version());
    let headers = request.headers_mut();
    let found = found(headers);
    if version == http::Version::HTTP_2 && found & HAS_COOKIE != 0 {
        join_cookies(headers);
    }
    let been_here = |line: &HeaderValue| contains(line.as_bytes(), via.pseudonym());
    if found & HAS_VIA != 0 && headers.get_all(VIA).iter().any(been_here) {
        return Err(Error::new(
            Kind::Loop,
            "this sidecar has forwarded the call already",
        ));
    }
    let trailers = |line: &HeaderValue| lists(line, "trailers");
    let trailers_wanted = found & HAS_TE != 0 && headers.get_all(TE).iter().any(trailers);
    strip(headers, found)?;
    if found & HAS_EXPECT != 0 {
        // hyper never waits for the other side's 100, and answers it to the caller when the body is first read.
        headers.remove(EXPECT);
    }
    let bodiless = method == Method::GET || method == Method::HEAD;
    if framing == Framing::Chunked {
        // Said explicitly: without it hyper drops the body of a GET or HEAD.
        headers.remove(CONTENT_LENGTH);
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    } else if framing == Framing::None && bodiless && found & HAS_CONTENT_LENGTH != 0 {
        headers.remove(CONTENT_LENGTH);
    }
    if trailers_wanted {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    headers.append(VIA, via.value.clone());
    Ok(framing)
}

/// Makes a response fit to be sent back.
///
/// # Errors
/// [`Kind::BadAnswer`] for a Connection header that lists too much.
pub fn clean_response(headers: &mut HeaderMap, status: StatusCode) -> Result<(), Error> {
    let found = found(headers);
    if found & HAS_TRANSFER_ENCODING != 0 {
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        let chunked = |line: &HeaderValue| line.as_bytes().eq_ignore_ascii_case(b"chunked");
        if !(codings.next().is_some_and(chunked) && codings.next().is_none()) {
            // Taken off here, its bytes would reach the caller as something that they are not.
            let detail = "the service's answer has a transfer coding other than chunked";
            return Err(Error::new(Kind::BadAnswer, detail));
        }
        // With both, chunked is what was read (RFC 9112 section 6.3); passed on with both, hyper would send nothing.
        headers.remove(CONTENT_LENGTH);
    } else if found & HAS_CONTENT_LENGTH != 0 {
        one_length(headers, status)?;
    }
    strip(headers, found).map_err(|error| Error::new(Kind::BadAnswer, error.detail().to_owned()))
}

/// Leaves one length, a number, and none where the status has no body and says nothing of one (RFC 9110 section 8.6). An
/// answer to HEAD and a 304 may say one that nobody reads here; the caller's side would trip over it.
fn one_length(headers: &mut HeaderMap, status: StatusCode) -> Result<(), Error> {
    if status == StatusCode::NO_CONTENT {
        headers.remove(CONTENT_LENGTH);
        return Ok(());
    }
    let number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let mut lines = headers.get_all(CONTENT_LENGTH).iter();
    let first = lines.next().map(HeaderValue::as_bytes).unwrap_or_default();
    if number(first) && lines.next().is_none() {
        return Ok(());
    }
    let lines = headers.get_all(CONTENT_LENGTH).iter();
    let mut lengths = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let first = lengths.next().unwrap_or_default().trim_ascii();
    if !number(first) || lengths.any(|other| other.trim_ascii() != first) {
        let detail = "the service's answer has a length that is none, or more than one";
        return Err(Error::new(Kind::BadAnswer, detail));
    }
    let value = HeaderValue::from_bytes(first)
        .map_err(|cause| Error::new(Kind::BadAnswer, "no length").because(cause))?;
    headers.insert(CONTENT_LENGTH, value);
    Ok(())
}

/// Takes out of trailers what frames or belongs to the connection (RFC 9110 section 6.5.1): over HTTP/2 it would break the
/// whole answer.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    for name in LOOKED_FOR.iter().take(HOP_BY_HOP) {
        trailers.remove(name);
    }
    for name in [CONTENT_LENGTH, HOST, TRAILER] {
        trailers.remove(name);
    }
}

/// The protocol that a caller wants to switch to, if this hop lets it: one token, and not HTTP/2, which is spoken with
/// prior knowledge only.
pub fn upgrade(request: &Request) -> Option<HeaderValue> {
    let headers = request.headers();
    let asked = headers
        .get_all(CONNECTION)
        .iter()
        .any(|line| lists(line, "upgrade"));
    let token = headers.get(UPGRADE).filter(|_| asked)?;
    let text = token.to_str().ok()?;
    let one = !text.contains(',') && !text.trim().is_empty();
    (one && !text.trim().eq_ignore_ascii_case("h2c")).then(|| token.clone())
}

/// HTTP/2 may send a Cookie in several lines; everything else wants them in one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let lines: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if lines.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Counts one hop of an OPTIONS down. `true`: this hop is the last and must answer itself.
pub fn last_hop(request: &mut Request) -> bool {
    if request.method() != Method::OPTIONS {
        return false;
    }
    let left = request
        .headers()
        .get(MAX_FORWARDS)
        .and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    match left {
        Some(0) => true,
        Some(left) => {
            request
                .headers_mut()
                .insert(MAX_FORWARDS, HeaderValue::from(left - 1));
            false
        }
        None => false,
    }
}

/// Which of [`LOOKED_FOR`] are there: one pass, since most calls carry few of them and each look-up hashes its name.
fn found(headers: &HeaderMap) -> u16 {
    let mut found = 0_u16;
    for name in headers.keys() {
        // By length first: it tells most names apart at once.
        let at = match name.as_str().len() {
            2 => Some(3),
            3 => Some(9),
            6 if *name == EXPECT => Some(10),
            6 => Some(11),
            7 => Some(5),
            10 if *name == CONNECTION => Some(0),
            10 => Some(1),
            14 if *name == HTTP2_SETTINGS => Some(8),
            14 => Some(12),
            16 => Some(2),
            17 => Some(4),
            18 => Some(6),
            19 => Some(7),
            _ => None,
        };
        if let Some(at) = at.filter(|at| LOOKED_FOR[*at] == *name) {
            found |= 1 << at;
        }
    }
    found
}

fn strip(headers: &mut HeaderMap, found: u16) -> Result<(), Error> {
    if found & HAS_CONNECTION != 0 {
        for name in nominated(headers)? {
            headers.remove(name);
        }
    }
    for (at, name) in LOOKED_FOR.iter().enumerate().take(HOP_BY_HOP) {
        if found & (1 << at) != 0 {
            headers.remove(name);
        }
    }
    Ok(())
}

/// Takes names off the Connection lines, so that these headers do not end at this hop: what a route sets is not the
/// caller's to list away.
pub fn unlist(headers: &mut HeaderMap, ours: impl Fn(&str) -> bool) {
    if !headers.contains_key(CONNECTION) {
        return;
    }
    let kept: Vec<HeaderValue> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|line| {
            let Ok(text) = line.to_str() else {
                return Some(line.clone());
            };
            let tokens = text.split(',').map(str::trim);
            let tokens: Vec<&str> = tokens.filter(|token| !ours(token)).collect();
            HeaderValue::from_str(&tokens.join(", ")).ok()
        })
        .collect();
    headers.remove(CONNECTION);
    for line in kept {
        headers.append(CONNECTION, line);
    }
}

/// What the Connection lines list, all lines read. Names that steer the call or identify somebody can not be listed
/// away: that is how hop-by-hop headers are abused.
fn nominated(headers: &HeaderMap) -> Result<Vec<HeaderName>, Error> {
    let mut names = Vec::new();
    for line in headers.get_all(CONNECTION) {
        if line == "keep-alive" || line == "close" {
            // What most lines say, and it names no header.
            continue;
        }
        let line = line
            .to_str()
            .map_err(|_| Error::new(Kind::BadRequest, "the Connection header is malformed"))?;
        for token in line
            .split(',')
            .map(str::trim)
            .filter(|token| !token.is_empty())
        {
            if names.len() == NOMINATED_MAX {
                return Err(Error::new(
                    Kind::BadRequest,
                    "the Connection header lists too many names",
                ));
            }
            if let Ok(name) = HeaderName::from_bytes(token.as_bytes())
                && !is_end_to_end(&name)
            {
                names.push(name);
            }
        }
    }
    Ok(names)
}

fn is_end_to_end(name: &HeaderName) -> bool {
    let text = name.as_str();
    name == HOST
        || name == CONTENT_LENGTH
        || name == VIA
        || matches!(
            text,
            "authorization"
                | "cookie"
                | "forwarded"
                | "traceparent"
                | "tracestate"
                | "content-type"
        )
        || text.starts_with("x-forwarded-")
        || text.starts_with("wayside-")
}

fn lists(line: &HeaderValue, wanted: &str) -> bool {
    line.to_str().is_ok_and(|line| {
        line.split(',')
            .any(|token| token.trim().eq_ignore_ascii_case(wanted))
    })
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}

/// Whether a method may run twice without harm (RFC 9110 section 9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

fn framing_of(body: &Body) -> Framing {
    match body {
        body if body.is_end_stream() => Framing::None,
        body if body.size_hint().exact().is_some() => Framing::Length,
        _ => Framing::Chunked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(lines: &[(&str, &str)]) -> Request {
        let mut request = http::Request::builder().uri("/").header(HOST, "billing");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).expect("a valid request")
    }

    #[test]
    fn every_connection_line_is_read_and_identity_can_not_be_listed_away() {
        let mut request = request(&[
            ("connection", "close, X-One"),
            ("connection", "x-two, Authorization, host"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("authorization", "Bearer t"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers, deflate"),
            ("upgrade", "h2c"),
        ]);
        clean_request(&mut request, &Via::new("orders", "outbound"))
            .expect("nothing is wrong with it");
        let mut names: Vec<&str> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "connection", "host", "te", "via"]);
        assert_eq!(request.headers()[TE], "trailers");
    }

    #[test]
    fn a_second_pass_is_a_loop_and_another_sidecars_is_not() {
        let via = Via::new("orders", "outbound");
        let mut call = request(&[]);
        clean_request(&mut call, &via).expect("first pass");
        clean_request(&mut call, &Via::new("orders", "outbound")).expect("another process");
        let error = clean_request(&mut call, &via).expect_err("second pass");
        assert_eq!(error.kind(), Kind::Loop);
    }

    #[test]
    fn a_response_with_both_framings_keeps_the_one_that_was_read() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("5"));
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        clean_response(&mut headers, StatusCode::OK).expect("nothing is wrong with it");
        assert!(headers.is_empty());
    }

    #[test]
    fn every_name_that_is_looked_for_is_found_by_its_length() {
        for (at, name) in LOOKED_FOR.iter().enumerate() {
            let mut headers = HeaderMap::new();
            headers.insert(name.clone(), HeaderValue::from_static("x"));
            assert_eq!(found(&headers), 1 << at, "{name}");
        }
        let mut headers = HeaderMap::new();
        for other in [
            "ab",
            "abc",
            "origin",
            "referer",
            "user-agent",
            "x-fourteen-let",
            "accept-encoding",
        ] {
            headers.insert(other, HeaderValue::from_static("x"));
        }
        assert_eq!(found(&headers), 0);
    }

    #[test]
    fn max_forwards_counts_down_to_the_last_hop() {
        let mut call = request(&[("max-forwards", "1")]);
        *call.method_mut() = Method::OPTIONS;
        assert!(!last_hop(&mut call));
        assert_eq!(call.headers()[MAX_FORWARDS], "0");
        assert!(last_hop(&mut call));
    }
}
