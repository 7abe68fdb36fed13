//! The writing end, in the shim.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use plexus_proto::id::Attempt;
use plexus_proto::seal::{self, RollingHash, SpoolKey};
use plexus_proto::work::{EndRecord, Finished, Record, RecordKind, SealedRecord};
use prost::Message;

use super::segment::{Frame, HEADER_LEN, Header, Kind};
use super::{Error, SEGMENT_BYTES, segment_path, segments};
use crate::crash::Point;

/// Seals records and appends them.
///
/// A record is in the file when [`Writer::append`] returns, and safe from power loss after the next
/// [`Writer::sync`].
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    attempt: Attempt,
    key: SpoolKey,
    key_id: u64,
    file: File,
    path: PathBuf,
    length: u64,
    next: u64,
    hash: RollingHash,
    buffer: Vec<u8>,
    /// The directory, while the name of the first segment in it is not synced: no worker waits for that.
    fresh: Option<File>,
}

impl Writer {
    /// Begins the spool of an attempt in `dir`, which is made.
    ///
    /// # Errors
    /// The disk refuses, or there is a spool already: a number must never be sealed twice with one key.
    pub fn create(dir: &Path, attempt: Attempt, key: SpoolKey, key_id: u64) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(Error::disk("make", dir))?;
        if !segments(dir)?.is_empty() {
            let exists = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(Error::disk("begin a second spool in", dir)(exists));
        }
        let (file, path) = open(dir, &Header { attempt, first_record: 1, key_id })?;
        Ok(Self {
            fresh: Some(File::open(dir).map_err(Error::disk("open", dir))?),
            dir: dir.to_owned(),
            attempt,
            key,
            key_id,
            file,
            path,
            length: HEADER_LEN as u64,
            next: 1,
            hash: RollingHash::default(),
            buffer: Vec::new(),
        })
    }

    /// Number of the last record written; 0 before the first.
    pub fn last(&self) -> u64 {
        self.next - 1
    }

    /// Bytes of the segment being written.
    pub fn segment_len(&self) -> u64 {
        self.length
    }

    /// Appends a record and returns its number.
    ///
    /// # Errors
    /// The disk refuses. The segment is then cut back to its last whole record, and the same record may be
    /// appended again.
    pub fn append(&mut self, kind: RecordKind) -> Result<u64, Error> {
        self.write(&Record { kind: Some(kind) }, None)
    }

    /// Appends the end record, says the outcome in clear beside it, and syncs.
    ///
    /// # Errors
    /// As [`Writer::append`].
    pub fn finish(&mut self, finished: Finished, stderr_tail: Vec<u8>) -> Result<u64, Error> {
        let end = EndRecord {
            finished: Some(finished.clone()),
            records: self.last(),
            rolling_hash: self.hash.value().to_vec().into(),
            stderr_tail: stderr_tail.into(),
        };
        let number = self.write(&Record { kind: Some(RecordKind::End(end)) }, Some(finished))?;
        Point::EndWritten.hit();
        self.sync()?;
        Ok(number)
    }

    /// Makes everything appended so far safe from power loss.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn sync(&mut self) -> Result<(), Error> {
        if let Some(dir) = self.fresh.take() {
            dir.sync_all().map_err(Error::disk("sync", &self.dir))?;
        }
        self.file.sync_data().map_err(Error::disk("sync", &self.path))
    }

    /// A second handle of the current segment, for a thread that syncs while this one writes, and the directory if a name in it
    /// is not synced. Older segments are synced when they are closed.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn sync_handles(&mut self) -> Result<(File, Option<File>), Error> {
        let file = self.file.try_clone().map_err(Error::disk("open", &self.path))?;
        Ok((file, self.fresh.take()))
    }

    fn write(&mut self, record: &Record, outcome: Option<Finished>) -> Result<u64, Error> {
        if self.length >= SEGMENT_BYTES {
            self.sync()?;
            let header = Header { attempt: self.attempt, first_record: self.next, key_id: self.key_id };
            (self.file, self.path) = begin(&self.dir, &header)?;
            self.length = HEADER_LEN as u64;
        }
        let number = self.next;
        let mut plain = Vec::with_capacity(record.encoded_len() + seal::OVERHEAD);
        record.encode(&mut plain).expect("a vector grows");
        let sealed = self.key.seal(self.attempt, number, plain);
        let mut hash = self.hash;
        hash.update(number, &sealed);
        let kind = if outcome.is_some() { Kind::End } else { Kind::Record };
        let frame =
            Frame { record: SealedRecord { number, sealed: sealed.into(), plain: None }, outcome, kind };
        self.buffer.clear();
        frame.encode(&mut self.buffer);
        if let Err(source) = self.file.write_all_at(&self.buffer, self.length) {
            // Half a frame may lie there now. Cutting frees its blocks too; should it fail, the next try
            // overwrites the same place.
            self.file.set_len(self.length).ok();
            return Err(Error::disk("append to", &self.path)(source));
        }
        self.length += self.buffer.len() as u64;
        self.next += 1;
        self.hash = hash;
        if self.buffer.capacity() > 256 << 10 {
            self.buffer = Vec::new(); // one long line must not cost memory for the rest of a long job
        }
        Ok(number)
    }
}

/// Makes a segment, its header and its name durable.
pub(super) fn begin(dir: &Path, header: &Header) -> Result<(File, PathBuf), Error> {
    let (file, path) = open(dir, header)?;
    file.sync_data().and_then(|()| File::open(dir)?.sync_all()).map_err(Error::disk("begin", &path))?;
    Ok((file, path))
}

/// Makes a segment with its header.
fn open(dir: &Path, header: &Header) -> Result<(File, PathBuf), Error> {
    let path = segment_path(dir, header.first_record);
    // Never `create_new`: a full disk may have left the file without its header, and the same number comes again.
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .map_err(Error::disk("create", &path))?;
    file.write_all(&header.encode()).map_err(Error::disk("begin", &path))?;
    Ok((file, path))
}
