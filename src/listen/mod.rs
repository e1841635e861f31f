//! Stage 1: the doors. A call comes in as HTTP, or as a record of a subscription, and is handed to a
//! [`Handler`](crate::service::Handler).

pub mod head;
mod head_timer;
pub mod http;
mod http2;
mod patient;
pub mod subscription;
pub mod tcp;
mod tunnel;
