//! Rows of stray units: what nodes hold and this database does not know, until an operator decides.
//!
//! They come from a restored database: the units were placed after its backup. Nothing is done with them by itself. What is
//! adopted, and what is discarded, gets a job of its own, which says where it came from; from there on it goes the way of every
//! other unit.

use std::collections::BTreeSet;

use jiff::Timestamp;
use plexus_proto::id::{Attempt, NodeId, StoreId, UnitId};
use sea_query::{Expr, ExprTrait, Query, Value};
use uuid::Uuid;

use super::core::{Class, CoreDb, Error, Row};
use super::units::{self, UnitState, incarnation};

/// Units that one question names.
const AT_ONCE: usize = 500;

/// A unit that some node holds and no row names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// Id and attempt.
    pub attempt: Attempt,
    /// Who holds it.
    pub node: NodeId,
    /// That node's data directory.
    pub store: StoreId,
    /// What it was for people: "job 12", by the numbers of the database that is gone.
    pub label: String,
    /// `pending`, `running` or `finished`.
    pub state: String,
    /// Records in its spool.
    pub records: i64,
    /// Counter of the highest epoch that it was acted on under.
    pub counter: i64,
}

/// What an operator does with a stray.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It runs on, as a job of this database.
    Adopt,
    /// It ends, and its node forgets it.
    Discard,
}

/// What became of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    /// This job stands for it now.
    Job(i64),
    /// There is no such stray.
    Unknown,
    /// It has not started, and what it would run is not known: it can be discarded only.
    Pending,
}

fn broken(column: &str, what: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Column { column: column.to_owned(), source: Box::new(sqlx::Error::Decode(Box::new(what))) }
}

fn stray(row: &Row) -> Result<Stray, Error> {
    let id = Uuid::from_slice(&row.value::<Vec<u8>>("unit_id")?).map_err(|error| broken("unit_id", error))?;
    let number = u32::try_from(row.value::<i64>("attempt")?).map_err(|error| broken("attempt", error))?;
    let store: Vec<u8> = row.value("store_id")?;
    Ok(Stray {
        attempt: Attempt { unit: UnitId(id), number },
        node: row.value::<String>("node")?.parse().map_err(|error| broken("node", error))?,
        store: StoreId::from_slice(&store).map_err(|error| broken("store_id", error))?,
        label: row.value("label")?,
        state: row.value("state")?,
        records: row.value("records")?,
        counter: row.value("owner_counter")?,
    })
}

/// Those of these units that this database knows.
pub async fn known(core: &CoreDb, units: &[Uuid]) -> Result<BTreeSet<Uuid>, Error> {
    let mut known = BTreeSet::new();
    for some in units.chunks(AT_ONCE) {
        let ids = some.iter().map(|unit| Value::from(unit.as_bytes().to_vec()));
        let mut select = Query::select();
        select.column("unit_id").from("units").and_where(Expr::col("unit_id").is_in(ids));
        for row in core.all(select).await? {
            let id = Uuid::from_slice(&row.value::<Vec<u8>>("unit_id")?);
            known.insert(id.map_err(|error| broken("unit_id", error))?);
        }
    }
    Ok(known)
}

/// All strays, by node.
pub async fn all(core: &CoreDb) -> Result<Vec<Stray>, Error> {
    let mut select = Query::select();
    select
        .columns(["unit_id", "attempt", "node", "store_id", "label", "state", "records", "owner_counter"])
        .from("stray_units")
        .order_by("node", sea_query::Order::Asc)
        .order_by("unit_id", sea_query::Order::Asc);
    core.all(select).await?.iter().map(stray).collect()
}

/// Writes what a node holds of them now in place of what was written before. `strays` are all of that node.
pub async fn record(core: &CoreDb, node: &NodeId, strays: &[Stray]) -> Result<(), Error> {
    let mut tx = core.begin(Class::Bookkeeping).await?;
    let mut delete = Query::delete();
    delete.from_table("stray_units").and_where(Expr::col("node").eq(node.as_str()));
    tx.execute(delete).await?;
    for stray in strays {
        let mut insert = Query::insert();
        insert
            .into_table("stray_units")
            .columns([
                "unit_id",
                "attempt",
                "node",
                "store_id",
                "label",
                "state",
                "records",
                "owner_counter",
                "seen",
            ])
            .values_panic([
                Value::from(stray.attempt.unit.0.as_bytes().to_vec()).into(),
                i64::from(stray.attempt.number).into(),
                stray.node.as_str().into(),
                Value::from(stray.store.0.as_bytes().to_vec()).into(),
                stray.label.as_str().into(),
                stray.state.as_str().into(),
                stray.records.into(),
                stray.counter.into(),
                Timestamp::now().as_microsecond().into(),
            ]);
        tx.execute(insert).await?;
    }
    tx.commit().await
}

/// Makes a stray a unit of this database, in the name of `who`: one that is adopted runs on as a job, one that is discarded is
/// given up, so that its node ends it and forgets it.
pub async fn decide(core: &CoreDb, unit: Uuid, decision: Decision, who: &str) -> Result<Decided, Error> {
    let Some(stray) = all(core).await?.into_iter().find(|stray| stray.attempt.unit.0 == unit) else {
        return Ok(Decided::Unknown);
    };
    if decision == Decision::Adopt && stray.state == "pending" {
        return Ok(Decided::Pending);
    }
    let incarnation = incarnation(core).await?;
    let now = Timestamp::now().as_microsecond();
    let mut tx = core.begin(Class::Intent).await?;
    let mut delete = Query::delete();
    delete.from_table("stray_units").and_where(Expr::col("unit_id").eq(unit.as_bytes().to_vec()));
    if tx.execute(delete).await? == 0 {
        return Ok(Decided::Unknown); // somebody else decided a moment ago
    }
    let what =
        format!("Found on node {} as {:?}, which this database does not know", stray.node, stray.label);
    let (status, state, explanation) = match decision {
        Decision::Adopt => ("running", UnitState::Started, format!("{what}; adopted by {who}.")),
        Decision::Discard => ("error", UnitState::Abandoned, format!("{what}; discarded by {who}.")),
    };
    let is_over = decision == Decision::Discard;
    let mut insert = Query::insert();
    insert
        .into_table("unified_jobs")
        .columns([
            "kind",
            "name",
            "description",
            "launch_type",
            "status",
            "job_explanation",
            "failed",
            "started",
            "finished",
            "event_processing_finished",
            "execution_node",
            "job_type",
            "created",
            "modified",
        ])
        .values_panic([
            "job".into(),
            stray.label.as_str().into(),
            what.as_str().into(),
            "manual".into(),
            status.into(),
            explanation.as_str().into(),
            is_over.into(),
            now.into(),
            is_over.then_some(now).into(),
            is_over.into(),
            stray.node.as_str().into(),
            "run".into(),
            now.into(),
            now.into(),
        ]);
    let job = tx.insert(&mut insert).await?;
    let (place, epoch) = ((&stray.node, stray.store), (incarnation, stray.counter));
    units::insert(&mut tx, (stray.attempt, job), place, state, epoch).await?;
    tx.job_changed(job, status);
    tx.wake();
    tx.commit().await?;
    Ok(Decided::Job(job))
}
