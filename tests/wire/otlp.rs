//! Spans as Python's opentelemetry-proto reads them: a call through two sidecars, told by both.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::sidecar::Sidecar;
use crate::support::app::App;
use crate::support::client::get;
use crate::support::eventually::eventually;
use crate::support::process::Process;
use crate::tools;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Two sidecars with the same collector, the far one beside `app`.
async fn line(app: SocketAddr, telemetry: &str) -> (Sidecar, Sidecar) {
    let far = Sidecar::run(&format!(
        "service: billing\napp: {}\ninbound: {{ listen: 127.0.0.1:0 }}\n{telemetry}\n",
        app
    ))
    .await;
    let near = Sidecar::run(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes: [{{ name: read, match: {{ host: billing }}, forward: {{ to: billing }} }}]
services: {{ billing: {{ addresses: [\"{}\"] }} }}
{telemetry}
",
        far.inbound.expect("the file has an inbound door")
    ))
    .await;
    (near, far)
}

#[tokio::test]
async fn a_collector_in_python_reads_the_spans_of_a_call_through_two_sidecars() {
    let Some(packages) = tools::python().await else {
        return;
    };
    let folder = TempDir::with_prefix("wayside-otlp-").expect("a folder can be made");
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", packages);
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg(tools::here().join("python/collector.py"));
    let mut collector = Process::start("collector", &mut command, folder.path());
    let port: u16 = eventually("it listens", Duration::from_secs(30), async || {
        assert!(collector.ended().is_none(), "{}", collector.stderr());
        collector.stdout().lines().next()?.parse().ok()
    })
    .await;
    let telemetry = format!("telemetry: {{ otlp: \"http://127.0.0.1:{port}/otlp\", sample: 0% }}");
    let app = App::agreeable().await;
    let (mut near, mut far) = line(app.address, &telemetry).await;
    let call = get("billing", "/invoices/7?x=1")
        .header("traceparent", &format!("00-{TRACE}-00f067aa0ba902b7-01"))
        .header("tracestate", "congo=t61rcWkgMzE");
    assert_eq!(call.send(near.door()).await.status, 200);
    // A drain sends what waits for its batch.
    assert_eq!(near.terminate().await.code(), Some(0));
    assert_eq!(far.terminate().await.code(), Some(0));

    let told = collector.stdout();
    let spans: Vec<Value> = told
        .lines()
        .skip(1)
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(spans.len(), 4, "{told}{}", collector.stderr());
    let find = |service: &str, kind: &str| {
        let is =
            |span: &&Value| span["resource"]["service.name"] == service && span["kind"] == kind;
        let found = spans.iter().find(is);
        found.unwrap_or_else(|| panic!("{service} has no {kind}: {told}"))
    };
    let chain = [
        find("orders", "SPAN_KIND_SERVER"),
        find("orders", "SPAN_KIND_CLIENT"),
        find("billing", "SPAN_KIND_SERVER"),
        find("billing", "SPAN_KIND_CLIENT"),
    ];
    assert_eq!(chain[0]["parent"], "00f067aa0ba902b7");
    for pair in chain.windows(2) {
        assert_eq!(pair[1]["parent"], pair[0]["span"], "{told}");
    }
    for span in &chain {
        assert_eq!(
            (&span["trace"], &span["scope"]),
            (&TRACE.into(), &"wayside".into())
        );
        assert_eq!(span["attributes"]["http.response.status_code"], 200);
        assert_eq!(span["attributes"]["url.path"], "/invoices/7");
        assert_eq!(span["error"], Value::Null);
        let took = span["nanoseconds"].as_i64().expect("a number");
        assert!((1..10_000_000_000).contains(&took), "{span}");
    }
    assert_eq!(chain[0]["name"], "GET read");
    assert_eq!(chain[0]["state"], "congo=t61rcWkgMzE");
}
