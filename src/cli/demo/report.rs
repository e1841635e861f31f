//! What was measured, as a table that a newcomer can read.

use std::time::Duration;

use super::ledger::{Dead, Entry};

/// Everything that the acts found out.
#[derive(Default)]
pub(super) struct Report {
    /// One line each.
    pub(super) acts: Vec<Act>,
    /// A read through two sidecars: call to answer.
    pub(super) reads: Samples,
    /// An order: call to 202.
    pub(super) publishes: Samples,
    /// An order: 202 to billing's app.
    pub(super) deliveries: Samples,
    /// Tries that the sidecar of orders repeated, if it counts them.
    pub(super) retries: Option<f64>,
    /// What else the reader should know.
    pub(super) notes: Vec<String>,
    /// Promises that were not kept.
    pub(super) broken: Vec<String>,
}

/// One act in one line.
pub(super) struct Act {
    /// What was tried.
    pub(super) title: &'static str,
    /// What came of it.
    pub(super) said: String,
}

/// Durations of one kind; a few hundred, as many as the acts make calls.
#[derive(Default)]
pub(super) struct Samples(Vec<Duration>);

impl Samples {
    /// Adds some.
    pub(super) fn extend(&mut self, durations: impl IntoIterator<Item = Duration>) {
        self.0.extend(durations);
    }

    /// The smallest value that at least `percent` of all values do not exceed (nearest rank).
    fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied()
    }
}

impl Report {
    /// Ends an act.
    pub(super) fn act(&mut self, title: &'static str, said: String) {
        self.acts.push(Act { title, said });
    }

    /// The whole text.
    pub(super) fn text(&self, entries: &[Entry], dead: &[Dead], seconds: f64) -> String {
        let mut text = format!("\nWayside, shown in {seconds:.0} s\n\n");
        for (number, act) in self.acts.iter().enumerate() {
            text.push_str(&format!("{}. {}\n   {}\n", number + 1, act.title, act.said));
        }
        text.push('\n');
        text.push_str(&table(&self.latencies()));
        text.push('\n');
        text.push_str(&table(&totals(entries, dead, self.retries)));
        text.push('\n');
        for note in &self.notes {
            text.push_str(&format!("{note}\n"));
        }
        if self.broken.is_empty() {
            text.push_str("every promise was kept\n");
        }
        for promise in &self.broken {
            text.push_str(&format!("BROKEN: {promise}\n"));
        }
        text
    }

    fn latencies(&self) -> Vec<Vec<String>> {
        let row = |name: &str, samples: &Samples| {
            let show = |percent| samples.percentile(percent).map_or("-".to_owned(), time);
            vec![
                name.to_owned(),
                show(50),
                show(99),
                samples.0.len().to_string(),
            ]
        };
        let head = ["how long it took", "half within", "99 % within", "calls"];
        vec![
            head.map(str::to_owned).to_vec(),
            row("read: call to answer, through two sidecars", &self.reads),
            row(
                "order: call to 202, with the broker's acknowledgement",
                &self.publishes,
            ),
            row("order: 202 to billing's app", &self.deliveries),
        ]
    }
}

fn totals(entries: &[Entry], dead: &[Dead], retries: Option<f64>) -> Vec<Vec<String>> {
    let sum = |part: fn(&Entry) -> u64| entries.iter().map(part).sum::<u64>();
    // Only what audit has received: for anything else the record's size is not known.
    let whole = sum(|entry| {
        if entry.slim > 0 {
            entry.whole as u64
        } else {
            0
        }
    });
    let slim = sum(|entry| entry.slim as u64);
    let (billing, audit) = (sum(|it| it.to_billing.into()), sum(|it| it.to_audit.into()));
    let hydrated = sum(|entry| entry.hydrated.into());
    let lost = entries
        .iter()
        .filter(|entry| entry.promised() && !entry.arrived())
        .count();
    let row = |name: &str, value: String, remark: String| vec![name.to_owned(), value, remark];
    let kept = || String::new();
    vec![
        row(
            "record values through the broker, had bodies travelled whole",
            bytes(whole),
            kept(),
        ),
        row(
            "record values through the broker, slim",
            bytes(slim),
            format!("{} saved", share(whole - slim.min(whole), whole)),
        ),
        row(
            "deliveries to billing and audit",
            (billing + audit).to_string(),
            format!("{billing} + {audit}"),
        ),
        row(
            "whole bodies asked for",
            hydrated.to_string(),
            format!("{} of all deliveries", share(hydrated, billing + audit)),
        ),
        row(
            "tries repeated by orders' sidecar",
            retries.map_or("-".to_owned(), |it| it.to_string()),
            kept(),
        ),
        row("dead letters", dead.len().to_string(), kept()),
        row("acknowledged orders lost", lost.to_string(), kept()),
        row(
            "orders delivered again",
            sum(|it| it.duplicates.into()).to_string(),
            "at least once is the promise".to_owned(),
        ),
    ]
}

/// Columns side by side: the first and any words after the numbers to the left, numbers to the right.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if column == 0 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
        let line = cells.collect::<Vec<_>>().join("   ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `0.42 ms`, `12 ms`, `3.1 s`.
pub(super) fn time(duration: Duration) -> String {
    let milliseconds = duration.as_secs_f64() * 1000.0;
    match milliseconds {
        _ if milliseconds < 10.0 => format!("{milliseconds:.2} ms"),
        _ if milliseconds < 1000.0 => format!("{milliseconds:.0} ms"),
        _ => format!("{:.1} s", milliseconds / 1000.0),
    }
}

fn bytes(count: u64) -> String {
    if count < 1024 {
        format!("{count} B")
    } else {
        format!("{:.1} KiB", count as f64 / 1024.0)
    }
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(50), None);
        samples.extend((1..=200).rev().map(Duration::from_millis));
        assert_eq!(samples.percentile(50), Some(Duration::from_millis(100)));
        assert_eq!(samples.percentile(99), Some(Duration::from_millis(198)));
        assert_eq!(samples.percentile(100), Some(Duration::from_millis(200)));
    }

    #[test]
    fn columns_stand_under_each_other() {
        let rows = [["name", "p50"], ["a longer name", "7"]];
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.iter().map(|cell| (*cell).to_owned()).collect())
            .collect();
        assert_eq!(table(&rows), "name            p50\na longer name     7\n");
    }

    #[test]
    fn numbers_have_the_unit_that_suits_them() {
        assert_eq!(time(Duration::from_micros(420)), "0.42 ms");
        assert_eq!(time(Duration::from_millis(3140)), "3.1 s");
        assert_eq!(bytes(812), "812 B");
        assert_eq!(bytes(2048), "2.0 KiB");
        assert_eq!(share(1, 8), "12.5 %");
    }

    #[test]
    fn a_broken_promise_is_named_at_the_end() {
        let mut report = Report::default();
        assert!(
            report
                .text(&[], &[], 1.0)
                .ends_with("every promise was kept\n")
        );
        report.broken.push("2 reads failed".to_owned());
        assert!(
            report
                .text(&[], &[], 1.0)
                .ends_with("BROKEN: 2 reads failed\n")
        );
    }
}
