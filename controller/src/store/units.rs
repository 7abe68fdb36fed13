//! Rows of jobs under way and of their units: what the reconciler reads, and the steps it commits.
//!
//! Every step is one transaction and names the state it starts from, so that a step taken twice, or after a cancel
//! overtook it, changes nothing.

use std::collections::BTreeMap;

use jiff::Timestamp;
use plexus_proto::id::{Attempt, NodeId, OwnerEpoch, StoreId, UnitId};
use sea_query::{
    Expr, ExprTrait, JoinType, OnConflict, Order, Query, SelectStatement, SimpleExpr, UpdateStatement, Value,
};
use uuid::Uuid;

use crate::facts::{self, Change};
use crate::inventory::members::{self, Members, Only};
use crate::kind::Kind;
use crate::schedule;

use super::core::{Class, Committed, CoreDb, Error, Row};
use super::updates;

/// States of a job that is not over.
pub const ACTIVE: [&str; 4] = ["new", "pending", "waiting", "running"];

/// A job that is not over, as far as the reconciler must know to act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveJob {
    /// Its number.
    pub id: i64,
    /// What kind of job it is.
    pub kind: Kind,
    /// Whose month of creation chooses the events' file.
    pub created: Timestamp,
    /// `pending`, `waiting` or `running`.
    pub status: String,
    /// What people read while it waits.
    pub explanation: String,
    /// When somebody asked to end it, the latest time; each request signals again.
    pub cancel_requested_at: Option<Timestamp>,
    /// Forks asked for; 0: default.
    pub forks: i64,
    /// On which inventory.
    pub inventory: Option<i64>,
    /// Of which template: that of a job, the project of an update.
    pub template: Option<i64>,
    /// Of which organization.
    pub organization: Option<i64>,
    /// Whether it may run beside other jobs of its template.
    pub simultaneous: bool,
    /// The instance group it was placed by.
    pub group: Option<i64>,
    /// Its unit, once placed.
    pub unit: Option<Unit>,
    /// What it depends on and waits for, in words; looked up for those that wait.
    pub needs: Option<String>,
}

impl ActiveJob {
    /// Forks it keeps busy; `hosts`: how many each inventory has.
    pub fn impact(&self, hosts: &BTreeMap<i64, usize>) -> u32 {
        self.kind.places().impact.unwrap_or_else(|| {
            let hosts = self.inventory.and_then(|id| hosts.get(&id)).copied().unwrap_or(0);
            schedule::impact(self.forks, hosts)
        })
    }
}

/// A unit as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Id and attempt.
    pub attempt: Attempt,
    /// Which job it runs.
    pub job: i64,
    /// Where.
    pub node: NodeId,
    /// Data directory of the node that it was placed on.
    pub store: StoreId,
    /// How far it came.
    pub state: UnitState,
    /// Under which it was placed, by this very process just now: nobody has acted under it yet.
    pub epoch: Option<OwnerEpoch>,
}

/// How far the controller brought a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitState {
    /// Stored; the node may not know of it.
    Placed,
    /// The node has started it.
    Started,
    /// An operator gave it up; its node still has to be told.
    Abandoned,
}

impl UnitState {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Started => "started",
            Self::Abandoned => "abandoned",
        }
    }
}

/// A decision of the scheduler, not stored yet.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Which job.
    pub job: i64,
    /// Its unit, minted for this.
    pub attempt: Attempt,
    /// Where it shall run.
    pub node: NodeId,
    /// The instance group that node was found in.
    pub group: Option<i64>,
    /// That node's data directory.
    pub store: StoreId,
}

/// The last word on a job.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Final {
    /// `successful`, `failed`, `canceled` or `error`.
    pub status: &'static str,
    /// Words for people; empty when the status says all.
    pub explanation: String,
    /// Traceback of ansible-runner, where there is one.
    pub result_traceback: String,
    /// Command as JSON text, masked.
    pub job_args: String,
    /// Working directory in the execution environment.
    pub job_cwd: String,
    /// Environment as JSON text, masked.
    pub job_env: String,
    /// Data of `set_stats`, JSON text.
    pub artifacts: String,
    /// Hosts by how they ended, JSON text.
    pub host_status_counts: Option<String>,
    /// The recap, one entry a host.
    pub hosts: Vec<HostSummary>,
    /// What `ansible-inventory` made of a source, JSON text; none of any other kind of job.
    pub inventory: Option<String>,
    /// What became of the facts of hosts.
    pub facts: BTreeMap<String, Change>,
}

/// One host of the recap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostSummary {
    /// Name in the inventory.
    pub host: String,
    /// Counts as Ansible prints them.
    pub counts: BTreeMap<&'static str, i64>,
}

impl HostSummary {
    fn count(&self, name: &str) -> i64 {
        self.counts.get(name).copied().unwrap_or(0)
    }
}

/// Columns of `job_host_summaries` that count.
pub const COUNTS: [&str; 8] =
    ["changed", "dark", "failures", "ok", "processed", "skipped", "ignored", "rescued"];

fn now() -> i64 {
    Timestamp::now().as_microsecond()
}

fn broken(column: &str, what: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Column { column: column.to_owned(), source: Box::new(sqlx::Error::Decode(Box::new(what))) }
}

/// A job that the query should not have found.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no kind of job that runs on nodes")]
struct UnknownKind(String);

fn unit_columns(select: &mut SelectStatement) {
    for column in ["unit_id", "attempt", "job_id", "node", "store_id", "state"] {
        select.column(("units", column));
    }
}

fn unit(row: &Row) -> Result<Option<Unit>, Error> {
    let Some(id) = row.value::<Option<Vec<u8>>>("unit_id")? else { return Ok(None) };
    let id = Uuid::from_slice(&id).map_err(|error| broken("unit_id", error))?;
    let number = u32::try_from(row.value::<i64>("attempt")?).map_err(|error| broken("attempt", error))?;
    let store: Vec<u8> = row.value("store_id")?;
    Ok(Some(Unit {
        attempt: Attempt { unit: UnitId(id), number },
        job: row.value("job_id")?,
        node: row.value::<String>("node")?.parse().map_err(|error| broken("node", error))?,
        store: StoreId::from_slice(&store).map_err(|error| broken("store_id", error))?,
        state: match row.value::<String>("state")?.as_str() {
            "placed" => UnitState::Placed,
            "abandoned" => UnitState::Abandoned,
            _ => UnitState::Started,
        },
        epoch: None,
    }))
}

/// Every job that is not over, oldest first.
pub async fn active_jobs(core: &CoreDb) -> Result<Vec<ActiveJob>, Error> {
    let mut select = Query::select();
    for column in [
        "id",
        "kind",
        "created",
        "status",
        "job_explanation",
        "cancel_requested_at",
        "forks",
        "inventory_id",
        "unified_job_template_id",
        "organization_id",
        "allow_simultaneous",
        "instance_group_id",
    ] {
        select.column(("unified_jobs", column));
    }
    unit_columns(&mut select);
    select
        .from("unified_jobs")
        .join(JoinType::LeftJoin, "units", Expr::col(("units", "job_id")).equals(("unified_jobs", "id")))
        .and_where(Expr::col(("unified_jobs", "status")).is_in(ACTIVE))
        .and_where(Expr::col(("unified_jobs", "kind")).is_in(Kind::ALL.map(Kind::as_str)))
        .order_by(("unified_jobs", "id"), Order::Asc);
    let rows = core.all(select).await?;
    let job = |row: &Row| -> Result<ActiveJob, Error> {
        let word: String = row.value("kind")?;
        let kind = Kind::parse(&word).ok_or_else(|| broken("kind", UnknownKind(word)))?;
        Ok(ActiveJob {
            id: row.value("id")?,
            kind,
            created: row.time("created")?,
            status: row.value("status")?,
            explanation: row.value("job_explanation")?,
            cancel_requested_at: row.opt_time("cancel_requested_at")?,
            forks: row.value("forks")?,
            inventory: row.value("inventory_id")?,
            template: row.value("unified_job_template_id")?,
            organization: row.value("organization_id")?,
            simultaneous: row.value("allow_simultaneous")?,
            group: row.value("instance_group_id")?,
            unit: unit(row)?,
            needs: None,
        })
    };
    rows.iter().map(job).collect()
}

/// Enabled hosts of each inventory.
pub async fn host_counts(core: &CoreDb, inventories: &[i64]) -> Result<BTreeMap<i64, usize>, Error> {
    let counts = members::counts(core, inventories, Only::Enabled).await?;
    Ok(counts.into_iter().map(|(id, hosts)| (id, usize::try_from(hosts).unwrap_or(0))).collect())
}

fn update_job(job: i64) -> UpdateStatement {
    let mut update = Query::update();
    update.table("unified_jobs").value("modified", now()).and_where(Expr::col("id").eq(job));
    update
}

fn where_unit(attempt: Attempt) -> SimpleExpr {
    Expr::col("unit_id").eq(attempt.unit.0.as_bytes().to_vec())
}

/// Counter of the epoch under which units are placed: whoever places one is its first owner.
const FIRST: i64 = 1;

/// Stores the units of placed jobs, all in one transaction, and says which jobs took them: a job that was canceled
/// in between did not. The units are the caller's, under this epoch, once this is settled: no node may hear of them before.
pub async fn place(
    core: &CoreDb,
    placements: &[Placement],
    me: &NodeId,
) -> Result<(Vec<i64>, OwnerEpoch, Committed), Error> {
    let (incarnation, mut tx) = tokio::try_join!(incarnation(core), core.begin(Class::Bookkeeping))?;
    let mut placed = Vec::new();
    for placement in placements {
        let mut update = update_job(placement.job);
        update
            .value("status", "waiting")
            .value("job_explanation", "")
            .value("execution_node", placement.node.as_str())
            .value("instance_group_id", placement.group)
            .value("controller_node", me.as_str())
            .and_where(Expr::col("status").is_in(["new", "pending"]))
            .and_where(Expr::col("cancel_flag").eq(false));
        if tx.execute(update).await? == 0 {
            continue;
        }
        let epoch = (incarnation, FIRST);
        let Placement { attempt, job, ref node, store, .. } = *placement;
        insert(&mut tx, (attempt, job), (node, store), UnitState::Placed, epoch).await?;
        updates::stamp(&mut tx, placement.job).await?;
        tx.job_changed(placement.job, "waiting");
        placed.push(placement.job);
    }
    let committed = tx.commit_ahead().await?;
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    let epoch = OwnerEpoch { incarnation: number(incarnation), counter: number(FIRST) };
    Ok((placed, epoch, committed))
}

/// Takes the placement of a job back, whose node has just said that it has nothing of the unit: the job waits for another, and
/// the unit's name is never used again. False when somebody else owns the unit by now, or the job is over.
pub async fn unplace(
    core: &CoreDb,
    (attempt, job): (Attempt, i64),
    epoch: OwnerEpoch,
    explanation: &str,
) -> Result<bool, Error> {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let mut tx = core.begin(Class::Bookkeeping).await?;
    let mut delete = Query::delete();
    delete
        .from_table("units")
        .and_where(where_unit(attempt))
        .and_where(Expr::col("state").eq(UnitState::Placed.as_str()))
        .and_where(Expr::col("owner_incarnation").eq(number(epoch.incarnation)))
        .and_where(Expr::col("owner_counter").eq(number(epoch.counter)));
    if tx.execute(delete).await? == 0 {
        return Ok(false);
    }
    let mut update = update_job(job);
    update
        .value("status", "pending")
        .value("job_explanation", explanation)
        .value("execution_node", "")
        .value("instance_group_id", None::<i64>)
        .value("controller_node", "")
        .and_where(Expr::col("status").eq("waiting"));
    if tx.execute(update).await? == 0 {
        return Ok(false);
    }
    tx.wake();
    tx.job_changed(job, "pending");
    tx.commit().await?;
    Ok(true)
}

/// Stores a unit of a job: where it is, how far it came, and the incarnation and counter of who owns it.
pub(super) async fn insert(
    tx: &mut super::core::WriteTx,
    (attempt, job): (Attempt, i64),
    (node, store): (&NodeId, StoreId),
    state: UnitState,
    (incarnation, counter): (i64, i64),
) -> Result<(), Error> {
    let mut insert = Query::insert();
    insert
        .into_table("units")
        .columns([
            "unit_id",
            "attempt",
            "job_id",
            "node",
            "store_id",
            "state",
            "owner_incarnation",
            "owner_counter",
            "created",
        ])
        .values_panic([
            Value::from(attempt.unit.0.as_bytes().to_vec()).into(),
            i64::from(attempt.number).into(),
            job.into(),
            node.as_str().into(),
            Value::from(store.0.as_bytes().to_vec()).into(),
            state.as_str().into(),
            incarnation.into(),
            counter.into(),
            now().into(),
        ]);
    tx.execute(insert).await.map(drop)
}

/// Sets what people read on a job that waits. Nothing happens once it is over.
pub async fn explain(core: &CoreDb, job: i64, explanation: &str) -> Result<(), Error> {
    let mut tx = core.begin(Class::Bookkeeping).await?;
    let mut update = update_job(job);
    update.value("job_explanation", explanation).and_where(Expr::col("status").is_in(ACTIVE));
    tx.execute(update).await?;
    tx.commit().await
}

/// Sets what people read on jobs that wait, in one transaction.
pub async fn explain_all(core: &CoreDb, jobs: &[(i64, String)]) -> Result<(), Error> {
    if jobs.is_empty() {
        return Ok(());
    }
    let mut tx = core.begin(Class::Bookkeeping).await?;
    for (job, explanation) in jobs {
        let mut update = update_job(*job);
        update.value("job_explanation", explanation.as_str()).and_where(Expr::col("status").is_in(ACTIVE));
        tx.execute(update).await?;
    }
    tx.commit().await
}

/// Takes ownership of a unit: its counter goes up by one, durably, before anybody acts under it.
pub async fn take(core: &CoreDb, attempt: Attempt) -> Result<OwnerEpoch, Error> {
    let mut tx = core.begin(Class::Bookkeeping).await?;
    let mut update = Query::update();
    update
        .table("units")
        .value("owner_counter", Expr::col("owner_counter").add(1))
        .and_where(where_unit(attempt));
    tx.execute(update).await?;
    let mut select = Query::select();
    select.columns(["owner_incarnation", "owner_counter"]).from("units").and_where(where_unit(attempt));
    let row = tx.optional(select).await?.ok_or(Error::Reference)?;
    let number = |column| row.value::<i64>(column).map(|value| u64::try_from(value).unwrap_or(0));
    let epoch = OwnerEpoch { incarnation: number("owner_incarnation")?, counter: number("owner_counter")? };
    tx.commit().await?;
    Ok(epoch)
}

/// The node has started the unit: the job runs.
pub async fn started(core: &CoreDb, job: i64, attempt: Attempt) -> Result<(), Error> {
    let mut tx = core.begin(Class::Bookkeeping).await?;
    let mut update = update_job(job);
    update
        .value("status", "running")
        .value("started", now())
        .value("job_explanation", "")
        .and_where(Expr::col("status").eq("waiting"));
    if tx.execute(update).await? > 0 {
        tx.job_changed(job, "running");
    }
    let mut update = Query::update();
    update
        .table("units")
        .value("state", UnitState::Started.as_str())
        .and_where(where_unit(attempt))
        .and_where(Expr::col("state").ne(UnitState::Abandoned.as_str()));
    tx.execute(update).await?;
    tx.commit().await
}

/// Notes the digest of the image that the job runs in.
pub async fn ran_in(core: &CoreDb, job: i64, digest: &str) -> Result<(), Error> {
    let mut tx = core.begin(Class::Bookkeeping).await?;
    let mut update = update_job(job);
    update.value("image_digest", digest);
    tx.execute(update).await?;
    tx.commit().await
}

/// Ends a job: status, recap and everything else that was waited for, in one transaction, after the facts of its hosts. A job that is over stays
/// as it is.
pub async fn finish(core: &CoreDb, job: i64, last: &Final) -> Result<(), Error> {
    if !last.facts.is_empty() {
        keep_facts(core, job, last).await?;
    }
    let mut tx = core.begin(Class::Bookkeeping).await?;
    if finish_in(&mut tx, job, last).await? {
        tx.commit().await?;
    }
    Ok(())
}

/// Before the end, in transactions of their own: they may be many megabytes, and to keep them twice does no harm.
async fn keep_facts(core: &CoreDb, job: i64, last: &Final) -> Result<(), Error> {
    let mut select = Query::select();
    select
        .column("inventory_id")
        .from("unified_jobs")
        .and_where(Expr::col("id").eq(job))
        .and_where(Expr::col("use_fact_cache").eq(true))
        .and_where(Expr::col("status").is_in(ACTIVE));
    let Some(row) = core.optional(select).await? else { return Ok(()) };
    match row.value::<Option<i64>>("inventory_id")? {
        Some(inventory) => facts::keep(core, inventory, &last.facts).await,
        None => Ok(()),
    }
}

/// The same within a transaction; false when it was over.
async fn finish_in(tx: &mut super::core::WriteTx, job: i64, last: &Final) -> Result<bool, Error> {
    let mut select = Query::select();
    select
        .columns(["started", "inventory_id", "kind"])
        .from("unified_jobs")
        .and_where(Expr::col("id").eq(job))
        .and_where(Expr::col("status").is_in(ACTIVE));
    let Some(row) = tx.optional(select).await? else { return Ok(false) };
    let finished = now();
    let started = row.opt_time("started")?.map(Timestamp::as_microsecond);
    let elapsed = started.map_or(0.0, |started| Ord::max(finished - started, 0) as f64 / 1e6);
    let failed = last.status != "successful";
    let mut update = update_job(job);
    update
        .value("status", last.status)
        .value("failed", failed)
        .value("finished", finished)
        .value("elapsed", elapsed)
        .value("event_processing_finished", true)
        .value("job_explanation", last.explanation.as_str())
        .value("result_traceback", last.result_traceback.as_str())
        .value("job_args", last.job_args.as_str())
        .value("job_cwd", last.job_cwd.as_str())
        .value("job_env", last.job_env.as_str())
        .value("artifacts", last.artifacts.as_str())
        .value("host_status_counts", last.host_status_counts.clone());
    if last.status == "canceled" {
        update.value("canceled_on", finished);
    }
    tx.execute(update).await?;
    crate::job::conclude(tx, job).await?;
    let inventory = row.value::<Option<i64>>("inventory_id")?;
    let hosts = host_ids(tx, inventory, &last.hosts).await?;
    for summary in &last.hosts {
        insert_summary(tx, job, hosts.get(&summary.host).copied(), summary).await?;
    }
    if row.value::<String>("kind")? == Kind::Job.as_str() {
        count_hosts(tx, &last.hosts, finished).await?;
    }
    tx.wake(); // capacity is free again
    Ok(true)
}

/// Gives up the unit of a job that is not over, in the name of `who`: the job ends as an error that says what is not known,
/// the unit's epoch goes up, and its node is told when it is back. False when the job is over or no node has it.
pub async fn abandon(core: &CoreDb, job: i64, who: &str) -> Result<bool, Error> {
    let mut tx = core.begin(Class::Intent).await?;
    let mut select = Query::select();
    select.column("node").from("units").and_where(Expr::col("job_id").eq(job));
    let Some(row) = tx.optional(select).await? else { return Ok(false) };
    let node: String = row.value("node")?;
    let mut update = Query::update();
    update
        .table("units")
        .value("state", UnitState::Abandoned.as_str())
        .value("owner_counter", Expr::col("owner_counter").add(1))
        .and_where(Expr::col("job_id").eq(job));
    tx.execute(update).await?;
    let explanation = format!(
        "Abandoned by {who}. Its process may still live on node {node} until that node is heard of again; it is ended then."
    );
    let last = Final { status: "error", explanation, ..Final::default() };
    if !finish_in(&mut tx, job, &last).await? {
        return Ok(false);
    }
    tx.commit().await?;
    Ok(true)
}

/// How often this database was restored from a backup, as nodes are shown it; from 1.
pub(super) async fn incarnation(core: &CoreDb) -> Result<i64, Error> {
    let known = core.setting("incarnation").await?.and_then(|text| text.parse().ok());
    Ok(known.unwrap_or(1))
}

/// Puts this database above every other life of it: to be called once after it was restored from a backup, before a
/// controller runs on it. `above`: the highest incarnation that a node speaks of. Gives the new one.
pub async fn recovered(core: &CoreDb, above: i64) -> Result<i64, Error> {
    // The time as a floor: the same backup restored twice must not come to the same number twice, and what the first
    // restoration came to is not in it. A clock that lies leaves the count.
    let seconds = now() / 1_000_000;
    let next = Ord::max(Ord::max(incarnation(core).await?, above).saturating_add(1), seconds);
    let mut tx = core.begin(Class::Intent).await?;
    tx.set_setting("incarnation", &next.to_string()).await?;
    let mut update = Query::update();
    update.table("units").value("owner_incarnation", next).and_where(Expr::col("forgotten").is_null());
    tx.execute(update).await?;
    tx.commit().await?;
    Ok(next)
}

/// Ids of the hosts of an inventory that a recap names.
async fn host_ids(
    tx: &mut super::core::WriteTx,
    inventory: Option<i64>,
    summaries: &[HostSummary],
) -> Result<BTreeMap<String, i64>, Error> {
    let mut ids = BTreeMap::new();
    let Some(inventory) = inventory.filter(|_| !summaries.is_empty()) else { return Ok(ids) };
    let members = Members::within(tx, inventory).await?;
    for names in summaries.chunks(1_000) {
        let mut select = Query::select();
        select.columns([("b", "name"), ("b", "id")]).from_as("hosts", "b");
        select.and_where(Expr::col(("b", "name")).is_in(names.iter().map(|summary| summary.host.as_str())));
        select.and_where(members.condition("b"));
        for row in tx.all(select).await? {
            ids.insert(row.at(0)?, row.at(1)?);
        }
    }
    Ok(ids)
}

/// Counts the hosts of a recap as automated once more.
async fn count_hosts(
    tx: &mut super::core::WriteTx,
    summaries: &[HostSummary],
    now: i64,
) -> Result<(), Error> {
    for names in summaries.chunks(1_000) {
        let mut insert = Query::insert();
        insert.into_table("host_metrics");
        insert.columns(["hostname", "first_automation", "last_automation", "automated_counter"]);
        for summary in names {
            insert.values_panic([summary.host.as_str().into(), now.into(), now.into(), 1.into()]);
        }
        let more = Expr::col(("host_metrics", "automated_counter")).add(1);
        let again = OnConflict::column("hostname")
            .update_column("last_automation")
            .value("automated_counter", more)
            .value("deleted", false)
            .to_owned();
        tx.execute(insert.on_conflict(again)).await?;
    }
    Ok(())
}

async fn insert_summary(
    tx: &mut super::core::WriteTx,
    job: i64,
    host: Option<i64>,
    summary: &HostSummary,
) -> Result<(), Error> {
    let failed = summary.count("failures") > 0 || summary.count("dark") > 0;
    let mut columns = vec!["job_id", "host_id", "host_name", "failed", "created", "modified"];
    let mut values: Vec<SimpleExpr> = vec![
        job.into(),
        host.into(),
        summary.host.as_str().into(),
        failed.into(),
        now().into(),
        now().into(),
    ];
    for name in COUNTS {
        columns.push(name);
        values.push(summary.count(name).into());
    }
    let mut insert = Query::insert();
    insert
        .into_table("job_host_summaries")
        .columns(columns)
        .values_panic(values)
        .on_conflict(OnConflict::columns(["job_id", "host_name"]).do_nothing().to_owned());
    tx.execute(insert).await?;
    if let Some(host) = host {
        let mut update = Query::update();
        update
            .table("hosts")
            .value("last_job_id", job)
            .value("has_active_failures", failed)
            .and_where(Expr::col("id").eq(host));
        tx.execute(update).await?;
    }
    Ok(())
}

/// Units whose job is over and whose node may still hold something of them, and when that job was created.
pub async fn unforgotten(core: &CoreDb) -> Result<Vec<(Unit, Timestamp)>, Error> {
    let mut select = Query::select();
    unit_columns(&mut select);
    select
        .column(("unified_jobs", "created"))
        .from("units")
        .join(
            JoinType::InnerJoin,
            "unified_jobs",
            Expr::col(("units", "job_id")).equals(("unified_jobs", "id")),
        )
        .and_where(Expr::col(("units", "forgotten")).is_null())
        .and_where(Expr::col(("unified_jobs", "status")).is_not_in(ACTIVE));
    let rows = core.all(select).await?;
    let mut units = Vec::with_capacity(rows.len());
    for row in &rows {
        if let Some(unit) = unit(row)? {
            units.push((unit, row.time("created")?));
        }
    }
    Ok(units)
}

/// The node holds nothing of the unit any more.
pub async fn forgotten(core: &CoreDb, attempt: Attempt) -> Result<(), Error> {
    let mut tx = core.begin(Class::Bookkeeping).await?;
    let mut update = Query::update();
    update.table("units").value("forgotten", now()).and_where(where_unit(attempt));
    tx.execute(update).await?;
    tx.commit().await
}
