//! The activity stream: an entry for each change that somebody made by the API, written in the transaction of the
//! change itself, so that neither is there without the other.
//!
//! What an entry says of values is what the API shows of them: secrets are `$encrypted$` before and after.

use std::collections::HashMap;

use axum::http::Method;
use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::error::ApiError;
use super::rules::{Rule, Rules};
use super::{Answer, generic, ok, settings};
use crate::registry::read::{self, BASE, Record};
use crate::registry::write::Draft;
use crate::registry::{self, ACTIVITY_STREAM, Kind, Mode, Owner, Resource, options, roles};
use crate::store::core::WriteTx;
use crate::vault::ENCRYPTED;

/// Longest text of one value that is kept; of longer ones the beginning is.
const MAX_TEXT: usize = 16 << 10;

/// Something that an entry tells of: type and id.
pub(super) type Object = (&'static str, Option<i64>);

/// What is told.
pub(super) struct Entry {
    /// `create`, `update`, `delete`, `associate`, `disassociate`.
    pub(super) operation: &'static str,
    /// What was changed.
    pub(super) object: Object,
    /// What it was put on, or taken from.
    pub(super) other: Option<Object>,
    /// The name of the list that both are in.
    pub(super) association: &'static str,
    /// For a role: `Organization.admin_role`.
    pub(super) relationship: String,
    /// Field by field; see [`created`] and [`updated`].
    pub(super) changes: Map<String, Value>,
    /// The organization it belongs to: a number, or a query for it.
    pub(super) organization: Expr,
}

impl Entry {
    /// An entry of one object.
    pub(super) fn of(operation: &'static str, object: Object, changes: Map<String, Value>) -> Self {
        Self {
            operation,
            object,
            other: None,
            association: "",
            relationship: String::new(),
            changes,
            organization: nothing(),
        }
    }

    /// An entry of a resource's object, whose organization follows from its fields.
    pub(super) fn on(
        operation: &'static str,
        resource: &Resource,
        id: i64,
        changes: Map<String, Value>,
        field: impl Fn(&str) -> Option<i64>,
    ) -> Self {
        let organization = match resource.owner {
            Owner::Itself => Expr::val(id),
            Owner::Field(name) => field(name).map_or_else(nothing, Expr::val),
            Owner::Through(name) => match (resource.field(name).map(|field| field.kind), field(name)) {
                (Some(Kind::Id(of)), Some(owner)) => organization_of(of, owner),
                _ => nothing(),
            },
            Owner::Installation => nothing(),
        };
        Self { organization, ..Self::of(operation, (resource.type_name, Some(id)), changes) }
    }

    /// An entry of two objects that were put together (`associate`) or taken apart.
    pub(super) fn pair(
        operation: &'static str,
        (resource, id): (&'static Resource, i64),
        (of, member): (&'static Resource, i64),
        association: &'static str,
    ) -> Self {
        let changes = Map::from_iter([
            ("object1".to_owned(), resource.type_name.into()),
            ("object1_pk".to_owned(), id.into()),
            ("object2".to_owned(), of.type_name.into()),
            ("object2_pk".to_owned(), member.into()),
            ("action".to_owned(), operation.into()),
            ("relationship".to_owned(), association.into()),
        ]);
        Self {
            other: Some((of.type_name, Some(member))),
            association,
            organization: organization_of(resource, id),
            ..Self::of(operation, (resource.type_name, Some(id)), changes)
        }
    }
}

fn nothing() -> Expr {
    Expr::val(None::<i64>)
}

/// The organization of an object that is there, as a query.
pub(super) fn organization_of(resource: &Resource, id: i64) -> Expr {
    let column = match resource.owner {
        Owner::Itself => return Expr::val(id),
        Owner::Field(name) => resource.field(name),
        // Two steps are enough for all there are: hosts and groups by their inventory.
        Owner::Through(name) => {
            let Some(Kind::Id(of)) = resource.field(name).map(|field| field.kind) else { return nothing() };
            let Owner::Field(owner) = of.owner else { return nothing() };
            let (Some(field), Some(owner)) = (resource.field(name), of.field(owner)) else {
                return nothing();
            };
            let mut inner = read::source(resource, "ao");
            inner
                .column((resource.alias_of(field, "ao"), field.column_name()))
                .and_where(Expr::col(("ao", "id")).eq(id));
            let mut query = read::source(of, "aw");
            query.column((of.alias_of(owner, "aw"), owner.column_name()));
            query.and_where(Expr::col(("aw", "id")).in_subquery(inner));
            return Expr::SubQuery(None, Box::new(query.into()));
        }
        Owner::Installation => return nothing(),
    };
    let Some(field) = column else { return nothing() };
    let mut query = read::source(resource, "ao");
    query.column((resource.alias_of(field, "ao"), field.column_name()));
    query.and_where(Expr::col(("ao", "id")).eq(id));
    Expr::SubQuery(None, Box::new(query.into()))
}

/// Writes an entry of whoever asks, unless the setting `ACTIVITY_STREAM_ENABLED` is off.
pub(super) async fn note(call: &Call, tx: &mut WriteTx, entry: Entry) -> Result<(), ApiError> {
    let user = call.user()?;
    if !settings::is_on(tx, "ACTIVITY_STREAM_ENABLED").await? {
        return Ok(());
    }
    let now = jiff::Timestamp::now().as_microsecond();
    let (other, other_id) = entry.other.unwrap_or(("", None));
    let mut insert = Query::insert();
    insert.into_table("activity_stream").columns([
        "timestamp",
        "actor_id",
        "actor_name",
        "operation",
        "changes",
        "action_node",
        "object1",
        "object1_id",
        "object2",
        "object2_id",
        "object_association",
        "object_relationship_type",
        "organization_id",
    ]);
    insert.values_panic([
        now.into(),
        user.author().into(),
        user.username.as_str().into(),
        entry.operation.into(),
        Value::from(entry.changes).to_string().into(),
        (*call.app.node).into(),
        entry.object.0.into(),
        entry.object.1.into(),
        other.into(),
        other_id.into(),
        entry.association.into(),
        entry.relationship.into(),
        entry.organization,
    ]);
    tx.execute(&insert).await?;
    Ok(())
}

/// What a new object was made with.
pub(super) fn created(id: i64, draft: &Draft) -> Map<String, Value> {
    let mut changes = Map::from_iter([("id".to_owned(), Value::from(id))]);
    for (name, value) in draft.all().filter(|(name, _)| shows(draft.resource, name)) {
        changes.insert(name.to_owned(), masked(draft.resource, name, value));
    }
    if let Some(inputs) = inputs(draft) {
        changes.insert("inputs".to_owned(), inputs);
    }
    if draft.aside.contains_key("password_hash") {
        changes.insert("password".to_owned(), ENCRYPTED.into());
    }
    changes
}

/// What a change changed: `[before, after]` of each field that is not as it was.
pub(super) fn updated(before: &Record, draft: &Draft) -> Map<String, Value> {
    let mut changes = Map::new();
    let mut change = |name: &str, old: Value, new: Value| {
        changes.insert(name.to_owned(), json!([old, new]));
    };
    for (name, value) in draft.all().filter(|(name, _)| shows(draft.resource, name)) {
        let old = before.fields.get(name).cloned().unwrap_or_default();
        if old != *value {
            change(name, masked(draft.resource, name, &old), masked(draft.resource, name, value));
        }
    }
    if let Some(inputs) = inputs(draft) {
        // Shown alike before and after, a secret may still be another one.
        let old = before.fields.get("inputs").cloned().unwrap_or_default();
        change("inputs", old, inputs);
    }
    if draft.aside.contains_key("password_hash") {
        change("password", ENCRYPTED.into(), ENCRYPTED.into());
    }
    changes
}

/// What an object was when it went.
pub(super) fn deleted(record: &Record) -> Map<String, Value> {
    let mut changes = Map::from_iter([("id".to_owned(), Value::from(record.id))]);
    let fields = record.resource.fields.iter().filter(|field| field.mode == Mode::ReadWrite);
    for field in fields {
        if let Some(value) = record.fields.get(field.name) {
            changes.insert(field.name.to_owned(), masked(record.resource, field.name, value));
        }
    }
    changes
}

fn shows(resource: &Resource, name: &str) -> bool {
    resource.field(name).is_some_and(|field| field.mode != Mode::WriteOnly)
}

fn masked(resource: &Resource, name: &str, value: &Value) -> Value {
    if resource.field(name).is_some_and(|field| field.secret) {
        return ENCRYPTED.into();
    }
    cut(value)
}

fn cut(value: &Value) -> Value {
    let text = match value {
        Value::String(text) if text.len() > MAX_TEXT => text.clone(),
        Value::Object(_) | Value::Array(_) => match value.to_string() {
            text if text.len() > MAX_TEXT => text,
            _ => return value.clone(),
        },
        _ => return value.clone(),
    };
    let end = (0..=MAX_TEXT).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    format!("{}…", &text[..end]).into()
}

/// Inputs of a credential that is written, as the API shows them.
fn inputs(draft: &Draft) -> Option<Value> {
    let mut inputs = draft.aside.get("inputs")?.as_object()?.clone();
    let secrets = draft.aside.get("secrets").and_then(Value::as_array);
    for (name, value) in &mut inputs {
        let secret = secrets.is_none_or(|secrets| secrets.iter().any(|secret| secret == name));
        if secret && value.as_str().is_none_or(|text| !text.is_empty()) {
            *value = ENCRYPTED.into();
        }
    }
    Some(Value::Object(inputs))
}

/// What entries show beside their columns: the objects they tell of, as far as they still are there.
pub(super) struct Stream;

/// Ids that an entry names: its own, its object's, the other object's.
struct Named {
    objects: [(String, Option<i64>); 2],
    actor_name: String,
}

impl Rules for Stream {
    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            if records.is_empty() {
                return Ok(());
            }
            let named = named(call, records).await?;
            let mut wanted: HashMap<&str, Vec<i64>> = HashMap::new();
            for (kind, id) in named.values().flat_map(|named| &named.objects) {
                if let Some(id) = id {
                    wanted.entry(kind).or_default().push(*id);
                }
            }
            let mut found = HashMap::new();
            for (kind, ids) in wanted {
                let Some(resource) = by_type(kind) else { continue };
                for shown in shown(call, resource, ids).await? {
                    found.insert((kind.to_owned(), shown["id"].as_i64()), (resource, shown));
                }
            }
            for record in records {
                let Some(named) = named.get(&record.id) else { continue };
                record.set("object_type", named.objects[0].0.clone());
                for (kind, id) in &named.objects {
                    let Some((resource, shown)) = found.get(&(kind.clone(), *id)) else { continue };
                    let id = id.unwrap_or_default();
                    push(&mut record.summary, kind, shown.clone());
                    push(&mut record.related, kind, resource.url(id).into());
                }
                if named.objects[0].0 == "setting" {
                    let changed = record.fields.get("changes").and_then(Value::as_object);
                    let name = changed.and_then(|changes| changes.keys().next()).cloned().unwrap_or_default();
                    let category = settings::category_of(&name);
                    push(&mut record.summary, "setting", json!({"category": category, "name": name}));
                }
                if record.text("object_association") == "role" {
                    let role = record.fields["changes"]["role_id"].as_i64();
                    if let Some((_, role, _)) = role.and_then(roles::parse) {
                        push(&mut record.summary, "role", json!({"role_field": role.field}));
                    }
                }
                if !record.summary.contains_key("actor") && !named.actor_name.is_empty() {
                    let gone =
                        json!({"id": null, "username": named.actor_name, "first_name": "", "last_name": ""});
                    record.summary.insert("actor".to_owned(), gone);
                }
            }
            Ok(())
        })
    }
}

fn push(map: &mut Map<String, Value>, key: &str, value: Value) {
    let list = map.entry(key.to_owned()).or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut()
        && !list.contains(&value)
    {
        list.push(value);
    }
}

async fn named(call: &Call, records: &[Record]) -> Result<HashMap<i64, Named>, ApiError> {
    let mut query = Query::select();
    query.columns(["id", "object1", "object1_id", "object2", "object2_id", "actor_name"]);
    query.from("activity_stream");
    query.and_where(Expr::col("id").is_in(records.iter().map(|record| record.id)));
    let mut named = HashMap::new();
    for row in call.app.db.all(&query).await? {
        let objects = [(row.at(1)?, row.at(2)?), (row.at(3)?, row.at(4)?)];
        named.insert(row.at(0)?, Named { objects, actor_name: row.at(5)? });
    }
    Ok(named)
}

fn by_type(kind: &str) -> Option<&'static Resource> {
    registry::ALL.iter().find(|resource| resource.type_name == kind).copied()
}

/// What an entry shows of the objects of one family: those that whoever asks may see.
async fn shown(call: &Call, resource: &'static Resource, ids: Vec<i64>) -> Result<Vec<Value>, ApiError> {
    let names: Vec<_> = resource
        .summary
        .iter()
        .filter_map(|name| resource.field(name))
        .filter(|field| !field.computed && matches!(field.kind, Kind::Text(_) | Kind::Choice(_)))
        .collect();
    let mut query = read::source(resource, BASE);
    query.column((BASE, "id")).and_where(Expr::col((BASE, "id")).is_in(ids));
    query.and_where_option(generic::visible(resource, call.user()?)?);
    for field in &names {
        query.column((resource.alias_of(field, BASE), field.column_name()));
    }
    let mut shown = Vec::new();
    for row in call.app.db.all(&query).await? {
        let mut object = Map::from_iter([("id".to_owned(), Value::from(row.at::<i64>(0)?))]);
        for (at, field) in names.iter().enumerate() {
            object.insert(field.name.to_owned(), row.at::<Option<String>>(at + 1)?.into());
        }
        shown.push(object.into());
    }
    Ok(shown)
}

/// `activity_stream/` of one object.
pub(super) async fn of_object(call: &Call, resource: &'static Resource, id: &str) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    call.user()?;
    if call.method == Method::OPTIONS {
        let name = format!("{} Activity Stream List", resource.label);
        return ok(options::document(&ACTIVITY_STREAM, None, &name));
    }
    let id = generic::visible_id(call, resource, id).await?;
    let told = |kind: &'static str, of: &'static str| {
        Expr::col((BASE, kind)).eq(resource.type_name).and(Expr::col((BASE, of)).eq(id))
    };
    let mut any = told("object1", "object1_id").or(told("object2", "object2_id"));
    if resource.path == "users" {
        any = any.or(Expr::col((BASE, "actor_id")).eq(id));
    }
    generic::page(call, &ACTIVITY_STREAM, Some(any)).await
}
