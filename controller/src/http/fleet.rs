//! Nodes and their groups, and the picture of the mesh.

use std::collections::{BTreeSet, HashMap};

use axum::http::{Method, StatusCode};
use plexus_proto::id::NodeId;
use sea_query::{Expr, ExprTrait, Func, JoinType, Order, Query};
use serde_json::{Value, json};

use super::call::Call;
use super::error::ApiError;
use super::rules::{Rule, Rules};
use super::{Answer, generic, ok};
use crate::registry::read::{BASE, Record};
use crate::registry::write::Draft;
use crate::registry::{INSTANCE_GROUPS, INSTANCES, UNIFIED_JOBS};
use crate::store::core::{CoreDb, WriteTx};
use crate::store::{groups, instances, units};

pub(super) struct Instances;

impl Rules for Instances {
    fn check<'a>(&'a self, _: &'a Call, draft: &'a mut Draft, _: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            let adjusted = draft.value("capacity_adjustment").and_then(Value::as_f64);
            if adjusted.is_some_and(|adjusted| !(0.0..=1.0).contains(&adjusted)) {
                let words = "Ensure this value is between 0 and 1.";
                return Err(ApiError::field("capacity_adjustment", words));
            }
            Ok(())
        })
    }

    /// A node that was switched on or off is one more or less to place jobs on.
    fn written<'a>(&'a self, _: &'a Call, tx: &'a mut WriteTx, id: i64, _: &'a Draft) -> Rule<'a> {
        Box::pin(async move {
            instances::adjust(tx, id).await?;
            regroup(tx).await
        })
    }

    fn joined<'a>(&'a self, tx: &'a mut WriteTx, list: &'a str, id: i64, member: i64) -> Rule<'a> {
        Box::pin(async move {
            if list == "instance_groups" { listed(tx, member, id, true).await } else { Ok(()) }
        })
    }

    fn parted<'a>(&'a self, tx: &'a mut WriteTx, list: &'a str, id: i64, member: i64) -> Rule<'a> {
        Box::pin(async move {
            if list == "instance_groups" { listed(tx, member, id, false).await } else { Ok(()) }
        })
    }

    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], detail: bool) -> Rule<'a> {
        Box::pin(async move {
            let live = call.app.nodes.borrow().clone();
            let names: Vec<String> =
                records.iter().map(|record| record.text("hostname").to_owned()).collect();
            let running = jobs_of(call, &names, true).await?;
            let total = jobs_of(call, &names, false).await?;
            let busy = Busy::read(&call.app.db).await?;
            for record in records {
                let of =
                    |counts: &HashMap<String, i64>| counts.get(record.text("hostname")).copied().unwrap_or(0);
                let (running, total) = (of(&running), of(&total));
                record.set("jobs_running", running);
                record.set("jobs_total", total);
                let capacity = record.int("capacity").unwrap_or(0);
                let consumed = busy.nodes.get(record.text("hostname")).copied().unwrap_or(0);
                record.set("consumed_capacity", consumed);
                record.set("percent_capacity_remaining", remaining(capacity, consumed));
                record.set("health_check_pending", false);
                record.set("reverse_peers", json!([]));
                record.set("peers", json!([]));
                // As AWX shows them: cores, and the adjustment as text with two digits.
                let cores = record.int("cpu").unwrap_or(0) as f64 / 1000.0;
                record.set("cpu", format!("{cores:.1}"));
                let adjustment =
                    record.fields.get("capacity_adjustment").and_then(Value::as_f64).unwrap_or(1.0);
                record.set("capacity_adjustment", format!("{adjustment:.2}"));
                record.summary.insert("links".to_owned(), json!([]));
                if detail {
                    let node: Option<NodeId> = record.text("hostname").parse().ok();
                    let said = node.and_then(|node| live.get(&node)?.info.as_ref());
                    let free = said.map(|said| said.free_disk).filter(|free| *free > 0);
                    record.set("free_disk", free);
                    record.set("images", said.map_or(json!([]), |said| json!(said.images)));
                }
            }
            Ok(())
        })
    }
}

/// Forks that jobs keep busy: by node, and by the group that a job was placed by.
#[derive(Default)]
struct Busy {
    nodes: HashMap<String, i64>,
    groups: HashMap<i64, i64>,
}

impl Busy {
    /// As many queries for many jobs as for one.
    async fn read(db: &CoreDb) -> Result<Self, ApiError> {
        let jobs = units::active_jobs(db).await?;
        let inventories: BTreeSet<i64> = jobs.iter().filter_map(|job| job.inventory).collect();
        let hosts = units::host_counts(db, &inventories.into_iter().collect::<Vec<_>>()).await?;
        let mut busy = Self::default();
        for job in &jobs {
            let Some(unit) = &job.unit else { continue };
            let impact = i64::from(job.impact(&hosts));
            *busy.nodes.entry(unit.node.as_str().to_owned()).or_default() += impact;
            if let Some(group) = job.group {
                *busy.groups.entry(group).or_default() += impact;
            }
        }
        Ok(busy)
    }
}

/// What is left of a capacity, in percent.
fn remaining(capacity: i64, consumed: i64) -> f64 {
    if capacity <= 0 {
        return 0.0;
    }
    let left = capacity.saturating_sub(consumed).clamp(0, capacity);
    (left as f64 / capacity as f64 * 10_000.0).round() / 100.0
}

async fn jobs_of(call: &Call, names: &[String], active: bool) -> Result<HashMap<String, i64>, ApiError> {
    if names.is_empty() {
        return Ok(HashMap::new());
    }
    let mut query = Query::select();
    query.column("execution_node").expr(Func::count(Expr::col("id"))).from("unified_jobs");
    query.and_where(Expr::col("execution_node").is_in(names.iter().map(String::as_str)));
    if active {
        query.and_where(Expr::col("status").is_in(["waiting", "running"]));
    }
    query.group_by_col("execution_node");
    let rows = call.app.db.all(&query).await?;
    Ok(rows
        .iter()
        .map(|row| Ok((row.at(0)?, row.at(1)?)))
        .collect::<Result<_, crate::store::core::Error>>()?)
}

/// Whether the order of a table of pairs means something.
pub(super) fn is_ordered(table: &str) -> bool {
    matches!(
        table,
        "job_template_instance_groups"
            | "inventory_instance_groups"
            | "organization_instance_groups"
            | "inventory_inputs"
            | "organization_galaxy_credentials"
    )
}

/// Puts nodes into their groups again, and has jobs placed anew.
fn regroup(tx: &mut WriteTx) -> Rule<'_> {
    Box::pin(async move {
        groups::apply_policies(tx).await?;
        tx.wake();
        Ok(())
    })
}

/// Who puts a node into a group by hand, or takes it out, means it to stay so: the group's list says it.
async fn listed(tx: &mut WriteTx, group: i64, instance: i64, joins: bool) -> Result<(), ApiError> {
    let mut query = Query::select();
    query.column("hostname").from("instances").and_where(Expr::col("id").eq(instance));
    let Some(row) = tx.optional(&query).await? else { return Ok(()) };
    let name: String = row.at(0)?;
    let mut query = Query::select();
    query.column("policy_instance_list").from("instance_groups").and_where(Expr::col("id").eq(group));
    let Some(row) = tx.optional(&query).await? else { return Ok(()) };
    let mut list: Vec<String> = serde_json::from_str(&row.at::<String>(0)?).unwrap_or_default();
    list.retain(|listed| *listed != name);
    if joins {
        list.push(name);
    }
    let mut update = Query::update();
    update.table("instance_groups").value("policy_instance_list", json!(list).to_string());
    tx.execute(update.and_where(Expr::col("id").eq(group))).await?;
    regroup(tx).await
}

/// `jobs/` of an instance group.
pub(super) async fn group_jobs(call: &Call, id: &str) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    let group = generic::visible_id(call, &INSTANCE_GROUPS, id).await?;
    generic::page(call, &UNIFIED_JOBS, Some(Expr::col((BASE, "instance_group_id")).eq(group))).await
}

/// `health_check/`: nodes are asked what they have every minute; here is when that was last, and a POST is heard.
pub(super) async fn health_check(call: &Call, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    let user = call.user()?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Instance Health Check", "actions": {"POST": {}, "GET": {}}}));
    }
    let instance = generic::fetch(call, &INSTANCES, id).await?;
    let (name, kind) = (instance.text("hostname"), instance.text("node_type"));
    if call.method == Method::POST {
        if !user.is_superuser {
            return Err(ApiError::forbidden());
        }
        if kind != "execution" {
            let words = "Cannot run a health check on this type of node.";
            return Err(ApiError::bad(words));
        }
        let words = format!(
            "Nodes are asked every minute by themselves: the next health check of {name} follows within one."
        );
        return ok(json!({"msg": words}));
    }
    let shown = ["uuid", "hostname", "ip_address", "version", "last_health_check", "errors", "cpu", "memory"];
    let more = ["cpu_capacity", "mem_capacity", "capacity"];
    let fields = shown.iter().chain(&more);
    ok(fields
        .map(|name| ((*name).to_owned(), instance.fields.get(*name).cloned().unwrap_or_default()))
        .collect::<serde_json::Map<_, _>>())
}

pub(super) async fn instance_jobs(call: &Call, id: &str) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    let instance = generic::fetch(call, &INSTANCES, id).await?;
    let here = Expr::col((BASE, "execution_node")).eq(instance.text("hostname"));
    generic::page(call, &UNIFIED_JOBS, Some(here)).await
}

pub(super) struct InstanceGroups;

impl Rules for InstanceGroups {
    fn check<'a>(&'a self, _: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            if draft.value("is_container_group") == Some(&Value::Bool(true)) {
                let words = "Plexus runs jobs on nodes of its mesh; container groups are not part of it yet.";
                return Err(ApiError::field("is_container_group", words));
            }
            let own = before.map(|before| before.text("name")).filter(|name| is_fixed(name));
            if own.is_some_and(|own| draft.has("name") && draft.text("name") != own) {
                return Err(ApiError::field(
                    "name",
                    format!("{} cannot be renamed.", own.unwrap_or_default()),
                ));
            }
            match draft.value("policy_instance_list") {
                None | Some(Value::Null) => {}
                // What is preset for any JSON is no list yet.
                Some(Value::Object(empty)) if empty.is_empty() => {
                    draft.set("policy_instance_list", json!([]))
                }
                Some(Value::Array(names)) if names.iter().all(Value::is_string) => {}
                Some(_) => {
                    let words = "Expected a list of names of instances.";
                    return Err(ApiError::field("policy_instance_list", words));
                }
            }
            Ok(())
        })
    }

    fn written<'a>(&'a self, _: &'a Call, tx: &'a mut WriteTx, _: i64, _: &'a Draft) -> Rule<'a> {
        regroup(tx)
    }

    fn deleted<'a>(&'a self, tx: &'a mut WriteTx) -> Rule<'a> {
        regroup(tx)
    }

    fn may_delete<'a>(&'a self, call: &'a Call, record: &'a Record) -> Rule<'a> {
        Box::pin(async move {
            let refuse = |words: String| Err(ApiError::Detail(StatusCode::FORBIDDEN, words));
            if is_fixed(record.text("name")) {
                return refuse(format!("{} cannot be deleted.", record.text("name")));
            }
            let mut running = Query::select();
            running.column("id").from("unified_jobs").and_where(Expr::col("instance_group_id").eq(record.id));
            running.and_where(Expr::col("status").is_in(["waiting", "running"])).limit(1);
            match call.app.db.optional(&running).await? {
                Some(_) => refuse("Jobs are running in this instance group.".to_owned()),
                None => Ok(()),
            }
        })
    }

    fn joined<'a>(&'a self, tx: &'a mut WriteTx, list: &'a str, id: i64, member: i64) -> Rule<'a> {
        Box::pin(async move { if list == "instances" { listed(tx, id, member, true).await } else { Ok(()) } })
    }

    fn parted<'a>(&'a self, tx: &'a mut WriteTx, list: &'a str, id: i64, member: i64) -> Rule<'a> {
        Box::pin(
            async move { if list == "instances" { listed(tx, id, member, false).await } else { Ok(()) } },
        )
    }

    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            if records.is_empty() {
                return Ok(());
            }
            let mut query = Query::select();
            query.column(("m", "instance_group_id"));
            query
                .expr(Func::count(Expr::col(("i", "id"))))
                .expr(Expr::col(("i", "capacity")).sum().cast_as("bigint"));
            query.from_as("instance_group_members", "m");
            query.join_as(
                JoinType::InnerJoin,
                "instances",
                "i",
                Expr::col(("i", "id")).equals(("m", "instance_id")),
            );
            query.and_where(
                Expr::col(("m", "instance_group_id")).is_in(records.iter().map(|record| record.id)),
            );
            query.group_by_col(("m", "instance_group_id"));
            let mut members: HashMap<i64, (i64, i64)> = HashMap::new();
            for row in call.app.db.all(&query).await? {
                members.insert(row.at(0)?, (row.at(1)?, row.at::<Option<i64>>(2)?.unwrap_or(0)));
            }
            let running = group_counts(call, records, true).await?;
            let total = group_counts(call, records, false).await?;
            let busy = Busy::read(&call.app.db).await?;
            for record in records {
                record.set("jobs_running", running.get(&record.id).copied().unwrap_or(0));
                record.set("jobs_total", total.get(&record.id).copied().unwrap_or(0));
                let (instances, capacity) = members.get(&record.id).copied().unwrap_or_default();
                record.set("instances", instances);
                record.set("capacity", capacity);
                let consumed = busy.groups.get(&record.id).copied().unwrap_or(0);
                record.set("consumed_capacity", consumed);
                record.set("percent_capacity_remaining", remaining(capacity, consumed));
                if let Some(list) = record.fields.get_mut("policy_instance_list")
                    && !list.is_array()
                {
                    *list = json!([]);
                }
            }
            Ok(())
        })
    }
}

/// Groups that every installation has.
fn is_fixed(name: &str) -> bool {
    matches!(name, groups::DEFAULT | groups::CONTROL_PLANE)
}

/// Jobs by instance group.
async fn group_counts(call: &Call, records: &[Record], active: bool) -> Result<HashMap<i64, i64>, ApiError> {
    let mut query = Query::select();
    query.column("instance_group_id").expr(Func::count(Expr::col("id"))).from("unified_jobs");
    query.and_where(Expr::col("instance_group_id").is_in(records.iter().map(|record| record.id)));
    if active {
        query.and_where(Expr::col("status").is_in(["waiting", "running"]));
    }
    query.group_by_col("instance_group_id");
    let mut counts = HashMap::new();
    for row in call.app.db.all(&query).await? {
        counts.insert(row.at(0)?, row.at(1)?);
    }
    Ok(counts)
}

/// Nodes and links for the picture of the mesh.
pub(super) async fn mesh_visualizer(call: &Call) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    if !call.user()?.is_superuser {
        return Err(ApiError::forbidden());
    }
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Mesh Visualizer", "actions": {"GET": {}}}));
    }
    let mut query = Query::select();
    query.columns(["id", "hostname", "node_type", "node_state", "enabled"]).from("instances");
    query.order_by("id", Order::Asc);
    let mut nodes = Vec::new();
    for row in call.app.db.all(&query).await? {
        nodes.push(json!({
            "id": row.at::<i64>(0)?,
            "hostname": row.at::<String>(1)?,
            "node_type": row.at::<String>(2)?,
            "node_state": row.at::<String>(3)?,
            "enabled": row.at::<bool>(4)?,
        }));
    }
    let links: Vec<Value> = call
        .app
        .mesh
        .links()
        .into_iter()
        .enumerate()
        .map(|(number, (source, target))| {
            json!({
                "id": number + 1,
                "related": {},
                "source": source.as_str(),
                "target": target.as_str(),
                "target_full_address": "",
                "link_state": "established",
            })
        })
        .collect();
    ok(json!({"nodes": nodes, "links": links}))
}
