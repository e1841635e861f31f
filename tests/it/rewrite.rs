//! What a route looks at, what it changes, and how it shares calls between services.

use crate::support::app::App;
use crate::support::client::{get, post};
use crate::support::raw::{Wire, status};
use crate::support::sidecar::Sidecar;

/// A sidecar with these routes, in front of two services.
async fn routed(routes: &str, services: &[(&str, &App)]) -> Sidecar {
    let service =
        |(name, app): &(&str, &App)| format!("  {name}: {{ addresses: ['{}'] }}\n", app.address);
    let services: String = services.iter().map(service).collect();
    Sidecar::start(&format!(
        "service: orders\noutbound:\n  listen: 127.0.0.1:0\n  routes:\n{routes}services:\n{services}"
    ))
    .await
}

#[tokio::test]
async fn headers_parameters_and_free_segments_choose_the_route() {
    let (one, two) = (App::agreeable().await, App::agreeable().await);
    let sidecar = routed(
        "    - { name: a, match: { path: '/orders/{id}', headers: { x-tenant: acme }, query: { v: '2' } }, forward: { to: one } }\n    \
         - { name: b, match: { path: '/orders/{id}' }, forward: { to: two } }\n",
        &[("one", &one), ("two", &two)],
    )
    .await;
    let call = |target: &str, tenant: &str| {
        get("any", target)
            .header("x-tenant", tenant)
            .send(sidecar.outbound())
    };
    assert_eq!(call("/orders/7?v=2", "acme").await.status, 200);
    assert_eq!((one.count(), two.count()), (1, 0));
    call("/orders/7?v=1", "acme").await;
    call("/orders/7?v=2", "other").await;
    assert_eq!((one.count(), two.count()), (1, 2));
    let reply = call("/orders", "acme").await;
    assert_eq!(reply.status, 404);
    let detail = reply.json()["detail"].to_string();
    assert!(detail.contains("/orders/{id}"), "{detail}");
}

#[tokio::test]
async fn a_rewritten_call_arrives_under_its_new_name_and_path() {
    let app = App::by(|_| crate::support::app::Answer::ok().header("server", "secret")).await;
    let sidecar = routed(
        "    - name: a\n      match: { path: '/orders/{id}/**' }\n      forward:\n        to: one\n        rewrite:\n          \
         path: '/v2/{id}/**'\n          host: orders.internal\n          headers: { set: { x-by: mesh }, remove: [x-debug] }\n          \
         answer: { set: { x-from: one }, remove: [server] }\n",
        &[("one", &app)],
    )
    .await;
    let reply = post("shop", "/orders/7/lines/1?q=a%2Fb")
        .header("x-debug", "1")
        .header("x-by", "caller")
        .body("x")
        .send(sidecar.outbound())
        .await;
    assert_eq!(
        (reply.header("server"), reply.header("x-from")),
        (None, Some("one"))
    );
    let seen = &app.seen()[0];
    assert_eq!(seen.target, "/v2/7/lines/1?q=a%2Fb");
    assert_eq!(
        (
            seen.header("host"),
            seen.header("x-by"),
            seen.header("x-debug")
        ),
        (Some("orders.internal"), Some("mesh"), None)
    );
    assert_eq!(&seen.body[..], b"x");
}

#[tokio::test]
async fn a_caller_can_not_list_away_what_the_route_sets() {
    let app = App::agreeable().await;
    let sidecar = routed(
        "    - { name: a, match: { path: '/**' }, forward: { to: one, rewrite: { path: /v2, headers: { set: { x-by: mesh } } } } }\n",
        &[("one", &app)],
    )
    .await;
    let mut caller = Wire::connect(sidecar.outbound()).await;
    caller
        .send("OPTIONS * HTTP/1.1\r\nhost: a\r\nconnection: X-By, x-other\r\nx-other: 1\r\n\r\n")
        .await;
    assert_eq!(status(&caller.message().await.0), 200);
    let seen = &app.seen()[0];
    assert_eq!(
        seen.headers.get("x-by").map(|by| by.as_bytes()),
        Some(&b"mesh"[..])
    );
    assert!(!seen.headers.contains_key("x-other"));
    assert_eq!(seen.target, "*", "it is no path to rewrite");
}

#[tokio::test]
async fn weights_share_the_calls_of_a_route() {
    let (old, new) = (App::agreeable().await, App::agreeable().await);
    let sidecar = routed(
        "    - { name: a, forward: { to: { old: 9, new: 1 } } }\n",
        &[("old", &old), ("new", &new)],
    )
    .await;
    for _ in 0..400 {
        assert_eq!(get("any", "/").send(sidecar.outbound()).await.status, 200);
    }
    assert_eq!(old.count() + new.count(), 400);
    assert!(
        (10..=90).contains(&new.count()),
        "{} of 400 for a weight of 1 in 10",
        new.count()
    );
}
