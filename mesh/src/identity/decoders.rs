//! What is read of certificates that anybody may send, for fuzzing.

use std::time::Duration;

use plexus_proto::id::Identity;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::extension::{Scope, decode_address, encode_address};
use super::verifier::{self, Verifier};

/// Certificates, each behind its length in two bytes, as chain and as endorsement of a root; and the same bytes as
/// whatever else a certificate holds. `root` is that of mesh `demo` at `now`, in seconds of Unix time; whom it certifies.
pub fn certificates(root: &[u8], now: u64, data: &[u8]) -> Option<Identity> {
    if let Some(scope) = Scope::decode(data) {
        assert_eq!(scope.encode(), data, "one encoding per value");
    }
    if let Some(address) = decode_address(data) {
        assert_eq!(encode_address(address), data, "one encoding per value");
    }
    if let Ok(identity) = verifier::parse_identity(&String::from_utf8_lossy(data)) {
        assert_eq!(identity.uri().as_bytes(), data);
    }
    single(&CertificateDer::from(data));
    let chain = split(data);
    chain.iter().for_each(single);
    let trusted = [CertificateDer::from(root)];
    if let [word, new] = &chain[..] {
        let _ = verifier::endorses(&trusted, word, new);
    }
    let mesh = "demo".parse().expect("a valid name");
    let judge = Verifier::new(&trusted, mesh).expect("the root is one");
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    let _ = judge.verify_signature(&chain, data, data);
    let standing = judge.standing(&chain, now).ok().map(|(identity, _)| identity);
    let verified = judge.verify(&chain, now).ok();
    assert!(verified.is_none() || verified == standing, "who is valid may also renew");
    standing
}

fn split(mut data: &[u8]) -> Vec<CertificateDer<'_>> {
    let mut all = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let (one, rest) = rest.split_at(rest.len().min(u16::from_be_bytes(*length).into()));
        all.push(CertificateDer::from(one));
        data = rest;
    }
    all
}

/// One certificate that nobody has verified.
fn single(certificate: &CertificateDer<'_>) {
    let _ = verifier::raw_public_key(certificate);
    let _ = verifier::expires(certificate);
    let _ = verifier::life(certificate);
    let _ = verifier::claimed_identity(certificate);
    let _ = verifier::claimed_uri(certificate);
    let _ = verifier::claimed_scope(certificate);
}
