//! Fills in what the credentials of a job look up elsewhere. Each secret is looked up once for a job; what came is kept, sealed,
//! until the job is over, so that whatever reads the job's credentials later (to hide them in its output, after a restart) has
//! the very same.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use sea_query::{Expr, ExprTrait, JoinType, OnConflict, Order, Query};
use serde_json::{Map, Value};

use super::{Source, resolve};
use crate::job::{ACTIVE, Credential, CredentialError};
use crate::store::core::{Class, CoreDb, Error as StoreError};
use crate::vault::{Secret, Vault};

/// The field that what was looked up for a job is sealed for.
pub const FIELD: &str = "sealed";

/// Where one input of a credential comes from.
struct Wanted {
    target: i64,
    field: String,
    metadata: Map<String, Value>,
    source: i64,
    inputs: Value,
    namespace: String,
}

/// Fills in the inputs that are looked up.
///
/// # Errors
/// [`CredentialError`] names the credential and the input.
pub async fn fill(
    db: &CoreDb,
    vault: &Vault,
    job: i64,
    credentials: &mut [Credential],
) -> Result<(), CredentialError> {
    if credentials.is_empty() {
        return Ok(());
    }
    let store = |source| CredentialError::Store { job, source };
    let ids = credentials.iter().map(|credential| credential.id).collect();
    let wanted = wanted(db, ids).await.map_err(store)?;
    if wanted.is_empty() {
        return Ok(());
    }
    let mut known = kept(db, vault, job).await?;
    let before = known.len();
    for wanted in &wanted {
        let name = format!("{}.{}", wanted.target, wanted.field);
        if let Entry::Vacant(place) = known.entry(name) {
            place.insert(looked_up(vault, wanted).await?);
        }
    }
    if known.len() > before {
        keep(db, vault, job, &known).await.map_err(store)?;
    }
    for credential in credentials {
        for wanted in wanted.iter().filter(|wanted| wanted.target == credential.id) {
            let Some(secret) = known.get(&format!("{}.{}", wanted.target, wanted.field)) else { continue };
            credential.sealed.insert(wanted.field.clone());
            credential.inputs.insert(wanted.field.clone(), secret.clone());
        }
    }
    Ok(())
}

async fn wanted(db: &CoreDb, credentials: Vec<i64>) -> Result<Vec<Wanted>, StoreError> {
    let mut query = Query::select();
    query.columns([("s", "target_credential_id"), ("s", "input_field_name"), ("s", "metadata")]);
    query.columns([("c", "id"), ("c", "inputs")]).column(("t", "namespace"));
    query.from_as("credential_input_sources", "s");
    let source = Expr::col(("c", "id")).equals(("s", "source_credential_id"));
    query.join_as(JoinType::InnerJoin, "credentials", "c", source);
    let kind = Expr::col(("t", "id")).equals(("c", "credential_type_id"));
    query.join_as(JoinType::InnerJoin, "credential_types", "t", kind);
    query.and_where(Expr::col(("s", "target_credential_id")).is_in(credentials));
    query.order_by(("s", "id"), Order::Asc);
    let mut wanted = Vec::new();
    for row in db.all(&query).await? {
        wanted.push(Wanted {
            target: row.at(0)?,
            field: row.at(1)?,
            metadata: serde_json::from_str(&row.at::<String>(2)?).unwrap_or_default(),
            source: row.at(3)?,
            inputs: serde_json::from_str(&row.at::<String>(4)?).unwrap_or_default(),
            namespace: row.at::<Option<String>>(5)?.unwrap_or_default(),
        });
    }
    Ok(wanted)
}

async fn looked_up(vault: &Vault, wanted: &Wanted) -> Result<Secret, CredentialError> {
    let inputs = opened(vault, wanted.source, &wanted.inputs)?;
    let source = Source { namespace: &wanted.namespace, inputs: &inputs, metadata: &wanted.metadata };
    resolve(source).await.map_err(|source| CredentialError::Lookup {
        credential: wanted.target,
        field: wanted.field.clone(),
        source,
    })
}

/// The stored inputs of a credential with its secrets open.
///
/// # Errors
/// [`CredentialError::Sealed`] names the field that does not open.
pub fn opened(vault: &Vault, credential: i64, stored: &Value) -> Result<Map<String, Value>, CredentialError> {
    let mut inputs = Map::new();
    for (field, value) in stored.as_object().into_iter().flatten() {
        let value = match value.as_str().filter(|text| Vault::is_sealed(text)) {
            Some(text) => {
                let open = vault.decrypt("credentials", credential, field, text);
                let sealed = |source| CredentialError::Sealed { credential, field: field.clone(), source };
                open.map_err(sealed)?.expose().into()
            }
            None => value.clone(),
        };
        inputs.insert(field.clone(), value);
    }
    Ok(inputs)
}

/// What was looked up for a job before.
async fn kept(db: &CoreDb, vault: &Vault, job: i64) -> Result<BTreeMap<String, Secret>, CredentialError> {
    let store = |source| CredentialError::Store { job, source };
    let mut query = Query::select();
    query.column("sealed").from("job_lookups").and_where(Expr::col("id").eq(job));
    let Some(row) = db.optional(&query).await.map_err(store)? else { return Ok(BTreeMap::new()) };
    let sealed: String = row.at(0).map_err(store)?;
    let open = vault.decrypt("job_lookups", job, FIELD, &sealed).map_err(|source| {
        CredentialError::Sealed { credential: 0, field: "job_lookups".to_owned(), source }
    })?;
    let texts: BTreeMap<String, String> = serde_json::from_str(open.expose()).unwrap_or_default();
    Ok(texts.into_iter().map(|(name, text)| (name, Secret::from(text))).collect())
}

/// Keeps what was looked up for as long as the job is not over.
async fn keep(
    db: &CoreDb,
    vault: &Vault,
    job: i64,
    known: &BTreeMap<String, Secret>,
) -> Result<(), StoreError> {
    let texts: Map<String, Value> =
        known.iter().map(|(name, secret)| (name.clone(), secret.expose().into())).collect();
    let sealed = vault.encrypt("job_lookups", job, FIELD, &Value::Object(texts).to_string());
    let mut active = Query::select();
    active.column("id").expr(Expr::val(sealed)).from("unified_jobs");
    active.and_where(Expr::col("id").eq(job)).and_where(Expr::col("status").is_in(ACTIVE));
    let mut insert = Query::insert();
    insert.into_table("job_lookups").columns(["id", "sealed"]);
    insert.on_conflict(OnConflict::column("id").update_column("sealed").to_owned());
    if insert.select_from(active).is_err() {
        return Ok(());
    }
    let mut tx = db.begin(Class::Intent).await?;
    tx.execute(&insert).await?;
    tx.commit().await
}
