//! The plain HTTP/1.1 that the demo's services speak: they know nothing of Wayside.

use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::wait::{Result, Trouble, within};
use crate::body::Body;

/// Bytes of a body that the demo reads; above it the call fails.
const BODY_MAX: usize = 1024 * 1024;

/// Connections of one service of the demo; the next one waits until another ends.
const CONNECTIONS_MAX: usize = 256;

/// How long one call may take, connect included.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// A service that listens; dropping it closes its door and all its connections.
pub(super) struct Server {
    _accept: JoinSet<()>,
}

/// A listener on a free loopback port.
///
/// # Errors
/// The system gives none.
pub(super) async fn listen() -> Result<(TcpListener, SocketAddr)> {
    let refused = |error| Trouble::new(format!("no loopback port to listen on: {error}"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    Ok((listener, address))
}

impl Server {
    /// Answers every call with `handler`.
    pub(super) fn start<H, F>(listener: TcpListener, handler: H) -> Self
    where
        H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Bytes>> + Send + 'static,
    {
        let mut accept = JoinSet::new();
        accept.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                while open.try_join_next().is_some() {}
                if open.len() >= CONNECTIONS_MAX {
                    open.join_next().await;
                }
                match listener.accept().await {
                    Ok((stream, _)) => open.spawn(converse(stream, handler.clone())),
                    Err(_) => continue,
                };
            }
        });
        Self { _accept: accept }
    }
}

async fn converse<H, F>(stream: TcpStream, handler: H)
where
    H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Bytes>> + Send + 'static,
{
    // Small answers must not wait for the peer's acknowledgement; without the option they are only slower.
    stream.set_nodelay(true).ok();
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let handler = handler.clone();
        async move {
            let (head, body) = request.into_parts();
            let answer = match Body::incoming(body).read(BODY_MAX).await {
                Ok(body) => handler(Request::from_parts(head, body)).await,
                Err(error) => text(StatusCode::BAD_REQUEST, error.to_string()),
            };
            Ok::<_, Infallible>(answer.map(Body::full))
        }
    });
    // A connection that breaks off is the caller's to notice.
    server::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}

/// A caller of one address that keeps its connection.
pub(super) struct Client {
    address: SocketAddr,
    open: Option<Open>,
}

struct Open {
    sender: client::SendRequest<Body>,
    _drive: JoinSet<()>,
}

impl Client {
    /// Connects at the first call.
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            open: None,
        }
    }

    /// Sends a call and reads the whole answer.
    ///
    /// # Errors
    /// No connection, no answer, or none in time.
    pub(super) async fn send(&mut self, request: Request<Body>) -> Result<Response<Bytes>> {
        let step = format!("{} {} at {}", request.method(), request.uri(), self.address);
        within(&step, CALL_LIMIT, async {
            let mut open = match self.open.take() {
                Some(open) if !open.sender.is_closed() => open,
                _ => connect(self.address).await?,
            };
            let answer = exchange(&mut open, request).await;
            let answer = answer.map_err(|error| Trouble::new(format!("{step}: {error}")))?;
            self.open = Some(open);
            Ok(answer)
        })
        .await
    }

    /// A read of `path` at `host`.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(super) async fn get(&mut self, host: &str, path: &str) -> Result<Response<Bytes>> {
        self.send(request(Method::GET, host, path, Body::empty())?)
            .await
    }

    /// A JSON document for `path` at `host`.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(super) async fn post(
        &mut self,
        host: &str,
        path: &str,
        json: Bytes,
    ) -> Result<Response<Bytes>> {
        self.send(request(Method::POST, host, path, Body::full(json))?)
            .await
    }
}

fn request(method: Method, host: &str, path: &str, body: Body) -> Result<Request<Body>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|error| Trouble::new(format!("{path} is no path to call: {error}")))
}

async fn connect(address: SocketAddr) -> Result<Open> {
    let refused = |error: &dyn std::fmt::Display| {
        Trouble::new(format!("no connection to {address}: {error}"))
    };
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| refused(&error))?;
    stream.set_nodelay(true).map_err(|error| refused(&error))?;
    let (sender, connection) = client::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| refused(&error))?;
    let mut drive = JoinSet::new();
    drive.spawn(async move {
        // How it ends is told to whoever sends on it.
        connection.await.ok();
    });
    Ok(Open {
        sender,
        _drive: drive,
    })
}

async fn exchange(
    open: &mut Open,
    request: Request<Body>,
) -> std::result::Result<Response<Bytes>, crate::error::BoxError> {
    open.sender.ready().await?;
    let (head, body) = open.sender.send_request(request).await?.into_parts();
    Ok(Response::from_parts(
        head,
        Body::incoming(body).read(BODY_MAX).await?,
    ))
}

/// An answer of one line.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    answer
}

/// A header's text, or nothing.
pub(super) fn word<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_service_takes_no_more_calls() {
        let (listener, address) = listen().await.expect("a port");
        let echo =
            |request: Request<Bytes>| async move { text(StatusCode::OK, request.into_body()) };
        let server = Server::start(listener, echo);
        let mut client = Client::new(address);
        let answer = client
            .post("echo", "/", Bytes::from_static(b"hello"))
            .await
            .expect("it runs");
        assert_eq!(answer.body(), "hello");

        drop(server);
        until_refused(&mut client).await;
    }

    async fn until_refused(client: &mut Client) {
        // The abort takes a turn of the runtime, so one more answer may still come.
        for _ in 0..100 {
            if client.get("echo", "/").await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("the service still answers");
    }
}
