//! Short words for the tables of a migration.
//!
//! Times are integers (microseconds since 1970, UTC), so that they compare and index alike on every engine. JSON is
//! text, kept as it came. Texts are never null unless null means something of its own.

use sea_query::{
    ColumnDef, ConditionalStatement, ForeignKey, ForeignKeyAction, Index, IndexCreateStatement,
    IntoCondition, PostgresQueryBuilder, SelectStatement, SqliteQueryBuilder, Table, TableCreateStatement,
};

use super::super::Engine;

/// What becomes of a row when the row it points to goes.
#[derive(Clone, Copy)]
pub(super) enum Gone {
    /// The column becomes null.
    Null,
    /// The row goes too.
    Row,
    /// The other row may not go.
    Refuse,
}

struct Reference {
    column: &'static str,
    to: &'static str,
    gone: Gone,
}

pub(super) struct TableDef {
    name: &'static str,
    create: TableCreateStatement,
    references: Vec<Reference>,
    /// Columns for a table that an earlier step made; there is none to make then.
    more: Option<Vec<ColumnDef>>,
}

#[derive(Default)]
pub(super) struct Schema {
    tables: Vec<TableDef>,
    indexes: Vec<IndexCreateStatement>,
    views: Vec<(&'static str, SelectStatement)>,
}

impl Schema {
    pub(super) fn table(&mut self, name: &'static str) -> &mut TableDef {
        let mut create = Table::create();
        create.table(name);
        self.tables.push(TableDef { name, create, references: Vec::new(), more: None });
        self.tables.last_mut().expect("one was pushed just now")
    }

    /// Adds columns to a table that an earlier step made.
    pub(super) fn extend(&mut self, name: &'static str) -> &mut TableDef {
        let table = self.table(name);
        table.more = Some(Vec::new());
        table
    }

    /// A query that reads like a table.
    pub(super) fn view(&mut self, name: &'static str, query: SelectStatement) {
        self.views.push((name, query));
    }

    pub(super) fn index(&mut self, table: &'static str, columns: &[&'static str]) {
        self.indexes.push(index(table, columns));
    }

    pub(super) fn unique(&mut self, table: &'static str, columns: &[&'static str]) {
        let mut index = index(table, columns);
        index.unique();
        self.indexes.push(index);
    }

    /// An index that holds only the rows that meet the condition.
    pub(super) fn index_where(
        &mut self,
        table: &'static str,
        columns: &[&'static str],
        condition: impl IntoCondition,
    ) {
        let mut index = index(table, columns);
        index.cond_where(condition);
        self.indexes.push(index);
    }

    pub(super) fn statements(mut self, engine: Engine) -> Vec<String> {
        let mut statements = Vec::new();
        let mut later = Vec::new();
        for table in &mut self.tables {
            if let Some(columns) = table.more.take() {
                statements.extend(table.added(columns, engine));
                continue;
            }
            for reference in &table.references {
                let mut key = ForeignKey::create();
                key.name(format!("{}_{}_fkey", table.name, reference.column))
                    .from(table.name, reference.column)
                    .to(reference.to, "id")
                    .on_delete(reference.gone.action());
                match engine {
                    // SQLite takes references to tables that come later, and cannot add them afterwards.
                    Engine::Sqlite => {
                        table.create.foreign_key(&mut key);
                    }
                    // The others want the table to be there, and tables point at each other in circles.
                    Engine::Postgres => later.push(key.to_string(PostgresQueryBuilder)),
                }
            }
            statements.push(match engine {
                Engine::Sqlite => table.create.to_string(SqliteQueryBuilder),
                Engine::Postgres => table.create.to_string(PostgresQueryBuilder),
            });
        }
        statements.append(&mut later);
        for index in &self.indexes {
            statements.push(match engine {
                Engine::Sqlite => index.to_string(SqliteQueryBuilder),
                Engine::Postgres => index.to_string(PostgresQueryBuilder),
            });
        }
        for (name, query) in &self.views {
            // The builder has no word for these.
            let query = match engine {
                Engine::Sqlite => query.to_string(SqliteQueryBuilder),
                Engine::Postgres => query.to_string(PostgresQueryBuilder),
            };
            statements.push(format!("CREATE VIEW \"{name}\" AS {query}"));
        }
        statements
    }
}

fn index(table: &'static str, columns: &[&'static str]) -> IndexCreateStatement {
    let mut index = Index::create();
    index.name(format!("{table}_{}_idx", columns.join("_"))).table(table);
    for column in columns {
        index.col(*column);
    }
    index
}

impl Gone {
    fn action(self) -> ForeignKeyAction {
        match self {
            Self::Null => ForeignKeyAction::SetNull,
            Self::Row => ForeignKeyAction::Cascade,
            Self::Refuse => ForeignKeyAction::Restrict,
        }
    }
}

impl TableDef {
    fn col(&mut self, column: &mut ColumnDef) -> &mut Self {
        match &mut self.more {
            Some(columns) => columns.push(column.take()),
            None => drop(self.create.col(column.take())),
        }
        self
    }

    /// One statement for each column: SQLite takes no more at a time. References go with their column, where the builder
    /// has no word for them.
    fn added(&self, columns: Vec<ColumnDef>, engine: Engine) -> impl Iterator<Item = String> {
        columns.into_iter().map(move |mut column| {
            let name = column.get_column_name();
            if let Some(reference) = self.references.iter().find(|reference| reference.column == name) {
                let action = match reference.gone {
                    Gone::Null => "SET NULL",
                    Gone::Row => "CASCADE",
                    Gone::Refuse => "RESTRICT",
                };
                column.extra(format!("REFERENCES \"{}\" (\"id\") ON DELETE {action}", reference.to));
            }
            let alter = Table::alter().table(self.name).add_column(column).take();
            match engine {
                Engine::Sqlite => alter.to_string(SqliteQueryBuilder),
                Engine::Postgres => alter.to_string(PostgresQueryBuilder),
            }
        })
    }

    /// `id`, assigned by the database and never given twice.
    pub(super) fn id(&mut self) -> &mut Self {
        self.col(ColumnDef::new("id").big_integer().not_null().auto_increment().primary_key())
    }

    /// `id`, which is the id of a row of `parent`: the two are one object.
    pub(super) fn id_of(&mut self, parent: &'static str) -> &mut Self {
        self.references.push(Reference { column: "id", to: parent, gone: Gone::Row });
        self.col(ColumnDef::new("id").big_integer().not_null().primary_key())
    }

    pub(super) fn primary_text(&mut self, name: &'static str) -> &mut Self {
        self.col(ColumnDef::new(name).text().not_null().primary_key())
    }

    pub(super) fn primary_bytes(&mut self, name: &'static str) -> &mut Self {
        self.col(ColumnDef::new(name).blob().not_null().primary_key())
    }

    pub(super) fn text(&mut self, name: &'static str) -> &mut Self {
        self.col(ColumnDef::new(name).text().not_null().default(""))
    }

    pub(super) fn texts(&mut self, names: &[&'static str]) -> &mut Self {
        names.iter().fold(self, |table, name| table.text(name))
    }

    pub(super) fn opt_text(&mut self, name: &'static str) -> &mut Self {
        self.col(ColumnDef::new(name).text())
    }

    pub(super) fn opt_texts(&mut self, names: &[&'static str]) -> &mut Self {
        names.iter().fold(self, |table, name| table.opt_text(name))
    }

    pub(super) fn bytes(&mut self, name: &'static str) -> &mut Self {
        self.col(ColumnDef::new(name).blob().not_null())
    }

    pub(super) fn opt_bytes(&mut self, name: &'static str) -> &mut Self {
        self.col(ColumnDef::new(name).blob())
    }

    pub(super) fn int(&mut self, name: &'static str, default: i64) -> &mut Self {
        self.col(ColumnDef::new(name).big_integer().not_null().default(default))
    }

    pub(super) fn ints(&mut self, names: &[&'static str]) -> &mut Self {
        names.iter().fold(self, |table, name| table.int(name, 0))
    }

    pub(super) fn opt_int(&mut self, name: &'static str) -> &mut Self {
        self.col(ColumnDef::new(name).big_integer())
    }

    pub(super) fn real(&mut self, name: &'static str, default: f64) -> &mut Self {
        self.col(ColumnDef::new(name).double().not_null().default(default))
    }

    pub(super) fn flag(&mut self, name: &'static str, default: bool) -> &mut Self {
        self.col(ColumnDef::new(name).boolean().not_null().default(default))
    }

    pub(super) fn flags(&mut self, names: &[&'static str]) -> &mut Self {
        names.iter().fold(self, |table, name| table.flag(name, false))
    }

    pub(super) fn time(&mut self, name: &'static str) -> &mut Self {
        self.col(ColumnDef::new(name).big_integer().not_null())
    }

    pub(super) fn opt_time(&mut self, name: &'static str) -> &mut Self {
        self.col(ColumnDef::new(name).big_integer())
    }

    pub(super) fn reference(&mut self, column: &'static str, to: &'static str, gone: Gone) -> &mut Self {
        self.references.push(Reference { column, to, gone });
        self.col(ColumnDef::new(column).big_integer().not_null())
    }

    pub(super) fn opt_reference(&mut self, column: &'static str, to: &'static str, gone: Gone) -> &mut Self {
        self.references.push(Reference { column, to, gone });
        self.col(ColumnDef::new(column).big_integer())
    }

    /// `created`, `modified`.
    pub(super) fn stamped(&mut self) -> &mut Self {
        self.time("created").time("modified")
    }

    /// `created`, `modified` and by whom.
    pub(super) fn tracked(&mut self) -> &mut Self {
        self.stamped().opt_reference("created_by_id", "users", Gone::Null).opt_reference(
            "modified_by_id",
            "users",
            Gone::Null,
        )
    }

    pub(super) fn primary(&mut self, columns: &[&'static str]) -> &mut Self {
        let mut index = Index::create();
        for column in columns {
            index.col(*column);
        }
        self.create.primary_key(&mut index);
        self
    }
}
