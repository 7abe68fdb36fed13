//! Settings that people change while the controller runs: the few that mean something here.

use std::collections::HashMap;

use axum::http::{Method, StatusCode};
use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Map, Value, json};

use super::activity::{self, Entry};
use super::call::Call;
use super::error::ApiError;
use super::{Answer, ok};
use crate::job;
use crate::registry::write::Errors;
use crate::registry::{self, Resource};
use crate::store::core::{Class, CoreDb, Error as StoreError, WriteTx};

enum Kind {
    Text,
    Bool,
    List,
    /// A whole number, between these bounds.
    Int(i64, i64),
    /// An object.
    Dict,
    /// Texts by name: variables of an environment.
    Texts,
    /// One of these texts.
    OneOf(&'static [&'static str]),
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

/// Modules that people may run at once, unless a setting says otherwise.
pub(super) const AD_HOC_MODULES: [&str; 19] = [
    "command",
    "shell",
    "yum",
    "apt",
    "apt_key",
    "apt_repository",
    "apt_rpm",
    "service",
    "group",
    "user",
    "mount",
    "ping",
    "selinux",
    "setup",
    "win_ping",
    "win_service",
    "win_updates",
    "win_group",
    "win_user",
];

const SETTINGS: &[Setting] = &[
    Setting {
        name: "AD_HOC_COMMANDS",
        slug: "jobs",
        kind: Kind::List,
        default: || json!(AD_HOC_MODULES),
        read_only: false,
        help: "List of modules allowed to be used by ad-hoc jobs.",
    },
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
        name: "ACTIVITY_STREAM_ENABLED",
        slug: "system",
        kind: Kind::Bool,
        default: || json!(true),
        read_only: false,
        help: "Enable capturing activity for the activity stream.",
    },
    Setting {
        name: "DEFAULT_JOB_TIMEOUT",
        slug: "jobs",
        kind: Kind::Int(0, 31_536_000),
        default: || json!(0),
        read_only: false,
        help: "Maximum time in seconds to allow jobs to run. Use value of 0 to indicate that no timeout should be imposed. A timeout set on an individual job template will override this.",
    },
    Setting {
        name: "DEFAULT_JOB_IDLE_TIMEOUT",
        slug: "jobs",
        kind: Kind::Int(0, 31_536_000),
        default: || json!(0),
        read_only: false,
        help: "If no output is detected from ansible in this number of seconds the execution will be terminated. Use value of 0 to indicate that no idle timeout should be imposed.",
    },
    Setting {
        name: "DEFAULT_INVENTORY_UPDATE_TIMEOUT",
        slug: "jobs",
        kind: Kind::Int(0, 31_536_000),
        default: || json!(0),
        read_only: false,
        help: "Maximum time in seconds to allow inventory updates to run. Use value of 0 to indicate that no timeout should be imposed. A timeout set on an individual inventory source will override this.",
    },
    Setting {
        name: "DEFAULT_PROJECT_UPDATE_TIMEOUT",
        slug: "jobs",
        kind: Kind::Int(0, 31_536_000),
        default: || json!(0),
        read_only: false,
        help: "Maximum time in seconds to allow project updates to run. Use value of 0 to indicate that no timeout should be imposed. A timeout set on an individual project will override this.",
    },
    Setting {
        name: "AWX_TASK_ENV",
        slug: "jobs",
        kind: Kind::Texts,
        default: || json!({}),
        read_only: false,
        help: "Additional environment variables set for playbook runs, inventory updates, project updates, and notification sending.",
    },
    Setting {
        name: "ALLOW_JINJA_IN_EXTRA_VARS",
        slug: "jobs",
        kind: Kind::OneOf(&["always", "never", "template"]),
        default: || json!("template"),
        read_only: false,
        help: "Ansible allows variable substitution via the Jinja2 templating language for --extra-vars. This poses a potential security risk where users with the ability to specify extra vars at job launch time can use Jinja2 templates to run arbitrary Python. It is recommended that this value be set to \"template\" or \"never\".",
    },
    Setting {
        name: "BULK_HOST_MAX_CREATE",
        slug: "bulk",
        kind: Kind::Int(1, 10_000),
        default: || json!(100),
        read_only: false,
        help: "Max number of hosts to allow to be created in a single bulk action",
    },
    Setting {
        name: "BULK_HOST_MAX_DELETE",
        slug: "bulk",
        kind: Kind::Int(1, 10_000),
        default: || json!(250),
        read_only: false,
        help: "Max number of hosts to allow to be deleted in a single bulk action",
    },
    Setting {
        name: "ALLOW_METRICS_FOR_ANONYMOUS_USERS",
        slug: "system",
        kind: Kind::Bool,
        default: || json!(false),
        read_only: false,
        help: "If true, anonymous users are allowed to poll metrics.",
    },
    Setting {
        name: "REMOTE_HOST_HEADERS",
        slug: "system",
        kind: Kind::List,
        default: || json!(["REMOTE_ADDR", "REMOTE_HOST"]),
        read_only: false,
        help: "HTTP headers and meta keys to search to determine remote host name or IP. Add additional items to this list, such as \"HTTP_X_FORWARDED_FOR\", if behind a reverse proxy.",
    },
    Setting {
        name: "PROXY_IP_ALLOWED_LIST",
        slug: "system",
        kind: Kind::List,
        default: || json!([]),
        read_only: false,
        help: "If the service is behind a reverse proxy/load balancer, use this setting to configure the proxy IP addresses from which the service should trust custom REMOTE_HOST_HEADERS header values. Headers of others are not looked at.",
    },
    Setting {
        name: "OAUTH2_PROVIDER",
        slug: "authentication",
        kind: Kind::Dict,
        default: || json!({"ACCESS_TOKEN_EXPIRE_SECONDS": 31_536_000_000_i64, "AUTHORIZATION_CODE_EXPIRE_SECONDS": 600, "REFRESH_TOKEN_EXPIRE_SECONDS": 2_628_000}),
        read_only: false,
        help: "Dictionary for customizing OAuth 2 timeouts; available are ACCESS_TOKEN_EXPIRE_SECONDS, the duration of access tokens in the number of seconds, AUTHORIZATION_CODE_EXPIRE_SECONDS, the duration of authorization codes, and REFRESH_TOKEN_EXPIRE_SECONDS, the duration of refresh tokens.",
    },
    Setting {
        name: "LOGIN_REDIRECT_OVERRIDE",
        slug: "authentication",
        kind: Kind::Text,
        default: || json!(""),
        read_only: false,
        help: "URL to which unauthorized users will be redirected to log in. If blank, users will be sent to the login page.",
    },
    Setting {
        name: "NAMED_URL_FORMATS",
        slug: "named-url",
        kind: Kind::Dict,
        default: named_url_formats,
        read_only: true,
        help: "Read-only list of key-value pairs that shows the standard format of all available named URLs.",
    },
    Setting {
        name: "DEFAULT_CONTROL_PLANE_QUEUE_NAME",
        slug: "system",
        kind: Kind::Text,
        default: || json!("controlplane"),
        read_only: true,
        help: "The instance group where control plane tasks run",
    },
    Setting {
        name: "DEFAULT_EXECUTION_QUEUE_NAME",
        slug: "system",
        kind: Kind::Text,
        default: || json!("default"),
        read_only: true,
        help: "The instance group where user jobs run (currently only on non-VM installs)",
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

const SLUGS: &[(&str, &str)] = &[
    ("all", "All"),
    ("authentication", "Authentication"),
    ("bulk", "Bulk Actions"),
    ("changed", "Changed"),
    ("jobs", "Jobs"),
    ("named-url", "Named URL"),
    ("system", "System"),
    ("ui", "UI"),
];

/// How each family's objects are named in an address: `<name>++<organization.name>`.
fn named_url_formats() -> Value {
    let formats = registry::ALL.iter().filter(|resource| !resource.natural_key.is_empty());
    formats
        .map(|resource| (resource.path.to_owned(), format_of(resource, "").into()))
        .collect::<Map<_, _>>()
        .into()
}

fn format_of(resource: &Resource, prefix: &str) -> String {
    let part = |name: &&str| match resource.field(name).map(|field| field.kind) {
        Some(registry::Kind::Id(of)) => format_of(of, &format!("{prefix}{name}.")),
        _ => format!("<{prefix}{name}>"),
    };
    resource.natural_key.iter().map(part).collect::<Vec<_>>().join("++")
}

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
    let mut stored = stored(&call.app.db).await?;
    for setting in
        SETTINGS.iter().filter(|setting| slug == "all" || slug == "changed" || setting.slug == slug)
    {
        let stored = stored.remove(setting.name);
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

/// What people changed, by name: one query.
async fn stored(db: &CoreDb) -> Result<HashMap<String, String>, StoreError> {
    let mut query = Query::select();
    let keys = SETTINGS.iter().map(|setting| job::setting(setting.name));
    query.columns(["key", "value"]).from("settings").and_where(Expr::col("key").is_in(keys));
    let mut found = HashMap::new();
    for row in db.all(&query).await? {
        let key: String = row.at(0)?;
        let name = SETTINGS.iter().map(|setting| setting.name).find(|name| job::setting(name) == key);
        found.insert(name.unwrap_or_default().to_owned(), row.at(1)?);
    }
    Ok(found)
}

/// A setting as it is, its default if nobody changed it.
pub(crate) async fn setting(db: &CoreDb, name: &str) -> Result<Value, StoreError> {
    let stored = db.setting(&job::setting(name)).await?;
    let default = || known(name).map_or(Value::Null, |setting| (setting.default)());
    Ok(stored.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_else(default))
}

/// Whether a setting is on, as a transaction sees it.
pub(super) async fn is_on(tx: &mut WriteTx, name: &str) -> Result<bool, StoreError> {
    let mut query = Query::select();
    query.column("value").from("settings").and_where(Expr::col("key").eq(job::setting(name)));
    let stored = tx.optional(&query).await?.map(|row| row.at::<String>(0)).transpose()?;
    let value = stored
        .and_then(|text| serde_json::from_str(&text).ok())
        .or_else(|| known(name).map(|s| (s.default)()));
    Ok(value == Some(Value::Bool(true)))
}

/// The category of a setting; empty if there is no such setting.
pub(super) fn category_of(name: &str) -> &'static str {
    known(name).map_or("", |setting| setting.slug)
}

fn known(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
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
            Kind::OneOf(words) => {
                (value.as_str().is_some_and(|word| words.contains(&word)), "This is not a valid choice.")
            }
            Kind::Dict => (value.is_object(), "Expected a dictionary of items."),
            Kind::Texts => (
                value.as_object().is_some_and(|texts| texts.values().all(Value::is_string)),
                "Expected a dictionary of texts.",
            ),
            Kind::Int(least, most) => (
                value.as_i64().is_some_and(|number| (least..=most).contains(&number)),
                "A valid integer within the bounds is required.",
            ),
            Kind::Environment => (value.is_null() || value.is_i64(), "Incorrect type. Expected pk value."),
        };
        if !fits {
            errors.add(setting.name, words);
            continue;
        }
        if let (Kind::Environment, Some(id)) = (&setting.kind, value.as_i64()) {
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
    let mut before = Vec::new();
    for (name, _) in &changes {
        before.push(setting(&call.app.db, name).await?);
    }
    let mut tx = call.app.db.begin(Class::Intent).await?;
    for ((name, value), old) in changes.into_iter().zip(before) {
        let new: Value = serde_json::from_str(&value).unwrap_or_default();
        if new != old {
            let changed = Map::from_iter([(name.to_owned(), json!([old, new]))]);
            activity::note(call, &mut tx, Entry::of("update", ("setting", None), changed)).await?;
        }
        tx.set_setting(&job::setting(name), &value).await?;
    }
    Ok(tx.commit().await?)
}

async fn reset(call: &Call, slug: &str) -> Result<(), ApiError> {
    if slug == "all" {
        let detail = "Method \"DELETE\" not allowed.".to_owned();
        return Err(ApiError::Detail(StatusCode::METHOD_NOT_ALLOWED, detail));
    }
    let names =
        SETTINGS.iter().filter(|setting| setting.slug == slug).map(|setting| job::setting(setting.name));
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
                Kind::OneOf(_) => "choice",
                Kind::Bool => "boolean",
                Kind::List => "list",
                Kind::Int(..) => "integer",
                Kind::Dict | Kind::Texts => "nested object",
                Kind::Environment => "field",
            };
            let words = setting.name.to_lowercase();
            let label = crate::registry::field::label_of(&words);
            let mut meta = json!({
                "type": kind, "label": label, "help_text": setting.help,
                "category": setting.slug, "category_slug": setting.slug,
            });
            if let Kind::Int(least, most) = setting.kind {
                meta["min_value"] = least.into();
                meta["max_value"] = most.into();
            }
            if write {
                meta["required"] = false.into();
                meta["default"] = (setting.default)();
            }
            (setting.name.to_owned(), meta)
        })
        .collect()
}
