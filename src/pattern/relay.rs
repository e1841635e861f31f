//! An answer's body on its way back: bounded in silence and in whole, and the one owner of what the call holds until
//! its last byte: the connection, the place in flight, the open call of the address.
//!
//! A body that breaks off stays broken: the error makes the server side close without an end mark, so that nobody takes
//! half an answer for a whole one.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep, sleep_until};

use super::deadline::arm;
use super::hop;
use super::paced::Sent;
use crate::error::{Error, Kind};
use crate::lifecycle;
use crate::service::Permit;
use crate::telemetry::trace::Trace;
use crate::upstream::{Connection, Open, Place, Upstream};

/// How long after the deadline bytes are passed on that need not be waited for.
const GRACE: Duration = Duration::from_millis(100);

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
    pub(super) upstream: Arc<Upstream>,
    pub(super) trace: Trace,
    pub(super) open: Open,
    pub(super) _permit: Option<Permit>,
    pub(super) _place: Place,
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

    /// The answer broke off.
    fn cut(&self, error: &Error) {
        self.upstream.cut();
        if let (Kind::Reset, Some(connection)) = (error.kind(), &self.connection) {
            self.upstream.failed(connection.endpoint(), self.open.began);
        }
        let (service, trace) = (&self.upstream.name, self.trace.id());
        tracing::warn!(service, %error, trace, "an answer was cut short");
    }
}

/// Who has what a call holds.
enum Grip {
    /// The body alone: its caller's connection ends with the call's own time (see [`Leash`](crate::service::Leash)).
    Own(Held),
    /// A watch as well. One stream of many that is not read can not be ended from here, and its body is not polled; but
    /// what it holds is let go when its time is up.
    Watched {
        held: Arc<Mutex<Option<Held>>>,
        watch: AbortHandle,
    },
}

impl Grip {
    fn watched(held: Held, deadline: Instant) -> Self {
        let held = Arc::new(Mutex::new(Some(held)));
        let watching = Arc::clone(&held);
        let watch = lifecycle::spawn(&Handle::current(), "answer", async move {
            sleep_until(deadline + GRACE * 2).await;
            let overdue = lock(&watching).take();
            if let Some(held) = overdue {
                let detail = "the caller did not take the answer in time";
                held.cut(&Error::new(Kind::Deadline, detail));
            }
        });
        Self::Watched {
            held,
            watch: watch.abort_handle(),
        }
    }

    fn finish(&mut self) {
        match self {
            Self::Own(held) => held.finish(),
            Self::Watched { held, .. } => {
                if let Some(held) = &mut *lock(held) {
                    held.finish();
                }
            }
        }
    }

    fn cut(&self, error: &Error) {
        match self {
            Self::Own(held) => held.cut(error),
            Self::Watched { held, .. } => {
                if let Some(held) = &*lock(held) {
                    held.cut(error);
                }
            }
        }
    }
}

impl Drop for Grip {
    fn drop(&mut self) {
        if let Self::Watched { watch, .. } = self {
            watch.abort();
        }
    }
}

fn lock(held: &Mutex<Option<Held>>) -> MutexGuard<'_, Option<Held>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

pin_project_lite::pin_project! {
    /// The body of an answer.
    pub(super) struct Relay {
        #[pin]
        incoming: Incoming,
        // Looked at before, and the first to go.
        first: Option<Frame<Bytes>>,
        // Made at the first silence: most answers come with their head.
        timer: Option<Pin<Box<Sleep>>>,
        limits: Limits,
        begun: bool,
        waiting: bool,
        held: Grip,
    }
}

impl Relay {
    /// Wraps the body of an answer that has one. `shared`: its connection has other calls, and does not end with this one.
    pub(super) fn new(
        incoming: Incoming,
        first: Option<Frame<Bytes>>,
        limits: Limits,
        (held, shared): (Held, bool),
    ) -> Self {
        let held = match shared {
            false => Grip::Own(held),
            true => Grip::watched(held, limits.deadline),
        };
        Self {
            incoming,
            first,
            timer: None,
            limits,
            begun: false,
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
        // What is there already may still pass for a moment: the next hop answers at the same deadline, and its short
        // answer says more than a broken connection.
        // The first frame comes with its head, whose time was looked at just now.
        let late =
            std::mem::replace(this.begun, true) && Instant::now() >= this.limits.deadline + GRACE;
        if late {
            let error = Error::new(Kind::Deadline, "the answer's body took too long");
            this.held.cut(&error);
            return Poll::Ready(Some(Err(error)));
        }
        let polled = match this.first.take() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => this.incoming.as_mut().poll_frame(cx),
        };
        match polled {
            Poll::Ready(Some(Ok(mut frame))) => {
                *this.waiting = false;
                if let Some(trailers) = frame.trailers_mut() {
                    hop::clean_trailers(trailers);
                }
                if this.incoming.is_end_stream() {
                    this.held.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(cause))) => {
                let error = Error::new(Kind::Reset, "the answer broke off").because(cause);
                this.held.cut(&error);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                this.held.finish();
                Poll::Ready(None)
            }
            Poll::Pending => {
                if !std::mem::replace(this.waiting, true) {
                    let until = this.limits.deadline.min(Instant::now() + this.limits.idle);
                    arm(this.timer, until);
                }
                let Some(timer) = this.timer else {
                    return Poll::Pending;
                };
                timer.as_mut().poll(cx).map(|()| {
                    let error = Error::new(Kind::Deadline, "the answer's body took too long");
                    this.held.cut(&error);
                    Some(Err(error))
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.first {
            None => self.incoming.size_hint(),
            Some(_) => SizeHint::default(),
        }
    }
}
