//! Rows out: the query that fetches objects with what they show of others, and the objects made of its rows.
//!
//! A page of objects is one query, however many relations they have: each relation is a join on the other's id.

use sea_query::{Expr, ExprTrait, JoinType, Query, SelectStatement};
use serde_json::{Map, Number, Value, json};

use super::{CREDENTIALS, Field, Kind, Mode, Resource, USERS, parent_alias, roles};
use crate::store::core::{Error, Row};

/// The alias of the table whose objects are fetched.
pub const BASE: &str = "b";

/// An object on its way out. What a resource adds of its own goes into these maps before [`Record::into_json`].
#[derive(Debug, Clone)]
pub struct Record {
    /// The family it shows as.
    pub resource: &'static Resource,
    /// Its id.
    pub id: i64,
    /// When it was made and changed, as text.
    pub stamps: Option<(Value, Value)>,
    /// Its fields.
    pub fields: Map<String, Value>,
    /// What it shows of others.
    pub summary: Map<String, Value>,
    /// Addresses of what belongs to it.
    pub related: Map<String, Value>,
}

impl Record {
    /// Its address.
    pub fn url(&self) -> String {
        self.resource.url(self.id)
    }

    /// A field's text, empty if it has none.
    pub fn text(&self, field: &str) -> &str {
        self.fields.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// A field's number.
    pub fn int(&self, field: &str) -> Option<i64> {
        self.fields.get(field).and_then(Value::as_i64)
    }

    /// A field's truth.
    pub fn flag(&self, field: &str) -> bool {
        self.fields.get(field).and_then(Value::as_bool).unwrap_or_default()
    }

    /// Sets a field, in its place if it has one.
    pub fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.fields.insert(field.to_owned(), value.into());
    }

    /// The object as clients see it.
    pub fn into_json(self) -> Map<String, Value> {
        let mut object = Map::with_capacity(self.fields.len() + 7);
        object.insert("id".to_owned(), self.id.into());
        object.insert("type".to_owned(), self.resource.type_name.into());
        object.insert("url".to_owned(), self.resource.url(self.id).into());
        object.insert("related".to_owned(), self.related.into());
        object.insert("summary_fields".to_owned(), self.summary.into());
        if let Some((created, modified)) = self.stamps {
            object.insert("created".to_owned(), created);
            object.insert("modified".to_owned(), modified);
        }
        object.extend(self.fields);
        object
    }
}

/// The rows of a resource, without columns: for counting, for sub-queries, for picking a page.
pub fn source(resource: &Resource, alias: &str) -> SelectStatement {
    let mut select = Query::select();
    select.from_as(resource.table.name, alias.to_owned());
    let kind_alias = match resource.table.parent {
        Some(parent) => {
            let parent_alias = parent_alias(alias);
            let joined = Expr::col((parent_alias.clone(), "id")).equals((alias.to_owned(), "id"));
            select.join_as(JoinType::InnerJoin, parent, parent_alias.clone(), joined);
            parent_alias
        }
        None => alias.to_owned(),
    };
    if let Some(kind) = resource.table.kind {
        select.and_where(Expr::col((kind_alias, "kind")).eq(kind));
    }
    select
}

/// The query of whole objects; the caller adds which.
pub fn select(resource: &'static Resource, detail: bool) -> SelectStatement {
    let mut select = source(resource, BASE);
    for column in columns(resource, detail) {
        match column {
            Column::Id => {
                select.column((BASE, "id"));
            }
            Column::Kind => {
                select.column((BASE, "kind"));
            }
            Column::Field(field) => {
                select.column((resource.alias_of(&field, BASE), field.column_name()));
            }
        }
    }
    for (number, relation) in relations(resource, detail).into_iter().enumerate() {
        let alias = format!("r{number}");
        join(&mut select, relation.of, &alias, (resource.alias_of(&relation.field, BASE), &relation.field));
        for (item, name) in relation.of.summary.iter().enumerate() {
            let (key, rest) = name.split_once("__").unwrap_or((name, ""));
            let field = relation.of.field(key).or_else(|| relation.of.field(key.trim_end_matches("_id")));
            let Some(field) = field else { continue };
            match (field.kind, rest) {
                (Kind::Id(further), rest) if !rest.is_empty() => {
                    let further_alias = format!("{alias}x{item}");
                    join(&mut select, further, &further_alias, (relation.of.alias_of(field, &alias), field));
                    if let Some(shown) = further.field(rest) {
                        select.column((further.alias_of(shown, &further_alias), shown.column_name()));
                    }
                }
                _ => {
                    select.column((relation.of.alias_of(field, &alias), field.column_name()));
                }
            }
        }
    }
    select
}

/// Reads one row of [`select`].
///
/// # Errors
/// If the row is not of that query, or a value is not what its column says.
pub fn record(resource: &'static Resource, detail: bool, row: &Row) -> Result<Record, Error> {
    let mut cells = Cells { row, next: 0 };
    let mut record = Record {
        resource,
        id: 0,
        stamps: None,
        fields: Map::new(),
        summary: Map::new(),
        related: Map::new(),
    };
    let mut stamps = (Value::Null, Value::Null);
    let mut authors = [None, None];
    for column in columns(resource, detail) {
        match column {
            Column::Id => record.id = cells.take::<i64>()?,
            Column::Kind => {
                let kind: String = cells.take()?;
                let kin = resource.table.kin.iter().find(|kin| kin.type_name == kind);
                record.resource = kin.copied().unwrap_or(resource);
            }
            Column::Field(field) => match field.name {
                "created" => stamps.0 = cells.value(&field)?,
                "modified" => stamps.1 = cells.value(&field)?,
                "created_by" => authors[0] = cells.take::<Option<i64>>()?,
                "modified_by" => authors[1] = cells.take::<Option<i64>>()?,
                name => {
                    let value = cells.value(&field)?;
                    record.fields.insert(name.to_owned(), value);
                }
            },
        }
    }
    record.stamps = resource.table.stamped.then_some(stamps);
    relate(&mut record, authors);
    for relation in relations(resource, detail) {
        let mut shown = Map::new();
        for name in relation.of.summary {
            let path = name.split_once("__");
            let field = path.map_or_else(
                || {
                    relation
                        .of
                        .field(name)
                        .or_else(|| relation.of.field(name.trim_end_matches("_id")))
                        .copied()
                },
                |(through, name)| match relation.of.field(through).map(|field| field.kind) {
                    Some(Kind::Id(further)) => further.field(name).copied(),
                    _ => None,
                },
            );
            let Some(field) = field else { continue };
            shown.insert((*name).to_owned(), cells.value(&field)?);
        }
        let id = match relation.field.name {
            "created_by" => authors[0],
            "modified_by" => authors[1],
            name => record.int(name),
        };
        if let Some(id) = id {
            record.summary.insert(relation.field.name.to_owned(), shown_of(relation.of, id, shown));
        }
    }
    if let Some(family) = roles::family(record.resource) {
        let shown = family.roles().filter_map(|role| shown_role(family, role.field, record.id));
        record.summary.insert("object_roles".to_owned(), shown.collect::<Map<_, _>>().into());
    }
    let capabilities = record.resource.capabilities;
    if !capabilities.is_empty() {
        let all: Map<String, Value> =
            capabilities.iter().map(|name| ((*name).to_owned(), Value::Bool(true))).collect();
        record.summary.insert("user_capabilities".to_owned(), all.into());
    }
    order_fields(&mut record, detail);
    Ok(record)
}

/// What a value of the API says of one stored moment.
pub fn time_json(micros: i64) -> Value {
    match jiff::Timestamp::from_microsecond(micros) {
        Ok(time) => Value::String(format!("{time:.6}")),
        Err(_) => Value::Null,
    }
}

enum Column {
    Id,
    Kind,
    Field(Field),
}

struct Relation {
    field: Field,
    of: &'static Resource,
}

/// The columns of the object itself, in the order of the query.
fn columns(resource: &'static Resource, detail: bool) -> impl Iterator<Item = Column> {
    let implied = ["created", "modified", "created_by", "modified_by"];
    std::iter::once(Column::Id)
        .chain((!resource.table.kin.is_empty()).then_some(Column::Kind))
        .chain(implied.into_iter().filter_map(|name| resource.column(name)).map(Column::Field))
        .chain(shown_fields(resource, detail).filter(|field| !field.computed).map(Column::Field))
}

/// The fields an object shows, in order, those without a column included.
fn shown_fields(resource: &'static Resource, detail: bool) -> impl Iterator<Item = Field> {
    resource
        .fields
        .iter()
        .filter(move |field| field.mode != Mode::WriteOnly && (detail || !field.detail))
        .copied()
}

/// The relations whose other side is shown.
fn relations(resource: &'static Resource, detail: bool) -> Vec<Relation> {
    let authors = ["created_by", "modified_by"].into_iter().filter_map(|name| resource.column(name));
    shown_fields(resource, detail)
        .filter(|field| !field.computed)
        .chain(authors)
        .filter_map(|field| match field.kind {
            Kind::Id(of) => Some(Relation { field, of }),
            _ => None,
        })
        .collect()
}

fn join(select: &mut SelectStatement, of: &Resource, alias: &str, (from, field): (String, &Field)) {
    let own = Expr::col((alias.to_owned(), "id")).equals((from.clone(), field.column_name()));
    select.join_as(JoinType::LeftJoin, of.table.name, alias.to_owned(), own);
    if let Some(parent) = of.table.parent {
        let shared = Expr::col((parent_alias(alias), "id")).equals((from, field.column_name()));
        select.join_as(JoinType::LeftJoin, parent, parent_alias(alias), shared);
    }
}

fn shown_of(of: &Resource, id: i64, mut shown: Map<String, Value>) -> Value {
    if *of == CREDENTIALS {
        let kind = shown.shift_remove("credential_type__kind").unwrap_or_default();
        let namespace = shown.shift_remove("credential_type__namespace").unwrap_or_default();
        shown.insert("kind".to_owned(), namespace);
        shown.insert("cloud".to_owned(), (kind == "cloud").into());
        shown.insert("kubernetes".to_owned(), (kind == "kubernetes").into());
    }
    let mut object = Map::with_capacity(shown.len() + 1);
    object.insert("id".to_owned(), id.into());
    object.extend(shown);
    object.into()
}

/// A role of an object, as the object shows it.
fn shown_role(family: &roles::Family, field: &str, object: i64) -> Option<(String, Value)> {
    let mut role = Map::new();
    role.insert("description".to_owned(), roles::description(family, field).into());
    role.insert("name".to_owned(), roles::label(field).into());
    role.insert("id".to_owned(), family.id(object, field)?.into());
    if !roles::takes_teams(family, field) {
        role.insert("user_only".to_owned(), true.into());
    }
    Some((field.to_owned(), role.into()))
}

fn relate(record: &mut Record, authors: [Option<i64>; 2]) {
    let related = &mut record.related;
    for (name, author) in ["created_by", "modified_by"].into_iter().zip(authors) {
        if let Some(author) = author {
            related.insert(name.to_owned(), USERS.url(author).into());
        }
    }
    for (name, value) in &record.fields {
        let field = record.resource.field(name);
        if let (Some(Kind::Id(of)), Some(id)) = (field.map(|field| field.kind), value.as_i64()) {
            related.insert(name.clone(), of.url(id).into());
        }
    }
    let url = record.resource.url(record.id);
    let lists = record.resource.lists.iter().map(|list| list.name);
    let later = super::later::below(record.resource.path).map(|(name, _)| name);
    for name in lists.chain(record.resource.actions.iter().copied()).chain(later) {
        related.insert(name.to_owned(), format!("{url}{name}/").into());
    }
}

/// Puts the fields in the order of the declaration, with a place for each that a rule fills in later.
fn order_fields(record: &mut Record, detail: bool) {
    let mut stored = std::mem::take(&mut record.fields);
    for field in shown_fields(record.resource, detail) {
        let value = match stored.shift_remove(field.name) {
            Some(value) => value,
            None if field.computed => empty(&field),
            None => continue,
        };
        record.fields.insert(field.name.to_owned(), value);
    }
}

fn empty(field: &Field) -> Value {
    if field.secret && !field.null {
        return "$encrypted$".into();
    }
    match field.kind {
        _ if field.null => Value::Null,
        Kind::Text(_) | Kind::Variables | Kind::Choice(_) => "".into(),
        Kind::Int(..) | Kind::IntChoice(_) => 0.into(),
        Kind::Float => json!(0.0),
        Kind::Bool => false.into(),
        Kind::Json => Value::Object(Map::new()),
        Kind::Time | Kind::Id(_) => Value::Null,
    }
}

struct Cells<'r> {
    row: &'r Row,
    next: usize,
}

impl Cells<'_> {
    fn take<T: crate::store::core::Cell>(&mut self) -> Result<T, Error> {
        self.next += 1;
        self.row.at(self.next - 1)
    }

    fn value(&mut self, field: &Field) -> Result<Value, Error> {
        Ok(match field.kind {
            Kind::Text(_) | Kind::Variables | Kind::Choice(_) => {
                self.take::<Option<String>>()?.map_or(Value::Null, Value::String)
            }
            Kind::Int(..) | Kind::IntChoice(_) | Kind::Id(_) => {
                self.take::<Option<i64>>()?.map_or(Value::Null, Value::from)
            }
            Kind::Float => {
                let number = self.take::<Option<f64>>()?.and_then(Number::from_f64);
                number.map_or(Value::Null, Value::Number)
            }
            Kind::Bool => self.take::<Option<bool>>()?.map_or(Value::Null, Value::Bool),
            Kind::Time => self.take::<Option<i64>>()?.map_or(Value::Null, time_json),
            Kind::Json => match self.take::<Option<String>>()? {
                // What is stored was JSON when it came; damage shows as text rather than as an error.
                Some(text) if !text.is_empty() => serde_json::from_str(&text).unwrap_or(Value::String(text)),
                Some(_) => Value::Object(Map::new()),
                None => Value::Null,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use sea_query::SqliteQueryBuilder;

    use super::*;
    use crate::registry::ALL;
    use crate::store::core::{Class, CoreDb};

    #[test]
    fn a_page_is_one_query_with_a_join_for_each_relation() {
        let sql = select(&super::super::HOSTS, false).to_string(SqliteQueryBuilder);
        assert!(
            sql.contains(r#"LEFT JOIN "inventories" AS "r0" ON "r0"."id" = "b"."inventory_id""#),
            "{sql}"
        );
        let sql = select(&super::super::JOB_TEMPLATES, true).to_string(SqliteQueryBuilder);
        assert!(
            sql.contains(r#"INNER JOIN "unified_job_templates" AS "bp" ON "bp"."id" = "b"."id""#),
            "{sql}"
        );
        assert!(sql.contains(r#""bp"."kind" = 'job_template'"#), "{sql}");
    }

    #[tokio::test]
    async fn every_declared_column_is_in_the_database() {
        let dir = tempfile::tempdir().unwrap();
        let db = CoreDb::open(&dir.path().join("core.sqlite")).await.unwrap();
        for resource in ALL.iter().chain([&&super::super::JOB_HOST_SUMMARIES]) {
            for detail in [false, true] {
                let rows = db.all(&select(resource, detail)).await;
                assert!(rows.is_ok(), "{resource:?}: {:?}", rows.err());
            }
        }
        let tx = db.begin(Class::Bulk).await.unwrap();
        tx.commit().await.unwrap();
    }

    #[test]
    fn moments_have_microseconds_and_a_z() {
        assert_eq!(time_json(1_700_000_000_000_001), "2023-11-14T22:13:20.000001Z");
    }
}
