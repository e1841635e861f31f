//! An HTTP/2 client with prior knowledge: one connection, many calls.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

/// A connection; its clones share it.
#[derive(Clone)]
pub(crate) struct Http2 {
    sender: SendRequest<Full<Bytes>>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply2 {
    /// The status.
    pub(crate) status: StatusCode,
    /// The head's headers.
    pub(crate) headers: HeaderMap,
    /// The whole body.
    pub(crate) body: Bytes,
    /// What came after it.
    pub(crate) trailers: HeaderMap,
}

impl Http2 {
    /// Connects in the clear.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.expect("the door is open");
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(socket))
            .await
            .expect("the door speaks HTTP/2");
        Handle::current().spawn(connection);
        Self { sender }
    }

    /// Sends a call to `http://host/target` and waits for the head.
    ///
    /// # Errors
    /// A text, when there is none.
    pub(crate) async fn begin(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, String> {
        let sent = self.sender.send_request(request).await;
        sent.map_err(|error| format!("{error:?}"))
    }

    /// Sends a call and reads the whole answer.
    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Reply2 {
        let (head, body) = self.begin(request).await.expect("an answer").into_parts();
        let (body, trailers) = whole(body).await.expect("a whole answer");
        Reply2 {
            status: head.status,
            headers: head.headers,
            body,
            trailers,
        }
    }
}

/// Reads a body and its trailers to their end.
///
/// # Errors
/// A text, when it is torn.
pub(crate) async fn whole<B>(mut body: B) -> Result<(Bytes, HeaderMap), String>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let (mut bytes, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        match frame.map_err(|error| error.to_string())?.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    Ok((bytes.into(), trailers))
}
