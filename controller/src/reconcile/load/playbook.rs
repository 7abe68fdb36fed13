//! A job: a playbook of a project on an inventory.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use plexus_tree::store::unhex;
use sea_query::{Expr, ExprTrait, JoinType, Order, Query};
use serde_json::{Map, Value};

use super::{ASK, Error, Made, Source, inject, limits, meta, variables};
use crate::facts;
use crate::http::settings;
use crate::inventory::members::Members;
use crate::job;
use crate::payload::extra_vars::Trust;
use crate::payload::private::{
    Group, Inventory, JobOptions, Limits, MachineCredential, Private, VaultCredential,
};
use crate::project;
use crate::project_update;
use crate::reconcile::Context;
use crate::registry::write::parse_variables;
use crate::store::core::{Error as StoreError, Row};
use crate::vault::Secret;

const JOB_COLUMNS: [&str; 17] = [
    "playbook",
    "job_type",
    "diff_mode",
    "forks",
    "limit",
    "verbosity",
    "job_tags",
    "skip_tags",
    "start_at_task",
    "force_handlers",
    "become_enabled",
    "timeout",
    "inventory_id",
    "scm_revision",
    "extra_vars",
    "job_template_id",
    "use_fact_cache",
];

pub(super) async fn load(context: &Context, id: i64) -> Result<Made, Error> {
    let mut select = Query::select();
    select.columns(JOB_COLUMNS.map(|column| ("unified_jobs", column)));
    select.column(("unified_jobs", "tree"));
    select
        .columns([("projects", "local_path"), ("projects", "scm_type")])
        .from("unified_jobs")
        .left_join("projects", Expr::col(("projects", "id")).equals(("unified_jobs", "project_id")))
        .and_where(Expr::col(("unified_jobs", "id")).eq(id));
    let row = context.core.optional(select).await?.ok_or(StoreError::Reference)?;
    let mut options = options(id, &row)?;
    let (scm, path) =
        (row.value::<Option<String>>("scm_type")?.unwrap_or_default(), row.value("local_path")?);
    let (kept, template) = (row.value("tree")?, row.value("job_template_id")?);
    // Asked for at once: a job waits for the longest of these, and not for one after the other.
    let tree = async {
        match scm.is_empty() {
            true => {
                let project = project(context, path, &options.playbook)?;
                Ok((Source::directory(context, project), BTreeMap::new()))
            }
            false => stored(context, kept, &options.playbook).await,
        }
    };
    let inventory = async {
        match options.inventory_id {
            Some(inventory) => inventory_of(context, inventory).await,
            None => Ok(Inventory::default()),
        }
    };
    let facts = async {
        match options.inventory_id.filter(|_| options.fact_cache) {
            Some(inventory) => Ok(facts::of_inventory(&context.core, inventory).await?),
            None => Ok(BTreeMap::new()),
        }
    };
    let extra_vars = async { Ok(meta::variables(&context.core, id).await?) };
    let survey = async { Ok(job::survey_passwords(&context.core, &context.vault, id).await?) };
    let credentials = async {
        let credentials = job::credentials(&context.core, &context.vault, id).await?;
        let passwords = passwords(context, id, &credentials).await?;
        Ok((credentials, passwords))
    };
    let limits = async { Ok(limits(context, row.value("timeout")?, "DEFAULT_JOB_TIMEOUT").await?) };
    let (tree, inventory, facts, extra_vars, survey, credentials, (trust, own), limits) = tokio::try_join!(
        tree,
        inventory,
        facts,
        extra_vars,
        survey,
        credentials,
        trusted(context, template),
        limits
    )?;
    let ((tree, installed), (credentials, (machine, vaults))) = (tree, credentials);
    options.limits = limits;
    let mut extra_vars: Map<String, Value> = extra_vars;
    // Names that people give to things are no programs either.
    let mut doubted: Vec<String> = extra_vars.keys().cloned().collect();
    let mut given = variables("extra_vars of the job", &row.value::<String>("extra_vars")?)?;
    for (name, secret) in survey {
        given.insert(name, secret.expose().into());
    }
    doubted.extend(trust.doubted(&given, &own));
    extra_vars.extend(given);
    let mut injected = inject(context, &credentials).await?;
    doubted.extend(injected.extra_vars.keys().cloned());
    for (name, path) in installed {
        injected.env.entry(name).or_insert(path);
    }
    extra_vars.extend(injected.extra_vars.clone());
    let private = Private {
        options: &options,
        inventory: &inventory,
        facts: &facts,
        extra_vars: &extra_vars,
        doubted: &doubted,
        machine: machine.as_ref(),
        vaults: &vaults,
        injected: &injected,
    };
    Ok(Made { run: private.run(), tree })
}

/// Whose variables may hold Jinja, by setting, and those of the job's template.
async fn trusted(context: &Context, template: Option<i64>) -> Result<(Trust, Map<String, Value>), Error> {
    let mut own = Query::select();
    own.column("extra_vars").from("job_templates").and_where(Expr::col("id").eq(template));
    let setting = settings::setting(&context.core, "ALLOW_JINJA_IN_EXTRA_VARS");
    let (setting, own) = tokio::try_join!(setting, context.core.optional(&own))?;
    let own = match own {
        Some(row) => parse_variables(&row.at::<String>(0)?).unwrap_or_default(),
        None => Map::new(),
    };
    Ok((Trust::of(setting.as_str().unwrap_or_default()), own))
}

fn options(id: i64, row: &Row) -> Result<JobOptions, StoreError> {
    Ok(JobOptions {
        job_id: id,
        playbook: row.value("playbook")?,
        check: row.value::<String>("job_type")? == "check",
        diff: row.value("diff_mode")?,
        forks: row.value("forks")?,
        limit: row.value("limit")?,
        verbosity: row.value("verbosity")?,
        tags: row.value("job_tags")?,
        skip_tags: row.value("skip_tags")?,
        start_at_task: row.value("start_at_task")?,
        force_handlers: row.value("force_handlers")?,
        r#become: row.value("become_enabled")?,
        limits: Limits::default(),
        inventory_id: row.value("inventory_id")?,
        project_revision: row.value("scm_revision")?,
        fact_cache: row.value("use_fact_cache")?,
    })
}

/// The tree of a project, whatever is taken from it: the one that was given when what runs was placed, or a directory.
pub(super) async fn source_tree(
    context: &Context,
    project: i64,
    tree: Option<String>,
) -> Result<Source, Error> {
    let mut select = Query::select();
    select.columns(["local_path", "scm_type"]).from("projects").and_where(Expr::col("id").eq(project));
    let row = context.core.optional(select).await?.ok_or(Error::NoProject)?;
    if !row.at::<String>(1)?.is_empty() {
        return Ok(Source::stored(context, tree.as_deref().and_then(unhex).ok_or(Error::NoRevision)?));
    }
    Ok(Source::directory(context, directory(context, row.at(0)?)?.1))
}

fn directory(context: &Context, local_path: Option<String>) -> Result<(String, PathBuf), Error> {
    let local_path = local_path.filter(|path| !path.is_empty()).ok_or(Error::NoProject)?;
    let Some(root) = project::directory(&context.projects, &local_path) else {
        return Err(Error::Outside(local_path));
    };
    if !root.is_dir() {
        return Err(Error::NoDirectory(root));
    }
    Ok((local_path, root))
}

fn project(context: &Context, local_path: Option<String>, playbook: &str) -> Result<PathBuf, Error> {
    let (local_path, root) = directory(context, local_path)?;
    if !project::has_playbook(&context.projects, &local_path, playbook) {
        return Err(Error::NoPlaybook { playbook: playbook.to_owned() });
    }
    Ok(root)
}

/// The tree that the job was given when it was placed, which must have its playbook; and where the job finds the roles and
/// collections that came with it.
async fn stored(
    context: &Context,
    tree: Option<String>,
    playbook: &str,
) -> Result<(Source, BTreeMap<String, String>), Error> {
    let digest = tree.as_deref().and_then(unhex).ok_or(Error::NoRevision)?;
    let (store, playbook) = (Arc::clone(&context.store), playbook.to_owned());
    let read = tokio::task::spawn_blocking(move || {
        let manifest = store.manifest(&digest)?.ok_or(Error::TreeGone)?;
        if !manifest.files().any(|file| file.path == playbook) {
            return Err(Error::NoPlaybook { playbook });
        }
        let own = manifest.files().find(|file| file.path == "ansible.cfg");
        let own = own.map(|file| store.beginning(&manifest, file)).transpose()?.unwrap_or_default();
        let holds = |dir: &str| manifest.files().any(|file| file.path.starts_with(dir));
        Ok(project_update::installed(holds, &String::from_utf8_lossy(&own)))
    });
    let installed = read.await.expect("reading a manifest does not panic")?;
    Ok((Source::stored(context, digest), installed))
}

pub(super) async fn inventory_of(context: &Context, id: i64) -> Result<Inventory, Error> {
    let core = &context.core;
    let mut select = Query::select();
    select.column("variables").from("inventories").and_where(Expr::col("id").eq(id));
    let own: Option<String> = core.optional(select).await?.map(|row| row.value("variables")).transpose()?;
    let own = variables("variables of the inventory", &own.unwrap_or_default())?;
    let mut inventory = Inventory { variables: own, ..Inventory::default() };

    let mut select = Query::select();
    select
        .columns(["name", "variables"])
        .from("hosts")
        .and_where(Members::of(core, id).await?.enabled("hosts"))
        .order_by("id", Order::Asc);
    for row in core.all(select).await? {
        let name: String = row.value("name")?;
        let own = variables(&format!("variables of host {name}"), &row.value::<String>("variables")?)?;
        inventory.hosts.push((name, own));
    }

    let mut select = Query::select();
    select
        .columns(["id", "name", "variables"])
        .from("groups")
        .and_where(Expr::col("inventory_id").eq(id))
        .order_by("id", Order::Asc);
    let mut places = HashMap::new();
    for row in core.all(select).await? {
        let name: String = row.value("name")?;
        let own = variables(&format!("variables of group {name}"), &row.value::<String>("variables")?)?;
        places.insert(row.value::<i64>("id")?, inventory.groups.len());
        inventory.groups.push(Group { name, variables: own, ..Group::default() });
    }
    members(context, id, &places, &mut inventory).await?;
    Ok(inventory)
}

async fn members(
    context: &Context,
    inventory_id: i64,
    places: &HashMap<i64, usize>,
    inventory: &mut Inventory,
) -> Result<(), Error> {
    let mut select = Query::select();
    select
        .column(("group_hosts", "group_id"))
        .column(("hosts", "name"))
        .from("group_hosts")
        .join(JoinType::InnerJoin, "hosts", Expr::col(("hosts", "id")).equals(("group_hosts", "host_id")))
        .and_where(Expr::col(("hosts", "inventory_id")).eq(inventory_id))
        .and_where(Expr::col(("hosts", "enabled")).eq(true))
        .order_by(("hosts", "id"), Order::Asc);
    for row in context.core.all(select).await? {
        if let Some(&place) = places.get(&row.value::<i64>("group_id")?) {
            inventory.groups[place].hosts.push(row.value("name")?);
        }
    }
    let mut select = Query::select();
    select
        .column(("group_children", "group_id"))
        .column(("groups", "name"))
        .from("group_children")
        .join(
            JoinType::InnerJoin,
            "groups",
            Expr::col(("groups", "id")).equals(("group_children", "child_id")),
        )
        .and_where(Expr::col(("groups", "inventory_id")).eq(inventory_id))
        .order_by(("groups", "id"), Order::Asc);
    for row in context.core.all(select).await? {
        if let Some(&place) = places.get(&row.value::<i64>("group_id")?) {
            inventory.groups[place].children.push(row.value("name")?);
        }
    }
    Ok(())
}

/// The job's machine and vault credentials, opened, with what the launch brought for them.
pub(super) async fn passwords(
    context: &Context,
    id: i64,
    credentials: &[job::Credential],
) -> Result<(Option<MachineCredential>, Vec<VaultCredential>), Error> {
    let asked = job::start_passwords(&context.core, &context.vault, id).await?;
    let text = |found: &job::Credential, input: &str, prompt: &str| {
        let stored = found.inputs.get(input).map(Secret::expose).filter(|&text| text != ASK);
        let text = asked.get(prompt).map(Secret::expose).or(stored);
        text.unwrap_or_default().to_owned()
    };
    let machine =
        credentials.iter().find(|credential| credential.kind == "ssh").map(|found| MachineCredential {
            username: text(found, "username", ""),
            password: text(found, "password", "ssh_password"),
            ssh_key_data: text(found, "ssh_key_data", ""),
            ssh_key_unlock: text(found, "ssh_key_unlock", "ssh_key_unlock"),
            become_method: text(found, "become_method", ""),
            become_username: text(found, "become_username", ""),
            become_password: text(found, "become_password", "become_password"),
        });
    let vaults = credentials.iter().filter(|credential| credential.kind == "vault").map(|found| {
        let vault_id = text(found, "vault_id", "");
        let prompt = match vault_id.as_str() {
            "" => "vault_password".to_owned(),
            id => format!("vault_password.{id}"),
        };
        VaultCredential { password: text(found, "vault_password", &prompt), id: vault_id }
    });
    Ok((machine, vaults.collect()))
}

/// What the launch brought for the job's credentials, as far as it must never show.
pub(super) async fn asked_secrets(
    context: &Context,
    id: i64,
    credentials: &[job::Credential],
) -> Result<Vec<String>, Error> {
    let (machine, vaults) = passwords(context, id, credentials).await?;
    let mut secrets = machine.map(|machine| machine.secrets()).unwrap_or_default();
    secrets.extend(vaults.iter().map(|vault| vault.password.clone()).filter(|secret| !secret.is_empty()));
    Ok(secrets)
}
