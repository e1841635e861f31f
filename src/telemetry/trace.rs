//! The W3C trace context: kept as it came, or made where a call brings none.
//!
//! Source: W3C Trace Context Level 1, section 3.2 (`traceparent`); Level 2, section 3.2.2.5 (the flags).

use http::{HeaderMap, HeaderName, HeaderValue};

use super::tracestate::TRACESTATE;

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

/// The flag of a trace that somebody records.
const SAMPLED: u8 = 1;
/// The flag of a trace whose id is random (Level 2). It belongs to the id, so it goes wherever that goes.
const RANDOM: u8 = 2;

impl Trace {
    /// Takes the call's own context, or makes one and adds it to the headers. A context that breaks the format is
    /// replaced, and with it goes what vendors said of it (sections 3.2.4 and 4.3: the vendor then starts a new trace and
    /// must not look at `tracestate`). Says also whether it was given.
    pub fn of(headers: &mut HeaderMap) -> (Self, bool) {
        let given = headers.get(TRACEPARENT).map(|value| value.as_bytes());
        let broken = given.is_some();
        if let Some(trace) = given.and_then(Self::read) {
            return (trace, true);
        }
        if broken {
            headers.remove(TRACESTATE);
        }
        let trace = Self::new();
        headers.insert(TRACEPARENT, trace.header());
        (trace, false)
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

    /// The context of a recorded span of the same trace: `span` in the place of the parent, and the flag that says so.
    pub fn recorded(&self, span: [u8; 8]) -> Self {
        let mut text = self.text;
        // Of a later version nothing but the ids and the known flags is understood, and so passed on (section 3.3).
        text[..2].copy_from_slice(b"00");
        hex(&mut text[36..52], u64::from_be_bytes(span));
        text[53] = b'0';
        text[54] = b'0' + (self.flags() & RANDOM | SAMPLED);
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

    /// Whether who came before records the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags() & SAMPLED != 0
    }

    /// The trace's id.
    pub fn trace_id(&self) -> [u8; 16] {
        bytes(&self.text[3..35])
    }

    /// The id of the span that it names: the parent of whatever comes next.
    pub fn span_id(&self) -> [u8; 8] {
        bytes(&self.text[36..52])
    }

    /// The flags, known and unknown.
    pub(super) fn flags(&self) -> u8 {
        let [flags] = bytes(&self.text[53..55]);
        flags
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads hex digits, two a byte. They were looked at when the context was read.
fn bytes<const N: usize>(digits: &[u8]) -> [u8; N] {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => digit - b'0',
        _ => digit.wrapping_sub(b'a').wrapping_add(10) & 15,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0]) << 4 | value(pair[1]);
    }
    bytes
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
        let (trace, given) = Trace::of(&mut headers);
        assert!(given);
        assert_eq!(trace.header(), GOOD);
        assert_eq!(trace.id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(headers[TRACEPARENT], GOOD);
    }

    #[test]
    fn a_recorded_span_takes_the_parents_place_and_says_so() {
        let trace = Trace::parse(&GOOD.replace("-01", "-00")).unwrap();
        assert!(!trace.is_sampled());
        let span = trace.recorded([0, 0, 0, 0, 0, 0, 0x0a, 0xbc]);
        assert_eq!(
            span.text(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000abc-01"
        );
        assert_eq!(span.span_id(), [0, 0, 0, 0, 0, 0, 0x0a, 0xbc]);
        assert_eq!(trace.span_id(), 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
        assert_eq!(
            span.trace_id(),
            0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes()
        );
    }

    #[test]
    fn of_a_later_version_only_what_is_known_goes_on() {
        let later = format!(
            "{}-more",
            GOOD.replacen("00", "cc", 1).replace("-01", "-fe")
        );
        let trace = Trace::parse(&later).unwrap();
        assert!(!trace.is_sampled());
        assert!(
            trace
                .recorded([1; 8])
                .text()
                .ends_with("-0101010101010101-03")
        );
        assert!(trace.recorded([1; 8]).text().starts_with("00-"));
    }

    #[test]
    fn what_vendors_say_of_a_broken_context_goes_with_it() {
        let state = HeaderValue::from_static("a=b");
        for (parent, kept) in [(Some("no-context"), false), (Some(GOOD), true)] {
            let mut headers = HeaderMap::new();
            headers.insert(TRACESTATE, state.clone());
            let parent = parent.map(HeaderValue::from_static);
            parent.map(|parent| headers.insert(TRACEPARENT, parent));
            assert_eq!(Trace::of(&mut headers).1, kept);
            assert_eq!(headers.contains_key(TRACESTATE), kept);
        }
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
            let (trace, given) = Trace::of(&mut headers);
            assert!(!given);
            assert_ne!(trace.header(), bad);
            assert!(is_valid(trace.text().as_bytes()));
            assert_eq!(headers[TRACEPARENT], trace.header());
        }
    }
}
