//! The seal of what ingest keeps between records: carry and staged pieces.
//!
//! They hold what the worker said, environments and all, so they lie in the database as sealed as the records they came
//! from: AES-256-GCM, under a key derived from the attempt's, for this purpose alone. Nonces are random, because a piece
//! may be written again with other content; the place a piece belongs to is associated data.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use plexus_proto::id::Attempt;
use plexus_proto::seal::SpoolKey;

use crate::store::events::Slot;

/// Names the purpose of the derived key. Never changes: files hold what was sealed with it.
const PURPOSE: &str = "plexus 2026-11 controller ingest: carry and staging of an attempt";

/// Where a sealed piece belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The carry after this record.
    Carry(u64),
    /// A staged piece.
    Staged(Slot, u32),
}

impl Place {
    fn bytes(self) -> [u8; 9] {
        let (kind, number) = match self {
            Self::Carry(record) => (0, record),
            Self::Staged(Slot::Artifacts, seq) => (1, seq.into()),
            Self::Staged(Slot::Line, seq) => (2, seq.into()),
            Self::Staged(Slot::Starting, seq) => (3, seq.into()),
            Self::Staged(Slot::Stderr, seq) => (4, seq.into()),
        };
        let mut bytes = [kind; 9];
        bytes[1..].copy_from_slice(&u64::to_be_bytes(number));
        bytes
    }
}

/// Seals and opens what ingest keeps of one attempt.
pub(super) struct Sealer {
    key: RandomizedNonceKey,
    attempt: Attempt,
}

impl Sealer {
    pub(super) fn new(key: &SpoolKey, attempt: Attempt) -> Self {
        let derived = zeroize::Zeroizing::new(blake3::derive_key(PURPOSE, key.expose()));
        let key =
            RandomizedNonceKey::new(&AES_256_GCM, &*derived).expect("a derived key has the cipher's length");
        Self { key, attempt }
    }

    /// Nonce, then the sealed bytes.
    pub(super) fn seal(&self, place: Place, plain: &[u8]) -> Vec<u8> {
        let mut sealed = plain.to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(self.aad(place), &mut sealed)
            .expect("pieces are far below the limit of the cipher");
        [&nonce.as_ref()[..], &sealed].concat()
    }

    /// `None` when the bytes were sealed otherwise, elsewhere, or changed since.
    pub(super) fn open(&self, place: Place, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut plain = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.key.open_in_place(nonce, self.aad(place), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }

    fn aad(&self, place: Place) -> Aad<[u8; 29]> {
        let mut bytes = [0; 29];
        bytes[..16].copy_from_slice(self.attempt.unit.0.as_bytes());
        bytes[16..20].copy_from_slice(&self.attempt.number.to_be_bytes());
        bytes[20..].copy_from_slice(&place.bytes());
        Aad::from(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plexus_proto::id::UnitId;

    #[test]
    fn a_piece_opens_only_where_it_belongs() {
        let attempt = |number| Attempt { unit: UnitId(uuid::Uuid::from_u128(7)), number };
        let key = SpoolKey::new([7; 32]);
        let sealer = Sealer::new(&key, attempt(1));
        let sealed = sealer.seal(Place::Carry(3), b"half a line");
        assert_eq!(sealer.open(Place::Carry(3), &sealed).unwrap(), b"half a line");
        assert_ne!(sealed, sealer.seal(Place::Carry(3), b"half a line"), "a fresh nonce each time");
        assert!(sealer.open(Place::Carry(4), &sealed).is_none());
        assert!(sealer.open(Place::Staged(Slot::Line, 3), &sealed).is_none());
        assert!(Sealer::new(&key, attempt(2)).open(Place::Carry(3), &sealed).is_none());
        assert!(Sealer::new(&SpoolKey::new([8; 32]), attempt(1)).open(Place::Carry(3), &sealed).is_none());
        assert!(sealer.open(Place::Carry(3), &sealed[..11]).is_none());
        assert!(!sealed.windows(4).any(|window| window == b"half"));
    }
}
