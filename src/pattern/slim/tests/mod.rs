//! Rows for each rule of slimming.

mod over;
mod random;
mod scanned;

use serde_json::{Value, json};

use super::*;

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

fn dropping(fields: Vec<Pointer>) -> SlimRule {
    SlimRule::Drop { fields, over: None }
}

fn keep(paths: &[&str], body: &str, expected: &str, fields: &[&str]) {
    check(SlimRule::Keep(pointers(paths)), body, expected, fields);
}

fn drop(paths: &[&str], body: &str, expected: &str, fields: &[&str]) {
    check(dropping(pointers(paths)), body, expected, fields);
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
        (dropping(pointers(&["/z", "/a/b/c"])), r#"{"a":{"b":4}}"#),
        (dropping(pointers(&["/0"])), "[]"),
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
    drop(&["/a"], r#"{"a":1,"b":2,"a":3}"#, r#"{"b":2}"#, &["/a"]);
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
        dropping(pointers(&["/customer"])),
        SlimRule::Keep(pointers(&["/customer"])),
        dropping(pointers(&["/lines"])),
        SlimRule::Keep(pointers(&["/customer/name"])),
        dropping(pointers(&["/customer/id"])),
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
    let rule = dropping(pointers(&["/x"]));
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
    let rule = |depth: usize| dropping(pointers(&["/0".repeat(depth).as_str()]));
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
    assert_eq!(
        project("fields=/a/b&x=1&fields=/id,/a/c"),
        r#"{"id":1,"a":{"b":3,"c":4}}"#
    );
    assert_eq!(fields_of("a=b").unwrap(), None);
    for wrong in [
        "fields=",
        "fields=lines",
        "fields=%ff",
        "fields=/a&fields=b",
        "fields=/id,",
        "fields",
        "fields=/a~2b",
        "fields=/a,/b~",
    ] {
        assert_eq!(fields_of(wrong).expect_err(wrong).kind(), Kind::BadRequest);
    }
    let many = format!("fields={}", vec!["/a"; 65].join(","));
    assert_eq!(
        fields_of(&many).expect_err("65 fields").kind(),
        Kind::BadRequest
    );
}
