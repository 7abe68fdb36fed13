//! What UDP, TCP and the packet size do between two nodes, whether they are linked or not.
//!
//! Every node offers the service `netcheck` to the controllers of its cluster: it says where it listens and whom it
//! knows at which address, and it tries addresses that it is given. A QUIC endpoint answers a packet of a version that
//! nobody speaks with those it speaks, without a connection and without keys; so the ordinary listener is all that a
//! try needs, and packets of any size with fragmentation forbidden find the size that the path carries.

mod tries;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use plexus_proto::id::{NodeId, Role};
use plexus_proto::packet::Class;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::debug;

use crate::Mesh;
use crate::local::ActError;
use crate::service::{Allow, Listener};
use crate::status::{Netcheck, PathCheck, QueryError, SCHEMA_VERSION};
use crate::stream::MeshStream;

/// Name of the service.
const SERVICE: &str = "netcheck";
/// Controllers may have nodes try addresses; others would have a scanner.
const ASKERS: Allow = Allow { roles: &[Role::Controller], same_cluster: true };
/// Longest question and answer.
const MESSAGE_MAX: u64 = 64 * 1024;
/// Longest wait for another node's answer: its tries take a few seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(25);
/// Addresses tried in one go.
const ADDRESSES_MAX: usize = 16;
/// Least IP packet that a link needs: QUIC's 1200 bytes for the inner packet, our headers and those of the link, UDP
/// and IPv6.
const MTU_FLOOR: u32 = 1200 + 10 + 38 + 8 + 40;

/// What a controller asks, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Question {
    /// Where you listen, and where you know whom.
    Describe,
    /// What comes of these addresses, `host:port` each.
    Try(Vec<String>),
}

/// What a node says of addresses.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Description {
    /// Its own, with those of its machine in place of unspecified ones.
    listens: Vec<String>,
    /// Where it reaches others, or tries to.
    knows: Vec<(NodeId, String)>,
}

impl Mesh {
    /// Finds out what UDP and TCP do from `from`, or this node, to `to`. Other nodes do this for controllers of their
    /// cluster only.
    ///
    /// # Errors
    /// Nodes that are unknown, out of reach, or do not answer this node.
    pub async fn netcheck(&self, from: Option<NodeId>, to: NodeId) -> Result<Netcheck, ActError> {
        let us = self.identity().node.clone();
        let from = from.unwrap_or_else(|| us.clone());
        if from == to {
            return Err(ActError::Invalid(format!("{from} reaches itself without a network")));
        }
        let mut addresses = self.known_addresses(&to);
        // The target itself knows best, if it can be reached and we may ask; whoever tries knows where it dials.
        for node in [&to, &from] {
            match self.describe(node).await {
                Ok(said) if *node == to => addresses.extend(said.listens),
                Ok(said) => {
                    addresses
                        .extend(said.knows.into_iter().filter(|(node, _)| *node == to).map(|(_, at)| at));
                }
                Err(ActError::Query(QueryError::UnknownNode(node))) => {
                    return Err(QueryError::UnknownNode(node).into());
                }
                Err(error) => debug!(%node, error = &error as &dyn std::error::Error, "no description"),
            }
        }
        addresses.retain(|address| !address.is_empty());
        let addresses: Vec<String> = addresses.into_iter().take(ADDRESSES_MAX).collect();
        let paths = if addresses.is_empty() {
            Vec::new()
        } else if from == us {
            tries::all(&addresses).await
        } else {
            self.question(&from, &Question::Try(addresses)).await?
        };
        let findings = findings(&from, &to, &paths);
        Ok(Netcheck { schema_version: SCHEMA_VERSION, from, to, paths, findings })
    }

    /// Where this node itself reaches or dials `node`.
    fn known_addresses(&self, node: &NodeId) -> BTreeSet<String> {
        let said = describe(self);
        said.knows.into_iter().filter(|(known, _)| known == node).map(|(_, address)| address).collect()
    }

    async fn describe(&self, node: &NodeId) -> Result<Description, ActError> {
        if *node == self.identity().node {
            return Ok(describe(self));
        }
        self.question(node, &Question::Describe).await
    }

    async fn question<A: for<'de> Deserialize<'de>>(
        &self,
        node: &NodeId,
        question: &Question,
    ) -> Result<A, ActError> {
        let failed = |text: String| ActError::Failed(format!("node {node} was asked in vain: {text}"));
        let ask = async {
            let mut stream =
                self.connect(node, SERVICE, Class::Control).await.map_err(|error| match error {
                    crate::ConnectError::Unknown { node } => QueryError::UnknownNode(node).into(),
                    crate::ConnectError::Unreachable { node } => QueryError::Unreachable(node).into(),
                    error => failed(error.to_string()),
                })?;
            let json = serde_json::to_vec(question).map_err(|error| failed(error.to_string()))?;
            let exchange = async {
                stream.write_all(&json).await?;
                stream.shutdown().await?;
                let mut answer = Vec::new();
                (&mut stream).take(MESSAGE_MAX).read_to_end(&mut answer).await?;
                std::io::Result::Ok(answer)
            };
            let answer = exchange.await.map_err(|error| failed(error.to_string()))?;
            serde_json::from_slice(&answer).map_err(|error| failed(error.to_string()))
        };
        let timeout = QueryError::Timeout { node: node.clone(), timeout: ANSWER_TIMEOUT };
        tokio::time::timeout(ANSWER_TIMEOUT, ask).await.unwrap_or(Err(timeout.into()))
    }
}

/// Answers controllers until the mesh ends. `describe` says what is known now.
pub(crate) async fn serve(
    mut listener: Listener,
    describe: impl Fn() -> Option<Mesh> + Send + Sync + 'static,
) {
    let describe = Arc::new(describe);
    let mut answers = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = listener.accept() => stream,
            Some(_) = answers.join_next() => continue,
        };
        let Some(stream) = stream else { return answers.shutdown().await };
        let mesh = describe();
        answers.spawn(async move {
            let Some(mesh) = mesh else { return };
            let peer = stream.peer().node.clone();
            match tokio::time::timeout(ANSWER_TIMEOUT, answer(stream, mesh)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%peer, %error, "netcheck not answered"),
                Err(_) => debug!(%peer, "netcheck took too long"),
            }
        });
    }
}

/// Offers the service; the task that answers holds no mesh, for a mesh ends when its last holder is gone.
pub(crate) fn listen(mesh: &Mesh) -> Result<Listener, crate::ListenError> {
    mesh.listen(SERVICE, ASKERS)
}

async fn answer(mut stream: MeshStream, mesh: Mesh) -> std::io::Result<()> {
    let mut question = Vec::new();
    (&mut stream).take(MESSAGE_MAX).read_to_end(&mut question).await?;
    let answer = match serde_json::from_slice(&question)? {
        Question::Describe => {
            let said = describe(&mesh);
            // Tries take seconds; the mesh is not to live on for them.
            drop(mesh);
            serde_json::to_vec(&said)?
        }
        Question::Try(mut addresses) => {
            drop(mesh);
            addresses.truncate(ADDRESSES_MAX);
            serde_json::to_vec(&tries::all(&addresses).await)?
        }
    };
    stream.write_all(&answer).await?;
    stream.shutdown().await
}

fn describe(mesh: &Mesh) -> Description {
    let status = mesh.status();
    let listens = status.listen.iter().flat_map(reachable_as).map(|address| address.to_string()).collect();
    let dialed = status.peers.iter().filter_map(|peer| Some((peer.node.clone()?, peer.address.clone())));
    let live = status.links.iter().filter(|link| link.dialed);
    let live = live.map(|link| (link.peer.clone(), link.remote.to_string()));
    Description { listens, knows: dialed.chain(live).collect() }
}

/// Addresses that others might reach a listener at: the machine's own in place of an unspecified one. Connecting a UDP
/// socket sends nothing, and tells which address the system would send from.
fn reachable_as(listen: &SocketAddr) -> Vec<SocketAddr> {
    if !listen.ip().is_unspecified() {
        return vec![*listen];
    }
    let own = |bind: &str, to: &str| {
        let socket = UdpSocket::bind(bind).ok()?;
        socket.connect(to).ok()?;
        let own = socket.local_addr().ok()?.ip();
        (!own.is_unspecified()).then_some(own)
    };
    // Documentation addresses: nobody is there, but the way out is the usual one.
    let v4 = own("0.0.0.0:0", "192.0.2.1:9");
    let v6 = listen.is_ipv6().then(|| own("[::]:0", "[2001:db8::1]:9")).flatten();
    let found: Vec<IpAddr> = v4.into_iter().chain(v6).collect();
    found.into_iter().map(|ip| SocketAddr::new(ip, listen.port())).collect()
}

/// What follows from the tries, for people.
fn findings(from: &NodeId, to: &NodeId, paths: &[PathCheck]) -> Vec<String> {
    if paths.is_empty() {
        return vec![format!(
            "no address of {to} is known: it listens nowhere, or cannot be asked. If it only dials, check the other way: \
             plexus netcheck {to} {from}"
        )];
    }
    let mut found = Vec::new();
    let udp = |path: &&PathCheck| path.udp.as_ref().is_some_and(|udp| udp.reachable);
    let tcp = |path: &&PathCheck| path.tcp.as_ref().is_some_and(|tcp| tcp.reachable);
    let lossless = |path: &&PathCheck| path.udp.as_ref().is_some_and(|udp| udp.loss <= 0.0);
    if let Some(path) = paths.iter().filter(udp).find(lossless).or_else(|| paths.iter().find(udp)) {
        found.push(format!("UDP works at {}: links between both can use it", path.address));
    } else if let Some(path) = paths.iter().find(tcp) {
        found.push(format!(
            "UDP is blocked, TCP works at {}: links use TCP, which is slower under loss. To have UDP, let it pass to \
             that port",
            path.address
        ));
    } else {
        found.push(format!(
            "neither UDP nor TCP gets an answer from {to}: see that it runs and listens there, and what firewalls on \
             the way let pass; or have {to} dial {from} instead"
        ));
    }
    for path in paths {
        let Some(udp) = path.udp.as_ref().filter(|udp| udp.reachable) else { continue };
        if let Some(mtu) = udp.mtu.filter(|&mtu| mtu < MTU_FLOOR) {
            found.push(format!(
                "the path to {} carries packets of {mtu} bytes at most; QUIC links need {MTU_FLOOR}, so TCP is used",
                path.address
            ));
        }
        if udp.loss > 0.0 {
            found.push(format!("of UDP packets to {}, {:.0} % are lost", path.address, udp.loss * 100.0));
        }
    }
    if paths.iter().any(|path| path.resolved.is_none()) {
        let names: Vec<_> =
            paths.iter().filter(|path| path.resolved.is_none()).map(|path| path.address.as_str()).collect();
        found.push(format!("{} does not resolve at {from}", names.join(", ")));
    }
    found
}

/// What comes of bytes in place of a question, a node's answers, and what a stranger answers to a try: for fuzzing.
#[cfg(any(test, feature = "testing"))]
pub(crate) mod decoders {
    use super::{Description, PathCheck, Question, findings, tries};

    /// See the module.
    pub fn netcheck(data: &[u8]) {
        let _ = tries::answers(data);
        let _ = serde_json::from_slice::<Question>(data);
        let _ = serde_json::from_slice::<Description>(data);
        if let Ok(paths) = serde_json::from_slice::<Vec<PathCheck>>(data) {
            let name = |name: &str| name.parse().expect("a valid name");
            assert!(!findings(&name("a"), &name("b"), &paths).is_empty(), "people are told something");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{TcpCheck, UdpCheck};

    fn path(udp: Option<(f64, u32)>, tcp: bool) -> PathCheck {
        let udp = UdpCheck {
            reachable: udp.is_some(),
            rtt_ms: udp.map(|_| 1.0),
            loss: udp.map_or(1.0, |(loss, _)| loss),
            mtu: udp.map(|(_, mtu)| mtu),
            error: None,
        };
        let tcp = TcpCheck { reachable: tcp, rtt_ms: None, error: None };
        PathCheck {
            address: "h:1".into(),
            resolved: Some("192.0.2.1:1".into()),
            udp: Some(udp),
            tcp: Some(tcp),
        }
    }

    fn check(paths: &[PathCheck], expected: &[&str]) {
        let found = findings(&"a".parse().unwrap(), &"b".parse().unwrap(), paths);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
    }

    #[test]
    fn findings_say_what_follows() {
        check(&[], &["no address of b is known"]);
        check(&[path(Some((0.0, 1500)), true)], &["UDP works at h:1"]);
        check(&[path(None, true)], &["UDP is blocked, TCP works at h:1"]);
        check(&[path(None, false)], &["neither UDP nor TCP"]);
        check(
            &[path(Some((0.25, 1280)), true)],
            &[
                "UDP works",
                "the path to h:1 carries packets of 1280 bytes at most",
                "of UDP packets to h:1, 25 % are lost",
            ],
        );
        let nowhere = PathCheck { resolved: None, udp: None, tcp: None, ..path(None, false) };
        check(&[nowhere], &["neither UDP nor TCP", "h:1 does not resolve at a"]);
    }

    #[test]
    fn unspecified_listeners_are_the_machine_s_own() {
        let exact: SocketAddr = "192.0.2.7:7323".parse().unwrap();
        assert_eq!(reachable_as(&exact), [exact]);
        for address in reachable_as(&"[::]:7323".parse().unwrap()) {
            assert!(!address.ip().is_unspecified() && address.port() == 7323, "{address}");
        }
    }
}
