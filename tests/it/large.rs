//! Bodies that are no JSON go into their claims as they come, and back out the same way.

use bytes::Bytes;
use http::Method;
use serde_json::Value;

use super::event::{orders_at, path_of};
use super::stores::{Orders, readers_claims, reading, seen};
use crate::support::app::App;
use crate::support::broker;
use crate::support::client::{Outgoing, get, post};
use crate::support::topic;

const SLIM: &str = "slim: { keep: [/id], whole_over: 64KiB, claim: bodies }, max_body: 40MiB";
const LEN: usize = 24 << 20;

fn film() -> Bytes {
    (0..LEN as u64)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect::<Vec<u8>>()
        .into()
}

fn film_of(body: Bytes) -> Outgoing {
    post("billing", "/films")
        .header("content-type", "video/mp4")
        .body(body)
}

#[tokio::test]
async fn a_body_larger_than_what_is_held_in_memory_comes_back_whole() {
    for kind in ["disk", "object"] {
        let orders = Orders::with(kind, SLIM, "1h").await;
        let film = film();
        let reply = film_of(film.clone()).send(orders.sidecar.outbound()).await;
        assert_eq!(reply.status, 202, "{:?}", reply.body);
        assert_eq!(reply.json()["claim"]["size"], LEN);
        let record = orders.records(1).await.remove(0);
        assert_eq!(record.value.as_deref(), Some(&b""[..]));

        let (app, grave) = (App::agreeable().await, broker::topic("large-dead", 1));
        let topic = &orders.topic;
        let rules = [
            format!(
                "topic: {topic}, group: {}, hydrate: lazy",
                broker::unique("g")
            ),
            format!(
                "topic: {topic}, group: {}, hydrate: eager, dead_letter: {grave}",
                broker::unique("g")
            ),
        ];
        let reads = (&*readers_claims(kind, &orders), &*orders_at(orders.at()));
        let receiver = reading(app.address, reads, &rules).await;
        let slim = seen(&app, 1).await.remove(0);
        let path = path_of(slim.header("wayside-claim").expect("an address"), &receiver);
        let head = Outgoing::new(Method::HEAD, "127.0.0.1", &path);
        let head = head.send(receiver.outbound()).await;
        let length = head.header("content-length").map(str::to_owned);
        assert_eq!((head.status.as_u16(), length), (200, Some(LEN.to_string())));
        let any = get("127.0.0.1", &path).header("if-none-match", "*");
        assert_eq!(any.send(receiver.outbound()).await.status, 304);
        let whole = ["mode=\"lazy\"", "outcome=\"whole\""];
        assert_eq!(receiver.metric("wayside_hydrations_total", &whole), 0.0);
        let reply = get("127.0.0.1", &path).send(receiver.outbound()).await;
        assert_eq!(
            (reply.status.as_u16(), reply.body.len()),
            (200, LEN),
            "{kind}"
        );
        assert!(reply.body == film, "{kind}: bit for bit");
        assert_eq!(reply.header("content-type"), Some("video/mp4"));
        assert_eq!(reply.header("content-length"), Some(&*LEN.to_string()));
        // Before a delivery it would have to be in memory.
        let letter = topic::read(&broker::address(), &grave, 1).await.remove(0);
        let reason = letter.header("wayside-dead-reason").expect("a reason");
        assert!(reason.contains("over `limits.claim`"), "{reason}");
        assert!(receiver.stop().await && orders.sidecar.stop().await);
    }
}

/// Changes one byte in the middle of the only large file below a folder.
fn damage(folder: &std::path::Path) {
    let mut left = vec![folder.to_owned()];
    while let Some(path) = left.pop() {
        for entry in std::fs::read_dir(&path).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                left.push(path);
            } else if path.metadata().expect("a file").len() > 1 << 20 {
                let mut bytes = std::fs::read(&path).expect("a file");
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(&path, bytes).expect("a file");
            }
        }
    }
}

#[tokio::test]
async fn a_large_body_that_was_changed_where_it_is_kept_never_ends_as_a_whole_one() {
    for kind in ["disk", "object"] {
        let orders = Orders::with(kind, SLIM, "1h").await;
        let reply = film_of(film()).send(orders.sidecar.outbound()).await;
        assert_eq!(reply.status, 202, "{:?}", reply.body);
        damage(orders.folder.path());
        let app = App::agreeable().await;
        let rule = format!("topic: {}, group: {}", orders.topic, broker::unique("g"));
        let reads = (&*readers_claims(kind, &orders), &*orders_at(orders.at()));
        let receiver = reading(app.address, reads, &[rule]).await;
        let slim = seen(&app, 1).await.remove(0);
        let path = path_of(slim.header("wayside-claim").expect("an address"), &receiver);
        let broken = get("127.0.0.1", &path).try_send(receiver.outbound()).await;
        assert!(broken.is_err(), "{kind}: it breaks off");
        assert!(receiver.stop().await && orders.sidecar.stop().await);
    }
}

#[tokio::test]
async fn what_is_refused_or_repeated_leaves_nothing_in_the_store() {
    let orders = Orders::with("disk", SLIM, "1h").await;
    let stored = || {
        let files = std::fs::read_dir(orders.folder.path().join("bodies")).expect("a folder");
        let files = files.map(|file| file.expect("an entry").metadata().expect("a file").len());
        files.filter(|len| *len > 1 << 20).sum::<u64>()
    };
    let door = orders.sidecar.outbound();
    let too_large = film_of(vec![7; 41 << 20].into()).send(door).await;
    assert_eq!(too_large.status, 413);
    assert_eq!(stored(), 0);
    let first = film_of(film())
        .header("idempotency-key", "k")
        .send(door)
        .await;
    assert_eq!(first.status, 202, "{:?}", first.body);
    let again = film_of(film())
        .header("idempotency-key", "k")
        .send(door)
        .await;
    assert_eq!(
        (again.status.as_u16(), &again.json()["id"]),
        (202, &first.json()["id"])
    );
    let other = film_of(vec![7; 1 << 20].into())
        .header("idempotency-key", "k")
        .send(door)
        .await;
    assert_eq!(other.status, 422);
    let (least, most) = (LEN as u64, LEN as u64 + 1024);
    assert!((least..most).contains(&stored()), "{} bytes", stored());
    // What is not larger than the rule says goes along with the record.
    let small = film_of(vec![7; 64 << 10].into()).send(door).await;
    assert_eq!(small.json()["claim"], Value::Null);
    assert!(orders.sidecar.stop().await);
}
