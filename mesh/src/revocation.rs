//! Whose certificates count no more: a signed, numbered list for each cluster.
//!
//! A controller signs the list of its own cluster; it is flooded over every link, kept on disk by every node, and
//! passed on as the bytes that were signed. Of one cluster the list with the highest number counts. An entry names a
//! node and, usually, one key of it, so that the name can be enrolled again with another.
//!
//! Pure: the caller verifies with a [`Verifier`], stores and sends.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use plexus_proto::enrol::{Revocation, Revocations, SignedRevocations};
use plexus_proto::id::{ClusterId, Identity, NodeId, Role};
use prost::Message;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::identity::{self, Credentials, Verifier};

/// Most entries of one list; a frame between neighbours holds them.
pub const ENTRIES_MAX: usize = 2000;
/// Most clusters whose lists are kept: as many as a mesh has ranges of addresses, within reason.
const CLUSTERS_MAX: usize = 256;
/// In front of what is signed, so that this signature is good for nothing else.
const CONTEXT: &[u8] = b"plexus revocations v1\0";

/// Why a list is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not signed by somebody of this mesh.
    #[error("signer of the revocations is not certified")]
    Signer(#[source] identity::Error),
    /// Signed by a node, or for another cluster.
    #[error("{signer} may not revoke for cluster {cluster}")]
    NotAllowed {
        /// Who signed.
        signer: String,
        /// Whose list it claims to be.
        cluster: String,
    },
    /// The signature does not fit.
    #[error("signature of the revocations is wrong")]
    Signature(#[source] identity::Error),
    /// The signed bytes are no list.
    #[error("revocations do not decode: {0}")]
    Content(String),
}

/// One revoked certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// SHA-256 of the raw public key; `None`: every key under this name.
    pub key: Option<[u8; 32]>,
    /// Since when.
    pub at: Timestamp,
}

/// A verified list of one cluster, and the bytes that were signed.
#[derive(Debug, Clone)]
pub struct List {
    /// Whose nodes it names.
    pub cluster: ClusterId,
    /// Which list of the cluster.
    pub number: u64,
    entries: BTreeMap<NodeId, Vec<Entry>>,
    /// As it travels.
    pub signed: SignedRevocations,
}

impl List {
    /// Verifies a list. A signer whose certificate has expired since is believed: revoking takes away, never gives.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn verify(verifier: &Verifier, signed: SignedRevocations, now: UnixTime) -> Result<Self, Error> {
        let body =
            Revocations::decode(signed.body.clone()).map_err(|error| Error::Content(error.to_string()))?;
        let list = Self::read(&body, signed)?;
        let (signed, cluster) = (&list.signed, &list.cluster);
        let chain: Vec<CertificateDer<'_>> =
            signed.chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
        let (signer, _) = verifier.standing(&chain, now).map_err(Error::Signer)?;
        if signer.role != Role::Controller || signer.cluster != *cluster {
            return Err(Error::NotAllowed { signer: signer.uri(), cluster: body.cluster });
        }
        verifier
            .verify_signature(&chain, &message(&signed.body), &signed.signature)
            .map_err(Error::Signature)?;
        Ok(list)
    }

    fn read(body: &Revocations, signed: SignedRevocations) -> Result<Self, Error> {
        let content = |text: &str| Error::Content(text.to_owned());
        let cluster: ClusterId = body.cluster.parse().map_err(|_| content("no cluster"))?;
        if body.entries.len() > ENTRIES_MAX {
            return Err(content("too many entries"));
        }
        let mut entries: BTreeMap<NodeId, Vec<Entry>> = BTreeMap::new();
        for entry in &body.entries {
            let node = entry.node.parse().map_err(|_| content("no node name"))?;
            let key = match entry.key.len() {
                0 => None,
                _ => Some(entry.key[..].try_into().map_err(|_| content("key is no SHA-256"))?),
            };
            let at = i64::try_from(entry.at).ok().and_then(|at| Timestamp::from_second(at).ok());
            entries.entry(node).or_default().push(Entry { key, at: at.ok_or_else(|| content("no time"))? });
        }
        Ok(Self { cluster, number: body.number, entries, signed })
    }

    /// Reads a list that was verified before it was kept on this machine.
    ///
    /// # Errors
    /// [`Error::Content`].
    pub(crate) fn kept(signed: SignedRevocations) -> Result<Self, Error> {
        let body =
            Revocations::decode(signed.body.clone()).map_err(|error| Error::Content(error.to_string()))?;
        Self::read(&body, signed)
    }

    /// Makes and signs list `number` of the signer's own cluster.
    ///
    /// # Errors
    /// As [`List::verify`]: a signer who may not, or too many entries.
    pub fn sign(
        credentials: &Credentials,
        number: u64,
        entries: &[(NodeId, Entry)],
        now: UnixTime,
    ) -> Result<Self, Error> {
        let entries = entries.iter().map(|(node, entry)| Revocation {
            node: node.to_string(),
            key: entry.key.map(|key| key.to_vec()).unwrap_or_default().into(),
            at: entry.at.as_second().try_into().unwrap_or(0),
        });
        let cluster = credentials.identity().cluster.to_string();
        let body = Revocations { cluster, number, entries: entries.collect() }.encode_to_vec();
        let signature = credentials.sign(&message(&body)).into();
        let chain = credentials.chain().iter().map(|der| der.to_vec().into()).collect();
        let signed = SignedRevocations { body: body.into(), signature, chain };
        Self::verify(&credentials.verifier(), signed, now)
    }
}

fn message(body: &[u8]) -> Vec<u8> {
    [CONTEXT, body].concat()
}

/// The lists of all clusters.
#[derive(Debug, Clone, Default)]
pub struct Revoked(BTreeMap<ClusterId, Arc<List>>);

impl Revoked {
    /// Since when `identity`'s key, by its SHA-256, is revoked; `None` if it is not.
    pub fn since(&self, identity: &Identity, key: &[u8; 32]) -> Option<Timestamp> {
        let entries = self.0.get(&identity.cluster)?.entries.get(&identity.node)?;
        entries.iter().find(|entry| entry.key.is_none_or(|revoked| revoked == *key)).map(|entry| entry.at)
    }

    /// Takes `list` if it is newer than what is here of its cluster; says whether it was.
    pub fn insert(&mut self, list: List) -> bool {
        let known = self.0.get(&list.cluster).map(|known| known.number);
        if known.is_some_and(|known| known >= list.number) || known.is_none() && self.0.len() >= CLUSTERS_MAX
        {
            return false;
        }
        self.0.insert(list.cluster.clone(), Arc::new(list));
        true
    }

    /// The list of a cluster.
    pub fn of(&self, cluster: &ClusterId) -> Option<&Arc<List>> {
        self.0.get(cluster)
    }

    /// All lists.
    pub fn lists(&self) -> impl Iterator<Item = &Arc<List>> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ca::CertificateAuthority;

    struct Nodes {
        controller: Credentials,
        node: Credentials,
    }

    fn nodes() -> Nodes {
        crate::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        let (mesh, cluster) = ("demo".parse().unwrap(), "main".parse().unwrap());
        let authority = CertificateAuthority::init(&folder.path().join("ca"), &mesh, &cluster).unwrap();
        let issue = |role, name: &str| {
            let out = folder.path().join(name);
            authority.issue(role, &name.parse().unwrap(), &out, Duration::from_secs(3600)).unwrap();
            Credentials::load(&out).unwrap()
        };
        Nodes { controller: issue(Role::Controller, "controller"), node: issue(Role::Execution, "node-1") }
    }

    fn entry(credentials: &Credentials) -> (NodeId, Entry) {
        let key = identity::key_fingerprint(credentials.public_key());
        (credentials.identity().node.clone(), Entry { key: Some(key), at: Timestamp::UNIX_EPOCH })
    }

    #[test]
    fn a_revoked_key_is_refused_and_another_of_the_name_is_not() {
        let Nodes { controller, node } = nodes();
        let (now, verifier) = (UnixTime::now(), controller.verifier());
        let mut revoked = Revoked::default();
        assert!(revoked.insert(List::sign(&controller, 1, &[entry(&node)], now).unwrap()));
        assert!(verifier.verify(&node.chain(), now).is_ok());
        assert!(revoked.since(node.identity(), &[7; 32]).is_none());
        verifier.revoke(revoked);
        assert!(matches!(verifier.verify(&node.chain(), now), Err(identity::Error::Revoked { .. })));
        assert!(verifier.verify(&controller.chain(), now).is_ok());
    }

    #[test]
    fn only_controllers_revoke_and_only_in_their_cluster() {
        let Nodes { controller, node } = nodes();
        let now = UnixTime::now();
        assert!(matches!(List::sign(&node, 1, &[entry(&controller)], now), Err(Error::NotAllowed { .. })));
        let honest = List::sign(&controller, 1, &[entry(&node)], now).unwrap();
        assert!(List::verify(&controller.verifier(), honest.signed.clone(), now).is_ok());
        let mut altered = honest.signed.clone();
        let mut body = altered.body.to_vec();
        body.extend(Revocations { number: 9, ..Revocations::default() }.encode_to_vec());
        altered.body = body.into();
        assert!(matches!(List::verify(&controller.verifier(), altered, now), Err(Error::Signature(_))));
    }

    #[test]
    fn the_highest_number_counts() {
        let Nodes { controller, node } = nodes();
        let now = UnixTime::now();
        let list = |number, entries: &[_]| List::sign(&controller, number, entries, now).unwrap();
        let mut revoked = Revoked::default();
        assert!(revoked.insert(list(2, &[entry(&node)])));
        assert!(!revoked.insert(list(1, &[])) && !revoked.insert(list(2, &[])));
        assert!(revoked.insert(list(3, &[])), "a later list may lift what an earlier one said");
        assert!(revoked.since(node.identity(), &identity::key_fingerprint(node.public_key())).is_none());
    }
}
