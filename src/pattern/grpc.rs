//! How a gRPC answer says that it failed.
//!
//! Source: gRPC over HTTP/2 (PROTOCOL-HTTP2.md), "Responses".

use http::HeaderMap;

/// The one code that says "try elsewhere".
const UNAVAILABLE: &[u8] = b"14";

/// Whether headers, or the trailers of an answer without messages, say that the service is not available.
pub fn unavailable(headers: &HeaderMap) -> bool {
    headers
        .get("grpc-status")
        .is_some_and(|status| status.as_bytes() == UNAVAILABLE)
}
