//! Events from a worker's pipe to the database, one job and fifty, and what that leaves for the API.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use plexus_tests::{Api, Binaries, Postgres};

use super::stage::{Shape, Stage, source};
use super::{Measured, json_of};
use crate::bench::median;
use crate::bench::mesh::quantile;

pub(super) const TWO_K: Shape = Shape { bytes: 2000, events: 250_000 };
pub(super) const HALF_K: Shape = Shape { bytes: 500, events: 500_000 };
/// Jobs at the same time in the second of the two cases.
const MANY: u64 = 50;
/// Measurements of each case.
const ROUNDS: usize = 2;
/// Events of the bare loop: their values lie in memory.
const WIDE: usize = 100_000;
/// Lists asked for at rest, and most of them beside ingest.
const LISTS: usize = 400;

/// Rates of one shape.
#[derive(Debug, Clone)]
pub(super) struct Ingest {
    one: Vec<f64>,
    many: Vec<f64>,
    /// Of the event files, indexes and all, when the controller has ended.
    pub(super) bytes_per_event: f64,
    how: String,
}

/// The bare loop.
#[derive(Debug, Clone)]
pub(super) struct Wide {
    pub(super) rates: Vec<f64>,
    pub(super) bytes_per_event: f64,
}

impl Ingest {
    fn worse(&self) -> f64 {
        median(&self.one).min(median(&self.many))
    }

    pub(super) fn row(self, baseline: Vec<f64>) -> Measured {
        let value = self.worse();
        Measured { value, samples: [self.one, self.many].concat(), baseline, conditions: self.how }
    }

    pub(super) fn ratio(self, baseline: Vec<f64>) -> Measured {
        let value = self.worse() / median(&baseline);
        Measured { value, ..self.row(baseline) }
    }
}

/// Measures one job and fifty, by turns.
pub(super) async fn ingest(shape: Shape, database: Option<String>) -> anyhow::Result<Ingest> {
    let engine = if database.is_some() { "PostgreSQL" } else { "SQLite" };
    let on_sqlite = database.is_none();
    let mut stage = Stage::start("bench-ingest", database).await?;
    let (mut one, mut many) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        one.push(rate(&stage, shape, 1).await?);
        many.push(rate(&stage, shape, MANY).await?);
    }
    let mut bytes_per_event = f64::NAN;
    if on_sqlite {
        stage.cluster.controller.stop().await?;
        let dir = stage.cluster.layout.data_dir("controller").join("events");
        #[expect(clippy::cast_precision_loss, reason = "sizes fit 52 bits")]
        let per_event = size(&dir)? as f64 / (2 * ROUNDS as u64 * shape.events) as f64;
        bytes_per_event = per_event;
        stage.cluster.controller.start()?;
        stage.cluster.api_up().await?;
    }
    stage.cluster.finish().await?;
    let how = format!(
        "{} events of {} bytes, {engine} with full sync, worker, node and controller on these cores; from the opening of the \
         gate to all events in the API; samples: {ROUNDS} of one job ({:.0}), then {ROUNDS} of {MANY} jobs ({:.0}); value: \
         the worse median; baseline: bare loop of plain wide rows on SQLite",
        shape.events,
        shape.bytes,
        median(&one),
        median(&many)
    );
    Ok(Ingest { one, many, bytes_per_event, how })
}

#[expect(clippy::cast_precision_loss, reason = "events fit 52 bits")]
async fn rate(stage: &Stage, shape: Shape, jobs: u64) -> anyhow::Result<f64> {
    let ids = stage.launch(shape, jobs).await?;
    let each = shape.events / jobs;
    let began = stage.open()?;
    let took = stage.visible(&ids, each, began).await?;
    stage.over(&ids).await?;
    let rate = (each * jobs) as f64 / took.as_secs_f64();
    eprintln!("bench: {jobs} jobs, {} bytes: {rate:.0} events/s", shape.bytes);
    Ok(rate)
}

/// The same events by a bare loop that writes wide rows.
pub(super) fn wide(shape: Shape) -> anyhow::Result<Wide> {
    let (mut rates, mut bytes_per_event) = (Vec::new(), f64::NAN);
    for _ in 0..3 {
        let dir = tempfile::Builder::new().prefix("plexus-bench-wide-").tempdir().context("no folder")?;
        let report = json_of(
            Command::new(Binaries::of_this_build()?.controller())
                .args(["debug", "wide-rows"])
                .arg(source(shape.bytes))
                .arg("--dir")
                .arg(dir.path())
                .args(["--events", &WIDE.to_string(), "--event-bytes", &shape.bytes.to_string()]),
        )?;
        rates.push(report["events_s"].as_f64().context("no rate")?);
        bytes_per_event = report["bytes_per_event_on_disk"].as_f64().context("no size")?;
    }
    eprintln!("bench: bare loop of wide rows, {} bytes: {:.0} events/s", shape.bytes, median(&rates));
    Ok(Wide { rates, bytes_per_event })
}

/// On a PostgreSQL server of its own that syncs, beside everything else.
pub(super) async fn on_postgres() -> anyhow::Result<Measured> {
    let server = tokio::task::spawn_blocking(|| {
        Postgres::start_in(Path::new("/var/tmp"), "-c shared_buffers=256MB -c max_wal_size=4GB")
    })
    .await
    .context("PostgreSQL does not start")?;
    let measured = ingest(TWO_K, Some(server.database())).await?;
    Ok(measured.row(Vec::new()))
}

/// A list of the API at rest, and while events come as fast as they can.
pub(super) async fn api_beside() -> anyhow::Result<Measured> {
    let stage = Stage::start("bench-api", None).await?;
    let warm = stage.launch(Shape { bytes: 2000, events: 10_000 }, 1).await?;
    stage.open()?;
    stage.over(&warm).await?;
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        idle.extend(lists(stage.api(), || false).await?);
        let jobs = stage.launch(TWO_K, 1).await?;
        let began = stage.open()?;
        let reading = async {
            let mut samples = Vec::new();
            let over = std::sync::atomic::AtomicBool::new(false);
            let stored = async {
                let done = stage.visible(&jobs, TWO_K.events, began).await;
                over.store(true, std::sync::atomic::Ordering::Relaxed);
                done
            };
            let read = lists(stage.api(), || over.load(std::sync::atomic::Ordering::Relaxed));
            let (read, stored) = tokio::join!(read, stored);
            samples.extend(read?);
            stored?;
            anyhow::Ok(samples)
        };
        busy.extend(reading.await?);
        stage.over(&jobs).await?;
    }
    // What the machine itself makes of it: two threads that do nothing but take what nobody else wants.
    let spinning = Spinning::start()?;
    let beside_nothing = lists(stage.api(), || false).await?;
    drop(spinning);
    stage.cluster.finish().await?;
    let [fast, slow, spun] = [&idle, &busy, &beside_nothing].map(|samples| quantile(samples, 0.99));
    Ok(Measured {
        value: slow / fast,
        samples: busy,
        baseline: idle,
        conditions: format!(
            "jobs/?page_size=25 every 10 ms, p99 {slow:.1} ms beside one job of 2 KB events at full rate, {fast:.1} ms at rest, \
             {spun:.1} ms beside two processes at nice 19 that only spin"
        ),
    })
}

/// Processes that use whatever CPU is left, at the lowest priority there is.
struct Spinning(Vec<Child>);

impl Spinning {
    fn start() -> anyhow::Result<Self> {
        let spin = || Command::new("nice").args(["-n", "19", "sh", "-c", "while :; do :; done"]).spawn();
        Ok(Self((0..2).map(|_| spin()).collect::<Result<_, _>>().context("cannot start what spins")?))
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        for child in &mut self.0 {
            _ = child.kill().and_then(|()| child.wait());
        }
    }
}

async fn lists(api: &Api, over: impl Fn() -> bool) -> anyhow::Result<Vec<f64>> {
    let mut samples = Vec::new();
    while samples.len() < LISTS && !over() {
        let began = Instant::now();
        api.get("jobs/?page_size=25").await?;
        samples.push(began.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(samples)
}

/// Bytes of the files of a folder.
fn size(dir: &Path) -> anyhow::Result<u64> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    Ok(entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|data| data.len()).sum())
}
