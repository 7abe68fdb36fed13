use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::Credentials;

fn authority_in(dir: &Path) -> CertificateAuthority {
    CertificateAuthority::init(dir, &"mesh".parse().unwrap(), &"main".parse().unwrap()).unwrap()
}

fn issue(authority: &CertificateAuthority, name: &str, out: &Path) -> Result<Identity, Error> {
    authority.issue(Role::Execution, &name.parse().unwrap(), out, LEAF_VALIDITY)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_is_issued_loads() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("deep/ca");
    authority_in(&ca);
    let authority = CertificateAuthority::open(&ca).unwrap();
    let out = dir.path().join("node");
    let identity = issue(&authority, "node-1", &out).unwrap();
    let credentials = Credentials::load(&out).unwrap();
    assert_eq!(credentials.identity(), &identity);
    assert_eq!(identity.uri(), "spiffe://mesh/main/execution/node-1");
    assert_eq!(identity.address, FIRST_RANGE.0);
    let days = (SystemTime::from(credentials.expires()).duration_since(SystemTime::now()).unwrap().as_secs()
        + 60)
        / DAY;
    assert_eq!(days, 30);
}

#[test]
fn keys_are_for_their_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, out) = (dir.path().join("ca"), dir.path().join("node"));
    issue(&authority_in(&ca), "node-1", &out).unwrap();
    for secret in [ca.join(ROOT_KEY), ca.join(INTERMEDIATE_KEY), out.join(KEY_FILE)] {
        assert_eq!(mode(&secret), 0o600, "{}", secret.display());
    }
    assert_eq!(mode(&ca), 0o700);
}

#[test]
fn a_second_authority_in_one_place_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    authority_in(dir.path());
    let before = std::fs::read(dir.path().join(ROOT_KEY)).unwrap();
    let again = CertificateAuthority::init(dir.path(), &"mesh".parse().unwrap(), &"main".parse().unwrap());
    assert!(matches!(again, Err(Error::Exists(_))));
    assert_eq!(std::fs::read(dir.path().join(ROOT_KEY)).unwrap(), before);
}

#[test]
fn no_authority_says_how_to_make_one() {
    let dir = tempfile::tempdir().unwrap();
    let error = CertificateAuthority::open(dir.path()).unwrap_err();
    assert!(error.to_string().ends_with("holds no certificate authority; `plexus ca init` makes one"));
}

#[test]
fn addresses_are_never_given_twice() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let authority = authority_in(&ca);
    let first = issue(&authority, "a", &dir.path().join("a")).unwrap().address;
    let second = issue(&authority, "b", &dir.path().join("b")).unwrap().address;
    std::fs::remove_dir_all(dir.path().join("b")).unwrap();
    let third = issue(&CertificateAuthority::open(&ca).unwrap(), "c", &dir.path().join("c")).unwrap().address;
    assert_eq!([second.0, third.0], [first.0 + 1, first.0 + 2]);
    assert_eq!(
        issue(&authority, "b", &dir.path().join("b2")).unwrap().address,
        second,
        "b itself keeps its own"
    );
}

#[test]
fn a_line_cut_by_a_crash_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let authority = authority_in(&ca);
    issue(&authority, "a", &dir.path().join("a")).unwrap();
    let ledger = ca.join("addresses");
    let whole = std::fs::read_to_string(&ledger).unwrap();
    std::fs::write(&ledger, format!("{whole}0010")).unwrap();
    issue(&authority, "b", &dir.path().join("b")).unwrap();
    let text = std::fs::read_to_string(&ledger).unwrap();
    assert_eq!(text, "00100000 execution a\n00100001 execution b\n");
}

#[test]
fn a_damaged_ledger_names_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let authority = authority_in(&ca);
    std::fs::write(ca.join("addresses"), "00100000 execution a\nnonsense\n").unwrap();
    let error = issue(&authority, "b", &dir.path().join("b")).unwrap_err();
    assert!(matches!(error, Error::Ledger { line: 2, .. }), "{error}");
}

#[test]
fn a_full_range_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let authority = authority_in(&ca);
    std::fs::write(ca.join("addresses"), format!("{} execution a\n", FIRST_RANGE.1)).unwrap();
    assert!(matches!(issue(&authority, "b", &dir.path().join("b")), Err(Error::Exhausted { .. })));
}

#[test]
fn a_name_has_one_role() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority_in(&dir.path().join("ca"));
    issue(&authority, "a", &dir.path().join("a")).unwrap();
    let error = authority
        .issue(Role::Hop, &"a".parse().unwrap(), &dir.path().join("hop"), LEAF_VALIDITY)
        .unwrap_err();
    assert_eq!(error.to_string(), "a is already enrolled with role execution, so it cannot have role hop");
}

#[test]
fn renewal_keeps_the_key_and_another_node_s_directory_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority_in(&dir.path().join("ca"));
    let out = dir.path().join("a");
    issue(&authority, "a", &out).unwrap();
    let (key, chain) =
        (std::fs::read(out.join(KEY_FILE)).unwrap(), std::fs::read(out.join(CHAIN_FILE)).unwrap());
    issue(&authority, "a", &out).unwrap();
    assert_eq!(std::fs::read(out.join(KEY_FILE)).unwrap(), key);
    assert_ne!(std::fs::read(out.join(CHAIN_FILE)).unwrap(), chain);
    Credentials::load(&out).unwrap();
    let error = issue(&authority, "b", &out).unwrap_err();
    assert!(matches!(&error, Error::Occupied { holder, .. } if holder.ends_with("/a")), "{error}");
}

#[test]
fn validity_must_be_some() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority_in(&dir.path().join("ca"));
    let node = "a".parse().unwrap();
    let nothing = authority.issue(Role::Hop, &node, &dir.path().join("a"), Duration::ZERO);
    assert!(matches!(nothing, Err(Error::Validity)));
    // Longer than the intermediate lives is cut to what is left of it.
    authority.issue(Role::Hop, &node, &dir.path().join("a"), Duration::from_secs(99 * 365 * DAY)).unwrap();
    let credentials = Credentials::load(&dir.path().join("a")).unwrap();
    assert!(SystemTime::from(credentials.expires()) <= authority.intermediate_expires);
}
