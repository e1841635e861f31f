//! Spans on the wire: the messages of OTLP 1.x that carry them, as far as we fill them, and what a collector answers.
//!
//! Source: opentelemetry-proto 1.7, `trace/v1/trace.proto`, `collector/trace/v1/trace_service.proto`,
//! `common/v1/common.proto`, `resource/v1/resource.proto`. Their fields are stable: numbers are never used again.

use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::export::Source;
use super::span::{Kind, Queued, Span, Value};
use crate::telemetry::trace::Trace;

/// The flag that says that the next one is known (`SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK`).
const REMOTE_KNOWN: u32 = 0x100;
/// The parent, or what is linked, is another process's (`SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`).
const REMOTE: u32 = 0x200;
const STATUS_ERROR: i32 = 2;

/// Writes an `ExportTraceServiceRequest`.
pub(super) fn encode(source: &Source, spans: Vec<Queued>) -> Vec<u8> {
    let resource = Resource {
        attributes: vec![
            text("service.name", &source.service),
            text("service.instance.id", &source.instance),
        ],
    };
    let scope = Scope {
        name: "wayside".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let spans = spans.into_iter().map(|span| message(*span)).collect();
    let scope_spans = vec![ScopeSpans {
        scope: Some(scope),
        spans,
    }];
    let resource_spans = vec![ResourceSpans {
        resource: Some(resource),
        scope_spans,
    }];
    Request { resource_spans }.encode_to_vec()
}

/// How many spans a collector refused of those that it got, and why, in what it answered.
pub(super) fn rejected(answer: &[u8]) -> Option<(u64, String)> {
    let partial = Answer::decode(answer).ok()?.partial_success?;
    let rejected = u64::try_from(partial.rejected_spans).unwrap_or(0);
    (rejected > 0).then_some((rejected, partial.error_message))
}

fn message(span: Span) -> SpanMessage {
    let remote = match span.remote {
        true => REMOTE,
        false => 0,
    };
    let links = span.link.map(|link| LinkMessage {
        trace_id: link.context.trace_id().to_vec(),
        span_id: link.context.span_id().to_vec(),
        trace_state: link.state.unwrap_or_default(),
        flags: flags(&link.context) | REMOTE_KNOWN | REMOTE,
    });
    let attributes = span.attributes.into_iter().map(|(key, value)| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(match value {
                Value::Text(text) => Any::Text(text.into_owned()),
                Value::Number(number) => Any::Number(number),
            }),
        }),
    });
    SpanMessage {
        trace_id: span.context.trace_id().to_vec(),
        span_id: span.context.span_id().to_vec(),
        trace_state: span.state.unwrap_or_default(),
        parent_span_id: span.parent.map(Vec::from).unwrap_or_default(),
        name: span.name.into_owned(),
        kind: match span.kind {
            Kind::Server => 2,
            Kind::Client => 3,
            Kind::Producer => 4,
            Kind::Consumer => 5,
        },
        start_time_unix_nano: nanos(span.start),
        // A clock that was set back in between makes no span of a negative length.
        end_time_unix_nano: nanos(span.end.max(span.start)),
        attributes: attributes.collect(),
        links: links.into_iter().collect(),
        status: span.failed.map(|why| Status {
            message: why.into_owned(),
            code: STATUS_ERROR,
        }),
        flags: flags(&span.context) | REMOTE_KNOWN | remote,
    }
}

fn flags(trace: &Trace) -> u32 {
    u32::from(trace.flags())
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Any::Text(value.to_owned())),
        }),
    }
}

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_spans: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<SpanMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct SpanMessage {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "13")]
    links: Vec<LinkMessage>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct LinkMessage {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    trace_state: String,
    #[prost(fixed32, tag = "6")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Any", tags = "1, 3")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Any {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}
