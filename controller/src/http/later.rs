//! Lists of families that AWX has and that are not here yet; see [`crate::registry::later`].

use axum::http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::error::ApiError;
use super::{Answer, generic, ok};
use crate::registry::Resource;
use crate::registry::later::{self, Later};

/// The list of such a family; `None` if there is no such family either.
pub(super) fn list(call: &Call, path: &str) -> Option<Answer> {
    later::by_path(path).map(|family| empty(call, family))
}

/// An object of such a family: there is none.
pub(super) fn object(call: &Call, path: &str) -> Option<Answer> {
    let family = later::by_path(path)?;
    let absent = || {
        call.allow("GET, HEAD, OPTIONS")?;
        call.user()?;
        Err(ApiError::missing(&family.label.replace(' ', "")))
    };
    Some(absent())
}

/// The sub-list of such a family below an object; `None` if there is none of that name.
pub(super) async fn below(call: &Call, resource: &'static Resource, id: &str, name: &str) -> Option<Answer> {
    let (_, family) = later::below(resource.path).find(|(list, _)| *list == name)?;
    if call.method != Method::OPTIONS
        && let Err(error) = seen(call, resource, id).await
    {
        return Some(Err(error));
    }
    Some(empty(call, family))
}

async fn seen(call: &Call, resource: &'static Resource, id: &str) -> Result<(), ApiError> {
    call.user()?;
    generic::visible_id(call, resource, id).await.map(drop)
}

fn empty(call: &Call, family: &Later) -> Answer {
    call.allow(if family.creates { "GET, POST, HEAD, OPTIONS" } else { "GET, HEAD, OPTIONS" })?;
    call.user()?;
    match call.method {
        Method::OPTIONS => ok(options(family)),
        Method::POST => {
            let words = format!("Plexus cannot make a {} yet.", family.label.to_lowercase());
            Err(ApiError::Detail(StatusCode::NOT_IMPLEMENTED, words))
        }
        _ => {
            generic::page_number(call)?;
            ok(json!({"count": 0, "next": null, "previous": null, "results": []}))
        }
    }
}

/// What every object has. POST is not offered: a command that the client does not show is not tried.
fn options(family: &Later) -> Value {
    let mut fields = Map::new();
    for (name, kind, label) in [
        ("id", "integer", "ID"),
        ("type", "choice", "Type"),
        ("url", "string", "URL"),
        ("related", "object", "Related"),
        ("summary_fields", "object", "Summary Fields"),
        ("created", "datetime", "Created"),
        ("modified", "datetime", "Modified"),
        ("name", "string", "Name"),
    ] {
        fields.insert(name.to_owned(), json!({"type": kind, "label": label, "filterable": false}));
    }
    fields["type"]["choices"] = json!([[family.type_name, family.label]]);
    json!({
        "name": format!("{} List", family.label),
        "description": format!("{}s are not part of Plexus yet.", family.label),
        "renders": ["application/json"],
        "parses": ["application/json"],
        "actions": {"GET": fields},
        "types": [family.type_name],
        "search_fields": [],
        "related_search_fields": [],
        "object_roles": [],
        "max_page_size": 200,
    })
}
