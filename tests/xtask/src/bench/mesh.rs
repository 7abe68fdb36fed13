//! Suite `mesh`: what a byte, a request, a lost hop and an idle link cost.
//!
//! A row whose program is not there, or that cannot be measured, is named with the reason; the others go on.

mod cost;
mod many;
mod trouble;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::machine::conditions;
use super::{Better, Row};

/// Rows in the order of the table: name, unit, bar. Less is better in all but the ratio of throughputs.
const ROWS: [(&str, &str, f64); 25] = [
    ("mesh.cpu_l1_h0", "ratio", 2.0),
    ("mesh.cpu_l1_h1", "ratio", 3.0),
    ("mesh.cpu_l1_h3", "ratio", 4.9),
    ("mesh.cpu_l2_h0", "ratio", 1.45),
    ("mesh.cpu_l2_h1", "ratio", 2.0),
    ("mesh.cpu_l2_h3", "ratio", 3.0),
    ("mesh.cpu_l3_h1", "ratio", 1.6),
    ("mesh.cpu_l3_h3", "ratio", 2.8),
    ("mesh.rtt_us_h0", "us", 60.0),
    ("mesh.rtt_us_h1", "us", 120.0),
    ("mesh.rtt_us_h3", "us", 250.0),
    ("mesh.control_loaded_extra_ms", "ms", 10.0),
    ("mesh.gap_kill_ms", "ms", 400.0),
    ("mesh.gap_silent_ms", "ms", 1000.0),
    ("mesh.lossy_ratio", "ratio", 0.9),
    ("mesh.rss_hop_mb", "MB", 10.0),
    ("mesh.rss_link_kb", "kB", 64.0),
    ("mesh.idle_wakeups_s", "1/s", 2.0),
    ("mesh.idle_cpu_pct", "%", 0.1),
    ("mesh.start_ms", "ms", 50.0),
    ("mesh.join_1000_s", "s", 20.0),
    ("mesh.controller_rss_1000_mb", "MB", 150.0),
    ("mesh.sim_idle_bytes_link_s", "B/s", 20.0),
    ("mesh.sim_converge_ms_10000", "ms", 50.0),
    ("mesh.node_binary_mb", "MB", 8.0),
];

/// What was measured for one row.
struct Measured {
    value: f64,
    samples: Vec<f64>,
    baseline: Vec<f64>,
    conditions: String,
}

impl Measured {
    fn new(value: f64, samples: Vec<f64>, how: &str) -> Self {
        Self { value, samples, baseline: Vec::new(), conditions: how.to_owned() }
    }
}

/// Measures every row whose name contains `only`; a row that cannot be measured is named on standard error.
pub(super) async fn run(only: Option<&str>) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut shared = Shared::default();
    for (name, unit, bar) in ROWS {
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
                better: if name == "mesh.lossy_ratio" { Better::Higher } else { Better::Lower },
                bar,
                samples,
                baseline_samples: baseline,
                command: format!("xtask bench --suite mesh --only {name}"),
                conditions: format!("{machine}; {conditions}"),
            }),
            Err(error) => eprintln!("bench: {name} is not measured: {error:#}"),
        }
    }
    rows
}

/// Measurements that two rows share.
#[derive(Default)]
struct Shared {
    rest: Option<many::Rest>,
    join: Option<many::Join>,
    sim: Option<Value>,
}

async fn measure(name: &str, shared: &mut Shared) -> anyhow::Result<Measured> {
    let (_, short) = name.split_once('.').context("a row without its suite")?;
    if let Some(rest) = short.strip_prefix("cpu_") {
        let (link, hops) = rest.split_once("_h").context("no number of hops")?;
        return cost::cpu(link, hops);
    }
    if let Some(hops) = short.strip_prefix("rtt_us_h") {
        return cost::rtt(hops.parse()?).await;
    }
    match short {
        "control_loaded_extra_ms" => cost::control_loaded().await,
        "lossy_ratio" => cost::lossy(),
        "gap_kill_ms" => trouble::gap(true).await,
        "gap_silent_ms" => trouble::gap(false).await,
        "start_ms" => trouble::start().await,
        "rss_hop_mb" | "rss_link_kb" | "idle_wakeups_s" | "idle_cpu_pct" => {
            if shared.rest.is_none() {
                shared.rest = Some(many::rest().await?);
            }
            shared.rest.as_ref().context("no rest")?.row(short)
        }
        "join_1000_s" | "controller_rss_1000_mb" => {
            if shared.join.is_none() {
                shared.join = Some(many::join().await?);
            }
            shared.join.as_ref().context("no join")?.row(short)
        }
        "sim_idle_bytes_link_s" | "sim_converge_ms_10000" => {
            if shared.sim.is_none() {
                let own = std::env::current_exe().context("cannot tell where this program lies")?;
                shared.sim = Some(json_of(Command::new(own).args(["sim", "--measure", "10000", "--json"]))?);
            }
            simulated(short, shared.sim.as_ref().context("no simulation")?)
        }
        "node_binary_mb" => binary(),
        _ => bail!("nobody measures it"),
    }
}

fn simulated(row: &str, report: &Value) -> anyhow::Result<Measured> {
    let value = match row {
        "sim_idle_bytes_link_s" => &report["idle_bytes_link_s"],
        _ => &report["leave"]["beyond_diameter_ms"],
    };
    let value = value.as_f64().with_context(|| format!("no such number in {report}"))?;
    Ok(Measured::new(value, vec![value], "xtask sim --measure 10000, seed 0, simulated time"))
}

#[expect(clippy::cast_precision_loss, reason = "a program's size is far below 2^52")]
fn binary() -> anyhow::Result<Measured> {
    let binaries = plexus_tests::Binaries::of_this_build()?;
    ensure!(binaries.dir().ends_with("release"), "this is no release build");
    let size = std::fs::metadata(binaries.node()).context("no plexus-node")?.len() as f64 / 1e6;
    Ok(Measured::new(size, vec![size], "plexus-node, release profile, stripped; 10^6 bytes"))
}

/// The last line that a program prints, as JSON.
fn json_of(command: &mut Command) -> anyhow::Result<Value> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("{command:?} printed no JSON but {line:?}"))
}

/// Of sorted or unsorted samples the one that `part` of all do not exceed.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "few samples"
)]
pub(super) fn quantile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * part).ceil() as usize).saturating_sub(1);
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// An example that was built with the programs.
fn example(dir: &Path, name: &str) -> anyhow::Result<std::path::PathBuf> {
    let path = dir.join("examples").join(name);
    ensure!(path.is_file(), "{} is missing; cargo build --release -p plexus-mesh --examples", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert!((quantile(&samples, 0.5) - 50.0).abs() < 1e-9);
        assert!((quantile(&samples, 0.99) - 99.0).abs() < 1e-9);
        assert!((quantile(&samples, 1.0) - 100.0).abs() < 1e-9);
    }
}
