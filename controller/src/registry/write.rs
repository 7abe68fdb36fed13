//! Bodies in: what a client sent, checked against the declaration, and the statements that keep it.
//!
//! Read-only and unknown fields are ignored, as clients send back whole objects. Errors are collected for all fields
//! at once, in the words that clients know.

use std::collections::BTreeMap;

use sea_query::{Expr, ExprTrait, InsertStatement, Query, UpdateStatement};
use serde_json::{Map, Value};

use super::field::Preset;
use super::{Field, Kind, Mode, Resource};

/// What is wrong with which field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Errors(BTreeMap<String, Vec<String>>);

impl Errors {
    /// One error of one field.
    pub fn one(field: &str, text: impl Into<String>) -> Self {
        let mut errors = Self::default();
        errors.add(field, text);
        errors
    }

    /// Adds an error.
    pub fn add(&mut self, field: &str, text: impl Into<String>) {
        self.0.entry(field.to_owned()).or_default().push(text.into());
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `Err(self)` if anything is wrong.
    pub fn into_result(self) -> Result<(), Self> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }

    /// `{field: [texts]}`.
    pub fn into_json(self) -> Value {
        self.0.into_iter().map(|(field, texts)| (field, Value::from(texts))).collect::<Map<_, _>>().into()
    }
}

/// What is to be written: field names and values that fit their declarations.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Whose fields these are.
    pub resource: &'static Resource,
    /// What the rules of the resource carry from the check to the writing.
    pub aside: Map<String, Value>,
    values: Map<String, Value>,
}

impl Draft {
    /// Reads the body of a creation: what is missing gets its preset.
    ///
    /// # Errors
    /// [`Errors`], for the client.
    pub fn create(resource: &'static Resource, body: &Map<String, Value>) -> Result<Self, Errors> {
        let (mut draft, mut errors) = Self::read(resource, body);
        for field in writable(resource) {
            if draft.values.contains_key(field.name) || body.contains_key(field.name) {
                continue;
            }
            if field.required {
                errors.add(field.name, "This field is required.");
            } else if !field.computed && field.mode == Mode::ReadWrite {
                draft.values.insert(field.name.to_owned(), preset(field));
            }
        }
        errors.into_result().map(|()| draft)
    }

    /// Reads the body of a change. `whole` is a PUT: required fields must be there, others stay as they are.
    ///
    /// # Errors
    /// [`Errors`], for the client.
    pub fn update(
        resource: &'static Resource,
        body: &Map<String, Value>,
        whole: bool,
    ) -> Result<Self, Errors> {
        let (draft, mut errors) = Self::read(resource, body);
        if whole {
            for field in writable(resource).filter(|field| field.required && !body.contains_key(field.name)) {
                errors.add(field.name, "This field is required.");
            }
        }
        errors.into_result().map(|()| draft)
    }

    fn read(resource: &'static Resource, body: &Map<String, Value>) -> (Self, Errors) {
        let mut errors = Errors::default();
        let mut values = Map::new();
        for field in writable(resource) {
            let Some(value) = body.get(field.name) else { continue };
            match taken(field, value) {
                Ok(value) => {
                    values.insert(field.name.to_owned(), value);
                }
                Err(text) => errors.add(field.name, text),
            }
        }
        (Self { resource, aside: Map::new(), values }, errors)
    }

    /// An empty draft, for rows that are not made from a body.
    pub fn empty(resource: &'static Resource) -> Self {
        Self { resource, aside: Map::new(), values: Map::new() }
    }

    /// Whether the field is to be written.
    pub fn has(&self, field: &str) -> bool {
        self.values.contains_key(field)
    }

    /// Whether anything is to be written.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The value of a field, if it is to be written.
    pub fn value(&self, field: &str) -> Option<&Value> {
        self.values.get(field)
    }

    /// The text of a field, empty if it is not to be written.
    pub fn text(&self, field: &str) -> &str {
        self.values.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// The number of a field.
    pub fn int(&self, field: &str) -> Option<i64> {
        self.values.get(field).and_then(Value::as_i64)
    }

    /// Writes this value, whatever the client sent.
    pub fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.values.insert(field.to_owned(), value.into());
    }

    /// Takes a field out; what it would have been.
    pub fn take(&mut self, field: &str) -> Option<Value> {
        self.values.shift_remove(field)
    }

    /// All that is to be written.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The objects it points to: field, family, id.
    pub fn relations(&self) -> impl Iterator<Item = (&'static str, &'static Resource, i64)> {
        self.resource.fields.iter().filter_map(|field| match field.kind {
            Kind::Id(of) => self.int(field.name).map(|id| (field.name, of, id)),
            _ => None,
        })
    }

    /// The insertion into the table that has the id; with `extra` columns. The other statement wants that id.
    pub fn insert(&self, extra: &[(&'static str, sea_query::Value)]) -> Insert {
        let mut first = Query::insert();
        let mut second = None;
        let parent = self.resource.table.parent;
        let (mut columns, mut values): (Vec<String>, Vec<Expr>) = (Vec::new(), Vec::new());
        for (column, value) in extra {
            columns.push((*column).to_owned());
            values.push(Expr::val(value.clone()));
        }
        if let (Some(kind), _) = (self.resource.table.kind, parent) {
            columns.push("kind".to_owned());
            values.push(Expr::val(kind));
        }
        let (mut own_columns, mut own_values): (Vec<String>, Vec<Expr>) = (Vec::new(), Vec::new());
        for (field, value) in self.stored() {
            let (columns, values) = if parent.is_some() && !field.shared {
                (&mut own_columns, &mut own_values)
            } else {
                (&mut columns, &mut values)
            };
            columns.push(field.column_name());
            values.push(Expr::val(cell(field, value)));
        }
        first.into_table(parent.unwrap_or(self.resource.table.name)).columns(columns);
        first.values_panic(values);
        if parent.is_some() {
            second = Some((self.resource.table.name, own_columns, own_values));
        }
        Insert { first, second }
    }

    /// The changes, one statement for each table. `extra` columns belong to the table that has the times.
    pub fn updates(&self, id: i64, extra: &[(&'static str, sea_query::Value)]) -> Vec<UpdateStatement> {
        let parent = self.resource.table.parent;
        let mut own = Query::update();
        let mut shared = Query::update();
        let (mut own_set, mut shared_set) = (false, false);
        let mut set = |in_parent: bool, column: String, value: sea_query::Value| {
            let (update, any) =
                if in_parent { (&mut shared, &mut shared_set) } else { (&mut own, &mut own_set) };
            update.value(column, value);
            *any = true;
        };
        for (column, value) in extra {
            set(parent.is_some(), (*column).to_owned(), value.clone());
        }
        for (field, value) in self.stored() {
            set(parent.is_some() && field.shared, field.column_name(), cell(field, value));
        }
        let mut updates = Vec::new();
        if own_set {
            updates.push(own.table(self.resource.table.name).and_where(Expr::col("id").eq(id)).take());
        }
        if let (true, Some(parent)) = (shared_set, parent) {
            updates.push(shared.table(parent).and_where(Expr::col("id").eq(id)).take());
        }
        updates
    }

    fn stored(&self) -> impl Iterator<Item = (&'static Field, &Value)> {
        self.values.iter().filter_map(|(name, value)| {
            let field = self.resource.field(name).filter(|field| !field.computed && !write_only_id(field))?;
            Some((field, value))
        })
    }
}

/// A write-only relation has a column of its own; other write-only fields are for the rules.
fn write_only_id(field: &Field) -> bool {
    field.mode == Mode::WriteOnly && !matches!(field.kind, Kind::Id(_))
}

/// The statements that make an object.
pub struct Insert {
    /// Gives the id.
    pub first: InsertStatement,
    second: Option<(&'static str, Vec<String>, Vec<Expr>)>,
}

impl Insert {
    /// The row that shares the id of the first, if the resource has one.
    pub fn second(self, id: i64) -> Option<InsertStatement> {
        let (table, mut columns, mut values) = self.second?;
        columns.push("id".to_owned());
        values.push(Expr::val(id));
        Some(Query::insert().into_table(table).columns(columns).values_panic(values).take())
    }
}

/// The fields a body may have.
pub fn writable(resource: &'static Resource) -> impl Iterator<Item = &'static Field> {
    resource.fields.iter().filter(|field| field.mode != Mode::ReadOnly)
}

/// What a field has when it is not given.
pub fn preset(field: &Field) -> Value {
    match (field.preset, field.kind) {
        (Preset::Text(text), _) => text.into(),
        (Preset::Int(number), _) => number.into(),
        (Preset::True, _) => true.into(),
        (Preset::Empty, _) if field.null => Value::Null,
        (Preset::Empty, Kind::Text(_) | Kind::Variables | Kind::Choice(_)) => "".into(),
        (Preset::Empty, Kind::Int(..) | Kind::IntChoice(_)) => 0.into(),
        (Preset::Empty, Kind::Float) => 0.0.into(),
        (Preset::Empty, Kind::Bool) => false.into(),
        (Preset::Empty, Kind::Json) => Value::Object(Map::new()),
        (Preset::Empty, Kind::Time | Kind::Id(_)) => Value::Null,
    }
}

/// Reads a value as a field takes it. The types are as lenient as clients expect: numbers in quotes, 0 and 1 for
/// false and true, null for an empty text, an empty choice, and false.
///
/// # Errors
/// The sentence for the client.
pub fn taken(field: &Field, value: &Value) -> Result<Value, String> {
    if value.is_null() {
        return match field.kind {
            _ if field.null && !field.required => Ok(Value::Null),
            // Clients send null for what they leave unset, as AWX has taken it for ever: `module_args` of a ping.
            Kind::Text(_) | Kind::Variables if !field.required => Ok("".into()),
            Kind::Bool if !field.required => Ok(false.into()),
            Kind::Choice(choices) if !field.required && choices.iter().any(|(value, _)| value.is_empty()) => {
                Ok("".into())
            }
            _ => Err("This field may not be null.".to_owned()),
        };
    }
    match field.kind {
        Kind::Text(max) => text(field, value, max),
        Kind::Variables => match value {
            Value::Object(_) => Ok(value.to_string().into()),
            _ => {
                let value = text(field, value, 0)?;
                check_variables(value.as_str().unwrap_or_default())?;
                Ok(value)
            }
        },
        Kind::Int(least, most) => {
            let number = whole(value).ok_or("A valid integer is required.")?;
            if number < least {
                return Err(format!("Ensure this value is greater than or equal to {least}."));
            }
            if number > most {
                return Err(format!("Ensure this value is less than or equal to {most}."));
            }
            Ok(number.into())
        }
        Kind::Float => {
            let number = match value {
                Value::Number(number) => number.as_f64(),
                Value::String(text) => text.trim().parse().ok(),
                _ => None,
            };
            let number = number.filter(|number| number.is_finite()).ok_or("A valid number is required.")?;
            Ok(number.into())
        }
        Kind::Bool => boolean(value).map(Value::Bool).ok_or_else(|| "Must be a valid boolean.".to_owned()),
        Kind::Choice(choices) => {
            let given = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            if choices.iter().any(|(choice, _)| *choice == given) && !(field.required && given.is_empty()) {
                return Ok(given.into());
            }
            Err(format!("\"{}\" is not a valid choice.", cut(&given)))
        }
        Kind::IntChoice(choices) => match whole(value) {
            Some(number) if choices.iter().any(|(choice, _)| *choice == number) => Ok(number.into()),
            _ => Err(format!("\"{}\" is not a valid choice.", cut(value.to_string().trim_matches('"')))),
        },
        Kind::Json => match value {
            // The command line sends objects as text where it does not know better.
            Value::String(text) if text.trim_start().starts_with(['{', '[']) => {
                serde_json::from_str(text).map_err(|_| "Value must be valid JSON.".to_owned())
            }
            Value::String(text) if text.is_empty() => Ok(Value::Object(Map::new())),
            other => Ok(other.clone()),
        },
        Kind::Id(_) => match value {
            Value::String(text) if text.is_empty() && field.null && !field.required => Ok(Value::Null),
            Value::Number(_) | Value::String(_) => match whole(value) {
                Some(id) => Ok(id.into()),
                None => Err("Incorrect type. Expected pk value, received str.".to_owned()),
            },
            other => Err(format!("Incorrect type. Expected pk value, received {}.", type_of(other))),
        },
        Kind::Time => Err("This field is read-only.".to_owned()),
    }
}

fn text(field: &Field, value: &Value, max: usize) -> Result<Value, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return Err("Not a valid string.".to_owned()),
    };
    if text.contains('\0') {
        return Err("Null characters are not allowed.".to_owned());
    }
    if field.required && text.trim().is_empty() {
        return Err("This field may not be blank.".to_owned());
    }
    if max > 0 && text.chars().count() > max {
        return Err(format!("Ensure this field has no more than {max} characters."));
    }
    Ok(text.into())
}

fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| {
            number
                .as_f64()
                .filter(|number| number.fract() == 0.0 && number.abs() < 9e15)
                .map(|number| number as i64)
        }),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// True and false as clients write them.
pub fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::Number(number) => match number.as_i64() {
            Some(0) => Some(false),
            Some(1) => Some(true),
            _ => None,
        },
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "t" | "yes" | "y" | "on" => Some(true),
            "false" | "0" | "f" | "no" | "n" | "off" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// Variables are a JSON or YAML object, or nothing.
///
/// # Errors
/// The sentence for the client.
pub fn check_variables(text: &str) -> Result<(), String> {
    parse_variables(text).map(drop)
}

/// Reads variables: JSON first, then YAML with bounded aliases and depth.
///
/// # Errors
/// The sentence for the client.
pub fn parse_variables(text: &str) -> Result<Map<String, Value>, String> {
    if text.trim().is_empty() || text.trim() == "---" {
        return Ok(Map::new());
    }
    let parsed = serde_json::from_str::<Value>(text).or_else(|json| {
        serde_saphyr::from_str::<Value>(text).map_err(|yaml| {
            let yaml = yaml.to_string();
            let line = yaml.lines().next().unwrap_or_default();
            format!("Cannot parse as JSON (error: {json}) or YAML (error: {}).", cut(line))
        })
    })?;
    match parsed {
        Value::Object(object) => Ok(object),
        Value::Null => Ok(Map::new()),
        other => Err(format!("Input type `{}` is not a dictionary", type_of(&other))),
    }
}

/// The name of a JSON value's type, in the words of the API.
pub fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
}

fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}

/// The stored form of a value that fits the field.
fn cell(field: &Field, value: &Value) -> sea_query::Value {
    match field.kind {
        Kind::Text(_) | Kind::Variables | Kind::Choice(_) => {
            sea_query::Value::String(value.as_str().map(str::to_owned))
        }
        Kind::Json => sea_query::Value::String((!value.is_null()).then(|| value.to_string())),
        Kind::Int(..) | Kind::IntChoice(_) | Kind::Id(_) | Kind::Time => {
            sea_query::Value::BigInt(value.as_i64())
        }
        Kind::Float => sea_query::Value::Double(value.as_f64()),
        Kind::Bool => sea_query::Value::Bool(value.as_bool()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::{HOSTS, INVENTORIES, JOB_TEMPLATES, ORGANIZATIONS};

    fn errors(resource: &'static Resource, body: Value) -> Value {
        let Value::Object(body) = body else { panic!("a body is an object") };
        match Draft::create(resource, &body) {
            Ok(draft) => panic!("taken: {:?}", draft.values),
            Err(errors) => errors.into_json(),
        }
    }

    #[test]
    fn all_errors_of_a_body_are_told_at_once_in_known_words() {
        assert_eq!(errors(&ORGANIZATIONS, json!({})), json!({"name": ["This field is required."]}));
        assert_eq!(
            errors(
                &JOB_TEMPLATES,
                json!({"name": "", "forks": 201, "verbosity": 6, "job_type": "scan", "diff_mode": "perhaps",
                       "inventory": {}, "timeout": null, "extra_vars": "[1]", "limit": []}),
            ),
            json!({
                "name": ["This field may not be blank."],
                "forks": ["Ensure this value is less than or equal to 200."],
                "verbosity": ["\"6\" is not a valid choice."],
                "job_type": ["\"scan\" is not a valid choice."],
                "diff_mode": ["Must be a valid boolean."],
                "inventory": ["Incorrect type. Expected pk value, received dict."],
                "timeout": ["This field may not be null."],
                "extra_vars": ["Input type `list` is not a dictionary"],
                "limit": ["Not a valid string."],
            })
        );
        let long = "x".repeat(513);
        let expected = json!({"name": ["Ensure this field has no more than 512 characters."]});
        assert_eq!(errors(&ORGANIZATIONS, json!({"name": long})), expected);
    }

    #[test]
    fn values_are_taken_as_leniently_as_clients_send_them() {
        let body =
            json!({"name": 7, "inventory": "3", "enabled": 0, "variables": {"a": 1}, "unknown": 1, "id": 9});
        let draft = Draft::create(&HOSTS, body.as_object().unwrap()).unwrap();
        assert_eq!((draft.text("name"), draft.int("inventory")), ("7", Some(3)));
        assert_eq!(draft.value("enabled"), Some(&json!(false)));
        assert_eq!(draft.text("variables"), r#"{"a":1}"#);
        assert!(!draft.has("unknown") && !draft.has("id"));
        let body = json!({"name": "x", "organization": 1, "kind": null, "host_filter": null, "description": null,
                          "variables": null, "prevent_instance_group_fallback": null});
        let draft = Draft::create(&INVENTORIES, body.as_object().unwrap()).unwrap();
        assert_eq!((draft.text("description"), draft.text("variables")), ("", ""));
        assert_eq!(draft.value("prevent_instance_group_fallback"), Some(&json!(false)));
        assert_eq!((draft.value("kind"), draft.value("host_filter")), (Some(&json!("")), Some(&Value::Null)));
    }

    #[test]
    fn variables_keep_their_text() {
        let text = "---\n# mine\nb: [1, 2]\n";
        let body = json!({"name": "x", "inventory": 1, "variables": text});
        assert_eq!(Draft::create(&HOSTS, body.as_object().unwrap()).unwrap().text("variables"), text);
        assert_eq!(Value::Object(parse_variables(text).unwrap()), json!({"b": [1, 2]}));
        assert!(parse_variables("a: [").unwrap_err().starts_with("Cannot parse as JSON"));
        assert!(parse_variables("").unwrap().is_empty());
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (name, before) in ('b'..='k').zip('a'..='j') {
            let uses = vec![format!("*{before}"); 9].join(",");
            bomb.push_str(&format!("{name}: &{name} [{uses}]\n"));
        }
        assert!(parse_variables(&bomb).is_err());
    }
}
