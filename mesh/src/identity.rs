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

#[cfg(any(test, feature = "testing"))]
pub mod decoders;
mod error;
pub(crate) mod extension;
mod tls;
mod verifier;

pub(crate) use tls::{KEY_EXCHANGE, provider};

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use plexus_proto::id::Identity;
use rustls::SignatureScheme;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};

pub use error::Error;
pub use verifier::{RENEWABLE, Standing, Verifier, expires, key_fingerprint, raw_public_key};
pub(crate) use verifier::{claimed_identity, claimed_scope, claimed_uri, endorses, public_key};

/// File of the trusted roots.
pub const ROOTS_FILE: &str = "ca.pem";
/// File of the leaf and its intermediate.
pub const CHAIN_FILE: &str = "node.pem";
/// File of the private key.
pub const KEY_FILE: &str = "node.key";

/// A node's own certificates and key, found valid. Clones share one copy, and so all see a renewed certificate.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

/// The key and who holds it stay; the certificate for it is renewed.
struct Inner {
    identity: Identity,
    key: Arc<dyn SigningKey>,
    signer: Ed25519KeyPair,
    verifier: Arc<Verifier>,
    shown: Arc<Shown>,
}

/// The certificate that is shown in handshakes from now on.
struct Shown(ArcSwap<Current>);

struct Current {
    chain: Arc<Vec<CertificateDer<'static>>>,
    certified: Arc<CertifiedKey>,
    issued: Timestamp,
    expires: Timestamp,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown(..)")
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().certified.clone())
    }
}

/// What becomes of a peer whose certificate has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// No connection.
    Refused,
    /// A connection, on which it may renew and nothing else, for [`RENEWABLE`]. The caller asks
    /// [`Verifier::standing`] which it is.
    MayRenew,
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
    /// peer would refuse the certificate but its age: an expired one still is good for being renewed.
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
        // An expired certificate is good for one thing, and that is why it is loaded: to be renewed.
        let (identity, _) = verifier.standing(&chain, now).map_err(own)?;
        let key = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&signer_der)
            .map_err(|_| Error::KeyKind { path: key_path })?;
        let shown = Current::new(chain, key.clone()).map_err(own)?;
        Ok(Self(Arc::new(Inner {
            identity,
            key,
            signer,
            verifier: Arc::new(verifier),
            shown: Arc::new(Shown(ArcSwap::from_pointee(shown))),
        })))
    }

    /// Shows `chain` in every handshake from now on. Connections that are up stay as they are.
    ///
    /// # Errors
    /// A chain that is not valid at `now`, or certifies somebody else or another key.
    pub fn renewed(&self, chain: Vec<CertificateDer<'static>>, now: UnixTime) -> Result<(), Error> {
        let found = self.0.verifier.verify(&chain, now)?;
        let leaf = chain.first().ok_or(Error::NoCertificate)?;
        if found != self.0.identity || public_key(leaf).as_deref() != Some(self.public_key()) {
            return Err(Error::NotOurs { subject: found.uri() });
        }
        self.0.shown.0.store(Arc::new(Current::new(chain, self.0.key.clone())?));
        Ok(())
    }

    /// The raw Ed25519 public key.
    pub fn public_key(&self) -> &[u8] {
        self.0.signer.public_key().as_ref()
    }

    /// Who we are.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// Leaf, then intermediate.
    pub fn chain(&self) -> Arc<Vec<CertificateDer<'static>>> {
        self.0.shown.0.load().chain.clone()
    }

    /// Whether certificates and trusted roots are those of `other`.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.chain() == other.chain() && self.0.verifier.roots() == other.0.verifier.roots()
    }

    /// Takes over certificate and trusted roots of `other`, if they are for the same node and the same key. False if
    /// they are not; nothing has changed then.
    pub(crate) fn take_over(&self, other: &Self) -> bool {
        if self.0.identity != other.0.identity || self.public_key() != other.public_key() {
            return false;
        }
        let Ok(current) = Current::new(other.chain().to_vec(), self.0.key.clone()) else { return false };
        if self.0.verifier.trust(&other.0.verifier.roots()).is_err() {
            return false;
        }
        self.0.shown.0.store(Arc::new(current));
        true
    }

    /// When the leaf ends.
    pub fn expires(&self) -> Timestamp {
        self.0.shown.0.load().expires
    }

    /// When the leaf's life began.
    pub fn issued(&self) -> Timestamp {
        self.0.shown.0.load().issued
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
        self.server_config_for(alpn, Expired::Refused)
    }

    /// As [`server_config`](Self::server_config), with a say on peers that have expired.
    pub fn server_config_for(&self, alpn: &[&[u8]], expired: Expired) -> rustls::ServerConfig {
        let provider = tls::provider();
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("aws-lc-rs speaks TLS 1.3")
            .with_client_cert_verifier(self.peer_verifier(provider, expired))
            .with_cert_resolver(self.0.shown.clone());
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config
    }

    /// Dialling side: as [`server_config`](Self::server_config). The server name of a connection is neither sent
    /// nor checked; whatever is passed to rustls or quinn for it will do.
    pub fn client_config(&self, alpn: &[&[u8]]) -> rustls::ClientConfig {
        self.client_config_for(alpn, Expired::Refused)
    }

    /// As [`client_config`](Self::client_config), with a say on peers that have expired.
    pub fn client_config_for(&self, alpn: &[&[u8]], expired: Expired) -> rustls::ClientConfig {
        let provider = tls::provider();
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("aws-lc-rs speaks TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(self.peer_verifier(provider, expired))
            .with_client_cert_resolver(self.0.shown.clone());
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false;
        config
    }

    /// Accepting side of the enrolment door: TLS 1.3 without a certificate of the caller. Shows the roots behind our
    /// own chain, so that a caller who knows but a root's fingerprint can judge it.
    pub(crate) fn enrolment_config(&self, alpn: &[u8]) -> rustls::ServerConfig {
        let provider = tls::provider();
        let mut chain = self.chain().to_vec();
        chain.extend(self.0.verifier.roots());
        let certified = CertifiedKey::new(chain, self.0.key.clone());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("aws-lc-rs speaks TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![alpn.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config
    }

    fn peer_verifier(
        &self,
        provider: Arc<rustls::crypto::CryptoProvider>,
        expired: Expired,
    ) -> Arc<tls::PeerVerifier> {
        Arc::new(tls::PeerVerifier { verifier: self.verifier(), provider, expired })
    }
}

impl Current {
    fn new(chain: Vec<CertificateDer<'static>>, key: Arc<dyn SigningKey>) -> Result<Self, Error> {
        let leaf = chain.first().ok_or(Error::NoCertificate)?;
        let (issued, expires) = verifier::life(leaf)?;
        let certified = Arc::new(CertifiedKey::new(chain.clone(), key));
        Ok(Self { chain: Arc::new(chain), certified, issued, expires })
    }
}

/// The identity at the other end of an established connection, judged again now.
///
/// # Errors
/// As [`Verifier::verify`]; the handshake has made the same check, so this fails only if time has passed.
pub fn peer_identity(connection: &quinn::Connection, verifier: &Verifier) -> Result<Identity, Error> {
    verifier.verify(&peer_chain(connection)?, UnixTime::now())
}

/// The certificates that the other end of a connection showed.
pub(crate) fn peer_chain(connection: &quinn::Connection) -> Result<Vec<CertificateDer<'static>>, Error> {
    let shown = connection.peer_identity().ok_or(Error::NoCertificate)?;
    let chain = shown.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| Error::NoCertificate)?;
    Ok(*chain)
}

/// Certificates as the PEM text of a file.
pub(crate) fn pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| block("CERTIFICATE", der)).collect()
}

/// One PEM block, in lines of 64.
pub(crate) fn block(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
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
