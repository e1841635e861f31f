//! The whole sidecar from outside: plain HTTP in at a real door, and a look at what came out.

#![allow(
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails by panicking and tells what it saw"
)]

#[path = "../support/mod.rs"]
#[allow(
    dead_code,
    reason = "each test binary uses its own part of the shared world"
)]
mod support;

mod again;
mod answers;
mod certificates;
mod commands;
mod config;
mod cuts;
mod dead_letters;
mod discovery;
mod doors;
mod event;
mod evidence;
mod failures;
mod fallback;
mod finding;
mod forward;
mod hop;
mod http2;
mod hydration;
mod key;
mod lanes;
mod large;
mod lifecycle;
mod live;
mod mesh;
mod outage;
mod poison;
mod publish;
mod receipts;
mod redelivery;
mod reload;
mod replicas;
mod rewrite;
mod rules;
mod schema;
mod spans;
mod spool;
mod stores;
mod subscription;
mod tidy;
mod tls;
mod verdict;
mod worth;
