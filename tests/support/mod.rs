//! What the integration tests share: the world around a sidecar, seen from outside.
//!
//! An app, a client, a process, a topic and a broker know only HTTP, pids and Kafka; `sidecar` is the product itself.

pub(crate) mod app;
pub(crate) mod authority;
pub(crate) mod broker;
pub(crate) mod client;
pub(crate) mod collector;
pub(crate) mod dns;
pub(crate) mod eventually;
pub(crate) mod http2;
pub(crate) mod kafka;
pub(crate) mod process;
pub(crate) mod raw;
pub(crate) mod sidecar;
pub(crate) mod topic;
