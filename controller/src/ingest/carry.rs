//! What ingest holds between two records, in a form that lies in the database.
//!
//! A protobuf message of our own, so that a later version adds fields and an earlier one passes over them. It is small:
//! bulk (half a line, artifacts, standard error) is staged in pieces of its own, and each commit writes this again.

use plexus_proto::work::Finished;
use prost::Message;

use crate::stream::Snapshot;

/// Longest text kept of an explanation or a traceback.
pub(super) const TEXT_MAX: usize = 64 * 1024;
/// Most bytes kept of lines that are no items.
pub(super) const NOISE_MAX: usize = 4096;

/// State after a record.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Carry {
    /// Bytes of the line at hand beyond those kept.
    #[prost(uint64, tag = "1")]
    pub(super) skipped: u64,
    #[prost(bool, tag = "2")]
    pub(super) eof: bool,
    /// Within artifacts: characters of base64 still to come.
    #[prost(uint64, optional, tag = "3")]
    pub(super) base64_left: Option<u64>,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) base64_group: Vec<u8>,
    /// Pieces and bytes staged of the line at hand.
    #[prost(uint32, tag = "5")]
    pub(super) line_pieces: u32,
    #[prost(uint64, tag = "6")]
    pub(super) line_staged: u64,
    /// Chain over all records so far; empty once a record was missing.
    #[prost(bytes = "vec", tag = "7")]
    pub(super) hash: Vec<u8>,
    /// A record opened with this key: a later one that does not is damaged, not sealed otherwise.
    #[prost(bool, tag = "8")]
    pub(super) key_fits: bool,
    /// The runner's last counter.
    #[prost(int64, tag = "9")]
    pub(super) runner_counter: i64,
    #[prost(string, optional, tag = "10")]
    pub(super) status: Option<String>,
    #[prost(string, optional, tag = "11")]
    pub(super) explanation: Option<String>,
    #[prost(string, optional, tag = "12")]
    pub(super) traceback: Option<String>,
    #[prost(uint64, tag = "13")]
    pub(super) events: u64,
    #[prost(uint64, tag = "14")]
    pub(super) keepalives: u64,
    #[prost(uint64, tag = "15")]
    pub(super) noise_lines: u64,
    /// The first of them.
    #[prost(bytes = "vec", tag = "16")]
    pub(super) noise: Vec<u8>,
    #[prost(enumeration = "Artifacts", tag = "17")]
    pub(super) artifacts: i32,
    #[prost(uint32, tag = "18")]
    pub(super) artifact_pieces: u32,
    #[prost(uint64, tag = "19")]
    pub(super) artifact_bytes: u64,
    /// Gaps noted so far, those that were not kept included.
    #[prost(uint32, tag = "20")]
    pub(super) gaps: u32,
    /// The record that ended the attempt: end or lost.
    #[prost(uint64, optional, tag = "21")]
    pub(super) last_record: Option<u64>,
    #[prost(message, optional, tag = "22")]
    pub(super) finished: Option<Finished>,
    #[prost(string, optional, tag = "23")]
    pub(super) lost: Option<String>,
    /// Bytes of standard error so far.
    #[prost(uint64, tag = "24")]
    pub(super) stderr_bytes: u64,
}

/// Where the artifacts stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Artifacts {
    None = 0,
    Coming = 1,
    Complete = 2,
    Broken = 3,
}

impl Carry {
    pub(super) fn encode_to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// `None` for bytes that are no carry.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        Self::decode(bytes).ok()
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            skipped: self.skipped,
            eof: self.eof,
            artifacts: self.base64_left.map(|left| (left, self.base64_group.clone())),
        }
    }

    pub(super) fn set_snapshot(&mut self, snapshot: Snapshot) {
        self.skipped = snapshot.skipped;
        self.eof = snapshot.eof;
        (self.base64_left, self.base64_group) = match snapshot.artifacts {
            Some((left, group)) => (Some(left), group),
            None => (None, Vec::new()),
        };
    }
}
