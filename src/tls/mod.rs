//! TLS between sidecars: who we are, who the other side must be, and the files that say so.
//!
//! Always mutual, always TLS 1.3, never a plaintext fallback. Doors ([`Acceptor`]) and ways to services ([`Connector`])
//! share one [`Identity`] for each name of `tls:`; when its files change, the next handshake uses the new ones.

mod acceptor;
mod connector;
mod identity;
mod names;
mod socket;
mod verify;

pub use acceptor::Acceptor;
pub use connector::Connector;
pub use identity::{Identity, LoadError};
pub use names::{Peer, Reason};
pub use socket::Socket;

use std::time::Duration;

/// How long a handshake may take before its connection is closed.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Application protocols that a door offers, the better one first.
const BOTH: [&[u8]; 2] = [b"h2", b"http/1.1"];
