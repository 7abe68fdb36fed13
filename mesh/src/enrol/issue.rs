//! Answers that a controller signs and the caller checks: nobody in between can alter what is issued.

use aws_lc_rs::digest::{SHA256, digest};
use plexus_proto::enrol::{EnrolCall, Issue, SignedIssue};
use plexus_proto::id::{ClusterId, Identity, Role};
use prost::Message;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::identity::{self, Credentials, Verifier};

/// In front of what is signed, so that this signature is good for nothing else.
const CONTEXT: &[u8] = b"plexus issue v1\0";
/// Most roots in an answer.
const ROOTS_MAX: usize = 8;

/// Why an answer is not taken.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Not signed by somebody whom our roots certify.
    #[error("the answer is not signed by a certified controller")]
    Signer(#[source] identity::Error),
    /// Signed by a node, or by another cluster's controller.
    #[error("the answer is signed by {0}, which is no controller of the cluster")]
    NotAController(String),
    /// Altered, or an answer to another call.
    #[error("the answer does not belong to this call")]
    OtherCall,
    /// What was issued is not valid, or not ours.
    #[error("the certificate that was issued cannot be used")]
    Certificate(#[source] identity::Error),
    /// Certified, but for another key or name.
    #[error("the certificate that was issued is for {0}")]
    OtherNode(String),
    /// The list of roots lacks all that we trust, or has one that nobody we trust vouches for.
    #[error("the answer brings roots that no trusted root vouches for")]
    Roots,
}

/// What was issued, found right.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Whom the leaf names.
    pub identity: Identity,
    /// Leaf, then intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// Roots to trust from now on.
    pub roots: Vec<CertificateDer<'static>>,
}

/// SHA-256 of a call, by which its answer is known.
pub fn call_digest(call: &EnrolCall) -> Vec<u8> {
    digest(&SHA256, &call.encode_to_vec()).as_ref().to_vec()
}

/// Signs an answer with a controller's key.
pub fn sign(credentials: &Credentials, issue: &Issue) -> SignedIssue {
    let body = issue.encode_to_vec();
    let signature = credentials.sign(&[CONTEXT, &body].concat()).into();
    let chain = credentials.chain().iter().map(|der| der.to_vec().into()).collect();
    SignedIssue { body: body.into(), signature, chain }
}

/// Checks the answer to `call`, which asked to certify `key` in `cluster`.
///
/// `verifier` trusts the roots that the caller trusts so far. Of the roots in the answer those are taken that are
/// trusted already or endorsed: their key certified by a trusted root.
///
/// # Errors
/// See [`IssueError`].
pub fn check(
    verifier: &Verifier,
    cluster: &ClusterId,
    call: &EnrolCall,
    key: &[u8],
    signed: &SignedIssue,
    now: UnixTime,
) -> Result<Checked, IssueError> {
    let signer_chain: Vec<CertificateDer<'_>> =
        signed.chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
    let signer = verifier.verify(&signer_chain, now).map_err(IssueError::Signer)?;
    if signer.role != Role::Controller || signer.cluster != *cluster {
        return Err(IssueError::NotAController(signer.uri()));
    }
    verifier
        .verify_signature(&signer_chain, &[CONTEXT, &signed.body].concat(), &signed.signature)
        .map_err(IssueError::Signer)?;
    let issue = Issue::decode(signed.body.clone()).map_err(|_| IssueError::OtherCall)?;
    if issue.call != call_digest(call) {
        return Err(IssueError::OtherCall);
    }
    let owned = |ders: &[bytes::Bytes]| -> Vec<CertificateDer<'static>> {
        ders.iter().map(|der| CertificateDer::from(der.to_vec())).collect()
    };
    let (chain, roots, endorsements) = (owned(&issue.chain), owned(&issue.roots), owned(&issue.endorsements));
    let trusted = verifier.roots();
    let good = |root: &CertificateDer<'_>| {
        trusted.iter().any(|known| known == root)
            || endorsements.iter().any(|endorsement| identity::endorses(&trusted, endorsement, root))
    };
    if roots.is_empty() || roots.len() > ROOTS_MAX || !roots.iter().all(good) {
        return Err(IssueError::Roots);
    }
    let after = Verifier::new(&roots, verifier.mesh().clone()).map_err(|_| IssueError::Roots)?;
    let identity = after.verify(&chain, now).map_err(IssueError::Certificate)?;
    if chain.first().and_then(identity::public_key).as_deref() != Some(key) || identity.cluster != *cluster {
        return Err(IssueError::OtherNode(identity.uri()));
    }
    Ok(Checked { identity, chain, roots })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::ca::CertificateAuthority;
    use crate::enrol::renew;

    const LIFE: Duration = Duration::from_secs(3600);

    fn authority_in(dir: &Path) -> CertificateAuthority {
        CertificateAuthority::init(dir, &"demo".parse().unwrap(), &"main".parse().unwrap()).unwrap()
    }

    /// A node that trusts one root, a controller, and their authority, which has introduced the next root since.
    struct House {
        dir: tempfile::TempDir,
        node: Credentials,
        controller: Credentials,
        introduced: CertificateAuthority,
    }

    impl House {
        fn new() -> Self {
            crate::install_crypto_provider();
            let dir = tempfile::tempdir().unwrap();
            let before = authority_in(&dir.path().join("ca"));
            let issue = |role, name: &str| {
                let out = dir.path().join(name);
                before.issue(role, &name.parse().unwrap(), &out, LIFE).unwrap();
                Credentials::load(&out).unwrap()
            };
            let (node, controller) =
                (issue(Role::Execution, "node-1"), issue(Role::Controller, "controller"));
            let introduced = before.introduce_root(&[]).unwrap();
            Self { dir, node, controller, introduced }
        }

        /// Another mesh's authority of the same name, which has introduced a root, too.
        fn stranger(&self) -> CertificateAuthority {
            authority_in(&self.dir.path().join("stranger")).introduce_root(&[]).unwrap()
        }

        /// What the node makes of a renewal that brings these roots and these words for them.
        fn check(
            &self,
            roots: &[CertificateDer<'_>],
            endorsements: &[CertificateDer<'_>],
        ) -> Result<Checked, IssueError> {
            let call = renew::call(&self.node);
            let (us, key) = (self.node.identity(), self.node.public_key());
            let issued = self.introduced.certify(us.role, &us.node, Some(us.address), key, LIFE).unwrap();
            let wire = |ders: &[CertificateDer<'_>]| ders.iter().map(|der| der.to_vec().into()).collect();
            let issue = Issue {
                chain: wire(&issued.chain),
                roots: wire(roots),
                call: call_digest(&call).into(),
                endorsements: wire(endorsements),
            };
            let signed = sign(&self.controller, &issue);
            check(&self.node.verifier(), &us.cluster, &call, key, &signed, UnixTime::now())
        }

        fn refuses(&self, roots: &[CertificateDer<'_>], endorsements: &[CertificateDer<'_>], what: &str) {
            let outcome = self.check(roots, endorsements);
            assert!(matches!(outcome, Err(IssueError::Roots)), "{what}: {outcome:?}");
        }
    }

    #[test]
    fn a_new_root_is_trusted_by_the_word_of_one_that_is_trusted_already() {
        let house = House::new();
        let (roots, word) = (house.introduced.roots(), house.introduced.endorsements());
        assert_eq!((house.node.verifier().roots().len(), roots.len(), word.len()), (1, 2, 1));
        let checked = house.check(roots, word).unwrap();
        assert_eq!(checked.roots, roots);
        // Words for roots that are not brought do no harm, and none is needed for what is trusted.
        assert_eq!(house.check(&roots[..1], word).unwrap().roots, roots[..1]);
        assert_eq!(house.check(&roots[..1], &[]).unwrap().roots, roots[..1]);
    }

    #[test]
    fn a_controller_cannot_bring_a_root_that_no_trusted_one_vouches_for() {
        let house = House::new();
        let (roots, word) = (house.introduced.roots(), house.introduced.endorsements());
        let stranger = house.stranger();
        house.refuses(roots, &[], "no word");
        house.refuses(roots, stranger.endorsements(), "another authority's word, for its own next root");
        let foreign = [roots[0].clone(), stranger.roots()[1].clone()];
        house.refuses(&foreign, word, "a word for another key");
        house.refuses(&foreign, stranger.endorsements(), "a stranger's word for the stranger's root");
        house.refuses(&foreign, &[word, stranger.endorsements()].concat(), "both words");
        // The new root's word for itself, and an intermediate's: neither is trusted as a root.
        house.refuses(roots, &roots[1..], "a root that vouches for itself");
        let below = house.node.chain()[1].clone();
        house.refuses(&[roots[0].clone(), below.clone()], &[below], "an intermediate as a root");
        // The leaf's way ends at what is left.
        let flood = vec![roots[0].clone(); ROOTS_MAX + 1];
        house.refuses(&flood, word, "more roots than anybody has");
        house.refuses(&[], word, "no roots at all");
        // A word is a certificate: one bit of it, and it is nobody's.
        let mut bent = word[0].to_vec();
        let last = bent.len() - 1;
        bent[last] ^= 1;
        house.refuses(roots, &[CertificateDer::from(bent)], "an altered word");
    }
}
