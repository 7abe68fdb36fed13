//! An inventory as Ansible reads it: groups with hosts, children and variables, and every host's variables.

use std::collections::{BTreeMap, HashMap, HashSet};

use sea_query::{Expr, ExprTrait, JoinType, Order, Query};
use serde_json::{Map, Value, json};

use crate::registry::write::parse_variables;
use crate::store::core::{CoreDb, Error};

/// What goes into the document.
#[derive(Debug, Clone, Copy, Default)]
pub struct Script {
    /// `_meta.hostvars` with the variables of every host.
    pub hostvars: bool,
    /// Ids and state of every host among its variables.
    pub towervars: bool,
    /// Disabled hosts too.
    pub all: bool,
}

/// The document for one inventory, in as many queries for many hosts as for one.
///
/// Variables that cannot be read (they were checked when they were saved) count as none.
///
/// # Errors
/// What the database says.
pub async fn script(db: &CoreDb, inventory: i64, script: Script) -> Result<Map<String, Value>, Error> {
    let mut query = Query::select();
    query.column("variables").from("inventories").and_where(Expr::col("id").eq(inventory));
    let row = db.optional(&query).await?;
    let variables = row.map(|row| row.at::<String>(0)).transpose()?.unwrap_or_default();

    let mut query = Query::select();
    query.columns(["id", "name", "enabled", "variables"]).from("hosts");
    query.and_where(Expr::col("inventory_id").eq(inventory)).order_by("name", Order::Asc);
    if !script.all {
        query.and_where(Expr::col("enabled").eq(true));
    }
    let mut hosts: HashMap<i64, String> = HashMap::new();
    let mut names = Vec::new();
    let mut hostvars = Map::new();
    for row in db.all(&query).await? {
        let (id, name) = (row.at::<i64>(0)?, row.at::<String>(1)?);
        if script.hostvars {
            let mut variables = parse_variables(&row.at::<String>(3)?).unwrap_or_default();
            if script.towervars {
                let enabled = if row.at::<bool>(2)? { "true" } else { "false" };
                variables.insert("remote_tower_enabled".to_owned(), enabled.into());
                variables.insert("remote_tower_id".to_owned(), id.into());
                variables.insert("remote_host_enabled".to_owned(), enabled.into());
                variables.insert("remote_host_id".to_owned(), id.into());
            }
            hostvars.insert(name.clone(), variables.into());
        }
        hosts.insert(id, name.clone());
        names.push(name);
    }

    let mut query = Query::select();
    query.columns(["id", "name", "variables"]).from("groups");
    query.and_where(Expr::col("inventory_id").eq(inventory)).order_by("name", Order::Asc);
    let mut groups: BTreeMap<i64, (String, String)> = BTreeMap::new();
    let mut order = Vec::new();
    for row in db.all(&query).await? {
        let id: i64 = row.at(0)?;
        groups.insert(id, (row.at(1)?, row.at(2)?));
        order.push(id);
    }

    let mut members: HashMap<i64, Vec<&str>> = HashMap::new();
    let mut grouped: HashSet<&str> = HashSet::new();
    let rows = db.all(&pairs("group_hosts", "host_id", inventory)).await?;
    for row in &rows {
        let (group, host) = (row.at::<i64>(0)?, row.at::<i64>(1)?);
        if let Some(name) = hosts.get(&host) {
            members.entry(group).or_default().push(name);
            grouped.insert(name);
        }
    }
    let mut children: HashMap<i64, Vec<&str>> = HashMap::new();
    let rows = db.all(&pairs("group_children", "child_id", inventory)).await?;
    for row in &rows {
        let (group, child) = (row.at::<i64>(0)?, row.at::<i64>(1)?);
        if let Some((name, _)) = groups.get(&child) {
            children.entry(group).or_default().push(name);
        }
    }

    let mut document = Map::new();
    let mut all = Map::new();
    let variables = parse_variables(&variables).unwrap_or_default();
    if !variables.is_empty() {
        all.insert("vars".to_owned(), variables.into());
    }
    if !order.is_empty() {
        let names: Vec<&str> =
            order.iter().filter_map(|id| groups.get(id)).map(|(name, _)| name.as_str()).collect();
        all.insert("children".to_owned(), json!(names));
    }
    document.insert("all".to_owned(), all.into());
    for id in &order {
        let Some((name, variables)) = groups.get(id) else { continue };
        let mut group = Map::new();
        if let Some(mut hosts) = members.remove(id) {
            hosts.sort_unstable();
            group.insert("hosts".to_owned(), json!(hosts));
        }
        if let Some(mut names) = children.remove(id) {
            names.sort_unstable();
            group.insert("children".to_owned(), json!(names));
        }
        let variables = parse_variables(variables).unwrap_or_default();
        if !variables.is_empty() {
            group.insert("vars".to_owned(), variables.into());
        }
        document.insert(name.clone(), group.into());
    }
    let ungrouped: Vec<&String> = names.iter().filter(|name| !grouped.contains(name.as_str())).collect();
    if !ungrouped.is_empty() {
        document.insert("ungrouped".to_owned(), json!({"hosts": ungrouped}));
    }
    if script.hostvars {
        document.insert("_meta".to_owned(), json!({"hostvars": hostvars}));
    }
    Ok(document)
}

fn pairs(table: &'static str, member: &'static str, inventory: i64) -> sea_query::SelectStatement {
    let mut query = Query::select();
    query.columns([("p", "group_id"), ("p", member)]).from_as(table, "p");
    query.join_as(JoinType::InnerJoin, "groups", "g", Expr::col(("g", "id")).equals(("p", "group_id")));
    query.and_where(Expr::col(("g", "inventory_id")).eq(inventory));
    query
}
