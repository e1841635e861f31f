//! Reads server-sent events, as far as our own doors write them.
//!
//! Source: HTML Living Standard section 9.2.6.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::timeout;

/// How long a stream may be silent: it has a comment every ten seconds.
const SILENT: Duration = Duration::from_secs(30);
/// Bytes of one event.
const EVENT_MAX: usize = 1 << 20;

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: String,
}

/// A stream of them.
pub(super) struct Stream {
    body: Incoming,
    text: Vec<u8>,
}

impl Stream {
    pub(super) fn new(body: Incoming) -> Self {
        Self {
            body,
            text: Vec::new(),
        }
    }

    /// The next event; `None` at the stream's end.
    ///
    /// # Errors
    /// It broke off, is silent, or is no such stream.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, String> {
        loop {
            if let Some(event) = take(&mut self.text) {
                return Ok(Some(event));
            }
            let frame = timeout(SILENT, self.body.frame()).await;
            match frame {
                Err(_) => return Err("wayside: the admin door has fallen silent".to_owned()),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    return Err(format!("wayside: the stream broke off: {error}"));
                }
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        self.text.extend_from_slice(data);
                    }
                }
            }
            if self.text.len() > EVENT_MAX {
                return Err("wayside: the admin door sends no events".to_owned());
            }
        }
    }
}

/// Takes the first whole event off a text; comments are left out.
fn take(text: &mut Vec<u8>) -> Option<Event> {
    loop {
        let end = text.windows(2).position(|two| two == b"\n\n")?;
        let block: Vec<u8> = text.drain(..end + 2).collect();
        let block = String::from_utf8_lossy(&block);
        let field = |name: &str| {
            let mut lines = block.lines();
            let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.map(str::to_owned)
        };
        if let Some(data) = field("data") {
            let name = field("event").unwrap_or_default();
            return Some(Event { name, data });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_whole_and_comments_left_out() {
        let mut text =
            b":\n\nevent: message\ndata: {\"a\":1}\n\n:\n\nevent: skipped\ndata: 2\n\neve".to_vec();
        let mut next = || take(&mut text).map(|event| (event.name, event.data));
        assert_eq!(next(), Some(("message".into(), "{\"a\":1}".into())));
        assert_eq!(next(), Some(("skipped".into(), "2".into())));
        assert_eq!(next(), None);
        assert_eq!(text, b"eve");
    }
}
