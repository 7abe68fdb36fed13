//! What a node says of its own links, as the router keeps it: decoded once, beside the bytes that were signed.

use std::collections::BTreeMap;
use std::sync::Arc;

use plexus_proto::id::{Address, Identity};
use plexus_proto::link::{AnnouncedLink, Announcement, DigestEntry, SignedAnnouncement};
use prost::Message;

/// Most links that one node may announce. A hop at that number announces about 50 KiB.
pub const LINKS_MAX: usize = 4096;
/// Longest software string, in bytes.
const SOFTWARE_MAX: usize = 128;
/// Most services, and the longest name of one in bytes.
const SERVICES_MAX: usize = 64;
/// Costs count from 1, so that every link makes a path longer, to this, so that no sum overflows.
pub(super) const COST_MAX: u32 = 1 << 16;

/// Age of an announcement among those of its origin: epochs first, then sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Rises at each start of the origin.
    pub epoch: u64,
    /// Rises with each announcement of an epoch.
    pub sequence: u64,
}

impl Version {
    /// The least version above this one.
    pub(super) fn next(self) -> Self {
        match self.sequence.checked_add(1) {
            Some(sequence) => Self { sequence, ..self },
            None => Self { epoch: self.epoch.saturating_add(1), sequence: 0 },
        }
    }
}

/// An announcement that cannot be taken, although its signature may be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnouncementError {
    /// The signed bytes are no announcement.
    #[error("announcement does not decode")]
    Decode(#[source] prost::DecodeError),
    /// Signed by one node, about another.
    #[error("announcement of {origin} was signed by {signer}")]
    Origin {
        /// Address in the announcement.
        origin: Address,
        /// Certified address of the signer.
        signer: Address,
    },
    /// More links, services or text than any node has.
    #[error("announcement exceeds a limit: {0}")]
    TooBig(&'static str),
}

/// An announcement whose chain and signature the caller has verified. Clones share what it says.
#[derive(Debug, Clone)]
pub struct VerifiedAnnouncement(Arc<Content>);

#[derive(Debug)]
/// What an announcement says; nothing outside the router looks into it.
pub struct Content {
    pub(super) identity: Identity,
    pub(super) version: Version,
    /// Least cost to each neighbor.
    pub(super) links: BTreeMap<Address, u32>,
    pub(super) software: String,
    pub(super) services: Vec<String>,
    pub(super) news: u64,
    pub(super) signed: Arc<SignedAnnouncement>,
    pub(super) check: u32,
}

impl VerifiedAnnouncement {
    /// Decodes `signed`, whose chain certifies `identity` and whose signature that identity's key made. Both are
    /// the caller's to check: the router knows no cryptography.
    ///
    /// # Errors
    /// A body that does not decode, that speaks of another node, or that exceeds a limit.
    pub fn new(identity: Identity, signed: SignedAnnouncement) -> Result<Self, AnnouncementError> {
        let body = Announcement::decode(signed.body.clone()).map_err(AnnouncementError::Decode)?;
        let origin = Address(body.origin);
        if origin != identity.address {
            return Err(AnnouncementError::Origin { origin, signer: identity.address });
        }
        if body.links.len() > LINKS_MAX {
            return Err(AnnouncementError::TooBig("links"));
        }
        if body.software.len() > SOFTWARE_MAX {
            return Err(AnnouncementError::TooBig("software"));
        }
        if body.services.len() > SERVICES_MAX || body.services.iter().any(|name| name.len() > SERVICES_MAX) {
            return Err(AnnouncementError::TooBig("services"));
        }
        let mut links = BTreeMap::new();
        for link in &body.links {
            let neighbor = Address(link.neighbor);
            if neighbor == origin {
                continue;
            }
            let cost = clamp_cost(link.cost);
            links.entry(neighbor).and_modify(|least: &mut u32| *least = cost.min(*least)).or_insert(cost);
        }
        Ok(Self(Arc::new(Content {
            identity,
            version: Version { epoch: body.epoch, sequence: body.sequence },
            links,
            software: body.software,
            services: body.services,
            news: body.news,
            check: fnv1a(&signed.body),
            signed: Arc::new(signed),
        })))
    }

    /// Who said it.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Which of its announcements this is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// What makes one announcement newer than another of the same origin.
    pub(super) fn order(&self) -> (Version, &[u8]) {
        (self.version, &self.signed.body)
    }

    /// Its line in a digest.
    pub(super) fn entry(&self) -> DigestEntry {
        let Version { epoch, sequence } = self.version;
        DigestEntry { origin: self.identity.address.0, epoch, sequence, check: self.check }
    }

    /// The bytes that were signed, with signature and chain, as they are passed on.
    pub fn signed(&self) -> &SignedAnnouncement {
        &self.signed
    }
}

impl std::ops::Deref for VerifiedAnnouncement {
    type Target = Content;

    fn deref(&self) -> &Content {
        &self.0
    }
}

/// Of whom `signed` claims to be, whether it is true or not.
pub(super) fn origin(signed: &SignedAnnouncement) -> Option<Address> {
    Announcement::decode(signed.body.clone()).ok().map(|body| Address(body.origin))
}

/// The body to be signed.
pub(super) fn encode(
    me: Address,
    version: Version,
    links: &BTreeMap<Address, u32>,
    software: &str,
    news: u64,
) -> Vec<u8> {
    let links = links.iter().map(|(neighbor, &cost)| AnnouncedLink { neighbor: neighbor.0, cost });
    Announcement {
        origin: me.0,
        epoch: version.epoch,
        sequence: version.sequence,
        links: links.take(LINKS_MAX).collect(),
        software: software.to_owned(),
        services: Vec::new(),
        news,
    }
    .encode_to_vec()
}

/// Not against malice (bodies are signed), only to notice a difference.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

pub(super) fn clamp_cost(cost: u32) -> u32 {
    cost.clamp(1, COST_MAX)
}

pub(super) fn clamp_software(mut software: String) -> String {
    let mut end = software.len().min(SOFTWARE_MAX);
    while !software.is_char_boundary(end) {
        end -= 1;
    }
    software.truncate(end);
    software
}
