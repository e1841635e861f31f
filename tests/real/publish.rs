//! From a call at one door to a record in a topic, and to the same call at another app.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;

use crate::broker;
use crate::sidecar::Sidecar;
use crate::support::app::{App, Seen};
use crate::support::client::{get, post};
use crate::support::eventually::eventually;
use crate::support::kafka::Kafka;

/// A sidecar beside `orders` that publishes every POST for billing to `topic`.
async fn orders(kafka: &Kafka, topic: &str) -> Sidecar {
    Sidecar::run(&format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: create-invoice
      match: {{ host: billing, methods: [POST] }}
      publish: {{ topic: {topic}, key: /customer/id }}
kafka: {{ brokers: [\"{}\"] }}
",
        kafka.address()
    ))
    .await
}

#[tokio::test]
async fn a_post_at_orders_arrives_at_billings_app_as_the_same_call() {
    let Some(kafka) = broker().await else { return };
    kafka.make_topic("same-call", 4).await;
    let app = App::agreeable().await;
    let orders = orders(kafka, "same-call").await;
    let _billing = Sidecar::run(&format!(
        "
service: billing
app: {}
outbound: {{ listen: 127.0.0.1:0 }}
subscriptions:
  - {{ topic: same-call, group: same-call }}
kafka: {{ brokers: [\"{}\"] }}
",
        app.address,
        kafka.address()
    ))
    .await;
    // Odd spacing, an escape, and letters of two and four bytes: what a parser would tidy must stay.
    let body =
        "{ \"customer\" : {\"id\":\"c-7\"},\n\t\"note\":\"\\u00e9 straße 🚃\", \"n\": 1.0e2 }";
    let target = "/invoices/eu%20west/a%2Fb?draft=1&x=%C3%A9&empty=";
    let reply = post("billing", target)
        .header("content-type", "application/json; charset=utf-8")
        .header("accept-language", "de")
        .header("x-tag", "one")
        .header("x-tag", "two")
        .header("authorization", "Bearer secret")
        .header("cookie", "session=secret")
        .header("x-forwarded-for", "10.0.0.9")
        .body(body)
        .send(orders.door())
        .await;
    assert_eq!(reply.status, 202, "{:?}", reply.body);
    assert_eq!(reply.header("wayside-pattern"), Some("publish"));
    let id = reply.json()["id"]
        .as_str()
        .expect("the 202 names the message")
        .to_owned();
    let location = format!("/.wayside/messages/{id}");
    assert_eq!(reply.header("location"), Some(location.as_str()));

    let call = eventually(
        "billing's app is called",
        Duration::from_secs(20),
        async || app.seen().into_iter().next(),
    )
    .await;
    is_the_call(&call, target, body);
    assert_eq!(call.header("wayside-message-id"), Some(id.as_str()));
    let timeline = get("billing", &location).send(orders.door()).await;
    assert_eq!(timeline.status, 200);
    assert_eq!(
        timeline.json()["status"],
        "replicated",
        "{}",
        timeline.json()
    );
    assert_eq!(app.count(), 1, "one message is one call");
}

fn is_the_call(call: &Seen, target: &str, body: &str) {
    assert_eq!(
        (call.method.as_str(), call.target.as_str()),
        ("POST", target)
    );
    assert_eq!(String::from_utf8_lossy(&call.body), body);
    assert_eq!(
        call.header("content-type"),
        Some("application/json; charset=utf-8")
    );
    assert_eq!(call.header("accept-language"), Some("de"));
    let tags: Vec<_> = call.headers.get_all("x-tag").iter().collect();
    assert_eq!(tags, ["one", "two"]);
    for name in ["authorization", "cookie", "x-forwarded-for"] {
        assert_eq!(call.header(name), None, "{name} stays at home");
    }
    assert_eq!(call.header("wayside-attempt"), Some("1"));
    assert!(
        call.header("traceparent")
            .is_some_and(|value| value.starts_with("00-")),
        "{call:?}"
    );
}

#[tokio::test]
async fn kcat_reads_the_value_the_key_and_the_cloudevents_headers() {
    let Some(kafka) = broker().await else { return };
    kafka.make_topic("plain-to-read", 4).await;
    let orders = orders(kafka, "plain-to-read").await;
    let body = "{ \"customer\":{\"id\":\"c-9\"}, \"total\": 12.50 }";
    let call = post("billing", "/invoices?draft=1").json(body);
    let call = call
        .header("authorization", "Bearer secret")
        .header("cookie", "session=secret");
    let reply = call.send(orders.door()).await;
    assert_eq!(reply.status, 202, "{:?}", reply.body);

    let records = kafka.read_at_least("plain-to-read", 1).await;
    let [record] = &records[..] else {
        panic!("one call is one record: {records:?}")
    };
    assert_eq!(record.value.as_deref(), Some(body));
    assert_eq!(record.key.as_deref(), Some("c-9"));
    assert_eq!(record.header("ce_specversion"), "1.0");
    assert_eq!(reply.json()["id"], json!(record.header("ce_id")));
    assert!(
        !record.header("ce_source").is_empty(),
        "CloudEvents wants a source"
    );
    assert!(
        !record.header("ce_type").is_empty(),
        "CloudEvents wants a type"
    );
    assert_eq!(record.header("content-type"), "application/json");
    let secrets = record.headers();
    assert!(
        !format!("{secrets:?}").contains("secret"),
        "credentials in {secrets:?}"
    );
}

/// Keys as a caller writes them in JSON, and as the record must have them: a string's unescaped UTF-8, a number's or
/// boolean's JSON text.
fn keys() -> Vec<(String, String)> {
    let quoted = |text: String| (json!(text).to_string(), text);
    let mut keys: Vec<_> = (0..400)
        .map(|n| quoted(format!("customer-{n}")))
        // Every length modulo four: the hash treats what is left over by itself. Bytes above 127 are negative in Java.
        .chain((1..=64).map(|n| quoted("é".repeat(n / 2) + &"k".repeat(n % 2))))
        .chain([1_000, 10_001].map(|n| quoted("long ".repeat(n))))
        .collect();
    let odd = [
        "",
        " ",
        "\t",
        "0",
        "-",
        "null",
        "a\"b\\c",
        "\u{0}",
        "\u{7f}",
        "\u{feff}",
        "ß",
        "İ",
        "e\u{301}",
        "日本語",
        "ключ",
        "مفتاح",
        "🚃",
        "👩\u{200d}👩\u{200d}👧",
        "\u{10ffff}",
        "a/b",
        "A",
        "customer-1 ",
    ];
    keys.extend(odd.map(|text| quoted(text.to_owned())));
    // Escapes that a parser undoes, and numbers that it would tidy.
    let written = [
        (r#""\u00fc""#, "ü"),
        (r#""\ud83d\ude83!""#, "🚃!"),
        (r#""\/slash""#, "/slash"),
    ];
    keys.extend(written.map(|(json, text)| (json.to_owned(), text.to_owned())));
    let scalars = [
        "true",
        "false",
        "-0",
        "1.5",
        "1.0e2",
        "1E+2",
        "12345678901234567890123",
    ];
    let scalars = scalars.map(str::to_owned).into_iter();
    keys.extend(
        scalars
            .chain((1..=30).map(|n| (n * 7).to_string()))
            .map(|text| (text.clone(), text)),
    );
    keys
}

/// What the callers of [`keys`] were told, by partition and offset: the message's id, the key and the value.
type Told = BTreeMap<(i64, i64), (String, String, String)>;

async fn publish_each(keys: &[(String, String)], orders: &Sidecar) -> Told {
    let mut told = Told::new();
    for (json, key) in keys {
        let body = format!("{{ \"customer\" : {{\"id\":{json} }} }}");
        let call = post("billing", "/invoices").json(body.clone());
        let reply = call.header("x-tag", "a:b, c").send(orders.door()).await;
        assert_eq!(reply.status, 202, "{json}: {:?}", reply.body);
        let reply = reply.json();
        let number = |name: &str| reply[name].as_i64().expect("the 202 names the place");
        let id = reply["id"].as_str().expect("the 202 names the message");
        let place = (number("partition"), number("offset"));
        told.insert(place, (id.to_owned(), key.clone(), body));
    }
    assert_eq!(told.len(), keys.len(), "each has a place of its own");
    told
}

#[tokio::test]
async fn kcat_and_a_java_consumer_read_the_same_and_javas_producer_would_choose_the_same_partition()
{
    let Some(kafka) = broker().await else { return };
    kafka.make_topic("ours", 7).await;
    kafka.make_topic("javas", 7).await;
    let keys = keys();
    let distinct: BTreeSet<_> = keys.iter().map(|(_, key)| key).collect();
    assert!(distinct.len() == keys.len() && keys.len() >= 500);
    let told = publish_each(&keys, &orders(kafka, "ours").await).await;

    let by_kcat = kafka.read_at_least("ours", keys.len()).await;
    let by_java = kafka.read_by_java("ours", keys.len()).await;
    assert_eq!((by_kcat.len(), by_java.len()), (keys.len(), keys.len()));
    for (kcats, javas) in by_kcat.iter().zip(&by_java) {
        assert_eq!(kcats, javas);
        let place = (i64::from(javas.partition), javas.offset);
        let (id, key, value) = &told[&place];
        assert_eq!(javas.header("ce_id"), id);
        assert_eq!(javas.key.as_ref(), Some(key));
        assert_eq!(javas.value.as_ref(), Some(value));
        assert_eq!(javas.header("http-x-tag"), "a:b, c");
    }

    let lines: String = keys
        .iter()
        .map(|(_, key)| format!("{key}|java\n"))
        .collect();
    kafka.produce_by_java("javas", &lines).await;
    let chosen = kafka.read_at_least("javas", keys.len()).await;
    let chosen: BTreeMap<_, _> = chosen
        .iter()
        .map(|record| (record.key.as_deref().unwrap_or_default(), record.partition))
        .collect();
    assert_eq!(chosen.len(), keys.len(), "Java's producer took each key");
    for record in &by_java {
        let key = record.key.as_deref().unwrap_or_default();
        assert_eq!(chosen[key], record.partition, "{key:?}");
    }
    let used: BTreeSet<_> = by_java.iter().map(|record| record.partition).collect();
    assert_eq!(used.len(), 7);
}
