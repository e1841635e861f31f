//! The way to a running sidecar's admin door, for the commands that ask one.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{HeaderValue, Method, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::body::Body;
use crate::lifecycle;

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// Bytes of an answer: a thousand timelines of nine events.
const ANSWER_MAX: usize = 4 << 20;

/// Why there is no answer, for people.
pub(super) fn unreachable(admin: SocketAddr, error: &str) -> String {
    format!("wayside: the admin door at {admin} does not answer: {error}")
}

/// Asks and reads the whole answer, which must be there within two seconds.
///
/// # Errors
/// Why there is none.
pub(super) async fn ask(
    admin: SocketAddr,
    method: Method,
    target: &str,
) -> Result<(StatusCode, Bytes), String> {
    let asking = async {
        let answer = begin(admin, method, target, None).await?;
        let (head, body) = answer.into_parts();
        Ok((head.status, read(body).await?))
    };
    timeout(ANSWER, asking)
        .await
        .unwrap_or_else(|_| Err(slow()))
}

/// Asks for a stream of events; its head must be there within two seconds.
///
/// # Errors
/// Why there is none.
pub(super) async fn follow(admin: SocketAddr, target: &str) -> Result<Response<Incoming>, String> {
    let asking = begin(admin, Method::GET, target, Some("text/event-stream"));
    timeout(ANSWER, asking)
        .await
        .unwrap_or_else(|_| Err(slow()))
}

/// Reads the rest of an answer.
///
/// # Errors
/// It broke off, or is too long.
pub(super) async fn read(body: Incoming) -> Result<Bytes, String> {
    let body = Body::incoming(body).read(ANSWER_MAX).await;
    body.map_err(|error| error.to_string())
}

async fn begin(
    admin: SocketAddr,
    method: Method,
    target: &str,
    accept: Option<&'static str>,
) -> Result<Response<Incoming>, String> {
    let stream = TcpStream::connect(admin).await.map_err(text)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    lifecycle::spawn(&Handle::current(), "admin", async move {
        // What breaks the connection breaks the answer, whose reader is told.
        drop(connection.await);
    });
    let mut request = http::Request::new(Body::empty());
    *request.method_mut() = method;
    *request.uri_mut() = target.parse::<Uri>().map_err(text)?;
    let host = HeaderValue::from_str(&admin.to_string()).map_err(text)?;
    request.headers_mut().insert(HOST, host);
    if let Some(accept) = accept {
        let accept = HeaderValue::from_static(accept);
        request.headers_mut().insert(ACCEPT, accept);
    }
    sender.send_request(request).await.map_err(text)
}

fn slow() -> String {
    "it took too long".to_owned()
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
