//! Length-prefixed frames: four bytes big-endian length, then one encoded message.
//!
//! Every framed conversation names its own limit; a longer frame is an error before a byte of it is kept.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// Longest frame between neighbours: a digest or an announcement of a hop with a few thousand links.
pub const LINK_FRAME_MAX: usize = 256 * 1024;
/// Longest frame of payload and records: a record of 1 MiB output, or a chunk, and what wraps it.
pub const WORK_FRAME_MAX: usize = 4 * 1024 * 1024;
/// Longest private block: inventories of tens of thousands of hosts travel in it.
pub const PRIVATE_FRAME_MAX: usize = 256 * 1024 * 1024;
/// Longest call for a certificate: what a stranger can make a member keep before anybody has vouched for it.
pub const ENROL_CALL_MAX: usize = 4 * 1024;
/// Longest answer to it: two certificates, a handful of roots.
pub const ENROL_ANSWER_MAX: usize = 64 * 1024;
/// Longest frame that opens a stream.
pub const OPEN_FRAME_MAX: usize = 1024;

/// Bytes that are no frame.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Longer than this conversation allows.
    #[error("frame of {length} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Length the prefix announces.
        length: usize,
        /// Limit of the conversation.
        limit: usize,
    },
    /// The body is not the message expected here.
    #[error("frame does not decode")]
    Decode(#[source] prost::DecodeError),
}

/// Appends `message` as one frame.
pub fn encode(message: &impl Message, into: &mut BytesMut) {
    let length = message.encoded_len();
    into.reserve(4 + length);
    into.put_u32(u32::try_from(length).expect("messages are far below 4 GiB"));
    message.encode(into).expect("space was reserved");
}

/// One message as a frame of its own.
pub fn to_bytes(message: &impl Message) -> Bytes {
    let mut buffer = BytesMut::new();
    encode(message, &mut buffer);
    buffer.freeze()
}

/// Takes the next whole frame from the front of `buffer`; `None` while it is not all there.
///
/// # Errors
/// A frame over `limit`, or one that does not decode. The buffer is then of no further use.
pub fn decode<M: Message + Default>(buffer: &mut BytesMut, limit: usize) -> Result<Option<M>, Error> {
    let Some(prefix) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*prefix) as usize;
    if length > limit {
        return Err(Error::TooLong { length, limit });
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    buffer.advance(4);
    let body = buffer.split_to(length).freeze();
    M::decode(body).map(Some).map_err(Error::Decode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Probe;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_cut(nonces in prop::collection::vec(any::<u64>(), 0..20), cut in 1usize..9) {
            let mut wire = BytesMut::new();
            for &nonce in &nonces {
                encode(&Probe { nonce }, &mut wire);
            }
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(probe) = decode::<Probe>(&mut buffer, 100).unwrap() {
                    seen.push(probe.nonce);
                }
            }
            prop_assert_eq!(seen, nonces);
        }

        #[test]
        fn any_bytes_give_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode::<crate::work::RecordMessage>(&mut buffer, 100) {}
        }
    }

    #[test]
    fn oversize_is_refused_from_the_prefix_alone() {
        let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
        assert!(matches!(decode::<Probe>(&mut buffer, 100), Err(Error::TooLong { limit: 100, .. })));
    }
}
