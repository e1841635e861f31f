//! Messages as people read them.

use serde::Deserialize;

use crate::cli::tell;
use crate::messages::Status;

/// One message, as the admin door tells of it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Message {
    id: String,
    status: String,
    route: Option<String>,
    topic: Option<String>,
    events: Vec<Line>,
    #[serde(default)]
    skipped: usize,
}

#[derive(Debug, Clone, Deserialize)]
struct Line {
    at: String,
    what: String,
    partition: Option<i32>,
    offset: Option<i64>,
    status: Option<u16>,
    attempt: Option<u32>,
}

impl Message {
    /// Whether nothing more will happen to it.
    pub(super) fn is_final(&self) -> bool {
        Status::parse(&self.status).is_some_and(Status::is_final)
    }
}

impl Line {
    /// What is known of it besides its kind.
    fn details(&self) -> String {
        let place = self.partition.zip(self.offset);
        let parts = [
            place.map(|(partition, offset)| format!("partition {partition}, offset {offset}")),
            self.attempt.map(|attempt| format!("attempt {attempt}")),
            self.status.map(|status| format!("answered {status}")),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    fn text(&self) -> String {
        let text = format!("{:<15}{}", self.what, self.details());
        text.trim_end().to_owned()
    }
}

/// A table that gets a row after the other. Its columns only grow, so that rows which come later stand below the others.
#[derive(Default)]
pub(super) struct Table {
    widths: [usize; COLUMNS],
    begun: bool,
}

const COLUMNS: usize = 6;
const HEADS: [&str; COLUMNS] = ["ID", "WHEN", "ROUTE", "TOPIC", "STATUS", "LAST EVENT"];

impl Table {
    /// Makes room for these.
    pub(super) fn fit(&mut self, messages: &[Message]) {
        for message in messages {
            self.widen(&cells(message).each_ref().map(String::as_str));
        }
    }

    /// Writes a row; before the first, the heads.
    pub(super) fn row(&mut self, message: &Message) {
        if !self.begun {
            self.begun = true;
            self.widen(&HEADS);
            tell(&self.line(&HEADS));
        }
        tell(&self.line(&cells(message).each_ref().map(String::as_str)));
    }

    fn widen(&mut self, cells: &[&str; COLUMNS]) {
        for (width, cell) in self.widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.len());
        }
    }

    fn line(&self, cells: &[&str; COLUMNS]) -> String {
        let columns = cells.iter().zip(self.widths);
        let padded = columns.map(|(cell, width)| format!("{cell:<width$}"));
        let line = padded.collect::<Vec<_>>().join("  ");
        line.trim_end().to_owned()
    }
}

fn cells(message: &Message) -> [String; COLUMNS] {
    let (first, last) = (message.events.first(), message.events.last());
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let last = last.map_or_else(String::new, |last| match last.details() {
        details if details.is_empty() => last.what.clone(),
        details => format!("{}: {details}", last.what),
    });
    [
        message.id.clone(),
        first.map_or_else(String::new, |first| first.at.clone()),
        or_none(&message.route),
        or_none(&message.topic),
        message.status.clone(),
        last,
    ]
}

/// One message, told piece by piece: of a later look only what is new.
#[derive(Default)]
pub(super) struct Told {
    events: usize,
}

impl Told {
    /// Tells the message's head once, then each event once.
    pub(super) fn message(&mut self, message: &Message) {
        lines(self, message).iter().for_each(|line| tell(line));
    }
}

fn lines(told: &mut Told, message: &Message) -> Vec<String> {
    /// Events that are never left out, before those that were.
    const FIRST: usize = 3;
    let mut lines = Vec::new();
    let before = told.events;
    let all = message.events.len() + message.skipped;
    if before == 0 {
        lines.push(format!("id      {}", message.id));
        lines.push(format!("status  {}", message.status));
        let names = [("route", &message.route), ("topic", &message.topic)];
        let known = names
            .into_iter()
            .filter_map(|(word, name)| Some((word, name.as_ref()?)));
        lines.extend(known.map(|(word, name)| format!("{word:<8}{name}")));
    }
    for (at, event) in message.events.iter().enumerate() {
        // Those behind the gap are the last of all.
        let number = match at < FIRST {
            true => at,
            false => at + message.skipped,
        };
        if message.skipped > 0 && at == FIRST && before < number {
            let missing = number - before.max(FIRST);
            if missing > 0 {
                lines.push(format!("{:<26}({missing} more are not kept)", ""));
            }
        }
        if number >= before {
            lines.push(format!("{:<26}{}", event.at, event.text()));
        }
    }
    if before > 0 && message.is_final() && all > before {
        lines.push(format!("status  {}", message.status));
    }
    told.events = all;
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(status: &str, events: &[&str], skipped: usize) -> Message {
        let line = |what: &&str| Line {
            at: "2027-01-15T08:00:00.123Z".into(),
            what: (*what).into(),
            partition: None,
            offset: None,
            status: None,
            attempt: None,
        };
        Message {
            id: "0190".into(),
            status: status.into(),
            route: Some("create".into()),
            topic: None,
            events: events.iter().map(line).collect(),
            skipped,
        }
    }

    #[test]
    fn what_was_told_is_not_told_again() {
        let mut told = Told::default();
        let first = lines(
            &mut told,
            &message("replicated", &["accepted", "replicated"], 0),
        );
        assert_eq!(
            first,
            [
                "id      0190",
                "status  replicated",
                "route   create",
                "2027-01-15T08:00:00.123Z  accepted",
                "2027-01-15T08:00:00.123Z  replicated",
            ]
        );
        let events = ["accepted", "replicated", "delivered", "done"];
        let next = lines(&mut told, &message("done", &events, 0));
        assert_eq!(
            next,
            [
                "2027-01-15T08:00:00.123Z  delivered",
                "2027-01-15T08:00:00.123Z  done",
                "status  done",
            ]
        );
        assert!(lines(&mut told, &message("done", &events, 0)).is_empty());
    }

    #[test]
    fn a_gap_is_told_as_one() {
        let mut told = Told::default();
        let events = ["a", "b", "c", "y", "z"];
        let shown = lines(&mut told, &message("delivered", &events, 10)).join("\n");
        assert!(
            shown.contains("c\n                          (10 more are not kept)\n"),
            "{shown}"
        );
        // Two more came, and pushed two out that were told already.
        let shown = lines(
            &mut told,
            &message("delivered", &["a", "b", "c", "1", "2"], 12),
        );
        assert_eq!(shown.len(), 2, "{shown:?}");
    }

    #[test]
    fn columns_stand_below_each_other() {
        let mut table = Table::default();
        let messages = [message("done", &["done"], 0)];
        table.fit(&messages);
        table.widen(&HEADS);
        let head = table.line(&HEADS);
        let row = table.line(&cells(&messages[0]).each_ref().map(String::as_str));
        assert_eq!(head.find("STATUS"), row.find("done"));
        assert_eq!(head.find("ROUTE"), row.find("create"));
    }
}
