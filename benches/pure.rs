//! The pure parts of a call's way: routing, slimming, the record. `cargo bench --bench pure`.

use std::hint::black_box;
use std::path::Path;
use std::time::SystemTime;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, Method};
use uuid::Uuid;
use wayside::config;
use wayside::config::model::Pattern;
use wayside::kafka::record::{self, Message, Position};
use wayside::pattern::slim::Plan;
use wayside::pattern::validate::Check;
use wayside::route::{Facts, Table};

const YAML: &str = include_str!("../config/examples/readme.yaml");

fn compiled(yaml: &str) -> config::model::Config {
    config::compile("bench.yaml", yaml, &|_| None)
        .expect("a good file")
        .config
}

fn configuration(c: &mut Criterion) {
    c.bench_function("config/readme", |b| b.iter(|| compiled(black_box(YAML))));
}

fn routing(c: &mut Criterion) {
    let mut yaml =
        "service: orders\nservices: { a: { addresses: [a:1] } }\noutbound:\n  routes:\n".to_owned();
    for number in 0..10 {
        yaml += &format!(
            "    - {{ name: r{number}, match: {{ host: h{number}, path: /p/** }}, forward: {{ to: a }} }}\n"
        );
    }
    let config = compiled(&yaml);
    let table = Table::new(&config.outbound.expect("it has routes").routes);
    let headers = http::HeaderMap::new();
    let facts = Facts {
        query: "",
        headers: &headers,
        host: "h9".into(),
        method: &Method::GET,
        path: "/p/7",
    };
    c.bench_function("route/last_of_10", |b| {
        b.iter(|| table.find(black_box(&facts)))
    });
}

fn slimming(c: &mut Criterion) {
    let config = compiled(YAML);
    let routes = config.outbound.expect("it has routes").routes;
    let Some(Pattern::Publish(rule)) = routes
        .iter()
        .map(|route| &route.pattern)
        .find(|it| matches!(it, Pattern::Publish(_)))
    else {
        unreachable!("the example publishes")
    };
    let plan = Plan::of(rule);
    let line = r#"{"item":"0123456789","quantity":2,"price":1999}"#;
    let lines = vec![line; 80].join(",");
    let body = Bytes::from(format!(
        r#"{{"id":"i-1","customer":{{"id":"c-9"}},"lines":[{lines}],"total":42}}"#
    ));
    let mut group = c.benchmark_group("slim");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("keep_3_fields_of_4_KiB", |b| {
        b.iter(|| plan.apply(black_box(&body)))
    });
    group.finish();
}

/// Bodies of three sizes against a schema of the usual kind, and the largest with a mistake at each of its lines.
fn validating(c: &mut Criterion) {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/reference.yaml");
    let loaded = config::load(Path::new(file), &|_| None).expect("a good file");
    let routes = loaded.config.outbound.expect("it has routes").routes;
    let rule = routes.iter().find_map(|route| match &route.pattern {
        Pattern::Publish(rule) if rule.schema.is_some() => Some(rule),
        _ => None,
    });
    let check = Check::of(rule.expect("one route has a schema"))
        .expect("it compiles")
        .expect("it asks something");
    let body = |bytes: usize, quantity: u32| {
        let line = format!(r#"{{"item":"0123456789","quantity":{quantity},"price":1999}}"#);
        let lines = vec![line.as_str(); bytes / line.len()].join(",");
        format!(r#"{{"id":"i-1","customer":{{"id":"c-9"}},"lines":[{lines}],"total":42}}"#)
    };
    let mut group = c.benchmark_group("validate");
    for (name, body, violations) in [
        ("1_KiB", body(900, 2), 0),
        ("32_KiB", body(32 << 10, 2), 0),
        ("1_MiB", body(1 << 20, 2), 0),
        ("1_MiB_wrong_in_each_line", body(1 << 20, 0), 100),
    ] {
        let found = check.body_here(body.as_bytes()).expect("it is JSON");
        assert_eq!(found.list.len(), violations, "{name}");
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| check.body_here(black_box(body.as_bytes())))
        });
    }
    group.finish();
}

fn records(c: &mut Criterion) {
    let mut headers = HeaderMap::new();
    headers.insert("accept", HeaderValue::from_static("*/*"));
    headers.insert("user-agent", HeaderValue::from_static("bench"));
    let json = HeaderValue::from_static("application/json");
    let message = Message {
        id: Uuid::now_v7(),
        source_service: "orders",
        instance: "10.0.0.7:4143",
        method: &Method::POST,
        target: "/invoices",
        host: Some("billing"),
        headers,
        content_type: Some(&json),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        tracestate: None,
        claim: None,
        reply: None,
        time: SystemTime::now(),
    };
    c.bench_function("record/encode", |b| {
        b.iter(|| record::encode(black_box(&message)))
    });
    let encoded = record::encode(&message);
    let position = Position {
        topic: "invoices",
        partition: 0,
        offset: 7,
    };
    c.bench_function("record/decode", |b| {
        b.iter(|| record::decode(black_box(encoded.iter()), position));
    });
}

criterion_group!(
    benches,
    configuration,
    routing,
    slimming,
    validating,
    records
);
criterion_main!(benches);
