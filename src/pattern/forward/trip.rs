//! A call on its way: its tries, what became of them, and whether there is another.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::answer::Way;
use super::source::Source;
use super::{Failed, Forward};
use crate::error::{self, Error, Kind, Side};
use crate::pattern::deadline::{self, within};
use crate::pattern::paced::Sent;
use crate::pattern::retry::{self, Failure, Next, Standing};
use crate::pattern::{grpc, hop};
use crate::upstream::{Connection, Endpoint, Open, RetryReason, SendError, Version, Wait};

/// One call.
pub(super) struct Trip<'a> {
    rule: &'a Forward,
    /// What it holds until its end.
    pub(super) way: Way<'a>,
    source: Source,
    tried: Vec<SocketAddr>,
    /// Tries that were sent.
    sent: u32,
    idempotent: bool,
    version: Version,
    hashed: Option<u64>,
    /// The free try was used: after a lost race for an idle connection, or a stream that was not looked at.
    tried_freely: bool,
    /// What the last try that was sent ended in, to be passed on if no later one gets as far.
    kept: Option<Box<Kept>>,
}

struct Kept {
    failure: Failure,
    tried: Result<Answer, Error>,
}

/// How a try ended that has an answer.
pub(super) struct Answer {
    pub(super) response: http::Response<Incoming>,
    /// A frame of its body that was looked at already.
    pub(super) first: Option<Frame<Bytes>>,
    pub(super) connection: Connection,
    pub(super) sent: Option<Sent>,
    pub(super) open: Open,
    /// When its head came.
    pub(super) came: Instant,
    /// From the request's first byte to the head.
    pub(super) took: Duration,
}

impl<'a> Trip<'a> {
    pub(super) fn new(rule: &'a Forward, mut way: Way<'a>) -> Result<Self, Error> {
        let (upstream, request) = (way.upstream, &mut way.call.request);
        let version = upstream.version(way.call.grpc);
        let idempotent = rule.idempotent || hop::is_idempotent(request.method());
        let hashed = upstream.hash(request);
        // Over HTTP/2 a call that was begun may come back as never looked at, so that all of them need their copy.
        let repeatable = idempotent || version == Version::Two && rule.retry.attempts > 1;
        Ok(Self {
            source: Source::new(rule, upstream, request, repeatable)?,
            rule,
            way,
            tried: Vec::new(),
            sent: 0,
            idempotent,
            version,
            hashed,
            tried_freely: false,
            kept: None,
        })
    }

    /// One try: an address, a connection, the answer's head.
    pub(super) async fn attempt(&mut self, mut timer: Pin<&mut Sleep>) -> Result<Answer, Error> {
        let (rule, upstream) = (self.rule, self.way.upstream);
        let begun = Instant::now();
        let limit = self.way.deadline.min(begun + rule.timeouts.per_try);
        let Some(endpoint) = upstream.pick(&self.tried, self.hashed)? else {
            let detail = format!("no address of {} is left", upstream.name);
            return Err(Error::new(Kind::Unreachable, detail).retry(error::Retry::NeverSent));
        };
        self.tried.push(endpoint.address);
        self.way
            .call
            .try_begins((&upstream.name, endpoint.address), self.sent);
        let wait = Wait::new(begun, rule.timeouts.connect, limit);
        let once = !self.idempotent;
        let mut connection = upstream
            .connection(&endpoint, (self.version, once), wait)
            .await?;
        // Asked anew only where it took time to get here: each look at the clock is paid by every call.
        let mut asked = match connection.reused() {
            true => begun,
            false => Instant::now(),
        };
        loop {
            let open = Open::at(&endpoint, asked);
            let uploading = self.source.uploading();
            self.make_ready(asked)?;
            let answered = {
                let head = pin!(connection.send(&mut self.way.call.request));
                let times = (asked, limit, timer.as_mut());
                rule.head(&upstream.name, (head, uploading.as_ref()), times)
                    .await
            };
            match answered {
                Ok(Ok(response)) => {
                    self.sent += 1;
                    let now = Instant::now();
                    let mut answer = Answer {
                        response,
                        first: None,
                        connection,
                        sent: uploading,
                        open,
                        came: now,
                        took: now.saturating_duration_since(asked),
                    };
                    self.peek(&mut answer)?;
                    self.note(&answer);
                    return Ok(answer);
                }
                Ok(Err(failed)) => {
                    drop(open);
                    if let Some(error) = self.lost(&connection, (failed, asked), uploading.as_ref())
                    {
                        return Err(error);
                    }
                    let making = upstream.fresh_connection(&endpoint, self.version, wait);
                    connection = Box::pin(making).await?;
                    asked = Instant::now();
                }
                Err(error) => {
                    self.sent += 1;
                    if error.kind().side() == Side::Peer {
                        self.testify(&connection, &error);
                        self.blame(&endpoint, asked);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Gives the request of the next try the time that is left for it.
    fn make_ready(&mut self, now: Instant) -> Result<(), Error> {
        let Way { call, deadline, .. } = &mut self.way;
        if deadline::is_over(now, *deadline) {
            let detail = "the call's time was over before it could be sent";
            return Err(Error::new(Kind::Deadline, detail));
        }
        self.source.leave()?;
        deadline::tell(call.request.headers_mut(), call.grpc, now, *deadline);
        call.try_leaves();
        Ok(())
    }

    /// What a call without an answer is to be ended with; `None` if a fresh connection to the same address is the answer:
    /// the one it had was closed while idle, before the call left or at that very moment.
    fn lost(
        &mut self,
        connection: &Connection,
        (failed, asked): (SendError, Instant),
        uploading: Option<&Sent>,
    ) -> Option<Error> {
        if failed.unsent {
            self.source.is_back();
        }
        let mut error = failed.error;
        if let Some(theirs) = uploading.and_then(Sent::failure) {
            // The caller's body ended the try, whatever the connection says of it.
            error = theirs;
        }
        if connection.reused() && self.source.is_ready() {
            self.way.upstream.may_repeat(RetryReason::NeverSent);
            return None;
        }
        let silent = self.version == Version::One && connection.evidence().read == 0;
        let raced = connection.reused()
            && silent
            && self.idempotent
            && error.may_retry() == error::Retry::NoAnswer;
        // The service has said that it did not look at the call: it may have another connection for it.
        let untouched = self.version == Version::Two
            && error.kind() == Kind::Reset
            && error.may_retry() == error::Retry::NeverSent;
        if (raced || untouched) && !self.tried_freely && self.renew() {
            self.tried_freely = true;
            let reason = match untouched {
                true => RetryReason::NeverSent,
                false => {
                    self.testify(connection, &error);
                    RetryReason::LostRace
                }
            };
            self.way.upstream.may_repeat(reason);
            return None;
        }
        if error.may_retry() != error::Retry::NeverSent {
            self.sent += 1;
        }
        // A caller that breaks off says nothing about the address.
        if error.kind().side() == Side::Peer {
            self.testify(connection, &error);
            self.way.upstream.failed(connection.endpoint(), asked);
        }
        Some(error)
    }

    /// Holds a lack of an answer against an address, if it had most of the time that the route gives: what a caller in a
    /// hurry or our own queue left of it says nothing.
    fn blame(&self, endpoint: &Endpoint, asked: Instant) {
        let times = &self.rule.timeouts;
        let given = times.head.min(times.per_try).min(times.whole);
        let waited = asked.elapsed();
        match waited >= given / 2 {
            true => self.way.upstream.failed(endpoint, asked),
            false => endpoint.slow(waited),
        }
    }

    /// Leaves in the log what tells a lost race from a service that fails.
    fn testify(&self, connection: &Connection, error: &Error) {
        let evidence = connection.evidence();
        tracing::warn!(
            id = self.way.call.message.map(tracing::field::display),
            service = self.way.upstream.name,
            address = %connection.endpoint().address,
            reused = evidence.idle.is_some(),
            idle_ms = evidence.idle.unwrap_or_default().as_millis() as u64,
            bytes_written = evidence.written,
            bytes_read = evidence.read,
            %error,
            trace = self.way.call.trace.id(),
            "a try got no answer"
        );
    }

    /// Looks at what is there already of an answer over HTTP/2, so that no stream waits for its first message: the status
    /// of a gRPC call that is over before it began, and an answer that broke off before any of it was passed on.
    fn peek(&self, answer: &mut Answer) -> Result<(), Error> {
        if self.version != Version::Two {
            return Ok(());
        }
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let polled = Pin::new(answer.response.body_mut()).poll_frame(&mut context);
        match polled {
            std::task::Poll::Ready(Some(Ok(frame))) => answer.first = Some(frame),
            std::task::Poll::Ready(Some(Err(cause))) => {
                self.way
                    .upstream
                    .failed(answer.connection.endpoint(), answer.open.began);
                return Err(Error::new(Kind::BadAnswer, "the answer broke off at once")
                    .retry(error::Retry::NoAnswer)
                    .because(cause));
            }
            _ => {}
        }
        Ok(())
    }

    fn says_unavailable(&self, answer: &Answer) -> bool {
        if !self.way.call.grpc {
            return false;
        }
        let trailers = answer.first.as_ref().and_then(Frame::trailers_ref);
        grpc::unavailable(answer.response.headers()) || trailers.is_some_and(grpc::unavailable)
    }

    /// Tells the address's account how it did.
    fn note(&self, answer: &Answer) {
        let status = answer.response.status().as_u16();
        let well = !matches!(status, 500 | 502..=599) && !self.says_unavailable(answer);
        let endpoint = answer.connection.endpoint();
        if status == 429 {
            endpoint.avoid();
        } else {
            self.way
                .upstream
                .answered(endpoint, answer.took, answer.came, well);
        }
    }

    /// Ends the span of a try.
    pub(super) fn over(&mut self, tried: &Result<Answer, Error>) {
        let ended = tried.as_ref().map(|answer| answer.response.status());
        self.way.call.try_ends(ended);
    }

    /// Whether a try failed, and how; `None` for an answer that is passed on.
    pub(super) fn failure(&self, tried: &Result<Answer, Error>) -> Option<Failure> {
        match tried {
            Err(error) => Some(Failure::Error(error.may_retry())),
            Ok(answer) if self.says_unavailable(answer) => Some(Failure::Unavailable),
            Ok(answer) => {
                let status = answer.response.status().as_u16();
                let listed = self.rule.retry.statuses.contains(&status);
                listed.then_some(Failure::Status(status))
            }
        }
    }

    /// Decides whether there is another try. If so, its request is made at once: from then on no earlier try can read
    /// the caller's body past what is kept of it.
    pub(super) fn next(&mut self, failure: Failure, tried: &Result<Answer, Error>) -> Next {
        let standing = Standing {
            sent: self.sent,
            last_sent: self.kept.as_ref().map(|kept| kept.failure),
            idempotent: self.idempotent,
            untried_left: self.way.upstream.has_untried(&self.tried),
            left: self.way.deadline.saturating_duration_since(Instant::now()),
            rest: tried.as_ref().ok().and_then(rest),
        };
        let reason = match failure {
            Failure::Error(error::Retry::NeverSent) => RetryReason::NeverSent,
            Failure::Error(_) => RetryReason::NoAnswer,
            Failure::Status(_) | Failure::Unavailable => RetryReason::Status,
        };
        match retry::decide(&self.rule.retry, failure, standing, fastrand::f64()) {
            Next::GiveUp => Next::GiveUp,
            _ if standing.left.is_zero() || !self.source.can_renew() => Next::GiveUp,
            _ if !self.way.upstream.may_repeat(reason) => Next::GiveUp,
            // Last, for it cuts the earlier try off from the body: nothing may be passed on of that one any more.
            _ if !self.renew() => Next::GiveUp,
            next => next,
        }
    }

    fn renew(&mut self) -> bool {
        self.source.renew(&mut self.way.call.request)
    }

    /// Keeps what a try ended in that was sent; a later one that is not sent says less.
    pub(super) fn keep(&mut self, failure: Failure, tried: Result<Answer, Error>) {
        if failure == Failure::Error(error::Retry::NeverSent) {
            return;
        }
        let tried = match tried {
            // Cut off from the rest of its request, an answer may never end.
            Ok(answer) if answer.sent.as_ref().is_none_or(Sent::is_complete) => Ok(answer),
            Ok(answer) => Err(Error::new(
                Kind::Reset,
                format!(
                    "{} answered {} before it had the whole body",
                    self.way.upstream.name,
                    answer.response.status().as_u16()
                ),
            )),
            Err(error) => Err(error),
        };
        if let Some(earlier) = self.kept.replace(Box::new(Kept { failure, tried })) {
            discard(earlier.tried);
        }
    }

    /// What the caller gets when there is no further try.
    pub(super) fn last(
        &mut self,
        failure: Failure,
        tried: Result<Answer, Error>,
    ) -> Result<Answer, Error> {
        match self.kept.take() {
            Some(kept) if failure == Failure::Error(error::Retry::NeverSent) => kept.tried,
            _ => tried,
        }
    }

    /// The call's end without an answer.
    pub(super) fn failed(mut self, error: Error) -> Failed {
        let unsent = self.sent == 0 && error.may_retry() == error::Retry::NeverSent && self.renew();
        Failed {
            error,
            unsent: unsent.then_some(self.way.call),
        }
    }

    /// All addresses may be tried again.
    pub(super) fn start_over(&mut self) {
        self.tried.clear();
    }
}

impl Forward {
    /// Waits for the answer's head. The head's own limit counts from the request's last byte; it is looked at in
    /// steps of itself while the body is still on its way.
    async fn head<F: Future>(
        &self,
        service: &str,
        (mut head, uploading): (Pin<&mut F>, Option<&Sent>),
        (asked, limit, mut timer): (Instant, Instant, Pin<&mut Sleep>),
    ) -> Result<F::Output, Error> {
        let mut until = limit.min(asked + self.timeouts.head);
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
                let detail = format!("{service} did not answer in time");
                return Err(Error::new(Kind::Deadline, detail).retry(error::Retry::NoAnswer));
            }
            until = limit.min(until + self.timeouts.head);
        }
    }
}

/// Lets an answer go that is not passed on. Its connection serves again if nothing more comes on it.
fn discard(tried: Result<Answer, Error>) {
    if let Ok(answer) = tried
        && answer.response.body().is_end_stream()
        && answer.sent.as_ref().is_none_or(Sent::is_complete)
    {
        answer.connection.release();
    }
}

/// How long the service wants to be left alone, in seconds; a date is not looked at.
fn rest(answer: &Answer) -> Option<Duration> {
    let value = answer.response.headers().get(RETRY_AFTER)?;
    value.to_str().ok()?.parse().ok().map(Duration::from_secs)
}
