//! The small languages of single words: names, topics, groups, methods, headers.

use http::{HeaderName, Method};

use super::diagnostic::{Invalid, quoted};
use super::model::Replies;
use super::words::nearest;

/// The methods of IANA's registry (RFC 9110 section 16.1) that a sidecar can pass on.
const METHODS: [&str; 37] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "QUERY",
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PROPFIND",
    "PROPPATCH",
    "REBIND",
    "REPORT",
    "SEARCH",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

/// Headers that belong to one connection or to our own bookkeeping, so that none travels in a record.
const NEVER_TRAVEL: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// Reads the name of a service, a store or a route: a label in logs and metrics, and a part of addresses.
pub(super) fn parse_name(text: &str) -> Result<String, Invalid> {
    let word = |letter: char| matches!(letter, 'a'..='z' | '0'..='9' | '-');
    let edge = text.starts_with('-') || text.ends_with('-');
    if (1..=63).contains(&text.len()) && text.chars().all(word) && !edge {
        return Ok(text.to_owned());
    }
    let reason = format!(
        "{} is not a name; write 1 to 63 of a-z, 0-9 and `-`, which neither starts nor ends it",
        quoted(text)
    );
    let meant: String = text
        .chars()
        .map(|letter| letter.to_ascii_lowercase())
        .map(|letter| {
            if matches!(letter, '_' | '.' | ' ') {
                '-'
            } else {
                letter
            }
        })
        .collect();
    let better = meant != text && parse_name(&meant).is_ok();
    Err(Invalid::new(reason).hint(better.then_some(meant)))
}

/// Reads the name of a Kafka topic.
pub(super) fn parse_topic(text: &str) -> Result<String, Invalid> {
    let word = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
    if (1..=249).contains(&text.len()) && text.chars().all(word) && text != "." && text != ".." {
        return Ok(text.to_owned());
    }
    let reason = format!(
        "{} is not a topic; Kafka takes 1 to 249 of a-z, A-Z, 0-9, `.`, `_` and `-`",
        quoted(text)
    );
    let meant: String = text
        .chars()
        .map(|letter| {
            if matches!(letter, ' ' | '/' | ':') {
                '-'
            } else {
                letter
            }
        })
        .collect();
    let better = meant != text && parse_topic(&meant).is_ok();
    Err(Invalid::new(reason).hint(better.then_some(meant)))
}

/// Reads the pattern of reply topics: a topic's name that may hold `{service}`.
pub(super) fn parse_replies(text: &str) -> Result<Replies, Invalid> {
    /// The longest name of a service.
    const SERVICE_MAX: usize = 63;
    let pattern = Replies(text.to_owned());
    let rest = text.replace(Replies::SERVICE, "");
    if let Some(from) = rest.find(['{', '}']) {
        let part = rest[from..].split_inclusive('}').next().unwrap_or_default();
        let reason = format!(
            "{} stands for nothing here; only `{}` does",
            quoted(part),
            Replies::SERVICE
        );
        let meant = text.replace(part, Replies::SERVICE);
        let better = part.len() > 2 && part.ends_with('}') && parse_replies(&meant).is_ok();
        return Err(Invalid::new(reason).hint(better.then_some(meant)));
    }
    parse_topic(&pattern.topic("s"))
        .map_err(|error| Invalid::new(error.reason.replace(&pattern.topic("s"), text)))?;
    if pattern.topic(&"s".repeat(SERVICE_MAX)).len() > 249 {
        let reason = format!(
            "with a service of {SERVICE_MAX} letters this is longer than the 249 that Kafka takes"
        );
        return Err(Invalid::new(reason));
    }
    Ok(pattern)
}

/// Reads the name of a consumer group.
pub(super) fn parse_group(text: &str) -> Result<String, Invalid> {
    if (1..=249).contains(&text.len()) && text.chars().all(|letter| letter.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    let text = quoted(text);
    Err(Invalid::new(format!(
        "{text} is not a group; write 1 to 249 visible ASCII characters"
    )))
}

/// Reads a registered method.
pub(super) fn parse_method(text: &str) -> Result<Method, Invalid> {
    if text == "CONNECT" {
        return Ok(Method::CONNECT);
    }
    if matches!(text, "TRACE" | "PRI") {
        return Err(Invalid::new(format!(
            "{text} is never passed on, so no route can take it"
        )));
    }
    match Method::from_bytes(text.as_bytes()) {
        Ok(method) if METHODS.contains(&text) => Ok(method),
        _ => {
            let reason = format!("{} is not a registered HTTP method", quoted(text));
            Err(Invalid::new(reason).hint(nearest(text, METHODS)))
        }
    }
}

/// Reads the name of a header, in lower case.
pub(super) fn parse_header(text: &str) -> Result<HeaderName, Invalid> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| {
        let meant = text.trim_end_matches(':').trim().to_owned();
        let better = meant != text && HeaderName::from_bytes(meant.as_bytes()).is_ok();
        Invalid::new(format!("{} is not the name of a header", quoted(text)))
            .hint(better.then_some(meant))
    })
}

/// Reads the name of a header that a record may carry.
pub(super) fn parse_kept_header(text: &str) -> Result<HeaderName, Invalid> {
    let name = parse_header(text)?;
    let word = name.as_str();
    // `_` counts as `-`, as it does where headers are chosen for a record.
    let folded = word.replace('_', "-");
    let ours = folded.starts_with("wayside-") || folded.starts_with("ce-");
    if ours {
        return Err(Invalid::new(format!(
            "`{word}` cannot be kept: the name is reserved for Wayside itself"
        )));
    }
    if NEVER_TRAVEL.contains(&word) || folded.starts_with("proxy-") {
        return Err(Invalid::new(format!(
            "`{word}` cannot be kept: it is about one connection, not about the message"
        )));
    }
    Ok(name)
}

/// Reads the name of a header that a route may set or take away.
pub(super) fn parse_changed_header(text: &str) -> Result<HeaderName, Invalid> {
    let name = parse_header(text)?;
    let word = name.as_str();
    if word == "host" {
        return Err(Invalid::new("`host` is written by `rewrite.host`"));
    }
    if NEVER_TRAVEL.contains(&word) || word.starts_with("wayside-") {
        return Err(Invalid::new(format!(
            "`{word}` is not to be changed: Wayside writes it itself"
        )));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_plain_words() {
        assert!(parse_name("orders-2").is_ok());
        for bad in ["", "-a", "a-", "a b", "Orders", "ä", &"a".repeat(64)] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
        assert_eq!(
            parse_name("My_Orders").unwrap_err().hint.as_deref(),
            Some("my-orders")
        );
    }

    #[test]
    fn topics_are_what_kafka_takes() {
        assert!(parse_topic("payments.dead_v1-A").is_ok());
        for bad in ["", ".", "..", "a/b", "a b", &"a".repeat(250)] {
            assert!(parse_topic(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_method_is_registered_and_in_capitals() {
        assert_eq!(parse_method("PATCH").unwrap(), Method::PATCH);
        assert_eq!(
            parse_method("get").unwrap_err().hint.as_deref(),
            Some("GET")
        );
        assert_eq!(
            parse_method("PSOT").unwrap_err().hint.as_deref(),
            Some("POST")
        );
        assert!(parse_method("TRACE").is_err());
        assert!(parse_method("FETCHALL").unwrap_err().hint.is_none());
    }

    #[test]
    fn a_header_of_the_connection_is_not_kept() {
        assert!(parse_kept_header("Authorization").is_ok());
        for bad in [
            "host",
            "Transfer-Encoding",
            "wayside-claim",
            "ce_id",
            "proxy-authorization",
            "proxy_authorization",
            "wayside_claim",
        ] {
            assert!(parse_kept_header(bad).is_err(), "{bad}");
        }
        assert_eq!(
            parse_header("Accept:").unwrap_err().hint.as_deref(),
            Some("Accept")
        );
    }
}
