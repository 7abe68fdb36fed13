//! `copy/`: a new object like another one, with what belongs to it. Whoever copies makes an object, so they need what
//! making one needs, and the right to use whatever the copy points to.

use axum::http::Method;
use sea_query::{Expr, ExprTrait, JoinType, Query};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::error::ApiError;
use super::templates::attached;
use super::{Answer, access, generic, ok, survey};
use crate::registry::read::Record;
use crate::registry::roles::{ADMIN, READ};
use crate::registry::{CREDENTIALS, JOB_TEMPLATES, Mode, Resource};
use crate::store::core::{Error as StoreError, WriteTx};
use crate::vault::Vault;

/// `copy/` of an object: GET says whether it can be copied, POST with a name does it.
pub(super) async fn serve(call: &Call, resource: &'static Resource, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    call.user()?;
    if call.method == Method::OPTIONS {
        let name = json!({"type": "string", "required": true, "label": "Name", "max_length": 512});
        let post = Map::from_iter([("name".to_owned(), name)]);
        return ok(crate::registry::options::action(&format!("{} Copy", resource.label), post));
    }
    let object = generic::fetch(call, resource, id).await?;
    // A copy of a credential opens what the credential opens: its secrets are their administrators'.
    let role = if *resource == CREDENTIALS { ADMIN } else { READ };
    let may =
        access::allowed(call, resource, object.id, role).await? && access::creates(call, resource).await?;
    if call.method != Method::POST {
        return ok(json!({"can_copy": may, "can_copy_without_user_input": may}));
    }
    if !may {
        return Err(ApiError::forbidden());
    }
    let preset = preset(call, &object).await?;
    let preset: Vec<(&str, Value)> =
        preset.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let record = generic::copied(call, resource, &preset, object.id).await?;
    generic::created_response(record.url(), &record.into_json().into())
}

/// What the copy has of the original: every field that can be written, but its name.
async fn preset(call: &Call, object: &Record) -> Result<Map<String, Value>, ApiError> {
    let mut preset = Map::new();
    for field in object.resource.fields {
        let own = field.mode == Mode::ReadWrite && !field.secret && field.name != "name";
        // Sealed inputs are bound to their row: they are opened and sealed again below.
        if !own || *object.resource == CREDENTIALS && matches!(field.name, "inputs" | "user") {
            continue;
        }
        if let Some(value) = object.fields.get(field.name) {
            preset.insert(field.name.to_owned(), value.clone());
        }
    }
    if *object.resource == CREDENTIALS && object.int("organization").is_none() {
        preset.insert("user".to_owned(), call.user()?.id.into());
    }
    if *object.resource == JOB_TEMPLATES {
        let found =
            attached(&call.app.db, "job_template_credentials", "job_template_id", &[object.id]).await?;
        let ids: Vec<i64> = found.into_values().flatten().map(|credential| credential.id).collect();
        preset.insert("credentials".to_owned(), ids.into());
    }
    Ok(preset)
}

/// Copies what belongs to the original, in the transaction that makes the copy.
pub(super) async fn deep(
    call: &Call,
    tx: &mut WriteTx,
    resource: &'static Resource,
    from: i64,
    to: i64,
) -> Result<(), ApiError> {
    match resource.path {
        "job_templates" => {
            pairs(tx, "job_template_labels", "job_template_id", "label_id", from, to).await?;
            let groups = "job_template_instance_groups";
            pairs(tx, groups, "job_template_id", "instance_group_id", from, to).await?;
            questions(call, tx, from, to).await
        }
        "inventories" => {
            pairs(tx, "inventory_labels", "inventory_id", "label_id", from, to).await?;
            pairs(tx, "inventory_instance_groups", "inventory_id", "instance_group_id", from, to).await?;
            Ok(hosts_and_groups(call, tx, from, to).await?)
        }
        "credentials" => inputs(call, tx, from, to).await,
        _ => Ok(()),
    }
}

async fn pairs(
    tx: &mut WriteTx,
    table: &'static str,
    here: &'static str,
    there: &'static str,
    from: i64,
    to: i64,
) -> Result<(), StoreError> {
    let mut members = Query::select();
    members.expr(Expr::val(to)).column(there).from(table).and_where(Expr::col(here).eq(from));
    let mut insert = Query::insert();
    insert.into_table(table).columns([here, there]);
    tx.execute(insert.select_from(members).expect("both have two columns")).await.map(drop)
}

/// The survey: secret defaults are bound to their template.
async fn questions(call: &Call, tx: &mut WriteTx, from: i64, to: i64) -> Result<(), ApiError> {
    let mut query = Query::select();
    query.column("survey_spec").from("job_templates").and_where(Expr::col("id").eq(from));
    let Some(row) = tx.optional(&query).await? else { return Ok(()) };
    let text: String = row.at(0)?;
    let Ok(mut spec) = serde_json::from_str::<Value>(&text) else { return Ok(()) };
    for question in spec["spec"].as_array_mut().into_iter().flatten() {
        let variable = question["variable"].as_str().unwrap_or_default().to_owned();
        let sealed = question["default"].as_str().filter(|text| Vault::is_sealed(text)).map(str::to_owned);
        if let Some(sealed) = sealed {
            let open = survey::opened(&call.app.vault, from, &variable, &sealed).unwrap_or_default();
            question["default"] = survey::sealed(&call.app.vault, to, &variable, &open).into();
        }
    }
    let mut update = Query::update();
    update.table("job_templates").value("survey_spec", spec.to_string()).and_where(Expr::col("id").eq(to));
    tx.execute(&update).await?;
    Ok(())
}

/// A credential's inputs, opened for the one row and sealed for the other.
async fn inputs(call: &Call, tx: &mut WriteTx, from: i64, to: i64) -> Result<(), ApiError> {
    let mut query = Query::select();
    query.column("inputs").from("credentials").and_where(Expr::col("id").eq(from));
    let Some(row) = tx.optional(&query).await? else { return Ok(()) };
    let mut inputs: Map<String, Value> = serde_json::from_str(&row.at::<String>(0)?).unwrap_or_default();
    let vault = &call.app.vault;
    for (name, value) in &mut inputs {
        let Some(sealed) = value.as_str().filter(|text| Vault::is_sealed(text)) else { continue };
        let open = vault
            .decrypt("credentials", from, name, sealed)
            .map_err(|error| ApiError::internal("an input of a credential does not open", error))?;
        *value = vault.encrypt("credentials", to, name, open.expose()).into();
    }
    let mut update = Query::update();
    update.table("credentials").value("inputs", Value::from(inputs).to_string());
    tx.execute(update.and_where(Expr::col("id").eq(to))).await?;
    Ok(())
}

/// Hosts and groups with their members, in as many statements for many as for one.
async fn hosts_and_groups(call: &Call, tx: &mut WriteTx, from: i64, to: i64) -> Result<(), ApiError> {
    let now = jiff::Timestamp::now().as_microsecond();
    let user = call.user()?.id;
    for (table, columns) in [
        ("hosts", &["name", "description", "enabled", "instance_id", "variables"][..]),
        ("groups", &["name", "description", "variables"][..]),
    ] {
        let mut rows = Query::select();
        rows.columns(columns.iter().copied()).from(table).and_where(Expr::col("inventory_id").eq(from));
        rows.order_by("id", sea_query::Order::Asc);
        for value in [to, now, now, user, user] {
            rows.expr(Expr::val(value));
        }
        let fresh = ["inventory_id", "created", "modified", "created_by_id", "modified_by_id"];
        let mut insert = Query::insert();
        insert.into_table(table).columns(columns.iter().copied().chain(fresh));
        tx.execute(insert.select_from(rows).expect("both have the same columns")).await?;
    }
    for (table, there, of) in [("group_hosts", "host_id", "hosts"), ("group_children", "child_id", "groups")]
    {
        // Members are found by name: it is unique in an inventory.
        let mut rows = Query::select();
        rows.column(("ng", "id")).column(("nm", "id")).from_as(table, "p");
        let same = |one: &'static str, other: &'static str| Expr::col((one, "name")).equals((other, "name"));
        let id = |alias: &'static str, column: &'static str| Expr::col((alias, "id")).equals(("p", column));
        let new = |alias: &'static str| Expr::col((alias, "inventory_id")).eq(to);
        rows.join_as(JoinType::InnerJoin, "groups", "og", id("og", "group_id"));
        rows.join_as(JoinType::InnerJoin, "groups", "ng", same("ng", "og").and(new("ng")));
        rows.join_as(JoinType::InnerJoin, of, "om", id("om", there));
        rows.join_as(JoinType::InnerJoin, of, "nm", same("nm", "om").and(new("nm")));
        rows.and_where(Expr::col(("og", "inventory_id")).eq(from));
        let mut insert = Query::insert();
        insert.into_table(table).columns(["group_id", there]);
        tx.execute(insert.select_from(rows).expect("both have two columns")).await?;
    }
    Ok(())
}
