//! What releases a 202: the broker's acknowledgement, or the spool's sync.
//!
//! With a spool there is one path, append → send in log order → broker, and the route only decides which event is
//! waited for. Without one the record goes straight to the broker.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::outbox::Outbox;
use super::publish::Sender;
use crate::config::model::{Accept, Publish as Rule};
use crate::error::{Error, Kind};
use crate::kafka::producer::{Outgoing, Producer, PublishError};
use crate::kafka::record::Header;
use crate::messages::keys::{Promised, Proof};
use crate::messages::{Event, Origin, What};
use crate::spool::{Entry, Promise, Refused, Unkept};

/// When a caller may come back after a full spool or a failed disk.
const AFTER: Duration = Duration::from_secs(2);

/// How long a disk may take. Long after that somebody will want to look at it.
const DISK_WAIT: Duration = Duration::from_secs(30);

/// Where a route's records go, and what its 202 waits for.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) topic: Arc<str>,
    accept: Accept,
    ack_wait: Duration,
    timeout: Duration,
}

impl Way {
    pub(super) fn of(rule: &Rule) -> Self {
        Self {
            topic: Arc::from(rule.topic.as_str()),
            accept: rule.accept,
            ack_wait: rule.ack_wait,
            timeout: rule.timeout,
        }
    }
}

/// A record that is ready to go.
#[derive(Debug)]
pub(super) struct Drafted {
    pub(super) id: Uuid,
    pub(super) time: SystemTime,
    pub(super) proof: Option<Proof>,
    pub(super) route: Arc<str>,
    pub(super) origin: Origin,
    pub(super) key: Option<Bytes>,
    pub(super) headers: Vec<Header>,
    pub(super) value: Bytes,
}

/// Sees to it that a record is not lost, and says by what.
///
/// # Errors
/// Nobody promises anything; the error says whether the record may be at the broker all the same.
pub(super) async fn keep(sender: &Sender, way: &Way, drafted: Drafted) -> Result<Promised, Error> {
    match &sender.outbox {
        Some((outbox, _)) => by_spool(outbox, &sender.producer, way, drafted, sender).await,
        None => by_broker(sender, way, drafted).await,
    }
}

async fn by_broker(sender: &Sender, way: &Way, drafted: Drafted) -> Result<Promised, Error> {
    let outgoing = Outgoing {
        topic: &way.topic,
        key: drafted.key.as_deref(),
        value: &drafted.value,
        headers: &drafted.headers,
    };
    let deadline = Instant::now() + way.timeout;
    let ack = sender.producer.publish(outgoing, deadline).await?;
    let timelines = &sender.timelines;
    let accepted = Event::at(drafted.time, What::Accepted).origin(drafted.origin);
    timelines.record(drafted.id, accepted);
    let replicated = Event::now(What::Replicated).place(ack.partition, ack.offset);
    timelines.record(drafted.id, replicated);
    Ok(Promised::Replicated(ack.partition, ack.offset))
}

/// Tells how a message began once it is in the log, also where its caller left before it was told.
struct Begun<'a> {
    sender: &'a Sender,
    id: Uuid,
    accepted: Event,
    in_log: bool,
}

impl Begun<'_> {
    fn ended(mut self, kept: Result<Promise, Unkept>) -> Result<Promised, Error> {
        self.in_log = kept.is_ok();
        let (timelines, id) = (&self.sender.timelines, self.id);
        match kept {
            Ok(Promise::Replicated(partition, offset)) => {
                Ok(Promised::Replicated(partition, offset))
            }
            Ok(Promise::Spooled) => {
                timelines.record(id, Event::now(What::Spooled));
                Ok(Promised::Spooled)
            }
            Err(Unkept::Refused(why)) => Err(refused(why)),
            Err(Unkept::Returned(kind)) => Err(returned(kind)),
        }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.in_log {
            self.sender.timelines.record(self.id, self.accepted);
        }
    }
}

async fn by_spool(
    outbox: &Outbox,
    producer: &Producer,
    way: &Way,
    drafted: Drafted,
    sender: &Sender,
) -> Result<Promised, Error> {
    outbox.check(&way.topic)?;
    let id = drafted.id;
    let entry = Entry {
        id,
        topic: Arc::clone(&way.topic),
        accepted: drafted.time,
        route: drafted.route,
        proof: drafted.proof,
        key: drafted.key,
        headers: drafted.headers,
        value: drafted.value,
    };
    let spool = outbox.spool();
    let outgoing = Outgoing {
        topic: &entry.topic,
        key: entry.key.as_deref(),
        value: &entry.value,
        headers: &entry.headers,
    };
    if outgoing.bytes() > producer.record_max().min(spool.record_max()) {
        return Err(PublishError::TooLarge.into());
    }
    // While the broker is known to be away there is no use in waiting for it.
    let at_once = way.accept == Accept::Spooled || producer.is_away();
    let receipt = spool.append(entry, at_once).map_err(refused)?;
    let begun = Begun {
        sender,
        id,
        accepted: Event::at(drafted.time, What::Accepted).origin(drafted.origin),
        in_log: true,
    };
    if !at_once {
        match timeout(way.ack_wait, receipt.kept()).await {
            Ok(kept) => return begun.ended(kept),
            Err(_) => spool.sync(&receipt),
        }
    }
    match timeout(DISK_WAIT, receipt.kept()).await {
        Ok(kept) => begun.ended(kept),
        // It may still be kept and sent: nobody can tell.
        Err(_) => {
            let detail =
                "the spool's disk does not answer; the message may be kept and sent all the same";
            Err(Error::new(Kind::Spool, detail).after(AFTER))
        }
    }
}

fn refused(why: Refused) -> Error {
    let detail = match why {
        Refused::Full => "the spool is full: the broker has not taken what is in it",
        Refused::Disk => "the spool's disk failed",
    };
    Error::new(Kind::Spool, detail).after(AFTER)
}

fn returned(kind: Kind) -> Error {
    match kind {
        Kind::TopicUnknown => PublishError::TopicUnknown.into(),
        Kind::RecordTooLarge => PublishError::TooLarge.into(),
        _ => Error::new(kind, "the broker refuses the record").after(AFTER),
    }
}
