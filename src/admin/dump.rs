//! The admin door: all of the probe's, the effective configuration with its secrets blanked, messages, and the start
//! of a drain.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, Method, StatusCode, request};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::service_fn;

use super::{Probe, Subscriptions, json, messages, settle, subscriptions};
use crate::config::model::{Address, Config};
use crate::error::{Error, Kind};
use crate::messages::Timelines;
use crate::route::bare_host;
use crate::service::{Call, Gate, Handler, Response};
use crate::worth::Ledger;

/// How long the app may take to be found alive.
const APP_CHECK: Duration = Duration::from_millis(500);

/// What stands before a message's id.
const ONE_MESSAGE: &str = "/messages/";

/// What the admin door reads.
pub struct Dump {
    /// The probe's part.
    pub probe: Arc<Probe>,
    /// The configuration in force.
    pub config: Box<dyn Fn() -> Arc<Config> + Send + Sync>,
    /// What happened to each message.
    pub timelines: Arc<Timelines>,
    /// Whether events pay.
    pub worth: Arc<Ledger>,
    /// How deliveries go.
    pub subscriptions: Arc<dyn Subscriptions>,
    /// Calls in flight, by door.
    pub gates: Vec<(&'static str, Arc<Gate>)>,
}

#[derive(Serialize)]
struct Draining<'a> {
    draining: bool,
    /// `up`, `gone`, or `none` for a sidecar without an app.
    app: &'static str,
    in_flight: Vec<InFlight<'a>>,
}

#[derive(Serialize)]
struct InFlight<'a> {
    door: &'a str,
    calls: usize,
}

/// The admin door's handler. It listens on loopback, but a page in a browser on the same machine can reach that too: so
/// the Host must be an address or `localhost`, and a request that a page made is refused.
pub fn admin_handler(dump: Arc<Dump>) -> Handler {
    Handler::new(service_fn(move |call: Box<Call>| {
        let dump = Arc::clone(&dump);
        async move {
            // An absolute-form target would stand above the Host that is looked at.
            let (head, _) = call.request.into_parts();
            let origin_form = head.uri.authority().is_none();
            let answer = match origin_form && is_local(&head.headers) {
                true => dump.answer(&head).await,
                false => Err(Error::new(
                    Kind::BadRequest,
                    "the admin door answers to its address or localhost only",
                )),
            };
            settle(answer, call.trace.id())
        }
    }))
}

impl Dump {
    async fn answer(&self, head: &request::Parts) -> Result<Response, Error> {
        let (method, path) = (&head.method, head.uri.path());
        let asked = (method, &head.headers);
        match (method, path) {
            (&Method::GET | &Method::HEAD, "/config") => {
                Ok(json(StatusCode::OK, &*(self.config)()))
            }
            (&Method::GET | &Method::HEAD, "/events") => {
                Ok(json(StatusCode::OK, &self.worth.report()))
            }
            (&Method::GET | &Method::HEAD, "/messages") => {
                messages::list(&self.timelines, asked, head.uri.query())
            }
            (&Method::GET | &Method::HEAD, "/drain") => {
                Ok(json(StatusCode::OK, &self.draining().await))
            }
            (&Method::POST, "/drain") => {
                tracing::info!("drain asked for: no longer ready");
                self.probe.ready.draining();
                Ok(json(StatusCode::OK, &self.draining().await))
            }
            (&Method::GET | &Method::HEAD, path) if path.starts_with(ONE_MESSAGE) => {
                messages::one(&self.timelines, asked, &path[ONE_MESSAGE.len()..])
            }
            (_, path) if path == subscriptions::ALL || path.starts_with(subscriptions::ONE) => {
                subscriptions::answer(&*self.subscriptions, method, path)
            }
            (&Method::GET | &Method::HEAD, path) => self.probe.answer(path).ok_or_else(|| {
                let detail = "this door has /live, /ready, /metrics, /config, /messages, /subscriptions, /events and /drain";
                Error::new(Kind::NotFound, detail)
            }),
            _ => Err(Error::new(
                Kind::MethodNotAllowed,
                "a POST goes to /drain or /subscriptions/TOPIC/pause or /resume",
            )),
        }
    }

    async fn draining(&self) -> Draining<'_> {
        let app = match &(self.config)().app {
            None => "none",
            Some(address) if is_up(address).await => "up",
            Some(_) => "gone",
        };
        let in_flight = self
            .gates
            .iter()
            .map(|(door, gate)| InFlight {
                door,
                calls: gate.inside(),
            })
            .collect();
        let draining = self.probe.ready.check() == Err(crate::lifecycle::Reason::Draining);
        Draining {
            draining,
            app,
            in_flight,
        }
    }
}

async fn is_up(address: &Address) -> bool {
    let connecting = TcpStream::connect((address.host.as_str(), address.port));
    matches!(timeout(APP_CHECK, connecting).await, Ok(Ok(_)))
}

fn is_local(headers: &HeaderMap) -> bool {
    if headers.contains_key(ORIGIN) || headers.get_all(HOST).iter().count() != 1 {
        return false;
    }
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .map_or(Cow::Borrowed(""), bare_host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok() || host.parse::<SocketAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_page_in_a_browser_is_refused() {
        let check = |host: &'static str, origin: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static(host));
            if origin {
                headers.insert(ORIGIN, HeaderValue::from_static("http://evil.example"));
            }
            is_local(&headers)
        };
        assert!(check("127.0.0.1:4191", false));
        assert!(check("localhost:4191", false));
        assert!(check("[::1]:4191", false));
        assert!(!check("evil.example:4191", false), "a rebound name");
        assert!(!check("127.0.0.1:4191", true), "a page's own request");
    }
}
