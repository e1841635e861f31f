//! Calls that end in another protocol: upgrades such as WebSocket (RFC 9110 section 7.8), and CONNECT where a route takes
//! it (section 9.3.6).
//!
//! The caller's answer is sent first; then its door joins the two connections. So the far end is left in a
//! [`Crossing`], which the door has put into the request and looks at when its connection is done with HTTP.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};

use super::Forward;
use super::answer::Way;
use super::source::Source;
use crate::body::Body;
use crate::error::{Error, Kind, Retry};
use crate::pattern::deadline::within;
use crate::pattern::hop;
use crate::service::{Call, Permit, Request, Response};
use crate::upstream::{Open, Place, Upstream, Version, Wait};

/// How long two joined connections may be silent, at least; `timeouts.idle` of the route if that is longer. A socket that
/// pushes rarely is what one switches for.
const SILENT: Duration = Duration::from_secs(5 * 60);

/// Where a call leaves the far end of its new connection.
#[derive(Clone, Default)]
pub struct Crossing(Arc<Mutex<Option<Far>>>);

/// The far end, and what its call holds until both ends are closed.
pub struct Far {
    /// Its bytes.
    pub stream: Box<dyn Stream>,
    /// How long both ends may be silent.
    pub idle: Duration,
    /// To be dropped when both ends are closed.
    pub held: FarHeld,
}

/// What a call holds after it has switched.
pub struct FarHeld {
    _open: Open,
    _permit: Option<Permit>,
    _place: Place,
}

/// Bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Crossing {
    /// Takes what was left there.
    pub fn take(&self) -> Option<Far> {
        self.lock().take()
    }

    fn leave(&self, far: Far) {
        *self.lock() = Some(far);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Far>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a caller wants to switch to.
pub(super) enum Wanted {
    /// The protocol of its `Upgrade`.
    Protocol(HeaderValue),
    /// A tunnel.
    Tunnel,
}

/// Whether a request asks to switch, and to something that a hop may switch to.
pub(super) fn wanted(request: &Request) -> Option<Wanted> {
    if request.method() == Method::CONNECT {
        return Some(Wanted::Tunnel);
    }
    hop::upgrade(request).map(Wanted::Protocol)
}

/// Names the protocol to switch to.
fn name(headers: &mut HeaderMap, token: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, token);
}

impl Forward {
    /// Carries the request of a switch. It is tried like any other until it was sent, and never after.
    pub(super) async fn switch(
        &self,
        upstream: &Arc<Upstream>,
        call: Box<Call>,
        (crossing, wanted): (Crossing, Wanted),
        deadline: Instant,
    ) -> Result<Response, Error> {
        let place = upstream.enter(deadline).await?;
        let hashed = upstream.hash(&call.request);
        let way = Way {
            upstream,
            call,
            deadline,
            place,
        };
        match wanted {
            Wanted::Tunnel => self.tunnel(way, hashed, &crossing).await,
            Wanted::Protocol(token) => self.upgrade(way, hashed, &crossing, token).await,
        }
    }

    async fn upgrade(
        &self,
        mut way: Way<'_>,
        hashed: Option<u64>,
        crossing: &Crossing,
        token: HeaderValue,
    ) -> Result<Response, Error> {
        let mut source = Source::new(self, way.upstream, &mut way.call.request, false)?;
        let mut tried = Vec::new();
        let (mut response, connection, open) = loop {
            let Some(endpoint) = way.upstream.pick(&tried, hashed)? else {
                let detail = format!("no address of {} is left", way.upstream.name);
                return Err(Error::new(Kind::Unreachable, detail));
            };
            tried.push(endpoint.address);
            way.call
                .try_begins((&way.upstream.name, endpoint.address), 0);
            let wait = Wait::new(Instant::now(), self.timeouts.connect, way.deadline);
            let made = way
                .upstream
                .fresh_connection(&endpoint, Version::One, wait)
                .await;
            let mut connection = match made {
                Ok(connection) => connection,
                Err(error) => {
                    way.call.try_ends(Err(&error));
                    match way.upstream.has_untried(&tried) {
                        true => continue,
                        false => return Err(error),
                    }
                }
            };
            let open = Open::at(&endpoint, Instant::now());
            source.leave()?;
            way.call.try_leaves();
            let request = &mut way.call.request;
            name(request.headers_mut(), token.clone());
            let by = way.deadline.min(Instant::now() + self.timeouts.head);
            let sent = {
                let sending = pin!(connection.send(request));
                within(pin!(sleep_until(by)), by, sending).await
            };
            let sent = match sent {
                Some(sent) => sent.map_err(|failed| failed.error),
                None => {
                    let detail = format!("{} did not answer in time", way.upstream.name);
                    Err(Error::new(Kind::Deadline, detail).retry(Retry::NoAnswer))
                }
            };
            way.call.try_ends(sent.as_ref().map(http::Response::status));
            break (sent?, connection, open);
        };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // An ordinary answer: the service does not want to.
            let answer = super::trip::Answer {
                came: Instant::now(),
                took: way.call.started.elapsed(),
                response,
                first: None,
                connection,
                sent: source.uploading(),
                open,
            };
            return self.relay(answer, way);
        }
        let theirs = response.headers().get(UPGRADE).cloned();
        let upgraded = hyper::upgrade::on(&mut response).await.map_err(|cause| {
            Error::new(Kind::Reset, "the service broke off while switching").because(cause)
        })?;
        let (mut head, _) = response.into_parts();
        hop::clean_response(&mut head.headers, head.status)?;
        // Last: what is left there is joined to the caller's connection, which only a 101 allows.
        self.leave(crossing, Box::new(TokioIo::new(upgraded)), open, way);
        name(&mut head.headers, theirs.unwrap_or(token));
        Ok(Response::from_parts(head, Body::empty()))
    }

    fn leave(&self, crossing: &Crossing, stream: Box<dyn Stream>, open: Open, way: Way<'_>) {
        crossing.leave(Far {
            stream,
            idle: self.timeouts.idle.max(SILENT),
            held: FarHeld {
                _open: open,
                _permit: way.call.permit,
                _place: way.place,
            },
        });
    }

    async fn tunnel(
        &self,
        way: Way<'_>,
        hashed: Option<u64>,
        crossing: &Crossing,
    ) -> Result<Response, Error> {
        let mut tried = Vec::new();
        loop {
            let Some(endpoint) = way.upstream.pick(&tried, hashed)? else {
                let detail = format!("no address of {} is left", way.upstream.name);
                return Err(Error::new(Kind::Unreachable, detail));
            };
            tried.push(endpoint.address);
            let wait = Wait::new(Instant::now(), self.timeouts.connect, way.deadline);
            match way.upstream.socket(&endpoint, wait).await {
                Ok(socket) => {
                    self.leave(
                        crossing,
                        Box::new(socket),
                        Open::at(&endpoint, wait.began),
                        way,
                    );
                    return Ok(Response::new(Body::empty()));
                }
                Err(_) if way.upstream.has_untried(&tried) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
