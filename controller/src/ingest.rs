//! Records in, acknowledgements out.
//!
//! A [`Session`] takes the sealed records of one attempt in order: it opens them, parses what they hold and hands the
//! result to the store. **The ack rule**: a record may be acknowledged only when every byte up to and with it is stored —
//! as events, in the sealed carry, or in sealed staging — in the same transaction as the cursor. So nothing here waits
//! for the end of a line, and after a crash at any point the next session goes on from the cursor as if nothing had been.
//!
//! What is wrong with a record never fails the job: it becomes a named gap. What is wrong with the store, or with who
//! asks, is an [`Error`], and the record is not acknowledged.

pub mod artifacts;
mod carry;
mod masks;
mod result;
mod seal;
mod take;

use std::sync::Arc;

use plexus_proto::id::{Attempt, OwnerEpoch};
use plexus_proto::seal::{BrokenSeal, RollingHash, SpoolKey};
use plexus_proto::work::SealedRecord;
use tokio::sync::watch;

pub use self::masks::MASK;
pub use self::result::{HostSummary, Rc, Started, UnitResult};

use self::carry::{Artifacts, Carry};
use self::masks::Masks;
use self::result::Stats;
use self::seal::{Place, Sealer};
use self::take::Yield;
use crate::crash::Point;
use crate::facts::{self, Change};
use crate::store::events::{self, Batch, Commits, Entrance, EventStore, GapKind, JobKey, Slot};
use crate::stream::{Parser, RunnerStatus};

/// Why a record was not taken. It must not be acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store could not take it, or no longer may.
    #[error("cannot store records of attempt {attempt}")]
    Store {
        /// Whose.
        attempt: Attempt,
        /// Why.
        source: Arc<events::Error>,
    },
    /// The first record of an attempt does not open: this is the wrong key, and acknowledging would destroy them all.
    #[error("the spool key does not open attempt {attempt}")]
    WrongKey {
        /// Whose.
        attempt: Attempt,
        /// The first failure.
        source: BrokenSeal,
    },
    /// What was kept of the attempt does not open: another key, or damage.
    #[error("the carry of attempt {attempt} does not open")]
    Carry {
        /// Whose.
        attempt: Attempt,
    },
    /// A record that only a node at fault sends.
    #[error("record {number} of attempt {attempt} is {what}")]
    Invalid {
        /// Whose.
        attempt: Attempt,
        /// Which.
        number: u64,
        /// What it is.
        what: &'static str,
    },
    /// The result was asked for before the last record came.
    #[error("attempt {attempt} is not over")]
    Unfinished {
        /// Whose.
        attempt: Attempt,
    },
}

impl Error {
    /// Whether somebody else owns the unit by now: stop, and do not come back on one's own.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Store { source, .. } if matches!(**source, events::Error::OlderEpoch { .. }))
    }
}

/// What a session has to know of its attempt.
#[derive(Clone)]
pub struct UnitContext {
    /// Which attempt.
    pub attempt: Attempt,
    /// Its job.
    pub job: JobKey,
    /// Seals its records.
    pub key: SpoolKey,
    /// Put in front of the output of the job's first event, as a line of its own.
    pub header: Option<String>,
    /// Secret values, masked in command and environment before these are stored.
    pub masks: Vec<String>,
}

/// Takes records for the event store.
#[derive(Debug, Clone)]
pub struct Ingest {
    store: EventStore,
}

impl Ingest {
    /// Ingest into this store.
    pub fn new(store: EventStore) -> Self {
        Self { store }
    }

    /// Takes the unit for `epoch` — written before anything is ingested — and goes on where its attempt stands. Any other
    /// session of the attempt is over with that.
    ///
    /// # Errors
    /// A higher epoch that owns the unit already, a store that cannot be written, or a carry that does not open.
    pub async fn open(&self, unit: UnitContext, epoch: OwnerEpoch) -> Result<Session, Error> {
        let attempt = unit.attempt;
        let failed = |source| Error::Store { attempt, source: Arc::new(source) };
        let entrance = self.store.entrance(unit.job).await.map_err(failed)?;
        let opened = entrance.open(attempt, unit.job.id, epoch).await.map_err(failed)?;
        let sealer = Sealer::new(&unit.key, attempt);
        let broken = Error::Carry { attempt };
        let (mut carry, mut line, mut stderr) = (Carry::default(), Vec::new(), Vec::new());
        if opened.record > 0 {
            let plain = sealer.open(Place::Carry(opened.record), &opened.carry);
            let Some(read) = plain.and_then(|plain| Carry::read(&plain)) else { return Err(broken) };
            carry = read;
            for (seq, piece) in (0..).zip(&opened.line) {
                let Some(plain) = sealer.open(Place::Staged(Slot::Line, seq), piece) else {
                    return Err(broken);
                };
                line.extend_from_slice(&plain);
            }
            if let Some(piece) = &opened.stderr {
                let Some(plain) = sealer.open(Place::Staged(Slot::Stderr, 0), piece) else {
                    return Err(broken);
                };
                stderr = plain;
            }
            if line.len() as u64 != carry.line_staged {
                return Err(broken);
            }
        } else {
            carry.hash = RollingHash::default().value().to_vec();
        }
        Ok(Session {
            store: self.store.clone(),
            entrance,
            epoch,
            record: opened.record,
            parser: Parser::restore(carry.snapshot(), line),
            carry,
            stderr,
            sealer,
            masks: Masks::new(&unit.masks),
            header: unit.header.as_deref().map(Arc::from),
            key: unit.key,
            attempt,
            job: unit.job,
            commits: opened.commits,
            waiting: None,
        })
    }
}

/// One attempt's way into the store. Whoever owns it feeds it records in order.
pub struct Session {
    store: EventStore,
    entrance: Entrance,
    attempt: Attempt,
    job: JobKey,
    epoch: OwnerEpoch,
    key: SpoolKey,
    sealer: Sealer,
    masks: Masks,
    header: Option<Arc<str>>,
    /// Last record taken; stored or on its way.
    record: u64,
    parser: Parser,
    carry: Carry,
    stderr: Vec<u8>,
    commits: Arc<Commits>,
    /// A record taken whose batch the store had no room for yet, and its size.
    waiting: Option<(Option<Batch>, usize)>,
}

impl Session {
    /// The record wanted next: one behind the last one taken.
    pub fn next_record(&self) -> u64 {
        self.record + 1
    }

    /// The last record that is stored: acknowledging it, and all before it, is legal. The channel closes when no further
    /// record of this session will be; [`Self::push`] then says why.
    pub fn acked(&self) -> watch::Receiver<u64> {
        self.commits.watch()
    }

    /// Whether the attempt's last record was taken: its end, or its loss.
    pub fn is_complete(&self) -> bool {
        self.carry.last_record.is_some()
    }

    /// Takes the next record. Returns when it is on its way to the store, which may be after a while: the store takes no
    /// more than it can hold. A record taken before is passed over.
    ///
    /// Dropped before it returns, the record either was not taken or goes on with the next call.
    ///
    /// # Errors
    /// See [`Error`]; the session is then over. Open another one, unless [`Error::is_fenced`].
    pub async fn push(&mut self, record: SealedRecord) -> Result<(), Error> {
        self.flush().await?;
        let attempt = self.attempt;
        let number = record.number;
        let counters = self.store.counters();
        counters.records_received.add(1);
        if number == 0 || i64::try_from(number).is_err() {
            counters.records_refused.add(1);
            return Err(Error::Invalid { attempt, number, what: "numbered as no record is" });
        }
        if number <= self.record {
            counters.records_repeated.add(1);
            return Ok(());
        }
        Point::RecordReceived.hit();
        let size = record.sealed.len();
        let previous = self.record;
        let mut out = Yield::default();
        if let Err(error) = self.take(record, &mut out) {
            self.store.counters().records_refused.add(1);
            return Err(error);
        }
        self.store.counters().records_missing.add(number - previous - 1);
        Point::Parsed.hit();
        let batch = self.batch(previous, out);
        self.waiting = Some((Some(batch), size));
        self.flush().await?;
        Point::Queued.hit();
        Ok(())
    }

    /// What the attempt came to. Waits until its last record is stored.
    ///
    /// # Errors
    /// An attempt whose last record was not taken yet, or a store that cannot be read or written.
    pub async fn result(&self) -> Result<UnitResult, Error> {
        let attempt = self.attempt;
        let last = self.carry.last_record.ok_or(Error::Unfinished { attempt })?;
        if self.acked().wait_for(|stored| *stored >= last).await.is_err() {
            return Err(self.failure());
        }
        let failed = |source| Error::Store { attempt, source: Arc::new(source) };
        let summary = self.store.summary(self.job).await.map_err(failed)?;
        let carry = &self.carry;
        let mut result = UnitResult {
            last_status: carry.status.as_deref().map(RunnerStatus::parse),
            eof: carry.eof,
            explanation: carry.explanation.clone(),
            result_traceback: carry.traceback.clone(),
            stderr_tail: String::from_utf8_lossy(&self.stderr).into_owned(),
            noise_lines: carry.noise_lines,
            noise: String::from_utf8_lossy(&carry.noise).into_owned(),
            finished: carry.finished.clone(),
            lost: carry.lost.clone(),
            events: carry.events,
            gaps: summary.gaps,
            ..UnitResult::default()
        };
        if let Some(sealed) = self.store.staged(self.job, attempt, Slot::Starting, 0).await.map_err(failed)? {
            let plain = self
                .sealer
                .open(Place::Staged(Slot::Starting, 0), &sealed)
                .ok_or(Error::Carry { attempt })?;
            result.started = serde_json::from_slice(&plain).ok();
        }
        if let Some(counter) = summary.stats
            && let Some(event) = self.store.event(self.job, counter).await.map_err(failed)?
        {
            let stats = Stats::read(&event.event_data);
            (result.host_summaries, result.artifact_data) = (stats.hosts, stats.artifact_data);
        }
        if carry.artifacts() == Artifacts::Complete {
            let sealer = Sealer::new(&self.key, attempt);
            match result::read_artifacts(&self.store, self.job, attempt, sealer).await.map_err(failed)? {
                Ok(found) => {
                    result.rc = found.rc.as_deref().and_then(Rc::parse);
                    result.artifacts = Some(found.names);
                    result.facts = facts::changes(&found.facts);
                    result.facts.retain(|_, change| match change {
                        // Not for any disk. The next job gathers them anew.
                        Change::Set(facts) => !self.masks.finds(facts),
                        Change::Cleared => true,
                    });
                    result.inventory = found.output.and_then(result::inventory);
                }
                Err(error) => {
                    tracing::warn!(unit = %attempt.unit, error = &error as &dyn std::error::Error, "artifacts cannot be read");
                    let detail = format!("{error}; they are passed over");
                    result.gaps.push(events::Gap { attempt, kind: GapKind::Artifacts, detail });
                }
            }
        }
        Ok(result)
    }

    /// Hands over what was taken and is still here.
    async fn flush(&mut self) -> Result<(), Error> {
        if self.commits.failure().is_some() {
            return Err(self.failure());
        }
        let Some((batch, size)) = &mut self.waiting else { return Ok(()) };
        let stored = self.entrance.store(batch, *size).await;
        self.waiting = None;
        stored.map_err(|source| {
            self.store.counters().undone.add(1);
            Error::Store { attempt: self.attempt, source: Arc::new(source) }
        })
    }

    fn failure(&self) -> Error {
        let source = self.commits.failure().unwrap_or_else(|| Arc::new(events::Error::Closed));
        Error::Store { attempt: self.attempt, source }
    }
}

impl Drop for Session {
    /// A record that was taken and never handed over is sent again to the next session.
    fn drop(&mut self) {
        if let Some((Some(_), _)) = self.waiting {
            self.store.counters().undone.add(1);
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("attempt", &self.attempt)
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(feature = "crash-points")]
mod crash_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trouble_tests;
