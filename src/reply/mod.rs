//! Stage 5: answers of our own.

pub mod accepted;
pub mod answered;
pub mod events;
pub mod headers;
pub mod peers;
pub mod queued;
pub mod rescue;
pub mod results;
