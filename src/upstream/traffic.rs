//! Counts a connection's bytes, so that a call which got no answer leaves evidence: how much of it left, and whether
//! anything came back.
//!
//! It also lets an answer be read that came before the request was through. A server that refuses a body answers and
//! closes; what we still write then fails, and to stop there would lose the answer that lies in the socket already. So a
//! write to a closed connection is taken for done, the connection is marked, and the next read tells how it ended.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tls::{Connector, Reason, Socket};

/// Bytes of one connection since it was made.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    written: AtomicU64,
    read: AtomicU64,
    broken: AtomicBool,
    refused: OnceLock<Reason>,
}

/// How far a connection was at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) written: u64,
    pub(super) read: u64,
}

impl Traffic {
    pub(super) fn mark(&self) -> Mark {
        Mark {
            written: self.written.load(Relaxed),
            read: self.read.load(Relaxed),
        }
    }

    /// Whether a write has failed: the connection must not serve again, whatever it says of itself.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Relaxed)
    }

    /// Why the other side did not take our certificate, if it did not: nothing of a call came to it.
    pub(super) fn refused(&self) -> Option<Reason> {
        self.refused.get().copied()
    }
}

/// The socket.
pub(super) struct Counted {
    socket: Socket,
    traffic: Arc<Traffic>,
    tls: Option<Arc<Connector>>,
}

impl Counted {
    /// Counts what goes over `socket`; `tls` made it, if it is not in the clear.
    pub(super) fn new(socket: Socket, traffic: Arc<Traffic>, tls: Option<Arc<Connector>>) -> Self {
        Self {
            socket,
            traffic,
            tls,
        }
    }

    /// Notes an error of the first read: whoever sent a byte before had taken the handshake.
    fn failed(&self, error: &io::Error) {
        if let Some(tls) = &self.tls
            && self.traffic.read.load(Relaxed) == 0
            && let Some(reason) = Reason::refusal(error)
            && self.traffic.refused.set(reason).is_ok()
        {
            tls.refused(reason);
        }
    }

    fn wrote(&self, written: io::Result<usize>, offered: usize) -> io::Result<usize> {
        match written {
            Ok(bytes) => {
                add(&self.traffic.written, bytes);
                Ok(bytes)
            }
            Err(error) if closed_there(&error) => {
                self.traffic.broken.store(true, Relaxed);
                Ok(offered)
            }
            Err(error) => Err(error),
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = ready!(Pin::new(&mut self.socket).poll_read(cx, into));
        if let Err(error) = &read {
            self.failed(error);
        }
        read?;
        let bytes = into.filled().len() - before;
        add(&self.traffic.read, bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.traffic.is_broken() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = ready!(Pin::new(&mut self.socket).poll_write(cx, bytes));
        Poll::Ready(self.wrote(written, bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let offered = slices.iter().map(|slice| slice.len()).sum();
        if self.traffic.is_broken() {
            return Poll::Ready(Ok(offered));
        }
        let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, slices));
        Poll::Ready(self.wrote(written, offered))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.socket).poll_flush(cx)) {
            Err(error) => Poll::Ready(self.wrote(Err(error), 0).map(drop)),
            Ok(()) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Not one locked step: only the connection's own task writes.
fn add(counter: &AtomicU64, bytes: usize) {
    counter.store(counter.load(Relaxed) + bytes as u64, Relaxed);
}

fn closed_there(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}
