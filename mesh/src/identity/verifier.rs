//! From a chain of certificates to the identity that it certifies.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use jiff::Timestamp;
use plexus_proto::id::{Identity, MeshName, ParseError};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use x509_parser::asn1_rs::Oid;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_SIG_ED25519;
use x509_parser::prelude::FromDer;

use super::error::Error;
use super::extension::{ADDRESS_OID, SCOPE_OID, Scope, decode_address};
use crate::revocation::Revoked;

/// How long after its end a certificate is good for its own renewal: a site that was dark for weeks comes back.
pub const RENEWABLE: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// Whether a certificate counts now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Valid,
    /// It has expired, and may renew itself.
    Expired {
        /// When.
        since: Timestamp,
    },
}

/// What is signed in front of a message, so that a signature made here means nothing in TLS, nor the reverse.
pub(super) const SIGNING_CONTEXT: &[u8] = b"plexus announcement v1\0";

/// Judges chains against the roots of one mesh, and what was revoked in it. Holds no clock: the caller says when
/// "now" is. Roots and revocations change while it is in use; every check sees the newest.
#[derive(Debug)]
pub struct Verifier {
    roots: ArcSwap<Roots>,
    revoked: ArcSwap<Revoked>,
    mesh: MeshName,
}

#[derive(Debug)]
struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl Roots {
    fn new(roots: &[CertificateDer<'_>]) -> Result<Self, Error> {
        let anchors = roots.iter().map(|root| match webpki::anchor_from_trusted_cert(root) {
            Ok(anchor) => Ok(anchor.to_owned()),
            Err(source) => Err(Error::Invalid { subject: claimed_subject(root), source }),
        });
        let anchors = anchors.collect::<Result<_, _>>()?;
        Ok(Self { certificates: roots.iter().map(|root| root.clone().into_owned()).collect(), anchors })
    }
}

impl Verifier {
    /// Takes the trusted roots of `mesh`.
    ///
    /// # Errors
    /// A root that is no certificate.
    pub fn new(roots: &[CertificateDer<'_>], mesh: MeshName) -> Result<Self, Error> {
        Ok(Self { roots: ArcSwap::from_pointee(Roots::new(roots)?), revoked: ArcSwap::default(), mesh })
    }

    /// The mesh whose members it judges.
    pub fn mesh(&self) -> &MeshName {
        &self.mesh
    }

    /// The roots that are trusted now.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.roots.load().certificates.clone()
    }

    /// Trusts these roots, and no others, from now on.
    ///
    /// # Errors
    /// A root that is no certificate; nothing has changed then.
    pub fn trust(&self, roots: &[CertificateDer<'_>]) -> Result<(), Error> {
        self.roots.store(Arc::new(Roots::new(roots)?));
        Ok(())
    }

    /// What is revoked now.
    pub(crate) fn revoked(&self) -> Arc<Revoked> {
        self.revoked.load_full()
    }

    /// Refuses what these lists name from now on.
    pub(crate) fn revoke(&self, revoked: Revoked) {
        self.revoked.store(Arc::new(revoked));
    }

    /// As [`verify`](Self::verify), for a certificate that may have expired up to [`RENEWABLE`] ago.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub fn standing(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(Identity, Standing), Error> {
        let (leaf, _) = pair(chain)?;
        let since = expires(leaf)?;
        let end = UnixTime::since_unix_epoch(Duration::from_secs(since.as_second().try_into().unwrap_or(0)));
        if now <= end || now.as_secs() - end.as_secs() > RENEWABLE.as_secs() {
            return Ok((self.verify(chain, now)?, Standing::Valid));
        }
        Ok((self.verify(chain, end)?, Standing::Expired { since }))
    }

    /// The identity that `chain` (leaf, then intermediate) certifies at `now`.
    ///
    /// Holds only if the leaf was issued by this very intermediate and that by a trusted root, both within their
    /// time; the leaf names exactly one identity, of our mesh and of the intermediate's cluster; its address is in
    /// the intermediate's range; and it may be both client and server.
    ///
    /// # Errors
    /// The first of these that does not hold.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Identity, Error> {
        let (leaf_der, intermediate_der) = pair(chain)?;
        self.check_path(leaf_der, intermediate_der, now)?;

        let malformed = |source| Error::Invalid { subject: claimed_subject(leaf_der), source };
        let leaf = parse(leaf_der).ok_or_else(|| malformed(webpki::Error::BadDer))?;
        let intermediate = parse(intermediate_der).ok_or_else(|| malformed(webpki::Error::BadDer))?;

        let uri = only_uri(&leaf)?;
        let mut identity = parse_identity(uri)?;
        let subject = || uri.to_owned();
        let both = matches!(leaf.extended_key_usage(), Ok(Some(usage)) if usage.value.client_auth && usage.value.server_auth);
        if !both {
            return Err(Error::Usage { subject: subject() });
        }
        if identity.mesh != self.mesh {
            let (claimed, expected) = (identity.mesh, self.mesh.clone());
            return Err(Error::OtherMesh { subject: subject(), claimed, expected });
        }
        identity.address = extension(&leaf, ADDRESS_OID)
            .and_then(decode_address)
            .ok_or(Error::NoExtension("leaf", "address"))?;
        let scope = extension(&intermediate, SCOPE_OID)
            .and_then(Scope::decode)
            .ok_or(Error::NoExtension("intermediate", "cluster and addresses"))?;
        if identity.cluster != scope.cluster {
            let (claimed, certified) = (identity.cluster, scope.cluster);
            return Err(Error::OtherCluster { subject: subject(), claimed, certified });
        }
        if !scope.holds(identity.address) {
            let (address, first, last) = (identity.address, scope.first, scope.last);
            return Err(Error::AddressOutOfRange { subject: subject(), address, first, last });
        }
        if let Some(at) = self.revoked.load().since(&identity, &fingerprint(leaf.public_key())) {
            return Err(Error::Revoked { subject: subject(), at });
        }
        Ok(identity)
    }

    /// Whether the key of the chain's leaf signed `message` by [`Credentials::sign`](super::Credentials::sign).
    /// Says nothing about the chain itself: that is [`verify`](Self::verify), whose result the caller may keep.
    ///
    /// # Errors
    /// [`Error::Signature`], or a chain that is none.
    pub fn verify_signature(
        &self,
        chain: &[CertificateDer<'_>],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Error> {
        let (leaf, _) = pair(chain)?;
        let leaf = parse(leaf).ok_or(Error::Signature)?;
        if leaf.public_key().algorithm.algorithm != OID_SIG_ED25519 {
            return Err(Error::Signature);
        }
        let key = UnparsedPublicKey::new(&ED25519, &leaf.public_key().subject_public_key.data);
        key.verify(&[SIGNING_CONTEXT, message].concat(), signature).map_err(|_| Error::Signature)
    }

    fn check_path(
        &self,
        leaf_der: &CertificateDer<'_>,
        intermediate_der: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let refused = |source| refusal(claimed_subject(leaf_der), source);
        let leaf = webpki::EndEntityCert::try_from(leaf_der).map_err(refused)?;
        // A leaf that a root signed itself would otherwise pass beside any intermediate, whose word then counts.
        let through_intermediate = |path: &webpki::VerifiedPath<'_>| {
            let mut used = path.intermediate_certificates();
            match (used.next(), used.next()) {
                (Some(one), None) if one.der() == *intermediate_der => Ok(()),
                _ => Err(webpki::Error::UnknownIssuer),
            }
        };
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &self.roots.load().anchors,
            std::slice::from_ref(intermediate_der),
            now,
            webpki::KeyUsage::client_auth(),
            None,
            Some(&through_intermediate),
        )
        .map(drop)
        .map_err(refused)
    }
}

fn fingerprint(key: &x509_parser::x509::SubjectPublicKeyInfo<'_>) -> [u8; 32] {
    key_fingerprint(&key.subject_public_key.data)
}

/// SHA-256 of a raw public key, by which keys are told apart.
pub fn key_fingerprint(key: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, key).as_ref());
    out
}

/// Begin and end of validity of a certificate, as it says itself.
pub(super) fn life(certificate: &CertificateDer<'_>) -> Result<(Timestamp, Timestamp), Error> {
    let refused = || Error::Invalid { subject: "unnamed peer".into(), source: webpki::Error::BadDer };
    let parsed = parse(certificate).ok_or_else(refused)?;
    let begin = Timestamp::from_second(parsed.validity().not_before.timestamp()).map_err(|_| refused())?;
    Ok((begin, expires(certificate)?))
}

/// End of validity of a certificate, as it says itself.
///
/// # Errors
/// Bytes that are no certificate.
pub fn expires(certificate: &CertificateDer<'_>) -> Result<Timestamp, Error> {
    let refused = || Error::Invalid { subject: "unnamed peer".into(), source: webpki::Error::BadDer };
    let certificate = parse(certificate).ok_or_else(refused)?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).map_err(|_| refused())
}

/// The identity that a certificate claims, unverified and without its address.
///
/// # Errors
/// A certificate that names not exactly one identity.
pub(crate) fn claimed_identity(certificate: &CertificateDer<'_>) -> Result<Identity, Error> {
    let parsed = parse(certificate).ok_or(Error::NoIdentity(0))?;
    parse_identity(only_uri(&parsed)?)
}

/// What the intermediate `certificate` may certify, as it says itself.
pub(crate) fn claimed_scope(certificate: &CertificateDer<'_>) -> Option<Scope> {
    extension(&parse(certificate)?, SCOPE_OID).and_then(Scope::decode)
}

/// The one URI name of `certificate`, unverified.
pub(crate) fn claimed_uri(certificate: &CertificateDer<'_>) -> Option<String> {
    only_uri(&parse(certificate)?).ok().map(str::to_owned)
}

/// The raw public key of a certificate; `None` for bytes that are none.
pub fn raw_public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    public_key(certificate)
}

/// The raw public key of `certificate`.
pub(crate) fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    Some(parse(certificate)?.public_key().subject_public_key.data.to_vec())
}

/// Whether `endorsement` is a certificate by one of `trusted` for the very key and mesh of `root`, as an authority
/// of the same kind: without a scope, for a root also certifies each intermediate, whose owner must not pass it off as
/// the word for a root. Times do not matter: a root is trusted until it is taken off the list.
pub(crate) fn endorses(
    trusted: &[CertificateDer<'_>],
    endorsement: &CertificateDer<'_>,
    root: &CertificateDer<'_>,
) -> bool {
    let (Some(word), Some(new)) = (parse(endorsement), parse(root)) else { return false };
    let unlimited = |authority: &X509Certificate<'_>| {
        Oid::from(SCOPE_OID).is_ok_and(|oid| matches!(authority.get_extension_unique(&oid), Ok(None)))
    };
    let same = unlimited(&word)
        && unlimited(&new)
        && word.public_key().subject_public_key.data == new.public_key().subject_public_key.data
        && word.subject() == new.subject()
        && word.is_ca()
        && new.is_ca()
        && only_uri(&word).ok().is_some_and(|uri| only_uri(&new).ok() == Some(uri));
    let signed_by = |signer: &CertificateDer<'_>| {
        let Some(signer) = parse(signer) else { return false };
        let key = UnparsedPublicKey::new(&ED25519, &signer.public_key().subject_public_key.data);
        signer.public_key().algorithm.algorithm == OID_SIG_ED25519
            && word.signature_algorithm.algorithm == OID_SIG_ED25519
            && only_uri(&signer).ok() == only_uri(&word).ok()
            && key.verify(word.tbs_certificate.as_ref(), &word.signature_value.data).is_ok()
    };
    same && trusted.iter().any(signed_by)
}

/// Whom to name in a message about a certificate that may be anybody's.
fn claimed_subject(certificate: &CertificateDer<'_>) -> String {
    claimed_uri(certificate).map_or_else(|| "unnamed peer".into(), |uri| cut(&uri))
}

fn pair<'a, 'c>(
    chain: &'a [CertificateDer<'c>],
) -> Result<(&'a CertificateDer<'c>, &'a CertificateDer<'c>), Error> {
    match chain {
        [] => Err(Error::NoCertificate),
        [leaf, intermediate] => Ok((leaf, intermediate)),
        other => Err(Error::ChainLength(other.len())),
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

fn extension<'a>(certificate: &X509Certificate<'a>, oid: &[u64]) -> Option<&'a [u8]> {
    let oid = Oid::from(oid).ok()?;
    // Twice the same extension is an error, hence no answer.
    certificate.get_extension_unique(&oid).ok().flatten().map(|found| found.value)
}

fn only_uri<'a>(certificate: &X509Certificate<'a>) -> Result<&'a str, Error> {
    let names = match certificate.subject_alternative_name() {
        Ok(Some(found)) => &found.value.general_names[..],
        Ok(None) | Err(_) => &[],
    };
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris[..] {
        [uri] => Ok(uri),
        _ => Err(Error::NoIdentity(uris.len())),
    }
}

pub(super) fn parse_identity(uri: &str) -> Result<Identity, Error> {
    let wrong = |source: Option<ParseError>| Error::NotAnIdentity { uri: cut(uri), source };
    let rest = uri.strip_prefix("spiffe://").ok_or_else(|| wrong(None))?;
    let parts: Vec<&str> = rest.split('/').collect();
    let [mesh, cluster, role, node] = parts[..] else { return Err(wrong(None)) };
    Ok(Identity {
        mesh: mesh.parse().map_err(|e| wrong(Some(e)))?,
        cluster: cluster.parse().map_err(|e| wrong(Some(e)))?,
        role: role.parse().map_err(|e| wrong(Some(e)))?,
        node: node.parse().map_err(|e| wrong(Some(e)))?,
        address: plexus_proto::id::Address(0),
    })
}

fn refusal(subject: String, source: webpki::Error) -> Error {
    match source {
        // The second: a root of the same name, with another key.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            Error::OtherAuthority { subject }
        }
        webpki::Error::CertExpired { not_after, .. } => {
            Error::Expired { subject, not_after: timestamp(not_after) }
        }
        webpki::Error::CertNotValidYet { not_before, .. } => {
            Error::NotYetValid { subject, not_before: timestamp(not_before) }
        }
        webpki::Error::RequiredEkuNotFoundContext(_) => Error::Usage { subject },
        source => Error::Invalid { subject, source },
    }
}

fn timestamp(at: UnixTime) -> Timestamp {
    i64::try_from(at.as_secs()).ok().and_then(|s| Timestamp::from_second(s).ok()).unwrap_or(Timestamp::MAX)
}

fn cut(text: &str) -> String {
    text.chars().take(300).collect()
}
