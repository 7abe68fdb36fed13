//! Launches that last, and how long a job waits on an idle system.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use plexus_tests::{Binaries, Cluster};
use serde_json::{Value, json};

use super::Measured;
use super::http::Client;
use crate::bench::first;
use crate::bench::median;
use crate::bench::mesh::quantile;

const CLIENTS: usize = 16;
const ROUND: Duration = Duration::from_secs(8);
/// Jobs whose wait is measured, after some that warm caches and sessions.
const JOBS: usize = 40;
const WARM: usize = 5;
const JOB: Duration = Duration::from_secs(60);
/// What the controller says, in its log, of a job that goes to its node.
const SAID: &str = "unit goes to its node";

/// What was seen of the launches.
pub(super) struct Launches {
    per_second: f64,
    ms: Vec<f64>,
    stored: usize,
}

impl Launches {
    pub(super) fn row(&self, name: &str) -> Measured {
        let conditions = format!(
            "{CLIENTS} clients for {} s, node cordoned, SQLite with full sync; all {} that were answered are there after kill -9; \
             p50 {:.1} ms",
            ROUND.as_secs(),
            self.stored,
            median(&self.ms)
        );
        let samples: Vec<f64> =
            self.ms.iter().copied().step_by(self.ms.len().div_ceil(1000).max(1)).collect();
        let value = if name == "launch_s" { self.per_second } else { quantile(&self.ms, 0.99) };
        Measured { value, samples, conditions }
    }
}

/// Launches as fast as they are answered, kills the controller in the middle, and looks for each job that was answered.
pub(super) async fn measure() -> anyhow::Result<Launches> {
    let stream = crate::repository().join("tests/fixtures/runner-streams/ok-2-hosts/worker.bin");
    let command = vec!["cat".to_owned(), stream.display().to_string()];
    let mut cluster = Cluster::builder("bench-launch").direct().process(command).start().await?;
    let template = first::probe_template(&cluster, "two-hosts.ini").await?;
    let api = cluster.api().clone();
    let body = json!({"allow_simultaneous": true});
    api.change(&format!("job_templates/{template}/"), &body).await?;
    let nodes = api.get("instances/?hostname=node-1").await?;
    let node = nodes["results"][0]["id"].as_i64().context("no node")?;
    api.change(&format!("instances/{node}/"), &json!({"enabled": false})).await?;
    let token = api.create("tokens/", &json!({"scope": "write"})).await?;
    let token = token["token"].as_str().context("no token")?.to_owned();
    let port = cluster.layout.http_port;
    let mut clients = tokio::task::JoinSet::new();
    let began = Instant::now();
    for _ in 0..CLIENTS {
        let mut client = Client::connect(port, &token).await?;
        clients.spawn(async move {
            let path = format!("/api/v2/job_templates/{template}/launch/");
            let (mut jobs, mut ms) = (Vec::new(), Vec::new());
            while began.elapsed() < ROUND {
                let answer = client.post(&path, "{}").await?;
                ms.push(answer.ms());
                let job = answer.expect(201)?["id"].as_i64().context("a job without id")?;
                jobs.push(job);
            }
            anyhow::Ok((jobs, ms))
        });
    }
    let (mut jobs, mut ms) = (BTreeSet::new(), Vec::new());
    while let Some(done) = clients.join_next().await {
        let (own, took) = done.context("a client panicked")??;
        jobs.extend(own);
        ms.extend(took);
    }
    #[expect(clippy::cast_precision_loss, reason = "launches of some seconds")]
    let per_second = jobs.len() as f64 / began.elapsed().as_secs_f64();
    ensure!(jobs.len() == ms.len(), "{} answers name {} jobs", ms.len(), jobs.len());
    cluster.restart_controller().await?;
    let mut client = Client::connect(port, &token).await?;
    let mut stored = BTreeSet::new();
    let mut path = "/api/v2/jobs/?page_size=200&cursor=".to_owned();
    loop {
        let page: Value = client.get(&path).await?.expect(200)?;
        stored.extend(page["results"].as_array().into_iter().flatten().filter_map(|job| job["id"].as_i64()));
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut path),
            None => break,
        }
    }
    let lost: Vec<_> = jobs.difference(&stored).take(5).collect();
    ensure!(lost.is_empty(), "jobs that were answered are gone: {lost:?} …");
    // Thousands wait; nobody runs them.
    cluster.node.stop().await?;
    cluster.finish().await?;
    Ok(Launches { per_second, ms, stored: jobs.len() })
}

/// Milliseconds from a job's birth to the moment that the controller speaks to its node, one job at a time.
pub(super) async fn dispatch() -> anyhow::Result<Measured> {
    let binaries = Binaries::of_this_build()?;
    let scratch = tempfile::Builder::new().prefix("plexus-bench-").tempdir().context("no scratch folder")?;
    let text = |path: &Path| path.display().to_string();
    let stream = crate::repository().join("tests/fixtures/runner-streams/ok-2-hosts/worker.bin");
    let out = scratch.path().join("began");
    let command = vec![text(&binaries.xtask()), "probe".into(), text(&out), text(&stream), "{dir}".into()];
    let mut cluster = Cluster::builder("bench-dispatch").direct().process(command).prepare()?;
    let config = cluster.layout.config("controller");
    let lines = fs::read_to_string(&config).context("no configuration")?
        + "\n[log]\nlevel = \"info,plexus_controller::reconcile::job=debug\"\n";
    fs::write(&config, lines).context("cannot write the configuration")?;
    cluster.controller.start()?;
    cluster.node.start()?;
    cluster.api_up().await?;
    cluster.node_ready().await?;
    let template = first::probe_template(&cluster, "two-hosts.ini").await?;
    for _ in 0..WARM + JOBS {
        let job = first::launch(cluster.api(), template).await?;
        cluster.api().finished(job, JOB).await?;
    }
    let samples: Vec<f64> = cluster
        .controller
        .log()
        .lines()
        .filter(|line| line.contains(SAID))
        .filter_map(|line| line.split("waited_ms=").nth(1)?.split_whitespace().next()?.parse().ok())
        .skip(WARM)
        .collect();
    ensure!(samples.len() == JOBS, "the log tells of {} jobs of {JOBS}", samples.len());
    cluster.finish().await?;
    Ok(Measured {
        value: median(&samples),
        samples,
        conditions: "from the time in the job's row, before it is stored, to the submission of its unit; one job at a time"
            .to_owned(),
    })
}
