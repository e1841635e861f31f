//! One call's connection: sends the request, and says exactly how far a call came that got no answer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderValue, TRANSFER_ENCODING};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderName, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use tokio::time::Instant;

use super::Endpoint;
use super::pool::{Idle, Place};
use super::traffic::{Mark, Traffic};
use crate::body::Body;
use crate::error::{BoxError, Error, Kind, Retry};
use crate::service::Request;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// How much sooner than it announces the other side is taken to close: what a call needs to get there.
const HEADSTART: Duration = Duration::from_secs(1);

/// A connection that one call has for itself, or its share of one. Dropped, it is closed (the share: its stream reset);
/// [`Connection::release`] gives it back.
pub struct Connection {
    sender: Sender,
    endpoint: Arc<Endpoint>,
    /// How long it lay idle before this call; `None` for one that was made for it.
    idle: Option<Duration>,
    /// How long it may lie idle after it.
    keep: Duration,
    began: Mark,
}

enum Sender {
    One(http1::SendRequest<Body>, Arc<Traffic>),
    Two(Place),
}

/// A call that got no answer's head.
pub struct SendError {
    /// What happened; [`Error::may_retry`] is exact.
    pub error: Error,
    /// Not one byte of the request left: it is back where it was taken from.
    pub unsent: bool,
}

/// How far a call came on its connection: what tells a lost race for an idle connection from a service that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// How long the connection was idle before, if it served another call.
    pub idle: Option<Duration>,
    /// Bytes that left since the call began; on HTTP/2, those of all its calls.
    pub written: u64,
    /// Bytes that came.
    pub read: u64,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.idle {
            None => f.write_str("reused=false idle_ms=0")?,
            Some(idle) => write!(f, "reused=true idle_ms={}", idle.as_millis())?,
        }
        write!(
            f,
            " bytes_written={} bytes_read={}",
            self.written, self.read
        )
    }
}

impl Connection {
    pub(super) fn idle(idle: Idle, endpoint: &Arc<Endpoint>, keep: Duration, now: Instant) -> Self {
        Self {
            began: idle.traffic.mark(),
            sender: Sender::One(idle.sender, idle.traffic),
            endpoint: Arc::clone(endpoint),
            idle: Some(now.saturating_duration_since(idle.since)),
            keep,
        }
    }

    pub(super) fn fresh(
        sender: http1::SendRequest<Body>,
        traffic: Arc<Traffic>,
        endpoint: &Arc<Endpoint>,
        keep: Duration,
    ) -> Self {
        Self {
            began: traffic.mark(),
            sender: Sender::One(sender, traffic),
            endpoint: Arc::clone(endpoint),
            idle: None,
            keep,
        }
    }

    pub(super) fn shared(place: Place, endpoint: &Arc<Endpoint>, reused: bool) -> Self {
        Self {
            began: place.traffic.mark(),
            sender: Sender::Two(place),
            endpoint: Arc::clone(endpoint),
            idle: reused.then_some(Duration::ZERO),
            keep: Duration::ZERO,
        }
    }

    /// Whether an earlier call used it.
    pub fn reused(&self) -> bool {
        self.idle.is_some()
    }

    /// The address at its other end.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// How far the call has come.
    pub fn evidence(&self) -> Evidence {
        let now = match &self.sender {
            Sender::One(_, traffic) => traffic.mark(),
            Sender::Two(place) => place.traffic.mark(),
        };
        Evidence {
            idle: self.idle,
            written: now.written - self.began.written,
            read: now.read - self.began.read,
        }
    }

    /// Sends a request in origin form and waits for the answer's head. It is taken out of its place when it leaves, for it
    /// is large, and an empty one is left there.
    ///
    /// # Errors
    /// With the request back in its place if it never left.
    pub async fn send(
        &mut self,
        request: &mut Request,
    ) -> Result<http::Response<Incoming>, SendError> {
        let answered = match &mut self.sender {
            Sender::One(sender, _) => {
                // One that was given back a moment ago may still be finishing its last answer.
                if std::future::poll_fn(|cx| sender.poll_ready(cx))
                    .await
                    .is_err()
                {
                    let closed = "the connection was closed while idle".into();
                    return Err(self.judged(never_sent(closed)));
                }
                sender.try_send_request(std::mem::take(request)).await
            }
            Sender::Two(place) => {
                let translated = for_http2(std::mem::take(request)).map_err(|error| SendError {
                    error,
                    unsent: false,
                })?;
                place.sender.try_send_request(translated).await
            }
        };
        match answered {
            Ok(response) => {
                if let Some(announced) = announced(&response) {
                    self.keep = self.keep.min(announced);
                }
                Ok(response)
            }
            Err(mut error) => match error.take_message() {
                Some(unsent) => {
                    *request = match &self.sender {
                        Sender::One(..) => unsent,
                        Sender::Two(place) => {
                            place.leave();
                            from_http2(unsent)
                        }
                    };
                    Err(self.judged(never_sent(error.into_error().into())))
                }
                None => {
                    let error = error.into_error();
                    let goodbye = find::<h2::Error>(&error).is_some_and(h2::Error::is_go_away);
                    if let (true, Sender::Two(place)) = (goodbye, &self.sender) {
                        place.leave();
                    }
                    Err(self.judged(SendError {
                        error: sent(error),
                        unsent: false,
                    }))
                }
            },
        }
    }

    /// Blames the handshake if that is why there is no answer.
    fn judged(&self, failed: SendError) -> SendError {
        let traffic = match &self.sender {
            Sender::One(_, traffic) => traffic,
            Sender::Two(place) => &place.traffic,
        };
        let Some(reason) = traffic.refused() else {
            return failed;
        };
        let detail = format!("the service refused the handshake: {reason}");
        SendError {
            error: Error::new(Kind::TlsFailed, detail)
                .retry(Retry::NeverSent)
                .because(failed.error),
            unsent: failed.unsent,
        }
    }

    /// Gives the connection back once its answer was read to the end.
    pub fn release(self) {
        if let Sender::One(sender, traffic) = self.sender
            && !(sender.is_closed() || traffic.is_broken())
        {
            let since = Instant::now();
            self.endpoint.pool.give_back(Idle {
                sender,
                traffic,
                since,
                until: since + self.keep,
            });
        }
    }
}

/// How long the other side says that it keeps an idle connection (`Keep-Alive: timeout=5`), less a head start.
fn announced(response: &http::Response<Incoming>) -> Option<Duration> {
    let seconds = response
        .headers()
        .get(KEEP_ALIVE)?
        .to_str()
        .ok()?
        .split(',')
        .find_map(|part| part.trim().strip_prefix("timeout=")?.trim().parse().ok())?;
    Some(Duration::from_secs(seconds).saturating_sub(HEADSTART))
}

/// Gives a request the form that HTTP/2 has for it (RFC 9113 section 8.3.1): the authority in the target, and no header
/// that belongs to a connection.
fn for_http2(mut request: Request) -> Result<Request, Error> {
    let wrong = |cause: BoxError| {
        Error::new(Kind::BadRequest, "the target does not fit HTTP/2").because(cause)
    };
    let host = request.headers_mut().remove(HOST);
    let mut uri = std::mem::take(request.uri_mut()).into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(
        host.as_ref()
            .map_or(&b"app"[..], HeaderValue::as_bytes)
            .try_into()
            .map_err(|cause: http::uri::InvalidUri| wrong(cause.into()))?,
    );
    uri.path_and_query
        .get_or_insert(PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from_parts(uri).map_err(|cause| wrong(cause.into()))?;
    *request.version_mut() = http::Version::HTTP_2;
    request.headers_mut().remove(CONNECTION);
    request.headers_mut().remove(TRANSFER_ENCODING);
    Ok(request)
}

/// Takes that form back, for a request that is tried elsewhere.
fn from_http2(mut request: Request) -> Request {
    let uri = std::mem::take(request.uri_mut()).into_parts();
    if let Some(host) = uri
        .authority
        .and_then(|host| HeaderValue::from_str(host.as_str()).ok())
    {
        request.headers_mut().insert(HOST, host);
    }
    *request.uri_mut() = uri.path_and_query.map(Uri::from).unwrap_or_default();
    *request.version_mut() = http::Version::HTTP_11;
    request
}

fn never_sent(cause: BoxError) -> SendError {
    let error = Error::new(
        Kind::Reset,
        "the connection was closed before the call left",
    )
    .retry(Retry::NeverSent)
    .because(cause);
    SendError {
        error,
        unsent: true,
    }
}

/// Sorts what hyper says of a call that left, or began to.
fn sent(error: hyper::Error) -> Error {
    // Our own body type refused to go on: its reason counts, not hyper's wrapping.
    if let Some(ours) = find::<Error>(&error) {
        return Error::new(ours.kind(), ours.detail().to_owned());
    }
    if find::<h2::Error>(&error).is_some_and(not_processed) {
        return Error::new(Kind::Reset, "the service refused the stream unprocessed")
            .retry(Retry::NeverSent)
            .because(error);
    }
    if error.is_parse() {
        return Error::new(Kind::BadAnswer, "the service's answer is not valid HTTP")
            .because(error);
    }
    Error::new(
        Kind::Reset,
        "the service closed the connection before it answered",
    )
    .retry(Retry::NoAnswer)
    .because(error)
}

/// What the other side says it has not touched: a refused stream, or one above the last of an orderly goodbye
/// (RFC 9113 section 8.7).
fn not_processed(error: &h2::Error) -> bool {
    let reason = error.reason();
    error.is_remote()
        && (error.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM)
            || error.is_go_away() && reason == Some(h2::Reason::NO_ERROR))
}

fn find<T: std::error::Error + 'static>(error: &hyper::Error) -> Option<&T> {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(found) = inner.downcast_ref::<T>() {
            return Some(found);
        }
        cause = inner.source();
    }
    None
}
