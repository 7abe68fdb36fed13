//! The SQLite engine: a file per month. All that is SQLite's own stands here — pragmas, index hints, the form of a
//! statement on its way to the driver — so that another engine is another module with these names.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sea_query::{Query, SqliteQueryBuilder, Value};
use sea_query_sqlx::SqlxBinder;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool,
    SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Connection, Executor, IntoArguments, Row as _};

use super::schema::{self, EVENT, EVENT_FAILED};
use super::{Error, Month};

/// Tells our files from other SQLite files: "PlxE".
const APPLICATION_ID: i64 = 0x506c_7845;
/// How long a statement waits for another process's lock before it is an error. The writer then tries again.
pub(super) const BUSY: Duration = Duration::from_secs(5);
/// Statements kept prepared: every number of rows of an INSERT is one of its own.
const STATEMENTS: usize = 300;
/// Connections that read one month at the same time.
const READERS: u32 = 4;
/// Rows of one INSERT, from large to small: few sizes, so that all of them stay prepared.
const ROWS: [usize; 5] = [128, 32, 8, 2, 1];

/// The function that finds a text in another: `instr(text, part)`, from 1.
pub(super) const POSITION: &str = "instr";

/// Where the months are.
#[derive(Debug, Clone)]
pub(super) struct Engine {
    dir: PathBuf,
}

impl Engine {
    /// Opens a directory, and refuses it when a file in it is of a newer version.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Directory { dir: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "sqlite") {
                check_header(&path)?;
            }
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Opens a month for reading; `None` when there is no such month.
    pub(super) async fn reader(&self, month: Month) -> Result<Option<Reader>, Error> {
        let path = self.path(month);
        if !path.exists() {
            return Ok(None);
        }
        // Not opened read-only: the first reader after a crash has to be able to recover the log.
        let options =
            options(&path).create_if_missing(false).pragma("query_only", "on").pragma("cache_size", "-16384");
        let pool = SqlitePoolOptions::new()
            .max_connections(READERS)
            .idle_timeout(Duration::from_secs(60))
            .connect_lazy_with(options);
        let failed = |source| Error::Open { file: path.clone(), source };
        // In one transaction, so that both are of one moment: a writer may be just making the file.
        let mut both = pool.begin().await.map_err(failed)?;
        let application =
            sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *both).await.map_err(failed)?;
        let version =
            sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *both).await.map_err(failed)?;
        both.rollback().await.map_err(failed)?;
        check_version(&path, application, version)?;
        if application == 0 {
            return Ok(None);
        }
        Ok(Some(Reader { pool, path: path.into() }))
    }

    /// Opens a month for writing and makes it when it is new.
    pub(super) async fn writer(&self, month: Month) -> Result<Writer, Error> {
        let path = self.path(month);
        let failed = |source| Error::Open { file: path.clone(), source };
        let options = options(&path)
            .create_if_missing(true)
            .page_size(4096)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", "1000")
            .pragma("cache_size", "-65536");
        let mut connection = options.connect().await.map_err(failed)?;
        prepare(&mut connection, &path).await?;
        Ok(Writer { connection, texts: Texts::default(), path: path.into() })
    }

    fn path(&self, month: Month) -> PathBuf {
        self.dir.join(format!("{month}.sqlite"))
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY)
        .statement_cache_capacity(STATEMENTS)
        .disable_statement_logging()
}

/// Reads the version where SQLite keeps it, without opening the file: a start must not wait for recovery of years.
fn check_header(path: &Path) -> Result<(), Error> {
    use std::io::Read;
    let mut header = [0; 72];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut header));
    if read.is_err() {
        // Empty or short: SQLite itself will say what it is.
        return Ok(());
    }
    let number = |at: usize| header[at..].first_chunk().map_or(0, |four| u32::from_be_bytes(*four));
    check_version(path, number(68).into(), number(60).into())
}

fn check_version(path: &Path, application: i64, version: i64) -> Result<(), Error> {
    let file = path.to_owned();
    match (application, version) {
        (0, 0) => Ok(()),
        (APPLICATION_ID, version) if version <= schema::VERSION => Ok(()),
        (APPLICATION_ID, version) => Err(Error::Newer { file, version, known: schema::VERSION }),
        _ => Err(Error::Foreign { file }),
    }
}

/// Makes the tables of an empty file, checks the version of another.
async fn prepare(connection: &mut SqliteConnection, path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Open { file: path.to_owned(), source };
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let application =
        sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *transaction).await.map_err(failed)?;
    let version =
        sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *transaction).await.map_err(failed)?;
    check_version(path, application, version)?;
    if application != 0 {
        return Ok(());
    }
    let mut script = Vec::new();
    for mut definition in schema::tables() {
        if definition.clustered {
            definition.table.extra("WITHOUT ROWID");
        }
        script.push(definition.table.to_string(SqliteQueryBuilder));
    }
    script.extend(schema::indexes().iter().map(|index| index.to_string(SqliteQueryBuilder)));
    script.push(format!("PRAGMA user_version = {}", schema::VERSION));
    script.push(format!("PRAGMA application_id = {APPLICATION_ID}"));
    for sql in script {
        // Built from constants of this program.
        transaction.execute(AssertSqlSafe(sql)).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)
}

/// A statement ready for the driver.
pub(super) struct Statement {
    sql: String,
    arguments: SqliteArguments,
}

/// Takes a statement of the builder.
pub(super) fn statement(query: &impl SqlxBinder) -> Statement {
    let (sql, values) = query.build_sqlx(SqliteQueryBuilder);
    Statement { sql, arguments: values.into_arguments() }
}

impl Statement {
    /// Makes the planner walk the index of failed events: without statistics it would take the key, and scan a job that
    /// had one failure in a million. The builder has no word for it.
    pub(super) fn by_failed_index(mut self) -> Self {
        let table = format!(r#" FROM "{EVENT}""#);
        self.sql = self.sql.replacen(&table, &format!(r#"{table} INDEXED BY "{EVENT_FAILED}""#), 1);
        self
    }
}

/// Values of the rows of one INSERT, in the order of the columns.
#[derive(Default)]
pub(super) struct Binder(SqliteArguments);

impl Binder {
    pub(super) fn integer(&mut self, value: i64) -> &mut Self {
        self.add(value)
    }

    pub(super) fn maybe_integer(&mut self, value: Option<i64>) -> &mut Self {
        self.add(value)
    }

    pub(super) fn blob(&mut self, value: &[u8]) -> &mut Self {
        self.add(value.to_vec())
    }

    pub(super) fn maybe_blob(&mut self, value: Option<&[u8]>) -> &mut Self {
        self.add(value.map(<[u8]>::to_vec))
    }

    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.add(value.to_owned())
    }

    fn add<'t, T: sqlx::Encode<'t, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>>(
        &mut self,
        value: T,
    ) -> &mut Self {
        self.0.add(value).expect("integers, bytes and text always encode");
        self
    }
}

/// An INSERT of any number of rows. A conflict with `key` replaces what stands there, or is ignored if nothing else is
/// in the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) table: &'static str,
    pub(super) columns: &'static [&'static str],
    pub(super) key: &'static [&'static str],
}

/// Texts of INSERTs, built once for each number of rows.
#[derive(Default)]
struct Texts(HashMap<(Shape, usize), Arc<str>>);

impl Texts {
    fn insert(&mut self, shape: Shape, rows: usize) -> Arc<str> {
        let text = self.0.entry((shape, rows)).or_insert_with(|| {
            let mut query = Query::insert();
            query.into_table(shape.table).columns(shape.columns.iter().copied());
            for _ in 0..rows {
                let values = shape.columns.iter().map(|_| Value::BigInt(None).into());
                query.values(values).expect("as many values as columns");
            }
            if !shape.key.is_empty() {
                let mut conflict = sea_query::OnConflict::columns(shape.key.iter().copied());
                let rest: Vec<_> =
                    shape.columns.iter().copied().filter(|column| !shape.key.contains(column)).collect();
                if rest.is_empty() {
                    conflict.do_nothing()
                } else {
                    conflict.update_columns(rest)
                };
                query.on_conflict(conflict);
            }
            query.build(SqliteQueryBuilder).0.into()
        });
        Arc::clone(text)
    }
}

/// The one connection that writes a month.
pub(super) struct Writer {
    connection: SqliteConnection,
    texts: Texts,
    path: Arc<Path>,
}

impl Writer {
    /// Begins a transaction that nobody else can write beside. Dropped, it is undone.
    pub(super) async fn begin(&mut self) -> Result<Transaction<'_>, Error> {
        let inner = self.connection.begin_with("BEGIN IMMEDIATE").await;
        let inner = inner.map_err(|source| Error::Write { file: self.path.to_path_buf(), source })?;
        Ok(Transaction { inner, texts: &mut self.texts, path: &self.path })
    }

    /// Folds the log into the file and closes it.
    pub(super) async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::warn!(file = %self.path.display(), error = &error as &dyn std::error::Error, "event file closed with an error");
        }
    }
}

/// A transaction at work.
pub(super) struct Transaction<'a> {
    inner: sqlx::Transaction<'a, sqlx::Sqlite>,
    texts: &'a mut Texts,
    path: &'a Path,
}

impl Transaction<'_> {
    pub(super) async fn execute(&mut self, statement: Statement) -> Result<u64, Error> {
        // The text comes from the builder.
        let query = sqlx::query_with(AssertSqlSafe(statement.sql), statement.arguments);
        query
            .execute(&mut *self.inner)
            .await
            .map(|done| done.rows_affected())
            .map_err(|source| self.failed(source))
    }

    pub(super) async fn rows(&mut self, statement: Statement) -> Result<Vec<Row>, Error> {
        let query = sqlx::query_with(AssertSqlSafe(statement.sql), statement.arguments);
        let rows = query.fetch_all(&mut *self.inner).await.map_err(|source| self.failed(source))?;
        Ok(rows.into_iter().map(Row).collect())
    }

    /// Inserts `items` in as few statements as the prepared sizes allow.
    pub(super) async fn insert<T>(
        &mut self,
        shape: Shape,
        mut items: &[T],
        bind: impl Fn(&mut Binder, &T),
    ) -> Result<(), Error> {
        while !items.is_empty() {
            let rows = ROWS.into_iter().find(|&rows| rows <= items.len()).unwrap_or(1);
            let (now, later) = items.split_at(rows);
            let mut binder = Binder::default();
            binder.0.reserve(rows * shape.columns.len(), 0);
            now.iter().for_each(|item| bind(&mut binder, item));
            let query = sqlx::query_with(AssertSqlSafe(self.texts.insert(shape, rows)), binder.0);
            query.execute(&mut *self.inner).await.map_err(|source| self.failed(source))?;
            items = later;
        }
        Ok(())
    }

    /// Makes it durable.
    pub(super) async fn commit(self) -> Result<(), Error> {
        let file = self.path.to_owned();
        self.inner.commit().await.map_err(|source| Error::Write { file, source })
    }

    fn failed(&self, source: sqlx::Error) -> Error {
        Error::Write { file: self.path.to_owned(), source }
    }
}

/// Connections that read a month. They never wait for the writer.
#[derive(Clone)]
pub(super) struct Reader {
    pool: SqlitePool,
    path: Arc<Path>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) async fn rows(&self, statement: Statement) -> Result<Vec<Row>, Error> {
        let query = sqlx::query_with(AssertSqlSafe(statement.sql), statement.arguments);
        match query.fetch_all(&self.pool).await {
            Ok(rows) => Ok(rows.into_iter().map(Row).collect()),
            Err(source) => Err(Error::Read { file: self.path.to_path_buf(), source }),
        }
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

/// A row of an answer, by place of the column.
pub(super) struct Row(SqliteRow);

impl Row {
    pub(super) fn integer(&self, column: usize) -> Result<i64, Error> {
        self.0.try_get(column).map_err(Error::Row)
    }

    pub(super) fn maybe_integer(&self, column: usize) -> Result<Option<i64>, Error> {
        self.0.try_get(column).map_err(Error::Row)
    }

    pub(super) fn blob(&self, column: usize) -> Result<Vec<u8>, Error> {
        self.0.try_get(column).map_err(Error::Row)
    }

    pub(super) fn maybe_blob(&self, column: usize) -> Result<Option<Vec<u8>>, Error> {
        self.0.try_get(column).map_err(Error::Row)
    }

    pub(super) fn text(&self, column: usize) -> Result<String, Error> {
        self.0.try_get(column).map_err(Error::Row)
    }

    pub(super) fn maybe_text(&self, column: usize) -> Result<Option<String>, Error> {
        self.0.try_get(column).map_err(Error::Row)
    }
}

/// Whether a failed write may succeed later as it is: a lock, a full disk, trouble with the device.
pub(super) fn is_transient(error: &Error) -> bool {
    let Error::Write { source: sqlx::Error::Database(source), .. } = error else { return false };
    let code = source.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or(0);
    // busy, locked, nomem, readonly, ioerr, full, cantopen, protocol; the low byte is the primary code.
    matches!(code & 0xff, 5..=8 | 10 | 13 | 14 | 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sea_query::{Expr, ExprTrait};

    #[test]
    fn the_index_of_failed_events_is_named_in_the_statement() {
        let mut query = Query::select();
        query.column("counter").from(EVENT).and_where(Expr::col("job").eq(1)).and_where(schema::is_failed());
        let sql = statement(&query).by_failed_index().sql;
        assert!(sql.contains(r#"FROM "event" INDEXED BY "event_failed" WHERE"#), "{sql}");
        let index = schema::indexes()[0].to_string(SqliteQueryBuilder);
        let condition = index.split_once("WHERE ").unwrap().1;
        assert!(sql.contains(condition), "{sql} does not say {condition}");
    }
}
