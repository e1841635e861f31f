//! Reads numbers out of `/metrics` (Prometheus text format 0.0.4).

/// The sum of a metric's series that have all of these labels; `None` if there is no such series.
pub(super) fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let values = text.lines().filter_map(|line| value(line, name, labels));
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

fn value(line: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    let (have, number) = match rest.strip_prefix('{') {
        // Our label values come from config words and never hold a brace.
        Some(rest) => rest.split_once('}')?,
        None => ("", rest),
    };
    // Without the space it is another metric whose name only begins like this one.
    let number = number.strip_prefix(' ')?;
    let has = |(label, value): &(&str, &str)| {
        let wanted = format!("{label}=\"{value}\"");
        have.split(',').any(|pair| pair.trim() == wanted)
    };
    if !labels.iter().all(has) {
        return None;
    }
    number.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP wayside_retries_total tries repeated
# TYPE wayside_retries_total counter
wayside_retries_total{service="catalog",reason="never-sent"} 5
wayside_retries_total{service="catalog",reason="no-answer"} 2
wayside_retries_total{service="billing",reason="status"} 40
wayside_retries_total_created 17
wayside_panics_total 0
"#;

    #[test]
    fn series_with_the_labels_are_added_up() {
        let name = "wayside_retries_total";
        assert_eq!(sum(TEXT, name, &[("service", "catalog")]), Some(7.0));
        assert_eq!(
            sum(
                TEXT,
                name,
                &[("service", "catalog"), ("reason", "no-answer")]
            ),
            Some(2.0)
        );
        assert_eq!(sum(TEXT, name, &[]), Some(47.0));
    }

    #[test]
    fn a_series_that_is_not_there_is_not_zero() {
        assert_eq!(
            sum(TEXT, "wayside_retries_total", &[("service", "audit")]),
            None
        );
        assert_eq!(sum(TEXT, "wayside_panics_total", &[]), Some(0.0));
        assert_eq!(sum("", "wayside_panics_total", &[]), None);
    }
}
