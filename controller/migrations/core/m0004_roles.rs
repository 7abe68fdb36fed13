//! Teams, and who holds which role.
//!
//! A role's id is `object << 8 | family << 4 | place`; the low byte is its `code`. Objects and their ids are never used
//! again, so what is left of a deleted object's roles means nothing.

use sea_query::{Expr, ExprTrait, JoinType, Query, SelectStatement, UnionType};

use super::dsl::{Gone, Schema};

/// Number, type, table, value of its `kind`, roles in the order of their places.
type Family = (i64, &'static str, &'static str, Option<&'static str>, &'static [&'static str]);

/// Families with roles.
const FAMILIES: &[Family] = &[
    (
        1,
        "organization",
        "organizations",
        None,
        &[
            "admin_role",
            "execute_role",
            "project_admin_role",
            "inventory_admin_role",
            "credential_admin_role",
            "workflow_admin_role",
            "notification_admin_role",
            "job_template_admin_role",
            "execution_environment_admin_role",
            "auditor_role",
            "member_role",
            "read_role",
            "approval_role",
        ],
    ),
    (2, "team", "teams", None, &["admin_role", "member_role", "read_role"]),
    (
        3,
        "project",
        "unified_job_templates",
        Some("project"),
        &["admin_role", "use_role", "update_role", "read_role"],
    ),
    (
        4,
        "inventory",
        "inventories",
        None,
        &["admin_role", "update_role", "adhoc_role", "use_role", "read_role"],
    ),
    (5, "credential", "credentials", None, &["admin_role", "use_role", "read_role"]),
    (
        6,
        "job_template",
        "unified_job_templates",
        Some("job_template"),
        &["admin_role", "execute_role", "read_role"],
    ),
    (7, "instance_group", "instance_groups", None, &["admin_role", "use_role", "read_role"]),
];

const ORGANIZATION_ADMIN: i64 = 0x10;
const ORGANIZATION_MEMBER: i64 = 0x1a;
const TEAM_MEMBER: i64 = 0x21;

pub(super) fn build(schema: &mut Schema) {
    schema
        .table("teams")
        .id()
        .texts(&["name", "description"])
        .reference("organization_id", "organizations", Gone::Row)
        .tracked();
    schema.unique("teams", &["organization_id", "name"]);

    for (table, holder, holders) in [("role_users", "user_id", "users"), ("role_teams", "team_id", "teams")] {
        schema
            .table(table)
            .int("role_id", 0)
            .reference(holder, holders, Gone::Row)
            .int("code", 0)
            .int("object_id", 0)
            .primary(&["role_id", holder]);
        schema.index(table, &[holder, "code"]);
        schema.index(table, &["object_id", "code"]);
    }

    schema.view("roles", roles());
    // Who holds a role, whoever may do everything or see everything included.
    let mut holders = Query::select();
    holders.columns(["role_id", "user_id"]).from("role_users");
    for (role, flag) in [(1, "is_superuser"), (2, "is_system_auditor")] {
        let mut all = Query::select();
        all.expr_as(Expr::val(role), "role_id").expr_as(Expr::col("id"), "user_id").from("users");
        all.and_where(Expr::col(flag).eq(true));
        holders.union(UnionType::All, all);
    }
    schema.view("user_roles", holders);
    schema.view(
        "organization_members",
        members("role_users", "user_id", "organization_id", ORGANIZATION_MEMBER),
    );
    schema
        .view("organization_admins", members("role_users", "user_id", "organization_id", ORGANIZATION_ADMIN));
    schema.view("team_members", members("role_users", "user_id", "team_id", TEAM_MEMBER));
    for (view, column, family) in
        [("team_projects", "project_id", 3), ("team_credentials", "credential_id", 5)]
    {
        let mut pairs = Query::select();
        pairs.column("team_id").expr_as(Expr::col("object_id"), column).from("role_teams");
        pairs
            .and_where(Expr::col("code").gte(family << 4))
            .and_where(Expr::col("code").lt((family + 1) << 4));
        schema.view(view, pairs);
    }
}

/// Every role there is: for each object with roles, those of its family. The objects are joined with the list of roles and
/// not counted up role by role, for SQLite asks who may see a row once in every part of a union.
fn roles() -> SelectStatement {
    let system = |id: i64, field: &str| {
        let mut one = Query::select();
        one.expr_as(Expr::val(id), "id").expr_as(Expr::val(""), "content_type");
        one.expr_as(Expr::val(0_i64), "object_id").expr_as(Expr::val(field), "role_field");
        one.expr_as(Expr::val(""), "resource_name").take()
    };
    let objects = union(FAMILIES.iter().map(|(_, type_name, table, kind, _)| {
        let mut of_family = Query::select();
        of_family.expr_as(Expr::val(*type_name), "content_type").columns(["id", "name"]).from(*table);
        if let Some(kind) = kind {
            of_family.and_where(Expr::col("kind").eq(*kind));
        }
        of_family
    }));
    let fixed = union(FAMILIES.iter().flat_map(|(number, type_name, _, _, fields)| {
        (0_i64..).zip(*fields).map(move |(place, field)| {
            let mut role = Query::select();
            role.expr_as(Expr::val(*type_name), "content_type");
            role.expr_as(Expr::val(number << 4 | place), "code").expr_as(Expr::val(*field), "field").take()
        })
    }));
    let mut of_objects = Query::select();
    of_objects.expr_as(Expr::col(("o", "id")).mul(256).add(Expr::col(("r", "code"))), "id");
    of_objects.expr_as(Expr::col(("o", "content_type")), "content_type");
    of_objects.expr_as(Expr::col(("o", "id")), "object_id");
    of_objects.expr_as(Expr::col(("r", "field")), "role_field");
    of_objects.expr_as(Expr::col(("o", "name")), "resource_name");
    of_objects.from_subquery(objects, "o");
    let same = Expr::col(("r", "content_type")).equals(("o", "content_type"));
    of_objects.join_subquery(JoinType::InnerJoin, fixed, "r", same);
    union([system(1, "system_administrator"), system(2, "system_auditor"), of_objects])
}

fn union(parts: impl IntoIterator<Item = SelectStatement>) -> SelectStatement {
    let mut parts = parts.into_iter();
    let mut all = parts.next().unwrap_or_default();
    for part in parts {
        all.union(UnionType::All, part);
    }
    all
}

fn members(table: &'static str, holder: &'static str, object: &'static str, code: i64) -> SelectStatement {
    let mut pairs = Query::select();
    pairs.expr_as(Expr::col("object_id"), object).column(holder).from(table);
    pairs.and_where(Expr::col("code").eq(code));
    pairs
}
