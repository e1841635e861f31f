//! What releases a 202: the broker's acknowledgement, or the spool's sync.
//!
//! With a spool there is one path, append → send in log order → broker, and the route only decides which event is
//! waited for. Without one the record goes straight to the broker.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::outbox::Outbox;
use super::publish::Sender;
use crate::config::model::{Accept, Publish as Rule};
use crate::error::{Error, Kind, Retry};
use crate::headers::Headers;
use crate::kafka::producer::{Outgoing, PublishError};
use crate::messages::keys::{Promised, Proof, Using};
use crate::messages::{Event, Origin, What};
use crate::spool::{Entry, Promise, Receipt, Refused, Spool, Unkept};

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

/// A record that is ready to go. It travels in a box, as calls do.
#[derive(Debug)]
pub(super) struct Drafted {
    pub(super) id: Uuid,
    pub(super) time: SystemTime,
    /// When it was ready; the route's `timeout` counts from here.
    pub(super) sent: Instant,
    pub(super) proof: Option<Proof>,
    /// Its idempotency key, free again unless the message is promised.
    pub(super) using: Option<Using>,
    pub(super) route: Arc<str>,
    pub(super) origin: Origin,
    pub(super) key: Option<Bytes>,
    pub(super) headers: Headers,
    pub(super) value: Bytes,
}

/// Sees to it that a record is not lost, and says by what.
///
/// # Errors
/// Nobody promises anything; the error says whether the record may be at the broker all the same.
pub(super) async fn keep(
    sender: &Sender,
    way: &Way,
    drafted: Box<Drafted>,
) -> Result<Promised, Error> {
    match &sender.outbox {
        Some((outbox, _)) => by_spool(outbox, way, drafted, sender).await,
        None => by_broker(sender, way, drafted).await,
    }
}

async fn by_broker(
    sender: &Sender,
    way: &Way,
    mut drafted: Box<Drafted>,
) -> Result<Promised, Error> {
    let outgoing = Outgoing {
        topic: &way.topic,
        key: drafted.key.as_deref(),
        value: &drafted.value,
        headers: &drafted.headers,
    };
    let deadline = drafted.sent + way.timeout;
    // A caller that leaves now leaves a record on its way.
    drafted.using.iter_mut().for_each(|using| using.doubt(true));
    let published = sender.producer.publish(outgoing, deadline).await;
    let ack = published.map_err(Error::from).inspect_err(|error| {
        let doubt = error.may_retry() == Retry::NoAnswer;
        drafted
            .using
            .iter_mut()
            .for_each(|using| using.doubt(doubt));
    })?;
    let timelines = &sender.timelines;
    let accepted = Event::at(drafted.time, What::Accepted).origin(drafted.origin);
    let replicated = Event::now(What::Replicated).place(ack.partition, ack.offset);
    timelines.record_all(drafted.id, [accepted, replicated]);
    let promised = Promised::Replicated(ack.partition, ack.offset);
    if let Some(using) = drafted.using {
        using.keep(promised);
    }
    Ok(promised)
}

/// A message that the log was given. Also where its caller leaves before it is told anything, the timeline says how the
/// message began, and its idempotency key stands for it.
struct Begun<'a> {
    sender: &'a Sender,
    spool: &'a Arc<Spool>,
    id: Uuid,
    accepted: Event,
    using: Option<Using>,
    /// `None` once it was told.
    receipt: Option<Receipt>,
}

impl Begun<'_> {
    /// Waits for a promise, no longer than that.
    async fn kept(&self, within: Duration) -> Option<Result<Promise, Unkept>> {
        let receipt = self.receipt.as_ref()?;
        timeout(within, receipt.kept()).await.ok()
    }

    fn ended(mut self, kept: Result<Promise, Unkept>) -> Result<Promised, Error> {
        self.receipt = None;
        settle_doubt(&mut self.using, &kept);
        let promised = promised(kept)?;
        let timelines = &self.sender.timelines;
        let spooled = (promised == Promised::Spooled).then(|| Event::now(What::Spooled));
        timelines.record_all(self.id, std::iter::once(self.accepted).chain(spooled));
        if let Some(using) = self.using.take() {
            using.keep(promised);
        }
        Ok(promised)
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let Some(receipt) = self.receipt.take() else {
            return;
        };
        self.sender.timelines.record(self.id, self.accepted);
        // A key that is dropped here is in doubt, and stands for the message.
        let (Some(using), Ok(runtime)) = (self.using.take(), Handle::try_current()) else {
            return;
        };
        let spool = Arc::clone(self.spool);
        crate::lifecycle::spawn(&runtime, "idempotency", async move {
            spool.sync(&receipt);
            let (kept, mut using) = (receipt.kept().await, Some(using));
            settle_doubt(&mut using, &kept);
            if let (Ok(promised), Some(using)) = (promised(kept), using) {
                using.keep(promised);
            }
        });
    }
}

/// Only what is nowhere, or was taken back, leaves its key free.
fn settle_doubt(using: &mut Option<Using>, kept: &Result<Promise, Unkept>) {
    let nowhere = match kept {
        Err(Unkept::Refused(_)) => true,
        Err(Unkept::Returned(kind)) => *kind != Kind::Spool,
        Err(Unkept::Doubtful(_)) | Ok(_) => false,
    };
    using.iter_mut().for_each(|using| using.doubt(!nowhere));
}

fn promised(kept: Result<Promise, Unkept>) -> Result<Promised, Error> {
    match kept {
        Ok(Promise::Replicated(partition, offset)) => Ok(Promised::Replicated(partition, offset)),
        Ok(Promise::Spooled) => Ok(Promised::Spooled),
        Err(Unkept::Refused(why) | Unkept::Doubtful(why)) => Err(refused(why)),
        Err(Unkept::Returned(kind)) => Err(returned(kind)),
    }
}

async fn by_spool(
    outbox: &Outbox,
    way: &Way,
    drafted: Box<Drafted>,
    sender: &Sender,
) -> Result<Promised, Error> {
    // While the broker is known to be away there is no use in waiting for it.
    let at_once = way.accept == Accept::Spooled || outbox.producer().is_away();
    let begun = begin(outbox, way, *drafted, sender, at_once)?;
    if !at_once {
        if let Some(kept) = begun.kept(way.ack_wait).await {
            return begun.ended(kept);
        }
        // A broker that does not answer in time may be away: the next caller need not wait as long.
        outbox.producer().doubt();
        begun
            .receipt
            .iter()
            .for_each(|receipt| begun.spool.sync(receipt));
    }
    match begun.kept(DISK_WAIT).await {
        Some(kept) => begun.ended(kept),
        // It may still be kept and sent: nobody can tell.
        None => {
            let detail =
                "the spool's disk does not answer; the message may be kept and sent all the same";
            Err(Error::new(Kind::Spool, detail).after(AFTER))
        }
    }
}

/// Gives a message to the log, if it may be sent at all.
fn begin<'a>(
    outbox: &'a Outbox,
    way: &Way,
    drafted: Drafted,
    sender: &'a Sender,
    at_once: bool,
) -> Result<Begun<'a>, Error> {
    let mut using = drafted.using;
    let entry = Entry {
        id: drafted.id,
        topic: Arc::clone(&way.topic),
        accepted: drafted.time,
        route: drafted.route,
        proof: drafted.proof,
        key: drafted.key,
        headers: drafted.headers,
        value: drafted.value,
    };
    let outgoing = Outgoing {
        topic: &entry.topic,
        key: entry.key.as_deref(),
        value: &entry.value,
        headers: &entry.headers,
    };
    let (bytes, spool) = (outgoing.bytes(), outbox.spool());
    if bytes > outbox.producer().record_max() {
        return Err(PublishError::TooLarge.into());
    }
    if bytes > spool.record_max() {
        let detail = "the record is over a quarter of `spool.max`";
        return Err(Error::new(Kind::RecordTooLarge, detail));
    }
    outbox.check(&way.topic, bytes)?;
    let receipt = spool.append(entry, at_once).map_err(refused)?;
    using.iter_mut().for_each(|using| using.doubt(true));
    Ok(Begun {
        sender,
        spool,
        id: drafted.id,
        accepted: Event::at(drafted.time, What::Accepted).origin(drafted.origin),
        using,
        receipt: Some(receipt),
    })
}

fn refused(why: Refused) -> Error {
    let detail = match why {
        Refused::Full => "the spool or its disk is full: the broker has not taken what is in it",
        Refused::Disk => "the spool's disk failed",
    };
    Error::new(Kind::Spool, detail).after(AFTER)
}

fn returned(kind: Kind) -> Error {
    match kind {
        Kind::TopicUnknown => PublishError::TopicUnknown.into(),
        Kind::RecordTooLarge => PublishError::TooLarge.into(),
        Kind::Spool => Error::new(kind, "the spool cannot be read").after(AFTER),
        _ => Error::new(kind, "the broker refuses the record").after(AFTER),
    }
}
