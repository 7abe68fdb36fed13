//! A controller and an execution node that dials it, whose jobs print prepared streams.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use plexus_tests::{Api, Binaries, Cluster, JobOptions, Samples, Seen, wait_for};
use serde_json::json;
use tempfile::TempDir;

/// Longest wait for any one thing.
pub(super) const PATIENCE: Duration = Duration::from_secs(170);
/// Pause between two looks at a job.
const LOOK: Duration = Duration::from_millis(10);

/// The running programs, and the folder of the streams.
pub(super) struct Stage {
    pub(super) cluster: Cluster,
    template: i64,
    streams: TempDir,
}

/// What the events of a stream look like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Mean bytes; 0 for as they were captured.
    pub(super) bytes: usize,
    /// Events of all jobs together.
    pub(super) events: u64,
}

impl Stage {
    /// Starts the programs; with a database, on PostgreSQL.
    pub(super) async fn start(name: &str, database: Option<String>) -> anyhow::Result<Self> {
        let binaries = Binaries::of_this_build()?;
        // In memory, so that no writing-back of the input disturbs the disk under the databases.
        let streams = tempfile::Builder::new()
            .prefix("plexus-bench-streams-")
            .tempdir_in("/dev/shm")
            .context("no folder for streams")?;
        let text = |path: &Path| path.display().to_string();
        let command = vec![text(&binaries.xtask()), "feed".into(), text(streams.path()), "{dir}".into()];
        let mut builder = Cluster::builder(name).process(command).direct().cores(30);
        if let Some(database) = database {
            builder = builder.database(database);
        }
        let cluster = builder.start().await?;
        let samples = Samples::new("localhost/plexus-ee:demo")?;
        samples.copy_project(&cluster.layout.projects())?;
        let api = cluster.api();
        let loaded = samples.load(api).await?;
        let body = json!({"name": "nobody", "organization": loaded.organization});
        let inventory = api.create("inventories/", &body).await?["id"].as_i64().context("no id")?;
        let options = JobOptions::default();
        let template = samples.template(api, loaded, "feed", "facts.yml", inventory, &options).await?;
        let path = format!("job_templates/{template}/");
        api.change(&path, &json!({"allow_simultaneous": true})).await?;
        Ok(Self { cluster, template, streams })
    }

    pub(super) fn api(&self) -> &Api {
        self.cluster.api()
    }

    /// Lets jobs print their events at this rate, each with the moment it was written.
    pub(super) fn pace(&self, rate: u64) -> anyhow::Result<()> {
        fs::write(self.streams.path().join("rate"), rate.to_string()).context("cannot set the rate")
    }

    /// Launches `jobs` jobs, each with a stream of its own, and waits until all stand at the gate.
    pub(super) async fn launch(&self, shape: Shape, jobs: u64) -> anyhow::Result<Vec<i64>> {
        let dir = self.streams.path();
        for entry in fs::read_dir(dir).context("no folder of streams")?.flatten() {
            if entry.file_name() != "rate" {
                fs::remove_file(entry.path()).context("cannot remove a stream")?;
            }
        }
        streams(dir, shape, jobs)?;
        let mut ids = Vec::new();
        for _ in 0..jobs {
            let job = self.api().launch(self.template, &json!({})).await?;
            ids.push(job["id"].as_i64().context("job has no id")?);
        }
        wait_for("all jobs to stand at the gate", PATIENCE, async || {
            let claimed = names(dir).filter(|name| name.starts_with("claimed.")).count() as u64;
            Seen::when(claimed == jobs, || format!("{claimed} of {jobs}"))
        })
        .await?;
        Ok(ids)
    }

    /// Opens the gate.
    pub(super) fn open(&self) -> anyhow::Result<Instant> {
        let now = Instant::now();
        fs::write(self.streams.path().join("gate"), "").context("cannot open the gate")?;
        Ok(now)
    }

    /// The stream of job `number`, from 1.
    pub(super) fn stream(&self, number: u64) -> PathBuf {
        self.streams.path().join(format!("claimed.{number}"))
    }

    /// Waits until each job shows all its events, committed and acknowledged, and gives how long that took since `began`.
    pub(super) async fn visible(&self, jobs: &[i64], each: u64, began: Instant) -> anyhow::Result<Duration> {
        for &job in jobs {
            let mut seen = 0;
            while seen < each {
                ensure!(began.elapsed() < PATIENCE, "job {job} shows {seen} of {each} events");
                seen = self.api().event_count(job).await?;
                if seen < each {
                    tokio::time::sleep(LOOK).await;
                }
            }
            ensure!(seen == each, "job {job} shows {seen} events instead of {each}");
        }
        Ok(began.elapsed())
    }

    /// Waits for the end of the jobs.
    pub(super) async fn over(&self, jobs: &[i64]) -> anyhow::Result<()> {
        for &job in jobs {
            let done = self.api().finished(job, PATIENCE).await?;
            ensure!(
                done["status"] == "successful",
                "job {job} ended {}: {}",
                done["status"],
                done["job_explanation"]
            );
        }
        Ok(())
    }
}

/// Makes the streams of `jobs` jobs, `stream.1` and so on.
pub(super) fn streams(dir: &Path, shape: Shape, jobs: u64) -> anyhow::Result<()> {
    let out = if jobs == 1 { dir.join("stream.1") } else { dir.join("stream") };
    let output = Command::new(Binaries::of_this_build()?.controller())
        .args(["debug", "vary"])
        .arg(source(shape.bytes))
        .arg("--out")
        .arg(out)
        .args(["--events", &(shape.events / jobs).to_string(), "--files", &jobs.to_string()])
        .args(["--event-bytes", &shape.bytes.to_string()])
        .output()
        .context("cannot run the controller")?;
    ensure!(output.status.success(), "no streams: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// What is varied: one busy case, or, for short events, all cases, because no one of them has enough of those.
pub(super) fn source(bytes: usize) -> PathBuf {
    let cases = crate::repository().join("tests/fixtures/runner-streams");
    if bytes == 500 { cases } else { cases.join("ten-hosts/worker.bin") }
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok())
}
