//! The answer to a call that was queued because it could not be forwarded.

use http::HeaderValue;

use super::headers::{Carried, PREFERENCE_APPLIED, PROXY_STATUS, VERDICT};
use super::rescue;
use crate::error::Kind;
use crate::service::Response;

/// Why a call was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It could not be sent.
    Unsent(Kind),
    /// An earlier call of its key is queued.
    Behind,
    /// It was queued before, by its idempotency key.
    Repeated,
}

impl Why {
    /// The word in metrics and in `Proxy-Status`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unsent(kind) => kind.word(),
            Self::Behind => "queued-behind-earlier",
            Self::Repeated => "queued-before",
        }
    }
}

/// Says in `Proxy-Status` (RFC 9209) why it was queued, and in `Preference-Applied` (RFC 7240 section 4.1) that it is
/// answered later, unless this is the receiver's own answer. `who` is this sidecar's name.
pub fn mark(response: &mut Response, why: Why, who: &str) {
    let status = match why {
        Why::Unsent(kind) => rescue::status_line(kind, who),
        Why::Behind | Why::Repeated => {
            HeaderValue::from_str(&format!("{who}; details=\"{}\"", why.word())).ok()
        }
    };
    let headers = response.headers_mut();
    headers.extend(status.map(|status| (PROXY_STATUS, status)));
    if !headers.contains_key(VERDICT) {
        headers.append(
            PREFERENCE_APPLIED,
            HeaderValue::from_static("respond-async"),
        );
    }
    response.extensions_mut().insert(Carried("publish"));
}
