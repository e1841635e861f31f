//! The world itself, with no sidecar in it: where these fail, the other tests of this folder prove nothing.

use std::time::Duration;

use crate::own_broker;
use crate::support::app::{Answer, App};
use crate::support::client::{get, post};

#[tokio::test]
async fn a_broker_killed_and_started_again_has_its_records_still() {
    let Some(mut kafka) = own_broker().await else {
        return;
    };
    kafka.make_topic("kept", 3).await;
    kafka
        .produce_by_java("kept", "a|1\nb|2\nc|straße 🚃\n")
        .await;
    let before = kafka.read_at_least("kept", 3).await;
    kafka.kill();
    assert!(kafka.read("kept").await.is_empty(), "nobody answers");
    kafka.restart().await;
    let after = kafka.read_at_least("kept", 3).await;
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
    let letter = after
        .iter()
        .find(|record| record.key.as_deref() == Some("c"));
    assert_eq!(letter.map(|record| record.text()), Some("straße 🚃"));
    assert!(kafka.committed("nobody", "kept").await.is_empty());
}

#[tokio::test]
async fn a_scripted_app_answers_in_order_and_keeps_what_it_saw() {
    let app = App::script([
        Answer::status(503).header("retry-after", "1"),
        Answer::cut(),
        Answer::ok().body("half of this").torn(),
        Answer::ok().body("done").after(Duration::from_millis(1)),
    ])
    .await;
    let call = || {
        post("billing", "/a%2Fb?c=d")
            .header("x-tag", "one")
            .json("{}")
    };
    let first = call().send(app.address).await;
    assert_eq!(
        (first.status.as_u16(), first.header("retry-after")),
        (503, Some("1"))
    );
    assert!(call().try_send(app.address).await.is_err(), "cut");
    assert!(call().try_send(app.address).await.is_err(), "torn");
    let last = call().send(app.address).await;
    assert_eq!((last.status.as_u16(), &last.body[..]), (200, &b"done"[..]));
    app.verify(4);
    let seen = &app.seen()[3];
    assert_eq!(
        (seen.method.as_str(), seen.target.as_str()),
        ("POST", "/a%2Fb?c=d")
    );
    assert_eq!(
        (seen.header("host"), seen.header("x-tag")),
        (Some("billing"), Some("one"))
    );
    assert_eq!(
        get("billing", "/").send(app.address).await.status,
        599,
        "the script is over"
    );
}
