use sea_query::SqliteQueryBuilder;

use super::super::{JOB_TEMPLATES, TOKENS, UNIFIED_JOBS, USERS};
use super::*;

fn superuser() -> User {
    User {
        id: 1,
        username: "admin".to_owned(),
        first_name: String::new(),
        last_name: String::new(),
        is_superuser: true,
        is_system_auditor: false,
    }
}

fn sql(resource: &'static Resource, query: &[(&str, &str)]) -> Result<String, FilterError> {
    let parameters: Vec<(String, String)> =
        query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let user = superuser();
    let asker = Asker::user(&user, Engine::Sqlite);
    let condition = condition(resource, "b", &parameters, asker)?;
    let mut select = Query::select();
    select.expr(Expr::val(1)).cond_where(condition);
    for (expr, direction) in order(resource, "b", &parameters, asker)? {
        select.order_by_expr(expr, direction);
    }
    Ok(select.to_string(SqliteQueryBuilder))
}

#[track_caller]
fn check(resource: &'static Resource, query: &[(&str, &str)], part: &str) {
    let sql = sql(resource, query).unwrap();
    assert!(sql.contains(part), "{part}\nis not in\n{sql}");
}

#[track_caller]
fn refused(resource: &'static Resource, query: &[(&str, &str)], words: &str) {
    assert_eq!(sql(resource, query).unwrap_err().to_string(), words);
}

#[test]
fn fields_are_compared_by_their_lookup() {
    check(&ORGANIZATIONS, &[("name", "a")], r#""b"."name" = 'a'"#);
    check(&ORGANIZATIONS, &[("id__in", "1,2")], r#""b"."id" IN (1, 2)"#);
    check(&ORGANIZATIONS, &[("created__gt", "2024-01-01")], r#""b"."created" > 1704067200000000"#);
    check(&ORGANIZATIONS, &[("default_environment", "null")], r#""b"."default_environment_id" IS NULL"#);
    check(&ORGANIZATIONS, &[("default_environment__isnull", "false")], "IS NOT NULL");
    check(&ORGANIZATIONS, &[("name__icontains", "50%")], r#"LIKE '%50\%%' ESCAPE '\'"#);
    check(&ORGANIZATIONS, &[("name__contains", "A")], "instr(");
    check(&ORGANIZATIONS, &[("name__regex", "^a+$")], "REGEXP '^a+$'");
    check(&HOSTS, &[("enabled", "0")], r#""b"."enabled" = FALSE"#);
}

#[test]
fn a_field_of_the_parent_is_sought_there() {
    check(&JOB_TEMPLATES, &[("name", "a")], r#""bp"."name" = 'a'"#);
    check(&JOB_TEMPLATES, &[("playbook", "a")], r#""b"."playbook" = 'a'"#);
}

#[test]
fn relations_are_walked_without_joining() {
    check(
        &HOSTS,
        &[("inventory__organization__name", "x")],
        r#""b"."inventory_id" IN (SELECT "bi"."id" FROM "inventories" AS "bi" WHERE "bi"."organization_id" IN "#,
    );
    check(&HOSTS, &[("inventory__id", "3")], r#""b"."inventory_id" = 3"#);
    check(&HOSTS, &[("inventory_id", "3")], r#""b"."inventory_id" = 3"#);
    check(&HOSTS, &[("groups__name", "web")], r#"SELECT "host_id" FROM "group_hosts" WHERE "group_id" IN"#);
    check(&HOSTS, &[("groups", "4")], r#""bm"."id" = 4"#);
    check(&HOSTS, &[("groups__isnull", "true")], r#""b"."id" NOT IN"#);
    check(&JOBS, &[("created_by__username", "ada")], r#""b"."created_by_id" IN"#);
}

#[test]
fn negations_keep_what_is_null_and_alternatives_stand_together() {
    check(&HOSTS, &[("not__last_job", "1")], r#"NOT COALESCE("b"."last_job_id" = 1, FALSE)"#);
    let sql = sql(&HOSTS, &[("or__id", "5"), ("or__name", "5"), ("enabled", "true")]).unwrap();
    assert!(sql.contains(r#""b"."enabled" = TRUE AND ("b"."id" = 5 OR "b"."name" = '5')"#), "{sql}");
}

#[test]
fn every_word_of_a_search_must_be_somewhere() {
    let sql = sql(&ORGANIZATIONS, &[("search", "ab,cd")]).unwrap();
    assert_eq!(sql.matches("LIKE '%ab%'").count(), 2, "{sql}");
    assert_eq!(sql.matches("LIKE '%cd%'").count(), 2, "{sql}");
}

#[test]
fn types_pick_among_the_kin() {
    check(&UNIFIED_JOBS, &[("type", "job,workflow_job")], r#""b"."kind" IN ('job')"#);
    let both = r#""b"."kind" IN ('job', 'project_update')"#;
    check(&UNIFIED_JOBS, &[("type", "job,project_update")], both);
}

#[test]
fn an_order_always_ends_with_the_id() {
    check(&ORGANIZATIONS, &[], r#"ORDER BY "b"."name" ASC, "b"."id" ASC"#);
    check(
        &JOBS,
        &[("order_by", "-finished,name")],
        r#"ORDER BY "b"."finished" DESC, "b"."name" ASC, "b"."id" ASC"#,
    );
    check(&JOBS, &[("order_by", "-id")], r#"ORDER BY "b"."id" DESC"#);
    check(
        &HOSTS,
        &[("order_by", "inventory__name")],
        r#"ORDER BY (SELECT "bo"."name" FROM "inventories" AS "bo""#,
    );
}

#[test]
fn what_is_not_declared_is_refused_in_known_words() {
    refused(&ORGANIZATIONS, &[("nosuch", "1")], "Organization has no field named 'nosuch'");
    refused(&ORGANIZATIONS, &[("order_by", "nosuch")], "Organization has no field named 'nosuch'");
    refused(&JOB_TEMPLATES, &[("nosuch__id", "1")], "JobTemplate has no field named 'nosuch'");
    refused(&ORGANIZATIONS, &[("id", "x")], "Field 'id' expected a number but got 'x'.");
    refused(&HOSTS, &[("enabled", "perhaps")], "Unable to convert \"perhaps\" to boolean");
    refused(&HOSTS, &[("name__soundslike", "x")], "Unsupported lookup 'soundslike' for field name.");
    refused(&HOSTS, &[("name__regex", "(")], "Invalid regular expression.");
}

#[test]
fn secrets_cannot_be_compared() {
    for (resource, name) in [(&USERS, "password"), (&USERS, "password__startswith"), (&TOKENS, "token")] {
        assert!(matches!(sql(resource, &[(name, "a")]), Err(FilterError::Secret(_))), "{name}");
        assert!(sql(resource, &[("order_by", name)]).is_err(), "{name}");
    }
    assert!(sql(&JOBS, &[("created_by__password__startswith", "$argon2")]).is_err());
    assert!(sql(&USERS, &[("password_hash", "x")]).is_err());
    assert!(sql(&TOKENS, &[("token_hash", "x")]).is_err());
}

#[test]
fn a_hostile_query_is_bounded() {
    let long = "inventory__".repeat(50) + "id";
    assert!(sql(&HOSTS, &[(long.as_str(), "1")]).is_err());
    let many: Vec<(&str, &str)> = vec![("name", "x"); 100];
    assert!(sql(&HOSTS, &many).is_err());
    let pattern = "a".repeat(300);
    assert!(sql(&HOSTS, &[("name__regex", pattern.as_str())]).is_err());
    check(&ORGANIZATIONS, &[("name", "'; DROP TABLE users; --")], "'''; DROP TABLE users; --'");
}
