//! A thousand units that do nothing.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use plexus_tests::Cluster;
use serde_json::json;

use super::super::machine::private_mb;
use super::super::{first, median};
use super::{Measured, UNIT};

/// Units at once.
const UNITS: usize = 1000;
/// Rest before anything is read, and how long it is watched.
const SETTLE: Duration = Duration::from_secs(10);
const WATCH: Duration = Duration::from_secs(30);
/// Longest start or end of all of them.
const ALL: Duration = Duration::from_secs(240);
/// Clock ticks a second in `/proc/PID/stat`.
const TICKS: f64 = 100.0;

/// What was seen.
pub(super) struct Idle {
    cpu_pct: f64,
    agent_pct: f64,
    shims_kb: Vec<f64>,
    started: Duration,
}

impl Idle {
    pub(super) fn row(&self, name: &str) -> Measured {
        let (value, samples) = match name {
            "idle_units_cpu_pct" => (self.cpu_pct, vec![self.cpu_pct]),
            _ => (median(&self.shims_kb), self.shims_kb.clone()),
        };
        Measured {
            value,
            samples,
            baseline: Vec::new(),
            conditions: format!(
                "{UNITS} jobs of sleep, each with its shim, started in {:.0} s and watched for {} s; agent {:.2} %, shims {:.2} % of a \
                 core; private pages, 10^3 bytes",
                self.started.as_secs_f64(),
                WATCH.as_secs(),
                self.agent_pct,
                self.cpu_pct - self.agent_pct
            ),
        }
    }
}

/// Starts the units, watches them, and ends them.
pub(super) async fn measure() -> anyhow::Result<Idle> {
    let command = ["sh", "-c", "exec sleep 100000", "sh", "{dir}"].map(str::to_owned).to_vec();
    let cluster = Cluster::builder("bench-idle")
        .process(command)
        .cores(1000)
        .memory_mib(u32::MAX >> 11)
        .start()
        .await?;
    let template = first::probe_template(&cluster, "two-hosts.ini").await?;
    let api = cluster.api();
    let simultaneous = json!({"allow_simultaneous": true, "forks": 1});
    api.change(&format!("job_templates/{template}/"), &simultaneous).await?;
    let began = Instant::now();
    let mut jobs = Vec::new();
    for _ in 0..UNITS {
        jobs.push(first::launch(api, template).await?);
    }
    for &job in &jobs {
        api.has_status(job, "running", ALL).await?;
    }
    let started = began.elapsed();
    tokio::time::sleep(SETTLE).await;
    let agent = cluster.node.pid().context("no agent")?;
    let shims = shims(&cluster.layout.runtime_dir);
    // And the spare ones.
    ensure!((UNITS..=UNITS + 2).contains(&shims.len()), "{} shims instead of {UNITS}", shims.len());
    let cpu = |pids: &[u32]| pids.iter().map(|&pid| cpu_seconds(pid).unwrap_or(0.0)).sum::<f64>();
    let before = (cpu(&[agent]), cpu(&shims));
    tokio::time::sleep(WATCH).await;
    let after = (cpu(&[agent]), cpu(&shims));
    let percent = |seconds: f64| seconds / WATCH.as_secs_f64() * 100.0;
    let agent_pct = percent(after.0 - before.0);
    let shims_kb = shims.iter().filter_map(|&pid| private_mb(pid)).map(|mb| mb * 1e3).collect();
    for &job in &jobs {
        api.post(&format!("jobs/{job}/cancel/"), &json!({})).await?;
    }
    for &job in &jobs {
        api.finished(job, ALL.max(UNIT)).await?;
    }
    cluster.finish().await?;
    Ok(Idle { cpu_pct: agent_pct + percent(after.1 - before.1), agent_pct, shims_kb, started })
}

/// Processes called `plexus-node shim` whose working directory lies below `dir`.
fn shims(dir: &Path) -> Vec<u32> {
    let is_shim = |proc: &Path| {
        let words = fs::read(proc.join("cmdline")).unwrap_or_default();
        words.split(|&byte| byte == 0).nth(1) == Some(b"shim")
            && fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes =
        entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    processes.filter(|(_, proc)| is_shim(proc)).map(|(pid, _)| pid).collect()
}

/// Processor seconds of all threads of a process so far, user and kernel.
fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS)
}
