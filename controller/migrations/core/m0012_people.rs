//! Role definitions and what is assigned by them, applications that ask for tokens, and where credentials look up what they
//! do not hold themselves.

use sea_query::{Expr, ExprTrait, JoinType, Query, SelectStatement, UnionType};

use super::dsl::{Gone, Schema};

/// Holders that the id of an assignment tells apart: the low bits of it. See [`assignments`].
const HOLDERS: i64 = 1 << 22;

pub(super) fn build(schema: &mut Schema) {
    definitions(schema);
    applications(schema);

    // The metadata says which secret of the source is meant: no secret itself. What a lookup brings is kept, sealed,
    // with the job that it was for, and goes when that is over.
    schema
        .table("credential_input_sources")
        .id()
        .texts(&["description", "input_field_name", "metadata"])
        .reference("target_credential_id", "credentials", Gone::Row)
        .reference("source_credential_id", "credentials", Gone::Row)
        .tracked();
    schema.unique("credential_input_sources", &["target_credential_id", "input_field_name"]);
    schema.index("credential_input_sources", &["source_credential_id"]);
    schema.table("job_lookups").id_of("unified_jobs").text("sealed");
}

fn definitions(schema: &mut Schema) {
    // A managed definition is one of the fixed roles, which `code` names; any other is a bundle of them.
    schema
        .table("role_definitions")
        .id()
        .texts(&["name", "description", "content_type", "permissions"])
        .flag("managed", false)
        .opt_int("code")
        .tracked();
    schema.unique("role_definitions", &["name"]);
    schema.index("role_definitions", &["code"]);

    // Assignments of bundles. The fixed roles that follow from them are held like any other.
    schema
        .table("bundle_assignments")
        .id()
        .reference("role_definition_id", "role_definitions", Gone::Row)
        .int("object_id", 0)
        .opt_reference("user_id", "users", Gone::Row)
        .opt_reference("team_id", "teams", Gone::Row)
        .time("created");
    schema.unique("bundle_assignments", &["role_definition_id", "object_id", "user_id"]);
    schema.unique("bundle_assignments", &["role_definition_id", "object_id", "team_id"]);
    schema.index("bundle_assignments", &["user_id"]);
    schema.index("bundle_assignments", &["team_id"]);

    schema.view("role_user_assignments", assignments("role_users", "user_id"));
    schema.view("role_team_assignments", assignments("role_teams", "team_id"));
}

/// Who holds what by which definition: of fixed roles the even ids, made of the role's and the holder's; of bundles the odd
/// ones.
fn assignments(table: &'static str, holder: &'static str) -> SelectStatement {
    let mut fixed = Query::select();
    let id = Expr::col(("r", "role_id")).mul(HOLDERS).add(Expr::col(("r", holder))).mul(2);
    fixed.expr_as(id, "id").expr_as(Expr::col(("d", "id")), "role_definition_id");
    fixed.expr_as(Expr::col(("d", "content_type")), "content_type");
    fixed.expr_as(Expr::col(("r", "object_id")), "object_id").expr_as(Expr::col(("r", holder)), holder);
    fixed.from_as(table, "r");
    let of = Expr::col(("d", "code")).equals(("r", "code"));
    fixed.join_as(JoinType::InnerJoin, "role_definitions", "d", of);
    let mut bundles = Query::select();
    bundles.expr_as(Expr::col(("a", "id")).mul(2).add(1), "id");
    bundles.expr_as(Expr::col(("a", "role_definition_id")), "role_definition_id");
    bundles.expr_as(Expr::col(("d", "content_type")), "content_type");
    bundles.expr_as(Expr::col(("a", "object_id")), "object_id").expr_as(Expr::col(("a", holder)), holder);
    bundles.from_as("bundle_assignments", "a");
    let of = Expr::col(("d", "id")).equals(("a", "role_definition_id"));
    bundles.join_as(JoinType::InnerJoin, "role_definitions", "d", of);
    bundles.and_where(Expr::col(("a", holder)).is_not_null());
    fixed.union(UnionType::All, bundles);
    fixed
}

fn applications(schema: &mut Schema) {
    // Only digests of secrets are kept: they are long and random.
    schema
        .table("applications")
        .id()
        .texts(&["name", "description", "client_id", "client_type", "redirect_uris"])
        .text("authorization_grant_type")
        .opt_bytes("client_secret_hash")
        .flag("skip_authorization", false)
        .reference("organization_id", "organizations", Gone::Row)
        .tracked();
    schema.unique("applications", &["client_id"]);
    schema.unique("applications", &["organization_id", "name"]);

    schema
        .table("authorization_codes")
        .primary_bytes("code_hash")
        .reference("application_id", "applications", Gone::Row)
        .reference("user_id", "users", Gone::Row)
        .texts(&["redirect_uri", "scope", "challenge"])
        .time("expires");
    schema.index("authorization_codes", &["expires"]);

    // What a token has that was given to an application.
    schema
        .table("application_tokens")
        .id_of("tokens")
        .reference("application_id", "applications", Gone::Row)
        .opt_bytes("refresh_hash")
        .opt_time("refresh_expires");
    schema.unique("application_tokens", &["refresh_hash"]);
    schema.index("application_tokens", &["application_id"]);

    let mut used = Query::select();
    used.distinct().column(("t", "user_id")).column(("a", "application_id"));
    used.from_as("application_tokens", "a");
    let of = Expr::col(("t", "id")).equals(("a", "id"));
    used.join_as(JoinType::InnerJoin, "tokens", "t", of);
    schema.view("user_applications", used);
    for (view, given) in [("personal_tokens", false), ("authorized_tokens", true)] {
        let mut pairs = Query::select();
        pairs.column("user_id").expr_as(Expr::col("id"), "token_id").from("tokens");
        let mut applied = Query::select();
        applied.column("id").from("application_tokens");
        let id = Expr::col("id");
        pairs.and_where(if given { id.in_subquery(applied) } else { id.not_in_subquery(applied) });
        schema.view(view, pairs);
    }
}
