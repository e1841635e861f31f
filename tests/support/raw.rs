//! Bytes on a socket, for what no well-behaved client or server would send.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

// Far above what any exchange in a test takes: a test that reaches it has found a hang.
const LONGEST: Duration = Duration::from_secs(60);

/// One end of a connection.
pub(crate) struct Wire {
    stream: TcpStream,
    /// Read, but not asked for yet.
    ahead: Vec<u8>,
}

/// A server whose connections are served by the test. It ends when dropped, with all of them.
pub(crate) struct RawApp {
    /// Where it listens: a port of its own on loopback.
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl RawApp {
    /// Starts a server that gives each connection, with its number from 0, to `serve`.
    pub(crate) async fn start<F>(serve: impl Fn(Wire, usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("loopback has a free port");
        let address = listener.local_addr().expect("the socket is bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let accepting = Handle::current().spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(serve(Wire::new(stream), count.fetch_add(1, SeqCst)));
            }
        });
        Self {
            address,
            connections,
            accepting,
        }
    }

    /// Starts a server that reads each request's head and answers with these bytes, again and again, on connections
    /// that it keeps open.
    pub(crate) async fn saying(answer: impl Into<Vec<u8>>) -> Self {
        let answer: Arc<[u8]> = answer.into().into();
        Self::start(move |mut wire, _| {
            let answer = Arc::clone(&answer);
            async move {
                while wire.try_head().await.is_some() {
                    wire.send(&*answer).await;
                }
            }
        })
        .await
    }

    /// How many connections were accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

impl Drop for RawApp {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Wire {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            ahead: Vec::new(),
        }
    }

    /// Connects.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.expect("the door is open"))
    }

    /// Sends bytes. That the other side has closed is no error: what it sent before can still be read.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _closed = self.try_send(bytes).await;
    }

    /// The connection itself, for a test that puts something of its own on it. Nothing may have been read.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Sends bytes and says whether they left.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let sent = timeout(LONGEST, self.stream.write_all(bytes.as_ref())).await;
        sent.expect("the other side reads").is_ok()
    }

    /// Closes this side's half.
    pub(crate) async fn finish(&mut self) {
        let _closed = self.stream.shutdown().await;
    }

    /// Closes with a reset.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().expect("the socket is open");
    }

    /// Reads up to and with the empty line. `None` if the connection ends before.
    pub(crate) async fn try_head(&mut self) -> Option<String> {
        self.try_until(b"\r\n\r\n").await
    }

    /// Reads up to and with the empty line.
    pub(crate) async fn head(&mut self) -> String {
        self.try_head().await.expect("a whole head")
    }

    /// Reads up to and with `mark`. `None` if the connection ends before.
    pub(crate) async fn try_until(&mut self, mark: &[u8]) -> Option<String> {
        loop {
            if let Some(at) = self
                .ahead
                .windows(mark.len())
                .position(|window| window == mark)
            {
                let read: Vec<u8> = self.ahead.drain(..at + mark.len()).collect();
                return Some(String::from_utf8_lossy(&read).into_owned());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// Reads `count` bytes.
    pub(crate) async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.ahead.len() < count {
            assert!(
                self.more().await,
                "the connection ended after {} of {count} bytes",
                self.ahead.len()
            );
        }
        self.ahead.drain(..count).collect()
    }

    /// Reads a whole answer or request whose length is stated.
    pub(crate) async fn message(&mut self) -> (String, Vec<u8>) {
        let head = self.head().await;
        let length =
            field(&head, "content-length").map_or(0, |length| length.parse().expect("a number"));
        (head, self.bytes(length).await)
    }

    /// Reads to the connection's end.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.ahead)
    }

    /// Whether the connection ends within `limit` with nothing more on it.
    pub(crate) async fn ends_within(&mut self, limit: Duration) -> bool {
        matches!(timeout(limit, self.more()).await, Ok(false)) && self.ahead.is_empty()
    }

    /// Whether nothing at all comes for `limit`, and the connection stays.
    pub(crate) async fn is_silent_for(&mut self, limit: Duration) -> bool {
        self.ahead.is_empty() && timeout(limit, self.more()).await.is_err()
    }

    /// Reads to the end and says whether it was an orderly one, not a reset.
    pub(crate) async fn ends_in_order(&mut self) -> bool {
        let mut rest = Vec::new();
        let read = timeout(LONGEST, self.stream.read_to_end(&mut rest)).await;
        read.expect("the other side goes on or ends").is_ok()
    }

    async fn more(&mut self) -> bool {
        let mut chunk = vec![0; 64 << 10];
        let read = timeout(LONGEST, self.stream.read(&mut chunk))
            .await
            .expect("the other side goes on or ends");
        let read = read.unwrap_or(0);
        self.ahead.extend_from_slice(&chunk[..read]);
        read > 0
    }
}

/// Sends bytes on a connection of its own and reads all that comes back until it ends.
pub(crate) async fn exchange(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut wire = Wire::connect(address).await;
    wire.send(bytes).await;
    String::from_utf8_lossy(&wire.rest().await).into_owned()
}

/// The status of an answer.
pub(crate) fn status(answer: &str) -> u16 {
    let code = answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.get(..3)?.parse().ok());
    code.unwrap_or_else(|| panic!("no status line: {answer:?}"))
}

/// The value of a head's field, its name in lower case.
pub(crate) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    fields(head, name).next()
}

/// All values of a head's field.
pub(crate) fn fields<'a>(head: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let lines = head.lines().skip(1).take_while(|line| !line.is_empty());
    let lines = lines.filter_map(|line| line.split_once(':'));
    lines
        .filter(move |(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}
