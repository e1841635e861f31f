//! Wayside: a sidecar that turns plain HTTP calls into the pattern its YAML chooses.
//!
//! The modules stand in the order in which a call meets them.

pub mod config;

pub mod listen;
pub mod reply;
pub mod route;
pub mod upstream;

pub mod body;
pub mod error;
pub mod lifecycle;
pub mod service;
pub mod telemetry;
