//! Overlay packets: what links carry from hop to hop.
//!
//! ```text
//!  0        1          2..6      6..10          10..
//!  flags    hop limit  source    destination    body
//!  R0VVCCEE            u32 BE    u32 BE
//! ```
//!
//! R: rekey bit of sealed links. 0: always clear, so that a packet is never taken for QUIC (whose fixed bit
//! is set there). VV: version. CC: class. EE: ECN codepoint of the inner packet.

use bytes::{BufMut, Bytes, BytesMut};

use crate::id::Address;

/// Bytes of the header.
pub const HEADER_LEN: usize = 10;
/// Version written by this build.
pub const VERSION: u8 = 0;
/// Hop limit of a fresh packet.
pub const HOP_LIMIT: u8 = 32;

/// What a packet carries, and so how soon it leaves a hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Inner QUIC, control connection. Never waits for bulk.
    Control,
    /// Inner QUIC, bulk connection.
    Bulk,
    /// [`Probe`]: echo and trace.
    Probe,
}

/// The header, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub class: Class,
    /// ECN codepoint, 0 to 3.
    pub ecn: u8,
    /// Rekey bit of sealed links; carried, not interpreted here.
    pub rekey: bool,
    /// Hops this packet may still cross.
    pub hop_limit: u8,
    /// Certified address of the sender.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
}

/// Bytes that are no overlay packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer bytes than a header.
    #[error("packet of {0} bytes is shorter than its header")]
    Short(usize),
    /// The fixed bit is set.
    #[error("fixed bit is set")]
    FixedBit,
    /// A version this build does not know.
    #[error("packet version {0} is unknown")]
    Version(u8),
    /// The reserved class.
    #[error("packet class is unknown")]
    Class,
    /// A probe body that is none.
    #[error("probe does not decode")]
    Probe,
}

impl Header {
    /// The ten bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let class = match self.class {
            Class::Control => 0,
            Class::Bulk => 1,
            Class::Probe => 2,
        };
        let mut out = [0; HEADER_LEN];
        out[0] = u8::from(self.rekey) << 7 | VERSION << 4 | class << 2 | (self.ecn & 3);
        out[1] = self.hop_limit;
        out[2..6].copy_from_slice(&self.source.0.to_be_bytes());
        out[6..10].copy_from_slice(&self.destination.0.to_be_bytes());
        out
    }

    /// Reads the header at the front of `packet`; the body follows at [`HEADER_LEN`].
    pub fn decode(packet: &[u8]) -> Result<Self, Error> {
        let Some(head) = packet.first_chunk::<HEADER_LEN>() else {
            return Err(Error::Short(packet.len()));
        };
        let flags = head[0];
        if flags & 0x40 != 0 {
            return Err(Error::FixedBit);
        }
        let version = flags >> 4 & 3;
        if version != VERSION {
            return Err(Error::Version(version));
        }
        let class = match flags >> 2 & 3 {
            0 => Class::Control,
            1 => Class::Bulk,
            2 => Class::Probe,
            _ => return Err(Error::Class),
        };
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        Ok(Self {
            class,
            ecn: flags & 3,
            rekey: flags & 0x80 != 0,
            hop_limit: head[1],
            source: Address(word(2)),
            destination: Address(word(6)),
        })
    }

    /// Header and body as one packet.
    pub fn packet(&self, body: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_LEN + body.len());
        out.put_slice(&self.encode());
        out.put_slice(body);
        out.freeze()
    }
}

/// Body of a [`Class::Probe`] packet: answered by the overlay itself, like ICMP echo and time exceeded.
/// Nothing is decided on its say but what a trace prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Please answer.
    Echo {
        /// Random; comes back in the answer.
        nonce: u64,
    },
    /// The answer of the destination.
    EchoReply {
        /// As in the request.
        nonce: u64,
        /// Hop limit the request still had on arrival.
        hops_left: u8,
    },
    /// The answer of the node where the hop limit ran out.
    HopLimitExceeded {
        /// As in the request.
        nonce: u64,
    },
    /// The answer of a node that knows no way on.
    NoRoute {
        /// As in the request.
        nonce: u64,
        /// Where the request was going.
        destination: Address,
    },
}

/// How packets travel on a link, in the words of a [`LinkNote`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkWord {
    /// DATAGRAMs of QUIC.
    Quic,
    /// Sealed UDP.
    Sealed,
    /// Frames on TCP.
    Tcp,
}

/// What a node that answers a probe says behind its answer of the link that the answer leaves by: on most paths the
/// one that the probe came by. For people who trace, as all of a [`Probe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkNote {
    /// How packets travel.
    pub kind: LinkWord,
    /// Largest overlay packet in bytes; none: any.
    pub mtu: Option<u16>,
}

impl LinkNote {
    /// Three bytes: kind from 1, MTU with 0 for any.
    pub fn encode(&self) -> [u8; 3] {
        let kind = match self.kind {
            LinkWord::Quic => 1,
            LinkWord::Sealed => 2,
            LinkWord::Tcp => 3,
        };
        let [high, low] = self.mtu.unwrap_or(0).to_be_bytes();
        [kind, high, low]
    }

    /// Reads the note behind `probe`, the first part of `body`; none where a node of an older version wrote none.
    pub fn behind(probe: &Probe, body: &[u8]) -> Option<Self> {
        let [kind, high, low] = *body.get(probe.encode().len()..)?.first_chunk::<3>()?;
        let kind = match kind {
            1 => LinkWord::Quic,
            2 => LinkWord::Sealed,
            3 => LinkWord::Tcp,
            _ => return None,
        };
        Some(Self { kind, mtu: Some(u16::from_be_bytes([high, low])).filter(|&mtu| mtu != 0) })
    }
}

impl Probe {
    /// The body's bytes: kind, nonce, then what the kind adds.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, nonce, tail): (u8, u64, Vec<u8>) = match *self {
            Self::Echo { nonce } => (1, nonce, vec![]),
            Self::EchoReply { nonce, hops_left } => (2, nonce, vec![hops_left]),
            Self::HopLimitExceeded { nonce } => (3, nonce, vec![]),
            Self::NoRoute { nonce, destination } => (4, nonce, destination.0.to_be_bytes().to_vec()),
        };
        let mut out = vec![kind];
        out.extend_from_slice(&nonce.to_be_bytes());
        out.extend_from_slice(&tail);
        out
    }

    /// Reads a body; bytes after it are left for later versions.
    pub fn decode(body: &[u8]) -> Result<Self, Error> {
        let (&kind, rest) = body.split_first().ok_or(Error::Probe)?;
        let (nonce, rest) = rest.split_first_chunk::<8>().ok_or(Error::Probe)?;
        let nonce = u64::from_be_bytes(*nonce);
        match kind {
            1 => Ok(Self::Echo { nonce }),
            2 => {
                let &hops_left = rest.first().ok_or(Error::Probe)?;
                Ok(Self::EchoReply { nonce, hops_left })
            }
            3 => Ok(Self::HopLimitExceeded { nonce }),
            4 => {
                let word = rest.first_chunk::<4>().ok_or(Error::Probe)?;
                Ok(Self::NoRoute { nonce, destination: Address(u32::from_be_bytes(*word)) })
            }
            _ => Err(Error::Probe),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers() -> impl Strategy<Value = Header> {
        let class = prop_oneof![Just(Class::Control), Just(Class::Bulk), Just(Class::Probe)];
        (class, 0u8..4, any::<bool>(), any::<u8>(), any::<u32>(), any::<u32>()).prop_map(
            |(class, ecn, rekey, hop_limit, source, destination)| Header {
                class,
                ecn,
                rekey,
                hop_limit,
                source: Address(source),
                destination: Address(destination),
            },
        )
    }

    #[test]
    fn notes_stand_behind_answers_and_may_be_missing() {
        let answer = Probe::EchoReply { nonce: 7, hops_left: 3 };
        for note in [
            LinkNote { kind: LinkWord::Quic, mtu: Some(1404) },
            LinkNote { kind: LinkWord::Sealed, mtu: Some(8900) },
            LinkNote { kind: LinkWord::Tcp, mtu: None },
        ] {
            let body = [&answer.encode()[..], &note.encode()].concat();
            assert_eq!(Probe::decode(&body), Ok(answer));
            assert_eq!(LinkNote::behind(&answer, &body), Some(note));
            assert_eq!(LinkNote::behind(&answer, &body[..body.len() - 1]), None);
        }
        let later = [&answer.encode()[..], &[9, 0, 0]].concat();
        assert_eq!(LinkNote::behind(&answer, &later), None);
        assert_eq!(LinkNote::behind(&answer, &answer.encode()), None);
    }

    proptest! {
        #[test]
        fn headers_round_trip(header in headers()) {
            let bytes = header.encode();
            prop_assert_eq!(bytes[0] & 0x40, 0, "QUIC's fixed bit stays clear");
            prop_assert_eq!(Header::decode(&bytes), Ok(header));
        }

        #[test]
        fn any_bytes_give_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Header::decode(&bytes);
            let _ = Probe::decode(&bytes);
        }
    }
}
