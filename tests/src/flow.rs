//! Streams that prove themselves: numbered, checksummed blocks, in which every loss, shift and repetition shows. Pure.
//!
//! ```text
//! block := number u64, length u32, checksum u32, payload      checksum: first 4 bytes of BLAKE3 over number and payload
//! end   := number u64, 0, checksum                            number: how many blocks came before
//! ```

/// Bytes in front of a payload.
pub const HEADER: usize = 16;
/// Largest payload.
pub const PAYLOAD_MAX: usize = 1 << 20;

/// What is wrong with a flow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not the block that comes next.
    #[error("block {found} where {expected} was due")]
    Order {
        /// Number due.
        expected: u64,
        /// Number there.
        found: u64,
    },
    /// Other bytes than were sent.
    #[error("block {0} is broken")]
    Broken(u64),
    /// Bytes behind the end.
    #[error("bytes after the end")]
    AfterEnd,
    /// No end at all.
    #[error("ended in block {0} without its end")]
    Unfinished(u64),
}

/// Appends block `number` with a payload of `length` bytes that depends on the number alone.
pub fn block(number: u64, length: usize, out: &mut Vec<u8>) {
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut payload = Vec::with_capacity(length + 8);
    while payload.len() < length {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        payload.extend_from_slice(&word.to_le_bytes());
    }
    payload.truncate(length);
    put(number, &payload, out);
}

/// Appends the end of a flow of `blocks` blocks.
pub fn end(blocks: u64, out: &mut Vec<u8>) {
    put(blocks, &[], out);
}

fn put(number: u64, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&number.to_be_bytes());
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&checksum(number, payload));
    out.extend_from_slice(payload);
}

fn checksum(number: u64, payload: &[u8]) -> [u8; 4] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_be_bytes()).update(payload);
    let hash = hasher.finalize();
    let bytes = hash.as_bytes();
    [bytes[0], bytes[1], bytes[2], bytes[3]]
}

/// Reads a flow, in pieces of any size.
#[derive(Debug, Default)]
pub struct Checker {
    next: u64,
    bytes: u64,
    pending: Vec<u8>,
    ended: bool,
}

impl Checker {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// The first fault; nothing after it means anything.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.bytes += bytes.len() as u64;
        self.pending.extend_from_slice(bytes);
        let mut rest = &self.pending[..];
        while let Some((header, behind)) = rest.split_first_chunk::<HEADER>() {
            if self.ended {
                return Err(Fault::AfterEnd);
            }
            let [n0, n1, n2, n3, n4, n5, n6, n7, l0, l1, l2, l3, sum @ ..] = *header;
            let number = u64::from_be_bytes([n0, n1, n2, n3, n4, n5, n6, n7]);
            let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
            if number != self.next {
                return Err(Fault::Order { expected: self.next, found: number });
            }
            if length > PAYLOAD_MAX {
                return Err(Fault::Broken(number));
            }
            let Some(payload) = behind.get(..length) else { break };
            if checksum(number, payload) != sum {
                return Err(Fault::Broken(number));
            }
            self.ended = length == 0;
            self.next += u64::from(!self.ended);
            rest = &behind[length..];
        }
        let used = self.pending.len() - rest.len();
        self.pending.drain(..used);
        if self.ended && !self.pending.is_empty() {
            return Err(Fault::AfterEnd);
        }
        Ok(())
    }

    /// Bytes so far, headers included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The stream has ended: gives the number of blocks.
    ///
    /// # Errors
    /// When it ended too early.
    pub fn finish(self) -> Result<u64, Fault> {
        if self.ended { Ok(self.next) } else { Err(Fault::Unfinished(self.next)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Vec<u8> {
        let mut out = Vec::new();
        for number in 0..20 {
            block(number, 1 + 37 * usize::try_from(number).unwrap(), &mut out);
        }
        end(20, &mut out);
        out
    }

    fn check(bytes: &[u8], piece: usize) -> Result<u64, Fault> {
        let mut checker = Checker::default();
        for piece in bytes.chunks(piece) {
            checker.take(piece)?;
        }
        assert_eq!(checker.bytes(), bytes.len() as u64);
        checker.finish()
    }

    #[test]
    fn a_whole_flow_passes_in_pieces_of_any_size() {
        for piece in [1, 7, 16, 1000, 100_000] {
            assert_eq!(check(&flow(), piece), Ok(20));
        }
    }

    #[test]
    fn every_single_loss_and_repetition_of_a_byte_shows() {
        let flow = flow();
        for at in 0..flow.len() {
            let mut lost = flow.clone();
            lost.remove(at);
            assert!(check(&lost, 512).is_err(), "byte {at} lost");
            let mut twice = flow.clone();
            twice.insert(at, flow[at]);
            assert!(check(&twice, 512).is_err(), "byte {at} twice");
            let mut turned = flow.clone();
            turned[at] ^= 1;
            assert!(check(&turned, 512).is_err(), "byte {at} turned");
        }
    }

    #[test]
    fn lost_doubled_and_swapped_blocks_are_named() {
        let of = |numbers: &[u64]| {
            let mut out = Vec::new();
            numbers.iter().for_each(|&number| block(number, 10, &mut out));
            end(numbers.len() as u64, &mut out);
            check(&out, 100)
        };
        assert_eq!(of(&[0, 1, 2]), Ok(3));
        assert_eq!(of(&[0, 2]), Err(Fault::Order { expected: 1, found: 2 }));
        assert_eq!(of(&[0, 1, 1]), Err(Fault::Order { expected: 2, found: 1 }));
        assert_eq!(of(&[1, 0]), Err(Fault::Order { expected: 0, found: 1 }));
    }
}
