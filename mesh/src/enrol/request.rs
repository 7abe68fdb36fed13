//! Requests for a certificate: the key is made here and stays here; what travels is its public half, a name, and the
//! proof that whoever asks holds the private one.

use std::path::Path;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use plexus_proto::id::NodeId;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519};
use rustls_pki_types::CertificateSigningRequestDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_SIG_ED25519, OID_X509_COMMON_NAME};
use x509_parser::prelude::FromDer;

use super::files;
use crate::identity;

/// Longest request that is looked at; ours have about 220 bytes.
const REQUEST_MAX: usize = 2048;

/// A request that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not PKCS#10.
    #[error("it is no certificate signing request")]
    NotARequest,
    /// Another kind of key.
    #[error("its key is not Ed25519")]
    KeyKind,
    /// Not signed by its own key.
    #[error("it is not signed by its own key")]
    Signature,
    /// Not exactly one common name that is a node's name.
    #[error("its common name is no node name")]
    Name,
}

/// What a request says, its signature found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The name it asks for.
    pub node: NodeId,
    /// The raw public key.
    pub key: Vec<u8>,
}

impl Request {
    /// Reads a request in DER form and checks its signature. Bounded, whatever the bytes are.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn parse(der: &[u8]) -> Result<Self, Error> {
        if der.len() > REQUEST_MAX {
            return Err(Error::NotARequest);
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| Error::NotARequest)?;
        if !rest.is_empty() {
            return Err(Error::NotARequest);
        }
        let info = &request.certification_request_info;
        if info.subject_pki.algorithm.algorithm != OID_SIG_ED25519
            || request.signature_algorithm.algorithm != OID_SIG_ED25519
        {
            return Err(Error::KeyKind);
        }
        let key = info.subject_pki.subject_public_key.data.to_vec();
        UnparsedPublicKey::new(&ED25519, &key)
            .verify(info.raw, &request.signature_value.data)
            .map_err(|_| Error::Signature)?;
        let mut names = info.subject.iter_by_oid(&OID_X509_COMMON_NAME);
        let (Some(name), None) = (names.next(), names.next()) else { return Err(Error::Name) };
        let node = name.as_str().ok().and_then(|name| name.parse().ok()).ok_or(Error::Name)?;
        Ok(Self { node, key })
    }
}

/// A key of this machine, and its request.
pub struct LocalKey {
    pair: KeyPair,
}

impl std::fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LocalKey(..)")
    }
}

impl LocalKey {
    /// The key in identity folder `dir`, made and synced if there is none. A second call gives the same key, so that
    /// whatever was cut short can be begun again.
    ///
    /// # Errors
    /// A folder or file that cannot be read or written, or a file that is no Ed25519 key.
    pub fn open_or_make(dir: &Path) -> Result<Self, files::Error> {
        let path = dir.join(identity::KEY_FILE);
        if path.exists() {
            let der = identity::read_key(&path).map_err(files::Error::Identity)?;
            let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)
                .map_err(|_| files::Error::Identity(identity::Error::KeyKind { path }))?;
            return Ok(Self { pair });
        }
        let pair = KeyPair::generate_for(&PKCS_ED25519).map_err(|_| files::Error::NoEntropy)?;
        let text = zeroize::Zeroizing::new(pair.serialize_pem());
        files::write_new(&path, text.as_bytes(), 0o600)?;
        Ok(Self { pair })
    }

    /// The raw public key.
    pub fn public(&self) -> &[u8] {
        self.pair.public_key_raw()
    }

    /// Asks to be `node`.
    ///
    /// # Errors
    /// [`Error::NotARequest`] if it cannot be made, which does not happen with a key of ours.
    pub fn request(&self, node: &NodeId) -> Result<CertificateSigningRequestDer<'static>, Error> {
        let mut params = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, node.as_str());
        params.distinguished_name = subject;
        let request = params.serialize_request(&self.pair).map_err(|_| Error::NotARequest)?;
        Ok(request.der().clone())
    }

    /// The request as a file to be carried to `plexus ca sign`.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub fn request_pem(&self, node: &NodeId) -> Result<String, Error> {
        Ok(identity::block("CERTIFICATE REQUEST", &self.request(node)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn made() -> (LocalKey, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let key = LocalKey::open_or_make(dir.path()).unwrap();
        let again = LocalKey::open_or_make(dir.path()).unwrap();
        assert_eq!(key.public(), again.public());
        let request = key.request(&"node-1".parse().unwrap()).unwrap();
        (key, request.to_vec())
    }

    #[test]
    fn a_request_names_its_maker_and_shows_the_key() {
        let (key, der) = made();
        let request = Request::parse(&der).unwrap();
        assert_eq!((request.node.as_str(), &request.key[..]), ("node-1", key.public()));
    }

    #[test]
    fn a_request_that_was_altered_asks_for_nothing_else() {
        let (_, der) = made();
        let honest = Request::parse(&der).unwrap();
        for at in 0..der.len() {
            let mut altered = der.clone();
            altered[at] ^= 1;
            // Some bytes carry no meaning, such as the count of unused bits.
            if let Ok(request) = Request::parse(&altered) {
                assert_eq!(request, honest, "byte {at}");
            }
        }
        let mut longer = der.clone();
        longer.push(0);
        assert!(matches!(Request::parse(&longer), Err(Error::NotARequest)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Request::parse(&bytes);
        }
    }
}
