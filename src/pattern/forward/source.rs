//! A call's request, ready to be sent once or again.

use std::sync::Arc;

use http::header::HOST;
use http::{HeaderValue, Version, request};

use super::Forward;
use crate::body::Body;
use crate::error::{Error, Kind};
use crate::pattern::hop::{self, Framing};
use crate::pattern::paced::{Paced, Sent};
use crate::pattern::replay::Replay;
use crate::service::Request;
use crate::upstream::Upstream;

/// The request.
pub(super) struct Source {
    /// For the first try, or given back by a connection that never sent it.
    ready: Option<Request>,
    /// For further tries; `None` where a call may not be repeated once it was sent.
    spare: Option<Box<Spare>>,
    sent: Sent,
    has_body: bool,
}

struct Spare {
    head: request::Parts,
    body: Option<Replay>,
}

impl Source {
    /// Cleans the head and arranges the body so that it can be sent again if the call may (`repeatable`).
    pub(super) fn new(
        rule: &Forward,
        upstream: &Arc<Upstream>,
        mut request: Request,
        repeatable: bool,
    ) -> Result<Self, Error> {
        let framing = hop::clean_request(&mut request, &rule.via)?;
        *request.version_mut() = Version::HTTP_11;
        if !request.headers().contains_key(HOST) {
            // HTTP/1.0 may come without; what we send is HTTP/1.1, which may not.
            let name = HeaderValue::from_str(&upstream.name);
            let name = name.unwrap_or_else(|_| HeaderValue::from_static("app"));
            request.headers_mut().insert(HOST, name);
        }
        let sent = Sent::default();
        let has_body = framing != Framing::None;
        let (head, mut body) = request.into_parts();
        if has_body {
            body = Body::boxed(Paced::new(body, rule.timeouts.idle, sent.clone()));
        }
        // A call that may run only once needs no copy: what never left is given back whole.
        let replay =
            (repeatable && has_body).then(|| Replay::new(std::mem::take(&mut body), &rule.replay));
        let first = match &replay {
            Some(replay) => replay.body().unwrap_or_default(),
            None => body,
        };
        let spare = repeatable.then(|| {
            Box::new(Spare {
                head: head.clone(),
                body: replay,
            })
        });
        Ok(Self {
            ready: Some(Request::from_parts(head, first)),
            spare,
            sent,
            has_body,
        })
    }

    /// The request for the next try.
    pub(super) fn take(&mut self) -> Result<Request, Error> {
        self.ready
            .take()
            .ok_or_else(|| Error::new(Kind::Internal, "a call has nothing left to send"))
    }

    /// Takes back what a connection never sent.
    pub(super) fn give_back(&mut self, unsent: Option<Box<Request>>) {
        self.ready = unsent.map(|request| *request);
    }

    /// Whether there is a request for a try as it is, without a copy.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.is_some()
    }

    /// Whether there can be a further try.
    pub(super) fn can_renew(&self) -> bool {
        self.is_ready()
            || self.spare.as_ref().is_some_and(|spare| {
                let body = spare.body.as_ref();
                body.is_none_or(Replay::is_whole)
            })
    }

    /// Makes the request of a further try ready. From then on no earlier try can read the caller's body past what is kept
    /// of it. `false` if the call can not be sent again as it was.
    pub(super) fn renew(&mut self) -> bool {
        if self.ready.is_none() {
            self.ready = self.again();
        }
        self.ready.is_some()
    }

    fn again(&self) -> Option<Request> {
        let spare = self.spare.as_ref()?;
        let body = match &spare.body {
            Some(replay) => replay.body()?,
            None => Body::empty(),
        };
        Some(Request::from_parts(spare.head.clone(), body))
    }

    /// Tells how far the body is; `None` for a call without one.
    pub(super) fn uploading(&self) -> Option<Sent> {
        self.has_body.then(|| self.sent.clone())
    }
}
