//! Events of jobs, each stored once: a file per month on SQLite, a schema per month on PostgreSQL.
//!
//! A job's events, cursor and carry live in the month in which the job was created (UTC), so that one transaction holds
//! them all, retention is the removal of a month, and no amount of ingest keeps the core database waiting.
//!
//! Writing goes through two tasks per month: one puts transactions together (`assemble`), one owns the connection and
//! commits (`commit`). Readers have connections of their own and never wait for them. What is SQL stands in
//! `schema` and beside its use, built by the builder; what is an engine's own stands in `sqlite` and `postgres`, and
//! `engine` gives them one face.

mod assemble;
mod body;
mod commit;
mod counts;
mod engine;
mod heads;
mod id;
mod intake;
mod meters;
mod postgres;
mod query;
mod read;
mod schema;
mod sqlite;
mod stdout;
mod summary;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use plexus_proto::id::{Attempt, OwnerEpoch, UnitId};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::assemble::{Assembler, Request};
use self::commit::Committer;
use self::engine::{Engine, Reader};
use self::heads::Heads;
use self::meters::Meters;

use super::postgres::Server;

pub(crate) use self::counts::Counters;
pub use self::counts::Counts;
pub use self::id::EventId;
pub(crate) use self::intake::{Batch, Commits, NewEvent, NewGap, OpenRequest, Opened, Slot, Staged};
pub use self::meters::{Histogram, Reading};
pub use self::query::{EventQuery, Numbers, Order, TextMatch};
pub use self::read::{Event, EventPage, EventSummary, Gap, Outline};

/// Requests of sessions that wait for the assembler of a month. Full, it makes sessions wait, and through them nodes.
const REQUESTS: usize = 64;
/// Bytes of records on their way into a month's file; sessions wait for room.
const ROOM: usize = 32 * 1024 * 1024;

/// Trouble with the store of events.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory of the files.
    #[error("cannot use event directory {}", dir.display())]
    Directory {
        /// Which.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that does not open.
    #[error("cannot open events in {}", file.display())]
    Open {
        /// Which.
        file: PathBuf,
        /// Why.
        source: sqlx::Error,
    },
    /// A file of a later version of this program.
    #[error("events in {} have schema version {version}, this program knows up to {known}: it was written by a newer version", file.display())]
    Newer {
        /// Which.
        file: PathBuf,
        /// Its version.
        version: i64,
        /// The highest one known here.
        known: i64,
    },
    /// A file of another program.
    #[error("{} holds something, but not events", file.display())]
    Foreign {
        /// Which.
        file: PathBuf,
    },
    /// A read that failed.
    #[error("cannot read events in {}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        source: sqlx::Error,
    },
    /// A write that failed.
    #[error("cannot write events in {}", file.display())]
    Write {
        /// Which.
        file: PathBuf,
        /// Why.
        source: sqlx::Error,
    },
    /// A row that is not what it should be.
    #[error("a row of the event store has another form")]
    Row(#[source] sqlx::Error),
    /// Content that cannot be right.
    #[error("event store is damaged: {0} cannot be right")]
    Damaged(&'static str),
    /// Somebody else owns the unit by now. Whoever gets this stops.
    #[error("unit {unit} is owned by epoch {}.{}, no longer by {}.{}", current.incarnation, current.counter, shown.incarnation, shown.counter)]
    OlderEpoch {
        /// Which unit.
        unit: UnitId,
        /// The epoch shown.
        shown: OwnerEpoch,
        /// The epoch that owns.
        current: OwnerEpoch,
    },
    /// The unit belongs to another job.
    #[error("unit {unit} belongs to job {job}")]
    OtherJob {
        /// Which unit.
        unit: UnitId,
        /// Its job.
        job: i64,
    },
    /// What was built on is no longer so: open again, and go on from the cursor.
    #[error("the attempt's place in the event store moved: open it again")]
    Stale,
    /// The store is shutting down.
    #[error("event store is closed")]
    Closed,
}

/// A job, and when it was created: the month chooses the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct JobKey {
    /// Id of the job.
    pub id: i64,
    /// When it was created.
    pub created: jiff::Timestamp,
}

/// A month of UTC: `2026-11`. Months follow each other in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month {
    year: i16,
    month: i8,
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl Month {
    /// The year.
    pub fn year(self) -> i16 {
        self.year
    }

    /// The month in it, from 1.
    pub fn number(self) -> i8 {
        self.month
    }

    /// Reads `2026-11`.
    fn parse(text: &str) -> Option<Self> {
        let (year, month) = text.split_once('-')?;
        let month = Self { year: year.parse().ok()?, month: month.parse().ok()? };
        (month.to_string() == text && (1..=12).contains(&month.month)).then_some(month)
    }
}

impl From<JobKey> for Month {
    fn from(job: JobKey) -> Self {
        let date = jiff::tz::Offset::UTC.to_datetime(job.created);
        Self { year: date.year(), month: date.month() }
    }
}

macro_rules! gap_kinds {
    ($($(#[$doc:meta])* $kind:ident = $word:literal,)*) => {
        /// Why something is missing from a job's events, or is not as it came.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum GapKind { $($(#[$doc])* $kind,)* }

        impl GapKind {
            /// The word it is stored and shown by.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $word,)* }
            }

            fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$kind),)* _ => None }
            }
        }
    };
}

gap_kinds! {
    /// The node no longer had records that were never stored.
    Records = "records missing",
    /// A record did not open, and was passed over.
    BrokenRecord = "record broken",
    /// A record of a kind that this version does not know.
    UnknownRecord = "record unknown",
    /// Output does not match what the node's end record says of it.
    EndMismatch = "output does not match its end record",
    /// The node lost the end of the output.
    Lost = "end of output lost",
    /// A line was too long to keep.
    CutLine = "line cut",
    /// The runner's own counters jump.
    RunnerCounter = "runner counter",
    /// Artifacts broke off, are too large, or are no zip.
    Artifacts = "artifacts",
    /// There were more gaps than are kept.
    More = "more gaps",
    /// A gap of a kind that this version does not know.
    Other = "other",
}

/// Handle of the store. Cheap to clone.
#[derive(Clone)]
pub struct EventStore {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    // Apart, so that nobody who reads waits for a file that is locked for writing.
    readers: Mutex<BTreeMap<Month, Reader>>,
    intakes: Mutex<BTreeMap<Month, Intake>>,
    heads: Arc<Heads>,
    counters: Arc<Counters>,
    meters: Arc<Meters>,
    stop: CancellationToken,
}

/// The way into a month's file.
struct Intake {
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    tasks: [JoinHandle<()>; 2],
    stop: CancellationToken,
}

/// The way of one session into its month's file.
#[derive(Clone)]
pub(crate) struct Entrance {
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
}

impl fmt::Debug for EventStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStore").field("engine", &self.inner.engine).finish_non_exhaustive()
    }
}

impl EventStore {
    /// Opens a directory of event files; makes it when it is not there. Files are opened when they are asked for.
    ///
    /// # Errors
    /// A directory that cannot be used, or one with a file of a newer version.
    pub async fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self::with(Engine::open(dir)?))
    }

    /// Opens the events in a database on a server.
    ///
    /// # Errors
    /// A server that cannot be used, or one with a month of a newer version.
    pub async fn connect(server: &Server) -> Result<Self, Error> {
        Ok(Self::with(Engine::Postgres(Box::new(postgres::Engine::open(server).await?))))
    }

    fn with(engine: Engine) -> Self {
        let stop = CancellationToken::new();
        let (readers, intakes) = (Mutex::default(), Mutex::default());
        let (heads, counters, meters) = (Arc::default(), Arc::default(), Arc::default());
        Self { inner: Arc::new(Inner { engine, readers, intakes, heads, counters, meters, stop }) }
    }

    /// Stops taking records, waits for what was taken, and folds the logs into the files. Sessions still open fail.
    pub async fn close(&self) {
        self.inner.stop.cancel();
        for reader in std::mem::take(&mut *self.inner.readers.lock().await).into_values() {
            reader.close().await;
        }
        for intake in std::mem::take(&mut *self.inner.intakes.lock().await).into_values() {
            intake.close().await;
        }
    }

    /// What became of records and events since the store was opened.
    pub fn counts(&self) -> Counts {
        self.inner.counters.read()
    }

    /// Compares what a node says that it had of an attempt, now that it lets it go, with what is stored of it. The spool of a `lost`
    /// one may end before what was handed over already: damage was found in it, it was closed there, and nothing is missing here.
    ///
    /// # Errors
    /// A month that cannot be read.
    pub async fn balance(&self, job: JobKey, attempt: Attempt, sent: u64, lost: bool) -> Result<(), Error> {
        // Nothing is known of an attempt whose job or month is gone.
        let Some(stored) = self.last_record(job, attempt).await? else { return Ok(()) };
        if stored == sent || (lost && stored > sent) {
            self.inner.counters.units_balanced.add(1);
        } else {
            self.inner.counters.units_unbalanced.add(1);
            tracing::error!(unit = %attempt, sent, stored, "records do not balance");
        }
        Ok(())
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    /// The months there are, oldest first.
    ///
    /// # Errors
    /// A place that cannot be read.
    pub async fn months(&self) -> Result<Vec<Month>, Error> {
        self.inner.engine.months().await
    }

    /// Removes a month and everything in it. What sessions had handed over is stored before; a session that is still open
    /// then fails, and one that opens later begins the month anew.
    ///
    /// # Errors
    /// A place that cannot be written.
    pub async fn remove_month(&self, month: Month) -> Result<(), Error> {
        // Held until the end, so that nobody opens the month again while it goes.
        let mut intakes = self.inner.intakes.lock().await;
        if let Some(intake) = intakes.remove(&month) {
            intake.stop.cancel();
            intake.close().await;
        }
        let mut readers = self.inner.readers.lock().await;
        if let Some(reader) = readers.remove(&month) {
            reader.close().await;
        }
        self.inner.engine.remove(month).await
    }

    /// Removes a job's events, gaps, cursors and staging. A session of it that is still open fails.
    ///
    /// # Errors
    /// A place that cannot be written.
    pub async fn delete_job(&self, job: JobKey) -> Result<(), Error> {
        if self.reader(job).await?.is_none() {
            return Ok(());
        }
        let entrance = self.entrance(job).await?;
        let (reply, answer) = oneshot::channel();
        entrance.requests.send(Request::Delete(job.id, reply)).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Forgets an attempt's artifacts and what else was staged for it, once its results are taken.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub async fn discard_staging(&self, job: JobKey, attempt: Attempt) -> Result<(), Error> {
        let entrance = self.entrance(job).await?;
        let (reply, answer) = oneshot::channel();
        entrance.requests.send(Request::Discard(attempt, reply)).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// The way into the job's month; opens or makes its file.
    pub(crate) async fn entrance(&self, job: JobKey) -> Result<Entrance, Error> {
        let month = Month::from(job);
        let mut intakes = self.inner.intakes.lock().await;
        if self.inner.stop.is_cancelled() {
            return Err(Error::Closed);
        }
        let intake = match intakes.entry(month) {
            Entry::Occupied(entry) if !entry.get().requests.is_closed() => entry.into_mut(),
            Entry::Occupied(mut entry) => {
                entry.insert(self.start(month).await?);
                entry.into_mut()
            }
            Entry::Vacant(entry) => entry.insert(self.start(month).await?),
        };
        Ok(Entrance { requests: intake.requests.clone(), room: Arc::clone(&intake.room) })
    }

    async fn start(&self, month: Month) -> Result<Intake, Error> {
        let writer = self.inner.engine.writer(month).await?;
        // The assembler looks names up; the pool of those who read events may be busy with a download.
        let reader = self.inner.engine.reader(month).await?.ok_or(Error::Closed)?;
        let generation = Arc::new(AtomicU64::new(0));
        let (requests, incoming) = mpsc::channel(REQUESTS);
        // One transaction is written, one waits: more would only make a lone event wait longer.
        let (work, todo) = mpsc::channel(1);
        let stop = self.inner.stop.child_token();
        let counters = Arc::clone(&self.inner.counters);
        let assembler = Assembler::new(
            incoming,
            work,
            reader,
            Arc::clone(&generation),
            stop.clone(),
            Arc::clone(&counters),
        );
        let heads = Arc::clone(&self.inner.heads);
        let meters = Arc::clone(&self.inner.meters);
        let committer =
            Committer { writer, work: todo, generation, heads, counters, meters, stop: stop.clone() };
        let tasks = [tokio::spawn(assembler.run()), tokio::spawn(committer.run())];
        Ok(Intake { requests, room: Arc::new(Semaphore::new(ROOM)), tasks, stop })
    }

    /// Connections to read the job's month; `None` when there is no such month.
    async fn reader(&self, job: JobKey) -> Result<Option<Reader>, Error> {
        let month = Month::from(job);
        let mut readers = self.inner.readers.lock().await;
        if let Some(reader) = readers.get(&month) {
            return Ok(Some(reader.clone()));
        }
        let reader = self.inner.engine.reader(month).await?;
        if let Some(reader) = &reader {
            readers.insert(month, reader.clone());
        }
        Ok(reader)
    }
}

impl Intake {
    /// Waits for what was taken, and for the end of the tasks, which were asked to stop.
    async fn close(self) {
        self.room.close();
        drop(self.requests);
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

impl Entrance {
    /// Takes a unit for an epoch, and says where its attempt stands.
    pub(crate) async fn open(&self, attempt: Attempt, job: i64, epoch: OwnerEpoch) -> Result<Opened, Error> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Open(OpenRequest { attempt, job, epoch, reply });
        self.requests.send(request).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Hands a batch over; waits while the writer is behind. Taken or not taken as a whole: dropped before it returns,
    /// the batch stays in `slot`.
    pub(crate) async fn store(&self, slot: &mut Option<Batch>, bytes: usize) -> Result<(), Error> {
        let size = u32::try_from(bytes.clamp(1, ROOM)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(size).await.map_err(|_| Error::Closed)?;
        let place = self.requests.reserve().await.map_err(|_| Error::Closed)?;
        if let Some(mut batch) = slot.take() {
            batch.room = Some(room);
            place.send(Request::Store(batch));
        }
        Ok(())
    }
}

/// An unsigned number as databases hold it. Beyond 2^63 it would turn negative and no longer be in order; nothing that
/// counts up from 1 gets there.
fn stored_integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
