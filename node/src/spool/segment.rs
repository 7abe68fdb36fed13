//! Bytes of a segment.
//!
//! ```text
//! header   magic 8 | version u32 | unit 16 | attempt u32 | first record u64 | key id u64 | check 16
//! frame    length u32 | kind u8 | check 16 | body
//! ```
//!
//! Integers are big-endian. `check` is the first half of a BLAKE3 hash: of the header before it, or of kind and
//! body. The body is an encoded `SealedRecord`; that of an [`Kind::End`] frame also says the outcome in clear,
//! because the agent that reads it has no key.

use plexus_proto::frame::WORK_FRAME_MAX;
use plexus_proto::id::{Attempt, UnitId};
use plexus_proto::work::{Finished, SealedRecord};
use prost::Message;
use prost::bytes::Bytes;
use uuid::Uuid;

/// Bytes of a segment's header.
pub const HEADER_LEN: usize = 64;
/// Bytes of a frame before its body.
pub const FRAME_HEADER_LEN: usize = 21;

const MAGIC: &[u8; 8] = b"PLXSPOOL";
const VERSION: u32 = 1;

/// What a frame is to the agent, which cannot open it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A sealed record.
    Record,
    /// The sealed end record and, in clear, the outcome.
    End,
    /// An unsealed lost record, written by an agent.
    Lost,
}

/// The header of a segment, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Whose records these are.
    pub attempt: Attempt,
    /// Number of the first one.
    pub first_record: u64,
    /// Which key sealed them; 0 for a segment that an agent began.
    pub key_id: u64,
}

/// One frame, decoded and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// The record as it goes to the controller.
    pub record: SealedRecord,
    /// How the unit ended, on the last frame.
    pub outcome: Option<Finished>,
    /// What it is.
    pub kind: Kind,
}

/// Bytes that are no frame or header of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage;

#[derive(Clone, PartialEq, Message)]
struct EndBody {
    #[prost(message, optional, tag = "1")]
    record: Option<SealedRecord>,
    #[prost(message, optional, tag = "2")]
    finished: Option<Finished>,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_be_bytes());
        bytes[12..28].copy_from_slice(self.attempt.unit.0.as_bytes());
        bytes[28..32].copy_from_slice(&self.attempt.number.to_be_bytes());
        bytes[32..40].copy_from_slice(&self.first_record.to_be_bytes());
        bytes[40..48].copy_from_slice(&self.key_id.to_be_bytes());
        let check = check(&[&bytes[..48]]);
        bytes[48..].copy_from_slice(&check);
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`Damage`] unless it is whole, ours, and of a version this build reads.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let bytes: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(Damage)?;
        if &bytes[..8] != MAGIC || check(&[&bytes[..48]]) != bytes[48..] {
            return Err(Damage);
        }
        let u32_at = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if u32_at(8) != VERSION {
            return Err(Damage);
        }
        let unit = Uuid::from_slice(&bytes[12..28]).map_err(|_| Damage)?;
        Ok(Self {
            attempt: Attempt { unit: UnitId(unit), number: u32_at(28) },
            first_record: u64_at(32),
            key_id: u64_at(40),
        })
    }
}

impl Frame {
    /// Appends the frame's bytes.
    pub fn encode(&self, into: &mut Vec<u8>) {
        let start = into.len();
        into.extend_from_slice(&[0; FRAME_HEADER_LEN]);
        match self.kind {
            Kind::End => {
                let body = EndBody { record: Some(self.record.clone()), finished: self.outcome.clone() };
                body.encode(into).expect("a vector grows");
            }
            Kind::Record | Kind::Lost => self.record.encode(into).expect("a vector grows"),
        }
        let kind = [self.kind as u8];
        let check = check(&[&kind, &into[start + FRAME_HEADER_LEN..]]);
        let length = u32::try_from(into.len() - start - FRAME_HEADER_LEN).expect("records are bounded");
        into[start..start + 4].copy_from_slice(&length.to_be_bytes());
        into[start + 4] = kind[0];
        into[start + 5..start + FRAME_HEADER_LEN].copy_from_slice(&check);
    }

    /// Length of the whole frame at the front of `bytes`; `None` while its length is not all there.
    ///
    /// # Errors
    /// [`Damage`] when the length is none a writer would have written.
    pub fn length(bytes: &[u8]) -> Result<Option<usize>, Damage> {
        let Some(prefix) = bytes.first_chunk::<4>() else { return Ok(None) };
        let body = u32::from_be_bytes(*prefix) as usize;
        if body > WORK_FRAME_MAX {
            return Err(Damage);
        }
        Ok(Some(FRAME_HEADER_LEN + body))
    }

    /// Takes the frame at the front of `bytes`; `None` while it is not all there.
    ///
    /// # Errors
    /// [`Damage`] when the check fails or the body does not decode.
    pub fn decode(bytes: &Bytes) -> Result<Option<(Frame, usize)>, Damage> {
        let Some(length) = Self::length(bytes)? else { return Ok(None) };
        if bytes.len() < length {
            return Ok(None);
        }
        let body = bytes.slice(FRAME_HEADER_LEN..length);
        if check(&[&bytes[4..5], &body]) != bytes[5..FRAME_HEADER_LEN] {
            return Err(Damage);
        }
        let kind = match bytes[4] {
            0 => Kind::Record,
            1 => Kind::End,
            2 => Kind::Lost,
            _ => return Err(Damage),
        };
        let (record, outcome) = match kind {
            Kind::End => {
                let body = EndBody::decode(body).map_err(|_| Damage)?;
                (body.record.ok_or(Damage)?, Some(body.finished.ok_or(Damage)?))
            }
            Kind::Record | Kind::Lost => (SealedRecord::decode(body).map_err(|_| Damage)?, None),
        };
        Ok(Some((Frame { record, outcome, kind }, length)))
    }
}

fn check(parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes().first_chunk().expect("a hash has 32 bytes")
}
