//! A row as read, whatever the engine.

use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::postgres::{PgRow, Postgres};
use sqlx::sqlite::{Sqlite, SqliteRow};

use super::Error;

/// A type a column can be read as: integers, texts, bytes, booleans, floats, and options of these.
pub trait Cell:
    for<'r> sqlx::Decode<'r, Sqlite>
    + sqlx::Type<Sqlite>
    + for<'r> sqlx::Decode<'r, Postgres>
    + sqlx::Type<Postgres>
{
}
impl<T> Cell for T where
    T: for<'r> sqlx::Decode<'r, Sqlite>
        + sqlx::Type<Sqlite>
        + for<'r> sqlx::Decode<'r, Postgres>
        + sqlx::Type<Postgres>
{
}

/// One row of a result.
pub struct Row(Inner);

enum Inner {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl From<SqliteRow> for Row {
    fn from(row: SqliteRow) -> Self {
        Self(Inner::Sqlite(row))
    }
}

impl From<PgRow> for Row {
    fn from(row: PgRow) -> Self {
        Self(Inner::Postgres(row))
    }
}

impl Row {
    /// The value of a column.
    ///
    /// # Errors
    /// [`Error::Column`] if there is no such column or its value is of another type (null included).
    pub fn value<T: Cell>(&self, column: &str) -> Result<T, Error> {
        match &self.0 {
            Inner::Sqlite(row) => row.try_get(column),
            Inner::Postgres(row) => row.try_get(column),
        }
        .map_err(|source| Error::Column { column: column.to_owned(), source: Box::new(source) })
    }

    /// The value of the column at `index`, in the order of the query.
    pub fn at<T: Cell>(&self, index: usize) -> Result<T, Error> {
        match &self.0 {
            Inner::Sqlite(row) => row.try_get(index),
            Inner::Postgres(row) => row.try_get(index),
        }
        .map_err(|source| Error::Column { column: index.to_string(), source: Box::new(source) })
    }

    /// A time, stored as microseconds since 1970.
    pub fn time(&self, column: &str) -> Result<Timestamp, Error> {
        to_time(column, self.value(column)?)
    }

    /// A time that may be missing.
    pub fn opt_time(&self, column: &str) -> Result<Option<Timestamp>, Error> {
        self.value::<Option<i64>>(column)?.map(|micros| to_time(column, micros)).transpose()
    }
}

fn to_time(column: &str, micros: i64) -> Result<Timestamp, Error> {
    Timestamp::from_microsecond(micros).map_err(|error| Error::Column {
        column: column.to_owned(),
        source: Box::new(sqlx::Error::Decode(Box::new(error))),
    })
}
