//! An inventory as Ansible reads it: groups with hosts, children and variables, and every host's variables; which hosts it has, and how
//! those of a source come into it.

pub mod changes;
pub mod document;
pub mod import;
pub mod members;

use std::collections::{BTreeMap, HashMap, HashSet};

use axum::body::Bytes;
use sea_query::{Expr, ExprTrait, JoinType, Order, Query};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::registry::write::parse_variables;
use crate::store::core::{CoreDb, Error};
use members::Members;

/// Hosts whose variables are read at once.
const PAGE: usize = 2_000;
/// Pieces of a document that may wait for a slow reader.
pub const AHEAD: usize = 4;

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

/// The document without variables of hosts, and the ids of its hosts in their order.
#[derive(Debug, Default)]
pub struct Outline {
    groups: Map<String, Value>,
    hosts: Vec<i64>,
    script: Script,
}

/// Reads names, groups and variables of groups: in as many queries for many hosts as for one.
///
/// Variables that cannot be read (they were checked when they were saved) count as none.
///
/// # Errors
/// What the database says.
pub async fn outline(db: &CoreDb, inventory: i64, script: Script) -> Result<Outline, Error> {
    let mut query = Query::select();
    query.column("variables").from("inventories").and_where(Expr::col("id").eq(inventory));
    let row = db.optional(&query).await?;
    let variables = row.map(|row| row.at::<String>(0)).transpose()?.unwrap_or_default();

    let members = Members::of(db, inventory).await?;
    let mut query = Query::select();
    query.columns([("b", "id"), ("b", "name")]).from_as("hosts", "b").order_by(("b", "name"), Order::Asc);
    query.and_where(if script.all { members.condition("b") } else { members.enabled("b") });
    let mut hosts: HashMap<i64, String> = HashMap::new();
    let mut ids = Vec::new();
    for row in db.all(&query).await? {
        let id = row.at::<i64>(0)?;
        hosts.insert(id, row.at(1)?);
        ids.push(id);
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

    let mut members_of: HashMap<i64, Vec<&str>> = HashMap::new();
    let mut grouped: HashSet<i64> = HashSet::new();
    let rows = db.all(&pairs("group_hosts", "host_id", inventory)).await?;
    for row in &rows {
        let (group, host) = (row.at::<i64>(0)?, row.at::<i64>(1)?);
        if let Some(name) = hosts.get(&host) {
            members_of.entry(group).or_default().push(name);
            grouped.insert(host);
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
    let ungrouped: Vec<&String> =
        ids.iter().filter(|id| !grouped.contains(id)).filter_map(|id| hosts.get(id)).collect();
    if members.is_smart() {
        // It has no groups of its own.
        all.insert("hosts".to_owned(), json!(ungrouped));
    }
    document.insert("all".to_owned(), all.into());
    for id in &order {
        let Some((name, variables)) = groups.get(id) else { continue };
        let mut group = Map::new();
        if let Some(mut hosts) = members_of.remove(id) {
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
    if !ungrouped.is_empty() && !members.is_smart() {
        document.insert("ungrouped".to_owned(), json!({"hosts": ungrouped}));
    }
    Ok(Outline { groups: document, hosts: ids, script })
}

impl Outline {
    /// Sends the document as JSON text, piece by piece: it never lies in memory as a whole. Ends early when nobody listens any more.
    ///
    /// # Errors
    /// What the database says; the document is not whole then.
    pub async fn send(self, db: &CoreDb, to: &mpsc::Sender<Result<Bytes, Error>>) -> Result<(), Error> {
        let mut text = Value::Object(self.groups).to_string();
        if self.script.hostvars {
            text.pop();
            text.push_str(r#","_meta":{"hostvars":{"#);
            let mut first = true;
            for page in self.hosts.chunks(PAGE) {
                let mut query = Query::select();
                query.columns(["name", "variables", "id", "enabled"]).from("hosts");
                query.and_where(Expr::col("id").is_in(page.iter().copied())).order_by("name", Order::Asc);
                for row in db.all(&query).await? {
                    if !std::mem::take(&mut first) {
                        text.push(',');
                    }
                    text.push_str(&Value::String(row.at(0)?).to_string());
                    text.push(':');
                    let ours = self
                        .script
                        .towervars
                        .then(|| Ok::<_, Error>((row.at(2)?, row.at(3)?)))
                        .transpose()?;
                    push_variables(&mut text, &row.at::<String>(1)?, ours);
                }
                if to.send(Ok(Bytes::from(std::mem::take(&mut text)))).await.is_err() {
                    return Ok(());
                }
            }
            text.push_str("}}}");
        }
        // An error says that nobody listens.
        let _ = to.send(Ok(Bytes::from(text))).await;
        Ok(())
    }
}

/// Adds the variables of a host; `ours` are id and state, which clients ask for among them.
fn push_variables(text: &mut String, variables: &str, ours: Option<(i64, bool)>) {
    // What was JSON when it was written down, as most is, is passed on as it is.
    let plain = variables.starts_with('{') && serde_json::from_str::<&RawValue>(variables).is_ok();
    let ours = ours.map(|(id, enabled)| {
        format!(
            r#""remote_tower_enabled":"{enabled}","remote_tower_id":{id},"remote_host_enabled":"{enabled}","remote_host_id":{id}"#
        )
    });
    match ours {
        None if plain => text.push_str(variables),
        Some(ours) if plain && !variables.contains(r#""remote_"#) => {
            let own = variables.trim_end().strip_suffix('}').unwrap_or("{");
            text.push_str(own);
            if own.trim_end() != "{" {
                text.push(',');
            }
            text.push_str(&ours);
            text.push('}');
        }
        ours => {
            let mut variables = parse_variables(variables).unwrap_or_default();
            if let Some(Ok(ours)) =
                ours.map(|ours| serde_json::from_str::<Map<String, Value>>(&format!("{{{ours}}}")))
            {
                variables.extend(ours);
            }
            text.push_str(&Value::Object(variables).to_string());
        }
    }
}

fn pairs(table: &'static str, member: &'static str, inventory: i64) -> sea_query::SelectStatement {
    let mut query = Query::select();
    query.columns([("p", "group_id"), ("p", member)]).from_as(table, "p");
    query.join_as(JoinType::InnerJoin, "groups", "g", Expr::col(("g", "id")).equals(("p", "group_id")));
    query.and_where(Expr::col(("g", "inventory_id")).eq(inventory));
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(variables: &str, ours: Option<(i64, bool)>, expected: Value) {
        let mut text = String::new();
        push_variables(&mut text, variables, ours);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected, "{text}");
    }

    #[test]
    fn variables_of_hosts_are_whole_however_they_were_written() {
        let ours = json!({
            "remote_tower_enabled": "true", "remote_tower_id": 7, "remote_host_enabled": "true", "remote_host_id": 7,
        });
        check("", None, json!({}));
        check("{}", None, json!({}));
        check("a: 1\n", None, json!({"a": 1}));
        check(r#"{"a": "}"} "#, None, json!({"a": "}"}));
        check("", Some((7, true)), ours.clone());
        check(" {} ", Some((7, true)), ours.clone());
        check("{ }", Some((7, true)), ours.clone());
        check(r#"{"remote_tower_id": 3}"#, Some((7, true)), ours.clone());
        let mut both = ours;
        both["a"] = json!([1]);
        check(r#"{"a": [1]}"#, Some((7, true)), both.clone());
        check("a: [1]", Some((7, true)), both);
        check("{broken", None, json!({}));
    }
}
