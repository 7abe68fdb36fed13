//! From a cancel at the API to the end of what ran.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use plexus_tests::{Cluster, podman_command, runtime_root};
use serde_json::json;

use super::super::first;
use super::{Measured, UNIT, percentile};

/// Cancels of a plain process, and of a container.
const CANCELS: usize = 100;
const EE_CANCELS: usize = 12;
/// Pause between two looks for a process: a fifth of a millisecond is nothing beside what is measured.
const LOOK: Duration = Duration::from_micros(200);
/// Pause between two looks for what is waited for before the clock starts.
const WAIT: Duration = Duration::from_millis(5);

/// A `process` unit that ends at SIGTERM, three hops away: from POST to the end of its process.
pub(super) async fn process() -> anyhow::Result<Measured> {
    let scratch = tempfile::Builder::new()
        .prefix("plexus-bench-")
        .tempdir_in(runtime_root())
        .context("no scratch folder")?;
    let file = scratch.path().join("pid");
    let script = format!("echo $$ >{0}.new && mv {0}.new {0} && exec sleep 1000 # \"$1\"", file.display());
    let command = ["sh", "-c", &script, "sh", "{dir}"].map(str::to_owned).to_vec();
    let cluster = Cluster::builder("bench-cancel").more_hops(2).process(command).start().await?;
    let template = first::probe_template(&cluster, "two-hosts.ini").await?;
    let mut samples = Vec::new();
    for round in 0..CANCELS + 5 {
        fs::remove_file(&file).ok();
        let job = first::launch(cluster.api(), template).await?;
        let began = Instant::now();
        while !file.exists() {
            ensure!(began.elapsed() < UNIT, "job {job} never started");
            tokio::time::sleep(WAIT).await;
        }
        let pid = fs::read_to_string(&file).context("no process id")?;
        let process = Path::new("/proc").join(pid.trim());
        // A job that is not `running` for its controller yet is canceled as well; this is about one that is.
        cluster.api().has_status(job, "running", UNIT).await?;
        let gone = tokio::task::spawn_blocking(move || {
            while process.exists() {
                std::thread::sleep(LOOK);
            }
            Instant::now()
        });
        let began = Instant::now();
        cluster.api().post(&format!("jobs/{job}/cancel/"), &json!({})).await?;
        let gone = tokio::time::timeout(UNIT, gone).await.context("the process lives on")??;
        if round >= 5 {
            samples.push(gone.duration_since(began).as_secs_f64() * 1e3);
        }
        let done = cluster.api().finished(job, UNIT).await?;
        ensure!(done["status"] == "canceled", "job {job} ended {}", done["status"]);
    }
    cluster.finish().await?;
    Ok(Measured {
        value: percentile(&samples, 99),
        conditions: format!(
            "p99 of {CANCELS}; three hops; a shell that became sleep; p50 {:.1} ms",
            percentile(&samples, 50)
        ),
        samples,
        baseline: Vec::new(),
    })
}

/// A playbook at work in the execution environment: from POST until podman knows no container of the job.
pub(super) async fn container() -> anyhow::Result<Measured> {
    let cluster = Cluster::builder("bench-cancel-ee").start().await?;
    let template = first::probe_template(&cluster, "two-hosts.ini").await?;
    let change = json!({"playbook": "sleeper.yml", "extra_vars": "sleep_seconds: 600"});
    cluster.api().change(&format!("job_templates/{template}/"), &change).await?;
    let mut samples = Vec::new();
    for round in 0..=EE_CANCELS {
        let job = first::launch(cluster.api(), template).await?;
        let began = Instant::now();
        // Start of playbook, play and task, and of the task on its hosts: it sleeps.
        while cluster.api().event_count(job).await? < 5 {
            ensure!(began.elapsed() < UNIT, "job {job} does not come to its task");
            tokio::time::sleep(WAIT).await;
        }
        let label = format!("label=plexus.label=job {job}");
        ensure!(containers(&label)? == 1, "job {job} has no container");
        let began = Instant::now();
        cluster.api().post(&format!("jobs/{job}/cancel/"), &json!({})).await?;
        let gone = tokio::task::spawn_blocking(move || {
            while containers(&label)? > 0 {
                ensure!(began.elapsed() < UNIT, "the container lives on");
            }
            anyhow::Ok(began.elapsed())
        });
        let gone = gone.await.context("the look is lost")??;
        if round > 0 {
            samples.push(gone.as_secs_f64() * 1e3);
        }
        let done = cluster.api().finished(job, UNIT).await?;
        ensure!(done["status"] == "canceled", "job {job} ended {}", done["status"]);
    }
    cluster.finish().await?;
    Ok(Measured {
        value: percentile(&samples, 99),
        conditions: format!(
            "p99 of {EE_CANCELS}, which is the worst; one hop; seen by podman ps, which takes some 100 ms itself; p50 {:.0} ms",
            percentile(&samples, 50)
        ),
        samples,
        baseline: Vec::new(),
    })
}

fn containers(filter: &str) -> anyhow::Result<usize> {
    let command = podman_command();
    let (program, first) = command.split_first().context("no podman command")?;
    let output = Command::new(program)
        .args(first)
        .args(["ps", "--all", "--quiet", "--filter", filter])
        .output()
        .context("cannot run podman")?;
    ensure!(output.status.success(), "podman ps failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count())
}
