//! The core database: what can be run, who may run it, and the record of what ran.
//!
//! One writer, many readers. Whoever wants to write asks for the writer with [`CoreDb::begin`] and says how urgent it
//! is; what clients wait for overtakes what they do not. Commits are durable when they return.
//! SQL is built, never written: the few words that no builder speaks (PRAGMAs, BEGIN, locks) are in `sqlite.rs` and
//! `postgres.rs`.
//!
//! This module does not know what the rows mean. The API reads them through the resource registry, the reconciler
//! through queries of its own.

mod durable;
mod gate;
#[path = "../../migrations/core/mod.rs"]
mod migrations;
mod postgres;
mod row;
mod sqlite;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sea_query::{InsertStatement, Query, SelectStatement};
use sqlx::postgres::{PgPool, Postgres};
use sqlx::sqlite::{Sqlite, SqlitePool};
use sqlx::{AssertSqlSafe, Transaction};
use tokio::sync::{broadcast, watch};

use super::postgres::Server;
pub use super::sql::{Engine, Statement};
pub use gate::Class;
pub use row::{Cell, Row};

/// Longest a transaction may hold the writer before it is worth a line in the log.
const LONG_TRANSACTION: Duration = Duration::from_millis(250);

/// Changes of jobs that are kept for who listens slowly; a listener that falls further behind is told so.
const JOB_CHANGES: usize = 4096;

/// Why the database did not open. Each is something an operator can act on.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory is missing and cannot be made, or nothing can be written in it.
    #[error("cannot write in data directory {}", dir.display())]
    Unwritable {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Another process has the database open.
    #[error("database {} is in use by another controller", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{} is not a database", path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// A later Plexus wrote it.
    #[error(
        "database {} has schema version {found}, this controller knows up to {known}: start the newer controller, \
         or restore a backup",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: i64,
        /// Highest version known here.
        known: i64,
    },
    /// A step of the schema failed; the database is as it was before that step.
    #[error("cannot bring database {} to schema version {version}", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// The step that failed.
        version: i64,
        /// What the database said.
        #[source]
        source: Error,
    },
    /// Anything else.
    #[error("cannot open database {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the database said.
        #[source]
        source: Error,
    },
}

/// A statement that did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A unique index already has such a row.
    #[error("a row with this {columns} exists")]
    Duplicate {
        /// `table.column` list as the database names it.
        columns: String,
    },
    /// The row points to one that does not exist, or is pointed to and may not go.
    #[error("a referenced row is missing, or this row is still referenced")]
    Reference,
    /// A regular expression that this engine does not take: each has its own.
    #[error("the database does not take this regular expression")]
    Pattern,
    /// A column that is missing or of another type than asked for.
    #[error("column {column} is not readable")]
    Column {
        /// Its name.
        column: String,
        /// What the driver said.
        #[source]
        source: Box<sqlx::Error>,
    },
    /// The database is shutting down.
    #[error("the database is closed")]
    Closed,
    /// It takes nothing at the moment: the same may work later.
    #[error("the database {trouble}")]
    Unavailable {
        /// What keeps it.
        trouble: Trouble,
        /// What the database said.
        #[source]
        source: Box<sqlx::Error>,
    },
    /// Anything else: a damaged file, a bug in a query.
    #[error("database error")]
    Database(#[source] Box<sqlx::Error>),
}

/// What passes by itself, or once an operator has acted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Somebody else holds it, for longer than a request waits.
    Locked,
    /// No room to write.
    Full,
    /// The server restarts, fails over, or is too busy.
    Away,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Locked => "is locked by another process",
            Self::Full => "has no disk space left",
            Self::Away => "does not answer",
        })
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(db) if db.is_unique_violation() => {
                let of_message = || db.message().rsplit(": ").next().unwrap_or_default().to_owned();
                Self::Duplicate { columns: postgres::duplicate_columns(&**db).unwrap_or_else(of_message) }
            }
            sqlx::Error::Database(db) if db.is_foreign_key_violation() => Self::Reference,
            sqlx::Error::Database(db) if postgres::is_bad_pattern(&**db) => Self::Pattern,
            sqlx::Error::PoolClosed => Self::Closed,
            _ => match sqlite::trouble(&error).or_else(|| postgres::trouble(&error)) {
                Some(trouble) => Self::Unavailable { trouble, source: Box::new(error) },
                None => Self::Database(Box::new(error)),
            },
        }
    }
}

/// A job has another status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobChange {
    /// Id of the job.
    pub job: i64,
    /// Its status now: `pending`.
    pub status: Arc<str>,
}

/// The core database. Cheap to clone.
#[derive(Clone)]
pub struct CoreDb {
    shared: Arc<Shared>,
}

struct Shared {
    /// The file, or where the server is.
    path: PathBuf,
    pools: Pools,
    gate: gate::Gate,
    changed: watch::Sender<u64>,
    jobs: broadcast::Sender<JobChange>,
    /// Queries that readers answered.
    #[cfg(test)]
    asked: std::sync::atomic::AtomicU64,
    /// Held for as long as the database is open: two controllers on one file would both place its jobs.
    _lock: Option<std::fs::File>,
}

/// Connections that read, and the one that writes.
enum Pools {
    Sqlite { readers: Box<sqlite::Readers>, writer: SqlitePool, durable: durable::Durable },
    Postgres { readers: PgPool, writer: PgPool },
}

enum Inner {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

impl std::fmt::Debug for CoreDb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoreDb").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl CoreDb {
    /// Opens the database at `path`, creates it if it is not there, and brings its schema up to date. Each step of
    /// the schema is one transaction.
    ///
    /// # Errors
    /// [`OpenError`], one variant for each thing an operator can put right.
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        let lock = sqlite::lock(path)?;
        let opened = |source: Error| OpenError::Open { path: path.to_owned(), source };
        let writer = sqlite::writer(path).await?;
        let readers = sqlite::Readers::open(path).await.map_err(|error| opened(error.into()))?;
        let durable = durable::Durable::start(path).map_err(|error| opened(sqlx::Error::Io(error).into()))?;
        let pools = Pools::Sqlite { readers: Box::new(readers), writer, durable };
        Self::start(path.to_owned(), pools, Some(lock)).await
    }

    /// Connects to the database on a server and brings its schema up to date.
    ///
    /// # Errors
    /// As [`CoreDb::open`].
    pub async fn connect(server: &Server) -> Result<Self, OpenError> {
        let writer = postgres::writer(server).await?;
        let readers = server.readers(None, postgres::READERS);
        Self::start(server.place().into(), Pools::Postgres { readers, writer }, None).await
    }

    async fn start(path: PathBuf, pools: Pools, lock: Option<std::fs::File>) -> Result<Self, OpenError> {
        let shared = Shared {
            path,
            pools,
            gate: gate::Gate::default(),
            changed: watch::Sender::new(0),
            jobs: broadcast::Sender::new(JOB_CHANGES),
            #[cfg(test)]
            asked: std::sync::atomic::AtomicU64::new(0),
            _lock: lock,
        };
        let db = Self { shared: Arc::new(shared) };
        db.migrate().await?;
        Ok(db)
    }

    /// Which engine this is, for what the builder does not bridge.
    pub fn engine(&self) -> Engine {
        self.shared.pools.engine()
    }

    /// Waits for the writer and begins a transaction.
    ///
    /// Dropping the future gives the turn to the next; dropping the [`WriteTx`] rolls back.
    ///
    /// # Errors
    /// [`Error::Closed`] during shutdown, otherwise what the database says.
    pub async fn begin(&self, class: Class) -> Result<WriteTx, Error> {
        let turn = self.shared.gate.turn(class).await;
        let tx = match &self.shared.pools {
            Pools::Sqlite { writer, .. } => match writer.begin_with(sqlite::BEGIN).await {
                // After a commit on a full disk, which SQLite undoes by itself, the driver counts a transaction that is
                // not there, and begins no other on this connection.
                Err(sqlx::Error::InvalidSavePointStatement) => {
                    writer.acquire().await?.close().await?;
                    Inner::Sqlite(writer.begin_with(sqlite::BEGIN).await?)
                }
                begun => Inner::Sqlite(begun?),
            },
            Pools::Postgres { writer, .. } => Inner::Postgres(writer.begin().await?),
        };
        Ok(WriteTx {
            tx,
            turn,
            shared: self.shared.clone(),
            since: Instant::now(),
            wake: false,
            jobs: Vec::new(),
        })
    }

    /// Returns when everything that could be read before the call is durable. For those who act on what they read without a
    /// commit of their own.
    ///
    /// # Errors
    /// When the disk failed: nobody knows then what is on it.
    pub async fn settle(&self) -> Result<(), Error> {
        match &self.shared.pools {
            Pools::Sqlite { durable, .. } => Ok(durable.settle().await.map_err(sqlx::Error::Io)?),
            // A server shows what is durable, and nothing else.
            Pools::Postgres { .. } => Ok(()),
        }
    }

    /// Says when something happened that the reconciler should look at: the value counts such commits.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Says which jobs got another status, after the commit, in the order of commits.
    pub fn job_changes(&self) -> broadcast::Receiver<JobChange> {
        self.shared.jobs.subscribe()
    }

    /// All rows of a query, from a reader.
    pub async fn all(&self, statement: impl Statement) -> Result<Vec<Row>, Error> {
        #[cfg(test)]
        self.shared.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let built = statement.for_engine(self.engine());
        let query = AssertSqlSafe(built.sql);
        match &self.shared.pools {
            Pools::Sqlite { readers, .. } => rows(readers.all(sqlx::query_with(query, built.values)).await),
            Pools::Postgres { readers, .. } => {
                rows(sqlx::query_with(query, built.values).fetch_all(readers).await)
            }
        }
    }

    /// The first row of a query, from a reader.
    pub async fn optional(&self, statement: impl Statement) -> Result<Option<Row>, Error> {
        #[cfg(test)]
        self.shared.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let built = statement.for_engine(self.engine());
        let query = AssertSqlSafe(built.sql);
        Ok(match &self.shared.pools {
            Pools::Sqlite { readers, .. } => {
                readers.optional(sqlx::query_with(query, built.values)).await?.map(Row::from)
            }
            Pools::Postgres { readers, .. } => {
                sqlx::query_with(query, built.values).fetch_optional(readers).await?.map(Row::from)
            }
        })
    }

    /// How many queries readers have answered.
    #[cfg(test)]
    pub(crate) fn asked(&self) -> u64 {
        self.shared.asked.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// A setting, `None` if it was never set.
    pub async fn setting(&self, key: &str) -> Result<Option<String>, Error> {
        match self.optional(select_setting(key)).await? {
            Some(row) => Ok(Some(row.value("value")?)),
            None => Ok(None),
        }
    }

    /// Waits for what is under way and closes all connections.
    pub async fn close(&self) {
        let _turn = self.shared.gate.turn(Class::Intent).await;
        match &self.shared.pools {
            Pools::Sqlite { readers, writer, .. } => {
                readers.close().await;
                writer.close().await;
            }
            Pools::Postgres { readers, writer } => {
                readers.close().await;
                writer.close().await;
            }
        }
    }

    async fn migrate(&self) -> Result<(), OpenError> {
        let path = &self.shared.path;
        let found = match &self.shared.pools {
            Pools::Sqlite { writer, .. } => {
                sqlite::schema_version(writer).await.map_err(|error| sqlite::open_error(path, error))?
            }
            Pools::Postgres { writer, .. } => postgres::schema_version(writer)
                .await
                .map_err(|error| OpenError::Open { path: path.clone(), source: error.into() })?,
        };
        let known = migrations::ALL.last().map_or(0, |migration| migration.version);
        if found > known {
            return Err(OpenError::Newer { path: path.clone(), found, known });
        }
        for migration in migrations::ALL.iter().filter(|migration| migration.version > found) {
            let failed =
                |source: Error| OpenError::Migrate { path: path.clone(), version: migration.version, source };
            let mut tx = self.begin(Class::Bulk).await.map_err(failed)?;
            for statement in migration.statements(self.engine()) {
                tx.run(statement).await.map_err(|error| failed(error.into()))?;
            }
            tx.set_schema_version(migration.version).await.map_err(|error| failed(error.into()))?;
            tx.commit().await.map_err(failed)?;
            tracing::info!(version = migration.version, name = migration.name, "schema brought up to date");
        }
        Ok(())
    }
}

/// A transaction that writes. There is one at a time. Dropped without [`WriteTx::commit`] it never was.
pub struct WriteTx {
    tx: Inner,
    turn: gate::Turn,
    shared: Arc<Shared>,
    since: Instant,
    wake: bool,
    jobs: Vec<JobChange>,
}

impl WriteTx {
    /// Runs a statement and says how many rows it touched.
    pub async fn execute(&mut self, statement: impl Statement) -> Result<u64, Error> {
        let built = statement.for_engine(self.engine());
        let query = AssertSqlSafe(built.sql);
        Ok(match &mut self.tx {
            Inner::Sqlite(tx) => {
                sqlx::query_with(query, built.values).execute(&mut **tx).await?.rows_affected()
            }
            Inner::Postgres(tx) => {
                sqlx::query_with(query, built.values).execute(&mut **tx).await?.rows_affected()
            }
        })
    }

    /// Inserts one row and gives its id.
    pub async fn insert(&mut self, insert: &mut InsertStatement) -> Result<i64, Error> {
        insert.returning_col("id");
        self.optional(insert).await?.ok_or(Error::Reference)?.at(0)
    }

    /// Tells that rows of this table were inserted with ids chosen by us, so that the database goes on behind them.
    pub async fn ids_were_given(&mut self, table: &'static str) -> Result<(), Error> {
        match &mut self.tx {
            // AUTOINCREMENT looks at the rows.
            Inner::Sqlite(_) => Ok(()),
            Inner::Postgres(tx) => Ok(postgres::advance_ids(tx, table).await?),
        }
    }

    /// All rows of a query, with what this transaction has written.
    pub async fn all(&mut self, statement: impl Statement) -> Result<Vec<Row>, Error> {
        let built = statement.for_engine(self.engine());
        let query = AssertSqlSafe(built.sql);
        match &mut self.tx {
            Inner::Sqlite(tx) => rows(sqlx::query_with(query, built.values).fetch_all(&mut **tx).await),
            Inner::Postgres(tx) => rows(sqlx::query_with(query, built.values).fetch_all(&mut **tx).await),
        }
    }

    /// The first row of a query, with what this transaction has written.
    pub async fn optional(&mut self, statement: impl Statement) -> Result<Option<Row>, Error> {
        let built = statement.for_engine(self.engine());
        let query = AssertSqlSafe(built.sql);
        Ok(match &mut self.tx {
            Inner::Sqlite(tx) => {
                sqlx::query_with(query, built.values).fetch_optional(&mut **tx).await?.map(Row::from)
            }
            Inner::Postgres(tx) => {
                sqlx::query_with(query, built.values).fetch_optional(&mut **tx).await?.map(Row::from)
            }
        })
    }

    /// Which engine this is.
    pub fn engine(&self) -> Engine {
        self.shared.pools.engine()
    }

    /// Runs a statement of a migration.
    async fn run(&mut self, sql: String) -> Result<(), sqlx::Error> {
        let query = sqlx::raw_sql(AssertSqlSafe(sql));
        match &mut self.tx {
            Inner::Sqlite(tx) => query.execute(&mut **tx).await.map(drop),
            Inner::Postgres(tx) => query.execute(&mut **tx).await.map(drop),
        }
    }

    async fn set_schema_version(&mut self, version: i64) -> Result<(), sqlx::Error> {
        match &mut self.tx {
            Inner::Sqlite(tx) => sqlite::set_schema_version(tx, version).await,
            Inner::Postgres(tx) => postgres::set_schema_version(tx, version).await,
        }
    }

    /// Sets a setting.
    pub async fn set_setting(&mut self, key: &str, value: &str) -> Result<(), Error> {
        let mut conflict = sea_query::OnConflict::column("key");
        conflict.update_column("value");
        let mut insert = Query::insert();
        insert.into_table("settings").columns(["key", "value"]);
        insert.values_panic([key.into(), value.into()]).on_conflict(conflict);
        self.execute(insert).await.map(drop)
    }

    /// Wakes the reconciler once this is committed.
    pub fn wake(&mut self) {
        self.wake = true;
    }

    /// Tells those who listen, once this is committed, that a job has another status.
    pub fn job_changed(&mut self, job: i64, status: &str) {
        self.jobs.push(JobChange { job, status: status.into() });
    }

    /// Makes it durable. When this returns `Ok`, it survives a power cut.
    ///
    /// # Errors
    /// What the database says; nothing was written then, unless the disk failed: then nobody knows.
    pub async fn commit(self) -> Result<(), Error> {
        self.commit_ahead().await?.settle().await
    }

    /// Shows it to all who read, before it is durable: who acts on it has it [settled](CoreDb::settle) first.
    ///
    /// # Errors
    /// What the database says; nothing was written then.
    pub async fn commit_ahead(self) -> Result<Committed, Error> {
        match self.tx {
            Inner::Sqlite(tx) => tx.commit().await?,
            Inner::Postgres(tx) => tx.commit().await?,
        }
        drop(self.turn);
        let held = self.since.elapsed();
        // The reconciler reads while the disk syncs: before it acts, it commits, which makes this durable too.
        if self.wake {
            self.shared.changed.send_modify(|count| *count += 1);
        }
        if held > LONG_TRANSACTION {
            tracing::warn!(held_ms = held.as_millis() as u64, "transaction held the writer for long");
        }
        Ok(Committed { core: CoreDb { shared: self.shared }, jobs: self.jobs })
    }
}

/// A transaction that all who read see, and that a power cut may still undo.
#[must_use = "nobody hears of it before it is settled"]
pub struct Committed {
    core: CoreDb,
    jobs: Vec<JobChange>,
}

impl Committed {
    /// Makes it durable, and tells of it. When this returns `Ok`, it survives a power cut.
    ///
    /// # Errors
    /// When the disk failed: nobody knows then what is on it.
    pub async fn settle(self) -> Result<(), Error> {
        self.core.settle().await?;
        for change in self.jobs {
            // An error says that nobody listens.
            let _ = self.core.shared.jobs.send(change);
        }
        Ok(())
    }
}

fn select_setting(key: &str) -> SelectStatement {
    use sea_query::{Expr, ExprTrait};
    Query::select().column("value").from("settings").and_where(Expr::col("key").eq(key)).take()
}

fn rows<R: Into<Row>>(answer: Result<Vec<R>, sqlx::Error>) -> Result<Vec<Row>, Error> {
    Ok(answer?.into_iter().map(Into::into).collect())
}

impl Pools {
    fn engine(&self) -> Engine {
        match self {
            Self::Sqlite { .. } => Engine::Sqlite,
            Self::Postgres { .. } => Engine::Postgres,
        }
    }
}
