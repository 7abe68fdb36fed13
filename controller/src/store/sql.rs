//! From the builder's statements to an engine's words. The only place that knows both dialects.

use sea_query::{
    DeleteStatement, InsertStatement, PostgresQueryBuilder, SelectStatement, SqliteQueryBuilder,
    UpdateStatement, Value, WithQuery,
};
use sea_query_sqlx::{SqlxBinder, SqlxValues};

/// Which database speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Embedded, files.
    Sqlite,
    /// A server.
    Postgres,
}

/// A built statement: text with placeholders, and the values.
pub struct Built {
    pub(super) sql: String,
    pub(super) values: SqlxValues,
}

/// Something the builder can turn into words: statements, and references to them.
pub trait Statement: Send {
    /// The statement in the words of an engine.
    fn for_engine(&self, engine: Engine) -> Built;
}

macro_rules! statements {
    ($($type:ty),*) => {$(
        impl Statement for $type {
            fn for_engine(&self, engine: Engine) -> Built {
                build(self, engine)
            }
        }
        impl Statement for &$type {
            fn for_engine(&self, engine: Engine) -> Built {
                build(*self, engine)
            }
        }
        impl Statement for &mut $type {
            fn for_engine(&self, engine: Engine) -> Built {
                build(&**self, engine)
            }
        }
    )*};
}
statements!(SelectStatement, InsertStatement, UpdateStatement, DeleteStatement, WithQuery);

fn build(statement: &impl SqlxBinder, engine: Engine) -> Built {
    let (sql, values) = match engine {
        Engine::Sqlite => statement.build_sqlx(SqliteQueryBuilder),
        Engine::Postgres => {
            let (sql, mut values) = statement.build_sqlx(PostgresQueryBuilder);
            values.0.0.iter_mut().for_each(make_storable);
            (sql, values)
        }
    };
    Built { sql, values }
}

/// A statement with its values in it, to tell it from others; never to be run.
pub fn spelled(statement: &SelectStatement, engine: Engine) -> String {
    match engine {
        Engine::Sqlite => statement.to_string(SqliteQueryBuilder),
        Engine::Postgres => statement.to_string(PostgresQueryBuilder),
    }
}

/// PostgreSQL's texts cannot hold a NUL, and a statement with one fails as a whole: the mark of a character that could
/// not be kept stands in its place.
fn make_storable(value: &mut Value) {
    if let Value::String(Some(text)) = value
        && text.contains('\0')
    {
        *text = text.replace('\0', "\u{fffd}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sea_query::{Expr, ExprTrait, Query};

    #[test]
    fn each_engine_has_its_own_words_and_no_nul_reaches_a_server() {
        let select = Query::select().column("id").from("t").and_where(Expr::col("a").eq("x\0y")).take();
        let sqlite = select.for_engine(Engine::Sqlite);
        assert_eq!(sqlite.sql, r#"SELECT "id" FROM "t" WHERE "a" = ?"#);
        let postgres = select.for_engine(Engine::Postgres);
        assert_eq!(postgres.sql, r#"SELECT "id" FROM "t" WHERE "a" = $1"#);
        assert_eq!(postgres.values.0.0, [Value::from("x\u{fffd}y")]);
    }
}
