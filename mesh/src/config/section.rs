//! The section `[mesh]` that the configuration files of all daemons have in common.

use std::net::SocketAddr;

use plexus_proto::id::NodeId;
use serde::Deserialize;

use super::{DEFAULT_COST, DEFAULT_MTU, LinkKind, MTU_MIN, Peer};

/// Who may call, and whom to call.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeshSection {
    /// Addresses to listen on, UDP and TCP. Empty: this node only dials.
    pub listen: Vec<SocketAddr>,
    /// Kinds of link to take part in.
    pub kinds: Vec<LinkKind>,
    /// Largest UDP payload to try, in bytes.
    pub mtu: u16,
    /// Neighbours to dial.
    pub peers: Vec<PeerSection>,
}

impl Default for MeshSection {
    fn default() -> Self {
        Self { listen: Vec::new(), kinds: LinkKind::ALL.to_vec(), mtu: DEFAULT_MTU, peers: Vec::new() }
    }
}

/// A neighbour to dial.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSection {
    /// `host:port`.
    #[serde(default)]
    pub address: Option<String>,
    /// More of them, in order of preference, where the neighbour has several.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Whom to expect there; anyone certified when left out.
    #[serde(default)]
    pub name: Option<NodeId>,
    /// Cost of the link.
    #[serde(default = "default_cost")]
    pub cost: u32,
    /// Most that may be sent on the link, in Mbit/s.
    #[serde(default)]
    pub bandwidth_mbit: Option<u32>,
    /// Kinds of link to try.
    #[serde(default = "every_kind")]
    pub kinds: Vec<LinkKind>,
    /// `host:port` of an HTTP proxy for links of kind `tcp`.
    #[serde(default)]
    pub proxy: Option<String>,
}

fn default_cost() -> u32 {
    DEFAULT_COST
}

fn every_kind() -> Vec<LinkKind> {
    LinkKind::ALL.to_vec()
}

impl MeshSection {
    /// Finds what cannot work: the key, and what is wrong with its value.
    ///
    /// # Errors
    /// The first such value.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        check_kinds("mesh.kinds", &self.kinds)?;
        if self.mtu < MTU_MIN {
            return Err(("mesh.mtu", format!("must be at least {MTU_MIN}, which QUIC needs")));
        }
        self.peers.iter().try_for_each(PeerSection::check)
    }

    /// The neighbours, as the mesh takes them.
    pub fn peers(&self) -> Vec<Peer> {
        self.peers.iter().map(PeerSection::peer).collect()
    }
}

impl PeerSection {
    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.address.is_none() && self.addresses.is_empty() {
            return Err(("mesh.peers.address", "is missing".to_owned()));
        }
        for address in self.address.iter().chain(&self.addresses) {
            check_address("mesh.peers.address", address)?;
        }
        if let Some(proxy) = &self.proxy {
            check_address("mesh.peers.proxy", proxy)?;
            if !self.kinds.contains(&LinkKind::Tcp) {
                return Err(("mesh.peers.proxy", "is for kind \"tcp\", which kinds leaves out".to_owned()));
            }
        }
        if self.cost == 0 {
            return Err(("mesh.peers.cost", "must be at least 1".to_owned()));
        }
        if self.bandwidth_mbit == Some(0) {
            return Err(("mesh.peers.bandwidth_mbit", "must be at least 1".to_owned()));
        }
        check_kinds("mesh.peers.kinds", &self.kinds)
    }

    fn peer(&self) -> Peer {
        Peer {
            addresses: self.address.iter().chain(&self.addresses).cloned().collect(),
            name: self.name.clone(),
            cost: self.cost,
            bandwidth: self.bandwidth_mbit.map(|mbit| u64::from(mbit) * 125_000),
            kinds: self.kinds.clone(),
            proxy: self.proxy.clone(),
        }
    }
}

fn check_kinds(key: &'static str, kinds: &[LinkKind]) -> Result<(), (&'static str, String)> {
    if !kinds.contains(&LinkKind::Quic) && !kinds.contains(&LinkKind::Tcp) {
        return Err((key, "must name \"quic\" or \"tcp\"; sealed packets need a QUIC connection".to_owned()));
    }
    Ok(())
}

fn check_address(key: &'static str, address: &str) -> Result<(), (&'static str, String)> {
    let port = address.rsplit_once(':').and_then(|(host, port)| {
        (!host.is_empty()).then_some(port)?.parse::<u16>().ok().filter(|&port| port != 0)
    });
    match port {
        Some(_) => Ok(()),
        None => Err((key, format!("{address:?} must be host:port"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> PeerSection {
        PeerSection {
            address: Some(address.to_owned()),
            addresses: Vec::new(),
            name: None,
            cost: DEFAULT_COST,
            bandwidth_mbit: None,
            kinds: every_kind(),
            proxy: None,
        }
    }

    #[test]
    fn what_cannot_work_is_named_by_its_key() {
        let check = |bend: &dyn Fn(&mut PeerSection), key: Option<&str>| {
            let mut section = MeshSection { peers: vec![peer("hop:7323")], ..MeshSection::default() };
            bend(&mut section.peers[0]);
            assert_eq!(section.check().err().map(|(key, _)| key), key);
        };
        check(&|_| {}, None);
        check(&|peer| peer.address = None, Some("mesh.peers.address"));
        check(&|peer| peer.addresses.push("hop:0".into()), Some("mesh.peers.address"));
        check(&|peer| peer.cost = 0, Some("mesh.peers.cost"));
        check(&|peer| peer.bandwidth_mbit = Some(0), Some("mesh.peers.bandwidth_mbit"));
        check(&|peer| peer.kinds = vec![LinkKind::Sealed], Some("mesh.peers.kinds"));
        check(&|peer| peer.proxy = Some("proxy".into()), Some("mesh.peers.proxy"));
        check(
            &|peer| (peer.proxy, peer.kinds) = (Some("proxy:3128".into()), vec![LinkKind::Quic]),
            Some("mesh.peers.proxy"),
        );
        let small = MeshSection { mtu: 1199, ..MeshSection::default() };
        assert_eq!(small.check().unwrap_err().0, "mesh.mtu");
    }

    #[test]
    fn addresses_keep_their_order_and_megabits_become_bytes() {
        let mut section = MeshSection { peers: vec![peer("a:1")], ..MeshSection::default() };
        section.peers[0].addresses.push("[::1]:2".into());
        section.peers[0].bandwidth_mbit = Some(100);
        let peers = section.peers();
        assert_eq!(peers[0].addresses, ["a:1", "[::1]:2"]);
        assert_eq!(peers[0].bandwidth, Some(12_500_000));
    }
}
