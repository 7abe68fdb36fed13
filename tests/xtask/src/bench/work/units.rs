//! `/bin/true` as a unit: what an agent takes from its acceptance to its durable end, and what a whole job of it takes.

use std::collections::VecDeque;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use plexus_node::supervisor::View;
use plexus_proto::id::{Attempt, OwnerEpoch, UnitId};
use plexus_proto::work::{
    ForgetRequest, Outcome, PrivateBlock, Refusal, SubmitRequest, UnitSpec, UnitStatusState,
};
use plexus_tests::{Cluster, Seen, runtime_root, wait_for};
use serde_json::json;
use tokio::task::LocalSet;

use super::super::first::{self, Turn};
use super::super::median;
use super::agent::{self, Agent};
use super::{Measured, UNIT};

/// Units of one round, rounds, and how many run side by side.
const UNITS: usize = 200;
const ROUNDS: usize = 7;
const BESIDE: usize = 16;
/// Cores that the node says it has, so that capacity is not what is measured.
const CORES: u16 = 64;
/// A unit is told of under this epoch.
const EPOCH: OwnerEpoch = OwnerEpoch { incarnation: 1, counter: 1 };

/// Units on an agent of this process, each in a shim as any other: submitted, given its private block, run, and its end stored and
/// told. Acknowledging and forgetting them comes after the clock. Beside it a bare spawn loop, and what jobs through the API take.
pub(super) async fn ratio() -> anyhow::Result<Measured> {
    let data = tempfile::Builder::new().prefix("plexus-bench-").tempdir().context("no folder")?;
    let runtime = tempfile::Builder::new()
        .prefix("plexus-bench-")
        .tempdir_in(runtime_root())
        .context("no folder on tmpfs")?;
    let agent = agent::start("node-0", data.path(), runtime.path(), "/bin/true").await?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (mut one, mut other) = (0.0, 0.0);
        for turn in first::abba(round) {
            match turn {
                Turn::Ours => one = on_agent(&agent).await?,
                Turn::Other => {
                    let began = Instant::now();
                    tokio::task::spawn_blocking(spawn_loop).await.context("the spawn loop is lost")??;
                    other = per_second(began);
                }
            }
        }
        // The first round warms caches.
        if round > 0 {
            ours.push(one);
            bare.push(other);
        }
    }
    agent.supervisor.shutdown().await;
    let jobs = as_jobs().await?;
    Ok(Measured {
        value: median(&ours) / median(&bare),
        conditions: format!(
            "samples in units/s; {UNITS} units a round on one agent, {BESIDE} side by side, from submit to the end that is on disk, \
             each in its shim, spool and outcome synced; value is the ratio of the medians; baseline: a spawn loop of /bin/true in \
             {BESIDE} threads; as jobs, from POST to the end that the API shows, one hop: {jobs:.0} a second"
        ),
        samples: ours,
        baseline: bare,
    })
}

/// A round; units a second.
async fn on_agent(agent: &Agent) -> anyhow::Result<f64> {
    let attempts: Vec<_> = (0..UNITS.div_ceil(BESIDE) * BESIDE)
        .map(|_| Attempt { unit: UnitId(uuid::Uuid::now_v7()), number: 1 })
        .collect();
    let began = Instant::now();
    let runs = attempts.chunks(UNITS.div_ceil(BESIDE)).map(|part| {
        let (agent, part) = (agent.clone(), part.to_vec());
        tokio::spawn(async move {
            for attempt in part {
                run(&agent, attempt).await?;
            }
            anyhow::Ok(())
        })
    });
    for task in runs.collect::<Vec<_>>() {
        task.await.context("a task is lost")??;
    }
    let rate = per_second(began);
    for attempt in attempts {
        forget(agent, attempt).await?;
    }
    Ok(rate)
}

async fn run(agent: &Agent, attempt: Attempt) -> anyhow::Result<()> {
    let (supervisor, caller) = (&agent.supervisor, &agent.caller);
    let request = SubmitRequest {
        unit: Some(attempt.into()),
        epoch: Some(EPOCH.into()),
        store_id: supervisor.store_id().0.as_bytes().to_vec().into(),
        spec: Some(UnitSpec { label: "bench".to_owned(), grace_seconds: 5, ..UnitSpec::default() }),
    };
    agent::status(supervisor.submit(caller, request).await)?;
    let opened = supervisor.open_payload(caller, attempt, EPOCH).await.map_err(refused)?;
    let ticket = opened.wanted.context("the unit wants no payload")?.ticket;
    let block = PrivateBlock { spool_key: vec![7; 32].into(), spool_key_id: 1, ..PrivateBlock::default() };
    supervisor.start_unit(attempt, ticket, block, None).await.map_err(refused)?;
    let mut unit = supervisor.watch(attempt).map_err(refused)?;
    let view = unit.wait_for(View::is_finished).await.context("the unit's task ended")?;
    match &view.status.state {
        Some(UnitStatusState::Finished(end)) if end.outcome() == Outcome::Succeeded => Ok(()),
        other => bail!("the unit ended {other:?}"),
    }
}

async fn forget(agent: &Agent, attempt: Attempt) -> anyhow::Result<()> {
    let (supervisor, caller) = (&agent.supervisor, &agent.caller);
    let attached = supervisor.attach(caller, attempt, EPOCH, 1).await.map_err(refused)?;
    supervisor.ack(attempt, attached.id, EPOCH, attached.status.records).await;
    let request = ForgetRequest { unit: Some(attempt.into()), epoch: Some(EPOCH.into()) };
    agent::status(supervisor.forget(caller, request).await).map(drop)
}

fn refused(refusal: Refusal) -> anyhow::Error {
    anyhow::anyhow!("refused: {}", refusal.message)
}

/// Jobs a second, from the API's POST until the API shows the end.
async fn as_jobs() -> anyhow::Result<f64> {
    let cluster =
        Cluster::builder("bench-true").process(vec!["/bin/true".into()]).cores(CORES).start().await?;
    let template = first::probe_template(&cluster, "two-hosts.ini").await?;
    let api = cluster.api();
    api.change(&format!("job_templates/{template}/"), &json!({"allow_simultaneous": true})).await?;
    let group = api.get("instance_groups/?name=default").await?["results"][0]["id"].clone();
    api.change(&format!("instance_groups/{group}/"), &json!({"max_concurrent_jobs": BESIDE})).await?;
    let mut rates = Vec::new();
    // The first round warms caches and sessions.
    for _ in 0..3 {
        let began = Instant::now();
        jobs(&cluster, template).await?;
        rates.push(per_second(began));
    }
    cluster.finish().await?;
    Ok(median(&rates[1..]))
}

/// Runs the jobs of a round, [`BESIDE`] of them at any time: that is as many as their group allows. One client waits for the
/// last, for many that look again and again would be most of what is measured.
async fn jobs(cluster: &Cluster, template: i64) -> anyhow::Result<()> {
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
