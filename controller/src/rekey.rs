//! Another master key: everything that is sealed in the database is opened with the old one and sealed with the new one.
//!
//! Done while no controller runs: one that does would go on sealing with the key that it holds in memory. Both keys lie in
//! the vault until the last field is sealed anew, so a crash at any moment loses nothing, the controller starts with either,
//! and the same command goes on where it stopped.

use sea_query::{Expr, ExprTrait, Order, Query};
use serde_json::Value;

use crate::lookup::fill;
use crate::store::core::{Class, CoreDb, Error as StoreError, WriteTx};
use crate::vault::Vault;

/// Rows of one transaction.
const BATCH: u64 = 200;

/// Why a database is not, or not wholly, sealed with the new key. The old key stays; the command can be given again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database.
    #[error("cannot seal the secrets of the database anew")]
    Store(#[from] StoreError),
    /// Fields that open with neither key.
    #[error("{0} sealed fields open with neither key and stay as they are, and so does the old key: {1}")]
    Lost(usize, String),
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    /// Fields that were sealed anew.
    pub fields: u64,
    /// Rows they are in.
    pub rows: u64,
}

/// How the fields of a column are bound to their place.
#[derive(Clone, Copy)]
enum Kept {
    /// The column is sealed text, bound to this name.
    Whole(&'static str),
    /// An object with sealed texts, bound to their names.
    Inputs,
    /// A survey: defaults of its questions, bound to their variables.
    Survey,
    /// Bound to the id of a token; the row is always 0.
    Token,
}

/// Every column that has sealed fields.
const PLACES: &[(&str, &str, Kept)] = &[
    ("credentials", "inputs", Kept::Inputs),
    ("job_templates", "survey_spec", Kept::Survey),
    ("unified_jobs", "start_args", Kept::Whole("start_args")),
    ("unified_jobs", "survey_passwords", Kept::Whole("survey_passwords")),
    ("job_lookups", "sealed", Kept::Whole(fill::FIELD)),
    ("enrolment_tokens", "secret", Kept::Token),
];

/// Seals everything with the vault's newest key. Can be called again at any time, also after it was interrupted.
///
/// # Errors
/// See [`Error`].
pub async fn rekey(db: &CoreDb, vault: &Vault) -> Result<Done, Error> {
    until(db, vault, |_| false).await
}

/// As [`rekey`], and stops after a transaction when `stop` says so: as a crash there would.
async fn until(db: &CoreDb, vault: &Vault, mut stop: impl FnMut(&Done) -> bool) -> Result<Done, Error> {
    let (mut done, mut lost) = (Done::default(), Vec::new());
    for (table, column, kept) in PLACES {
        let mut after = i64::MIN;
        loop {
            let mut tx = db.begin(Class::Bulk).await?;
            let Some(last) =
                batch(&mut tx, vault, (table, column, *kept), after, &mut done, &mut lost).await?
            else {
                break;
            };
            tx.commit().await?;
            if stop(&done) {
                return Ok(done);
            }
            after = last;
        }
    }
    if lost.is_empty() {
        return Ok(done);
    }
    let some: Vec<String> = lost.iter().take(20).cloned().collect();
    Err(Error::Lost(lost.len(), some.join(", ")))
}

/// Seals the next rows of a column anew; the id of the last one, `None` if there were none.
async fn batch(
    tx: &mut WriteTx,
    vault: &Vault,
    (table, column, kept): (&'static str, &'static str, Kept),
    after: i64,
    done: &mut Done,
    lost: &mut Vec<String>,
) -> Result<Option<i64>, Error> {
    let mut query = Query::select();
    query.columns(["id", column]).from(table);
    if matches!(kept, Kept::Token) {
        query.column("token_id");
    }
    query.and_where(Expr::col("id").gt(after)).and_where(Expr::col(column).like("%$plexus$1$%"));
    query.order_by("id", Order::Asc).limit(BATCH);
    let mut last = None;
    for row in tx.all(&query).await? {
        let id: i64 = row.at(0)?;
        let stored: String = row.at(1)?;
        last = Some(id);
        let mut fields = 0;
        let mut again = |row: i64, field: &str, sealed: &str| -> Option<String> {
            if vault.is_current(sealed) {
                return None;
            }
            match vault.decrypt(table, row, field, sealed) {
                Ok(open) => {
                    fields += 1;
                    Some(vault.encrypt(table, row, field, open.expose()))
                }
                Err(_) => {
                    lost.push(format!("{table} {id} {field}"));
                    None
                }
            }
        };
        let fresh = match kept {
            Kept::Whole(field) => again(id, field, &stored),
            Kept::Token => {
                let token: Vec<u8> = row.at(2)?;
                again(0, &crate::enrolment::field(&token), &stored)
            }
            Kept::Inputs => {
                let mut inputs: Value = serde_json::from_str(&stored).unwrap_or_default();
                for (name, value) in inputs.as_object_mut().into_iter().flatten() {
                    if let Some(text) = value.as_str().filter(|text| Vault::is_sealed(text))
                        && let Some(fresh) = again(id, name, text)
                    {
                        *value = fresh.into();
                    }
                }
                Some(inputs.to_string())
            }
            Kept::Survey => {
                let mut spec: Value = serde_json::from_str(&stored).unwrap_or_default();
                for question in spec["spec"].as_array_mut().into_iter().flatten() {
                    let field = crate::survey::field(question["variable"].as_str().unwrap_or_default());
                    if let Some(text) = question["default"].as_str().filter(|text| Vault::is_sealed(text))
                        && let Some(fresh) = again(id, &field, text)
                    {
                        question["default"] = fresh.into();
                    }
                }
                Some(spec.to_string())
            }
        };
        if fields > 0
            && let Some(fresh) = fresh
        {
            let mut update = Query::update();
            update.table(table).value(column, fresh).and_where(Expr::col("id").eq(id));
            tx.execute(&update).await?;
            done.fields += fields;
            done.rows += 1;
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::testing::{Place, on_each_engine};

    on_each_engine! {
        secrets_open_with_the_new_key_alone,
        an_interrupted_change_of_keys_goes_on,
        what_opens_with_neither_key_keeps_the_old_one,
    }

    /// More rows than one transaction takes.
    const ROWS: i64 = BATCH as i64 + 10;

    async fn filled(place: &Place, vault: &Vault) -> CoreDb {
        let db = place.core().await;
        crate::registry::seed(&db).await.unwrap();
        let mut tx = db.begin(Class::Bulk).await.unwrap();
        for id in 1..=ROWS {
            let inputs = json!({"username": "ada", "password": vault.encrypt("credentials", id, "password", "geheim")});
            let mut insert = Query::insert();
            insert.into_table("credentials");
            insert.columns(["id", "name", "credential_type_id", "inputs", "created", "modified"]);
            insert.values_panic([
                id.into(),
                format!("c{id}").into(),
                1.into(),
                inputs.to_string().into(),
                0.into(),
                0.into(),
            ]);
            tx.execute(&insert).await.unwrap();
        }
        let mut template = Query::insert();
        template.into_table("unified_job_templates").columns(["id", "kind", "name", "created", "modified"]);
        template.values_panic([1.into(), "job_template".into(), "t".into(), 0.into(), 0.into()]);
        tx.execute(&template).await.unwrap();
        let sealed = vault.encrypt("job_templates", 1, &crate::survey::field("pin"), "1234");
        let survey =
            json!({"name": "", "spec": [{"variable": "pin", "type": "password", "default": sealed}]});
        let mut own = Query::insert();
        own.into_table("job_templates").columns(["id", "survey_spec"]);
        tx.execute(own.values_panic([1.into(), survey.to_string().into()])).await.unwrap();
        let mut job = Query::insert();
        job.into_table("unified_jobs").columns(["id", "kind", "status", "start_args", "created", "modified"]);
        let start = vault.encrypt("unified_jobs", 1, "start_args", "{}");
        job.values_panic([1.into(), "job".into(), "pending".into(), start.into(), 0.into(), 0.into()]);
        tx.execute(&job).await.unwrap();
        tx.commit().await.unwrap();
        db
    }

    async fn passwords(db: &CoreDb, vault: &Vault) -> usize {
        let mut query = Query::select();
        query.columns(["id", "inputs"]).from("credentials");
        let mut open = 0;
        for row in db.all(&query).await.unwrap() {
            let inputs: Value = serde_json::from_str(&row.at::<String>(1).unwrap()).unwrap();
            let sealed = inputs["password"].as_str().unwrap();
            let secret = vault.decrypt("credentials", row.at(0).unwrap(), "password", sealed);
            open += usize::from(secret.is_ok_and(|secret| secret.expose() == "geheim"));
        }
        open
    }

    async fn secrets_open_with_the_new_key_alone(place: Place) {
        let dir = place.dir().join("secret");
        let before = Vault::open(&dir).unwrap();
        let db = filled(&place, &before).await;
        let vault = Vault::begin_rekey(&dir).unwrap();
        assert_eq!(passwords(&db, &vault).await, ROWS as usize, "both keys open");
        let done = rekey(&db, &vault).await.unwrap();
        assert_eq!((done.fields, done.rows), (ROWS as u64 + 2, ROWS as u64 + 2));
        assert_eq!(rekey(&db, &vault).await.unwrap(), Done::default(), "nothing is left to do");
        Vault::end_rekey(&dir).unwrap();
        let after = Vault::open(&dir).unwrap();
        assert_eq!(passwords(&db, &after).await, ROWS as usize);
        assert_eq!(passwords(&db, &before).await, 0, "the old key opens nothing any more");
        let mut query = Query::select();
        query.column("survey_spec").from("job_templates");
        let spec: String = db.optional(&query).await.unwrap().unwrap().at(0).unwrap();
        let spec: Value = serde_json::from_str(&spec).unwrap();
        let sealed = spec["spec"][0]["default"].as_str().unwrap();
        let pin = after.decrypt("job_templates", 1, &crate::survey::field("pin"), sealed).unwrap();
        assert_eq!(pin.expose(), "1234");
    }

    async fn an_interrupted_change_of_keys_goes_on(place: Place) {
        let dir = place.dir().join("secret");
        let db = filled(&place, &Vault::open(&dir).unwrap()).await;
        let vault = Vault::begin_rekey(&dir).unwrap();
        let some = until(&db, &vault, |_| true).await.unwrap();
        assert_eq!(some.rows, BATCH);
        // A controller that starts now has both keys; the command goes on and makes no third one.
        let started = Vault::open(&dir).unwrap();
        assert_eq!(passwords(&db, &started).await, ROWS as usize);
        let again = Vault::begin_rekey(&dir).unwrap();
        let rest = rekey(&db, &again).await.unwrap();
        assert_eq!(rest.rows, ROWS as u64 + 2 - BATCH);
        Vault::end_rekey(&dir).unwrap();
        assert_eq!(passwords(&db, &Vault::open(&dir).unwrap()).await, ROWS as usize);
    }

    async fn what_opens_with_neither_key_keeps_the_old_one(place: Place) {
        let dir = place.dir().join("secret");
        let db = filled(&place, &Vault::open(&dir).unwrap()).await;
        let stranger = Vault::open(&place.dir().join("other")).unwrap();
        let inputs = json!({"password": stranger.encrypt("credentials", 7, "password", "geheim")});
        let mut update = Query::update();
        update.table("credentials").value("inputs", inputs.to_string()).and_where(Expr::col("id").eq(7_i64));
        let mut tx = db.begin(Class::Bulk).await.unwrap();
        tx.execute(&update).await.unwrap();
        tx.commit().await.unwrap();
        let vault = Vault::begin_rekey(&dir).unwrap();
        let error = rekey(&db, &vault).await.unwrap_err();
        assert!(matches!(error, Error::Lost(1, _)), "{error:?}");
        let error = error.to_string();
        assert!(error.starts_with("1 sealed fields") && error.ends_with("credentials 7 password"), "{error}");
        assert_eq!(passwords(&db, &vault).await, ROWS as usize - 1);
    }
}
