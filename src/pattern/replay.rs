//! Keeps a request's body while it streams, so that an idempotent call can be sent again.
//!
//! Bounded a call and a process. A body that outgrows its bound goes on streaming and is no longer repeatable.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::body::Body;
use crate::error::{Error, Kind};

/// Bytes that all calls together may keep.
#[derive(Debug)]
pub struct ReplayBudget {
    per_call: usize,
    total: usize,
    used: AtomicUsize,
}

impl ReplayBudget {
    /// Makes a budget of `per_call` and `total` bytes.
    pub fn new(per_call: usize, total: usize) -> Arc<Self> {
        Arc::new(Self {
            per_call,
            total,
            used: AtomicUsize::new(0),
        })
    }

    fn take(&self, bytes: usize) -> bool {
        if self.used.fetch_add(bytes, Relaxed) + bytes > self.total {
            self.used.fetch_sub(bytes, Relaxed);
            return false;
        }
        true
    }
}

/// The body of one call, from which one try after the other reads.
pub(super) struct Replay {
    shared: Arc<Mutex<Kept>>,
    hint: SizeHint,
}

struct Kept {
    budget: Arc<ReplayBudget>,
    source: Body,
    chunks: Vec<Bytes>,
    bytes: usize,
    /// `chunks` is no longer the whole beginning.
    overgrown: bool,
    /// The source failed: a second try would fail in the same way.
    broken: bool,
    /// The number of the one try that may read.
    current: u32,
}

impl Replay {
    /// Wraps the body of a call.
    pub(super) fn new(source: Body, budget: &Arc<ReplayBudget>) -> Self {
        let hint = source.size_hint();
        let kept = Kept {
            budget: Arc::clone(budget),
            source,
            chunks: Vec::new(),
            bytes: 0,
            overgrown: false,
            broken: false,
            current: 0,
        };
        Self {
            shared: Arc::new(Mutex::new(kept)),
            hint,
        }
    }

    /// The body for one try, from the beginning; `None` once the beginning is no longer kept. From then on the bodies of
    /// earlier tries read nothing more: two readers would share the rest between them.
    pub(super) fn body(&self) -> Option<Body> {
        let mut kept = self.lock();
        if kept.overgrown || kept.broken {
            return None;
        }
        kept.current += 1;
        Some(Body::boxed(Try {
            shared: Arc::clone(&self.shared),
            number: kept.current,
            next: 0,
            hint: self.hint,
        }))
    }

    /// Whether the beginning is still kept, so that there can be a further try.
    pub(super) fn is_whole(&self) -> bool {
        let kept = self.lock();
        !(kept.overgrown || kept.broken)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn poll(
        &mut self,
        next: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(chunk) = self.chunks.get(*next) {
            *next += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        let polled = Pin::new(&mut self.source).poll_frame(cx);
        if let Poll::Ready(Some(frame)) = &polled {
            match frame.as_ref().map(Frame::data_ref) {
                Ok(Some(data)) => self.keep(data, next),
                // Trailers can not be read twice from the source.
                Ok(None) => self.overgrown = true,
                Err(_) => self.broken = true,
            }
        }
        polled
    }

    fn keep(&mut self, data: &Bytes, next: &mut usize) {
        if self.overgrown {
            return;
        }
        if self.bytes + data.len() > self.budget.per_call || !self.budget.take(data.len()) {
            self.overgrown = true;
            self.let_go();
            return;
        }
        self.bytes += data.len();
        self.chunks.push(data.clone());
        *next += 1;
    }

    fn let_go(&mut self) {
        self.chunks = Vec::new();
        self.budget
            .used
            .fetch_sub(std::mem::take(&mut self.bytes), Relaxed);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.let_go();
    }
}

struct Try {
    shared: Arc<Mutex<Kept>>,
    number: u32,
    next: usize,
    hint: SizeHint,
}

impl HttpBody for Try {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let shared = Arc::clone(&self.shared);
        let mut kept = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.current != self.number {
            let superseded = Error::new(Kind::Reset, "a later try has the body now");
            return Poll::Ready(Some(Err(superseded)));
        }
        kept.poll(&mut self.next, cx)
    }

    fn is_end_stream(&self) -> bool {
        let kept = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        self.next >= kept.chunks.len() && kept.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.next == 0 {
            self.hint
        } else {
            SizeHint::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    struct Frames(Vec<&'static str>);

    impl HttpBody for Frames {
        type Data = Bytes;
        type Error = Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
            if self.0.is_empty() {
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(
                self.0.remove(0).as_bytes(),
            )))))
        }
    }

    #[tokio::test]
    async fn a_second_try_reads_the_same_bytes_even_if_the_first_stopped_midway() {
        let budget = ReplayBudget::new(100, 100);
        let replay = Replay::new(Body::boxed(Frames(vec!["ab", "cd", "ef"])), &budget);
        let mut first = replay.body().expect("nothing is lost yet");
        first.frame().await.expect("a frame").expect("a good one");
        drop(first);
        assert_eq!(
            replay
                .body()
                .expect("it is kept")
                .read(100)
                .await
                .expect("whole"),
            "abcdef"
        );
        assert_eq!(
            replay
                .body()
                .expect("it is kept")
                .read(100)
                .await
                .expect("whole"),
            "abcdef"
        );
        drop(replay);
        assert_eq!(budget.used.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn an_earlier_try_reads_nothing_more_once_a_later_one_has_begun() {
        let budget = ReplayBudget::new(100, 100);
        let replay = Replay::new(Body::boxed(Frames(vec!["ab", "cd", "ef"])), &budget);
        let mut first = replay.body().expect("nothing is lost yet");
        first.frame().await.expect("a frame").expect("a good one");
        let second = replay.body().expect("it is kept");
        assert!(first.frame().await.expect("a frame").is_err());
        assert_eq!(second.read(100).await.expect("whole"), "abcdef");
    }

    #[tokio::test]
    async fn a_body_over_the_bound_streams_on_and_is_not_repeatable() {
        for budget in [ReplayBudget::new(3, 100), ReplayBudget::new(100, 3)] {
            let replay = Replay::new(Body::boxed(Frames(vec!["ab", "cd", "ef"])), &budget);
            assert_eq!(
                replay
                    .body()
                    .expect("it is kept")
                    .read(100)
                    .await
                    .expect("whole"),
                "abcdef"
            );
            assert!(replay.body().is_none(), "its beginning is gone");
            assert_eq!(budget.used.load(Relaxed), 0);
        }
    }
}
