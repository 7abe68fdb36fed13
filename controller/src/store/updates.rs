//! Updates of projects, as rows: what one is started with, what it brought, and what its end means for its project.

use std::collections::HashSet;

use plexus_tree::Digest;
use plexus_tree::store::unhex;
use sea_query::{Expr, ExprTrait, InsertStatement, JoinType, OnConflict, Order, Query};
use serde_json::json;

use super::core::{Class, CoreDb, Error, WriteTx};
use crate::job::ACTIVE;
use crate::project::Listed;

/// Stores an update that is to run, with the credentials that it needs; its id.
///
/// # Errors
/// What the database says.
pub async fn start(
    tx: &mut WriteTx,
    insert: &mut InsertStatement,
    credentials: &[i64],
) -> Result<i64, Error> {
    let id = tx.insert(insert).await?;
    if !credentials.is_empty() {
        let mut pairs = Query::insert();
        pairs.into_table("unified_job_credentials").columns(["unified_job_id", "credential_id"]);
        for credential in credentials {
            pairs.values_panic([id.into(), (*credential).into()]);
        }
        tx.execute(&pairs).await?;
    }
    tx.wake();
    tx.job_changed(id, "pending");
    Ok(id)
}

/// The newest update of a project for everybody that is not over.
///
/// # Errors
/// What the database says.
pub async fn active(tx: &mut WriteTx, project: i64) -> Result<Option<i64>, Error> {
    let mut query = Query::select();
    query.column("id").from("unified_jobs").and_where(Expr::col("unified_job_template_id").eq(project));
    query.and_where(Expr::col("kind").eq("project_update")).and_where(Expr::col("job_type").eq("check"));
    query.and_where(Expr::col("status").is_in(ACTIVE)).order_by("id", Order::Desc).limit(1);
    tx.optional(&query).await?.map(|row| row.at(0)).transpose()
}

/// Notes what an update brought: a revision, a tree that is kept, and what is in it. To be repeated as often as need be.
///
/// # Errors
/// What the database says.
pub async fn gathered(
    core: &CoreDb,
    job: i64,
    tree: &str,
    revision: &str,
    listed: &Listed,
) -> Result<(), Error> {
    let now = jiff::Timestamp::now().as_microsecond();
    let mut tx = core.begin(Class::Bookkeeping).await?;
    let mut insert = Query::insert();
    insert
        .into_table("trees")
        .columns(["digest", "playbooks", "inventories", "bytes", "created"])
        .values_panic([
            tree.into(),
            json!(listed.playbooks).to_string().into(),
            json!(listed.inventories).to_string().into(),
            i64::try_from(listed.bytes).unwrap_or(i64::MAX).into(),
            now.into(),
        ])
        .on_conflict(OnConflict::column("digest").do_nothing().to_owned());
    tx.execute(&insert).await?;
    let mut update = Query::update();
    update.table("unified_jobs").value("tree", tree).value("scm_revision", revision).value("modified", now);
    tx.execute(update.and_where(Expr::col("id").eq(job)).and_where(Expr::col("status").is_in(ACTIVE)))
        .await?;
    tx.commit().await
}

/// What the end of an update means for its project; false when it is none of the project's, but of the one job that waits
/// for it. To be called in the transaction that ends the update.
///
/// # Errors
/// What the database says.
pub async fn concluded(tx: &mut WriteTx, job: i64) -> Result<bool, Error> {
    let mut query = Query::select();
    query.columns(["project_id", "job_type", "status", "finished", "scm_revision", "tree"]);
    query.from("unified_jobs").and_where(Expr::col("id").eq(job));
    let Some(row) = tx.optional(&query).await? else { return Ok(false) };
    let project: Option<i64> = row.at(0)?;
    let Some(project) = project.filter(|_| row.at::<String>(1).is_ok_and(|kind| kind != "run")) else {
        return Ok(false);
    };
    let successful = row.at::<String>(2)? == "successful";
    let mut update = Query::update();
    update.table("projects").value("last_update_failed", !successful);
    update.value("last_updated", row.at::<Option<i64>>(3)?);
    if successful {
        update.value("scm_revision", row.at::<String>(4)?).value("tree", row.at::<Option<String>>(5)?);
    }
    tx.execute(update.and_where(Expr::col("id").eq(project))).await?;
    Ok(true)
}

/// That a project (`p`, say) is the one that a job runs from, or that an update of an inventory finds its files in.
pub fn runs_from(project: &'static str, job: &'static str) -> Expr {
    let is = |column: &'static str| Expr::col((project, "id")).equals((job, column));
    is("project_id").or(is("source_project_id"))
}

/// Gives a job that is being placed the revision it runs: that of the update that it alone waited for, else that of its
/// project now. What updates bring later changes nothing for it. A manual project has none: its directory is what it is.
///
/// # Errors
/// What the database says.
pub async fn stamp(tx: &mut WriteTx, job: i64) -> Result<(), Error> {
    let mut query = Query::select();
    query.columns([("p", "scm_type"), ("p", "scm_revision"), ("p", "tree")]).from_as("unified_jobs", "j");
    query.join_as(JoinType::InnerJoin, "projects", "p", runs_from("p", "j"));
    query.and_where(Expr::col(("j", "id")).eq(job));
    query.and_where(Expr::col(("j", "kind")).is_in(["job", "inventory_update"]));
    let Some(row) = tx.optional(&query).await? else { return Ok(()) };
    if row.at::<String>(0)?.is_empty() {
        return Ok(());
    }
    let (mut revision, mut tree): (String, Option<String>) = (row.at(1)?, row.at(2)?);
    let mut own = Query::select();
    own.columns([("u", "scm_revision"), ("u", "tree")]).from_as("unified_job_dependencies", "d");
    let on = Expr::col(("u", "id")).equals(("d", "depends_on_id"));
    own.join_as(JoinType::InnerJoin, "unified_jobs", "u", on);
    own.and_where(Expr::col(("d", "unified_job_id")).eq(job));
    own.and_where(Expr::col(("u", "job_type")).eq("run")).and_where(Expr::col(("u", "tree")).is_not_null());
    if let Some(row) = tx.optional(own.limit(1)).await? {
        (revision, tree) = (row.at(0)?, row.at(1)?);
    }
    let mut update = Query::update();
    update.table("unified_jobs").value("scm_revision", revision).value("tree", tree);
    tx.execute(update.and_where(Expr::col("id").eq(job))).await.map(drop)
}

/// The tree that an update may go on from: what the last one of its project brought from the same place.
///
/// # Errors
/// What the database says.
pub async fn base(core: &CoreDb, job: i64) -> Result<Option<Digest>, Error> {
    let mut query = Query::select();
    query.column(("u", "tree")).from_as("unified_jobs", "u");
    let same = |column: &'static str| Expr::col(("u", column)).equals(("j", column));
    let mine = same("project_id").and(same("scm_type")).and(same("scm_url"));
    query.join_as(JoinType::InnerJoin, "unified_jobs", "j", mine);
    let project = Expr::col(("p", "id"))
        .equals(("u", "project_id"))
        .and(Expr::col(("p", "tree")).equals(("u", "tree")));
    query.join_as(JoinType::InnerJoin, "projects", "p", project);
    query.and_where(Expr::col(("j", "id")).eq(job));
    query.and_where(Expr::col(("j", "scm_delete_on_update")).eq(false));
    query.and_where(Expr::col(("u", "kind")).eq("project_update"));
    query.and_where(Expr::col(("u", "status")).eq("successful")).limit(1);
    let row = core.optional(&query).await?;
    Ok(row.map(|row| row.at::<Option<String>>(0)).transpose()?.flatten().and_then(|text| unhex(&text)))
}

/// Trees that projects have or jobs under way run.
///
/// # Errors
/// What the database says.
pub async fn wanted(core: &CoreDb) -> Result<HashSet<Digest>, Error> {
    let mut projects = Query::select();
    projects.column("tree").from("projects").and_where(Expr::col("tree").is_not_null());
    let mut jobs = Query::select();
    jobs.column("tree").from("unified_jobs").and_where(Expr::col("tree").is_not_null());
    jobs.and_where(Expr::col("status").is_in(ACTIVE));
    let mut wanted = HashSet::new();
    for query in [projects, jobs] {
        for row in core.all(&query).await? {
            wanted.extend(row.at::<Option<String>>(0)?.as_deref().and_then(unhex));
        }
    }
    Ok(wanted)
}
