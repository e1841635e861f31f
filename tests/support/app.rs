//! A small HTTP app: it answers by a rule or a script and keeps what it saw.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};

use super::client;

/// A running app. It ends when dropped, with all its connections.
pub(crate) struct App {
    /// Where it listens: a port of its own on loopback.
    pub(crate) address: SocketAddr,
    world: Arc<World>,
    accepting: JoinHandle<()>,
}

/// One call as the app saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The method.
    pub(crate) method: Method,
    /// Path and query, byte for byte.
    pub(crate) target: String,
    /// Every header.
    pub(crate) headers: HeaderMap,
    /// The body's bytes.
    pub(crate) body: Bytes,
}

/// What the app does with a call.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    wait: Duration,
    fault: Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Hang,
    Cut,
    Tear,
}

struct World {
    rule: Rule,
    seen: Mutex<Vec<Seen>>,
    connections: Mutex<usize>,
}

enum Rule {
    By(Box<dyn Fn(&Seen) -> Answer + Send + Sync>),
    Script(Mutex<VecDeque<Answer>>),
}

impl App {
    /// Starts an app that asks `rule` about every call.
    pub(crate) async fn by(rule: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        Self::start(Rule::By(Box::new(rule))).await
    }

    /// Starts an app that gives these answers in this order; a call more is a 599. See [`App::verify`].
    pub(crate) async fn script(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self::start(Rule::Script(Mutex::new(answers.into_iter().collect()))).await
    }

    /// Starts an app that answers 200 to everything.
    pub(crate) async fn agreeable() -> Self {
        Self::by(|_| Answer::ok()).await
    }

    /// Starts an app that asks `rule`, at an address that is known before.
    pub(crate) async fn at(
        address: SocketAddr,
        rule: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start_at(address, Rule::By(Box::new(rule))).await
    }

    async fn start(rule: Rule) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), rule).await
    }

    async fn start_at(address: SocketAddr, rule: Rule) -> Self {
        let listener = TcpListener::bind(address).await.expect("the port is free");
        let address = listener.local_addr().expect("the socket is bound");
        let world = Arc::new(World {
            rule,
            seen: Mutex::default(),
            connections: Mutex::default(),
        });
        let accepting = Handle::current().spawn(accept(listener, world.clone()));
        Self {
            address,
            world,
            accepting,
        }
    }

    /// An address of loopback where nobody listens, below the range that the kernel takes outgoing ports from.
    pub(crate) fn nowhere() -> SocketAddr {
        let ports = std::iter::repeat_with(|| 20_000 + fastrand::u16(..10_000));
        let mut addresses = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let free = addresses.find(|address| std::net::TcpListener::bind(address).is_ok());
        free.expect("loopback has a free port")
    }

    /// Every call so far, in order of their last byte.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.world.seen.lock().expect("no holder panics").clone()
    }

    /// How many calls there were so far.
    pub(crate) fn count(&self) -> usize {
        self.world.seen.lock().expect("no holder panics").len()
    }

    /// Every call since this was asked last.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.world.seen.lock().expect("no holder panics"))
    }

    /// Forgets the calls so far: a long run must not keep them all.
    pub(crate) fn forget(&self) {
        self.world.seen.lock().expect("no holder panics").clear();
    }

    /// How many connections were accepted so far.
    pub(crate) fn connections(&self) -> usize {
        *self.world.connections.lock().expect("no holder panics")
    }

    /// Fails unless a script was played to its end and not beyond.
    pub(crate) fn verify(&self, answers: usize) {
        let seen = self.count();
        assert_eq!(seen, answers, "calls seen, beside the script's answers");
        if let Rule::Script(rest) = &self.world.rule {
            let rest = rest.lock().expect("no holder panics").len();
            assert_eq!(rest, 0, "answers of the script that nobody asked for");
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Seen {
    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as JSON; null if it is not.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

impl Answer {
    /// 200 with no body.
    pub(crate) fn ok() -> Self {
        Self::status(200)
    }

    /// Any status with no body.
    pub(crate) fn status(status: u16) -> Self {
        Self {
            status: StatusCode::from_u16(status).expect("a status has three digits"),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            wait: Duration::ZERO,
            fault: Fault::None,
        }
    }

    /// No answer ever; the connection stays open.
    pub(crate) fn hang() -> Self {
        Self {
            fault: Fault::Hang,
            ..Self::ok()
        }
    }

    /// No answer: the connection is closed after the request was read.
    pub(crate) fn cut() -> Self {
        Self {
            fault: Fault::Cut,
            ..Self::ok()
        }
    }

    /// The head, half of the body, then the end of the connection.
    pub(crate) fn torn(self) -> Self {
        Self {
            fault: Fault::Tear,
            ..self
        }
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        let value = HeaderValue::from_str(value).expect("the value is legal");
        self.headers.append(HeaderName::from_static(name), value);
        self
    }

    /// Sets the body.
    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Lets this much time pass before the answer.
    pub(crate) fn after(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    fn into_response(self) -> Response<Payload> {
        let declared = self.body.len() as u64;
        let torn = self.fault == Fault::Tear;
        let sent = if torn {
            self.body.slice(..self.body.len() / 2)
        } else {
            self.body
        };
        let mut response = Response::new(Payload {
            declared,
            rest: Some(sent),
            torn,
            flushed: false,
        });
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

async fn accept(listener: TcpListener, world: Arc<World>) {
    // Owned by this task: when the app is dropped, its connections go with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((socket, _)) = listener.accept().await else {
            continue;
        };
        *world.connections.lock().expect("no holder panics") += 1;
        connections.spawn(serve(socket, world.clone()));
    }
}

async fn serve(socket: TcpStream, world: Arc<World>) {
    let service = service_fn(move |request| answer(request, world.clone()));
    // An error is what a cut, a tear or a caller that went away looks like from here.
    drop(
        http1::Builder::new()
            .serve_connection(TokioIo::new(socket), service)
            .await,
    );
}

async fn answer(
    request: Request<Incoming>,
    world: Arc<World>,
) -> Result<Response<Payload>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = client::read(body).await.map_err(std::io::Error::other)?;
    let target = head
        .uri
        .path_and_query()
        .map_or("", |target| target.as_str())
        .to_owned();
    let seen = Seen {
        method: head.method,
        target,
        headers: head.headers,
        body,
    };
    let answer = match &world.rule {
        Rule::By(rule) => rule(&seen),
        Rule::Script(rest) => rest
            .lock()
            .expect("no holder panics")
            .pop_front()
            .unwrap_or_else(|| Answer::status(599).body("the script is over")),
    };
    world.seen.lock().expect("no holder panics").push(seen);
    if !answer.wait.is_zero() {
        tokio::time::sleep(answer.wait).await;
    }
    match answer.fault {
        Fault::Hang => std::future::pending().await,
        Fault::Cut => Err(std::io::Error::other("cut by the script")),
        Fault::None | Fault::Tear => Ok(answer.into_response()),
    }
}

/// A body that may break off.
struct Payload {
    declared: u64,
    rest: Option<Bytes>,
    torn: bool,
    flushed: bool,
}

impl Body for Payload {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.rest.take() {
            Some(rest) if !rest.is_empty() => Poll::Ready(Some(Ok(Frame::data(rest)))),
            // hyper drops what it has not flushed when a body fails: one pause lets the first half leave.
            _ if self.torn && !std::mem::replace(&mut self.flushed, true) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            _ if std::mem::take(&mut self.torn) => {
                Poll::Ready(Some(Err(std::io::Error::other("torn by the script"))))
            }
            _ => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        !self.torn && self.rest.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.declared)
    }
}
