//! The SQLite engine: a file per month. All that is SQLite's own stands here — pragmas, index hints, the form of a
//! statement on its way to the driver — so that another engine is another module with these names.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sea_query::SqliteQueryBuilder;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool,
    SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Connection, Executor};

use super::super::sql;
use super::engine::{self, Row, Shape, Statement};
use super::{Error, Month, schema};

/// Tells our files from other SQLite files: "PlxE".
const APPLICATION_ID: i64 = 0x506c_7845;
/// How long a statement waits for another process's lock before it is an error. The writer then tries again.
pub(super) const BUSY: Duration = Duration::from_secs(5);
/// Statements kept prepared: every number of rows of an INSERT is one of its own.
const STATEMENTS: usize = 300;
/// Connections that read one month at the same time.
const READERS: u32 = 4;
/// Pages that each of them keeps: 8 MiB, as the negative number of KiB that SQLite takes. Whoever reads a long output fills it.
const READER_CACHE: &str = "-8192";
/// Rows of one INSERT, from large to small: few sizes, so that all of them stay prepared.
const ROWS: [usize; 5] = [128, 32, 8, 2, 1];

/// Where the months are.
#[derive(Debug, Clone)]
pub(in super::super) struct Engine {
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
        let options = options(&path)
            .create_if_missing(false)
            .pragma("query_only", "on")
            .pragma("cache_size", READER_CACHE);
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
        Ok(Writer {
            options,
            connection: Some(connection),
            is_broken: false,
            texts: Texts::default(),
            path: path.into(),
        })
    }

    /// The months there are, oldest first.
    pub(super) fn months(&self) -> Result<Vec<Month>, Error> {
        let failed = |source| Error::Directory { dir: self.dir.clone(), source };
        let mut months = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            months.extend(name.to_str().and_then(|name| Month::parse(name.strip_suffix(".sqlite")?)));
        }
        months.sort_unstable();
        Ok(months)
    }

    /// Removes a month's file, and its log before it: a log without its file says nothing, the other way round an old
    /// state of the file would come back.
    pub(super) fn remove(&self, month: Month) -> Result<(), Error> {
        let path = self.path(month);
        for suffix in ["", "-wal", "-shm"] {
            let mut name = path.clone().into_os_string();
            name.push(suffix);
            match std::fs::remove_file(&name) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::Directory { dir: self.dir.clone(), source });
                }
                _ => {}
            }
        }
        std::fs::File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|source| Error::Directory { dir: self.dir.clone(), source })
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

/// Values of the rows of one INSERT.
#[derive(Default)]
pub(super) struct Binder(SqliteArguments);

impl Binder {
    pub(super) fn add<'t, T: sqlx::Encode<'t, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>>(&mut self, value: T) {
        self.0.add(value).expect("integers, bytes and text always encode");
    }
}

/// Texts of INSERTs, built once for each number of rows.
#[derive(Default)]
struct Texts(HashMap<(Shape, usize), Arc<str>>);

impl Texts {
    fn insert(&mut self, shape: Shape, rows: usize) -> Arc<str> {
        let text = self
            .0
            .entry((shape, rows))
            .or_insert_with(|| shape.insert_rows(rows).build(SqliteQueryBuilder).0.into());
        Arc::clone(text)
    }
}

/// The one connection that writes a month.
pub(super) struct Writer {
    options: SqliteConnectOptions,
    connection: Option<SqliteConnection>,
    /// A statement failed. SQLite may have undone the transaction by itself (a full disk does that), and the driver then
    /// counts one that is not there and begins no other: only a new connection helps.
    is_broken: bool,
    texts: Texts,
    path: Arc<Path>,
}

impl Writer {
    /// Begins a transaction that nobody else can write beside. Dropped, it is undone.
    pub(super) async fn begin(&mut self) -> Result<Transaction<'_>, Error> {
        let failed = |source| Error::Write { file: self.path.to_path_buf(), source };
        if self.is_broken
            && let Some(connection) = self.connection.take()
        {
            let _ = connection.close().await;
        }
        if self.connection.is_none() {
            self.connection = Some(self.options.connect().await.map_err(failed)?);
            self.is_broken = false;
        }
        let connection = self.connection.as_mut().expect("made the line before where there was none");
        let inner = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        Ok(Transaction { inner, is_broken: &mut self.is_broken, texts: &mut self.texts, path: &self.path })
    }

    /// Folds the log into the file and closes it.
    pub(super) async fn close(self) {
        if let Some(connection) = self.connection
            && let Err(error) = connection.close().await
        {
            tracing::warn!(file = %self.path.display(), error = &error as &dyn std::error::Error, "event file closed with an error");
        }
    }
}

/// A transaction at work.
pub(super) struct Transaction<'a> {
    inner: sqlx::Transaction<'a, sqlx::Sqlite>,
    is_broken: &'a mut bool,
    texts: &'a mut Texts,
    path: &'a Path,
}

impl Transaction<'_> {
    pub(super) async fn execute(&mut self, statement: Statement) -> Result<u64, Error> {
        // The text comes from the builder.
        let built = statement.build(sql::Engine::Sqlite);
        let query = sqlx::query_with(AssertSqlSafe(built.sql), built.values);
        query
            .execute(&mut *self.inner)
            .await
            .map(|done| done.rows_affected())
            .map_err(|source| self.failed(source))
    }

    pub(super) async fn rows(&mut self, statement: Statement) -> Result<Vec<Row>, Error> {
        let built = statement.build(sql::Engine::Sqlite);
        let query = sqlx::query_with(AssertSqlSafe(built.sql), built.values);
        let rows = query.fetch_all(&mut *self.inner).await.map_err(|source| self.failed(source))?;
        Ok(rows.into_iter().map(Row::Sqlite).collect())
    }

    /// Inserts `items` in as few statements as the prepared sizes allow.
    pub(super) async fn insert<T>(
        &mut self,
        shape: Shape,
        mut items: &[T],
        bind: impl Fn(&mut engine::Binder, &T),
    ) -> Result<(), Error> {
        while !items.is_empty() {
            let rows = ROWS.into_iter().find(|&rows| rows <= items.len()).unwrap_or(1);
            let (now, later) = items.split_at(rows);
            let mut binder = Binder::default();
            binder.0.reserve(rows * shape.columns.len(), 0);
            let mut binder = engine::Binder::Sqlite(binder);
            now.iter().for_each(|item| bind(&mut binder, item));
            let engine::Binder::Sqlite(binder) = binder else { return Ok(()) };
            let query = sqlx::query_with(AssertSqlSafe(self.texts.insert(shape, rows)), binder.0);
            query.execute(&mut *self.inner).await.map_err(|source| self.failed(source))?;
            items = later;
        }
        Ok(())
    }

    /// Makes it durable.
    pub(super) async fn commit(self) -> Result<(), Error> {
        let file = self.path.to_owned();
        let committed = self.inner.commit().await;
        *self.is_broken |= committed.is_err();
        committed.map_err(|source| Error::Write { file, source })
    }

    fn failed(&mut self, source: sqlx::Error) -> Error {
        *self.is_broken = true;
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
        let built = statement.build(sql::Engine::Sqlite);
        let query = sqlx::query_with(AssertSqlSafe(built.sql), built.values);
        match query.fetch_all(&self.pool).await {
            Ok(rows) => Ok(rows.into_iter().map(Row::Sqlite).collect()),
            Err(source) => Err(Error::Read { file: self.path.to_path_buf(), source }),
        }
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

/// Whether a failed write may succeed later as it is: a lock, a full disk, trouble with the device.
pub(super) fn is_transient(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(source) = error else { return false };
    if source.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_none() {
        return false;
    }
    let code = source.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or(0);
    // busy, locked, nomem, readonly, ioerr, full, cantopen, protocol; the low byte is the primary code.
    matches!(code & 0xff, 5..=8 | 10 | 13 | 14 | 15)
}
