//! What a body must be before a 202: its schema, its media type, and that nothing of a refused one is kept or sent.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::publish::{key, records, refused};
use crate::support::broker;
use crate::support::client::{Outgoing, Reply, get, post};
use crate::support::eventually::eventually;
use crate::support::process::Process;
use crate::support::sidecar::Sidecar;

const ORDER: &str = r##"{
  "type": "object",
  "required": ["id", "customer"],
  "additionalProperties": false,
  "properties": {
    "id": { "type": "string" },
    "customer": { "$ref": "#/$defs/customer" },
    "lines": { "type": "array", "items": { "type": "object", "required": ["sku"] } }
  },
  "$defs": { "customer": { "type": "object", "required": ["id"] } }
}"##;
const GOOD: &str = r#"{"id":"o-1","customer":{"id":"c-1"},"lines":[{"sku":"a"}]}"#;

/// A configuration and a schema beside it.
struct Files {
    folder: TempDir,
    topic: String,
}

impl Files {
    fn with(rule: &str, rest: &str) -> Self {
        let files = Self {
            folder: TempDir::with_prefix("wayside-schema-").expect("a folder can be made"),
            topic: broker::topic("orders", 1),
        };
        files.schema(ORDER);
        let (topic, broker) = (&files.topic, broker::address());
        files.write(
            "w.yaml",
            &format!(
                "\
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: all
      match: {{ host: billing }}
      publish: {{ topic: {topic}{rule} }}
kafka: {{ brokers: [\"{broker}\"] }}
admin: {{ listen: 127.0.0.1:0 }}
{rest}"
            ),
        );
        files
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).expect("the folder can be written");
    }

    fn schema(&self, text: &str) {
        self.write("order.json", text);
    }

    fn yaml(&self) -> PathBuf {
        self.folder.path().join("w.yaml")
    }

    async fn start(&self) -> Sidecar {
        Sidecar::start_file(&self.yaml()).await
    }
}

fn order(body: impl Into<bytes::Bytes>) -> Outgoing {
    post("billing", "/orders").json(body)
}

fn violations(reply: &Reply) -> Vec<Value> {
    let list = reply.json()["violations"].as_array().cloned();
    list.expect("a list of violations")
}

fn pointers(reply: &Reply) -> Vec<String> {
    let list = violations(reply);
    let mut pointers: Vec<_> = list
        .iter()
        .map(|one| one["pointer"].as_str().unwrap_or_default().to_owned())
        .collect();
    pointers.sort();
    pointers
}

#[tokio::test]
async fn a_body_that_breaks_the_schema_is_a_400_that_lists_every_place_and_is_not_sent() {
    let files = Files::with(", key: /customer/id, schema: order.json", "");
    let sidecar = files.start().await;
    let bad = r#"{"customer":{},"lines":[{"sku":1},{},"hunter2"],"password":"hunter2"}"#;
    let reply = order(bad).send(sidecar.outbound()).await;
    refused(&reply, 400, "schema-violated");
    assert_eq!(
        pointers(&reply),
        [
            "/customer/id",
            "/customer/id",
            "/id",
            "/lines/1/sku",
            "/lines/2",
            "/password"
        ]
    );
    let id = json!({ "pointer": "/id", "keyword": "required", "reason": "is required" });
    assert!(violations(&reply).contains(&id), "{:?}", reply.json());
    let of_key = violations(&reply)
        .into_iter()
        .find(|one| one["keyword"] == "key");
    assert_eq!(
        of_key.expect("the key is missing too")["pointer"],
        "/customer/id"
    );
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    assert!(!text.contains("hunter2"), "no value is repeated: {text}");
    assert_eq!(reply.header("wayside-pattern"), Some("publish"));

    assert_eq!(order(GOOD).send(sidecar.outbound()).await.status, 202);
    let record = records(&files.topic, 1).await.remove(0);
    assert_eq!(
        (record.value.as_deref(), key(&record)),
        (Some(GOOD.as_bytes()), Some("c-1"))
    );
    let counted = ["outcome=\"schema-violated\""];
    assert_eq!(sidecar.metric("wayside_published_total", &counted), 1.0);
}

#[tokio::test]
async fn a_missing_key_without_a_schema_is_told_the_same_way() {
    let files = Files::with(", key: /customer/id", "");
    let sidecar = files.start().await;
    let reply = order("{}").send(sidecar.outbound()).await;
    refused(&reply, 400, "key-missing");
    assert_eq!(pointers(&reply), ["/customer/id"]);
}

#[tokio::test]
async fn a_body_that_is_not_json_is_a_400_with_its_place() {
    let files = Files::with(", schema: order.json", "");
    let sidecar = files.start().await;
    for (body, place) in [
        ("{\"id\":\n hunter2}", "line 2 column 2 (byte 8)"),
        ("", "line 1 column 1 (byte 0)"),
        ("{\"id\":\"o\"", "line 1 column 10 (byte 9)"),
    ] {
        let reply = order(body).send(sidecar.outbound()).await;
        refused(&reply, 400, "not-json");
        let detail = reply.json()["detail"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert!(
            detail.ends_with(place) && !detail.contains("hunter2"),
            "{detail}"
        );
    }
    let reply = order("[".repeat(200_000)).send(sidecar.outbound()).await;
    refused(&reply, 400, "not-json");
}

#[tokio::test]
async fn a_large_body_is_checked_as_a_small_one_while_others_go_on() {
    let files = Files::with(", schema: order.json", "");
    let sidecar = files.start().await;
    let lines = |last: &str| {
        let lines = vec!["{\"sku\":\"abc\"}"; 60_000].join(",");
        format!("{{\"id\":\"o\",\"customer\":{{\"id\":1}},\"lines\":[{lines}{last}]}}")
    };
    let bad = order(lines(",{}")).send(sidecar.outbound());
    let small = order(GOOD).send(sidecar.outbound());
    let (bad, small) = tokio::join!(bad, small);
    refused(&bad, 400, "schema-violated");
    assert_eq!(pointers(&bad), ["/lines/60000/sku"]);
    assert_eq!(small.status, 202);
    let many = lines(&",{}".repeat(5_000));
    let reply = order(many).send(sidecar.outbound()).await;
    assert_eq!(
        (violations(&reply).len(), &reply.json()["more_violations"]),
        (100, &json!(true))
    );
    assert_eq!(order(lines("")).send(sidecar.outbound()).await.status, 202);
    let values: Vec<_> = records(&files.topic, 2)
        .await
        .into_iter()
        .map(|r| r.value)
        .collect();
    assert_eq!(values[1].as_deref(), Some(lines("").as_bytes()));
}

#[tokio::test]
async fn the_whole_body_is_checked_before_its_claim_is_kept() {
    let claims = TempDir::with_prefix("wayside-claims-").expect("a folder can be made");
    let rest = format!(
        "inbound: {{ listen: 127.0.0.1:0 }}\nclaims: {{ bodies: {{ disk: {}, survives: pod }} }}\n",
        claims.path().display()
    );
    let rule = ", key: /customer/id, schema: order.json, slim: { keep: [/id] }";
    let files = Files::with(rule, &rest);
    let sidecar = files.start().await;
    let kept = || -> u64 {
        let entries = std::fs::read_dir(claims.path()).expect("the store has its folder");
        entries
            .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
            .sum()
    };
    let before = kept();
    let bad = r#"{"id":"o-1","customer":{"id":"c-1"},"lines":[{}]}"#;
    let reply = order(bad).send(sidecar.outbound()).await;
    refused(&reply, 400, "schema-violated");
    assert_eq!(
        pointers(&reply),
        ["/lines/0/sku"],
        "a field that would have been cut"
    );
    assert_eq!(kept(), before, "nothing is kept");
    assert_eq!(order(GOOD).send(sidecar.outbound()).await.status, 202);
    assert!(kept() > before, "and what is kept would be seen");
    let record = records(&files.topic, 1).await.remove(0);
    assert_eq!(record.value.as_deref(), Some(&br#"{"id":"o-1"}"#[..]));
}

#[tokio::test]
async fn a_body_of_another_type_is_a_415_that_names_those_that_are_taken() {
    let files = Files::with(", schema: order.json", "");
    let sidecar = files.start().await;
    let typed = |types: &'static str| {
        post("billing", "/")
            .header("content-type", types)
            .body(GOOD)
    };
    for call in [
        typed("text/plain"),
        typed("application/xml"),
        post("billing", "/").body(GOOD),
    ] {
        let reply = call.send(sidecar.outbound()).await;
        refused(&reply, 415, "unsupported-media-type");
        assert_eq!(
            reply.header("accept"),
            Some("application/json, application/*+json")
        );
    }
    refused(
        &get("billing", "/").send(sidecar.outbound()).await,
        400,
        "not-json",
    );
    for types in [
        "application/json; charset=utf-8",
        "application/vnd.order+json",
    ] {
        assert_eq!(
            typed(types).send(sidecar.outbound()).await.status,
            202,
            "{types}"
        );
    }
    records(&files.topic, 2).await;
}

#[tokio::test]
async fn a_route_may_name_its_types_without_a_schema() {
    let files = Files::with(", content_type: [text/*, image/png]", "");
    let sidecar = files.start().await;
    let typed = |types: &'static str| post("billing", "/").header("content-type", types).body("x");
    assert_eq!(typed("Text/CSV").send(sidecar.outbound()).await.status, 202);
    assert_eq!(
        get("billing", "/").send(sidecar.outbound()).await.status,
        202,
        "no body, no type"
    );
    refused(
        &typed("image/gif").send(sidecar.outbound()).await,
        415,
        "unsupported-media-type",
    );
    records(&files.topic, 2).await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413_whatever_is_in_it() {
    let files = Files::with(", schema: order.json, max_body: 1KiB", "");
    let sidecar = files.start().await;
    let reply = order(vec![b'x'; 2000]).send(sidecar.outbound()).await;
    refused(&reply, 413, "body-too-large");
}

#[tokio::test]
async fn a_changed_schema_is_in_force_after_a_reload_and_a_bad_one_changes_nothing() {
    let files = Files::with(", schema: order.json", "");
    let sidecar = files.start().await;
    assert_eq!(order("{}").send(sidecar.outbound()).await.status, 400);
    files.schema("{ \"type\": \"objekt\" }");
    let error = sidecar
        .reload_file(&files.yaml())
        .await
        .expect_err("it is no schema");
    assert!(error.contains("order.json: /type"), "{error}");
    assert_eq!(order("{}").send(sidecar.outbound()).await.status, 400);
    files.schema("{ \"type\": \"object\" }");
    sidecar
        .reload_file(&files.yaml())
        .await
        .expect("it is a schema");
    assert_eq!(order("{}").send(sidecar.outbound()).await.status, 202);
}

#[tokio::test]
async fn a_running_sidecar_notices_that_a_schema_changed() {
    let files = Files::with(", schema: order.json", "");
    let folder = files.folder.path();
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayside"));
    let command = command.arg("run").arg(files.yaml());
    let mut process = Process::start("wayside", command, folder);
    let ready = eventually("it is ready", Duration::from_secs(20), async || {
        serde_json::from_str::<Value>(process.stdout().lines().next()?).ok()
    })
    .await;
    let door = ready["outbound"]
        .as_str()
        .and_then(|door| door.parse().ok());
    let door = door.expect("an address");
    assert_eq!(order("{}").send(door).await.status, 400);
    files.schema("{");
    let refused = async || {
        process
            .stderr()
            .contains("order.json:1:1: not JSON")
            .then_some(())
    };
    eventually("the mistake is told", Duration::from_secs(10), refused).await;
    assert_eq!(
        order("{}").send(door).await.status,
        400,
        "the old one is in force"
    );
    files.schema("{}");
    let taken = async || (order("{}").send(door).await.status == 202).then_some(());
    eventually("the new one is in force", Duration::from_secs(10), taken).await;
    assert!(process.terminate(Duration::from_secs(10)).await.success());
}

#[test]
fn check_and_explain_tell_of_the_schema() {
    let files = Files::with(", key: /customer/id, schema: order.json", "");
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wayside"));
        let output = command.current_dir(files.folder.path()).args(args).output();
        let output = output.expect("the program starts");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8(text).expect("UTF-8"),
        )
    };
    let json = ["-H", "content-type: application/json", "-d"];
    let explain =
        |rest: &[&str]| run(&[&["explain", "w.yaml", "POST", "http://billing/"], rest].concat());
    let (code, text) = explain(&[&json[..], &[GOOD]].concat());
    assert!(
        code == Some(0) && text.contains("schema: order.json, which the body meets"),
        "{text}"
    );
    assert!(
        text.contains("content type: one of application/json, application/*+json"),
        "{text}"
    );
    let (_, text) = explain(&[&json[..], &["{\"lines\":[{}]}"]].concat());
    assert!(text.contains("400 schema-violated"), "{text}");
    for line in [
        "/id is required",
        "/customer is required",
        "/lines/0/sku is required",
    ] {
        assert!(text.lines().any(|one| one.trim() == line), "{line}: {text}");
    }
    let (_, text) = explain(&["-d", GOOD]);
    assert!(text.contains("415 unsupported-media-type"), "{text}");
    assert_eq!(
        run(&["check", "w.yaml"]),
        (Some(0), "w.yaml: ok\n".to_owned())
    );
    files.schema("{ \"properties\": { \"a\": { \"$ref\": \"https://schemas.example/a\" } } }");
    let (code, text) = run(&["check", "w.yaml"]);
    assert_eq!(code, Some(2));
    assert!(
        text.contains("outbound.routes[0].publish.schema: order.json: /properties/a/$ref: `https://schemas.example/a` lies outside this file"),
        "{text}"
    );
    files.schema("{ \"properties\": { \"a\": { \"format\": \"zip\" } } }");
    let (code, text) = run(&["check", "w.yaml"]);
    assert!(
        code == Some(0)
            && text.contains("warning: ")
            && text.contains("/properties/a/format: the format `zip` is not checked"),
        "{text}"
    );
}

#[test]
fn what_schemas_take_is_bounded() {
    let folder = TempDir::with_prefix("wayside-schemas-").expect("a folder can be made");
    let load = |names: &[String]| {
        let routes: String = names
            .iter()
            .enumerate()
            .map(|(at, name)| format!("    - {{ name: r{at}, match: {{ host: h{at} }}, publish: {{ topic: t, schema: {name} }} }}\n"))
            .collect();
        let yaml = folder.path().join("w.yaml");
        let text =
            format!("service: a\nkafka: {{ brokers: [a:1] }}\noutbound:\n  routes:\n{routes}");
        std::fs::write(&yaml, text).expect("the folder can be written");
        wayside::config::load(&yaml, &|_| None)
    };
    let schema = |name: &str, bytes: usize| {
        let text = format!("{{ \"description\": \"{}\" }}", "x".repeat(bytes));
        std::fs::write(folder.path().join(name), text).expect("the folder can be written");
        name.to_owned()
    };
    let refused = |names: &[String]| load(names).expect_err("too much").to_string();
    let big = refused(&[schema("big.json", 1 << 20)]);
    assert!(
        big.ends_with("big.json is over 1 MiB, the most that is read"),
        "{big}"
    );
    let files: Vec<_> = (0..5)
        .map(|n| schema(&format!("{n}.json"), 900_000))
        .collect();
    load(&files[..4]).expect("four of them fit");
    let all = refused(&files);
    assert!(
        all.contains("routes[4].publish.schema: the schemas of this file are over 4 MiB in all"),
        "{all}"
    );
    let one = vec![schema("one.json", 1); 300];
    let loaded = load(&one).expect("one file may be named by many routes");
    assert_eq!(loaded.files.len(), 1, "and is read once");
    let many: Vec<_> = (0..257).map(|n| schema(&format!("s{n}.json"), 1)).collect();
    let many = refused(&many);
    assert!(
        many.contains("routes[256].publish.schema: at most 256 different schemas"),
        "{many}"
    );
}
