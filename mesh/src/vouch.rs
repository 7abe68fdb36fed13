//! Signed announcements in, verified ones out.
//!
//! A flooded announcement comes once over each link and again with every change, always with the same chain, so chains
//! that were found valid are remembered by their hash for a while; signatures are checked each time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use plexus_proto::id::Identity;
use plexus_proto::link::SignedAnnouncement;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::identity::{self, Verifier};
use crate::routing::{AnnouncementError, VerifiedAnnouncement};

/// How long a valid chain is taken for valid: an expired node disappears from maps this much later.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);
/// Chains remembered at most, at about 200 bytes each.
const CHAINS_MAX: usize = 16 * 1024;

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
        VerifiedAnnouncement::new(identity, signed).map_err(Error::Content)
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
