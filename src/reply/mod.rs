//! Stage 5: answers of our own.

pub mod accepted;
pub mod headers;
pub mod peers;
pub mod rescue;
