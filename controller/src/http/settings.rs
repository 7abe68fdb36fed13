//! Settings that people change while the controller runs: the few that mean something here.

use axum::http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::error::ApiError;
use super::{Answer, ok};
use crate::registry::write::Errors;
use crate::store::core::{Class, CoreDb, Error as StoreError};

/// Where the settings of people are among those of the database.
const PREFIX: &str = "api.";

enum Kind {
    Text,
    Bool,
    List,
    /// Id of an execution environment, or null.
    Environment,
}

struct Setting {
    name: &'static str,
    slug: &'static str,
    kind: Kind,
    default: fn() -> Value,
    read_only: bool,
    help: &'static str,
}

/// AWX's name for what its own nodes do.
const KEEP: &str = "AWX_CLEANUP_PATHS";

const SETTINGS: &[Setting] = &[
    Setting {
        name: "DEFAULT_EXECUTION_ENVIRONMENT",
        slug: "system",
        kind: Kind::Environment,
        default: || Value::Null,
        read_only: false,
        help: "The execution environment to be used when one has not been configured for a job template.",
    },
    Setting {
        name: "GLOBAL_JOB_EXECUTION_ENVIRONMENTS",
        slug: "jobs",
        kind: Kind::List,
        default: || json!([]),
        read_only: false,
        help: "Execution environments, as objects with image, that jobs prefer when none is configured.",
    },
    Setting {
        name: KEEP,
        slug: "jobs",
        kind: Kind::Bool,
        default: || json!(true),
        read_only: false,
        help: "Whether a job's private data directory goes with the job. If not, its node keeps it for a day, without keys and passwords.",
    },
    Setting {
        name: "TOWER_URL_BASE",
        slug: "system",
        kind: Kind::Text,
        default: || json!("https://localhost:8043"),
        read_only: false,
        help: "This setting is used by services like notifications to render a valid url to the service.",
    },
    Setting {
        name: "INSTALL_UUID",
        slug: "system",
        kind: Kind::Text,
        default: || json!(""),
        read_only: true,
        help: "Unique identifier for an installation",
    },
    Setting {
        name: "IS_K8S",
        slug: "system",
        kind: Kind::Bool,
        default: || json!(false),
        read_only: true,
        help: "Indicates whether the instance is part of a kubernetes-based deployment.",
    },
    Setting {
        name: "CUSTOM_LOGO",
        slug: "ui",
        kind: Kind::Text,
        default: || json!(""),
        read_only: false,
        help: "To set up a custom logo, provide a file that you create.",
    },
    Setting {
        name: "CUSTOM_LOGIN_INFO",
        slug: "ui",
        kind: Kind::Text,
        default: || json!(""),
        read_only: false,
        help: "If needed, you can add specific information (such as a legal notice) to a text box in the login modal.",
    },
];

const SLUGS: &[(&str, &str)] =
    &[("all", "All"), ("changed", "Changed"), ("jobs", "Jobs"), ("system", "System"), ("ui", "UI")];

pub(super) fn categories(call: &Call) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    if !call.user()?.is_superuser {
        return Err(ApiError::forbidden());
    }
    let results: Vec<Value> = SLUGS
        .iter()
        .map(|(slug, name)| json!({"url": format!("/api/v2/settings/{slug}/"), "slug": slug, "name": name}))
        .collect();
    ok(json!({"count": results.len(), "next": null, "previous": null, "results": results}))
}

pub(super) async fn category(call: &Call, slug: &str) -> Answer {
    if !SLUGS.iter().any(|(known, _)| *known == slug) {
        return Err(ApiError::no_such_page());
    }
    call.allow("GET, PUT, PATCH, DELETE, HEAD, OPTIONS")?;
    let superuser = call.user()?.is_superuser;
    if call.method == Method::OPTIONS {
        let mut actions = Map::new();
        if superuser {
            actions.insert("PUT".to_owned(), fields(slug, true).into());
        }
        actions.insert("GET".to_owned(), fields(slug, false).into());
        return ok(json!({"name": "Setting Detail", "actions": actions}));
    }
    if !superuser {
        return Err(ApiError::forbidden());
    }
    match call.method {
        Method::PUT | Method::PATCH => change(call, slug).await?,
        Method::DELETE => reset(call, slug).await?,
        _ => {}
    }
    let mut values = Map::new();
    for setting in
        SETTINGS.iter().filter(|setting| slug == "all" || slug == "changed" || setting.slug == slug)
    {
        let stored = call.app.db.setting(&format!("{PREFIX}{}", setting.name)).await?;
        if slug == "changed" && stored.is_none() {
            continue;
        }
        let value = match setting.name {
            "INSTALL_UUID" => call.app.install.to_string().into(),
            _ => stored.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_else(setting.default),
        };
        values.insert(setting.name.to_owned(), value);
    }
    ok(values)
}

/// Whether nodes remove private data directories with their jobs.
///
/// # Errors
/// What the database says.
pub(crate) async fn cleans_up(db: &CoreDb) -> Result<bool, StoreError> {
    Ok(setting(db, KEEP).await?.as_bool().unwrap_or(true))
}

/// A setting as it is, its default if nobody changed it.
pub(super) async fn setting(db: &CoreDb, name: &str) -> Result<Value, StoreError> {
    let stored = db.setting(&format!("{PREFIX}{name}")).await?;
    let default =
        || SETTINGS.iter().find(|setting| setting.name == name).map_or(Value::Null, |s| (s.default)());
    Ok(stored.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_else(default))
}

async fn change(call: &Call, slug: &str) -> Result<(), ApiError> {
    let body = call.object()?;
    let mut errors = Errors::default();
    let mut changes = Vec::new();
    for setting in
        SETTINGS.iter().filter(|setting| !setting.read_only && (slug == "all" || setting.slug == slug))
    {
        let Some(value) = body.get(setting.name) else { continue };
        let (fits, words) = match setting.kind {
            Kind::Text => (value.is_string(), "Not a valid string."),
            Kind::Bool => (value.is_boolean(), "Must be a valid boolean."),
            Kind::List => (value.is_array(), "Expected a list of items."),
            Kind::Environment => (value.is_null() || value.is_i64(), "Incorrect type. Expected pk value."),
        };
        if !fits {
            errors.add(setting.name, words);
            continue;
        }
        if let (Kind::Environment, Some(id)) = (&setting.kind, value.as_i64()) {
            use sea_query::{Expr, ExprTrait, Query};
            let mut query = Query::select();
            query.column("id").from("execution_environments").and_where(Expr::col("id").eq(id));
            if call.app.db.optional(&query).await?.is_none() {
                errors.add(setting.name, format!("Invalid pk \"{id}\" - object does not exist."));
                continue;
            }
        }
        changes.push((setting.name, value.to_string()));
    }
    errors.into_result()?;
    let mut tx = call.app.db.begin(Class::Intent).await?;
    for (name, value) in changes {
        tx.set_setting(&format!("{PREFIX}{name}"), &value).await?;
    }
    Ok(tx.commit().await?)
}

async fn reset(call: &Call, slug: &str) -> Result<(), ApiError> {
    use sea_query::{Expr, ExprTrait, Query};
    if slug == "all" {
        let detail = "Method \"DELETE\" not allowed.".to_owned();
        return Err(ApiError::Detail(StatusCode::METHOD_NOT_ALLOWED, detail));
    }
    let names = SETTINGS
        .iter()
        .filter(|setting| setting.slug == slug)
        .map(|setting| format!("{PREFIX}{}", setting.name));
    let mut gone = Query::delete();
    gone.from_table("settings").and_where(Expr::col("key").is_in(names));
    let mut tx = call.app.db.begin(Class::Intent).await?;
    tx.execute(&gone).await?;
    Ok(tx.commit().await?)
}

fn fields(slug: &str, write: bool) -> Map<String, Value> {
    let shown = SETTINGS.iter().filter(|setting| slug == "all" || slug == "changed" || setting.slug == slug);
    shown
        .filter(|setting| !write || !setting.read_only)
        .map(|setting| {
            let kind = match setting.kind {
                Kind::Text => "string",
                Kind::Bool => "boolean",
                Kind::List => "list",
                Kind::Environment => "field",
            };
            let words = setting.name.to_lowercase();
            let label = crate::registry::field::label_of(&words);
            let mut meta = json!({
                "type": kind, "label": label, "help_text": setting.help,
                "category": setting.slug, "category_slug": setting.slug,
            });
            if write {
                meta["required"] = false.into();
                meta["default"] = (setting.default)();
            }
            (setting.name.to_owned(), meta)
        })
        .collect()
}
