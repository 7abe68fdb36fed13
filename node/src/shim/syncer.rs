//! Group sync: at most 20 ms or 1 MiB of records are ever unsafe from power loss, and no record waits for a disk.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::spool::Writer;

/// Longest time a record stays unsynced.
const GROUP_TIME: Duration = Duration::from_millis(20);
/// Most bytes that stay unsynced before a sync begins.
const GROUP_BYTES: u64 = 1 << 20;

/// A segment, and its directory if its name is not safe yet.
type Files = (File, Option<File>);

/// What is to be synced, and the thread that does it.
#[derive(Debug, Default)]
pub(super) struct Syncer {
    /// Begins with the first sync: the end of a short unit is synced in its place, without one.
    thread: Option<Thread>,
    running: bool,
    /// Record the running or last sync covers.
    covered: u64,
    /// Since when, and from which byte, records are unsynced.
    dirty: Option<(Instant, u64)>,
}

#[derive(Debug)]
struct Thread {
    files: SyncSender<Files>,
    done: UnixStream,
}

impl Syncer {
    /// Where the thread says that it is done.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.thread.as_ref().map(|thread| thread.done.as_fd())
    }

    /// When a sync is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.running { None } else { self.dirty.map(|(since, _)| since + GROUP_TIME) }
    }

    /// Notes new records and begins a sync if one is due.
    pub(super) fn push(&mut self, spool: &mut Writer, now: Instant) -> anyhow::Result<()> {
        if self.dirty.is_none() && spool.last() > self.covered {
            self.dirty = Some((now, spool.segment_len()));
        }
        let Some((since, from)) = self.dirty else { return Ok(()) };
        // A smaller length than at the start means a new segment; the old one was synced when it was closed.
        let bytes = spool.segment_len().checked_sub(from).unwrap_or(spool.segment_len());
        if !self.running && (now >= since + GROUP_TIME || bytes >= GROUP_BYTES) {
            self.dirty = None;
            self.covered = spool.last();
            if self.thread.is_none() {
                self.thread = Thread::start().ok();
            }
            match &self.thread {
                Some(thread) => {
                    thread.files.send(spool.sync_handles()?).context("the sync thread is gone")?;
                    self.running = true;
                }
                // The job has used up what threads there may be: it waits for the disk.
                None => spool.sync()?,
            }
        }
        Ok(())
    }

    /// Reads the thread's answer.
    ///
    /// # Errors
    /// The disk could not sync: what was promised to be safe is not.
    pub(super) fn on_done(&mut self) -> anyhow::Result<()> {
        let Some(thread) = &mut self.thread else { return Ok(()) };
        let mut word = [0];
        match thread.done.read(&mut word) {
            Ok(1) if word == *b"+" => self.running = false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => bail!("the spool cannot be synced to disk"),
        }
        Ok(())
    }
}

impl Thread {
    fn start() -> io::Result<Self> {
        let (files, inbox) = sync_channel::<Files>(1);
        let (done, mut says) = UnixStream::pair()?;
        done.set_nonblocking(true)?;
        let sync = move || {
            for (file, name) in inbox {
                let named = name.is_none_or(|dir| dir.sync_all().is_ok());
                let word = if named && file.sync_data().is_ok() { b'+' } else { b'-' };
                if says.write_all(&[word]).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("sync".to_owned()).stack_size(64 << 10).spawn(sync)?;
        Ok(Self { files, done })
    }
}

#[cfg(test)]
mod tests {
    use plexus_proto::id::{Attempt, UnitId};
    use plexus_proto::seal::SpoolKey;
    use plexus_proto::work::{Output, RecordKind};
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::spool::segment_path;
    use crate::testing::unsynced_bytes;

    #[test]
    fn records_are_on_the_disk_once_their_time_has_come() {
        let dir = tempfile::tempdir().unwrap();
        let attempt = Attempt { unit: UnitId(uuid::Uuid::from_u128(5)), number: 1 };
        let mut spool = Writer::create(dir.path(), attempt, SpoolKey::new([9; 32]), 1).unwrap();
        let mut syncer = Syncer::default();
        let begin = Instant::now();
        spool
            .append(RecordKind::Output(Output { data: vec![b'x'; 9000].into(), ..Output::default() }))
            .unwrap();
        syncer.push(&mut spool, begin).unwrap();
        assert_eq!(syncer.deadline(), Some(begin + GROUP_TIME), "others may join it until then");
        syncer.push(&mut spool, begin + GROUP_TIME).unwrap();
        assert_eq!(syncer.deadline(), None);
        poll(&mut [PollFd::new(&syncer.fd().unwrap(), PollFlags::IN)], None).unwrap();
        syncer.on_done().unwrap();
        assert_eq!(unsynced_bytes(&segment_path(dir.path(), 1)), 0);
    }
}
