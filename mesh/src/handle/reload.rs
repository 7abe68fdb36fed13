//! New settings for a running node.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Mesh;
use crate::config::{Config, Peer};
use crate::driver::Event;
use crate::endpoint::Door;
use crate::error::StartError;
use crate::link::accept::{accept_quic, accept_tcp};
use crate::link::code;
use crate::link::dial::keep_linked;
use crate::node::{Dialed, Node};

/// What a reload changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadReport {
    /// Addresses that are listened on since.
    pub listening: Vec<SocketAddr>,
    /// Addresses that are listened on no more.
    pub closed: Vec<SocketAddr>,
    /// Peers that are dialed since, by their first address; one whose settings changed is in both lists.
    pub added: Vec<String>,
    /// Peers that are dialed no more.
    pub removed: Vec<String>,
    /// Whether certificates or trusted roots are others.
    pub credentials: bool,
}

impl ReloadReport {
    /// What changed, one line each.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        lines.extend(self.listening.iter().map(|address| format!("listening on {address}")));
        lines.extend(self.closed.iter().map(|address| format!("no longer listening on {address}")));
        lines.extend(self.added.iter().map(|peer| format!("dialing {peer}")));
        lines.extend(self.removed.iter().map(|peer| format!("no longer dialing {peer}")));
        lines.extend(self.credentials.then(|| "new certificates".to_owned()));
        lines
    }

    /// Whether everything was so already.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for ReloadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() { f.write_str("nothing changed") } else { f.write_str(&self.lines().join("; ")) }
    }
}

/// Settings that a running node cannot take; it goes on with those it has.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The certificate names another node.
    #[error("certificate is of {found}, this node is {own}; another identity needs a restart")]
    Identity {
        /// What the certificate says.
        found: String,
        /// Who runs.
        own: String,
    },
    /// A setting that only a start can change.
    #[error("{0} can only be changed by a restart")]
    NeedsRestart(&'static str),
    /// An address to listen on that cannot be had.
    #[error("cannot take new listeners")]
    Listen(#[source] StartError),
    /// The new settings cannot be read, or make no sense; the text says which and why.
    #[error("{0}")]
    Source(String),
    /// Nobody has said where new settings come from.
    #[error("this daemon has no configuration to read again")]
    NoSource,
    /// This mesh is shutting down.
    #[error("mesh is shutting down")]
    ShuttingDown,
}

/// Reads settings anew, and says in words why that fails.
pub(super) type Source = Box<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// Where new settings come from.
#[derive(Default)]
pub(super) struct Sources(OnceLock<Source>);

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

impl Mesh {
    /// Says where [`reload_again`](Self::reload_again) and the local door read new settings; once, the first one counts.
    pub fn reload_from(&self, source: impl Fn() -> Result<Config, String> + Send + Sync + 'static) {
        let _ = self.0.sources.0.set(Box::new(source));
    }

    /// Reads settings anew and [`reload`](Self::reload)s them.
    ///
    /// # Errors
    /// As `reload`, and what the source says.
    pub async fn reload_again(&self) -> Result<ReloadReport, ReloadError> {
        let source = self.0.sources.0.get().ok_or(ReloadError::NoSource)?;
        self.reload(source().map_err(ReloadError::Source)?).await
    }

    /// Reloads at each signal, until the stream of signals ends, and logs what came of it.
    pub async fn reload_at(&self, mut signals: tokio::signal::unix::Signal) {
        while signals.recv().await.is_some() {
            // What changed is logged by the reload.
            if let Err(error) = self.reload_again().await {
                warn!(error = &error as &dyn std::error::Error, "settings not reloaded, the old ones stay");
            }
        }
    }

    /// Takes new peers, listeners and certificates, all of them or none. What did not change is not touched: its links
    /// stay up, whatever certificate they were made with. Returns what changed.
    ///
    /// # Errors
    /// See [`ReloadError`]; nothing has changed then.
    pub async fn reload(&self, config: Config) -> Result<ReloadReport, ReloadError> {
        let handle = &self.0;
        let node = &handle.node;
        // One at a time; the guard also holds what only a start can change.
        let fixed = handle.fixed.lock().await;
        if node.cancel.is_cancelled() {
            return Err(ReloadError::ShuttingDown);
        }
        let identity = config.credentials.identity();
        if *identity != node.identity {
            return Err(ReloadError::Identity { found: identity.uri(), own: node.identity.uri() });
        }
        fixed.check(&config)?;

        let mut report = ReloadReport::default();
        let asked = node.endpoints.asked();
        let mut doors = Vec::new();
        for &address in config.listen.iter().filter(|address| !asked.contains(address)) {
            let closed = node.cancel.child_token();
            doors.push(node.endpoints.bind(address, closed).await.map_err(ReloadError::Listen)?);
        }

        // Nothing fails from here on.
        if !config.credentials.is_same(&node.credentials.load()) {
            report.credentials = true;
            if node.credentials.load().take_over(&config.credentials) {
                node.driver.send(Event::Renewed).await;
            } else {
                // Another key: everybody gets the new credentials, which know of the same revocations.
                config.credentials.verifier().revoke((*node.verifier().revoked()).clone());
                node.endpoints.renew(&config.credentials);
                handle.sessions.renew(&config.credentials);
                node.front.renewed(&config.credentials);
                node.driver.send(Event::Credentials(Box::new(config.credentials.clone()))).await;
                node.credentials.store(Arc::new(config.credentials));
            }
        }
        handle.services.go_by(config.policy);
        for door in doors {
            report.listening.push(door.bound);
            open(node, door);
        }
        for address in asked.into_iter().filter(|address| !config.listen.contains(address)) {
            node.endpoints.shut(address, code::REMOVED, b"listener is closed");
            report.closed.push(address);
        }
        self.change_peers(config.peers, &mut report);
        info!(%report, "settings reloaded");
        Ok(report)
    }

    fn change_peers(&self, mut wanted: Vec<Peer>, report: &mut ReloadReport) {
        let node = &self.0.node;
        let mut dialed = node.dialed.lock().expect("no code panics under this lock");
        dialed.retain(|known| {
            if let Some(index) = wanted.iter().position(|peer| *peer == known.peer) {
                wanted.swap_remove(index);
                return true;
            }
            report.removed.push(known.peer.label().to_owned());
            known.cancel.cancel();
            false
        });
        for peer in wanted {
            report.added.push(peer.label().to_owned());
            dialed.push(dial(node, peer));
        }
    }
}

/// Begins to dial `peer`.
pub(super) fn dial(node: &Arc<Node>, peer: Peer) -> Arc<Dialed> {
    let dialed = Arc::new(Dialed::new(peer, node.cancel.child_token()));
    node.tasks.spawn(keep_linked(node.clone(), dialed.clone()));
    dialed
}

/// Begins to accept at `door`.
pub(super) fn open(node: &Arc<Node>, door: Door) {
    let closed: &CancellationToken = &door.closed;
    if let Some(udp) = &door.udp {
        node.tasks.spawn(accept_quic(node.clone(), udp.endpoint.clone(), udp.socket.clone(), closed.clone()));
    }
    if let Some(listener) = &door.tcp {
        node.tasks.spawn(accept_tcp(node.clone(), listener.clone(), closed.clone()));
    }
    node.endpoints.open(door);
}

/// What only a start can change.
#[derive(Debug)]
pub(super) struct Fixed {
    kinds: Vec<crate::config::LinkKind>,
    mtu: u16,
    state_dir: std::path::PathBuf,
}

impl Fixed {
    pub(super) fn of(config: &Config) -> Self {
        Self { kinds: config.kinds.clone(), mtu: config.mtu, state_dir: config.state_dir.clone() }
    }

    fn check(&self, config: &Config) -> Result<(), ReloadError> {
        let changed = [
            ("mesh.kinds", self.kinds != config.kinds),
            ("mesh.mtu", self.mtu != config.mtu),
            ("the state folder", self.state_dir != config.state_dir),
        ];
        changed
            .into_iter()
            .find(|(_, changed)| *changed)
            .map_or(Ok(()), |(what, _)| Err(ReloadError::NeedsRestart(what)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_as_a_sentence() {
        let mut report = ReloadReport::default();
        assert_eq!((report.to_string().as_str(), report.is_empty()), ("nothing changed", true));
        report.listening.push("127.0.0.1:7323".parse().unwrap());
        report.removed.push("hop-2:7323".to_owned());
        report.credentials = true;
        let text = "listening on 127.0.0.1:7323; no longer dialing hop-2:7323; new certificates";
        assert_eq!((report.to_string().as_str(), report.is_empty()), (text, false));
    }
}
