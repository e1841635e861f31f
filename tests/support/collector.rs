//! A collector of OpenTelemetry: it takes OTLP over HTTP and reads it by the types of opentelemetry-proto, not by ours.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;

use super::app::{Answer, App, Seen};
use super::eventually::eventually;

/// A running collector.
pub(crate) struct Collector {
    app: App,
}

/// One span as it came.
#[derive(Debug, Clone)]
pub(crate) struct Got {
    /// `service.name` of its resource.
    pub(crate) service: String,
    /// Its attributes as text.
    pub(crate) attributes: BTreeMap<String, String>,
    /// All of it.
    pub(crate) span: Span,
}

impl Collector {
    /// Starts one that takes everything.
    pub(crate) async fn start() -> Self {
        Self::by(|_| Answer::ok()).await
    }

    /// Starts one that answers by a rule.
    pub(crate) async fn by(rule: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        let app = App::by(rule).await;
        Self { app }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.app.address
    }

    /// The section that sends spans here.
    pub(crate) fn yaml(&self, sample: &str) -> String {
        let address = self.address();
        format!("telemetry: {{ otlp: \"http://{address}\", sample: {sample} }}\n")
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.app.seen()
    }

    /// The spans of all requests so far.
    pub(crate) fn spans(&self) -> Vec<Got> {
        let mut got = Vec::new();
        for request in self.app.seen() {
            assert_eq!(
                (request.method.as_str(), &*request.target),
                ("POST", "/v1/traces")
            );
            assert_eq!(
                request.header("content-type"),
                Some("application/x-protobuf")
            );
            let request = ExportTraceServiceRequest::decode(request.body);
            for resource in request.expect("OTLP").resource_spans {
                let attributes = resource.resource.map(|resource| resource.attributes);
                let source = texts(attributes.unwrap_or_default());
                let spans = resource
                    .scope_spans
                    .into_iter()
                    .flat_map(|scope| scope.spans);
                got.extend(spans.map(|span| Got {
                    service: source["service.name"].clone(),
                    attributes: texts(span.attributes.clone()),
                    span,
                }));
            }
        }
        got
    }

    /// Waits for so many spans, in the order in which they began.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Got> {
        let what = format!("{count} spans at the collector");
        let enough = async || Some(self.spans()).filter(|spans| spans.len() >= count);
        let mut spans = eventually(&what, Duration::from_secs(20), enough).await;
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans.sort_by_key(|got| got.span.start_time_unix_nano);
        spans
    }
}

impl Got {
    /// The span's id as in a `traceparent`.
    pub(crate) fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    /// Its parent's id; empty for none.
    pub(crate) fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    /// Its trace's id.
    pub(crate) fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    /// What it is.
    pub(crate) fn is(&self, service: &str, kind: SpanKind) -> bool {
        self.service == service && self.span.kind() == kind
    }

    /// An attribute, or nothing.
    pub(crate) fn at(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|any| any.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("an attribute is {other:?}"),
    };
    let pairs = attributes.into_iter();
    pairs.map(|pair| (pair.key, text(pair.value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
