//! Schemas and media types against bodies, without a sidecar.

use http::HeaderValue;
use serde_json::json;

use super::*;
use crate::config::{compile, model};

/// The validator of a schema.
fn schema(text: &str) -> Arc<Validator<Bodies>> {
    let value: serde_json::Value = serde_json::from_str(text).expect("a schema is JSON");
    let schema = model::Schema::for_test(value);
    Arc::new(schema.validator::<Bodies>().expect("a good schema"))
}

fn found(schema_text: &str, body: &str) -> Violations {
    violations(&schema(schema_text), body.as_bytes()).expect("the body is JSON")
}

/// Each violation as "POINTER KEYWORD: REASON".
fn told(schema_text: &str, body: &str) -> Vec<String> {
    let all = found(schema_text, body);
    assert!(!all.more, "{all:?}");
    let one = |v: &Violation| {
        let pointer = v.pointer.as_deref().expect("it is in the body");
        format!(
            "{pointer} {}: {}",
            v.keyword.as_deref().unwrap_or_default(),
            v.reason
        )
    };
    let mut told: Vec<_> = all.list.iter().map(one).collect();
    told.sort();
    told
}

#[test]
fn every_violation_is_told_by_its_pointer() {
    let schema = r##"{
        "type": "object",
        "required": ["id", "customer"],
        "additionalProperties": false,
        "properties": {
            "id": { "type": "string", "pattern": "^i-[0-9]+$", "maxLength": 8 },
            "customer": { "$ref": "#/$defs/customer" },
            "when": { "type": "string", "format": "date-time" },
            "total": { "type": "number", "minimum": 0 },
            "kind": { "enum": ["a", "b"] },
            "lines": { "type": "array", "minItems": 1, "items": { "type": "object", "required": ["sku"] } }
        },
        "$defs": { "customer": { "type": "object", "required": ["id", "a/b"] } }
    }"##;
    let body = r#"{"id":"secret-1","customer":{},"when":"secret","total":-1,"kind":"secret",
        "lines":[{"sku":1},{},7],"extra~1":"secret","other":1}"#;
    assert_eq!(
        told(schema, body),
        [
            "/customer/a~1b required: is required",
            "/customer/id required: is required",
            "/extra~01 additionalProperties: is not a member that the schema knows",
            "/id pattern: must match the pattern \"^i-[0-9]+$\"",
            "/kind enum: must be one of [\"a\",\"b\"]",
            "/lines/1/sku required: is required",
            "/lines/2 type: must be of type object",
            "/other additionalProperties: is not a member that the schema knows",
            "/total minimum: must be at least 0",
            "/when format: must have the format date-time",
        ]
    );
    let good = r#"{"id":"i-7","customer":{"id":1,"a/b":2},"when":"2026-01-02T03:04:05Z","total":0,"kind":"a","lines":[{"sku":""}]}"#;
    assert_eq!(told(schema, good), [""; 0]);
}

/// A schema, a body that breaks it, and what is told.
const KEYWORDS: &[(&str, &str, &str)] = &[
    (
        r#"{"type":["string","null"]}"#,
        "6472",
        "must be of type null or string",
    ),
    (r#"{"const":{"a":1}}"#, "6472", "must be {\"a\":1}"),
    (
        r#"{"exclusiveMinimum":7000}"#,
        "6472",
        "must be more than 7000",
    ),
    (r#"{"exclusiveMaximum":7}"#, "6472", "must be less than 7"),
    (r#"{"maximum":7.5}"#, "6472", "must be at most 7.5"),
    (r#"{"multipleOf":5}"#, "6472", "must be a multiple of 5"),
    (
        r#"{"minLength":9}"#,
        "\"6472\"",
        "must have at least 9 characters",
    ),
    (
        r#"{"maxLength":1}"#,
        "\"6472\"",
        "must have at most 1 characters",
    ),
    (
        r#"{"minItems":2}"#,
        "[6472]",
        "must have at least 2 elements",
    ),
    (
        r#"{"maxItems":0}"#,
        "[6472]",
        "must have at most 0 elements",
    ),
    (
        r#"{"prefixItems":[true],"items":false}"#,
        "[1,6472]",
        "must not be there",
    ),
    (
        r#"{"uniqueItems":true}"#,
        "[6472,6472.0]",
        "has an element twice",
    ),
    (
        r#"{"contains":{"type":"string"}}"#,
        "[6472]",
        "has not the elements that the schema asks for",
    ),
    (
        r#"{"minProperties":2}"#,
        r#"{"a":6472}"#,
        "must have at least 2 members",
    ),
    (
        r#"{"maxProperties":0}"#,
        r#"{"a":6472}"#,
        "must have at most 0 members",
    ),
    (
        r#"{"propertyNames":{"maxLength":1}}"#,
        r#"{"aa":6472}"#,
        "has a member whose name must have at most 1 characters",
    ),
    (
        r#"{"unevaluatedProperties":false}"#,
        r#"{"a":6472}"#,
        "is not a member that the schema knows",
    ),
    (
        r#"{"unevaluatedItems":false}"#,
        "[6472]",
        "has elements that the schema does not know",
    ),
    (
        r#"{"anyOf":[{"type":"string"},{"type":"null"}]}"#,
        "6472",
        "is none of the choices that the schema gives",
    ),
    (
        r#"{"oneOf":[{"type":"string"},{"type":"null"}]}"#,
        "6472",
        "is none of the choices that the schema gives",
    ),
    (
        r#"{"oneOf":[{},{}]}"#,
        "6472",
        "is more than one of the choices that the schema gives, and must be one",
    ),
    (
        r#"{"not":{"type":"integer"}}"#,
        "6472",
        "is what the schema rules out",
    ),
    ("false", "6472", "must not be there"),
    (
        r#"{"format":"uuid"}"#,
        "\"6472\"",
        "must have the format uuid",
    ),
    (
        r#"{"$schema":"http://json-schema.org/draft-07/schema#","contentEncoding":"base64"}"#,
        "\"6472!\"",
        "must be encoded as base64",
    ),
    (
        r#"{"$schema":"http://json-schema.org/draft-07/schema#","items":[{}],"additionalItems":false}"#,
        "[1,6472]",
        "has elements that the schema does not know",
    ),
];

#[test]
fn each_keyword_has_words_that_repeat_no_value() {
    for &(schema, body, reason) in KEYWORDS {
        let all = found(schema, body);
        let reasons: Vec<_> = all.list.iter().map(|v| v.reason.as_str()).collect();
        assert_eq!(reasons, [reason], "{schema}");
        assert!(!format!("{all:?}").contains("6472"), "{all:?}");
    }
}

#[test]
fn a_draft_is_what_its_schema_says() {
    let four = r#"{"$schema":"http://json-schema.org/draft-04/schema#","type":"integer","minimum":1,"exclusiveMinimum":true}"#;
    assert_eq!(told(four, "1").len(), 1);
    assert_eq!(told(four, "2").len(), 0);
    assert_eq!(
        told(four, "2.0").len(),
        1,
        "an integer of draft 4 has no fraction"
    );
    assert_eq!(
        told(r#"{"type":"integer"}"#, "2.0").len(),
        0,
        "and one of 2020-12 may"
    );
    let seven =
        r#"{"$schema":"http://json-schema.org/draft-07/schema#","items":[{"type":"string"}]}"#;
    assert_eq!(told(seven, "[1]").len(), 1);
}

#[test]
fn a_name_that_is_there_twice_is_a_violation_beside_the_others() {
    let told = told(
        r#"{"properties":{"b":{"type":"string"}}}"#,
        r#"{"a":{"x":1,"x":2},"b":3}"#,
    );
    assert_eq!(
        told,
        [
            "/a/x uniqueNames: is there twice, and readers differ on which one counts",
            "/b type: must be of type string",
        ]
    );
}

#[test]
fn a_hundred_violations_are_told_and_that_there_are_more() {
    let body = format!("[{}]", vec!["1"; 500_000].join(","));
    for schema in [
        r#"{"items":{"type":"string"}}"#,
        r#"{"items":{"anyOf":[{"type":"string"},{"type":"null"},{"minimum":2}]}}"#,
        r#"{"items":{"type":"string","minimum":2,"maximum":0}}"#,
    ] {
        let all = found(schema, &body);
        assert_eq!((all.list.len(), all.more), (TOLD_MAX, true), "{schema}");
        assert_eq!(all.list[0].pointer.as_deref(), Some("/0"));
    }
    let all = found(r#"{"unevaluatedItems":false}"#, &body);
    assert!(!all.list.is_empty() && all.more);
    let names: String = (0..200).map(|n| format!("\"n{n}\":1,")).collect();
    let all = found(
        r#"{"properties":{"z":{}},"additionalProperties":false}"#,
        &format!("{{{names}\"z\":1}}"),
    );
    assert_eq!((all.list.len(), all.more), (TOLD_MAX, true));
    let some = format!("[{}]", vec!["1"; 99].join(","));
    let all = found(r#"{"items":{"type":"string"}}"#, &some);
    assert_eq!((all.list.len(), all.more), (99, false));
}

#[test]
fn long_names_are_cut_and_do_not_multiply() {
    let name = "n".repeat(400_000);
    let body = format!("{{\"{name}\":[{}]}}", vec!["1"; 300_000].join(","));
    let schema = r#"{"additionalProperties":{"items":{"type":"string"}}}"#;
    let all = found(schema, &body);
    assert!(all.more && !all.list.is_empty());
    let longest = all.list.iter().filter_map(|v| v.pointer.as_ref());
    assert!(longest.map(|pointer| pointer.chars().count()).max() <= Some(501));
}

#[test]
fn hostile_bodies_and_patterns_take_no_time() {
    let began = tokio::time::Instant::now();
    let pattern = r#"{"pattern":"^(a+)+$"}"#;
    assert_eq!(
        told(pattern, &format!("\"{}!\"", "a".repeat(100_000))).len(),
        1
    );
    let deep = format!("{}{}", "[".repeat(127), "]".repeat(127));
    let recursive = r##"{"items":{"allOf":[{"$ref":"#"},{"anyOf":[{"$ref":"#"},false]}]}}"##;
    assert_eq!(told(recursive, &deep), [""; 0], "as deep as a body may be");
    let wrong = deep.replace("[]", "[1]");
    for choice in ["anyOf", "oneOf", "allOf"] {
        let twice = format!(
            r##"{{"type":"array","items":{{"{choice}":[{{"$ref":"#"}},{{"$ref":"#"}}]}}}}"##
        );
        assert!(!found(&twice, &wrong).list.is_empty(), "{choice}");
        found(&twice, &deep);
    }
    let objects = format!("[{}]", vec![r#"{"":{}}"#; 140_000].join(","));
    assert_eq!(told(r#"{"uniqueItems":false}"#, &objects).len(), 0);
    let numbers: Vec<_> = (0..200_000).map(|n| n.to_string()).collect();
    assert_eq!(
        told(
            r#"{"uniqueItems":true}"#,
            &format!("[{}]", numbers.join(","))
        )
        .len(),
        0
    );
    let loops =
        r##"{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}"##;
    told(loops, "1");
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}

#[test]
fn no_body_is_too_deep_for_a_schema() {
    let deep = format!("{}1{}", "[".repeat(127), "]".repeat(127));
    let nested = |open: &str, close: &str| {
        let inner = r##"{"type":"array","items":{"$ref":"#"}}"##;
        format!("{}{inner}{}", open.repeat(35), close.repeat(35))
    };
    for schema in [
        nested(r#"{"allOf":["#, "]}"),
        nested(r#"{"anyOf":[false,{"if":true,"then":"#, "}]}"),
    ] {
        assert_eq!(told(&schema, &deep).len(), 1);
        assert_eq!(told(&schema, &deep.replace('1', "")).len(), 0);
    }
}

#[test]
fn a_body_that_is_not_json_is_refused_with_its_place() {
    let error = violations(&schema("true"), b"{\"a\":\n secret}").expect_err("it is not JSON");
    assert_eq!(error.kind(), Kind::NotJson);
    assert_eq!(
        error.detail(),
        "the body is not JSON: expected value at line 2 column 2 (byte 7)"
    );
}

fn check(rule: &str) -> Option<Check> {
    let yaml = format!(
        "service: a\nkafka: embedded\noutbound: {{ routes: [{{ name: r, publish: {{ topic: t{rule} }} }}] }}"
    );
    let config = compile("test.yaml", &yaml, &|_| None)
        .expect("a good file")
        .config;
    match &config.outbound.expect("it has routes").routes[0].pattern {
        model::Pattern::Publish(rule) => Check::of(rule).expect("it compiles"),
        model::Pattern::Forward(_) => None,
    }
}

#[test]
fn a_route_that_asks_nothing_has_no_check() {
    assert!(check("").is_none());
    assert!(check(", content_type: text/plain").is_some());
    assert!(check(", schema: any.json").is_some());
}

#[test]
fn a_content_type_is_compared_without_parameters_and_case() {
    let verdict = |check: &Check, types: &[&'static str], has_body| {
        let mut headers = HeaderMap::new();
        for one in types {
            headers.append(CONTENT_TYPE, HeaderValue::from_static(one));
        }
        check.head(&headers, has_body).map_err(|error| {
            assert_eq!(error.kind(), Kind::MediaType);
            (
                error.takes().unwrap_or_default().to_owned(),
                error.detail().to_owned(),
            )
        })
    };
    let json = check(", schema: any.json").expect("it asks");
    for good in [
        "application/json",
        "Application/JSON ; charset=utf-8",
        "application/ld+json",
    ] {
        assert_eq!(verdict(&json, &[good], true), Ok(()), "{good}");
    }
    for bad in [
        "text/plain",
        "application/jsonx",
        "application/x-www-form-urlencoded",
        "",
        "\u{7f}x",
    ] {
        if HeaderValue::from_str(bad).is_err() {
            continue;
        }
        let (accept, detail) = verdict(&json, &[bad], true).expect_err(bad);
        assert_eq!(accept, "application/json, application/*+json");
        assert!(bad.is_empty() || !detail.contains(bad), "{detail}");
    }
    assert!(verdict(&json, &[], true).is_err());
    assert!(verdict(&json, &["application/json", "application/json"], true).is_err());
    assert_eq!(
        verdict(&json, &[], false),
        Ok(()),
        "a call without a body has no type"
    );
    let any = check(", schema: any.json, content_type: '*/*'").expect("it asks");
    assert_eq!(verdict(&any, &[], true), Ok(()));
    let two = check(", content_type: [image/*, Text/CSV]").expect("it asks");
    assert_eq!(verdict(&two, &["image/png"], true), Ok(()));
    assert_eq!(verdict(&two, &["text/csv"], true), Ok(()));
    assert!(verdict(&two, &["text/plain"], true).is_err());
}

#[test]
fn what_is_wrong_with_the_key_is_told_with_the_rest() {
    let schema = r#"{"required":["id"]}"#;
    let missing = || {
        let rule = model::KeyRule::Body(model::Pointer(vec!["customer".into()]));
        crate::pattern::key::require(None, &rule, model::KeyMissing::Refuse)
    };
    let error = judge(found(schema, "{}"), missing()).expect_err("both are wrong");
    assert_eq!(error.kind(), Kind::SchemaViolated);
    assert_eq!(
        serde_json::to_value(&error.violations().list).expect("JSON"),
        json!([
            { "pointer": "/id", "keyword": "required", "reason": "is required" },
            { "pointer": "/customer", "keyword": "key", "reason": "must be a text, number or boolean, since it is the key" },
        ])
    );
    assert_eq!(
        error.detail(),
        "the body is not as the route asks at 2 places, the first: /id is required"
    );
    let error = judge(found(schema, r#"{"id":1}"#), missing()).expect_err("the key is missing");
    assert_eq!(
        (error.kind(), error.violations().list.len()),
        (Kind::KeyMissing, 1)
    );
    assert_eq!(
        judge(found(schema, r#"{"id":1}"#), Ok(7)).expect("all is well"),
        7
    );
}

#[tokio::test]
async fn a_large_body_gets_the_same_verdict_beside_its_worker() {
    let check = Check {
        types: Vec::new(),
        schema: Some(schema(r#"{"items":{"type":"integer"},"maxItems":20000}"#)),
    };
    let body = Bytes::from(format!("[{},\"x\"]", vec!["1"; LARGE].join(",")));
    let beside = check.body(&body).await.expect("it is JSON");
    assert_eq!(beside, check.body_here(&body).expect("it is JSON"));
    assert_eq!(beside.list.len(), 2);
    let broken = Bytes::from(vec![b'['; LARGE]);
    assert_eq!(
        check.body(&broken).await.map_err(|e| e.kind()),
        Err(Kind::NotJson)
    );
    assert_eq!(TURNS.available_permits(), 2, "each turn is given back");
}
