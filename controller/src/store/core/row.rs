//! A row as read, whatever the engine.

use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::sqlite::{Sqlite, SqliteRow};

use super::Error;

/// A type a column can be read as: integers, texts, bytes, booleans, floats, and options of these.
pub trait Cell: for<'r> sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite> {}
impl<T: for<'r> sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>> Cell for T {}

/// One row of a result.
pub struct Row(SqliteRow);

impl Row {
    pub(super) fn new(row: SqliteRow) -> Self {
        Self(row)
    }

    /// The value of a column.
    ///
    /// # Errors
    /// [`Error::Column`] if there is no such column or its value is of another type (null included).
    pub fn value<T: Cell>(&self, column: &str) -> Result<T, Error> {
        self.0
            .try_get(column)
            .map_err(|source| Error::Column { column: column.to_owned(), source: Box::new(source) })
    }

    /// The value of the column at `index`, in the order of the query.
    pub fn at<T: Cell>(&self, index: usize) -> Result<T, Error> {
        self.0
            .try_get(index)
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
