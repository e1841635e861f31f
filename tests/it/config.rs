//! The configuration from the outside: every fixture, the reference, the examples, and mangled input.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use wayside::config::{self, Report};

/// What variables stand for in every test.
fn env(name: &str) -> Option<String> {
    match name {
        "KAFKA" => Some("kafka-0:9092,kafka-1:9092".to_owned()),
        "PORT" => Some("80a".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn yaml_files(folder: &str, prefix: &str) -> Vec<PathBuf> {
    let wanted = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with(prefix) && name.ends_with(".yaml")
    };
    let entries = fs::read_dir(root().join(folder)).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(wanted)
        .collect();
    files.sort();
    files
}

/// The report as it reads with the file named by its base name.
fn text(report: &Report, file: &Path) -> String {
    let folder = format!("{}/", file.parent().unwrap().display());
    format!("{report}\n").replace(&folder, "")
}

fn compile(text: &str) -> Result<config::Loaded, Report> {
    config::compile("test.yaml", text, &env)
}

fn reference() -> String {
    fs::read_to_string(root().join("config/reference.yaml")).unwrap()
}

/// Each key line of the reference as (line index, path of words, comment), lists as `[]`, names as `*`.
fn reference_keys(text: &str) -> Vec<(usize, String, String)> {
    let mut above: Vec<(usize, String)> = Vec::new();
    let mut keys = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let body = line.trim_start();
        let Some((key, rest)) = body.trim_start_matches("- ").split_once(':') else {
            continue;
        };
        if body.starts_with('#') {
            continue;
        }
        let item = body.starts_with("- ");
        let indent = line.len() - body.len() + if item { 2 } else { 0 };
        above.retain(|(depth, _)| *depth < indent);
        let mut path = above.last().map_or(String::new(), |(_, path)| path.clone());
        let listed = ["outbound.routes", "subscriptions", "inbound.allow"].contains(&path.as_str());
        if listed {
            path.push_str("[]");
        }
        let named = ["services", "claims", "tls"].contains(&path.as_str());
        let word = if named { "*" } else { key };
        let path = if path.is_empty() {
            word.to_owned()
        } else {
            format!("{path}.{word}")
        };
        above.push((indent, path.clone()));
        let comment = rest.split_once("# ").map_or("", |(_, comment)| comment);
        keys.push((number, path, comment.to_owned()));
    }
    keys
}

#[test]
fn every_good_fixture_compiles() {
    let files = yaml_files("tests/fixtures", "ok-");
    assert!(files.len() >= 4);
    for file in files {
        if let Err(report) = config::load(&file, &env) {
            panic!("{report}");
        }
    }
}

#[test]
fn every_bad_fixture_gives_exactly_its_report() {
    let files = yaml_files("tests/fixtures", "bad-");
    assert!(files.len() >= 36);
    let mut wrong = String::new();
    for file in files {
        let report = config::load(&file, &env).expect_err(&format!("{} compiles", file.display()));
        let got = text(&report, &file);
        let expected = file.with_extension("err");
        if std::env::var_os("WAYSIDE_WRITE_ERR").is_some() {
            fs::write(&expected, &got).unwrap();
        }
        let expected = fs::read_to_string(expected).unwrap_or_default();
        if got != expected {
            wrong += &format!("--- expected\n{expected}--- got\n{got}\n");
        }
    }
    assert!(
        wrong.is_empty(),
        "set WAYSIDE_WRITE_ERR=1 to write what is got\n{wrong}"
    );
}

#[test]
fn errors_are_told_by_line_and_column_and_cut_at_fifty() {
    let lines: String = (0..80).map(|index| format!("x{index}: 1\n")).collect();
    let report = compile(&lines).unwrap_err();
    let text = report.to_string();
    assert_eq!(
        report.errors.len(),
        81,
        "80 unknown keys and a missing service"
    );
    assert_eq!(text.lines().count(), 51);
    assert!(text.ends_with("\n… and 31 more errors"), "{text}");
    assert!(
        report
            .errors
            .is_sorted_by_key(|error| (error.line, error.column))
    );
}

#[test]
fn the_shipped_files_compile_without_a_surprise() {
    let mut files = yaml_files("config/examples", "");
    assert_eq!(files.len(), 5);
    files.push(root().join("config/minimal.yaml"));
    files.push(root().join("config/reference.yaml"));
    for file in files {
        let loaded = config::load(&file, &|_| None).unwrap_or_else(|report| panic!("{report}"));
        let allowed = ["there is no `allow`"];
        for warning in loaded.warnings {
            let known = allowed
                .iter()
                .any(|start| warning.reason.starts_with(start));
            assert!(known, "{warning}");
        }
    }
}

#[test]
fn the_reference_has_every_accepted_key_and_no_other() {
    // It has all that a route's `publish` has, which stands there.
    let twice = |path: &String| path.starts_with("outbound.routes[].forward.otherwise.publish.");
    let found: BTreeSet<_> = reference_keys(&reference())
        .into_iter()
        .map(|(_, path, _)| path)
        .filter(|path| !twice(path))
        .collect();
    let accepted = config::accepted_keys().into_iter();
    let mut expected: BTreeSet<_> = accepted.filter(|path| !twice(path)).collect();
    // Names that the file chooses, and a property of somebody else's.
    let free = [
        "services.*",
        "claims.*",
        "tls.*",
        "kafka.properties.compression.type",
    ];
    expected.extend(free.map(str::to_owned));
    // `slim.drop` and `over` stand in a line of their own, in short form, as they cannot stand beside `keep`.
    for beside in ["drop", "over"] {
        expected.remove(&format!("outbound.routes[].publish.slim.{beside}"));
    }
    assert!(reference().contains("slim: { drop: [/document], over: 2KiB, "));
    assert_eq!(found, expected);
}

#[test]
fn the_reference_names_every_later_key_and_each_is_refused_as_such() {
    let reference = reference();
    for path in config::later_keys() {
        let word = path.rsplit('.').next().unwrap();
        let start = format!("#later {word}: ");
        let line = reference
            .lines()
            .find(|line| line.trim_start().starts_with(&start));
        let line = line.unwrap_or_else(|| panic!("{path} is missing"));
        let with_it = reference.replace(line, &line.replacen("#later ", "", 1));
        let report = compile(&with_it).expect_err(&path);
        let word_end = |error: &config::Diagnostic| error.path.rsplit('.').next() == Some(word);
        let refused = report
            .errors
            .iter()
            .any(|error| word_end(error) && error.reason == "not available in this version");
        assert!(refused, "{path}: {report}");
    }
}

#[test]
fn the_defaults_in_the_reference_are_the_defaults() {
    let text = reference();
    let whole = serde_json::to_value(compile(&text).unwrap().config).unwrap();
    // Without its only key a section would hold nothing.
    let alone = ["admin.listen"];
    let mut checked = 0;
    for (number, path, comment) in reference_keys(&text) {
        let checkable = comment.starts_with("default") && holds_a_value(&text, number);
        if !checkable || alone.contains(&path.as_str()) {
            continue;
        }
        let without: Vec<_> = text
            .lines()
            .enumerate()
            .map(|(index, line)| if index == number { "#" } else { line })
            .collect();
        let loaded =
            compile(&without.join("\n")).unwrap_or_else(|report| panic!("{path}: {report}"));
        assert_eq!(
            serde_json::to_value(loaded.config).unwrap(),
            whole,
            "{path}"
        );
        checked += 1;
    }
    assert!(checked >= 35, "{checked}");
}

/// Whether the line holds its value itself, rather than a section below it.
fn holds_a_value(text: &str, number: usize) -> bool {
    let line = text.lines().nth(number).unwrap();
    let value = line.split_once(':').unwrap().1;
    !value.trim_start().starts_with('#')
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let text = "\
service: a
app: b:80
outbound:
  listen: 0.0.0.0:4140
  routes:
    - { name: all, match: { path: /x/** }, forward: { to: b } }
    - { name: one, match: { host: b, path: /x/y }, forward: { to: b } }
    - { name: slim, match: { path: /z }, publish: { topic: t, slim: { drop: [/x] } } }
services: { b: { addresses: [b:80] } }
subscriptions: [{ topic: t, retry: { attempts: 2 } }]
kafka: embedded
claims: { bodies: { disk: /tmp/bodies } }
admin: { listen: 0.0.0.0:4191 }
";
    let warnings = compile(text).unwrap().warnings;
    let told: Vec<_> = warnings
        .iter()
        .map(|warning| warning.to_string().replace("test.yaml:", ""))
        .collect();
    assert_eq!(
        told,
        [
            "4:11: outbound.listen: everyone who reaches this port may call in the app's name",
            "7:7: outbound.routes[1]: never reached: `all` in line 6 takes all of its calls",
            "8:69: outbound.routes[2].publish.slim: without `inbound` no other sidecar can fetch the bodies that are kept",
            "10:48: subscriptions[0].retry.attempts: of no effect without `dead_letter`: a message is tried until it is done",
            "12:19: claims.bodies: `survives` is not set, so bodies are told to end with the pod (`survives: pod`)",
            "13:18: admin.listen: everyone who reaches this port may do what is meant for this machine alone",
        ]
    );
    let unused =
        "service: a\ninbound: { listen: 0.0.0.0:4143 }\nclaims: { b: { disk: /b, survives: pod } }";
    let told: Vec<_> = compile(unused)
        .unwrap()
        .warnings
        .into_iter()
        .map(|warning| warning.reason)
        .collect();
    assert_eq!(
        told,
        [
            "there is no `allow`: everyone who reaches this port may call the app",
            "no route has `slim`, so nothing is kept here",
        ]
    );
}

#[test]
fn a_diagnostic_is_read_by_machines_too() {
    let report = compile("service: a\ndrian: 5s").unwrap_err();
    let expected = serde_json::json!({ "errors": [{
        "file": "test.yaml", "line": 2, "column": 1, "path": "drian", "reason": "unknown key", "hint": "drain",
    }]});
    assert_eq!(serde_json::to_value(&report).unwrap(), expected);
}

#[test]
fn a_missing_section_means_off_and_a_lazy_subscription_opens_the_door() {
    let minimal = compile("service: a").unwrap().config;
    assert!(minimal.outbound.is_none() && minimal.inbound.is_none() && minimal.kafka.is_none());
    assert_eq!(minimal.admin.to_string(), "127.0.0.1:4191");
    let consumer = |hydrate: &str| {
        let text = format!(
            "service: a\napp: b:80\nkafka: embedded\nsubscriptions: [{{ topic: t, hydrate: {hydrate} }}]"
        );
        compile(&text).unwrap().config.outbound
    };
    let door = consumer("lazy").unwrap();
    assert_eq!(
        (door.listen.to_string().as_str(), door.routes.len()),
        ("127.0.0.1:4140", 0)
    );
    assert!(consumer("eager").is_none());
}

#[test]
fn no_dump_and_no_error_shows_a_property() {
    let text = "service: a\nkafka: { brokers: [b:1], properties: { sasl.password: hunter2 } }";
    let loaded = compile(text).unwrap();
    let properties = &loaded.config.kafka.as_ref().unwrap().properties;
    assert_eq!(properties[0].1.reveal(), "hunter2");
    assert!(
        !serde_json::to_string(&loaded.config)
            .unwrap()
            .contains("hunter2")
    );
    assert!(!format!("{loaded:?}").contains("hunter2"));
    for broken in [
        "service: a\nkafka: { brokers: [b:1], properties: hunter2 }",
        "service: a\nkafka: { brokers: [b:1], properties: { acks: hunter2 } }",
        "service: a\nkafka: { brokers: [b:1], properties: { x: { hunter2: 1 } } }",
        "service: a\nkafka: hunter2",
    ] {
        let report = compile(broken).unwrap_err().to_string();
        assert!(!report.contains("hunter2"), "{report}");
    }
}

#[test]
fn what_cannot_be_read_is_one_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("big.yaml"), "#".repeat(config::FILE_BYTES_MAX + 1)).unwrap();
    fs::write(path("bytes.yaml"), b"service: a\napp: \xff\n").unwrap();
    let check = |path: &Path, expected: &str| {
        let report = config::load(path, &env).unwrap_err().to_string();
        assert_eq!(report, format!("{}:{expected}", path.display()));
    };
    check(
        &path("none.yaml"),
        "1:1: the file cannot be read: no such file or directory",
    );
    check(folder.path(), "1:1: this is a folder, not a file");
    check(
        &path("big.yaml"),
        "1:1: the file is over 1 MiB, the most that is read",
    );
    let not_text = "2:6: the file is not UTF-8 text: this byte is not part of a character";
    check(&path("bytes.yaml"), not_text);
}

#[test]
fn hostile_files_are_refused_in_no_time() {
    let many_keys: String = (0..45_000).map(|index| format!("k{index}: 1\n")).collect();
    let same_keys = "k: 1\n".repeat(45_000);
    let deep = "[".repeat(100_000);
    let deep_blocks: String = (0..400)
        .map(|depth| format!("{}a:\n", " ".repeat(depth)))
        .collect();
    let bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n";
    let routes = "- { name: a, forward: { to: b } }\n  ".repeat(20_000);
    let routes = format!("service: a\noutbound:\n  routes:\n  {routes}");
    let began = tokio::time::Instant::now();
    for text in [&many_keys, &same_keys, &deep, &deep_blocks, bomb, &routes] {
        compile(text).unwrap_err();
    }
    assert!(began.elapsed().as_secs() < 10);
}

#[test]
fn mangled_files_never_panic() {
    let mut texts: Vec<Vec<u8>> = Vec::new();
    for file in [yaml_files("tests/fixtures", ""), yaml_files("config", "")].concat() {
        texts.push(fs::read(file).unwrap());
    }
    let mut random = fastrand::Rng::with_seed(4140);
    let folder = tempfile::tempdir().unwrap();
    let mut compiled = 0;
    for round in 0..6_000 {
        let mut bytes = random.choice(&texts).unwrap().clone();
        for _ in 0..random.usize(1..6) {
            mangle(&mut bytes, &texts, &mut random);
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) => match compile(text) {
                Ok(_) => compiled += 1,
                Err(report) => assert!(!report.errors.is_empty(), "an error without a reason"),
            },
            Err(_) if round % 16 == 0 => {
                let path = folder.path().join("mangled.yaml");
                fs::write(&path, &bytes).unwrap();
                config::load(&path, &env).unwrap_err();
            }
            Err(_) => {}
        }
    }
    assert!(compiled > 0, "some stay right, so the readers were reached");
}

/// One small change: a byte, a cut, a doubled or foreign piece, a piece of syntax.
fn mangle(bytes: &mut Vec<u8>, texts: &[Vec<u8>], random: &mut fastrand::Rng) {
    const PIECES: [&str; 16] = [
        "${", "}", "&a ", "*a", "<<: ", "!!str ", "\n---\n", "\t", "[", "{", ": ", "\"", "..", "~",
        "\u{feff}", "ä",
    ];
    let at = random.usize(0..=bytes.len());
    let end = (at + random.usize(0..40)).min(bytes.len());
    match random.u8(0..6) {
        0 if at < bytes.len() => bytes[at] = random.u8(..),
        1 => drop(bytes.drain(at..end)),
        2 => {
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        3 => {
            let other = random.choice(texts).unwrap();
            let from = random.usize(0..=other.len());
            let piece = other[from..(from + 40).min(other.len())].to_vec();
            bytes.splice(at..end, piece);
        }
        _ => drop(bytes.splice(at..at, random.choice(PIECES).unwrap().bytes())),
    }
}
