//! What OPTIONS says of a resource: which fields there are, what they take, which can be filtered.
//!
//! The command line builds its flags from this, so a field that is missing here does not exist for it.

use serde_json::{Map, Value, json};

use super::field::Preset;
use super::{Field, Kind, Mode, Resource};

/// The document for a list (`POST`) or an object (`PUT`).
pub fn document(resource: &'static Resource, writes: Option<&str>, name: &str) -> Map<String, Value> {
    let mut actions = Map::new();
    if let Some(verb) = writes {
        actions.insert(verb.to_owned(), writable(resource).into());
    }
    actions.insert("GET".to_owned(), readable(resource).into());
    let mut document = Map::new();
    document.insert("name".to_owned(), name.into());
    document.insert("description".to_owned(), description(resource, writes).into());
    document.insert("renders".to_owned(), json!(["application/json"]));
    document.insert("parses".to_owned(), json!(["application/json"]));
    document.insert("actions".to_owned(), actions.into());
    document.insert("types".to_owned(), json!([resource.type_name]));
    document.insert("search_fields".to_owned(), json!(resource.search));
    document.insert("related_search_fields".to_owned(), related_search(resource));
    if let Some(family) = super::roles::family(resource) {
        let fields: Vec<&str> = family.roles().map(|role| role.field).collect();
        document.insert("object_roles".to_owned(), json!(fields));
    }
    document.insert("max_page_size".to_owned(), 200.into());
    document
}

/// The document of an action: what its POST takes.
pub fn action(name: &str, post: Map<String, Value>) -> Value {
    json!({
        "name": name,
        "description": "",
        "renders": ["application/json"],
        "parses": ["application/json"],
        "actions": {"POST": post, "GET": {}},
    })
}

/// What a POST takes, field by field.
pub fn writable(resource: &'static Resource) -> Map<String, Value> {
    super::write::writable(resource).map(|field| (field.name.to_owned(), meta(field, true))).collect()
}

fn readable(resource: &'static Resource) -> Map<String, Value> {
    let mut fields = Map::new();
    let implied = |label: &str, kind: &str, help: &str, filterable: bool| json!({"type": kind, "label": label, "help_text": help, "filterable": filterable});
    fields.insert(
        "id".to_owned(),
        implied("ID", "integer", &format!("Database ID for this {}.", resource.label.to_lowercase()), true),
    );
    let types: Vec<[&str; 2]> = match resource.table.kin {
        [] => vec![[resource.type_name, resource.label]],
        kin => kin.iter().map(|kin| [kin.type_name, kin.label]).collect(),
    };
    fields.insert(
        "type".to_owned(),
        json!({"type": "choice", "label": "Type", "help_text": "Data type for this object.",
               "filterable": true, "choices": types}),
    );
    fields.insert("url".to_owned(), implied("URL", "string", "URL for this object.", false));
    fields.insert(
        "related".to_owned(),
        implied("Related", "object", "Data structure with URLs of related resources.", false),
    );
    fields.insert(
        "summary_fields".to_owned(),
        implied(
            "Summary Fields",
            "object",
            "Data structure with name/description for related resources.",
            false,
        ),
    );
    if resource.table.stamped {
        let label = resource.label.to_lowercase();
        let created = format!("Timestamp when this {label} was created.");
        fields.insert("created".to_owned(), implied("Created", "datetime", &created, true));
        let modified = format!("Timestamp when this {label} was last modified.");
        fields.insert("modified".to_owned(), implied("Modified", "datetime", &modified, true));
    }
    for field in resource.fields.iter().filter(|field| field.mode != Mode::WriteOnly && !field.secret) {
        fields.insert(field.name.to_owned(), meta(field, false));
    }
    fields
}

/// What OPTIONS says of one field.
pub fn meta(field: &Field, write: bool) -> Value {
    let mut meta = Map::new();
    meta.insert("type".to_owned(), type_of(field).into());
    if write {
        meta.insert("required".to_owned(), field.required.into());
    }
    meta.insert("label".to_owned(), field.shown_label().into());
    if !field.help.is_empty() {
        meta.insert("help_text".to_owned(), field.help.into());
    }
    match field.kind {
        Kind::Text(max) if max > 0 => {
            meta.insert("max_length".to_owned(), max.into());
        }
        Kind::Int(least, most) if write => {
            meta.insert("min_value".to_owned(), least.into());
            meta.insert("max_value".to_owned(), most.into());
        }
        Kind::Choice(choices) => {
            meta.insert("choices".to_owned(), json!(choices));
        }
        Kind::IntChoice(choices) => {
            meta.insert("choices".to_owned(), json!(choices));
        }
        _ => {}
    }
    if !write {
        meta.insert("filterable".to_owned(), (field.filterable && !field.computed).into());
    } else if !field.required {
        let preset = super::write::preset(field);
        let tells = !matches!(field.preset, Preset::Empty) || !preset.is_null();
        if tells && !matches!(field.kind, Kind::Id(_)) {
            meta.insert("default".to_owned(), preset);
        }
    }
    meta.into()
}

fn type_of(field: &Field) -> &'static str {
    match field.kind {
        Kind::Text(_) => "string",
        // Clients parse these as objects and send them as text.
        Kind::Variables => "json",
        Kind::Int(..) => "integer",
        Kind::Float => "float",
        Kind::Bool => "boolean",
        Kind::Choice(_) | Kind::IntChoice(_) => "choice",
        Kind::Json => "json",
        Kind::Time => "datetime",
        Kind::Id(_) => "id",
    }
}

fn related_search(resource: &'static Resource) -> Value {
    let relations =
        resource.fields.iter().filter(|field| !field.computed).filter_map(|field| match field.kind {
            Kind::Id(_) => Some(format!("{}__search", field.name)),
            _ => None,
        });
    relations.collect::<Vec<_>>().into()
}

/// The description is Markdown; clients that do not see `POST` read the fields out of it.
fn description(resource: &'static Resource, writes: Option<&str>) -> String {
    let mut text = format!("# {}:\n\n", resource.label);
    if writes.is_some() {
        for field in super::write::writable(resource) {
            let required = if field.required { ", required" } else { "" };
            let help = field.help.trim_end_matches('.');
            text.push_str(&format!("* `{}`: {help} ({}{required})\n", field.name, type_of(field)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{ALL, JOB_TEMPLATES, ORGANIZATIONS, USERS};

    #[test]
    fn a_list_says_what_the_command_line_parses() {
        let document = Value::Object(document(&JOB_TEMPLATES, Some("POST"), "Job Template List"));
        let post = &document["actions"]["POST"];
        assert_eq!(post["name"]["required"], true);
        assert_eq!(post["name"]["type"], "string");
        assert_eq!(post["inventory"]["type"], "id");
        assert_eq!(post["extra_vars"]["type"], "json");
        assert_eq!(post["job_type"]["choices"], json!([["run", "Run"], ["check", "Check"]]));
        assert_eq!(post["job_type"]["default"], "run");
        assert_eq!(post["verbosity"]["choices"][0], json!([0, "0 (Normal)"]));
        assert!(post.get("status").is_none(), "read-only fields are not offered");
        let get = &document["actions"]["GET"];
        assert_eq!(get["id"]["type"], "integer");
        assert_eq!(get["created"]["type"], "datetime");
        assert_eq!(get["status"]["filterable"], true);
        assert!(get["name"].get("required").is_none());
        assert_eq!(document["max_page_size"], 200);
    }

    #[test]
    fn without_the_right_to_create_there_is_no_post() {
        let document = Value::Object(document(&ORGANIZATIONS, None, "Organization List"));
        assert!(document["actions"].get("POST").is_none());
    }

    #[test]
    fn secrets_can_be_written_and_are_not_among_what_is_read() {
        let document = Value::Object(document(&USERS, Some("POST"), "User List"));
        assert_eq!(document["actions"]["POST"]["password"]["type"], "string");
        assert!(document["actions"]["GET"].get("password").is_none());
    }

    #[test]
    fn every_type_is_one_the_clients_know() {
        let known = ["string", "integer", "float", "boolean", "choice", "json", "datetime", "id", "object"];
        for resource in ALL {
            for (name, meta) in readable(resource).iter().chain(&writable(resource)) {
                assert!(known.contains(&meta["type"].as_str().unwrap()), "{resource:?} {name}");
            }
        }
    }
}
