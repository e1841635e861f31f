//! Stage 3: what is done with a call. Policies are pure functions; the loops that use them are plain.

pub mod deadline;
pub mod forward;
pub mod hop;
mod paced;
mod relay;
mod replay;
pub mod retry;

pub use replay::ReplayBudget;
