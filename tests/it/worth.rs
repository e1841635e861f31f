//! The admin door says whether events pay, and what to do if they do not.

use serde_json::Value;

use super::event::{orders_at, path_of};
use super::stores::{LONG, Orders, reading, seen};
use crate::support::app::App;
use crate::support::broker;
use crate::support::client::get;
use crate::support::eventually::eventually;
use crate::support::sidecar::Sidecar;

const SLIM: &str = "slim: { keep: [/id, /customer], claim: bodies }";

async fn events(sidecar: &Sidecar) -> Value {
    let reply = get("localhost", "/events")
        .send(sidecar.addresses().admin)
        .await;
    assert_eq!(reply.status, 200);
    reply.json()
}

/// Publishes so many orders whose cut part has so many bytes.
async fn publish(orders: &Orders, count: usize, bytes: usize) {
    for n in 0..count {
        let filling = "x".repeat(bytes);
        let body = format!(
            r#"{{"id":"o-{n}","customer":{{"id":{n}}},"note":"short {n}","rest":"{filling}"}}"#
        );
        orders.publish(&body).await;
    }
}

/// A reader whose app has had all of them.
async fn reader(orders: &Orders, mode: &str, count: usize) -> (Sidecar, App) {
    let app = App::agreeable().await;
    let (topic, group) = (&orders.topic, broker::unique("g"));
    let rule = format!("topic: {topic}, group: {group}, hydrate: {mode}");
    let receiver = reading(app.address, ("", &orders_at(orders.at())), &[rule]).await;
    seen(&app, count).await;
    (receiver, app)
}

#[tokio::test]
async fn what_was_kept_from_the_broker_and_what_was_had_back_is_told_with_the_break_even() {
    let orders = Orders::with("disk", SLIM, "1h").await;
    publish(&orders, 120, 30_000).await;
    let (receiver, app) = reader(&orders, "lazy", 120).await;
    for seen in &app.seen()[..12] {
        let path = path_of(seen.header("wayside-claim").expect("an address"), &receiver);
        assert_eq!(
            get("127.0.0.1", &path)
                .send(receiver.outbound())
                .await
                .status,
            200
        );
    }
    let told = events(&receiver).await;
    let row = &told["subscriptions"][0];
    assert_eq!(
        (&row["topic"], &row["events"]),
        (&orders.topic.clone().into(), &120.into())
    );
    assert_eq!(
        (&row["hydrations"], &row["lazy"], &row["eager"]),
        (&12.into(), &12.into(), &0.into())
    );
    assert_eq!(row["ratio"], 0.1);
    let kept = row["bytes_kept_from_broker"].as_u64().expect("bytes");
    assert!((120 * 30_000..120 * 30_100).contains(&kept), "{kept}");
    let had = row["bytes_hydrated"].as_u64().expect("bytes");
    assert!((12 * 30_000..12 * 30_100).contains(&had), "{had}");
    let even = row["break_even"].as_f64().expect("a ratio");
    // What the border is depends on what things cost here, and the words on the border.
    let advice = row["advice"].as_str().expect("words");
    let expected = match even < 0.1 / 1.1 {
        true => "switch the route",
        false => "slimming pays",
    };
    assert!(even > 0.0 && advice.starts_with(expected), "{told}");
    assert_eq!(told["costs"]["measured"]["hydrate"], true);

    let told = events(&orders.sidecar).await;
    let row = &told["routes"][0];
    assert_eq!(
        (&row["route"], &row["events"], &row["slimmed"]),
        (&"all".into(), &120.into(), &120.into())
    );
    assert_eq!(row["bytes_kept_from_broker"], kept);
    assert_eq!(row["claims_served"], 12);
    let name = format!("topic=\"{}\"", orders.topic);
    let gauges = async || {
        let ratio = receiver.metric("wayside_hydration_ratio", &[&name]);
        let border = receiver.metric("wayside_hydration_break_even", &[&name]);
        (ratio > 0.09 && ratio < 0.11 && border > 0.0).then_some(())
    };
    eventually("the gauges tell the same", LONG, gauges).await;
    assert!(receiver.stop().await && orders.sidecar.stop().await);
}

#[tokio::test]
async fn who_hydrates_what_was_hardly_cut_is_told_to_send_whole_messages() {
    let orders = Orders::with("disk", SLIM, "1h").await;
    publish(&orders, 120, 10).await;
    let (receiver, _app) = reader(&orders, "eager", 120).await;
    let told = events(&receiver).await;
    let row = &told["subscriptions"][0];
    assert_eq!((&row["eager"], &row["ratio"]), (&120.into(), &1.0.into()));
    let advice = row["advice"].as_str().expect("words");
    assert!(
        advice.contains("whole messages (remove `slim`)"),
        "{advice}"
    );
    assert!(receiver.stop().await && orders.sidecar.stop().await);
}

#[tokio::test]
async fn a_small_field_that_many_ask_for_is_told_to_be_kept_in_the_record() {
    let orders = Orders::with("disk", SLIM, "1h").await;
    publish(&orders, 120, 30_000).await;
    let (receiver, app) = reader(&orders, "lazy", 120).await;
    for seen in &app.seen()[..90] {
        let path = path_of(seen.header("wayside-claim").expect("an address"), &receiver);
        let reply = get("127.0.0.1", &format!("{path}?fields=/note"))
            .send(receiver.outbound())
            .await;
        assert_eq!(reply.status, 200);
    }
    let told = events(&receiver).await;
    let row = &told["subscriptions"][0];
    let field = &row["fields"][0];
    assert_eq!(
        (&field["field"], &field["asked"]),
        (&"/note".into(), &90.into())
    );
    let advice = row["advice"].as_str().expect("words");
    assert!(
        advice.starts_with("keep `/note` in the record (`slim.keep`)"),
        "{advice}"
    );
    assert!(receiver.stop().await && orders.sidecar.stop().await);
}

#[tokio::test]
async fn a_route_that_sends_large_bodies_whole_is_told_what_slimming_would_be_worth() {
    let orders = Orders::with("inline", "", "1h").await;
    publish(&orders, 120, 30_000).await;
    let told = events(&orders.sidecar).await;
    let advice = told["routes"][0]["advice"]
        .as_str()
        .expect("words")
        .to_owned();
    assert!(advice.contains("slimming would pay"), "{advice}");
    assert!(orders.sidecar.stop().await);
}
