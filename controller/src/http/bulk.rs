//! `bulk/`: many hosts in one request and one transaction.

use std::collections::BTreeSet;

use axum::http::{Method, StatusCode};
use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Map, Value, json};

use super::activity::{self, Entry};
use super::call::Call;
use super::error::{ApiError, json_response};
use super::{Answer, access, generic, ok, settings};
use crate::registry::read::{self, BASE};
use crate::registry::roles::ADMIN;
use crate::registry::write::Draft;
use crate::registry::{HOSTS, INVENTORIES, options};
use crate::store::core::{Class, Error as StoreError};

/// `bulk/`: what there is.
pub(super) fn map(call: &Call) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    call.user()?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Bulk", "actions": {}}));
    }
    ok(json!({"host_create": "/api/v2/bulk/host_create/", "host_delete": "/api/v2/bulk/host_delete/"}))
}

/// `bulk/host_create/`: `{"inventory": 1, "hosts": [{"name": …, "variables": …}]}`.
pub(super) async fn create(call: &Call) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    let user = call.user()?;
    if call.method == Method::OPTIONS {
        let post = Map::from_iter([
            ("inventory".to_owned(), json!({"type": "id", "required": true, "label": "Inventory"})),
            ("hosts".to_owned(), json!({"type": "json", "required": true, "label": "Hosts"})),
        ]);
        return ok(options::action("Bulk Host Create", post));
    }
    if call.method != Method::POST {
        return ok(json!({"detail": "Bulk host creation endpoint. POST a list of hosts to create."}));
    }
    let mut body = call.object()?;
    let required = |name: &str| ApiError::field(name, "This field is required.");
    let inventory = body.get("inventory").cloned().ok_or_else(|| required("inventory"))?;
    let inventory = inventory.as_i64().or_else(|| inventory.as_str()?.parse().ok());
    let inventory =
        inventory.ok_or_else(|| ApiError::field("inventory", "Incorrect type. Expected pk value."))?;
    let hosts = match body.get_mut("hosts").map(Value::take) {
        None => return Err(required("hosts")),
        Some(Value::String(text)) => serde_json::from_str(&text).unwrap_or_default(),
        Some(hosts) => hosts,
    };
    let Value::Array(hosts) = hosts else {
        return Err(ApiError::field("hosts", "Expected a list of items."));
    };
    within(call, hosts.len(), "BULK_HOST_MAX_CREATE").await?;
    let visible = generic::visible_id(call, &INVENTORIES, &inventory.to_string()).await;
    if matches!(visible, Err(ApiError::Detail(StatusCode::NOT_FOUND, _))) {
        let words = format!("Invalid pk \"{inventory}\" - object does not exist.");
        return Err(ApiError::field("inventory", words));
    }
    visible?;
    access::need(call, &INVENTORIES, inventory, ADMIN).await?;
    let kind = generic::fetch(call, &INVENTORIES, &inventory.to_string()).await?;
    if !kind.text("kind").is_empty() {
        let words = "Hosts can only be created in manual inventories (not smart or constructed types).";
        return Err(ApiError::field("inventory", words));
    }
    let mut drafts = Vec::with_capacity(hosts.len());
    let mut names = BTreeSet::new();
    let mut twice = Vec::new();
    for host in hosts {
        let Value::Object(mut host) = host else {
            return Err(ApiError::field("hosts", "Expected a list of objects."));
        };
        host.insert("inventory".to_owned(), inventory.into());
        let draft = Draft::create(&HOSTS, &host).map_err(|errors| {
            ApiError::Body(StatusCode::BAD_REQUEST, json!({"hosts": [errors.into_json()]}))
        })?;
        if !names.insert(draft.text("name").to_owned()) {
            twice.push(draft.text("name").to_owned());
        }
        drafts.push(draft);
    }
    let duplicates = |twice: &[String]| {
        let words = format!("Hostnames must be unique in an inventory. Duplicates found: {}", json!(twice));
        ApiError::field("hosts", words)
    };
    if !twice.is_empty() {
        return Err(duplicates(&twice));
    }
    let now = jiff::Timestamp::now().as_microsecond();
    let mut tx = call.app.db.begin(Class::Intent).await?;
    let mut ids = Vec::with_capacity(drafts.len());
    for draft in &drafts {
        let mut insert = draft.insert(&[
            ("created", now.into()),
            ("modified", now.into()),
            ("created_by_id", user.id.into()),
            ("modified_by_id", user.id.into()),
        ]);
        let id = match tx.insert(&mut insert.first).await {
            Err(StoreError::Duplicate { .. }) => return Err(duplicates(&[draft.text("name").to_owned()])),
            made => made?,
        };
        let changes = activity::created(id, draft);
        activity::note(call, &mut tx, Entry::on("create", &HOSTS, id, changes, |name| draft.int(name)))
            .await?;
        ids.push(id);
    }
    tx.commit().await?;
    let made: Vec<Value> = ids
        .iter()
        .zip(&drafts)
        .map(|(id, draft)| {
            let mut host = Map::from_iter([("id".to_owned(), Value::from(*id))]);
            host.extend(draft.all().map(|(name, value)| (name.to_owned(), value.clone())));
            host.into()
        })
        .collect();
    let url = format!("/api/v2/inventories/{inventory}/hosts/");
    Ok(json_response(StatusCode::CREATED, &json!({"url": url, "hosts": made})))
}

/// `bulk/host_delete/`: `{"hosts": [1, 2]}`. One that is not seen is an error, and then none goes.
pub(super) async fn delete(call: &Call) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    call.user()?;
    if call.method == Method::OPTIONS {
        let post = Map::from_iter([(
            "hosts".to_owned(),
            json!({"type": "list_of_ids", "required": true, "label": "Hosts"}),
        )]);
        return ok(options::action("Bulk Host Delete", post));
    }
    if call.method != Method::POST {
        return ok(json!({"detail": "Bulk host deletion endpoint. POST a list of ids of hosts to delete."}));
    }
    let body = call.object()?;
    let given = match body.get("hosts") {
        None => return Err(ApiError::field("hosts", "This field is required.")),
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_default(),
        Some(hosts) => hosts.clone(),
    };
    let ids: Option<BTreeSet<i64>> = given.as_array().and_then(|ids| ids.iter().map(Value::as_i64).collect());
    let Some(ids) = ids.filter(|ids| !ids.is_empty()) else {
        return Err(ApiError::field("hosts", "Expected a list of ids."));
    };
    within(call, ids.len(), "BULK_HOST_MAX_DELETE").await?;
    let ids: Vec<i64> = ids.into_iter().collect();
    access::check_named(call, &HOSTS, &ids, "hosts", ADMIN).await?;
    let mut query = read::source(&HOSTS, BASE);
    query.columns(["id", "name", "inventory_id"].map(|column| (BASE, column)));
    query.and_where(Expr::col((BASE, "id")).is_in(ids.iter().copied()));
    let mut tx = call.app.db.begin(Class::Intent).await?;
    let mut hosts = Map::new();
    for row in tx.all(&query).await? {
        let (id, name) = (row.at::<i64>(0)?, row.at::<String>(1)?);
        let inventory: i64 = row.at(2)?;
        let changes =
            Map::from_iter([("id".to_owned(), id.into()), ("name".to_owned(), name.as_str().into())]);
        let entry =
            Entry::on("delete", &HOSTS, id, changes, |field| (field == "inventory").then_some(inventory));
        activity::note(call, &mut tx, entry).await?;
        hosts.insert(id.to_string(), format!("The host {name} was deleted").into());
    }
    if let Some(id) = ids.iter().find(|id| !hosts.contains_key(&id.to_string())) {
        return Err(ApiError::field("hosts", format!("Invalid pk \"{id}\" - object does not exist.")));
    }
    let mut gone = Query::delete();
    gone.from_table("hosts").and_where(Expr::col("id").is_in(ids));
    tx.execute(&gone).await?;
    tx.commit().await?;
    Ok(json_response(StatusCode::CREATED, &json!({"hosts": hosts})))
}

async fn within(call: &Call, number: usize, name: &str) -> Result<(), ApiError> {
    let limit = settings::setting(&call.app.db, name).await?.as_u64().unwrap_or(100);
    if number == 0 {
        return Err(ApiError::field("hosts", "This list may not be empty."));
    }
    if number as u64 > limit {
        let words = format!("Number of hosts exceeds system setting {name} ({limit})");
        return Err(ApiError::field("hosts", words));
    }
    Ok(())
}
