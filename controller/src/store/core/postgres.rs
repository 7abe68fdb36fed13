//! What is PostgreSQL's own: the lock that only one controller has, and where the version of the schema is.

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions, Postgres};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Transaction};

use super::super::postgres::{Server, is_transient};
use super::{Error, OpenError, Trouble};

/// Readers: as many as the API reads at a time.
pub(super) const READERS: u32 = 8;

/// Number of the advisory lock that the writing connection holds for as long as it lives: "PlxCore".
const LOCK: i64 = 0x50_6c78_436f_7265;

/// How long a start waits for the lock of a controller that was killed just now: its server process ends by itself.
const LOCK_WAIT: &str = "5s";

const TAKE_LOCK: &str = "SELECT pg_advisory_lock($1)";

/// The one connection that writes. Whenever it is made anew it takes the lock first: two controllers on one database
/// would both place its jobs, and one whose connection broke may have been replaced meanwhile.
pub(super) async fn writer(server: &Server) -> Result<PgPool, OpenError> {
    // On a connection of its own at first: a pool would go on trying, and not say why.
    let failed = |error| open_error(server, error);
    let mut first = server.options().connect().await.map_err(failed)?;
    take_lock(&mut first).await.map_err(failed)?;
    first.close().await.map_err(failed)?;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .min_connections(1)
        .acquire_timeout(Duration::from_secs(20))
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(|connection, _| Box::pin(take_lock(connection)))
        .connect_with(server.options())
        .await;
    pool.map_err(failed)
}

async fn take_lock(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let wait = format!("SET lock_timeout = '{LOCK_WAIT}'");
    sqlx::raw_sql(AssertSqlSafe(wait)).execute(&mut *connection).await?;
    sqlx::query(TAKE_LOCK).bind(LOCK).execute(&mut *connection).await?;
    sqlx::raw_sql("SET lock_timeout = 0").execute(&mut *connection).await?;
    Ok(())
}

fn open_error(server: &Server, error: sqlx::Error) -> OpenError {
    let path = server.place().into();
    let code = error.as_database_error().and_then(|db| db.code()).map(|code| code.into_owned());
    match code.as_deref() {
        Some("55P03") => OpenError::InUse { path },
        _ => OpenError::Open { path, source: Error::from(error) },
    }
}

pub(super) async fn schema_version(pool: &PgPool) -> Result<i64, sqlx::Error> {
    sqlx::query("CREATE TABLE IF NOT EXISTS schema_version (version bigint NOT NULL)").execute(pool).await?;
    sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM schema_version").fetch_one(pool).await
}

pub(super) async fn set_schema_version(
    tx: &mut Transaction<'static, Postgres>,
    version: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM schema_version").execute(&mut **tx).await?;
    sqlx::query("INSERT INTO schema_version (version) VALUES ($1)")
        .bind(version)
        .execute(&mut **tx)
        .await
        .map(drop)
}

/// Moves the sequence of a table's ids behind the highest one in it. It never goes back: ids are not given twice.
pub(super) async fn advance_ids(
    tx: &mut Transaction<'static, Postgres>,
    table: &'static str,
) -> Result<(), sqlx::Error> {
    let sql = format!(
        "SELECT setval(pg_get_serial_sequence('{table}', 'id'), greatest((SELECT max(id) FROM {table}), \
         (SELECT last_value FROM {table}_id_seq)))"
    );
    sqlx::query(AssertSqlSafe(sql)).execute(&mut **tx).await.map(drop)
}

/// What keeps the server from doing just now what it may do later.
pub(super) fn trouble(error: &sqlx::Error) -> Option<Trouble> {
    if !is_transient(error) {
        return None;
    }
    let code = error.as_database_error().and_then(|error| error.code());
    Some(match code.as_deref() {
        Some("55P03" | "57014") => Trouble::Locked,
        Some("53100") => Trouble::Full,
        _ => Trouble::Away,
    })
}

/// Whether a regular expression was none for this server.
pub(super) fn is_bad_pattern(error: &dyn sqlx::error::DatabaseError) -> bool {
    error.code().as_deref() == Some("2201B")
}

/// `table.column` list of a unique index that was violated, as SQLite names it.
pub(super) fn duplicate_columns(error: &dyn sqlx::error::DatabaseError) -> Option<String> {
    let error = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>()?;
    let columns = error.detail()?.strip_prefix("Key (")?.split(")=").next()?.to_owned();
    let table = error.table()?;
    Some(columns.split(", ").map(|column| format!("{table}.{column}")).collect::<Vec<_>>().join(", "))
}
