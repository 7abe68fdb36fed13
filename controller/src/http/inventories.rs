//! Inventories, hosts, groups: counts, variables, the document for Ansible, and groups in groups.

mod constructed;

use std::collections::{BTreeMap, HashMap, HashSet};

use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use sea_query::{Expr, ExprTrait, Func, JoinType, Query};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::activity::{self, Entry};
use super::call::Call;
use super::error::ApiError;
use super::rules::{Rule, Rules};
use super::{Answer, access, generic, ok, paging};
use crate::facts;
use crate::inventory::members::{self, Members, Only, SMART};
use crate::inventory::{self, Script};
use crate::registry::read::{self, BASE, Record};
use crate::registry::roles::ADMIN;
use crate::registry::write::{Draft, parse_variables};
use crate::registry::{CONSTRUCTED_INVENTORIES, GROUPS, HOSTS, INVENTORIES, Resource};
use crate::store::core::{Class, WriteTx};

const READS: &str = "GET, HEAD, OPTIONS";

pub(super) struct Inventories;

impl Rules for Inventories {
    fn check<'a>(&'a self, call: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            if *draft.resource == CONSTRUCTED_INVENTORIES {
                constructed::check(draft);
                return Ok(());
            }
            let was = |name: &str| before.map(|before| before.text(name)).unwrap_or_default();
            if draft.has("kind") && before.is_some() && was("kind") != draft.text("kind") {
                return Err(ApiError::Detail(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "Inventory kind cannot be changed.".to_owned(),
                ));
            }
            let kind = if before.is_some() { was("kind") } else { draft.text("kind") }.to_owned();
            if draft.has("host_filter") && draft.text("host_filter").is_empty() {
                draft.set("host_filter", Value::Null);
            }
            let filter =
                if draft.has("host_filter") { draft.text("host_filter") } else { was("host_filter") };
            if kind != SMART {
                return match draft.text("host_filter") {
                    "" => Ok(()),
                    _ => Err(ApiError::field("host_filter", "host_filter is for smart inventories.")),
                };
            }
            if filter.is_empty() {
                return Err(ApiError::field("host_filter", "Smart inventories must specify host_filter"));
            }
            let of = |record: &Record| record.int("organization");
            let organization = draft.int("organization").or_else(|| before.and_then(of)).unwrap_or(0);
            members::check(filter, organization, call.app.db.engine())
                .map_err(|error| ApiError::field("host_filter", error.to_string()))?;
            Ok(())
        })
    }

    fn written<'a>(&'a self, call: &'a Call, tx: &'a mut WriteTx, id: i64, draft: &'a Draft) -> Rule<'a> {
        Box::pin(async move { constructed::keep(call, tx, id, draft).await })
    }

    fn may_attach<'a>(&'a self, tx: &'a mut WriteTx, list: &'a str, id: i64, member: i64) -> Rule<'a> {
        Box::pin(async move {
            match list {
                "input_inventories" => constructed::may_be_made_of(tx, id, member).await,
                _ => Ok(()),
            }
        })
    }

    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            let ids: Vec<i64> = records.iter().map(|record| record.id).collect();
            constructed::show(call, records).await?;
            let hosts = members::counts(&call.app.db, &ids, Only::All).await?;
            let failing = members::counts(&call.app.db, &ids, Only::Failing).await?;
            let groups = groups_of(call, &ids).await?;
            for record in records {
                let of = |counts: &BTreeMap<i64, i64>| counts.get(&record.id).copied().unwrap_or(0);
                let (hosts, failing, groups) = (of(&hosts), of(&failing), of(&groups));
                record.set("has_active_failures", failing > 0);
                record.set("total_hosts", hosts);
                record.set("hosts_with_active_failures", failing);
                record.set("total_groups", groups);
            }
            Ok(())
        })
    }
}

async fn groups_of(call: &Call, ids: &[i64]) -> Result<BTreeMap<i64, i64>, ApiError> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut query = Query::select();
    query.column("inventory_id").expr(Func::count(Expr::col("id"))).from("groups");
    query.and_where(Expr::col("inventory_id").is_in(ids.iter().copied())).group_by_col("inventory_id");
    let rows = call.app.db.all(&query).await?;
    Ok(rows
        .iter()
        .map(|row| Ok((row.at(0)?, row.at(1)?)))
        .collect::<Result<_, crate::store::core::Error>>()?)
}

/// The hosts of an inventory. Those of a smart one are shown to whoever sees it, though they belong to others.
pub(super) async fn hosts(call: &Call, id: i64) -> Answer {
    let members = Members::of(&call.app.db, id).await?;
    let condition = members.condition(BASE);
    if members.is_smart() {
        return paging::members(call, &HOSTS, condition).await;
    }
    generic::page(call, &HOSTS, Some(condition)).await
}

/// Hosts and groups are entered only where they are neither chosen by a filter nor made of others.
async fn takes_entries(call: &Call, draft: &Draft, what: &str) -> Result<(), ApiError> {
    let Some(inventory) = draft.int("inventory") else { return Ok(()) };
    let mut query = Query::select();
    query.column("kind").from("inventories").and_where(Expr::col("id").eq(inventory));
    match call.app.db.optional(&query).await? {
        Some(row) if !row.at::<String>(0)?.is_empty() => {
            let words = format!("Cannot create {what} for Smart or Constructed Inventories");
            Err(ApiError::Body(StatusCode::BAD_REQUEST, json!({"inventory": {"detail": [words]}})))
        }
        _ => Ok(()),
    }
}

pub(super) struct Hosts;

impl Rules for Hosts {
    fn check<'a>(&'a self, call: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            stays_in_inventory(draft, before)?;
            takes_entries(call, draft, "Host").await
        })
    }

    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            let mut groups: HashMap<i64, Vec<Value>> = HashMap::new();
            if !records.is_empty() {
                let mut query = Query::select();
                query.column(("p", "host_id")).columns([("g", "id"), ("g", "name")]);
                query.from_as("group_hosts", "p");
                query.join_as(
                    JoinType::InnerJoin,
                    "groups",
                    "g",
                    Expr::col(("g", "id")).equals(("p", "group_id")),
                );
                query.and_where(Expr::col(("p", "host_id")).is_in(records.iter().map(|record| record.id)));
                query.order_by(("g", "name"), sea_query::Order::Asc);
                for row in call.app.db.all(&query).await? {
                    let group = json!({"id": row.at::<i64>(1)?, "name": row.at::<String>(2)?});
                    groups.entry(row.at(0)?).or_default().push(group);
                }
            }
            for record in records {
                let all = groups.remove(&record.id).unwrap_or_default();
                let first: Vec<Value> = all.iter().take(5).cloned().collect();
                record.summary.insert("groups".to_owned(), json!({"count": all.len(), "results": first}));
            }
            Ok(())
        })
    }

    fn may_attach<'a>(&'a self, tx: &'a mut WriteTx, _: &'a str, id: i64, member: i64) -> Rule<'a> {
        Box::pin(async move { same_inventory(tx, ("hosts", id), ("groups", member)).await })
    }
}

pub(super) struct Groups;

impl Rules for Groups {
    fn check<'a>(&'a self, call: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            // These have a meaning of their own in Ansible.
            if matches!(draft.text("name"), "all" | "_meta") {
                return Err(ApiError::field("name", "Invalid group name."));
            }
            stays_in_inventory(draft, before)?;
            takes_entries(call, draft, "Group").await
        })
    }

    fn may_attach<'a>(&'a self, tx: &'a mut WriteTx, list: &'a str, id: i64, member: i64) -> Rule<'a> {
        Box::pin(async move {
            if list == "hosts" {
                return same_inventory(tx, ("groups", id), ("hosts", member)).await;
            }
            same_inventory(tx, ("groups", id), ("groups", member)).await?;
            if below(tx, member).await?.contains(&id) {
                let words = json!({"error": "Cyclical Group association."});
                return Err(ApiError::Body(StatusCode::BAD_REQUEST, words));
            }
            Ok(())
        })
    }
}

fn stays_in_inventory(draft: &mut Draft, before: Option<&Record>) -> Result<(), ApiError> {
    let Some(before) = before else { return Ok(()) };
    match draft.take("inventory") {
        Some(new) if new.as_i64() != before.int("inventory") => {
            Err(ApiError::field("inventory", "Cannot be moved to another inventory."))
        }
        _ => Ok(()),
    }
}

async fn same_inventory(
    tx: &mut WriteTx,
    one: (&'static str, i64),
    other: (&'static str, i64),
) -> Result<(), ApiError> {
    let mut found = Vec::new();
    for (table, id) in [one, other] {
        let mut query = Query::select();
        query.column("inventory_id").from(table).and_where(Expr::col("id").eq(id));
        found.push(tx.optional(&query).await?.map(|row| row.at::<i64>(0)).transpose()?);
    }
    if found[0] == found[1] {
        return Ok(());
    }
    let words = json!({"error": "Hosts and groups belong together only within one inventory."});
    Err(ApiError::Body(StatusCode::BAD_REQUEST, words))
}

/// A group and all groups below it.
async fn below(tx: &mut WriteTx, group: i64) -> Result<HashSet<i64>, ApiError> {
    let mut known = HashSet::from([group]);
    let mut fresh = vec![group];
    while !fresh.is_empty() {
        let mut query = Query::select();
        query
            .column("child_id")
            .from("group_children")
            .and_where(Expr::col("group_id").is_in(std::mem::take(&mut fresh)));
        for row in tx.all(&query).await? {
            let child = row.at(0)?;
            if known.insert(child) {
                fresh.push(child);
            }
        }
    }
    Ok(known)
}

pub(super) async fn script(call: &Call, id: &str) -> Answer {
    call.allow(READS)?;
    let id = generic::visible_id(call, &INVENTORIES, id).await?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Inventory Script"}));
    }
    let set =
        |name: &str| call.parameter(name).is_some_and(|value| matches!(value, "1" | "true" | "True" | "yes"));
    if let Some(host) = call.parameter("host").filter(|host| !host.is_empty()) {
        let mut query = Query::select();
        query.column(("b", "variables")).from_as("hosts", "b");
        query.and_where(Members::of(&call.app.db, id).await?.condition("b"));
        query.and_where(Expr::col(("b", "name")).eq(host));
        let row = call.app.db.optional(&query).await?.ok_or_else(|| ApiError::missing("Host"))?;
        return ok(parse_variables(&row.at::<String>(0)?).unwrap_or_default());
    }
    let script = Script { hostvars: set("hostvars"), towervars: set("towervars"), all: set("all") };
    let db = call.app.db.clone();
    let outline = inventory::outline(&db, id, script).await?;
    let (to, pieces) = mpsc::channel(inventory::AHEAD);
    // Ends with the answer: when the client goes away, nobody listens any more.
    tokio::spawn(async move {
        if let Err(error) = outline.send(&db, &to).await {
            tracing::warn!(
                inventory = id,
                error = &error as &dyn std::error::Error,
                "an inventory broke off"
            );
            let _ = to.send(Err(error)).await;
        }
    });
    let pieces = futures_util::stream::unfold(pieces, |mut pieces| async {
        pieces.recv().await.map(|piece| (piece, pieces))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

pub(super) async fn root_groups(call: &Call, id: &str) -> Answer {
    call.allow(READS)?;
    let id = generic::visible_id(call, &INVENTORIES, id).await?;
    let mut children = Query::select();
    children.column("child_id").from("group_children");
    let roots =
        Expr::col((BASE, "inventory_id")).eq(id).and(Expr::col((BASE, "id")).not_in_subquery(children));
    generic::page(call, &GROUPS, Some(roots)).await
}

/// `tree/`: the groups that are below none, each with those below it.
pub(super) async fn tree(call: &Call, id: &str) -> Answer {
    call.allow(READS)?;
    let id = generic::visible_id(call, &INVENTORIES, id).await?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Inventory Tree", "actions": {"GET": {}}}));
    }
    let mut query = read::select(&GROUPS, false);
    query.and_where(Expr::col((BASE, "inventory_id")).eq(id)).order_by((BASE, "name"), sea_query::Order::Asc);
    let mut groups = BTreeMap::new();
    let mut names = Vec::new();
    for row in call.app.db.all(query.limit(TREE_MAX)).await? {
        let group = read::record(&GROUPS, false, &row)?;
        names.push(group.id);
        groups.insert(group.id, group);
    }
    let mut query = Query::select();
    query.columns([("p", "group_id"), ("p", "child_id")]).from_as("group_children", "p");
    let of = Expr::col(("g", "id")).equals(("p", "group_id"));
    query.join_as(JoinType::InnerJoin, "groups", "g", of).and_where(Expr::col(("g", "inventory_id")).eq(id));
    let mut children: HashMap<i64, HashSet<i64>> = HashMap::new();
    let mut below: HashSet<i64> = HashSet::new();
    for row in call.app.db.all(&query).await? {
        let (group, child) = (row.at(0)?, row.at(1)?);
        children.entry(group).or_default().insert(child);
        below.insert(child);
    }
    let mut left = TREE_MAX;
    let roots: Vec<Value> = names
        .iter()
        .filter(|id| !below.contains(*id))
        .filter_map(|id| branch(*id, &groups, &children, &names, 0, &mut left))
        .collect();
    ok(roots)
}

/// Groups that a tree shows at most: one with many parents is there many times.
const TREE_MAX: u64 = 10_000;
/// Deepest branch that is shown.
const DEEPEST: usize = 32;

fn branch(
    id: i64,
    groups: &BTreeMap<i64, Record>,
    children: &HashMap<i64, HashSet<i64>>,
    order: &[i64],
    depth: usize,
    left: &mut u64,
) -> Option<Value> {
    *left = left.checked_sub(1)?;
    let mut object = groups.get(&id)?.clone().into_json();
    let own = children.get(&id).filter(|_| depth < DEEPEST);
    let below: Vec<Value> = order
        .iter()
        .filter(|child| own.is_some_and(|own| own.contains(*child)))
        .filter_map(|child| branch(*child, groups, children, order, depth + 1, left))
        .collect();
    object.insert("children".to_owned(), below.into());
    Some(object.into())
}

/// A group and all groups below it, for who sees it.
pub(super) async fn below_groups(call: &Call, group: i64) -> Result<HashSet<i64>, ApiError> {
    reached(call, vec![group], "group_id", "child_id").await
}

/// The hosts of any of these groups.
pub(super) fn members_of(groups: HashSet<i64>) -> sea_query::SelectStatement {
    let mut members = Query::select();
    members.column("host_id").from("group_hosts").and_where(Expr::col("group_id").is_in(groups)).take()
}

/// All hosts of a group and of the groups below it.
pub(super) async fn all_hosts(call: &Call, id: &str) -> Answer {
    call.allow(READS)?;
    let id = generic::visible_id(call, &GROUPS, id).await?;
    let members = members_of(below_groups(call, id).await?);
    generic::page(call, &HOSTS, Some(Expr::col((BASE, "id")).in_subquery(members))).await
}

/// All groups that a host belongs to: its own, and those above them.
pub(super) async fn all_groups(call: &Call, id: &str) -> Answer {
    call.allow(READS)?;
    let id = generic::visible_id(call, &HOSTS, id).await?;
    let mut own = Query::select();
    own.column("group_id").from("group_hosts").and_where(Expr::col("host_id").eq(id));
    let rows = call.app.db.all(&own).await?;
    let own = rows.iter().map(|row| row.at(0)).collect::<Result<Vec<i64>, _>>()?;
    let known = reached(call, own, "child_id", "group_id").await?;
    generic::page(call, &GROUPS, Some(Expr::col((BASE, "id")).is_in(known))).await
}

/// The groups that could be put below a group: all of its inventory but itself, those above it, and its children.
pub(super) async fn potential_children(call: &Call, id: &str) -> Answer {
    call.allow(READS)?;
    let group = generic::fetch(call, &GROUPS, id).await?;
    let above = reached(call, vec![group.id], "child_id", "group_id").await?;
    let mut children = Query::select();
    children.column("child_id").from("group_children").and_where(Expr::col("group_id").eq(group.id));
    let of_inventory = Expr::col((BASE, "inventory_id")).eq(group.int("inventory"));
    let free = Expr::col((BASE, "id")).is_not_in(above);
    let own = Expr::col((BASE, "id")).not_in_subquery(children);
    generic::page(call, &GROUPS, Some(of_inventory.and(free).and(own))).await
}

/// The groups that one comes to from these, themselves included, by walking from one column of the pairs of group and
/// child to the other. One query for each level.
async fn reached(
    call: &Call,
    start: Vec<i64>,
    from: &'static str,
    to: &'static str,
) -> Result<HashSet<i64>, ApiError> {
    let mut known: HashSet<i64> = start.iter().copied().collect();
    let mut fresh = start;
    while !fresh.is_empty() {
        let mut query = Query::select();
        query.column(to).from("group_children");
        query.and_where(Expr::col(from).is_in(std::mem::take(&mut fresh)));
        for row in call.app.db.all(&query).await? {
            let group = row.at(0)?;
            if known.insert(group) {
                fresh.push(group);
            }
        }
    }
    Ok(known)
}

/// The variables as an object: read, replaced, or merged.
pub(super) async fn variable_data(call: &Call, resource: &'static Resource, id: &str) -> Answer {
    call.allow("GET, PUT, PATCH, HEAD, OPTIONS")?;
    let record = generic::fetch(call, resource, id).await?;
    let mut variables = parse_variables(record.text("variables")).unwrap_or_default();
    match call.method {
        Method::PUT | Method::PATCH => {
            access::need(call, resource, record.id, ADMIN).await?;
            let given = call.object()?;
            let before = record.fields.get("variables").cloned().unwrap_or_default();
            if call.method == Method::PUT {
                variables = given;
            } else {
                variables.extend(given);
            }
            let mut update = Query::update();
            update.table(resource.table.name).value("variables", Value::from(variables.clone()).to_string());
            update.value("modified", jiff::Timestamp::now().as_microsecond());
            let mut tx = call.app.db.begin(Class::Intent).await?;
            tx.execute(update.and_where(Expr::col("id").eq(record.id))).await?;
            let after = Value::from(Value::from(variables.clone()).to_string());
            if before != after {
                let changes = Map::from_iter([("variables".to_owned(), json!([before, after]))]);
                let entry = Entry::on("update", resource, record.id, changes, |name| record.int(name));
                activity::note(call, &mut tx, entry).await?;
            }
            tx.commit().await?;
            ok(variables)
        }
        Method::OPTIONS => ok(json!({"name": "Variable Data", "actions": {"PUT": {}, "GET": {}}})),
        _ => ok(Map::from_iter(variables)),
    }
}

/// What the last job that keeps facts found out about a host.
pub(super) async fn ansible_facts(call: &Call, id: &str) -> Answer {
    call.allow(READS)?;
    let id = generic::visible_id(call, &HOSTS, id).await?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Ansible Facts", "actions": {"GET": {}}}));
    }
    let facts = facts::of_host(&call.app.db, id).await?;
    ok(facts.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_else(|| json!({})))
}
