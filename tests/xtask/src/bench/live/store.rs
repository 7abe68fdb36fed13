//! The store by itself: what an event takes of the disk, how a range is found among ten million, how long a start takes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use plexus_tests::{Binaries, Cluster};
use serde_json::Value;

use super::stage::source;
use super::{Measured, json_of, numbers, thinned};
use crate::bench::mesh::quantile;
use crate::bench::{median, target_dir};

/// Events of the large store.
const MANY: u64 = 10_000_000;
/// Events that a slow job stores one by one.
const SLOW: u64 = 10_000;
const STARTS: usize = 15;

/// Bytes of an event on disk: the fast job's, and those of a job that stores one at a time.
pub(super) fn bytes(fast: f64, wide: f64) -> anyhow::Result<Measured> {
    let dir = tempfile::Builder::new().prefix("plexus-bench-slow-").tempdir().context("no folder")?;
    let report = bench(
        &dir.path().display().to_string(),
        &["--events", "20000", "--single", &SLOW.to_string()],
        2000,
    )?;
    let slow = report["bytes_per_single_on_disk"].as_f64().context("no size")?;
    Ok(Measured {
        value: fast.max(slow),
        samples: vec![fast, slow],
        baseline: vec![wide],
        conditions: format!(
            "2 KB events; samples: fast jobs, slow job ({SLOW} events, each acknowledged before the next); indexes and \
             everything else in the files; baseline: plain wide rows; a single event takes {:.2} ms",
            report["single_ms"][0].as_f64().unwrap_or(f64::NAN)
        ),
    })
}

/// The parser on one core.
pub(super) fn parse() -> anyhow::Result<Measured> {
    let result = json_of(
        Command::new(Binaries::of_this_build()?.controller())
            .args(["debug", "parse-bench"])
            .arg(source(0))
            .arg("--json"),
    )?;
    let samples = numbers(&result["samples"])?;
    Ok(Measured {
        value: median(&samples),
        samples,
        baseline: numbers(&result["baseline_samples"])?,
        conditions: "MB/s (10^6 bytes), one core; baseline: lines split, top level of each checked"
            .to_owned(),
    })
}

/// 200 events by counter, from all over ten million.
pub(super) fn range() -> anyhow::Result<Measured> {
    let dir = ten_million()?;
    let report = bench(&dir.display().to_string(), &["--events", "0", "--single", "0"], 500)?;
    let samples = numbers(&report["page_samples_ms"])?;
    Ok(Measured {
        value: quantile(&samples, 0.99),
        samples: thinned(&samples),
        baseline: Vec::new(),
        conditions: format!(
            "{MANY} events of 0.5 KB of one job, rows and bodies of 200 read and put together"
        ),
    })
}

/// From the start of the program to the first answer, with ten million events and with none.
pub(super) async fn start() -> anyhow::Result<Measured> {
    let store = ten_million()?;
    let mut cluster = Cluster::builder("bench-live-start").without_node().prepare()?;
    cluster.hop.start()?;
    cluster.controller.start()?;
    cluster.api_up().await?;
    cluster.controller.stop().await?;
    let events = cluster.layout.data_dir("controller").join("events");
    let empty = cluster.layout.dir.join("no-events");
    let (mut full, mut none) = (Vec::new(), Vec::new());
    for round in 0..=STARTS {
        for with in [round % 2 == 0, round % 2 == 1] {
            if with {
                fs::rename(&events, &empty).context("cannot move the events")?;
                std::os::unix::fs::symlink(&store, &events).context("cannot link the events")?;
            }
            let took = one_start(&mut cluster).await?;
            if with {
                fs::remove_file(&events).context("cannot remove the link")?;
                fs::rename(&empty, &events).context("cannot move the events")?;
            }
            if round > 0 {
                if with { &mut full } else { &mut none }.push(took);
            }
        }
    }
    cluster.finish().await?;
    Ok(Measured {
        value: median(&full),
        samples: full,
        baseline: none,
        conditions: format!(
            "exec to the first answer of the API, {MANY} events of 0.5 KB; baseline: no events"
        ),
    })
}

async fn one_start(cluster: &mut Cluster) -> anyhow::Result<f64> {
    let address = format!("127.0.0.1:{}", cluster.layout.http_port);
    let began = Instant::now();
    cluster.controller.start()?;
    let took = tokio::task::spawn_blocking(move || -> anyhow::Result<Duration> {
        loop {
            ensure!(began.elapsed() < Duration::from_secs(30), "no answer from {address}");
            if let Ok(mut stream) = TcpStream::connect(&address) {
                write!(stream, "GET /api/v2/ping/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                ensure!(answer.starts_with("HTTP/1.1 200"), "answered {answer}");
                return Ok(began.elapsed());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    })
    .await??;
    cluster.controller.stop().await?;
    Ok(took.as_secs_f64() * 1e3)
}

/// The large store: made once, which takes minutes, and kept in the target directory.
fn ten_million() -> anyhow::Result<PathBuf> {
    let dir = target_dir().join("bench/ten-million");
    let dir = std::path::absolute(dir).context("no absolute path")?;
    if !dir.join("done").exists() {
        eprintln!("bench: making a store of {MANY} events in {}", dir.display());
        fs::remove_dir_all(&dir).ok();
        fs::create_dir_all(&dir).context("no folder for the store")?;
        bench(
            &dir.display().to_string(),
            &["--events", &MANY.to_string(), "--streamed", "--single", "0"],
            500,
        )?;
        fs::write(dir.join("done"), "")?;
    }
    Ok(dir)
}

fn bench(dir: &str, args: &[&str], bytes: usize) -> anyhow::Result<Value> {
    json_of(
        Command::new(Binaries::of_this_build()?.controller())
            .args(["debug", "ingest-bench"])
            .arg(source(bytes))
            .args(["--dir", dir, "--json", "--event-bytes", &bytes.to_string()])
            .args(args),
    )
}
