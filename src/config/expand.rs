//! `${VAR}` and `${VAR:-default}` inside scalars, after parsing, so that a value cannot add YAML.
//!
//! The default also stands in for a variable that is set to nothing, as in a shell. `$${` gives a plain
//! `${`; any other `$` stays as it is. A value is not expanded again.

use super::diagnostic::Invalid;

/// Bytes of one expanded scalar, at most.
const EXPANDED_MAX: usize = 64 * 1024;

/// Replaces every variable of a scalar.
pub(super) fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Invalid> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &from[2..];
            continue;
        }
        out.push_str(before);
        let Some(end) = from.find('}') else {
            return Err(Invalid::new(
                "`${` is never closed by `}`; a plain `${` is written `$${`",
            ));
        };
        out.push_str(&value(&from[2..end], env)?);
        if out.len() > EXPANDED_MAX {
            return Err(Invalid::new(
                "the value is over 64 KiB once its variables are filled in",
            ));
        }
        rest = &from[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn value(inside: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Invalid> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let starts = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    let word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    if !starts || !name.chars().all(word) {
        // The text is not repeated: it may be a piece of a password.
        return Err(Invalid::new(
            "`${…}` holds the name of a variable: letters, digits and `_`, not starting with a digit",
        ));
    }
    match (env(name), default) {
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(Invalid::new(format!(
            "the environment variable `{name}` is not set; set it or write `${{{name}:-default}}`"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let env = |name: &str| match name {
            "A" => Some("one".to_owned()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${A}".to_owned()),
            _ => None,
        };
        let got = expand(text, &env).unwrap_or_else(|error| format!("! {}", error.reason));
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn variables_are_filled_in_once() {
        check("plain", "plain");
        check("<${A}>${A}", "<one>one");
        check("${B:-two}", "two");
        check("${B:-}", "");
        check("${EMPTY:-x}${EMPTY}", "x");
        check("${NESTED}", "${A}");
    }

    #[test]
    fn a_dollar_alone_stays() {
        check("pa$$word$", "pa$$word$");
        check("$${A}", "${A}");
        check("$$${A}", "$${A}");
    }

    #[test]
    fn what_cannot_be_filled_in_is_refused() {
        check(
            "${B}",
            "! the environment variable `B` is not set; set it or write `${B:-default}`",
        );
        check(
            "${A",
            "! `${` is never closed by `}`; a plain `${` is written `$${`",
        );
        for name in ["${}", "${1A}", "${A B}", "${Ä}"] {
            assert!(expand(name, &|_| Some(String::new())).is_err(), "{name}");
        }
    }
}
