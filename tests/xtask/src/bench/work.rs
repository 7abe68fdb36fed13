//! Suite `work`: what a unit costs from the API to its first instruction, to its first event, to its durable end.
//!
//! A row that cannot be measured is named with the reason; the others go on.

mod cancel;
mod idle;
mod output;
mod project;
mod simulated;

use std::collections::VecDeque;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use plexus_tests::{Cluster, Seen, wait_for};
use serde_json::json;
use tokio::task::LocalSet;

use super::first::{self, Turn};
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

/// Units of one round of `/bin/true`, rounds of it, and how many run side by side.
const UNITS: usize = 200;
const ROUNDS: usize = 5;
const BESIDE: usize = 16;
/// Cores that the node says it has, so that capacity is not what is measured.
const CORES: u16 = 64;
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
        "true_ratio" => true_units().await,
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

/// `/bin/true` as a unit, from the API's POST until the API shows the end, which is on disk then; and as a bare child.
async fn true_units() -> anyhow::Result<Measured> {
    let cluster =
        Cluster::builder("bench-true").process(vec!["/bin/true".into()]).cores(CORES).start().await?;
    let template = first::probe_template(&cluster, "two-hosts.ini").await?;
    let api = cluster.api();
    api.change(&format!("job_templates/{template}/"), &json!({"allow_simultaneous": true})).await?;
    let group = api.get("instance_groups/?name=default").await?["results"][0]["id"].clone();
    api.change(&format!("instance_groups/{group}/"), &json!({"max_concurrent_jobs": BESIDE})).await?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (mut one, mut other) = (0.0, 0.0);
        for turn in first::abba(round) {
            let began = Instant::now();
            match turn {
                Turn::Ours => {
                    units(&cluster, template).await?;
                    one = per_second(began);
                }
                Turn::Other => {
                    tokio::task::spawn_blocking(spawn_loop).await.context("the spawn loop is lost")??;
                    other = per_second(began);
                }
            }
        }
        // The first round warms caches and sessions.
        if round > 0 {
            ours.push(one);
            bare.push(other);
        }
    }
    cluster.finish().await?;
    Ok(Measured {
        value: median(&ours) / median(&bare),
        samples: ours,
        baseline: bare,
        conditions: format!(
            "samples in units/s; {UNITS} units a round, launched by {BESIDE} clients, {BESIDE} run side by side, one hop; value is the ratio of the medians; \
             baseline: a spawn loop of /bin/true in {BESIDE} threads"
        ),
    })
}

/// Runs the units of a round, [`BESIDE`] of them at any time: that is as many as their group allows. One client waits for the
/// last, for many that look again and again would be most of what is measured.
async fn units(cluster: &Cluster, template: i64) -> anyhow::Result<()> {
    let mut tasks = VecDeque::new();
    let local = LocalSet::new();
    for _ in 0..BESIDE {
        let api = cluster.api().clone();
        tasks.push_back(local.spawn_local(async move {
            for _ in 0..UNITS.div_ceil(BESIDE) {
                first::launch(&api, template).await?;
            }
            anyhow::Ok(())
        }));
    }
    let api = cluster.api();
    local
        .run_until(async {
            for task in tasks {
                task.await.context("a task is lost")??;
            }
            wait_for("the units to end", UNIT, async || {
                match api.get("jobs/?status__in=new,pending,waiting,running&page_size=1").await {
                    Ok(list) => Seen::when(list["count"] == 0, || format!("{} left", list["count"])),
                    Err(error) => Seen::NotYet(format!("{error:#}")),
                }
            })
            .await
        })
        .await?;
    // Nothing is printed, so the runs count as errors; what matters is that the units ran to their end.
    let never = api.get("jobs/?started__isnull=true&page_size=1").await?;
    ensure!(never["count"] == 0, "jobs never started: {}", never["results"][0]["job_explanation"]);
    Ok(())
}

fn spawn_loop() -> anyhow::Result<()> {
    let left = AtomicUsize::new(UNITS.div_ceil(BESIDE) * BESIDE);
    let one = || -> anyhow::Result<()> {
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            let status = Command::new("/bin/true").status().context("cannot run /bin/true")?;
            ensure!(status.success(), "/bin/true failed");
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..BESIDE).map(|_| scope.spawn(one)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("a thread is lost"),
        })
    })
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred units")]
fn per_second(began: Instant) -> f64 {
    (UNITS.div_ceil(BESIDE) * BESIDE) as f64 / began.elapsed().as_secs_f64()
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
