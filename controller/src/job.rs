//! What happens to a job's row, apart from running it: canceling, ending, and the credentials it was given.

use std::collections::{BTreeMap, BTreeSet};

use sea_query::{Expr, ExprTrait, JoinType, Query, SelectStatement};
use serde_json::{Map, Value};

use crate::kind::Kind;
use crate::lookup;
use crate::store::core::{CoreDb, Error as StoreError, Row, WriteTx};
use crate::store::updates;
use crate::vault::{DecryptError, Secret, Vault};

/// Why the credentials of a job cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The database.
    #[error("cannot read the credentials of job {job}")]
    Store {
        /// The job.
        job: i64,
        /// What the database said.
        #[source]
        source: StoreError,
    },
    /// A secret that is kept elsewhere was not found there.
    #[error("cannot look up field {field} of credential {credential}")]
    Lookup {
        /// The credential.
        credential: i64,
        /// The field.
        field: String,
        /// Why.
        #[source]
        source: lookup::Error,
    },
    /// A secret does not open.
    #[error("cannot open field {field} of credential {credential}")]
    Sealed {
        /// The credential.
        credential: i64,
        /// The field.
        field: String,
        /// Why.
        #[source]
        source: DecryptError,
    },
}

/// A credential with its secrets open, for the private part of a payload.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Its id.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// The family of its type: `ssh`, `vault`, `cloud`.
    pub kind: String,
    /// The word of its type: `ssh`, `aws`; none for types that people made.
    pub namespace: Option<String>,
    /// Text inputs, secret or not.
    pub inputs: BTreeMap<String, Secret>,
    /// Inputs that are true or false.
    pub flags: BTreeMap<String, bool>,
    /// Names of the inputs that were sealed: their values are masked wherever they would show.
    pub sealed: BTreeSet<String>,
    /// `fields` of its type.
    pub fields: Vec<Value>,
    /// What its type puts into jobs.
    pub injectors: Value,
}

/// Where a setting that people change by the API is kept among those of the database.
pub fn setting(name: &str) -> String {
    format!("api.{name}")
}

/// States of a job that has not ended.
pub const ACTIVE: [&str; 4] = ["new", "pending", "waiting", "running"];

/// Whether a job with this status has not ended.
pub fn is_active(status: &str) -> bool {
    ACTIVE.contains(&status)
}

/// The first line of a job's output: what it ran in.
pub fn header(image: &str) -> String {
    format!("Execution environment: {image}")
}

/// Notes that a job is to stop; false if it is over. One that no node has yet is canceled at once; of the others the
/// reconciler tells the node. Whoever moves a job on from `pending` must therefore look at its status in the
/// transaction that does so.
///
/// # Errors
/// What the database says.
pub async fn cancel(tx: &mut WriteTx, job: i64) -> Result<bool, StoreError> {
    let now = jiff::Timestamp::now().as_microsecond();
    let mut ended = Query::update();
    ended.table("unified_jobs").values([
        ("status", "canceled".into()),
        ("failed", true.into()),
        ("finished", now.into()),
        ("canceled_on", now.into()),
        ("cancel_flag", true.into()),
        ("cancel_requested_at", now.into()),
        ("modified", now.into()),
        ("event_processing_finished", true.into()),
        ("job_explanation", "The job was canceled before it started.".into()),
    ]);
    ended.and_where(Expr::col("id").eq(job)).and_where(Expr::col("status").is_in(["new", "pending"]));
    if tx.execute(&ended).await? > 0 {
        conclude(tx, job).await?;
        return Ok(true);
    }
    let mut asked = Query::update();
    asked.table("unified_jobs").values([
        ("cancel_flag", true.into()),
        ("cancel_requested_at", now.into()),
        ("canceled_on", now.into()),
        ("modified", now.into()),
    ]);
    asked.and_where(Expr::col("id").eq(job)).and_where(Expr::col("status").is_in(["waiting", "running"]));
    Ok(tx.execute(&asked).await? > 0)
}

/// Notes on its template how a job ended, does what else the end of its kind means, and tells who watches. To be called in
/// the transaction that ends the job, on whatever way it came to its end.
///
/// # Errors
/// What the database says.
pub async fn conclude(tx: &mut WriteTx, job: i64) -> Result<(), StoreError> {
    let mut query = Query::select();
    query.columns(["unified_job_template_id", "status", "failed", "finished", "inventory_source_id", "kind"]);
    query.from("unified_jobs").and_where(Expr::col("id").eq(job));
    let Some(row) = tx.optional(&query).await? else { return Ok(()) };
    tx.job_changed(job, &row.at::<String>(1)?);
    if let Some(source) = row.at::<Option<i64>>(4)? {
        let mut update = Query::update();
        update.table("inventory_sources").value("last_update_failed", row.at::<bool>(2)?);
        update.value("last_updated", row.at::<Option<i64>>(3)?);
        tx.execute(update.and_where(Expr::col("id").eq(source))).await?;
    }
    // What was looked up for it is needed no more.
    let mut looked_up = Query::delete();
    tx.execute(looked_up.from_table("job_lookups").and_where(Expr::col("id").eq(job))).await?;
    let is_templates = match Kind::parse(&row.at::<String>(5)?) {
        Some(Kind::ProjectUpdate) => updates::concluded(tx, job).await?,
        _ => true,
    };
    if !is_templates {
        return Ok(());
    }
    let Some(template) = row.at::<Option<i64>>(0)? else { return Ok(()) };
    let mut update = Query::update();
    update.table("unified_job_templates").values([
        ("last_job_id", job.into()),
        ("status", row.at::<String>(1)?.into()),
        ("last_job_failed", row.at::<bool>(2)?.into()),
        ("last_job_run", row.at::<Option<i64>>(3)?.into()),
    ]);
    tx.execute(update.and_where(Expr::col("id").eq(template))).await.map(drop)
}

/// The credentials of a job, opened.
///
/// # Errors
/// [`CredentialError`] names the credential and field that does not open.
pub async fn credentials(db: &CoreDb, vault: &Vault, job: i64) -> Result<Vec<Credential>, CredentialError> {
    let mut query = columns();
    let given = Expr::col(("c", "id")).equals(("p", "credential_id"));
    query.join_as(JoinType::InnerJoin, "unified_job_credentials", "p", given);
    query.and_where(Expr::col(("p", "unified_job_id")).eq(job));
    open(db, vault, job, &query).await
}

/// The credential for the registry of a job's image, opened; none when its execution environment has none.
///
/// # Errors
/// As [`credentials`].
pub async fn registry(db: &CoreDb, vault: &Vault, job: i64) -> Result<Option<Credential>, CredentialError> {
    let mut query = columns();
    let of_image = Expr::col(("c", "id")).equals(("e", "credential_id"));
    query.join_as(JoinType::InnerJoin, "execution_environments", "e", of_image);
    let of_job = Expr::col(("e", "id")).equals(("j", "execution_environment_id"));
    query.join_as(JoinType::InnerJoin, "unified_jobs", "j", of_job);
    query.and_where(Expr::col(("j", "id")).eq(job));
    Ok(open(db, vault, job, &query).await?.into_iter().next())
}

fn columns() -> SelectStatement {
    let mut query = Query::select();
    query.columns(["id", "name", "inputs"].map(|column| ("c", column)));
    query.columns([("t", "kind"), ("t", "namespace"), ("t", "inputs"), ("t", "injectors")]);
    query.from_as("credentials", "c");
    let of_type = Expr::col(("t", "id")).equals(("c", "credential_type_id"));
    query.join_as(JoinType::InnerJoin, "credential_types", "t", of_type);
    query.order_by(("c", "id"), sea_query::Order::Asc);
    query
}

async fn open(
    db: &CoreDb,
    vault: &Vault,
    job: i64,
    query: &SelectStatement,
) -> Result<Vec<Credential>, CredentialError> {
    let store = |source| CredentialError::Store { job, source };
    let mut credentials = Vec::new();
    for row in db.all(query).await.map_err(store)? {
        let id: i64 = row.at(0).map_err(store)?;
        let stored: Value = serde_json::from_str(&row.at::<String>(2).map_err(store)?).unwrap_or_default();
        let mut credential = Credential {
            id,
            name: row.at(1).map_err(store)?,
            kind: row.at(3).map_err(store)?,
            namespace: row.at(4).map_err(store)?,
            inputs: BTreeMap::new(),
            flags: BTreeMap::new(),
            sealed: BTreeSet::new(),
            fields: json(&row, 5).map_err(store)?["fields"].as_array().cloned().unwrap_or_default(),
            injectors: json(&row, 6).map_err(store)?,
        };
        for (field, value) in stored.as_object().into_iter().flatten() {
            match value {
                Value::String(text) if Vault::is_sealed(text) => {
                    let open = vault.decrypt("credentials", id, field, text);
                    let secret = open.map_err(|source| CredentialError::Sealed {
                        credential: id,
                        field: field.clone(),
                        source,
                    })?;
                    credential.sealed.insert(field.clone());
                    credential.inputs.insert(field.clone(), secret);
                }
                Value::String(text) => {
                    credential.inputs.insert(field.clone(), Secret::from(text.clone()));
                }
                Value::Bool(flag) => {
                    credential.flags.insert(field.clone(), *flag);
                }
                _ => {}
            }
        }
        credentials.push(credential);
    }
    lookup::fill::fill(db, vault, job, &mut credentials).await?;
    Ok(credentials)
}

/// What was JSON when it was stored; damage is as nothing.
fn json(row: &Row, column: usize) -> Result<Value, StoreError> {
    Ok(serde_json::from_str(&row.at::<String>(column)?).unwrap_or_default())
}

impl Credential {
    /// Its inputs as injectors take them: open texts, and truths.
    pub fn values(&self) -> Map<String, Value> {
        let texts = self.inputs.iter().map(|(name, text)| (name.clone(), text.expose().into()));
        texts.chain(self.flags.iter().map(|(name, flag)| (name.clone(), (*flag).into()))).collect()
    }

    /// Texts that are never shown.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        self.sealed.iter().filter_map(|name| self.inputs.get(name)).map(Secret::expose)
    }
}

/// The passwords that a launch brought for what its credentials ask for: `ssh_password`, `become_password`,
/// `ssh_key_unlock`, `vault_password`, `vault_password.ID`.
///
/// # Errors
/// As [`credentials`].
pub async fn start_passwords(
    db: &CoreDb,
    vault: &Vault,
    job: i64,
) -> Result<BTreeMap<String, Secret>, CredentialError> {
    unsealed(db, vault, job, "start_args").await
}

/// The answers to a survey that do not show, by variable.
///
/// # Errors
/// As [`credentials`].
pub async fn survey_passwords(
    db: &CoreDb,
    vault: &Vault,
    job: i64,
) -> Result<BTreeMap<String, Secret>, CredentialError> {
    unsealed(db, vault, job, "survey_passwords").await
}

async fn unsealed(
    db: &CoreDb,
    vault: &Vault,
    job: i64,
    column: &'static str,
) -> Result<BTreeMap<String, Secret>, CredentialError> {
    let store = |source| CredentialError::Store { job, source };
    let mut query = Query::select();
    query.column(column).from("unified_jobs").and_where(Expr::col("id").eq(job));
    let row = db.optional(&query).await.map_err(store)?;
    let sealed = row.map(|row| row.at::<Option<String>>(0)).transpose().map_err(store)?.flatten();
    let Some(sealed) = sealed.filter(|sealed| !sealed.is_empty()) else { return Ok(BTreeMap::new()) };
    let open = vault
        .decrypt("unified_jobs", job, column, &sealed)
        .map_err(|source| CredentialError::Sealed { credential: 0, field: column.to_owned(), source })?;
    let passwords: BTreeMap<String, String> = serde_json::from_str(open.expose()).unwrap_or_default();
    Ok(passwords.into_iter().map(|(name, text)| (name, Secret::from(text))).collect())
}
