//! Rows of the nodes: what the mesh shows and what the nodes said of themselves.

use std::collections::BTreeSet;

use jiff::Timestamp;
use plexus_proto::id::{Identity, NodeId, Role, StoreId};
use sea_query::{Expr, ExprTrait, OnConflict, Query, Value};

use super::core::{Class, CoreDb, Error};
use super::groups;

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
    /// Forks it can keep busy.
    pub capacity: u32,
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
    let mut tx = core.begin(Class::Bookkeeping).await?;
    for node in nodes {
        let state = if node.reachable { "ready" } else { "unavailable" };
        let mut columns = vec!["hostname", "node_type", "node_state", "version", "created", "modified"];
        let mut values = vec![
            node.identity.node.as_str().into(),
            node_type(node.identity.role).into(),
            state.into(),
            node.version.as_str().into(),
            now.into(),
            now.into(),
        ];
        let mut update = vec!["node_type", "node_state", "version", "modified"];
        if node.reachable {
            columns.push("last_seen");
            values.push(now.into());
            update.push("last_seen");
        }
        if let Some(info) = &node.info {
            let extra = ["store_id", "uuid", "cpu_millis", "memory", "capacity"];
            columns.extend(extra);
            update.extend(extra);
            values.extend([
                Value::from(info.store.0.as_bytes().to_vec()).into(),
                info.store.to_string().into(),
                i64::from(info.cpu_millis).into(),
                i64::try_from(info.memory).unwrap_or(i64::MAX).into(),
                i64::from(if node.reachable { info.capacity } else { 0 }).into(),
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

/// Nodes that somebody switched off.
pub async fn disabled(core: &CoreDb) -> Result<BTreeSet<NodeId>, Error> {
    let mut select = Query::select();
    select.column("hostname").from("instances").and_where(Expr::col("enabled").eq(false));
    let rows = core.all(select).await?;
    Ok(rows.iter().filter_map(|row| row.value::<String>("hostname").ok()?.parse().ok()).collect())
}
