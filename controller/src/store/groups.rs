//! Instance groups: who is in them, what they are limited to, and which of them each waiting job may run in.

use std::collections::{BTreeMap, BTreeSet};

use plexus_proto::id::NodeId;
use sea_query::{Expr, ExprTrait, JoinType, Order, Query};

use super::core::{Class, CoreDb, Error, Row, WriteTx};
use crate::schedule::policy::{self, Node, Policy};
use crate::schedule::{Group, Wanted};

/// The group of jobs that nobody gave another.
pub const DEFAULT: &str = "default";
/// The group of the controllers.
pub const CONTROL_PLANE: &str = "controlplane";

/// Brings the two groups that every installation has to the policies they have in AWX: all nodes of their kind.
///
/// # Errors
/// What the database says.
pub async fn seed(core: &CoreDb) -> Result<(), Error> {
    const DONE: &str = "instance_group_policies";
    if core.setting(DONE).await?.is_some() {
        return Ok(());
    }
    let mut tx = core.begin(Class::Bulk).await?;
    let mut update = Query::update();
    update.table("instance_groups").value("policy_instance_percentage", 100);
    update.and_where(Expr::col("name").is_in([DEFAULT, CONTROL_PLANE]));
    update.and_where(Expr::col("policy_instance_percentage").eq(0));
    tx.execute(&update).await?;
    apply_policies(&mut tx).await?;
    tx.set_setting(DONE, "1").await?;
    tx.commit().await
}

/// Puts every node into the groups that the policies give it. To be called in the transaction of whatever changed a node
/// or a policy.
///
/// # Errors
/// What the database says.
pub async fn apply_policies(tx: &mut WriteTx) -> Result<(), Error> {
    let mut groups = Query::select();
    groups.columns(["id", "name", "policy_instance_list", "policy_instance_minimum"]);
    groups.column("policy_instance_percentage").from("instance_groups");
    groups.and_where(Expr::col("is_container_group").eq(false)).order_by("id", Order::Asc);
    let count = |row: &Row, column: &str| {
        row.value::<i64>(column).map(|number| u32::try_from(number).unwrap_or_default())
    };
    let mut policies = Vec::new();
    for row in tx.all(&groups).await? {
        policies.push(Policy {
            group: row.value("id")?,
            control: row.value::<String>("name")? == CONTROL_PLANE,
            list: serde_json::from_str(&row.value::<String>("policy_instance_list")?).unwrap_or_default(),
            minimum: count(&row, "policy_instance_minimum")?,
            percentage: count(&row, "policy_instance_percentage")?,
        });
    }
    let mut instances = Query::select();
    instances.columns(["id", "hostname", "node_type", "managed_by_policy"]).from("instances");
    instances.and_where(Expr::col("node_type").ne("hop")).order_by("id", Order::Asc);
    let mut nodes = Vec::new();
    for row in tx.all(&instances).await? {
        let kind: String = row.value("node_type")?;
        nodes.push(Node {
            id: row.value("id")?,
            name: row.value("hostname")?,
            executes: matches!(kind.as_str(), "execution" | "hybrid"),
            controls: matches!(kind.as_str(), "control" | "hybrid"),
            by_policy: row.value("managed_by_policy")?,
        });
    }
    let mut wanted: BTreeSet<(i64, i64)> = BTreeSet::new();
    for (group, members) in policy::members(&policies, &nodes) {
        wanted.extend(members.into_iter().map(|node| (group, node)));
    }
    let mut members = Query::select();
    members.columns(["instance_group_id", "instance_id"]).from("instance_group_members");
    let mut found: BTreeSet<(i64, i64)> = BTreeSet::new();
    for row in tx.all(&members).await? {
        found.insert((row.at(0)?, row.at(1)?));
    }
    for (group, node) in found.difference(&wanted) {
        let mut gone = Query::delete();
        gone.from_table("instance_group_members").and_where(Expr::col("instance_group_id").eq(*group));
        tx.execute(gone.and_where(Expr::col("instance_id").eq(*node))).await?;
    }
    for (group, node) in wanted.difference(&found) {
        let mut insert = Query::insert();
        insert.into_table("instance_group_members").columns(["instance_group_id", "instance_id"]);
        tx.execute(insert.values_panic([(*group).into(), (*node).into()])).await?;
    }
    Ok(())
}

/// Every group with its nodes and limits, by id; and the id of the default one.
///
/// # Errors
/// What the database says.
pub async fn all(core: &CoreDb) -> Result<(BTreeMap<i64, Group>, Option<i64>), Error> {
    let mut query = Query::select();
    query.columns(["id", "name", "max_concurrent_jobs", "max_forks"]).from("instance_groups");
    let mut groups = BTreeMap::new();
    let mut default = None;
    let limit = |number: i64| u32::try_from(number).unwrap_or_default();
    for row in core.all(&query).await? {
        let (id, name) = (row.at::<i64>(0)?, row.at::<String>(1)?);
        if name == DEFAULT {
            default = Some(id);
        }
        let (max_jobs, max_forks) = (limit(row.at(2)?), limit(row.at(3)?));
        groups.insert(id, Group { name, nodes: BTreeSet::new(), max_jobs, max_forks });
    }
    let mut query = Query::select();
    query.column(("m", "instance_group_id")).column(("i", "hostname")).from_as("instance_group_members", "m");
    let of_member = Expr::col(("i", "id")).equals(("m", "instance_id"));
    query.join_as(JoinType::InnerJoin, "instances", "i", of_member);
    for row in core.all(&query).await? {
        let node: Option<NodeId> = row.at::<String>(1)?.parse().ok();
        if let (Some(group), Some(node)) = (groups.get_mut(&row.at::<i64>(0)?), node) {
            group.nodes.insert(node);
        }
    }
    Ok((groups, default))
}

/// The groups on the lists of templates, inventories and organizations, in their order.
#[derive(Debug, Clone, Default)]
pub struct Lists {
    templates: BTreeMap<i64, Vec<i64>>,
    inventories: BTreeMap<i64, Vec<i64>>,
    organizations: BTreeMap<i64, Vec<i64>>,
    stopping_templates: BTreeSet<i64>,
    stopping_inventories: BTreeSet<i64>,
    chosen: BTreeMap<i64, Vec<i64>>,
}

impl Lists {
    /// Reads them. As many queries for many jobs as for one.
    ///
    /// # Errors
    /// What the database says.
    pub async fn read(core: &CoreDb) -> Result<Self, Error> {
        let mut waiting = Query::select();
        waiting.column("id").from("unified_jobs").and_where(Expr::col("status").is_in(["new", "pending"]));
        let chosen = Expr::col("unified_job_id").in_subquery(waiting);
        let (templates, inventories, organizations, stopping_templates, stopping_inventories, chosen) = tokio::try_join!(
            pairs(core, "job_template_instance_groups", "job_template_id", None),
            pairs(core, "inventory_instance_groups", "inventory_id", None),
            pairs(core, "organization_instance_groups", "organization_id", None),
            stopping(core, "job_templates"),
            stopping(core, "inventories"),
            pairs(core, "unified_job_instance_groups", "unified_job_id", Some(chosen)),
        )?;
        Ok(Self { templates, inventories, organizations, stopping_templates, stopping_inventories, chosen })
    }

    /// What is known of one job.
    pub fn wanted(
        &self,
        job: Option<i64>,
        template: Option<i64>,
        inventory: Option<i64>,
        organization: Option<i64>,
    ) -> Wanted {
        let of = |lists: &BTreeMap<i64, Vec<i64>>, id: Option<i64>| {
            id.and_then(|id| lists.get(&id)).cloned().unwrap_or_default()
        };
        let stops = |stopping: &BTreeSet<i64>, id: Option<i64>| id.is_some_and(|id| stopping.contains(&id));
        Wanted {
            chosen: of(&self.chosen, job),
            template: of(&self.templates, template),
            template_stops: stops(&self.stopping_templates, template),
            inventory: of(&self.inventories, inventory),
            inventory_stops: stops(&self.stopping_inventories, inventory),
            organization: of(&self.organizations, organization),
        }
    }
}

async fn pairs(
    core: &CoreDb,
    table: &'static str,
    here: &'static str,
    which: Option<Expr>,
) -> Result<BTreeMap<i64, Vec<i64>>, Error> {
    let mut query = Query::select();
    query.columns([here, "instance_group_id"]).from(table).and_where_option(which);
    query.order_by("id", Order::Asc);
    let mut lists: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for row in core.all(&query).await? {
        lists.entry(row.at(0)?).or_default().push(row.at(1)?);
    }
    Ok(lists)
}

async fn stopping(core: &CoreDb, table: &'static str) -> Result<BTreeSet<i64>, Error> {
    let mut query = Query::select();
    query.column("id").from(table).and_where(Expr::col("prevent_instance_group_fallback").eq(true));
    core.all(&query).await?.iter().map(|row| row.at(0)).collect()
}
