//! What an inventory update brought goes into its inventory, after its last record and before its last word: a job whose end is
//! stored has brought everything. A controller that dies in between begins the import again, from the records that are stored.

use regex::Regex;
use sea_query::{Expr, ExprTrait, Query};

use crate::inventory::changes::Policy;
use crate::inventory::{document, import};
use crate::job::ACTIVE;
use crate::outcome::push_sentence;
use crate::payload::inventory_update::reading;
use crate::store::core::{CoreDb, Error};
use crate::store::units::Final;

/// Imports what the job brought, if it is an inventory update that was successful. What cannot be imported is the job's failure.
///
/// # Errors
/// What the database says; the same may be tried again.
pub(super) async fn bring_in(core: &CoreDb, job: i64, last: &mut Final) -> Result<(), Error> {
    if last.status != "successful" {
        return Ok(());
    }
    let mut query = Query::select();
    query.columns(["inventory_id", "inventory_source_id", "source", "enabled_var", "enabled_value"]);
    query.columns(["host_filter", "overwrite", "overwrite_vars"]).from("unified_jobs");
    query.and_where(Expr::col("id").eq(job)).and_where(Expr::col("kind").eq("inventory_update"));
    let Some(row) = core.optional(query.and_where(Expr::col("status").is_in(ACTIVE))).await? else {
        return Ok(());
    };
    let (Some(inventory), Some(source)) =
        (row.value::<Option<i64>>("inventory_id")?, row.value::<Option<i64>>("inventory_source_id")?)
    else {
        return fail(last, "The inventory source was deleted while it was updated.".to_owned());
    };
    let Some(text) = last.inventory.take() else {
        return fail(
            last,
            "ansible-inventory left no inventory behind, or one larger than is taken.".to_owned(),
        );
    };
    let filter: String = row.value("host_filter")?;
    let filter = match Regex::new(&filter) {
        _ if filter.is_empty() => None,
        Ok(filter) => Some(filter),
        Err(_) => return fail(last, "host_filter of the source is no regular expression.".to_owned()),
    };
    let (enabled_var, enabled_value): (String, String) =
        (row.value("enabled_var")?, row.value("enabled_value")?);
    let reading = reading(&row.value::<String>("source")?, (&enabled_var, &enabled_value), filter);
    let policy = Policy { overwrite: row.value("overwrite")?, overwrite_vars: row.value("overwrite_vars")? };
    let read = tokio::task::spawn_blocking(move || document::read(text.as_bytes(), &reading));
    let document = match read.await.expect("reading an inventory does not panic") {
        Ok(document) => document,
        Err(error) => return fail(last, sentence(&error)),
    };
    let done = import::import(core, inventory, Some(source), document, policy).await?;
    crate::crash::Point::ImportWhole.hit();
    let [made, changed, deleted] = done.changed;
    tracing::info!(hosts = done.hosts, groups = done.groups, made, changed, deleted, "inventory imported");
    for (group, child) in done.circles.iter().take(5) {
        let words = format!("Group {child} was not put below {group}: that would be a circle");
        push_sentence(&mut last.explanation, &words);
    }
    Ok(())
}

/// What cannot be imported is the job's failure.
fn fail(last: &mut Final, words: impl Into<String>) -> Result<(), Error> {
    last.status = "error";
    last.explanation = words.into();
    Ok(())
}

/// An error with its cause, for people.
fn sentence(error: &document::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
