//! Where a record's key comes from, and what it orders.

use std::collections::HashSet;

use super::publish::{key, only_the_last, publishing, records, refused};
use crate::support::broker;
use crate::support::client::post;

#[tokio::test]
async fn the_key_is_a_value_of_the_body_as_any_other_producer_would_write_it() {
    let topic = broker::topic("keyed", 1);
    let sidecar = publishing(&topic, ", key: /customer/id").await;
    let bodies = [
        (r#"{"customer":{"id":"c-7"}}"#, "c-7"),
        (
            r#"{"x":[{"customer":{"id":"no"}}],"customer":{"n":1,"id":"M\u00fcller\n\ud83d\ude00"}}"#,
            "Müller\n😀",
        ),
        (r#"{"customer":{"id":12.50}}"#, "12.50"),
        (r#"{"customer":{"id":true}}"#, "true"),
        (r#"{"c\u0075stomer":{"id":"escaped name"}}"#, "escaped name"),
    ];
    for (body, _) in bodies {
        let reply = post("billing", "/")
            .json(body)
            .send(sidecar.outbound())
            .await;
        assert_eq!(reply.status, 202, "{body}: {:?}", reply.body);
    }
    let records = records(&topic, bodies.len()).await;
    for (record, (body, expected)) in records.iter().zip(bodies) {
        assert_eq!(key(record), Some(expected), "{body}");
        assert_eq!(record.value.as_deref(), Some(body.as_bytes()));
    }
}

#[tokio::test]
async fn the_key_can_come_from_a_header_or_the_path() {
    let (by_header, by_path) = (broker::topic("by-header", 1), broker::topic("by-path", 1));
    let sidecar = publishing(&by_header, ", key: { header: x-customer }").await;
    let call = post("billing", "/")
        .header("x-customer", "c-7")
        .body("not json");
    assert_eq!(call.send(sidecar.outbound()).await.status, 202);
    refused(
        &post("billing", "/")
            .body("x")
            .send(sidecar.outbound())
            .await,
        400,
        "key-missing",
    );
    assert_eq!(key(&records(&by_header, 1).await[0]), Some("c-7"));

    let sidecar = publishing(&by_path, ", key: { path: 2 }").await;
    assert_eq!(
        post("billing", "/customers/c%2F7%20?q=1")
            .send(sidecar.outbound())
            .await
            .status,
        202
    );
    refused(
        &post("billing", "/customers").send(sidecar.outbound()).await,
        400,
        "key-missing",
    );
    assert_eq!(key(&records(&by_path, 1).await[0]), Some("c/7 "));
}

#[tokio::test]
async fn a_call_without_its_key_is_refused_and_nothing_of_it_is_sent() {
    let topic = broker::topic("refused", 1);
    let sidecar = publishing(&topic, ", key: /customer/id").await;
    for body in [
        "{}",
        r#"{"customer":7}"#,
        r#"{"customer":{"id":null}}"#,
        r#"{"customer":{"id":{}}}"#,
        r#"{"customer":{"id":["c"]}}"#,
        "[]",
        "7",
    ] {
        let reply = post("billing", "/")
            .json(body)
            .send(sidecar.outbound())
            .await;
        refused(&reply, 400, "key-missing");
        assert!(
            reply.json()["detail"].to_string().contains("/customer/id"),
            "{:?}",
            reply.body
        );
    }
    for body in [
        "",
        "{",
        r#"{"customer":{"id":"c"}} x"#,
        "customer=7",
        "\u{feff}{}",
    ] {
        refused(
            &post("billing", "/")
                .json(body)
                .send(sidecar.outbound())
                .await,
            400,
            "not-json",
        );
    }
    let last = post("billing", "/").json(r#"{"customer":{"id":"last"}}"#);
    assert_eq!(
        key(&only_the_last(&sidecar, &topic, last).await),
        Some("last")
    );
}

#[tokio::test]
async fn a_route_may_take_calls_without_a_key_in_no_order() {
    let topic = broker::topic("unordered", 1);
    let sidecar = publishing(&topic, ", key: /id, key_missing: unordered").await;
    for body in ["{}", r#"{"id":null}"#, r#"{"id":[1]}"#, r#"{"id":"k"}"#] {
        assert_eq!(
            post("billing", "/")
                .json(body)
                .send(sidecar.outbound())
                .await
                .status,
            202,
            "{body}"
        );
    }
    refused(
        &post("billing", "/")
            .json("{")
            .send(sidecar.outbound())
            .await,
        400,
        "not-json",
    );
    let records = records(&topic, 4).await;
    let keys: Vec<_> = records.iter().map(key).collect();
    assert_eq!(keys, [None, None, None, Some("k")]);
}

#[tokio::test]
async fn calls_of_one_key_lie_in_one_partition_in_their_order() {
    let topic = broker::topic("ordered", 8);
    let sidecar = publishing(&topic, ", key: /k").await;
    for n in 0..60 {
        let body = format!(r#"{{"k":"key-{}","n":{n}}}"#, n % 5);
        assert_eq!(
            post("billing", "/")
                .json(body)
                .send(sidecar.outbound())
                .await
                .status,
            202
        );
    }
    let records = records(&topic, 60).await;
    let mut used = HashSet::new();
    for of in 0..5 {
        let name = format!("key-{of}");
        let mine: Vec<_> = records
            .iter()
            .filter(|record| key(record) == Some(&name))
            .collect();
        let partitions: HashSet<_> = mine.iter().map(|record| record.partition).collect();
        assert_eq!(partitions.len(), 1, "{name} lies in several partitions");
        used.extend(partitions);
        let order: Vec<i64> = mine
            .iter()
            .map(|record| {
                serde_json::from_slice::<serde_json::Value>(
                    record.value.as_deref().unwrap_or_default(),
                )
            })
            .map(|value| value.expect("it is JSON")["n"].as_i64().unwrap_or(-1))
            .collect();
        assert_eq!(order, (0..12).map(|n| n * 5 + of).collect::<Vec<i64>>());
    }
    assert!(used.len() > 1, "keys are spread");
}
