//! A request's body on its way out: a caller that falls silent in the middle ends the call, not the worker's patience.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use crate::body::Body;
use crate::error::{Error, Kind};

/// Tells how far a request's body is on its way to the connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Sent(Arc<AtomicU8>);

/// The service takes what there is, or is slow to; the start.
const FLOWING: u8 = 0;
/// The caller has sent nothing more yet.
const WAITING: u8 = 1;
/// The last byte was handed over.
const COMPLETE: u8 = 2;

impl Sent {
    /// Whether the last byte was handed over.
    pub(super) fn is_complete(&self) -> bool {
        self.0.load(Relaxed) == COMPLETE
    }

    /// Whether the next byte is the caller's to send.
    pub(super) fn waits_for_caller(&self) -> bool {
        self.0.load(Relaxed) == WAITING
    }
}

pin_project_lite::pin_project! {
    /// A body with a limit on silence.
    pub(super) struct Paced {
        inner: Body,
        idle: Duration,
        #[pin]
        timer: Sleep,
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
            timer: sleep(idle),
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
        let mut this = self.project();
        match Pin::new(&mut *this.inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                *this.waiting = false;
                if frame.is_none() || this.inner.is_end_stream() {
                    this.sent.0.store(COMPLETE, Relaxed);
                } else {
                    this.sent.0.store(FLOWING, Relaxed);
                }
                Poll::Ready(frame)
            }
            Poll::Pending => {
                this.sent.0.store(WAITING, Relaxed);
                // Armed once per silence, not once per poll.
                if !std::mem::replace(this.waiting, true) {
                    this.timer.as_mut().reset(Instant::now() + *this.idle);
                }
                this.timer.poll(cx).map(|()| {
                    let detail = format!(
                        "no byte of the body came for {}",
                        humantime::format_duration(*this.idle)
                    );
                    Some(Err(Error::new(Kind::CallerTimeout, detail)))
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
