//! Suite `live`: what it costs to store every event once, to show it, and to find it again.
//!
//! Everything runs on the same machine, the worker that makes the events, the node and the client included. Events are
//! captured ones with their values varied, so that nothing compresses better than real output. A row that cannot be measured
//! is named with the reason; the others go on.

mod ingest;
mod kill;
mod stage;
mod store;
mod watch;

use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::machine::conditions;
use super::{Better, Row};

use Better::{Higher, Lower};

pub(super) use watch::request as event_stream;

/// Rows in the order of the table: name, unit, which way is good, bar.
const ROWS: [(&str, &str, Better, f64); 15] = [
    ("live.ingest_2k_s", "1/s", Higher, 60_000.0),
    ("live.ingest_05k_s", "1/s", Higher, 120_000.0),
    ("live.ingest_ratio", "ratio", Higher, 1.2),
    ("live.ingest_pg_2k_s", "1/s", Higher, 40_000.0),
    ("live.kill_lost", "events", Lower, 0.0),
    ("live.kill_doubled", "events", Lower, 0.0),
    ("live.tail_p50_ms", "ms", Lower, 15.0),
    ("live.tail_p99_ms", "ms", Lower, 100.0),
    ("live.watchers_p99_ms", "ms", Lower, 150.0),
    ("live.watchers_rss_mb", "MB", Lower, 150.0),
    ("live.bytes_per_event", "B", Lower, 450.0),
    ("live.parse_mb_s", "MB/s", Higher, 300.0),
    ("live.range_ms", "ms", Lower, 5.0),
    ("live.api_p99_ratio", "ratio", Lower, 3.0),
    ("live.start_ms", "ms", Lower, 200.0),
];

/// What was measured for one row.
#[derive(Debug, Clone)]
struct Measured {
    value: f64,
    samples: Vec<f64>,
    baseline: Vec<f64>,
    conditions: String,
}

/// Measures every row whose name contains `only`; a row that cannot be measured is named on standard error.
pub(super) async fn run(only: Option<&str>) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut shared = Shared::default();
    for (name, unit, better, bar) in ROWS {
        if only.is_some_and(|part| !name.contains(part)) {
            continue;
        }
        eprintln!("bench: {name}");
        let machine = conditions();
        match measure(name, &mut shared).await {
            Ok(Measured { value, samples, baseline, conditions }) => rows.push(Row {
                name,
                value,
                unit,
                better,
                bar,
                samples,
                baseline_samples: baseline,
                command: format!("make bench SUITE=live ARGS=\"--only {name}\""),
                conditions: format!("{machine}; {conditions}"),
            }),
            Err(error) => eprintln!("bench: {name} is not measured: {error:#}"),
        }
    }
    rows
}

/// Measurements that rows share.
#[derive(Default)]
struct Shared {
    two_k: Option<ingest::Ingest>,
    wide: Option<ingest::Wide>,
    kill: Option<kill::Killed>,
    tail: Option<watch::Tail>,
    watchers: Option<watch::Watchers>,
}

impl Shared {
    async fn two_k(&mut self) -> anyhow::Result<ingest::Ingest> {
        if self.two_k.is_none() {
            self.two_k = Some(ingest::ingest(ingest::TWO_K, None).await?);
        }
        self.two_k.clone().context("not measured")
    }

    fn wide(&mut self) -> anyhow::Result<ingest::Wide> {
        if self.wide.is_none() {
            self.wide = Some(ingest::wide(ingest::TWO_K)?);
        }
        self.wide.clone().context("not measured")
    }
}

async fn measure(name: &str, shared: &mut Shared) -> anyhow::Result<Measured> {
    match name.trim_start_matches("live.") {
        "ingest_2k_s" => {
            let wide = shared.wide()?;
            Ok(shared.two_k().await?.row(wide.rates))
        }
        "ingest_05k_s" => {
            let wide = ingest::wide(ingest::HALF_K)?;
            Ok(ingest::ingest(ingest::HALF_K, None).await?.row(wide.rates))
        }
        "ingest_ratio" => {
            let wide = shared.wide()?;
            Ok(shared.two_k().await?.ratio(wide.rates))
        }
        "ingest_pg_2k_s" => ingest::on_postgres().await,
        "kill_lost" | "kill_doubled" => {
            if shared.kill.is_none() {
                shared.kill = Some(kill::killed().await?);
            }
            let killed = shared.kill.as_ref().context("not measured")?;
            Ok(killed.row(name.ends_with("lost")))
        }
        "tail_p50_ms" | "tail_p99_ms" => {
            if shared.tail.is_none() {
                shared.tail = Some(watch::tail().await?);
            }
            let q = if name.ends_with("p50_ms") { 0.5 } else { 0.99 };
            Ok(shared.tail.as_ref().context("not measured")?.row(q))
        }
        "watchers_p99_ms" | "watchers_rss_mb" => {
            if shared.watchers.is_none() {
                shared.watchers = Some(watch::watchers().await?);
            }
            let watchers = shared.watchers.as_ref().context("not measured")?;
            Ok(if name.ends_with("rss_mb") { watchers.memory() } else { watchers.latency() })
        }
        "bytes_per_event" => {
            let fast = shared.two_k().await?.bytes_per_event;
            store::bytes(fast, shared.wide()?.bytes_per_event)
        }
        "parse_mb_s" => store::parse(),
        "range_ms" => store::range(),
        "api_p99_ratio" => ingest::api_beside().await,
        "start_ms" => store::start().await,
        other => bail!("no such row: {other}"),
    }
}

fn json_of(command: &mut Command) -> anyhow::Result<Value> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).with_context(|| format!("{command:?} printed no JSON"))
}

fn numbers(value: &Value) -> anyhow::Result<Vec<f64>> {
    let numbers: Vec<f64> = value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    ensure!(!numbers.is_empty(), "no samples in {value}");
    Ok(numbers)
}

/// Some of many samples, evenly taken, so that a report stays readable.
fn thinned(samples: &[f64]) -> Vec<f64> {
    samples.iter().copied().step_by(samples.len().div_ceil(1000).max(1)).collect()
}
