//! A receipt: what a receiver tells a message's origin of it. One object of the JSON array that is a record's value.
//!
//! docs/record.md has the table. Whoever can write the reply topic can write receipts, so nothing in one is believed
//! beyond its bounds, and none tells of more than one message.

use std::borrow::Cow;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::answer::{Answer, BODY_MAX};
use super::event::{Event, What};

/// Receipts of one record that are read.
const RECEIPTS_MAX: usize = 4096;
/// Letters of an origin.
const ORIGIN_MAX: usize = 507;
/// Letters of a group's name.
const GROUP_MAX: usize = 249;
/// What a receiver can know of.
const KNOWN: [What; 5] = [
    What::Delivered,
    What::NotSent,
    What::Done,
    What::Dead,
    What::Dropped,
];

/// One receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The message.
    pub id: Uuid,
    /// The sidecar that published it: `service/instance`, as its record says.
    pub origin: String,
    /// The consumer group whose sidecar tells this.
    pub group: String,
    /// What happened: `delivered`, `not-sent`, `done`, `dead` or `dropped`.
    pub event: Event,
    /// What the app answered to the delivery that ended the message.
    pub answer: Option<Answer>,
}

#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    origin: Cow<'a, str>,
    #[serde(borrow)]
    group: Cow<'a, str>,
    #[serde(borrow)]
    at: Cow<'a, str>,
    #[serde(borrow)]
    what: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    aside: bool,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    answer: Option<WireAnswer<'a>>,
}

#[derive(Serialize, Deserialize)]
struct WireAnswer<'a> {
    #[serde(borrow, default)]
    headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    body: Option<Cow<'a, str>>,
}

impl Receipt {
    /// Writes it.
    pub fn to_json(&self) -> Vec<u8> {
        let answer = self.answer.as_ref().map(|answer| WireAnswer {
            headers: answer
                .lines()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            body: answer.body.as_ref().map(|body| BASE64.encode(body).into()),
        });
        let wire = Wire {
            id: self.id.as_hyphenated().to_string().into(),
            origin: self.origin.as_str().into(),
            group: self.group.as_str().into(),
            at: humantime::format_rfc3339_millis(self.event.at)
                .to_string()
                .into(),
            what: self.event.what.word().into(),
            attempt: self.event.attempt,
            status: self.event.status,
            aside: self.event.aside,
            answer,
        };
        // Text and numbers only: there is nothing that could fail to be written.
        serde_json::to_vec(&wire).unwrap_or_default()
    }

    /// Reads what [`Receipt::to_json`] writes; `None` if it is malformed or over a bound. A time that lies ahead of
    /// `now` becomes `now`.
    pub fn read(json: &RawValue, now: SystemTime) -> Option<Self> {
        let wire: Wire<'_> = serde_json::from_str(json.get()).ok()?;
        let plain = |text: &str, max| {
            !text.is_empty()
                && text.len() <= max
                && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if !plain(&wire.origin, ORIGIN_MAX) || !plain(&wire.group, GROUP_MAX) {
            return None;
        }
        let what = KNOWN.into_iter().find(|what| what.word() == wire.what)?;
        let status = wire.status.map(StatusCode::from_u16).transpose().ok()?;
        let answer = match (wire.answer, status) {
            (Some(answer), Some(status)) => Some(answer.read(status)?),
            (Some(_), None) => return None,
            (None, _) => None,
        };
        let event = Event {
            attempt: wire.attempt,
            status: wire.status,
            aside: wire.aside,
            ..Event::at(humantime::parse_rfc3339(&wire.at).ok()?.min(now), what)
        };
        Some(Self {
            id: Uuid::try_parse(&wire.id).ok()?,
            origin: wire.origin.into_owned(),
            group: wire.group.into_owned(),
            event,
            answer: answer.filter(|_| what.status().is_final()),
        })
    }
}

impl WireAnswer<'_> {
    fn read(self, status: StatusCode) -> Option<Answer> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            headers.append(name, HeaderValue::from_str(value).ok()?);
        }
        let body = match self.body {
            // No look at what can not be kept.
            Some(body) if body.len() > BODY_MAX.div_ceil(3) * 4 => return None,
            Some(body) => Some(BASE64.decode(&*body).ok()?.into()),
            None => None,
        };
        Answer::new(status, &headers, body)
    }
}

/// The receipts of a record's value, each still to be read; `None` if it is no list of them.
pub fn list(value: &[u8]) -> Option<Vec<&RawValue>> {
    let list: Vec<&RawValue> = serde_json::from_slice(value).ok()?;
    (list.len() <= RECEIPTS_MAX).then_some(list)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123)
    }

    fn receipt() -> Receipt {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("text/plain"));
        Receipt {
            id: Uuid::now_v7(),
            origin: "orders/10.0.0.7:4143".into(),
            group: "billing".into(),
            event: Event::at(now(), What::Done).status(201),
            answer: Answer::new(StatusCode::CREATED, &headers, Some("\u{0}binary".into())),
        }
    }

    fn read(json: &[u8]) -> Option<Receipt> {
        let list = list(json)?;
        Receipt::read(list.first()?, now())
    }

    #[test]
    fn a_receipt_comes_back_as_it_was() {
        let plain = Receipt {
            event: Event::at(now(), What::Delivered).attempt(3),
            answer: None,
            ..receipt()
        };
        let aside = Receipt {
            event: Event {
                aside: true,
                ..receipt().event
            },
            ..receipt()
        };
        for receipt in [receipt(), plain, aside] {
            let json = [b"[", &receipt.to_json()[..], b"]"].concat();
            assert_eq!(read(&json), Some(receipt));
        }
    }

    #[test]
    fn what_is_malformed_or_over_a_bound_is_not_read() {
        let good = String::from_utf8(receipt().to_json()).unwrap();
        let check = |from: &str, to: &str| {
            assert!(good.contains(from), "{from} is not in {good}");
            read(format!("[{}]", good.replace(from, to)).as_bytes())
        };
        assert!(check("billing", "other").is_some());
        for (from, to) in [
            ("\"what\":\"done\"", "\"what\":\"replicated\""),
            ("\"what\":\"done\"", "\"what\":\"finished\""),
            ("\"status\":201", "\"status\":1"),
            ("\"status\":201", "\"status\":70000"),
            ("\"status\":201", "\"status\":101"),
            ("\"status\":201,", ""),
            ("billing", ""),
            ("billing", "bil ling"),
            ("10.0.0.7", &"9".repeat(ORIGIN_MAX)),
            ("content-type", "content type"),
            ("text/plain", "text\\nplain"),
            ("\"body\":\"", "\"body\":\"!"),
            ("\"body\":\"", &format!("\"body\":\"{}", "A".repeat(90_000))),
            ("2027-", "yesterday "),
        ] {
            assert_eq!(check(from, to), None, "{from} → {to:.40}");
        }
        let ahead = check("2027-", "2927-").expect("a clock may be wrong");
        assert_eq!(ahead.event.at, now());
        for other in ["", "{}", "null", "[1", "\"[]\"", "\u{feff}[]"] {
            assert!(list(other.as_bytes()).is_none(), "{other}");
        }
        let many = format!("[{}0]", "0,".repeat(RECEIPTS_MAX));
        assert!(list(many.as_bytes()).is_none());
        let deep = format!("[{}{}]", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(
            read(deep.as_bytes()),
            None,
            "nor does a deep one overflow anything"
        );
    }
}
