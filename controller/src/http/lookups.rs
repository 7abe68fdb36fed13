//! Credentials that look secrets up: which input comes from where, and whether that works.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use sea_query::{Expr, ExprTrait, JoinType, Query};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::error::ApiError;
use super::rules::{Rule, Rules};
use super::{Answer, access, generic, ok};
use crate::lookup::{self, Source, fill};
use crate::registry::read::Record;
use crate::registry::roles::USE;
use crate::registry::write::Draft;
use crate::registry::{CREDENTIAL_TYPES, CREDENTIALS};
use crate::store::core::{CoreDb, Error as StoreError};

/// Longest value of metadata.
const MAX_METADATA: usize = 16 << 10;

pub(super) struct InputSources;

/// A credential and what its type says.
struct Kind {
    kind: String,
    namespace: String,
    /// `inputs` of the type.
    inputs: Value,
    /// What the credential was given; sealed.
    given: Value,
}

impl Kind {
    fn names(&self, list: &str) -> BTreeSet<&str> {
        self.inputs[list].as_array().into_iter().flatten().filter_map(|field| field["id"].as_str()).collect()
    }
}

async fn kind(db: &CoreDb, credential: i64) -> Result<Option<Kind>, StoreError> {
    let mut query = Query::select();
    query.columns([("t", "kind"), ("t", "namespace"), ("t", "inputs"), ("c", "inputs")]);
    query.from_as("credentials", "c");
    let of = Expr::col(("t", "id")).equals(("c", "credential_type_id"));
    query.join_as(JoinType::InnerJoin, "credential_types", "t", of);
    query.and_where(Expr::col(("c", "id")).eq(credential));
    let Some(row) = db.optional(&query).await? else { return Ok(None) };
    Ok(Some(Kind {
        kind: row.at(0)?,
        namespace: row.at::<Option<String>>(1)?.unwrap_or_default(),
        inputs: serde_json::from_str(&row.at::<String>(2)?).unwrap_or_default(),
        given: serde_json::from_str(&row.at::<String>(3)?).unwrap_or_default(),
    }))
}

impl Rules for InputSources {
    fn check<'a>(&'a self, call: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            let of = |name: &str| draft.int(name).or_else(|| before.and_then(|before| before.int(name)));
            let (Some(target), Some(source)) = (of("target_credential"), of("source_credential")) else {
                return Err(ApiError::field("source_credential", "This field is required."));
            };
            if before.is_some_and(|before| before.int("target_credential") != Some(target)) {
                let words = "The credential that an input belongs to cannot be changed.";
                return Err(ApiError::field("target_credential", words));
            }
            let db = &call.app.db;
            let (Some(target), Some(source)) = (kind(db, target).await?, kind(db, source).await?) else {
                return Err(ApiError::field("target_credential", "The credential is gone."));
            };
            if target.kind == "external" {
                let words = "Target must be a non-external credential";
                return Err(ApiError::field("target_credential", words));
            }
            if source.kind != "external" {
                return Err(ApiError::field("source_credential", "Source must be an external credential"));
            }
            if !lookup::NAMESPACES.contains(&source.namespace.as_str()) {
                let words = lookup::Error::Unsupported(source.namespace).to_string();
                return Err(ApiError::field("source_credential", words));
            }
            let stored = |name: &str| before.and_then(|before| before.fields.get(name));
            let field = draft.value("input_field_name").or_else(|| stored("input_field_name"));
            let field = field.and_then(Value::as_str).unwrap_or_default();
            let known = target.names("fields");
            if !known.contains(field) {
                let known: Vec<&str> = known.into_iter().collect();
                let words = format!(
                    "Input field must be defined on target credential (options are {}).",
                    known.join(", ")
                );
                return Err(ApiError::field("input_field_name", words));
            }
            if draft.has("metadata") || before.is_none() {
                let metadata = draft.value("metadata").cloned().unwrap_or_else(|| json!({}));
                check_metadata(&source, &metadata).map_err(|words| ApiError::field("metadata", words))?;
            }
            Ok(())
        })
    }
}

/// Metadata are texts that the type of the source knows, those it needs among them.
fn check_metadata(source: &Kind, metadata: &Value) -> Result<(), String> {
    let Some(given) = metadata.as_object() else { return Err("Expected a dictionary.".to_owned()) };
    let known = source.names("metadata");
    for (name, value) in given {
        if !known.contains(name.as_str()) {
            return Err(format!("Additional properties are not allowed ('{name}' was unexpected)"));
        }
        match value.as_str() {
            Some(text) if text.len() <= MAX_METADATA => {}
            _ => return Err(format!("{name}: expected text of at most {MAX_METADATA} bytes")),
        }
    }
    let required = source.inputs["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let empty = |name: &str| given.get(name).and_then(Value::as_str).unwrap_or_default().is_empty();
    let missing: Vec<&str> = required.filter(|name| known.contains(name) && empty(name)).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("required: {}", missing.join(", "))) }
}

/// `credentials/N/test/`: looks something up with a credential that is there; `inputs` of the body take the place of its own.
pub(super) async fn test_credential(call: &Call, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    call.user()?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "External Credential Test", "actions": {"POST": {}, "GET": {}}}));
    }
    let id = generic::visible_id(call, &CREDENTIALS, id).await?;
    let Some(kind) = kind(&call.app.db, id).await? else { return Err(ApiError::missing("Credential")) };
    if call.method != Method::POST {
        return ok(json!({}));
    }
    access::need(call, &CREDENTIALS, id, USE).await?;
    let mut body = call.object()?;
    let own = fill::opened(&call.app.vault, id, &kind.given)
        .map_err(|error| ApiError::internal("a credential does not open", error))?;
    // A stored secret goes where its owner sent it, and nowhere that a tester names.
    if body.get("inputs").and_then(Value::as_object).is_some_and(|inputs| !inputs.is_empty()) {
        return Err(ApiError::field(
            "inputs",
            "A credential is tested with what it has; a type takes other inputs.",
        ));
    }
    let metadata = body.shift_remove("metadata").unwrap_or_else(|| json!({}));
    test(&kind, own, &metadata).await
}

/// `credential_types/N/test/`: looks something up with the inputs of the body.
pub(super) async fn test_type(call: &Call, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    let user = call.user()?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "External Credential Type Test", "actions": {"POST": {}, "GET": {}}}));
    }
    let record = generic::fetch(call, &CREDENTIAL_TYPES, id).await?;
    if call.method != Method::POST {
        return ok(json!({}));
    }
    // The controller asks whom the body names: that is not for everybody.
    if !user.is_superuser {
        return Err(ApiError::forbidden());
    }
    let body = call.object()?;
    let part = |name: &str| body.get(name).cloned().unwrap_or_else(|| json!({}));
    let kind = Kind {
        kind: record.text("kind").to_owned(),
        namespace: record.text("namespace").to_owned(),
        inputs: record.fields.get("inputs").cloned().unwrap_or_default(),
        given: Value::Null,
    };
    let Value::Object(inputs) = part("inputs") else {
        return Err(ApiError::field("inputs", "Expected a dictionary."));
    };
    test(&kind, inputs, &part("metadata")).await
}

async fn test(kind: &Kind, inputs: Map<String, Value>, metadata: &Value) -> Answer {
    if kind.kind != "external" {
        let words = "only external credentials can be tested";
        return Err(ApiError::Body(StatusCode::BAD_REQUEST, json!({"detail": words})));
    }
    let refused = |words: String| Err(ApiError::Body(StatusCode::BAD_REQUEST, json!({"inputs": words})));
    if let Err(words) = check_metadata(kind, metadata) {
        return refused(words);
    }
    let metadata = metadata.as_object().cloned().unwrap_or_default();
    let source = Source { namespace: &kind.namespace, inputs: &inputs, metadata: &metadata };
    match lookup::resolve(source).await {
        // What was found stays here.
        Ok(_) => {
            let body = Body::from("{}");
            let mut response =
                Response::builder().status(StatusCode::ACCEPTED).body(body).unwrap_or_default();
            let json = axum::http::HeaderValue::from_static("application/json");
            response.headers_mut().insert(axum::http::header::CONTENT_TYPE, json);
            Ok(response)
        }
        Err(error) => refused(chain(&error)),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
