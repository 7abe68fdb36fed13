//! What would happen, and why something does not: the planner's facts in words. Nothing is started or stored here.

use std::collections::{BTreeMap, BTreeSet};

use axum::http::Method;
use plexus_proto::id::NodeId;
use sea_query::{Expr, ExprTrait, Order, Query};
use serde_json::{Value, json};

use super::call::Call;
use super::error::ApiError;
use super::templates::attached;
use super::{Answer, generic, ok};
use crate::kind::Kind;
use crate::registry::JOB_TEMPLATES;
use crate::schedule::{self, Candidate, Fleet, Wait};
use crate::store::core::{CoreDb, Error as StoreError};
use crate::store::{groups, units};

/// `jobs/N/why/`, and of every other kind: why a job is where it is, in one sentence.
pub(super) async fn why(call: &Call, kind: Kind, id: &str) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    call.user()?;
    let resource = kind.names().resource;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": format!("{} Why", resource.label), "actions": {"GET": {}}}));
    }
    let job = generic::fetch(call, resource, id).await?;
    let group = job.summary.get("instance_group").cloned().unwrap_or_default();
    let (status, node, said) = (job.text("status"), job.text("execution_node"), job.text("job_explanation"));
    let placed = || match group["name"].as_str() {
        Some(name) => format!("node {node}, which instance group {name} gave it"),
        None => format!("node {node}"),
    };
    let why = match status {
        "new" | "pending" if said.is_empty() => {
            "waiting: it is placed next, after the jobs that were launched before it".to_owned()
        }
        "waiting" if said.is_empty() => format!("{} prepares it", placed()),
        "running" if said.is_empty() => format!("it runs on {}", placed()),
        "new" | "pending" | "waiting" | "running" => said.to_owned(),
        _ if said.is_empty() => format!("it is over: {status}"),
        _ => format!("it is over: {status}: {said}"),
    };
    ok(json!({
        (kind.names().owner): job.id,
        "status": status,
        "why": why,
        "execution_node": node,
        "instance_group": group,
        "image": job.text("image"),
        "image_reason": job.text("image_reason"),
    }))
}

/// `job_templates/N/plan/`: what a launch without answers would run, with what, and where.
pub(super) async fn of_template(call: &Call, id: &str) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    call.user()?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Job Template Plan", "actions": {"GET": {}}}));
    }
    let db = &call.app.db;
    let template = generic::fetch(call, &JOB_TEMPLATES, id).await?;
    let credentials = attached(db, "job_template_credentials", "job_template_id", &[template.id]).await?;
    let credentials: Vec<Value> =
        credentials.values().flatten().map(|credential| credential.as_default()).collect();
    let environment = template.summary.get("resolved_environment").cloned().unwrap_or_default();
    let digest = last_digest(db, environment["image"].as_str().unwrap_or_default()).await?;
    let inventory = template.int("inventory");
    let hosts = units::host_counts(db, &inventory.into_iter().collect::<Vec<_>>()).await?;
    let hosts = inventory.and_then(|id| hosts.get(&id).copied()).unwrap_or(0);
    let impact = schedule::impact(template.int("forks").unwrap_or(0), hosts);

    let (all, default) = groups::all(db).await?;
    let wanted = groups::Lists::read(db).await?;
    let wanted = wanted.wanted(None, Some(template.id), inventory, template.int("organization"));
    let wanted = wanted.groups(default);
    let names: Vec<Value> =
        wanted.iter().filter_map(|id| Some(json!({"id": id, "name": all.get(id)?.name}))).collect();
    let jobs = units::active_jobs(db).await?;
    let first = jobs.iter().find(|job| job.template == Some(template.id)).map(|job| job.id);
    let behind = first.filter(|_| !template.flag("allow_simultaneous"));
    let found = match behind {
        Some(first) => Err(Wait::Behind(first)),
        None => fleet(db, all, &jobs).await?.place(impact, &wanted),
    };
    let (node, group, why) = match found {
        Ok(placed) => {
            let name = wanted.iter().position(|id| *id == placed.group).and_then(|at| names.get(at));
            let name = name.and_then(|group| group["name"].as_str()).unwrap_or_default().to_owned();
            let why = format!("node {} has most free capacity of instance group {name}", placed.node);
            (Value::from(placed.node.as_str()), Value::from(placed.group), why)
        }
        Err(wait) => (Value::Null, Value::Null, wait.to_string()),
    };
    let route = node.as_str().map(|node| route(call, node)).unwrap_or_default();
    ok(json!({
        "job_template": template.id,
        "playbook": template.text("playbook"),
        "project": template.summary.get("project"),
        "inventory": template.summary.get("inventory"),
        "hosts": hosts,
        "forks": impact.saturating_sub(1),
        "impact": impact,
        "credentials": credentials,
        "execution_environment": environment,
        "image_digest_of_last_job": digest,
        "instance_groups": names,
        "instance_group": group,
        "execution_node": node,
        "route": route,
        "why": why,
    }))
}

/// The digest that an image had when it ran last: what runs next is known only once a node has it.
async fn last_digest(db: &CoreDb, image: &str) -> Result<Value, StoreError> {
    let mut query = Query::select();
    query.column("image_digest").from("unified_jobs").and_where(Expr::col("image").eq(image));
    query.and_where(Expr::col("image_digest").is_not_null()).order_by("id", Order::Desc).limit(1);
    let row = db.optional(&query).await?;
    Ok(row.map(|row| row.at::<Option<String>>(0)).transpose()?.flatten().into())
}

/// The fleet as the database knows it: what the mesh showed last, and what runs there.
async fn fleet(
    db: &CoreDb,
    all: BTreeMap<i64, schedule::Group>,
    jobs: &[units::ActiveJob],
) -> Result<Fleet, ApiError> {
    let mut query = Query::select();
    query.columns(["hostname", "node_state", "enabled", "capacity", "errors"]).from("instances");
    query.and_where(Expr::col("node_type").is_in(["execution", "hybrid"]));
    let mut nodes: BTreeMap<NodeId, Candidate> = BTreeMap::new();
    for row in db.all(&query).await? {
        let Ok(name) = row.at::<String>(0)?.parse() else { continue };
        let reachable = row.at::<String>(1)? == "ready";
        let capacity = u32::try_from(row.at::<i64>(3)?).unwrap_or_default();
        // Of a node that is switched on, it says that it was cordoned on its machine.
        let closed = Some(row.at::<String>(4)?).filter(|words| !words.is_empty());
        nodes.insert(name, Candidate { reachable, enabled: row.at(2)?, closed, capacity, busy: 0 });
    }
    let inventories: BTreeSet<i64> = jobs.iter().filter_map(|job| job.inventory).collect();
    let hosts = units::host_counts(db, &inventories.into_iter().collect::<Vec<_>>()).await?;
    let mut fleet = Fleet::new(nodes, all);
    for job in jobs {
        let Some(unit) = &job.unit else { continue };
        fleet.occupy(&unit.node, job.group, job.impact(&hosts));
    }
    Ok(fleet)
}

/// How the mesh reaches a node now; null if it knows no way.
fn route(call: &Call, node: &str) -> Value {
    let routes = call.app.mesh.routes();
    let found = routes["routes"].as_array().into_iter().flatten().find(|route| route["node"] == node);
    found.map_or(
        Value::Null,
        |route| json!({"next_hop": route["next_hop"], "hops": route["hops"], "cost": route["cost"]}),
    )
}
