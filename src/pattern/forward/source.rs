//! What it takes to send a call's request once or again.

use http::header::HOST;
use http::{HeaderValue, Version};

use super::Forward;
use crate::body::Body;
use crate::error::{Error, Kind};
use crate::pattern::hop::{self, Framing};
use crate::pattern::paced::{Paced, Sent};
use crate::pattern::replay::Replay;
use crate::service::Request;
use crate::upstream::Upstream;

/// What stands behind the request of a call, which stays in the call itself until it leaves.
pub(super) struct Source {
    /// The request is there: for the first try, or put back by a connection that never sent it.
    ready: bool,
    /// For further tries; `None` where a call may not be repeated once it was sent.
    spare: Option<Box<Spare>>,
    /// How far the body is; `None` for a call without one.
    sent: Option<Sent>,
}

struct Spare {
    head: Request,
    body: Option<Replay>,
}

impl Spare {
    fn new(request: &Request, body: Option<Replay>) -> Self {
        Self {
            head: head_of(request, Body::empty()),
            body,
        }
    }

    fn again(&self) -> Option<Request> {
        let body = match &self.body {
            Some(replay) => replay.body()?,
            None => Body::empty(),
        };
        Some(head_of(&self.head, body))
    }
}

/// A copy of a request's head. Not of its extensions: what they are for has been done.
fn head_of(request: &Request, body: Body) -> Request {
    let mut copy = Request::new(body);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    copy
}

impl Source {
    /// Cleans the head and arranges the body so that it can be sent again if the call may (`repeatable`).
    pub(super) fn new(
        rule: &Forward,
        upstream: &Upstream,
        request: &mut Request,
        repeatable: bool,
    ) -> Result<Self, Error> {
        let framing = hop::clean_request(request, &rule.via)?;
        *request.version_mut() = Version::HTTP_11;
        if !request.headers().contains_key(HOST) {
            // HTTP/1.0 may come without; what we send is HTTP/1.1, which may not.
            let name = HeaderValue::from_str(&upstream.name);
            let name = name.unwrap_or_else(|_| HeaderValue::from_static("app"));
            request.headers_mut().insert(HOST, name);
        }
        let body = request.body_mut();
        let sent = (framing != Framing::None).then(Sent::default);
        if let Some(sent) = &sent {
            let paced = Paced::new(std::mem::take(body), rule.timeouts.idle, sent.clone());
            *body = Body::boxed(paced);
        }
        // A call that may run only once needs no copy: what never left is put back whole.
        let replay = (repeatable && sent.is_some()).then(|| {
            let replay = Replay::new(std::mem::take(body), &rule.replay);
            *body = replay.body().unwrap_or_default();
            replay
        });
        let spare = repeatable.then(|| Box::new(Spare::new(request, replay)));
        Ok(Self {
            ready: true,
            spare,
            sent,
        })
    }

    /// The request leaves.
    ///
    /// # Errors
    /// It has left before.
    pub(super) fn leave(&mut self) -> Result<(), Error> {
        match std::mem::take(&mut self.ready) {
            true => Ok(()),
            false => Err(Error::new(
                Kind::Internal,
                "a call has nothing left to send",
            )),
        }
    }

    /// A connection that never sent the request has put it back.
    pub(super) fn is_back(&mut self) {
        self.ready = true;
    }

    /// Whether there is a request for a try as it is, without a copy.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
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
    pub(super) fn renew(&mut self, request: &mut Request) -> bool {
        if !self.ready
            && let Some(again) = self.spare.as_ref().and_then(|spare| spare.again())
        {
            *request = again;
            self.ready = true;
        }
        self.ready
    }

    /// Tells how far the body is; `None` for a call without one.
    pub(super) fn uploading(&self) -> Option<Sent> {
        self.sent.clone()
    }
}
