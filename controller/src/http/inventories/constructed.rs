//! Constructed inventories: what Ansible makes of others. Each has one source, which is made with it and keeps what is said of how
//! it is made.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use sea_query::{Expr, ExprTrait, Func, JoinType, Order, Query};
use serde_json::{Value, json};

use super::super::call::Call;
use super::super::error::ApiError;
use crate::inventory::members::CONSTRUCTED;
use crate::registry::read::Record;
use crate::registry::write::Draft;
use crate::registry::{CONSTRUCTED_INVENTORIES, INVENTORIES, INVENTORY_SOURCES};
use crate::store::core::WriteTx;

/// What is said of an inventory and kept on its source.
const KEPT: [&str; 4] = ["source_vars", "update_cache_timeout", "limit", "verbosity"];

/// Takes what is for the source out of what is for the inventory.
pub(super) fn check(draft: &mut Draft) {
    for name in KEPT {
        if let Some(value) = draft.take(name).filter(|value| !value.is_null()) {
            draft.aside.insert(name.to_owned(), value);
        }
    }
}

/// Makes the source of an inventory that is new, and keeps what was said of it.
pub(super) async fn keep(call: &Call, tx: &mut WriteTx, id: i64, draft: &Draft) -> Result<(), ApiError> {
    if *draft.resource != CONSTRUCTED_INVENTORIES && draft.text("kind") != CONSTRUCTED {
        return Ok(());
    }
    let mut query = Query::select();
    query.column("id").from("inventory_sources").and_where(Expr::col("inventory_id").eq(id)).limit(1);
    let source = match tx.optional(&query).await? {
        Some(row) => row.at(0)?,
        None => {
            let user = call.user()?.id;
            let now = jiff::Timestamp::now().as_microsecond();
            let name: String =
                format!("Auto-created source for: {}", draft.text("name")).chars().take(512).collect();
            let mut parent = Query::insert();
            parent.into_table("unified_job_templates");
            parent.columns([
                "kind",
                "name",
                "status",
                "created",
                "modified",
                "created_by_id",
                "modified_by_id",
            ]);
            parent.values_panic([
                INVENTORY_SOURCES.type_name.into(),
                name.into(),
                "never updated".into(),
                now.into(),
                now.into(),
                user.into(),
                user.into(),
            ]);
            let source = tx.insert(&mut parent).await?;
            let mut own = Query::insert();
            own.into_table("inventory_sources");
            own.columns(["id", "inventory_id", "source", "overwrite", "overwrite_vars", "update_on_launch"]);
            own.values_panic([
                source.into(),
                id.into(),
                CONSTRUCTED.into(),
                true.into(),
                true.into(),
                true.into(),
            ]);
            tx.execute(&own).await?;
            source
        }
    };
    if draft.aside.is_empty() {
        return Ok(());
    }
    let mut update = Query::update();
    update.table("inventory_sources");
    for (name, value) in &draft.aside {
        match value {
            Value::Number(number) => drop(update.value(name.as_str().to_owned(), number.as_i64())),
            value => drop(update.value(name.as_str().to_owned(), value.as_str().unwrap_or_default())),
        }
    }
    tx.execute(update.and_where(Expr::col("id").eq(source))).await?;
    Ok(())
}

/// Only a constructed inventory is made of others, and never of one that is made itself.
pub(super) async fn may_be_made_of(tx: &mut WriteTx, id: i64, input: i64) -> Result<(), ApiError> {
    let mut query = Query::select();
    query.columns(["id", "kind"]).from("inventories").and_where(Expr::col("id").is_in([id, input]));
    let mut kinds = BTreeMap::new();
    for row in tx.all(&query).await? {
        kinds.insert(row.at::<i64>(0)?, row.at::<String>(1)?);
    }
    let refused = |words: &str| Err(ApiError::Body(StatusCode::BAD_REQUEST, json!({"error": words})));
    let is = |id: i64, kind: &str| kinds.get(&id).is_some_and(|found| found == kind);
    if !is(id, CONSTRUCTED) {
        return refused("Only a constructed inventory has input inventories.");
    }
    if is(input, CONSTRUCTED) {
        return refused("You cannot add a constructed inventory to another constructed inventory.");
    }
    Ok(())
}

/// Counts of sources on every inventory, and on constructed ones what their source keeps.
pub(super) async fn show(call: &Call, records: &mut [Record]) -> Result<(), ApiError> {
    if records.is_empty() {
        return Ok(());
    }
    let mut query = Query::select();
    query.columns([("s", "inventory_id"), ("s", "source_vars"), ("s", "update_cache_timeout")]);
    query.columns([("s", "limit"), ("s", "verbosity"), ("s", "last_update_failed")]);
    query.expr(Expr::col(("c", "all"))).expr(Expr::col(("c", "failed"))).from_as("inventory_sources", "s");
    let mut counts = Query::select();
    counts.column("inventory_id").expr_as(Func::count(Expr::col("id")), "all");
    let failed = Expr::case(Expr::col("last_update_failed").eq(true), 1).finally(0);
    counts.expr_as(Func::sum(failed), "failed").expr_as(Func::min(Expr::col("id")), "first");
    counts.from("inventory_sources").group_by_col("inventory_id");
    counts.and_where(Expr::col("inventory_id").is_in(records.iter().map(|record| record.id)));
    query.join_subquery(
        JoinType::InnerJoin,
        counts.take(),
        "c",
        Expr::col(("c", "first")).equals(("s", "id")),
    );
    query.order_by(("s", "id"), Order::Asc);
    let mut found = BTreeMap::new();
    for row in call.app.db.all(&query).await? {
        found.insert(row.at::<i64>(0)?, row);
    }
    for record in records {
        let row = found.get(&record.id);
        let all = row.map(|row| row.at::<i64>(6)).transpose()?.unwrap_or(0);
        let failed = row.map(|row| row.at::<i64>(7)).transpose()?.unwrap_or(0);
        record.set("has_inventory_sources", all > 0);
        record.set("total_inventory_sources", all);
        record.set("inventory_sources_with_failures", failed);
        if record.text("kind") != CONSTRUCTED {
            continue;
        }
        let url = format!("/api/v2/constructed_inventories/{}/", record.id);
        record.related.insert("constructed_url".to_owned(), url.into());
        if *record.resource == INVENTORIES {
            continue;
        }
        // What belongs to it is found below the inventory that it is.
        let own = INVENTORIES.url(record.id);
        for name in
            ["hosts", "groups", "inventory_sources", "script", "variable_data", "update_inventory_sources"]
        {
            record.related.insert(name.to_owned(), format!("{own}{name}/").into());
        }
        if let Some(row) = row {
            record.set("source_vars", row.at::<String>(1)?);
            record.set("update_cache_timeout", row.at::<i64>(2)?);
            record.set("limit", row.at::<String>(3)?);
            record.set("verbosity", row.at::<i64>(4)?);
        }
    }
    Ok(())
}
