//! Records that mean harm or are broken: none stops a lane, reaches out or speaks in our name.

use super::event::{digest, orders_at, path_of, receiving};
use super::subscription::{FAST, bodies, calls, ended, subscribed};
use wayside::claims::id::{Place, Signer, audience};

use crate::support::app::{Answer, App};
use crate::support::broker::{self, Written, plain};
use crate::support::client::{get, post};
use crate::support::sidecar::Sidecar;
use crate::support::topic;

#[tokio::test]
async fn a_record_that_makes_no_call_goes_to_the_dead_letters_and_its_lane_goes_on() {
    let (topic, grave, group) = (
        broker::topic("poison", 1),
        broker::topic("poison-dead", 1),
        broker::unique("group"),
    );
    let app = App::agreeable().await;
    let rule =
        format!("topic: {topic}, group: {group}, dead_letter: {grave}, hydrate: lazy, {FAST}");
    let sidecar = subscribed(app.address, &[rule]).await;
    const TARGET: (&str, &str) = ("wayside-target", "/ok");
    const CLAIM: [(&str, &str); 5] = [
        ("wayside-claim", "AQID"),
        ("wayside-claim-fields", "[\"/lines\"]"),
        (
            "wayside-claim-digest",
            "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
        ),
        ("wayside-claim-size", "10"),
        ("wayside-claim-expires", "2099-01-01T00:00:00Z"),
    ];
    let no_origin: Vec<_> = [TARGET].into_iter().chain(CLAIM).collect();
    let odd_origin = [TARGET, ("wayside-origin", "http:evil/x@y")];
    let odd_origin: Vec<_> = odd_origin.into_iter().chain(CLAIM).collect();
    let (origin, odd) = (("wayside-origin", "orders/o:1"), ("wayside-claim", "../x"));
    let odd_claim: Vec<_> = [TARGET, origin, odd].into_iter().chain(CLAIM).collect();
    let bad: [&[(&str, &str)]; 13] = [
        &[],
        &[("wayside-target", "no-slash")],
        &[("wayside-target", "http://evil/")],
        &[("wayside-target", "/a b\r\nx: y")],
        &[TARGET, ("wayside-method", "CONNECT")],
        &[TARGET, ("wayside-method", "TRACE")],
        &[("wayside-target", "/../../etc")],
        &[TARGET, ("wayside-claim", "AQID")],
        &[TARGET, ("wayside-claim-digest", "sha-256=:nonsense:")],
        &[TARGET, ("wayside-claim-size", "-1")],
        &no_origin,
        &odd_origin,
        &odd_claim,
    ];
    let mut written: Vec<_> = bad
        .iter()
        .map(|headers| Written {
            headers,
            ..plain("poison")
        })
        .collect();
    written.push(Written {
        headers: &[TARGET, ("wayside-method", "B\u{e4}D")],
        ..plain("sound")
    });
    broker::write(&topic, &written);
    let seen = calls(&app, 1).await;
    assert_eq!(
        bodies(&seen),
        ["sound"],
        "only the sound one reaches the app"
    );
    ended(&sidecar, &topic, "dead-letter", bad.len()).await;
    for record in topic::read(&broker::address(), &grave, bad.len()).await {
        assert_eq!(record.value.as_deref(), Some(&b"poison"[..]));
        assert!(record.header("wayside-dead-reason").is_some());
    }
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn headers_that_a_record_forges_do_not_reach_the_app() {
    let (topic, group) = (broker::topic("forged", 1), broker::unique("group"));
    let app = App::agreeable().await;
    let sidecar = subscribed(app.address, &[format!("topic: {topic}, group: {group}")]).await;
    let headers = [
        ("wayside-target", "/ok"),
        ("wayside-message-id", "forged"),
        ("wayside-attempt", "forged"),
        ("wayside-dead-invented", "forged"),
        ("http-wayside-message-id", "forged"),
        ("http-wayside-attempt", "forged"),
        ("http-wayside-claim", "http://forged/"),
        ("http-wayside-verdict", "forged"),
        ("http-host", "forged"),
        ("http-authorization", "forged"),
        ("http-cookie", "forged"),
        ("http-proxy-authorization", "forged"),
        ("http-x-forwarded-for", "forged"),
        ("http-forwarded", "forged"),
        ("http-connection", "forged"),
        ("http-content-length", "99"),
        ("http-transfer-encoding", "forged"),
        ("http-upgrade", "forged"),
        ("http-expect", "forged"),
        ("http-te", "forged"),
        ("http-traceparent", "forged"),
        ("http-x-injected", "a\r\nwayside-attempt: forged"),
        ("http-x-Fine", "fine"),
    ];
    broker::write(
        &topic,
        &[Written {
            headers: &headers,
            ..plain("body")
        }],
    );
    let seen = calls(&app, 1).await.remove(0);
    for (name, value) in &seen.headers {
        assert!(
            !String::from_utf8_lossy(value.as_bytes()).contains("forged"),
            "{name} reaches the app"
        );
    }
    assert_eq!(
        (&seen.body[..], seen.header("x-fine")),
        (&b"body"[..], Some("fine"))
    );
    assert_eq!(seen.header("host"), Some(&*app.address.to_string()));
    assert_eq!(seen.header("content-length"), Some("4"));
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn a_dead_letter_larger_than_what_we_publish_is_written_all_the_same() {
    let (topic, grave, group) = (
        broker::topic("huge", 1),
        broker::topic("huge-dead", 1),
        broker::unique("group"),
    );
    let app = App::by(|seen| {
        if seen.body.len() > 9 {
            Answer::status(413)
        } else {
            Answer::ok()
        }
    })
    .await;
    let rule =
        format!("topic: {topic}, group: {group}, deliver: {{ path: /h }}, dead_letter: {grave}");
    let sidecar = subscribed(app.address, &[rule]).await;
    let huge = "h".repeat(3 << 20);
    broker::write(&topic, &[plain(&huge), plain("next")]);
    calls(&app, 2).await;
    let record = topic::read(&broker::address(), &grave, 1).await.remove(0);
    assert_eq!(record.value.map(|value| value.len()), Some(huge.len()));
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn an_app_may_answer_a_delivery_by_publishing_and_a_circle_of_calls_ends() {
    // The app passes every header of a delivery on, as a careless one would.
    let (topic, grave, group) = (
        broker::topic("circle", 1),
        broker::topic("circle-dead", 1),
        broker::unique("group"),
    );
    let app = App::agreeable().await;
    let bootstrap = broker::address();
    let sidecar = Sidecar::start(&format!(
        "
service: billing
app: {}
outbound:
  listen: 127.0.0.1:0
  routes: [ {{ name: all, match: {{ host: again }}, publish: {{ topic: {topic} }} }} ]
subscriptions: [ {{ topic: {topic}, group: {group}, dead_letter: {grave}, {FAST} }} ]
kafka: {{ brokers: [\"{bootstrap}\"] }}
",
        app.address
    ))
    .await;
    assert_eq!(
        post("again", "/c")
            .body("x")
            .send(sidecar.outbound())
            .await
            .status,
        202
    );
    let first = calls(&app, 1).await.remove(0);
    let mut again = post("again", "/c").body("x");
    let via = first
        .header("via")
        .expect("a delivery says by whom it came")
        .to_owned();
    again = again.header("via", &via);
    assert_eq!(again.send(sidecar.outbound()).await.status, 202);
    let record = topic::read(&broker::address(), &grave, 1).await.remove(0);
    assert_eq!(
        record.header("wayside-dead-attempts").as_deref(),
        Some("1"),
        "no attempt helps"
    );
    assert!(
        record
            .header("wayside-dead-reason")
            .is_some_and(|reason| reason.contains("loop"))
    );
    assert_eq!(app.count(), 1);
    assert!(sidecar.stop().await);
}

#[tokio::test]
async fn no_record_makes_the_sidecar_connect_to_a_place_that_is_not_configured() {
    let trap = App::agreeable().await;
    let at = trap.address;
    let orders = App::by(|_| Answer::status(404)).await;
    let (topic, grave) = (broker::topic("ssrf", 1), broker::topic("ssrf-dead", 1));
    let app = App::agreeable().await;
    let rules = [
        format!(
            "topic: {topic}, group: {}, hydrate: eager, dead_letter: {grave}, retry: {{ attempts: 2, backoff: 1ms..2ms }}",
            broker::unique("g")
        ),
        format!(
            "topic: {topic}, group: {}, hydrate: lazy, deliver: {{ path: /lazy }}",
            broker::unique("g")
        ),
    ];
    let receiver = receiving(app.address, &orders_at(orders.address), &rules).await;
    let whole = digest("whole");
    // Well-formed, for this topic, and signed by somebody else.
    let place = Place {
        audience: audience(&topic),
        segment: 1,
        offset: 32,
        length: 5,
        expires: u64::MAX,
    };
    let forged = Signer::new(&[7; 32], "orders").sign(&place);
    let origins = [
        format!("evil/{at}"),
        format!("orders/{at}"),
        format!("{at}/{at}"),
    ];
    let headers: Vec<Vec<(&str, &str)>> = origins
        .iter()
        .map(|origin| {
            vec![
                ("wayside-target", "/ok"),
                ("wayside-origin", origin),
                ("wayside-claim", &*forged),
                ("wayside-claim-fields", "[\"/lines\"]"),
                ("wayside-claim-digest", &whole),
                ("wayside-claim-size", "5"),
                ("wayside-claim-expires", "2099-01-01T00:00:00Z"),
            ]
        })
        .collect();
    let written: Vec<_> = headers
        .iter()
        .map(|headers| Written {
            headers,
            ..plain("{}")
        })
        .collect();
    broker::write(&topic, &written);
    let buried = topic::read(&broker::address(), &grave, origins.len()).await;
    assert_eq!(buried.len(), origins.len(), "none of them wedges the lane");
    for seen in calls(&app, 2).await {
        let path = path_of(seen.header("wayside-claim").expect("an address"), &receiver);
        let reply = get("127.0.0.1", &path).send(receiver.outbound()).await;
        assert!(
            matches!(reply.status.as_u16(), 404 | 503),
            "{}",
            reply.status
        );
    }
    assert!(
        orders.count() > 0,
        "the service that is configured was asked"
    );
    assert_eq!(trap.connections(), 0, "and nobody else");
    assert!(receiver.stop().await);
}

#[tokio::test]
async fn what_is_too_large_with_its_reason_leaves_its_value_behind_and_its_lane_goes_on() {
    let (topic, grave, group) = (
        broker::topic("too-large", 1),
        broker::topic("too-large-dead", 1),
        broker::unique("group"),
    );
    let app = App::by(|seen| match seen.body.len() {
        2.. => Answer::status(422),
        _ => Answer::ok(),
    })
    .await;
    let address = broker::address();
    let sidecar = Sidecar::start(&format!(
        "
service: billing
app: {}
subscriptions:
  - {{ topic: {topic}, group: {group}, dead_letter: {grave}, hydrate: never, deliver: {{ path: /x }}, {FAST} }}
kafka: {{ brokers: [\"{address}\"], properties: {{ message.max.bytes: \"3000\" }} }}
",
        app.address
    ))
    .await;
    let (long, large) = ("h".repeat(1500), "v".repeat(5000));
    let id = ("ce_id", "018f0d3c-7b1a-7000-8000-000000000001");
    let headers = [id, ("http-x-long", &long)];
    let by_headers = Written {
        headers: &headers,
        ..plain(&large[..1400])
    };
    let by_value = Written {
        headers: &[id],
        ..plain(&large)
    };
    broker::write(&topic, &[by_headers, by_value, plain("x")]);
    let seen = calls(&app, 3).await;
    assert_eq!(seen[2].body, "x", "the lane goes on");
    let dead = topic::read(&address, &grave, 2).await;
    let told = |at: usize, name: &str| dead[at].header(name);
    assert_eq!(
        (
            told(0, "wayside-dead-cut"),
            dead[0].value.as_ref().map(Vec::len)
        ),
        (Some("headers".to_owned()), Some(1400))
    );
    assert_eq!(told(0, "http-x-long"), None);
    assert_eq!(
        told(1, "wayside-dead-cut"),
        Some("value of 5000 bytes".to_owned())
    );
    assert_eq!(told(1, "wayside-dead-origin"), Some(format!("{topic}/0/1")));
    assert_eq!(
        (told(1, "ce_id"), dead[1].value.clone()),
        (Some(id.1.to_owned()), Some(Vec::new()))
    );
    assert!(sidecar.stop().await);
}
