//! What routes look at.

use std::borrow::Cow;

use http::header::HOST;
use http::{HeaderMap, Method};

use crate::service::Request;

/// The parts of a call that a match can name.
#[derive(Debug)]
pub struct Facts<'a> {
    /// In lower case, without its port; empty for HTTP/1.0 without a Host.
    pub host: Cow<'a, str>,
    /// As sent.
    pub method: &'a Method,
    /// In canonical form, without the query.
    pub path: &'a str,
    /// As sent; empty for none.
    pub query: &'a str,
    /// As sent.
    pub headers: &'a HeaderMap,
}

impl<'a> Facts<'a> {
    /// Reads them from a canonical request.
    pub fn of(request: &'a Request) -> Self {
        let host = request
            .headers()
            .get(HOST)
            .and_then(|host| host.to_str().ok())
            .unwrap_or("");
        Self {
            host: bare_host(host),
            method: request.method(),
            path: request.uri().path(),
            query: request.uri().query().unwrap_or(""),
            headers: request.headers(),
        }
    }
}

/// The host of a Host header, in lower case and without its port.
pub fn bare_host(host: &str) -> Cow<'_, str> {
    let digits = host.bytes().rev().take_while(u8::is_ascii_digit).count();
    let bare = host[..host.len() - digits]
        .strip_suffix(':')
        .unwrap_or(host);
    if bare.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(bare.to_ascii_lowercase())
    } else {
        Cow::Borrowed(bare)
    }
}
