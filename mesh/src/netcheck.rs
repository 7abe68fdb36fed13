//! What UDP, TCP and the packet size do between two nodes, whether they are linked or not.
//!
//! Every node offers the service `netcheck` to the controllers of its cluster: it says where it listens and whom it
//! knows at which address, and it tries addresses that it is given. A QUIC endpoint answers a packet of a version that
//! nobody speaks with those it speaks, without a connection and without keys; so the ordinary listener is all that a
//! try needs, and packets of any size with fragmentation forbidden find the size that the path carries.

mod tries;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
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
use crate::settings::{PACKET_FLOOR, SEALED_FLOOR};
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
/// Least UDP payload on which QUIC runs, and so the least for a link on UDP (RFC 9000, 14.1).
const LEAST: u32 = 1200;
/// Least UDP payload in which the least overlay packet fits sealed.
const SEALED: u32 = SEALED_FLOOR as u32;
/// The same as one DATAGRAM, whose frame, packet number, connection id and tag take 38 bytes.
const WHOLE: u32 = PACKET_FLOOR as u32 + 38;

/// Bytes of UDP's header and that of IP.
fn headers(to: SocketAddr) -> u32 {
    if to.is_ipv4() { 8 + 20 } else { 8 + 40 }
}

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
        // QUIC answers no smaller packet, so nobody can tell the one from the other here.
        let least = LEAST + own_headers(path);
        found.push(format!(
            "UDP gets no answer at {}, TCP does: links use TCP, which is slower under loss. Either UDP is blocked, and \
             should be let pass to that port, or the path carries no packets of {least} bytes, the least that links on \
             UDP need",
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
        found.extend(udp.mtu.and_then(|mtu| narrow(path, mtu)));
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

/// Headers of what goes to the address of `path`.
fn own_headers(path: &PathCheck) -> u32 {
    let resolved = path.resolved.as_ref().and_then(|resolved| resolved.parse().ok());
    headers(resolved.unwrap_or_else(|| (Ipv6Addr::UNSPECIFIED, 0).into()))
}

/// What it means that IP packets of `mtu` bytes pass and no larger ones of those that were tried; none where whatever a
/// link has to carry fits.
fn narrow(path: &PathCheck, mtu: u32) -> Option<String> {
    let (headers, address) = (own_headers(path), &path.address);
    let (least, sealed, whole) = (LEAST + headers, SEALED + headers, WHOLE + headers);
    if mtu < least {
        Some(format!(
            "the path to {address} carries packets of {mtu} bytes; links on UDP need {least}, so TCP is used"
        ))
    } else if mtu < sealed {
        Some(format!(
            "the path to {address} carries packets of {mtu} bytes and none of {sealed}: links on UDP work, and send \
             full packets as two halves"
        ))
    } else if mtu < whole {
        Some(format!(
            "the path to {address} carries packets of {mtu} bytes and none of {whole}: full packets fit sealed; a link \
             that is not sealed sends them as two halves"
        ))
    } else {
        None
    }
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
        assert_eq!(found, expected);
    }

    const WORKS: &str = "UDP works at h:1: links between both can use it";
    const NOTHING: &str = "neither UDP nor TCP gets an answer from b: see that it runs and listens there, and what firewalls \
                           on the way let pass; or have b dial a instead";

    #[test]
    fn findings_say_what_follows() {
        check(
            &[],
            &[
                "no address of b is known: it listens nowhere, or cannot be asked. If it only dials, check the other way: \
               plexus netcheck b a",
            ],
        );
        check(&[path(Some((0.0, 1500)), true)], &[WORKS]);
        check(
            &[path(None, true)],
            &[
                "UDP gets no answer at h:1, TCP does: links use TCP, which is slower under loss. Either UDP is blocked, \
               and should be let pass to that port, or the path carries no packets of 1228 bytes, the least that \
               links on UDP need",
            ],
        );
        check(&[path(None, false)], &[NOTHING]);
        check(&[path(Some((0.25, 1500)), true)], &[WORKS, "of UDP packets to h:1, 25 % are lost"]);
        let nowhere = PathCheck { resolved: None, udp: None, tcp: None, ..path(None, false) };
        check(&[nowhere], &[NOTHING, "h:1 does not resolve at a"]);
    }

    /// The bounds are those of links: see `narrow` among the tests of the overlay.
    #[test]
    fn each_narrow_path_is_told_for_what_it_is() {
        let at = |resolved: &str, mtu| PathCheck {
            resolved: Some(resolved.into()),
            ..path(Some((0.0, mtu)), true)
        };
        let halves = |mtu: u32, sealed: u32| {
            format!(
                "the path to h:1 carries packets of {mtu} bytes and none of {sealed}: links on UDP work, and send full \
                 packets as two halves"
            )
        };
        let fits_sealed = |mtu: u32, whole: u32| {
            format!(
                "the path to h:1 carries packets of {mtu} bytes and none of {whole}: full packets fit sealed; a link \
                 that is not sealed sends them as two halves"
            )
        };
        let tcp = |mtu: u32, least: u32| {
            format!(
                "the path to h:1 carries packets of {mtu} bytes; links on UDP need {least}, so TCP is used"
            )
        };
        for (resolved, bounds) in
            [("192.0.2.1:1", [1228, 1258, 1276]), ("[2001:db8::1]:1", [1248, 1278, 1296])]
        {
            let [least, sealed, whole] = bounds;
            for (mtu, wanted) in [
                (least - 1, Some(tcp(least - 1, least))),
                (least, Some(halves(least, sealed))),
                (sealed - 1, Some(halves(sealed - 1, sealed))),
                (sealed, Some(fits_sealed(sealed, whole))),
                (whole - 1, Some(fits_sealed(whole - 1, whole))),
                (whole, None),
                (9000, None),
            ] {
                let wanted: Vec<&str> = [WORKS].into_iter().chain(wanted.as_deref()).collect();
                check(&[at(resolved, mtu)], &wanted);
            }
        }
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
