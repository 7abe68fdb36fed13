//! Who may do what: for a family of objects and a role, the condition that its rows meet for a user.
//!
//! Everything that asks who may what asks here: lists, details, filters that walk to other objects, and the checks
//! before anything is written. The answer is one condition of the database, whose sub-queries do not depend on the
//! row, so a list costs as many queries for many objects as for one. What no rule names is nobody's but the
//! superuser's.

use sea_query::{Expr, ExprTrait, Query, SelectStatement, UnionType};

use super::read::source;
use super::roles::{self, ADMIN, EXECUTE, MEMBER, READ, UPDATE, USE};
use super::{Access, CREDENTIALS, INVENTORIES, JOB_TEMPLATES, JOBS, PROJECTS, Resource};
use crate::auth::User;

/// Being able to stop a job.
pub const CANCEL: &str = "cancel";

/// The condition under which `user` has `role` on a row of `resource` that goes by `alias`; `None` if they have it on
/// all of them. For families without roles of their own, `read_role` means seeing, `execute_role` starting, and
/// anything else changing.
pub fn condition(resource: &Resource, alias: &str, user: &User, role: &str) -> Option<Expr> {
    if user.is_superuser {
        return None;
    }
    let column = |name: &str| {
        resource.column(name).map(|field| Expr::col((resource.alias_of(&field, alias), field.column_name())))
    };
    let own = match resource.access {
        Access::User(name) => Some(column(name).map_or_else(nobody, |column| column.eq(user.id))),
        Access::Roles => None,
    };
    let everything = role == READ && user.is_system_auditor;
    let id = || Expr::col((alias.to_owned(), "id"));
    match own {
        // A token speaks with its owner's voice, so not even an auditor sees another's.
        Some(own) if resource.path != "users" => return Some(own),
        Some(own) if role != READ => return Some(own),
        _ if everything => return None,
        Some(own) => return Some(own.or(id().in_subquery(acquaintances(user)))),
        None => {}
    }
    if let Some(family) = roles::family(resource) {
        return Some(held(user, family.path, role, id(), column("organization")));
    }
    Some(match resource.path {
        "roles" if role == READ => visible_roles(user, alias),
        "activity_stream" if role == READ => visible_activity(user, alias),
        "credential_types" | "role_definitions" if role == READ => return None,
        "role_user_assignments" | "role_team_assignments" if role == READ => {
            visible_assignments(resource, user, alias)
        }
        "instances" if role == READ => {
            let mut members = Query::select();
            members.column("instance_id").from("instance_group_members");
            let groups = granted(user, "instance_groups", READ).0;
            id().in_subquery(members.and_where(Expr::col("instance_group_id").in_subquery(groups)).take())
        }
        "execution_environments" | "labels" => {
            let Some(organization) = column("organization") else { return Some(nobody()) };
            match (resource.path, role) {
                ("execution_environments", READ) => organization
                    .clone()
                    .is_null()
                    .or(organization.in_subquery(granted(user, "organizations", READ).0)),
                (_, READ) => organization.in_subquery(granted(user, "organizations", READ).0),
                ("labels", _) => organization.in_subquery(granted(user, "organizations", MEMBER).0),
                _ => {
                    let admins = granted(user, "organizations", "execution_environment_admin_role").0;
                    organization.in_subquery(admins)
                }
            }
        }
        "applications" => {
            let Some(organization) = column("organization") else { return Some(nobody()) };
            let needed = if role == READ { MEMBER } else { ADMIN };
            let own = organization.clone().in_subquery(granted(user, "organizations", needed).0);
            if role != READ {
                return Some(own);
            }
            own.or(organization.in_subquery(granted(user, "organizations", "auditor_role").0))
        }
        "hosts" | "groups" => through(column("inventory"), &INVENTORIES, user, role),
        "credential_input_sources" => through(column("target_credential"), &CREDENTIALS, user, role),
        "job_host_summaries" if role == READ => through(column("job"), &JOBS, user, READ),
        "jobs" => job(user, role, alias),
        "project_updates" => project_update(user, role, alias),
        "inventory_sources" => match role {
            UPDATE | EXECUTE => through_role(column("inventory"), &INVENTORIES, user, UPDATE),
            role => through(column("inventory"), &INVENTORIES, user, role),
        },
        "inventory_updates" => on_inventory(user, role, alias, UPDATE),
        "ad_hoc_commands" => on_inventory(user, role, alias, "adhoc_role"),
        "unified_jobs" => resource.table.kin.iter().fold(nobody(), |any, kin| {
            let Some(of_kin) = condition(kin, alias, user, role) else { return any };
            any.or(Expr::col((alias.to_owned(), "kind")).eq(kin.type_name).and(of_kin))
        }),
        "unified_job_templates" => resource.table.kin.iter().fold(nobody(), |any, kin| {
            let of_kin = if kin.path == "inventory_sources" {
                let inner = "isac";
                let mut sources = source(kin, inner);
                sources.column((inner, "id")).and_where_option(condition(kin, inner, user, role));
                id().in_subquery(sources)
            } else {
                held(user, kin.path, role, id(), column("organization"))
            };
            any.or(Expr::col((alias.to_owned(), "kind")).eq(kin.type_name).and(of_kin))
        }),
        _ => nobody(),
    })
}

/// What a user needs on the object that a field of another object points to, to let it point there.
pub fn to_point(resource: &Resource, field: &str, to: &Resource) -> &'static str {
    match creation(resource) {
        Creation::On(owner, role) if owner == field => role,
        _ if resource.path == "credentials" && field == "organization" => "credential_admin_role",
        _ if resource.path == "credentials" && matches!(field, "user" | "team") => ADMIN,
        _ if roles::family(to).is_some_and(|family| family.role(USE).is_some()) => USE,
        _ => READ,
    }
}

/// Who may make an object of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// Whoever has this role on what this field points to.
    On(&'static str, &'static str),
    /// Everybody, for themselves.
    Everybody,
    /// The superuser.
    Superuser,
}

/// Who may make an object of `resource`.
pub fn creation(resource: &Resource) -> Creation {
    match resource.path {
        "teams" | "applications" => Creation::On("organization", ADMIN),
        "projects" => Creation::On("organization", "project_admin_role"),
        "inventories" | "constructed_inventories" => Creation::On("organization", "inventory_admin_role"),
        "execution_environments" => Creation::On("organization", "execution_environment_admin_role"),
        "labels" => Creation::On("organization", MEMBER),
        "job_templates" => Creation::On("project", USE),
        "hosts" | "groups" | "inventory_sources" => Creation::On("inventory", ADMIN),
        "ad_hoc_commands" => Creation::On("inventory", "adhoc_role"),
        "credential_input_sources" => Creation::On("target_credential", ADMIN),
        // Into an organization takes its role; for oneself takes none.
        "credentials" | "tokens" => Creation::Everybody,
        _ => Creation::Superuser,
    }
}

/// The role behind what `user_capabilities` calls an ability.
pub fn capability(resource: &Resource, name: &str) -> &'static str {
    match (resource.path, name) {
        (
            "projects" | "project_updates" | "inventory_sources" | "inventory_updates",
            "start" | "schedule",
        ) => UPDATE,
        ("ad_hoc_commands", "start") => EXECUTE,
        ("job_templates" | "jobs", "start" | "schedule") => EXECUTE,
        (_, "use") => USE,
        (_, "adhoc") => "adhoc_role",
        _ => ADMIN,
    }
}

/// Ids of the objects on which a user has a role, by themselves or by a team; on the object, and on its organization.
fn granted(user: &User, path: &str, role: &str) -> (SelectStatement, Option<SelectStatement>) {
    let (own, owner) = roles::by_path(path).map(|family| family.granting(role)).unwrap_or_default();
    (holding(user, own), (!owner.is_empty()).then(|| holding(user, owner)))
}

fn holding(user: &User, codes: Vec<i64>) -> SelectStatement {
    let mut held = Query::select();
    held.column("object_id").from("role_users");
    held.and_where(Expr::col("user_id").eq(user.id))
        .and_where(Expr::col("code").is_in(codes.iter().copied()));
    let mut by_team = Query::select();
    by_team.column("object_id").from("role_teams").and_where(Expr::col("code").is_in(codes));
    by_team.and_where(Expr::col("team_id").in_subquery(teams(user)));
    held.union(UnionType::All, by_team).take()
}

/// The teams a user belongs to: as a member, as who runs the team, or as who runs its organization. Teams hold
/// neither membership nor administration of anything that has members, so this goes no deeper.
fn teams(user: &User) -> SelectStatement {
    let family = roles::by_path("teams");
    let (own, owner) = family.map(|family| family.granting(MEMBER)).unwrap_or_default();
    let by_user = |codes: Vec<i64>| {
        let mut held = Query::select();
        held.column("object_id").from("role_users");
        held.and_where(Expr::col("user_id").eq(user.id)).and_where(Expr::col("code").is_in(codes)).take()
    };
    let mut run = Query::select();
    run.column("id").from("teams").and_where(Expr::col("organization_id").in_subquery(by_user(owner)));
    by_user(own).union(UnionType::All, run).take()
}

/// That the user has a role on an object of this family, given its id and its organization.
fn held(user: &User, path: &str, role: &str, id: Expr, organization: Option<Expr>) -> Expr {
    let (own, owner) = granted(user, path, role);
    let on_object = id.in_subquery(own);
    match (owner, organization) {
        (Some(owner), Some(organization)) => on_object.or(organization.in_subquery(owner)),
        _ => on_object,
    }
}

/// That the user has a role on what a column points to; changing what belongs to it takes its administration.
fn through(column: Option<Expr>, to: &Resource, user: &User, role: &str) -> Expr {
    through_role(column, to, user, if role == READ { READ } else { ADMIN })
}

/// That the user has this very role on what a column points to.
fn through_role(column: Option<Expr>, to: &Resource, user: &User, role: &str) -> Expr {
    let alias = "acc";
    let Some(column) = column else { return nobody() };
    let mut owners = source(to, alias);
    owners.column((alias, "id")).and_where_option(condition(to, alias, user, role));
    column.in_subquery(owners)
}

/// What runs on an inventory without a template is seen by who sees the inventory, and by who runs or audits its organization.
/// Who has the role that `starts` it starts it again; who runs the inventory, or started it, stops it.
fn on_inventory(user: &User, role: &str, alias: &str, starts: &str) -> Expr {
    let column = |name: &'static str| Expr::col((alias.to_owned(), name));
    let inventory = |role: &str| through_role(Some(column("inventory_id")), &INVENTORIES, user, role);
    let organization =
        |role: &str| column("organization_id").in_subquery(granted(user, "organizations", role).0);
    match role {
        READ => inventory(READ).or(organization("auditor_role")).or(organization(ADMIN)),
        EXECUTE | UPDATE => inventory(starts),
        CANCEL => column("created_by_id").eq(user.id).or(inventory(ADMIN)),
        _ => organization(ADMIN),
    }
}

/// A job is seen by who sees its template, and by who runs or audits its organization. Who runs the organization
/// deletes it, who may start the template starts it again, and who started it stops it, or who runs the template.
fn job(user: &User, role: &str, alias: &str) -> Expr {
    let column = |name: &'static str| Expr::col((alias.to_owned(), name));
    let template = |role: &str| {
        let mut templates = source(&JOB_TEMPLATES, "jac");
        templates.column(("jac", "id")).and_where_option(condition(&JOB_TEMPLATES, "jac", user, role));
        column("job_template_id").in_subquery(templates)
    };
    let organization =
        |role: &str| column("organization_id").in_subquery(granted(user, "organizations", role).0);
    match role {
        READ => template(READ).or(organization("auditor_role")).or(organization(ADMIN)),
        EXECUTE => template(EXECUTE),
        CANCEL => column("created_by_id").eq(user.id).or(template(ADMIN)),
        _ => organization(ADMIN),
    }
}

/// An update is seen by who sees its project, and by who runs or audits its organization. Who may update the project starts
/// one, and who runs the project, or started it, stops it.
fn project_update(user: &User, role: &str, alias: &str) -> Expr {
    let column = |name: &'static str| Expr::col((alias.to_owned(), name));
    let project = |role: &str| {
        let mut projects = source(&PROJECTS, "pac");
        projects.column(("pac", "id")).and_where_option(condition(&PROJECTS, "pac", user, role));
        column("project_id").in_subquery(projects)
    };
    let organization =
        |role: &str| column("organization_id").in_subquery(granted(user, "organizations", role).0);
    match role {
        READ => project(READ).or(organization("auditor_role")).or(organization(ADMIN)),
        EXECUTE | UPDATE => project(UPDATE),
        CANCEL => column("created_by_id").eq(user.id).or(project(ADMIN)),
        _ => project(ADMIN).or(organization(ADMIN)),
    }
}

/// Who belongs to an organization that the user sees.
fn acquaintances(user: &User) -> SelectStatement {
    let codes = ["member_role", ADMIN].into_iter().filter_map(|role| roles::FAMILIES[0].code(role));
    let mut users = Query::select();
    users.column("user_id").from("role_users").and_where(Expr::col("code").is_in(codes));
    users.and_where(Expr::col("object_id").in_subquery(granted(user, "organizations", READ).0)).take()
}

/// The roles on what the user sees.
fn visible_roles(user: &User, alias: &str) -> Expr {
    roles::FAMILIES.iter().fold(nobody(), |any, family| {
        let Some(resource) = super::by_path(family.path) else { return any };
        let inner = "rol";
        let mut objects = source(resource, inner);
        objects.column((inner, "id")).and_where_option(condition(resource, inner, user, READ));
        let of_family = Expr::col((alias.to_owned(), "content_type")).eq(family.type_name);
        any.or(of_family.and(Expr::col((alias.to_owned(), "object_id")).in_subquery(objects)))
    })
}

/// Entries of the activity stream: what the user did, what belongs to an organization that they run or audit, and
/// what happened to objects that they see. Each object is looked up by its id, so this costs the same however many
/// objects of a family there are.
fn visible_activity(user: &User, alias: &str) -> Expr {
    let column = |name: &'static str| Expr::col((alias.to_owned(), name));
    let seen = |kind: &'static str, id: &'static str| {
        super::ALL.iter().fold(nobody(), |any, resource| {
            if !resource.table.kin.is_empty()
                || matches!(resource.path, "roles" | "activity_stream")
                || resource.path.ends_with("_assignments")
            {
                return any;
            }
            let inner = "act";
            let mut object = source(resource, inner);
            object.expr(Expr::val(1)).and_where_option(condition(resource, inner, user, READ));
            object.and_where(Expr::col((inner, "id")).equals((alias.to_owned(), id)));
            any.or(column(kind).eq(resource.type_name).and(Expr::exists(object)))
        })
    };
    let organization =
        |role: &str| column("organization_id").in_subquery(granted(user, "organizations", role).0);
    let both =
        seen("object1", "object1_id").and(column("object2_id").is_null().or(seen("object2", "object2_id")));
    column("actor_id").eq(user.id).or(organization(ADMIN)).or(organization("auditor_role")).or(both)
}

/// One's own assignments, and those on what one runs.
fn visible_assignments(resource: &Resource, user: &User, alias: &str) -> Expr {
    let column = |name: &'static str| Expr::col((alias.to_owned(), name));
    let own = if resource.column("user").is_some() {
        column("user_id").eq(user.id)
    } else {
        column("team_id").in_subquery(teams(user))
    };
    roles::FAMILIES.iter().fold(own, |any, family| {
        let Some(resource) = super::by_path(family.path) else { return any };
        let inner = "asg";
        let mut run = source(resource, inner);
        run.column((inner, "id")).and_where_option(condition(resource, inner, user, ADMIN));
        let of_family = column("content_type").eq(super::definitions::content_type(family));
        any.or(of_family.and(column("object_id").in_subquery(run)))
    })
}

fn nobody() -> Expr {
    Expr::val(1).eq(0)
}

#[cfg(test)]
mod tests {
    use sea_query::SqliteQueryBuilder;

    use super::*;
    use crate::registry::{ALL, USERS};

    fn user() -> User {
        User {
            id: 7,
            username: "ada".to_owned(),
            first_name: String::new(),
            last_name: String::new(),
            is_superuser: false,
            is_system_auditor: false,
        }
    }

    #[test]
    fn only_superusers_and_auditors_go_unasked() {
        let superuser = User { is_superuser: true, ..user() };
        let auditor = User { is_system_auditor: true, ..user() };
        for resource in ALL {
            assert_eq!(condition(resource, "b", &superuser, ADMIN), None, "{resource:?}");
            assert!(condition(resource, "b", &user(), ADMIN).is_some(), "{resource:?}");
            assert!(condition(resource, "b", &auditor, ADMIN).is_some(), "{resource:?}");
            let all = condition(resource, "b", &auditor, READ).is_none();
            assert_eq!(all, resource.path != "tokens", "{resource:?}");
            let everybodys = condition(resource, "b", &user(), READ).is_none();
            let shared = matches!(resource.path, "credential_types" | "role_definitions");
            assert_eq!(everybodys, shared, "{resource:?}");
        }
    }

    #[test]
    fn a_role_that_is_not_there_is_held_by_nobody() {
        let sql = Query::select()
            .expr(condition(&INVENTORIES, "b", &user(), "no_such_role").unwrap())
            .to_string(SqliteQueryBuilder);
        assert!(sql.contains("FALSE") || sql.contains("1 = 2"), "{sql}");
        assert_eq!(to_point(&JOB_TEMPLATES, "inventory", &INVENTORIES), USE);
        assert_eq!(to_point(&super::super::HOSTS, "inventory", &INVENTORIES), ADMIN);
        assert_eq!(to_point(&INVENTORIES, "created_by", &USERS), READ);
    }
}
