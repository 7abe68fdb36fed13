//! What tests of the store share: a place for databases, on each engine there is.

use std::sync::{LazyLock, Mutex, PoisonError};

use tempfile::TempDir;

use super::core::CoreDb;
use super::events::EventStore;
use super::postgres::Server;
use super::sql::Engine;

#[path = "../../../tests/src/postgres.rs"]
#[expect(dead_code, unreachable_pub, reason = "other users of this file need more of it")]
mod server;

/// One server for all tests of this process.
static SERVER: LazyLock<Mutex<server::Postgres>> = LazyLock::new(|| Mutex::new(server::Postgres::start()));

/// A place for databases, gone when the test is over.
pub(crate) struct Place {
    engine: Engine,
    dir: TempDir,
    url: String,
}

/// Empties a file, and says how many bytes of it had not been written to the disk.
pub(crate) fn cut(path: &std::path::Path) -> u64 {
    // Pages that were never written back count as canceled for whoever cuts the file.
    let canceled = || {
        let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("cancelled_write_bytes: "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let before = canceled();
    std::fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap();
    canceled() - before
}

impl Place {
    /// An empty place of an engine.
    pub(crate) fn new(engine: Engine) -> Self {
        let url = match engine {
            Engine::Sqlite => String::new(),
            Engine::Postgres => SERVER.lock().unwrap_or_else(PoisonError::into_inner).database(),
        };
        Self { engine, dir: TempDir::new().unwrap(), url }
    }

    /// Opens the events here; again, as often as wanted.
    pub(crate) async fn events(&self) -> EventStore {
        match self.engine {
            Engine::Sqlite => EventStore::open(&self.dir.path().join("events")).await.unwrap(),
            Engine::Postgres => EventStore::connect(&self.server()).await.unwrap(),
        }
    }

    /// Opens the core database here.
    pub(crate) async fn core(&self) -> CoreDb {
        match self.engine {
            Engine::Sqlite => CoreDb::open(&self.dir.path().join("core.sqlite")).await.unwrap(),
            Engine::Postgres => CoreDb::connect(&self.server()).await.unwrap(),
        }
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    pub(crate) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// The server's address; empty for files.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn server(&self) -> Server {
        Server::new(self.url(), None).unwrap()
    }

    /// Everything that lies in the databases, as bytes: to be searched for what must not be there.
    pub(crate) async fn bytes(&self) -> Vec<u8> {
        match self.engine {
            Engine::Sqlite => std::fs::read_dir(self.dir.path().join("events"))
                .unwrap()
                .flat_map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
                .collect(),
            Engine::Postgres => {
                let mut connection = sqlx::ConnectOptions::connect(&self.server().options()).await.unwrap();
                let tables: Vec<(String,)> = sqlx::query_as(
                    "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname LIKE 'events%'",
                )
                .fetch_all(&mut connection)
                .await
                .unwrap();
                let mut bytes = Vec::new();
                for (table,) in tables {
                    // As text, the bytes of blobs as Latin-1.
                    let rows: Vec<(Vec<u8>,)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
                        "SELECT convert_to(t::text, 'UTF8') FROM {table} t"
                    )))
                    .fetch_all(&mut connection)
                    .await
                    .unwrap();
                    bytes.extend(rows.into_iter().flat_map(|(row,)| row));
                }
                bytes
            }
        }
    }
}

/// Makes a test for each engine of each of these functions, which take a [`Place`].
macro_rules! on_each_engine {
    ($($name:ident,)*) => {
        mod sqlite_engine {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::store::testing::Place::new($crate::store::Engine::Sqlite)).await;
            })*
        }
        mod postgres_engine {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::store::testing::Place::new($crate::store::Engine::Postgres)).await;
            })*
        }
    };
}
pub(crate) use on_each_engine;
