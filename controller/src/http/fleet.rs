//! Nodes and their groups, and the picture of the mesh.

use std::collections::HashMap;

use axum::http::Method;
use sea_query::{Expr, ExprTrait, Func, JoinType, Order, Query};
use serde_json::{Value, json};

use super::call::Call;
use super::error::ApiError;
use super::rules::{Rule, Rules};
use super::{Answer, generic, ok};
use crate::registry::read::{BASE, Record};
use crate::registry::write::Draft;
use crate::registry::{INSTANCES, UNIFIED_JOBS};
use crate::store::core::WriteTx;

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
    fn written<'a>(&'a self, _: &'a Call, tx: &'a mut WriteTx, _: i64, _: &'a Draft) -> Rule<'a> {
        Box::pin(async move {
            tx.wake();
            Ok(())
        })
    }

    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            let names: Vec<String> =
                records.iter().map(|record| record.text("hostname").to_owned()).collect();
            let running = jobs_of(call, &names, true).await?;
            let total = jobs_of(call, &names, false).await?;
            for record in records {
                let of =
                    |counts: &HashMap<String, i64>| counts.get(record.text("hostname")).copied().unwrap_or(0);
                let (running, total) = (of(&running), of(&total));
                record.set("jobs_running", running);
                record.set("jobs_total", total);
                let capacity = record.int("capacity").unwrap_or(0);
                record.set("percent_capacity_remaining", if capacity > 0 { 100.0 } else { 0.0 });
                // As AWX shows them: cores, and the adjustment as text with two digits.
                let cores = record.int("cpu").unwrap_or(0) as f64 / 1000.0;
                record.set("cpu", format!("{cores:.1}"));
                let adjustment =
                    record.fields.get("capacity_adjustment").and_then(Value::as_f64).unwrap_or(1.0);
                record.set("capacity_adjustment", format!("{adjustment:.2}"));
                record.summary.insert("links".to_owned(), json!([]));
            }
            Ok(())
        })
    }
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

pub(super) async fn instance_jobs(call: &Call, id: &str) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    let instance = generic::fetch(call, &INSTANCES, id).await?;
    let here = Expr::col((BASE, "execution_node")).eq(instance.text("hostname"));
    generic::page(call, &UNIFIED_JOBS, Some(here)).await
}

pub(super) struct InstanceGroups;

impl Rules for InstanceGroups {
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
            for record in records {
                let (instances, capacity) = members.get(&record.id).copied().unwrap_or_default();
                record.set("instances", instances);
                record.set("capacity", capacity);
                record.set("percent_capacity_remaining", if capacity > 0 { 100.0 } else { 0.0 });
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
