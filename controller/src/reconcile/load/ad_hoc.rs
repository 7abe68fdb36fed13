//! An ad hoc command: one module on hosts of an inventory.

use std::collections::BTreeMap;

use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Value, json};

use super::playbook::{inventory_of, passwords};
use super::{Error, Made, Source, inject, limits, variables};
use crate::job;
use crate::payload::private::{Inventory, JobOptions, Private};
use crate::reconcile::Context;
use crate::store::core::Error as StoreError;

pub(super) async fn load(context: &Context, id: i64) -> Result<Made, Error> {
    let mut select = Query::select();
    select.columns(["inventory_id", "limit", "module_name", "module_args", "job_type", "forks", "verbosity"]);
    select.columns(["become_enabled", "diff_mode", "timeout", "extra_vars", "launch_type"]);
    select.from("unified_jobs").and_where(Expr::col("id").eq(id));
    let row = context.core.optional(select).await?.ok_or(StoreError::Reference)?;
    let (module, arguments): (String, String) = (row.value("module_name")?, row.value("module_args")?);
    if arguments.contains("{{") {
        return Err(Error::Jinja);
    }
    let options = JobOptions {
        job_id: id,
        check: row.value::<String>("job_type")? == "check",
        diff: row.value("diff_mode")?,
        forks: row.value("forks")?,
        verbosity: row.value("verbosity")?,
        r#become: row.value("become_enabled")?,
        limits: limits(context, row.value("timeout")?, "DEFAULT_JOB_TIMEOUT").await?,
        inventory_id: row.value("inventory_id")?,
        ..JobOptions::default()
    };
    let inventory = match options.inventory_id {
        Some(inventory) => inventory_of(context, inventory).await?,
        None => Inventory::default(),
    };
    let credentials = job::credentials(&context.core, &context.vault, id).await?;
    let (machine, _) = passwords(context, id, &credentials).await?;
    let injected = inject(context, &credentials).await?;
    let mut extra_vars = serde_json::Map::new();
    for (name, value) in [
        ("job_id", Value::from(id)),
        ("job_launch_type", row.value::<String>("launch_type")?.into()),
        ("inventory_id", options.inventory_id.into()),
    ] {
        extra_vars.insert(format!("awx_{name}"), value.clone());
        extra_vars.insert(format!("tower_{name}"), value);
    }
    extra_vars.extend(variables("extra_vars of the command", &row.value::<String>("extra_vars")?)?);
    // Whoever gives variables to a command gives them at launch.
    let doubted: Vec<String> = extra_vars.keys().cloned().collect();
    let private = Private {
        options: &options,
        inventory: &inventory,
        facts: &BTreeMap::new(),
        extra_vars: &extra_vars,
        doubted: &doubted,
        machine: machine.as_ref(),
        vaults: &[],
        injected: &injected,
    };
    let mut run = private.run();
    let limit: String = row.value("limit")?;
    if let Some(kwargs) = run.kwargs.as_object_mut() {
        kwargs.shift_remove("playbook");
        kwargs.insert("module".to_owned(), module.into());
        kwargs.insert("module_args".to_owned(), arguments.into());
        let hosts = if limit.trim().is_empty() { "all".to_owned() } else { limit };
        kwargs.insert("host_pattern".to_owned(), hosts.into());
        kwargs["envvars"]["AD_HOC_COMMAND_ID"] = json!(id.to_string());
        if let Some(env) = kwargs["envvars"].as_object_mut() {
            env.shift_remove("JOB_ID");
            env.shift_remove("PROJECT_REVISION");
        }
    }
    Ok(Made { run, tree: Source::Empty })
}
