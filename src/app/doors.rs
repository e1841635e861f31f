//! What each door does with a call: routes it, or serves it itself below `/.wayside/`.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use uuid::Uuid;

use super::live::Live;
use crate::body::Body;
use crate::claims::{Stores, id};
use crate::config::model::Allow;
use crate::error::{Error, Kind};
use crate::listen::head;
use crate::messages::{Lookup, Timelines, Tip};
use crate::pattern::answers::Answers;
use crate::pattern::forward::Forward;
use crate::pattern::hydrate::{Asked, Hydrate};
use crate::reply::headers::RESERVED;
use crate::reply::{events, peers, results};
use crate::route::{is_wanted, takes_method, takes_path};
use crate::service::{Attended, Call, Gate, Meters, Outcome, Response};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names;
use crate::tls::Peer;
use crate::upstream::{Changes, PeerState};
use crate::worth::Ledger;

/// Streams of results at the same time; one more is a 503.
const STREAMS_MAX: usize = 64;
/// Results that a stream takes at once.
const RESULTS_AT_ONCE: usize = 16;

/// The door of the app's own calls.
pub(super) struct OutboundDoor {
    pub(super) live: Arc<ArcSwap<Live>>,
    pub(super) changes: Changes,
    pub(super) hydrate: Arc<Hydrate>,
    pub(super) timelines: Arc<Timelines>,
    /// What receivers told; `None` without `kafka.replies`.
    pub(super) answers: Option<Arc<Answers>>,
    pub(super) streams: Arc<Gate>,
    pub(super) unrouted: Arc<Meters>,
    pub(super) reserved: Arc<Meters>,
}

/// The door of other sidecars' calls.
pub(super) struct InboundDoor {
    pub(super) app: Option<Forward>,
    /// Who may call the app; `None` lets everyone.
    pub(super) allow: Option<Vec<Allow>>,
    pub(super) claims: Arc<Stores>,
    pub(super) worth: Arc<Ledger>,
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
        let Call { request, trace, .. } = *call;
        let (parts, _) = request.into_parts();
        only_get(&parts.method)?;
        match below(parts.uri.path()) {
            ("claims", reference) => {
                let asked = Asked {
                    reference,
                    query: parts.uri.query(),
                    method: &parts.method,
                    headers: &parts.headers,
                    trace: &trace,
                };
                self.hydrate.answer(asked).await
            }
            ("messages", "") if waits(parts.uri.query()) => self.results(&parts.headers),
            ("messages", id) => self.timeline(id),
            ("services", "") => Ok(self.services(&parts.headers)),
            _ => Err(Error::new(
                Kind::NotFound,
                "below /.wayside/ there are claims/{id}, messages/{id}, messages?wait and services",
            )),
        }
    }

    /// Which peers are up: a list, or a stream of what changes for whoever asks for one.
    fn services(&self, headers: &HeaderMap) -> Response {
        let live = Arc::clone(&self.live);
        let states = move || {
            let live = live.load();
            let mut states: Vec<_> = live
                .services
                .values()
                .flat_map(|upstream| upstream.states())
                .collect();
            states.sort_unstable_by(|one, other| {
                (&one.service, &one.address).cmp(&(&other.service, &other.address))
            });
            states
        };
        match events::are_wanted(headers) {
            true => peers::stream(self.changes.listen(), states, PeerState::gone),
            false => peers::list(&states()),
        }
    }

    /// The results as a stream, from now on or from where the reader left off.
    fn results(&self, headers: &HeaderMap) -> Result<Response, Error> {
        let Some(answers) = &self.answers else {
            let detail = "results come by `kafka.replies`, which this sidecar does not have";
            return Err(Error::new(Kind::NotFound, detail));
        };
        let place = self.streams.enter().ok_or_else(|| {
            let most = self.streams.max();
            let detail = format!("{most} streams of results are open, as many as may be");
            Error::new(Kind::Overloaded, detail).after(Duration::from_secs(5))
        })?;
        let tip = answers.results().follow();
        let last = headers.get("last-event-id");
        let after = match last.and_then(|last| last.to_str().ok()) {
            None | Some("") => tip.borrow().newest,
            // Of another process: whatever is kept is told again.
            Some(last) => results::resume(last, answers.run())
                .map_or(0, |after| after.min(tip.borrow().newest)),
        };
        let begin = results::Begin {
            after,
            run: answers.run().to_owned(),
            place,
        };
        let kept = Arc::clone(answers.results());
        let page = move |after| {
            let page = kept.after(after, RESULTS_AT_ONCE);
            let told = page.results.iter();
            results::Page {
                missed: page.missed,
                events: told
                    .map(|(number, outcome)| (*number, outcome.told()))
                    .collect(),
            }
        };
        Ok(results::stream(tip, |tip: &Tip| tip.closed, begin, page))
    }

    fn timeline(&self, id: &str) -> Result<Response, Error> {
        let id = Uuid::parse_str(id)
            .map_err(|_| Error::new(Kind::Unknown, "a message's id is a UUID"))?;
        match self.timelines.get(id) {
            Lookup::Known(timeline) => {
                let mut timeline = timeline.to_json();
                let known = self.answers.as_ref().and_then(|own| own.results().get(id));
                if let Some(outcome) = known {
                    timeline["result"] = outcome.result();
                }
                let body = serde_json::to_vec(&timeline).map_err(|cause| {
                    Error::new(Kind::Internal, "the timeline can not be written").because(cause)
                })?;
                Ok(of(Body::full(body), "application/json"))
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
        let attended = Attended::new(&self.meters, &call.trace);
        let result = match (&self.app, self.may_call(&call)) {
            (_, Err(error)) => Err(error),
            (Some(app), Ok(())) => app.call(call).await.map_err(Error::from),
            (None, Ok(())) => Err(Error::new(
                Kind::NoRoute,
                "this sidecar has no `app`; it only serves claims",
            )),
        };
        attended.over();
        Outcome {
            result,
            meters: Arc::clone(&self.meters),
        }
    }

    /// Whether `allow` lets a call in.
    fn may_call(&self, call: &Call) -> Result<(), Error> {
        let method = call.request.method();
        if *method == Method::CONNECT {
            let detail = "CONNECT is switched off: a tunnel into the app is not offered";
            return Err(Error::new(Kind::NotImplemented, detail));
        }
        let Some(rules) = &self.allow else {
            return Ok(());
        };
        let peer = call.peer.as_deref();
        let names = peer.map_or(&[][..], |peer| &peer.names);
        let path = call.request.uri().path();
        // An app may take an escaped slash for one that separates: a rule must then hold either way.
        let resolved = path
            .contains('%')
            .then(|| path.replace("%2F", "/").replace("%5C", "/"));
        let takes = |rule: &Allow| {
            takes_path(&rule.path, path)
                && resolved
                    .as_deref()
                    .is_none_or(|resolved| takes_path(&rule.path, resolved))
        };
        let allowed = rules.iter().any(|rule| {
            let known = |name: &String| rule.from.iter().any(|wanted| is_wanted(wanted, name));
            (rule.from.is_empty() || names.iter().any(known))
                && takes_method(&rule.methods, method)
                && takes(rule)
        });
        if allowed {
            return Ok(());
        }
        let who = peer.map_or("an unknown caller", Peer::name);
        let detail = format!("no rule of `inbound.allow` lets {who} make this call");
        Err(Error::new(Kind::NotAllowed, detail))
    }

    async fn reserved(&self, call: Box<Call>) -> Result<Response, Error> {
        only_get(call.request.method())?;
        match below(call.request.uri().path()) {
            ("claims", id) => {
                let body = self.claims.body(id).await?;
                if let Some(said) = id::look(id) {
                    self.worth.served(said.audience);
                }
                Ok(of(body, "application/octet-stream"))
            }
            _ => Err(Error::new(
                Kind::NotFound,
                "below /.wayside/ this door has claims/{id}",
            )),
        }
    }
}

/// Counts streams of results and refuses those above the limit.
pub(super) fn streams(metrics: &Metrics) -> Arc<Gate> {
    let streams = Gate::new(STREAMS_MAX);
    let open = Arc::clone(&streams);
    metrics.watch(&names::RESULT_STREAMS, &[], move || open.inside() as f64);
    streams
}

/// Whether a query asks for a stream: `?wait`, `?wait=…`, or one of several parameters.
fn waits(query: Option<&str>) -> bool {
    let mut parameters = query.unwrap_or_default().split('&');
    parameters.any(|parameter| parameter.split('=').next() == Some("wait"))
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

fn of(body: Body, media_type: &'static str) -> Response {
    let mut response = Response::new(body);
    let media_type = HeaderValue::from_static(media_type);
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}

/// The two segments below the reserved path.
fn below(path: &str) -> (&str, &str) {
    let below = path.strip_prefix(RESERVED).unwrap_or_default();
    below.split_once('/').unwrap_or((below, ""))
}
