//! Names of the headers that Wayside adds.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

/// On every response: which pattern carried the call.
pub const PATTERN: HeaderName = HeaderName::from_static("wayside-pattern");
/// On a delivery, and on the answer to a caller who waited for the result: the message's id.
pub const MESSAGE_ID: HeaderName = HeaderName::from_static("wayside-message-id");
/// On a delivery: the attempt's number, from 1.
pub const ATTEMPT: HeaderName = HeaderName::from_static("wayside-attempt");
/// On a delivery of a slim message: where the whole body is.
pub const CLAIM: HeaderName = HeaderName::from_static("wayside-claim");
/// On a delivery that should have been hydrated and was not: why, in the word of the refusal.
pub const HYDRATION: HeaderName = HeaderName::from_static("wayside-hydration");
/// On an app's answer to a delivery: its verdict in a word, above its status. On that answer given to a caller who
/// waited for it: the verdict it had.
pub const VERDICT: HeaderName = HeaderName::from_static("wayside-verdict");
/// On a forwarded call: whole milliseconds until its caller gives up.
pub const TIMEOUT: HeaderName = HeaderName::from_static("wayside-timeout");
/// W3C Server Timing.
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// RFC 9209.
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// RFC 7240 section 3.
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// RFC 9530 section 3.
pub const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
/// Everything below this path is ours, whatever the Host.
pub const RESERVED: &str = "/.wayside/";

/// Says which pattern carried a call.
pub fn set_pattern(headers: &mut HeaderMap, pattern: &'static str) {
    if pattern != "-" {
        headers.insert(PATTERN, HeaderValue::from_static(pattern));
    }
}

/// Among a response's extensions: the pattern that carried the call, where it is not its route's.
#[derive(Debug, Clone, Copy)]
pub struct Carried(pub &'static str);

/// A header's value in the making, on the stack: it is copied once, and the formatter costs more than the rest of a hop.
/// What does not fit is left out.
pub struct Text {
    bytes: [u8; 192],
    length: usize,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            bytes: [0; 192],
            length: 0,
        }
    }
}

impl Text {
    /// Adds text.
    pub fn push(&mut self, text: &str) {
        let end = self.length + text.len();
        if let Some(space) = self.bytes.get_mut(self.length..end) {
            space.copy_from_slice(text.as_bytes());
            self.length = end;
        }
    }

    /// Adds a number.
    pub fn push_number(&mut self, number: u64) {
        self.push(itoa::Buffer::new().format(number));
    }

    /// Adds a time in milliseconds, to a hundredth.
    pub fn push_millis(&mut self, time: Duration) {
        let hundredths = time
            .as_secs()
            .saturating_mul(100_000)
            .saturating_add(u64::from(time.subsec_micros() / 10));
        self.push_number(hundredths / 100);
        let digits = [
            b'0' + (hundredths / 10 % 10) as u8,
            b'0' + (hundredths % 10) as u8,
        ];
        self.push(".");
        self.push(std::str::from_utf8(&digits).unwrap_or("00"));
    }

    /// What was added.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_to_a_hundredth_of_a_millisecond() {
        for (micros, expected) in [
            (0, "0.00"),
            (9, "0.00"),
            (10, "0.01"),
            (1_239, "1.23"),
            (60_000_000, "60000.00"),
        ] {
            let mut text = Text::default();
            text.push_millis(Duration::from_micros(micros));
            assert_eq!(text.bytes(), expected.as_bytes());
        }
        let mut text = Text::default();
        text.push(&"x".repeat(200));
        text.push("short");
        assert_eq!(text.bytes(), b"short", "what does not fit is left out");
    }
}
