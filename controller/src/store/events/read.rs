//! Reading events: pages, single ones, summaries.

use std::borrow::Cow;
use std::cmp;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use plexus_proto::id::{Attempt, UnitId};
use sea_query::{Asterisk, Expr, ExprTrait, Order as SqlOrder, Query, SelectStatement};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::body::{Body, EVENTS_MAX, Opened};
use super::engine::{Reader, Row, statement};
use super::id::Uuid;
use super::intake::Slot;
use super::query::{EventQuery, Order};
use super::schema::{self, Dictionary, flag};
use super::summary::JobSummary;
use super::{Error, EventId, EventStore, GapKind, JobKey};

/// Most events of a page, whatever is asked for.
const PAGE_MAX: u32 = 10_000;
/// Bytes of bodies in a page after which further ones are left out; what is asked for first is always there.
const PAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Blocks that are in memory at a time.
const BLOCKS_MAX: u64 = 4;

/// A stored event.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its job.
    pub job: i64,
    /// Its number in the job: 1, 2, 3, … without holes, in the order in which it came.
    pub counter: i64,
    /// Kind: `runner_on_ok`. Empty when the runner lost it.
    pub event: String,
    /// The runner's uuid; usually shaped like one.
    pub uuid: String,
    /// Uuid of the task, play or playbook it belongs to; that one need not exist.
    pub parent_uuid: Option<String>,
    /// Name of the host, or empty.
    pub host_name: String,
    /// Name of the task, or empty; cut to 1,024 bytes, as the next three.
    pub task: String,
    /// Name of the play, or empty.
    pub play: String,
    /// Name of the role, or empty.
    pub role: String,
    /// File name of the playbook, or empty.
    pub playbook: String,
    /// Reports a failure.
    pub failed: bool,
    /// Reports a change.
    pub changed: bool,
    /// Output as Ansible printed it: colour codes, CR LF within, none at its end.
    pub stdout: String,
    /// First line of it, from 0.
    pub start_line: i64,
    /// Line after the last one.
    pub end_line: i64,
    /// Verbosity of the run, at most 15.
    pub verbosity: u8,
    /// When the callback made it, by the execution environment's clock.
    pub created: Option<jiff::Timestamp>,
    /// What the event is about: strict JSON, as the runner wrote it wherever that was strict.
    pub event_data: Box<RawValue>,
    /// The runner's own count.
    pub runner_counter: Option<i64>,
    /// The line was no strict JSON and was rewritten.
    pub normalised: bool,
    /// The line was too long, and only its beginning is here.
    pub cut: bool,
    /// Output and data are left out: the page holds too much already. The event alone has them.
    pub left_out: bool,
}

impl Event {
    /// The number by which the API knows it.
    pub fn id(&self) -> i64 {
        EventId { job: self.job, counter: self.counter }.number()
    }
}

/// Part of a job's events.
#[derive(Debug, Clone)]
pub struct EventPage {
    /// The events, in the order asked for.
    pub events: Vec<Event>,
    /// How many match in all, if that was asked for.
    pub total: Option<u64>,
}

/// What is known of a job's events without reading them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventSummary {
    /// Events; also the counter of the last one.
    pub events: u64,
    /// Those that report a failure.
    pub failed: u64,
    /// Those that report a change.
    pub changed: u64,
    /// Events by kind.
    pub by_kind: BTreeMap<String, u64>,
    /// Hosts that came up.
    pub hosts: u64,
    /// Lines of output.
    pub last_line: i64,
    /// Counter of the last `playbook_on_stats`.
    pub stats: Option<i64>,
    /// What is missing, or is not as it came.
    pub gaps: Vec<Gap>,
}

/// Something missing from a job's events, or not as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// In whose records.
    pub attempt: Attempt,
    /// What happened.
    pub kind: GapKind,
    /// In words.
    pub detail: String,
}

/// A narrow row with its names.
pub(super) struct NamedRow {
    pub(super) counter: i64,
    kind: String,
    host: Option<String>,
    task: Option<String>,
    uuid: Option<Vec<u8>>,
    parent: Option<Vec<u8>>,
    flags: i64,
    pub(super) start_line: i64,
    pub(super) end_line: i64,
    created: Option<i64>,
}

/// Place of an event among the others of its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Its number.
    pub counter: i64,
    /// Kind of event.
    pub event: String,
    /// Its uuid; empty without one.
    pub uuid: String,
    /// That of the event above it; empty without one.
    pub parent_uuid: String,
}

impl EventStore {
    /// A page of a job's events. A job without any, or of a month that is gone, has an empty one.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub async fn events(&self, job: JobKey, query: EventQuery) -> Result<EventPage, Error> {
        let Some(reader) = self.reader(job).await? else {
            return Ok(EventPage { events: Vec::new(), total: query.total.then_some(0) });
        };
        let total = if query.total { Some(total(&reader, job.id, &query).await?) } else { None };
        let rows = page(&reader, job.id, &query).await?;
        Ok(EventPage { events: with_bodies(&reader, job.id, rows).await?, total })
    }

    /// One event.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub async fn event(&self, job: JobKey, counter: i64) -> Result<Option<Event>, Error> {
        let Some(reader) = self.reader(job).await? else { return Ok(None) };
        let rows = rows(&reader, job.id, counter..=counter).await?;
        Ok(with_bodies(&reader, job.id, rows).await?.pop())
    }

    /// Place in the tree of the events with these numbers, without their bodies.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub async fn outline(&self, job: JobKey, counters: RangeInclusive<i64>) -> Result<Vec<Outline>, Error> {
        let Some(reader) = self.reader(job).await? else { return Ok(Vec::new()) };
        let rows = rows(&reader, job.id, counters).await?;
        let uuid = |stored: Option<Vec<u8>>| stored.as_deref().map(Uuid::text).unwrap_or_default();
        let outline = |row: NamedRow| Outline {
            counter: row.counter,
            event: row.kind,
            uuid: uuid(row.uuid),
            parent_uuid: uuid(row.parent),
        };
        Ok(rows.into_iter().map(outline).collect())
    }

    /// Counts of a job's events, and its gaps.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub async fn summary(&self, job: JobKey) -> Result<EventSummary, Error> {
        let Some(reader) = self.reader(job).await? else { return Ok(EventSummary::default()) };
        let gaps = gaps(&reader, job.id).await?;
        let Some(stored) = job_summary(&reader, job.id).await? else {
            return Ok(EventSummary { gaps, ..EventSummary::default() });
        };
        let mut query = Query::select();
        query.columns(["id", "name"]).from(Dictionary::Kind.table());
        query.and_where(Expr::col("id").is_in(stored.kinds.keys().copied()));
        let mut by_kind = BTreeMap::new();
        for row in reader.rows(statement(&query)).await? {
            let count = stored.kinds.get(&row.integer(0)?).copied().unwrap_or(0);
            by_kind.insert(row.text(1)?, count.cast_unsigned());
        }
        let mut query = Query::select();
        query.expr(Expr::col(Asterisk).count()).from(schema::JOB_HOST).and_where(Expr::col("job").eq(job.id));
        let hosts = reader.rows(statement(&query)).await?;
        Ok(EventSummary {
            events: stored.events.cast_unsigned(),
            failed: stored.failed.cast_unsigned(),
            changed: stored.changed.cast_unsigned(),
            by_kind,
            hosts: hosts.first().map(|row| row.integer(0)).transpose()?.unwrap_or(0).cast_unsigned(),
            last_line: stored.last_line,
            stats: stored.stats,
            gaps,
        })
    }

    /// The last record of an attempt that is stored, as are all before it that are no named gap; `None` when nothing is
    /// known of the attempt, or no longer.
    ///
    /// # Errors
    /// A month that cannot be read.
    pub async fn last_record(&self, job: JobKey, attempt: Attempt) -> Result<Option<u64>, Error> {
        let Some(reader) = self.reader(job).await? else { return Ok(None) };
        let mut query = Query::select();
        query
            .column("record")
            .from(schema::CURSOR)
            .and_where(Expr::col("unit").eq(attempt.unit.0.as_bytes().to_vec()))
            .and_where(Expr::col("attempt").eq(i64::from(attempt.number)));
        let rows = reader.rows(statement(&query)).await?;
        rows.first().map(|row| row.integer(0).map(i64::cast_unsigned)).transpose()
    }

    /// Places and plain sizes of an attempt's staged pieces of a kind, in order.
    pub(crate) async fn staged_sizes(
        &self,
        job: JobKey,
        attempt: Attempt,
        slot: Slot,
    ) -> Result<Vec<(u32, u64)>, Error> {
        let Some(reader) = self.reader(job).await? else { return Ok(Vec::new()) };
        let mut query = staging(attempt, slot);
        query.columns(["seq", "size"]).order_by("seq", SqlOrder::Asc);
        let rows = reader.rows(statement(&query)).await?;
        rows.iter()
            .map(|row| {
                let seq = u32::try_from(row.integer(0)?)
                    .map_err(|_| Error::Damaged("the place of a staged piece"))?;
                Ok((seq, row.integer(1)?.cast_unsigned()))
            })
            .collect()
    }

    /// A staged piece, sealed.
    pub(crate) async fn staged(
        &self,
        job: JobKey,
        attempt: Attempt,
        slot: Slot,
        seq: u32,
    ) -> Result<Option<Vec<u8>>, Error> {
        let Some(reader) = self.reader(job).await? else { return Ok(None) };
        let mut query = staging(attempt, slot);
        query.column("data").and_where(Expr::col("seq").eq(i64::from(seq)));
        reader.rows(statement(&query)).await?.first().map(|row| row.blob(0)).transpose()
    }
}

fn staging(attempt: Attempt, slot: Slot) -> SelectStatement {
    let mut query = Query::select();
    query
        .from(schema::STAGING)
        .and_where(Expr::col("unit").eq(attempt.unit.0.as_bytes().to_vec()))
        .and_where(Expr::col("attempt").eq(i64::from(attempt.number)))
        .and_where(Expr::col("slot").eq(slot.number()));
    query
}

pub(super) async fn job_summary(reader: &Reader, job: i64) -> Result<Option<JobSummary>, Error> {
    let rows = reader.rows(statement(&JobSummary::select(job))).await?;
    rows.first().map(JobSummary::read).transpose()
}

async fn gaps(reader: &Reader, job: i64) -> Result<Vec<Gap>, Error> {
    let mut query = Query::select();
    query
        .columns(["unit", "attempt", "kind", "detail"])
        .from(schema::GAP)
        .and_where(Expr::col("job").eq(job));
    query.order_by("unit", SqlOrder::Asc).order_by("attempt", SqlOrder::Asc).order_by("seq", SqlOrder::Asc);
    let rows = reader.rows(statement(&query)).await?;
    rows.iter()
        .map(|row| {
            let unit = uuid::Uuid::from_slice(&row.blob(0)?).map_err(|_| Error::Damaged("a unit id"))?;
            let number = u32::try_from(row.integer(1)?).map_err(|_| Error::Damaged("an attempt number"))?;
            let kind = GapKind::parse(&row.text(2)?).unwrap_or(GapKind::Other);
            Ok(Gap { attempt: Attempt { unit: UnitId(unit), number }, kind, detail: row.text(3)? })
        })
        .collect()
}

async fn total(reader: &Reader, job: i64, query: &EventQuery) -> Result<u64, Error> {
    if query.is_by_counter_only() {
        // Counters have no holes.
        let events = job_summary(reader, job).await?.map_or(0, |summary| summary.events);
        let (from, to) = query.counters(events).into_inner();
        return Ok(u64::try_from(to.saturating_sub(from).saturating_add(1)).unwrap_or(0));
    }
    let mut count = Query::select();
    count
        .expr(Expr::col(Asterisk).count())
        .from(schema::EVENT)
        .cond_where(query.condition(job, reader.kind()));
    let count =
        if query.failed == Some(true) { statement(&count).by_failed_index() } else { statement(&count) };
    let rows = reader.rows(count).await?;
    Ok(rows.first().map(|row| row.integer(0)).transpose()?.unwrap_or(0).cast_unsigned())
}

async fn page(reader: &Reader, job: i64, query: &EventQuery) -> Result<Vec<NamedRow>, Error> {
    let limit = cmp::min(query.limit, PAGE_MAX);
    let mut select = select();
    let mut offset = query.offset;
    if query.is_by_counter_only() {
        // No events are counted off: the place of the page follows from the numbers.
        let events = job_summary(reader, job).await?.map_or(0, |summary| summary.events);
        let (from, to) = query.counters(events).into_inner();
        let skipped = i64::try_from(offset).unwrap_or(i64::MAX);
        let range = match query.order {
            Order::Ascending => from.saturating_add(skipped)..=to,
            Order::Descending => from..=to.saturating_sub(skipped),
        };
        select.cond_where(in_range(job, &range));
        offset = 0;
    } else {
        select.cond_where(query.condition(job, reader.kind()));
    }
    let order = match query.order {
        Order::Ascending => SqlOrder::Asc,
        Order::Descending => SqlOrder::Desc,
    };
    select.order_by((schema::EVENT, "counter"), order).limit(limit.into());
    if offset > 0 {
        select.offset(cmp::min(offset, i64::MAX.cast_unsigned()));
    }
    let select =
        if query.failed == Some(true) { statement(&select).by_failed_index() } else { statement(&select) };
    reader.rows(select).await?.iter().map(NamedRow::read).collect()
}

/// Rows with these numbers, in order.
pub(super) async fn rows(
    reader: &Reader,
    job: i64,
    counters: RangeInclusive<i64>,
) -> Result<Vec<NamedRow>, Error> {
    let mut select = select();
    select.cond_where(in_range(job, &counters)).order_by((schema::EVENT, "counter"), SqlOrder::Asc);
    reader.rows(statement(&select)).await?.iter().map(NamedRow::read).collect()
}

fn in_range(job: i64, counters: &RangeInclusive<i64>) -> sea_query::Condition {
    sea_query::Condition::all()
        .add(Expr::col((schema::EVENT, "job")).eq(job))
        .add(Expr::col((schema::EVENT, "counter")).gte(*counters.start()))
        .add(Expr::col((schema::EVENT, "counter")).lte(*counters.end()))
}

fn select() -> SelectStatement {
    let mut select = Query::select();
    select.column((schema::EVENT, "counter"));
    for (dictionary, column) in Dictionary::ALL.into_iter().zip(["kind", "host", "task"]) {
        let name = dictionary.table();
        select.column((name, "name"));
        select.left_join(name, Expr::col((name, "id")).equals((schema::EVENT, column)));
    }
    select.columns(
        ["uuid", "parent", "flags", "start_line", "end_line", "created"].map(|name| (schema::EVENT, name)),
    );
    select.from(schema::EVENT);
    select
}

impl NamedRow {
    fn read(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            counter: row.integer(0)?,
            kind: row.maybe_text(1)?.unwrap_or_default(),
            host: row.maybe_text(2)?,
            task: row.maybe_text(3)?,
            uuid: row.maybe_blob(4)?,
            parent: row.maybe_blob(5)?,
            flags: row.integer(6)?,
            start_line: row.integer(7)?,
            end_line: row.integer(8)?,
            created: row.maybe_integer(9)?,
        })
    }

    fn into_event(self, job: i64, body: &Body) -> Result<Event, Error> {
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec()).map_err(|_| Error::Damaged("the text of an event"))
        };
        let event_data = RawValue::from_string(text(&body.event_data)?)
            .map_err(|_| Error::Damaged("the data of an event"))?;
        let names = Names::read(&event_data);
        let is = |bit: i64| self.flags & bit != 0;
        Ok(Event {
            job,
            counter: self.counter,
            event: self.kind,
            uuid: self.uuid.as_deref().map(Uuid::text).unwrap_or_default(),
            parent_uuid: self.parent.as_deref().map(Uuid::text),
            host_name: self.host.unwrap_or_default(),
            task: self.task.unwrap_or_default(),
            play: names.play,
            role: names.role,
            playbook: names.playbook,
            failed: is(flag::FAILED),
            changed: is(flag::CHANGED),
            stdout: serde_json::from_slice(&body.stdout)
                .map_err(|_| Error::Damaged("the output of an event"))?,
            start_line: self.start_line,
            end_line: self.end_line,
            verbosity: (self.flags >> flag::VERBOSITY_SHIFT & flag::VERBOSITY_MAX) as u8,
            created: self.created.and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok()),
            event_data,
            runner_counter: body.counter,
            normalised: is(flag::NORMALISED),
            cut: is(flag::CUT),
            left_out: false,
        })
    }
}

/// Names that are not in the row, because nobody filters by them.
struct Names {
    play: String,
    role: String,
    playbook: String,
}

impl Names {
    fn read(event_data: &RawValue) -> Self {
        #[derive(Deserialize)]
        struct Data<'a> {
            #[serde(borrow, default)]
            play: Option<&'a RawValue>,
            #[serde(borrow, default)]
            role: Option<&'a RawValue>,
            #[serde(borrow, default)]
            playbook: Option<&'a RawValue>,
        }
        let data = serde_json::from_str::<Data<'_>>(event_data.get()).ok();
        let text = |value: Option<&RawValue>| {
            let text = value.and_then(|value| serde_json::from_str::<Cow<'_, str>>(value.get()).ok());
            text.map_or_else(String::new, |text| text.chars().take(1024).collect())
        };
        Self {
            play: text(data.as_ref().and_then(|data| data.play)),
            role: text(data.as_ref().and_then(|data| data.role)),
            playbook: text(data.as_ref().and_then(|data| data.playbook)),
        }
    }
}

/// Reads the bodies of rows, a few blocks at a time.
async fn with_bodies(reader: &Reader, job: i64, rows: Vec<NamedRow>) -> Result<Vec<Event>, Error> {
    let places: BTreeMap<i64, usize> =
        rows.iter().enumerate().map(|(place, row)| (row.counter, place)).collect();
    let mut wanted: BTreeSet<i64> = places.keys().copied().collect();
    let mut rows: Vec<_> = rows.into_iter().map(Some).collect();
    let mut events: Vec<Option<Event>> = rows.iter().map(|_| None).collect();
    let mut bytes = 0;
    while let Some(&counter) = wanted.first() {
        let near = counter.saturating_add(BLOCKS_MAX as i64 * EVENTS_MAX as i64);
        let last = wanted.range(counter..near).next_back().copied().unwrap_or(counter);
        let mut found = false;
        for block in blocks(reader, job, counter..=last).await? {
            let of_block: Vec<i64> = wanted.range(block.first()..=block.last()).copied().collect();
            for counter in of_block {
                found |= wanted.remove(&counter);
                let body = block.body(counter).ok_or(Error::Damaged("an event without a body"))?;
                let place = places.get(&counter).copied().unwrap_or(0);
                let Some(row) = rows.get_mut(place).and_then(Option::take) else { continue };
                let is_left_out = bytes > PAGE_BYTES_MAX;
                bytes += body.stdout.len() + body.event_data.len();
                let body = if is_left_out { Body { counter: body.counter, ..Body::empty() } } else { body };
                events[place] = Some(Event { left_out: is_left_out, ..row.into_event(job, &body)? });
            }
        }
        if !found {
            return Err(Error::Damaged("a block of events that is not there"));
        }
    }
    Ok(events.into_iter().flatten().collect())
}

/// The first few blocks that hold these events, in order. Blocks never overlap and hold at most 64 events.
pub(super) async fn blocks(
    reader: &Reader,
    job: i64,
    counters: RangeInclusive<i64>,
) -> Result<Vec<Opened>, Error> {
    let mut query = Query::select();
    query
        .columns(["first", "size", "data"])
        .from(schema::BLOCK)
        .and_where(Expr::col("job").eq(job))
        .and_where(Expr::col("first").gte(counters.start().saturating_sub(EVENTS_MAX as i64 - 1)))
        .and_where(Expr::col("first").lte(*counters.end()))
        .and_where(Expr::col("last").gte(*counters.start()))
        .order_by("first", SqlOrder::Asc)
        .limit(BLOCKS_MAX);
    let rows = reader.rows(statement(&query)).await?;
    rows.iter()
        .map(|row| {
            Opened::open(row.integer(0)?, row.integer(1)?, &row.blob(2)?)
                .ok_or(Error::Damaged("a block of events"))
        })
        .collect()
}
