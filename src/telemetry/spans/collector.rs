//! The way to the collector: one connection of HTTP/1.1, kept from batch to batch.
//!
//! Source: OTLP 1.x, "OTLP/HTTP" (binary protobuf, retryable statuses, `Retry-After`).

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Method, StatusCode, Uri};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::otlp;
use crate::body::Body;
use crate::config::model::Otlp;

/// Bytes of a collector's answer.
const ANSWER_MAX: usize = 64 << 10;

/// A collector.
pub(super) struct Collector {
    config: Otlp,
    uri: Uri,
    connection: Option<Connection>,
}

struct Connection {
    sender: http1::SendRequest<Body>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// How sending a batch ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// It was taken, but for so many spans.
    Taken { rejected: u64 },
    /// It may be taken later, perhaps not before a time that the collector names.
    Later {
        why: String,
        after: Option<Duration>,
    },
    /// It never will be.
    Refused { why: String },
}

impl Collector {
    pub(super) fn new(config: &Otlp) -> Self {
        let path = format!("{}/v1/traces", config.path);
        Self {
            uri: path
                .parse()
                .unwrap_or_else(|_| Uri::from_static("/v1/traces")),
            config: config.clone(),
            connection: None,
        }
    }

    /// Sends one batch.
    pub(super) async fn send(&mut self, batch: Bytes) -> Delivered {
        let later = |why: String| Delivered::Later { why, after: None };
        // A connection that failed in any way is not used again.
        let connection = match self
            .connection
            .take()
            .filter(|kept| !kept.sender.is_closed())
        {
            Some(kept) => Ok(kept),
            None => self.connect().await,
        };
        let mut connection = match connection {
            Ok(connection) => connection,
            Err(why) => return later(why),
        };
        let answer = match connection.sender.send_request(self.request(batch)).await {
            Ok(answer) => answer,
            Err(error) => return later(error.to_string()),
        };
        let (head, body) = answer.into_parts();
        let said = match Body::incoming(body).read(ANSWER_MAX).await {
            Ok(said) => said,
            Err(error) => return later(error.to_string()),
        };
        self.connection = Some(connection);
        judge(head.status, head.headers.get(RETRY_AFTER), &said)
    }

    /// Forgets a connection whose answer did not come.
    pub(super) fn forget(&mut self) {
        self.connection = None;
    }

    async fn connect(&self) -> Result<Connection, String> {
        let address = &self.config.address;
        let stream = TcpStream::connect((address.host.as_str(), address.port))
            .await
            .map_err(|error| error.to_string())?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let driver = Handle::current().spawn(async move {
            // What breaks it is told to whoever sends.
            drop(driver.await);
        });
        Ok(Connection { sender, driver })
    }

    fn request(&self, batch: Bytes) -> http::Request<Body> {
        let length = HeaderValue::from(batch.len());
        let mut request = http::Request::new(Body::full(batch));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        if let Ok(host) = HeaderValue::from_str(&self.config.address.to_string()) {
            headers.insert(HOST, host);
        }
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-protobuf"),
        );
        headers.insert(CONTENT_LENGTH, length);
        let agent = concat!("wayside/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        request
    }
}

fn judge(status: StatusCode, after: Option<&HeaderValue>, said: &[u8]) -> Delivered {
    if status.is_success() {
        let (rejected, why) = otlp::rejected(said).unwrap_or_default();
        if rejected > 0 {
            tracing::debug!(rejected, why, "the collector refused some spans");
        }
        return Delivered::Taken { rejected };
    }
    let why = format!("it answered {}", status.as_u16());
    match status.as_u16() {
        // Those that OTLP calls retryable.
        429 | 502..=504 => {
            let after = after.and_then(|value| value.to_str().ok()?.parse().ok());
            Delivered::Later {
                why,
                after: after.map(Duration::from_secs),
            }
        }
        _ => Delivered::Refused { why },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_protocol_calls_retryable_is_sent_again() {
        let five = HeaderValue::from_static("5");
        let judged = judge(StatusCode::SERVICE_UNAVAILABLE, Some(&five), b"");
        let after = Some(Duration::from_secs(5));
        assert!(matches!(judged, Delivered::Later { after: told, .. } if told == after));
        for status in [400, 401, 404, 413, 500] {
            let status = StatusCode::from_u16(status).unwrap();
            assert!(matches!(
                judge(status, None, b""),
                Delivered::Refused { .. }
            ));
        }
        assert_eq!(
            judge(StatusCode::OK, None, b""),
            Delivered::Taken { rejected: 0 }
        );
        // partial_success { rejected_spans: 3, error_message: "no" }
        let partial = [0x0a, 0x06, 0x08, 0x03, 0x12, 0x02, b'n', b'o'];
        assert_eq!(
            judge(StatusCode::OK, None, &partial),
            Delivered::Taken { rejected: 3 }
        );
    }
}
