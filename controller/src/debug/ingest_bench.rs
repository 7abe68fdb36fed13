//! Rate of ingest without a network: sealed records in memory, through sessions, to committed events.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use clap::Args as ClapArgs;
use plexus_proto::id::{Attempt, OwnerEpoch, UnitId};
use plexus_proto::seal::SpoolKey;
use plexus_proto::work::{Output, Record, RecordKind, SealedRecord, Stream};
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::parse_bench::median;
use super::varied::Source;
use crate::ingest::{Ingest, UnitContext};
use crate::store::events::{EventQuery, EventStore, JobKey, Numbers};

/// Arguments of `ingest-bench`.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Captured stream, or folder of cases, whose events are varied
    file: PathBuf,
    /// Directory for the event files; they stay
    #[arg(long)]
    dir: PathBuf,
    /// Events
    #[arg(long, default_value_t = 200_000)]
    events: usize,
    /// Mean bytes of an event; 0 for as long as they were captured
    #[arg(long, default_value_t = 0)]
    event_bytes: usize,
    /// Jobs at the same time
    #[arg(long, default_value_t = 1)]
    jobs: u32,
    /// Bytes of output in a record
    #[arg(long, default_value_t = 64 * 1024)]
    record: usize,
    /// Makes records while they are stored instead of before, so that memory does not bound their number
    #[arg(long)]
    streamed: bool,
    /// Events to store one by one afterwards, to see how long one takes and what it takes of the disk
    #[arg(long, default_value_t = 200)]
    single: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[tokio::main]
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.jobs > 0 && args.record > 0, "there must be a job, and something in its records");
    let source = Source::events(&args.file, args.event_bytes)?;
    let key = SpoolKey::new([7; 32]);
    let each = args.events / args.jobs as usize;
    let mut makers = Vec::new();
    for job in 0..args.jobs as usize {
        let mut maker =
            Maker { source: source.other(job as u64 + 1), job, key: key.clone(), left: each, number: 0 };
        let (records, ready) = mpsc::channel(if args.streamed { 16 } else { each + 1 });
        let size = args.record;
        let make = tokio::task::spawn_blocking(move || {
            while let Some(record) = maker.record(size) {
                if records.blocking_send(record).is_err() {
                    break;
                }
            }
        });
        if !args.streamed {
            make.await?;
        }
        makers.push(ready);
    }
    let store = EventStore::open(&args.dir).await?;
    let cpu = cpu_time();
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for (job, mut records) in makers.into_iter().enumerate() {
        let (store, key) = (store.clone(), key.clone());
        tasks.spawn(async move {
            let mut session = open(&store, job, key).await?;
            let (mut last, mut bytes) = (0, 0);
            while let Some((record, length)) = records.recv().await {
                (last, bytes) = (record.number, bytes + length);
                session.push(record).await?;
            }
            session.acked().wait_for(|&stored| stored >= last).await?;
            anyhow::Ok(bytes)
        });
    }
    let mut bytes = 0;
    while let Some(task) = tasks.join_next().await {
        bytes += task??;
    }
    let (elapsed, cpu) = (start.elapsed(), cpu_time() - cpu);
    let mut events = 0;
    for job in 0..args.jobs {
        events += store.summary(key_of(job as usize)).await?.events;
    }
    let page = page(&store).await?;
    store.close().await;
    let disk = folder_size(&args.dir)?;
    let store = EventStore::open(&args.dir).await?;
    let singles = singles(&store, &source, args, &key).await?;
    store.close().await;
    let single_disk = folder_size(&args.dir)?.saturating_sub(disk);
    let rate = events as f64 / elapsed.as_secs_f64();
    let report = serde_json::json!({
        "events": events, "bytes": bytes, "seconds": elapsed.as_secs_f64(), "events_s": rate.round(),
        "mb_s": bytes as f64 / elapsed.as_secs_f64() / 1e6, "cpu_s_per_100k": cpu.as_secs_f64() / events as f64 * 1e5,
        "bytes_per_event_on_disk": disk as f64 / events as f64, "single_ms": [median(&singles), worst(&singles)],
        "bytes_per_single_on_disk": single_disk as f64 / args.single.max(1) as f64,
        "page_of_200_ms": [median(&page), worst(&page)], "page_samples_ms": page,
        "jobs": args.jobs, "record": args.record,
    });
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{report}")?;
    } else {
        writeln!(out, "{report:#}")?;
    }
    Ok(())
}

/// Makes the records of one job.
struct Maker {
    source: Source,
    job: usize,
    key: SpoolKey,
    /// Events still to come.
    left: usize,
    number: u64,
}

impl Maker {
    /// The next record, of about `size` bytes of output, and how much output it holds.
    fn record(&mut self, size: usize) -> Option<(SealedRecord, usize)> {
        let mut piece = Vec::with_capacity(size + 4096);
        while self.left > 0 && piece.len() < size {
            self.source.line(&mut piece);
            self.left -= 1;
        }
        self.number += 1;
        let length = piece.len();
        (length > 0).then(|| (seal(&self.key, attempt(self.job), self.number, &piece.into()), length))
    }
}

fn folder_size(dir: &std::path::Path) -> anyhow::Result<u64> {
    Ok(std::fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum())
}

fn worst(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(0.0, f64::max)
}

/// Milliseconds from a record with one event to its commit, alone.
async fn singles(
    store: &EventStore,
    source: &Source,
    args: &Args,
    key: &SpoolKey,
) -> anyhow::Result<Vec<f64>> {
    let job = args.jobs as usize;
    let mut session = open(store, job, key.clone()).await?;
    let mut acked = session.acked();
    let mut samples = Vec::new();
    let source = source.other(0);
    let mut maker = Maker { source, job, key: key.clone(), left: args.single, number: 0 };
    while let Some((record, _)) = maker.record(1) {
        let number = record.number;
        let start = Instant::now();
        session.push(record).await?;
        acked.wait_for(|&stored| stored >= number).await?;
        samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(samples)
}

/// Milliseconds to read 200 events by counter, from places all over the first job.
async fn page(store: &EventStore) -> anyhow::Result<Vec<f64>> {
    let job = key_of(0);
    let events = i64::try_from(store.summary(job).await?.events)?;
    let mut samples = Vec::new();
    for step in 0..1000 {
        // A stride without a common divisor: neighbours in time are none in the file.
        let from = 1 + (step * 617 % 1000) * (events - 200).max(1) / 1000;
        let counter = Numbers { from: Some(from), to: Some(from + 199) };
        let query = EventQuery { limit: 200, counter, total: false, ..EventQuery::default() };
        let start = Instant::now();
        let found = store.events(job, query).await?;
        samples.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(found.events.len() == 200 || events < 200, "a page of {} events", found.events.len());
    }
    Ok(samples)
}

async fn open(store: &EventStore, job: usize, key: SpoolKey) -> anyhow::Result<crate::ingest::Session> {
    let unit = UnitContext { attempt: attempt(job), job: key_of(job), key, header: None, masks: Vec::new() };
    let epoch = OwnerEpoch { incarnation: 1, counter: 1 };
    Ok(Ingest::new(store.clone()).open(unit, epoch).await?)
}

fn key_of(job: usize) -> JobKey {
    JobKey { id: job as i64 + 1, created: jiff::Timestamp::UNIX_EPOCH }
}

fn attempt(job: usize) -> Attempt {
    Attempt { unit: UnitId(uuid::Uuid::from_u128(job as u128 + 1)), number: 1 }
}

fn seal(key: &SpoolKey, attempt: Attempt, number: u64, data: &Bytes) -> SealedRecord {
    let output = Output { stream: Stream::Stdout.into(), data: data.clone(), fragment: 0 };
    let plain = Record { kind: Some(RecordKind::Output(output)) }.encode_to_vec();
    SealedRecord { number, sealed: key.seal(attempt, number, plain).into(), plain: None }
}

/// Processor time of this process so far, in steps of 10 ms; zero where the system does not say.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name in parentheses; user and system time are fields 14 and 15 of the whole.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
