//! Who a node is, proven by certificate; who its peer is, by the same proof.
//!
//! A chain is a leaf and the intermediate that issued it. The leaf's only URI name is the identity,
//! `spiffe://<mesh>/<cluster>/<role>/<node>`, and an extension carries its overlay address. An extension of the
//! intermediate names the one cluster and the range of addresses that it may certify; [`Verifier`] enforces both.
//! What a peer claims elsewhere counts for nothing, and no server name is ever checked.
//!
//! Connections are TLS 1.3 with certificates on both sides, without early data. Sessions are not resumed: a
//! resumed session never shows its certificate again, and so would outlive it. The hybrid post-quantum key
//! exchange is offered first.

mod error;
pub(crate) mod extension;
mod tls;
mod verifier;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use jiff::Timestamp;
use plexus_proto::id::Identity;
use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};

pub use error::Error;
pub use verifier::{Verifier, expires};
pub(crate) use verifier::{claimed_identity, claimed_scope, claimed_uri, public_key};

/// File of the trusted roots.
pub const ROOTS_FILE: &str = "ca.pem";
/// File of the leaf and its intermediate.
pub const CHAIN_FILE: &str = "node.pem";
/// File of the private key.
pub const KEY_FILE: &str = "node.key";

/// A node's own certificates and key, found valid. Clones share one copy.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    identity: Identity,
    chain: Vec<CertificateDer<'static>>,
    certified: Arc<SingleCertAndKey>,
    signer: Ed25519KeyPair,
    verifier: Arc<Verifier>,
    expires: Timestamp,
    roots: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Credentials").field(&self.0.identity.uri()).finish()
    }
}

impl Credentials {
    /// Reads `ca.pem` (trusted roots), `node.pem` (leaf, intermediate) and `node.key` (PKCS#8) from `dir`, and
    /// judges them by the clock of this machine.
    ///
    /// # Errors
    /// A file that is missing or is something else, a key of another certificate, and every reason for which a
    /// peer would refuse the certificate.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        Self::load_at(dir, UnixTime::now())
    }

    /// As [`load`](Self::load), judged at `now`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_at(dir: &Path, now: UnixTime) -> Result<Self, Error> {
        let (chain_path, key_path) = (dir.join(CHAIN_FILE), dir.join(KEY_FILE));
        let roots = read_certificates(&dir.join(ROOTS_FILE))?;
        let chain = read_certificates(&chain_path)?;
        let signer_der = read_key(&key_path)?;

        let signer = Ed25519KeyPair::from_pkcs8(signer_der.secret_pkcs8_der())
            .map_err(|_| Error::KeyKind { path: key_path.clone() })?;
        let leaf = chain.first().ok_or(Error::NoCertificate)?;
        if public_key(leaf).as_deref() != Some(signer.public_key().as_ref()) {
            return Err(Error::KeyMismatch { certificate: chain_path, key: key_path });
        }

        let own = |source| Error::Own { path: chain_path.clone(), source: Box::new(source) };
        // Our own mesh is whatever our own certificate says; the roots decide whether it may.
        let claimed = claimed_identity(leaf).map_err(own)?;
        let verifier = Verifier::new(&roots, claimed.mesh).map_err(own)?;
        let identity = verifier.verify(&chain, now).map_err(own)?;
        let expires = expires(leaf).map_err(own)?;

        let key = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&signer_der)
            .map_err(|_| Error::KeyKind { path: key_path })?;
        let certified = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain.clone(), key)));
        Ok(Self(Arc::new(Inner {
            identity,
            chain,
            certified,
            signer,
            verifier: Arc::new(verifier),
            expires,
            roots,
        })))
    }

    /// Who we are.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// Leaf, then intermediate.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.chain
    }

    /// Whether certificates and trusted roots are those of `other`.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.0.chain, &self.0.roots) == (&other.0.chain, &other.0.roots)
    }

    /// When the leaf ends.
    pub fn expires(&self) -> Timestamp {
        self.0.expires
    }

    /// Signs `message` with the leaf's key. The signature is good for [`Verifier::verify_signature`] only: a
    /// fixed context goes in front of the message, so it can pass for nothing that TLS signs.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.signer.sign(&[verifier::SIGNING_CONTEXT, message].concat()).as_ref().to_vec()
    }

    /// Judges peers against the roots that we trust.
    pub fn verifier(&self) -> Arc<Verifier> {
        Arc::clone(&self.0.verifier)
    }

    /// Accepting side: TLS 1.3, the peer's certificate demanded and judged, neither early data nor resumption.
    pub fn server_config(&self, alpn: &[&[u8]]) -> rustls::ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("aws-lc-rs speaks TLS 1.3")
            .with_client_cert_verifier(self.peer_verifier(provider))
            .with_cert_resolver(self.0.certified.clone());
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config
    }

    /// Dialling side: as [`server_config`](Self::server_config). The server name of a connection is neither sent
    /// nor checked; whatever is passed to rustls or quinn for it will do.
    pub fn client_config(&self, alpn: &[&[u8]]) -> rustls::ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("aws-lc-rs speaks TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(self.peer_verifier(provider))
            .with_client_cert_resolver(self.0.certified.clone());
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false;
        config
    }

    fn peer_verifier(&self, provider: Arc<rustls::crypto::CryptoProvider>) -> Arc<tls::PeerVerifier> {
        Arc::new(tls::PeerVerifier { verifier: self.verifier(), provider })
    }
}

/// The identity at the other end of an established connection, judged again now.
///
/// # Errors
/// As [`Verifier::verify`]; the handshake has made the same check, so this fails only if time has passed.
pub fn peer_identity(connection: &quinn::Connection, verifier: &Verifier) -> Result<Identity, Error> {
    let shown = connection.peer_identity().ok_or(Error::NoCertificate)?;
    let chain = shown.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| Error::NoCertificate)?;
    certified(&chain, verifier)
}

/// Whom the certificates that a peer has shown name, judged now.
pub(crate) fn certified(shown: &[CertificateDer<'_>], verifier: &Verifier) -> Result<Identity, Error> {
    if shown.is_empty() {
        return Err(Error::NoCertificate);
    }
    verifier.verify(shown, UnixTime::now())
}

pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => Err(Error::NotPem { path: path.to_owned(), wanted: "certificate" }),
    }
}

pub(crate) fn read_key(path: &Path) -> Result<PrivatePkcs8KeyDer<'static>, Error> {
    let text = zeroize::Zeroizing::new(read(path)?);
    PrivatePkcs8KeyDer::from_pem_slice(&text)
        .map_err(|_| Error::NotPem { path: path.to_owned(), wanted: "PKCS#8 private key" })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: PathBuf::from(path), source })
}

#[cfg(test)]
mod tests;
