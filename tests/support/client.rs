//! The app's plain HTTP/1.1 client: a new connection for each call, no retry, no redirect.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;

// Far above what any call in a test takes: a test that reaches it has found a hang.
const LONGEST: Duration = Duration::from_secs(60);

/// A call in the making.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    request: Request<Full<Bytes>>,
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    /// The status line's code.
    pub(crate) status: StatusCode,
    /// The head's headers.
    pub(crate) headers: HeaderMap,
    /// The whole body.
    pub(crate) body: Bytes,
}

/// A GET of `target` (path and query, or absolute-form) with this `Host`.
pub(crate) fn get(host: &str, target: &str) -> Outgoing {
    Outgoing::new(Method::GET, host, target)
}

/// A POST of `target` (path and query, or absolute-form) with this `Host`.
pub(crate) fn post(host: &str, target: &str) -> Outgoing {
    Outgoing::new(Method::POST, host, target)
}

impl Outgoing {
    /// A call with any method.
    pub(crate) fn new(method: Method, host: &str, target: &str) -> Self {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, host);
        Self {
            request: request.body(Full::default()).expect("the target is a URI"),
        }
    }

    /// Adds a header; a name given twice is sent twice.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        let value = HeaderValue::from_str(value).expect("the value is legal");
        self.request
            .headers_mut()
            .append(HeaderName::from_static(name), value);
        self
    }

    /// Sets the body; its length goes into `Content-Length`.
    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        *self.request.body_mut() = Full::new(body.into());
        self
    }

    /// Sets a JSON body and its media type.
    pub(crate) fn json(self, body: impl Into<Bytes>) -> Self {
        self.header("content-type", "application/json").body(body)
    }

    /// Sends it and reads the whole answer.
    ///
    /// # Errors
    /// A text, when no answer or only a torn one came.
    pub(crate) async fn try_send(self, address: SocketAddr) -> Result<Reply, String> {
        let exchange = async {
            let socket = TcpStream::connect(address).await.map_err(text)?;
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(socket)).await.map_err(text)?;
            let connection = Handle::current().spawn(connection);
            let reply = async {
                let (head, body) = sender
                    .send_request(self.request)
                    .await
                    .map_err(text)?
                    .into_parts();
                let body = read(body).await?;
                Ok(Reply {
                    status: head.status,
                    headers: head.headers,
                    body,
                })
            };
            let reply = reply.await;
            connection.abort();
            reply
        };
        timeout(LONGEST, exchange).await.map_err(text)?
    }

    /// Sends it and reads the whole answer, which there must be.
    pub(crate) async fn send(self, address: SocketAddr) -> Reply {
        let what = format!("{} {}", self.request.method(), self.request.uri());
        let reply = self.try_send(address).await;
        reply.unwrap_or_else(|error| panic!("{what} at {address} has no answer: {error}"))
    }
}

impl Reply {
    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON: {error}: {:?}", self.body))
    }
}

/// Reads a body to its end.
///
/// # Errors
/// A text, when the body is torn.
pub(crate) async fn read<B>(mut body: B) -> Result<Bytes, String>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(text)?.into_data() {
            whole.extend_from_slice(&data);
        }
    }
    Ok(whole.into())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
