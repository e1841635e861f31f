//! The scan against the walk: where it is sure it finds the same.

use super::random::{document, some_pointers};
use super::*;

/// What the walk finds for a key alone.
fn walked<'t>(text: &'t str, pointer: &Pointer) -> Result<Option<Cow<'t, str>>, Error> {
    let mut root = Node::default();
    root.insert(&pointer.0, Role::Key);
    let mut walk = Walk::new(text, Mode::Drop { over: None });
    walk.run(&root, Emit::Silent)?;
    Ok(walk.key)
}

#[test]
fn the_scan_finds_the_key_of_plain_documents_and_leaves_the_others_to_the_walk() {
    let at = |path: &str, text: &str| {
        let found = scan::key(text, &pointer(path).0);
        found.map(|key| key.unwrap_or("(none)").to_owned())
    };
    let whole = r#" { "l":[1,{"id":[]},[]], "a" : {"b":"x", "n":-1.50E+3,"t":true,"z":null}, "e":"\u00e9\"", "o":{} } "#;
    for (path, expected) in [
        ("/a/b", "x"),
        ("/a/n", "-1.50E+3"),
        ("/a/t", "true"),
        ("/a/z", "(none)"),
        ("/a/c", "(none)"),
        ("/a", "(none)"),
        ("/a/b/c", "(none)"),
        ("/o/x", "(none)"),
        ("/l", "(none)"),
    ] {
        assert_eq!(at(path, whole).as_deref(), Some(expected), "{path}");
    }
    assert_eq!(at("/e", whole), None, "an escape in the key");
    assert_eq!(at("/l/0", whole), None, "an array on the way");
    let twice = r#"{"a":{"b":1},"a":{"b":2},"a":{}}"#;
    assert_eq!(at("/a/b", twice).as_deref(), Some("(none)"));
    assert_eq!(at("/a", r#"{"\u0061":1}"#).as_deref(), Some("1"));
    let deep = format!(r#"{{"x":{}{},"a":7}}"#, "[".repeat(100), "]".repeat(100));
    assert_eq!(at("/a", &deep).as_deref(), Some("7"));
    let broken = [
        "",
        "{",
        "[]",
        r#"{"a":1"#,
        r#"{"a":1}}"#,
        r#"{"a":1,}"#,
        r#"{"a":}"#,
        r#"{"a" 1}"#,
        r#"{a:1}"#,
        r#"{"a":01}"#,
        r#"{"a":1.}"#,
        r#"{"a":.5}"#,
        r#"{"a":-}"#,
        r#"{"a":1e}"#,
        r#"{"a":+1}"#,
        r#"{"a":tru}"#,
        r#"{"a":truer}"#,
        r#"{"a":"x}"#,
        r#"{"a":"\x"}"#,
        r#"{"b":"\u12g4","a":1}"#,
        r#"{"b":[1,],"a":1}"#,
        r#"{"b":[1}],"a":1}"#,
        r#"{"b":{"c"},"a":1}"#,
        r#"{"b":{1:2},"a":1}"#,
        "{\"b\":\"12345678\t\",\"a\":1}",
    ];
    for text in broken {
        assert_eq!(at("/a", text), None, "{text}");
    }
}

#[test]
fn wherever_the_scan_is_sure_the_walk_finds_the_same() {
    let mut rng = fastrand::Rng::with_seed(10);
    let (mut sure, mut keys, mut refused) = (0, 0, 0);
    for _ in 0..100_000 {
        let pointer = some_pointers(&mut rng).remove(0);
        // Every token of the pointer has a member to lead into, so that keys are found, and one beside it.
        let mut text = document(&mut rng, 2);
        for token in pointer.0.iter().rev() {
            let beside = document(&mut rng, 3);
            text = format!(r#"{{ "a":{beside}, "{token}" : {text} }}"#);
        }
        for _ in 0..rng.usize(..3) {
            let letters: Vec<char> = text.chars().collect();
            let at = rng.usize(..letters.len());
            let other = char::from(b"{}[],:\"\\ 1e-.tn\x01"[rng.usize(..16)]);
            let changed = letters.iter().enumerate();
            text = changed
                .map(|(n, old)| if n == at { other } else { *old })
                .collect();
        }
        let walked = walked(&text, &pointer);
        refused += usize::from(walked.is_err());
        if let Some(found) = scan::key(&text, &pointer.0) {
            sure += 1;
            keys += usize::from(found.is_some());
            let walked = walked.unwrap_or_else(|error| panic!("{error}: {text}"));
            assert_eq!(found, walked.as_deref(), "{pointer} of {text}");
        }
    }
    assert!(
        sure > 10_000 && keys > 1_000 && refused > 10_000,
        "too few of each: {sure}, {keys}, {refused}"
    );
}
