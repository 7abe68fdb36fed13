//! What every playbook may ask of its job: extra variables under both of AWX's prefixes, `awx_` and `tower_`.

use sea_query::{Expr, ExprTrait, JoinType, Query};
use serde_json::{Map, Value};

use crate::store::core::{CoreDb, Error as StoreError};

/// The variables of a job. What it has not (a user who is gone, an inventory) has none.
pub(super) async fn variables(core: &CoreDb, job: i64) -> Result<Map<String, Value>, StoreError> {
    let mut query = Query::select();
    query.columns(["name", "launch_type", "scm_revision", "scm_branch"].map(|column| ("j", column)));
    query.columns([("j", "job_template_id"), ("j", "inventory_id")]).column(("j", "execution_node"));
    query.column(("i", "name")).columns([("p", "scm_branch")]);
    query.columns(["id", "username", "email", "first_name", "last_name"].map(|column| ("u", column)));
    query.from_as("unified_jobs", "j");
    for (table, alias, column) in [
        ("inventories", "i", "inventory_id"),
        ("projects", "p", "project_id"),
        ("users", "u", "created_by_id"),
    ] {
        let on = Expr::col((alias, "id")).equals(("j", column));
        query.join_as(JoinType::LeftJoin, table, alias, on);
    }
    query.and_where(Expr::col(("j", "id")).eq(job));
    let row = core.optional(&query).await?.ok_or(StoreError::Reference)?;
    let text = |at: usize| row.at::<Option<String>>(at).map(|text| text.map(Value::from));
    let number = |at: usize| row.at::<Option<i64>>(at).map(|number| number.map(Value::from));
    let branch = row.at::<String>(3)?;
    let branch = if branch.is_empty() { row.at::<Option<String>>(8)?.unwrap_or_default() } else { branch };
    let values = [
        ("job_id", Some(job.into())),
        ("job_launch_type", text(1)?),
        ("job_template_id", number(4)?),
        ("job_template_name", text(0)?),
        ("inventory_id", number(5)?),
        ("inventory_name", text(7)?),
        ("project_revision", text(2)?),
        ("project_scm_branch", Some(branch.into())),
        ("execution_node", text(6)?),
        ("user_id", number(9)?),
        ("user_name", text(10)?),
        ("user_email", text(11)?),
        ("user_first_name", text(12)?),
        ("user_last_name", text(13)?),
    ];
    let both = |(name, value): (&str, Option<Value>)| {
        let value = value?;
        Some([(format!("awx_{name}"), value.clone()), (format!("tower_{name}"), value)])
    };
    Ok(values.into_iter().filter_map(both).flatten().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::core::Class;
    use crate::store::testing::{Place, on_each_engine};

    on_each_engine! {
        a_job_tells_of_itself_under_both_prefixes,
    }

    async fn a_job_tells_of_itself_under_both_prefixes(place: Place) {
        let db = place.core().await;
        let mut tx = db.begin(Class::Bulk).await.unwrap();
        let mut user = Query::insert();
        user.into_table("users").columns(["username", "email", "created", "modified"]);
        tx.insert(user.values_panic(["ada".into(), "ada@example.org".into(), 0.into(), 0.into()]))
            .await
            .unwrap();
        let mut of = async |creator: Option<i64>| {
            let mut job = Query::insert();
            job.into_table("unified_jobs");
            job.columns([
                "kind",
                "name",
                "launch_type",
                "scm_branch",
                "created_by_id",
                "created",
                "modified",
            ]);
            job.values_panic([
                "job".into(),
                "Deploy".into(),
                "manual".into(),
                "main".into(),
                creator.into(),
                0.into(),
                0.into(),
            ]);
            tx.insert(&mut job).await.unwrap()
        };
        let (whole, bare) = (of(Some(1)).await, of(None).await);
        tx.commit().await.unwrap();
        let variables = super::variables(&db, whole).await.unwrap();
        for (name, value) in [
            ("job_id", json!(whole)),
            ("job_launch_type", json!("manual")),
            ("job_template_name", json!("Deploy")),
            ("project_scm_branch", json!("main")),
            ("user_name", json!("ada")),
            ("user_email", json!("ada@example.org")),
        ] {
            for prefix in ["awx", "tower"] {
                assert_eq!(variables[&format!("{prefix}_{name}")], value, "{prefix}_{name}");
            }
        }
        assert!(!variables.contains_key("awx_inventory_id"));
        assert!(!super::variables(&db, bare).await.unwrap().contains_key("awx_user_id"));
    }
}
