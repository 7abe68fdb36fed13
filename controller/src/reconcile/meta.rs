//! What every playbook may ask of its job, under both of AWX's prefixes: `awx_job_id`, `tower_user_name` and so on.

use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Map, Value};

use crate::store::core::{CoreDb, Error, Row};

/// A table, the column that tells whether the object is there, and the variables with the columns they come from.
type Object = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Where values come from. Those of one object stand together; they are absent where there is none.
const VARIABLES: [Object; 6] = [
    ("unified_jobs", "id", &[("job_id", "id"), ("job_launch_type", "launch_type")]),
    ("unified_job_templates", "id", &[("job_template_id", "id"), ("job_template_name", "name")]),
    (
        "users",
        "id",
        &[
            ("user_id", "id"),
            ("user_name", "username"),
            ("user_email", "email"),
            ("user_first_name", "first_name"),
            ("user_last_name", "last_name"),
        ],
    ),
    ("inventories", "id", &[("inventory_id", "id"), ("inventory_name", "name")]),
    ("unified_jobs", "project_id", &[("project_revision", "scm_revision")]),
    ("projects", "id", &[("project_scm_branch", "scm_branch")]),
];

/// The variables of a job; and, as text, those that stand on its job template now.
pub(super) async fn variables(db: &CoreDb, job: i64) -> Result<(Map<String, Value>, String), Error> {
    let of_job = |column: &'static str| Expr::col(("unified_jobs", column));
    let mut select = Query::select();
    for (table, _, names) in VARIABLES {
        select.columns(names.iter().map(|(_, column)| (table, *column)));
    }
    // Whether the object is there at all.
    select.columns(VARIABLES.map(|(table, there, _)| (table, there)));
    select
        .columns([("unified_jobs", "execution_node"), ("job_templates", "extra_vars")])
        .from("unified_jobs")
        .left_join(
            "unified_job_templates",
            Expr::col(("unified_job_templates", "id")).eq(of_job("job_template_id")),
        )
        .left_join("job_templates", Expr::col(("job_templates", "id")).eq(of_job("job_template_id")))
        .left_join("users", Expr::col(("users", "id")).eq(of_job("created_by_id")))
        .left_join("inventories", Expr::col(("inventories", "id")).eq(of_job("inventory_id")))
        .left_join("projects", Expr::col(("projects", "id")).eq(of_job("project_id")))
        .and_where(of_job("id").eq(job));
    let row = db.optional(select).await?.ok_or(Error::Reference)?;
    let trusted: Option<String> = row.at(row_length() + 1)?;
    Ok((named(&row)?, trusted.unwrap_or_default()))
}

/// Columns of [`VARIABLES`] and of what tells which objects are there.
fn row_length() -> usize {
    VARIABLES.iter().map(|(_, _, names)| names.len() + 1).sum()
}

fn named(row: &Row) -> Result<Map<String, Value>, Error> {
    let mut found = Map::new();
    let mut add = |name: &str, value: Value| {
        found.insert(format!("tower_{name}"), value.clone());
        found.insert(format!("awx_{name}"), value);
    };
    let first = VARIABLES.iter().map(|(_, _, names)| names.len()).sum::<usize>();
    let mut place = 0;
    for (object, (_, _, names)) in VARIABLES.iter().enumerate() {
        let there = row.at::<Option<i64>>(first + object)?.is_some();
        for (name, column) in *names {
            if there {
                let value = match *column {
                    "id" => row.at::<i64>(place)?.into(),
                    _ => row.at::<String>(place)?.into(),
                };
                add(name, value);
            }
            place += 1;
        }
    }
    let node = row.at::<String>(row_length())?;
    if !node.is_empty() {
        add("execution_node", node.into());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::Engine;
    use crate::store::core::Class;
    use crate::store::testing::Place;

    #[tokio::test]
    async fn a_job_tells_of_what_it_has_and_of_nothing_else() {
        for engine in [Engine::Sqlite, Engine::Postgres] {
            let place = Place::new(engine);
            let db = place.core().await;
            let mut tx = db.begin(Class::Intent).await.unwrap();
            let mut user = Query::insert();
            user.into_table("users").columns(["username", "first_name", "created", "modified"]);
            let user =
                tx.insert(user.values_panic(["ada".into(), "Ada".into(), 1.into(), 1.into()])).await.unwrap();
            let mut of_nobody = Query::insert();
            of_nobody.into_table("unified_jobs").columns(["kind", "launch_type", "created", "modified"]);
            let alone = of_nobody.values_panic(["job".into(), "manual".into(), 1.into(), 1.into()]);
            let alone = tx.insert(alone).await.unwrap();
            let mut of_ada = Query::insert();
            of_ada.into_table("unified_jobs");
            of_ada.columns(["kind", "execution_node", "created_by_id", "created", "modified"]);
            let of_ada =
                of_ada.values_panic(["job".into(), "node-1".into(), user.into(), 1.into(), 1.into()]);
            let of_ada = tx.insert(of_ada).await.unwrap();
            tx.commit().await.unwrap();

            let (found, trusted) = variables(&db, alone).await.unwrap();
            let names: Vec<&str> = found.keys().map(String::as_str).collect();
            assert_eq!(names, ["tower_job_id", "awx_job_id", "tower_job_launch_type", "awx_job_launch_type"]);
            assert_eq!((&found["awx_job_id"], trusted.as_str()), (&json!(alone), ""));
            let (found, _) = variables(&db, of_ada).await.unwrap();
            assert_eq!(found["awx_user_name"], "ada");
            assert_eq!(found["tower_user_first_name"], "Ada");
            assert_eq!(found["awx_execution_node"], "node-1");
        }
    }
}
