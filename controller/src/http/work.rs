//! `/api/plexus/v1/work/`: what AWX has no word for.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde_json::json;

use super::call::Call;
use super::error::ApiError;
use super::{Answer, generic, ok};
use crate::registry::UNIFIED_JOBS;
use crate::store::units;

/// `POST work/N/abandon/`: gives up a job whose node does not come back.
pub(super) async fn abandon(call: &Call, id: &str) -> Answer {
    call.allow("POST, OPTIONS")?;
    let user = call.user()?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Work Abandon", "actions": {"POST": {}}}));
    }
    let id = generic::visible_id(call, &UNIFIED_JOBS, id).await?;
    if !user.is_superuser {
        return Err(ApiError::forbidden());
    }
    if !units::abandon(&call.app.db, id, &user.username).await? {
        let words = "The job is over, or no node has it yet; there is nothing to abandon.".to_owned();
        return Err(ApiError::Detail(StatusCode::CONFLICT, words));
    }
    Ok(Response::builder().status(StatusCode::ACCEPTED).body(Body::empty()).unwrap_or_default())
}
