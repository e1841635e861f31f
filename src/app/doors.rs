//! What each door does with a call: routes it, or serves it itself below `/.wayside/`.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, StatusCode};
use uuid::Uuid;

use super::live::Live;
use crate::claims::Stores;
use crate::error::{Error, Kind};
use crate::listen::head;
use crate::messages::{Lookup, Timelines};
use crate::pattern::forward::Forward;
use crate::pattern::hydrate::{Hydrate, document};
use crate::reply::headers::RESERVED;
use crate::service::{Call, Meters, Outcome, Response};

/// The door of the app's own calls.
pub(super) struct OutboundDoor {
    pub(super) live: Arc<ArcSwap<Live>>,
    pub(super) hydrate: Arc<Hydrate>,
    pub(super) timelines: Arc<Timelines>,
    pub(super) unrouted: Arc<Meters>,
    pub(super) reserved: Arc<Meters>,
}

/// The door of other sidecars' calls.
pub(super) struct InboundDoor {
    pub(super) app: Option<Forward>,
    pub(super) claims: Arc<Stores>,
    pub(super) meters: Arc<Meters>,
    pub(super) reserved: Arc<Meters>,
    pub(super) unrouted: Arc<Meters>,
}

impl OutboundDoor {
    pub(super) async fn call(&self, mut call: Box<Call>) -> Outcome {
        if let Err(error) = head::canonical(&mut call.request) {
            return Outcome {
                result: Err(error),
                meters: Arc::clone(&self.unrouted),
            };
        }
        if call.request.uri().path().starts_with(RESERVED) {
            // Boxed: rare beside forwarded calls, whose future would carry its size.
            let result = Box::pin(self.reserved(call)).await;
            return Outcome {
                result,
                meters: Arc::clone(&self.reserved),
            };
        }
        self.live.load_full().call(call).await
    }

    async fn reserved(&self, call: Box<Call>) -> Result<Response, Error> {
        let (parts, _) = call.request.into_parts();
        only_get(&parts.method)?;
        match below(parts.uri.path()) {
            ("claims", reference) => {
                self.hydrate
                    .answer(reference, parts.uri.query(), &parts.headers)
                    .await
            }
            ("messages", id) => self.timeline(id),
            _ => Err(Error::new(
                Kind::NotFound,
                "below /.wayside/ there are claims/{id} and messages/{id}",
            )),
        }
    }

    fn timeline(&self, id: &str) -> Result<Response, Error> {
        let id = Uuid::parse_str(id)
            .map_err(|_| Error::new(Kind::Unknown, "a message's id is a UUID"))?;
        match self.timelines.get(id) {
            Lookup::Known(timeline) => {
                let body = serde_json::to_vec(&timeline.to_json()).map_err(|cause| {
                    Error::new(Kind::Internal, "the timeline can not be written").because(cause)
                })?;
                Ok(document(StatusCode::OK, Bytes::from(body), None))
            }
            Lookup::Gone => Err(Error::new(
                Kind::Expired,
                "the message's timeline is no longer kept",
            )),
            Lookup::Unknown => Err(Error::new(
                Kind::Unknown,
                "no such message was published here",
            )),
        }
    }
}

impl InboundDoor {
    pub(super) async fn call(&self, mut call: Box<Call>) -> Outcome {
        if let Err(error) = head::canonical(&mut call.request) {
            return Outcome {
                result: Err(error),
                meters: Arc::clone(&self.unrouted),
            };
        }
        if call.request.uri().path().starts_with(RESERVED) {
            let result = Box::pin(self.reserved(call)).await;
            return Outcome {
                result,
                meters: Arc::clone(&self.reserved),
            };
        }
        let result = match &self.app {
            Some(app) => app.call(call).await,
            None => Err(Error::new(
                Kind::NoRoute,
                "this sidecar has no `app`; it only serves claims",
            )),
        };
        Outcome {
            result,
            meters: Arc::clone(&self.meters),
        }
    }

    async fn reserved(&self, call: Box<Call>) -> Result<Response, Error> {
        only_get(call.request.method())?;
        match below(call.request.uri().path()) {
            ("claims", id) => Ok(document(StatusCode::OK, self.claims.fetch(id).await?, None)),
            _ => Err(Error::new(
                Kind::NotFound,
                "below /.wayside/ this door has claims/{id}",
            )),
        }
    }
}

fn only_get(method: &Method) -> Result<(), Error> {
    match *method {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Error::new(
            Kind::MethodNotAllowed,
            "everything below /.wayside/ is read with GET",
        )),
    }
}

/// The two segments below the reserved path.
fn below(path: &str) -> (&str, &str) {
    path.strip_prefix(RESERVED)
        .and_then(|rest| rest.split_once('/'))
        .unwrap_or(("", ""))
}
