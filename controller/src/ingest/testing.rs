//! What tests of ingest and store share: captured streams as sealed records.

use std::path::PathBuf;

use bytes::Bytes;
use plexus_proto::id::{Attempt, UnitId};
use plexus_proto::seal::{RollingHash, SpoolKey};
use plexus_proto::work::{
    EndRecord, Finished, LostRecord, Outcome, Output, Record, RecordKind, SealedRecord, Starting, Stream,
};
use prost::Message;

use super::UnitContext;
use crate::store::events::JobKey;

pub(crate) fn key() -> SpoolKey {
    SpoolKey::new([7; 32])
}

pub(crate) fn attempt(unit: u128, number: u32) -> Attempt {
    Attempt { unit: UnitId(uuid::Uuid::from_u128(unit)), number }
}

pub(crate) fn job(id: i64) -> JobKey {
    JobKey { id, created: "2026-11-20T16:00:00Z".parse().unwrap() }
}

pub(crate) fn context(unit: u128, id: i64) -> UnitContext {
    UnitContext { attempt: attempt(unit, 1), job: job(id), key: key(), header: None, masks: Vec::new() }
}

/// Standard output of a captured case.
pub(crate) fn captured(case: &str) -> Vec<u8> {
    let streams = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/runner-streams");
    std::fs::read(PathBuf::from(streams).join(case).join("worker.bin")).unwrap()
}

/// All captured cases.
pub(crate) fn cases() -> Vec<String> {
    let index = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/runner-streams/index.json");
    let index: std::collections::BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&std::fs::read(index).unwrap()).unwrap();
    index.into_keys().collect()
}

/// Writes records as a shim does.
pub(crate) struct Spool {
    attempt: Attempt,
    key: SpoolKey,
    hash: RollingHash,
    pub(crate) records: Vec<SealedRecord>,
}

impl Spool {
    pub(crate) fn new(attempt: Attempt) -> Self {
        let mut spool = Self { attempt, key: key(), hash: RollingHash::default(), records: Vec::new() };
        spool.push(RecordKind::Starting(Starting { pid: 7 }));
        spool
    }

    /// The records of a whole attempt, standard output cut into pieces of `size` bytes.
    pub(crate) fn whole(attempt: Attempt, stdout: &[u8], size: usize) -> Vec<SealedRecord> {
        let mut spool = Self::new(attempt);
        stdout.chunks(size).for_each(|piece| spool.stdout(piece));
        spool.end();
        spool.records
    }

    /// The same, cut behind line feeds.
    pub(crate) fn lines(attempt: Attempt, stdout: &[u8], lines: usize) -> Vec<SealedRecord> {
        let mut spool = Self::new(attempt);
        let all: Vec<_> = stdout.split_inclusive(|&byte| byte == b'\n').collect();
        all.chunks(lines).for_each(|some| spool.stdout(&some.concat()));
        spool.end();
        spool.records
    }

    pub(crate) fn push(&mut self, kind: RecordKind) {
        let number = self.records.len() as u64 + 1;
        let plain = Record { kind: Some(kind) }.encode_to_vec();
        let sealed = self.key.seal(self.attempt, number, plain);
        self.hash.update(number, &sealed);
        self.records.push(SealedRecord { number, sealed: sealed.into(), plain: None });
    }

    pub(crate) fn stdout(&mut self, data: &[u8]) {
        self.output(Stream::Stdout, data);
    }

    pub(crate) fn stderr(&mut self, data: &[u8]) {
        self.output(Stream::Stderr, data);
    }

    fn output(&mut self, stream: Stream, data: &[u8]) {
        let data = Bytes::copy_from_slice(data);
        self.push(RecordKind::Output(Output { stream: stream.into(), data, fragment: 0 }));
    }

    pub(crate) fn end(&mut self) {
        let finished = Finished {
            outcome: Outcome::Succeeded.into(),
            exit_code: Some(0),
            signal: None,
            reason: String::new(),
        };
        self.end_with(self.records.len() as u64, self.hash.value(), finished);
    }

    pub(crate) fn end_with(&mut self, records: u64, hash: [u8; 32], finished: Finished) {
        self.push(RecordKind::End(EndRecord {
            finished: Some(finished),
            records,
            rolling_hash: hash.to_vec().into(),
            stderr_tail: Bytes::new(),
        }));
    }

    /// As an agent without the key closes a dead shim's spool.
    pub(crate) fn lost(&mut self, reason: &str) {
        let records = self.records.len() as u64;
        let lost = LostRecord { records, reason: reason.to_owned() };
        self.records.push(SealedRecord {
            number: records + 1,
            sealed: Bytes::new(),
            plain: Some(Record { kind: Some(RecordKind::Lost(lost)) }),
        });
    }
}
