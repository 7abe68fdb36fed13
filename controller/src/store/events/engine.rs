//! One face for the engines: what assembler, writer and readers ask for, given on to SQLite or PostgreSQL.
//!
//! A month is a file there and a schema here, with the same tables. A writing transaction has the month to itself on
//! both, so that what it has read of cursors and epochs still holds when it commits.

use std::path::Path;

use sea_query::{DeleteStatement, Query, SelectStatement, Value};

use super::super::sql;
use super::schema::{EVENT, EVENT_FAILED};
use super::{Error, Month, postgres, sqlite};

/// Where the months are.
#[derive(Debug, Clone)]
pub(super) enum Engine {
    Sqlite(sqlite::Engine),
    Postgres(Box<postgres::Engine>),
}

/// Connections that read a month. They never wait for the writer.
#[derive(Debug, Clone)]
pub(super) enum Reader {
    Sqlite(sqlite::Reader),
    Postgres(postgres::Reader),
}

/// The one connection that writes a month.
pub(super) enum Writer {
    Sqlite(sqlite::Writer),
    Postgres(postgres::Writer),
}

/// A transaction at work.
pub(super) enum Transaction<'a> {
    Sqlite(sqlite::Transaction<'a>),
    Postgres(postgres::Transaction<'a>),
}

/// A row of an answer, by place of the column.
pub(super) enum Row {
    Sqlite(sqlx::sqlite::SqliteRow),
    Postgres(sqlx::postgres::PgRow),
}

/// Values of the rows of one INSERT, in the order of the columns.
pub(super) enum Binder {
    Sqlite(sqlite::Binder),
    Postgres(postgres::Binder),
}

/// A statement of the builder, not yet in anybody's words.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    query: AnyQuery,
    by_failed_index: bool,
}

#[derive(Debug, Clone)]
enum AnyQuery {
    Select(SelectStatement),
    Delete(DeleteStatement),
}

/// An INSERT of any number of rows. A conflict with `key` replaces what stands there, or is ignored if nothing else is
/// in the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) table: &'static str,
    pub(super) columns: &'static [&'static str],
    pub(super) key: &'static [&'static str],
}

/// Takes a statement of the builder.
pub(super) fn statement(query: &SelectStatement) -> Statement {
    Statement { query: AnyQuery::Select(query.clone()), by_failed_index: false }
}

/// Takes a DELETE of the builder.
pub(super) fn deletion(query: &DeleteStatement) -> Statement {
    Statement { query: AnyQuery::Delete(query.clone()), by_failed_index: false }
}

impl Statement {
    /// Makes SQLite's planner walk the index of failed events: without statistics it would take the key, and scan a job
    /// that had one failure in a million. The builder has no word for it, and PostgreSQL needs none: it has statistics.
    pub(super) fn by_failed_index(mut self) -> Self {
        self.by_failed_index = true;
        self
    }

    pub(super) fn build(&self, engine: sql::Engine) -> sql::Built {
        use super::super::sql::Statement as _;
        let mut built = match &self.query {
            AnyQuery::Select(query) => query.for_engine(engine),
            AnyQuery::Delete(query) => query.for_engine(engine),
        };
        if self.by_failed_index && engine == sql::Engine::Sqlite {
            let table = format!(r#" FROM "{EVENT}""#);
            built.sql = built.sql.replacen(&table, &format!(r#"{table} INDEXED BY "{EVENT_FAILED}""#), 1);
        }
        built
    }
}

impl Shape {
    /// The INSERT without its rows.
    pub(super) fn insert(&self) -> sea_query::InsertStatement {
        let mut query = Query::insert();
        query.into_table(self.table).columns(self.columns.iter().copied());
        if !self.key.is_empty() {
            let mut conflict = sea_query::OnConflict::columns(self.key.iter().copied());
            let rest: Vec<_> =
                self.columns.iter().copied().filter(|column| !self.key.contains(column)).collect();
            if rest.is_empty() {
                conflict.do_nothing()
            } else {
                conflict.update_columns(rest)
            };
            query.on_conflict(conflict);
        }
        query
    }

    /// The same with so many rows of placeholders.
    pub(super) fn insert_rows(&self, rows: usize) -> sea_query::InsertStatement {
        let mut query = self.insert();
        for _ in 0..rows {
            let values = self.columns.iter().map(|_| Value::BigInt(None).into());
            query.values(values).expect("as many values as columns");
        }
        query
    }
}

impl Engine {
    /// Opens a directory of files.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self::Sqlite(sqlite::Engine::open(dir)?))
    }

    /// Opens a month for reading; `None` when there is no such month.
    pub(super) async fn reader(&self, month: Month) -> Result<Option<Reader>, Error> {
        Ok(match self {
            Self::Sqlite(engine) => engine.reader(month).await?.map(Reader::Sqlite),
            Self::Postgres(engine) => engine.reader(month).await?.map(Reader::Postgres),
        })
    }

    /// Opens a month for writing and makes it when it is new.
    pub(super) async fn writer(&self, month: Month) -> Result<Writer, Error> {
        Ok(match self {
            Self::Sqlite(engine) => Writer::Sqlite(engine.writer(month).await?),
            Self::Postgres(engine) => Writer::Postgres(engine.writer(month).await?),
        })
    }

    /// The months there are, oldest first.
    pub(super) async fn months(&self) -> Result<Vec<Month>, Error> {
        match self {
            Self::Sqlite(engine) => engine.months(),
            Self::Postgres(engine) => engine.months().await,
        }
    }

    /// Removes a month and everything in it. Nobody may have it open for writing.
    pub(super) async fn remove(&self, month: Month) -> Result<(), Error> {
        match self {
            Self::Sqlite(engine) => engine.remove(month),
            Self::Postgres(engine) => engine.remove(month).await,
        }
    }
}

impl Writer {
    /// Begins a transaction that nobody else can write beside. Dropped, it is undone.
    pub(super) async fn begin(&mut self) -> Result<Transaction<'_>, Error> {
        Ok(match self {
            Self::Sqlite(writer) => Transaction::Sqlite(writer.begin().await?),
            Self::Postgres(writer) => Transaction::Postgres(writer.begin().await?),
        })
    }

    /// Closes it; a file's log is folded into the file.
    pub(super) async fn close(self) {
        match self {
            Self::Sqlite(writer) => writer.close().await,
            Self::Postgres(writer) => writer.close().await,
        }
    }
}

impl Transaction<'_> {
    pub(super) async fn execute(&mut self, statement: Statement) -> Result<u64, Error> {
        match self {
            Self::Sqlite(transaction) => transaction.execute(statement).await,
            Self::Postgres(transaction) => transaction.execute(statement).await,
        }
    }

    pub(super) async fn rows(&mut self, statement: Statement) -> Result<Vec<Row>, Error> {
        match self {
            Self::Sqlite(transaction) => transaction.rows(statement).await,
            Self::Postgres(transaction) => transaction.rows(statement).await,
        }
    }

    /// Inserts `items` in few statements. No two of them may have the same key.
    pub(super) async fn insert<T>(
        &mut self,
        shape: Shape,
        items: &[T],
        bind: impl Fn(&mut Binder, &T),
    ) -> Result<(), Error> {
        match self {
            Self::Sqlite(transaction) => transaction.insert(shape, items, bind).await,
            Self::Postgres(transaction) => transaction.insert(shape, items, bind).await,
        }
    }

    /// Makes it durable.
    pub(super) async fn commit(self) -> Result<(), Error> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await,
            Self::Postgres(transaction) => transaction.commit().await,
        }
    }
}

impl Reader {
    pub(super) fn kind(&self) -> sql::Engine {
        match self {
            Self::Sqlite(_) => sql::Engine::Sqlite,
            Self::Postgres(_) => sql::Engine::Postgres,
        }
    }

    pub(super) async fn rows(&self, statement: Statement) -> Result<Vec<Row>, Error> {
        match self {
            Self::Sqlite(reader) => reader.rows(statement).await,
            Self::Postgres(reader) => reader.rows(statement).await,
        }
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(reader) => reader.close().await,
            Self::Postgres(reader) => reader.close().await,
        }
    }
}

impl Binder {
    pub(super) fn integer(&mut self, value: i64) -> &mut Self {
        self.maybe_integer(Some(value))
    }

    pub(super) fn maybe_integer(&mut self, value: Option<i64>) -> &mut Self {
        match self {
            Self::Sqlite(binder) => binder.add(value),
            Self::Postgres(binder) => binder.integer(value),
        }
        self
    }

    pub(super) fn blob(&mut self, value: &[u8]) -> &mut Self {
        self.maybe_blob(Some(value))
    }

    pub(super) fn maybe_blob(&mut self, value: Option<&[u8]>) -> &mut Self {
        let value = value.map(<[u8]>::to_vec);
        match self {
            Self::Sqlite(binder) => binder.add(value),
            Self::Postgres(binder) => binder.blob(value),
        }
        self
    }

    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        match self {
            Self::Sqlite(binder) => binder.add(value.to_owned()),
            Self::Postgres(binder) => binder.text(value),
        }
        self
    }
}

macro_rules! cells {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        impl Row {
            $($(#[$doc])* pub(super) fn $name(&self, column: usize) -> Result<$type, Error> {
                match self {
                    Self::Sqlite(row) => sqlx::Row::try_get(row, column),
                    Self::Postgres(row) => sqlx::Row::try_get(row, column),
                }
                .map_err(Error::Row)
            })*
        }
    };
}

cells! {
    integer: i64,
    maybe_integer: Option<i64>,
    blob: Vec<u8>,
    maybe_blob: Option<Vec<u8>>,
    text: String,
    maybe_text: Option<String>,
}

/// The function that finds a text in another, from 1: `instr(text, part)`.
pub(super) fn position(engine: sql::Engine) -> &'static str {
    match engine {
        sql::Engine::Sqlite => "instr",
        sql::Engine::Postgres => "strpos",
    }
}

/// Whether a failed write may succeed later as it is: a lock, a full disk, a server that restarts.
pub(super) fn is_transient(error: &Error) -> bool {
    match error {
        Error::Write { source, .. } => {
            sqlite::is_transient(source) || super::super::postgres::is_transient(source)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;
    use sea_query::{Expr, ExprTrait, SqliteQueryBuilder};

    #[test]
    fn the_index_of_failed_events_is_named_in_the_statement() {
        let mut query = Query::select();
        query.column("counter").from(EVENT).and_where(Expr::col("job").eq(1)).and_where(schema::is_failed());
        let sql = statement(&query).by_failed_index().build(sql::Engine::Sqlite).sql;
        assert!(sql.contains(r#"FROM "event" INDEXED BY "event_failed" WHERE"#), "{sql}");
        let index = schema::indexes()[0].to_string(SqliteQueryBuilder);
        let condition = index.split_once("WHERE ").unwrap().1;
        assert!(sql.contains(condition), "{sql} does not say {condition}");
        let sql = statement(&query).by_failed_index().build(sql::Engine::Postgres).sql;
        assert!(!sql.contains("INDEXED"), "{sql}");
    }
}
