//! Rate of ingest without a network: sealed records in memory, through sessions, to committed events.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Args as ClapArgs;
use plexus_proto::id::{Attempt, OwnerEpoch, UnitId};
use plexus_proto::seal::SpoolKey;
use plexus_proto::work::{Output, Record, RecordKind, SealedRecord, Stream};
use prost::Message;
use tokio::task::JoinSet;

use super::parse_bench::median;
use super::varied;
use crate::ingest::{Ingest, UnitContext};
use crate::store::events::{EventQuery, EventStore, JobKey};

/// Arguments of `ingest-bench`.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Captured stream whose values are varied
    file: PathBuf,
    /// Directory for the event files; they stay
    #[arg(long)]
    dir: PathBuf,
    /// Millions of bytes of output
    #[arg(long, default_value_t = 200)]
    megabytes: usize,
    /// Jobs at the same time
    #[arg(long, default_value_t = 1)]
    jobs: u32,
    /// Bytes of output in a record
    #[arg(long, default_value_t = 64 * 1024)]
    record: usize,
    /// Events to store one by one afterwards, to see how long one takes
    #[arg(long, default_value_t = 200)]
    single: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[tokio::main]
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let stream = std::fs::read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    ensure!(args.jobs > 0 && args.record > 0, "there must be a job, and something in its records");
    let key = SpoolKey::new([7; 32]);
    let pieces = varied::pieces(&stream, args.megabytes * 1_000_000, args.record);
    let mut spools: Vec<Vec<SealedRecord>> = vec![Vec::new(); args.jobs as usize];
    for (index, piece) in pieces.iter().enumerate() {
        let job = index % spools.len();
        let number = spools[job].len() as u64 + 1;
        spools[job].push(seal(&key, attempt(job), number, piece));
    }
    let bytes: usize = pieces.iter().map(Bytes::len).sum();
    drop(pieces);
    let store = EventStore::open(&args.dir).await?;
    let cpu = cpu_time();
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for (job, records) in spools.into_iter().enumerate() {
        let (store, key) = (store.clone(), key.clone());
        tasks.spawn(async move {
            let mut session = open(&store, job, key).await?;
            let last = records.len() as u64;
            for record in records {
                session.push(record).await?;
            }
            session.acked().wait_for(|&stored| stored >= last).await?;
            anyhow::Ok(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    let (elapsed, cpu) = (start.elapsed(), cpu_time() - cpu);
    let mut events = 0;
    for job in 0..args.jobs {
        events += store.summary(key_of(job as usize)).await?.events;
    }
    let singles = singles(&store, &stream, args, &key).await?;
    let page = page(&store).await?;
    store.close().await;
    let rate = events as f64 / elapsed.as_secs_f64();
    let disk: u64 =
        std::fs::read_dir(&args.dir)?.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum();
    let report = serde_json::json!({
        "events": events, "bytes": bytes, "seconds": elapsed.as_secs_f64(), "events_s": rate.round(),
        "mb_s": bytes as f64 / elapsed.as_secs_f64() / 1e6, "cpu_s_per_100k": cpu.as_secs_f64() / events as f64 * 1e5,
        "bytes_per_event_on_disk": disk as f64 / events as f64, "single_ms": singles, "page_of_200_ms": page,
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

/// Median and worst milliseconds from a record with one event to its commit, alone.
async fn singles(store: &EventStore, stream: &[u8], args: &Args, key: &SpoolKey) -> anyhow::Result<[f64; 2]> {
    let job = args.jobs as usize;
    let pieces = varied::pieces(stream, args.single * stream.len().min(2000), 1);
    let mut session = open(store, job, key.clone()).await?;
    let mut acked = session.acked();
    let mut samples = Vec::new();
    for (number, piece) in (1..).zip(pieces.iter().take(args.single)) {
        let record = seal(key, attempt(job), number, piece);
        let start = Instant::now();
        session.push(record).await?;
        acked.wait_for(|&stored| stored >= number).await?;
        samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok([median(&samples), samples.iter().copied().fold(0.0, f64::max)])
}

/// Median and worst milliseconds to read 200 events from somewhere in the first job.
async fn page(store: &EventStore) -> anyhow::Result<[f64; 2]> {
    let job = key_of(0);
    let events = store.summary(job).await?.events;
    let mut samples = Vec::new();
    for step in 0..100 {
        let query = EventQuery { limit: 200, offset: events * step / 100, ..EventQuery::default() };
        let start = Instant::now();
        store.events(job, query).await?;
        samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok([median(&samples), samples.iter().copied().fold(0.0, f64::max)])
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
    SealedRecord { number, sealed: key.seal(attempt, number, &plain).into(), plain: None }
}

/// Processor time of this process so far, in steps of 10 ms; zero where the system does not say.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name in parentheses; user and system time are fields 14 and 15 of the whole.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
