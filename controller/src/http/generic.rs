//! What every resource can do: lists, objects, sub-lists, and OPTIONS of each.

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use sea_query::{Condition, Expr, ExprTrait, Query};
use serde_json::{Map, Value, json};

use super::activity::{self, Entry};
use super::call::Call;
use super::error::{ApiError, json_response};
use super::paging::{self, MAX_PAGE};
pub(super) use super::paging::{envelope, page, page_number, records};
use super::rules::{self, Rules};
use super::{Answer, access, copy, definitions, done, fleet, labels, ok, roles};
use crate::auth::User;
use crate::job;
use crate::registry::access::condition;
use crate::registry::read::{self, BASE, Record};
use crate::registry::roles::{ADMIN, READ, family};
use crate::registry::write::Draft;
use crate::registry::{By, Kind, LABELS, Resource, SubList, options};
use crate::store::core::{Class, Error as StoreError, WriteTx};

/// The list of a resource.
pub(super) async fn collection(call: &Call, resource: &'static Resource) -> Answer {
    call.allow(resource.verbs.list())?;
    let user = call.user()?;
    match call.method {
        Method::OPTIONS => {
            let creates = resource.verbs.create && access::creates(call, resource).await?;
            let mut document =
                options::document(resource, creates.then_some("POST"), &format!("{} List", resource.label));
            adjust(rules::of(resource), &mut document, "POST");
            ok(document)
        }
        Method::POST if resource.path == "tokens" => super::tokens::create(call, user.id, None).await,
        Method::POST if resource.path == "applications" => super::applications::create(call, &[]).await,
        Method::POST if definitions::assigns(resource) => definitions::assign(call, resource).await,
        Method::POST => create(call, resource, &[]).await,
        _ => page(call, resource, None).await,
    }
}

/// One object of a resource.
pub(super) async fn object(call: &Call, resource: &'static Resource, id: &str) -> Answer {
    call.allow(resource.verbs.detail())?;
    call.user()?;
    match call.method {
        // Clients probe with ids that need not exist, to learn the methods.
        Method::OPTIONS => {
            let own = rules::of(resource).own_changes();
            let changes = resource.verbs.update && (own || access::somewhere(call, resource, ADMIN).await?);
            let mut document =
                options::document(resource, changes.then_some("PUT"), &format!("{} Detail", resource.label));
            adjust(rules::of(resource), &mut document, "PUT");
            ok(document)
        }
        Method::PUT | Method::PATCH => update(call, resource, id).await,
        Method::DELETE if definitions::assigns(resource) => definitions::revoke(call, resource, id).await,
        Method::DELETE => delete(call, resource, id).await,
        _ => ok(fetch(call, resource, id).await?.into_json()),
    }
}

/// A list below an object.
pub(super) async fn sub_list(
    call: &Call,
    resource: &'static Resource,
    id: &str,
    list: &'static SubList,
) -> Answer {
    let writable = match list.by {
        By::Field(_) => list.of.verbs.create,
        By::Pairs { writable, .. } => writable,
    };
    call.allow(if writable { "GET, POST, HEAD, OPTIONS" } else { "GET, HEAD, OPTIONS" })?;
    call.user()?;
    if call.method == Method::OPTIONS {
        let creates = writable && (list.of.verbs.create && access::creates(call, list.of).await?);
        let post = creates.then_some("POST");
        let name = format!("{} {} List", resource.label, list.of.label);
        let mut document = options::document(list.of, post, &name);
        adjust(rules::of(list.of), &mut document, "POST");
        if matches!(list.by, By::Pairs { .. })
            && let Some(fields) =
                document.get_mut("actions").and_then(|actions| actions["POST"].as_object_mut())
        {
            fields.insert("id".to_owned(), json!({"type": "integer", "label": "ID", "required": false}));
            let label = json!({"type": "boolean", "label": "Disassociate", "required": false});
            fields.insert("disassociate".to_owned(), label);
        }
        return ok(document);
    }
    let id = visible_id(call, resource, id).await?;
    match (&list.by, &call.method) {
        (_, &Method::POST) if list.of.path == "tokens" => {
            super::tokens::create_below(call, resource, id, list.name).await
        }
        (By::Field(name), &Method::POST) if list.of.path == "applications" => {
            super::applications::create(call, &[(name, id.into())]).await
        }
        (By::Pairs { table, .. }, &Method::POST) if roles::is_membership(table) => {
            roles::attach(call, resource, id, list).await
        }
        (By::Field(name), &Method::POST) => create(call, list.of, &[(name, id.into())]).await,
        (By::Pairs { table, here, there, .. }, &Method::POST) => {
            attach(call, resource, id, list, (table, here, there)).await
        }
        (By::Field(_), _) if resource.path == "inventories" && list.name == "hosts" => {
            super::inventories::hosts(call, id).await
        }
        (By::Field(name), _) => {
            let field = list.of.column(name).ok_or_else(ApiError::no_such_page)?;
            let own = Expr::col((list.of.alias_of(&field, BASE), field.column_name())).eq(id);
            page(call, list.of, Some(own)).await
        }
        (By::Pairs { table, here, there, .. }, _) => {
            let mut members = Query::select();
            members.column(*there).from(*table).and_where(Expr::col(*here).eq(id));
            let mut place = Query::select();
            place.column("id").from(*table).and_where(Expr::col(*here).eq(id));
            place.and_where(Expr::col((*table, *there)).equals((BASE, "id")));
            // In these lists the order is the point: the first is taken first.
            let in_order = fleet::is_ordered(table) && call.parameter("order_by").is_none();
            let place = in_order.then(|| Expr::SubQuery(None, Box::new(place.into())));
            let members = Expr::col((BASE, "id")).in_subquery(members);
            paging::ordered(call, list.of, Some(members), place).await?.answer(call)
        }
    }
}

/// The condition of what a user may see; `None` for everything.
pub(super) fn visible(resource: &Resource, user: &User) -> Result<Option<Expr>, ApiError> {
    Ok(crate::registry::access::condition(resource, BASE, user, READ))
}

fn adjust(rules: &dyn Rules, document: &mut Map<String, Value>, verb: &str) {
    let fields = document.get_mut("actions").and_then(|actions| actions.get_mut(verb));
    if let Some(fields) = fields.and_then(Value::as_object_mut) {
        rules.options(fields);
    }
}

/// An object by its id or natural key, with all it shows.
pub(super) async fn fetch(call: &Call, resource: &'static Resource, id: &str) -> Result<Record, ApiError> {
    let mut query = read::select(resource, true);
    query.cond_where(named(resource, id)?);
    query.cond_where(Condition::all().add_option(visible(resource, call.user()?)?));
    let row = call.app.db.optional(query.limit(1)).await?;
    let row = row.ok_or_else(|| ApiError::missing(resource.model))?;
    let mut record = read::record(resource, true, &row)?;
    rules::of(resource).fill(call, std::slice::from_mut(&mut record), true).await?;
    access::show_capabilities(call, std::slice::from_mut(&mut record)).await?;
    if let Some(name) = natural_name(&record) {
        record.related.insert("named_url".to_owned(), format!("{}{name}/", resource.list_url()).into());
    }
    Ok(record)
}

/// The id of an object that the user may see.
pub(super) async fn visible_id(call: &Call, resource: &'static Resource, id: &str) -> Result<i64, ApiError> {
    let mut query = read::source(resource, BASE);
    query.column((BASE, "id")).cond_where(named(resource, id)?);
    query.cond_where(Condition::all().add_option(visible(resource, call.user()?)?));
    match call.app.db.optional(query.limit(1)).await? {
        Some(row) => Ok(row.at(0)?),
        None => Err(ApiError::missing(resource.model)),
    }
}

/// An object's part of the path: its id, or the parts of its natural key with `++` between them.
fn named(resource: &'static Resource, text: &str) -> Result<Condition, ApiError> {
    if let Ok(id) = text.parse::<i64>() {
        return Ok(Condition::all().add(Expr::col((BASE, "id")).eq(id)));
    }
    let parts: Vec<&str> = text.split("++").collect();
    let mut left = parts.as_slice();
    match natural(resource, BASE, &mut left, 0) {
        Some(condition) if left.is_empty() && !resource.natural_key.is_empty() => Ok(condition),
        _ => Err(ApiError::missing(resource.model)),
    }
}

fn natural(resource: &'static Resource, alias: &str, parts: &mut &[&str], depth: usize) -> Option<Condition> {
    let mut condition = Condition::all();
    for name in resource.natural_key {
        let field = resource.column(name)?;
        let column = Expr::col((resource.alias_of(&field, alias), field.column_name()));
        match field.kind {
            Kind::Id(of) if depth < 4 => {
                if parts.first().is_none_or(|part| part.is_empty()) {
                    *parts = parts.get(1..).unwrap_or_default();
                    condition = condition.add(column.is_null());
                    continue;
                }
                let inner = format!("{alias}n");
                let mut select = read::source(of, &inner);
                select.column((inner.clone(), "id")).cond_where(natural(of, &inner, parts, depth + 1)?);
                condition = condition.add(column.in_subquery(select));
            }
            _ => {
                let (first, rest) = parts.split_first()?;
                *parts = rest;
                condition = condition.add(column.eq(*first));
            }
        }
    }
    Some(condition)
}

/// The natural key of an object whose parts are all on it or on what it shows of others.
fn natural_name(record: &Record) -> Option<String> {
    let mut parts = Vec::new();
    for name in record.resource.natural_key {
        let part = match record.resource.field(name)?.kind {
            Kind::Id(of) if of.natural_key.len() == 1 => record
                .summary
                .get(*name)
                .and_then(|shown| shown[of.natural_key[0]].as_str())
                .unwrap_or_default(),
            Kind::Id(_) => return None,
            _ => record.fields.get(*name)?.as_str()?,
        };
        parts.push(escaped(part));
    }
    (!parts.is_empty()).then(|| parts.join("++"))
}

/// Escapes what has a meaning in an address, and nothing else: names are shown as people wrote them.
fn escaped(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    for c in part.chars() {
        if ";/?:@=&[]+%#".contains(c) {
            out.push_str(&format!("%{:02X}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

pub(super) async fn create(call: &Call, resource: &'static Resource, preset: &[(&str, Value)]) -> Answer {
    let (_, record) = created(call, resource, preset, None).await?;
    created_response(record.url(), &record.into_json().into())
}

/// `201` with the address of what was made.
pub(super) fn created_response(url: String, body: &Value) -> Answer {
    let mut response = json_response(StatusCode::CREATED, body);
    if let Ok(url) = HeaderValue::from_str(&url) {
        response.headers_mut().insert(header::LOCATION, url);
    }
    Ok(response)
}

/// A pair to be written with a new object: table, column of the object it belongs to, its own column, that object.
type Pair<'p> = (&'p SubList, (&'static str, &'static str, &'static str), &'static Resource, i64);

/// Makes an object like another one, with what belongs to that one; see [`copy`].
pub(super) async fn copied(
    call: &Call,
    resource: &'static Resource,
    preset: &[(&str, Value)],
    from: i64,
) -> Result<Record, ApiError> {
    Ok(made(call, resource, preset, None, Some(from)).await?.1)
}

/// Makes an object from the body of a request, and `preset` in its place where both say something.
pub(super) async fn created(
    call: &Call,
    resource: &'static Resource,
    preset: &[(&str, Value)],
    pair: Option<Pair<'_>>,
) -> Result<(i64, Record), ApiError> {
    made(call, resource, preset, pair, None).await
}

async fn made(
    call: &Call,
    resource: &'static Resource,
    preset: &[(&str, Value)],
    pair: Option<Pair<'_>>,
    from: Option<i64>,
) -> Result<(i64, Record), ApiError> {
    let user = call.user()?;
    // Who runs an organization makes users in it.
    let joins = pair.as_ref().is_some_and(|(_, (table, ..), ..)| roles::takes_new(table));
    if !joins && !access::creates(call, resource).await? {
        return Err(ApiError::forbidden());
    }
    let mut body = call.object()?;
    for (name, value) in preset {
        body.insert((*name).to_owned(), value.clone());
    }
    let mut draft = Draft::create(resource, &body)?;
    access::check_relations(call, &draft, None).await?;
    let rules = rules::of(resource);
    rules.check(call, &mut draft, None).await?;
    let now = jiff::Timestamp::now().as_microsecond();
    let mut extra: Vec<(&'static str, sea_query::Value)> = Vec::new();
    if resource.table.stamped {
        extra.extend([("created", now.into()), ("modified", now.into())]);
    }
    if resource.table.tracked {
        extra.extend([("created_by_id", user.id.into()), ("modified_by_id", user.id.into())]);
    }
    let mut insert = draft.insert(&extra);
    let mut tx = call.app.db.begin(Class::Intent).await?;
    let id = tx.insert(&mut insert.first).await.map_err(|error| refused(resource, error))?;
    if let Some(second) = insert.second(id) {
        tx.execute(second).await.map_err(|error| refused(resource, error))?;
    }
    rules.written(call, &mut tx, id, &draft).await?;
    if let Some(from) = from {
        copy::deep(call, &mut tx, resource, from, id).await?;
    }
    if let (Some(family), Some((holder, role))) = (family(resource), access::creators_role(user.id, &draft)) {
        roles::give(&mut tx, family, id, role, holder).await?;
    }
    if let Some((list, (table, here, there), of, owner)) = pair {
        if roles::is_membership(table) {
            roles::join(&mut tx, table, owner, id).await?;
        } else {
            rules::of(of).may_attach(&mut tx, list.name, owner, id).await?;
            insert_pair(&mut tx, table, here, there, owner, id).await?;
        }
        activity::note(call, &mut tx, Entry::pair("associate", (of, owner), (list.of, id), list.name))
            .await?;
    }
    let changes = activity::created(id, &draft);
    activity::note(call, &mut tx, Entry::on("create", resource, id, changes, |name| draft.int(name))).await?;
    tx.commit().await?;
    Ok((id, fetch(call, resource, &id.to_string()).await?))
}

async fn update(call: &Call, resource: &'static Resource, id: &str) -> Answer {
    let user = call.user()?;
    let before = fetch(call, resource, id).await?;
    access::need(call, resource, before.id, ADMIN).await?;
    let body = call.object()?;
    let mut draft = Draft::update(resource, &body, call.method == Method::PUT)?;
    access::check_relations(call, &draft, Some(&before)).await?;
    let rules = rules::of(resource);
    rules.check(call, &mut draft, Some(&before)).await?;
    let now = jiff::Timestamp::now().as_microsecond();
    let mut extra: Vec<(&'static str, sea_query::Value)> = Vec::new();
    if resource.table.stamped {
        extra.push(("modified", now.into()));
    }
    if resource.table.tracked {
        extra.push(("modified_by_id", user.id.into()));
    }
    let mut tx = call.app.db.begin(Class::Intent).await?;
    for statement in draft.updates(before.id, &extra) {
        tx.execute(statement).await.map_err(|error| refused(resource, error))?;
    }
    rules.written(call, &mut tx, before.id, &draft).await?;
    let changes = activity::updated(&before, &draft);
    if !changes.is_empty() {
        let field = |name: &str| if draft.has(name) { draft.int(name) } else { before.int(name) };
        let entry = Entry::on("update", resource, before.id, changes, field);
        activity::note(call, &mut tx, entry).await?;
    }
    tx.commit().await?;
    ok(fetch(call, resource, &before.id.to_string()).await?.into_json())
}

async fn delete(call: &Call, resource: &'static Resource, id: &str) -> Answer {
    let record = fetch(call, resource, id).await?;
    access::need(call, resource, record.id, ADMIN).await?;
    let rules = rules::of(resource);
    rules.may_delete(call, &record).await?;
    let mut tx = call.app.db.begin(Class::Intent).await?;
    not_in_use(&mut tx, resource, record.id).await?;
    let changes = activity::deleted(&record);
    let entry = Entry::on("delete", resource, record.id, changes, |name| record.int(name));
    activity::note(call, &mut tx, entry).await?;
    if let Some(first) = access::take_along(resource, record.id) {
        tx.execute(&first).await?;
    }
    let mut gone = Query::delete();
    gone.from_table(resource.table.parent.unwrap_or(resource.table.name));
    gone.and_where(Expr::col("id").eq(record.id));
    match tx.execute(&gone).await {
        Ok(_) => {
            for forget in access::forget(resource, record.id) {
                tx.execute(&forget).await?;
            }
            rules.deleted(&mut tx).await?;
            if matches!(resource.path, "inventories" | "constructed_inventories" | "organizations") {
                super::inventory_sources::sweep(&mut tx).await?;
            }
            tx.commit().await?;
        }
        Err(StoreError::Reference) => {
            let error = json!({"error": "Resource is being used by others."});
            return Err(ApiError::Body(StatusCode::CONFLICT, error));
        }
        Err(error) => return Err(error.into()),
    }
    if matches!(resource.path, "inventories" | "constructed_inventories") {
        // Clients know this deletion as one that goes on in the background.
        return Ok(Response::builder()
            .status(StatusCode::ACCEPTED)
            .body(axum::body::Body::empty())
            .unwrap_or_default());
    }
    done()
}

/// What jobs under way are made of may not go. Clients cancel the jobs that are named, and come again.
async fn not_in_use(tx: &mut WriteTx, resource: &Resource, id: i64) -> Result<(), ApiError> {
    let column = match resource.path {
        "job_templates" => "job_template_id",
        "projects" => "project_id",
        "inventories" | "constructed_inventories" => "inventory_id",
        "inventory_sources" => "inventory_source_id",
        "organizations" => "organization_id",
        _ => return Ok(()),
    };
    let mut query = Query::select();
    query.columns(["kind", "id"]).from("unified_jobs").and_where(Expr::col(column).eq(id));
    query.and_where(Expr::col("status").is_in(job::ACTIVE)).limit(MAX_PAGE);
    let mut active = Vec::new();
    for row in tx.all(&query).await? {
        active.push(json!({"type": row.at::<String>(0)?, "id": row.at::<i64>(1)?}));
    }
    if active.is_empty() {
        return Ok(());
    }
    let words = json!({"error": "Resource is being used by running jobs.", "active_jobs": active});
    Err(ApiError::Body(StatusCode::CONFLICT, words))
}

async fn attach(
    call: &Call,
    resource: &'static Resource,
    id: i64,
    list: &'static SubList,
    pair: (&'static str, &'static str, &'static str),
) -> Answer {
    let user = call.user()?;
    access::need(call, resource, id, ADMIN).await?;
    let body = call.object()?;
    let (table, here, there) = pair;
    let named = match (list.of == &LABELS, body.get("name").and_then(Value::as_str)) {
        // A label that there is already is the one that is meant.
        (true, Some(name)) if body.get("id").is_none() => labels::named(call, name, &body).await?,
        _ => None,
    };
    let Some(member) = body.get("id").or(named.as_ref()) else {
        // A member that does not exist yet; it lives in the same inventory as what it joins.
        let mut preset = Vec::new();
        if list.of.field("inventory").is_some() && resource.field("inventory").is_some() {
            let owner = fetch(call, resource, &id.to_string()).await?;
            preset.push(("inventory", owner.int("inventory").map_or(Value::Null, Value::from)));
        }
        let (_, record) = created(call, list.of, &preset, Some((list, pair, resource, id))).await?;
        return created_response(record.url(), &record.into_json().into());
    };
    let member = match member {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let Some(member) = member else {
        let words = json!({"msg": "Field 'id' expected a number."});
        return Err(ApiError::Body(StatusCode::BAD_REQUEST, words));
    };
    let leaves = body.get("disassociate").and_then(crate::registry::write::boolean).unwrap_or(false);
    let mut tx = call.app.db.begin(Class::Intent).await?;
    if leaves {
        let mut gone = Query::delete();
        gone.from_table(table).and_where(Expr::col(here).eq(id)).and_where(Expr::col(there).eq(member));
        if tx.execute(&gone).await? > 0 {
            let entry = Entry::pair("disassociate", (resource, id), (list.of, member), list.name);
            activity::note(call, &mut tx, entry).await?;
            rules::of(resource).parted(&mut tx, list.name, id, member).await?;
        }
        if list.of == &LABELS {
            labels::sweep(&mut tx, member).await?;
        }
    } else {
        let mut exists = read::source(list.of, BASE);
        exists.column((BASE, "id")).and_where(Expr::col((BASE, "id")).eq(member));
        exists.cond_where(Condition::all().add_option(visible(list.of, user)?));
        if tx.optional(&exists).await?.is_none() {
            return Err(ApiError::bad(format!("{} matching query does not exist.", list.of.model)));
        }
        let mut usable = exists;
        let role = crate::registry::access::to_point(resource, list.name, list.of);
        usable.cond_where(Condition::all().add_option(condition(list.of, BASE, user, role)));
        if tx.optional(&usable).await?.is_none() {
            return Err(ApiError::forbidden());
        }
        rules::of(resource).may_attach(&mut tx, list.name, id, member).await?;
        if insert_pair(&mut tx, table, here, there, id, member).await? {
            let entry = Entry::pair("associate", (resource, id), (list.of, member), list.name);
            activity::note(call, &mut tx, entry).await?;
            rules::of(resource).joined(&mut tx, list.name, id, member).await?;
        }
    }
    if fleet::is_ordered(table) {
        // Jobs that wait may have somewhere to go now.
        tx.wake();
    }
    tx.commit().await?;
    done()
}

/// Puts a pair into its table; whether it was new there.
async fn insert_pair(
    tx: &mut WriteTx,
    table: &'static str,
    here: &'static str,
    there: &'static str,
    owner: i64,
    member: i64,
) -> Result<bool, StoreError> {
    let mut conflict = sea_query::OnConflict::columns([here, there]);
    conflict.do_nothing();
    let mut insert = Query::insert();
    insert.into_table(table).columns([here, there]).values_panic([owner.into(), member.into()]);
    Ok(tx.execute(insert.on_conflict(conflict)).await? > 0)
}

fn refused(resource: &Resource, error: StoreError) -> ApiError {
    match error {
        StoreError::Duplicate { .. } => {
            let (field, words) = resource.duplicate.words(resource.label);
            ApiError::field(field, words)
        }
        StoreError::Reference => ApiError::bad("A referenced object is gone."),
        error => error.into(),
    }
}
