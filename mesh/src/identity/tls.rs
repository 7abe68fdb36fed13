//! Our verdict on certificates, in the terms of rustls. No name of a server is looked at: the identity is the name.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, NamedGroup, OtherError, PeerIncompatible,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::Expired;
use super::error::Error;
use super::verifier::Verifier;

/// The one key exchange of every link, session and call for a certificate: safe as long as either half of it is. With
/// a single group there is nothing that an attacker could make two nodes fall back to.
pub(crate) const KEY_EXCHANGE: NamedGroup = NamedGroup::X25519MLKEM768;

/// What TLS computes with.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let all = rustls::crypto::aws_lc_rs::default_provider();
    let kx_groups = all.kx_groups.iter().copied().filter(|group| group.name() == KEY_EXCHANGE).collect();
    Arc::new(CryptoProvider { kx_groups, ..all })
}

#[derive(Debug)]
pub(super) struct PeerVerifier {
    pub(super) verifier: Arc<Verifier>,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) expired: Expired,
}

impl PeerVerifier {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let mut chain = vec![leaf.clone()];
        chain.extend_from_slice(intermediates);
        let verdict = match self.expired {
            Expired::Refused => self.verifier.verify(&chain, now).map(drop),
            Expired::MayRenew => self.verifier.standing(&chain, now).map(drop),
        };
        verdict.map_err(refuse)
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }
}

/// Keeps what TLS has an alert for, so that the other end learns the reason too.
fn refuse(error: Error) -> rustls::Error {
    rustls::Error::InvalidCertificate(match error {
        Error::OtherAuthority { .. } => CertificateError::UnknownIssuer,
        Error::Expired { .. } => CertificateError::Expired,
        Error::NotYetValid { .. } => CertificateError::NotValidYet,
        Error::Usage { .. } => CertificateError::InvalidPurpose,
        Error::Revoked { .. } => CertificateError::Revoked,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

fn tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(PeerIncompatible::Tls13RequiredForQuic)
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
