//! What is recorded of which trace, and what a queue that is full loses.

use std::net::SocketAddr;

use http::{Method, StatusCode};
use uuid::Uuid;

use super::*;
use crate::config::model::{Address, Otlp, Share};

const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A recorder without its task: what it keeps can be looked at.
fn recorder(percent: f64, room: usize) -> (Arc<Spans>, mpsc::Receiver<Queued>, Metrics) {
    let (queue, spans) = mpsc::channel(room);
    let (flush, _) = mpsc::channel(1);
    let metrics = Metrics::new();
    let recorder = Arc::new(Spans {
        bound: bound(Share::of_percent(percent).unwrap()),
        queue,
        flush,
        dropped: metrics.counter(&names::SPANS_DROPPED, &[("reason", "queue-full")]),
    });
    (recorder, spans, metrics)
}

fn serve(spans: &Arc<Spans>, trace: (&Trace, bool)) -> bool {
    let open = spans.serving(trace, None, || None);
    open.is_some()
}

#[test]
fn a_given_trace_says_itself_whether_it_is_recorded() {
    for percent in [0.0, 100.0] {
        let (spans, ..) = recorder(percent, 8);
        assert!(serve(&spans, (&Trace::parse(GIVEN).unwrap(), true)));
        let unsampled = Trace::parse(&GIVEN.replace("-01", "-00")).unwrap();
        assert!(!serve(&spans, (&unsampled, true)));
    }
}

#[test]
fn of_traces_that_begin_here_as_many_are_recorded_as_the_share_says() {
    let count = |percent| {
        let (spans, ..) = recorder(percent, 1);
        (0..10_000)
            .filter(|_| serve(&spans, (&Trace::new(), false)))
            .count()
    };
    assert_eq!((count(0.0), count(100.0)), (0, 10_000));
    let tenth = count(10.0);
    assert!((800..1_200).contains(&tenth), "{tenth}");
}

#[test]
fn two_sidecars_choose_the_same_traces() {
    let (one, ..) = recorder(50.0, 1);
    let (other, ..) = recorder(50.0, 1);
    for _ in 0..100 {
        let trace = Trace::new();
        assert_eq!(serve(&one, (&trace, false)), serve(&other, (&trace, false)));
    }
}

#[test]
fn a_call_is_its_callers_child_and_a_try_is_the_calls() {
    let (spans, mut kept, _) = recorder(0.0, 8);
    let given = Trace::parse(GIVEN).unwrap();
    let call = spans.serving((&given, true), Some("spiffe://shop/a"), || {
        Some("a=b".into())
    });
    let call = call.unwrap();
    let own = call.trace().unwrap().clone();
    let to = ("billing", SocketAddr::from(([10, 0, 0, 1], 80)));
    let tried = spans.trying(&own, to, (&Method::GET, "/a"), 1);
    tried.tried(Ok(StatusCode::NOT_FOUND));
    call.served(&Served {
        door: "outbound",
        route: "read",
        pattern: "forward",
        method: &Method::from_bytes(b"FROB").unwrap(),
        path: "/a",
        status: StatusCode::NOT_FOUND,
        refused: None,
    });
    let (tried, call) = (kept.try_recv().unwrap(), kept.try_recv().unwrap());
    assert_eq!(call.parent, Some(given.span_id()));
    assert_eq!(call.context.trace_id(), given.trace_id());
    assert_eq!(tried.parent, Some(call.context.span_id()));
    assert_eq!((call.remote, tried.remote), (true, false));
    assert_eq!((&*call.name, &*tried.name), ("HTTP read", "GET"));
    assert_eq!(call.state.as_deref(), Some("a=b"));
    assert!(
        call.attributes
            .contains(&("http.request.method", "_OTHER".into()))
    );
    // A 404 is the caller's fault: a failure for who calls, none for who serves.
    assert_eq!(call.failed, None);
    assert_eq!(tried.failed.as_deref(), Some("404"));
}

#[test]
fn a_delivery_hangs_by_a_link_and_not_by_a_parent() {
    let (spans, mut kept, _) = recorder(100.0, 8);
    let call = Trace::new();
    let id = Uuid::nil();
    let sent = spans.sending(&call, "invoices", id);
    let published = Trace::parse(sent.trace().unwrap().text()).unwrap();
    sent.sent(Ok(Some((3, 42))));
    let place = ("invoices", 3, 42);
    let delivery = spans.processing(((&published, true), Some("a=b")), place, ("orders", id, 2));
    delivery.unwrap().processed(&Processed {
        status: Some(200),
        verdict: "done",
        error: None,
        well: true,
    });
    // A record of others has no trace: nothing is there to be linked.
    let foreign = spans.processing(((&Trace::new(), false), None), place, ("orders", id, 1));
    drop(foreign);
    let (sent, delivery) = (kept.try_recv().unwrap(), kept.try_recv().unwrap());
    assert_eq!((sent.kind, delivery.kind), (Kind::Producer, Kind::Consumer));
    assert_eq!(delivery.parent, None);
    let link = delivery.link.unwrap();
    assert_eq!(link.context.span_id(), sent.context.span_id());
    assert_eq!(link.state.as_deref(), Some("a=b"));
    assert_eq!(delivery.context.trace_id(), call.trace_id());
    let place = [
        (
            "messaging.destination.partition.id",
            Value::from("3".to_owned()),
        ),
        ("messaging.kafka.offset", Value::from(42)),
    ];
    for span in [sent.attributes, delivery.attributes] {
        assert!(place.iter().all(|known| span.contains(known)), "{span:?}");
    }
    let foreign = kept.try_recv().unwrap();
    assert!(foreign.link.is_none() && foreign.parent.is_none());
    assert_eq!(foreign.failed.as_deref(), Some("abandoned"));
}

#[test]
fn a_full_queue_loses_spans_and_counts_them() {
    let (spans, mut kept, metrics) = recorder(100.0, 2);
    for _ in 0..5 {
        drop(spans.enter((&Trace::new(), false), Kind::Server));
    }
    assert!(kept.try_recv().is_ok() && kept.try_recv().is_ok() && kept.try_recv().is_err());
    let text = metrics.render();
    assert!(text.contains("reason=\"queue-full\"} 3"), "{text}");
}

#[test]
fn a_long_path_is_cut_at_a_character() {
    assert_eq!(span::short("/a"), "/a");
    let long = format!("/{}", "ä".repeat(300));
    assert_eq!(span::short(&long).len(), 255);
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_away_holds_no_flush_past_its_time() {
    let metrics = Metrics::new();
    // A listener that takes connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = Telemetry {
        otlp: Otlp {
            address: Address {
                host: "127.0.0.1".into(),
                port: silent.local_addr().unwrap().port(),
            },
            path: String::new(),
        },
        sample: Share::of_percent(100.0).unwrap(),
    };
    let source = Source {
        service: "orders".into(),
        instance: "a".into(),
    };
    let spans = Spans::start(&config, source, &metrics);
    drop(spans.enter((&Trace::new(), false), Kind::Server));
    let begun = Instant::now();
    spans.flush(begun + std::time::Duration::from_secs(3)).await;
    assert!(begun.elapsed() <= std::time::Duration::from_millis(3_001));
}
