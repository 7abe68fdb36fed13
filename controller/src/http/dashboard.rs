//! Numbers for the first page of a user interface: how many there are of each thing, and how many of them are in
//! trouble; and jobs by day and outcome. Everybody counts what they may see.

use std::collections::BTreeMap;

use sea_query::{Expr, ExprTrait, Func, Order, Query};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::error::ApiError;
use super::{Answer, generic, ok};
use crate::registry::read::{self, BASE};
use crate::registry::{
    CREDENTIALS, GROUPS, HOSTS, INVENTORIES, JOB_TEMPLATES, ORGANIZATIONS, PROJECTS, Resource, TEAMS,
    UNIFIED_JOBS, USERS,
};

/// Microseconds of a day.
const DAY: i64 = 86_400_000_000;

/// What is counted: name, resource, and the condition beyond being seen.
type Count = (&'static str, &'static Resource, Option<Expr>);

fn counts() -> Vec<Count> {
    let own = |name: &'static str| Expr::col((BASE, name));
    let status = || Expr::col((read_parent(), "status"));
    let of_kind = |kind: &'static str| own("scm_type").eq(kind);
    let mut counts: Vec<Count> = vec![
        ("inventories", &INVENTORIES, None),
        ("groups", &GROUPS, None),
        ("hosts", &HOSTS, None),
        ("hosts_failed", &HOSTS, Some(own("has_active_failures").eq(true))),
        ("projects", &PROJECTS, None),
        ("projects_failed", &PROJECTS, Some(own("last_update_failed").eq(true).or(status().eq("failed")))),
        ("users", &USERS, None),
        ("organizations", &ORGANIZATIONS, None),
        ("teams", &TEAMS, None),
        ("credentials", &CREDENTIALS, None),
        ("job_templates", &JOB_TEMPLATES, None),
    ];
    let mut failed_inventories = Query::select();
    failed_inventories
        .column("inventory_id")
        .from("hosts")
        .and_where(Expr::col("has_active_failures").eq(true));
    counts.push(("inventories_failed", &INVENTORIES, Some(own("id").in_subquery(failed_inventories))));
    for (name, failed, kind) in
        [("git", "git_failed", "git"), ("svn", "svn_failed", "svn"), ("archive", "archive_failed", "archive")]
    {
        counts.push((name, &PROJECTS, Some(of_kind(kind))));
        counts.push((failed, &PROJECTS, Some(of_kind(kind).and(own("last_update_failed").eq(true)))));
    }
    counts
}

fn read_parent() -> String {
    crate::registry::parent_alias(BASE)
}

/// `dashboard/`.
pub(super) async fn dashboard(call: &Call) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    let user = call.user()?;
    let counts = counts();
    let mut query = Query::select();
    for (_, resource, condition) in &counts {
        let mut count = read::source(resource, BASE);
        count.expr(Func::count(Expr::col((BASE, "id"))));
        count.and_where_option(condition.clone()).and_where_option(generic::visible(resource, user)?);
        query.expr(Expr::SubQuery(None, Box::new(count.into())));
    }
    let row =
        call.app.db.optional(&query).await?.ok_or_else(|| ApiError::bad("Nothing could be counted."))?;
    let mut number: BTreeMap<&str, i64> = BTreeMap::new();
    for (at, (name, ..)) in counts.iter().enumerate() {
        number.insert(name, row.at(at)?);
    }
    let of = |name: &str| number.get(name).copied().unwrap_or(0);
    let failing = |path: &str, condition: &str, name: &str, failed: &str| {
        json!({
            "url": format!("/api/v2/{path}/"),
            "failures_url": format!("/api/v2/{path}/?{condition}"),
            "total": of(name),
            "failed": of(failed),
        })
    };
    let plain = |path: &str| json!({"url": format!("/api/v2/{path}/"), "total": of(path)});
    let scm = |kind: &str, label: &str, failed: &str| {
        json!({
            "url": format!("/api/v2/projects/?scm_type={kind}"),
            "label": label,
            "failures_url": format!("/api/v2/projects/?scm_type={kind}&last_update_failed=True"),
            "total": of(kind),
            "failed": of(failed),
        })
    };
    ok(json!({
        "related": {"jobs_graph": "/api/v2/dashboard/graphs/jobs/"},
        "inventories": {
            "url": "/api/v2/inventories/",
            "total": of("inventories"),
            "total_with_inventory_source": 0,
            "job_failed": of("inventories_failed"),
            "inventory_failed": 0,
        },
        "inventory_sources": {},
        "groups": {"url": "/api/v2/groups/", "total": of("groups"), "inventory_failed": 0},
        "hosts": failing("hosts", "last_job__failed=True", "hosts", "hosts_failed"),
        "projects": failing("projects", "last_job_failed=True", "projects", "projects_failed"),
        "scm_types": {
            "git": scm("git", "Git", "git_failed"),
            "svn": scm("svn", "Subversion", "svn_failed"),
            "archive": scm("archive", "Remote Archive", "archive_failed"),
        },
        "users": plain("users"),
        "organizations": plain("organizations"),
        "teams": plain("teams"),
        "credentials": plain("credentials"),
        "job_templates": plain("job_templates"),
    }))
}

/// `dashboard/graphs/jobs/?period=month&job_type=all`: for each outcome, a pair of second and number for each day.
pub(super) async fn jobs(call: &Call) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    let user = call.user()?;
    let days = match call.parameter("period").unwrap_or("month") {
        "month" => 30,
        "two_weeks" => 14,
        "week" => 7,
        "day" => 1,
        _ => {
            return Err(ApiError::Body(
                axum::http::StatusCode::BAD_REQUEST,
                json!({"error": "Unknown period \"period\"; use month, two_weeks, week or day."}),
            ));
        }
    };
    let kinds: &[&str] = match call.parameter("job_type").unwrap_or("all") {
        "inv_sync" => &["inventory_update"],
        "playbook_run" => &["job"],
        "scm_update" => &["project_update"],
        _ => &["job", "project_update", "inventory_update", "ad_hoc_command"],
    };
    let now = jiff::Timestamp::now().as_microsecond();
    let today = now.div_euclid(DAY);
    let first = today - days;
    let mut query = read::source(&UNIFIED_JOBS, BASE);
    query
        .expr_as(Expr::col((BASE, "finished")).div(DAY), "day")
        .column((BASE, "status"))
        .expr(Func::count(Expr::col((BASE, "id"))));
    query.and_where(Expr::col((BASE, "finished")).gte(first * DAY));
    query.and_where(Expr::col((BASE, "kind")).is_in(kinds.iter().copied()));
    query.and_where_option(generic::visible(&UNIFIED_JOBS, user)?);
    query.group_by_col("day").group_by_col((BASE, "status")).order_by("day", Order::Asc);
    let mut found: BTreeMap<(String, i64), i64> = BTreeMap::new();
    for row in call.app.db.all(&query).await? {
        found.insert((row.at(1)?, row.at(0)?), row.at(2)?);
    }
    let mut jobs = Map::new();
    for status in ["successful", "failed", "canceled", "error"] {
        let point = |day: i64| {
            let number = found.get(&(status.to_owned(), day)).copied().unwrap_or(0);
            Value::from(vec![day * 86_400, number])
        };
        jobs.insert(status.to_owned(), (first..=today).map(point).collect::<Vec<_>>().into());
    }
    ok(json!({"jobs": jobs}))
}
