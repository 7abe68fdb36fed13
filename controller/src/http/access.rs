//! May they? The checks before anything is written, and what an object says its viewer may do with it.

use std::collections::HashMap;

use sea_query::{Condition, Expr, ExprTrait, Query, SelectStatement};
use serde_json::{Map, Value};

use super::call::Call;
use super::error::ApiError;
use crate::registry::access::{self, Creation};
use crate::registry::read::{self, BASE, Record};
use crate::registry::roles::{self, READ};
use crate::registry::write::{Draft, Errors};
use crate::registry::{Kind, Resource, definitions};

/// Whether whoever asks has a role on an object.
pub(super) async fn allowed(
    call: &Call,
    resource: &'static Resource,
    id: i64,
    role: &str,
) -> Result<bool, ApiError> {
    let Some(condition) = access::condition(resource, BASE, call.user()?, role) else { return Ok(true) };
    let query = with(resource, Some(id), Some(condition));
    Ok(call.app.db.optional(&query).await?.is_some())
}

/// Refuses whoever has not this role on an object that they see.
pub(super) async fn need(
    call: &Call,
    resource: &'static Resource,
    id: i64,
    role: &str,
) -> Result<(), ApiError> {
    if allowed(call, resource, id, role).await? { Ok(()) } else { Err(ApiError::forbidden()) }
}

/// Whether there is any object on which whoever asks has a role.
pub(super) async fn somewhere(
    call: &Call,
    resource: &'static Resource,
    role: &str,
) -> Result<bool, ApiError> {
    let Some(condition) = access::condition(resource, BASE, call.user()?, role) else { return Ok(true) };
    let mut query = with(resource, None, Some(condition));
    Ok(call.app.db.optional(query.limit(1)).await?.is_some())
}

/// Whether whoever asks may make objects of a family, somewhere.
pub(super) async fn creates(call: &Call, resource: &'static Resource) -> Result<bool, ApiError> {
    if call.user()?.is_superuser {
        return Ok(true);
    }
    match access::creation(resource) {
        Creation::Everybody => Ok(true),
        Creation::Superuser => Ok(false),
        Creation::On(field, role) => match resource.field(field).map(|field| field.kind) {
            Some(Kind::Id(of)) => somewhere(call, of, role).await,
            _ => Ok(false),
        },
    }
}

/// Checks that whoever asks may let an object point where it shall point. What they do not see is not there; what
/// stays as it was is not asked about.
pub(super) async fn check_relations(
    call: &Call,
    draft: &Draft,
    before: Option<&Record>,
) -> Result<(), ApiError> {
    let user = call.user()?;
    let resource = draft.resource;
    let fresh = |name: &str, id: i64| before.and_then(|before| before.int(name)) != Some(id);
    let relations: Vec<_> = draft.relations().filter(|(name, _, id)| fresh(name, *id)).collect();
    let mut query = SelectStatement::new();
    for (name, of, id) in &relations {
        let needed = access::to_point(resource, name, of);
        for role in [READ, needed] {
            let found = with(of, Some(*id), access::condition(of, BASE, user, role));
            query.expr(Expr::SubQuery(None, Box::new(found.into())));
        }
    }
    let row = match relations.is_empty() {
        true => None,
        false => call.app.db.optional(&query).await?,
    };
    let mut errors = Errors::default();
    let mut forbidden = false;
    for (index, (name, _, id)) in relations.iter().enumerate() {
        let found = |at: usize| match &row {
            Some(row) => row.at::<Option<i64>>(at),
            None => Ok(None),
        };
        if found(2 * index)?.is_none() {
            errors.add(name, format!("Invalid pk \"{id}\" - object does not exist."));
        }
        forbidden |= found(2 * index + 1)?.is_none();
    }
    errors.into_result()?;
    // Without an owner it would be everybody's, which is the superuser's to give.
    if let (Creation::On(field, _), false) = (access::creation(resource), user.is_superuser) {
        let owned = before.is_some_and(|before| before.int(field).is_some());
        forbidden |= match before {
            None => draft.int(field).is_none(),
            Some(_) => owned && draft.has(field) && draft.int(field).is_none(),
        };
    }
    if resource.path == "credentials" && !user.is_superuser && before.is_some() {
        forbidden |= draft.has("organization")
            && draft.int("organization").is_none()
            && before.is_some_and(|before| before.int("organization").is_some());
    }
    if forbidden { Err(ApiError::forbidden()) } else { Ok(()) }
}

/// Checks roles on objects that are named in a request, each with the field that names it: unseen is not there, and
/// without the role it is refused. As many queries for many as for one of each family.
pub(super) async fn check_named(
    call: &Call,
    resource: &'static Resource,
    ids: &[i64],
    field: &str,
    role: &str,
) -> Result<(), ApiError> {
    let user = call.user()?;
    if ids.is_empty() {
        return Ok(());
    }
    for (needed, seen) in [(READ, false), (role, true)] {
        let mut query = with(resource, None, access::condition(resource, BASE, user, needed));
        query.and_where(Expr::col((BASE, "id")).is_in(ids.iter().copied()));
        let rows = call.app.db.all(&query).await?;
        let found: Vec<i64> = rows.iter().map(|row| row.at(0)).collect::<Result<_, _>>()?;
        if let Some(id) = ids.iter().find(|id| !found.contains(id)) {
            return Err(match seen {
                false => ApiError::field(field, format!("Invalid pk \"{id}\" - object does not exist.")),
                true => ApiError::forbidden(),
            });
        }
    }
    Ok(())
}

/// Says on each object what whoever asks may do with it: one query for each family on the page.
pub(super) async fn show_capabilities(call: &Call, records: &mut [Record]) -> Result<(), ApiError> {
    let user = call.user()?;
    if user.is_superuser {
        return Ok(());
    }
    let mut families: Vec<&'static Resource> = Vec::new();
    for record in records.iter() {
        if !record.resource.capabilities.is_empty() && !families.contains(&record.resource) {
            families.push(record.resource);
        }
    }
    for resource in families {
        let ids: Vec<i64> =
            records.iter().filter(|record| record.resource == resource).map(|record| record.id).collect();
        let mut query = with(resource, None, None);
        query.and_where(Expr::col((BASE, "id")).is_in(ids));
        for name in resource.capabilities {
            let role = access::capability(resource, name);
            query.expr(access::condition(resource, BASE, user, role).unwrap_or_else(|| Expr::val(1).eq(1)));
        }
        let mut found: HashMap<i64, Map<String, Value>> = HashMap::new();
        for row in call.app.db.all(&query).await? {
            let mut may = Map::new();
            for (at, name) in resource.capabilities.iter().enumerate() {
                let may_this = row.at::<Option<bool>>(at + 1)?.unwrap_or_default();
                may.insert((*name).to_owned(), may_this.into());
            }
            found.insert(row.at(0)?, may);
        }
        for record in records.iter_mut().filter(|record| record.resource == resource) {
            let may = found.remove(&record.id).unwrap_or_default();
            record.summary.insert("user_capabilities".to_owned(), may.into());
        }
    }
    Ok(())
}

/// The condition of `?role_level=`: objects on which whoever asks has this role.
pub(super) fn role_level(call: &Call, resource: &'static Resource) -> Result<Option<Expr>, ApiError> {
    let Some(role) = call.parameter("role_level") else { return Ok(None) };
    let known = roles::family(resource).is_some_and(|family| family.role(role).is_some());
    if !known {
        let role: String = role.chars().take(80).collect();
        return Err(ApiError::bad(format!("{} has no role named '{role}'.", resource.model)));
    }
    Ok(access::condition(resource, BASE, call.user()?, role))
}

/// The ids of a family's rows, of one of them or of those that meet a condition.
fn with(resource: &Resource, id: Option<i64>, condition: Option<Expr>) -> SelectStatement {
    let mut query = read::source(resource, BASE);
    query.column((BASE, "id")).cond_where(Condition::all().add_option(condition));
    query.and_where_option(id.map(|id| Expr::col((BASE, "id")).eq(id)));
    query
}

/// What whoever makes an object is given: who makes a template runs it, and one's own credential is one's own.
pub(super) fn creators_role(user: i64, draft: &Draft) -> Option<(i64, &'static str)> {
    match draft.resource.path {
        "job_templates" => Some((user, roles::ADMIN)),
        "credentials" => draft.int("user").map(|owner| (owner, roles::ADMIN)),
        _ => None,
    }
}

/// What goes before an object does, because nothing would say afterwards whose it was: tokens that were given to applications
/// do not become anybody's own.
pub(super) fn take_along(resource: &Resource, id: i64) -> Option<sea_query::DeleteStatement> {
    let mut given = Query::select();
    given.column("id").from("application_tokens");
    match resource.path {
        "applications" => given.and_where(Expr::col("application_id").eq(id)),
        "organizations" => {
            let mut own = Query::select();
            own.column("id").from("applications").and_where(Expr::col("organization_id").eq(id));
            given.and_where(Expr::col("application_id").in_subquery(own))
        }
        _ => return None,
    };
    let mut gone = Query::delete();
    gone.from_table("tokens").and_where(Expr::col("id").in_subquery(given));
    Some(gone)
}

/// Forgets who held roles on an object that is deleted.
pub(super) fn forget(resource: &Resource, id: i64) -> Vec<sea_query::DeleteStatement> {
    let Some(family) = roles::family(resource) else { return Vec::new() };
    let codes: Vec<i64> = family.roles().filter_map(|role| family.code(role.field)).collect();
    let mut definitions = Query::select();
    definitions.column("id").from("role_definitions");
    definitions.and_where(Expr::col("content_type").eq(definitions::content_type(family)));
    let mut bundles = Query::delete();
    bundles.from_table("bundle_assignments").and_where(Expr::col("object_id").eq(id));
    bundles.and_where(Expr::col("role_definition_id").in_subquery(definitions));
    ["role_users", "role_teams"]
        .into_iter()
        .map(|table| {
            let mut gone = Query::delete();
            gone.from_table(table).and_where(Expr::col("object_id").eq(id));
            gone.and_where(Expr::col("code").is_in(codes.iter().copied())).take()
        })
        .chain([bundles])
        .collect()
}
