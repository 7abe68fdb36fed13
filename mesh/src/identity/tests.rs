//! One check per verdict, with certificates made by hand where the authority would refuse to make them.

use std::time::Duration;

use plexus_proto::id::{Address, NodeId, Role};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    PKCS_ED25519, SanType,
};
use tempfile::TempDir;

use super::extension::{ADDRESS_OID, SCOPE_OID, Scope, encode_address};
use super::*;
use crate::ca::{CertificateAuthority, LEAF_VALIDITY};

/// What a chain says; each test bends one field.
struct Forge {
    uris: Vec<String>,
    address: Option<Address>,
    scope: Option<Scope>,
    usages: Vec<ExtendedKeyUsagePurpose>,
    leaf_from_root: bool,
}

impl Default for Forge {
    fn default() -> Self {
        Self {
            uris: vec!["spiffe://mesh/main/hop/h".into()],
            address: Some(Address(5)),
            scope: Some(Scope { cluster: "main".parse().unwrap(), first: Address(1), last: Address(9) }),
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
            leaf_from_root: false,
        }
    }
}

fn params(name: &str, ca: bool) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    if ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    params
}

fn key() -> rcgen::KeyPair {
    rcgen::KeyPair::generate_for(&PKCS_ED25519).unwrap()
}

impl Forge {
    fn verify(self) -> Result<Identity, Error> {
        let (root_key, mid_key, leaf_key) = (key(), key(), key());
        let root = params("root", true);
        let root_der = root.self_signed(&root_key).unwrap();
        let root_issuer = Issuer::new(root, root_key);
        let mut mid = params("mid", true);
        if let Some(scope) = &self.scope {
            mid.custom_extensions.push(CustomExtension::from_oid_content(SCOPE_OID, scope.encode()));
        }
        let mid_der = mid.signed_by(&mid_key, &root_issuer).unwrap();
        let mid_issuer = Issuer::new(mid, mid_key);
        let mut leaf = params("leaf", false);
        leaf.subject_alt_names =
            self.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
        leaf.extended_key_usages = self.usages;
        if let Some(address) = self.address {
            leaf.custom_extensions
                .push(CustomExtension::from_oid_content(ADDRESS_OID, encode_address(address)));
        }
        let issuer = if self.leaf_from_root { &root_issuer } else { &mid_issuer };
        let leaf_der = leaf.signed_by(&leaf_key, issuer).unwrap();
        let verifier = Verifier::new(&[root_der.into()], "mesh".parse().unwrap()).unwrap();
        verifier.verify(&[leaf_der.into(), mid_der.into()], UnixTime::now())
    }

    fn check_refused(self, text: &str) {
        assert_eq!(self.verify().unwrap_err().to_string(), text);
    }
}

#[test]
fn a_good_chain_gives_its_identity() {
    let identity = Forge::default().verify().unwrap();
    assert_eq!((identity.uri().as_str(), identity.address), ("spiffe://mesh/main/hop/h", Address(5)));
}

#[test]
fn other_cluster_is_refused() {
    Forge { uris: vec!["spiffe://mesh/other/hop/h".into()], ..Forge::default() }.check_refused(
        "certificate of spiffe://mesh/other/hop/h claims cluster other, its intermediate is certified for main",
    );
}

#[test]
fn other_mesh_is_refused() {
    Forge { uris: vec!["spiffe://else/main/hop/h".into()], ..Forge::default() }
        .check_refused("certificate of spiffe://else/main/hop/h belongs to mesh else, not mesh");
}

#[test]
fn exactly_one_identity_is_needed() {
    Forge { uris: vec![], ..Forge::default() }
        .check_refused("certificate must carry exactly one URI name, it carries 0");
    Forge {
        uris: vec!["spiffe://mesh/main/hop/h".into(), "spiffe://mesh/main/controller/c".into()],
        ..Forge::default()
    }
    .check_refused("certificate must carry exactly one URI name, it carries 2");
}

#[test]
fn a_uri_that_is_no_identity_is_refused() {
    for uri in [
        "https://mesh/main/hop/h",
        "spiffe://mesh",
        "spiffe://mesh/main/hop",
        "spiffe://mesh/main/hop/h/x",
        "spiffe://mesh/main/king/h",
        "spiffe://mesh/main/hop/H",
        "spiffe://mesh//hop/h",
    ] {
        let verdict = Forge { uris: vec![uri.into()], ..Forge::default() }.verify();
        assert!(matches!(verdict, Err(Error::NotAnIdentity { .. })), "{uri}: {verdict:?}");
    }
}

#[test]
fn address_must_be_certified_and_in_range() {
    for outside in [0, 10] {
        let text = format!(
            "address {} of spiffe://mesh/main/hop/h is outside its intermediate's range 00000001 to 00000009",
            Address(outside)
        );
        Forge { address: Some(Address(outside)), ..Forge::default() }.check_refused(&text);
    }
    Forge { address: None, ..Forge::default() }
        .check_refused("leaf lacks the extension that certifies its address");
    Forge { scope: None, ..Forge::default() }
        .check_refused("intermediate lacks the extension that certifies its cluster and addresses");
}

#[test]
fn both_usages_are_needed() {
    for usages in
        [vec![ExtendedKeyUsagePurpose::ClientAuth], vec![ExtendedKeyUsagePurpose::ServerAuth], vec![]]
    {
        Forge { usages, ..Forge::default() }
            .check_refused("certificate of spiffe://mesh/main/hop/h is not for client and server use");
    }
}

#[test]
fn a_leaf_of_the_root_itself_cannot_borrow_an_intermediate() {
    let verdict = Forge { leaf_from_root: true, ..Forge::default() }.verify();
    assert!(matches!(verdict, Err(Error::OtherAuthority { .. })), "{verdict:?}");
}

struct House {
    dir: TempDir,
    authority: CertificateAuthority,
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::init(
            &dir.path().join("ca"),
            &"mesh".parse().unwrap(),
            &"main".parse().unwrap(),
        )
        .unwrap();
        Self { dir, authority }
    }

    fn issue(&self, name: &str) -> PathBuf {
        let out = self.dir.path().join(name);
        let node: NodeId = name.parse().unwrap();
        self.authority.issue(Role::Hop, &node, &out, LEAF_VALIDITY).unwrap();
        out
    }
}

fn after(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + seconds))
}

fn before(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() - seconds))
}

const DAY: u64 = 24 * 60 * 60;

#[test]
fn a_peer_of_another_authority_is_refused_even_with_the_same_names() {
    let (ours, theirs) = (House::new(), House::new());
    let us = Credentials::load(&ours.issue("a")).unwrap();
    let them = Credentials::load(&theirs.issue("a")).unwrap();
    let error = us.verifier().verify(&them.chain(), UnixTime::now()).unwrap_err();
    assert_eq!(error.to_string(), "certificate of spiffe://mesh/main/hop/a was issued by another authority");
}

#[test]
fn time_is_checked_at_both_ends() {
    let house = House::new();
    let us = Credentials::load(&house.issue("a")).unwrap();
    let verify = |now| us.verifier().verify(&us.chain(), now);
    assert!(verify(before(4 * 60)).is_ok(), "backdated against clocks that are behind");
    let early = verify(before(6 * 60)).unwrap_err();
    assert!(matches!(early, Error::NotYetValid { .. }), "{early}");
    assert!(verify(after(30 * DAY - 60)).is_ok());
    let late = verify(after(30 * DAY + 60)).unwrap_err();
    assert!(matches!(late, Error::Expired { not_after, .. } if not_after == us.expires()), "{late}");
}

#[test]
fn chains_of_other_lengths_are_refused() {
    let house = House::new();
    let us = Credentials::load(&house.issue("a")).unwrap();
    let verify = |chain: &[CertificateDer<'_>]| us.verifier().verify(chain, UnixTime::now()).unwrap_err();
    assert!(matches!(verify(&[]), Error::NoCertificate));
    assert!(matches!(verify(&us.chain()[..1]), Error::ChainLength(1)));
    let swapped = [us.chain()[1].clone(), us.chain()[0].clone()];
    assert!(matches!(verify(&swapped), Error::Invalid { .. }));
    let garbage = [CertificateDer::from(vec![7; 40]), us.chain()[1].clone()];
    assert!(matches!(verify(&garbage), Error::Invalid { .. }));
}

#[test]
fn a_signature_is_good_for_its_message_and_signer_only() {
    let house = House::new();
    let us = Credentials::load(&house.issue("a")).unwrap();
    let other = Credentials::load(&house.issue("b")).unwrap();
    let signature = us.sign(b"word");
    let verifier = us.verifier();
    assert!(verifier.verify_signature(&us.chain(), b"word", &signature).is_ok());
    assert!(verifier.verify_signature(&us.chain(), b"work", &signature).is_err(), "another message");
    assert!(verifier.verify_signature(&other.chain(), b"word", &signature).is_err(), "another signer");
    assert!(verifier.verify_signature(&us.chain(), b"word", &[]).is_err(), "nothing");
}

#[test]
fn files_that_do_not_fit_are_named() {
    let house = House::new();
    let (a, b) = (house.issue("a"), house.issue("b"));
    let check = |text: &str| {
        let error = Credentials::load(&a).unwrap_err().to_string();
        assert_eq!(error, text.replace("DIR", a.to_str().unwrap()));
    };
    let key = std::fs::read(a.join(KEY_FILE)).unwrap();
    std::fs::copy(b.join(KEY_FILE), a.join(KEY_FILE)).unwrap();
    check("private key DIR/node.key does not belong to certificate DIR/node.pem");
    std::fs::write(a.join(KEY_FILE), "nonsense").unwrap();
    check("DIR/node.key holds no PKCS#8 private key in PEM form");
    std::fs::remove_file(a.join(KEY_FILE)).unwrap();
    check("cannot read DIR/node.key");
    std::fs::write(a.join(KEY_FILE), key).unwrap();
    std::fs::write(a.join(ROOTS_FILE), "").unwrap();
    check("DIR/ca.pem holds no certificate in PEM form");
    std::fs::copy(House::new().issue("a").join(ROOTS_FILE), a.join(ROOTS_FILE)).unwrap();
    check("certificate DIR/node.pem is not valid");
}

#[test]
fn own_certificate_is_judged_at_load() {
    let house = House::new();
    let a = house.issue("a");
    // Expired, it is still good for its own renewal; after 90 days for nothing.
    let late = Credentials::load_at(&a, after(31 * DAY)).unwrap();
    let standing = late.verifier().standing(&late.chain(), after(31 * DAY)).unwrap().1;
    assert!(matches!(standing, Standing::Expired { .. }));
    assert!(late.verifier().verify(&late.chain(), after(31 * DAY)).is_err());
    let error = Credentials::load_at(&a, after(121 * DAY)).unwrap_err();
    assert!(matches!(error, Error::Own { source, .. } if matches!(*source, Error::Expired { .. })));
}

#[test]
fn debug_shows_the_identity_only() {
    let house = House::new();
    let us = Credentials::load(&house.issue("a")).unwrap();
    assert_eq!(format!("{us:?}"), r#"Credentials("spiffe://mesh/main/hop/a")"#);
}

/// Shakes hands in memory; what each side ended with.
fn handshake(
    client: &Credentials,
    server: &Credentials,
) -> (Result<(), rustls::Error>, Result<(), rustls::Error>) {
    let mut client = rustls::ClientConnection::new(
        Arc::new(client.client_config(&[b"test"])),
        "plexus".try_into().unwrap(),
    )
    .unwrap();
    let mut server = rustls::ServerConnection::new(Arc::new(server.server_config(&[b"test"]))).unwrap();
    let (mut client_verdict, mut server_verdict) = (Ok(()), Ok(()));
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut reader = &wire[..];
        while !reader.is_empty() && server_verdict.is_ok() {
            server.read_tls(&mut reader).unwrap();
            server_verdict = server.process_new_packets().map(drop);
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut reader = &wire[..];
        while !reader.is_empty() && client_verdict.is_ok() {
            client.read_tls(&mut reader).unwrap();
            client_verdict = client.process_new_packets().map(drop);
        }
    }
    assert!(
        client_verdict.is_err()
            || server_verdict.is_err()
            || !client.is_handshaking() && !server.is_handshaking()
    );
    if server_verdict.is_ok() && client_verdict.is_ok() {
        assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let group = client.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768, "the hybrid exchange");
    }
    (client_verdict, server_verdict)
}

#[test]
fn members_of_one_mesh_shake_hands() {
    let house = House::new();
    let (a, b) =
        (Credentials::load(&house.issue("a")).unwrap(), Credentials::load(&house.issue("b")).unwrap());
    assert_eq!(handshake(&a, &b), (Ok(()), Ok(())));
}

#[test]
fn strangers_do_not_shake_hands_in_either_direction() {
    let (ours, theirs) = (House::new(), House::new());
    let (us, them) =
        (Credentials::load(&ours.issue("a")).unwrap(), Credentials::load(&theirs.issue("b")).unwrap());
    for (client, server) in [(&us, &them), (&them, &us)] {
        let (client, _) = handshake(client, server);
        assert_eq!(client, Err(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)));
    }
}
