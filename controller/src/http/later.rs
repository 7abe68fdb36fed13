//! Families that AWX has and that are not here yet. The clients ask some of them for what they offer even when nobody
//! uses them: `awx users` wants to know the roles of workflow templates before it does anything. They are not
//! in the map of the API, so they are no sub-commands; they answer as lists of nothing.

use axum::http::{Method, StatusCode};
use serde_json::json;

use super::call::Call;
use super::error::ApiError;
use super::{Answer, ok};

/// Their parts of the path.
const FAMILIES: &[(&str, &str)] = &[("workflow_job_templates", "Workflow Job Template")];

/// The list of such a family; `None` if there is no such family either.
pub(super) fn list(call: &Call, path: &str) -> Option<Answer> {
    let (_, label) = FAMILIES.iter().find(|(family, _)| *family == path)?;
    Some(empty(call, label))
}

fn empty(call: &Call, label: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    call.user()?;
    match call.method {
        Method::OPTIONS => ok(json!({"name": format!("{label} List"), "actions": {"GET": {}}})),
        Method::POST => {
            let words = format!("{label}s are not part of Plexus yet.");
            Err(ApiError::Detail(StatusCode::NOT_IMPLEMENTED, words))
        }
        _ => ok(json!({"count": 0, "next": null, "previous": null, "results": []})),
    }
}
