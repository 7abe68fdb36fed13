//! `/api/plexus/v1/work/`: what AWX has no word for.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

use super::call::Call;
use super::error::{ApiError, json_response};
use super::{Answer, generic, ok};
use crate::registry::UNIFIED_JOBS;
use crate::store::strays::{self, Decided, Decision, Stray};
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

/// `GET work/stray/`: units that nodes hold and this database does not know.
pub(super) async fn strays(call: &Call) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    if !call.user()?.is_superuser {
        return Err(ApiError::forbidden());
    }
    let found = strays::all(&call.app.db).await?;
    ok(json!({"count": found.len(), "results": found.iter().map(shown).collect::<Vec<_>>()}))
}

/// `POST work/stray/UNIT/adopt/` and `…/discard/`: what becomes of one. The answer names the job that stands for it now.
pub(super) async fn decide(call: &Call, unit: &str, decision: Decision) -> Answer {
    call.allow("POST, OPTIONS")?;
    let user = call.user()?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Stray Work", "actions": {"POST": {}}}));
    }
    if !user.is_superuser {
        return Err(ApiError::forbidden());
    }
    let unit = unit.parse().map_err(|_| ApiError::no_such_page())?;
    match strays::decide(&call.app.db, unit, decision, &user.username).await? {
        Decided::Job(job) => {
            Ok(json_response(StatusCode::ACCEPTED, &json!({"id": job, "unit": unit.to_string()})))
        }
        Decided::Unknown => Err(ApiError::no_such_page()),
        Decided::Pending => {
            let words =
                "It has not started, and what it would run is not known; it can be discarded.".to_owned();
            Err(ApiError::Detail(StatusCode::CONFLICT, words))
        }
    }
}

fn shown(stray: &Stray) -> Value {
    json!({
        "unit": stray.attempt.unit.0.to_string(),
        "attempt": stray.attempt.number,
        "node": stray.node.as_str(),
        "label": stray.label,
        "state": stray.state,
        "records": stray.records,
    })
}
