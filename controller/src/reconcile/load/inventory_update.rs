//! An update of an inventory source: `ansible-inventory`, and what it is given to look at.

use std::collections::BTreeMap;

use axum::body::Bytes;
use sea_query::{Expr, ExprTrait, Order, Query};
use tokio::sync::mpsc;

use super::playbook::source_tree;
use super::{Error, Made, Source, inject, limits, variables};
use crate::facts;
use crate::inventory::members::CONSTRUCTED;
use crate::inventory::{self, Script};
use crate::job;
use crate::payload::inventory_update::Update;
use crate::reconcile::Context;
use crate::store::core::Error as StoreError;
use crate::vault::Secret;

pub(super) async fn load(context: &Context, id: i64) -> Result<Made, Error> {
    let mut select = Query::select();
    select.columns(["inventory_source_id", "source", "source_path", "source_vars", "limit", "verbosity"]);
    select.columns(["timeout", "inventory_id", "source_project_id", "tree"]);
    select.from("unified_jobs").and_where(Expr::col("id").eq(id));
    let row = context.core.optional(select).await?.ok_or(StoreError::Reference)?;
    let source: String = row.value("source")?;
    let inventory: Option<i64> = row.value("inventory_id")?;
    let source_vars = variables("source_vars of the source", &row.value::<String>("source_vars")?)?;
    let credentials = job::credentials(&context.core, &context.vault, id).await?;
    let project = credentials.iter().find_map(|found| found.inputs.get("project")).map(Secret::expose);
    let (inputs, facts) = match inventory.filter(|_| source == CONSTRUCTED) {
        Some(inventory) => inputs(context, inventory).await?,
        None => Default::default(),
    };
    let tree = match row.value::<Option<i64>>("source_project_id")? {
        Some(project) if matches!(source.as_str(), "scm" | "file") => {
            source_tree(context, project, row.value("tree")?).await?
        }
        _ => Source::Empty,
    };
    let update = Update {
        id,
        source_id: row.value::<Option<i64>>("inventory_source_id")?.unwrap_or_default(),
        source_path: row.value("source_path")?,
        source_vars,
        limit: row.value("limit")?,
        verbosity: row.value("verbosity")?,
        limits: limits(context, row.value("timeout")?, "DEFAULT_INVENTORY_UPDATE_TIMEOUT").await?,
        injected: inject(context, &credentials).await?,
        cloud_project: project.unwrap_or_default().to_owned(),
        inputs,
        facts,
        source,
    };
    Ok(Made { run: update.run()?, tree })
}

/// Inventories as documents, in order, and facts of hosts, both as JSON text.
type Inputs = (Vec<(i64, String)>, BTreeMap<String, String>);

/// The inventories that one is made of, and the facts of their hosts.
async fn inputs(context: &Context, inventory: i64) -> Result<Inputs, Error> {
    let core = &context.core;
    let mut query = Query::select();
    query.column("input_id").from("inventory_inputs").and_where(Expr::col("inventory_id").eq(inventory));
    let mut documents = Vec::new();
    let mut all = BTreeMap::new();
    for row in core.all(query.order_by("id", Order::Asc)).await? {
        let input: i64 = row.at(0)?;
        let script = Script { hostvars: true, towervars: true, all: false };
        let (to, mut pieces) = mpsc::channel::<Result<Bytes, StoreError>>(inventory::AHEAD);
        let outline = inventory::outline(core, input, script).await?;
        let sent = async {
            outline.send(core, &to).await?;
            drop(to);
            Ok::<(), StoreError>(())
        };
        let read = async {
            let mut text = Vec::new();
            while let Some(piece) = pieces.recv().await {
                text.extend_from_slice(&piece?);
            }
            Ok::<_, StoreError>(text)
        };
        let ((), text) = tokio::try_join!(sent, read)?;
        documents.push((input, String::from_utf8_lossy(&text).into_owned()));
        for (host, known) in facts::of_inventory(core, input).await? {
            all.entry(host).or_insert(known);
        }
    }
    Ok((documents, all))
}
