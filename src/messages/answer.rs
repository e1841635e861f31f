//! What an app answered to the delivery that ended a message, as far as it is kept for whoever sent it.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};

/// Bytes of an answer's body that are kept; of a longer one only the status and the headers are.
pub const BODY_MAX: usize = 64 << 10;
/// Header lines of an answer that are kept.
const LINES_MAX: usize = 64;
/// Bytes of them, names included.
const HEAD_MAX: usize = 8 << 10;

/// An app's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status, 200 to 599.
    pub status: StatusCode,
    /// Its headers that travel; see [`travels`].
    pub headers: HeaderMap,
    /// Its body; `None` if that is over [`BODY_MAX`]: a part of it would pass for the whole.
    pub body: Option<Bytes>,
}

impl Answer {
    /// Keeps what may be kept of an answer; `None` for a status that ends nothing.
    pub fn new(status: StatusCode, headers: &HeaderMap, body: Option<Bytes>) -> Option<Self> {
        if !(200..600).contains(&status.as_u16()) {
            return None;
        }
        let mut kept = HeaderMap::new();
        let mut bytes = 0;
        for (name, value) in headers {
            bytes += name.as_str().len() + value.len();
            let fits = kept.len() < LINES_MAX && bytes <= HEAD_MAX;
            // A value that is not plain text has no place in a receipt, which is JSON.
            if fits && travels(name) && value.to_str().is_ok() {
                kept.append(name, value.clone());
            }
        }
        Some(Self {
            status,
            headers: kept,
            body: body.filter(|body| body.len() <= BODY_MAX),
        })
    }

    /// Its header lines as text.
    pub(super) fn lines(&self) -> impl Iterator<Item = (&str, &str)> {
        let lines = self.headers.iter();
        lines.filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
    }

    /// What it takes in memory, about.
    pub(super) fn bytes(&self) -> usize {
        let lines = self.headers.iter();
        let head: usize = lines
            .map(|(name, value)| name.as_str().len() + value.len() + 32)
            .sum();
        head + self.body.as_ref().map_or(0, Bytes::len)
    }
}

/// Whether a header of an answer travels: not those of the connection, of the body's framing, of ours, nor those that
/// would leave a credential in a topic.
fn travels(name: &HeaderName) -> bool {
    let begins = |prefix| name.as_str().starts_with(prefix);
    let ours = begins("wayside-") || begins("wayside_");
    let credential = begins("set-cookie") || begins("proxy-");
    let connection = matches!(
        name.as_str(),
        "connection"
            | "content-length"
            | "keep-alive"
            | "preference-applied"
            | "server-timing"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    );
    !ours && !credential && !connection
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(lines: &[(&str, &[u8])]) -> HeaderMap {
        let line = |(name, value): &(&str, &[u8])| {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            (name, HeaderValue::from_bytes(value).unwrap())
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn what_is_kept_is_bounded_and_nobodys_credential() {
        let given = headers(&[
            ("content-type", b"text/plain"),
            ("location", b"/invoices/7"),
            ("set-cookie", b"session=1"),
            ("wayside-verdict", b"done"),
            ("connection", b"close"),
            ("content-length", b"3"),
            ("x-latin", b"\xe9"),
        ]);
        let answer = Answer::new(StatusCode::CREATED, &given, Some("abc".into())).unwrap();
        let names: Vec<_> = answer.lines().map(|(name, _)| name).collect();
        assert_eq!(names, ["content-type", "location"]);
        assert_eq!(answer.body.as_deref(), Some(&b"abc"[..]));
        let large = Bytes::from(vec![b'x'; BODY_MAX + 1]);
        let answer = Answer::new(StatusCode::OK, &given, Some(large)).unwrap();
        assert_eq!(answer.body, None, "never a part of it");
        let many: HeaderMap = (0..200)
            .map(|n| (format!("x-{n}").parse().unwrap(), HeaderValue::from(n)))
            .collect();
        let answer = Answer::new(StatusCode::OK, &many, None).unwrap();
        assert_eq!(answer.headers.len(), LINES_MAX);
        assert_eq!(Answer::new(StatusCode::CONTINUE, &many, None), None);
    }
}
