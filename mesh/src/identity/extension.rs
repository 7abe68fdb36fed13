//! The two private certificate extensions: what a leaf's address is, and what an intermediate may certify.
//!
//! Both are DER with one possible encoding per value. They are marked non-critical, since the general path check
//! knows nothing of them; [`Verifier`](super::Verifier) refuses certificates that lack them.

use plexus_proto::id::{Address, ClusterId};

/// Arc of the leaf's extension: its address, an OCTET STRING of four bytes.
///
/// The arcs are our own numbers below 2.25, where identifiers are made without a registry.
pub(crate) const ADDRESS_OID: &[u64] = &[2, 25, 6_113_760_817_320_419_841];
/// Arc of the intermediate's extension: SEQUENCE of cluster (UTF8String) and range (OCTET STRING, first and last).
pub(crate) const SCOPE_OID: &[u64] = &[2, 25, 6_113_760_817_320_419_842];

const OCTET_STRING: u8 = 0x04;
const UTF8_STRING: u8 = 0x0c;
const SEQUENCE: u8 = 0x30;

/// What an intermediate may certify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    /// The cluster of every leaf below it.
    pub(crate) cluster: ClusterId,
    /// Lowest address it may give.
    pub(crate) first: Address,
    /// Highest address it may give.
    pub(crate) last: Address,
}

pub(crate) fn encode_address(address: Address) -> Vec<u8> {
    element(OCTET_STRING, &address.0.to_be_bytes())
}

pub(crate) fn decode_address(der: &[u8]) -> Option<Address> {
    let (bytes, rest) = take(OCTET_STRING, der)?;
    let bytes: [u8; 4] = bytes.try_into().ok()?;
    rest.is_empty().then_some(Address(u32::from_be_bytes(bytes)))
}

impl Scope {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut range = [0; 8];
        range[..4].copy_from_slice(&self.first.0.to_be_bytes());
        range[4..].copy_from_slice(&self.last.0.to_be_bytes());
        let mut body = element(UTF8_STRING, self.cluster.as_str().as_bytes());
        body.extend(element(OCTET_STRING, &range));
        element(SEQUENCE, &body)
    }

    pub(crate) fn decode(der: &[u8]) -> Option<Self> {
        let (body, rest) = take(SEQUENCE, der)?;
        let (cluster, tail) = take(UTF8_STRING, body)?;
        let (range, end) = take(OCTET_STRING, tail)?;
        if !rest.is_empty() || !end.is_empty() {
            return None;
        }
        let (first, last) = range.split_first_chunk::<4>()?;
        let last: [u8; 4] = last.try_into().ok()?;
        let cluster = std::str::from_utf8(cluster).ok()?.parse().ok()?;
        Some(Self {
            cluster,
            first: Address(u32::from_be_bytes(*first)),
            last: Address(u32::from_be_bytes(last)),
        })
    }

    pub(crate) fn holds(&self, address: Address) -> bool {
        self.first <= address && address <= self.last
    }
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).ok().filter(|&length| length < 128);
    let mut out = vec![tag, length.expect("names are at most 63 bytes, so lengths fit the short form")];
    out.extend_from_slice(content);
    out
}

fn take(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    match der {
        [found, length @ 0..128, rest @ ..] if *found == tag => rest.split_at_checked(usize::from(*length)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_round_trip(cluster in "[a-z0-9][a-z0-9._-]{0,62}", first: u32, last: u32) {
            let scope = Scope { cluster: cluster.parse().unwrap(), first: Address(first), last: Address(last) };
            prop_assert_eq!(Scope::decode(&scope.encode()), Some(scope));
            prop_assert_eq!(decode_address(&encode_address(Address(first))), Some(Address(first)));
        }

        #[test]
        fn whatever_decodes_is_the_one_encoding(bytes in prop::collection::vec(any::<u8>(), 0..90)) {
            if let Some(scope) = Scope::decode(&bytes) {
                prop_assert_eq!(scope.encode(), bytes.clone());
            }
            if let Some(address) = decode_address(&bytes) {
                prop_assert_eq!(encode_address(address), bytes);
            }
        }
    }
}
