//! Two connections joined after a switch of protocols: bytes both ways, until both sides are done, both are silent for too
//! long, or a drain is over.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};
use tokio::time::{sleep, sleep_until};

use crate::lifecycle::Guard;
use crate::pattern::forward::Far;
use crate::tls::Socket;

/// How much sooner than the drain a tunnel ends, so that the drain sees an orderly end.
const BEFORE_THE_END: Duration = Duration::from_millis(500);

/// Joins the caller's socket, of which `early` was read already, with the far end.
pub(super) async fn join(near: Socket, early: Bytes, far: Far, guard: Guard) {
    let Far {
        stream: mut there,
        idle,
        held,
    } = far;
    let moved = Arc::new(AtomicU64::new(0));
    let mut here = Watched {
        socket: near,
        moved: Arc::clone(&moved),
    };
    let copying = async {
        there.write_all(&early).await?;
        there.flush().await?;
        copy_bidirectional(&mut here, &mut there).await
    };
    let why = tokio::select! {
        ended = copying => match ended {
            Ok(_) => "both sides are done".to_owned(),
            Err(error) => error.to_string(),
        },
        () = silence(&moved, idle) => "nothing came for too long".to_owned(),
        () = drained(guard) => "the drain is over".to_owned(),
    };
    tracing::debug!(bytes = moved.load(Relaxed), why, "a tunnel ended");
    drop(held);
}

/// Ends when nothing moved for `idle`, looked at in quarters of it.
async fn silence(moved: &AtomicU64, idle: Duration) {
    let (mut before, mut quiet) = (moved.load(Relaxed), 0);
    while quiet < 4 {
        sleep(idle / 4).await;
        let now = moved.load(Relaxed);
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
    }
}

async fn drained(mut guard: Guard) {
    let end = guard.draining().await;
    sleep_until(end - BEFORE_THE_END).await;
}

/// Counts what passes.
struct Watched {
    socket: Socket,
    moved: Arc<AtomicU64>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, into))?;
        let count = into.filled().len() - before;
        self.moved.fetch_add(count as u64, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.socket).poll_write(cx, bytes))?;
        self.moved.fetch_add(count as u64, Relaxed);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
