//! What jobs wait for: updates that must have been successful first.

use std::collections::BTreeMap;

use sea_query::{Expr, ExprTrait, JoinType, OnConflict, Order, Query};
use serde_json::json;

use super::core::{CoreDb, Error, WriteTx};
use crate::job;

/// A dependency that is not successful, or not yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// Its number.
    pub id: i64,
    /// What kind of job it is.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// How it stands.
    pub status: String,
}

/// What dependencies mean for the job that has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing stands in its way.
    Ready,
    /// It waits for this.
    Wait(String),
    /// It never runs.
    End {
        /// `failed` or `canceled`.
        status: &'static str,
        /// Why, in AWX's words.
        explanation: String,
    },
}

/// Lets a job wait for another one; twice is once.
///
/// # Errors
/// What the database says.
pub async fn add(tx: &mut WriteTx, job: i64, on: i64) -> Result<(), Error> {
    let mut insert = Query::insert();
    let columns = ["unified_job_id", "depends_on_id"];
    insert.into_table("unified_job_dependencies").columns(columns).values_panic([job.into(), on.into()]);
    insert.on_conflict(OnConflict::columns(columns).do_nothing().to_owned());
    tx.execute(&insert).await.map(drop)
}

/// Dependencies of jobs that wait, by job, as far as they are not successful.
///
/// # Errors
/// What the database says.
pub async fn unmet(core: &CoreDb) -> Result<BTreeMap<i64, Vec<Unmet>>, Error> {
    let mut query = Query::select();
    query.column(("d", "unified_job_id"));
    query.columns(["id", "kind", "name", "status"].map(|column| ("u", column)));
    query.from_as("unified_job_dependencies", "d");
    let on = Expr::col(("u", "id")).equals(("d", "depends_on_id"));
    query.join_as(JoinType::InnerJoin, "unified_jobs", "u", on);
    let of = Expr::col(("j", "id")).equals(("d", "unified_job_id"));
    query.join_as(JoinType::InnerJoin, "unified_jobs", "j", of);
    query.and_where(Expr::col(("j", "status")).is_in(["new", "pending"]));
    query.and_where(Expr::col(("u", "status")).ne("successful")).order_by(("u", "id"), Order::Asc);
    let mut unmet: BTreeMap<i64, Vec<Unmet>> = BTreeMap::new();
    for row in core.all(&query).await? {
        let found = Unmet { id: row.at(1)?, kind: row.at(2)?, name: row.at(3)?, status: row.at(4)? };
        unmet.entry(row.at(0)?).or_default().push(found);
    }
    Ok(unmet)
}

/// What these dependencies mean. One that failed decides at once: nobody waits for the others.
pub fn verdict(unmet: &[Unmet]) -> Verdict {
    if let Some(over) = unmet.iter().find(|unmet| !job::is_active(&unmet.status)) {
        let (status, what) = match over.status.as_str() {
            "canceled" => ("canceled", "Canceled"),
            _ => ("failed", "Failed"),
        };
        let which = json!({"job_type": over.kind, "job_name": over.name, "job_id": over.id.to_string()});
        return Verdict::End { status, explanation: format!("Previous Task {what}: {which}") };
    }
    match unmet.first() {
        Some(first) => {
            let kind = first.kind.replace('_', " ");
            Verdict::Wait(format!("{kind} {} ({})", first.id, first.name))
        }
        None => Verdict::Ready,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unmet(id: i64, status: &str) -> Unmet {
        Unmet { id, kind: "project_update".to_owned(), name: "web".to_owned(), status: status.to_owned() }
    }

    #[test]
    fn a_job_waits_for_what_runs_and_ends_with_what_failed() {
        assert_eq!(verdict(&[]), Verdict::Ready);
        assert_eq!(verdict(&[unmet(7, "running")]), Verdict::Wait("project update 7 (web)".to_owned()));
        let Verdict::End { status, explanation } = verdict(&[unmet(7, "running"), unmet(8, "error")]) else {
            panic!("it ends")
        };
        assert_eq!(status, "failed");
        let words = r#"Previous Task Failed: {"job_type":"project_update","job_name":"web","job_id":"8"}"#;
        assert_eq!(explanation, words);
        assert!(matches!(verdict(&[unmet(7, "canceled")]), Verdict::End { status: "canceled", .. }));
    }
}
