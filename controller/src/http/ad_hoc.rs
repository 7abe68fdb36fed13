//! Ad hoc commands: one module on hosts of an inventory, at once.
//!
//! A command is a row that is made and started by the same request. Which modules may be run says the setting
//! `AD_HOC_COMMANDS`; variables with a meaning of their own in Ansible are refused, for they would lead around what a
//! credential says.

use axum::http::{Method, StatusCode};
use sea_query::{Expr, ExprTrait, Query, SelectStatement};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::error::ApiError;
use super::inventories::{below_groups, members_of};
use super::launch::{EnvironmentOf, passwords as needed_passwords, stamped};
use super::rules::{Rule, Rules};
use super::templates::known;
use super::{Answer, access, generic, ok, settings};
use crate::registry::read::{BASE, Record};
use crate::registry::write::{Draft, parse_variables};
use crate::registry::{AD_HOC_COMMANDS, GROUPS, HOSTS, INVENTORIES, Mode, options};
use crate::store::core::WriteTx;

pub(super) struct Commands;

impl Rules for Commands {
    fn check<'a>(&'a self, call: &'a Call, draft: &'a mut Draft, _: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            let name = match draft.text("module_name").trim() {
                "" => "command".to_owned(),
                name => name.to_owned(),
            };
            let allowed = settings::setting(&call.app.db, "AD_HOC_COMMANDS").await?;
            if !allowed
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one.as_str() == Some(name.as_str())))
            {
                return Err(ApiError::field("module_name", "Unsupported module for ad hoc commands."));
            }
            if matches!(name.as_str(), "command" | "shell") && draft.text("module_args").trim().is_empty() {
                return Err(ApiError::field("module_args", format!("No argument passed to {name} module.")));
            }
            let variables = parse_variables(draft.text("extra_vars"))
                .map_err(|words| ApiError::field("extra_vars", words))?;
            let own: Vec<&str> =
                variables.keys().map(String::as_str).filter(|name| name.starts_with("ansible_")).collect();
            if !own.is_empty() {
                let words = format!("{} are prohibited from use in ad hoc commands.", own.join(", "));
                return Err(ApiError::field("extra_vars", words));
            }
            let inventory = draft.int("inventory").unwrap_or_default();
            let mut passwords = None;
            if let Some(id) = draft.int("credential") {
                let credential = known(&call.app.db, &[id]).await?.remove(&id);
                let Some(credential) = credential.filter(|credential| credential.kind() == "ssh") else {
                    let words = "You must provide a machine / SSH credential.";
                    return Err(ApiError::field("credential", words));
                };
                passwords = needed_passwords(&[credential], &call.object()?)?;
            }
            let of = match draft.int("execution_environment") {
                Some(id) => EnvironmentOf::Chosen(id),
                None => EnvironmentOf::Inventory,
            };
            for (column, value) in stamped(&call.app.db, of, inventory).await? {
                draft.aside.insert(column.to_owned(), value);
            }
            draft.aside.insert("passwords".to_owned(), passwords.unwrap_or_default());
            draft.set("module_name", name.clone());
            draft.set("name", name);
            draft.set("launch_type", "manual");
            draft.set("status", "pending");
            Ok(())
        })
    }

    fn written<'a>(&'a self, call: &'a Call, tx: &'a mut WriteTx, id: i64, draft: &'a Draft) -> Rule<'a> {
        Box::pin(async move {
            let mut update = Query::update();
            update.table("unified_jobs").value("artifacts", "{}").value("controller_node", &*call.app.node);
            for column in ["execution_environment_id", "organization_id"] {
                update.value(column, draft.aside.get(column).and_then(Value::as_i64));
            }
            for column in ["image", "pull", "image_reason"] {
                let text = draft.aside.get(column).and_then(Value::as_str).map(str::to_owned);
                update.value(column, text);
            }
            let passwords = draft.aside.get("passwords").filter(|passwords| !passwords.is_null());
            if let Some(passwords) = passwords {
                let sealed = call.app.vault.encrypt("unified_jobs", id, "start_args", &passwords.to_string());
                update.value("start_args", sealed);
            }
            tx.execute(update.and_where(Expr::col("id").eq(id))).await?;
            if let Some(credential) = draft.int("credential") {
                let mut pair = Query::insert();
                pair.into_table("unified_job_credentials").columns(["unified_job_id", "credential_id"]);
                tx.execute(pair.values_panic([id.into(), credential.into()])).await?;
            }
            tx.wake();
            tx.job_changed(id, "pending");
            Ok(())
        })
    }

    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], detail: bool) -> Rule<'a> {
        static JOBS: super::jobs::Jobs = super::jobs::Jobs;
        JOBS.fill(call, records, detail)
    }

    fn options(&self, fields: &mut Map<String, Value>) {
        // What clients offer: the modules that come with the setting.
        let modules = settings::AD_HOC_MODULES.iter().map(|name| json!([name, name])).collect::<Vec<_>>();
        if let Some(field) = fields.get_mut("module_name").and_then(Value::as_object_mut) {
            field.insert("type".to_owned(), "choice".into());
            field.insert("choices".to_owned(), modules.into());
        }
    }
}

/// The commands that ran on a host or on hosts of a group; a POST runs one there.
pub(super) async fn below(call: &Call, resource: &'static crate::registry::Resource, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    call.user()?;
    if call.method == Method::OPTIONS {
        return generic::collection(call, &AD_HOC_COMMANDS).await;
    }
    let object = generic::fetch(call, resource, id).await?;
    if call.method == Method::POST {
        let inventory = object.int("inventory").map_or(Value::Null, Value::from);
        let preset = [("inventory", inventory), ("limit", object.text("name").into())];
        return generic::create(call, &AD_HOC_COMMANDS, &preset).await;
    }
    let hosts: SelectStatement = if *resource == HOSTS {
        let mut host = Query::select();
        host.expr(Expr::val(object.id)).take()
    } else {
        debug_assert!(*resource == GROUPS);
        members_of(below_groups(call, object.id).await?)
    };
    let mut ran = Query::select();
    ran.column("job_id").from("job_host_summaries").and_where(Expr::col("host_id").in_subquery(hosts));
    generic::page(call, &AD_HOC_COMMANDS, Some(Expr::col((BASE, "id")).in_subquery(ran))).await
}

/// `relaunch/`: the same again.
pub(super) async fn relaunch(call: &Call, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    call.user()?;
    if call.method == Method::OPTIONS {
        return ok(options::action("Ad Hoc Command Relaunch", Map::new()));
    }
    let command = generic::fetch(call, &AD_HOC_COMMANDS, id).await?;
    if call.method != Method::POST {
        let mut needed: Vec<String> = Vec::new();
        if let Some(id) = command.int("credential") {
            needed
                .extend(known(&call.app.db, &[id]).await?.remove(&id).iter().flat_map(|one| one.passwords()));
        }
        return ok(json!({"passwords_needed_to_start": needed}));
    }
    let Some(inventory) = command.int("inventory") else {
        return Err(ApiError::field("inventory", "The inventory of this command is gone."));
    };
    access::need(call, &INVENTORIES, inventory, "adhoc_role").await?;
    let mut preset = Vec::new();
    for field in AD_HOC_COMMANDS.fields.iter().filter(|field| field.mode == Mode::ReadWrite) {
        let value = command.fields.get(field.name).cloned().unwrap_or_default();
        if !value.is_null() {
            preset.push((field.name, value));
        }
    }
    let (id, record) = generic::created(call, &AD_HOC_COMMANDS, &preset, None).await?;
    let url = record.url();
    let mut body = Map::from_iter([("ad_hoc_command".to_owned(), Value::from(id))]);
    body.extend(record.into_json());
    debug_assert!(body.contains_key("status"));
    let mut answer = generic::created_response(url, &body.into())?;
    *answer.status_mut() = StatusCode::CREATED;
    Ok(answer)
}
