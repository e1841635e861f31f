//! Spans at a collector: who is whose child, what follows from what, and what a collector that fails costs.

use std::net::SocketAddr;
use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tokio::time::Instant;

use crate::publish::records;
use crate::subscription::{FAST, calls, ended, yaml};
use crate::support::app::{Answer, App, Seen};
use crate::support::broker;
use crate::support::client::{get, post};
use crate::support::collector::{Collector, Got};
use crate::support::eventually::eventually;
use crate::support::sidecar::Sidecar;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const REMOTE_KNOWN: u32 = 0x100;
const REMOTE: u32 = 0x200;

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

fn context(span: &Got) -> String {
    format!("00-{}-{}-01", span.trace(), span.id())
}

/// Those of one service and kind.
fn of<'a>(spans: &'a [Got], service: &str, kind: SpanKind) -> Vec<&'a Got> {
    spans.iter().filter(|got| got.is(service, kind)).collect()
}

fn failed(span: &Got) -> bool {
    let status = span.span.status.as_ref();
    status.is_some_and(|status| status.code() == StatusCode::Error)
}

/// A sidecar that forwards what is for `billing`.
async fn forwarding(to: &str, telemetry: &str) -> Sidecar {
    Sidecar::start(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes: [ {{ name: read, match: {{ host: billing }}, forward: {{ to: billing }} }} ]
services: {{ billing: {{ addresses: [\"{to}\"] }} }}
drain: 5s
{telemetry}"
    ))
    .await
}

/// A sidecar that publishes to a topic, and one that delivers what is in it.
async fn pair(
    collector: &Collector,
    app: SocketAddr,
    (topic, group): (&str, &str),
) -> (Sidecar, Sidecar) {
    let subscription = format!("topic: {topic}, group: {group}, {FAST}");
    // The share is nothing: what is recorded is so since the caller says so, and the record says so.
    let telemetry = collector.yaml("0%");
    let file = yaml(&broker::address(), app, &[subscription]) + &telemetry;
    let receiver = Sidecar::start(&file).await;
    let sender = Sidecar::start(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes: [ {{ name: create, match: {{ host: billing }}, publish: {{ topic: {topic} }} }} ]
kafka: {{ brokers: [\"{}\"] }}
{telemetry}",
        broker::address()
    ))
    .await;
    (sender, receiver)
}

/// Checks attempt `n`, counted from 0, and the try that was made for it.
fn is_linked(n: usize, (delivery, tried): (&Got, &Got), sent: &Got, seen: &Seen) {
    let [link] = &delivery.span.links[..] else {
        panic!("{delivery:#?}");
    };
    assert_eq!(link.span_id, sent.span.span_id);
    assert_eq!(link.trace_id, sent.span.trace_id);
    assert_eq!(link.trace_state, "congo=t61rcWkgMzE");
    assert_eq!(delivery.parent(), "", "a link, and no parent");
    assert_eq!(tried.parent(), delivery.id());
    assert_eq!(tried.at("server.address"), "127.0.0.1");
    assert_eq!(seen.header("traceparent"), Some(&*context(tried)));
    assert_eq!(seen.header("tracestate"), Some("congo=t61rcWkgMzE"));
    let (status, verdict) = [("503", "retry"), ("204", "done")][n];
    assert_eq!(delivery.at("http.response.status_code"), status);
    assert_eq!(delivery.at("wayside.verdict"), verdict);
    assert_eq!(delivery.at("wayside.attempt"), (n + 1).to_string());
    assert_eq!((failed(delivery), failed(tried)), (n == 0, n == 0));
}

#[tokio::test]
async fn a_delivery_follows_from_the_publishing_by_a_link_across_two_sidecars() {
    let collector = Collector::start().await;
    let (topic, group) = (broker::topic("spans", 1), broker::unique("group"));
    let app = App::script([Answer::status(503), Answer::status(204)]).await;
    let (sender, receiver) = pair(&collector, app.address, (&topic, &group)).await;
    let reply = post("billing", "/invoices?dry=1")
        .header("traceparent", &parent("01"))
        .header("tracestate", "congo=t61rcWkgMzE")
        .body("x")
        .send(sender.outbound())
        .await;
    assert_eq!(reply.status, 202);
    let id = reply.json()["id"].as_str().expect("an id").to_owned();
    let seen = calls(&app, 2).await;
    ended(&receiver, &topic, "done", 1).await;

    let spans = collector.wait_for(6).await;
    assert!(spans.iter().all(|span| span.trace() == TRACE), "{spans:#?}");
    let [call] = of(&spans, "orders", SpanKind::Server)[..] else {
        panic!("{spans:#?}");
    };
    assert_eq!(call.parent(), CALLER);
    assert_eq!(call.span.flags, 1 | REMOTE_KNOWN | REMOTE);
    assert_eq!(call.span.name, "POST create");
    assert_eq!(call.span.trace_state, "congo=t61rcWkgMzE");
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "202"),
        ("url.path", "/invoices"),
        ("wayside.door", "outbound"),
        ("wayside.route", "create"),
        ("wayside.pattern", "publish"),
    ] {
        assert_eq!(call.at(key), value, "{key}");
    }

    let [sent] = of(&spans, "orders", SpanKind::Producer)[..] else {
        panic!("{spans:#?}");
    };
    assert_eq!(sent.parent(), call.id());
    assert_eq!(sent.span.flags, 1 | REMOTE_KNOWN);
    assert_eq!(sent.span.name, format!("send {topic}"));
    let record = records(&topic, 1).await.remove(0);
    assert_eq!(record.header("traceparent"), Some(context(sent)));
    assert_eq!(
        record.header("tracestate").as_deref(),
        Some("congo=t61rcWkgMzE")
    );

    let deliveries = of(&spans, "billing", SpanKind::Consumer);
    let tries = of(&spans, "billing", SpanKind::Client);
    assert_eq!((deliveries.len(), tries.len()), (2, 2), "{spans:#?}");
    for n in 0..2 {
        is_linked(n, (deliveries[n], tries[n]), sent, &seen[n]);
        assert_eq!(deliveries[n].span.name, format!("process {topic}"));
        assert_eq!(deliveries[n].at("messaging.consumer.group.name"), group);
        assert_eq!(tries[n].at("server.port"), app.address.port().to_string());
    }
    for span in [sent, deliveries[0], deliveries[1]] {
        assert_eq!(span.at("messaging.system"), "kafka");
        assert_eq!(span.at("messaging.destination.name"), topic);
        assert_eq!(span.at("messaging.destination.partition.id"), "0");
        assert_eq!(span.at("messaging.kafka.offset"), "0");
        assert_eq!(span.at("messaging.message.id"), id);
    }
    assert!(sender.stop().await && receiver.stop().await);
}

#[tokio::test]
async fn each_try_is_a_child_of_the_call_and_the_parent_of_what_the_peer_did() {
    let collector = Collector::start().await;
    let app = App::script([Answer::status(503), Answer::ok()]).await;
    let telemetry = collector.yaml("100%");
    let peer = Sidecar::start(&format!(
        "
service: billing
app: {}
inbound: {{ listen: 127.0.0.1:0 }}
{telemetry}",
        app.address
    ))
    .await;
    let sidecar = forwarding(&peer.inbound().to_string(), &telemetry).await;
    let reply = get("billing", "/a?secret=1").send(sidecar.outbound()).await;
    assert_eq!(reply.status, 200);

    let spans = collector.wait_for(7).await;
    let [call] = of(&spans, "orders", SpanKind::Server)[..] else {
        panic!("{spans:#?}");
    };
    assert_eq!(call.parent(), "", "the trace begins here");
    assert!(spans.iter().all(|span| span.trace() == call.trace()));
    let tries = of(&spans, "orders", SpanKind::Client);
    let served = of(&spans, "billing", SpanKind::Server);
    let asked = of(&spans, "billing", SpanKind::Client);
    assert_eq!((tries.len(), served.len(), asked.len()), (2, 2, 2));
    for n in 0..2 {
        assert_eq!(tries[n].parent(), call.id());
        assert_eq!(served[n].parent(), tries[n].id());
        assert_eq!(served[n].span.flags, 1 | REMOTE_KNOWN | REMOTE);
        assert_eq!(asked[n].parent(), served[n].id());
        assert_eq!(
            app.seen()[n].header("traceparent"),
            Some(&*context(asked[n]))
        );
        assert_eq!(tries[n].at("peer.service"), "billing");
        assert_eq!(tries[n].at("http.request.resend_count"), ["", "1"][n]);
        assert_eq!(tries[n].at("error.type"), ["503", ""][n]);
    }
    assert!(!failed(call), "it ended well");
    let all = format!("{spans:?}");
    assert!(!all.contains("secret"), "no query is in a span");
    assert!(sidecar.stop().await && peer.stop().await);
}

#[tokio::test]
async fn a_call_whose_caller_does_not_record_goes_on_as_it_came() {
    let collector = Collector::start().await;
    let app = App::agreeable().await;
    let sidecar = forwarding(&app.address.to_string(), &collector.yaml("100%")).await;
    for (given, goes_on) in [
        (parent("00"), parent("00")),
        (parent("02"), parent("02")),
        (
            "cc".to_owned() + &parent("00")[2..] + "-x",
            "cc".to_owned() + &parent("00")[2..] + "-x",
        ),
    ] {
        let call = get("billing", "/").header("traceparent", &given);
        assert_eq!(call.send(sidecar.outbound()).await.status, 200);
        let seen = app.seen();
        let last = seen.last().and_then(|seen| seen.header("traceparent"));
        assert_eq!(last, Some(&*goes_on));
    }
    assert!(sidecar.stop().await);
    assert_eq!(collector.requests().len(), 0);
}

#[tokio::test]
async fn of_the_traces_that_begin_here_the_share_decides_and_the_flag_says_so() {
    let collector = Collector::start().await;
    let app = App::agreeable().await;
    for (sample, flag) in [("0%", "-00"), ("100%", "-01")] {
        let sidecar = forwarding(&app.address.to_string(), &collector.yaml(sample)).await;
        assert_eq!(
            get("billing", "/").send(sidecar.outbound()).await.status,
            200
        );
        let seen = app.seen();
        let told = seen.last().and_then(|seen| seen.header("traceparent"));
        assert!(told.is_some_and(|told| told.ends_with(flag)), "{told:?}");
        // A drain sends what waits for its batch.
        assert!(sidecar.stop().await);
        let expected = if sample == "0%" { 0 } else { 2 };
        assert_eq!(collector.spans().len(), expected);
    }
}

#[tokio::test]
async fn a_call_that_its_caller_gave_up_is_told_as_one() {
    let collector = Collector::start().await;
    let app = App::by(|_| Answer::hang()).await;
    let sidecar = forwarding(&app.address.to_string(), &collector.yaml("100%")).await;
    let calling =
        tokio::runtime::Handle::current().spawn(get("billing", "/").try_send(sidecar.outbound()));
    let arrived = async || (app.count() == 1).then_some(());
    eventually("the call arrives", Duration::from_secs(5), arrived).await;
    calling.abort();
    let spans = collector.wait_for(2).await;
    for span in &spans {
        assert!(
            failed(span) && span.at("error.type") == "abandoned",
            "{span:#?}"
        );
    }
}

#[tokio::test]
async fn a_collector_that_is_away_costs_calls_nothing_and_a_drain_little() {
    let app = App::agreeable().await;
    let nowhere = App::nowhere();
    let telemetry = format!("telemetry: {{ otlp: \"http://{nowhere}\", sample: 100% }}\n");
    let sidecar = forwarding(&app.address.to_string(), &telemetry).await;
    for _ in 0..20 {
        assert_eq!(
            get("billing", "/").send(sidecar.outbound()).await.status,
            200
        );
    }
    let metrics = sidecar.metrics();
    let begun = Instant::now();
    assert!(sidecar.stop().await, "the drain is clean all the same");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    let text = metrics.render();
    assert!(
        text.contains("wayside_spans_dropped_total{reason=\"unreachable\"} 40"),
        "{text}"
    );
}

#[tokio::test]
async fn a_collector_that_is_busy_gets_the_same_spans_again_and_one_that_refuses_does_not() {
    let app = App::agreeable().await;
    for (status, requests, exported) in [(503, 2, 2.0), (400, 1, 0.0)] {
        let first = std::sync::atomic::AtomicBool::new(true);
        let collector =
            Collector::by(
                move |_| match first.swap(false, std::sync::atomic::Ordering::Relaxed) {
                    true => Answer::status(status),
                    false => Answer::ok(),
                },
            )
            .await;
        let sidecar = forwarding(&app.address.to_string(), &collector.yaml("100%")).await;
        assert_eq!(
            get("billing", "/").send(sidecar.outbound()).await.status,
            200
        );
        let counted = async || {
            let taken = sidecar.metric("wayside_spans_exported_total", &[]);
            let refused = sidecar.metric("wayside_spans_dropped_total", &["refused"]);
            (taken + refused >= 2.0).then_some(taken)
        };
        let taken = eventually("the spans end", Duration::from_secs(10), counted).await;
        assert_eq!(taken, exported);
        let bodies: Vec<_> = collector
            .requests()
            .into_iter()
            .map(|seen| seen.body)
            .collect();
        assert_eq!(bodies.len(), requests);
        assert!(bodies.windows(2).all(|two| two[0] == two[1]));
        assert!(sidecar.stop().await);
    }
}
