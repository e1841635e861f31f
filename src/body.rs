//! The one body type that every stage passes on.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::error::{Error, Kind};

/// A body of frames. The common shapes need no box.
#[derive(Default)]
pub struct Body(Shape);

#[derive(Default)]
enum Shape {
    #[default]
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    Boxed(Pin<Box<dyn HttpBody<Data = Bytes, Error = Error> + Send>>),
}

impl Body {
    /// No body at all: a request made with it gains no `Transfer-Encoding`.
    pub fn empty() -> Self {
        Self(Shape::Empty)
    }

    /// Bytes in memory.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() {
            Self::empty()
        } else {
            Self(Shape::Full(bytes))
        }
    }

    /// What a connection receives.
    pub fn incoming(body: Incoming) -> Self {
        if body.is_end_stream() {
            Self::empty()
        } else {
            Self(Shape::Incoming(body))
        }
    }

    /// A body of another shape, at the cost of one box.
    pub fn boxed(body: impl HttpBody<Data = Bytes, Error = Error> + Send + 'static) -> Self {
        Self(Shape::Boxed(Box::pin(body)))
    }

    /// Reads the whole body into memory, up to `max` bytes.
    ///
    /// # Errors
    /// [`Kind::BodyTooLarge`] above `max`, at the first frame that shows it, or the body's own error.
    pub async fn read(mut self, max: usize) -> Result<Bytes, Error> {
        let too_large = || {
            Error::new(
                Kind::BodyTooLarge,
                format!("the body is over the limit of {max} bytes"),
            )
        };
        if self.size_hint().lower() > max as u64 {
            return Err(too_large());
        }
        let mut first: Option<Bytes> = None;
        let mut all = bytes::BytesMut::new();
        while let Some(frame) = self.frame().await {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            if first.as_ref().map_or(all.len(), Bytes::len) + data.len() > max {
                return Err(too_large());
            }
            match first.take() {
                // Most bodies are one frame: it is passed on without a copy.
                None if all.is_empty() => first = Some(data),
                None => all.extend_from_slice(&data),
                Some(head) => {
                    all.reserve(head.len() + data.len());
                    all.extend_from_slice(&head);
                    all.extend_from_slice(&data);
                }
            }
        }
        Ok(first.unwrap_or_else(|| all.freeze()))
    }
}

/// Whether a body broke a rule and did not just end too soon.
fn is_malformed(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error);
    cause
        .and_then(|cause| cause.downcast_ref::<std::io::Error>())
        .is_some_and(|cause| {
            matches!(
                cause.kind(),
                std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData
            )
        })
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.0 {
            Shape::Empty => Poll::Ready(None),
            Shape::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Shape::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Shape::Incoming(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                Poll::Ready(frame.map(|frame| {
                    frame.map_err(|cause| {
                        match is_malformed(&cause) {
                            true => Error::new(
                                Kind::BadRequest,
                                "the body is not framed as it says it is",
                            ),
                            false => Error::new(Kind::CallerGone, "the body broke off"),
                        }
                        .because(cause)
                    })
                }))
            }
            Shape::Boxed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Shape::Empty => true,
            Shape::Full(_) => false,
            Shape::Incoming(body) => body.is_end_stream(),
            Shape::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Shape::Empty => SizeHint::with_exact(0),
            Shape::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Shape::Incoming(body) => body.size_hint(),
            Shape::Boxed(body) => body.size_hint(),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shape = match &self.0 {
            Shape::Empty => "empty",
            Shape::Full(_) => "full",
            Shape::Incoming(_) => "incoming",
            Shape::Boxed(_) => "boxed",
        };
        write!(f, "Body({shape}, {:?})", self.size_hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_before_it_is_read() {
        let error = Body::full("12345")
            .read(4)
            .await
            .expect_err("five bytes are over four");
        assert_eq!(error.kind(), Kind::BodyTooLarge);
        assert_eq!(
            Body::full("1234").read(4).await.expect("four bytes fit"),
            "1234"
        );
    }
}
