//! A body that is passed on while it is checked: its last bytes are held back until all of them have the digest that the
//! record names, so that a wrong body never ends as a whole one.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, Sleep, sleep};

use crate::body::Body;
use crate::error::{Error, Kind};
use crate::upstream::Connection;

/// How long nothing of a body may come while it is waited for.
const SILENCE: Duration = Duration::from_secs(30);

/// A body on its way to the app.
pub(super) struct Checked {
    body: Body,
    /// Given back when the body was read to its end.
    connection: Option<Connection>,
    hash: Sha256,
    digest: [u8; 32],
    left: u64,
    failed: bool,
    silence: Pin<Box<Sleep>>,
    /// Whether that is waited for, and not the app.
    waits: bool,
}

impl Checked {
    /// Of `size` bytes with that digest.
    pub(super) fn new(
        (body, connection): (Body, Option<Connection>),
        (size, digest): (u64, [u8; 32]),
    ) -> Self {
        Self {
            body,
            connection,
            hash: Sha256::new(),
            digest,
            left: size,
            failed: false,
            silence: Box::pin(sleep(SILENCE)),
            waits: false,
        }
    }

    /// The next frame, or the word that none came for too long.
    fn next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.waits = false;
            return Poll::Ready(frame);
        }
        if !self.waits {
            self.waits = true;
            self.silence.as_mut().reset(Instant::now() + SILENCE);
        }
        self.silence.as_mut().poll(context).map(|()| {
            self.failed = true;
            let detail = format!(
                "nothing of the claim came for {}",
                humantime::format_duration(SILENCE)
            );
            tracing::error!(detail, "a claim was cut off on its way to the app");
            Some(Err(Error::new(Kind::Deadline, detail)))
        })
    }

    fn fail(&mut self, detail: &'static str) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.failed = true;
        tracing::error!(detail, "a claim was cut off on its way to the app");
        Poll::Ready(Some(Err(Error::new(Kind::ClaimDamaged, detail))))
    }
}

impl HttpBody for Checked {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            if self.left == 0 || self.failed {
                return Poll::Ready(None);
            }
            let Some(frame) = ready!(self.next(context)) else {
                return self.fail("the claim ends too soon");
            };
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            self.hash.update(&data);
            self.left = match self.left.checked_sub(data.len() as u64) {
                Some(left) => left,
                None => return self.fail("the claim is longer than the record says"),
            };
            if self.left > 0 {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if self.hash.finalize_reset().as_slice() != self.digest {
                return self.fail("the claim does not have the digest that the record names");
            }
            if let Some(connection) = self.connection.take() {
                connection.release();
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    /// A body that ends in the middle, and does not say so.
    struct Still {
        begun: bool,
    }

    impl HttpBody for Still {
        type Data = Bytes;
        type Error = Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
            match std::mem::replace(&mut self.begun, true) {
                true => Poll::Pending,
                false => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"the "))))),
            }
        }
    }

    async fn read(body: &'static str, size: u64, of: &str) -> Result<Bytes, Kind> {
        let checked = Checked::new((Body::full(body), None), (size, Sha256::digest(of).into()));
        let read = Body::boxed(checked).read(1024).await;
        read.map_err(|error| error.kind())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stands_still_is_cut_off_but_not_one_whose_reader_does() {
        let still = Body::boxed(Still { begun: false });
        let mut checked = Checked::new((still, None), (8, Sha256::digest("the body").into()));
        let first = checked.frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "the ");
        // Nobody reads meanwhile.
        tokio::time::advance(SILENCE * 2).await;
        let begun = Instant::now();
        let error = checked.frame().await.unwrap().unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (Kind::Deadline, SILENCE));
        assert!(checked.frame().await.is_none());
    }

    #[tokio::test]
    async fn only_the_body_that_was_named_comes_to_its_end() {
        assert_eq!(read("the body", 8, "the body").await.unwrap(), "the body");
        for (body, size) in [("the bodY", 8), ("the body", 9), ("the body.", 8)] {
            assert_eq!(
                read(body, size, "the body").await,
                Err(Kind::ClaimDamaged),
                "{body}"
            );
        }
    }
}
