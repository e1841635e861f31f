//! What an app may know of its peers: which addresses are up, since when, and why not.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;

use super::Upstream;

/// Tells whoever listens that some address went up or down. It carries no content: a listener looks for itself, so that
/// a slow one misses nothing and holds up nobody.
#[derive(Debug, Clone)]
pub struct Changes(Arc<watch::Sender<bool>>);

impl Changes {
    /// Starts with no listener.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Tells of a change.
    pub fn tell(&self) {
        self.0.send_modify(|_| {});
    }

    /// Tells that this was all: whoever listens shall stop.
    pub fn end(&self) {
        self.0.send_replace(true);
    }

    /// Listens from now on; the value says whether that is over.
    pub fn listen(&self) -> watch::Receiver<bool> {
        self.0.subscribe()
    }
}

impl Default for Changes {
    fn default() -> Self {
        Self::new()
    }
}

/// One address, as it stands now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerState {
    /// The service's name.
    pub service: String,
    /// The address.
    pub address: String,
    /// Whether calls go there.
    pub up: bool,
    /// Seconds of Unix time.
    pub since: u64,
    /// Why it is not up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl PeerState {
    /// What is left to say of an address that is not among `now` any more; `None` for one that is.
    pub fn gone(&self, now: &[Self]) -> Option<Self> {
        let same = |one: &Self| (&one.service, &one.address) == (&self.service, &self.address);
        (!now.iter().any(same)).then(|| Self {
            up: false,
            since: super::endpoint::unix_seconds(),
            why: Some("it is no address of the service any more".to_owned()),
            ..self.clone()
        })
    }
}

impl Upstream {
    /// Every address, as it stands now.
    pub fn states(&self) -> Vec<PeerState> {
        let endpoints = self.endpoints();
        let state = |endpoint: &Arc<super::Endpoint>| PeerState {
            service: self.name.clone(),
            address: endpoint.address.to_string(),
            up: endpoint.is_up(),
            since: endpoint.since(),
            why: (!endpoint.is_up()).then(|| endpoint.why()),
        };
        endpoints.iter().map(state).collect()
    }
}
