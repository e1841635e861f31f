//! Stage 2: which route takes a call, and what it changes of it. Pure: nothing here waits, reads a clock or knows a socket.

mod facts;
mod index;
mod matcher;
pub mod rewrite;
mod table;

pub use facts::{Facts, bare_host};
pub use matcher::{Mismatch, is_wanted, path_text, takes_method, takes_path};
pub use table::{Table, Verdict};
