//! A kept body that is read part by part, since it may be larger than memory.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::body::Body;
use crate::error::Error;

/// Parts that are read ahead.
const AHEAD: usize = 2;

/// What comes from whoever reads.
struct Parts {
    left: u64,
    parts: Receiver<Result<Bytes, Error>>,
}

/// A body of so many bytes, and where whoever reads it puts its parts. If the parts end too soon, so does the body.
pub(super) fn parts(size: u64) -> (Sender<Result<Bytes, Error>>, Body) {
    let (sender, receiver) = channel(AHEAD);
    let parts = Parts {
        left: size,
        parts: receiver,
    };
    (sender, Body::boxed(parts))
}

impl HttpBody for Parts {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let part = std::task::ready!(self.parts.poll_recv(context));
        if let Some(Ok(part)) = &part {
            self.left = self.left.saturating_sub(part.len() as u64);
        }
        Poll::Ready(part.map(|part| part.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
