//! Suite `work`: what a unit costs from the API to its first instruction, to its first event, to its durable end.
//!
//! A row that cannot be measured is named with the reason; the others go on.

mod agent;
mod cancel;
mod idle;
mod output;
mod project;
mod simulated;
mod units;

use std::time::Duration;

use anyhow::{Context as _, bail};
use plexus_tests::Cluster;

use super::first;
use super::machine::conditions;
use super::{Better, Row, median};

/// Rows in the order of the table: name, unit, which way is good, bar.
const ROWS: [(&str, &str, Better, f64); 18] = [
    ("work.start_ms_h0", "ms", Better::Lower, 5.0),
    ("work.start_ms_h1", "ms", Better::Lower, 6.0),
    ("work.start_ms_h3", "ms", Better::Lower, 8.0),
    ("work.ee_cold_ratio", "ratio", Better::Lower, 1.05),
    ("work.ee_warm_ratio", "ratio", Better::Lower, 0.6),
    ("work.true_ratio", "ratio", Better::Higher, 0.3),
    ("work.output_ratio_h0", "ratio", Better::Higher, 0.5),
    ("work.output_ratio_h1", "ratio", Better::Higher, 0.5),
    ("work.output_ratio_h3", "ratio", Better::Higher, 0.5),
    ("work.cancel_p99_ms", "ms", Better::Lower, 100.0),
    ("work.cancel_ee_p99_ms", "ms", Better::Lower, 2000.0),
    ("work.idle_units_cpu_pct", "%", Better::Lower, 5.0),
    ("work.shim_kb", "kB", Better::Lower, 3000.0),
    ("work.sim_units_kb", "kB", Better::Lower, 8.0),
    ("work.sim_burst_s", "s", Better::Lower, 3.0),
    ("work.project_cold_ratio", "ratio", Better::Higher, 10.0),
    ("work.project_changed_bytes_pct", "%", Better::Lower, 2.0),
    ("work.project_same_ms", "ms", Better::Lower, 50.0),
];

/// Longest single unit.
const UNIT: Duration = Duration::from_secs(60);

/// What was measured for one row.
struct Measured {
    value: f64,
    samples: Vec<f64>,
    baseline: Vec<f64>,
    conditions: String,
}

/// Measures every row whose name contains `only`, or one of its parts between commas; a row that cannot be measured is named on standard error.
pub(super) async fn run(only: Option<&str>) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut shared = Shared::default();
    for (name, unit, better, bar) in ROWS {
        if only.is_some_and(|parts| !parts.split(',').any(|part| name.contains(part))) {
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
                command: format!("make bench SUITE=work ARGS=\"--only {name}\""),
                conditions: format!("{machine}; {conditions}"),
            }),
            Err(error) => eprintln!("bench: {name} is not measured: {error:#}"),
        }
    }
    rows
}

/// Measurements that several rows share.
#[derive(Default)]
struct Shared {
    idle: Option<idle::Idle>,
    project: Option<project::Project>,
    simulated: Option<simulated::Simulated>,
}

async fn measure(name: &str, shared: &mut Shared) -> anyhow::Result<Measured> {
    let (_, short) = name.split_once('.').context("a row without its suite")?;
    match short {
        "start_ms_h0" => start(Cluster::builder("bench-start").direct()).await,
        "start_ms_h1" => start(Cluster::builder("bench-start")).await,
        "start_ms_h3" => start(Cluster::builder("bench-start").more_hops(2)).await,
        "output_ratio_h0" => output::ratio(0).await,
        "output_ratio_h1" => output::ratio(1).await,
        "output_ratio_h3" => output::ratio(3).await,
        "cancel_p99_ms" => cancel::process().await,
        "cancel_ee_p99_ms" => cancel::container().await,
        "idle_units_cpu_pct" | "shim_kb" => {
            if shared.idle.is_none() {
                shared.idle = Some(idle::measure().await?);
            }
            Ok(shared.idle.as_ref().context("no idle units")?.row(short))
        }
        "sim_units_kb" | "sim_burst_s" => {
            if shared.simulated.is_none() {
                shared.simulated = Some(simulated::measure().await?);
            }
            Ok(shared.simulated.as_ref().context("no agents")?.row(short))
        }
        "project_cold_ratio" | "project_changed_bytes_pct" | "project_same_ms" => {
            if shared.project.is_none() {
                shared.project = Some(project::measure().await?);
            }
            Ok(shared.project.as_ref().context("no project")?.row(short))
        }
        "ee_cold_ratio" | "ee_warm_ratio" => {
            let warm = short == "ee_warm_ratio";
            let (ours, bare) = first::ee_first_events(warm).await?;
            let pool = if warm { "a container waits for each job" } else { "no container waits" };
            Ok(Measured {
                value: median(&ours) / median(&bare),
                samples: ours,
                baseline: bare,
                conditions: format!(
                    "samples in ms; value is the ratio of the medians; baseline: bare podman run of the same \
                     payload; facts.yml on two hosts, one hop; {pool}"
                ),
            })
        }
        "true_ratio" => units::ratio().await,
        other => bail!("no such row: {other}"),
    }
}

async fn start(builder: plexus_tests::Builder) -> anyhow::Result<Measured> {
    let (ours, bare) = first::starts(builder).await?;
    let conditions = format!(
        "one job at a time; p50 is the value, p99 {:.1} ms; baseline: bare spawn of the same probe",
        percentile(&ours, 99)
    );
    Ok(Measured { value: median(&ours), samples: ours, baseline: bare, conditions })
}

/// The sample below which `percent` of them lie, by nearest rank.
fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_by_nearest_rank() {
        let samples: Vec<f64> = (1..=40).rev().map(f64::from).collect();
        assert!((percentile(&samples, 50) - 20.0).abs() < f64::EPSILON);
        assert!((percentile(&samples, 99) - 40.0).abs() < f64::EPSILON);
        assert!(percentile(&[], 99).is_nan());
    }
}
