//! The protocols against peers that we did not write: h2spec, gRPC's interop client and server, a WebSocket library,
//! OpenTelemetry in Python, curl.
//!
//! Without Go, Python or curl the tests that need them say so in one line and pass; with `CI` set that is a failure.
//! `tests/README.md` tells how to run one.

#![allow(
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails by panicking and tells what it saw"
)]

#[path = "../support/mod.rs"]
#[cfg(test)]
#[allow(
    dead_code,
    reason = "each test binary uses its part of what they share"
)]
mod support;

#[path = "../real/sidecar.rs"]
#[cfg(test)]
#[allow(
    dead_code,
    reason = "each test binary uses its part of what they share"
)]
mod sidecar;

#[cfg(test)]
mod certificates;
#[cfg(test)]
mod tools;

mod curl;
mod grpc;
mod h2spec;
mod otlp;
mod websocket;
