//! Rows for each rule of slimming, and random documents against a plain implementation over values.

mod scanned;

use serde_json::{Value, json};

use super::*;

fn pointer(text: &str) -> Pointer {
    let token = |token: &str| token.replace("~1", "/").replace("~0", "~");
    Pointer(text.split('/').skip(1).map(token).collect())
}

fn pointers(texts: &[&str]) -> Vec<Pointer> {
    texts.iter().copied().map(pointer).collect()
}

fn slim(rule: &SlimRule, body: &str) -> Result<Slimmed, Error> {
    Plan::new(None, KeyMissing::Refuse, Some(rule)).apply(&Bytes::copy_from_slice(body.as_bytes()))
}

fn check(rule: SlimRule, body: &str, expected: &str, fields: &[&str]) {
    let cut = slim(&rule, body).expect("the body is JSON").cut;
    let cut = cut.unwrap_or_else(|| panic!("{rule:?} cuts something out of {body}"));
    assert_eq!(
        String::from_utf8_lossy(&cut.body),
        expected,
        "{rule:?} on {body}"
    );
    assert_eq!(cut.fields, fields, "{rule:?} on {body}");
    assert_eq!(cut.digest, <[u8; 32]>::from(Sha256::digest(body)));
}

fn keep(paths: &[&str], body: &str, expected: &str, fields: &[&str]) {
    check(SlimRule::Keep(pointers(paths)), body, expected, fields);
}

fn drop(paths: &[&str], body: &str, expected: &str, fields: &[&str]) {
    check(SlimRule::Drop(pointers(paths)), body, expected, fields);
}

fn key_of(path: &str, missing: KeyMissing, body: &str) -> Result<Option<String>, Kind> {
    let rule = KeyRule::Body(pointer(path));
    let slimmed =
        Plan::new(Some(&rule), missing, None).apply(&Bytes::copy_from_slice(body.as_bytes()));
    let key = slimmed.map_err(|error| error.kind())?.key;
    Ok(key.map(|key| String::from_utf8(key.to_vec()).expect("a key is UTF-8")))
}

#[test]
fn keep_leaves_these_fields_in_their_old_order() {
    let body = r#"{ "total" : 12.50, "lines": [ {"sku": 1} ], "id" : "o-1", "customer": { "id": 7, "name": "A" } }"#;
    let expected = r#"{"total":12.50,"id":"o-1","customer":{ "id": 7, "name": "A" }}"#;
    keep(&["/id", "/customer", "/total"], body, expected, &["/lines"]);
    keep(
        &["/customer/id"],
        body,
        r#"{"customer":{"id":7}}"#,
        &["/total", "/lines", "/id", "/customer/name"],
    );
}

#[test]
fn drop_leaves_all_but_these_fields() {
    let body = r#"{"a":1,"b":{"c":[1, 2],"d":null},"e":"x"}"#;
    drop(
        &["/b/c"],
        body,
        r#"{"a":1,"b":{"d":null},"e":"x"}"#,
        &["/b/c"],
    );
    drop(&["/a", "/b", "/e"], body, "{}", &["/a", "/b", "/e"]);
    drop(
        &["/b/c", "/b/d"],
        body,
        r#"{"a":1,"b":{},"e":"x"}"#,
        &["/b/c", "/b/d"],
    );
}

#[test]
fn indexes_hold_when_elements_are_cut() {
    let body = r#"{"items":[{"id":1,"x":0},{"id":2},3,4]}"#;
    keep(
        &["/items/1/id"],
        body,
        r#"{"items":[null,{"id":2}]}"#,
        &["/items/0", "/items/2", "/items/3"],
    );
    keep(&["/items/0/id"], r#"[1]"#, "[]", &["/0"]);
    drop(
        &["/items/0/x", "/items/2"],
        body,
        r#"{"items":[{"id":1},{"id":2},null,4]}"#,
        &["/items/0/x", "/items/2"],
    );
    drop(
        &["/items/3"],
        body,
        r#"{"items":[{"id":1,"x":0},{"id":2},3]}"#,
        &["/items/3"],
    );
    drop(&["/0", "/1"], "[1,2]", "[]", &["/0", "/1"]);
    keep(&["/1"], "[0,[7 ],2]", "[null,[7 ]]", &["/0", "/2"]);
}

#[test]
fn a_container_that_keep_empties_is_cut_as_a_whole() {
    keep(
        &["/a/b", "/z"],
        r#"{"a":{"c":1,"d":2},"z":0}"#,
        r#"{"z":0}"#,
        &["/a"],
    );
    keep(&["/a/b"], r#"{"a":5,"c":1}"#, "{}", &["/a", "/c"]);
}

#[test]
fn values_and_names_stay_bit_exact() {
    let big = r#"{"n":123456789012345678901234567890.10e+999,"z":-0.0,"s":"\u00e9\/é","x":1}"#;
    drop(
        &["/x"],
        big,
        r#"{"n":123456789012345678901234567890.10e+999,"z":-0.0,"s":"\u00e9\/é"}"#,
        &["/x"],
    );
    keep(
        &["/n"],
        big,
        r#"{"n":123456789012345678901234567890.10e+999}"#,
        &["/z", "/s", "/x"],
    );
    keep(
        &["/a~1b"],
        r#"{"a\u002fb":1e5,"c":2}"#,
        r#"{"a\u002fb":1e5}"#,
        &["/c"],
    );
    drop(
        &["/ü~0"],
        r#"{"\u00fc~":1,"c/d":2}"#,
        r#"{"c/d":2}"#,
        &["/ü~0"],
    );
    keep(&["/c"], r#"{"a/b~":1,"c":2}"#, r#"{"c":2}"#, &["/a~1b~0"]);
    keep(
        &["/a/b"],
        r#"{"a":1e999,"c":{"a":{"b":1}}}"#,
        "{}",
        &["/a", "/c"],
    );
}

#[test]
fn nothing_cut_needs_no_claim() {
    for (rule, body) in [
        (SlimRule::Keep(pointers(&["/a", "/b"])), r#"{ "a": 1 }"#),
        (
            SlimRule::Drop(pointers(&["/z", "/a/b/c"])),
            r#"{"a":{"b":4}}"#,
        ),
        (SlimRule::Drop(pointers(&["/0"])), "[]"),
        (SlimRule::Keep(pointers(&["/a"])), "{}"),
    ] {
        assert_eq!(
            slim(&rule, body).expect("the body is JSON").cut,
            None,
            "{rule:?} on {body}"
        );
    }
}

#[test]
fn of_members_with_one_name_all_are_slimmed_and_the_last_is_the_key() {
    drop(
        &["/a"],
        r#"{"a":1,"b":2,"a":3}"#,
        r#"{"b":2}"#,
        &["/a", "/a"],
    );
    keep(
        &["/a"],
        r#"{"a":1,"b":2,"a":3}"#,
        r#"{"a":1,"a":3}"#,
        &["/b"],
    );
    assert_eq!(
        key_of("/a", KeyMissing::Refuse, r#"{"a":1,"a":2}"#),
        Ok(Some("2".into()))
    );
    assert_eq!(
        key_of("/a/b", KeyMissing::Refuse, r#"{"a":{"b":1},"a":{}}"#),
        Err(Kind::KeyMissing)
    );
}

#[test]
fn the_key_is_text_a_number_or_a_boolean() {
    let body = r#"{"s":"a\u002f\"é","n":1.50e3,"t":true,"x":null,"o":{},"l":[{"id":"in"}],"":"empty","":""}"#;
    for (path, expected) in [
        ("/s", "a/\"é"),
        ("/n", "1.50e3"),
        ("/t", "true"),
        ("/l/0/id", "in"),
        ("/", ""),
    ] {
        assert_eq!(
            key_of(path, KeyMissing::Refuse, body),
            Ok(Some(expected.into())),
            "{path}"
        );
    }
    for path in [
        "/x", "/o", "/l", "/none", "/l/1/id", "/l/00/id", "/l/-", "/s/0", "/n/a",
    ] {
        assert_eq!(
            key_of(path, KeyMissing::Refuse, body),
            Err(Kind::KeyMissing),
            "{path}"
        );
        assert_eq!(
            key_of(path, KeyMissing::Unordered, body),
            Ok(None),
            "{path}"
        );
    }
}

#[test]
fn the_key_is_found_inside_what_is_cut_and_what_is_kept() {
    let body = Bytes::from_static(br#"{"customer":{"id":"c-7","name":"A"},"lines":[1]}"#);
    let key = KeyRule::Body(pointer("/customer/id"));
    for rule in [
        SlimRule::Keep(pointers(&["/lines"])),
        SlimRule::Drop(pointers(&["/customer"])),
        SlimRule::Keep(pointers(&["/customer"])),
        SlimRule::Drop(pointers(&["/lines"])),
        SlimRule::Keep(pointers(&["/customer/name"])),
        SlimRule::Drop(pointers(&["/customer/id"])),
    ] {
        let slimmed = Plan::new(Some(&key), KeyMissing::Refuse, Some(&rule))
            .apply(&body)
            .unwrap();
        assert_eq!(slimmed.key.as_deref(), Some(&b"c-7"[..]), "{rule:?}");
        assert!(slimmed.cut.is_some(), "{rule:?}");
    }
}

#[test]
fn a_body_without_fields_is_refused_if_a_rule_looks_into_it() {
    let rule = SlimRule::Keep(pointers(&["/a"]));
    for body in [
        "",
        "5",
        "\"a\"",
        "null",
        "{",
        r#"{"a":1}x"#,
        r#"{"a":1,}"#,
        r#"{"a" 1}"#,
        "[1,,{}]",
        "{\"a\":\"\u{1}\"}",
    ] {
        assert_eq!(
            slim(&rule, body).expect_err(body).kind(),
            Kind::NotJson,
            "{body}"
        );
    }
    assert_eq!(
        key_of("/a", KeyMissing::Unordered, "nope"),
        Err(Kind::NotJson)
    );
    let not_utf8 = Bytes::from_static(b"{\"a\":\"\xff\"}");
    let plan = Plan::new(None, KeyMissing::Refuse, Some(&rule));
    assert_eq!(
        plan.apply(&not_utf8).expect_err("a lone 0xff").kind(),
        Kind::NotJson
    );
    let no_rule = Plan::new(None, KeyMissing::Refuse, None);
    assert!(!no_rule.reads_body());
    assert_eq!(
        no_rule.apply(&not_utf8).unwrap(),
        Slimmed {
            key: None,
            cut: None
        }
    );
}

#[test]
fn what_is_wrong_inside_a_string_is_told_with_its_place_in_the_body() {
    let rule = SlimRule::Drop(pointers(&["/x"]));
    let in_a_name = slim(&rule, "{\n \"a\": 1,\n  \"b\\ud800\": 2}").expect_err("lone surrogate");
    assert_eq!(
        in_a_name.detail(),
        "the body is not JSON: unexpected end of hex escape at line 3 column 11"
    );
    let key = KeyRule::Body(pointer("/a"));
    let plan = Plan::new(Some(&key), KeyMissing::Refuse, None);
    let in_a_key = Bytes::from_static(b"{\n\n  \"a\": \"\\ud800\"}");
    let refused = plan.apply(&in_a_key).expect_err("lone surrogate");
    assert!(
        refused.detail().ends_with(" at line 3 column 16"),
        "{}",
        refused.detail()
    );
}

#[test]
fn depth_is_limited_where_it_is_walked_and_costs_nothing_where_it_is_skipped() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let rule = |depth: usize| SlimRule::Drop(pointers(&["/0".repeat(depth).as_str()]));
    assert!(slim(&rule(127), &nested(128)).unwrap().cut.is_some());
    assert_eq!(
        slim(&rule(128), &nested(129)).expect_err("128 deep").kind(),
        Kind::NotJson
    );
    assert!(slim(&rule(1), &nested(500_000)).unwrap().cut.is_some());
}

#[test]
fn a_pointer_of_many_tokens_or_a_body_of_many_elements_costs_little() {
    let endless = fields_of(&format!("fields={}", "/0".repeat(100_000)))
        .unwrap()
        .unwrap();
    assert_eq!(project(b"[1]", &endless).unwrap(), b"[]");
    let zeros = format!("[{}]", vec!["0"; 200_000].join(","));
    let kept = project(zeros.as_bytes(), &pointers(&["/3", "/199999/a"])).unwrap();
    assert_eq!(kept, b"[null,null,null,0]");
    drop(
        &["/7"],
        &format!("[1,2,3,4,5,6,7,{zeros}]"),
        "[1,2,3,4,5,6,7]",
        &["/7"],
    );
}

#[test]
fn too_many_cuts_are_named_as_the_whole_document() {
    let members: Vec<String> = (0..200).map(|n| format!("\"m{n}\":{n}")).collect();
    keep(
        &["/m7"],
        &format!("{{{}}}", members.join(",")),
        r#"{"m7":7}"#,
        &[""],
    );
    keep(
        &["/a"],
        &format!(r#"{{"{}":1,"a":2}}"#, "x".repeat(5000)),
        r#"{"a":2}"#,
        &[""],
    );
}

#[test]
fn a_projection_is_a_document_with_just_the_fields() {
    let body = br#"{"id":1,"lines":[1, 2],"a":{"b":3,"c":4}}"#;
    let project = |query: &str| {
        let fields = fields_of(query)
            .expect("the query is fine")
            .expect("it asks for fields");
        String::from_utf8(project(body, &fields).expect("the body is JSON")).unwrap()
    };
    assert_eq!(
        project("fields=/lines,/a/b"),
        r#"{"lines":[1, 2],"a":{"b":3}}"#
    );
    assert_eq!(
        project("x=1&fields=%2Flines%2C%2Fa%2Fb"),
        r#"{"lines":[1, 2],"a":{"b":3}}"#
    );
    assert_eq!(project("fields=/a,/a/b"), r#"{"a":{"b":3,"c":4}}"#);
    assert_eq!(project("fields=/none"), "{}");
    assert_eq!(fields_of("a=b").unwrap(), None);
    for wrong in ["fields=", "fields=lines", "fields=%ff"] {
        assert_eq!(fields_of(wrong).expect_err(wrong).kind(), Kind::BadRequest);
    }
    let many = format!("fields={}", vec!["/a"; 65].join(","));
    assert_eq!(
        fields_of(&many).expect_err("65 fields").kind(),
        Kind::BadRequest
    );
}

// === Random documents ===

const NAMES: [&str; 8] = ["a", "b", "a/b", "~", "0", "1", "é", ""];

fn blank(rng: &mut fastrand::Rng) -> &'static str {
    ["", "", " ", "\n\t"][rng.usize(..4)]
}

fn quoted(rng: &mut fastrand::Rng, text: &str) -> String {
    let escape = |letter: char| match rng.bool() || matches!(letter, '"' | '\\') {
        true => format!("\\u{:04x}", letter as u32),
        false => letter.to_string(),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

fn document(rng: &mut fastrand::Rng, depth: usize) -> String {
    let mut parts = Vec::new();
    let kind = if depth == 0 {
        rng.usize(2..6)
    } else {
        rng.usize(..5)
    };
    let mut names = NAMES;
    rng.shuffle(&mut names);
    for name in names.iter().take(rng.usize(..5)).filter(|_| kind < 2) {
        let value = document(rng, depth - 1);
        let (before, after) = (blank(rng), blank(rng));
        let name = if kind == 0 {
            quoted(rng, name) + blank(rng) + ":"
        } else {
            String::new()
        };
        parts.push(format!("{before}{name}{before}{value}{after}"));
    }
    match kind {
        0 => format!("{{{}{}}}", parts.join(","), blank(rng)),
        1 => format!("[{}{}]", parts.join(","), blank(rng)),
        2 => format!("{}.5e3", rng.i32(-99..99)),
        3 => quoted(rng, "\"x\\y"),
        4 => rng.u64(..).to_string(),
        _ => ["true", "null", "{}"][rng.usize(..3)].to_owned(),
    }
}

fn some_pointers(rng: &mut fastrand::Rng) -> Vec<Pointer> {
    let token = |rng: &mut fastrand::Rng| NAMES[rng.usize(..NAMES.len())].to_owned();
    (0..rng.usize(1..5))
        .map(|_| Pointer((0..rng.usize(1..4)).map(|_| token(rng)).collect()))
        .collect()
}

fn below<'p>(pointers: &[&'p [String]], token: &str) -> Vec<&'p [String]> {
    pointers
        .iter()
        .filter(|p| p.first().is_some_and(|t| t == token))
        .map(|p| &p[1..])
        .collect()
}

/// The plain implementation: `Ok` for what stays, `Err` for what is cut.
fn plain(mode: Mode, value: &Value, pointers: &[&[String]]) -> Option<Value> {
    if pointers.iter().any(|pointer| pointer.is_empty()) {
        return (mode == Mode::Keep).then(|| value.clone());
    }
    let child = |token: &str, value: &Value| plain(mode, value, &below(pointers, token));
    let stays = match value {
        Value::Object(members) => {
            let members = members
                .iter()
                .filter_map(|(name, value)| Some((name.clone(), child(name, value)?)));
            Value::Object(members.collect())
        }
        Value::Array(all) => {
            let mut left: Vec<_> = all
                .iter()
                .enumerate()
                .map(|(n, v)| child(&n.to_string(), v))
                .collect();
            left.truncate(
                left.iter()
                    .rposition(Option::is_some)
                    .map_or(0, |last| last + 1),
            );
            left.into_iter().map(Option::unwrap_or_default).collect()
        }
        scalar => return (mode == Mode::Drop).then(|| scalar.clone()),
    };
    (mode == Mode::Drop || (stays != json!({}) && stays != json!([]))).then_some(stays)
}

#[test]
fn random_documents_are_slimmed_as_a_plain_implementation_does_it() {
    let mut rng = fastrand::Rng::with_seed(8);
    let mut cuts = 0;
    for round in 0..20_000 {
        let text = document(&mut rng, 4);
        let whole: Value = serde_json::from_str(&text).expect("the generator writes JSON");
        let fields = some_pointers(&mut rng);
        let tokens: Vec<&[String]> = fields.iter().map(|pointer| &pointer.0[..]).collect();
        let key = KeyRule::Body(fields[0].clone());
        for (mode, rule) in [
            (Mode::Keep, SlimRule::Keep(fields.clone())),
            (Mode::Drop, SlimRule::Drop(fields.clone())),
        ] {
            let plan = Plan::new(Some(&key), KeyMissing::Unordered, Some(&rule));
            let slimmed = plan.apply(&Bytes::from(text.clone()));
            if !whole.is_object() && !whole.is_array() {
                assert_eq!(slimmed.expect_err("a scalar").kind(), Kind::NotJson);
                continue;
            }
            let slimmed = slimmed.expect("it is JSON");
            let expected_key = match whole.pointer(&fields[0].to_string()) {
                Some(Value::String(text)) => Some(text.clone()),
                Some(value @ (Value::Number(_) | Value::Bool(_))) => Some(value.to_string()),
                _ => None,
            };
            // A float's text is the sender's, not serde's: compared as a value.
            let found = slimmed
                .key
                .as_deref()
                .map(|key| String::from_utf8_lossy(key).into_owned());
            let same = found == expected_key
                || found.and_then(|text| text.parse::<f64>().ok())
                    == expected_key.and_then(|text| text.parse().ok());
            assert!(same, "round {round}: key {key:?} of {text}");
            let empty = if whole.is_object() {
                json!({})
            } else {
                json!([])
            };
            let expected = plain(mode, &whole, &tokens).unwrap_or(empty);
            let slim = slimmed.cut.map_or(whole.clone(), |cut| {
                cuts += 1;
                assert!(
                    cut.body.len() <= text.len() + 5 * text.len(),
                    "nulls stay in proportion"
                );
                serde_json::from_slice(&cut.body)
                    .unwrap_or_else(|e| panic!("{e}: {:?} from {text}", cut.body))
            });
            assert_eq!(slim, expected, "round {round}: {rule:?} on {text}");
        }
    }
    assert!(cuts > 5_000, "the documents are worth slimming: {cuts}");
}

#[test]
fn random_bytes_are_refused_or_slimmed_but_never_a_panic() {
    let mut rng = fastrand::Rng::with_seed(9);
    for _ in 0..50_000 {
        let mut bytes = document(&mut rng, 4).into_bytes();
        for _ in 0..rng.usize(..4) {
            let at = rng.usize(..bytes.len());
            bytes[at] = b"{}[],:\"\\ 1e-tn\x00\xff\xc3"[rng.usize(..17)];
        }
        let bytes = Bytes::from(bytes);
        let key = KeyRule::Body(some_pointers(&mut rng).remove(0));
        for rule in [
            SlimRule::Keep(some_pointers(&mut rng)),
            SlimRule::Drop(some_pointers(&mut rng)),
        ] {
            let plan = Plan::new(Some(&key), KeyMissing::Unordered, Some(&rule));
            if let Ok(Slimmed { cut: Some(cut), .. }) = plan.apply(&bytes) {
                serde_json::from_slice::<serde::de::IgnoredAny>(&bytes)
                    .expect("only JSON is slimmed");
                serde_json::from_slice::<serde::de::IgnoredAny>(&cut.body)
                    .expect("a slim body is JSON");
            }
        }
    }
}
