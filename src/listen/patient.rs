//! A caller's socket: what was read ahead to see which protocol it speaks, and an end to its patience with one that does
//! not read. An answer that nobody takes would otherwise hold its call, its place and its connection to the service for
//! ever, because a body that can not be written is not polled, nor is its timer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::http::WRITE_TIMEOUT;
use crate::service::Leash;
use crate::tls::Socket;

/// How an HTTP/2 connection begins (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The socket.
pub(super) struct Patient {
    socket: Socket,
    ahead: Bytes,
    leash: Arc<Leash>,
    /// Made at the first stall: most connections have none.
    timer: Option<Pin<Box<Sleep>>>,
    stalled: bool,
}

impl Patient {
    /// Wraps a socket.
    pub(super) fn new(socket: Socket, leash: Arc<Leash>) -> Self {
        Self {
            socket,
            ahead: Bytes::new(),
            leash,
            timer: None,
            stalled: false,
        }
    }

    /// Reads as much as it takes to see whether the caller speaks HTTP/2; it is read again later.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) async fn speaks_http2(&mut self) -> io::Result<bool> {
        let mut read = Vec::with_capacity(PREFACE.len());
        let mut piece = [0; PREFACE.len()];
        while read.len() < PREFACE.len() && PREFACE.starts_with(&read) {
            let left = PREFACE.len() - read.len();
            match self.socket.read(&mut piece[..left]).await? {
                0 => break,
                count => read.extend_from_slice(&piece[..count]),
            }
        }
        let http2 = read == PREFACE;
        self.ahead = Bytes::from(read);
        Ok(http2)
    }

    /// Gives the socket back.
    pub(super) fn into_inner(self) -> Socket {
        self.socket
    }

    /// Passes on what a write came to; the time runs while it can not go on.
    fn paced(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = false;
            return written;
        }
        if !std::mem::replace(&mut self.stalled, true) {
            let mut until = Instant::now() + WRITE_TIMEOUT;
            if let Some(end) = self.leash.end() {
                until = until.min(end);
            }
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(until),
                None => self.timer = Some(Box::pin(sleep_until(until))),
            }
        }
        if let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(cx));
        }
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the caller does not read its answer in time",
        )))
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(into.remaining());
            into.put_slice(&self.ahead[..count]);
            self.ahead.advance(count);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(cx, into)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.paced(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.paced(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
