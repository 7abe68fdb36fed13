//! Maps by address, looked into for every packet and every step of a route.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use plexus_proto::id::Address;

/// A map by overlay address.
pub(crate) type ByAddress<T> = HashMap<Address, T, BuildHasherDefault<AddressHasher>>;

/// Addresses are handed out by us in sequence, so spreading their bits is all that is needed.
#[derive(Debug, Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(byte.into()));
    }

    fn write_u32(&mut self, word: u32) {
        self.0 = (self.0 ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}
