//! Every element of an array, values that are too large, and fields that are put back.

use super::*;

#[test]
fn a_star_is_every_element_and_is_named_once() {
    let body =
        r#"{"lines":[{"sku":"a","blob":1,"n":[1, 2]},{"blob":2,"sku":"b"},7],"*":{"blob":3}}"#;
    drop(
        &["/lines/*/blob"],
        body,
        r#"{"lines":[{"sku":"a","n":[1, 2]},{"sku":"b"},7],"*":{"blob":3}}"#,
        &["/lines/*/blob"],
    );
    // In an object it is a name like any other.
    drop(
        &["/*/blob"],
        body,
        r#"{"lines":[{"sku":"a","blob":1,"n":[1, 2]},{"blob":2,"sku":"b"},7],"*":{}}"#,
        &["/*/blob"],
    );
    keep(
        &["/lines/*/sku"],
        body,
        r#"{"lines":[{"sku":"a"},{"sku":"b"}]}"#,
        &["/lines/*/blob", "/lines/*/n", "/lines/2", "/*"],
    );
    // One element's own pointer comes on top of what is said of all.
    let lines = r#"[{"a":1,"b":2,"c":3},{"a":1,"b":2}]"#;
    for order in [["/*/a", "/0/b"], ["/0/b", "/*/a"]] {
        drop(
            &order,
            lines,
            r#"[{"c":3},{"b":2}]"#,
            &["/0/a", "/0/b", "/1/a"],
        );
    }
    // Of all elements the lists would be as long as the array.
    let many = format!("[{}]", vec![r#"{"a":1,"b":2}"#; 1000].join(","));
    let cut = slim(&dropping(pointers(&["/*/b"])), &many).unwrap().cut;
    assert_eq!(cut.unwrap().fields, ["/*/b"]);
}

fn over(size: usize, fields: &[&str], body: &str, expected: &str, cut: &[&str]) {
    let rule = SlimRule::Drop {
        fields: pointers(fields),
        over: Some(size),
    };
    check(rule, body, expected, cut);
}

#[test]
fn over_takes_the_innermost_value_that_is_too_large() {
    let long = "x".repeat(40);
    // The envelope stays, the text in it goes, and what nothing is cut from keeps its spaces.
    let body =
        format!(r#"{{"data":{{"id": 1, "text":"{long}"}}, "tags":[ 1, 2 ], "n":{{ "a":1 }}}}"#);
    let expected = r#"{"data":{"id":1},"tags":[ 1, 2 ],"n":{ "a":1 }}"#;
    over(20, &[], &body, expected, &["/data/text"]);
    // An array of many small elements is too large as a whole.
    let body = r#"{"id":1,"lines":[{"sku":"a"},{"sku":"b"},{"sku":"c"}]}"#;
    over(20, &[], body, r#"{"id":1}"#, &["/lines"]);
    // Of an array whose large elements are cut the indexes hold.
    let body = format!(r#"["{long}",1,"{long}",2,"{long}"]"#);
    over(20, &[], &body, "[null,1,null,2]", &["/0", "/2", "/4"]);
    // With fields that go in any case.
    let body = format!(r#"{{"id":1,"secret":2,"text":"{long}"}}"#);
    over(
        20,
        &["/secret"],
        &body,
        r#"{"id":1}"#,
        &["/secret", "/text"],
    );
    // The outermost value is never cut, and a value of just this size stays.
    let body = format!(r#"{{"a":"{0}","b":"{0}"}}"#, "x".repeat(18));
    let rule = SlimRule::Drop {
        fields: Vec::new(),
        over: Some(20),
    };
    assert_eq!(slim(&rule, &body).unwrap().cut, None);
    // What the parser does not look into goes or stays as a whole.
    let deep = format!("{}1{}", "[".repeat(300), "]".repeat(300));
    let cut = slim(&rule, &format!(r#"{{"a":{deep},"b":1}}"#))
        .unwrap()
        .cut;
    assert_eq!(&cut.unwrap().body[..], br#"{"b":1}"#);
}

#[test]
fn a_key_is_found_beside_what_is_cut_for_its_size() {
    let body = format!(
        r#"{{"who":{{"id":"k-1","photo":"{}","bio":"{0}"}},"n":1}}"#,
        "x".repeat(30)
    );
    let rule = SlimRule::Drop {
        fields: Vec::new(),
        over: Some(16),
    };
    let key = KeyRule::Body(pointer("/who/id"));
    let plan = Plan::new(Some(&key), KeyMissing::Refuse, Some(&rule));
    let slimmed = plan.apply(&Bytes::from(body)).unwrap();
    assert_eq!(slimmed.key.as_deref(), Some(&b"k-1"[..]));
    assert_eq!(
        &slimmed.cut.unwrap().body[..],
        br#"{"who":{"id":"k-1"},"n":1}"#
    );
}

fn put(cut: &[&str], wanted: &[&str], expected: &str) {
    let whole = Bytes::from_static(
        br#"{"id":1, "lines":[{"sku":"a","n":1},{"sku":"b","n":2}],"note":"x"}"#,
    );
    let cut: Vec<String> = cut.iter().map(|text| (*text).to_owned()).collect();
    let body = put_back(&whole, &cut, &pointers(wanted)).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&body),
        expected,
        "{cut:?} {wanted:?}"
    );
}

#[test]
fn cut_fields_are_put_back_as_they_were() {
    let whole = r#"{"id":1, "lines":[{"sku":"a","n":1},{"sku":"b","n":2}],"note":"x"}"#;
    let without_note = r#"{"id":1,"lines":[{"sku":"a","n":1},{"sku":"b","n":2}]}"#;
    put(&["/lines", "/note"], &["/lines"], without_note);
    // A field inside a cut one brings back all of it, one around it too.
    put(&["/lines", "/note"], &["/lines/0/sku"], without_note);
    put(&["/lines/*/n", "/note"], &["/lines"], without_note);
    put(&["/lines/*/n", "/note"], &["/lines/1/n"], without_note);
    put(
        &["/lines/*/n", "/note"],
        &["/lines/*/sku"],
        r#"{"id":1,"lines":[{"sku":"a"},{"sku":"b"}]}"#,
    );
    put(&["/lines", "/note"], &["/absent"], r#"{"id":1}"#);
    put(&["/lines", "/note"], &["/note", "/lines"], whole);
    // So much was cut that it is not named: all comes back.
    put(&[""], &["/note"], whole);
}

#[test]
fn many_elements_of_which_nothing_stays_cost_no_more_than_their_number() {
    let many = format!(r#"{{"lines":[{}]}}"#, vec!["{}"; 200_000].join(","));
    let rule = SlimRule::Keep(pointers(&["/lines/*/sku"]));
    let cut = slim(&rule, &many).unwrap().cut.unwrap();
    assert_eq!(&cut.body[..], b"{}");
    // One that stays at the end has a null for each before it.
    let last = many.replace("{}]}", r#"{"sku":1}]}"#);
    let body = slim(&rule, &last).unwrap().cut.unwrap().body;
    assert!(body.ends_with(br#"null,{"sku":1}]}"#));
    assert_eq!(body.len(), 199_999 * 5 + r#"{"lines":[{"sku":1}]}"#.len());
}

#[test]
fn what_is_too_large_goes_also_when_more_went_than_is_named() {
    let photo = "p".repeat(100);
    let line = |n: usize| format!(r#"{{"id":{n},"photo":"{photo}"}}"#);
    let lines: Vec<String> = (0..200).map(line).collect();
    let rule = SlimRule::Drop {
        fields: Vec::new(),
        over: Some(99),
    };
    let body = format!("[{}]", lines.join(","));
    let cut = slim(&rule, &body).unwrap().cut.unwrap();
    let left: Vec<String> = (0..200).map(|n| format!(r#"{{"id":{n}}}"#)).collect();
    assert_eq!(
        String::from_utf8_lossy(&cut.body),
        format!("[{}]", left.join(","))
    );
    assert_eq!(cut.fields, [""]);
}
