//! What the driver keeps of other nodes' certificates: revocations, on disk too, and the keys that were seen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use plexus_proto::enrol::SignedRevocations;
use plexus_proto::frame;
use plexus_proto::id::{Identity, NodeId};
use plexus_proto::link::LinkMessageKind;
use rustls_pki_types::{CertificateDer, UnixTime};
use tracing::{debug, error, info};

use crate::enrol::files;
use crate::identity::{self, Verifier, key_fingerprint};
use crate::revocation::List;

/// File in the state folder: one frame for each cluster's list.
const FILE: &str = "revocations";
/// Longest file that is read.
const FILE_MAX: u64 = 64 << 20;

/// SHA-256 of the public key of every node that announced itself, by name.
pub(crate) type Keys = Arc<Mutex<BTreeMap<NodeId, [u8; 32]>>>;

pub(crate) struct Trust {
    verifier: Arc<Verifier>,
    file: PathBuf,
    pub(crate) keys: Keys,
}

/// What came of a list.
pub(crate) enum Took {
    /// It is in force, and others should hear of it.
    New,
    /// We know it, or something newer; whoever sent it should hear that.
    Older(Vec<LinkMessageKind>),
    /// It is the one in force.
    Known,
    /// It was not believed.
    Refused,
}

impl Trust {
    /// Puts the lists in force that were kept at the last start.
    pub(crate) fn open(verifier: Arc<Verifier>, state_dir: &Path) -> Self {
        let trust = Self { verifier, file: state_dir.join(FILE), keys: Keys::default() };
        trust.load();
        trust
    }

    /// Judges by other credentials from now on; the revocations are in them already.
    pub(crate) fn judge_by(&mut self, verifier: Arc<Verifier>) {
        self.verifier = verifier;
    }

    fn load(&self) {
        let known = match std::fs::metadata(&self.file) {
            Ok(known) if known.len() <= FILE_MAX => known,
            Ok(_) => return error!(file = %self.file.display(), "file of revocations is damaged"),
            Err(_) => return,
        };
        let Ok(bytes) = std::fs::read(&self.file) else {
            return error!(file = %self.file.display(), "file of revocations cannot be read");
        };
        debug_assert!(bytes.len() as u64 <= known.len().max(FILE_MAX));
        let mut revoked = (*self.verifier.revoked()).clone();
        let mut buffer = BytesMut::from(&bytes[..]);
        loop {
            match frame::decode::<SignedRevocations>(&mut buffer, frame::LINK_FRAME_MAX) {
                // Its signature was checked before it was kept; its signer may be long expired.
                Ok(Some(signed)) => match List::kept(signed) {
                    Ok(list) => drop(revoked.insert(list)),
                    Err(error) => {
                        error!(error = &error as &dyn std::error::Error, "kept revocations are damaged")
                    }
                },
                Ok(None) => break,
                Err(error) => {
                    error!(error = &error as &dyn std::error::Error, "kept revocations are damaged");
                    break;
                }
            }
        }
        self.verifier.revoke(revoked);
    }

    /// Every list in force, as it travels.
    pub(crate) fn lists(&self) -> Vec<LinkMessageKind> {
        let revoked = self.verifier.revoked();
        revoked.lists().map(|list| LinkMessageKind::Revocations(list.signed.clone())).collect()
    }

    /// Takes a list that came over a link, or from a program of this node.
    pub(crate) fn take(&self, signed: SignedRevocations) -> Took {
        let list = match List::verify(&self.verifier, signed, UnixTime::now()) {
            Ok(list) => list,
            Err(error) => {
                debug!(error = &error as &dyn std::error::Error, "revocations not believed");
                return Took::Refused;
            }
        };
        let mut revoked = (*self.verifier.revoked()).clone();
        let (cluster, number) = (list.cluster.clone(), list.number);
        let held = revoked.of(&cluster).map(|held| (held.number, held.signed.clone()));
        if !revoked.insert(list) {
            return match held {
                Some((newer, signed)) if newer > number => {
                    Took::Older(vec![LinkMessageKind::Revocations(signed)])
                }
                _ => Took::Known,
            };
        }
        let mut bytes = BytesMut::new();
        revoked.lists().for_each(|list| frame::encode(&list.signed, &mut bytes));
        // In force at once, even if the disk should fail: then it is fetched again after the next start.
        self.verifier.revoke(revoked);
        if let Err(error) = files::replace(&self.file, &bytes) {
            error!(error = &error as &dyn std::error::Error, "cannot keep the revocations");
        }
        info!(%cluster, number, "revocations taken over");
        Took::New
    }

    /// Whether the holder of this chain is revoked now.
    pub(crate) fn is_revoked(&self, neighbor: &Identity, key: &[u8; 32]) -> bool {
        self.verifier.revoked().since(neighbor, key).is_some()
    }

    /// Remembers the key that a verified announcement was signed with.
    pub(crate) fn saw(&self, identity: &Identity, leaf: &[u8]) {
        let Some(key) = identity::public_key(&CertificateDer::from(leaf)) else { return };
        let mut keys = self.keys.lock().expect("no code panics under this lock");
        keys.insert(identity.node.clone(), key_fingerprint(&key));
    }
}
