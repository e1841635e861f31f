//! The results: how each message ended that was asked about, for its `Location`, for callers that wait, and for the
//! stream of results.
//!
//! In memory and bounded by bytes; the oldest goes first. After a restart they are read again from the reply topic.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::answer::Answer;
use super::event::What;

/// What a result needs beside its text.
const OVERHEAD: usize = 256;

/// How a message ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The message.
    pub id: Uuid,
    /// `done`, `dead` or `dropped`.
    pub what: What,
    /// When.
    pub at: SystemTime,
    /// The consumer group whose verdict it is.
    pub group: String,
    /// The app's last status, if it answered.
    pub status: Option<u16>,
    /// Its answer.
    pub answer: Option<Answer>,
}

/// The results that are kept.
#[derive(Debug)]
pub struct Results {
    table: Mutex<Table>,
    max: usize,
    keep: Duration,
    tip: watch::Sender<Tip>,
}

/// How far the results have come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tip {
    /// The number of the newest result, from 1; 0 before the first.
    pub newest: u64,
    /// The sidecar stops: nobody waits any longer.
    pub closed: bool,
}

/// Some results in a row.
#[derive(Debug, Default)]
pub struct Page {
    /// How many before them are no longer kept.
    pub missed: u64,
    /// Each with its number.
    pub results: Vec<(u64, Arc<Outcome>)>,
}

#[derive(Debug, Default)]
struct Table {
    kept: VecDeque<Arc<Outcome>>,
    /// The number of the first that is kept.
    first: u64,
    newest: HashMap<Uuid, u64>,
    bytes: usize,
    waiting: HashMap<Uuid, Vec<oneshot::Sender<Arc<Outcome>>>>,
    closed: bool,
}

impl Outcome {
    /// The `result` of the document at a message's `Location`.
    pub fn result(&self) -> Value {
        let mut out = Map::new();
        out.insert("group".into(), self.group.as_str().into());
        if let Some(status) = self.status {
            out.insert("status".into(), status.into());
        }
        let Some(answer) = &self.answer else {
            return out.into();
        };
        let mut headers = Map::new();
        for (name, value) in answer.lines() {
            if name == "content-type" {
                out.insert("content_type".into(), value.into());
                continue;
            }
            let lines = headers.entry(name).or_insert_with(|| Value::from(""));
            let joined = match lines.as_str() {
                None | Some("") => value.to_owned(),
                Some(before) => format!("{before}, {value}"),
            };
            *lines = joined.into();
        }
        if !headers.is_empty() {
            out.insert("headers".into(), headers.into());
        }
        match answer.body.as_deref() {
            None => out.insert("cut".into(), "body".into()),
            Some(body) => match std::str::from_utf8(body) {
                Ok(text) => out.insert("body".into(), text.into()),
                Err(_) => out.insert("body_base64".into(), BASE64.encode(body).into()),
            },
        };
        out.into()
    }

    /// What the stream of results tells.
    pub fn told(&self) -> Value {
        json!({
            "id": self.id.as_hyphenated().to_string(),
            "status": self.what.status().word(),
            "at": humantime::format_rfc3339_millis(self.at).to_string(),
            "result": self.result(),
        })
    }

    fn bytes(&self) -> usize {
        OVERHEAD + self.group.len() + self.answer.as_ref().map_or(0, Answer::bytes)
    }
}

impl Results {
    /// Keeps up to `max` bytes of results, each for `keep`.
    pub fn new(max: usize, keep: Duration) -> Arc<Self> {
        let table = Table {
            first: 1,
            ..Table::default()
        };
        Arc::new(Self {
            table: Mutex::new(table),
            max,
            keep,
            tip: watch::Sender::new(Tip::default()),
        })
    }

    /// Whether a group's verdict on a message counts. The first group that comes to one is the one that counts; what it
    /// says later, of a dead letter that was delivered again, replaces what it said.
    pub fn counts(&self, id: Uuid, group: &str) -> bool {
        self.get(id).is_none_or(|known| known.group == group)
    }

    /// Keeps a result, wakes who waits for it, and forgets the oldest ones that have no room any more.
    pub fn put(&self, outcome: Outcome) {
        let outcome = Arc::new(outcome);
        let id = outcome.id;
        let mut table = self.lock();
        let waiting = table.waiting.remove(&id).unwrap_or_default();
        table.bytes += outcome.bytes();
        table.kept.push_back(Arc::clone(&outcome));
        let number = table.last();
        table.newest.insert(id, number);
        table.forget(self.max, SystemTime::now().checked_sub(self.keep));
        drop(table);
        for caller in waiting {
            // It may have gone just now.
            drop(caller.send(Arc::clone(&outcome)));
        }
        self.tip
            .send_modify(|tip| tip.newest = tip.newest.max(number));
    }

    /// The result of a message.
    pub fn get(&self, id: Uuid) -> Option<Arc<Outcome>> {
        let table = self.lock();
        let at = table.newest.get(&id)?.checked_sub(table.first)?;
        let outcome = table.kept.get(usize::try_from(at).ok()?)?;
        let fresh = outcome.at + self.keep >= SystemTime::now();
        fresh.then(|| Arc::clone(outcome))
    }

    /// Waits for the result of a message; `None` when the sidecar stops. Dropping the future frees its place.
    pub async fn wait(&self, id: Uuid) -> Option<Arc<Outcome>> {
        let known = self.get(id);
        if known.is_some() {
            return known;
        }
        let (sender, receiver) = oneshot::channel();
        let mut place = Place {
            results: self,
            id,
            receiver,
        };
        {
            let mut table = self.lock();
            if table.closed {
                return None;
            }
            table.waiting.entry(id).or_default().push(sender);
        }
        // It may have come between the look and the place.
        if let Some(known) = self.get(id) {
            return Some(known);
        }
        (&mut place.receiver).await.ok()
    }

    /// Lets everybody go who waits, and ends the streams.
    pub fn close(&self) {
        let mut table = self.lock();
        table.closed = true;
        table.waiting.clear();
        drop(table);
        self.tip.send_modify(|tip| tip.closed = true);
    }

    /// Follows how far the results have come.
    pub fn follow(&self) -> watch::Receiver<Tip> {
        self.tip.subscribe()
    }

    /// Up to `most` results after that number.
    pub fn after(&self, number: u64, most: usize) -> Page {
        let table = self.lock();
        let next = number.saturating_add(1);
        let from = next.max(table.first);
        let skip = usize::try_from(from - table.first).unwrap_or(usize::MAX);
        let kept = table.kept.iter().skip(skip).take(most).cloned();
        Page {
            missed: from - next,
            results: (from..).zip(kept).collect(),
        }
    }

    /// Bytes of all that is kept.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// How many callers wait.
    pub fn waiting(&self) -> usize {
        self.lock().waiting.values().map(Vec::len).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // The table is whole after each statement that changes it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// The number of the last result.
    fn last(&self) -> u64 {
        self.first + self.kept.len() as u64 - u64::from(!self.kept.is_empty())
    }

    fn forget(&mut self, max: usize, oldest: Option<SystemTime>) {
        while let Some(front) = self.kept.front() {
            let stale = oldest.is_some_and(|oldest| front.at < oldest);
            if self.bytes <= max && !stale {
                return;
            }
            self.bytes -= front.bytes();
            if self.newest.get(&front.id) == Some(&self.first) {
                self.newest.remove(&front.id);
            }
            self.kept.pop_front();
            self.first += 1;
        }
    }
}

/// The place of one who waits.
struct Place<'a> {
    results: &'a Results,
    id: Uuid,
    receiver: oneshot::Receiver<Arc<Outcome>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.receiver.close();
        let mut table = self.results.lock();
        if let Some(callers) = table.waiting.get_mut(&self.id) {
            callers.retain(|caller| !caller.is_closed());
            if callers.is_empty() {
                table.waiting.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, StatusCode};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn outcome(group: &str, body: &[u8]) -> Outcome {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("text/plain"));
        headers.append("x-a", HeaderValue::from_static("1"));
        headers.append("x-a", HeaderValue::from_static("2"));
        Outcome {
            id: Uuid::now_v7(),
            what: What::Done,
            at: SystemTime::now(),
            group: group.into(),
            status: Some(200),
            answer: Answer::new(StatusCode::OK, &headers, Some(body.to_vec().into())),
        }
    }

    #[test]
    fn a_result_is_shown_as_text_if_it_is_text() {
        let text = outcome("billing", b"{\"a\":1}").result();
        let expected = json!({
            "group": "billing", "status": 200, "content_type": "text/plain",
            "headers": { "x-a": "1, 2" }, "body": "{\"a\":1}",
        });
        assert_eq!(text, expected);
        let binary = outcome("billing", &[0xff, 0]).result();
        assert_eq!(
            (&binary["body_base64"], &binary["body"]),
            (&json!("/wA="), &Value::Null)
        );
        let cut = outcome("billing", &vec![b'x'; 1 << 17]).result();
        assert_eq!((&cut["cut"], &cut["body"]), (&json!("body"), &Value::Null));
    }

    #[test]
    fn the_oldest_goes_first_and_who_reads_on_is_told_how_many_went() {
        let results = Results::new(5 * 1024, HOUR);
        let all: Vec<Outcome> = (0..10).map(|_| outcome("a", &[b'x'; 700])).collect();
        all.iter().cloned().for_each(|outcome| results.put(outcome));
        assert!(results.bytes() <= 5 * 1024);
        let page = results.after(0, 100);
        assert_eq!(page.missed + page.results.len() as u64, 10);
        assert!(page.missed > 0 && !page.results.is_empty());
        assert_eq!(page.results.last().map(|(number, _)| *number), Some(10));
        assert!(results.get(all[0].id).is_none());
        assert_eq!(results.get(all[9].id).as_deref(), Some(&all[9]));
        let rest = results.after(9, 100);
        assert_eq!((rest.missed, rest.results.len()), (0, 1));
        assert!(results.after(10, 100).results.is_empty());
        assert_eq!(results.follow().borrow().newest, 10);
    }

    #[tokio::test]
    async fn one_that_does_not_fit_still_reaches_who_waits() {
        let results = Results::new(10, HOUR);
        let large = outcome("a", b"x");
        let (result, ()) =
            tokio::join!(results.wait(large.id), async { results.put(large.clone()) });
        assert_eq!(result.as_deref(), Some(&large));
        assert_eq!((results.bytes(), results.get(large.id)), (0, None));
        let page = results.after(0, 9);
        assert_eq!((page.missed, page.results.len()), (1, 0));
    }

    #[tokio::test]
    async fn who_stops_waiting_leaves_nothing_behind() {
        let results = Results::new(1 << 20, HOUR);
        let id = Uuid::now_v7();
        let wait = tokio::time::timeout(Duration::from_millis(1), results.wait(id)).await;
        assert!(wait.is_err());
        assert_eq!(results.waiting(), 0);
        let (result, ()) = tokio::join!(results.wait(id), async { results.close() });
        assert_eq!((result, results.waiting()), (None, 0));
        assert_eq!(
            results.wait(id).await,
            None,
            "nor does anybody wait after that"
        );
    }

    #[test]
    fn the_first_group_counts_and_may_change_its_mind() {
        let results = Results::new(1 << 20, HOUR);
        let first = outcome("a", b"1");
        assert!(results.counts(first.id, "a"));
        results.put(first.clone());
        assert!(results.counts(first.id, "a") && !results.counts(first.id, "b"));
        let again = Outcome {
            what: What::Dead,
            ..first.clone()
        };
        results.put(again.clone());
        assert_eq!(results.get(first.id).as_deref(), Some(&again));
    }

    #[test]
    fn a_result_is_forgotten_with_its_timeline() {
        let results = Results::new(1 << 20, HOUR);
        let old = Outcome {
            at: SystemTime::now() - 2 * HOUR,
            ..outcome("a", b"1")
        };
        results.put(old.clone());
        assert_eq!((results.get(old.id), results.bytes()), (None, 0));
    }
}
