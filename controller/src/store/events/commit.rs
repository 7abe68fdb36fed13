//! The one writer of a month: it commits what the assembler has put together, and tells the sessions.
//!
//! A transaction is checked against the file before anything is written: whose epoch is no longer the unit's, or whose
//! cursor is not where its records begin, is left out and told so. A lock, a full disk or a failing device is waited
//! for; nothing is acknowledged meanwhile, and the nodes slow down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use plexus_proto::id::{Attempt, OwnerEpoch, UnitId};
use sea_query::{Expr, ExprTrait, Order, Query};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::body::{Block, Opened, Tail};
use super::engine::{Binder, Shape, Statement, Transaction, Writer, deletion, is_transient, statement};
use super::heads::Heads;
use super::id::Uuid;
use super::intake::{Commits, NewGap, Slot};
use super::meters::Meters;
use super::schema::{self, Dictionary};
use super::summary::JobSummary;
use super::{Counters, Error, stored_integer};
use crate::crash::Point;

/// First and longest wait before a failed transaction is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

const EVENTS: Shape = Shape {
    table: schema::EVENT,
    columns: &[
        "job",
        "counter",
        "kind",
        "host",
        "task",
        "uuid",
        "parent",
        "flags",
        "start_line",
        "end_line",
        "created",
    ],
    key: &[],
};
const BLOCKS: Shape = Shape {
    table: schema::BLOCK,
    columns: &["job", "first", "last", "size", "data"],
    key: &["job", "first"],
};
const JOBS: Shape = Shape {
    table: schema::JOB,
    columns: &["job", "events", "failed", "changed", "last_line", "stats", "kinds"],
    key: &["job"],
};
const JOB_HOSTS: Shape = Shape { table: schema::JOB_HOST, columns: &["job", "host"], key: &["job", "host"] };
const OWNERS: Shape =
    Shape { table: schema::OWNER, columns: &["unit", "job", "incarnation", "counter"], key: &["unit"] };
const CURSORS: Shape = Shape {
    table: schema::CURSOR,
    columns: &["unit", "attempt", "record", "carry"],
    key: &["unit", "attempt"],
};
const STAGING: Shape = Shape {
    table: schema::STAGING,
    columns: &["unit", "attempt", "slot", "seq", "size", "data"],
    key: &["unit", "attempt", "slot", "seq"],
};
const GAPS: Shape = Shape {
    table: schema::GAP,
    columns: &["job", "unit", "attempt", "seq", "kind", "detail"],
    key: &["job", "unit", "attempt", "seq"],
};

/// A narrow row.
pub(super) struct EventRow {
    pub(super) counter: i64,
    pub(super) kind: i64,
    pub(super) host: Option<i64>,
    pub(super) task: Option<i64>,
    pub(super) uuid: Option<Uuid>,
    pub(super) parent: Option<Uuid>,
    pub(super) flags: i64,
    pub(super) start_line: i64,
    pub(super) end_line: i64,
    pub(super) created: Option<i64>,
}

/// What a transaction adds to a job.
pub(super) struct JobPart {
    pub(super) state: Arc<JobState>,
    pub(super) rows: Vec<EventRow>,
    pub(super) blocks: Vec<Block>,
    pub(super) new_hosts: Vec<i64>,
    pub(super) summary: JobSummary,
}

/// Shared by assembler and writer: whether what the assembler believes of a job still holds.
#[derive(Debug, Default)]
pub(super) struct JobState(AtomicBool);

impl JobState {
    pub(super) fn is_stale(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn make_stale(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What a transaction adds to an attempt.
pub(super) struct UnitPart {
    pub(super) attempt: Attempt,
    pub(super) job: i64,
    pub(super) epoch: OwnerEpoch,
    pub(super) previous: u64,
    pub(super) record: u64,
    /// Records that came, of those from `previous + 1` to `record`.
    pub(super) records: u64,
    pub(super) carry: Vec<u8>,
    pub(super) staged: BTreeMap<Slot, SlotChange>,
    pub(super) gaps: Vec<NewGap>,
    pub(super) commits: Arc<Commits>,
}

/// What becomes of the pieces of one kind.
#[derive(Default)]
pub(super) struct SlotChange {
    pub(super) clear: bool,
    /// Plain size and sealed bytes by place.
    pub(super) pieces: BTreeMap<u32, (u64, Vec<u8>)>,
}

/// Everything of one commit.
#[derive(Default)]
pub(super) struct Bundle {
    pub(super) generation: u64,
    pub(super) names: Vec<(Dictionary, i64, Box<str>)>,
    pub(super) jobs: BTreeMap<i64, JobPart>,
    pub(super) units: Vec<UnitPart>,
    pub(super) room: Vec<OwnedSemaphorePermit>,
}

/// One thing to do, in order.
pub(super) enum Work {
    Store(Bundle),
    Open(OpenWork),
    /// Answers when all before it is done.
    Settle(oneshot::Sender<()>),
    /// Drops an attempt's staging: it is finished and its results are taken.
    Discard(Attempt, oneshot::Sender<Result<(), Error>>),
    /// Removes all of a job.
    Delete(i64, oneshot::Sender<Result<(), Error>>),
}

/// Takes a unit for an epoch and reads where its attempt stands.
pub(super) struct OpenWork {
    pub(super) attempt: Attempt,
    pub(super) job: i64,
    pub(super) epoch: OwnerEpoch,
    pub(super) reply: oneshot::Sender<Result<OpenedRows, Error>>,
}

/// What the file says of an attempt and its job.
pub(super) struct OpenedRows {
    pub(super) record: u64,
    pub(super) carry: Vec<u8>,
    pub(super) line: Vec<Vec<u8>>,
    pub(super) stderr: Option<Vec<u8>>,
    pub(super) summary: JobSummary,
    pub(super) hosts: Vec<i64>,
    pub(super) tail: Tail,
}

/// The task that owns the writing connection.
pub(super) struct Committer {
    pub(super) writer: Writer,
    pub(super) work: mpsc::Receiver<Work>,
    /// Rises when a transaction failed for good: what was assembled on top of it is worth nothing.
    pub(super) generation: Arc<AtomicU64>,
    /// Told what is committed.
    pub(super) heads: Arc<Heads>,
    pub(super) counters: Arc<Counters>,
    pub(super) meters: Arc<Meters>,
    /// Ends the waiting for a lock that never goes.
    pub(super) stop: CancellationToken,
}

impl Committer {
    pub(super) async fn run(mut self) {
        while let Some(work) = self.work.recv().await {
            match work {
                Work::Store(bundle) => self.store(bundle).await,
                Work::Open(open) => {
                    let mut wait = Wait::new(&self.stop, &self.meters);
                    let answer = loop {
                        match open_attempt(&mut self.writer, &open).await {
                            Err(error) if is_transient(&error) && wait.again(&error).await => {}
                            answer => break answer,
                        }
                    };
                    let _ = open.reply.send(answer);
                }
                Work::Settle(reply) => _ = reply.send(()),
                Work::Discard(attempt, reply) => {
                    let _ = reply.send(discard(&mut self.writer, attempt).await);
                }
                Work::Delete(job, reply) => {
                    let _ = reply.send(delete_job(&mut self.writer, job).await);
                }
            }
        }
        self.writer.close().await;
    }

    async fn store(&mut self, bundle: Bundle) {
        let mut wait = Wait::new(&self.stop, &self.meters);
        let mut began = Instant::now();
        let outcome = loop {
            if bundle.generation != self.generation.load(Ordering::Acquire) {
                break Err(Error::Stale);
            }
            match store(&mut self.writer, &bundle, wait.tries > 0).await {
                Err(error) if is_transient(&error) && wait.again(&error).await => {
                    self.counters.retries.add(1);
                    began = Instant::now();
                }
                outcome => break outcome,
            }
        };
        match outcome {
            Ok(refused) => {
                self.counters.commits.add(1);
                let mut events = 0;
                for (job, part) in &bundle.jobs {
                    if refused.contains_key(job) {
                        part.state.make_stale();
                    } else {
                        events += part.rows.len() as u64;
                        self.counters.events_stored.add(part.rows.len() as u64);
                        self.heads.advance(*job, part.summary.events);
                    }
                }
                self.meters.committed(events, began.elapsed());
                let now = jiff::Timestamp::now().as_microsecond();
                for unit in bundle.units {
                    let last = bundle.jobs.get(&unit.job).and_then(|part| part.rows.last());
                    self.meters.stored(unit.job, &unit.commits, last.and_then(|row| row.created), now);
                    let Some(units) = refused.get(&unit.job) else {
                        self.counters.records_stored.add(unit.records);
                        self.counters.gaps_named.add(unit.gaps.len() as u64);
                        unit.commits.stored(unit.record);
                        continue;
                    };
                    self.counters.undone.add(unit.records);
                    self.counters.fenced.add(u64::from(units.contains_key(&unit.attempt.unit)));
                    unit.commits.fail(Arc::new(match units.get(&unit.attempt.unit) {
                        Some(&current) => {
                            Error::OlderEpoch { unit: unit.attempt.unit, shown: unit.epoch, current }
                        }
                        None => Error::Stale,
                    }));
                }
                Point::Acknowledgeable.hit();
            }
            Err(error) => {
                if !matches!(error, Error::Stale) {
                    tracing::error!(error = &error as &dyn std::error::Error, "events cannot be stored");
                    self.generation.fetch_add(1, Ordering::AcqRel);
                }
                let error = Arc::new(error);
                bundle.jobs.values().for_each(|part| part.state.make_stale());
                bundle.units.iter().for_each(|unit| self.counters.undone.add(unit.records));
                bundle.units.iter().for_each(|unit| unit.commits.fail(Arc::clone(&error)));
            }
        }
    }
}

/// Waits between tries, longer each time.
struct Wait<'a> {
    tries: u32,
    next: Duration,
    stop: &'a CancellationToken,
    meters: Arc<Meters>,
    began: Instant,
}

impl<'a> Wait<'a> {
    fn new(stop: &'a CancellationToken, meters: &Arc<Meters>) -> Self {
        Self { tries: 0, next: RETRY.0, stop, meters: Arc::clone(meters), began: Instant::now() }
    }

    /// Whether to try again, once the time has come.
    async fn again(&mut self, error: &Error) -> bool {
        tracing::warn!(
            error = error as &dyn std::error::Error,
            tries = self.tries,
            "event file does not take writes; waiting"
        );
        if self.tries == 0 {
            self.meters.blocked(self.began);
        }
        self.tries += 1;
        let wait = self.next;
        self.next = RETRY.1.min(wait * 2);
        tokio::select! {
            () = tokio::time::sleep(wait) => true,
            () = self.stop.cancelled() => false,
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if self.tries > 0 {
            self.meters.unblocked(self.began);
        }
    }
}

/// Jobs that were left out, and of their units those whose epoch is over, with the epoch that is valid.
type Refused = BTreeMap<i64, BTreeMap<UnitId, OwnerEpoch>>;

async fn store(writer: &mut Writer, bundle: &Bundle, is_retry: bool) -> Result<Refused, Error> {
    let mut transaction = writer.begin().await?;
    Point::InTransaction.hit();
    let positions = positions(&mut transaction, &bundle.units).await?;
    let at = |unit: &UnitPart| positions.get(&unit.attempt);
    if is_retry && bundle.units.iter().all(|unit| at(unit).is_some_and(|(_, record)| *record == unit.record))
    {
        // The commit that seemed to fail did not.
        return Ok(Refused::new());
    }
    let mut refused = Refused::new();
    for unit in &bundle.units {
        match at(unit) {
            Some((epoch, record)) if *epoch == unit.epoch && *record == unit.previous => {}
            Some((epoch, _)) if *epoch != unit.epoch => {
                refused.entry(unit.job).or_default().insert(unit.attempt.unit, *epoch);
            }
            _ => {
                refused.entry(unit.job).or_default();
            }
        }
    }
    for dictionary in Dictionary::ALL {
        let shape = Shape { table: dictionary.table(), columns: &["id", "name"], key: &[] };
        let names: Vec<_> = bundle.names.iter().filter(|(which, ..)| *which == dictionary).collect();
        transaction.insert(shape, &names, |row, (_, id, name)| _ = row.integer(*id).text(name)).await?;
    }
    let jobs: Vec<_> = bundle.jobs.iter().filter(|(job, _)| !refused.contains_key(job)).collect();
    insert_jobs(&mut transaction, &jobs).await?;
    let units: Vec<_> = bundle.units.iter().filter(|unit| !refused.contains_key(&unit.job)).collect();
    insert_units(&mut transaction, &units).await?;
    Point::BeforeCommit.hit();
    transaction.commit().await?;
    Point::AfterCommit.hit();
    Ok(refused)
}

async fn insert_jobs(transaction: &mut Transaction<'_>, jobs: &[(&i64, &JobPart)]) -> Result<(), Error> {
    let rows: Vec<_> =
        jobs.iter().flat_map(|(job, part)| part.rows.iter().map(move |row| (**job, row))).collect();
    let bind = |to: &mut Binder, (job, row): &(i64, &EventRow)| {
        to.integer(*job)
            .integer(row.counter)
            .integer(row.kind)
            .maybe_integer(row.host)
            .maybe_integer(row.task);
        to.maybe_blob(row.uuid.as_ref().map(Uuid::as_bytes))
            .maybe_blob(row.parent.as_ref().map(Uuid::as_bytes));
        to.integer(row.flags).integer(row.start_line).integer(row.end_line).maybe_integer(row.created);
    };
    transaction.insert(EVENTS, &rows, bind).await?;
    let blocks: Vec<_> =
        jobs.iter().flat_map(|(job, part)| part.blocks.iter().map(move |block| (**job, block))).collect();
    let bind = |to: &mut Binder, (job, block): &(i64, &Block)| {
        to.integer(*job).integer(block.first).integer(block.last).integer(block.size).blob(&block.data);
    };
    transaction.insert(BLOCKS, &blocks, bind).await?;
    let hosts: Vec<_> =
        jobs.iter().flat_map(|(job, part)| part.new_hosts.iter().map(move |&host| (**job, host))).collect();
    transaction.insert(JOB_HOSTS, &hosts, |to, (job, host)| _ = to.integer(*job).integer(*host)).await?;
    let bind = |to: &mut Binder, (job, part): &(&i64, &JobPart)| {
        let summary = &part.summary;
        to.integer(**job).integer(summary.events).integer(summary.failed).integer(summary.changed);
        to.integer(summary.last_line).maybe_integer(summary.stats).text(&summary.kinds_text());
    };
    transaction.insert(JOBS, jobs, bind).await
}

async fn insert_units(transaction: &mut Transaction<'_>, units: &[&UnitPart]) -> Result<(), Error> {
    let gaps: Vec<_> = units.iter().flat_map(|unit| unit.gaps.iter().map(move |gap| (*unit, gap))).collect();
    let bind = |to: &mut Binder, (unit, gap): &(&UnitPart, &NewGap)| {
        to.integer(unit.job).blob(unit.attempt.unit.0.as_bytes()).integer(unit.attempt.number.into());
        to.integer(gap.seq.into()).text(gap.kind.as_str()).text(&gap.detail);
    };
    transaction.insert(GAPS, &gaps, bind).await?;
    let mut pieces = Vec::new();
    for unit in units {
        for (slot, change) in &unit.staged {
            if change.clear {
                transaction.execute(delete_staging(unit.attempt, Some(*slot))).await?;
            }
            pieces.extend(change.pieces.iter().map(|(seq, piece)| (unit.attempt, *slot, *seq, piece)));
        }
    }
    let bind = |to: &mut Binder,
                (attempt, slot, seq, (size, data)): &(Attempt, Slot, u32, &(u64, Vec<u8>))| {
        to.blob(attempt.unit.0.as_bytes()).integer(attempt.number.into()).integer(slot.number());
        to.integer((*seq).into()).integer(stored_integer(*size)).blob(data);
    };
    transaction.insert(STAGING, &pieces, bind).await?;
    let bind = |to: &mut Binder, unit: &&UnitPart| {
        to.blob(unit.attempt.unit.0.as_bytes()).integer(unit.attempt.number.into());
        to.integer(stored_integer(unit.record)).blob(&unit.carry);
    };
    transaction.insert(CURSORS, units, bind).await
}

/// Epoch and last record of the attempts at hand, as the file has them.
async fn positions(
    transaction: &mut Transaction<'_>,
    units: &[UnitPart],
) -> Result<BTreeMap<Attempt, (OwnerEpoch, u64)>, Error> {
    let mut positions = BTreeMap::new();
    let ids: Vec<_> =
        units.iter().map(|unit| unit.attempt.unit).collect::<BTreeSet<_>>().into_iter().collect();
    for some in ids.chunks(64) {
        // Few lengths of the list, so that the statement stays prepared: the last id fills up.
        let length = [1, 4, 16, 64].into_iter().find(|&length| length >= some.len()).unwrap_or(64);
        let last = some.last().copied().into_iter().cycle();
        let list = some.iter().copied().chain(last).take(length).map(|unit| unit.0.as_bytes().to_vec());
        let mut query = Query::select();
        query
            .columns([(schema::CURSOR, "unit"), (schema::CURSOR, "attempt"), (schema::CURSOR, "record")])
            .columns([(schema::OWNER, "incarnation"), (schema::OWNER, "counter")])
            .from(schema::CURSOR)
            .inner_join(schema::OWNER, Expr::col((schema::OWNER, "unit")).equals((schema::CURSOR, "unit")))
            .and_where(Expr::col((schema::CURSOR, "unit")).is_in(list));
        for row in transaction.rows(statement(&query)).await? {
            let unit = uuid::Uuid::from_slice(&row.blob(0)?).map_err(|_| Error::Damaged("a unit id"))?;
            let number = u32::try_from(row.integer(1)?).map_err(|_| Error::Damaged("an attempt number"))?;
            let epoch = OwnerEpoch {
                incarnation: row.integer(3)?.cast_unsigned(),
                counter: row.integer(4)?.cast_unsigned(),
            };
            positions
                .insert(Attempt { unit: UnitId(unit), number }, (epoch, row.integer(2)?.cast_unsigned()));
        }
    }
    Ok(positions)
}

async fn open_attempt(writer: &mut Writer, open: &OpenWork) -> Result<OpenedRows, Error> {
    let unit = open.attempt.unit.0.as_bytes().to_vec();
    let attempt = i64::from(open.attempt.number);
    let mut transaction = writer.begin().await?;
    let mut query = Query::select();
    query
        .columns(["job", "incarnation", "counter"])
        .from(schema::OWNER)
        .and_where(Expr::col("unit").eq(unit.clone()));
    if let Some(row) = transaction.rows(statement(&query)).await?.first() {
        let current = OwnerEpoch {
            incarnation: row.integer(1)?.cast_unsigned(),
            counter: row.integer(2)?.cast_unsigned(),
        };
        if current > open.epoch {
            return Err(Error::OlderEpoch { unit: open.attempt.unit, shown: open.epoch, current });
        }
        if row.integer(0)? != open.job {
            return Err(Error::OtherJob { unit: open.attempt.unit, job: row.integer(0)? });
        }
    }
    let owner = |to: &mut Binder, open: &&OpenWork| {
        to.blob(&unit).integer(open.job);
        to.integer(stored_integer(open.epoch.incarnation)).integer(stored_integer(open.epoch.counter));
    };
    transaction.insert(OWNERS, &[open], owner).await?;
    let mut query = Query::select();
    query
        .columns(["record", "carry"])
        .from(schema::CURSOR)
        .and_where(Expr::col("unit").eq(unit.clone()))
        .and_where(Expr::col("attempt").eq(attempt));
    let (record, carry) = match transaction.rows(statement(&query)).await?.first() {
        Some(row) => (row.integer(0)?.cast_unsigned(), row.blob(1)?),
        None => {
            let cursor = |to: &mut Binder, (): &()| _ = to.blob(&unit).integer(attempt).integer(0).blob(&[]);
            transaction.insert(CURSORS, &[()], cursor).await?;
            (0, Vec::new())
        }
    };
    let mut query = Query::select();
    query
        .columns(["slot", "data"])
        .from(schema::STAGING)
        .and_where(Expr::col("unit").eq(unit.clone()))
        .and_where(Expr::col("attempt").eq(attempt))
        .and_where(Expr::col("slot").is_in([Slot::Line.number(), Slot::Stderr.number()]))
        .order_by("slot", Order::Asc)
        .order_by("seq", Order::Asc);
    let (mut line, mut stderr) = (Vec::new(), None);
    for row in transaction.rows(statement(&query)).await? {
        if row.integer(0)? == Slot::Line.number() {
            line.push(row.blob(1)?);
        } else {
            stderr = Some(row.blob(1)?);
        }
    }
    let (summary, hosts, tail) = (JobSummary::default(), Vec::new(), Tail::new(1));
    let mut opened = OpenedRows { record, carry, line, stderr, summary, hosts, tail };
    load_job(&mut transaction, open.job, &mut opened).await?;
    transaction.commit().await?;
    Ok(opened)
}

async fn load_job(transaction: &mut Transaction<'_>, job: i64, into: &mut OpenedRows) -> Result<(), Error> {
    let rows = transaction.rows(statement(&JobSummary::select(job))).await?;
    let Some(row) = rows.first() else { return Ok(()) };
    into.summary = JobSummary::read(row)?;
    let mut query = Query::select();
    query.column("host").from(schema::JOB_HOST).and_where(Expr::col("job").eq(job));
    for row in transaction.rows(statement(&query)).await? {
        into.hosts.push(row.integer(0)?);
    }
    let mut query = Query::select();
    query
        .columns(["first", "size", "data"])
        .from(schema::BLOCK)
        .and_where(Expr::col("job").eq(job))
        .order_by("first", Order::Desc)
        .limit(1);
    let mut last = 0;
    into.tail = Tail::new(into.summary.events + 1);
    if let Some(row) = transaction.rows(statement(&query)).await?.first() {
        let block = Opened::open(row.integer(0)?, row.integer(1)?, &row.blob(2)?)
            .ok_or(Error::Damaged("a block of events"))?;
        last = block.last();
        if let Some(tail) = block.into_tail() {
            into.tail = tail;
        }
    }
    if last == into.summary.events { Ok(()) } else { Err(Error::Damaged("the count of a job's events")) }
}

async fn discard(writer: &mut Writer, attempt: Attempt) -> Result<(), Error> {
    let mut transaction = writer.begin().await?;
    transaction.execute(delete_staging(attempt, None)).await?;
    transaction.commit().await
}

async fn delete_job(writer: &mut Writer, job: i64) -> Result<(), Error> {
    let mut transaction = writer.begin().await?;
    let mut units = Query::select();
    units.column("unit").from(schema::OWNER).and_where(Expr::col("job").eq(job));
    for table in [schema::CURSOR, schema::STAGING] {
        let mut query = Query::delete();
        query.from_table(table).and_where(Expr::col("unit").in_subquery(units.clone()));
        transaction.execute(deletion(&query)).await?;
    }
    for table in [schema::OWNER, schema::EVENT, schema::BLOCK, schema::JOB, schema::JOB_HOST, schema::GAP] {
        let mut query = Query::delete();
        query.from_table(table).and_where(Expr::col("job").eq(job));
        transaction.execute(deletion(&query)).await?;
    }
    transaction.commit().await
}

fn delete_staging(attempt: Attempt, slot: Option<Slot>) -> Statement {
    let mut query = Query::delete();
    query
        .from_table(schema::STAGING)
        .and_where(Expr::col("unit").eq(attempt.unit.0.as_bytes().to_vec()))
        .and_where(Expr::col("attempt").eq(i64::from(attempt.number)))
        .and_where_option(slot.map(|slot| Expr::col("slot").eq(slot.number())));
    deletion(&query)
}
