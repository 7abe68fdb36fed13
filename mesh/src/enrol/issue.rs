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
