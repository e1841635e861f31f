//! A request's body on its way out: a caller that falls silent in the middle ends the call, not the worker's patience.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::deadline::arm;
use super::hop;
use crate::body::Body;
use crate::error::{Error, Kind};

/// Tells how far a request's body is on its way to the connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Sent(Arc<Progress>);

#[derive(Debug, Default)]
struct Progress {
    state: AtomicU8,
    failure: OnceLock<(Kind, String)>,
}

/// The service takes what there is, or is slow to; the start.
const FLOWING: u8 = 0;
/// The caller has sent nothing more yet.
const WAITING: u8 = 1;
/// The last byte was handed over.
const COMPLETE: u8 = 2;

impl Sent {
    /// Whether the last byte was handed over.
    pub(super) fn is_complete(&self) -> bool {
        self.0.state.load(Relaxed) == COMPLETE
    }

    /// Whether the next byte is the caller's to send.
    pub(super) fn waits_for_caller(&self) -> bool {
        self.0.state.load(Relaxed) == WAITING
    }

    /// Why the caller's body ended before its time. On HTTP/2 the connection does not tell.
    pub(super) fn failure(&self) -> Option<Error> {
        let (kind, detail) = self.0.failure.get()?;
        Some(Error::new(*kind, detail.clone()))
    }

    fn is(&self, state: u8) {
        self.0.state.store(state, Relaxed);
    }

    fn failed(&self, error: &Error) {
        // The first failure is the one that counts.
        let _later = self
            .0
            .failure
            .set((error.kind(), error.detail().to_owned()));
    }
}

pin_project_lite::pin_project! {
    /// A body with a limit on silence.
    pub(super) struct Paced {
        inner: Body,
        idle: Duration,
        // Made at the first silence: most bodies come with their head.
        timer: Option<Pin<Box<Sleep>>>,
        waiting: bool,
        sent: Sent,
    }
}

impl Paced {
    /// Wraps a body whose sender may be silent for `idle` at most.
    pub(super) fn new(inner: Body, idle: Duration, sent: Sent) -> Self {
        Self {
            inner,
            idle,
            timer: None,
            waiting: false,
            sent,
        }
    }
}

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.project();
        match Pin::new(&mut *this.inner).poll_frame(cx) {
            Poll::Ready(mut frame) => {
                *this.waiting = false;
                if let Some(Ok(frame)) = &mut frame
                    && let Some(trailers) = frame.trailers_mut()
                {
                    hop::clean_trailers(trailers);
                }
                match &frame {
                    Some(Err(error)) => this.sent.failed(error),
                    None => this.sent.is(COMPLETE),
                    Some(Ok(_)) if this.inner.is_end_stream() => this.sent.is(COMPLETE),
                    Some(Ok(_)) => this.sent.is(FLOWING),
                }
                Poll::Ready(frame)
            }
            Poll::Pending => {
                this.sent.is(WAITING);
                // Armed once per silence, not once per poll.
                if !std::mem::replace(this.waiting, true) {
                    arm(this.timer, Instant::now() + *this.idle);
                }
                let Some(timer) = this.timer else {
                    return Poll::Pending;
                };
                timer.as_mut().poll(cx).map(|()| {
                    let detail = format!(
                        "no byte of the body came for {}",
                        humantime::format_duration(*this.idle)
                    );
                    let error = Error::new(Kind::CallerTimeout, detail);
                    this.sent.failed(&error);
                    Some(Err(error))
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    struct Silent;

    impl HttpBody for Silent {
        type Data = Bytes;
        type Error = Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
            Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_the_body() {
        let started = Instant::now();
        let mut body = Body::boxed(Paced::new(
            Body::boxed(Silent),
            Duration::from_secs(3),
            Sent::default(),
        ));
        let error = body
            .frame()
            .await
            .expect("a frame")
            .expect_err("silence is an error");
        assert_eq!(error.kind(), Kind::CallerTimeout);
        assert_eq!(started.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test]
    async fn the_last_byte_is_told() {
        let sent = Sent::default();
        let mut body = Body::boxed(Paced::new(
            Body::full("x"),
            Duration::from_secs(3),
            sent.clone(),
        ));
        assert!(!sent.is_complete());
        body.frame().await.expect("a frame").expect("a good one");
        assert!(sent.is_complete());
    }
}
