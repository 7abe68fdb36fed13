//! The seal of spool records, shared by the shim that closes it and the controller that opens it.
//!
//! A record is sealed with AES-256-GCM under a key of its attempt. The nonce is the record's number, so a key
//! must never seal two contents under one number; unit, attempt and number are associated data, so a record
//! cannot be moved to another place. The rolling hash covers sealed bytes: whoever has no key can still keep it.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::id::Attempt;

/// Bytes the seal adds to a record.
pub const OVERHEAD: usize = 16;

/// A record that does not open: another key, another place, or damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("record {number} of attempt {attempt} does not open: damaged, misplaced or sealed with another key")]
pub struct BrokenSeal {
    /// Attempt it was read for.
    pub attempt: Attempt,
    /// Number it was read for.
    pub number: u64,
}

/// Key of one attempt's records.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SpoolKey([u8; 32]);

impl std::fmt::Debug for SpoolKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SpoolKey(..)")
    }
}

impl SpoolKey {
    /// Takes key bytes as derived by the controller's vault.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads key bytes of a message; `None` unless there are 32.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The key bytes, for the private block.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Seals `plain` as record `number` of `attempt`, in its place: with room for [`OVERHEAD`] more bytes it is not copied.
    pub fn seal(&self, attempt: Attempt, number: u64, mut plain: Vec<u8>) -> Vec<u8> {
        self.key()
            .seal_in_place_append_tag(nonce(number), aad(attempt, number), &mut plain)
            .expect("records are far below the limit of the cipher");
        plain
    }

    /// Opens record `number` of `attempt`.
    ///
    /// # Errors
    /// [`BrokenSeal`] when the bytes were sealed otherwise or changed since.
    pub fn open(&self, attempt: Attempt, number: u64, sealed: &[u8]) -> Result<Vec<u8>, BrokenSeal> {
        let mut out = sealed.to_vec();
        let length = self
            .key()
            .open_in_place(nonce(number), aad(attempt, number), &mut out)
            .map_err(|_| BrokenSeal { attempt, number })?
            .len();
        out.truncate(length);
        Ok(out)
    }

    fn key(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.0).expect("the key has the cipher's length"))
    }
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn aad(attempt: Attempt, number: u64) -> Aad<[u8; 28]> {
    let mut bytes = [0; 28];
    bytes[..16].copy_from_slice(attempt.unit.0.as_bytes());
    bytes[16..20].copy_from_slice(&attempt.number.to_be_bytes());
    bytes[20..].copy_from_slice(&number.to_be_bytes());
    Aad::from(bytes)
}

/// A chain over all records in order: each link is BLAKE3 over the link before it (32 zero bytes at first), number
/// (8 bytes big-endian), length (8 bytes big-endian) and sealed bytes. The value is all of its state, so whoever keeps
/// it can go on after a restart without the records before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RollingHash([u8; 32]);

impl RollingHash {
    /// Goes on from a value kept earlier.
    pub fn from_value(value: [u8; 32]) -> Self {
        Self(value)
    }

    /// Adds the next record.
    pub fn update(&mut self, number: u64, sealed: &[u8]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        hasher.update(&number.to_be_bytes());
        hasher.update(&(sealed.len() as u64).to_be_bytes());
        hasher.update(sealed);
        self.0 = *hasher.finalize().as_bytes();
    }

    /// The hash of all records so far.
    pub fn value(&self) -> [u8; 32] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::UnitId;
    use uuid::Uuid;

    fn attempt(number: u32) -> Attempt {
        Attempt { unit: UnitId(Uuid::from_u128(7)), number }
    }

    #[test]
    fn a_record_opens_only_where_it_was_sealed() {
        let key = SpoolKey::new([7; 32]);
        let sealed = key.seal(attempt(1), 3, b"line\n".to_vec());
        assert_eq!(key.open(attempt(1), 3, &sealed).unwrap(), b"line\n");
        assert!(key.open(attempt(1), 4, &sealed).is_err(), "another number");
        assert!(key.open(attempt(2), 3, &sealed).is_err(), "another attempt");
        assert!(SpoolKey::new([8; 32]).open(attempt(1), 3, &sealed).is_err(), "another key");
        let mut flipped = sealed.clone();
        flipped[0] ^= 1;
        assert!(key.open(attempt(1), 3, &flipped).is_err(), "a flipped bit");
        assert!(key.open(attempt(1), 3, &[]).is_err(), "nothing");
    }

    #[test]
    fn a_hash_goes_on_from_its_value() {
        let mut whole = RollingHash::default();
        whole.update(1, b"one");
        let mut resumed = RollingHash::from_value(whole.value());
        whole.update(2, b"two");
        resumed.update(2, b"two");
        assert_eq!(whole, resumed);
    }

    #[test]
    fn a_hash_knows_order_number_and_length() {
        let of = |records: &[(u64, &[u8])]| {
            let mut hash = RollingHash::default();
            records.iter().for_each(|(number, sealed)| hash.update(*number, sealed));
            hash.value()
        };
        let value = of(&[(1, b"ab"), (2, b"c")]);
        assert_eq!(value, of(&[(1, b"ab"), (2, b"c")]));
        for other in [
            of(&[(2, b"c"), (1, b"ab")]),
            of(&[(1, b"a"), (2, b"bc")]),
            of(&[(1, b"ab"), (3, b"c")]),
            of(&[(1, b"ab")]),
        ] {
            assert_ne!(value, other);
        }
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", SpoolKey::new([7; 32])), "SpoolKey(..)");
    }
}
