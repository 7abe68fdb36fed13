//! What a mesh node says of itself and its surroundings: status, ping, trace.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use plexus_proto::id::{Address, Identity, NodeId};
use plexus_proto::packet::LinkWord;

use super::{Mesh, ReloadError};
use crate::config::LinkKind;
use crate::driver::Sought;
use crate::error::ConnectError;
use crate::events::EventKind;
use crate::identity::KEY_EXCHANGE;
use crate::link::LinkHandle;
use crate::local::{ActError, Answers};
use crate::node::Neighbors;
use crate::node::Progress;
use crate::port_forward::ForwardError;
use crate::probe::{Failure, Step};
use crate::status::{
    LinkFacts, LinkStatus, MeshEvents, Netcheck, NodeStatus, PacketCounts, PeerStatus, Ping, Problem,
    QueryError, Reloaded, SCHEMA_VERSION, Status, Trace, TraceHop, millis,
};
use crate::stream::MeshStream;
use crate::view::NodeView;

/// How long a status speaks of two copies of a node: while both live they are heard again every few seconds.
const CLONES_SHOWN: SignedDuration = SignedDuration::from_mins(10);

impl Mesh {
    /// Everything that this node knows of itself and the mesh, now.
    pub fn status(&self) -> Status {
        let identity = self.identity();
        let node = &self.0.node;
        let view = self.0.view.borrow().clone();
        let mut status = Status {
            schema_version: SCHEMA_VERSION,
            node: identity.node.clone(),
            role: identity.role,
            mesh: identity.mesh.clone(),
            cluster: identity.cluster.clone(),
            address: identity.address,
            software: node.software.clone(),
            certificate_expires: node.credentials.load().expires(),
            listen: self.listen_addresses(),
            peers: node.peers().iter().map(|dialed| peer(&dialed.peer, dialed.progress())).collect(),
            links: self.0.links.load().values().map(|handle| link(handle, &self.0.node.neighbors)).collect(),
            nodes: view.nodes.values().map(|known| node_status(known, identity)).collect(),
            packets: self.packets(),
            problems: Vec::new(),
        };
        let now = Timestamp::now();
        status.problems = status.find_problems(now);
        let clones = self.0.journal.latest(EventKind::CloneSuspected, now - CLONES_SHOWN);
        status.problems.splice(0..0, clones.iter().map(Problem::of_clone));
        status
    }

    /// Sends an echo request to `node`, again every 300 ms, and waits `timeout` for an answer.
    ///
    /// # Errors
    /// A node that is unknown, out of reach, or silent.
    pub async fn ping(&self, node: &NodeId, timeout: Duration) -> Result<Ping, QueryError> {
        let to = self.probe_target(node).await?;
        match self.0.probes.ping(&self.0.node.overlay, to, timeout).await {
            Ok(echoed) => Ok(Ping {
                schema_version: SCHEMA_VERSION,
                from: self.identity().node.clone(),
                node: node.clone(),
                rtt_ms: millis(echoed.rtt),
                hops: echoed.hops,
            }),
            Err(Failure::NoRoute) => Err(QueryError::Unreachable(node.clone())),
            Err(Failure::Timeout) => Err(QueryError::Timeout { node: node.clone(), timeout }),
        }
    }

    /// Finds out which nodes packets to `node` cross now. Returns as soon as all have answered, with gaps after
    /// `timeout`.
    ///
    /// # Errors
    /// A node that is unknown or out of reach, or silence all the way.
    pub async fn trace(&self, node: &NodeId, timeout: Duration) -> Result<Trace, QueryError> {
        let to = self.probe_target(node).await?;
        let traced = match self.0.probes.trace(&self.0.node.overlay, to, timeout).await {
            Ok(traced) => traced,
            Err(Failure::NoRoute) => return Err(QueryError::Unreachable(node.clone())),
            Err(Failure::Timeout) => return Err(QueryError::Timeout { node: node.clone(), timeout }),
        };
        if traced.hops.is_empty() {
            return Err(QueryError::Timeout { node: node.clone(), timeout });
        }
        self.learn_names(&traced.hops).await;
        let hops: Vec<TraceHop> = traced.hops.into_iter().map(|hop| self.trace_hop(hop)).collect();
        let error = (!traced.reached).then(|| match hops.last().and_then(|hop| hop.node.as_ref()) {
            Some(last) => format!("no answer from beyond {last}"),
            None => "no answer from beyond the last hop".to_owned(),
        });
        Ok(Trace {
            schema_version: SCHEMA_VERSION,
            from: self.identity().node.clone(),
            target: node.clone(),
            reached: traced.reached,
            hops,
            error,
        })
    }

    /// What happened after event number `after`: links, nodes and routes, as this node saw them. If nothing has happened
    /// yet, waits for it no longer than `wait`. The last thousand events are kept.
    pub async fn events(&self, after: u64, wait: Duration) -> MeshEvents {
        self.0.journal.after(after, wait, &self.identity().node).await
    }

    /// The address of a node that probes can be sent to.
    async fn probe_target(&self, node: &NodeId) -> Result<Address, QueryError> {
        if self.0.node.cancel.is_cancelled() {
            return Err(QueryError::ShuttingDown);
        }
        let known = self.find(node).await.ok_or_else(|| QueryError::UnknownNode(node.clone()))?;
        Ok(known.address)
    }

    /// Learns the names of those on the way whom a node without a map does not know.
    async fn learn_names(&self, steps: &[Step]) {
        let directory = self.0.directory.load_full();
        let strangers = steps.iter().filter_map(|step| step.answer).map(|(address, _)| address);
        let strangers = strangers.filter(|address| directory.by_address(*address).is_none());
        let asked = strangers.map(|address| self.look_up(Sought::Address(address)));
        futures_util::future::join_all(asked).await;
    }

    fn trace_hop(&self, step: Step) -> TraceHop {
        let directory = self.0.directory.load();
        let address = step.answer.map(|(address, _)| address);
        // Of our own links we know ourselves; of the others the answers tell.
        let own = self
            .0
            .links
            .load()
            .values()
            .find(|link| Some(link.neighbor.address) == address)
            .map(|handle| link(handle, &self.0.node.neighbors));
        let own = own.filter(|_| step.limit == 1).map(|link| (link.more.kind, link.more.mtu));
        let told = step.note.map(|note| {
            let kind = match note.kind {
                LinkWord::Quic => LinkKind::Quic,
                LinkWord::Sealed => LinkKind::Sealed,
                LinkWord::Tcp => LinkKind::Tcp,
            };
            (Some(kind.to_string()), note.mtu.map(u32::from))
        });
        let (kind, mtu) = own.or(told).unwrap_or_default();
        TraceHop {
            node: address.and_then(|address| Some(directory.by_address(address)?.node.clone())),
            address,
            rtt_ms: step.answer.map(|(_, rtt)| millis(rtt)),
            sent: step.sent,
            answered: step.answered,
            kind,
            mtu,
        }
    }

    fn packets(&self) -> PacketCounts {
        let overlay = &self.0.node.overlay;
        PacketCounts {
            forwarded: overlay.forwarded.value(),
            malformed: overlay.drops.malformed.value(),
            forged: overlay.drops.forged.value(),
            unroutable: overlay.drops.unroutable.value(),
            expired: overlay.drops.expired.value(),
            unwanted: overlay.drops.unwanted.value(),
            refused: overlay.drops.refused.value(),
            congested: self.0.links.load().values().map(|link| link.egress.dropped.value()).sum(),
        }
    }
}

impl Answers for Mesh {
    fn status(&self) -> Status {
        Self::status(self)
    }

    async fn ping(&self, node: NodeId, timeout: Duration) -> Result<Ping, QueryError> {
        Self::ping(self, &node, timeout).await
    }

    async fn trace(&self, node: NodeId, timeout: Duration) -> Result<Trace, QueryError> {
        Self::trace(self, &node, timeout).await
    }

    async fn reload(&self) -> Result<Reloaded, ActError> {
        let report = self.reload_again().await.map_err(|error| match error {
            ReloadError::NoSource => ActError::NotOffered("reload"),
            refused => ActError::Refused(crate::error::chain(&refused)),
        })?;
        Ok(Reloaded { schema_version: SCHEMA_VERSION, changed: report.lines(), needs_restart: Vec::new() })
    }

    async fn events(&self, after: u64, wait: Duration) -> Result<MeshEvents, ActError> {
        Ok(Self::events(self, after, wait).await)
    }

    async fn netcheck(&self, from: Option<NodeId>, to: NodeId) -> Result<Netcheck, ActError> {
        Self::netcheck(self, from, to).await
    }

    async fn forward(&self, node: NodeId, target: String, check: bool) -> Result<MeshStream, ActError> {
        Self::forward(self, &node, &target, check).await.map_err(|error| match error {
            ForwardError::Connect(ConnectError::Unknown { node }) => QueryError::UnknownNode(node).into(),
            ForwardError::Connect(ConnectError::Unreachable { node }) => QueryError::Unreachable(node).into(),
            ForwardError::Connect(ConnectError::ShuttingDown) => QueryError::ShuttingDown.into(),
            ForwardError::Connect(ConnectError::Myself { .. }) => ActError::Invalid(error.to_string()),
            ForwardError::NotOffered(_) | ForwardError::Denied { .. } => ActError::Denied(error.to_string()),
            _ => ActError::Failed(error.to_string()),
        })
    }
}

fn peer(peer: &crate::Peer, (progress, since): (Progress, Timestamp)) -> PeerStatus {
    let (node, linked, error) = match progress {
        Progress::Begun => (peer.name.clone(), false, None),
        Progress::Linked(node) => (Some(node), true, None),
        Progress::Failed(error) => (peer.name.clone(), false, Some(error)),
    };
    PeerStatus { address: peer.label().to_owned(), node, linked, error, since: Some(since) }
}

fn link(link: &LinkHandle, neighbors: &Neighbors) -> LinkStatus {
    LinkStatus {
        peer: link.neighbor.node.clone(),
        role: link.neighbor.role,
        address: link.neighbor.address,
        remote: link.remote_address(),
        dialed: link.dialed,
        cost: link.cost,
        rtt_ms: millis(link.rtt()),
        software: link.software.clone(),
        since: link.since,
        more: LinkFacts {
            kind: Some(link.kind().to_string()),
            mtu: link.mtu().and_then(|mtu| mtu.try_into().ok()),
            loss: link.lost(),
            // Nothing else is offered or taken.
            key_exchange: KEY_EXCHANGE.as_str().map(str::to_owned),
            clock_skew_ms: link.skew.millis(),
            certificate_expires: Some(link.expires),
            bandwidth: link.bandwidth,
            last_error: neighbors.last_loss(&link.neighbor.node),
        },
    }
}

fn node_status(known: &NodeView, this: &Identity) -> NodeStatus {
    NodeStatus {
        node: known.identity.node.clone(),
        role: known.identity.role,
        cluster: known.identity.cluster.clone(),
        address: known.identity.address,
        this: known.identity == *this,
        reachable: known.reachable,
        cost: known.cost,
        hops: known.hops,
        next_hop: known.next_hop.clone(),
        software: known.software.clone(),
        since: known.since,
        neighbors: known.neighbors.clone(),
        backup_next_hop: None,
        backup_cost: None,
    }
}
