//! Secrets at rest: the master key that seals fields of the database, and the spool keys that nodes seal records with.
//!
//! Both keys live beside the database, never in it, so a copy of the database alone tells nothing. A sealed field is
//! bound to its table, row and field: moved elsewhere it does not open. Keys are made at the first start and never
//! leave this module; the `Debug` of whatever holds a secret shows nothing.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use plexus_proto::id::{Attempt, StoreId};
use plexus_proto::seal::SpoolKey;
use zeroize::{Zeroize, Zeroizing};

/// What the API shows in the place of a secret, and takes back as "unchanged".
pub const ENCRYPTED: &str = "$encrypted$";

/// How sealed text begins; the number is the format.
const PREFIX: &str = "$plexus$1$";

const NONCE: usize = 12;

/// The key that fields are sealed with; the one before, while there is one; the one that will be.
const MASTER: &str = "master.key";
const OLD: &str = "master.old.key";
const NEXT: &str = "master.next.key";

/// Why the vault does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file of the vault cannot be read or made.
    #[error("cannot use key file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("the keys in {} are in use: a controller runs", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file is not what it should be.
    #[error("key file {} is damaged: it must hold 32 bytes, not {length}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
}

/// Why a sealed field does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecryptError {
    /// It is not sealed text.
    #[error("the field is not sealed text")]
    NotSealed,
    /// It was sealed with a key that is not here.
    #[error("the field was sealed with key {0:016x}, which is not this controller's")]
    OtherKey(u64),
    /// It is damaged, or was sealed for another place.
    #[error("the sealed field is damaged or was moved")]
    Broken,
}

/// A secret in memory. Wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The keys. Cheap to clone.
#[derive(Clone)]
pub struct Vault {
    keys: Arc<Keys>,
}

struct Keys {
    master: RandomizedNonceKey,
    master_id: u64,
    /// The key before, while its fields are sealed anew; see [`Vault::begin_rekey`].
    old: Option<(u64, RandomizedNonceKey)>,
    spool: Zeroizing<[u8; 32]>,
    spool_id: u64,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault(..)")
    }
}

impl Vault {
    /// Opens the keys in `dir`; makes those that are not there, readable by the owner alone and synced to disk.
    ///
    /// # Errors
    /// [`OpenError`] names the file.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).map_err(io)?;
        let cipher =
            |key: &[u8; 32]| RandomizedNonceKey::new(&AES_256_GCM, key).expect("a key of 32 bytes is one");
        let master = key_file(&dir.join(MASTER))?;
        let spool = key_file(&dir.join("spool.key"))?;
        let old = dir.join(OLD);
        let old = if old.try_exists().map_err(io)? { Some(key_file(&old)?) } else { None };
        Ok(Self {
            keys: Arc::new(Keys {
                master_id: key_id(&master),
                master: cipher(&master),
                old: old.map(|old| (key_id(&old), cipher(&old))),
                spool_id: key_id(&spool),
                spool,
            }),
        })
    }

    /// Keeps the vault for one process, until what is given back is dropped: the controller that runs, or whoever changes
    /// its master key.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if another process has it.
    pub fn lock(dir: &Path) -> Result<std::fs::File, OpenError> {
        let io = |source| OpenError::Io { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(dir.join("lock"));
        let file = file.map_err(io)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse { path: dir.to_owned() }),
            Err(error) => Err(io(error.into())),
        }
    }

    /// Makes a new master key, beside which the old one stays until [`Vault::end_rekey`]. Where that was begun before and
    /// not ended, it goes on with the keys that are there.
    ///
    /// # Errors
    /// [`OpenError`] names the file.
    pub fn begin_rekey(dir: &Path) -> Result<Self, OpenError> {
        let (master, old, next) = (dir.join(MASTER), dir.join(OLD), dir.join(NEXT));
        let io = |source| OpenError::Io { path: dir.to_owned(), source };
        let current = key_file(&master)?;
        if !old.try_exists().map_err(io)? {
            // The same file by two names: from here on the old key is safe whatever happens to the first name.
            std::fs::hard_link(&master, &old).map_err(io)?;
            sync(dir)?;
        }
        if key_id(&current) == key_id(&*key_file(&old)?) {
            key_file(&next)?;
            std::fs::rename(&next, &master).map_err(io)?;
            sync(dir)?;
        }
        Self::open(dir)
    }

    /// Forgets the old master key: nothing is sealed with it any more.
    ///
    /// # Errors
    /// [`OpenError`] names the file.
    pub fn end_rekey(dir: &Path) -> Result<(), OpenError> {
        let old = dir.join(OLD);
        std::fs::remove_file(&old).map_err(|source| OpenError::Io { path: old, source })?;
        sync(dir)
    }

    /// Whether a sealed text is sealed with the newest key.
    pub fn is_current(&self, sealed: &str) -> bool {
        let id = sealed.strip_prefix(PREFIX).and_then(|rest| rest.split_once('$'));
        id.is_some_and(|(id, _)| u64::from_str_radix(id, 16) == Ok(self.keys.master_id))
    }

    /// Seals `plain` for one field of one row.
    pub fn encrypt(&self, table: &str, row: i64, field: &str, plain: &str) -> String {
        let mut sealed = plain.as_bytes().to_vec();
        let nonce = self
            .keys
            .master
            .seal_in_place_append_tag(place(self.keys.master_id, table, row, field), &mut sealed)
            .expect("fields are far below the limit of the cipher");
        let mut whole = nonce.as_ref().to_vec();
        whole.append(&mut sealed);
        format!("{PREFIX}{:016x}${}", self.keys.master_id, STANDARD_NO_PAD.encode(whole))
    }

    /// Opens what [`Vault::encrypt`] sealed for the same place.
    ///
    /// # Errors
    /// [`DecryptError`]; nothing of the content is told.
    pub fn decrypt(&self, table: &str, row: i64, field: &str, sealed: &str) -> Result<Secret, DecryptError> {
        let rest = sealed.strip_prefix(PREFIX).ok_or(DecryptError::NotSealed)?;
        let (id, body) = rest.split_once('$').ok_or(DecryptError::NotSealed)?;
        let id = u64::from_str_radix(id, 16).map_err(|_| DecryptError::NotSealed)?;
        let key = match &self.keys.old {
            _ if id == self.keys.master_id => &self.keys.master,
            Some((old, key)) if id == *old => key,
            _ => return Err(DecryptError::OtherKey(id)),
        };
        let mut whole = STANDARD_NO_PAD.decode(body).map_err(|_| DecryptError::Broken)?;
        let (nonce, body) = whole.split_at_mut_checked(NONCE).ok_or(DecryptError::Broken)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| DecryptError::Broken)?;
        let plain =
            key.open_in_place(nonce, place(id, table, row, field), body).map_err(|_| DecryptError::Broken)?;
        let text = std::str::from_utf8(plain).map_err(|_| DecryptError::Broken)?;
        let secret = Secret(Zeroizing::new(text.to_owned()));
        whole.zeroize();
        Ok(secret)
    }

    /// Whether a text is sealed.
    pub fn is_sealed(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// The key for the records of one attempt on one node's store, and the id of the key it is derived from. The same
    /// arguments always give the same key, so none has to be kept.
    pub fn spool_key(&self, attempt: Attempt, store: StoreId) -> (SpoolKey, u64) {
        let number = attempt.number.to_be_bytes();
        let info: [&[u8]; 4] =
            [b"plexus spool record key", attempt.unit.0.as_bytes(), &number, store.0.as_bytes()];
        let extracted = Salt::new(HKDF_SHA256, b"plexus spool").extract(&*self.keys.spool);
        let mut key = [0; 32];
        extracted
            .expand(&info, HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut key))
            .expect("32 bytes are one block of the derivation");
        let spool = SpoolKey::new(key);
        key.zeroize();
        (spool, self.keys.spool_id)
    }
}

/// Associated data. Lengths keep two places from reading alike.
fn place(key: u64, table: &str, row: i64, field: &str) -> Aad<Vec<u8>> {
    let mut place = key.to_be_bytes().to_vec();
    place.extend_from_slice(&(table.len() as u64).to_be_bytes());
    place.extend_from_slice(table.as_bytes());
    place.extend_from_slice(&row.to_be_bytes());
    place.extend_from_slice(field.as_bytes());
    Aad::from(place)
}

/// An id that tells keys apart and nothing of them.
fn key_id(key: &[u8; 32]) -> u64 {
    let named = digest(&SHA256, &[b"plexus key id".as_slice(), key].concat());
    let mut id = [0; 8];
    id.copy_from_slice(&named.as_ref()[..8]);
    u64::from_be_bytes(id)
}

/// Makes names that were given, taken or changed in a directory last.
fn sync(dir: &Path) -> Result<(), OpenError> {
    let synced = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| OpenError::Io { path: dir.to_owned(), source })
}

fn key_file(path: &Path) -> Result<Zeroizing<[u8; 32]>, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    match std::fs::File::open(path) {
        Ok(file) => {
            let mut bytes = Zeroizing::new(Vec::new());
            file.take(64).read_to_end(&mut bytes).map_err(io)?;
            let length = bytes.len();
            let key = <[u8; 32]>::try_from(bytes.as_slice());
            key.map(Zeroizing::new).map_err(|_| OpenError::Damaged { path: path.to_owned(), length })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut key = Zeroizing::new([0; 32]);
            aws_lc_rs::rand::fill(&mut *key).map_err(|_| io(std::io::Error::other("no random numbers")))?;
            // Made whole under another name: a key cut short by a crash would make every later secret unreadable.
            let fresh = path.with_extension("new");
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&fresh)
                .map_err(io)?;
            file.write_all(&*key).and_then(|()| file.sync_all()).map_err(io)?;
            std::fs::rename(&fresh, path).map_err(io)?;
            sync(path.parent().unwrap_or(Path::new(".")))?;
            Ok(key)
        }
        Err(source) => Err(io(source)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use plexus_proto::id::UnitId;
    use uuid::Uuid;

    use super::*;

    fn vault() -> (Vault, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Vault::open(dir.path()).unwrap(), dir)
    }

    #[test]
    fn a_sealed_field_opens_in_its_own_place_only() {
        let (vault, _dir) = vault();
        let sealed = vault.encrypt("credentials", 7, "password", "geheim");
        assert!(Vault::is_sealed(&sealed) && !sealed.contains("geheim"));
        assert_eq!(vault.decrypt("credentials", 7, "password", &sealed).unwrap().expose(), "geheim");
        for (table, row, field) in
            [("credentials", 8, "password"), ("credentials", 7, "become_password"), ("users", 7, "password")]
        {
            assert_eq!(vault.decrypt(table, row, field, &sealed), Err(DecryptError::Broken));
        }
    }

    #[test]
    fn the_same_secret_never_looks_the_same() {
        let (vault, _dir) = vault();
        assert_ne!(vault.encrypt("t", 1, "f", "x"), vault.encrypt("t", 1, "f", "x"));
    }

    #[test]
    fn garbage_is_an_error() {
        let (vault, _dir) = vault();
        let mut sealed = vault.encrypt("t", 1, "f", "x");
        sealed.pop();
        sealed.push('!');
        for text in
            ["", "x", "$plexus$1$", "$plexus$1$zz$aa", "$plexus$1$0000000000000000$aa", sealed.as_str()]
        {
            assert!(vault.decrypt("t", 1, "f", text).is_err(), "{text}");
        }
    }

    #[test]
    fn another_key_is_named_and_does_not_open() {
        let (vault, _dir) = vault();
        let (other, _other_dir) = self::vault();
        let sealed = vault.encrypt("t", 1, "f", "x");
        assert!(matches!(other.decrypt("t", 1, "f", &sealed), Err(DecryptError::OtherKey(_))));
    }

    #[test]
    fn keys_are_made_once_and_are_the_owners_alone() {
        let (vault, dir) = vault();
        let sealed = vault.encrypt("t", 1, "f", "x");
        let again = Vault::open(dir.path()).unwrap();
        assert_eq!(again.decrypt("t", 1, "f", &sealed).unwrap().expose(), "x");
        for name in ["master.key", "spool.key"] {
            let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_new_master_key_opens_what_the_old_one_sealed_until_that_is_forgotten() {
        let (vault, dir) = vault();
        let sealed = vault.encrypt("t", 1, "f", "x");
        let both = Vault::begin_rekey(dir.path()).unwrap();
        assert_eq!(both.decrypt("t", 1, "f", &sealed).unwrap().expose(), "x");
        let fresh = both.encrypt("t", 1, "f", "x");
        assert!(both.is_current(&fresh) && !both.is_current(&sealed));
        assert!(matches!(vault.decrypt("t", 1, "f", &fresh), Err(DecryptError::OtherKey(_))));
        let again = Vault::begin_rekey(dir.path()).unwrap();
        assert!(again.is_current(&fresh), "there is no third key");
        Vault::end_rekey(dir.path()).unwrap();
        let after = Vault::open(dir.path()).unwrap();
        assert_eq!(after.decrypt("t", 1, "f", &fresh).unwrap().expose(), "x");
        assert!(matches!(after.decrypt("t", 1, "f", &sealed), Err(DecryptError::OtherKey(_))));
        let attempt = Attempt { unit: UnitId(Uuid::from_u128(1)), number: 1 };
        let store = StoreId(Uuid::from_u128(2));
        let same = after.spool_key(attempt, store).0.expose() == vault.spool_key(attempt, store).0.expose();
        assert!(same, "records on their way still open");
    }

    #[test]
    fn a_crash_between_the_steps_of_a_new_key_loses_none() {
        let (vault, dir) = vault();
        let sealed = vault.encrypt("t", 1, "f", "x");
        let at = |name: &str| dir.path().join(name);
        // After each of the steps: the old key has two names; the next one is made too.
        std::fs::hard_link(at(MASTER), at(OLD)).unwrap();
        assert_eq!(Vault::open(dir.path()).unwrap().decrypt("t", 1, "f", &sealed).unwrap().expose(), "x");
        drop(key_file(&at(NEXT)).unwrap());
        assert_eq!(Vault::open(dir.path()).unwrap().decrypt("t", 1, "f", &sealed).unwrap().expose(), "x");
        let both = Vault::begin_rekey(dir.path()).unwrap();
        assert_eq!(both.decrypt("t", 1, "f", &sealed).unwrap().expose(), "x");
        assert!(!both.is_current(&sealed) && !at(NEXT).exists());
    }

    #[test]
    fn one_process_has_the_vault() {
        let (_, dir) = vault();
        let held = Vault::lock(dir.path()).unwrap();
        assert!(matches!(Vault::lock(dir.path()), Err(OpenError::InUse { .. })));
        drop(held);
        Vault::lock(dir.path()).unwrap();
    }

    #[test]
    fn a_damaged_key_file_is_named_and_not_replaced() {
        let (_, dir) = vault();
        std::fs::write(dir.path().join("master.key"), "short").unwrap();
        let error = Vault::open(dir.path()).unwrap_err();
        assert!(
            error.to_string().ends_with("master.key is damaged: it must hold 32 bytes, not 5"),
            "{error}"
        );
        assert_eq!(std::fs::read(dir.path().join("master.key")).unwrap(), b"short");
    }

    #[test]
    fn spool_keys_differ_by_attempt_and_store_and_come_again() {
        let (vault, dir) = vault();
        let attempt = Attempt { unit: UnitId(Uuid::from_u128(1)), number: 1 };
        let store = StoreId(Uuid::from_u128(2));
        let (key, id) = vault.spool_key(attempt, store);
        let (again, same) = Vault::open(dir.path()).unwrap().spool_key(attempt, store);
        assert_eq!((key.expose(), id), (again.expose(), same));
        let second = vault.spool_key(Attempt { number: 2, ..attempt }, store).0;
        let elsewhere = vault.spool_key(attempt, StoreId(Uuid::from_u128(3))).0;
        assert_ne!(key.expose(), second.expose());
        assert_ne!(key.expose(), elsewhere.expose());
    }

    #[test]
    fn debug_shows_nothing() {
        let (vault, _dir) = vault();
        let sealed = vault.encrypt("t", 1, "f", "geheim");
        let secret = vault.decrypt("t", 1, "f", &sealed).unwrap();
        assert_eq!(format!("{vault:?} {secret:?}"), "Vault(..) Secret(..)");
    }
}
