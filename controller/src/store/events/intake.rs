//! What ingest hands to the store, and what it hears back.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use plexus_proto::id::{Attempt, OwnerEpoch};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::{Error, GapKind};
use crate::stream;

/// Sealed pieces of an attempt that are too large for its carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// The artifacts zip, in order.
    Artifacts,
    /// The beginning of a line whose end has not come, in order.
    Line,
    /// Command and environment of the `starting` status, masked.
    Starting,
    /// The last of standard error.
    Stderr,
}

impl Slot {
    pub(super) fn number(self) -> i64 {
        match self {
            Self::Artifacts => 1,
            Self::Line => 2,
            Self::Starting => 3,
            Self::Stderr => 4,
        }
    }
}

/// A change of staging.
#[derive(Debug, Clone)]
pub(crate) enum Staged {
    /// Puts a sealed piece in its place; what was there is replaced.
    Put {
        /// Which kind.
        slot: Slot,
        /// Place among its kind, from 0.
        seq: u32,
        /// Plain bytes in it.
        size: u64,
        /// The sealed piece.
        data: Vec<u8>,
    },
    /// Drops all pieces of a kind.
    Clear(Slot),
}

/// Something missing or changed, to be stored with its record.
#[derive(Debug, Clone)]
pub(crate) struct NewGap {
    /// Place among the attempt's gaps, from 0.
    pub(crate) seq: u32,
    pub(crate) kind: GapKind,
    pub(crate) detail: String,
}

/// What records `previous + 1` up to `record` of an attempt bring. Stored as a whole, with the cursor, or not at all.
pub(crate) struct Batch {
    pub(crate) attempt: Attempt,
    pub(crate) job: i64,
    pub(crate) epoch: OwnerEpoch,
    pub(crate) previous: u64,
    pub(crate) record: u64,
    /// Sealed state of ingest after `record`.
    pub(crate) carry: Vec<u8>,
    pub(crate) events: Vec<NewEvent>,
    pub(crate) staged: Vec<Staged>,
    pub(crate) gaps: Vec<NewGap>,
    /// Put in front of the output of the job's first event.
    pub(crate) header: Option<Arc<str>>,
    pub(crate) commits: Arc<Commits>,
    /// Room in memory, given back when the batch is gone.
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

/// An event before it has its number.
#[derive(Debug, Clone)]
pub(crate) struct NewEvent {
    pub(crate) event: stream::Event,
    /// Lines its output takes.
    pub(crate) lines: i64,
}

/// Asks for the right to add to a unit.
pub(crate) struct OpenRequest {
    pub(crate) attempt: Attempt,
    pub(crate) job: i64,
    pub(crate) epoch: OwnerEpoch,
    pub(crate) reply: oneshot::Sender<Result<Opened, Error>>,
}

/// Where an attempt stands.
pub(crate) struct Opened {
    /// Last record stored, 0 at first.
    pub(crate) record: u64,
    /// Sealed state of ingest after that record; empty at first.
    pub(crate) carry: Vec<u8>,
    /// Sealed pieces of [`Slot::Line`], in order.
    pub(crate) line: Vec<Vec<u8>>,
    /// Sealed piece of [`Slot::Stderr`].
    pub(crate) stderr: Option<Vec<u8>>,
    pub(crate) commits: Arc<Commits>,
}

/// How far an attempt is stored, told to whoever feeds it.
#[derive(Debug)]
pub(crate) struct Commits {
    stored: Mutex<Option<watch::Sender<u64>>>,
    receiver: watch::Receiver<u64>,
    failure: OnceLock<Arc<Error>>,
}

impl Commits {
    pub(super) fn new(record: u64) -> Arc<Self> {
        let (sender, receiver) = watch::channel(record);
        Arc::new(Self { stored: Mutex::new(Some(sender)), receiver, failure: OnceLock::new() })
    }

    /// The last record stored. The channel closes when no further one will be.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.receiver.clone()
    }

    /// Why no further record will be stored.
    pub(crate) fn failure(&self) -> Option<Arc<Error>> {
        self.failure.get().cloned()
    }

    pub(super) fn stored(&self, record: u64) {
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &*stored {
            sender.send_if_modified(|last| {
                let is_later = record > *last;
                *last = record.max(*last);
                is_later
            });
        }
    }

    pub(super) fn fail(&self, error: Arc<Error>) {
        let _ = self.failure.set(error);
        *self.stored.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
