//! Wayside: a sidecar that turns plain HTTP calls into the pattern its YAML chooses.
//!
//! The modules stand in the order in which a call meets them; what all of them use comes last.

pub mod app;
pub mod cli;
pub mod config;

pub mod admin;
pub mod claims;
pub mod kafka;
pub mod listen;
pub mod messages;
pub mod pattern;
pub mod reply;
pub mod route;
pub mod spool;
pub mod upstream;
pub mod worth;

pub mod body;
pub mod error;
pub mod headers;
pub mod lifecycle;
pub mod service;
pub mod telemetry;
pub mod tls;
