//! Sources of inventories: what one may say, and how its hosts are fetched. An update is a job; what it brings is stored at
//! its end ([`crate::inventory::import`]).

use axum::http::{HeaderValue, Method, StatusCode, header};
use sea_query::{Expr, ExprTrait, JoinType, Order, Query};
use serde_json::{Map, Value, json};

use super::activity::{self, Entry};
use super::call::Call;
use super::error::{ApiError, json_response};
use super::launch::{EnvironmentOf, stamped};
use super::rules::{Rule, Rules};
use super::templates::known;
use super::{Answer, access, generic, ok, updates};
use crate::inventory::members::CONSTRUCTED;
use crate::registry::read::{BASE, Record};
use crate::registry::roles::{ADMIN, UPDATE, USE};
use crate::registry::write::Draft;
use crate::registry::{CREDENTIALS, INVENTORIES, INVENTORY_SOURCES, INVENTORY_UPDATES, options};
use crate::store::core::{Class, CoreDb, Error as StoreError, Row, WriteTx};
use crate::store::dependencies;

/// Longest pattern that chooses hosts by their names.
const MAX_PATTERN: usize = 1024;

pub(super) struct Sources;

impl Rules for Sources {
    fn check<'a>(&'a self, call: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            let db = &call.app.db;
            let text = |name: &str| match before {
                Some(before) if !draft.has(name) => before.text(name).to_owned(),
                _ => draft.text(name).to_owned(),
            };
            let int = |name: &str| match before {
                Some(before) if !draft.has(name) => before.int(name),
                _ => draft.int(name),
            };
            if let (Some(before), Some(new)) = (before, draft.int("inventory"))
                && before.int("inventory") != Some(new)
            {
                return Err(ApiError::field("inventory", "Cannot be moved to another inventory."));
            }
            let (source, inventory) = (text("source"), int("inventory").unwrap_or_default());
            let mut query = Query::select();
            query.column("kind").from("inventories").and_where(Expr::col("id").eq(inventory));
            let kind: String =
                db.optional(&query).await?.map(|row| row.at(0)).transpose()?.unwrap_or_default();
            if before.is_none() && !kind.is_empty() {
                let words = "Cannot create Inventory Source for Smart or Constructed Inventories";
                return Err(ApiError::Body(
                    StatusCode::BAD_REQUEST,
                    json!({"inventory": {"detail": [words]}}),
                ));
            }
            if (kind == CONSTRUCTED) != (source == CONSTRUCTED) {
                return Err(ApiError::field(
                    "source",
                    "Only the source of a constructed inventory is constructed.",
                ));
            }
            let pattern = text("host_filter");
            if pattern.len() > MAX_PATTERN || regex::Regex::new(&pattern).is_err() {
                return Err(ApiError::field("host_filter", "Not a valid regular expression."));
            }
            let project = int("source_project");
            match (source.as_str(), project) {
                ("scm", None) => {
                    return Err(ApiError::field("source_project", "Project required for scm type sources."));
                }
                ("scm" | "file", Some(project)) => {
                    let mut query = Query::select();
                    query.columns(["scm_type", "allow_override"]).from("projects");
                    let row = db.optional(query.and_where(Expr::col("id").eq(project))).await?;
                    let (manual, overrides) = match row {
                        Some(row) => (row.at::<String>(0)?.is_empty(), row.at::<bool>(1)?),
                        None => (false, false),
                    };
                    if manual && source == "scm" && draft.has("source_project") {
                        let words = "Cannot use manual project for SCM-based inventory.";
                        return Err(ApiError::field("source_project", words));
                    }
                    if !text("scm_branch").is_empty() && !overrides {
                        return Err(ApiError::field(
                            "scm_branch",
                            "Project does not allow overriding branch.",
                        ));
                    }
                }
                ("file", None) => {}
                _ => {
                    let mut extra = Vec::new();
                    for name in ["source_path", "scm_branch"] {
                        if !text(name).is_empty() {
                            extra.push(name);
                        }
                    }
                    if project.is_some() {
                        extra.insert(0, "source_project");
                    }
                    if !extra.is_empty() {
                        let words = format!("Cannot set {} if not SCM type.", extra.join(" "));
                        return Err(ApiError::Body(StatusCode::BAD_REQUEST, json!({"detail": [words]})));
                    }
                }
            }
            fitting(db, &source, int("credential")).await?;
            taken(db, inventory, &text("name"), before.map(|before| before.id)).await?;
            if before.is_none() {
                draft.set("status", "never updated");
            }
            Ok(())
        })
    }

    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            let ids: Vec<i64> = records.iter().map(|record| record.id).collect();
            let current = latest(&call.app.db, &ids).await?;
            for record in records {
                if let Some((id, shown)) = current.get(&record.id) {
                    record.related.insert("current_update".to_owned(), INVENTORY_UPDATES.url(*id).into());
                    record.related.insert("current_job".to_owned(), INVENTORY_UPDATES.url(*id).into());
                    record.summary.insert("current_update".to_owned(), shown.clone());
                    record.summary.insert("current_job".to_owned(), shown.clone());
                    let status = shown["status"].as_str().unwrap_or_default();
                    let status = if status == "new" { "pending" } else { status };
                    record.set("status", status);
                }
                let credential = record.summary.get("credential").cloned();
                let all: Vec<Value> = credential.into_iter().collect();
                record.summary.insert("credentials".to_owned(), all.into());
            }
            Ok(())
        })
    }
}

/// Checks that a credential is one for this kind of source.
async fn fitting(db: &CoreDb, source: &str, credential: Option<i64>) -> Result<(), ApiError> {
    let refused = |words: String| Err(ApiError::field("credential", words));
    let found = match credential {
        Some(id) => known(db, &[id]).await?.remove(&id),
        None => None,
    };
    let wanted = match source {
        "ec2" => "aws",
        "openshift_virtualization" => "kubernetes_bearer_token",
        other => other,
    };
    match (source, found) {
        ("scm" | "file" | CONSTRUCTED, Some(found)) if matches!(found.kind(), "insights" | "vault") => {
            refused(
                "Credentials of type insights and vault are disallowed for scm inventory sources.".to_owned(),
            )
        }
        ("scm" | "file" | CONSTRUCTED, _) | ("ec2", None) => Ok(()),
        (_, None) => refused("Credential is required for a cloud source.".to_owned()),
        (_, Some(found)) if found.namespace() != wanted => refused(format!(
            "Cloud-based inventory sources (such as {source}) require credentials for the matching cloud service."
        )),
        _ => Ok(()),
    }
}

/// A name is used once in an inventory.
async fn taken(db: &CoreDb, inventory: i64, name: &str, own: Option<i64>) -> Result<(), ApiError> {
    let mut query = Query::select();
    query.column(("u", "id")).from_as("inventory_sources", "s");
    let parent = Expr::col(("u", "id")).equals(("s", "id"));
    query.join_as(JoinType::InnerJoin, "unified_job_templates", "u", parent);
    query
        .and_where(Expr::col(("s", "inventory_id")).eq(inventory))
        .and_where(Expr::col(("u", "name")).eq(name));
    match db.optional(&query).await? {
        Some(row) if Some(row.at::<i64>(0)?) != own => {
            let (field, words) = INVENTORY_SOURCES.duplicate.words(INVENTORY_SOURCES.label);
            Err(ApiError::field(field, words))
        }
        _ => Ok(()),
    }
}

/// The update of each source that is not over.
async fn latest(
    db: &CoreDb,
    sources: &[i64],
) -> Result<std::collections::BTreeMap<i64, (i64, Value)>, StoreError> {
    let mut found = std::collections::BTreeMap::new();
    if sources.is_empty() {
        return Ok(found);
    }
    let mut query = Query::select();
    query
        .columns(["inventory_source_id", "id", "name", "description", "status", "failed"])
        .from("unified_jobs");
    query.and_where(Expr::col("inventory_source_id").is_in(sources.iter().copied()));
    query.and_where(Expr::col("status").is_in(crate::job::ACTIVE)).order_by("id", Order::Asc);
    for row in db.all(&query).await? {
        let shown = json!({
            "id": row.at::<i64>(1)?,
            "name": row.at::<String>(2)?,
            "description": row.at::<String>(3)?,
            "status": row.at::<String>(4)?,
            "failed": row.at::<bool>(5)?,
        });
        found.insert(row.at(0)?, (row.at(1)?, shown));
    }
    Ok(found)
}

/// Whether anything can be fetched: a file that nobody stored in a project can not.
fn can_update(source: &str, project: Option<i64>) -> bool {
    match source {
        "" => false,
        "scm" | "file" => project.is_some(),
        _ => true,
    }
}

/// `inventory_sources/N/update/`.
pub(super) async fn update(call: &Call, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    call.user()?;
    if call.method == Method::OPTIONS {
        return ok(options::action("Inventory Source Update", Map::new()));
    }
    let source = generic::fetch(call, &INVENTORY_SOURCES, id).await?;
    let can = can_update(source.text("source"), source.int("source_project"));
    if call.method != Method::POST {
        return ok(json!({"can_update": can}));
    }
    access::need(call, &INVENTORY_SOURCES, source.id, UPDATE).await?;
    if !can {
        return Err(ApiError::Method("POST".to_owned(), "GET, HEAD, OPTIONS"));
    }
    let update = start(call, source.id).await?;
    let record = generic::fetch(call, &INVENTORY_UPDATES, &update.to_string()).await?;
    let url = record.url();
    let mut body = Map::from_iter([("inventory_update".to_owned(), Value::from(update))]);
    body.extend(record.into_json());
    let mut answer = json_response(StatusCode::ACCEPTED, &body.into());
    if let Ok(url) = HeaderValue::from_str(&url) {
        answer.headers_mut().insert(header::LOCATION, url);
    }
    Ok(answer)
}

/// `inventories/N/update_inventory_sources/`.
pub(super) async fn update_all(call: &Call, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    call.user()?;
    if call.method == Method::OPTIONS {
        return ok(options::action("Inventory Sources Update", Map::new()));
    }
    let id = generic::visible_id(call, &INVENTORIES, id).await?;
    let mut query = Query::select();
    query.columns(["id", "source", "source_project_id"]).from("inventory_sources");
    query.and_where(Expr::col("inventory_id").eq(id)).order_by("id", Order::Asc);
    let mut sources = Vec::new();
    for row in call.app.db.all(&query).await? {
        sources.push((row.at::<i64>(0)?, can_update(&row.at::<String>(1)?, row.at(2)?)));
    }
    if call.method != Method::POST {
        let all = sources.iter().map(|(id, can)| json!({"inventory_source": id, "can_update": can}));
        return ok(all.collect::<Value>());
    }
    access::need(call, &INVENTORIES, id, UPDATE).await?;
    if sources.is_empty() {
        return Err(ApiError::bad("No inventory sources to update."));
    }
    let mut all = Vec::new();
    let (mut good, mut bad) = (0, 0);
    for (source, can) in sources {
        let mut one = Map::from_iter([("inventory_source".to_owned(), Value::from(source))]);
        if can {
            let update = start(call, source).await?;
            let record = generic::fetch(call, &INVENTORY_UPDATES, &update.to_string()).await?;
            one.extend(record.into_json());
            one.insert("status".to_owned(), "started".into());
            one.insert("inventory_update".to_owned(), update.into());
            good += 1;
        } else {
            let words = "Could not start because `can_update` returned False";
            one.insert("status".to_owned(), words.into());
            bad += 1;
        }
        all.push(Value::from(one));
    }
    let status = match (good, bad) {
        (_, 0) => StatusCode::OK,
        (0, _) => StatusCode::BAD_REQUEST,
        _ => StatusCode::ACCEPTED,
    };
    Ok(json_response(status, &all.into()))
}

/// An update of a source, as it will be stored.
pub(super) struct Planned {
    source: i64,
    inventory: i64,
    credential: Option<i64>,
    columns: Vec<(&'static str, sea_query::Value)>,
    /// Whether one that runs already is as good: for jobs that only want hosts that are not too old.
    shared: bool,
    /// Sources of the inventories that this one is made of.
    first: Vec<i64>,
}

/// Begins an update of a source in the name of who asks; the same one for all who ask before it starts.
async fn start(call: &Call, source: i64) -> Result<i64, ApiError> {
    let planned = plan(call, source, "manual").await?;
    let mut tx = call.app.db.begin(Class::Intent).await?;
    let id = keep(call, &mut tx, planned).await?;
    tx.commit().await?;
    Ok(id)
}

async fn plan(call: &Call, source: i64, launch_type: &str) -> Result<Planned, ApiError> {
    let user = call.user()?;
    let mut query = Query::select();
    query.columns(COLUMNS.map(|column| ("s", column)));
    query.columns([("u", "name"), ("u", "execution_environment_id"), ("i", "name")]);
    query.from_as("inventory_sources", "s");
    let parent = Expr::col(("u", "id")).equals(("s", "id"));
    query.join_as(JoinType::InnerJoin, "unified_job_templates", "u", parent);
    let of = Expr::col(("i", "id")).equals(("s", "inventory_id"));
    query.join_as(JoinType::InnerJoin, "inventories", "i", of);
    query.and_where(Expr::col(("s", "id")).eq(source));
    let row =
        call.app.db.optional(&query).await?.ok_or_else(|| ApiError::missing(INVENTORY_SOURCES.model))?;
    let inventory: i64 = row.value("inventory_id")?;
    let place = COLUMNS.len();
    let environment = match row.at::<Option<i64>>(place + 1)? {
        Some(id) => EnvironmentOf::Source(id),
        None => EnvironmentOf::Inventory,
    };
    let stamped = stamped(&call.app.db, environment, inventory).await?;
    let (name, inventory_name): (String, String) = (row.at(place)?, row.at(place + 2)?);
    let now = jiff::Timestamp::now().as_microsecond();
    let mut columns: Vec<(&'static str, sea_query::Value)> = vec![
        ("kind", INVENTORY_UPDATES.type_name.into()),
        ("name", format!("{inventory_name} - {name}").into()),
        ("launch_type", launch_type.into()),
        ("status", "pending".into()),
        ("unified_job_template_id", source.into()),
        ("inventory_source_id", source.into()),
        ("controller_node", (*call.app.node).into()),
        ("artifacts", "{}".into()),
        ("created", now.into()),
        ("modified", now.into()),
        ("created_by_id", user.id.into()),
        ("modified_by_id", user.id.into()),
    ];
    columns.extend(copied(&row)?);
    for (column, value) in stamped {
        let cell = match column {
            "image" | "pull" | "image_reason" => value.as_str().map(str::to_owned).into(),
            _ => value.as_i64().into(),
        };
        columns.push((column, cell));
    }
    let credential = row.value("credential_id")?;
    let shared = launch_type == "dependency";
    Ok(Planned { source, inventory, credential, columns, shared, first: Vec::new() })
}

async fn keep(call: &Call, tx: &mut WriteTx, planned: Planned) -> Result<i64, ApiError> {
    // One that has not begun will see what there is now as well.
    let as_good: &[&str] = if planned.shared { &crate::job::ACTIVE } else { &["new", "pending"] };
    let mut waiting = Query::select();
    waiting.column("id").from("unified_jobs").and_where(Expr::col("inventory_source_id").eq(planned.source));
    waiting
        .and_where(Expr::col("status").is_in(as_good.iter().copied()))
        .order_by("id", Order::Desc)
        .limit(1);
    if let Some(row) = tx.optional(&waiting).await? {
        return Ok(row.at(0)?);
    }
    let mut insert = Query::insert();
    insert.into_table("unified_jobs").columns(planned.columns.iter().map(|(column, _)| *column));
    insert.values_panic(planned.columns.into_iter().map(|(_, value)| Expr::val(value)));
    let id = tx.insert(&mut insert).await?;
    if let Some(credential) = planned.credential {
        let mut pair = Query::insert();
        pair.into_table("unified_job_credentials").columns(["unified_job_id", "credential_id"]);
        tx.execute(pair.values_panic([id.into(), credential.into()])).await?;
    }
    let changes = Map::from_iter([("id".to_owned(), id.into())]);
    let mut entry = Entry::of("create", (INVENTORY_UPDATES.type_name, Some(id)), changes);
    entry.organization = activity::organization_of(&INVENTORIES, planned.inventory);
    activity::note(call, tx, entry).await?;
    updates::before(call, tx, id).await?;
    tx.wake();
    tx.job_changed(id, "pending");
    Ok(id)
}

/// The updates that a job on an inventory waits for: sources that update on launch and whose hosts are older than they may be. A
/// constructed inventory's own comes after those of what it is made of.
pub(super) async fn on_launch(call: &Call, inventory: i64) -> Result<Vec<Planned>, ApiError> {
    let db = &call.app.db;
    let mut inputs = Query::select();
    inputs.column("input_id").from("inventory_inputs").and_where(Expr::col("inventory_id").eq(inventory));
    let mut query = Query::select();
    query.columns(["id", "source", "source_project_id", "update_cache_timeout", "last_updated"]);
    query.columns(["last_update_failed", "inventory_id"]).from("inventory_sources");
    query.and_where(Expr::col("update_on_launch").eq(true)).order_by("id", Order::Asc);
    let own = Expr::col("inventory_id").eq(inventory);
    query.and_where(own.or(Expr::col("inventory_id").in_subquery(inputs)));
    let now = jiff::Timestamp::now().as_microsecond();
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for row in db.all(&query).await? {
        let (id, cached): (i64, i64) = (row.at(0)?, row.at(3)?);
        let updated: Option<i64> = row.at(4)?;
        let fresh = updated.is_some_and(|at| at.saturating_add(cached.saturating_mul(1_000_000)) >= now);
        if fresh && !row.at::<bool>(5)? || !can_update(&row.at::<String>(1)?, row.at(2)?) {
            continue;
        }
        let planned = plan(call, id, "dependency").await?;
        if row.at::<i64>(6)? == inventory { last.push(planned) } else { first.push(planned) }
    }
    let sources: Vec<i64> = first.iter().map(|planned| planned.source).collect();
    for planned in &mut last {
        planned.first.clone_from(&sources);
    }
    first.extend(last);
    Ok(first)
}

/// Stores such updates in the transaction that stores the job, which waits for them.
pub(super) async fn keep_for(
    call: &Call,
    tx: &mut WriteTx,
    job: i64,
    planned: Vec<Planned>,
) -> Result<(), ApiError> {
    let mut stored: Vec<(i64, i64)> = Vec::new();
    for one in planned {
        let (source, first) = (one.source, one.first.clone());
        let id = keep(call, tx, one).await?;
        let before = stored.iter().filter(|(source, _)| first.contains(source)).map(|(_, id)| *id);
        for before in before.collect::<Vec<_>>() {
            dependencies::add(tx, id, before).await?;
        }
        dependencies::add(tx, job, id).await?;
        stored.push((source, id));
    }
    Ok(())
}

/// What an update keeps of its source.
const COLUMNS: [&str; 16] = [
    "inventory_id",
    "source",
    "source_path",
    "source_vars",
    "scm_branch",
    "enabled_var",
    "enabled_value",
    "host_filter",
    "limit",
    "overwrite",
    "overwrite_vars",
    "timeout",
    "verbosity",
    "source_project_id",
    "credential_id",
    "update_on_launch",
];

fn copied(row: &Row) -> Result<Vec<(&'static str, sea_query::Value)>, StoreError> {
    let mut columns: Vec<(&'static str, sea_query::Value)> = Vec::new();
    for column in COLUMNS {
        columns.push((
            column,
            match column {
                "update_on_launch" => continue,
                "inventory_id" | "source_project_id" | "credential_id" => {
                    row.value::<Option<i64>>(column)?.into()
                }
                "timeout" | "verbosity" => row.value::<i64>(column)?.into(),
                "overwrite" | "overwrite_vars" => row.value::<bool>(column)?.into(),
                _ => row.value::<String>(column)?.into(),
            },
        ));
    }
    Ok(columns)
}

/// `inventory_sources/N/credentials/`: the one it has. A POST gives or takes it.
pub(super) async fn credentials(call: &Call, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    call.user()?;
    if call.method == Method::OPTIONS {
        let post = Map::from_iter([
            ("id".to_owned(), json!({"type": "integer", "label": "ID", "required": false})),
            (
                "disassociate".to_owned(),
                json!({"type": "boolean", "label": "Disassociate", "required": false}),
            ),
        ]);
        return ok(options::action("Inventory Source Credentials List", post));
    }
    let source = generic::fetch(call, &INVENTORY_SOURCES, id).await?;
    let own = source.int("credential");
    if call.method != Method::POST {
        return generic::page(call, &CREDENTIALS, Some(Expr::col((BASE, "id")).is_in(own))).await;
    }
    access::need(call, &INVENTORY_SOURCES, source.id, ADMIN).await?;
    let body = call.object()?;
    let member = body.get("id").and_then(|id| id.as_i64().or_else(|| id.as_str()?.parse().ok()));
    let Some(member) = member else {
        return Err(ApiError::Body(StatusCode::BAD_REQUEST, json!({"msg": "Field 'id' expected a number."})));
    };
    let leaves = body.get("disassociate").and_then(crate::registry::write::boolean).unwrap_or(false);
    let after = match leaves {
        true if own == Some(member) => None,
        true => own,
        false => Some(member),
    };
    if let (Some(new), false) = (after, leaves) {
        access::check_named(call, &CREDENTIALS, &[new], "credential", USE).await?;
        if own.is_some_and(|own| own != new) {
            let words = json!({"error": "Source already has cloud credential assigned."});
            return Err(ApiError::Body(StatusCode::BAD_REQUEST, words));
        }
    }
    fitting(&call.app.db, source.text("source"), after).await?;
    set_credential(call, source.id, after).await?;
    super::done()
}

/// Takes away what an inventory that was deleted leaves of its sources.
pub(super) async fn sweep(tx: &mut WriteTx) -> Result<(), StoreError> {
    let mut left = Query::select();
    left.column("id").from("inventory_sources");
    let mut gone = Query::delete();
    gone.from_table("unified_job_templates").and_where(Expr::col("kind").eq(INVENTORY_SOURCES.type_name));
    tx.execute(gone.and_where(Expr::col("id").not_in_subquery(left))).await.map(drop)
}

async fn set_credential(call: &Call, source: i64, credential: Option<i64>) -> Result<(), StoreError> {
    let mut tx: WriteTx = call.app.db.begin(Class::Intent).await?;
    let mut update = Query::update();
    update.table("inventory_sources").value("credential_id", credential);
    tx.execute(update.and_where(Expr::col("id").eq(source))).await?;
    tx.commit().await
}
