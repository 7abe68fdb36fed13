//! An update of a project: our own playbook, and the tree it goes on from.

use sea_query::{Expr, ExprTrait, JoinType, Order, Query};

use super::{Error, Made, Source, limits, task_environment};
use crate::job;
use crate::project_update::{Galaxy, Login, Scm, Unusable, Update};
use crate::reconcile::Context;
use crate::store::core::Error as StoreError;
use crate::store::updates;
use crate::vault::Secret;

pub(super) async fn load(context: &Context, id: i64) -> Result<Made, Error> {
    let mut select = Query::select();
    select.columns(["scm_type", "scm_url", "scm_branch", "scm_refspec", "scm_clean", "scm_track_submodules"]);
    select.columns(["job_tags", "timeout"]).from("unified_jobs").and_where(Expr::col("id").eq(id));
    let row = context.core.optional(select).await?.ok_or(StoreError::Reference)?;
    let scm_type: String = row.value("scm_type")?;
    let scm = Scm::parse(&scm_type).ok_or(Unusable::Type(scm_type))?;
    let credentials = job::credentials(&context.core, &context.vault, id).await?;
    let update = Update {
        id,
        scm,
        url: row.value("scm_url")?,
        branch: row.value("scm_branch")?,
        refspec: row.value("scm_refspec")?,
        clean: row.value("scm_clean")?,
        track_submodules: row.value("scm_track_submodules")?,
        tags: row.value("job_tags")?,
        limits: limits(context, row.value("timeout")?, "DEFAULT_PROJECT_UPDATE_TIMEOUT").await?,
        env: task_environment(context).await?,
        galaxy: galaxy(context, id, &credentials).await?,
        signed_by: credentials.iter().find(|found| found.kind == "cryptography").map(key),
        login: credentials.iter().find(|found| found.kind == "scm").map(login).unwrap_or_default(),
    };
    let base = match scm.builds_on_last() {
        true => updates::base(&context.core, id).await?,
        false => None,
    };
    Ok(Made { run: update.run()?, tree: base.map_or(Source::Empty, |base| Source::stored(context, base)) })
}

fn login(found: &job::Credential) -> Login {
    let text = |name: &str| found.inputs.get(name).map(Secret::expose).unwrap_or_default().to_owned();
    Login {
        username: text("username"),
        password: text("password"),
        ssh_key_data: text("ssh_key_data"),
        ssh_key_unlock: text("ssh_key_unlock"),
    }
}

fn key(found: &job::Credential) -> String {
    found.inputs.get("gpg_public_key").map(Secret::expose).unwrap_or_default().to_owned()
}

/// The servers of roles and collections, in the order of the organization.
async fn galaxy(
    context: &Context,
    id: i64,
    credentials: &[job::Credential],
) -> Result<Vec<Galaxy>, StoreError> {
    let mut query = Query::select();
    query.column(("g", "credential_id")).from_as("organization_galaxy_credentials", "g");
    let of = Expr::col(("j", "organization_id")).equals(("g", "organization_id"));
    query.join_as(JoinType::InnerJoin, "unified_jobs", "j", of);
    query.and_where(Expr::col(("j", "id")).eq(id)).order_by(("g", "id"), Order::Asc);
    let mut servers = Vec::new();
    for row in context.core.all(&query).await? {
        let credential: i64 = row.at(0)?;
        let Some(found) = credentials.iter().find(|found| found.id == credential) else { continue };
        let text = |name: &str| found.inputs.get(name).map(Secret::expose).unwrap_or_default().to_owned();
        servers.push(Galaxy { url: text("url"), auth_url: text("auth_url"), token: text("token") });
    }
    Ok(servers)
}
