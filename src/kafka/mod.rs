//! Everything that names the broker's client. Nothing outside this folder knows that the broker is Kafka.
//!
//! * [`record`]: what a message looks like as a record; pure, any client can read it
//! * [`client`]: the properties of every client, and where its log goes
//! * [`properties`]: what may be set of them, and that no value is ever printed
//! * [`producer`]: one producer per process, from a call to the broker's acknowledgement
//! * `slots`, `link`: who waits for an acknowledgement; whether the broker answers
//! * [`consumer`]: one consumer per group, on a thread of its own
//! * `assignment`: what that consumer has at the moment, as partitions come and go
//! * [`all`]: the same where everybody gets everything
//! * [`intake`]: the records of one partition, in order, from that thread to the task that delivers them
//! * [`tracker`]: which offset may be committed; pure
//! * [`replies`]: the reader of what receivers tell of our messages; [`murmur`] says in which partition
//! * [`topic`]: a topic as a whole, for `dead-letters`
//! * [`inspect`]: what a broker says of itself, for `check --live`
//! * [`embedded`]: a broker inside this process, for trying things out

pub mod all;
mod assignment;
pub mod client;
pub mod consumer;
pub mod embedded;
pub mod inspect;
pub mod intake;
mod link;
pub mod murmur;
pub mod producer;
pub mod properties;
pub mod record;
pub mod replies;
mod slots;
pub mod topic;
pub mod tracker;

#[cfg(test)]
mod tests;
