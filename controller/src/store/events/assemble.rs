//! Puts together what the writer of a month commits: numbers events, compresses blocks, keeps summaries.
//!
//! One task per month owns all of that for the jobs at hand. It gathers what the sessions bring while the writer is
//! busy with the transaction before, so that a lone event is committed at once and a flood in large transactions, and
//! parsing and compression go on while the disk is waited for.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use plexus_proto::id::{Attempt, OwnerEpoch, UnitId};
use sea_query::{Expr, ExprTrait, Query};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::body::{self, Body, Packer, Tail};
use super::commit::{Bundle, EventRow, JobPart, JobState, OpenWork, OpenedRows, SlotChange, UnitPart, Work};
use super::engine::{Reader, statement};
use super::id::Uuid;
use super::intake::{Batch, Commits, NewEvent, OpenRequest, Opened, Staged};
use super::schema::{Dictionary, flag};
use super::summary::JobSummary;
use super::{Counters, Error};
use crate::stream;

/// Events after which a transaction takes no further records: about 10 ms of writing.
const EVENTS_MAX: usize = 1000;
/// Bytes of bodies after which it takes none.
const BYTES_MAX: usize = 4 * 1024 * 1024;
/// Of many jobs it takes more: as much as fills a block of each. What only begins a block is packed and written again with
/// the next transaction, so that fifty jobs with twenty events each would cost twice what one costs with a thousand.
const JOB_EVENTS: usize = body::EVENTS_MAX;
/// Bytes of them.
const JOB_BYTES: usize = 128 * 1024;
/// Longest name that is kept, in bytes; AWX cuts its names at 1,024 characters too.
const NAME_MAX: usize = 1024;
/// Names kept in memory of each dictionary.
const NAMES_MAX: usize = 100_000;

/// What the sessions of a month ask for, in order.
pub(super) enum Request {
    Open(OpenRequest),
    Store(Batch),
    Discard(Attempt, oneshot::Sender<Result<(), Error>>),
    /// Removes all of a job.
    Delete(i64, oneshot::Sender<Result<(), Error>>),
}

/// The task that owns the jobs of a month which are being added to.
pub(super) struct Assembler {
    requests: mpsc::Receiver<Request>,
    /// Ends the taking of requests; those taken are still seen to.
    stop: CancellationToken,
    work: mpsc::Sender<Work>,
    reader: Reader,
    jobs: HashMap<i64, Job>,
    names: Names,
    packer: Packer,
    generation: Arc<AtomicU64>,
    seen_generation: u64,
    counters: Arc<Counters>,
}

/// A job that is being added to.
struct Job {
    state: Arc<JobState>,
    summary: JobSummary,
    hosts: HashSet<i64>,
    tail: Tail,
    /// The tail has events that no block holds.
    tail_grew: bool,
    epochs: HashMap<UnitId, OwnerEpoch>,
    attempts: HashMap<Attempt, (u64, Weak<Commits>)>,
}

impl Assembler {
    pub(super) fn new(
        requests: mpsc::Receiver<Request>,
        work: mpsc::Sender<Work>,
        reader: Reader,
        generation: Arc<AtomicU64>,
        stop: CancellationToken,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            requests,
            stop,
            work,
            reader,
            jobs: HashMap::new(),
            names: Names::default(),
            packer: Packer::new(),
            generation,
            seen_generation: 0,
            counters,
        }
    }

    /// Runs until nobody can ask any more, and everything asked for is handed on.
    pub(super) async fn run(mut self) {
        loop {
            let mut next = tokio::select! {
                biased;
                request = self.requests.recv() => match request {
                    Some(request) => Some(request),
                    None => break,
                },
                () = self.stop.cancelled(), if !self.requests.is_closed() => {
                    self.requests.close();
                    continue;
                }
            };
            while let Some(request) = next.take() {
                match request {
                    Request::Open(open) => self.open(open).await,
                    Request::Discard(attempt, reply) => {
                        let _ = self.work.send(Work::Discard(attempt, reply)).await;
                    }
                    Request::Delete(job, reply) => {
                        // Whoever adds to it begins anew, and so finds out.
                        self.jobs.remove(&job);
                        let _ = self.work.send(Work::Delete(job, reply)).await;
                    }
                    Request::Store(first) => next = self.gather(first).await,
                }
            }
        }
        // Before the writer closes, who is told by the end of this task: the last one out folds the log into the file.
        self.reader.close().await;
    }

    /// Gathers what is waiting until the writer is free; gives back a request of another kind that came between.
    async fn gather(&mut self, first: Batch) -> Option<Request> {
        let work = self.work.clone();
        let mut gathered = Gathered::default();
        gathered.add(first);
        let mut other = None;
        while gathered.has_room() {
            match self.requests.try_recv() {
                Ok(Request::Store(batch)) => gathered.add(batch),
                Ok(request) => {
                    other = Some(request);
                    break;
                }
                Err(_) => break,
            }
        }
        let mut slot = loop {
            tokio::select! {
                biased;
                slot = work.reserve() => break slot.ok()?,
                Some(request) = self.requests.recv(), if other.is_none() && gathered.has_room() => match request {
                    Request::Store(batch) => gathered.add(batch),
                    request => other = Some(request),
                },
            }
        };
        if self.names.is_large() {
            // Names on their way to the file would not be found there; once it has them, all may be forgotten.
            drop(slot);
            let (done, settled) = oneshot::channel();
            work.send(Work::Settle(done)).await.ok()?;
            settled.await.ok()?;
            self.names = Names::default();
            slot = work.reserve().await.ok()?;
        }
        let bundle = self.assemble(gathered.batches).await;
        if !bundle.units.is_empty() || !bundle.names.is_empty() {
            slot.send(Work::Store(bundle));
        }
        other
    }

    async fn open(&mut self, request: OpenRequest) {
        self.meet_generation();
        let OpenRequest { attempt, job, epoch, reply } = request;
        let (answer, rows) = oneshot::channel();
        let asked = self.work.send(Work::Open(OpenWork { attempt, job, epoch, reply: answer })).await;
        let mut rows = match (asked, rows.await) {
            (Ok(()), Ok(Ok(rows))) => rows,
            (_, answer) => {
                let _ = reply.send(Err(answer.ok().and_then(Result::err).unwrap_or(Error::Closed)));
                return;
            }
        };
        // A job stays in memory while somebody may add to it, or adds to it still.
        self.jobs.retain(|_, job| {
            job.attempts.retain(|_, (_, commits)| commits.strong_count() > 0);
            !job.attempts.is_empty() && !job.state.is_stale()
        });
        // What waits between here and the file was assembled before; the rows hold it, because the writer works in order.
        let entry = self.jobs.entry(job).or_insert_with(|| Job {
            state: Arc::default(),
            summary: std::mem::take(&mut rows.summary),
            hosts: std::mem::take(&mut rows.hosts).into_iter().collect(),
            tail: std::mem::take(&mut rows.tail),
            tail_grew: false,
            epochs: HashMap::new(),
            attempts: HashMap::new(),
        });
        let before = entry.epochs.insert(attempt.unit, epoch);
        let commits = Commits::new(rows.record);
        if let Some((_, older)) = entry.attempts.insert(attempt, (rows.record, Arc::downgrade(&commits)))
            && let Some(older) = older.upgrade()
        {
            older.fail(Arc::new(match before {
                Some(shown) if shown != epoch => {
                    Error::OlderEpoch { unit: attempt.unit, shown, current: epoch }
                }
                _ => Error::Stale,
            }));
        }
        let OpenedRows { record, carry, line, stderr, .. } = rows;
        let _ = reply.send(Ok(Opened { record, carry, line, stderr, commits }));
    }

    /// After a transaction failed for good, nothing believed here holds.
    fn meet_generation(&mut self) {
        let generation = self.generation.load(Ordering::Acquire);
        if generation != self.seen_generation {
            self.seen_generation = generation;
            self.jobs.clear();
            self.names = Names::default();
        }
    }

    async fn assemble(&mut self, batches: Vec<Batch>) -> Bundle {
        self.meet_generation();
        let mut bundle = Bundle { generation: self.seen_generation, ..Bundle::default() };
        if let Err(error) = self.learn_names(&batches, &mut bundle).await {
            let error = Arc::new(error);
            self.names = Names::default();
            bundle.names.clear();
            for batch in batches {
                // The cursor of the attempt no longer follows: whoever brought it opens again.
                self.jobs.remove(&batch.job);
                self.counters.undone.add(1);
                batch.commits.fail(Arc::clone(&error));
            }
            return bundle;
        }
        for batch in batches {
            let job = self.jobs.get_mut(&batch.job);
            match job.ok_or(Error::Stale).and_then(|job| job.admit(&batch).map(|()| job)) {
                Ok(job) => job.add(batch, &self.names, &mut self.packer, &mut bundle),
                Err(error) => {
                    self.counters.undone.add(1);
                    batch.commits.fail(Arc::new(error));
                }
            }
        }
        for (job, part) in &mut bundle.jobs {
            if let Some(job) = self.jobs.get_mut(job) {
                if job.tail_grew {
                    part.blocks.push(self.packer.pack(&job.tail));
                    job.tail_grew = false;
                }
                part.summary = job.summary.clone();
            }
        }
        bundle
    }

    /// Finds or makes numbers for all names of these events.
    async fn learn_names(&mut self, batches: &[Batch], bundle: &mut Bundle) -> Result<(), Error> {
        let mut unknown: [HashSet<Box<str>>; 3] = Default::default();
        for NewEvent { event, .. } in batches.iter().flat_map(|batch| &batch.events) {
            self.names.note_unknown(Dictionary::Kind, &event.name(), &mut unknown);
            if let Some(host) = event.host() {
                self.names.note_unknown(Dictionary::Host, &host, &mut unknown);
            }
            if let Some(task) = event.task() {
                self.names.note_unknown(Dictionary::Task, &task, &mut unknown);
            }
        }
        for (dictionary, unknown) in Dictionary::ALL.into_iter().zip(unknown) {
            if unknown.is_empty() {
                continue;
            }
            let mut unknown: Vec<_> = unknown.into_iter().collect();
            unknown.sort_unstable();
            for some in unknown.chunks(500) {
                let mut query = Query::select();
                query.columns(["id", "name"]).from(dictionary.table());
                query.and_where(Expr::col("name").is_in(some.iter().map(|name| name.to_string())));
                for row in self.reader.rows(statement(&query)).await? {
                    self.names.insert(dictionary, row.text(1)?.into(), row.integer(0)?);
                }
            }
            if self.names.next[dictionary as usize] == 0 {
                let mut query = Query::select();
                query.expr(Expr::col("id").max()).from(dictionary.table());
                let rows = self.reader.rows(statement(&query)).await?;
                let last = rows.first().map(|row| row.maybe_integer(0)).transpose()?.flatten();
                self.names.next[dictionary as usize] = last.unwrap_or(0) + 1;
            }
            for name in unknown {
                if self.names.id(dictionary, &name).is_none() {
                    let id = self.names.next[dictionary as usize];
                    self.names.next[dictionary as usize] += 1;
                    self.names.insert(dictionary, name.clone(), id);
                    bundle.names.push((dictionary, id, name));
                }
            }
        }
        Ok(())
    }
}

/// Batches for one transaction.
#[derive(Default)]
struct Gathered {
    batches: Vec<Batch>,
    jobs: HashSet<i64>,
    events: usize,
    bytes: usize,
}

impl Gathered {
    fn add(&mut self, batch: Batch) {
        self.events += batch.events.len().max(1);
        self.bytes += batch.room.as_ref().map_or(0, tokio::sync::OwnedSemaphorePermit::num_permits);
        self.jobs.insert(batch.job);
        self.batches.push(batch);
    }

    fn has_room(&self) -> bool {
        let jobs = self.jobs.len();
        self.events < EVENTS_MAX.max(jobs * JOB_EVENTS) && self.bytes < BYTES_MAX.max(jobs * JOB_BYTES)
    }
}

impl Job {
    /// Whether these records come from who owns the unit, and follow those before.
    fn admit(&mut self, batch: &Batch) -> Result<(), Error> {
        if self.state.is_stale() {
            return Err(Error::Stale);
        }
        let unit = batch.attempt.unit;
        match self.epochs.get(&unit) {
            Some(&current) if current != batch.epoch => {
                Err(Error::OlderEpoch { unit, shown: batch.epoch, current })
            }
            _ => match self.attempts.get_mut(&batch.attempt) {
                Some((last, _)) if *last == batch.previous => {
                    *last = batch.record;
                    Ok(())
                }
                _ => Err(Error::Stale),
            },
        }
    }

    fn add(&mut self, batch: Batch, names: &Names, packer: &mut Packer, bundle: &mut Bundle) {
        let part = bundle.jobs.entry(batch.job).or_insert_with(|| JobPart {
            state: Arc::clone(&self.state),
            rows: Vec::new(),
            blocks: Vec::new(),
            new_hosts: Vec::new(),
            summary: JobSummary::default(),
        });
        for event in batch.events {
            let first = self.summary.events == 0;
            let header = if first { batch.header.as_deref() } else { None };
            let (row, body) = self.number(&event, header, names);
            if row.host.is_some_and(|host| self.hosts.insert(host)) {
                part.new_hosts.extend(row.host);
            }
            part.rows.push(row);
            if !self.tail.has_room(&body) {
                if self.tail_grew {
                    part.blocks.push(packer.pack(&self.tail));
                }
                self.tail = Tail::new(self.summary.events);
            }
            self.tail.push(body);
            self.tail_grew = true;
        }
        bundle.room.extend(batch.room);
        let unit = match bundle.units.iter_mut().find(|unit| unit.attempt == batch.attempt) {
            Some(unit) => unit,
            None => {
                bundle.units.push(UnitPart {
                    attempt: batch.attempt,
                    job: batch.job,
                    epoch: batch.epoch,
                    previous: batch.previous,
                    record: batch.record,
                    records: 0,
                    carry: Vec::new(),
                    staged: Default::default(),
                    gaps: Vec::new(),
                    commits: batch.commits,
                });
                bundle.units.last_mut().expect("pushed the line before")
            }
        };
        unit.record = batch.record;
        unit.records += 1;
        unit.carry = batch.carry;
        unit.gaps.extend(batch.gaps);
        for staged in batch.staged {
            match staged {
                Staged::Put { slot, seq, size, data } => {
                    unit.staged.entry(slot).or_default().pieces.insert(seq, (size, data));
                }
                Staged::Clear(slot) => {
                    unit.staged.insert(slot, SlotChange { clear: true, ..SlotChange::default() });
                }
            }
        }
    }

    /// Gives an event its number and lines.
    fn number(&mut self, new: &NewEvent, header: Option<&str>, names: &Names) -> (EventRow, Body) {
        let event = &new.event;
        let (failed, changed) = (event.failed(), event.changed());
        let mut stdout = event.stdout_json();
        let mut lines = new.lines;
        if let Some(header) = header {
            stdout = with_header(header, &stdout);
            lines += 1;
        }
        let kind = names.id(Dictionary::Kind, &event.name()).unwrap_or(0);
        let summary = &mut self.summary;
        summary.events += 1;
        summary.failed += i64::from(failed);
        summary.changed += i64::from(changed);
        *summary.kinds.entry(kind).or_default() += 1;
        if &*event.name() == "playbook_on_stats" {
            summary.stats = Some(summary.events);
        }
        let start_line = summary.last_line;
        summary.last_line += lines;
        let uuid = event.uuid();
        let row = EventRow {
            counter: summary.events,
            kind,
            host: event.host().and_then(|host| names.id(Dictionary::Host, &host)),
            task: event.task().and_then(|task| names.id(Dictionary::Task, &task)),
            uuid: (!uuid.is_empty()).then(|| Uuid::from_text(cut(&uuid))),
            parent: event
                .parent_uuid()
                .filter(|uuid| !uuid.is_empty())
                .map(|uuid| Uuid::from_text(cut(&uuid))),
            flags: flags(event, failed, changed),
            start_line,
            end_line: summary.last_line,
            created: event.created(),
        };
        (row, Body { stdout, event_data: event.event_data_json(), counter: event.counter() })
    }
}

fn flags(event: &stream::Event, failed: bool, changed: bool) -> i64 {
    let bit = |on: bool, bit: i64| if on { bit } else { 0 };
    bit(failed, flag::FAILED)
        | bit(changed, flag::CHANGED)
        | bit(event.normalised, flag::NORMALISED)
        | bit(event.cut.is_some(), flag::CUT)
        | event.verbosity().clamp(0, flag::VERBOSITY_MAX) << flag::VERBOSITY_SHIFT
}

/// A line of our own in front of a JSON string.
fn with_header(header: &str, stdout: &[u8]) -> bytes::Bytes {
    let header = serde_json::to_string(header).expect("text is JSON");
    let inner = stdout.get(1..).unwrap_or(b"\"");
    let separator: &[u8] = if inner == b"\"" { b"" } else { b"\\r\\n" };
    [header.as_bytes().split_last().map_or(&b"\""[..], |(_, most)| most), separator, inner].concat().into()
}

/// A name as far as it is kept.
fn cut(name: &str) -> &str {
    if name.len() <= NAME_MAX {
        return name;
    }
    let end = (0..=NAME_MAX).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0);
    &name[..end]
}

/// Numbers of names, those of the month that came up lately.
#[derive(Default)]
struct Names {
    known: [HashMap<Box<str>, i64>; 3],
    /// The next number of each dictionary; 0 before the file was asked.
    next: [i64; 3],
}

impl Names {
    fn id(&self, dictionary: Dictionary, name: &str) -> Option<i64> {
        self.known[dictionary as usize].get(cut(name)).copied()
    }

    fn note_unknown(&self, dictionary: Dictionary, name: &str, unknown: &mut [HashSet<Box<str>>; 3]) {
        let name = cut(name);
        let is_name = !name.is_empty() || dictionary == Dictionary::Kind;
        if is_name && !self.known[dictionary as usize].contains_key(name) {
            unknown[dictionary as usize].insert(name.into());
        }
    }

    fn insert(&mut self, dictionary: Dictionary, name: Box<str>, id: i64) {
        self.known[dictionary as usize].insert(name, id);
    }

    fn is_large(&self) -> bool {
        self.known.iter().any(|names| names.len() > NAMES_MAX)
    }
}
