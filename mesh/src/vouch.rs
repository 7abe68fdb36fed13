//! Signed announcements in, verified ones out.
//!
//! A flooded announcement comes once over each link and again with every change, always with the same chain, so chains
//! that were found valid are remembered by their hash for a while; signatures are checked each time.
//!
//! What is believed is kept for as long as its node lives. It came as parts of whatever buffer was read from a link, so it
//! is copied out of that, and the authorities' certificates, which all nodes have in common, are held once.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::{Bytes, BytesMut};
use plexus_proto::id::Identity;
use plexus_proto::link::SignedAnnouncement;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::identity::{self, Verifier};
use crate::routing::{AnnouncementError, VerifiedAnnouncement};

/// How long a valid chain is taken for valid: an expired node disappears from maps this much later.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);
/// Chains remembered at most, at about 200 bytes each.
const CHAINS_MAX: usize = 16 * 1024;
/// Certificates of authorities held in common: one for each controller's, and as many again during a change of root.
const ISSUERS_MAX: usize = 16;

/// An announcement that is not believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("signer is not certified")]
    Chain(#[source] identity::Error),
    #[error("signature is wrong")]
    Signature(#[source] identity::Error),
    #[error("announcement is not usable")]
    Content(#[source] AnnouncementError),
}

/// Chains known to be valid.
#[derive(Debug, Default)]
pub(crate) struct Vouched {
    chains: HashMap<[u8; 32], (Identity, Instant)>,
    issuers: VecDeque<Bytes>,
}

impl Vouched {
    /// Verifies chain and signature of `signed`.
    pub(crate) fn verify(
        &mut self,
        verifier: &Verifier,
        signed: SignedAnnouncement,
        now: Instant,
    ) -> Result<VerifiedAnnouncement, Error> {
        let chain: Vec<CertificateDer<'_>> =
            signed.chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
        let identity = self.identify(verifier, &chain, now).map_err(Error::Chain)?;
        verifier.verify_signature(&chain, &signed.body, &signed.signature).map_err(Error::Signature)?;
        drop(chain);
        VerifiedAnnouncement::new(identity, self.compact(&signed)).map_err(Error::Content)
    }

    /// The same in memory of its own.
    fn compact(&mut self, signed: &SignedAnnouncement) -> SignedAnnouncement {
        let SignedAnnouncement { body, signature, chain } = signed;
        let mut own =
            BytesMut::with_capacity(body.len() + signature.len() + chain.first().map_or(0, Bytes::len));
        let mut copy = |bytes: &[u8]| {
            own.extend_from_slice(bytes);
            own.split().freeze()
        };
        let (body, signature) = (copy(body), copy(signature));
        let leaf = chain.first().map(|leaf| copy(leaf));
        let issuers = chain.iter().skip(1).map(|issuer| self.issuer(issuer));
        SignedAnnouncement { body, signature, chain: leaf.into_iter().chain(issuers).collect() }
    }

    fn issuer(&mut self, certificate: &[u8]) -> Bytes {
        if let Some(known) = self.issuers.iter().find(|known| known[..] == *certificate) {
            return known.clone();
        }
        if self.issuers.len() >= ISSUERS_MAX {
            self.issuers.pop_front();
        }
        let own = Bytes::copy_from_slice(certificate);
        self.issuers.push_back(own.clone());
        own
    }

    /// Judges every chain anew: something was revoked.
    pub(crate) fn forget(&mut self) {
        self.chains.clear();
    }

    fn identify(
        &mut self,
        verifier: &Verifier,
        chain: &[CertificateDer<'_>],
        now: Instant,
    ) -> Result<Identity, identity::Error> {
        let key = hash(chain);
        if let Some((identity, at)) = self.chains.get(&key)
            && now.saturating_duration_since(*at) < REMEMBERED
        {
            return Ok(identity.clone());
        }
        let identity = verifier.verify(chain, UnixTime::now())?;
        if self.chains.len() >= CHAINS_MAX {
            self.chains.retain(|_, (_, at)| now.saturating_duration_since(*at) < REMEMBERED);
            if self.chains.len() >= CHAINS_MAX {
                self.chains.clear();
            }
        }
        self.chains.insert(key, (identity.clone(), now));
        Ok(identity)
    }
}

/// Hash of the whole chain, certificate boundaries included.
fn hash(chain: &[CertificateDer<'_>]) -> [u8; 32] {
    let mut all = Vec::new();
    for certificate in chain {
        all.extend_from_slice(&(certificate.len() as u64).to_be_bytes());
        all.extend_from_slice(certificate);
    }
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, &all).as_ref());
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Credentials;
    use crate::ca::CertificateAuthority;
    use plexus_proto::id::Role;
    use plexus_proto::link::Announcement;
    use prost::Message;

    struct Nodes {
        first: Credentials,
        second: Credentials,
    }

    fn nodes() -> Nodes {
        crate::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::init(
            &folder.path().join("ca"),
            &"demo".parse().unwrap(),
            &"main".parse().unwrap(),
        )
        .unwrap();
        let issue = |name: &str| {
            let out = folder.path().join(name);
            authority.issue(Role::Hop, &name.parse().unwrap(), &out, Duration::from_secs(3600)).unwrap();
            Credentials::load(&out).unwrap()
        };
        Nodes { first: issue("first"), second: issue("second") }
    }

    /// What `signer` signs about `about`.
    fn announcement(signer: &Credentials, about: &Credentials) -> SignedAnnouncement {
        let origin = about.identity().address.0;
        let body = Announcement { origin, epoch: 1, sequence: 1, ..Announcement::default() }.encode_to_vec();
        let signature = signer.sign(&body).into();
        let chain = signer.chain().iter().map(|der| der.to_vec().into()).collect();
        SignedAnnouncement { body: body.into(), signature, chain }
    }

    #[test]
    fn a_node_speaks_for_itself_and_nobody_else() {
        let Nodes { first, second } = nodes();
        let (mut vouched, verifier, now) = (Vouched::default(), first.verifier(), Instant::now());
        let mut check = |signed| vouched.verify(&verifier, signed, now);
        let honest = check(announcement(&first, &first)).unwrap();
        assert_eq!(honest.identity(), first.identity());
        assert!(matches!(check(announcement(&second, &first)), Err(Error::Content(_))));

        // With another's chain, which is valid and remembered, the signature does not fit.
        let mut borrowed = announcement(&second, &first);
        borrowed.chain = announcement(&first, &first).chain;
        assert!(matches!(check(borrowed), Err(Error::Signature(_))));

        let mut altered = announcement(&first, &first);
        let mut body = altered.body.to_vec();
        body.push(0);
        altered.body = body.into();
        assert!(matches!(check(altered), Err(Error::Signature(_))));
    }

    #[test]
    fn what_is_kept_pins_no_buffer_and_shares_issuers() {
        let Nodes { first, second } = nodes();
        let (mut vouched, verifier, now) = (Vouched::default(), first.verifier(), Instant::now());
        let mut heard = |node: &Credentials| {
            let buffer = Bytes::from(announcement(node, node).encode_to_vec());
            let kept = vouched.verify(&verifier, SignedAnnouncement::decode(buffer.clone()).unwrap(), now);
            assert!(buffer.is_unique(), "nothing of it is held any more");
            assert_eq!(kept.as_ref().unwrap().signed().encode_to_vec(), buffer[..]);
            kept.unwrap()
        };
        let (first, second) = (heard(&first), heard(&second));
        let issuers = [first, second].map(|kept| kept.signed().chain[1].as_ptr());
        assert_eq!(issuers[0], issuers[1]);
    }

    #[test]
    fn chains_of_strangers_are_refused_each_time() {
        let (Nodes { first, .. }, Nodes { first: stranger, .. }) = (nodes(), nodes());
        let (mut vouched, verifier, now) = (Vouched::default(), first.verifier(), Instant::now());
        for _ in 0..2 {
            let refused = vouched.verify(&verifier, announcement(&stranger, &stranger), now);
            assert!(matches!(refused, Err(Error::Chain(_))));
        }
        assert!(vouched.chains.is_empty());
        let mut none = announcement(&first, &first);
        none.chain.clear();
        assert!(matches!(vouched.verify(&verifier, none, now), Err(Error::Chain(_))));
    }
}
