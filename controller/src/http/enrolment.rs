//! Tokens, machines that wait for approval, and revocations: `tokens`, `requests` and `revocations` below
//! `/api/plexus/v1/mesh/`, superusers only.

use std::time::Duration;

use axum::http::{HeaderValue, Method, StatusCode, header};
use plexus_mesh::enrol::token::is_address;
use plexus_proto::id::{NodeId, Role};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::error::{ApiError, json_response};
use super::{Answer, done, ok};
use crate::enrolment::{Enrolment, Error, Pending, RevokeError, TokenRow, Wanted};
use crate::registry::read::time_json;

/// Longest life of a token: what is longer is forgotten somewhere.
const TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
const TTL: Duration = Duration::from_secs(3600);
/// Most uses of one token.
const USES_MAX: u64 = 100_000;

pub(super) async fn serve(call: &Call, rest: &[&str]) -> Answer {
    call.allow(match rest {
        ["tokens"] | ["revocations"] => "GET, POST, HEAD, OPTIONS",
        ["tokens", _] | ["revocations", _] => "DELETE, OPTIONS",
        ["requests"] => "GET, HEAD, OPTIONS",
        ["requests", _, "approve" | "reject"] => "POST, OPTIONS",
        _ => return Err(ApiError::no_such_page()),
    })?;
    let user = call.user()?;
    if !user.is_superuser {
        return Err(ApiError::forbidden());
    }
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Enrolment", "actions": {}}));
    }
    let none = || ApiError::Detail(StatusCode::CONFLICT, "this controller is not part of a mesh".to_owned());
    let (enrolment, mesh) = call.app.enrolment.as_deref().map(|(e, m)| (e, m)).ok_or_else(none)?;
    let by = user.username.as_str();
    match (rest, &call.method) {
        (["tokens"], &Method::POST) => create(call, enrolment, by).await,
        (["tokens"], _) => {
            let now = jiff::Timestamp::now().as_microsecond();
            let rows = enrolment.tokens().await.map_err(failed)?;
            list(rows.iter().map(|row| token(row, now)))
        }
        (["tokens", id], _) => {
            enrolment.revoke_token(number(id)?).await.map_err(failed)?;
            done()
        }
        (["requests"], _) => list(enrolment.requests().await.map_err(failed)?.iter().map(request)),
        (["requests", id, word], _) => {
            enrolment.decide(number(id)?, *word == "approve", by).await.map_err(failed)?;
            done()
        }
        (["revocations"], &Method::POST) => {
            let body = call.object()?;
            let node = node(body.get("node").and_then(Value::as_str).unwrap_or_default())?;
            let every_key = body.get("every_key").and_then(Value::as_bool).unwrap_or(false);
            enrolment.revoke_node(mesh, &node, every_key, by).await.map_err(not_revoked)?;
            ok(json!({"schema_version": 1, "node": node, "every_key": every_key}))
        }
        (["revocations"], _) => {
            let rows = enrolment.revocations().await.map_err(failed)?;
            list(rows.iter().map(|row| {
                json!({
                    "node": row.node,
                    "key": row.key_hash.as_deref().map(hex),
                    "revoked_by": row.by,
                    "revoked": time_json(row.at),
                })
            }))
        }
        (["revocations", name], _) => {
            enrolment.restore_node(mesh, &node(name)?, by).await.map_err(not_revoked)?;
            done()
        }
        _ => Err(ApiError::no_such_page()),
    }
}

async fn create(call: &Call, enrolment: &Enrolment, by: &str) -> Answer {
    let wanted = wanted(&call.object()?)?;
    let made = enrolment.create_token(wanted, by).await.map_err(failed)?;
    let mut body = token(&made.row, made.row.created);
    body["token"] = made.text.as_str().into();
    let mut response = json_response(StatusCode::CREATED, &body);
    // The one answer with a secret in it is nobody's to keep.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn wanted(body: &Map<String, Value>) -> Result<Wanted, ApiError> {
    let text = |field: &'static str| body.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    let required = |field| text(field).ok_or_else(|| ApiError::field(field, "This field is required."));
    let role: Role = required("role")?
        .parse()
        .map_err(|error: plexus_proto::id::ParseError| ApiError::field("role", error.to_string()))?;
    let name = required("name")?.parse().map_err(|()| {
        let words = "Must be 1 to 63 of a-z, 0-9, '-', '_', '.' and '*'.";
        ApiError::field("name", words)
    })?;
    let count = |field: &'static str, default: u64| match body.get(field) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_u64().ok_or_else(|| ApiError::field(field, "A valid integer is required.")),
    };
    let ttl = Duration::from_secs(count("ttl_seconds", TTL.as_secs())?);
    if ttl < Duration::from_secs(1) || ttl > TTL_MAX {
        return Err(ApiError::field("ttl_seconds", "Must be between a second and 30 days."));
    }
    let uses = count("uses", 1)?;
    if uses == 0 || uses > USES_MAX {
        return Err(ApiError::field("uses", "Must be between 1 and 100000."));
    }
    let mut addresses = Vec::new();
    for address in body.get("addresses").and_then(Value::as_array).into_iter().flatten() {
        match address.as_str().filter(|text| is_address(text)) {
            Some(address) if addresses.len() < 16 => addresses.push(address.to_owned()),
            _ => return Err(ApiError::field("addresses", "Must be at most 16 of host:port.")),
        }
    }
    let approve = body.get("approve").and_then(Value::as_bool).unwrap_or(false);
    Ok(Wanted { role, name, ttl, uses: u32::try_from(uses).unwrap_or(u32::MAX), approve, addresses })
}

fn token(row: &TokenRow, now: i64) -> Value {
    json!({
        "schema_version": 1,
        "id": row.id,
        "role": row.role,
        "name": row.name,
        "uses": row.uses,
        "used": row.used,
        "uses_left": row.uses - row.used,
        "approve": row.approve,
        "state": row.state(now),
        "expires": time_json(row.expires),
        "revoked": row.revoked.map(time_json),
        "created": time_json(row.created),
        "created_by": row.created_by,
    })
}

fn request(row: &Pending) -> Value {
    json!({
        "id": row.id,
        "token": row.token,
        "node": row.node,
        "role": row.role,
        "key": hex(&row.key_hash),
        "state": row.state,
        "decided_by": row.decided_by,
        "created": time_json(row.created),
    })
}

fn list(rows: impl Iterator<Item = Value>) -> Answer {
    let results: Vec<Value> = rows.collect();
    ok(json!({"schema_version": 1, "count": results.len(), "results": results}))
}

fn number(text: &str) -> Result<i64, ApiError> {
    text.parse().map_err(|_| ApiError::no_such_page())
}

fn node(text: &str) -> Result<NodeId, ApiError> {
    text.parse().map_err(|error: plexus_proto::id::ParseError| ApiError::field("node", error.to_string()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn failed(error: Error) -> ApiError {
    match error {
        Error::Missing(_) => ApiError::Detail(StatusCode::NOT_FOUND, error.to_string()),
        Error::NoAuthority | Error::Decided(_) => ApiError::Detail(StatusCode::CONFLICT, error.to_string()),
        error => ApiError::internal("enrolment", error),
    }
}

fn not_revoked(error: RevokeError) -> ApiError {
    match error {
        RevokeError::Enrolment(error) => failed(error),
        RevokeError::Myself(_) => ApiError::Detail(StatusCode::CONFLICT, error.to_string()),
        RevokeError::Unknown(_) => ApiError::Detail(StatusCode::NOT_FOUND, error.to_string()),
        error => ApiError::internal("revocation", error),
    }
}
