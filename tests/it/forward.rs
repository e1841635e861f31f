//! The synchronous pattern.

use crate::support::app::{Answer, App};
use crate::support::client::{get, post};
use crate::support::sidecar::Sidecar;

/// A forwarding sidecar in front of one service with these addresses.
async fn forwarding(addresses: &[String], route: &str) -> Sidecar {
    Sidecar::start(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: all
      match: {{ host: billing }}
      forward: {{ to: billing{route} }}
services:
  billing: {{ addresses: [{}] }}
",
        addresses.join(", ")
    ))
    .await
}

#[tokio::test]
async fn a_call_arrives_as_it_was_made_and_its_answer_comes_back() {
    let app = App::script([Answer::status(201).header("x-answer", "yes").body("done")]).await;
    let sidecar = forwarding(&[app.address.to_string()], "").await;
    let reply = post("billing", "/invoices?dry=1").header("x-call", "a").json("{\"a\":1}").send(sidecar.outbound()).await;
    assert_eq!((reply.status.as_u16(), reply.header("x-answer"), reply.header("wayside-pattern")), (201, Some("yes"), Some("forward")));
    assert_eq!(reply.body, "done");
    let seen = &app.seen()[0];
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/invoices?dry=1"));
    assert_eq!((seen.header("x-call"), seen.header("host"), &seen.body[..]), (Some("a"), Some("billing"), &b"{\"a\":1}"[..]));
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn no_route_is_a_404_that_names_the_nearest() {
    let sidecar = forwarding(&["127.0.0.1:1".to_owned()], "").await;
    let reply = get("rates", "/").send(sidecar.outbound()).await;
    assert_eq!(reply.status, 404);
    let detail = reply.json()["detail"].to_string();
    assert!(detail.contains("`all`") && detail.contains("billing"), "{detail}");
}
