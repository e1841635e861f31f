//! The synchronous pattern: one call, tried on one address after the other under one deadline.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderValue, Method, StatusCode, Version, request};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use super::deadline::within;
use super::hop::{self, Framing, Via};
use super::paced::{Paced, Sent};
use super::relay::{Held, Limits, Relay};
use super::replay::{Replay, ReplayBudget};
use super::retry::{self, Failure, Next, Standing};
use crate::body::Body;
use crate::config::model::{Retry, Timeouts};
use crate::error::{self, Error, Kind};
use crate::service::{Call, Permit, Request, Response};
use crate::upstream::{Connection, Endpoint, Open, RetryReason, Upstream};

/// What one route does with its calls.
pub struct Forward {
    /// Where to.
    pub upstream: Arc<Upstream>,
    /// Every phase.
    pub timeouts: Timeouts,
    /// When a try is repeated.
    pub retry: Retry,
    /// The route says that running a call twice does no harm.
    pub idempotent: bool,
    /// Where bodies are kept for a repeated try.
    pub replay: Arc<ReplayBudget>,
    /// This door's name.
    pub via: Via,
}

/// The request of a call, ready to be sent once or again.
struct Source {
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

/// How a try ended that has an answer.
struct Answer {
    response: http::Response<Incoming>,
    connection: Connection,
    sent: Option<Sent>,
    open: Open,
}

/// Where a call stands between two tries.
struct Progress {
    deadline: Instant,
    tried: Vec<SocketAddr>,
    made: u32,
    idempotent: bool,
}

impl Forward {
    /// Carries a call to the service and its answer back.
    ///
    /// # Errors
    /// Where no answer began: the error of the last try, or [`Kind::Deadline`].
    pub async fn call(&self, call: Box<Call>) -> Result<Response, Error> {
        let Call {
            started,
            mut request,
            permit,
            ..
        } = *call;
        let idempotent = self.idempotent || hop::is_idempotent(request.method());
        if hop::last_hop(&mut request) {
            return last_hop(&request);
        }
        let mut source = self.prepare(request, idempotent)?;
        let mut progress = Progress {
            deadline: started + self.timeouts.whole,
            tried: Vec::new(),
            made: 0,
            idempotent,
        };
        let mut timer = pin!(sleep_until(progress.deadline));
        self.upstream.deposit();
        loop {
            progress.made += 1;
            let tried = self
                .attempt(&mut source, &mut progress, timer.as_mut())
                .await;
            let failure = match &tried {
                Ok(answer)
                    if self
                        .retry
                        .statuses
                        .contains(&answer.response.status().as_u16()) =>
                {
                    Failure::Status(answer.response.status().as_u16())
                }
                Ok(_) => return self.relay(tried?, &progress, permit),
                Err(error) => Failure::Error(error.may_retry()),
            };
            let next = self.next(failure, &mut source, &progress);
            if next == Next::GiveUp {
                return self.relay(tried?, &progress, permit);
            }
            if let Ok(answer) = tried {
                answer.discard();
            }
            if let Next::After(wait) = next {
                // The timer is the call's own, so that a backoff needs no second one.
                let over = Instant::now() + wait;
                within(timer.as_mut(), over, std::future::pending::<()>()).await;
                progress.tried.clear();
            }
        }
    }

    /// Cleans the head and arranges the body so that it can be sent again if the call may.
    fn prepare(&self, mut request: Request, idempotent: bool) -> Result<Source, Error> {
        let framing = hop::clean_request(&mut request, &self.via)?;
        *request.version_mut() = Version::HTTP_11;
        if !request.headers().contains_key(HOST) {
            // HTTP/1.0 may come without; what we send is HTTP/1.1, which may not.
            let name = HeaderValue::from_str(&self.upstream.name);
            let name = name.unwrap_or_else(|_| HeaderValue::from_static("app"));
            request.headers_mut().insert(HOST, name);
        }
        let sent = Sent::default();
        let has_body = framing != Framing::None;
        let (head, mut body) = request.into_parts();
        if has_body {
            body = Body::boxed(Paced::new(body, self.timeouts.idle, sent.clone()));
        }
        // A call that may run only once needs no copy: what never left is given back whole.
        let may_repeat = idempotent && self.retry.attempts > 1;
        let replay =
            (may_repeat && has_body).then(|| Replay::new(std::mem::take(&mut body), &self.replay));
        let first = match &replay {
            Some(replay) => replay.body().unwrap_or_default(),
            None => body,
        };
        let spare = may_repeat.then(|| {
            Box::new(Spare {
                head: head.clone(),
                body: replay,
            })
        });
        Ok(Source {
            ready: Some(Request::from_parts(head, first)),
            spare,
            sent,
            has_body,
        })
    }

    /// One try: an address, a connection, the answer's head.
    async fn attempt(
        &self,
        source: &mut Source,
        progress: &mut Progress,
        mut timer: Pin<&mut Sleep>,
    ) -> Result<Answer, Error> {
        let begun = Instant::now();
        let limit = progress.deadline.min(begun + self.timeouts.per_try);
        let Some(endpoint) = self.upstream.pick(&progress.tried)? else {
            return Err(Error::new(
                Kind::Unreachable,
                format!("no address of {} is left", self.upstream.name),
            ));
        };
        progress.tried.push(endpoint.address);
        let connect_limit = limit.min(begun + self.timeouts.connect);
        let mut connection = self.upstream.connection(&endpoint, connect_limit).await?;
        loop {
            let request = source.take()?;
            let reused = connection.reused;
            let open = Open::at(&endpoint);
            let uploading = source.has_body.then(|| source.sent.clone());
            let answered = {
                let head = pin!(connection.send(request));
                self.head(head, uploading.as_ref(), limit, timer.as_mut())
                    .await
            };
            match answered {
                Ok(Ok(response)) => {
                    return Ok(Answer {
                        response,
                        connection,
                        sent: uploading,
                        open,
                    });
                }
                Ok(Err(failed)) => {
                    source.ready = failed.unsent.map(|request| *request);
                    if !(reused && source.ready.is_some()) {
                        return Err(failed.error);
                    }
                    // Closed by the other side while idle: its fault or not, a fresh one is the answer.
                    connection = self.again(&endpoint, connect_limit).await?;
                }
                Err(error) => {
                    endpoint.failed();
                    return Err(error);
                }
            }
        }
    }

    async fn again(&self, endpoint: &Arc<Endpoint>, limit: Instant) -> Result<Connection, Error> {
        self.upstream.may_repeat(RetryReason::NeverSent);
        Box::pin(self.upstream.fresh_connection(endpoint, limit)).await
    }

    /// Waits for the answer's head. The head's own limit counts from the request's last byte; it is looked at in
    /// steps of itself while the body is still on its way.
    async fn head<F: Future>(
        &self,
        mut head: Pin<&mut F>,
        uploading: Option<&Sent>,
        limit: Instant,
        mut timer: Pin<&mut Sleep>,
    ) -> Result<F::Output, Error> {
        let mut until = limit.min(Instant::now() + self.timeouts.head);
        loop {
            if let Some(ended) = within(timer.as_mut(), until, head.as_mut()).await {
                return Ok(ended);
            }
            if until >= limit && uploading.is_some_and(Sent::waits_for_caller) {
                // The service waits for the rest of the body just as we do.
                let detail = "the body was not complete when the call's time was up";
                return Err(Error::new(Kind::CallerTimeout, detail));
            }
            if until >= limit || uploading.is_none_or(Sent::is_complete) {
                let detail = format!("{} did not answer in time", self.upstream.name);
                return Err(Error::new(Kind::Deadline, detail).retry(error::Retry::NoAnswer));
            }
            until = limit.min(until + self.timeouts.head);
        }
    }

    /// Decides whether there is another try. If so, its request is made at once: from then on no earlier try can read
    /// the caller's body past what is kept of it.
    fn next(&self, failure: Failure, source: &mut Source, progress: &Progress) -> Next {
        let untried_left = matches!(self.upstream.pick(&progress.tried), Ok(Some(_)));
        let standing = Standing {
            made: progress.made,
            idempotent: progress.idempotent,
            untried_left,
            left: progress.deadline.saturating_duration_since(Instant::now()),
        };
        let reason = match failure {
            Failure::Error(error::Retry::NeverSent) => RetryReason::NeverSent,
            Failure::Error(_) => RetryReason::NoAnswer,
            Failure::Status(_) => RetryReason::Status,
        };
        match retry::decide(&self.retry, failure, standing, fastrand::f64()) {
            Next::GiveUp => Next::GiveUp,
            _ if standing.left.is_zero() || !self.upstream.may_repeat(reason) => Next::GiveUp,
            // Last, for it cuts the earlier try off from the body: nothing may be passed on of that one any more.
            _ if !source.renew() => Next::GiveUp,
            next => next,
        }
    }

    /// Sends the answer back, holding what the call holds until its last byte.
    fn relay(
        &self,
        answer: Answer,
        progress: &Progress,
        permit: Option<Permit>,
    ) -> Result<Response, Error> {
        let (mut head, incoming) = answer.response.into_parts();
        if head.status.is_informational() {
            // Only a 101 gets this far, and nothing that could switch was passed on.
            return Err(Error::new(
                Kind::BadAnswer,
                "the service switches protocols unasked",
            ));
        }
        hop::clean_response(&mut head.headers)?;
        head.version = Version::HTTP_11;
        let mut held = Held {
            connection: Some(answer.connection),
            sent: answer.sent,
            _open: answer.open,
            _permit: permit,
        };
        if incoming.is_end_stream() {
            held.finish();
            return Ok(Response::from_parts(head, Body::empty()));
        }
        let limits = Limits {
            deadline: progress.deadline,
            idle: self.timeouts.idle,
        };
        Ok(Response::from_parts(
            head,
            Body::boxed(Relay::new(incoming, limits, held)),
        ))
    }
}

impl Source {
    /// The request for the next try.
    fn take(&mut self) -> Result<Request, Error> {
        self.ready
            .take()
            .ok_or_else(|| Error::new(Kind::Internal, "a call has nothing left to send"))
    }

    /// Makes the request of a further try ready; `false` if the call can not be sent again as it was.
    fn renew(&mut self) -> bool {
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
}

impl Answer {
    /// Lets an answer go that is not passed on. Its connection serves again if nothing more comes on it.
    fn discard(self) {
        if self.response.body().is_end_stream() && self.sent.as_ref().is_none_or(Sent::is_complete)
        {
            self.connection.release();
        }
    }
}

/// Answers an OPTIONS or TRACE whose Max-Forwards ends here (RFC 9110 section 7.6.2).
fn last_hop(request: &Request) -> Result<Response, Error> {
    if request.method() == Method::TRACE {
        // An echo would hand the caller's own credentials around.
        return Err(Error::new(
            Kind::NotImplemented,
            "TRACE is not answered by this sidecar",
        ));
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::OK;
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    Ok(response)
}
