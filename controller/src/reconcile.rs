//! Closes the gap between jobs as wanted and jobs as they are.
//!
//! One task reads every job that is not over, places what waits, and keeps one driver ([`job`]) for each placed unit.
//! It wakes on a launch or cancel, when a node appears or goes, when a driver ends, and every few seconds. It takes no
//! input that a restart would lose: everything it needs lies in the database, and each step is committed before it
//! is acted on. Whatever this controller was doing when it was killed, the next one goes on with.

mod imports;
pub mod job;
mod load;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use plexus_mesh::Mesh;
use plexus_proto::id::{Attempt, NodeId, UnitId};
use plexus_tree::Store;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use crate::fleet::{Nodes, Refusals};
use crate::ingest::Ingest;
use crate::kind::Kind;
use crate::outcome;
use crate::payload::tree::Trees;
use crate::schedule::{Candidate, Fleet, Group, Placed, Wait};
use crate::store::core::{Committed, CoreDb, Error};
use crate::store::dependencies::{self, Unmet, Verdict};
use crate::store::events::EventStore;
use crate::store::groups;
use crate::store::instances::{self, Decided};
use crate::store::units::{self, ActiveJob, Placement, Unit, UnitState};
use crate::vault::Vault;

/// Longest time without a look, should a wake-up ever be missed.
const PERIOD: Duration = Duration::from_secs(5);

/// A look that takes longer than this is followed by a rest, three times as long and no longer than [`LONGEST_REST`].
const LONG_LOOK: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_millis(300);

/// Jobs that are told in one look why they wait; the others, behind them, at the next.
const MAX_TOLD: usize = 500;

/// What every driver needs. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// Rows.
    pub core: CoreDb,
    /// Events.
    pub events: EventStore,
    /// The way in there.
    pub ingest: Ingest,
    /// Keys.
    pub vault: Vault,
    /// Streams to nodes.
    pub mesh: Mesh,
    /// Live nodes.
    pub nodes: watch::Receiver<Arc<Nodes>>,
    /// Where it is told what they refused.
    pub refusals: Refusals,
    /// Where manual projects lie.
    pub projects: PathBuf,
    /// Trees of manual projects as they were read last.
    pub trees: Arc<Trees>,
    /// Where jobs are attended to, and so their records opened, parsed and packed.
    pub records: Handle,
    /// Trees that updates of projects brought.
    pub store: Arc<Store>,
}

/// The latest time somebody asked to end a job; drivers signal again on each change.
type CancelSignal = Option<Timestamp>;

struct Driver {
    cancel: watch::Sender<CancelSignal>,
    task: tokio::task::AbortHandle,
}

/// Jobs that have just got their units, and the transaction that says so.
struct Fresh {
    jobs: Vec<ActiveJob>,
    committed: Committed,
}

/// What the database knows that decides where jobs go.
struct Known {
    /// Hosts of each inventory.
    hosts: BTreeMap<i64, usize>,
    /// Instance groups, and the one of jobs that name none.
    groups: (BTreeMap<i64, Group>, Option<i64>),
    lists: groups::Lists,
    decided: BTreeMap<NodeId, Decided>,
}

impl Known {
    async fn read(core: &CoreDb, waiting: &[ActiveJob], placed: &[ActiveJob]) -> Result<Self, Error> {
        let jobs = waiting.iter().chain(placed);
        let inventories: HashSet<i64> = jobs.filter_map(|job| job.inventory).collect();
        let inventories: Vec<i64> = inventories.into_iter().collect();
        let (hosts, groups, lists, decided) = tokio::try_join!(
            units::host_counts(core, &inventories),
            groups::all(core),
            groups::Lists::read(core),
            instances::decided(core),
        )?;
        Ok(Self { hosts, groups, lists, decided })
    }
}

struct Reconciler {
    context: Context,
    drivers: HashMap<i64, Driver>,
    running: JoinSet<i64>,
    forgetting: JoinSet<Attempt>,
    being_forgotten: HashSet<Attempt>,
    shutdown: CancellationToken,
}

/// Starts the task; it ends with `shutdown`, leaving units to run on without it.
pub fn spawn(context: Context, shutdown: CancellationToken) -> tokio::task::JoinHandle<()> {
    let reconciler = Reconciler {
        context,
        drivers: HashMap::new(),
        running: JoinSet::new(),
        forgetting: JoinSet::new(),
        being_forgotten: HashSet::new(),
        shutdown,
    };
    tokio::spawn(reconciler.run())
}

impl Reconciler {
    async fn run(mut self) {
        let mut changed = self.context.core.changed();
        let mut nodes = self.context.nodes.clone();
        loop {
            changed.mark_unchanged();
            nodes.mark_unchanged();
            let began = Instant::now();
            if let Err(error) = self.reconcile().await {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot look after jobs");
            }
            // With thousands of jobs waiting, each of many launches a second would make it look at all of them.
            let took = began.elapsed();
            if took > LONG_LOOK {
                tokio::select! {
                    () = tokio::time::sleep((3 * took).min(LONGEST_REST)) => {}
                    () = self.shutdown.cancelled() => break,
                }
            }
            tokio::select! {
                alive = changed.changed() => if alive.is_err() { break },
                alive = nodes.changed() => if alive.is_err() { break },
                Some(done) = self.running.join_next() => self.driver_ended(done),
                Some(done) = self.forgetting.join_next() => if let Ok(attempt) = done {
                    self.being_forgotten.remove(&attempt);
                },
                () = tokio::time::sleep(PERIOD) => {}
                () = self.shutdown.cancelled() => break,
            }
        }
        self.running.shutdown().await;
        self.forgetting.shutdown().await;
    }

    fn driver_ended(&mut self, done: Result<i64, tokio::task::JoinError>) {
        match done {
            Ok(job) => drop(self.drivers.remove(&job)),
            // An operator gave its unit up; a driver may be dropped at any await.
            Err(error) if error.is_cancelled() => self.drivers.retain(|_, driver| !driver.cancel.is_closed()),
            Err(error) => {
                // A driver that panicked is a bug; its job is taken up again at the next look.
                tracing::error!(%error, "driver of a job ended badly");
                self.drivers.retain(|_, driver| !driver.cancel.is_closed());
            }
        }
    }

    async fn reconcile(&mut self) -> Result<(), Error> {
        let jobs = units::active_jobs(&self.context.core).await?;
        let mut waiting = Vec::new();
        let mut placed = Vec::new();
        for job in jobs {
            match (&job.unit, job.cancel_requested_at) {
                (Some(_), _) => placed.push(job),
                (None, Some(_)) => self.cancel_unplaced(&job).await?,
                (None, None) => waiting.push(job),
            }
        }
        let fresh = match waiting.is_empty() {
            true => None,
            false => self.begin(waiting, &placed).await?,
        };
        let (_, settled) = watch::channel(true);
        placed.into_iter().for_each(|job| self.drive(job, &settled));
        if let Some(Fresh { jobs, committed }) = fresh {
            // Drivers read while the disk syncs, and act after it.
            let (on_disk, settled) = watch::channel(false);
            jobs.into_iter().for_each(|job| self.drive(job, &settled));
            committed.settle().await?;
            on_disk.send_replace(true);
        }
        self.forget().await
    }

    async fn cancel_unplaced(&self, job: &ActiveJob) -> Result<(), Error> {
        units::finish(&self.context.core, job.id, &outcome::without_unit("canceled", "")).await
    }

    /// Places those of the waiting jobs that may begin; what that takes is read at once.
    async fn begin(&self, waiting: Vec<ActiveJob>, placed: &[ActiveJob]) -> Result<Option<Fresh>, Error> {
        let core = &self.context.core;
        let (unmet, known) =
            tokio::try_join!(dependencies::unmet(core), Known::read(core, &waiting, placed))?;
        let waiting = self.without_failed(waiting, &unmet).await?;
        self.place(&waiting, placed, known).await
    }

    /// Ends jobs whose dependencies did not succeed; gives the others.
    async fn without_failed(
        &self,
        waiting: Vec<ActiveJob>,
        unmet: &BTreeMap<i64, Vec<Unmet>>,
    ) -> Result<Vec<ActiveJob>, Error> {
        let core = &self.context.core;
        let mut left = Vec::with_capacity(waiting.len());
        for mut job in waiting {
            let needs = unmet.get(&job.id).map(Vec::as_slice).unwrap_or_default();
            match dependencies::verdict(needs) {
                Verdict::Ready => left.push(job),
                Verdict::Wait(needs) => {
                    job.needs = Some(needs);
                    left.push(job);
                }
                Verdict::End { status, explanation } => {
                    units::finish(core, job.id, &outcome::without_unit(status, explanation)).await?;
                }
            }
        }
        Ok(left)
    }

    /// Places what waits, oldest first, and stores all placements in one transaction.
    async fn place(
        &self,
        waiting: &[ActiveJob],
        placed: &[ActiveJob],
        known: Known,
    ) -> Result<Option<Fresh>, Error> {
        let core = &self.context.core;
        let Known { hosts, groups: (groups, default), lists, decided } = known;
        let impact = |job: &ActiveJob| job.impact(&hosts);
        let live = self.context.nodes.borrow().clone();
        let mut fleet = Fleet::new(candidates(&live, &decided), groups);
        // The first job of each template that is not over: those that may not run beside it wait for its end.
        let mut first: HashMap<i64, i64> = HashMap::new();
        for job in placed {
            if let Some(unit) = &job.unit {
                fleet.occupy(&unit.node, job.group, impact(job));
            }
            if let Some(template) = job.template {
                first.entry(template).or_insert(job.id);
            }
        }
        // Nothing begins on an inventory that is just being changed, or will be: it would see a half, or what is too old.
        let changing: HashMap<i64, i64> = waiting
            .iter()
            .chain(placed)
            .filter(|job| job.kind == Kind::InventoryUpdate)
            .filter_map(|job| Some((job.inventory?, job.id)))
            .collect();
        let mut placements = Vec::new();
        let mut told = Vec::new();
        for job in waiting {
            let before = job.template.map(|template| *first.entry(template).or_insert(job.id));
            let beside = job.simultaneous && !job.kind.places().alone;
            let behind = before.filter(|before| *before != job.id && !beside);
            let wanted = lists.wanted(Some(job.id), job.template, job.inventory, job.organization);
            let update = job.inventory.and_then(|inventory| changing.get(&inventory));
            let update = update.filter(|_| job.kind != Kind::InventoryUpdate);
            if self.drivers.contains_key(&job.id) {
                continue; // it has just been given back; the end of its driver is another look
            }
            let found = match (&job.needs, behind, update) {
                (Some(needs), ..) => Err(Wait::Needs(needs.clone())),
                (None, Some(before), _) => Err(Wait::Behind(before)),
                (None, None, Some(update)) => Err(Wait::Changing(*update)),
                (None, None, None) => fleet.place(impact(job), &wanted.groups(default)),
            };
            match found {
                Ok(Placed { node, group }) => {
                    let store = live.get(&node).and_then(|live| live.info.as_ref()).map(|info| info.store);
                    let Some(store) = store else { continue };
                    let attempt = Attempt { unit: UnitId(Uuid::now_v7()), number: 1 };
                    placements.push(Placement { job: job.id, attempt, node, group: Some(group), store });
                }
                Err(wait) => {
                    let words = wait.to_string();
                    if job.explanation != words && told.len() < MAX_TOLD {
                        told.push((job.id, words));
                    }
                }
            }
        }
        units::explain_all(core, &told).await?;
        if placements.is_empty() {
            return Ok(None);
        }
        let me = &self.context.mesh.identity().node;
        let (stored, epoch, committed) = units::place(core, &placements, me).await?;
        let unit = |job: &ActiveJob| {
            let placement = placements.iter().find(|placement| placement.job == job.id)?;
            Some(Unit {
                attempt: placement.attempt,
                job: job.id,
                node: placement.node.clone(),
                store: placement.store,
                state: UnitState::Placed,
                epoch: Some(epoch),
            })
        };
        let fresh = waiting.iter().filter(|job| stored.contains(&job.id));
        let jobs = fresh.map(|job| ActiveJob { unit: unit(job), ..job.clone() }).collect();
        Ok(Some(Fresh { jobs, committed }))
    }

    /// Gives a job its driver, which waits for its placement to be settled before it acts.
    fn drive(&mut self, job: ActiveJob, settled: &watch::Receiver<bool>) {
        let signal = job.cancel_requested_at;
        if let Some(driver) = self.drivers.get(&job.id) {
            driver.cancel.send_if_modified(|known| std::mem::replace(known, signal) != signal);
            return;
        }
        let Some(unit) = job.unit else { return };
        let (cancel, signals) = watch::channel(signal);
        let context = self.context.clone();
        let span = tracing::info_span!("job", id = job.id, unit = %unit.attempt, node = %unit.node);
        let (id, settled) = (job.id, settled.clone());
        let work = async move {
            job::drive(context, unit, job.kind, job.created, signals, settled).await;
            id
        };
        let task = self.running.spawn_on(work.instrument(span), &self.context.records);
        self.drivers.insert(id, Driver { cancel, task });
    }

    /// Tells nodes to drop what they still hold of jobs that are over.
    async fn forget(&mut self) -> Result<(), Error> {
        for (unit, created) in units::unforgotten(&self.context.core).await? {
            if let Some(driver) = self.drivers.get(&unit.job).filter(|_| unit.state == UnitState::Abandoned) {
                driver.task.abort(); // its end wakes this task again
                continue;
            }
            let reachable = self.context.nodes.borrow().get(&unit.node).is_some_and(|node| node.reachable);
            if !reachable
                || self.drivers.contains_key(&unit.job)
                || !self.being_forgotten.insert(unit.attempt)
            {
                continue;
            }
            let context = self.context.clone();
            self.forgetting.spawn(async move {
                let attempt = unit.attempt;
                job::forget(&context, unit, created).await;
                attempt
            });
        }
        Ok(())
    }
}

fn candidates(live: &Nodes, decided: &BTreeMap<NodeId, Decided>) -> BTreeMap<NodeId, Candidate> {
    let candidate = |(name, node): (&NodeId, &crate::fleet::LiveNode)| {
        let known = node.info.as_ref();
        let decided = decided.get(name).copied().unwrap_or_default();
        let candidate = Candidate {
            reachable: node.reachable && known.is_some(),
            enabled: decided.enabled,
            closed: known.and_then(|info| info.cordon(name)).or_else(|| node.refused()),
            capacity: known.map_or(0, |info| info.capacity().adjusted(decided.adjustment)),
            busy: 0,
        };
        (name.clone(), candidate)
    };
    live.iter().map(candidate).collect()
}
