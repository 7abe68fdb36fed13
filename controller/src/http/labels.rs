//! Labels of templates and jobs.

use std::collections::HashMap;

use sea_query::{Condition, Expr, ExprTrait, JoinType, Order, Query};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::error::ApiError;
use super::generic;
use crate::registry::read::{self, BASE};
use crate::registry::{LABELS, write};
use crate::store::core::{CoreDb, Error as StoreError, WriteTx};

/// Labels that an object shows by name; of more there is the number.
const SHOWN: usize = 10;

/// A table of pairs: its name, and its column for what wears the label.
pub(super) struct Pairs(pub(super) &'static str, pub(super) &'static str);

pub(super) const TEMPLATES: Pairs = Pairs("job_template_labels", "job_template_id");
pub(super) const JOBS: Pairs = Pairs("unified_job_labels", "unified_job_id");
const ALL: [Pairs; 3] = [TEMPLATES, JOBS, Pairs("inventory_labels", "inventory_id")];

/// Id and name of each label of several objects, by object.
pub(super) async fn worn(
    db: &CoreDb,
    pairs: &Pairs,
    ids: &[i64],
) -> Result<HashMap<i64, Vec<(i64, String)>>, StoreError> {
    let mut found: HashMap<i64, Vec<(i64, String)>> = HashMap::new();
    if ids.is_empty() {
        return Ok(found);
    }
    let mut query = Query::select();
    query.column(("p", pairs.1)).columns([("l", "id"), ("l", "name")]).from_as(pairs.0, "p");
    let label = Expr::col(("l", "id")).equals(("p", "label_id"));
    query.join_as(JoinType::InnerJoin, "labels", "l", label);
    query.and_where(Expr::col(("p", pairs.1)).is_in(ids.iter().copied()));
    query.order_by(("l", "name"), Order::Asc);
    for row in db.all(&query).await? {
        found.entry(row.at(0)?).or_default().push((row.at(1)?, row.at(2)?));
    }
    Ok(found)
}

/// Labels as an object shows them.
pub(super) fn shown(labels: Option<Vec<(i64, String)>>) -> Value {
    let labels = labels.unwrap_or_default();
    let some: Vec<Value> =
        labels.iter().take(SHOWN).map(|(id, name)| json!({"id": id, "name": name})).collect();
    json!({"count": labels.len(), "results": some})
}

/// Removes a label that nothing wears.
pub(super) async fn sweep(tx: &mut WriteTx, label: i64) -> Result<(), StoreError> {
    let mut gone = Query::delete();
    gone.from_table("labels").and_where(Expr::col("id").eq(label));
    for Pairs(table, _) in ALL {
        let mut wearers = Query::select();
        wearers.column("label_id").from(table);
        gone.and_where(Expr::col("id").not_in_subquery(wearers));
    }
    tx.execute(&gone).await.map(drop)
}

/// The id of the label of that name in the organization that `body` names, if there is one that the user may see.
pub(super) async fn named(
    call: &Call,
    name: &str,
    body: &Map<String, Value>,
) -> Result<Option<Value>, ApiError> {
    let (Some(field), Some(value)) = (LABELS.field("organization"), body.get("organization")) else {
        return Ok(None);
    };
    let Some(organization) = write::taken(field, value).ok().and_then(|id| id.as_i64()) else {
        return Ok(None);
    };
    let mut query = read::source(&LABELS, BASE);
    query.column((BASE, "id")).and_where(Expr::col((BASE, "name")).eq(name));
    query.and_where(Expr::col((BASE, "organization_id")).eq(organization));
    query.cond_where(Condition::all().add_option(generic::visible(&LABELS, call.user()?)?));
    let row = call.app.db.optional(&query).await?;
    Ok(row.map(|row| row.at::<i64>(0)).transpose()?.map(Value::from))
}

/// Labels that a launch names, if all exist for whoever launches.
pub(super) async fn chosen(call: &Call, chosen: &Value) -> Result<Vec<i64>, ApiError> {
    let ids: Vec<i64> = chosen.as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
    let mut query = read::source(&LABELS, BASE);
    query.column((BASE, "id")).and_where(Expr::col((BASE, "id")).is_in(ids.iter().copied()));
    query.cond_where(Condition::all().add_option(generic::visible(&LABELS, call.user()?)?));
    let rows = if ids.is_empty() { Vec::new() } else { call.app.db.all(&query).await? };
    let known: Vec<i64> = rows.iter().map(|row| row.at(0)).collect::<Result<_, _>>()?;
    match ids.iter().find(|id| !known.contains(id)) {
        Some(id) => Err(ApiError::field("labels", format!("Invalid pk \"{id}\" - object does not exist."))),
        None => Ok(ids),
    }
}
