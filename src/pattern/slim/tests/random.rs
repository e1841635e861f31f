//! Random documents against a plain implementation over values.

use super::*;

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

pub(super) fn document(rng: &mut fastrand::Rng, depth: usize) -> String {
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

pub(super) fn some_pointers(rng: &mut fastrand::Rng) -> Vec<Pointer> {
    let token = |rng: &mut fastrand::Rng| match rng.usize(..=NAMES.len()) {
        0 => EACH.to_owned(),
        name => NAMES[name - 1].to_owned(),
    };
    (0..rng.usize(1..5))
        .map(|_| Pointer((0..rng.usize(1..4)).map(|_| token(rng)).collect()))
        .collect()
}

fn below<'p>(pointers: &[&'p [String]], token: &str, element: bool) -> Vec<&'p [String]> {
    let leads = |first: &String| first == token || (element && first == EACH);
    pointers
        .iter()
        .filter(|p| p.first().is_some_and(leads))
        .map(|p| &p[1..])
        .collect()
}

/// The plain implementation: `Ok` for what stays, `Err` for what is cut.
fn plain(mode: Mode, value: &Value, pointers: &[&[String]]) -> Option<Value> {
    if pointers.iter().any(|pointer| pointer.is_empty()) {
        return (mode == Mode::Keep).then(|| value.clone());
    }
    let element = value.is_array();
    let child = |token: &str, value: &Value| plain(mode, value, &below(pointers, token, element));
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
        scalar => return (mode != Mode::Keep).then(|| scalar.clone()),
    };
    (mode != Mode::Keep || (stays != json!({}) && stays != json!([]))).then_some(stays)
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
            (Mode::Drop { over: None }, dropping(fields.clone())),
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
            dropping(some_pointers(&mut rng)),
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

#[test]
fn what_is_named_as_cut_is_all_that_random_documents_lack() {
    let mut rng = fastrand::Rng::with_seed(10);
    let mut cuts = 0;
    for round in 0..20_000 {
        let text = document(&mut rng, 4);
        let fields = some_pointers(&mut rng);
        let rule = match round % 3 {
            0 => SlimRule::Keep(fields),
            1 => SlimRule::Drop {
                fields: Vec::new(),
                over: Some(rng.usize(1..40)),
            },
            _ => SlimRule::Drop {
                fields,
                over: Some(rng.usize(1..40)),
            },
        };
        let Ok(Slimmed { cut: Some(cut), .. }) = slim(&rule, &text) else {
            continue;
        };
        let whole = Bytes::from(text.clone());
        let again = put_back(&whole, &cut.fields, &[]).unwrap();
        if cut.fields != [""] {
            let value = |body: &[u8]| serde_json::from_slice::<Value>(body).unwrap();
            assert_eq!(
                value(&again),
                value(&cut.body),
                "{rule:?} on {text}: {:?}",
                cut.fields
            );
            cuts += 1;
        }
        let back = put_back(
            &whole,
            &cut.fields,
            &cut.fields
                .iter()
                .map(|text| pointer(text))
                .collect::<Vec<_>>(),
        );
        assert_eq!(back.unwrap(), whole);
    }
    assert!(cuts > 4_000, "the documents are worth slimming: {cuts}");
}
