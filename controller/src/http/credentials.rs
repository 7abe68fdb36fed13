//! Credentials and their types. Secret inputs are sealed before they are stored, and shown as `$encrypted$`.

use std::collections::HashMap;

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::error::ApiError;
use super::roles::{self, Holder};
use super::rules::{Rule, Rules};
use crate::payload::injectors;
use crate::registry::read::Record;
use crate::registry::roles::{self as registry_roles, USE};
use crate::registry::write::{Draft, type_of};
use crate::store::core::WriteTx;
use crate::vault::{ENCRYPTED, Vault};

/// The word that makes a launch ask for a secret.
const ASK: &str = "ASK";

pub(super) struct Types;

impl Rules for Types {
    fn check<'a>(&'a self, call: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            if let Some(before) = before {
                if before.flag("managed") {
                    let words = "Modifications not allowed for managed credential types";
                    return Err(ApiError::Detail(StatusCode::FORBIDDEN, words.to_owned()));
                }
                let changed =
                    |name: &str| draft.value(name).is_some_and(|new| Some(new) != before.fields.get(name));
                if (changed("inputs") || changed("kind")) && in_use(call, before.id).await? {
                    let words =
                        "Modifications to inputs are not allowed for credential types that are in use";
                    return Err(ApiError::Detail(StatusCode::FORBIDDEN, words.to_owned()));
                }
            }
            if draft.has("kind") && !matches!(draft.text("kind"), "cloud" | "net") {
                return Err(ApiError::field(
                    "kind",
                    "Must be 'cloud' or 'net', not ".to_owned() + draft.text("kind"),
                ));
            }
            if let Some(inputs) = draft.value("inputs") {
                check_type_inputs(inputs).map_err(|words| ApiError::field("inputs", words))?;
            }
            let stored = |name: &str| before.and_then(|before| before.fields.get(name));
            if draft.has("injectors") || draft.has("inputs") {
                let part =
                    |name: &str| draft.value(name).or_else(|| stored(name)).cloned().unwrap_or_default();
                let (inputs, injectors) = (part("inputs"), part("injectors"));
                let fields = inputs["fields"].as_array().cloned().unwrap_or_default();
                injectors::check(&injectors, &fields)
                    .map_err(|error| ApiError::field("injectors", error.to_string()))?;
            }
            Ok(())
        })
    }

    fn may_delete<'a>(&'a self, call: &'a Call, record: &'a Record) -> Rule<'a> {
        Box::pin(async move {
            let words = if record.flag("managed") {
                "Deletion not allowed for managed credential types"
            } else if in_use(call, record.id).await? {
                "Credential types that are in use cannot be deleted"
            } else {
                return Ok(());
            };
            Err(ApiError::Detail(StatusCode::FORBIDDEN, words.to_owned()))
        })
    }

    fn options(&self, fields: &mut Map<String, Value>) {
        if let Some(kind) = fields.get_mut("kind") {
            kind["choices"] = json!([["net", "Network"], ["cloud", "Cloud"]]);
        }
    }
}

async fn in_use(call: &Call, id: i64) -> Result<bool, ApiError> {
    let mut query = Query::select();
    query.column("id").from("credentials").and_where(Expr::col("credential_type_id").eq(id)).limit(1);
    Ok(call.app.db.optional(&query).await?.is_some())
}

fn check_type_inputs(inputs: &Value) -> Result<(), String> {
    let Value::Object(inputs) = inputs else { return Err("Expected a dictionary with fields.".to_owned()) };
    let fields = match inputs.get("fields") {
        None => return Ok(()),
        Some(Value::Array(fields)) => fields,
        Some(_) => return Err("fields must be a list.".to_owned()),
    };
    let mut seen = Vec::new();
    for field in fields {
        let (Some(id), Some(_)) = (field["id"].as_str(), field["label"].as_str()) else {
            return Err("Each field needs an id and a label.".to_owned());
        };
        if !id.chars().all(|c| c.is_alphanumeric() || c == '_') || id.starts_with(|c: char| c.is_numeric()) {
            return Err(format!("{id} is an invalid variable name"));
        }
        if id == "tower" {
            return Err("\"tower\" is a reserved field name".to_owned());
        }
        if seen.contains(&id) {
            return Err(format!("field IDs must be unique ({id})"));
        }
        if !matches!(field["type"].as_str().unwrap_or("string"), "string" | "boolean") {
            return Err(format!("{} is not a type of field: string or boolean", field["type"]));
        }
        seen.push(id);
    }
    Ok(())
}

pub(super) struct Credentials;

impl Rules for Credentials {
    fn check<'a>(&'a self, call: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            match before {
                None => {
                    if let Some(team) = draft.int("team") {
                        // A team's credential is its organization's, and the team's to use.
                        let mut query = Query::select();
                        query.column("organization_id").from("teams").and_where(Expr::col("id").eq(team));
                        let row = call.app.db.optional(&query).await?;
                        let organization = row.map(|row| row.at::<i64>(0)).transpose()?;
                        if draft.int("organization").is_some_and(|own| Some(own) != organization) {
                            let words =
                                "Credential organization must be set and match before assigning to a team";
                            return Err(ApiError::bad(words));
                        }
                        draft.set("organization", organization.map_or(Value::Null, Value::from));
                        draft.aside.insert("team".to_owned(), team.into());
                    }
                    let owned = draft.int("organization").is_some() || draft.int("user").is_some();
                    if !owned {
                        return Err(ApiError::bad("Missing 'user', 'team', or 'organization'."));
                    }
                }
                Some(before) => {
                    draft.take("user");
                    draft.take("team");
                    let new = draft.int("credential_type");
                    if new.is_some_and(|new| before.int("credential_type") != Some(new))
                        && used(call, before.id).await?
                    {
                        let words = "You cannot change the credential type of the credential, as it may break the functionality of the resources using it.";
                        return Err(ApiError::field("credential_type", words));
                    }
                }
            }
            let Some(given) = draft.take("inputs") else { return Ok(()) };
            let Value::Object(mut given) = given else {
                return Err(ApiError::field(
                    "inputs",
                    format!("Expected a dictionary, but got {}.", type_of(&given)),
                ));
            };
            let kind = draft
                .int("credential_type")
                .or_else(|| before.and_then(|before| before.int("credential_type")));
            let types = types(call, kind.into_iter().collect()).await?;
            let Some(kind) = kind.and_then(|kind| types.get(&kind)) else {
                return Err(ApiError::field("credential_type", "This field is required."));
            };
            check_inputs(kind, &given).map_err(|words| ApiError::field("inputs", words))?;
            if let Some(before) = before {
                // What is sent back as it was shown stays as it is stored.
                let stored = stored_inputs(call, before.id).await?;
                for (name, value) in &mut given {
                    if value == ENCRYPTED
                        && let Some(old) = stored.get(name)
                    {
                        *value = old.clone();
                    }
                }
            }
            check_keys(&given).map_err(|(name, words)| {
                ApiError::Body(StatusCode::BAD_REQUEST, json!({"inputs": {name: [words]}}))
            })?;
            let secrets: Vec<Value> = kind.secrets().map(Value::from).collect();
            draft.aside.insert("inputs".to_owned(), given.into());
            draft.aside.insert("secrets".to_owned(), secrets.into());
            Ok(())
        })
    }

    fn written<'a>(&'a self, call: &'a Call, tx: &'a mut WriteTx, id: i64, draft: &'a Draft) -> Rule<'a> {
        Box::pin(async move {
            if let Some(team) = draft.aside.get("team").and_then(Value::as_i64)
                && let Some(role) =
                    registry_roles::family(draft.resource).and_then(|family| family.id(id, USE))
            {
                roles::hold(tx, role, Holder::Team(team)).await?;
            }
            let Some(Value::Object(inputs)) = draft.aside.get("inputs") else { return Ok(()) };
            let secrets = draft.aside.get("secrets").and_then(Value::as_array);
            let secret =
                |name: &str| secrets.is_some_and(|secrets| secrets.iter().any(|secret| secret == name));
            let sealed: Map<String, Value> = inputs
                .iter()
                .map(|(name, value)| match value.as_str() {
                    Some(text)
                        if secret(name) && !text.is_empty() && text != ASK && !Vault::is_sealed(text) =>
                    {
                        (name.clone(), call.app.vault.encrypt("credentials", id, name, text).into())
                    }
                    _ => (name.clone(), value.clone()),
                })
                .collect();
            let mut update = Query::update();
            update.table("credentials").value("inputs", Value::from(sealed).to_string());
            tx.execute(update.and_where(Expr::col("id").eq(id))).await?;
            Ok(())
        })
    }

    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            let ids = records.iter().filter_map(|record| record.int("credential_type")).collect();
            let types = types(call, ids).await?;
            for record in records {
                let kind = record.int("credential_type").and_then(|id| types.get(&id));
                let family = kind.map(|kind| kind.kind.clone()).unwrap_or_default();
                record.set("kind", kind.map(|kind| kind.namespace.clone()).unwrap_or_default());
                record.set("cloud", family == "cloud");
                record.set("kubernetes", family == "kubernetes");
                if let Some(inputs) = record.fields.get_mut("inputs") {
                    hide(inputs, kind);
                }
            }
            Ok(())
        })
    }
}

/// Puts `$encrypted$` in the place of what is sealed, and of what should be.
fn hide(inputs: &mut Value, kind: Option<&Type>) {
    let Value::Object(inputs) = inputs else {
        *inputs = json!({});
        return;
    };
    for (name, value) in inputs {
        let secret = kind.is_none_or(|kind| kind.secrets().any(|secret| secret == name));
        if let Some(text) = value.as_str()
            && (Vault::is_sealed(text) || secret && !text.is_empty() && text != ASK)
        {
            *value = ENCRYPTED.into();
        }
    }
}

/// What a type says of its inputs.
struct Type {
    /// The family: `ssh`, `cloud`.
    kind: String,
    /// The type's own word; the kind, for types that people made.
    namespace: String,
    fields: Vec<Value>,
}

impl Type {
    fn secrets(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().filter(|field| field["secret"] == true).filter_map(|field| field["id"].as_str())
    }
}

/// The types with these ids, in one query.
async fn types(call: &Call, mut ids: Vec<i64>) -> Result<HashMap<i64, Type>, ApiError> {
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let mut query = Query::select();
    query.columns(["id", "kind", "namespace", "inputs"]).from("credential_types");
    query.and_where(Expr::col("id").is_in(ids));
    let mut types = HashMap::new();
    for row in call.app.db.all(&query).await? {
        let inputs: Value = serde_json::from_str(&row.value::<String>("inputs")?).unwrap_or_default();
        let kind: String = row.value("kind")?;
        types.insert(
            row.value("id")?,
            Type {
                namespace: row.value::<Option<String>>("namespace")?.unwrap_or_else(|| kind.clone()),
                kind,
                fields: inputs["fields"].as_array().cloned().unwrap_or_default(),
            },
        );
    }
    Ok(types)
}

async fn used(call: &Call, id: i64) -> Result<bool, ApiError> {
    let mut query = Query::select();
    query.column("credential_id").from("job_template_credentials");
    query.and_where(Expr::col("credential_id").eq(id)).limit(1);
    Ok(call.app.db.optional(&query).await?.is_some())
}

async fn stored_inputs(call: &Call, id: i64) -> Result<Map<String, Value>, ApiError> {
    let mut query = Query::select();
    query.column("inputs").from("credentials").and_where(Expr::col("id").eq(id));
    let row = call.app.db.optional(&query).await?;
    let text = row.map(|row| row.at::<String>(0)).transpose()?.unwrap_or_default();
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

fn check_inputs(kind: &Type, given: &Map<String, Value>) -> Result<(), String> {
    for (name, value) in given {
        let Some(field) = kind.fields.iter().find(|field| field["id"] == name.as_str()) else {
            return Err(format!("Additional properties are not allowed ('{name}' was unexpected)"));
        };
        let fits = match field["type"].as_str() {
            Some("boolean") => value.is_boolean(),
            _ => value.is_string(),
        };
        if !fits {
            let wanted = field["type"].as_str().unwrap_or("string");
            return Err(format!("{name}: {} is not of type '{wanted}'", type_of(value)));
        }
        // Sealed text is ours to make; taken from outside it could name another's secret.
        if value.as_str().is_some_and(Vault::is_sealed) {
            return Err(format!("{name}: this value is reserved"));
        }
        if let Some(choices) = field["choices"].as_array()
            && !choices.contains(value)
        {
            return Err(format!("{name}: {value} is not one of the choices"));
        }
    }
    Ok(())
}

/// A private key must look like one, and the passphrase must be there if and only if the key wants it.
fn check_keys(inputs: &Map<String, Value>) -> Result<(), (&'static str, &'static str)> {
    let text = |name: &str| inputs.get(name).and_then(Value::as_str).unwrap_or_default();
    let key = text("ssh_key_data");
    if key.is_empty() || key == ASK || Vault::is_sealed(key) || key == ENCRYPTED {
        return Ok(());
    }
    let locked = match private_key(key) {
        Some(locked) => locked,
        None => {
            return Err((
                "ssh_key_data",
                "Invalid certificate or key: this is not a private key in PEM form.",
            ));
        }
    };
    match (locked, text("ssh_key_unlock").is_empty()) {
        (true, true) => Err(("ssh_key_unlock", "must be set when SSH key is encrypted.")),
        (false, false) => Err(("ssh_key_unlock", "should not be set when SSH key is not encrypted.")),
        _ => Ok(()),
    }
}

/// Whether a private key in PEM form is locked with a passphrase; `None` if it is no such key.
fn private_key(text: &str) -> Option<bool> {
    let text = text.trim();
    let begin = text
        .lines()
        .find(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with("PRIVATE KEY-----"))?;
    let label = begin.trim_end().strip_prefix("-----BEGIN ")?.strip_suffix("-----")?;
    let body = text.split_once(begin)?.1.split_once(&format!("-----END {label}-----"))?.0;
    if label.starts_with("ENCRYPTED ")
        || body.lines().any(|line| line.starts_with("Proc-Type:") && line.contains("ENCRYPTED"))
    {
        return Some(true);
    }
    let encoded: String =
        body.lines().filter(|line| !line.contains(':')).flat_map(|line| line.trim().chars()).collect();
    let raw = STANDARD.decode(encoded).ok().filter(|raw| !raw.is_empty())?;
    if label.starts_with("OPENSSH") {
        // The name of the cipher follows the magic, with its length before it.
        let cipher = raw.strip_prefix(b"openssh-key-v1\0".as_slice())?;
        return Some(!cipher.get(4..)?.starts_with(b"none"));
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_keys_are_told_from_open_ones() {
        let pem =
            |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        let openssh = |cipher: &str| {
            let mut raw = b"openssh-key-v1\0".to_vec();
            raw.extend_from_slice(&(cipher.len() as u32).to_be_bytes());
            raw.extend_from_slice(cipher.as_bytes());
            pem("OPENSSH PRIVATE KEY", &STANDARD.encode(raw))
        };
        assert_eq!(private_key(&openssh("none")), Some(false));
        assert_eq!(private_key(&openssh("aes256-ctr")), Some(true));
        assert_eq!(private_key(&pem("RSA PRIVATE KEY", "AAAA")), Some(false));
        let headers = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA";
        assert_eq!(private_key(&pem("RSA PRIVATE KEY", headers)), Some(true));
        assert_eq!(private_key(&pem("ENCRYPTED PRIVATE KEY", "AAAA")), Some(true));
        for no_key in [
            "",
            "hello",
            "-----BEGIN RSA PRIVATE KEY-----",
            &pem("CERTIFICATE", "AAAA"),
            &pem("RSA PRIVATE KEY", "!"),
        ] {
            assert_eq!(private_key(no_key), None, "{no_key}");
        }
    }

    #[test]
    fn what_is_secret_is_hidden_whether_sealed_or_not() {
        let kind = Type {
            kind: "ssh".to_owned(),
            namespace: "ssh".to_owned(),
            fields: vec![json!({"id": "username"}), json!({"id": "password", "secret": true})],
        };
        let mut inputs = json!({"username": "ada", "password": "clear", "other": "$plexus$1$00$x"});
        hide(&mut inputs, Some(&kind));
        assert_eq!(inputs, json!({"username": "ada", "password": "$encrypted$", "other": "$encrypted$"}));
        let mut inputs = json!({"password": "ASK"});
        hide(&mut inputs, Some(&kind));
        assert_eq!(inputs, json!({"password": "ASK"}));
    }
}
