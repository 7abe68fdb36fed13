//! Role definitions and their assignments: AWX's newer way to give and take the same roles.

use std::collections::BTreeSet;

use axum::http::{Method, StatusCode};
use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::error::ApiError;
use super::roles::{self as given, Holder};
use super::rules::{Rule, Rules};
use super::{Answer, activity, done, generic, ok};
use crate::registry::read::{BASE, Record};
use crate::registry::roles::Family;
use crate::registry::write::Draft;
use crate::registry::{
    self, ROLE_DEFINITIONS, ROLE_TEAM_ASSIGNMENTS, ROLE_USER_ASSIGNMENTS, Resource, TEAMS, USERS,
    definitions, options, roles,
};
use crate::store::core::{Class, WriteTx};

/// Most permissions that a bundle may name.
const MAX_PERMISSIONS: usize = 200;

pub(super) struct Definitions;

impl Rules for Definitions {
    fn check<'a>(&'a self, call: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            if before.is_some_and(|before| before.flag("managed")) {
                return Err(managed());
            }
            // The awx command sends every list as text.
            let text = draft.value("permissions").and_then(Value::as_str);
            let list = text.map(|text| text.split([',', ' ']).filter(|word| !word.is_empty()).collect());
            if let Some(list) = list.map(|list: Vec<&str>| json!(list)) {
                draft.set("permissions", list);
            }
            let changed = |name: &str| {
                before.is_some_and(|before| {
                    draft.value(name).is_some_and(|new| Some(new) != before.fields.get(name))
                })
            };
            if let Some(before) = before
                && (changed("permissions") || changed("content_type"))
                && is_assigned(call, before.id).await?
            {
                let words = "A role definition that is assigned keeps its permissions; make another one.";
                return Err(ApiError::Detail(StatusCode::CONFLICT, words.to_owned()));
            }
            let stored = before.map(|before| before.text("content_type"));
            let given = draft.value("content_type").and_then(Value::as_str).or(stored);
            let Some(family) = definitions::family_of(given.unwrap_or_default()) else {
                let words = format!("Unknown content type {}.", given.unwrap_or_default());
                return Err(ApiError::field("content_type", words));
            };
            if let Some(permissions) = draft.value("permissions") {
                let wanted = read(permissions).map_err(|words| ApiError::field("permissions", words))?;
                check(family, &wanted)?;
            }
            draft.set("content_type", definitions::content_type(family));
            Ok(())
        })
    }

    fn options(&self, fields: &mut Map<String, Value>) {
        if let Some(field) = fields.get_mut("permissions") {
            field["type"] = "list".into();
        }
    }

    fn may_delete<'a>(&'a self, call: &'a Call, record: &'a Record) -> Rule<'a> {
        Box::pin(async move {
            if record.flag("managed") {
                return Err(managed());
            }
            if is_assigned(call, record.id).await? {
                let words = "A role definition that is assigned cannot be deleted.";
                return Err(ApiError::Detail(StatusCode::CONFLICT, words.to_owned()));
            }
            Ok(())
        })
    }
}

fn managed() -> ApiError {
    ApiError::Detail(StatusCode::FORBIDDEN, "Managed role definitions cannot be changed.".to_owned())
}

fn read(permissions: &Value) -> Result<BTreeSet<String>, &'static str> {
    let list = permissions.as_array().filter(|list| list.len() <= MAX_PERMISSIONS);
    let list = list.ok_or("Expected a list of permissions.")?;
    let texts = list.iter().map(|item| item.as_str().map(definitions::normal));
    texts.collect::<Option<_>>().ok_or("Expected a list of permissions.")
}

fn check(family: &'static Family, wanted: &BTreeSet<String>) -> Result<(), ApiError> {
    let known = definitions::known(family);
    let unknown: Vec<&str> = wanted.difference(&known).map(String::as_str).collect();
    if !unknown.is_empty() {
        let words = format!("Permissions {} are not valid for this content type.", unknown.join(", "));
        return Err(ApiError::field("permissions", words));
    }
    if definitions::bundle(family, wanted).is_none() {
        let roles: Vec<String> = family
            .roles()
            .map(|role| {
                let given: Vec<String> = definitions::permissions(family, role.field).into_iter().collect();
                format!("{}: {}", roles::label(role.field), given.join(", "))
            })
            .collect();
        let words =
            format!("These permissions are only given together, as roles give them. {}", roles.join("; "));
        return Err(ApiError::field("permissions", words));
    }
    Ok(())
}

async fn is_assigned(call: &Call, definition: i64) -> Result<bool, ApiError> {
    let mut query = Query::select();
    query.column("id").from("bundle_assignments");
    query.and_where(Expr::col("role_definition_id").eq(definition)).limit(1);
    Ok(call.app.db.optional(&query).await?.is_some())
}

/// What assignments show beside their columns.
pub(super) struct Assignments;

impl Rules for Assignments {
    fn fill<'a>(&'a self, _: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            for record in records {
                // As clients know it: text.
                let object = record.int("object_id").unwrap_or_default();
                record.set("object_id", object.to_string());
                let of = definitions::family_of(record.text("content_type"));
                if let Some(of) = of.and_then(|family| registry::by_path(family.path)) {
                    record.related.insert("content_object".to_owned(), of.url(object).into());
                }
            }
            Ok(())
        })
    }
}

/// Whether the objects of a resource are assignments.
pub(super) fn assigns(resource: &Resource) -> bool {
    *resource == ROLE_USER_ASSIGNMENTS || *resource == ROLE_TEAM_ASSIGNMENTS
}

/// `user_assignments/` and `team_assignments/` of a definition.
pub(super) async fn of_definition(call: &Call, id: &str, name: &str) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    call.user()?;
    let of = if name == "user_assignments" { &ROLE_USER_ASSIGNMENTS } else { &ROLE_TEAM_ASSIGNMENTS };
    if call.method == Method::OPTIONS {
        return ok(options::document(of, None, &format!("{} List", of.label)));
    }
    let id = generic::visible_id(call, &ROLE_DEFINITIONS, id).await?;
    generic::page(call, of, Some(Expr::col((BASE, "role_definition_id")).eq(id))).await
}

/// What is given to whom.
struct Assignment {
    definition: i64,
    object: i64,
    holder: Holder,
    /// The fixed role, or those of a bundle.
    roles: Vec<i64>,
    is_bundle: bool,
}

/// A POST to a list of assignments: gives a role.
pub(super) async fn assign(call: &Call, resource: &'static Resource) -> Answer {
    call.user()?;
    let body = call.object()?;
    let field = if *resource == ROLE_USER_ASSIGNMENTS { "user" } else { "team" };
    let number = |name: &str| {
        let value = body.get(name).filter(|value| !value.is_null());
        let value = value.ok_or_else(|| ApiError::field(name, "This field is required."))?;
        let number = value.as_i64().or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()));
        number.ok_or_else(|| ApiError::field(name, "A valid integer is required."))
    };
    let (definition, object, holder) = (number("role_definition")?, number("object_id")?, number(field)?);
    let absent =
        |name: &str, id: i64| ApiError::field(name, format!("Invalid pk \"{id}\" - object does not exist."));
    let Some((family, roles, is_bundle)) = roles_of(call, definition, object).await? else {
        return Err(absent("role_definition", definition));
    };
    let of = registry::by_path(family.path).ok_or_else(ApiError::no_such_page)?;
    if generic::visible_id(call, of, &object.to_string()).await.is_err() {
        return Err(absent("object_id", object));
    }
    let (holders, holder) =
        if field == "user" { (&USERS, Holder::User(holder)) } else { (&TEAMS, Holder::Team(holder)) };
    let id = holder.id();
    if generic::visible_id(call, holders, &id.to_string()).await.is_err() {
        return Err(absent(field, id));
    }
    for &role in &roles {
        given::may_give(call, role).await?;
        given::check(call, role, holder).await?;
    }
    let mut tx = call.app.db.begin(Class::Intent).await?;
    for &role in &roles {
        given::hold(&mut tx, role, holder).await?;
    }
    let assignment = Assignment { definition, object, holder, roles, is_bundle };
    let id = stored(&mut tx, &assignment).await?;
    for &role in &assignment.roles {
        activity::note(call, &mut tx, given::told(role, holder, false)).await?;
    }
    tx.commit().await?;
    let record = generic::fetch(call, resource, &id.to_string()).await?;
    generic::created_response(record.url(), &record.into_json().into())
}

/// Keeps the assignment of a bundle; the id of any.
async fn stored(tx: &mut WriteTx, assignment: &Assignment) -> Result<i64, ApiError> {
    let holder = assignment.holder.id();
    if !assignment.is_bundle {
        let role = assignment.roles.first().copied().unwrap_or_default();
        return Ok((role * (1 << 22) + holder) * 2);
    }
    let column = match assignment.holder {
        Holder::User(_) => "user_id",
        Holder::Team(_) => "team_id",
    };
    let mut there = Query::select();
    there.column("id").from("bundle_assignments");
    there.and_where(Expr::col("role_definition_id").eq(assignment.definition));
    there.and_where(Expr::col("object_id").eq(assignment.object)).and_where(Expr::col(column).eq(holder));
    let id: i64 = match tx.optional(&there).await? {
        Some(row) => row.at(0)?,
        None => {
            let now = jiff::Timestamp::now().as_microsecond();
            let mut insert = Query::insert();
            insert.into_table("bundle_assignments");
            insert.columns(["role_definition_id", "object_id", column, "created"]);
            insert.values_panic([
                assignment.definition.into(),
                assignment.object.into(),
                holder.into(),
                now.into(),
            ]);
            tx.insert(&mut insert).await?
        }
    };
    Ok(id * 2 + 1)
}

/// The fixed roles of a definition on an object; whether it is a bundle.
async fn roles_of(
    call: &Call,
    definition: i64,
    object: i64,
) -> Result<Option<(&'static Family, Vec<i64>, bool)>, ApiError> {
    let mut query = Query::select();
    query.columns(["content_type", "permissions", "code"]).from("role_definitions");
    query.and_where(Expr::col("id").eq(definition));
    let Some(row) = call.app.db.optional(&query).await? else { return Ok(None) };
    let Some(family) = definitions::family_of(&row.at::<String>(0)?) else { return Ok(None) };
    let code: Option<i64> = row.at(2)?;
    let codes = match code {
        Some(code) => vec![code],
        None => {
            let permissions: Value = serde_json::from_str(&row.at::<String>(1)?).unwrap_or_default();
            definitions::bundle(family, &read(&permissions).unwrap_or_default()).unwrap_or_default()
        }
    };
    let roles = codes.into_iter().map(|of| object << 8 | of).collect();
    Ok(Some((family, roles, code.is_none())))
}

/// DELETE of an assignment: takes the role. Roles of a bundle stay where another bundle of the same holder has them.
pub(super) async fn revoke(call: &Call, resource: &'static Resource, id: &str) -> Answer {
    let record = generic::fetch(call, resource, id).await?;
    let object: i64 = record.text("object_id").parse().unwrap_or_default();
    let definition = record.int("role_definition").unwrap_or_default();
    let (holder, column) = match record.int("user") {
        Some(user) => (Holder::User(user), "user_id"),
        None => (Holder::Team(record.int("team").unwrap_or_default()), "team_id"),
    };
    let Some((_, mut roles, is_bundle)) = roles_of(call, definition, object).await? else {
        return Err(ApiError::missing(resource.model));
    };
    for &role in &roles {
        given::may_give(call, role).await?;
    }
    if is_bundle {
        let mut others = Query::select();
        others.column("role_definition_id").from("bundle_assignments");
        others.and_where(Expr::col("object_id").eq(object)).and_where(Expr::col(column).eq(holder.id()));
        others.and_where(Expr::col("role_definition_id").ne(definition));
        for row in call.app.db.all(&others).await? {
            let other: i64 = row.at(0)?;
            let kept = roles_of(call, other, object).await?.map(|(_, kept, _)| kept).unwrap_or_default();
            roles.retain(|role| !kept.contains(role));
        }
    }
    let mut tx = call.app.db.begin(Class::Intent).await?;
    for &role in &roles {
        given::take(&mut tx, role, holder).await?;
        activity::note(call, &mut tx, given::told(role, holder, true)).await?;
    }
    if is_bundle {
        let mut gone = Query::delete();
        gone.from_table("bundle_assignments").and_where(Expr::col("id").eq(record.id / 2));
        tx.execute(&gone).await?;
    }
    tx.commit().await?;
    done()
}
