//! The house's rules that a machine can check: sizes, first lines, which folder may name which, and that the documents
//! tell of what is there.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file before its tests.
const FILE_LINES_MAX: usize = 600;

/// Which top-level modules a module may name, besides those that are for all.
///
/// Reading order is the life of a call; arrows go right. Mechanisms (upstream, kafka, spool, claims) never name each other.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "listen",
        &["route", "pattern", "kafka", "messages", "reply", "tls"],
    ),
    ("route", &[]),
    (
        "pattern",
        &[
            "upstream", "kafka", "claims", "messages", "reply", "spool", "worth",
        ],
    ),
    ("upstream", &["tls"]),
    ("tls", &[]),
    ("kafka", &[]),
    ("claims", &[]),
    ("messages", &[]),
    ("spool", &[]),
    ("worth", &[]),
    ("reply", &[]),
    ("admin", &["messages", "route", "reply", "worth"]),
    ("config", &[]),
    ("telemetry", &[]),
    ("lifecycle", &[]),
    ("body", &[]),
    ("error", &[]),
    ("headers", &[]),
    // A call says who its caller is.
    ("service", &["tls"]),
];

/// What everything may name.
const FOR_ALL: &[&str] = &[
    "body",
    "config",
    "error",
    "headers",
    "lifecycle",
    "service",
    "telemetry",
];

/// Only the composition root and the command line may name everything.
const ROOTS: &[&str] = &["app", "cli"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut left = vec![root().join(folder)];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(
                fs::read_dir(&path)
                    .expect("a folder")
                    .map(|entry| entry.expect("an entry").path()),
            );
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("UTF-8");
            found.push((
                path.strip_prefix(root())
                    .expect("below the root")
                    .to_owned(),
                text,
            ));
        }
    }
    assert!(!found.is_empty(), "{folder} has no sources");
    found
}

/// The lines before the tests.
fn product(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text)
}

#[test]
fn every_file_says_what_it_is_for_and_fits_a_head() {
    for (path, text) in sources("src").into_iter().chain(sources("tests")) {
        assert!(
            text.starts_with("//!"),
            "{} does not say what it is for",
            path.display()
        );
        let lines = product(&text).lines().count();
        assert!(
            lines <= FILE_LINES_MAX,
            "{} has {lines} lines; split it by its nouns",
            path.display()
        );
    }
}

#[test]
fn no_module_is_a_drawer_for_everything() {
    for (path, _) in sources("src") {
        let name = path
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let drawer =
            ["util", "utils", "common", "helpers", "misc", "types", "ext"].contains(&name.as_str());
        assert!(
            !drawer,
            "{} says nothing about what is in it",
            path.display()
        );
    }
}

#[test]
fn arrows_go_right() {
    for (path, text) in sources("src") {
        let mut parts = path.components().skip(1);
        let module = parts
            .next()
            .expect("a name")
            .as_os_str()
            .to_string_lossy()
            .replace(".rs", "");
        if ROOTS.contains(&module.as_str()) || module == "lib" || module == "main" {
            continue;
        }
        let (_, allowed) = ARROWS
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("{module} has no place in the table of arrows"));
        for (number, line) in product(&text).lines().enumerate() {
            for named in named_modules(line) {
                let fine = named == module || FOR_ALL.contains(&named) || allowed.contains(&named);
                assert!(
                    fine,
                    "{}:{}: {module} may not name {named}",
                    path.display(),
                    number + 1
                );
            }
        }
    }
}

/// The top-level modules that a line of code names.
fn named_modules(line: &str) -> impl Iterator<Item = &str> {
    let code = if line.trim_start().starts_with("//") {
        ""
    } else {
        line
    };
    code.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|letter: char| !(letter.is_ascii_lowercase() || letter == '_'));
        &rest[..end.unwrap_or(rest.len())]
    })
}

#[test]
fn only_the_kafka_folder_names_its_client() {
    for (path, text) in sources("src") {
        let named = text
            .lines()
            .any(|line| !line.trim_start().starts_with("//") && line.contains("rdkafka::"));
        assert!(
            !named || path.starts_with("src/kafka"),
            "{} names rdkafka",
            path.display()
        );
    }
}

#[test]
fn only_rescue_makes_error_responses() {
    for (path, text) in sources("src") {
        let named = product(&text).contains("application/problem+json");
        assert!(
            !named || path.ends_with("reply/rescue.rs") || path.starts_with("src/cli"),
            "{}",
            path.display()
        );
    }
}

#[test]
fn nothing_is_left_for_later_and_no_test_waits_blindly() {
    for (path, text) in sources("src").into_iter().chain(sources("tests")) {
        if path.ends_with("tidy.rs") {
            continue;
        }
        for word in ["TODO", "FIXME", "XXX", "#[ignore"] {
            assert!(!text.contains(word), "{} has {word}", path.display());
        }
    }
    for (path, text) in sources("tests/it") {
        let waits = text.contains("thread::sleep") && !path.ends_with("tidy.rs");
        assert!(
            !waits,
            "{} waits blindly; wait for a condition",
            path.display()
        );
    }
}

#[test]
fn a_log_line_that_names_a_message_names_its_trace() {
    let mut found = 0;
    for (path, text) in sources("src") {
        for level in ["debug", "info", "warn", "error"] {
            let begins = format!("tracing::{level}!(");
            let lines = product(&text).split(&begins).skip(1);
            // The fields stand before the message.
            for fields in lines.filter_map(|line| line.split('"').next()) {
                if fields.starts_with("%id,") || fields.trim_start().starts_with("id = ") {
                    found += 1;
                    assert!(fields.contains("trace"), "{}: {fields}", path.display());
                }
            }
        }
    }
    assert!(
        found >= 10,
        "only {found} lines name a message: have they changed their form?"
    );
}

#[test]
fn every_metric_is_documented() {
    let text = fs::read_to_string(root().join("docs/metrics.md")).expect("docs/metrics.md");
    for name in wayside::telemetry::names::ALL {
        assert!(
            text.contains(name.name),
            "docs/metrics.md does not tell of {}",
            name.name
        );
    }
}

#[test]
fn every_refusal_is_documented() {
    let text = fs::read_to_string(root().join("docs/errors.md")).expect("docs/errors.md");
    for kind in wayside::error::Kind::ALL {
        assert!(
            text.contains(kind.word()),
            "docs/errors.md does not tell of {}",
            kind.word()
        );
    }
}

#[test]
fn the_readmes_yaml_is_the_example_that_is_checked() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let example =
        fs::read_to_string(root().join("config/examples/readme.yaml")).expect("the example");
    let shown: Vec<&str> = readme
        .split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    let code = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty());
        lines.map(|line| line.trim_end().to_owned()).collect()
    };
    assert!(
        shown.iter().any(|yaml| code(yaml) == code(&example)),
        "README.md shows other YAML than the example"
    );
}
