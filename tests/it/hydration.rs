//! Bodies that can not be had: no wrong one is ever delivered, nothing forbidden is fetched, and what waits waits alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use wayside::claims::Reference;
use wayside::claims::id::audience;

use super::event::{orders_at, path_of};
use super::stores::{LONG, Orders, order, reading, seen, store};
use crate::support::app::{Answer, App};
use crate::support::broker::{self, Written};
use crate::support::client::{Reply, get, post};
use crate::support::eventually::eventually;
use crate::support::sidecar::Sidecar;
use crate::support::topic;

/// A reader of `topic` that asks `api` for bodies, as the service `orders`.
async fn asking(api: &App, app: &App, topic: &str, rules: &[&str]) -> Sidecar {
    let rules: Vec<String> = rules
        .iter()
        .map(|rule| format!("topic: {topic}, group: {}, {rule}", broker::unique("g")))
        .collect();
    let claims = "claims: { any: { origin: \"http://orders/orders/{/id}\" } }";
    reading(app.address, (claims, &orders_at(api.address)), &rules).await
}

async fn fetch(receiver: &Sidecar, claim: &str, query: &str) -> Reply {
    let path = format!("{}{query}", path_of(claim, receiver));
    get("127.0.0.1", &path).send(receiver.outbound()).await
}

/// The app's answer to each message, once it has come.
async fn claims(app: &App, count: usize) -> Vec<String> {
    let seen = seen(app, count).await;
    let claim = |seen: &crate::support::app::Seen| seen.header("wayside-claim").map(str::to_owned);
    seen.iter().filter_map(claim).collect()
}

#[tokio::test]
async fn what_the_origin_answers_means_what_it_says() {
    let orders = Orders::start("origin", "1h").await;
    let answers = [
        (Answer::status(410), 410, "expired"),
        (
            Answer::status(503).header("retry-after", "7"),
            503,
            "destination-unreachable",
        ),
        (Answer::status(500), 502, "bad-answer"),
        (
            Answer::status(302).header("location", "/orders/o-1"),
            502,
            "bad-answer",
        ),
        (Answer::status(404), 404, "unknown"),
        (Answer::ok().body(order(2)), 409, "claim-changed"),
        (Answer::ok().body(order(1)).torn(), 502, "connection-reset"),
        (
            Answer::ok().body("x".repeat(11 << 20)),
            502,
            "claim-damaged",
        ),
        (Answer::hang(), 504, "deadline-exceeded"),
    ];
    orders.publish(&order(1)).await;
    for (answer, status, problem) in answers {
        let api = App::by(move |_| answer.clone()).await;
        let app = App::agreeable().await;
        let receiver = asking(&api, &app, &orders.topic, &["hydrate: lazy"]).await;
        let claim = claims(&app, 1).await.remove(0);
        let reply = fetch(&receiver, &claim, "").await;
        let told = format!("urn:wayside:problem:{problem}");
        assert_eq!(
            (reply.status.as_u16(), &reply.json()["type"]),
            (status, &told.into())
        );
        if status == 503 {
            assert_eq!(reply.header("retry-after"), Some("7"));
        }
        assert!(api.seen().iter().all(|seen| seen.target == "/orders/o-1"));
        assert!(receiver.stop().await);
    }
    assert!(orders.sidecar.stop().await);
}

#[tokio::test]
async fn what_is_not_found_soon_after_it_was_sent_is_looked_for_again() {
    let orders = Orders::start("origin", "1h").await;
    let app = App::agreeable().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let api = App::by(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 | 1 => Answer::status(404),
        _ => Answer::ok().body(order(1)),
    })
    .await;
    let receiver = asking(&api, &app, &orders.topic, &["hydrate: eager"]).await;
    // The group is there before the message, so that it is young when it is fetched.
    let warm = r#"{"id":"o-0","customer":{"id":0}}"#;
    orders.publish(warm).await;
    seen(&app, 1).await;
    orders.publish(&order(1)).await;
    let seen = seen(&app, 2).await.remove(1);
    assert_eq!(
        (&seen.body[..], seen.header("wayside-attempt")),
        (order(1).as_bytes(), Some("1"))
    );
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    assert!(receiver.stop().await && orders.sidecar.stop().await);
}

#[tokio::test]
async fn a_body_that_has_changed_since_is_never_delivered() {
    let orders = Orders::start("origin", "1h").await;
    orders.publish(&order(1)).await;
    let api = App::by(|_| Answer::ok().body(order(2))).await;
    let app = App::agreeable().await;
    let grave = broker::topic("changed-dead", 1);
    let rule = format!("hydrate: eager, dead_letter: {grave}");
    let receiver = asking(&api, &app, &orders.topic, &[&rule]).await;
    let letter = topic::read(&broker::address(), &grave, 1).await.remove(0);
    let reason = letter.header("wayside-dead-reason").expect("a reason");
    assert!(reason.contains("other bytes than it sent"), "{reason}");
    assert_eq!(app.count(), 0);
    assert!(receiver.stop().await && orders.sidecar.stop().await);
}

#[tokio::test]
async fn an_origin_that_hangs_holds_up_nobody_elses_messages() {
    let orders = Orders::start("origin", "1h").await;
    for n in 0..200 {
        orders.publish(&order(n)).await;
    }
    let whole = r#"{"id":"o-9","customer":{"id":900}}"#;
    for _ in 0..50 {
        orders.publish(whole).await;
    }
    let api = App::by(|_| Answer::hang()).await;
    let app = App::agreeable().await;
    let receiver = asking(
        &api,
        &app,
        &orders.topic,
        &["hydrate: eager, concurrency: 8"],
    )
    .await;
    let others = seen(&app, 50).await;
    assert!(
        others.iter().all(|seen| seen.body == whole),
        "they are of another key"
    );
    assert!(api.count() < 60, "{} of 200 waited for it", api.count());
    assert!(receiver.stop().await && orders.sidecar.stop().await);
}

#[tokio::test]
async fn a_claim_that_does_not_come_holds_up_no_drain() {
    let orders = Orders::start("origin", "1h").await;
    orders.publish(&order(1)).await;
    let api = App::by(|_| Answer::hang()).await;
    let app = App::agreeable().await;
    let receiver = asking(&api, &app, &orders.topic, &["hydrate: eager"]).await;
    seen(&api, 1).await;
    // A fetch may take longer than the drain has.
    assert_eq!(receiver.stop_saying().await, [""; 0]);
    assert_eq!(app.count(), 0);
    assert!(orders.sidecar.stop().await);
}

#[tokio::test]
async fn what_can_not_be_fetched_goes_slim_or_to_the_dead_letters_if_the_subscription_says_so() {
    let orders = Orders::start("disk", "1h").await;
    orders.publish(&order(1)).await;
    let away = App::nowhere();
    let app = App::agreeable().await;
    let grave = broker::topic("unhydrated-dead", 1);
    let (topic, one, other) = (&orders.topic, broker::unique("g"), broker::unique("g"));
    let rules = [
        format!("topic: {topic}, group: {one}, hydrate: eager, unhydrated: deliver-slim"),
        format!(
            "topic: {topic}, group: {other}, hydrate: eager, unhydrated: dead-letter, dead_letter: {grave}"
        ),
    ];
    let services = format!("orders: {{ addresses: [\"{away}\"] }}");
    let receiver = reading(app.address, ("", &services), &rules).await;
    let slim = seen(&app, 1).await.remove(0);
    assert_eq!(slim.body, r#"{"id":"o-1","customer":{"id": 1}}"#);
    assert_eq!(
        slim.header("wayside-hydration"),
        Some("destination-unreachable")
    );
    assert!(
        slim.header("wayside-claim").is_some(),
        "it may be had later"
    );
    let letter = topic::read(&broker::address(), &grave, 1).await.remove(0);
    assert!(
        letter.header("wayside-claim").is_some(),
        "the letter is slim too"
    );
    let referenced = ["outcome=\"referenced\""];
    assert_eq!(
        receiver.metric("wayside_dead_letter_claims_total", &referenced),
        1.0
    );
    assert!(receiver.stop().await && orders.sidecar.stop().await);
}

#[tokio::test]
async fn a_body_that_always_breaks_off_costs_its_message_the_attempts_and_no_more() {
    let orders = Orders::start("origin", "1h").await;
    orders.publish(&order(1)).await;
    let api = App::by(|_| Answer::ok().body(order(1)).torn()).await;
    let app = App::agreeable().await;
    let grave = broker::topic("broken-off", 1);
    let retry = "retry: { attempts: 2, backoff: 20ms..50ms }";
    let rule = format!("hydrate: eager, dead_letter: {grave}, {retry}");
    let receiver = asking(&api, &app, &orders.topic, &[&rule]).await;
    let letter = topic::read(&broker::address(), &grave, 1).await.remove(0);
    let attempts = letter.header("wayside-dead-attempts");
    assert_eq!((attempts.as_deref(), app.count()), (Some("2"), 0));
    assert!(receiver.stop().await && orders.sidecar.stop().await);
}

#[tokio::test]
async fn a_dead_letter_is_whole_and_can_be_put_back_when_its_origin_is_gone() {
    let orders = Orders::start("disk", "1h").await;
    orders.publish(&order(1)).await;
    let app = App::by(|_| Answer::status(422)).await;
    let grave = broker::topic("whole-dead", 1);
    let (topic, group) = (&orders.topic, broker::unique("g"));
    let rule = format!("topic: {topic}, group: {group}, hydrate: lazy, dead_letter: {grave}");
    let receiver = reading(app.address, ("", &orders_at(orders.at())), &[rule]).await;
    let letter = topic::read(&broker::address(), &grave, 1).await.remove(0);
    assert_eq!(letter.value.as_deref(), Some(order(1).as_bytes()));
    let tells = |(name, _): &&(String, Vec<u8>)| name.starts_with("wayside-claim");
    assert_eq!(letter.headers.iter().find(tells), None, "it is no slim one");
    assert!(receiver.stop().await && orders.sidecar.stop().await);

    // Whoever reads the letters, and has nothing of their origin, has all of the body.
    let app = App::agreeable().await;
    let rule = format!(
        "topic: {grave}, group: {}, hydrate: lazy",
        broker::unique("g")
    );
    let reader = reading(app.address, ("", ""), &[rule]).await;
    let seen = seen(&app, 1).await.remove(0);
    assert_eq!(
        (&seen.body[..], seen.header("wayside-claim")),
        (order(1).as_bytes(), None)
    );
    assert!(reader.stop().await);
}

#[tokio::test]
async fn a_claim_of_another_topic_is_not_fetched() {
    let secret = Orders::start("disk", "1h").await;
    secret.publish(&order(1)).await;
    let record = secret.records(1).await.remove(0);
    // Whoever may read one topic and write to another carries the claim over.
    let (open, grave) = (broker::topic("open", 1), broker::topic("open-dead", 1));
    let headers: Vec<(&str, String)> = record
        .headers
        .iter()
        .map(|(name, value)| (&**name, String::from_utf8_lossy(value).into_owned()))
        .collect();
    // Even as a dead letter that came from there.
    let from = format!("{}/0/0", secret.topic);
    let mut headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, &**v)).collect();
    headers.push(("wayside-dead-origin", &from));
    let value = record.value.clone().unwrap_or_default();
    let written = Written {
        headers: &headers,
        value: Some(&value),
        ..Written::default()
    };
    broker::write(&open, &[written]);
    let app = App::agreeable().await;
    let rules = ["lazy", "eager", "[/lines]"].map(|mode| {
        format!(
            "topic: {open}, group: {}, hydrate: {mode}, dead_letter: {grave}",
            broker::unique("g")
        )
    });
    let receiver = reading(app.address, ("", &orders_at(secret.at())), &rules).await;
    for letter in topic::read(&broker::address(), &grave, 3).await {
        let reason = letter.header("wayside-dead-reason").expect("a reason");
        assert!(reason.contains("made for another topic"), "{reason}");
    }
    assert_eq!(app.count(), 0);
    let served = secret
        .sidecar
        .metric("wayside_requests_total", &["route=\"(wayside)\""]);
    assert_eq!(served, 0.0, "nobody asked for it");
    assert!(receiver.stop().await && secret.sidecar.stop().await);
}

#[tokio::test]
async fn an_address_that_no_template_makes_is_not_asked_for() {
    let orders = Orders::start("origin", "1h").await;
    orders.publish(&order(1)).await;
    let api = App::by(|_| Answer::ok().body(order(1))).await;
    let app = App::agreeable().await;
    let receiver = asking(&api, &app, &orders.topic, &["hydrate: lazy"]).await;
    let claim = claims(&app, 1).await.remove(0);
    let (base, reference) = claim.rsplit_once('/').expect("an address");
    let honest = Reference::decode(reference).expect("ours");
    assert_eq!(honest.path, "/orders/o-1");
    for path in [
        "/admin",
        "/orders/",
        "/orders/../admin",
        "/orders/a/b",
        "/orders/o-1?x=1",
        "",
    ] {
        let forged = Reference {
            path: path.into(),
            ..honest.clone()
        };
        let forged = format!("{base}/{}", forged.encode().expect("sound"));
        assert_eq!(fetch(&receiver, &forged, "").await.status, 404, "{path}");
    }
    assert_eq!(api.count(), 0);
    // Another body of the same service, which the template does make: its digest is not the one.
    let other = Reference {
        path: "/orders/o-2".into(),
        digest: [0; 32],
        ..honest.clone()
    };
    let other = format!("{base}/{}", other.encode().expect("sound"));
    assert_eq!(fetch(&receiver, &other, "").await.status, 409);
    let late = Reference {
        expires: std::time::SystemTime::now() - Duration::from_secs(1),
        ..honest
    };
    let late = format!("{base}/{}", late.encode().expect("sound"));
    assert_eq!(fetch(&receiver, &late, "").await.status, 410);
    assert_eq!(api.count(), 1);
    assert!(receiver.stop().await && orders.sidecar.stop().await);
}

#[tokio::test]
async fn a_reader_without_the_template_is_told_what_it_lacks() {
    let orders = Orders::start("origin", "1h").await;
    orders.publish(&order(1)).await;
    let (app, grave) = (App::agreeable().await, broker::topic("lacks-dead", 1));
    let rule = format!(
        "topic: {}, group: {}, hydrate: eager, dead_letter: {grave}, retry: {{ attempts: 2, backoff: 1ms..2ms }}",
        orders.topic,
        broker::unique("g")
    );
    let receiver = reading(app.address, ("", &orders_at(orders.at())), &[rule]).await;
    let letter = topic::read(&broker::address(), &grave, 1).await.remove(0);
    let reason = letter.header("wayside-dead-reason").expect("a reason");
    assert!(
        reason.contains("no `origin` of `claims` here makes"),
        "{reason}"
    );
    assert!(receiver.stop().await && orders.sidecar.stop().await);
}

#[tokio::test]
async fn a_sibling_that_lacks_a_claim_says_that_another_one_has_it() {
    let (orders, sibling) = (
        Orders::start("disk", "1h").await,
        Orders::start("disk", "1h").await,
    );
    orders.publish(&order(1)).await;
    let record = orders.records(1).await.remove(0);
    let claim = record.header("wayside-claim").expect("a claim");
    let ask = async |path: &str| {
        let path = format!("/.wayside/claims/{path}");
        get("orders", &path).send(sibling.at()).await
    };
    let reply = ask(&claim).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["type"]),
        (421, &"urn:wayside:problem:claim-elsewhere".into())
    );
    assert_eq!(ask("AQID").await.status, 404, "that never was a claim");
    // A reader whose `services` only has the sibling is told so, and one that has both finds the right one.
    let app = App::agreeable().await;
    let rule = format!(
        "topic: {}, group: {}, hydrate: lazy",
        orders.topic,
        broker::unique("g")
    );
    let only = reading(app.address, ("", &orders_at(sibling.at())), &[rule]).await;
    let claim = claims(&app, 1).await.remove(0);
    let reply = fetch(&only, &claim, "").await;
    assert_eq!(reply.status, 404);
    let detail = reply.json()["detail"].to_string();
    assert!(detail.contains("not among its addresses"), "{detail}");
    assert!(only.stop().await && orders.sidecar.stop().await && sibling.sidecar.stop().await);
}

#[tokio::test]
async fn a_store_that_is_away_refuses_before_anything_is_sent_and_readers_wait_for_it() {
    let away = App::nowhere();
    let topic = broker::topic("away", 1);
    let s3 = format!(
        "object: s3://bucket/claims, s3: {{ endpoint: \"http://{away}\", region: x, access_key: a, secret_key: b }}"
    );
    let sidecar = Sidecar::start(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - {{ name: all, match: {{ host: billing }}, publish: {{ topic: {topic}, slim: {{ keep: [/id] }} }} }}
claims: {{ bodies: {{ {s3} }} }}
kafka: {{ brokers: [\"{}\"] }}
",
        broker::address()
    ))
    .await;
    let call = post("billing", "/orders").json(order(1));
    let reply = call.send(sidecar.outbound()).await;
    assert_eq!(reply.status, 503);
    assert_eq!(
        reply.json()["type"],
        "urn:wayside:problem:claim-store-unavailable"
    );
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert!(sidecar.stop().await);

    // A message of a store that works, read by one for whom it does not.
    let orders = Orders::start("object", "1h").await;
    orders.publish(&order(1)).await;
    let app = App::agreeable().await;
    let rule = format!(
        "topic: {}, group: {}, hydrate: eager",
        orders.topic,
        broker::unique("g")
    );
    let claims = format!("claims: {{ any: {{ {s3} }} }}");
    let receiver = reading(app.address, (&claims, ""), &[rule]).await;
    let name = format!("subscription=\"{}\"", orders.topic);
    let labels = [&*name, "verdict=\"not-hydrated\""];
    let waits =
        async || (receiver.metric("wayside_deliveries_total", &labels) >= 1.0).then_some(());
    eventually("it waits", LONG, waits).await;
    assert_eq!(app.count(), 0);
    assert!(receiver.stop().await && orders.sidecar.stop().await);
}

#[tokio::test]
async fn a_store_that_evicts_answers_gone_for_what_went() {
    let orders = Orders::start("inline", "1h").await;
    let topic = orders.topic.clone();
    assert!(orders.sidecar.stop().await);
    let folder = tempfile::tempdir().expect("a folder");
    let disk = store("disk", folder.path(), "1h");
    let sidecar = Sidecar::start(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - {{ name: all, match: {{ host: billing }}, publish: {{ topic: {topic}, slim: {{ keep: [/id] }} }} }}
inbound: {{ listen: 127.0.0.1:0 }}
claims: {{ bodies: {{ {disk}, max: 1MiB, full: evict }} }}
kafka: {{ brokers: [\"{}\"] }}
",
        broker::address()
    ))
    .await;
    for n in 0..40 {
        let body = format!(r#"{{"id":{n},"x":"{}"}}"#, "x".repeat(50 << 10));
        let reply = post("billing", "/")
            .json(body)
            .send(sidecar.outbound())
            .await;
        assert_eq!(reply.status, 202, "{:?}", reply.body);
    }
    let records = topic::read(&broker::address(), &topic, 40).await;
    let ask = async |n: usize| {
        let claim = records[n].header("wayside-claim").expect("a claim");
        let path = format!("/.wayside/claims/{claim}");
        get("orders", &path).send(sidecar.inbound()).await
    };
    let (first, last) = (ask(0).await, ask(39).await);
    assert_eq!((first.status.as_u16(), last.status.as_u16()), (410, 200));
    let detail = first.json()["detail"].to_string();
    assert!(detail.contains("before its time"), "{detail}");
    let app = App::agreeable().await;
    let rule = format!(
        "topic: {topic}, group: {}, hydrate: lazy",
        broker::unique("g")
    );
    let services = orders_at(sidecar.inbound());
    let receiver = reading(app.address, ("", &services), &[rule]).await;
    let claim = claims(&app, 40).await.remove(0);
    let reply = fetch(&receiver, &claim, "").await;
    let detail = reply.json()["detail"].to_string();
    assert_eq!(reply.status, 410, "{detail}");
    assert!(
        detail.contains("before its time"),
        "whoever reads is told why: {detail}"
    );
    assert!(receiver.stop().await);
    let store = ["store=\"bodies\""];
    let counted = async || {
        let evicted = sidecar.metric("wayside_claim_evicted_bytes_total", &store);
        (evicted >= f64::from(900 << 10)).then_some(())
    };
    eventually("it is counted", LONG, counted).await;
    assert!(sidecar.stop().await);
}

#[test]
fn a_topic_is_known_by_its_name_alone() {
    assert_ne!(audience("payments"), audience("payments.dead"));
}
