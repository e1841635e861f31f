//! Stage 3: what is done with a call. Policies are pure functions; the loops that use them are plain.

pub mod answers;
pub mod dead_letter;
pub mod deadline;
pub mod deliver;
pub mod fallback;
pub mod forward;
pub mod grpc;
pub mod hop;
pub mod hydrate;
pub mod key;
pub mod outbox;
mod paced;
pub mod prefer;
mod promise;
pub mod publish;
pub mod receipts;
mod refusals;
mod relay;
mod replay;
pub mod retry;
pub mod slim;
pub mod validate;
pub mod verdict;

pub use replay::ReplayBudget;
