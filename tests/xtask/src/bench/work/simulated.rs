//! Ten thousand units on ten agents of this process, none of which ever starts: what the agent itself costs.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use plexus_proto::id::{Attempt, OwnerEpoch, UnitId};
use plexus_proto::work::{CancelRequest, ForgetRequest, Outcome, SubmitRequest, UnitSpec, UnitStatusState};
use plexus_tests::runtime_root;
use tokio::task::JoinSet;

use super::super::machine::private_mb;
use super::Measured;
use super::agent::{self, Agent};

/// Agents, units of each, and how many of these are asked for at a time.
const AGENTS: usize = 10;
const UNITS: usize = 1000;
const BESIDE: usize = 100;

/// What was seen.
pub(super) struct Simulated {
    unit_kb: f64,
    submit_s: f64,
    burst_s: f64,
}

impl Simulated {
    pub(super) fn row(&self, name: &str) -> Measured {
        let value = if name == "sim_units_kb" { self.unit_kb } else { self.burst_s };
        Measured {
            value,
            samples: vec![value],
            baseline: Vec::new(),
            conditions: format!(
                "{} units on {AGENTS} agents in one process, accepted in {:.1} s and never started; further private memory for each, 10^3 \
                 bytes; all canceled at once until each is told, buried and forgotten, none lost",
                AGENTS * UNITS,
                self.submit_s
            ),
        }
    }
}

/// One agent and its units.
struct Units {
    agent: Agent,
    units: Vec<Attempt>,
}

#[derive(Debug, Clone, Copy)]
enum Verb {
    Submit,
    Cancel,
    Forget,
}

/// Measures both.
pub(super) async fn measure() -> anyhow::Result<Simulated> {
    let data = tempfile::Builder::new().prefix("plexus-bench-").tempdir().context("no folder")?;
    let runtime = tempfile::Builder::new()
        .prefix("plexus-bench-")
        .tempdir_in(runtime_root())
        .context("no folder on tmpfs")?;
    let mut agents = Vec::new();
    for number in 0..AGENTS {
        let agent = agent::start(&format!("node-{number}"), data.path(), runtime.path(), "true").await?;
        let units = (0..UNITS).map(|_| Attempt { unit: UnitId(uuid::Uuid::now_v7()), number: 1 }).collect();
        agents.push(Arc::new(Units { agent, units }));
    }
    let before = memory()?;
    let began = Instant::now();
    all(&agents, Verb::Submit).await?;
    let submit_s = began.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "ten thousand")]
    let unit_kb = (memory()? - before) * 1e3 / (AGENTS * UNITS) as f64;
    let began = Instant::now();
    all(&agents, Verb::Cancel).await?;
    all(&agents, Verb::Forget).await?;
    let burst_s = began.elapsed().as_secs_f64();
    for Units { agent, .. } in agents.iter().map(AsRef::as_ref) {
        let left = agent.supervisor.list(&agent.caller).units.len();
        ensure!(left == 0, "{left} units are left");
        agent.supervisor.shutdown().await;
    }
    Ok(Simulated { unit_kb, submit_s, burst_s })
}

/// Says one verb to every unit, some at a time at each agent.
async fn all(agents: &[Arc<Units>], verb: Verb) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for agent in agents {
        for part in 0..BESIDE {
            let agent = Arc::clone(agent);
            tasks.spawn(async move {
                for &attempt in agent.units.iter().skip(part).step_by(BESIDE) {
                    say(&agent.agent, attempt, verb).await?;
                }
                anyhow::Ok(())
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.context("a task is lost")??;
    }
    Ok(())
}

async fn say(agent: &Agent, attempt: Attempt, verb: Verb) -> anyhow::Result<()> {
    let (unit, epoch) = (Some(attempt.into()), Some(OwnerEpoch { incarnation: 1, counter: 1 }.into()));
    let (supervisor, caller) = (&agent.supervisor, &agent.caller);
    let reply = match verb {
        Verb::Submit => {
            let store_id = supervisor.store_id().0.as_bytes().to_vec().into();
            let spec = Some(UnitSpec { label: "bench".to_owned(), ..UnitSpec::default() });
            supervisor.submit(caller, SubmitRequest { unit, epoch, store_id, spec }).await
        }
        Verb::Cancel => supervisor.cancel(caller, CancelRequest { unit, epoch }).await,
        Verb::Forget => supervisor.forget(caller, ForgetRequest { unit, epoch }).await,
    };
    let status = agent::status(reply)?;
    if let (Verb::Cancel, Some(UnitStatusState::Finished(finished))) = (verb, &status.state) {
        ensure!(finished.outcome() == Outcome::Canceled, "unit {attempt} ended {finished:?}");
    }
    Ok(())
}

fn memory() -> anyhow::Result<f64> {
    private_mb(std::process::id()).context("no memory to read")
}
