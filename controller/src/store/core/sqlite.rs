//! What is SQLite's own: how a file is opened, its PRAGMAs, and the one word that begins a write.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::sqlite::{
    Sqlite, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Transaction};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Error, OpenError, Trouble};

/// Takes the write lock at once: a read transaction that wants to write later fails whatever the timeout.
pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";

/// Pages that a reader keeps, in KiB; the kernel has the rest. Each has its own, and there are several.
const CACHE: &str = "-1024";

/// Readers: as many as the API reads at a time. Reads are short, so two for each core are enough for many clients.
fn readers() -> usize {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    (2 * cores).clamp(4, 32)
}

/// Bounded waiting for the write lock; only a backup tool could hold it, for we have one writer.
const BUSY: Duration = Duration::from_secs(5);

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY)
        .statement_cache_capacity(256)
        .with_regexp()
}

/// Makes the directory and takes the lock file beside the database.
pub(super) fn lock(path: &Path) -> Result<std::fs::File, OpenError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let unwritable = |source| OpenError::Unwritable { dir: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(unwritable)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    let lock = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join(name))
        .map_err(unwritable)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(unwritable(source)),
    }
}

/// The connection that writes. It leaves the syncs of commits to [`super::durable`].
pub(super) async fn writer(path: &Path) -> Result<SqlitePool, OpenError> {
    SqlitePoolOptions::new()
        .max_connections(1)
        .min_connections(1)
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options(path).create_if_missing(true).synchronous(SqliteSynchronous::Normal))
        .await
        .map_err(|error| open_error(path, error))
}

/// Connections that read, each with a thread of its own.
///
/// The driver's pool asks a connection after each query whether it still lives, on its thread, and hands out the one that
/// rested longest. Here nothing stands between a query and the next, and the connection used last is taken first: its
/// statements are prepared and its pages at hand. On a busy machine each such turn of threads is a wait.
pub(super) struct Readers {
    options: SqliteConnectOptions,
    idle: Mutex<Vec<SqliteConnection>>,
    places: Semaphore,
}

impl Readers {
    /// Opens all of them: their threads run at the priority of the caller.
    pub(super) async fn open(path: &Path) -> Result<Self, sqlx::Error> {
        let options = options(path).read_only(true).pragma("cache_size", CACHE);
        let mut idle = Vec::new();
        for _ in 0..readers() {
            idle.push(options.connect().await?);
        }
        let places = Semaphore::new(idle.len());
        Ok(Self { options, idle: Mutex::new(idle), places })
    }

    pub(super) async fn all(&self, query: Query<'_>) -> Result<Vec<SqliteRow>, sqlx::Error> {
        let _place = self.place().await?;
        let mut connection = self.take().await?;
        let rows = query.fetch_all(&mut connection).await?;
        self.give_back(connection);
        Ok(rows)
    }

    pub(super) async fn optional(&self, query: Query<'_>) -> Result<Option<SqliteRow>, sqlx::Error> {
        let _place = self.place().await?;
        let mut connection = self.take().await?;
        let row = query.fetch_optional(&mut connection).await?;
        self.give_back(connection);
        Ok(row)
    }

    /// Closes all of them, once nobody reads.
    pub(super) async fn close(&self) {
        let all = self.places.acquire_many(readers() as u32).await;
        self.places.close();
        drop(all);
        let idle = std::mem::take(&mut *self.idle());
        for connection in idle {
            // What fails here is gone all the same.
            let _ = connection.close().await;
        }
    }

    async fn place(&self) -> Result<SemaphorePermit<'_>, sqlx::Error> {
        self.places.acquire().await.map_err(|_| sqlx::Error::PoolClosed)
    }

    /// A query that fails or is given up takes its connection along, whatever state it was in.
    async fn take(&self) -> Result<SqliteConnection, sqlx::Error> {
        let idle = self.idle().pop();
        match idle {
            Some(connection) => Ok(connection),
            None => self.options.connect().await,
        }
    }

    fn give_back(&self, connection: SqliteConnection) {
        self.idle().push(connection);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<SqliteConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Query<'q> = sqlx::query::Query<'q, Sqlite, sea_query_sqlx::SqlxValues>;

/// Tells a file that is no database (26) and one that cannot be opened for writing (8, 14) from other trouble.
pub(super) fn open_error(path: &Path, error: sqlx::Error) -> OpenError {
    let code = error.as_database_error().and_then(|db| db.code()).and_then(|code| code.parse::<i32>().ok());
    match code.map(|code| code & 0xff) {
        Some(26) => OpenError::NotADatabase { path: path.to_owned() },
        Some(8 | 14) => OpenError::Unwritable {
            dir: path.parent().unwrap_or(Path::new(".")).to_owned(),
            source: std::io::Error::other(error),
        },
        _ => OpenError::Open { path: path.to_owned(), source: Error::from(error) },
    }
}

pub(super) async fn schema_version(pool: &SqlitePool) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("PRAGMA user_version").fetch_one(pool).await
}

pub(super) async fn set_schema_version(
    tx: &mut Transaction<'static, Sqlite>,
    version: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(AssertSqlSafe(format!("PRAGMA user_version = {version}"))).execute(&mut **tx).await.map(drop)
}

/// What keeps the file from being used just now, by SQLite's primary code.
pub(super) fn trouble(error: &sqlx::Error) -> Option<Trouble> {
    let source = error.as_database_error()?;
    source.try_downcast_ref::<sqlx::sqlite::SqliteError>()?;
    match source.code()?.parse::<i32>().ok()? & 0xff {
        5 | 6 => Some(Trouble::Locked),
        13 => Some(Trouble::Full),
        _ => None,
    }
}
