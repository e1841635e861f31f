//! What the caller would like, as far as we can do it: `Prefer: wait=N` (RFC 7240).

use std::time::Duration;

use http::{HeaderMap, HeaderName};

/// RFC 7240 section 2.
const PREFER: HeaderName = HeaderName::from_static("prefer");
/// The longest wait; a longer one is cut to it.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// How long the caller would wait for the result: whole seconds (section 4.3). Of several preferences of this name the
/// first counts, whichever line it stands in; one that is malformed is none.
pub fn wait(headers: &HeaderMap) -> Option<Duration> {
    let lines = headers
        .get_all(PREFER)
        .iter()
        .filter_map(|line| line.to_str().ok());
    let value = lines
        .flat_map(|line| split(line, ','))
        .find_map(|preference| {
            // Its parameters, of which `wait` has none.
            let pair = split(preference, ';').next()?;
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            name.trim()
                .eq_ignore_ascii_case("wait")
                .then(|| value.trim())
        })?;
    let digits = match value.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"')?,
        None => value,
    };
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    // More digits than fit are a very long wait.
    let seconds = digits.parse().unwrap_or(u64::MAX);
    plain.then(|| Duration::from_secs(seconds).min(WAIT_MAX))
}

/// The parts of a list, where no separator counts that stands within quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |letter| {
        let (within, after_escape) = (quoted, std::mem::take(&mut escaped));
        match letter {
            '"' if !after_escape => quoted = !quoted,
            '\\' if within && !after_escape => escaped = true,
            _ => {}
        }
        letter == separator && !within
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(lines: &[&'static str], expected: Option<u64>) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(PREFER, HeaderValue::from_static(line));
        }
        assert_eq!(
            wait(&headers),
            expected.map(Duration::from_secs),
            "{lines:?}"
        );
    }

    #[test]
    fn the_wait_is_found_among_other_preferences() {
        check(&[], None);
        check(&["wait=2"], Some(2));
        check(&["wait=0"], Some(0));
        check(&["respond-async, wait=10"], Some(10));
        check(
            &["respond-async", "handling=lenient, Wait = 3 ; x=1"],
            Some(3),
        );
        check(&["wait=\"4\""], Some(4));
        check(&["wait=1, wait=2"], Some(1));
        check(&["wait=1", "wait=2"], Some(1));
        check(&["wait=61"], Some(60));
        check(&["wait=99999999999999999999999"], Some(60));
        check(&["x=\"a, wait=9\", wait=5"], Some(5));
        check(&["x=\"a\\\", wait=9\", wait=5"], Some(5));
        check(&["x; wait=9, wait=6"], Some(6));
    }

    #[test]
    fn a_malformed_one_is_none() {
        for line in [
            "wait",
            "wait=",
            "wait=soon",
            "wait=-1",
            "wait=1.5",
            "wait=\"1",
            "wait=1 2",
            "waiting=1",
            "=",
        ] {
            check(&[line], None);
        }
        check(&["wait=soon, wait=1"], None);
    }
}
