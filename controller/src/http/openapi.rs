//! The API in the words of OpenAPI 3.0, made from the registry: `/api/docs/?format=openapi`, and a page to read in a
//! browser at `/api/docs/`. What is not declared is not described, and what is declared is.

use axum::http::{StatusCode, header};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::{API_VERSION, Answer, html, ok};
use crate::registry::later::{self, LATER};
use crate::registry::{ALL, By, Field, JOB_HOST_SUMMARIES, Kind, Mode, Resource};

/// `/api/docs/`.
pub(super) fn docs(call: &Call) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    call.user()?;
    let asked = call.parameter("format");
    let accept = call.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let browser = asked.is_none() && accept.contains("text/html");
    if !browser {
        return ok(document());
    }
    Ok(html::answer(StatusCode::OK, "API", &page(&document())))
}

/// Methods of what is below an object and no list.
fn methods(action: &str) -> &'static [&'static str] {
    match action {
        "launch"
        | "cancel"
        | "relaunch"
        | "copy"
        | "update"
        | "update_inventory_sources"
        | "ad_hoc_commands"
        | "callback"
        | "test" => &["get", "post"],
        "survey_spec" => &["get", "post", "delete"],
        "variable_data" => &["get", "put", "patch"],
        _ => &["get"],
    }
}

/// The whole document.
pub(super) fn document() -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for name in ["ping", "config", "me", "dashboard", "mesh_visualizer", "settings", "settings/all"] {
        paths.insert(
            format!("/api/v2/{name}/"),
            json!({"get": operation(name, &format!("{name} read"), None, false)}),
        );
    }
    for resource in ALL.iter().copied().chain([&JOB_HOST_SUMMARIES]) {
        schemas.insert(resource.model.to_owned(), schema(resource, false));
        if resource.verbs.create || resource.verbs.update {
            schemas.insert(format!("{}Write", resource.model), schema(resource, true));
        }
        if *resource != JOB_HOST_SUMMARIES {
            paths.insert(resource.list_url(), list(resource));
        }
        let detail = format!("/api/v2/{}/{{id}}/", resource.path);
        paths.insert(detail.clone(), object(resource));
        for below in resource.lists {
            let title = format!("{} {}", resource.label, below.name);
            let mut path = Map::new();
            path.insert("parameters".to_owned(), json!([ID]));
            path.insert("get".to_owned(), operation(resource.path, &title, Some(below.of), true));
            let writable = match below.by {
                By::Field(_) => below.of.verbs.create,
                By::Pairs { writable, .. } => writable,
            };
            if writable {
                path.insert("post".to_owned(), attach(resource, &title));
            }
            paths.insert(format!("{detail}{}/", below.name), path.into());
        }
        for action in resource.actions {
            let mut path = Map::new();
            path.insert("parameters".to_owned(), json!([ID]));
            for method in methods(action) {
                let title = format!("{} {action} {method}", resource.label);
                path.insert((*method).to_owned(), operation(resource.path, &title, None, false));
            }
            paths.insert(format!("{detail}{action}/"), path.into());
        }
        for (name, family) in later::below(resource.path) {
            let title = format!("{} {name} (nothing yet)", resource.label);
            let get = operation(family.path, &title, None, false);
            paths.insert(format!("{detail}{name}/"), json!({"parameters": [ID], "get": get}));
        }
    }
    for family in LATER {
        let title = format!("{} list (nothing yet)", family.label);
        paths.insert(
            format!("/api/v2/{}/", family.path),
            json!({"get": operation(family.path, &title, None, false)}),
        );
    }
    json!({
        "openapi": "3.0.3",
        "info": {
            "title": "Plexus",
            "description": "The REST API of AWX, as Plexus serves it.",
            "version": API_VERSION,
        },
        "servers": [{"url": "/"}],
        "security": [{"basic": []}, {"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "token": {"type": "http", "scheme": "bearer"},
            },
            "schemas": schemas,
        },
    })
}

/// The parameter that every address of an object has.
#[derive(serde::Serialize)]
struct IdParameter {
    name: &'static str,
    r#in: &'static str,
    required: bool,
    description: &'static str,
    schema: IdSchema,
}

#[derive(serde::Serialize)]
struct IdSchema {
    r#type: &'static str,
}

const ID: IdParameter = IdParameter {
    name: "id",
    r#in: "path",
    required: true,
    description: "Its id, or its name in the form of named URLs: name++organization.",
    schema: IdSchema { r#type: "string" },
};

fn list(resource: &Resource) -> Value {
    let mut path = Map::new();
    let title = format!("{} list", resource.label);
    path.insert("get".to_owned(), operation(resource.path, &title, Some(resource), true));
    if resource.verbs.create {
        let title = format!("{} create", resource.label);
        path.insert("post".to_owned(), writes(resource, &title, "201"));
    }
    path.into()
}

fn object(resource: &Resource) -> Value {
    let mut path = Map::new();
    path.insert("parameters".to_owned(), json!([ID]));
    let title = |verb: &str| format!("{} {verb}", resource.label);
    path.insert("get".to_owned(), operation(resource.path, &title("read"), Some(resource), false));
    if resource.verbs.update {
        path.insert("put".to_owned(), writes(resource, &title("update"), "200"));
        path.insert("patch".to_owned(), writes(resource, &title("partial update"), "200"));
    }
    if resource.verbs.delete {
        let mut delete = operation(resource.path, &title("delete"), None, false);
        delete["responses"] = json!({"204": {"description": "It is gone."}, "202": {"description": "It goes."}, "4XX": error()});
        path.insert("delete".to_owned(), delete);
    }
    path.into()
}

fn operation(tag: &str, title: &str, of: Option<&Resource>, many: bool) -> Value {
    let content = match of {
        Some(resource) => {
            let one = json!({"$ref": format!("#/components/schemas/{}", resource.model)});
            let shown = match many {
                true => json!({"type": "object", "properties": {
                    "count": {"type": "integer"},
                    "next": {"type": "string", "nullable": true},
                    "previous": {"type": "string", "nullable": true},
                    "results": {"type": "array", "items": one},
                }}),
                false => one,
            };
            json!({"application/json": {"schema": shown}})
        }
        None => json!({"application/json": {"schema": {}}}),
    };
    let mut operation = json!({
        "tags": [tag],
        "summary": title,
        "operationId": title.replace([' ', '/', '(', ')'], "_").to_lowercase(),
        "responses": {"2XX": {"description": "As asked.", "content": content}, "4XX": error()},
    });
    if many {
        let parameter = |name: &str, kind: &str, words: &str| json!({"name": name, "in": "query", "description": words, "schema": {"type": kind}});
        operation["parameters"] = json!([
            parameter("page", "integer", "Number of the page, from 1."),
            parameter("page_size", "integer", "Objects of a page, at most 200."),
            parameter("cursor", "string", "Pages by cursor: empty for the first."),
            parameter("order_by", "string", "Fields, with - before those that fall."),
            parameter("search", "string", "Words to look for."),
        ]);
    }
    operation
}

fn writes(resource: &Resource, title: &str, status: &str) -> Value {
    let mut operation = operation(resource.path, title, Some(resource), false);
    let body = json!({"$ref": format!("#/components/schemas/{}Write", resource.model)});
    operation["requestBody"] = json!({"content": {"application/json": {"schema": body}}});
    let done = operation["responses"]["2XX"].take();
    let mut responses = Map::new();
    responses.insert(status.to_owned(), done);
    responses.insert("4XX".to_owned(), error());
    operation["responses"] = responses.into();
    operation
}

fn attach(resource: &Resource, title: &str) -> Value {
    let mut operation = operation(resource.path, &format!("{title} attach or create"), None, false);
    let body = json!({"type": "object", "properties": {
        "id": {"type": "integer"},
        "disassociate": {"type": "boolean"},
    }});
    operation["requestBody"] = json!({"content": {"application/json": {"schema": body}}});
    operation
}

fn error() -> Value {
    json!({"description": "detail, or texts by field", "content": {"application/json": {"schema": {"type": "object"}}}})
}

fn schema(resource: &Resource, write: bool) -> Value {
    let mut properties = Map::new();
    let mut required: Vec<&str> = Vec::new();
    if !write {
        properties.insert("id".to_owned(), json!({"type": "integer"}));
        properties.insert("type".to_owned(), json!({"type": "string"}));
        properties.insert("url".to_owned(), json!({"type": "string"}));
        properties.insert("related".to_owned(), json!({"type": "object"}));
        properties.insert("summary_fields".to_owned(), json!({"type": "object"}));
        if resource.table.stamped {
            for name in ["created", "modified"] {
                properties.insert(
                    name.to_owned(),
                    json!({"type": "string", "format": "date-time", "nullable": true}),
                );
            }
        }
    }
    for field in resource.fields {
        let shown = if write { field.mode != Mode::ReadOnly } else { field.mode != Mode::WriteOnly };
        if !shown {
            continue;
        }
        properties.insert(field.name.to_owned(), property(field, write));
        if write && field.required {
            required.push(field.name);
        }
    }
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn property(field: &Field, write: bool) -> Value {
    let mut property = match field.kind {
        Kind::Text(max) if write && max > 0 => json!({"type": "string", "maxLength": max}),
        Kind::Text(_) | Kind::Variables => json!({"type": "string"}),
        Kind::Int(least, most) if write => json!({"type": "integer", "minimum": least, "maximum": most}),
        Kind::Int(..) | Kind::Id(_) => json!({"type": "integer"}),
        Kind::Float => json!({"type": "number"}),
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Choice(choices) => {
            json!({"type": "string", "enum": choices.iter().map(|(value, _)| *value).collect::<Vec<_>>()})
        }
        Kind::IntChoice(choices) => {
            json!({"type": "integer", "enum": choices.iter().map(|(value, _)| *value).collect::<Vec<_>>()})
        }
        Kind::Json => json!({}),
        Kind::Time => json!({"type": "string", "format": "date-time"}),
    };
    if field.null || matches!(field.kind, Kind::Time) {
        property["nullable"] = true.into();
    }
    if !field.help.is_empty() {
        property["description"] = field.help.into();
    }
    property
}

/// The document as a page without scripts: what there is, by family, with the methods of each address, and below it what
/// each family's objects are made of.
fn page(document: &Value) -> String {
    let mut families: Vec<(&str, Vec<(&String, &Value)>)> = Vec::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        let family =
            path.strip_prefix("/api/v2/").and_then(|rest| rest.split('/').next()).unwrap_or_default();
        match families.iter_mut().find(|(name, _)| *name == family) {
            Some((_, paths)) => paths.push((path, item)),
            None => families.push((family, vec![(path, item)])),
        }
    }
    let mut html = String::from(
        "<h1>Plexus API</h1><p>AWX's REST API as Plexus serves it. The same as \
         <a href=\"?format=openapi\">OpenAPI document</a>; the <a href=\"/api/v2/\">map</a> of it all. Who asks shows who \
         they are by HTTP Basic, by a token (<code>Authorization: Bearer TOKEN</code>) or by a session.</p><p>",
    );
    for (family, _) in &families {
        html.push_str(&format!("<a href=\"#{family}\">{family}</a> &nbsp; "));
    }
    html.push_str("</p>");
    for (family, paths) in &families {
        html.push_str(&format!("<h2 id=\"{family}\">{family}</h2><table class=\"paths\">"));
        for (path, item) in paths {
            let operations = item.as_object().into_iter().flatten().filter(|(name, _)| *name != "parameters");
            let verbs: String = operations
                .clone()
                .map(|(name, _)| format!("<span class=\"verb\">{}</span>", name.to_uppercase()))
                .collect();
            let summary = operations.clone().find_map(|(_, operation)| operation["summary"].as_str());
            html.push_str(&format!(
                "<tr><td><code>{}</code><td>{verbs}<td class=\"soft\">{}</tr>",
                html::escape(path),
                html::escape(summary.unwrap_or_default()),
            ));
        }
        html.push_str("</table>");
        let model = paths.iter().find_map(|(_, item)| {
            item["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str()
        });
        let model = model.and_then(|model| model.rsplit('/').next());
        if let Some(schema) = model.and_then(|model| document["components"]["schemas"].get(model)) {
            html.push_str("<table><tr><th>Field of a POST<th>Type<th>Meaning</tr>");
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                let needed = if required.contains(&Value::from(name.as_str())) { ", required" } else { "" };
                html.push_str(&format!(
                    "<tr><td><code>{}</code><td class=\"soft\">{}{needed}<td>{}</tr>",
                    html::escape(name),
                    html::escape(field["type"].as_str().unwrap_or("any")),
                    html::escape(field["description"].as_str().unwrap_or_default()),
                ));
            }
            html.push_str("</table>");
        }
    }
    html
}
