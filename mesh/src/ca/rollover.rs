//! From one root to the next, in three steps with time between them, so that at each moment everybody trusts what
//! anybody shows.
//!
//! 1. **introduce**: a new root is made, its key certified by the present one. Whoever renews a certificate learns to
//!    trust both. Nothing is issued under the new root yet.
//! 2. **switch**: the intermediates are certified by the new root, for the same keys. Whoever renews shows the new one.
//! 3. **retire**: the old root is trusted no more by whoever renews.
//!
//! Before the next step every member has to have renewed: at most the life of a leaf. Each step may be repeated after a
//! crash, and does what is left of it.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::{CertificateParams, CustomExtension, Issuer, KeyPair, PKCS_ED25519};
use rustls_pki_types::CertificateDer;

use super::{
    CertificateAuthority, ENDORSEMENTS, Error, INTERMEDIATE_CERTIFICATE, INTERMEDIATE_VALIDITY,
    ROOT_CERTIFICATE, ROOT_KEY, ROOT_VALIDITY, RawKey, authority, ignore_missing, replace, secret_pem,
    set_validity, sync_dir, write_error, write_new,
};
use crate::identity;
use crate::identity::extension::SCOPE_OID;

/// Key of the root that comes, until it is the present one.
const NEXT_ROOT_KEY: &str = "next-root.key";

impl CertificateAuthority {
    /// Step 1: makes the next root, and has the present one vouch for its key. `others` are the directories of further
    /// intermediates of this mesh.
    ///
    /// # Errors
    /// [`Error::NoRootKey`] where the root's key is not; [`Error::Rollover`] in the middle of a rollover; files that
    /// cannot be written.
    pub fn introduce_root(&self, others: &[PathBuf]) -> Result<Self, Error> {
        let next_path = self.dir.join(NEXT_ROOT_KEY);
        let key = self.root_key()?;
        let (roots, endorsements) = match &self.roots[..] {
            [present] => {
                // A crash may have left the key.
                let next = match next_path.exists() {
                    true => read_key(&next_path)?,
                    false => {
                        let next = KeyPair::generate_for(&PKCS_ED25519)?;
                        write_new(&next_path, secret_pem(&next).as_bytes(), 0o600)?;
                        sync_dir(&self.dir)?;
                        next
                    }
                };
                let params = self.root_params(&next)?;
                let root = params.self_signed(&next)?;
                let issuer = Issuer::from_ca_cert_der(present, key)?;
                let endorsement = params.signed_by(&next, &issuer)?;
                (vec![present.clone(), root.der().clone()], vec![endorsement.der().clone()])
            }
            [_, _] if next_path.exists() && !self.is_switched()? => {
                (self.roots.clone(), self.endorsements.clone())
            }
            _ => {
                return Err(Error::Rollover(
                    "another root is being rolled over: switch to it, or retire the old one",
                ));
            }
        };
        // The word for the new root is there before the root is.
        for dir in others.iter().map(PathBuf::as_path).chain([self.dir.as_path()]) {
            Self::open(dir)?.is_below(self)?;
            replace(&dir.join(ENDORSEMENTS), identity::pem(&endorsements).as_bytes())?;
            replace(&dir.join(ROOT_CERTIFICATE), identity::pem(&roots).as_bytes())?;
            sync_dir(dir)?;
        }
        Self::open(&self.dir)
    }

    /// Step 2: certifies this intermediate and those in `others` by the next root, which becomes the present one.
    ///
    /// # Errors
    /// [`Error::Rollover`] where none was introduced; [`Error::NoRootKey`]; files that cannot be written.
    pub fn switch_root(&self, others: &[PathBuf]) -> Result<Self, Error> {
        let nothing = Error::Rollover("no root was introduced: that is the first step");
        let [first, second] = &self.roots[..] else { return Err(nothing) };
        let next_path = self.dir.join(NEXT_ROOT_KEY);
        let (new, old) = if self.is_switched()? { (first, second) } else { (second, first) };
        // Where a crash came between the last two files, the key is in its place already.
        let key_path = if next_path.exists() { next_path.clone() } else { self.dir.join(ROOT_KEY) };
        if !key_path.exists() {
            return Err(Error::NoRootKey(key_path));
        }
        let key = read_key(&key_path)?;
        if identity::public_key(new).as_deref() != Some(key.public_key_raw()) {
            return Err(Error::KeyMismatch(key_path));
        }
        let issuer = Issuer::from_ca_cert_der(new, key)?;
        let roots = identity::pem(&[new.clone(), old.clone()]);
        for dir in others.iter().map(PathBuf::as_path).chain([self.dir.as_path()]) {
            let below = Self::open(dir)?;
            below.is_below(self)?;
            let intermediate = below.certified_by(&issuer)?;
            replace(&dir.join(ENDORSEMENTS), identity::pem(&self.endorsements).as_bytes())?;
            replace(&dir.join(INTERMEDIATE_CERTIFICATE), intermediate.as_bytes())?;
            replace(&dir.join(ROOT_CERTIFICATE), roots.as_bytes())?;
            sync_dir(dir)?;
        }
        if next_path.exists() {
            let to = self.dir.join(ROOT_KEY);
            std::fs::rename(&next_path, &to).map_err(|source| write_error(&to, source))?;
            sync_dir(&self.dir)?;
        }
        Self::open(&self.dir)
    }

    /// Step 3: trusts the old root no more.
    ///
    /// # Errors
    /// [`Error::Rollover`] before the switch; files that cannot be written.
    pub fn retire_root(&self, others: &[PathBuf]) -> Result<Self, Error> {
        if self.roots.len() > 1 && (self.dir.join(NEXT_ROOT_KEY).exists() || !self.is_switched()?) {
            return Err(Error::Rollover("certificates are still issued under the old root: switch first"));
        }
        let root = identity::pem(&self.roots[..1]);
        for dir in others.iter().map(PathBuf::as_path).chain([self.dir.as_path()]) {
            Self::open(dir)?.is_below(self)?;
            replace(&dir.join(ROOT_CERTIFICATE), root.as_bytes())?;
            let word = dir.join(ENDORSEMENTS);
            std::fs::remove_file(&word)
                .or_else(ignore_missing)
                .map_err(|source| write_error(&word, source))?;
            sync_dir(dir)?;
        }
        Self::open(&self.dir)
    }

    /// Whether this intermediate is certified by the first of the roots, and that is the one that was introduced.
    fn is_switched(&self) -> Result<bool, Error> {
        let first = &self.roots[0];
        Ok(self.endorsements.iter().any(|word| identity::public_key(word) == identity::public_key(first)))
    }

    /// Whether both are of one mesh, whatever their roots: another's files are never touched.
    fn is_below(&self, root: &Self) -> Result<(), Error> {
        let shared = self.roots.iter().any(|own| root.roots.contains(own));
        match self.mesh == root.mesh && shared {
            true => Ok(()),
            false => Err(Error::OtherRoot(self.dir.clone())),
        }
    }

    fn root_key(&self) -> Result<KeyPair, Error> {
        let path = self.dir.join(ROOT_KEY);
        if !path.exists() {
            return Err(Error::NoRootKey(path));
        }
        let key = read_key(&path)?;
        match identity::public_key(&self.roots[0]).as_deref() == Some(key.public_key_raw()) {
            true => Ok(key),
            false => Err(Error::KeyMismatch(path)),
        }
    }

    /// A name of its own tells people which root is which.
    fn root_params(&self, key: &KeyPair) -> Result<CertificateParams, Error> {
        let print = &key.public_key_raw()[..4];
        let print: String = print.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut root = authority(&format!("plexus root {print} of {}", self.mesh), &self.mesh, 1)?;
        set_validity(&mut root, SystemTime::now(), ROOT_VALIDITY)?;
        Ok(root)
    }

    /// This intermediate once more, for the same key, cluster and addresses, by another root.
    fn certified_by(&self, issuer: &Issuer<'_, KeyPair>) -> Result<String, Error> {
        let (mesh, cluster) = (&self.mesh, &self.scope.cluster);
        let mut below = authority(&format!("plexus cluster {cluster} of {mesh}"), mesh, 0)?;
        set_validity(&mut below, SystemTime::now(), INTERMEDIATE_VALIDITY)?;
        below.custom_extensions = vec![CustomExtension::from_oid_content(SCOPE_OID, self.scope.encode())];
        let key = public_key(&self.intermediate)?;
        Ok(below.signed_by(&RawKey(&key), issuer)?.pem())
    }
}

fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, Error> {
    identity::public_key(certificate).ok_or(Error::Certificate(rcgen::Error::CouldNotParseCertificate))
}

fn read_key(path: &Path) -> Result<KeyPair, Error> {
    let der = identity::read_key(path).map_err(Error::Damaged)?;
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)
        .map_err(|_| Error::Damaged(identity::Error::KeyKind { path: path.to_owned() }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use plexus_proto::id::Role;
    use rustls_pki_types::UnixTime;

    use super::*;
    use crate::Credentials;

    const LIFE: Duration = Duration::from_secs(3600);

    fn authority_in(dir: &Path) -> CertificateAuthority {
        CertificateAuthority::init(dir, &"demo".parse().unwrap(), &"main".parse().unwrap()).unwrap()
    }

    /// Certificates that `authority` issues now, in a directory of their own.
    fn issue(authority: &CertificateAuthority, dir: &Path, name: &str) -> Credentials {
        let out = dir.join(name);
        authority.issue(Role::Execution, &name.parse().unwrap(), &out, LIFE).unwrap();
        Credentials::load(&out).unwrap()
    }

    fn accepts(one: &Credentials, other: &Credentials) -> bool {
        one.verifier().verify(&other.chain(), UnixTime::now()).is_ok()
    }

    #[test]
    fn whoever_renewed_in_the_last_step_gets_on_with_whoever_has_in_this() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let before = authority_in(&at("ca"));
        before.intermediate(&"other".parse().unwrap(), &at("ca-2")).unwrap();
        let others = [at("ca-2")];
        let oldest = issue(&before, dir.path(), "oldest");
        let introduced = before.introduce_root(&others).unwrap();
        let introduced = introduced.introduce_root(&others).unwrap();
        assert_eq!(introduced.roots().len(), 2);
        let second = issue(&introduced, dir.path(), "second");
        let switched = introduced.switch_root(&others).unwrap();
        let switched = switched.switch_root(&others).unwrap();
        let third = issue(&switched, dir.path(), "third");
        let elsewhere = issue(&CertificateAuthority::open(&at("ca-2")).unwrap(), dir.path(), "elsewhere");
        let retired = switched.retire_root(&others).unwrap().retire_root(&others).unwrap();
        assert_eq!(retired.roots().len(), 1);
        let last = issue(&retired, dir.path(), "last");
        for (one, other) in [(&oldest, &second), (&second, &third), (&third, &last), (&third, &elsewhere)] {
            assert!(
                accepts(one, other) && accepts(other, one),
                "{:?}, {:?}",
                one.identity(),
                other.identity()
            );
        }
        assert!(accepts(&last, &elsewhere), "the other cluster went along");
        assert!(!accepts(&last, &oldest) && !accepts(&last, &second) && !accepts(&oldest, &last));
        // Addresses stay, and the new root's key is where the old one's was.
        assert_eq!(issue(&retired, dir.path(), "oldest").identity().address, oldest.identity().address);
        retired.intermediate(&"third".parse().unwrap(), &at("ca-3")).unwrap();
        assert!(!at("ca").join(NEXT_ROOT_KEY).exists());
    }

    #[test]
    fn steps_out_of_turn_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("ca");
        let authority = authority_in(&at);
        assert!(matches!(authority.switch_root(&[]), Err(Error::Rollover(_))));
        let introduced = authority.introduce_root(&[]).unwrap();
        assert!(matches!(introduced.retire_root(&[]), Err(Error::Rollover(_))));
        let switched = introduced.switch_root(&[]).unwrap();
        assert!(matches!(switched.introduce_root(&[]), Err(Error::Rollover(_))));
        let stranger = dir.path().join("stranger");
        authority_in(&stranger);
        let before = std::fs::read(stranger.join(ROOT_CERTIFICATE)).unwrap();
        assert!(matches!(switched.retire_root(std::slice::from_ref(&stranger)), Err(Error::OtherRoot(_))));
        assert_eq!(std::fs::read(stranger.join(ROOT_CERTIFICATE)).unwrap(), before);
        std::fs::remove_file(at.join(ROOT_KEY)).unwrap();
        let retired = switched.retire_root(&[]).unwrap();
        assert!(matches!(retired.introduce_root(&[]), Err(Error::NoRootKey(_))));
    }

    #[test]
    fn a_crash_between_the_files_of_a_step_is_mended_by_the_step() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("ca");
        let root = || std::fs::read(at.join(ROOT_CERTIFICATE)).unwrap();
        let authority = authority_in(&at);
        let alone = root();
        let introduced = authority.introduce_root(&[]).unwrap();
        // The key and the word were written, the roots were not.
        std::fs::write(at.join(ROOT_CERTIFICATE), &alone).unwrap();
        let again = CertificateAuthority::open(&at).unwrap().introduce_root(&[]).unwrap();
        assert_eq!(identity::public_key(&again.roots()[1]), identity::public_key(&introduced.roots()[1]));
        // Everything of the switch but the key's new place.
        let next = std::fs::read(at.join(NEXT_ROOT_KEY)).unwrap();
        let old = std::fs::read(at.join(ROOT_KEY)).unwrap();
        again.switch_root(&[]).unwrap();
        std::fs::write(at.join(NEXT_ROOT_KEY), next).unwrap();
        std::fs::write(at.join(ROOT_KEY), old).unwrap();
        let switched = CertificateAuthority::open(&at).unwrap();
        assert!(matches!(switched.retire_root(&[]), Err(Error::Rollover(_))));
        let switched = switched.switch_root(&[]).unwrap();
        assert!(switched.root_key().is_ok());
        switched.retire_root(&[]).unwrap();
    }
}
