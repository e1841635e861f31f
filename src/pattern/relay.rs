//! An answer's body on its way back: bounded in silence and in whole, and the one owner of what the call holds until
//! its last byte: the connection, the place in flight, the open call of the address.
//!
//! A body that breaks off stays broken: the error makes the server side close without an end mark, so that nobody takes
//! half an answer for a whole one.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use super::paced::Sent;
use crate::error::{Error, Kind};
use crate::service::Permit;
use crate::upstream::{Connection, Open};

/// Limits of an answer's body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// When the whole call ends.
    pub(super) deadline: Instant,
    /// Longest silence between two frames.
    pub(super) idle: Duration,
}

/// What a call holds until its answer's last byte.
pub(super) struct Held {
    pub(super) connection: Option<Connection>,
    /// Tells when the request is through; `None` for one without a body.
    pub(super) sent: Option<Sent>,
    pub(super) _open: Open,
    pub(super) _permit: Option<Permit>,
}

impl Held {
    /// The answer was read to its end: the connection may serve another call, unless the request is still on its way.
    /// Dropped, it ends with the request.
    pub(super) fn finish(&mut self) {
        let through = self.sent.as_ref().is_none_or(Sent::is_complete);
        if let Some(connection) = self.connection.take().filter(|_| through) {
            connection.release();
        }
    }
}

pin_project_lite::pin_project! {
    /// The body of an answer.
    pub(super) struct Relay {
        #[pin]
        incoming: Incoming,
        #[pin]
        timer: Sleep,
        limits: Limits,
        waiting: bool,
        held: Held,
    }
}

impl Relay {
    /// Wraps the body of an answer that has one.
    pub(super) fn new(incoming: Incoming, limits: Limits, held: Held) -> Self {
        Self {
            incoming,
            timer: sleep_until(limits.deadline),
            limits,
            waiting: false,
            held,
        }
    }
}

impl HttpBody for Relay {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut this = self.project();
        // Looked at for each frame: a caller that reads slowly always finds one ready, and the timer is never polled.
        if Instant::now() >= this.limits.deadline {
            let error = Error::new(Kind::Deadline, "the answer's body took too long");
            tracing::warn!(%error, "an answer was cut short");
            return Poll::Ready(Some(Err(error)));
        }
        match this.incoming.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                *this.waiting = false;
                if this.incoming.is_end_stream() {
                    this.held.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(cause))) => {
                let error = Error::new(Kind::Reset, "the answer broke off").because(cause);
                tracing::warn!(%error, "an answer was cut short");
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                this.held.finish();
                Poll::Ready(None)
            }
            Poll::Pending => {
                if !std::mem::replace(this.waiting, true) {
                    let until = this.limits.deadline.min(Instant::now() + this.limits.idle);
                    this.timer.as_mut().reset(until);
                }
                this.timer.poll(cx).map(|()| {
                    let error = Error::new(Kind::Deadline, "the answer's body took too long");
                    tracing::warn!(%error, "an answer was cut short");
                    Some(Err(error))
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
