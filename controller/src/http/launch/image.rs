//! Which image a job runs in, and why this one: AWX's order, kept with the job so that nobody has to guess.

use sea_query::{Expr, ExprTrait, JoinType, Order, Query, SelectStatement};
use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::settings;
use crate::registry::read::{self, BASE};
use crate::registry::{INVENTORIES, JOB_TEMPLATES};
use crate::store::core::{CoreDb, Error as StoreError, Row};

/// Where an image may come from, in the order of choice.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Chain {
    pub(super) template: Option<i64>,
    pub(super) project: Option<i64>,
    pub(super) project_organization: Option<i64>,
    pub(super) inventory_organization: Option<i64>,
}

/// The image a job runs in, and why this one.
pub(in crate::http) struct Environment {
    pub(in crate::http) id: i64,
    name: String,
    description: String,
    pub(in crate::http) image: String,
    pub(in crate::http) pull: String,
    pub(in crate::http) reason: String,
}

/// Joins what decides the image to a query of job templates that goes by [`BASE`].
pub(super) fn add_chain(query: &mut SelectStatement) {
    let on = |alias: &'static str, from: &'static str, column: &'static str| {
        Expr::col((alias, "id")).equals((from, column))
    };
    let parent = "bp";
    query.join_as(JoinType::LeftJoin, "projects", "lp", on("lp", BASE, "project_id"));
    query.join_as(JoinType::LeftJoin, "unified_job_templates", "lpu", on("lpu", BASE, "project_id"));
    query.join_as(JoinType::LeftJoin, "organizations", "lpo", on("lpo", "lpu", "organization_id"));
    query.join_as(JoinType::LeftJoin, "inventories", "li", on("li", BASE, "inventory_id"));
    query.join_as(JoinType::LeftJoin, "organizations", "lio", on("lio", "li", "organization_id"));
    query.expr_as(Expr::col(("lp", "local_path")), "l_path");
    query.expr_as(Expr::col(("lp", "scm_type")), "l_scm_type");
    query.expr_as(Expr::col((parent, "execution_environment_id")), "l_template");
    query.expr_as(Expr::col(("lp", "default_environment_id")), "l_project");
    query.expr_as(Expr::col(("lpo", "default_environment_id")), "l_project_organization");
    query.expr_as(Expr::col(("lio", "default_environment_id")), "l_inventory_organization");
}

impl Chain {
    pub(super) fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            template: row.value("l_template")?,
            project: row.value("l_project")?,
            project_organization: row.value("l_project_organization")?,
            inventory_organization: row.value("l_inventory_organization")?,
        })
    }
}

pub(super) async fn inventory_default(db: &CoreDb, inventory: i64) -> Result<Option<i64>, ApiError> {
    let mut query = read::source(&INVENTORIES, BASE);
    query.column(("o", "default_environment_id"));
    let organization = Expr::col(("o", "id")).equals((BASE, "organization_id"));
    query.join_as(JoinType::LeftJoin, "organizations", "o", organization);
    query.and_where(Expr::col((BASE, "id")).eq(inventory));
    match db.optional(&query).await? {
        Some(row) => Ok(row.at(0)?),
        None => {
            let words = format!("Invalid pk \"{inventory}\" - object does not exist.");
            Err(ApiError::field("inventory", words))
        }
    }
}

/// Chooses the image as AWX does: template, project, the project's organization, the inventory's, the setting, then
/// the newest that belongs to everybody, those of the setting first.
pub(super) async fn resolve(db: &CoreDb, chain: Chain) -> Result<Option<Environment>, ApiError> {
    let steps = [
        (chain.template, "the job template names it"),
        (chain.project, "it is the default of the project"),
        (chain.project_organization, "it is the default of the project's organization"),
        (chain.inventory_organization, "it is the default of the inventory's organization"),
    ];
    for (id, reason) in steps {
        if let Some(id) = id
            && let Some(environment) = by_id(db, id, reason.to_owned()).await?
        {
            return Ok(Some(environment));
        }
    }
    let default = settings::setting(db, "DEFAULT_EXECUTION_ENVIRONMENT").await?;
    if let Some(id) = default.as_i64()
        && let Some(environment) = by_id(db, id, "it is the default of all".to_owned()).await?
    {
        return Ok(Some(environment));
    }
    let mut query = environments("it is the newest that belongs to everybody");
    query.and_where(Expr::col("organization_id").is_null()).and_where(Expr::col("managed").eq(false));
    query.order_by("created", Order::Desc).order_by("id", Order::Desc).limit(1);
    let listed = settings::setting(db, "GLOBAL_JOB_EXECUTION_ENVIRONMENTS").await?;
    let images: Vec<&str> =
        listed.as_array().into_iter().flatten().filter_map(|item| item["image"].as_str()).collect();
    if !images.is_empty() {
        let mut preferred = query.clone();
        preferred.and_where(Expr::col("image").is_in(images));
        if let Some(row) = db.optional(&preferred).await? {
            return Ok(Some(Environment::read(&row)?));
        }
    }
    Ok(db.optional(&query).await?.map(|row| Environment::read(&row)).transpose()?)
}

/// Chooses the image of a project's update: the project's own, then the one that is managed for such work, then as for any
/// job of the project.
pub(in crate::http) async fn of_update(
    db: &CoreDb,
    project: Option<i64>,
    project_organization: Option<i64>,
) -> Result<Option<Environment>, ApiError> {
    if let Some(id) = project
        && let Some(environment) = by_id(db, id, "it is the default of the project".to_owned()).await?
    {
        return Ok(Some(environment));
    }
    let mut managed = environments("it is the one for the controllers' own work");
    managed.and_where(Expr::col("organization_id").is_null()).and_where(Expr::col("managed").eq(true));
    if let Some(row) = db.optional(managed.order_by("id", Order::Asc).limit(1)).await? {
        return Ok(Some(Environment::read(&row)?));
    }
    resolve(db, Chain { project_organization, ..Chain::default() }).await
}

fn environments(reason: &str) -> SelectStatement {
    let mut query = Query::select();
    query.columns(["id", "name", "description", "image", "pull"]).expr(Expr::val(reason));
    query.from("execution_environments");
    query
}

pub(super) async fn by_id(db: &CoreDb, id: i64, reason: String) -> Result<Option<Environment>, ApiError> {
    let mut query = environments(&reason);
    query.and_where(Expr::col("id").eq(id));
    Ok(db.optional(&query).await?.map(|row| Environment::read(&row)).transpose()?)
}

impl Environment {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.at(0)?,
            name: row.at(1)?,
            description: row.at(2)?,
            image: row.at(3)?,
            pull: row.at(4)?,
            reason: row.at(5)?,
        })
    }
}

/// What is not made of a template, and may say itself in which image it runs.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) enum EnvironmentOf {
    /// It was chosen when it was started.
    Chosen(i64),
    /// An inventory source says it.
    Source(i64),
    /// Nobody does: the inventory's organization, or what all have.
    Inventory,
}

/// Columns of a job on an inventory: its image, why this one, and the inventory's organization.
pub(in crate::http) async fn stamped(
    db: &CoreDb,
    of: EnvironmentOf,
    inventory: i64,
) -> Result<Vec<(&'static str, Value)>, ApiError> {
    let own = match of {
        EnvironmentOf::Chosen(id) => by_id(db, id, "it was chosen at launch".to_owned()).await?,
        EnvironmentOf::Source(id) => by_id(db, id, "the inventory source names it".to_owned()).await?,
        EnvironmentOf::Inventory => None,
    };
    let found = match own {
        Some(own) => Some(own),
        None => {
            let organization = inventory_default(db, inventory).await?;
            resolve(db, Chain { inventory_organization: organization, ..Chain::default() }).await?
        }
    };
    let mut query = Query::select();
    query.column("organization_id").from("inventories").and_where(Expr::col("id").eq(inventory));
    let organization: Option<i64> = db.optional(&query).await?.map(|row| row.at(0)).transpose()?;
    let text = |text: fn(&Environment) -> &String| found.as_ref().map(text).cloned().into();
    Ok(vec![
        ("execution_environment_id", found.as_ref().map(|found| found.id).into()),
        ("image", text(|found| &found.image)),
        ("pull", text(|found| &found.pull)),
        ("image_reason", text(|found| &found.reason)),
        ("organization_id", organization.into()),
    ])
}

/// The image a job of this template would run in now, as `resolved_environment` shows it.
pub(in crate::http) async fn resolved(db: &CoreDb, template: i64) -> Result<Value, ApiError> {
    let mut query = read::source(&JOB_TEMPLATES, BASE);
    query.and_where(Expr::col((BASE, "id")).eq(template));
    add_chain(&mut query);
    let Some(row) = db.optional(&query).await? else { return Ok(Value::Null) };
    Ok(resolve(db, Chain::read(&row)?).await?.map_or(Value::Null, |environment| {
        json!({
            "id": environment.id,
            "name": environment.name,
            "description": environment.description,
            "image": environment.image,
        })
    }))
}
