//! Rows of the nodes: what the mesh shows and what the nodes said of themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use plexus_proto::id::{Identity, NodeId, Role, StoreId};
use sea_query::{Expr, ExprTrait, OnConflict, Query, Value};

use super::core::{Class, CoreDb, Error, WriteTx};
use super::groups;
use crate::schedule::Capacity;

/// A node as last seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Who it is.
    pub identity: Identity,
    /// A route to it is known.
    pub reachable: bool,
    /// Software it runs.
    pub version: String,
    /// What it said of itself; `None` for a node that runs nothing or has not answered yet.
    pub info: Option<Info>,
}

/// What an execution node said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its data directory.
    pub store: StoreId,
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Bytes.
    pub memory: u64,
    /// Bytes that are free where its data directory is; 0: it did not say.
    pub free_disk: u64,
    /// Images that it said it has, each by its first name.
    pub images: Arc<[String]>,
    /// Why it takes no new units, if root of its machine said so there.
    pub cordoned: Option<String>,
    /// When it said so.
    pub heard: Timestamp,
}

impl Info {
    /// Forks it can keep busy.
    pub fn capacity(&self) -> Capacity {
        Capacity::of(self.cpu_millis, self.memory)
    }

    /// That root of the machine has it take no new units, in words; `None` when it takes them.
    pub fn cordon(&self, name: &NodeId) -> Option<String> {
        let reason = self.cordoned.as_deref()?;
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        Some(format!("{name} was cordoned on its own machine{why}"))
    }
}

/// What somebody decided about a node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decided {
    /// Whether it gets work.
    pub enabled: bool,
    /// How much of what lies between its two capacities it takes: 0 to 1.
    pub adjustment: f64,
}

impl Default for Decided {
    fn default() -> Self {
        Self { enabled: true, adjustment: 1.0 }
    }
}

fn node_type(role: Role) -> &'static str {
    match role {
        Role::Controller => "control",
        Role::Execution => "execution",
        Role::Hop => "hop",
    }
}

/// Writes what is known of the nodes; rows of nodes that are not named stay as they are.
pub async fn record(core: &CoreDb, nodes: &[Seen]) -> Result<(), Error> {
    let now = Timestamp::now().as_microsecond();
    let decided = decided(core).await?;
    let mut tx = core.begin(Class::Bookkeeping).await?;
    for node in nodes {
        let adjustment = decided.get(&node.identity.node).copied().unwrap_or_default().adjustment;
        let state = if node.reachable { "ready" } else { "unavailable" };
        let mut columns = vec!["hostname", "node_type", "node_state", "version", "created", "modified"];
        // What a new node has until somebody decides, as AWX has it: the larger of what its cores and its memory allow.
        columns.push("capacity_adjustment");
        let mut values = vec![
            node.identity.node.as_str().into(),
            node_type(node.identity.role).into(),
            state.into(),
            node.version.as_str().into(),
            now.into(),
            now.into(),
            Decided::default().adjustment.into(),
        ];
        let mut update = vec!["node_type", "node_state", "version", "modified"];
        if node.reachable {
            columns.push("last_seen");
            values.push(now.into());
            update.push("last_seen");
        }
        if let Some(info) = &node.info {
            let extra = [
                "last_health_check",
                "store_id",
                "uuid",
                "cpu_millis",
                "memory",
                "cpu_capacity",
                "mem_capacity",
                "capacity",
            ];
            columns.extend(extra);
            update.extend(extra);
            values.extend([
                info.heard.as_microsecond().into(),
                Value::from(info.store.0.as_bytes().to_vec()).into(),
                info.store.to_string().into(),
                i64::from(info.cpu_millis).into(),
                i64::try_from(info.memory).unwrap_or(i64::MAX).into(),
                i64::from(info.capacity().cpu).into(),
                i64::from(info.capacity().memory).into(),
                i64::from(if node.reachable { info.capacity().adjusted(adjustment) } else { 0 }).into(),
            ]);
        }
        let mut insert = Query::insert();
        insert
            .into_table("instances")
            .columns(columns)
            .values_panic(values)
            .on_conflict(OnConflict::column("hostname").update_columns(update).to_owned());
        tx.execute(insert).await?;
    }
    // Somebody has looked, and switched it on again.
    let mut update = Query::update();
    update.table("instances").value("errors", "");
    update.and_where(Expr::col("enabled").eq(true)).and_where(Expr::col("errors").ne(""));
    tx.execute(update).await?;
    for node in nodes {
        let name = &node.identity.node;
        let Some(words) = node.info.as_ref().and_then(|info| info.cordon(name)) else { continue };
        let mut update = Query::update();
        update.table("instances").value("errors", words);
        // What somebody has to look at first is not written over.
        update.and_where(Expr::col("enabled").eq(true)).and_where(Expr::col("hostname").eq(name.as_str()));
        tx.execute(update).await?;
    }
    groups::apply_policies(&mut tx).await?;
    tx.commit().await
}

/// Switches a node off, and says why; it stays off until somebody switches it on.
pub async fn hold(core: &CoreDb, node: &NodeId, why: &str) -> Result<(), Error> {
    let mut tx = core.begin(Class::Intent).await?;
    let mut update = Query::update();
    update.table("instances").value("enabled", false).value("errors", why);
    update.value("modified", Timestamp::now().as_microsecond());
    tx.execute(update.and_where(Expr::col("hostname").eq(node.as_str()))).await?;
    tx.commit().await
}

/// When a node was last known to be reachable: to the minute, as long as it was; what it is when nothing has come since.
pub async fn last_seen(core: &CoreDb, node: &NodeId) -> Result<Option<Timestamp>, Error> {
    let mut select = Query::select();
    select.column("last_seen").from("instances").and_where(Expr::col("hostname").eq(node.as_str()));
    let seen = core.optional(select).await?.map(|row| row.at::<Option<i64>>(0)).transpose()?.flatten();
    Ok(seen.and_then(|seen| Timestamp::from_microsecond(seen).ok()))
}

/// What somebody decided about each node.
pub async fn decided(core: &CoreDb) -> Result<BTreeMap<NodeId, Decided>, Error> {
    let mut select = Query::select();
    select.columns(["hostname", "enabled", "capacity_adjustment"]).from("instances");
    let mut decided = BTreeMap::new();
    for row in core.all(select).await? {
        let Ok(name) = row.at::<String>(0)?.parse() else { continue };
        decided.insert(name, Decided { enabled: row.at(1)?, adjustment: row.at(2)? });
    }
    Ok(decided)
}

/// Brings the capacity of a node that can be reached in line with what somebody decided just now.
pub async fn adjust(tx: &mut WriteTx, instance: i64) -> Result<(), Error> {
    let mut select = Query::select();
    select.columns(["cpu_capacity", "mem_capacity", "capacity_adjustment"]).from("instances");
    select.and_where(Expr::col("id").eq(instance)).and_where(Expr::col("capacity").gt(0));
    let Some(row) = tx.optional(&select).await? else { return Ok(()) };
    let forks = |forks: i64| u32::try_from(forks).unwrap_or_default();
    let capacity = Capacity { cpu: forks(row.at(0)?), memory: forks(row.at(1)?) };
    if capacity.cpu == 0 {
        return Ok(());
    }
    let mut update = Query::update();
    update.table("instances").value("capacity", i64::from(capacity.adjusted(row.at(2)?)));
    tx.execute(update.and_where(Expr::col("id").eq(instance))).await.map(drop)
}
