//! The authority of a mesh: a root, one intermediate for a cluster, and the leaves it issues.
//!
//! A directory holds it all: `root.pem`, `root.key` (only needed to certify intermediates; best moved offline),
//! `intermediate.pem`, `intermediate.key`, and `addresses`, the ledger of every address ever given. Keys are
//! Ed25519 and readable by their owner alone. An address belongs to one role and name for ever: issuing again for
//! the same node renews its certificate under the same address, and nobody else gets it.

mod ledger;
mod rollover;

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use plexus_proto::id::{Address, ClusterId, Identity, MeshName, NodeId, Role};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType, SerialNumber,
    SignatureAlgorithm,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};

use crate::enrol::{self, Request};

use crate::identity::extension::{ADDRESS_OID, SCOPE_OID, Scope, encode_address};
use crate::identity::{self, CHAIN_FILE, KEY_FILE, ROOTS_FILE};

/// Validity of a leaf unless asked otherwise.
pub const LEAF_VALIDITY: Duration = Duration::from_secs(30 * DAY);
/// How far validity begins in the past: clocks of fresh machines are minutes off, not hours.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// The root outlives several intermediates, an intermediate many leaves.
const ROOT_VALIDITY: Duration = Duration::from_secs(20 * 365 * DAY);
const INTERMEDIATE_VALIDITY: Duration = Duration::from_secs(5 * 365 * DAY);
const DAY: u64 = 24 * 60 * 60;

/// Addresses of the first cluster of a mesh: a million, which is 4,095 such ranges in all. Zero stays unused.
const FIRST_RANGE: (Address, Address) = (Address(0x0010_0000), Address(0x001f_ffff));

const ROOT_CERTIFICATE: &str = "root.pem";
const ROOT_KEY: &str = "root.key";
const ENDORSEMENTS: &str = "endorsements.pem";
const INTERMEDIATE_CERTIFICATE: &str = "intermediate.pem";
const INTERMEDIATE_KEY: &str = "intermediate.key";

/// Why the authority cannot be made, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An authority is there already; it is never overwritten.
    #[error("{0} already holds a certificate authority")]
    Exists(PathBuf),
    /// No authority there.
    #[error("{0} holds no certificate authority; `plexus ca init` makes one")]
    Missing(PathBuf),
    /// A file of the authority that does not read.
    #[error("certificate authority is damaged")]
    Damaged(#[source] identity::Error),
    /// The intermediate lacks the scope or the mesh that our verifier demands.
    #[error("{0} does not say which cluster and addresses it may certify")]
    NoScope(PathBuf),
    /// The intermediate's key belongs to another certificate.
    #[error("key {0} does not belong to its certificate")]
    KeyMismatch(PathBuf),
    /// A file or directory that cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A line of the ledger that is none.
    #[error("line {line} of {path} is not an address, a role and a name")]
    Ledger {
        /// The ledger.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// Every address of the range was given.
    #[error("every address from {first} to {last} is taken")]
    Exhausted {
        /// First address of the range.
        first: Address,
        /// Last address of the range.
        last: Address,
    },
    /// Names are unique in a mesh.
    #[error("{node} is already enrolled with role {enrolled}, so it cannot have role {wanted}")]
    OtherRole {
        /// The name.
        node: NodeId,
        /// Its role.
        enrolled: Role,
        /// The role asked for.
        wanted: Role,
    },
    /// The output directory holds the identity of another node.
    #[error("{path} already holds the identity of {holder}")]
    Occupied {
        /// The output directory.
        path: PathBuf,
        /// Who is there.
        holder: String,
    },
    /// An address that another authority gave.
    #[error("address {address} is outside this authority's range {first} to {last}")]
    OutOfRange {
        /// The address.
        address: Address,
        /// First address of the range.
        first: Address,
        /// Last address of the range.
        last: Address,
    },
    /// A certificate signing request that cannot be taken.
    #[error("cannot take the request")]
    Request(#[source] enrol::request::Error),
    /// Intermediates are certified by the root's key, which is not here.
    #[error("{0} is not here; bring the root's key, or run this where it is kept")]
    NoRootKey(PathBuf),
    /// A step of a rollover out of turn.
    #[error("{0}")]
    Rollover(&'static str),
    /// An intermediate of another root.
    #[error("{0} is not below this root")]
    OtherRoot(PathBuf),
    /// A validity of nothing, or one that overflows.
    #[error("validity must be at least one second and at most a hundred years")]
    Validity,
    /// The certificate could not be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
}

/// What was certified for a key that is elsewhere.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Whom the leaf names.
    pub identity: Identity,
    /// Leaf, then intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// When the leaf ends.
    pub expires: jiff::Timestamp,
}

/// A public key as it stands in a certificate.
struct RawKey<'a>(&'a [u8]);

impl PublicKeyData for RawKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

/// The authority: one mesh, one cluster, one range of addresses.
#[derive(Debug)]
pub struct CertificateAuthority {
    dir: PathBuf,
    mesh: MeshName,
    scope: Scope,
    root_pem: String,
    roots: Vec<CertificateDer<'static>>,
    endorsements: Vec<CertificateDer<'static>>,
    intermediate_pem: String,
    intermediate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    intermediate_expires: SystemTime,
}

impl CertificateAuthority {
    /// Makes root and intermediate in `dir`, which is created if need be.
    ///
    /// # Errors
    /// [`Error::Exists`] rather than a second authority in one place; files that cannot be written.
    pub fn init(dir: &Path, mesh: &MeshName, cluster: &ClusterId) -> Result<Self, Error> {
        for name in [ROOT_CERTIFICATE, ROOT_KEY, INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY] {
            if dir.join(name).exists() {
                return Err(Error::Exists(dir.to_owned()));
            }
        }
        make_dir(dir)?;
        let now = SystemTime::now();

        let root_key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut root = authority(&format!("plexus root of {mesh}"), mesh, 1)?;
        set_validity(&mut root, now, ROOT_VALIDITY)?;
        let root_certificate = root.self_signed(&root_key)?;

        let scope = Scope { cluster: cluster.clone(), first: FIRST_RANGE.0, last: FIRST_RANGE.1 };
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut intermediate = authority(&format!("plexus cluster {cluster} of {mesh}"), mesh, 0)?;
        set_validity(&mut intermediate, now, INTERMEDIATE_VALIDITY)?;
        intermediate.custom_extensions = vec![CustomExtension::from_oid_content(SCOPE_OID, scope.encode())];
        let certificate = intermediate.signed_by(&key, &Issuer::from_params(&root, &root_key))?;

        write_new(&dir.join(ROOT_KEY), secret_pem(&root_key).as_bytes(), 0o600)?;
        write_new(&dir.join(INTERMEDIATE_KEY), secret_pem(&key).as_bytes(), 0o600)?;
        write_new(&dir.join(INTERMEDIATE_CERTIFICATE), certificate.pem().as_bytes(), 0o644)?;
        write_new(&dir.join(ROOT_CERTIFICATE), root_certificate.pem().as_bytes(), 0o644)?;
        sync_dir(dir)?;
        Self::open(dir)
    }

    /// Opens the authority in `dir`. The root's key need not be there.
    ///
    /// # Errors
    /// No authority, or one whose files do not fit together.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let certificate_path = dir.join(INTERMEDIATE_CERTIFICATE);
        if !certificate_path.exists() {
            return Err(Error::Missing(dir.to_owned()));
        }
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|source| Error::Damaged(identity::Error::Read { path: path.to_owned(), source }))
        };
        let root_pem = read(&dir.join(ROOT_CERTIFICATE))?;
        let intermediate_pem = read(&certificate_path)?;
        let roots = identity::read_certificates(&dir.join(ROOT_CERTIFICATE)).map_err(Error::Damaged)?;
        let endorsements = match dir.join(ENDORSEMENTS) {
            path if path.exists() => identity::read_certificates(&path).map_err(Error::Damaged)?,
            _ => Vec::new(),
        };
        let certificates = identity::read_certificates(&certificate_path).map_err(Error::Damaged)?;
        let key_path = dir.join(INTERMEDIATE_KEY);
        let key_der = identity::read_key(&key_path).map_err(Error::Damaged)?;

        let certificate = &certificates[0];
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key_der, &PKCS_ED25519)
            .map_err(|_| Error::Damaged(identity::Error::KeyKind { path: key_path.clone() }))?;
        if identity::public_key(certificate).as_deref() != Some(key.public_key_raw()) {
            return Err(Error::KeyMismatch(key_path));
        }
        let no_scope = || Error::NoScope(certificate_path.clone());
        let scope = identity::claimed_scope(certificate).ok_or_else(no_scope)?;
        let mesh = identity::claimed_uri(certificate)
            .and_then(|uri| uri.strip_prefix("spiffe://")?.parse().ok())
            .ok_or_else(no_scope)?;
        let expires = identity::expires(certificate).map_err(Error::Damaged)?;
        let issuer = Issuer::from_ca_cert_der(certificate, key)?;
        Ok(Self {
            dir: dir.to_owned(),
            mesh,
            scope,
            root_pem,
            roots,
            endorsements,
            intermediate_pem,
            intermediate: certificate.clone(),
            issuer,
            intermediate_expires: SystemTime::from(expires),
        })
    }

    /// The mesh it certifies for.
    pub fn mesh(&self) -> &MeshName {
        &self.mesh
    }

    /// The cluster it certifies for.
    pub fn cluster(&self) -> &ClusterId {
        &self.scope.cluster
    }

    /// Issues `ca.pem`, `node.pem` and `node.key` into `out_dir`, valid from five minutes ago for `validity` (but
    /// never beyond the intermediate).
    ///
    /// A directory that holds this node's key already gets a new certificate for that key, put in place at once;
    /// otherwise a key is made. A node that was enrolled before keeps its address.
    ///
    /// # Errors
    /// A name enrolled with another role, a directory of another node, no address left, files that cannot be
    /// written. Whatever fails, no address is ever given twice.
    pub fn issue(
        &self,
        role: Role,
        node: &NodeId,
        out_dir: &Path,
        validity: Duration,
    ) -> Result<Identity, Error> {
        let mut identity = Identity {
            mesh: self.mesh.clone(),
            cluster: self.scope.cluster.clone(),
            role,
            node: node.clone(),
            address: Address(0),
        };
        check_free(out_dir, &identity)?;
        make_dir(out_dir)?;
        identity.address = ledger::assign(&self.dir, &self.scope, role, node)?;

        let key_path = out_dir.join(KEY_FILE);
        let key = if key_path.exists() {
            let der = identity::read_key(&key_path).map_err(Error::Damaged)?;
            KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)
                .map_err(|_| Error::Damaged(identity::Error::KeyKind { path: key_path.clone() }))?
        } else {
            let key = KeyPair::generate_for(&PKCS_ED25519)?;
            write_new(&key_path, secret_pem(&key).as_bytes(), 0o600)?;
            key
        };
        let leaf = self.leaf(&identity, validity)?.signed_by(&key, &self.issuer)?;
        replace(&out_dir.join(ROOTS_FILE), self.root_pem.as_bytes())?;
        replace(&out_dir.join(CHAIN_FILE), format!("{}{}", leaf.pem(), self.intermediate_pem).as_bytes())?;
        sync_dir(out_dir)?;
        Ok(identity)
    }

    /// Certifies a raw Ed25519 public key whose holder keeps the private one. `address` is the node's own, if it has
    /// one already; otherwise the ledger gives it one.
    ///
    /// # Errors
    /// A name enrolled with another role, an address outside this authority's range, no address left.
    pub fn certify(
        &self,
        role: Role,
        node: &NodeId,
        address: Option<Address>,
        key: &[u8],
        validity: Duration,
    ) -> Result<Issued, Error> {
        let address = match address {
            Some(address) if self.scope.holds(address) => address,
            Some(address) => {
                let (first, last) = (self.scope.first, self.scope.last);
                return Err(Error::OutOfRange { address, first, last });
            }
            None => ledger::assign(&self.dir, &self.scope, role, node)?,
        };
        let identity = Identity {
            mesh: self.mesh.clone(),
            cluster: self.scope.cluster.clone(),
            role,
            node: node.clone(),
            address,
        };
        let leaf = self.leaf(&identity, validity)?.signed_by(&RawKey(key), &self.issuer)?;
        let expires = identity::expires(leaf.der()).map_err(Error::Damaged)?;
        Ok(Issued { identity, chain: vec![leaf.der().clone(), self.intermediate.clone()], expires })
    }

    /// Signs the request in PEM form that a machine without a way to the mesh has made, and writes `ca.pem` and
    /// `node.pem` for it into `out_dir`. The name is the request's own.
    ///
    /// # Errors
    /// As [`certify`](Self::certify); a request that is none, or whose signature is wrong.
    pub fn sign_request(
        &self,
        role: Role,
        request: &str,
        out_dir: &Path,
        validity: Duration,
    ) -> Result<Issued, Error> {
        let der = CertificateSigningRequestDer::from_pem_slice(request.as_bytes())
            .map_err(|_| Error::Request(enrol::request::Error::NotARequest))?;
        let request = Request::parse(&der).map_err(Error::Request)?;
        let issued = self.certify(role, &request.node, None, &request.key, validity)?;
        check_free(out_dir, &issued.identity)?;
        make_dir(out_dir)?;
        replace(&out_dir.join(ROOTS_FILE), self.root_pem.as_bytes())?;
        replace(&out_dir.join(CHAIN_FILE), identity::pem(&issued.chain).as_bytes())?;
        sync_dir(out_dir)?;
        Ok(issued)
    }

    /// Makes another intermediate below this root, for `cluster` and the next range of addresses nobody has, in
    /// `out_dir`: for a further controller, or a further cluster.
    ///
    /// # Errors
    /// [`Error::NoRootKey`] where the root's key is not; an authority in `out_dir` already; no range left.
    pub fn intermediate(&self, cluster: &ClusterId, out_dir: &Path) -> Result<Self, Error> {
        for name in [INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY] {
            if out_dir.join(name).exists() {
                return Err(Error::Exists(out_dir.to_owned()));
            }
        }
        let root_key_path = self.dir.join(ROOT_KEY);
        if !root_key_path.exists() {
            return Err(Error::NoRootKey(root_key_path));
        }
        let key_der = identity::read_key(&root_key_path).map_err(Error::Damaged)?;
        let root_key = KeyPair::from_pkcs8_der_and_sign_algo(&key_der, &PKCS_ED25519)
            .map_err(|_| Error::Damaged(identity::Error::KeyKind { path: root_key_path.clone() }))?;
        let root = identity::read_certificates(&self.dir.join(ROOT_CERTIFICATE)).map_err(Error::Damaged)?;
        if identity::public_key(&root[0]).as_deref() != Some(root_key.public_key_raw()) {
            return Err(Error::KeyMismatch(root_key_path));
        }
        let (first, last) = ledger::next_range(&self.dir, FIRST_RANGE, cluster)?;
        make_dir(out_dir)?;
        let scope = Scope { cluster: cluster.clone(), first, last };
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut below = authority(&format!("plexus cluster {cluster} of {}", self.mesh), &self.mesh, 0)?;
        set_validity(&mut below, SystemTime::now(), INTERMEDIATE_VALIDITY)?;
        below.custom_extensions = vec![CustomExtension::from_oid_content(SCOPE_OID, scope.encode())];
        let certificate = below.signed_by(&key, &Issuer::from_ca_cert_der(&root[0], root_key)?)?;
        write_new(&out_dir.join(INTERMEDIATE_KEY), secret_pem(&key).as_bytes(), 0o600)?;
        write_new(&out_dir.join(INTERMEDIATE_CERTIFICATE), certificate.pem().as_bytes(), 0o644)?;
        replace(&out_dir.join(ROOT_CERTIFICATE), self.root_pem.as_bytes())?;
        sync_dir(out_dir)?;
        Self::open(out_dir)
    }

    /// Roots that nodes are told to trust: the present one first, then one that is being rolled over.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// SHA-256 of each of [`roots`](Self::roots), by which a new machine knows the mesh.
    pub fn root_fingerprints(&self) -> Vec<[u8; 32]> {
        let print = |root: &CertificateDer<'_>| {
            let mut out = [0; 32];
            out.copy_from_slice(digest(&SHA256, root).as_ref());
            out
        };
        self.roots.iter().map(print).collect()
    }

    /// Keys of new roots, certified by older ones.
    pub fn endorsements(&self) -> &[CertificateDer<'static>] {
        &self.endorsements
    }

    /// First and last address that it may give.
    pub fn range(&self) -> (Address, Address) {
        (self.scope.first, self.scope.last)
    }

    fn leaf(&self, identity: &Identity, validity: Duration) -> Result<CertificateParams, Error> {
        let mut leaf = named(identity.node.as_str(), &identity.uri())?;
        let now = SystemTime::now();
        let left = self.intermediate_expires.duration_since(now).unwrap_or(Duration::ZERO);
        set_validity(&mut leaf, now, validity.min(left))?;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        leaf.custom_extensions =
            vec![CustomExtension::from_oid_content(ADDRESS_OID, encode_address(identity.address))];
        leaf.use_authority_key_identifier_extension = true;
        Ok(leaf)
    }
}

/// A directory of another node is left alone, one of this node is renewed.
fn check_free(out_dir: &Path, identity: &Identity) -> Result<(), Error> {
    let chain = out_dir.join(CHAIN_FILE);
    if !chain.exists() {
        return Ok(());
    }
    let certificates = identity::read_certificates(&chain).map_err(Error::Damaged)?;
    let holder = identity::claimed_uri(&certificates[0]).unwrap_or_else(|| "nobody of this mesh".into());
    if holder == identity.uri() {
        return Ok(());
    }
    Err(Error::Occupied { path: out_dir.to_owned(), holder })
}

/// Parameters with one subject name and one URI name, and a serial number of their own.
fn named(common_name: &str, uri: &str) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    params.distinguished_name = subject;
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    // Random: a certificate renewed for the same key must not share its serial number.
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| rcgen::Error::RingUnspecified)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

/// Parameters of a root (`below` = 1) or an intermediate (`below` = 0), named after its trust domain.
fn authority(common_name: &str, mesh: &MeshName, below: u8) -> Result<CertificateParams, Error> {
    let mut params = named(common_name, &format!("spiffe://{mesh}"))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, validity: Duration) -> Result<(), Error> {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * DAY);
    if validity < Duration::from_secs(1) || validity > CENTURY {
        return Err(Error::Validity);
    }
    let since_epoch = now.duration_since(UNIX_EPOCH).map_err(|_| Error::Validity)?;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(since_epoch.saturating_sub(BACKDATE).as_secs());
    params.not_after = epoch + Duration::from_secs((since_epoch + validity).as_secs());
    Ok(())
}

fn secret_pem(key: &KeyPair) -> zeroize::Zeroizing<String> {
    zeroize::Zeroizing::new(key.serialize_pem())
}

fn make_dir(dir: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| write_error(dir, source))
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|source| write_error(path, source))
}

/// Puts `content` in place at once: readers see the old file or the new one.
fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    // Left behind by a crash.
    std::fs::remove_file(&fresh).or_else(ignore_missing).map_err(|source| write_error(&fresh, source))?;
    write_new(&fresh, content, 0o644)?;
    std::fs::rename(&fresh, path).map_err(|source| write_error(path, source))
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| write_error(dir, source))
}

fn write_error(path: &Path, source: io::Error) -> Error {
    Error::Write { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
