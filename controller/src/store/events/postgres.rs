//! The PostgreSQL engine: a schema per month.
//!
//! All tables of a month go together — events, names, cursors, staging — so a month is a schema rather than a partition
//! of each table: keys stay as they are in a file, no query depends on the planner to leave months out, and retention is
//! one `DROP SCHEMA`. Rows travel as arrays, a column each, and are unnested by the server: as fast as COPY, and one
//! statement whatever their number.

use std::collections::HashMap;
use std::sync::Arc;

use sea_query::{Expr, ExprTrait, Func, PostgresQueryBuilder, Query};
use sqlx::postgres::{PgArguments, PgConnection, PgPool, Postgres};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Connection};

use super::super::postgres::Server;
use super::super::sql;
use super::engine::{self, Row, Shape, Statement};
use super::{Error, Month, schema};

/// What the names of our schemas begin with.
const PREFIX: &str = "events_";
/// What the comment on a schema says before the version of its tables.
const COMMENT: &str = "plexus events ";
/// Connections that read one month at the same time.
const READERS: u32 = 4;
/// First half of the numbers of the advisory locks of months: "PlxE".
const LOCK: i32 = 0x506c_7845;

/// Where the months are.
#[derive(Debug, Clone)]
pub(in super::super) struct Engine {
    server: Server,
}

impl Engine {
    /// Looks at the months there are, and refuses the database when one is of a newer version.
    pub(super) async fn open(server: &Server) -> Result<Self, Error> {
        let engine = Self { server: server.clone() };
        let place = || server.place().into();
        let failed = |source| Error::Open { file: place(), source };
        let mut connection = server.options().connect().await.map_err(failed)?;
        let months: Vec<(String, Option<String>)> = sqlx::query_as(
            "SELECT nspname::text, obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname LIKE 'events\\_%'",
        )
        .fetch_all(&mut connection)
        .await
        .map_err(failed)?;
        for (name, comment) in months {
            engine.check_version(&name, comment.as_deref())?;
        }
        let _ = connection.close().await;
        Ok(engine)
    }

    fn check_version(&self, schema: &str, comment: Option<&str>) -> Result<(), Error> {
        let file = || format!("{} {schema}", self.server.place()).into();
        let version = comment.and_then(|comment| comment.strip_prefix(COMMENT)?.parse::<i64>().ok());
        match version {
            None => Err(Error::Foreign { file: file() }),
            Some(version) if version > schema::VERSION => {
                Err(Error::Newer { file: file(), version, known: schema::VERSION })
            }
            Some(_) => Ok(()),
        }
    }

    /// Opens a month for reading; `None` when there is no such month.
    pub(super) async fn reader(&self, month: Month) -> Result<Option<Reader>, Error> {
        let name = schema_name(month);
        let place: Arc<str> = format!("{} {name}", self.server.place()).into();
        let pool = self.server.readers(Some(&name), READERS);
        let failed = |source| Error::Open { file: (&*place).into(), source };
        let comment: Option<(Option<String>,)> = sqlx::query_as(
            "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = $1",
        )
        .bind(&name)
        .fetch_optional(&pool)
        .await
        .map_err(failed)?;
        let Some((comment,)) = comment else { return Ok(None) };
        self.check_version(&name, comment.as_deref())?;
        Ok(Some(Reader { pool, place }))
    }

    /// Opens a month for writing and makes it when it is new.
    pub(super) async fn writer(&self, month: Month) -> Result<Writer, Error> {
        let name = schema_name(month);
        let place: Arc<str> = format!("{} {name}", self.server.place()).into();
        let failed = |source| Error::Open { file: (&*place).into(), source };
        let mut connection = self.server.options_in(&name).connect().await.map_err(failed)?;
        self.prepare(&mut connection, month).await?;
        Ok(Writer {
            server: self.server.clone(),
            connection: Some(connection),
            is_clean: true,
            begin: begin(month),
            name,
            texts: HashMap::new(),
            place,
        })
    }

    /// Makes the tables of a new month, checks the version of another.
    async fn prepare(&self, connection: &mut PgConnection, month: Month) -> Result<(), Error> {
        let name = schema_name(month);
        let failed = |source| Error::Open { file: format!("{} {name}", self.server.place()).into(), source };
        let mut transaction = connection.begin_with(AssertSqlSafe(begin(month))).await.map_err(failed)?;
        let comment: Option<(Option<String>,)> = sqlx::query_as(
            "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = $1",
        )
        .bind(&name)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed)?;
        if let Some((comment,)) = comment {
            return self.check_version(&name, comment.as_deref());
        }
        let mut script = vec![format!(r#"CREATE SCHEMA "{name}""#)];
        script.extend(
            schema::tables().iter().map(|definition| definition.table.to_string(PostgresQueryBuilder)),
        );
        script.extend(schema::indexes().iter().map(|index| index.to_string(PostgresQueryBuilder)));
        for table in [schema::BLOCK, schema::STAGING] {
            // Compressed or sealed already.
            script.push(format!(r#"ALTER TABLE "{table}" ALTER COLUMN "data" SET STORAGE EXTERNAL"#));
        }
        script.push(format!(r#"COMMENT ON SCHEMA "{name}" IS '{COMMENT}{}'"#, schema::VERSION));
        for sql in script {
            // Built from constants of this program.
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await.map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)
    }

    /// The months there are, oldest first.
    pub(super) async fn months(&self) -> Result<Vec<Month>, Error> {
        let failed = |source| Error::Read { file: self.server.place().into(), source };
        let mut connection = self.server.options().connect().await.map_err(failed)?;
        let names: Vec<(String,)> =
            sqlx::query_as("SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'events\\_%'")
                .fetch_all(&mut connection)
                .await
                .map_err(failed)?;
        let mut months: Vec<_> = names
            .iter()
            .filter_map(|(name,)| Month::parse(&name.strip_prefix(PREFIX)?.replace('_', "-")))
            .collect();
        months.sort_unstable();
        Ok(months)
    }

    /// Removes a month and everything in it.
    pub(super) async fn remove(&self, month: Month) -> Result<(), Error> {
        let failed = |source| Error::Write { file: self.server.place().into(), source };
        let mut connection = self.server.options().connect().await.map_err(failed)?;
        let sql = format!(r#"DROP SCHEMA IF EXISTS "{}" CASCADE"#, schema_name(month));
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.map_err(failed)?;
        Ok(())
    }
}

fn schema_name(month: Month) -> String {
    format!("{PREFIX}{:04}_{:02}", month.year, month.month)
}

/// Begins a transaction and takes the month's lock, in one round trip: what is read of cursors and epochs then holds
/// until the commit, as it does in a file.
fn begin(month: Month) -> String {
    let number = i32::from(month.year) * 100 + i32::from(month.month);
    format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK}, {number})")
}

/// Columns of rows on their way, an array each.
#[derive(Default)]
pub(super) struct Binder {
    columns: Vec<Column>,
    at: usize,
    width: usize,
}

enum Column {
    Integers(Vec<Option<i64>>),
    Blobs(Vec<Option<Vec<u8>>>),
    Texts(Vec<String>),
}

impl Column {
    /// The type of the array.
    fn array(&self) -> &'static str {
        match self {
            Self::Integers(_) => "bigint[]",
            Self::Blobs(_) => "bytea[]",
            Self::Texts(_) => "text[]",
        }
    }
}

impl Binder {
    fn new(width: usize) -> Self {
        Self { columns: Vec::with_capacity(width), at: 0, width }
    }

    fn column(&mut self, empty: impl Fn() -> Column) -> &mut Column {
        let at = self.at % self.width;
        self.at += 1;
        if at == self.columns.len() {
            self.columns.push(empty());
        }
        &mut self.columns[at]
    }

    pub(super) fn integer(&mut self, value: Option<i64>) {
        if let Column::Integers(column) = self.column(|| Column::Integers(Vec::new())) {
            column.push(value);
        }
    }

    pub(super) fn blob(&mut self, value: Option<Vec<u8>>) {
        if let Column::Blobs(column) = self.column(|| Column::Blobs(Vec::new())) {
            column.push(value);
        }
    }

    pub(super) fn text(&mut self, value: &str) {
        if let Column::Texts(column) = self.column(|| Column::Texts(Vec::new())) {
            column.push(value.replace('\0', "\u{fffd}"));
        }
    }
}

/// The one connection that writes a month. Made anew when it broke.
pub(super) struct Writer {
    server: Server,
    connection: Option<PgConnection>,
    /// The last transaction came to its end, so nothing is left to find out about the connection.
    is_clean: bool,
    begin: String,
    name: String,
    texts: HashMap<Shape, Arc<str>>,
    place: Arc<str>,
}

impl Writer {
    pub(super) async fn begin(&mut self) -> Result<Transaction<'_>, Error> {
        let failed = |source| Error::Write { file: (&*self.place).into(), source };
        if !self.is_clean
            && let Some(connection) = &mut self.connection
            && connection.ping().await.is_err()
        {
            self.connection = None;
        }
        if self.connection.is_none() {
            self.connection = Some(self.server.options_in(&self.name).connect().await.map_err(failed)?);
        }
        self.is_clean = false;
        let connection = self.connection.as_mut().expect("made the line before where there was none");
        let inner = connection.begin_with(AssertSqlSafe(self.begin.clone())).await.map_err(failed)?;
        Ok(Transaction { inner, texts: &mut self.texts, is_clean: &mut self.is_clean, place: &self.place })
    }

    pub(super) async fn close(self) {
        if let Some(connection) = self.connection {
            let _ = connection.close().await;
        }
    }
}

/// A transaction at work.
pub(super) struct Transaction<'a> {
    inner: sqlx::Transaction<'a, Postgres>,
    texts: &'a mut HashMap<Shape, Arc<str>>,
    is_clean: &'a mut bool,
    place: &'a str,
}

impl Transaction<'_> {
    pub(super) async fn execute(&mut self, statement: Statement) -> Result<u64, Error> {
        let built = statement.build(sql::Engine::Postgres);
        let query = sqlx::query_with(AssertSqlSafe(built.sql), built.values);
        let done = query.execute(&mut *self.inner).await.map_err(|source| self.failed(source))?;
        Ok(done.rows_affected())
    }

    pub(super) async fn rows(&mut self, statement: Statement) -> Result<Vec<Row>, Error> {
        let built = statement.build(sql::Engine::Postgres);
        let query = sqlx::query_with(AssertSqlSafe(built.sql), built.values);
        let rows = query.fetch_all(&mut *self.inner).await.map_err(|source| self.failed(source))?;
        Ok(rows.into_iter().map(Row::Postgres).collect())
    }

    pub(super) async fn insert<T>(
        &mut self,
        shape: Shape,
        items: &[T],
        bind: impl Fn(&mut engine::Binder, &T),
    ) -> Result<(), Error> {
        if items.is_empty() {
            return Ok(());
        }
        let mut binder = engine::Binder::Postgres(Binder::new(shape.columns.len()));
        items.iter().for_each(|item| bind(&mut binder, item));
        let engine::Binder::Postgres(Binder { columns, .. }) = binder else { return Ok(()) };
        let text = self.texts.entry(shape).or_insert_with(|| unnest(shape, &columns).into());
        let text = Arc::clone(text);
        let mut arguments = PgArguments::default();
        for column in columns {
            match column {
                Column::Integers(column) => arguments.add(column),
                Column::Blobs(column) => arguments.add(column),
                Column::Texts(column) => arguments.add(column),
            }
            .expect("integers, bytes and text always encode");
        }
        let query = sqlx::query_with(AssertSqlSafe(text), arguments);
        query.execute(&mut *self.inner).await.map(drop).map_err(|source| self.failed(source))
    }

    pub(super) async fn commit(self) -> Result<(), Error> {
        let committed = self.inner.commit().await;
        committed.map_err(|source| Error::Write { file: self.place.into(), source })?;
        *self.is_clean = true;
        Ok(())
    }

    fn failed(&self, source: sqlx::Error) -> Error {
        Error::Write { file: self.place.into(), source }
    }
}

/// `INSERT INTO … SELECT unnest($1), unnest($2), …`: the arrays are of one length and go side by side.
fn unnest(shape: Shape, columns: &[Column]) -> String {
    let mut rows = Query::select();
    for column in columns {
        rows.expr(Func::cust("unnest").arg(Expr::val(0).cast_as(column.array())));
    }
    let mut insert = shape.insert();
    insert.select_from(rows).expect("as many columns as in the list");
    insert.build(PostgresQueryBuilder).0
}

/// Connections that read a month.
#[derive(Clone)]
pub(super) struct Reader {
    pool: PgPool,
    place: Arc<str>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) async fn rows(&self, statement: Statement) -> Result<Vec<Row>, Error> {
        let built = statement.build(sql::Engine::Postgres);
        let query = sqlx::query_with(AssertSqlSafe(built.sql), built.values);
        match query.fetch_all(&self.pool).await {
            Ok(rows) => Ok(rows.into_iter().map(Row::Postgres).collect()),
            Err(source) => Err(Error::Read { file: (&*self.place).into(), source }),
        }
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_unnested_from_an_array_for_each_column() {
        let shape = Shape { table: "t", columns: &["id", "name"], key: &["id"] };
        let columns = [Column::Integers(Vec::new()), Column::Texts(Vec::new())];
        assert_eq!(
            unnest(shape, &columns),
            r#"INSERT INTO "t" ("id", "name") SELECT unnest(CAST($1 AS bigint[])), unnest(CAST($2 AS text[])) ON CONFLICT ("id") DO UPDATE SET "name" = "excluded"."name""#
        );
    }
}
