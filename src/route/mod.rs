//! Stage 2: which route takes a call. Pure: nothing here waits, reads a clock or knows a socket.

mod facts;
mod matcher;
mod table;

pub use facts::{Facts, bare_host};
pub use matcher::Mismatch;
pub use table::{Table, Verdict};
