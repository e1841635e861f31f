//! A call becomes a record and comes back.

use std::time::Duration;

use super::*;

const HERE: Position<'_> = Position {
    topic: "invoices",
    partition: 3,
    offset: 41,
};

static JSON: HeaderValue = HeaderValue::from_static("application/json");

fn message() -> Message<'static> {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("accept", "text/plain"),
        ("x-tenant", "a"),
        ("x-tenant", "b"),
    ] {
        headers.append(name, HeaderValue::from_static(value));
    }
    Message {
        id: Uuid::now_v7(),
        source_service: "orders",
        instance: "orders-7f",
        method: &Method::PUT,
        target: "/invoices/7?draft=1",
        host: Some("billing:8080"),
        headers,
        content_type: Some(&JSON),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        tracestate: Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE".into()),
        claim: Some(ClaimRef {
            all: false,
            id: "c1.signed".into(),
            fields: vec!["/lines".into(), "/a,b/c d".into()],
            digest: [7; 32],
            size: 123_456,
            expires: SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000),
        }),
        reply: Some(Reply {
            track: Track::All,
            partition: Some(7),
            by: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_002_001)),
            from: Some("billing".into()),
        }),
        time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
    }
}

fn read(headers: &[(&str, &[u8])]) -> Decoded {
    decode(headers.iter().copied(), HERE)
}

#[test]
fn a_call_comes_back_as_it_was() {
    let message = message();
    let headers = encode(&message);
    let read = decode(headers.iter(), HERE);
    assert_eq!((read.id, read.ignored), (message.id, 0));
    assert_eq!(
        (read.method.as_ref(), read.target.as_deref()),
        (Some(message.method), Some(message.target))
    );
    assert_eq!(
        (read.host.as_deref(), read.headers),
        (message.host, message.headers)
    );
    assert_eq!(
        (read.content_type.as_ref(), read.traceparent.as_deref()),
        (message.content_type, message.traceparent)
    );
    assert_eq!(read.tracestate, message.tracestate);
    assert_eq!(read.claim, Claim::Kept(message.claim.unwrap()));
    assert_eq!(read.reply, message.reply);
    assert_eq!(read.origin, Some(("orders".into(), "orders-7f".into())));
    assert_eq!(read.time, Some(message.time));
}

#[test]
fn what_vendors_say_of_a_trace_needs_the_trace_and_the_right_form() {
    let parent = (
        TRACEPARENT,
        &b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"[..],
    );
    let state = (TRACESTATE, &b"congo=t61rcWkgMzE"[..]);
    assert_eq!(
        read(&[state, parent]).tracestate.as_deref(),
        Some("congo=t61rcWkgMzE")
    );
    assert_eq!(read(&[state]).tracestate, None);
    let malformed = read(&[parent, (TRACESTATE, b"congo")]);
    assert_eq!((malformed.tracestate, malformed.ignored), (None, 1));
    let as_a_header_of_the_call = read(&[parent, ("http-tracestate", b"congo=forged")]);
    assert_eq!(as_a_header_of_the_call.tracestate, None);
    assert!(as_a_header_of_the_call.headers.is_empty());
}

#[test]
fn each_header_written_stands_in_the_table() {
    for (name, _) in encode(&message()).iter() {
        let listed = HEADERS.iter().any(|(known, _)| *known == name);
        assert!(listed || name.starts_with(CALL_PREFIX), "{name}");
    }
}

#[test]
fn a_record_without_headers_has_the_same_id_each_time() {
    let read = read(&[]);
    assert_eq!(read.id, decode([], HERE).id);
    assert_ne!(read.id, decode([], Position { offset: 42, ..HERE }).id);
    assert_eq!(read.id.get_version_num(), 8);
    assert_eq!(
        (read.method, read.claim, read.ignored),
        (None, Claim::Absent, 0)
    );
}

#[test]
fn an_event_of_another_maker_keeps_its_identity_wherever_it_lies() {
    let event: [(&str, &[u8]); 2] = [("ce_id", b"A-17"), ("ce_source", b"/shop")];
    let there = Position {
        partition: 0,
        offset: 9,
        ..HERE
    };
    assert_eq!(decode(event, HERE).id, decode(event, there).id);
    assert_ne!(decode(event, HERE).id, read(&[("ce_id", b"A-17")]).id);
}

#[test]
fn a_record_never_speaks_for_the_connection_or_the_caller() {
    for name in [
        "http-host",
        "http-connection",
        "http-transfer-encoding",
        "http-content-length",
        "http-authorization",
        "http-cookie",
        "http-x-forwarded-for",
        "http-x_forwarded_for",
        "http-X_Forwarded-Proto",
        "http-forwarded",
        "http-proxy_authorization",
        "http-wayside-message-id",
        "http-wayside_message_id",
        "http-proxy-status",
        "http-",
        "http-a b",
    ] {
        let read = read(&[(name, b"x")]);
        assert_eq!((read.headers.len(), read.ignored), (0, 1), "{name}");
    }
}

#[test]
fn malformed_values_are_dropped_and_counted() {
    for (name, value) in [
        (METHOD, &b"G T"[..]),
        (TARGET, b"http://evil/"),
        (TARGET, b"/a b"),
        (TARGET, b"/a#b"),
        (HOST, b"a/b"),
        (HOST, b"root@a"),
        (TRACEPARENT, b"00-1-2-3"),
        (CE_TIME, b"noon"),
        (ORIGIN, b"orders"),
        (TARGET, b"/\xff"),
        ("http-x", b"a\r\nb: c"),
        (CONTENT_TYPE, b"a\n"),
        (TARGET, b""),
    ] {
        let read = read(&[(name, value)]);
        assert_eq!(read.ignored, 1, "{name} {value:?}");
        assert!(
            read.method.is_none()
                && read.target.is_none()
                && read.host.is_none()
                && read.headers.is_empty()
        );
    }
}

#[test]
fn a_slim_value_is_never_taken_for_a_whole_one() {
    let whole = encode(&message());
    for missing in [CLAIM, CLAIM_FIELDS, CLAIM_DIGEST, CLAIM_SIZE, CLAIM_EXPIRES] {
        let rest = whole.iter().filter(|(name, _)| *name != missing);
        let read = decode(rest, HERE);
        assert_eq!(read.claim, Claim::Damaged, "without {missing}");
    }
    assert_eq!(read(&[(CLAIM, b"\n")]).claim, Claim::Damaged);
}

#[test]
fn a_record_that_asks_for_nothing_is_told_nothing() {
    let rest = [(REPLY_PARTITION, &b"3"[..]), (REPLY_FROM, b"billing")];
    assert_eq!(read(&rest).reply, None);
    let asked = read(&[
        (TRACK, b"verdict"),
        (REPLY_PARTITION, b"-1"),
        (REPLY_BY, b"noon"),
    ]);
    assert_eq!(asked.ignored, 2);
    let reply = asked.reply.unwrap();
    assert_eq!(
        (reply.track, reply.partition, reply.by),
        (Track::Verdict, None, None)
    );
    assert_eq!(read(&[(TRACK, b"everything")]).reply, None);
    let silent = Message {
        reply: None,
        ..message()
    };
    let headers = encode(&silent);
    assert!(
        headers
            .iter()
            .all(|(name, _)| name != TRACK && !name.contains("reply"))
    );
}

#[test]
fn what_is_restored_is_bounded() {
    let names: Vec<String> = (0..200).map(|index| format!("http-x-{index}")).collect();
    let many: Vec<(&str, &[u8])> = names.iter().map(|name| (&**name, &b"v"[..])).collect();
    assert_eq!(
        (read(&many).headers.len(), read(&many).ignored),
        (RESTORED_MAX, 200 - RESTORED_MAX)
    );
    let large = vec![b'v'; RESTORED_BYTES_MAX];
    assert_eq!(read(&[("http-x", &large)]).headers.len(), 0);
}

#[test]
fn the_rule_keeps_credentials_and_drops_anything_but_never_frees_the_connection() {
    let name = HeaderName::from_static;
    let rule = HeaderRule {
        keep: vec![name("authorization"), name("host"), name("te")],
        drop: vec![name("accept")],
    };
    for (header, plain, ruled) in [
        ("x-tenant", true, true),
        ("accept", true, false),
        ("authorization", false, true),
        ("cookie", false, false),
        ("host", false, false),
        ("te", false, false),
        ("x-forwarded-for", false, false),
        ("x_forwarded_for", false, false),
        ("proxy_authorization", false, false),
        ("x_forwarder", true, true),
        ("expect", false, false),
        ("wayside-attempt", false, false),
        ("content-type", false, false),
        ("proxy-authorization", false, false),
    ] {
        assert_eq!(
            travels(&name(header), &HeaderRule::default()),
            plain,
            "{header}"
        );
        assert_eq!(
            travels(&name(header), &rule),
            ruled,
            "{header} with the rule"
        );
    }
    let call = [
        ("connection", "close, X-Hop"),
        ("x-hop", "1"),
        ("x-tenant", "a"),
    ]
    .map(|(header, value)| (name(header), HeaderValue::from_static(value)));
    let out = travelling(&call.into_iter().collect(), &HeaderRule::default());
    assert_eq!(
        out.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
        ["x-tenant"]
    );
}
