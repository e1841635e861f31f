//! What a caller is answered: the 202, or the receiver's own answer if it waits for that.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::Publish;
use crate::claims::Claim;
use crate::messages::keys::Promised;
use crate::messages::{Outcome, What};
use crate::reply::accepted::{self, Accepted, ClaimKept, SpoolKept};
use crate::reply::answered::{self, Answered};
use crate::service::{Permit, Response};

/// A message that is promised.
pub(super) struct Published {
    accepted: Accepted,
    /// How long its caller would wait for the result.
    wait: Option<Duration>,
    /// The caller's place among the calls in flight, until it has its answer.
    permit: Option<Permit>,
}

impl Published {
    pub(super) fn new(accepted: Accepted, wait: Option<Duration>, permit: Option<Permit>) -> Self {
        Self {
            accepted,
            wait,
            permit,
        }
    }
}

impl Publish {
    /// The receiver's real answer if the caller waits for it and it comes in time, else the 202.
    pub(super) async fn answer(&self, published: Published) -> Response {
        let Published {
            mut accepted,
            wait,
            permit: _until_the_end,
        } = published;
        let id = accepted.id;
        let (Some(wait), Some(answers)) = (wait, &self.sender.answers) else {
            return accepted::respond(&accepted);
        };
        let outcome = answers.wait(id, wait).await;
        if let Some(outcome) = &outcome {
            accepted.status = outcome.what.status().word();
        }
        let answer = outcome.as_deref().and_then(real);
        let meter = match (&outcome, &answer) {
            (_, Some(_)) => &self.meters.answered,
            (Some(_), None) => &self.meters.without_answer,
            (None, None) => &self.meters.too_late,
        };
        meter.increment(1);
        let mut response = match answer {
            Some(answer) => answered::respond(answer, id),
            None => accepted::respond(&accepted),
        };
        answered::applied(&mut response, wait);
        response
    }

    pub(super) fn accepted(&self, id: Uuid, promised: Promised, claim: Option<&Claim>) -> Accepted {
        let (kept, survives) = self
            .claim
            .as_ref()
            .map_or(("", None), |keeping| keeping.told);
        let place = match promised {
            Promised::Replicated(partition, offset) => Some((partition, offset)),
            Promised::Spooled => None,
        };
        let spool = self.sender.outbox.as_ref().filter(|_| place.is_none());
        Accepted {
            id,
            status: match promised {
                Promised::Replicated(..) => "replicated",
                Promised::Spooled => "spooled",
            },
            topic: Arc::clone(&self.way.topic),
            place,
            spool: spool.map(|(_, survives)| SpoolKept {
                survives: *survives,
            }),
            claim: claim.map(|claim| ClaimKept {
                kept,
                survives,
                size: claim.size,
                expires: humantime::format_rfc3339_seconds(claim.expires).to_string(),
            }),
        }
    }
}

/// The app's answer as a caller gets it; `None` if there is none, or only a part of one.
fn real(outcome: &Outcome) -> Option<Answered> {
    let answer = outcome.answer.as_ref()?;
    Some(Answered {
        status: answer.status,
        headers: answer.headers.clone(),
        body: answer.body.clone()?,
        verdict: match outcome.what {
            What::Dead => "dead-letter",
            What::Dropped => "drop",
            _ => "done",
        },
    })
}
