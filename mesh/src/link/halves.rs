//! Packets that came in two halves; see [`FRAGMENT`](super::egress::FRAGMENT).

use bytes::{Bytes, BytesMut};

use super::egress::FRAGMENT_HEADER;

/// Halves that wait for their other half; a link reorders by less.
const WAITING: usize = 16;

/// Halves whose other half has not come.
#[derive(Debug, Default)]
pub(super) struct Halves {
    waiting: std::collections::VecDeque<Bytes>,
}

impl Halves {
    /// Takes a half; returns the packet if it is the second to come.
    pub(super) fn join(&mut self, half: &Bytes) -> Option<Bytes> {
        let &[_, which, a, b] = half.first_chunk::<FRAGMENT_HEADER>()?;
        if which > 1 {
            return None;
        }
        let other = self.waiting.iter().position(|other| other[1] != which && other[2..4] == [a, b]);
        let Some(other) = other.and_then(|index| self.waiting.remove(index)) else {
            if self.waiting.len() >= WAITING {
                self.waiting.pop_front();
            }
            self.waiting.push_back(half.clone());
            return None;
        };
        let (front, back) = if which == 0 { (half, &other) } else { (&other, half) };
        let mut packet = BytesMut::from(&front[FRAGMENT_HEADER..]);
        packet.extend_from_slice(&back[FRAGMENT_HEADER..]);
        Some(packet.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(which: u8, number: u8, bytes: &[u8]) -> Bytes {
        [&[super::super::egress::FRAGMENT, which, 0, number], bytes].concat().into()
    }

    #[test]
    fn both_halves_make_a_packet_in_either_order() {
        let mut halves = Halves::default();
        assert_eq!(halves.join(&half(0, 1, b"ab")), None);
        assert_eq!(halves.join(&half(1, 2, b"CD")), None);
        assert_eq!(halves.join(&half(1, 1, b"cd")).unwrap(), &b"abcd"[..]);
        assert_eq!(halves.join(&half(0, 2, b"AB")).unwrap(), &b"ABCD"[..]);
        assert!(halves.waiting.is_empty());
    }

    #[test]
    fn what_never_becomes_whole_is_bounded() {
        let mut halves = Halves::default();
        for number in 0..200 {
            assert_eq!(halves.join(&half(0, number, b"x")), None);
        }
        assert_eq!(halves.waiting.len(), WAITING);
        assert_eq!(halves.join(&half(7, 199, b"x")), None);
        assert_eq!(halves.join(&Bytes::from_static(b"\x0c\x00")), None);
    }
}
