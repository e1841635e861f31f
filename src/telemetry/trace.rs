//! The W3C trace context: kept as it came, or made where a call brings none.
//!
//! Source: W3C Trace Context Level 1, section 3.2 (`traceparent`).

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header's name.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Bytes of a context, as far as its form is known: what a later version may add behind is left to the header itself.
const LENGTH: usize = 55;

/// The trace context of one call. Plain bytes: it is copied for each thing that a call holds, and counting references
/// would cost more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    text: [u8; LENGTH],
}

impl Trace {
    /// Takes the call's own context, or makes one and adds it to the headers. A context that breaks the format is
    /// replaced (section 3.2.4: the vendor then starts a new trace).
    pub fn of(headers: &mut HeaderMap) -> Self {
        let given = headers
            .get(TRACEPARENT)
            .and_then(|value| Self::read(value.as_bytes()));
        given.unwrap_or_else(|| {
            let trace = Self::new();
            headers.insert(TRACEPARENT, trace.header());
            trace
        })
    }

    /// Makes a new, unsampled context.
    pub fn new() -> Self {
        // Digit by digit: made for most calls, and the formatter costs ten times as much.
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        hex(&mut text[3..19], fastrand::u64(1..));
        hex(&mut text[19..35], fastrand::u64(..));
        hex(&mut text[36..52], fastrand::u64(1..));
        Self { text }
    }

    /// Takes a header's text if it has the right form.
    pub fn parse(text: &str) -> Option<Self> {
        Self::read(text.as_bytes())
    }

    fn read(text: &[u8]) -> Option<Self> {
        let known = text.get(..LENGTH)?.try_into().ok()?;
        is_valid(text).then_some(Self { text: known })
    }

    /// The whole header.
    pub fn header(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// The whole header's text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.text).unwrap_or_default()
    }

    /// The 32 hex digits that name the trace: what every log line of the call carries.
    pub fn id(&self) -> &str {
        self.text().get(3..35).unwrap_or_default()
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes a number's 16 digits.
fn hex(digits: &mut [u8], number: u64) {
    let digit = |half: u8| half + if half < 10 { b'0' } else { b'a' - 10 };
    for (pair, byte) in digits.chunks_exact_mut(2).zip(number.to_be_bytes()) {
        pair[0] = digit(byte >> 4);
        pair[1] = digit(byte & 15);
    }
}

fn is_valid(text: &[u8]) -> bool {
    let hex = |part: &[u8]| {
        part.iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let zero = |part: &[u8]| part.iter().all(|byte| *byte == b'0');
    if text.len() < 55 || [2, 35, 52].iter().any(|at| text[*at] != b'-') {
        return false;
    }
    let (version, trace, span, flags) = (&text[..2], &text[3..35], &text[36..52], &text[53..55]);
    let length_fits = if version == b"00" {
        text.len() == 55
    } else {
        text.len() == 55 || text[55] == b'-'
    };
    let parts_fit = [version, trace, span, flags].into_iter().all(hex);
    parts_fit && length_fits && version != b"ff" && !zero(trace) && !zero(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_new_context_is_one_of_its_own() {
        let (one, other) = (Trace::new(), Trace::new());
        assert!(is_valid(one.text().as_bytes()), "{one:?}");
        assert_ne!(one, other);
    }

    #[test]
    fn a_good_context_is_kept_untouched() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(GOOD));
        let trace = Trace::of(&mut headers);
        assert_eq!(trace.header(), GOOD);
        assert_eq!(trace.id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(headers[TRACEPARENT], GOOD);
    }

    #[test]
    fn a_bad_or_missing_context_is_replaced() {
        for bad in [
            "",
            "00-0-0-0",
            &GOOD.replace('4', "X"),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from_str(bad).expect("ascii"));
            let trace = Trace::of(&mut headers);
            assert_ne!(trace.header(), bad);
            assert!(is_valid(trace.text().as_bytes()));
            assert_eq!(headers[TRACEPARENT], trace.header());
        }
    }
}
