//! A job that stops in the middle until it is let go on: a captured stream of the real worker, printed by a script.
//!
//! What such a job stores is known to the byte, whatever is killed or cut while it waits at its gate.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::api::Api;
use crate::cluster::{Builder, Cluster};
use crate::samples::{JobOptions, Samples};
use crate::wait::{Seen, wait_for};

/// Longest life of one such job once its gate is open.
const JOB: Duration = Duration::from_secs(60);

/// A cluster whose execution node replays a captured stream for every job.
#[derive(Debug)]
pub struct Replay {
    /// The cluster.
    pub cluster: Cluster,
    /// Job template whose jobs replay the stream.
    pub template: i64,
    gate: Gate,
    before_gate: u64,
}

/// The file at which jobs wait until it exists.
#[derive(Debug)]
struct Gate(PathBuf);

impl Replay {
    /// Starts a cluster that replays the captured case up to `lines` lines, then waits for its gate to be opened.
    ///
    /// The first two lines of a stream are statuses, so `lines - 2` events come before the gate.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(name: &str, case: &str, lines: u64) -> anyhow::Result<Self> {
        Self::with(name, case, lines, |builder| builder)?.begin().await
    }

    /// The same with the controller on a PostgreSQL database, by its address.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start_on(database: String, name: &str, case: &str, lines: u64) -> anyhow::Result<Self> {
        Self::with(name, case, lines, |builder| builder.database(database))?.begin().await
    }

    /// The same with a data folder of so many MiB for the controller.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start_on_small_disk(
        mebibytes: u32,
        name: &str,
        case: &str,
        lines: u64,
    ) -> anyhow::Result<Self> {
        Self::with(name, case, lines, |builder| builder.small_disk(mebibytes))?.begin().await
    }

    /// The same with a stream of any origin, and a node that lets output of a unit take so many MiB.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start_with_spool_quota(
        mebibytes: u32,
        name: &str,
        stream: &Path,
        lines: u64,
    ) -> anyhow::Result<Self> {
        Self::of_stream(name, stream, lines, |builder| builder.spool_quota(mebibytes))?.begin().await
    }

    /// A cluster whose jobs run this command instead, which nothing holds at a gate.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start_command(name: &str, command: Vec<String>) -> anyhow::Result<Self> {
        let cluster = Cluster::builder(name).process(command).prepare()?;
        let gate = std::env::temp_dir().join(format!("plexus-gate-{}-{name}", std::process::id()));
        Self { cluster, template: 0, gate: Gate(gate), before_gate: 0 }.begin().await
    }

    async fn begin(mut self) -> anyhow::Result<Self> {
        self.bring_up().await?;
        self.load().await?;
        self.cluster.node_ready().await?;
        Ok(self)
    }

    /// The same without an execution node: its process is not started.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start_without_node(name: &str, case: &str, lines: u64) -> anyhow::Result<Self> {
        let mut replay = Self::with(name, case, lines, Builder::without_node)?;
        replay.cluster.hop.start()?;
        replay.cluster.controller.start()?;
        replay.cluster.api_up().await?;
        replay.load().await?;
        Ok(replay)
    }

    fn with(
        name: &str,
        case: &str,
        lines: u64,
        change: impl FnOnce(Builder) -> Builder,
    ) -> anyhow::Result<Self> {
        let streams = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/runner-streams");
        Self::of_stream(name, &streams.join(case).join("worker.bin"), lines, change)
    }

    fn of_stream(
        name: &str,
        stream: &Path,
        lines: u64,
        change: impl FnOnce(Builder) -> Builder,
    ) -> anyhow::Result<Self> {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        ensure!(stream.is_file(), "no such captured stream: {}", stream.display());
        // The gate lies where no cluster can know it before it is made: beside the port locks, named by process and case.
        let gate = std::env::temp_dir().join(format!("plexus-gate-{}-{name}", std::process::id()));
        let gate = Gate(gate);
        fs::remove_file(&gate.0).ok();
        fs::remove_file(gate.starts()).ok();
        let text = |path: &Path| path.display().to_string();
        // The last argument only names the cluster's folder, so that a script of a failed test is found and ended.
        let command = vec![
            text(&fixtures.join("replay.sh")),
            text(stream),
            lines.to_string(),
            text(&gate.0),
            "{dir}".to_owned(),
        ];
        let cluster = change(Cluster::builder(name).process(command)).prepare()?;
        Ok(Self { cluster, template: 0, gate, before_gate: lines - 2 })
    }

    async fn bring_up(&mut self) -> anyhow::Result<()> {
        self.cluster.hop.start()?;
        self.cluster.controller.start()?;
        self.cluster.node.start()?;
        self.cluster.api_up().await
    }

    async fn load(&mut self) -> anyhow::Result<()> {
        // The image is never started: the process runtime ignores it.
        let samples = Samples::new("localhost/plexus-ee:demo")?;
        samples.copy_project(&self.cluster.layout.projects())?;
        let api = self.cluster.api();
        let loaded = samples.load(api).await?;
        let body = json!({"name": "two hosts", "organization": loaded.organization});
        let inventory =
            api.create("inventories/", &body).await?["id"].as_i64().context("inventory has no id")?;
        self.template =
            samples.template(api, loaded, "replay", "webapp.yml", inventory, &JobOptions::default()).await?;
        Ok(())
    }

    /// The API as the administrator.
    pub fn api(&self) -> &Api {
        self.cluster.api()
    }

    /// Lets jobs go on to their end.
    ///
    /// # Errors
    /// When the gate's file cannot be made.
    pub fn open_gate(&self) -> anyhow::Result<()> {
        fs::write(&self.gate.0, "").context("cannot open the gate")
    }

    /// Makes jobs wait again.
    pub fn close_gate(&self) {
        fs::remove_file(&self.gate.0).ok();
    }

    /// Unit and attempt of every start so far, as the jobs themselves noted it.
    pub fn starts(&self) -> Vec<String> {
        let noted = fs::read_to_string(self.gate.starts()).unwrap_or_default();
        noted.lines().map(str::to_owned).collect()
    }

    /// Launches a job.
    ///
    /// # Errors
    /// When the launch is refused.
    pub async fn launch(&self) -> anyhow::Result<i64> {
        self.api().launch(self.template, &json!({})).await?["id"].as_i64().context("job has no id")
    }

    /// Waits until every event before the gate is stored: the job now stands still in the middle.
    ///
    /// # Errors
    /// When they do not come.
    pub async fn at_gate(&self, job: i64) -> anyhow::Result<()> {
        self.before_gate(job).await
    }

    /// The same, borrowing nothing: the controller may be watched or killed meanwhile.
    pub fn before_gate(&self, job: i64) -> impl Future<Output = anyhow::Result<()>> + use<> {
        let (api, wanted) = (self.api().clone(), self.before_gate);
        async move {
            wait_for("the events before the gate", JOB, async || match api.event_count(job).await {
                Ok(count) => Seen::when(count >= wanted, || format!("{count} of {wanted} events")),
                Err(error) => Seen::NotYet(format!("{error:#}")),
            })
            .await
        }
    }

    /// Runs a job with nothing in its way and gives what it stored.
    ///
    /// # Errors
    /// When it does not end successfully.
    pub async fn undisturbed(&self) -> anyhow::Result<Vec<Value>> {
        self.open_gate()?;
        let job = self.launch().await?;
        let events = self.successful(job).await?;
        self.close_gate();
        Ok(events)
    }

    /// Ends the cluster in order and checks that nothing is left behind.
    ///
    /// # Errors
    /// When something is.
    pub async fn finish(self) -> anyhow::Result<()> {
        self.open_gate()?;
        let Self { cluster, gate, .. } = self;
        let result = cluster.finish().await;
        drop(gate);
        result
    }

    /// Waits for a job's successful end and gives its events, checked to be numbered 1, 2, 3, … without a gap.
    ///
    /// # Errors
    /// When it ends otherwise, or its events are not dense.
    pub async fn successful(&self, job: i64) -> anyhow::Result<Vec<Value>> {
        let done = self.api().finished(job, JOB).await?;
        ensure!(
            done["status"] == "successful",
            "job {job} ended {}: {}",
            done["status"],
            done["job_explanation"]
        );
        let events = self.api().events(job).await?;
        for (number, event) in (1_u64..).zip(&events) {
            ensure!(
                event["counter"] == json!(number),
                "event {number} of job {job} has counter {}",
                event["counter"]
            );
        }
        Ok(events.iter().map(essence).collect())
    }
}

impl Gate {
    /// Where jobs note that they started.
    fn starts(&self) -> PathBuf {
        self.0.with_extension("starts")
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
        fs::remove_file(self.starts()).ok();
    }
}

/// What of an event is the same in every job that replays the same stream.
pub fn essence(event: &Value) -> Value {
    let fields = [
        "counter",
        "event",
        "uuid",
        "parent_uuid",
        "stdout",
        "start_line",
        "end_line",
        "host_name",
        "task",
        "play",
        "role",
        "playbook",
        "failed",
        "changed",
        "verbosity",
        "event_data",
    ];
    fields
        .iter()
        .map(|&field| (field.to_owned(), event[field].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
