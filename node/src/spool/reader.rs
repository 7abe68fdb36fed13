//! The reading end, in the agent.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use plexus_proto::id::Attempt;
use prost::bytes::{Bytes, BytesMut};

use super::segment::{Frame, HEADER_LEN, Header};
use super::{Error, segment_path, segments};

/// Bytes fetched from a segment at a time, unless a record is longer.
const READ_BYTES: usize = 256 << 10;

/// Follows a spool from a record on. Reads only what its writer has said to be there, so it never meets half
/// a frame in a healthy spool.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    attempt: Attempt,
    next: u64,
    segment: Option<Segment>,
}

#[derive(Debug)]
struct Segment {
    file: File,
    path: PathBuf,
    offset: u64,
    /// Record at `offset`.
    record: u64,
    /// Bytes fetched and not yet decoded; they begin at `offset`.
    fetched: Bytes,
}

impl Reader {
    /// Places a reader before record `from`, or before the first one still held if that is later.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn open(dir: &Path, attempt: Attempt, from: u64) -> Result<Self, Error> {
        let first = segments(dir)?.first().copied().unwrap_or(1);
        Ok(Self { dir: dir.to_owned(), attempt, next: from.max(first), segment: None })
    }

    /// Number of the next record it will return.
    pub fn next_record(&self) -> u64 {
        self.next
    }

    /// Returns frames in order: up to and with record `up_to`, at least one if there is one, and no more once
    /// they hold `bytes`.
    ///
    /// # Errors
    /// Damage, a missing record, or a disk that refuses.
    pub fn read(&mut self, up_to: u64, bytes: usize) -> Result<Vec<Frame>, Error> {
        let (mut frames, mut sum) = (Vec::new(), 0);
        while self.next <= up_to && sum < bytes {
            if self.segment.is_none() {
                self.segment = Some(self.seek()?);
            }
            let segment = self.segment.as_mut().expect("placed above");
            let Some((frame, length)) = segment.frame()? else {
                // The end of this segment: the record must begin the next one, which this one is not even if it is empty.
                let next = segment_path(&self.dir, self.next);
                if segment.path == next || !next.exists() {
                    return Err(Error::Missing(self.next));
                }
                self.segment = None;
                continue;
            };
            if frame.record.number == self.next {
                self.next += 1;
                sum += length;
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    /// Opens the segment that holds `next`.
    fn seek(&self) -> Result<Segment, Error> {
        let first = segments(&self.dir)?
            .into_iter()
            .rev()
            .find(|&first| first <= self.next)
            .ok_or(Error::Missing(self.next))?;
        Segment::open(&self.dir, self.attempt, first)
    }
}

impl Segment {
    fn open(dir: &Path, attempt: Attempt, first: u64) -> Result<Self, Error> {
        let path = segment_path(dir, first);
        let file = File::open(&path).map_err(Error::disk("open", &path))?;
        let mut header = [0; HEADER_LEN];
        let damaged = || Error::Damaged { path: path.clone(), offset: 0, record: first };
        file.read_exact_at(&mut header, 0).map_err(|_| damaged())?;
        let header = Header::decode(&header).map_err(|_| damaged())?;
        if header.attempt != attempt || header.first_record != first {
            return Err(damaged());
        }
        Ok(Self { file, path, offset: HEADER_LEN as u64, record: first, fetched: Bytes::new() })
    }

    /// The next frame and its length; `None` at the end of the file.
    fn frame(&mut self) -> Result<Option<(Frame, usize)>, Error> {
        loop {
            let damaged =
                || Error::Damaged { path: self.path.clone(), offset: self.offset, record: self.record };
            if let Some((frame, length)) = Frame::decode(&self.fetched).map_err(|_| damaged())? {
                if frame.record.number != self.record {
                    return Err(damaged());
                }
                self.fetched = self.fetched.slice(length..);
                self.offset += length as u64;
                self.record += 1;
                return Ok(Some((frame, length)));
            }
            let want = Frame::length(&self.fetched).map_err(|_| damaged())?.unwrap_or(0).max(READ_BYTES);
            let held = self.fetched.len();
            let mut buffer = BytesMut::zeroed(want);
            buffer[..held].copy_from_slice(&self.fetched);
            let mut filled = held;
            while filled < want {
                match self.file.read_at(&mut buffer[filled..], self.offset + filled as u64) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(Error::disk("read", &self.path)(error)),
                }
            }
            if filled == held {
                return if held == 0 { Ok(None) } else { Err(damaged()) };
            }
            buffer.truncate(filled);
            self.fetched = buffer.freeze();
        }
    }
}
