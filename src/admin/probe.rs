//! `/live`, `/ready`, `/metrics`: no side effects, nothing secret.

use std::sync::Arc;

use http::{Method, StatusCode};
use tower::service_fn;

use super::{asked, settle, text};
use crate::error::{Error, Kind};
use crate::lifecycle::{Ready, Reason};
use crate::service::{Call, Handler, Response};
use crate::telemetry::metrics::Metrics;

/// What the probe door reads.
pub struct Probe {
    /// Whether traffic may come.
    pub ready: Arc<Ready>,
    /// Everything counted.
    pub metrics: Metrics,
}

impl Probe {
    /// Answers one of the three paths; `None` for any other.
    pub(super) fn answer(&self, path: &str) -> Option<Response> {
        const TEXT: &str = "text/plain; charset=utf-8";
        Some(match path {
            "/live" => text(StatusCode::OK, TEXT, "live\n"),
            "/ready" => match self.ready.check() {
                Ok(()) => text(StatusCode::OK, TEXT, "ready\n"),
                Err(Reason::Starting) => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, "starting\n"),
                Err(Reason::Draining) => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n"),
            },
            "/metrics" => text(
                StatusCode::OK,
                "text/plain; version=0.0.4",
                self.metrics.render(),
            ),
            _ => return None,
        })
    }
}

/// The probe door's handler.
pub fn probe_handler(probe: Arc<Probe>) -> Handler {
    Handler::new(service_fn(move |call: Box<Call>| {
        let probe = Arc::clone(&probe);
        async move {
            let (method, path) = asked(&call);
            let answer = match method {
                Method::GET | Method::HEAD => probe.answer(&path).ok_or_else(|| {
                    Error::new(Kind::NotFound, "this door has /live, /ready and /metrics")
                }),
                _ => Err(Error::new(Kind::MethodNotAllowed, "this door is read-only")),
            };
            settle(answer, call.trace.id())
        }
    }))
}
