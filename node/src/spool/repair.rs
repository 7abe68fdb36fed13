//! What an agent does with a spool whose writer is gone: find its end, cut what is torn, close it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use plexus_proto::id::Attempt;
use plexus_proto::work::{Finished, LostRecord, Record, RecordKind, SealedRecord};

use super::segment::{Frame, HEADER_LEN, Header, Kind};
use super::{Error, Reader, segment_path, segments, writer};

/// What a look at every byte of a spool found.
#[derive(Debug, Clone, PartialEq)]
pub struct Scan {
    /// Last whole record; 0 when there is none. One less than the first segment's name when all are acknowledged.
    pub last: u64,
    /// How the spool is closed, if it is.
    pub closing: Option<Closing>,
    /// Where the whole part ends: segment and length. `None` when nothing is there, or when all of it is whole.
    torn: Option<(u64, u64)>,
}

/// The last frame of a closed spool.
#[derive(Debug, Clone, PartialEq)]
pub enum Closing {
    /// The shim saw the unit's end.
    End(Finished),
    /// An agent found the shim dead.
    Lost(String),
}

/// Reads and checks the whole spool.
///
/// # Errors
/// The disk refuses. Damage is no error here, but a result.
pub fn scan(dir: &Path, attempt: Attempt) -> Result<Scan, Error> {
    let firsts = segments(dir)?;
    let mut found = Scan { last: firsts.first().map_or(0, |first| first - 1), closing: None, torn: None };
    let Some(&first) = firsts.first() else { return Ok(found) };
    let mut reader = Reader::open(dir, attempt, first)?;
    loop {
        let next = reader.next_record();
        match reader.read(next, 1) {
            Ok(frames) => {
                for frame in frames {
                    found.last = frame.record.number;
                    found.closing = closing(&frame);
                }
            }
            Err(Error::Missing(_)) => {
                // The regular end, unless segments follow that nothing leads to.
                if let Some(&stray) = firsts.iter().find(|&&first| first > next) {
                    found.torn = Some((stray, 0));
                }
                return Ok(found);
            }
            Err(Error::Damaged { path, offset, .. }) => {
                let segment = firsts.iter().rev().find(|&&first| segment_path(dir, first) == path);
                found.torn = Some((*segment.unwrap_or(&first), offset));
                return Ok(found);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Closes the spool of a shim that is gone: cuts it after its last whole record and appends an unsealed lost
/// record, synced. A spool that is closed already stays as it is.
///
/// Returns the number of the last record, and how the spool is closed.
///
/// # Errors
/// The disk refuses.
pub fn close_lost(dir: &Path, attempt: Attempt, reason: &str) -> Result<(u64, Closing), Error> {
    let found = scan(dir, attempt)?;
    if let Some((segment, length)) = found.torn {
        cut(dir, segment, length)?;
    }
    if let Some(closing) = found.closing {
        return Ok((found.last, closing));
    }
    let number = found.last + 1;
    let lost = LostRecord { records: found.last, reason: reason.to_owned() };
    let plain = Record { kind: Some(RecordKind::Lost(lost)) };
    let record = SealedRecord { number, sealed: Default::default(), plain: Some(plain) };
    let mut bytes = Vec::new();
    Frame { record, outcome: None, kind: Kind::Lost }.encode(&mut bytes);
    let (file, path) = match segments(dir)?.last() {
        Some(&first) => {
            let path = segment_path(dir, first);
            let file = OpenOptions::new().write(true).open(&path).map_err(Error::disk("open", &path))?;
            (file, path)
        }
        None => {
            fs::create_dir_all(dir).map_err(Error::disk("make", dir))?;
            writer::begin(dir, &Header { attempt, first_record: number, key_id: 0 })?
        }
    };
    let end = file.metadata().map_err(Error::disk("look at", &path))?.len();
    file.write_all_at(&bytes, end).and_then(|()| file.sync_data()).map_err(Error::disk("close", &path))?;
    Ok((number, Closing::Lost(reason.to_owned())))
}

/// Cuts segment `first` to `length` and deletes it if not even its header is whole; deletes all later ones.
fn cut(dir: &Path, first: u64, length: u64) -> Result<(), Error> {
    for later in segments(dir)?.into_iter().filter(|&later| later > first) {
        let path = segment_path(dir, later);
        fs::remove_file(&path).map_err(Error::disk("delete", &path))?;
    }
    let path = segment_path(dir, first);
    if length < HEADER_LEN as u64 {
        fs::remove_file(&path).map_err(Error::disk("delete", &path))?;
    } else {
        OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| {
                file.set_len(length)?;
                file.sync_all()
            })
            .map_err(Error::disk("cut", &path))?;
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::disk("sync", dir))
}

fn closing(frame: &Frame) -> Option<Closing> {
    match (&frame.kind, &frame.outcome, &frame.record.plain) {
        (Kind::End, Some(finished), _) => Some(Closing::End(finished.clone())),
        (Kind::Lost, _, Some(Record { kind: Some(RecordKind::Lost(lost)) })) => {
            Some(Closing::Lost(lost.reason.clone()))
        }
        _ => None,
    }
}
