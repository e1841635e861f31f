//! The side doors: what the kubelet and Prometheus may read (`probe`), and what people on this machine may ask (`admin`).

mod dump;
mod messages;
mod probe;
mod subscriptions;

pub use dump::{Dump, admin_handler};
pub use probe::{Probe, probe_handler};
pub use subscriptions::Subscriptions;

use std::convert::Infallible;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::Serialize;

use crate::body::Body;
use crate::error::Error;
use crate::reply::rescue;
use crate::service::{Call, Response};

fn text(status: StatusCode, content_type: &'static str, body: impl Into<bytes::Bytes>) -> Response {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let mut body = serde_json::to_vec_pretty(value).unwrap_or_default();
    body.push(b'\n');
    text(status, "application/json", body)
}

/// Side doors have no routes, so their errors are turned into answers right here.
fn settle(result: Result<Response, Error>, call_trace: &str) -> Result<Response, Infallible> {
    Ok(result.unwrap_or_else(|error| rescue::respond(&error, "wayside", call_trace)))
}

/// Splits what a side door looks at off a call.
fn asked(call: &Call) -> (http::Method, String) {
    (
        call.request.method().clone(),
        call.request.uri().path().to_owned(),
    )
}
