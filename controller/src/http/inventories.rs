//! Inventories, hosts, groups: counts, variables, the document for Ansible, and groups in groups.

use std::collections::{HashMap, HashSet};

use axum::http::{Method, StatusCode};
use sea_query::{Expr, ExprTrait, Func, JoinType, Query};
use serde_json::{Map, Value, json};

use super::activity::{self, Entry};
use super::call::Call;
use super::error::ApiError;
use super::rules::{Rule, Rules};
use super::{Answer, access, generic, ok};
use crate::facts;
use crate::inventory::{self, Script};
use crate::registry::read::{BASE, Record};
use crate::registry::roles::ADMIN;
use crate::registry::write::{Draft, parse_variables};
use crate::registry::{GROUPS, HOSTS, INVENTORIES, Resource};
use crate::store::core::{Class, WriteTx};

const READS: &str = "GET, HEAD, OPTIONS";

pub(super) struct Inventories;

impl Rules for Inventories {
    fn check<'a>(&'a self, _: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            let kind = draft.text("kind");
            if draft.has("kind") && before.is_some_and(|before| before.text("kind") != kind) {
                return Err(ApiError::Detail(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "Inventory kind cannot be changed.".to_owned(),
                ));
            }
            if !kind.is_empty() {
                let words = "Only inventories whose hosts are entered can be made so far: leave kind empty.";
                return Err(ApiError::field("kind", words));
            }
            if draft
                .value("host_filter")
                .is_some_and(|filter| filter.as_str().is_some_and(|text| !text.is_empty()))
            {
                return Err(ApiError::field("host_filter", "host_filter is for smart inventories."));
            }
            if draft.text("host_filter").is_empty() && draft.has("host_filter") {
                draft.set("host_filter", Value::Null);
            }
            Ok(())
        })
    }

    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            let ids: Vec<i64> = records.iter().map(|record| record.id).collect();
            let hosts = counted(call, "hosts", &ids, false).await?;
            let failing = counted(call, "hosts", &ids, true).await?;
            let groups = counted(call, "groups", &ids, false).await?;
            for record in records {
                let of = |counts: &HashMap<i64, i64>| counts.get(&record.id).copied().unwrap_or(0);
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

async fn counted(
    call: &Call,
    table: &'static str,
    ids: &[i64],
    failing: bool,
) -> Result<HashMap<i64, i64>, ApiError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let mut query = Query::select();
    query.column("inventory_id").expr(Func::count(Expr::col("id"))).from(table);
    query.and_where(Expr::col("inventory_id").is_in(ids.iter().copied())).group_by_col("inventory_id");
    if failing {
        query.and_where(Expr::col("has_active_failures").eq(true));
    }
    let rows = call.app.db.all(&query).await?;
    Ok(rows
        .iter()
        .map(|row| Ok((row.at(0)?, row.at(1)?)))
        .collect::<Result<_, crate::store::core::Error>>()?)
}

pub(super) struct Hosts;

impl Rules for Hosts {
    fn check<'a>(&'a self, _: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move { stays_in_inventory(draft, before) })
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
    fn check<'a>(&'a self, _: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            // These have a meaning of their own in Ansible.
            if matches!(draft.text("name"), "all" | "_meta") {
                return Err(ApiError::field("name", "Invalid group name."));
            }
            stays_in_inventory(draft, before)
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
        query.column("variables").from("hosts");
        query.and_where(Expr::col("inventory_id").eq(id)).and_where(Expr::col("name").eq(host));
        let row = call.app.db.optional(&query).await?.ok_or_else(|| ApiError::missing("Host"))?;
        return ok(parse_variables(&row.at::<String>(0)?).unwrap_or_default());
    }
    let script = Script { hostvars: set("hostvars"), towervars: set("towervars"), all: set("all") };
    ok(inventory::script(&call.app.db, id, script).await?)
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

/// All hosts of a group and of the groups below it.
pub(super) async fn all_hosts(call: &Call, id: &str) -> Answer {
    call.allow(READS)?;
    let id = generic::visible_id(call, &GROUPS, id).await?;
    let known = reached(call, vec![id], "group_id", "child_id").await?;
    let mut members = Query::select();
    members.column("host_id").from("group_hosts").and_where(Expr::col("group_id").is_in(known));
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
