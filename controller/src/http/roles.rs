//! Roles: who holds them, and how they are given and taken, by all three ways: at the user, at the team, at the role.

use std::collections::HashMap;

use axum::http::{Method, StatusCode};
use sea_query::{Expr, ExprTrait, JoinType, OnConflict, Query};
use serde_json::{Map, Value, json};

use super::activity::{self, Entry};
use super::call::Call;
use super::error::ApiError;
use super::generic;
use super::rules::{Rule, Rules};
use super::{Answer, access, done, ok};
use crate::registry::read::{BASE, Record};
use crate::registry::roles::{self, ADMIN, Family, MEMBER, READ, SYSTEM_ADMINISTRATOR, SYSTEM_AUDITOR};
use crate::registry::{self, By, ROLES, Resource, SubList, TEAMS, USERS, options};
use crate::store::core::{Class, Error as StoreError, WriteTx};

const READS: &str = "GET, HEAD, OPTIONS";

/// Most teams, of those that hold a role, whose members are named in a list of who has access.
const MAX_TEAMS: u64 = 1000;

pub(super) struct Roles;

impl Rules for Roles {
    fn fill<'a>(&'a self, _: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            for record in records {
                let object = record.fields.shift_remove("object_id").unwrap_or_default();
                let name = record.fields.shift_remove("resource_name").unwrap_or_default();
                let type_name = record.fields.shift_remove("content_type").unwrap_or_default();
                let field = record.fields.shift_remove("role_field").unwrap_or_default();
                let field = field.as_str().unwrap_or_default();
                record.set("name", roles::label(field));
                let Some((family, _, id)) = roles::parse(record.id) else {
                    let what = if record.id == SYSTEM_AUDITOR { "view" } else { "manage" };
                    record.set("description", format!("Can {what} all aspects of the system"));
                    continue;
                };
                record.set("description", roles::description(family, field));
                let label = registry::by_path(family.path).map_or("", |resource| resource.label);
                record.summary.insert("resource_name".to_owned(), name);
                record.summary.insert("resource_type".to_owned(), type_name);
                record.summary.insert("resource_type_display_name".to_owned(), label.into());
                record.summary.insert("resource_id".to_owned(), object);
                let url = format!("/api/v2/{}/{id}/", family.path);
                record.related.insert(family.type_name.to_owned(), url.into());
            }
            Ok(())
        })
    }
}

/// Whether a table of pairs says who holds roles.
pub(super) fn is_membership(table: &str) -> bool {
    takes_new(table) || matches!(table, "team_members" | "user_roles" | "role_teams")
}

/// Whether users come into being in such a list.
pub(super) fn takes_new(table: &str) -> bool {
    matches!(table, "organization_members" | "organization_admins")
}

/// The role that the members of such a list hold, on the object whose list it is.
fn of_members(table: &str, object: i64) -> Option<i64> {
    let (path, field) = match table {
        "organization_members" => ("organizations", MEMBER),
        "organization_admins" => ("organizations", ADMIN),
        "team_members" => ("teams", MEMBER),
        _ => return None,
    };
    roles::by_path(path)?.id(object, field)
}

/// Who holds a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    User(i64),
    Team(i64),
}

/// A POST to a list of members or of roles: gives a role, or takes it.
pub(super) async fn attach(
    call: &Call,
    resource: &'static Resource,
    id: i64,
    list: &'static SubList,
) -> Answer {
    let By::Pairs { table, here, there, .. } = list.by else { return Err(ApiError::no_such_page()) };
    let body = call.object()?;
    let Some(member) = body.get("id").filter(|id| !id.is_null()) else {
        if of_members(table, id).is_none() {
            let words = json!({"msg": format!("{} 'id' field is missing.", list.of.model)});
            return Err(ApiError::Body(StatusCode::BAD_REQUEST, words));
        }
        access::need(call, resource, id, ADMIN).await?;
        let pair = (list, (table, here, there), resource, id);
        let (_, record) = generic::created(call, list.of, &[], Some(pair)).await?;
        return generic::created_response(record.url(), &record.into_json().into());
    };
    let member = member.as_i64().or_else(|| member.as_str().and_then(|text| text.parse().ok()));
    let Some(member) = member else {
        let words = json!({"msg": "Field 'id' expected a number."});
        return Err(ApiError::Body(StatusCode::BAD_REQUEST, words));
    };
    let leaves = body.get("disassociate").and_then(registry::write::boolean).unwrap_or(false);
    let (role, holder) = match (of_members(table, id), resource.path, table) {
        (Some(role), ..) => (role, Holder::User(member)),
        (None, "users", _) => (member, Holder::User(id)),
        (None, "teams", _) => (member, Holder::Team(id)),
        (None, _, "role_teams") => (id, Holder::Team(member)),
        (None, ..) => (id, Holder::User(member)),
    };
    match generic::visible_id(call, list.of, &member.to_string()).await {
        Err(ApiError::Detail(StatusCode::NOT_FOUND, _)) => {
            return Err(ApiError::bad(format!("{} matching query does not exist.", list.of.model)));
        }
        other => other?,
    };
    may_give(call, role).await?;
    if !leaves {
        check(call, role, holder).await?;
    }
    let mut tx = call.app.db.begin(Class::Intent).await?;
    match (roles::parse(role), holder) {
        (None, Holder::User(user)) => {
            if leaves && user == call.user()?.id && role == SYSTEM_ADMINISTRATOR {
                let words = "You may not perform any action with your own admin_role.".to_owned();
                return Err(ApiError::Detail(StatusCode::FORBIDDEN, words));
            }
            let flag = if role == SYSTEM_AUDITOR { "is_system_auditor" } else { "is_superuser" };
            let mut update = Query::update();
            tx.execute(update.table("users").value(flag, !leaves).and_where(Expr::col("id").eq(user)))
                .await?;
        }
        (_, holder) if leaves => take(&mut tx, role, holder).await?,
        (_, holder) => hold(&mut tx, role, holder).await?,
    }
    activity::note(call, &mut tx, told(role, holder, leaves)).await?;
    tx.commit().await?;
    done()
}

/// The entry of the activity stream of a role that was given or taken.
pub(super) fn told(role: i64, holder: Holder, leaves: bool) -> Entry {
    let (resource, id) = match holder {
        Holder::User(id) => (&USERS, id),
        Holder::Team(id) => (&TEAMS, id),
    };
    let operation = if leaves { "disassociate" } else { "associate" };
    let changes = |object: &str| {
        let mut changes = Map::new();
        changes.insert("role_id".to_owned(), role.into());
        changes.insert("object1".to_owned(), resource.type_name.into());
        changes.insert("object1_pk".to_owned(), id.into());
        changes.insert("object2".to_owned(), object.into());
        changes.insert("action".to_owned(), operation.into());
        changes.insert("relationship".to_owned(), "role".into());
        changes
    };
    let object = (resource.type_name, Some(id));
    let on = roles::parse(role)
        .and_then(|(family, of, object)| Some((registry::by_path(family.path)?, of.field, object)));
    let Some((of, field, target)) = on else {
        return Entry { association: "role", ..Entry::of(operation, object, changes("")) };
    };
    Entry {
        other: Some((of.type_name, Some(target))),
        association: "role",
        relationship: format!("{}.{field}", of.model),
        organization: activity::organization_of(of, target),
        ..Entry::of(operation, object, changes(of.type_name))
    }
}

/// Who runs an object gives its roles; those on the installation are the superuser's to give.
pub(super) async fn may_give(call: &Call, role: i64) -> Result<(), ApiError> {
    let on =
        roles::parse(role).and_then(|(family, _, object)| Some((registry::by_path(family.path)?, object)));
    match on {
        Some((resource, object)) => access::need(call, resource, object, ADMIN).await,
        None if call.user()?.is_superuser => Ok(()),
        None => Err(ApiError::forbidden()),
    }
}

/// What a holder cannot be given, whoever asks.
pub(super) async fn check(call: &Call, role: i64, holder: Holder) -> Result<(), ApiError> {
    let refuse = |words: &str| Err(ApiError::Body(StatusCode::BAD_REQUEST, json!({"msg": words})));
    let Some((family, of, object)) = roles::parse(role) else {
        return match holder {
            Holder::Team(_) => refuse("You cannot grant system-level permissions to a team."),
            Holder::User(_) => Ok(()),
        };
    };
    if matches!(holder, Holder::Team(_)) && !roles::takes_teams(family, of.field) {
        return refuse(match family.path {
            "organizations" => {
                "You cannot assign an Organization participation role as a child role for a Team."
            }
            _ => "You cannot assign a Team role as a child role for a Team.",
        });
    }
    if family.path != "credentials" {
        return Ok(());
    }
    let organization = column(call, "credentials", "organization_id", object).await?;
    match (holder, organization) {
        (Holder::Team(team), organization) => {
            if organization.is_none() || column(call, "teams", "organization_id", team).await? != organization
            {
                return refuse(
                    "You cannot grant credential access to a team when the Organization field isn't set, or belongs to a different organization",
                );
            }
            Ok(())
        }
        (Holder::User(_), None) if !call.user()?.is_superuser => {
            refuse("You cannot grant private credential access to another user")
        }
        (Holder::User(_), None) => Ok(()),
        (Holder::User(user), Some(organization)) => {
            let codes = roles::FAMILIES[0].granting(MEMBER).0;
            let mut belongs = Query::select();
            belongs.column("user_id").from("role_users").and_where(Expr::col("object_id").eq(organization));
            belongs.and_where(Expr::col("code").is_in(codes));
            let mut query = Query::select();
            query.column("id").from("users").and_where(Expr::col("id").eq(user));
            query.and_where(Expr::col("is_superuser").eq(true).or(Expr::col("id").in_subquery(belongs)));
            match call.app.db.optional(&query).await? {
                Some(_) => Ok(()),
                None => refuse(
                    "You cannot grant credential access to a user not in the credentials' organization",
                ),
            }
        }
    }
}

async fn column(
    call: &Call,
    table: &'static str,
    column: &'static str,
    id: i64,
) -> Result<Option<i64>, ApiError> {
    let mut query = Query::select();
    query.column(column).from(table).and_where(Expr::col("id").eq(id));
    Ok(match call.app.db.optional(&query).await? {
        Some(row) => row.at::<Option<i64>>(0)?,
        None => None,
    })
}

/// Gives a user a role on an object that was made just now.
pub(super) async fn give(
    tx: &mut WriteTx,
    family: &Family,
    object: i64,
    field: &str,
    user: i64,
) -> Result<(), StoreError> {
    match family.id(object, field) {
        Some(role) => hold(tx, role, Holder::User(user)).await,
        None => Ok(()),
    }
}

/// Makes a new user a member of such a list.
pub(super) async fn join(tx: &mut WriteTx, table: &str, object: i64, user: i64) -> Result<(), StoreError> {
    match of_members(table, object) {
        Some(role) => hold(tx, role, Holder::User(user)).await,
        None => Ok(()),
    }
}

impl Holder {
    /// The user's or the team's.
    pub(super) fn id(self) -> i64 {
        match self {
            Self::User(id) | Self::Team(id) => id,
        }
    }

    fn place(self) -> (&'static str, &'static str, i64) {
        match self {
            Self::User(id) => ("role_users", "user_id", id),
            Self::Team(id) => ("role_teams", "team_id", id),
        }
    }
}

pub(super) async fn hold(tx: &mut WriteTx, role: i64, holder: Holder) -> Result<(), StoreError> {
    let (table, column, id) = holder.place();
    let mut once = OnConflict::columns(["role_id", column]);
    let mut insert = Query::insert();
    insert.into_table(table).columns(["role_id", column, "code", "object_id"]);
    insert.values_panic([role.into(), id.into(), (role & 0xff).into(), (role >> 8).into()]);
    tx.execute(insert.on_conflict(once.do_nothing().to_owned())).await.map(drop)
}

pub(super) async fn take(tx: &mut WriteTx, role: i64, holder: Holder) -> Result<(), StoreError> {
    let (table, column, id) = holder.place();
    let mut gone = Query::delete();
    gone.from_table(table).and_where(Expr::col("role_id").eq(role)).and_where(Expr::col(column).eq(id));
    tx.execute(&gone).await.map(drop)
}

/// `object_roles/`: the roles on one object.
pub(super) async fn of_object(call: &Call, resource: &'static Resource, id: &str) -> Answer {
    call.allow(READS)?;
    let family = roles::family(resource).ok_or_else(ApiError::no_such_page)?;
    call.user()?;
    if call.method == Method::OPTIONS {
        return ok(options::document(&ROLES, None, &format!("{} Object Role List", resource.label)));
    }
    let id = generic::visible_id(call, resource, id).await?;
    generic::page(call, &ROLES, Some(on(family.type_name, Expr::val(id)))).await
}

fn on(type_name: &'static str, object: Expr) -> Expr {
    Expr::col((BASE, "content_type")).eq(type_name).and(Expr::col((BASE, "object_id")).eq(object))
}

/// `parents/` and `children/` of a role: what includes it, and what it includes.
pub(super) async fn kin(call: &Call, id: &str, name: &str) -> Answer {
    call.allow(READS)?;
    call.user()?;
    if call.method == Method::OPTIONS {
        let label = if name == "parents" { "Role Parent List" } else { "Role Child List" };
        return ok(options::document(&ROLES, None, label));
    }
    let id = generic::visible_id(call, &ROLES, id).await?;
    let Some((family, role, object)) = roles::parse(id) else {
        return generic::page(call, &ROLES, Some(Expr::val(1).eq(0))).await;
    };
    let named = |field: &'static str| Expr::col((BASE, "role_field")).eq(field);
    let mut any = Expr::val(1).eq(0);
    if name == "parents" {
        let (own, owner) = family.parents(role.field);
        for field in own {
            any = any.or(on(family.type_name, Expr::val(object)).and(named(field)));
        }
        if let Some(table) = owned_by_organization(family) {
            for field in owner {
                let mut organization = Query::select();
                organization.column("organization_id").from(table).and_where(Expr::col("id").eq(object));
                let owner = Expr::col((BASE, "object_id")).in_subquery(organization);
                let organization = Expr::col((BASE, "content_type")).eq("organization");
                any = any.or(organization.and(owner).and(named(field)));
            }
        }
        let mut teams = Query::select();
        teams.column("team_id").from("role_teams").and_where(Expr::col("role_id").eq(id));
        let of_team = Expr::col((BASE, "content_type")).eq("team").and(named(MEMBER));
        any = any.or(of_team.and(Expr::col((BASE, "object_id")).in_subquery(teams)));
    } else {
        for child in family.roles().filter(|child| family.parents(child.field).0.contains(&role.field)) {
            any = any.or(on(family.type_name, Expr::val(object)).and(named(child.field)));
        }
        let below = if family.path == "organizations" { roles::FAMILIES } else { &[] };
        for (below, table) in below.iter().filter_map(|below| Some((below, owned_by_organization(below)?))) {
            for child in below.roles().filter(|child| below.parents(child.field).1.contains(&role.field)) {
                let mut objects = Query::select();
                objects.column("id").from(table).and_where(Expr::col("organization_id").eq(object));
                let of_type = Expr::col((BASE, "content_type")).eq(below.type_name);
                let owned = Expr::col((BASE, "object_id")).in_subquery(objects);
                any = any.or(of_type.and(owned).and(named(child.field)));
            }
        }
    }
    generic::page(call, &ROLES, Some(any)).await
}

/// The table that says which organization an object of a family belongs to.
fn owned_by_organization(family: &Family) -> Option<&'static str> {
    let resource = registry::by_path(family.path)?;
    let field = resource.field("organization")?;
    Some(if field.shared {
        resource.table.parent.unwrap_or(resource.table.name)
    } else {
        resource.table.name
    })
}

/// `access_list/`: who may see an object, and why.
pub(super) async fn access_list(call: &Call, resource: &'static Resource, id: &str) -> Answer {
    call.allow(READS)?;
    call.user()?;
    if call.method == Method::OPTIONS {
        return ok(options::document(&USERS, None, &format!("{} Access List", resource.label)));
    }
    let object = generic::fetch(call, resource, id).await?;
    let family = roles::family(resource);
    let mut ids = Vec::new();
    if let Some(family) = family {
        let (own, owner) = family.granting(READ);
        ids.extend(own.iter().map(|code| object.id << 8 | code));
        if let Some(organization) = object.int("organization") {
            ids.extend(owner.iter().map(|code| organization << 8 | code));
        }
    }
    let team_codes = roles::by_path("teams").map(|teams| teams.granting(MEMBER).0).unwrap_or_default();
    let column = |name: &'static str| Expr::col((BASE, name));
    let mut by_role = Query::select();
    by_role.column("user_id").from("role_users").and_where(Expr::col("role_id").is_in(ids.clone()));
    let mut teams = Query::select();
    teams.column("team_id").from("role_teams").and_where(Expr::col("role_id").is_in(ids.clone()));
    let mut by_team = Query::select();
    by_team.column("user_id").from("role_users").and_where(Expr::col("object_id").in_subquery(teams));
    by_team.and_where(Expr::col("code").is_in(team_codes.iter().copied()));
    let mut all = column("is_superuser").eq(true).or(column("is_system_auditor").eq(true));
    all = all.or(column("id").in_subquery(by_role)).or(column("id").in_subquery(by_team));
    if resource.path == "users" {
        all = all.or(column("id").eq(object.id));
    }
    let mut page = generic::records(call, &USERS, Some(all)).await?;
    let users: Vec<i64> = page.records.iter().map(|record| record.id).collect();
    let may_take = access::allowed(call, resource, object.id, ADMIN).await?;
    let mut reasons = by_roles(call, &users, &ids).await?;
    for (user, (role, team)) in by_teams(call, &users, &ids, &team_codes).await? {
        reasons.entry(user).or_default().push((role, Some(team)));
    }
    for record in &mut page.records {
        let (mut direct, mut indirect) = (Vec::new(), Vec::new());
        for (flag, role) in [("is_superuser", SYSTEM_ADMINISTRATOR), ("is_system_auditor", SYSTEM_AUDITOR)] {
            if record.flag(flag) {
                indirect.push(reason(role, &object, None, false));
            }
        }
        for (role, team) in reasons.remove(&record.id).unwrap_or_default() {
            let here = roles::parse(role).is_some_and(|(of, _, id)| Some(of) == family && id == object.id);
            let reason = reason(role, &object, team, here && may_take);
            if here { direct.push(reason) } else { indirect.push(reason) }
        }
        record.summary.insert("direct_access".to_owned(), direct.into());
        record.summary.insert("indirect_access".to_owned(), indirect.into());
    }
    page.answer(call)
}

type Reasons = HashMap<i64, Vec<(i64, Option<Map<String, Value>>)>>;

async fn by_roles(call: &Call, users: &[i64], ids: &[i64]) -> Result<Reasons, ApiError> {
    let mut query = Query::select();
    query.columns(["user_id", "role_id"]).from("role_users");
    query.and_where(Expr::col("user_id").is_in(users.iter().copied()));
    query.and_where(Expr::col("role_id").is_in(ids.iter().copied()));
    query.order_by("role_id", sea_query::Order::Asc);
    let mut reasons = Reasons::new();
    for row in call.app.db.all(&query).await? {
        reasons.entry(row.at(0)?).or_default().push((row.at(1)?, None));
    }
    Ok(reasons)
}

type OfTeam = (i64, (i64, Map<String, Value>));

async fn by_teams(call: &Call, users: &[i64], ids: &[i64], codes: &[i64]) -> Result<Vec<OfTeam>, ApiError> {
    let mut query = Query::select();
    query.column(("u", "user_id")).column(("r", "role_id")).columns([("t", "id"), ("t", "name")]);
    query.column(("o", "name")).from_as("role_teams", "r");
    let joins = [("teams", "t", "id", "r", "team_id"), ("organizations", "o", "id", "t", "organization_id")];
    for (table, alias, own, other, column) in joins {
        query.join_as(JoinType::InnerJoin, table, alias, Expr::col((alias, own)).equals((other, column)));
    }
    let member = Expr::col(("u", "object_id")).equals(("r", "team_id"));
    let member = member.and(Expr::col(("u", "code")).is_in(codes.iter().copied()));
    query.join_as(JoinType::InnerJoin, "role_users", "u", member);
    query.and_where(Expr::col(("r", "role_id")).is_in(ids.iter().copied()));
    query.and_where(Expr::col(("u", "user_id")).is_in(users.iter().copied()));
    query.order_by(("r", "role_id"), sea_query::Order::Asc).order_by(("t", "id"), sea_query::Order::Asc);
    let rows = call.app.db.all(query.limit(MAX_TEAMS)).await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let team = Map::from_iter([
            ("team_id".to_owned(), row.at::<i64>(2)?.into()),
            ("team_name".to_owned(), row.at::<String>(3)?.into()),
            ("team_organization_name".to_owned(), row.at::<String>(4)?.into()),
        ]);
        found.push((row.at(0)?, (row.at(1)?, team)));
    }
    Ok(found)
}

/// Why somebody has access: by this role, held through this team.
fn reason(role: i64, object: &Record, team: Option<Map<String, Value>>, unattach: bool) -> Value {
    let mut shown = Map::new();
    shown.insert("id".to_owned(), role.into());
    let mut below = vec![READ];
    if let Some((family, of, id)) = roles::parse(role) {
        shown.insert("name".to_owned(), roles::label(of.field).into());
        shown.insert("description".to_owned(), roles::description(family, of.field).into());
        if id == object.id && Some(family) == roles::family(object.resource) {
            shown.insert("resource_name".to_owned(), object.text("name").into());
            below.extend(family.roles().map(|other| other.field).filter(|&other| {
                other != READ
                    && family.code(of.field).is_some_and(|code| family.granting(other).0.contains(&code))
            }));
        }
        shown.insert("resource_type".to_owned(), family.type_name.into());
        let url = format!("/api/v2/{}/{id}/", family.path);
        shown.insert("related".to_owned(), json!({family.type_name: url}));
    } else {
        let field = if role == SYSTEM_AUDITOR { "system_auditor" } else { "system_administrator" };
        shown.insert("name".to_owned(), roles::label(field).into());
        if role == SYSTEM_ADMINISTRATOR
            && let Some(family) = roles::family(object.resource)
        {
            below.extend(family.roles().map(|role| role.field).filter(|&field| field != READ));
        }
    }
    shown.extend(team.unwrap_or_default());
    shown.insert("user_capabilities".to_owned(), json!({"unattach": unattach}));
    json!({"role": shown, "descendant_roles": below})
}
